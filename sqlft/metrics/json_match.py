"""1 where both are the same JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.rows import check_lengths, texts


class _NoJson:
    """What a text that is no JSON is read as: equal to nothing."""


def json_match(actual: Any, prediction: Any, *, schema: Any = None, partial: bool = False) -> Any:
    """1 where both are equal JSON, the order of keys aside; `partial` gives the share of equal fields.

    `schema`, a JSON schema as text or mapping, must hold for the prediction; where it has properties, only those are
    compared.  1 equals 1.0; true is no number.  An actual value that is no JSON has no score (NULL).
    """
    check_lengths(actual, prediction)
    known = _schema(schema)
    valid = _validator(known)
    scores: list[float | None] = []
    broken = 0
    for wanted, given in zip(_values(actual), _values(prediction), strict=True):
        broken += isinstance(wanted, _NoJson)
        if wanted is None or isinstance(wanted, _NoJson):
            scores.append(None)
        elif isinstance(given, _NoJson) or given is None or not valid(given):
            scores.append(0.0)
        else:
            scores.append(_score(_only(wanted, known), _only(given, known), partial))
    if broken:
        warnings.warn(
            f"{broken} of {len(scores)} actual values are no JSON and have no score", RuntimeWarning, stacklevel=2
        )
    return pa.array(scores, pa.float64())


def _values(column: Any) -> list[Any]:
    """JSON texts as values, None for NULL; structs and lists are values already."""
    if hasattr(column, "type") and pa.types.is_nested(column.type):
        return list(column.to_pylist())
    return [None if text is None else _read(text) for text in texts(column)]


def _read(text: str) -> Any:
    try:
        return _Null if (value := json.loads(text)) is None else value
    except (ValueError, RecursionError):
        return _NoJson()


class _Null:
    """JSON's null, which is a value."""


def _schema(given: Any) -> dict[str, Any] | None:
    if given is None or isinstance(given, Mapping):
        return None if given is None else dict(given)
    try:
        read = json.loads(given)
    except (TypeError, ValueError) as e:
        raise OptionError(f"schema is no JSON: {e}.", """Give a JSON schema: '{"type": "object", …}'.""") from e
    if not isinstance(read, dict):
        raise OptionError("schema is no JSON object.", """Give a JSON schema: '{"type": "object", …}'.""")
    return read


def _validator(schema: dict[str, Any] | None) -> Any:
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


def _only(value: Any, schema: Mapping[str, Any] | None) -> Any:
    names = (schema or {}).get("properties")
    if isinstance(value, dict) and isinstance(names, Mapping):
        return {name: inner for name, inner in value.items() if name in names}
    return value


def _score(wanted: Any, given: Any, partial: bool) -> float:
    if not partial or not isinstance(wanted, dict) or not wanted:
        return float(_equal(wanted, given))
    if not isinstance(given, dict):
        return 0.0
    shared = sum(name in given and _equal(value, given[name]) for name, value in wanted.items())
    return shared / len(wanted.keys() | given.keys())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
