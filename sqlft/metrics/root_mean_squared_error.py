"""How far off numbers are, large errors above all."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from sqlft.metrics.kinds import aggregate, counted, lower_is_better
from sqlft.metrics.mean_squared_error import mean_squared_error
from sqlft.metrics.numbers import whole


@lower_is_better
@aggregate
@counted(mean_squared_error)
def root_mean_squared_error(actual: Any, prediction: Any) -> Any:
    """The root of the mean of (actual - prediction)² of all rows that have both."""
    return whole(actual, prediction, lambda pairs: math.sqrt(fmean((a - p) ** 2 for a, p in pairs)))


rmse = root_mean_squared_error
