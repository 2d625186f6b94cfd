"""Shared runs of words over the whole corpus, as translations are scored."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa

from sqlft.metrics.kinds import aggregate, package
from sqlft.metrics.rows import pair_texts

Counts = tuple[tuple[int, ...], tuple[int, ...], int, int]


@aggregate
def bleu(actual: Any, prediction: Any, *, lowercase: bool = False) -> Any:
    """Corpus BLEU of all rows, 0 to 100, with sacrebleu's defaults (13a tokens, exponential smoothing)."""
    pairs = [(a, p or "") for a, p in pair_texts(actual, prediction) if a is not None]
    if not pairs:
        return pa.array([None], pa.float64())
    counts = [_counts(a, p, lowercase) for a, p in pairs]
    correct, total = (
        [sum(row) for row in zip(*side, strict=True)] for side in ([c[0] for c in counts], [c[1] for c in counts])
    )
    lengths = [sum(c[2] for c in counts), sum(c[3] for c in counts)]
    # sacrebleu smooths each n-gram's precision after the sums: one call gives what corpus_bleu gives
    score = package("sacrebleu.metrics", "bleu").BLEU.compute_bleu(correct, total, *lengths, smooth_method="exp")
    return pa.array([score.score], pa.float64())


@lru_cache(maxsize=100_000)
def _counts(actual: str, prediction: str, lowercase: bool) -> Counts:
    """(matching n-grams, n-grams, words of the prediction, of the actual) of one row."""
    score = _scorer(lowercase).corpus_score([prediction], [[actual]])
    return tuple(score.counts), tuple(score.totals), score.sys_len, score.ref_len


@lru_cache(maxsize=2)
def _scorer(lowercase: bool) -> Any:
    return package("sacrebleu.metrics", "bleu").BLEU(lowercase=lowercase)
