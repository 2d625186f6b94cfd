"""Metrics of texts: exact match, token F1, ROUGE-L, BLEU, and perplexity of the right answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.metric import Column, import_package, metric, pair_texts, score_rows
from sqlft.metrics.regression import pair_numbers

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


@metric()
def exact_match(actual: Column, prediction: Column, *, normalise: bool = False) -> pa.DoubleArray:
    """Share of equal texts, 0 or 1 per row; `normalise` ignores case, whitespace and a trailing ``;``."""
    simplify = _normalise if normalise else str
    return score_rows(actual, prediction, lambda a, p: float(simplify(a) == simplify(p)))


def _normalise(text: str) -> str:
    return " ".join(text.split()).lower().rstrip("; ")


TOKEN = re.compile(r"\w+|[^\w\s]")


@metric()
def token_f1(actual: Column, prediction: Column) -> pa.DoubleArray:
    """F1 of the bags of tokens (words and single signs, case aside), 0 to 1 per row.

    As SQuAD scores answers (Rajpurkar et al. 2016), but articles and punctuation count: they do in SQL.
    """
    return score_rows(actual, prediction, _score_token_f1)


def _score_token_f1(actual: str, prediction: str) -> float:
    right, predicted = (Counter(TOKEN.findall(text.lower())) for text in (actual, prediction))
    if not right or not predicted:
        return float(right == predicted)
    return 2 * (right & predicted).total() / (right.total() + predicted.total())


@metric()
def rouge_l(actual: Column, prediction: Column, *, stem: bool = False) -> pa.DoubleArray:
    """ROUGE-L F1 of both texts, 0 to 1 per row, as the package rouge-score has it; `stem` cuts English endings."""
    scorer = import_package("rouge_score.rouge_scorer", "rouge_l").RougeScorer(["rougeL"], use_stemmer=stem)
    return score_rows(actual, prediction, lambda a, p: float(scorer.score(a, p)["rougeL"].fmeasure))


NgramCounts = tuple[tuple[int, ...], tuple[int, ...], int, int]


@metric(aggregate=True)
def bleu(actual: Column, prediction: Column, *, lowercase: bool = False) -> pa.DoubleArray:
    """Corpus BLEU of all rows, 0 to 100, with sacrebleu's defaults (13a tokens, exponential smoothing)."""
    pairs = [(a, p or "") for a, p in pair_texts(actual, prediction) if a is not None]
    if not pairs:
        return pa.array([None], pa.float64())
    matching, ngrams, *lengths = zip(*(_count_ngrams(a, p, lowercase) for a, p in pairs), strict=True)
    correct, total = ([sum(row) for row in zip(*counts, strict=True)] for counts in (matching, ngrams))
    # sacrebleu smooths each n-gram's precision after the sums: one call returns what corpus_bleu does
    predicted, right = map(sum, lengths)
    score = _load_bleu(lowercase).compute_bleu(correct, total, predicted, right, smooth_method="exp")
    return pa.array([score.score], pa.float64())


@lru_cache(maxsize=100_000)
def _count_ngrams(actual: str, prediction: str, lowercase: bool) -> NgramCounts:
    """(matching n-grams, n-grams, words of the prediction, of the actual) of one row."""
    score = _load_bleu(lowercase).corpus_score([prediction], [[actual]])
    return tuple(score.counts), tuple(score.totals), score.sys_len, score.ref_len


@lru_cache(maxsize=2)
def _load_bleu(lowercase: bool) -> BLEU:
    scorer: BLEU = import_package("sacrebleu.metrics", "bleu").BLEU(lowercase=lowercase)
    return scorer


MOST_NATS = 700.0
"""Of a token, on average: beyond it a perplexity is no number that a float holds, and not known."""


@metric(aggregate=True, lower_is_better=True, needs=("tokens",))
def perplexity(actual: Column, prediction: Column, *, tokens: Column | None = None) -> pa.DoubleArray:
    """exp(-Σ log-probability / Σ tokens) of the actual answers, over all rows.

    `prediction` holds the natural logarithm of each actual answer's probability, `tokens` its number of tokens:
    EVALUATE MODEL has both from handlers that can score answers, such as the local one.
    """
    if tokens is None:
        raise OptionError(
            "perplexity needs what a model says of the actual answers.",
            "Write: EVALUATE MODEL name ON (SELECT …) USING metrics = ['perplexity'].",
        )
    pairs = [(t, p) for t, p in pair_numbers(tokens, prediction) if t is not None and p is not None]
    count = math.fsum(t for t, _ in pairs)
    mean = math.fsum(p for _, p in pairs) / count if count else math.nan
    return pa.array([math.exp(-mean) if mean > -MOST_NATS else None], pa.float64())
