"""Of the rows that are given a label, the share that has it, over classes."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import aggregate
from sqlft.metrics.labels import class_score


@aggregate
def precision(actual: Any, prediction: Any, *, average: str | None = None, positive: Any = None) -> Any:
    """Of the rows that are given a label, the share that has it, 0 to 1 for all rows (scikit-learn's precision_score).

    `average` is binary (of the `positive` label), macro, micro or weighted; without it binary where two labels are
    0/1, false/true or no/yes, else macro.
    """
    return class_score("precision_score", actual, prediction, average, positive)


precision_score = precision
