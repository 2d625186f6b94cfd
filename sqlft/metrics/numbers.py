"""Columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sqlft.errors import DataError
from sqlft.metrics.rows import check_lengths, texts

Pair = tuple[float, float]


def pair_numbers(actual: Any, prediction: Any) -> list[tuple[float | None, float | None]]:
    """Both columns as numbers, a pair a row; a prediction that is no number is as good as none."""
    check_lengths(actual, prediction)
    wanted = [_number(text) for text in texts(actual)]
    for row, (number, text) in enumerate(zip(wanted, texts(actual), strict=True)):
        if number is None and text is not None:
            raise DataError(f"The actual value '{text[:60]}' of row {row + 1} is no number.", "Score numbers, or CAST.")
    return list(zip(wanted, [_number(text) for text in texts(prediction)], strict=True))


def row_errors(actual: Any, prediction: Any, error: Callable[[float, float], float]) -> Any:
    """`error` of each pair; NULL where one side is missing."""
    pairs = pair_numbers(actual, prediction)
    return pa.array([None if a is None or p is None else error(a, p) for a, p in pairs], pa.float64())


def whole(actual: Any, prediction: Any, value: Callable[[list[Pair]], float | None]) -> Any:
    """One value of all complete pairs, in an array of one."""
    pairs = [(a, p) for a, p in pair_numbers(actual, prediction) if a is not None and p is not None]
    return pa.array([value(pairs) if pairs else None], pa.float64())


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float({"true": "1", "false": "0"}.get(text.strip().lower(), text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
