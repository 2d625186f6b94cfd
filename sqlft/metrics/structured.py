"""Metrics of structured texts: equal JSON, equal function calls."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.metric import cast_to_texts, check_lengths, metric, score_rows


class _InvalidJson:
    """What a text that is no JSON is read as: equal to nothing."""


@metric()
def json_match(actual: Any, prediction: Any, *, schema: Any = None, partial: bool = False) -> Any:
    """1 where both are equal JSON, the order of keys aside; `partial` gives the share of equal fields.

    `schema`, a JSON schema as text or mapping, must hold for the prediction; where it has properties, only those are
    compared.  1 equals 1.0; true is no number.  An actual value that is no JSON has no score (NULL).
    """
    check_lengths(actual, prediction)
    known = _parse_schema(schema)
    valid = _build_validator(known)
    scores: list[float | None] = []
    broken = 0
    for wanted, given in zip(_parse_column(actual), _parse_column(prediction), strict=True):
        broken += isinstance(wanted, _InvalidJson)
        if wanted is None or isinstance(wanted, _InvalidJson):
            scores.append(None)
        elif isinstance(given, _InvalidJson) or given is None or not valid(given):
            scores.append(0.0)
        else:
            scores.append(_score_json(_select_properties(wanted, known), _select_properties(given, known), partial))
    if broken:
        warnings.warn(
            f"{broken} of {len(scores)} actual values are no JSON and have no score", RuntimeWarning, stacklevel=3
        )
    return pa.array(scores, pa.float64())


def _parse_column(column: Any) -> list[Any]:
    """JSON texts as values, None for NULL; structs and lists are values already."""
    if hasattr(column, "type") and pa.types.is_nested(column.type):
        return list(column.to_pylist())
    return [None if text is None else _parse_json(text) for text in cast_to_texts(column)]


def _parse_json(text: str) -> Any:
    try:
        return _JsonNull if (value := json.loads(text)) is None else value
    except (ValueError, RecursionError):
        return _InvalidJson()


class _JsonNull:
    """JSON's null, which is a value."""


def _parse_schema(given: Any) -> dict[str, Any] | None:
    if given is None or isinstance(given, Mapping):
        return None if given is None else dict(given)
    try:
        read = json.loads(given)
    except (TypeError, ValueError) as e:
        raise OptionError(f"schema is no JSON: {e}.", """Give a JSON schema: '{"type": "object", …}'.""") from e
    if not isinstance(read, dict):
        raise OptionError("schema is no JSON object.", """Give a JSON schema: '{"type": "object", …}'.""")
    return read


def _build_validator(schema: dict[str, Any] | None) -> Any:
    if schema is None:
        return lambda value: True
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    cls = validator_for(schema)
    try:
        cls.check_schema(schema)
    except SchemaError as e:
        raise OptionError(f"schema is no JSON schema: {e.message}", "Mend it: json-schema.org says how.") from e
    return cls(schema).is_valid


def _select_properties(value: Any, schema: Mapping[str, Any] | None) -> Any:
    names = (schema or {}).get("properties")
    if isinstance(value, dict) and isinstance(names, Mapping):
        return {name: inner for name, inner in value.items() if name in names}
    return value


def _score_json(wanted: Any, given: Any, partial: bool) -> float:
    if not partial or not isinstance(wanted, dict) or not wanted:
        return float(_is_equal_json(wanted, given))
    if not isinstance(given, dict):
        return 0.0
    shared = sum(name in given and _is_equal_json(value, given[name]) for name, value in wanted.items())
    return shared / len(wanted.keys() | given.keys())


def _is_equal_json(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal_json(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_equal_json, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


CALL = re.compile(r"\s*([\w-]+)\s*\((.*)\)\s*", re.S)
ATTRIBUTE = re.compile(r"\s*([\w-]+)\s*\[([^\]]*)\]\s*(?:,|$)", re.S)
ParsedCall = tuple[str, Counter[Any]]


@metric()
def function_match(actual: Any, prediction: Any, *, values: bool = True) -> Any:
    """1 where function, attributes and their values are the same, whatever their order, else 0.

    `values=false` compares functions and attributes only.  Case counts, spaces do not; a prediction that is no
    function(attribute[value, …], …) scores 0.
    """
    return score_rows(actual, prediction, lambda a, p: float(_is_equal_call(a, p, values)))


def _is_equal_call(actual: str, prediction: str, values: bool) -> bool:
    wanted, given = _parse_call(actual, values), _parse_call(prediction, values)
    return actual.split() == prediction.split() if wanted is None else wanted == given


def _parse_call(text: str, values: bool) -> ParsedCall | None:
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
