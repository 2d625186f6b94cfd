"""JSON schemas: what users write as one, the SQL types that they stand for, and the one text of a value.

`outputs` calls this for models with a schema, CREATE MODEL for MindsDB's json_struct.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlft._types import Json, JsonSchema
from sqlft.data.json_types import MAX_DEPTH, WrittenNumber, build_object_schema, dumps
from sqlft.errors import OptionError
from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR
from sqlft.sql.names import quote_name

JSON_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
SCHEMA_KEYWORDS = ("properties", "$ref", "$defs", "$schema", "anyOf", "oneOf", "allOf", "enum", "const", "items")
FORMAT_TYPES = {"date": "DATE", "date-time": "TIMESTAMP", "uuid": "UUID"}
SIMPLE_TYPES = {"integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}


def parse_json_struct(struct: object) -> JsonSchema:
    """MindsDB's `json_struct`, names with what each value is, as a JSON schema of texts that may be NULL."""
    if isinstance(struct, str):
        try:
            struct = json.loads(struct)
        except (ValueError, RecursionError):
            struct = None
    if not isinstance(struct, Mapping) or not struct:
        raise OptionError(
            "The option 'json_struct' is neither an object nor JSON of one.",
            "Write: json_struct = {'city': 'where the sender lives'}, or schema = 'STRUCT(city VARCHAR)'",
        )
    return build_object_schema({str(name): _describe_property(content) for name, content in struct.items()})


def _describe_property(content: object) -> JsonSchema:
    if isinstance(content, Mapping):
        return parse_json_struct(content)
    return {"type": ["string", "null"], "description": str(content)}


def is_json_schema(value: JsonSchema) -> bool:
    """Whether an object reads as a JSON schema, not as names with types.

    >>> is_json_schema({"type": "object"}), is_json_schema({"type": "VARCHAR"})
    (True, False)
    """
    kinds = value.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    has_keyword = any(w in value and (w.startswith("$") or not isinstance(value[w], str)) for w in SCHEMA_KEYWORDS)
    return has_keyword or all(isinstance(k, str) and k in JSON_TYPES for k in kinds)


def to_sql_type(schema: object, root: JsonSchema, depth: int = 0) -> str:
    """The type of the values that a JSON schema allows; JSON where they are of several.

    >>> to_sql_type({"type": "array", "items": {"type": ["integer", "null"]}}, {})
    'BIGINT[]'
    """
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return "JSON"
    if "$ref" in schema:
        return to_sql_type(resolve_reference(str(schema["$ref"]), root), root, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            left = [s for s in schema[several] if not (isinstance(s, Mapping) and s.get("type") == "null")]
            return to_sql_type(left[0], root, depth + 1) if len(left) == 1 else "JSON"
    kinds = schema.get("type")
    named = [k for k in (kinds if isinstance(kinds, list) else [kinds]) if k not in ("null", None)]
    word = named[0] if len(named) == 1 else _infer_enum_type(schema)
    if word == "string":
        return FORMAT_TYPES.get(str(schema.get("format")), "VARCHAR")
    if word == "array":
        return f"{to_sql_type(schema.get('items'), root, depth + 1)}[]"
    if word == "object":
        return _to_object_type(schema, root, depth)
    return SIMPLE_TYPES.get(str(word), "JSON")


def _infer_enum_type(schema: JsonSchema) -> str | None:
    """What an enum or a const without a type holds."""
    values = [v for v in [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])] if v is not None]
    return "string" if values and all(isinstance(v, str) for v in values) else None


def _to_object_type(schema: JsonSchema, root: JsonSchema, depth: int) -> str:
    properties, more = schema.get("properties") or {}, schema.get("additionalProperties")
    if not properties and isinstance(more, Mapping):
        return f"MAP(VARCHAR, {to_sql_type(more, root, depth + 1)})"
    if not properties or len({str(n).lower() for n in properties}) < len(properties):
        return "JSON"
    return f"STRUCT({', '.join(f'{quote_name(n)} {to_sql_type(s, root, depth + 1)}' for n, s in properties.items())})"


def canonicalise(value: Json, schema: object, root: JsonSchema | None = None, depth: int = 0) -> str:
    """The text of a parsed value.

    >>> canonicalise({"b": None, "a": 1.0}, {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
    '{"a": 1}'
    """
    root = (schema if isinstance(schema, Mapping) else {}) if root is None else root
    schema = _resolve_schema(value, schema, root) if depth <= MAX_DEPTH else {}
    for allowed in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())):
        if allowed == value and isinstance(allowed, bool) == isinstance(value, bool):
            return dumps(allowed)
    if isinstance(value, Mapping):
        properties = (
            f"{dumps(k)}{KEY_SEPARATOR}{canonicalise(v, _find_property_schema(k, schema), root, depth + 1)}"
            for k, v in _sort_properties(value, schema, root)
        )
        return f"{{{ITEM_SEPARATOR.join(properties)}}}"
    if isinstance(value, list):
        items = (canonicalise(v, schema.get("items", {}), root, depth + 1) for v in value)
        return f"[{ITEM_SEPARATOR.join(items)}]"
    if isinstance(value, float) and _list_type_names(schema) <= {"integer", "null"} and value.is_integer():
        return str(int(value))
    return value.written if isinstance(value, WrittenNumber) else dumps(value)


def resolve_reference(reference: str, root: JsonSchema) -> object:
    """What `#/$defs/name` refers to in the schema itself."""
    target: object = root if reference.startswith("#") else None
    for part in reference.lstrip("#").strip("/").split("/"):
        if part and isinstance(target, Mapping):
            target = target.get(part.replace("~1", "/").replace("~0", "~"))
    return target


def _resolve_schema(value: Json, schema: object, root: JsonSchema) -> JsonSchema:
    """What of a schema holds for the value: references followed, of several the first that fits."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if "$ref" in schema:
            schema = resolve_reference(str(schema["$ref"]), root)
        elif several := next((schema[word] for word in ("anyOf", "oneOf", "allOf") if schema.get(word)), None):
            schema = next((alternative for alternative in several if _fits(value, alternative, root)), {})
        else:
            return schema
    return {}


def _fits(value: Json, schema: object, root: JsonSchema) -> bool:
    from jsonschema.validators import validator_for

    shared = {k: v for k, v in root.items() if k in ("$defs", "definitions", "$schema")}
    whole = {**shared, **schema} if isinstance(schema, Mapping) else schema is not False
    return bool(validator_for(root)(whole).is_valid(value))


def _find_property_schema(name: str, schema: JsonSchema) -> object:
    return (schema.get("properties") or {}).get(name, schema.get("additionalProperties", {}))


def _sort_properties(value: Mapping[str, Json], schema: JsonSchema, root: JsonSchema) -> list[tuple[str, Json]]:
    """The properties in the schema's order, others behind; without a NULL that may not be there and need not be."""
    known, required = schema.get("properties") or {}, schema.get("required") or ()
    names = [*(n for n in known if n in value), *(n for n in value if n not in known)]
    needless = {n for n in names if value[n] is None and n in known and n not in required}
    return [(n, value[n]) for n in names if n not in needless or _fits(None, known[n], root)]


def _list_type_names(schema: JsonSchema) -> set[str]:
    kinds = schema.get("type")
    return set(kinds) if isinstance(kinds, list) else {str(kinds)}
