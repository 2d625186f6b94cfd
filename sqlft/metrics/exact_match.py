"""1 where the prediction is the actual text, else 0."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.rows import score_rows


def exact_match(actual: Any, prediction: Any, *, normalise: bool = False) -> Any:
    """Share of equal texts, 0 or 1 a row; `normalise` looks past case, whitespace and a trailing ``;``."""
    seen = _normalised if normalise else str
    return score_rows(actual, prediction, lambda a, p: float(seen(a) == seen(p)))


def _normalised(text: str) -> str:
    return " ".join(text.split()).lower().rstrip("; ")
