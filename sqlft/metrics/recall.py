"""Of the rows that have a label, the share that is given it, over classes."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import aggregate
from sqlft.metrics.labels import class_score


@aggregate
def recall(actual: Any, prediction: Any, *, average: str | None = None, positive: Any = None) -> Any:
    """Of the rows that have a label, the share that is given it, 0 to 1 for all rows (scikit-learn's recall_score).

    `average` is binary (of the `positive` label), macro, micro or weighted; without it binary where two labels are
    0/1, false/true or no/yes, else macro.
    """
    return class_score("recall_score", actual, prediction, average, positive)


recall_score = recall
