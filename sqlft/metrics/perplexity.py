"""How surprised a model is by the right answers."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.kinds import aggregate, lower_is_better
from sqlft.metrics.numbers import pair_numbers


@lower_is_better
@aggregate
def perplexity(actual: Any, prediction: Any, *, tokens: Any = None) -> Any:
    """exp(-Σ log-probability / Σ tokens) of the actual answers, over all rows.

    `prediction` holds the natural logarithm of each actual answer's probability, `tokens` its number of tokens:
    EVALUATE MODEL has both from handlers that can tell, the local one among them.
    """
    if tokens is None:
        raise OptionError(
            "perplexity needs what a model says of the actual answers.",
            "Write: EVALUATE MODEL name ON (SELECT …) USING metrics = ['perplexity'].",
        )
    pairs = [(t, p) for t, p in pair_numbers(tokens, prediction) if t is not None and p is not None]
    count = math.fsum(t for t, _ in pairs)
    return pa.array([math.exp(-math.fsum(p for _, p in pairs) / count) if count else None], pa.float64())
