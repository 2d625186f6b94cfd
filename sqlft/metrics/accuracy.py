"""1 where the label is right."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from sqlft.metrics.labels import pair_labels


def accuracy(actual: Any, prediction: Any) -> Any:
    """1 where both labels are equal, else 0; numbers are compared as numbers, texts without spaces at their ends."""
    pairs = pair_labels(actual, prediction)
    return pa.array([None if a is None else float(a == p) for a, p in pairs], pa.float64())


accuracy_score = accuracy
