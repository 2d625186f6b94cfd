"""1 where two meaning representations say the same, as in ViGGO: inform(name[Dirt], genres[racing, sport])."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from sqlft.metrics.rows import score_rows

CALL = re.compile(r"\s*([\w-]+)\s*\((.*)\)\s*", re.S)
ATTRIBUTE = re.compile(r"\s*([\w-]+)\s*\[([^\]]*)\]\s*(?:,|$)", re.S)
Meaning = tuple[str, Counter[Any]]


def function_match(actual: Any, prediction: Any, *, values: bool = True) -> Any:
    """1 where function, attributes and their values are the same, whatever their order, else 0.

    `values=false` compares functions and attributes only.  Case counts, spaces do not; a prediction that is no
    function(attribute[value, …], …) scores 0.
    """
    return score_rows(actual, prediction, lambda a, p: float(_equal(a, p, values)))


def _equal(actual: str, prediction: str, values: bool) -> bool:
    wanted, given = _read(actual, values), _read(prediction, values)
    return actual.split() == prediction.split() if wanted is None else wanted == given


def _read(text: str, values: bool) -> Meaning | None:
    """(function, bag of (attribute, bag of values)); None if the text is no such thing."""
    call = CALL.fullmatch(text)
    if call is None:
        return None
    found: Counter[Any] = Counter()
    at, inner = 0, call[2]
    while inner[at:].strip():
        attribute = ATTRIBUTE.match(inner, at)
        if attribute is None:
            return None
        given = Counter(" ".join(value.split()) for value in attribute[2].split(",")) if values else {}
        found[attribute[1], frozenset(given.items())] += 1
        at = attribute.end()
    return call[1], found
