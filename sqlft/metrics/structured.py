"""Metrics of structured texts: equal JSON, equal function calls."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum

import pyarrow as pa

from sqlft._types import Json, JsonSchema
from sqlft.errors import OptionError
from sqlft.metrics.metric import Column, cast_to_texts, check_lengths, metric, score_rows


class _NoJson(Enum):
    """A value that is missing, or not JSON: equal to nothing."""

    MISSING = "missing"
    INVALID = "invalid"


@metric()
def json_match(
    actual: Column, prediction: Column, *, schema: str | JsonSchema | None = None, partial: bool = False
) -> pa.DoubleArray:
    """1 where both are equal JSON, the order of keys aside; `partial` returns the share of equal fields.

    `schema`, a JSON schema as text or mapping, must hold for the prediction; where it has properties, only those are
    compared.  1 equals 1.0; true is no number.  An actual value that is no JSON has no score (NULL).
    """
    check_lengths(actual, prediction)
    parsed = _parse_schema(schema)
    is_valid = _build_validator(parsed)
    scores: list[float | None] = []
    broken = 0
    for right, predicted in zip(_parse_column(actual), _parse_column(prediction), strict=True):
        broken += right is _NoJson.INVALID
        if isinstance(right, _NoJson):
            scores.append(None)
        elif isinstance(predicted, _NoJson) or not is_valid(predicted):
            scores.append(0.0)
        else:
            scores.append(
                _score_json(_select_properties(right, parsed), _select_properties(predicted, parsed), partial)
            )
    if broken:
        warnings.warn(
            f"{broken} of {len(scores)} actual values are no JSON and have no score", RuntimeWarning, stacklevel=3
        )
    return pa.array(scores, pa.float64())


def _parse_column(column: Column) -> list[Json | _NoJson]:
    """JSON texts as values; structs and lists are values already."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)) and pa.types.is_nested(column.type):
        return [_NoJson.MISSING if value is None else value for value in column.to_pylist()]
    return [_NoJson.MISSING if text is None else _parse_json(text) for text in cast_to_texts(column)]


def _parse_json(text: str) -> Json | _NoJson:
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        return _NoJson.INVALID
    return value


def _parse_schema(schema: str | JsonSchema | None) -> JsonSchema | None:
    if schema is None or isinstance(schema, Mapping):
        return schema
    try:
        parsed = json.loads(schema)
    except (TypeError, ValueError) as e:
        raise OptionError(f"schema is no JSON: {e}.", """Give a JSON schema: '{"type": "object", …}'.""") from e
    if not isinstance(parsed, dict):
        raise OptionError("schema is no JSON object.", """Give a JSON schema: '{"type": "object", …}'.""")
    return parsed


def _build_validator(schema: JsonSchema | None) -> Callable[[Json], bool]:
    if schema is None:
        return lambda value: True
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    cls = validator_for(schema)
    try:
        cls.check_schema(dict(schema))
    except SchemaError as e:
        raise OptionError(f"schema is no JSON schema: {e.message}", "Mend it: json-schema.org says how.") from e
    return cls(schema).is_valid


def _select_properties(value: Json, schema: JsonSchema | None) -> Json:
    names = (schema or {}).get("properties")
    if isinstance(value, dict) and isinstance(names, Mapping):
        return {name: inner for name, inner in value.items() if name in names}
    return value


def _score_json(right: Json, predicted: Json, partial: bool) -> float:
    if not partial or not isinstance(right, dict) or not right:
        return float(_is_equal_json(right, predicted))
    if not isinstance(predicted, dict):
        return 0.0
    shared = sum(name in predicted and _is_equal_json(value, predicted[name]) for name, value in right.items())
    return shared / len(right.keys() | predicted.keys())


def _is_equal_json(a: Json, b: Json) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal_json(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_equal_json, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


CALL = re.compile(r"\s*([\w-]+)\s*\((.*)\)\s*", re.S)
ATTRIBUTE = re.compile(r"\s*([\w-]+)\s*\[([^\]]*)\]\s*(?:,|$)", re.S)
ParsedCall = tuple[str, Counter[tuple[str, frozenset[tuple[str, int]]]]]
"""A function, and the bag of its attributes, each with the bag of its values."""


@metric()
def function_match(actual: Column, prediction: Column, *, values: bool = True) -> pa.DoubleArray:
    """1 where function, attributes and their values are the same, whatever their order, else 0.

    `values=false` compares functions and attributes only.  Case counts, spaces do not; a prediction that is no
    function(attribute[value, …], …) scores 0.
    """
    return score_rows(actual, prediction, lambda a, p: float(_is_equal_call(a, p, values)))


def _is_equal_call(actual: str, prediction: str, values: bool) -> bool:
    right = _parse_call(actual, values)
    return actual.split() == prediction.split() if right is None else right == _parse_call(prediction, values)


def _parse_call(text: str, values: bool) -> ParsedCall | None:
    """None if the text is no call."""
    call = CALL.fullmatch(text)
    if call is None:
        return None
    attributes: Counter[tuple[str, frozenset[tuple[str, int]]]] = Counter()
    at, inner = 0, call[2]
    while inner[at:].strip():
        attribute = ATTRIBUTE.match(inner, at)
        if attribute is None:
            return None
        bag = Counter(" ".join(value.split()) for value in attribute[2].split(",")) if values else Counter[str]()
        attributes[attribute[1], frozenset(bag.items())] += 1
        at = attribute.end()
    return call[1], attributes
