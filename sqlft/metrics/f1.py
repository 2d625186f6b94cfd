"""The harmonic mean of precision and recall, over classes."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import aggregate
from sqlft.metrics.labels import class_score


@aggregate
def f1(actual: Any, prediction: Any, *, average: str | None = None, positive: Any = None) -> Any:
    """The harmonic mean of precision and recall, 0 to 1 for all rows (scikit-learn's f1_score).

    `average` is binary (of the `positive` label), macro, micro or weighted; without it binary where two labels are
    0/1, false/true or no/yes, else macro.
    """
    return class_score("f1_score", actual, prediction, average, positive)


f1_score = f1
