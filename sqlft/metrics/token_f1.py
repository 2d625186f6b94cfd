"""How many tokens two texts share."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from sqlft.metrics.rows import score_rows

TOKEN = re.compile(r"\w+|[^\w\s]")


def token_f1(actual: Any, prediction: Any) -> Any:
    """F1 of the bags of tokens (words and single signs, case aside), 0 to 1 a row.

    As SQuAD scores answers (Rajpurkar et al. 2016), but articles and punctuation count: they do in SQL.
    """
    return score_rows(actual, prediction, _f1)


def _f1(actual: str, prediction: str) -> float:
    wanted, given = (Counter(TOKEN.findall(text.lower())) for text in (actual, prediction))
    if not wanted or not given:
        return float(wanted == given)
    shared = (wanted & given).total()
    return 2 * shared / (wanted.total() + given.total())
