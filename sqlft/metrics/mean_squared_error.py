"""How far off numbers are, squared."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import lower_is_better
from sqlft.metrics.numbers import row_errors


@lower_is_better
def mean_squared_error(actual: Any, prediction: Any) -> Any:
    """(actual - prediction)² a row, NULL where either is missing; the mean of it is the error."""
    return row_errors(actual, prediction, lambda a, p: (a - p) ** 2)
