"""The rule of NULLs that all metrics share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sqlft.errors import DataError


def score_rows(actual: Any, prediction: Any, score: Callable[[str, str], float]) -> Any:
    """`score` of each pair as a pa.DoubleArray: NULL without an actual value, 0 without a prediction."""
    if len(actual) != len(prediction):
        raise DataError(
            f"There are {len(actual):,} actual values and {len(prediction):,} predictions.", "Give one of each a row."
        )
    pairs = zip(_texts(actual), _texts(prediction), strict=True)
    scores = [None if a is None else 0.0 if p is None else score(a, p) for a, p in pairs]
    return pa.array(scores, pa.float64())


def _texts(values: Any) -> list[str | None]:
    """Any column as texts; numbers that Arrow writes alike compare as equal texts."""
    try:
        return list(values.cast(pa.large_string()).to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise DataError(
            f"Values of the type {values.type} cannot be compared as text: {e}", "CAST them AS VARCHAR."
        ) from e
