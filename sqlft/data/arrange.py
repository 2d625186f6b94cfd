"""JSON in the form that grammars made of a JSON schema take: its order of properties, its spelling of values.

Called for the answers of training rows.  A grammar has the properties in the schema's order and each value of an enum
as the schema writes it; what it cannot say at all is left to the schema's validator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlft.data.kinds import DEPTH, Digits, dumps, write_array, write_object


def arranged(value: Any, schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> str:
    """The text of a parsed value.

    >>> arranged({"b": None, "a": 1.0}, {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
    '{"a": 1}'
    """
    root = schema if root is None else root
    schema = _meant(value, schema, root) if depth <= DEPTH else {}
    for allowed in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())):
        if allowed == value and isinstance(allowed, bool) == isinstance(value, bool):
            return dumps(allowed)
    if isinstance(value, Mapping):
        return write_object(
            [(k, arranged(v, _property(k, schema), root, depth + 1)) for k, v in _ordered(value, schema, root)]
        )
    if isinstance(value, list):
        return write_array([arranged(v, schema.get("items", {}), root, depth + 1) for v in value])
    if isinstance(value, float) and _words(schema) <= {"integer", "null"} and value.is_integer():
        return str(int(value))
    return value.written if isinstance(value, Digits) else dumps(value)


def followed(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/name` stands for in the schema itself."""
    found: Any = root if reference.startswith("#") else None
    for part in reference.lstrip("#").strip("/").split("/") if found is not None else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if part and isinstance(found, Mapping) else found
    return found


def _meant(value: Any, schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a schema holds for the value: references followed, of several the first that fits."""
    for _ in range(DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if "$ref" in schema:
            schema = followed(str(schema["$ref"]), root)
        elif several := next((schema[word] for word in ("anyOf", "oneOf", "allOf") if schema.get(word)), None):
            schema = next((one for one in several if _fits(value, one, root)), {})
        else:
            return schema
    return {}


def _fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    from jsonschema.validators import validator_for

    shared = {k: v for k, v in root.items() if k in ("$defs", "definitions", "$schema")}
    whole = {**shared, **schema} if isinstance(schema, Mapping) else schema
    return bool(validator_for(root)(whole).is_valid(value))


def _property(name: str, schema: Mapping[str, Any]) -> Any:
    return (schema.get("properties") or {}).get(name, schema.get("additionalProperties", {}))


def _ordered(value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The properties in the schema's order, others behind; without a NULL that may not be there and need not be."""
    known, required = schema.get("properties") or {}, schema.get("required") or ()
    names = [*(n for n in known if n in value), *(n for n in value if n not in known)]
    needless = {n for n in names if value[n] is None and n in known and n not in required}
    return [(n, value[n]) for n in names if n not in needless or _fits(None, known[n], root)]


def _words(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type")
    return set(kinds) if isinstance(kinds, list) else {str(kinds)}
