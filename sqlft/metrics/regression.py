"""Metrics of numbers: errors absolute, squared and in percent, and R²."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from statistics import fmean

import pyarrow as pa

from sqlft.errors import DataError
from sqlft.metrics.metric import Column, cast_to_texts, check_lengths, metric

NumberPair = tuple[float, float]


def pair_numbers(actual: Column, prediction: Column) -> list[tuple[float | None, float | None]]:
    """Both columns as numbers, one pair per row; a prediction that is no number counts as missing."""
    check_lengths(actual, prediction)
    numbers = []
    for row, text in enumerate(cast_to_texts(actual), 1):
        numbers.append(number := _parse_number(text))
        if number is None and text is not None:
            raise DataError(f"The actual value '{text[:60]}' of row {row} is no number.", "Score numbers, or CAST.")
    return list(zip(numbers, map(_parse_number, cast_to_texts(prediction)), strict=True))


def score_row_errors(actual: Column, prediction: Column, error: Callable[[float, float], float]) -> pa.DoubleArray:
    """`error` of each pair; NULL where one side is missing."""
    pairs = pair_numbers(actual, prediction)
    return pa.array([None if a is None or p is None else error(a, p) for a, p in pairs], pa.float64())


def score_all_pairs(
    actual: Column, prediction: Column, value: Callable[[list[NumberPair]], float | None]
) -> pa.DoubleArray:
    """One value of all complete pairs, in an array of one."""
    pairs = [(a, p) for a, p in pair_numbers(actual, prediction) if a is not None and p is not None]
    return pa.array([value(pairs) if pairs else None], pa.float64())


def _parse_number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float({"true": "1", "false": "0"}.get(text.strip().lower(), text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@metric(lower_is_better=True)
def mean_absolute_error(actual: Column, prediction: Column) -> pa.DoubleArray:
    """|actual - prediction| per row, NULL where either is missing; the mean of it is the error."""
    return score_row_errors(actual, prediction, lambda a, p: abs(a - p))


@metric(lower_is_better=True)
def mean_squared_error(actual: Column, prediction: Column) -> pa.DoubleArray:
    """(actual - prediction)² per row, NULL where either is missing; the mean of it is the error."""
    return score_row_errors(actual, prediction, lambda a, p: (a - p) ** 2)


@metric(aggregate=True, lower_is_better=True, counted=mean_squared_error)
def root_mean_squared_error(actual: Column, prediction: Column) -> pa.DoubleArray:
    """The root of the mean of (actual - prediction)² of all rows that have both."""
    return score_all_pairs(actual, prediction, lambda pairs: math.sqrt(fmean((a - p) ** 2 for a, p in pairs)))


rmse = root_mean_squared_error


@metric(lower_is_better=True)
def mean_absolute_percentage_error(actual: Column, prediction: Column) -> pa.DoubleArray:
    """|actual - prediction| / |actual| per row, NULL where either is missing; 0.1 is ten percent."""
    return score_row_errors(actual, prediction, lambda a, p: abs(a - p) / max(abs(a), sys.float_info.epsilon))


@metric(aggregate=True, counted=mean_squared_error)
def r2_score(actual: Column, prediction: Column) -> pa.DoubleArray:
    """1 - Σ(actual - prediction)² / Σ(actual - mean)² of all rows that have both; NULL of less than two.

    Where all actual values are the same it is 1 if every prediction is right, else 0, as scikit-learn has it.
    """
    return score_all_pairs(actual, prediction, _score_r2)


def _score_r2(pairs: list[NumberPair]) -> float | None:
    if len(pairs) < 2:
        return None
    mean = fmean(a for a, _ in pairs)
    left = math.fsum((a - p) ** 2 for a, p in pairs)
    spread = math.fsum((a - mean) ** 2 for a, _ in pairs)
    return float(left == 0) if spread == 0 else 1 - left / spread


r2 = r2_score
