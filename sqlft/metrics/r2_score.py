"""The share of the variance that predictions explain."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from sqlft.metrics.kinds import aggregate, counted
from sqlft.metrics.mean_squared_error import mean_squared_error
from sqlft.metrics.numbers import Pair, whole


@aggregate
@counted(mean_squared_error)
def r2_score(actual: Any, prediction: Any) -> Any:
    """1 - Σ(actual - prediction)² / Σ(actual - mean)² of all rows that have both; NULL of less than two.

    Where all actual values are the same it is 1 if every prediction is right, else 0, as scikit-learn has it.
    """
    return whole(actual, prediction, _r2)


def _r2(pairs: list[Pair]) -> float | None:
    if len(pairs) < 2:
        return None
    mean = fmean(a for a, _ in pairs)
    left = math.fsum((a - p) ** 2 for a, p in pairs)
    spread = math.fsum((a - mean) ** 2 for a, _ in pairs)
    return float(left == 0) if spread == 0 else 1 - left / spread


r2 = r2_score
