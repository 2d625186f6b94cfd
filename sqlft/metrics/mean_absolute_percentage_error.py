"""How far off numbers are, as a share of the actual ones."""

from __future__ import annotations

import sys
from typing import Any

from sqlft.metrics.kinds import lower_is_better
from sqlft.metrics.numbers import row_errors


@lower_is_better
def mean_absolute_percentage_error(actual: Any, prediction: Any) -> Any:
    """|actual - prediction| / |actual| a row, NULL where either is missing; 0.1 is ten percent."""
    return row_errors(actual, prediction, lambda a, p: abs(a - p) / max(abs(a), sys.float_info.epsilon))
