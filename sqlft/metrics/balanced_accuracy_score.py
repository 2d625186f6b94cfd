"""Recall, averaged over the labels."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import aggregate
from sqlft.metrics.labels import class_score


@aggregate
def balanced_accuracy_score(actual: Any, prediction: Any, *, adjusted: bool = False) -> Any:
    """The mean of each label's recall, 0 to 1 for all rows (scikit-learn's); `adjusted` makes chance 0."""
    return class_score("balanced_accuracy_score", actual, prediction, adjusted=bool(adjusted))
