"""Figures of training rows: sizes, tokens, answers, and the settings that suit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from sqlft.data.checks.structure import CountTokens
from sqlft.data.conversations import EXAMPLE_LENGTH, MAX_EXAMPLES
from sqlft.data.prepare import PreparedData
from sqlft.data.privacy import mask_private
from sqlft.handler import CHARS_PER_TOKEN, TOKENS_PER_MESSAGE, estimate_tokens

MIN_BATCH_SHARE, MAX_BATCH_SHARE, USUAL_BATCH_SIZE = 0.0001, 0.04, 16
"""A batch is between these shares of the rows: OpenAI's guide to fine-tuning, 2023; small ones generalise better."""
EPOCHS_BY_ROWS = ((1_000, 4), (10_000, 3))
"""Epochs of fewer rows than that; of more it is 2."""
MAX_BUCKETS = 12
MAX_LABELS = 50


@dataclass(frozen=True)
class DatasetFact:
    """One fact of a dataset: `details` has its numbers, `shown` some lines of it."""

    code: str
    count: int
    message: str
    shown: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)


def collect_facts(prepared: PreparedData, count_tokens: CountTokens | None = None) -> list[DatasetFact]:
    """Rows, token lengths, answers, and the batch size and epochs that suit them."""
    train = prepared.training_set.train.column("messages")
    valid = prepared.training_set.valid
    held = 0 if valid is None else valid.num_rows
    return [
        DatasetFact(
            "rows",
            prepared.row_count,
            f"{prepared.row_count:,} rows make {len(train) + held:,} conversations: {len(train):,} to train on, "
            f"{held:,} for validation.",
            details={"rows": prepared.row_count, "train": len(train), "validation": held},
        ),
        _measure_tokens(train, count_tokens),
        _count_answers(train),
        _suggest_settings(len(train)),
    ]


def suggest_batch_size(rows: int) -> int:
    """A power of two between 0.01 % and 4 % of the rows, 16 where that is among them."""
    size = 1
    while 2 * size <= max(min(MAX_BATCH_SHARE * rows, USUAL_BATCH_SIZE), 2 * MIN_BATCH_SHARE * rows):
        size *= 2
    return size


def suggest_epochs(rows: int) -> int:
    """More of few rows: 4, 3 or 2."""
    return next((epochs for below, epochs in EPOCHS_BY_ROWS if rows < below), 2)


def build_histogram(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, below, how many) in at most BUCKETS buckets of one round width, the first and last not empty."""
    low, high = min(values), max(values)
    width = next(
        w * 10**k for k in range(12) for w in (1, 2, 5) if (high // (w * 10**k) - low // (w * 10**k)) < MAX_BUCKETS
    )
    counts = Counter(v // width for v in values)
    return [(k * width, (k + 1) * width, counts[k]) for k in range(low // width, high // width + 1)]


def _measure_tokens(train: pa.ChunkedArray, count_tokens: CountTokens | None) -> DatasetFact:
    turns = train.to_pylist()
    texts = ["\n".join(m["content"] for m in messages) for messages in turns]
    exact = count_tokens(texts) if count_tokens else None
    counts = [estimate_tokens(text) for text in texts] if exact is None else exact
    tokens = sorted(n + TOKENS_PER_MESSAGE * len(messages) for n, messages in zip(counts, turns, strict=True))
    at = {f"p{q}": tokens[min(len(tokens) - 1, len(tokens) * q // 100)] for q in (50, 95, 99)}
    buckets = build_histogram(tokens)
    guess = "" if exact is not None else f" (guessed at {CHARS_PER_TOKEN} letters a token)"
    most = max(n for *_, n in buckets)
    return DatasetFact(
        "token_lengths",
        sum(tokens),
        f"{sum(tokens):,} tokens an epoch{guess}: from {tokens[0]:,} to {tokens[-1]:,} a conversation, half have "
        f"at most {at['p50']:,}, 95 % at most {at['p95']:,}.",
        tuple(f"{a:>7,} – {b - 1:<7,} {'█' * round(20 * n / most) or '·'} {n:,}" for a, b, n in buckets),
        {
            "min": tokens[0],
            **at,
            "max": tokens[-1],
            "histogram": [{"from": a, "below": b, "count": n} for a, b, n in buckets],
        },
    )


def _count_answers(train: pa.ChunkedArray) -> DatasetFact:
    answers = [turns[-1]["content"] for turns in train.to_pylist()]
    counts = Counter(answers)
    common = counts.most_common(10)
    sizes = sorted(map(len, answers))
    kinds = "all different" if len(counts) == len(answers) else f"{len(counts):,} different ones"
    is_labels = len(counts) <= MAX_LABELS and len(counts) < len(answers) / 2
    shares = {mask_private(a)[:EXAMPLE_LENGTH]: n for a, n in common} if is_labels else {}
    listed = ", ".join(f"{label!r} {n / len(answers):.0%}" for label, n in list(shares.items())[:5])
    return DatasetFact(
        "answers",
        len(counts),
        f"{len(answers):,} answers, {kinds}{f': {listed}' if listed else ''}; half have at most "
        f"{sizes[len(sizes) // 2]:,} letters, the longest {sizes[-1]:,}.",
        tuple(mask_private(a)[:EXAMPLE_LENGTH] for a, _ in common[:MAX_EXAMPLES]),
        {"different": len(counts), **({"balance": shares} if shares else {})},
    )


def _suggest_settings(rows: int) -> DatasetFact:
    batch, epochs = suggest_batch_size(rows), suggest_epochs(rows)
    share = batch / rows
    return DatasetFact(
        "suggested",
        rows,
        f"For {rows:,} rows: batch_size = {batch} ({share:.2%} of the rows; 0.01 % to 4 % is usual), "
        f"n_epochs = {epochs} (2 to 4 are; fewer the more rows there are).",
        details={"batch_size": batch, "n_epochs": epochs},
    )
