"""What all metrics share: what one says of itself, pairs of values, the rule of NULLs, options that are columns."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import pyarrow as pa

from sqlft.errors import DataError, NotSupported

Function = TypeVar("Function", bound=Callable[..., Any])


def aggregate(metric: Function) -> Function:
    """Marks a metric that gives one value for all rows together, in an array of one."""
    setattr(metric, "aggregate", True)  # noqa: B010  # a function has no such attribute of its own
    return metric


def lower_is_better(metric: Function) -> Function:
    """Marks a metric whose best value is the lowest."""
    setattr(metric, "lower_is_better", True)  # noqa: B010
    return metric


def takes_columns(*names: str) -> Callable[[Function], Function]:
    """Marks options that are columns of the rows, if the rows have columns of these names."""

    def mark(metric: Function) -> Function:
        setattr(metric, "columns", names)  # noqa: B010
        return metric

    return mark


def counts_rows_of(rows: Callable[..., Any]) -> Callable[[Function], Function]:
    """Marks an aggregate metric that counts only the rows which this metric of rows has a score for."""

    def mark(metric: Function) -> Function:
        setattr(metric, "counted", rows)  # noqa: B010
        return metric

    return mark


def is_aggregate(metric: Any) -> bool:
    """Whether a metric gives one value for all rows."""
    return bool(getattr(metric, "aggregate", False))


def is_lower_better(metric: Any) -> bool:
    """Whether a metric's best value is the lowest."""
    return bool(getattr(metric, "lower_is_better", False))


def import_package(module: str, metric: str) -> Any:
    """An optional package's module; NotSupported says what to install."""
    try:
        return import_module(module)
    except ImportError as e:
        raise NotSupported(
            f"{metric} needs the package {module.partition('.')[0]}, which is not installed ({e}).",
            "Run: pip install 'sqlft[evaluation]'",
        ) from e


Pairs = list[tuple[str | None, str | None]]


def score_rows(actual: Any, prediction: Any, score: Callable[[str, str], float]) -> Any:
    """`score` of each pair as a pa.DoubleArray: NULL without an actual value, 0 without a prediction."""
    pairs = pair_texts(actual, prediction)
    return pa.array([None if a is None else 0.0 if p is None else score(a, p) for a, p in pairs], pa.float64())


def pair_texts(actual: Any, prediction: Any) -> Pairs:
    """Both columns as texts, a pair a row; DataError if they are not of one length."""
    check_lengths(actual, prediction)
    return list(zip(cast_to_texts(actual), cast_to_texts(prediction), strict=True))


def check_lengths(actual: Any, prediction: Any) -> None:
    """DataError if the columns are not of one length."""
    if len(actual) != len(prediction):
        raise DataError(
            f"There are {len(actual):,} actual values and {len(prediction):,} predictions.", "Give one of each a row."
        )


def cast_to_texts(values: Any) -> list[str | None]:
    """Any column as texts; numbers that Arrow writes alike compare as equal texts."""
    kind = "mixed kinds"
    try:
        values = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
        kind = f"the type {values.type}"
        return list(values.cast(pa.large_string()).to_pylist())
    except (pa.ArrowException, ValueError) as e:
        raise DataError(f"Values of {kind} cannot be compared as text: {e}", "CAST them AS VARCHAR.") from e


def expand_option(option: Any, count: int, name: str) -> list[str | None]:
    """An option that is one text for all rows, or a column with one a row, as a text a row."""
    if isinstance(option, str) or hasattr(option, "__fspath__"):
        return [str(option)] * count
    if isinstance(option, (list, tuple)):
        option = [str(value) if hasattr(value, "__fspath__") else value for value in option]
    found = cast_to_texts(option)
    if len(found) != count:
        raise DataError(f"{name} has {len(found):,} values for {count:,} rows.", "Give one for all, or one a row.")
    return found
