"""USING schema = …: a JSON schema, or a type of DuckDB, as the one column that a model answers with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sqlft.data.arrange import followed
from sqlft.data.kinds import DEPTH, kind_of, object_schema
from sqlft.data.outputs import Output, Outputs
from sqlft.errors import OptionError

WORDS = {"object", "array", "string", "number", "integer", "boolean", "null"}
TELLING = ("properties", "$ref", "$defs", "$schema", "anyOf", "oneOf", "allOf", "enum", "const", "items")
FORMATS = {"date": "DATE", "date-time": "TIMESTAMP", "uuid": "UUID"}
SIMPLE = {"integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}
Bind = Callable[[str], Any]
"""A type's text to the DuckDBPyType that the user's connection knows by it."""


def outputs_of(name: str, given: Any, bind: Bind) -> Outputs:
    """The column `name` as `schema = given` wants it: a JSON schema as text or object, a type, or names with types."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _parsed(given)
    if isinstance(given, Mapping):
        if is_json_schema(given):
            return _of_schema(name, given, bind)
        if not given or not all(isinstance(t, str) for t in given.values()):
            raise _unreadable("it is neither a JSON schema nor names with types")
        given = f"STRUCT({', '.join(f'{_quoted(n)} {t}' for n, t in given.items())})"
    if not isinstance(given, str) or not given.strip():
        raise _unreadable("it is neither a JSON schema nor a type")
    kind = bind(given)
    if kind.id != "struct":
        return Outputs.of_columns([Output(name, str(kind))])
    return Outputs((Output(name, str(kind)),), kind_of(kind).schema(required=True), whole=True)


def of_struct(given: Any) -> Mapping[str, Any]:
    """MindsDB's `json_struct`, names with what each value is, as a JSON schema of texts that may be NULL."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, Mapping) or not given:
        raise OptionError(
            "The option 'json_struct' is neither an object nor JSON of one.",
            "Write: json_struct = {'city': 'where the sender lives'}, or schema = 'STRUCT(city VARCHAR)'",
        )
    return object_schema({str(name): _described(what) for name, what in given.items()})


def _described(what: Any) -> Mapping[str, Any]:
    if isinstance(what, Mapping):
        return of_struct(what)
    return {"type": ["string", "null"], "description": str(what)}


def is_json_schema(given: Mapping[str, Any]) -> bool:
    """Whether an object reads as a JSON schema, not as names with types."""
    kinds = given.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    told = any(word in given and (word.startswith("$") or not isinstance(given[word], str)) for word in TELLING)
    return told or all(isinstance(k, str) and k in WORDS for k in kinds)


def sql_type(schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
    """The type of the values that a JSON schema allows; JSON where they are of several."""
    if not isinstance(schema, Mapping) or depth > DEPTH:
        return "JSON"
    if "$ref" in schema:
        return sql_type(followed(str(schema["$ref"]), root), root, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            left = [s for s in schema[several] if not (isinstance(s, Mapping) and s.get("type") == "null")]
            return sql_type(left[0], root, depth + 1) if len(left) == 1 else "JSON"
    kinds = schema.get("type")
    named = [k for k in (kinds if isinstance(kinds, list) else [kinds]) if k not in ("null", None)]
    word = named[0] if len(named) == 1 else _of_values(schema)
    if word == "string":
        return FORMATS.get(str(schema.get("format")), "VARCHAR")
    if word == "array":
        return f"{sql_type(schema.get('items'), root, depth + 1)}[]"
    if word == "object":
        return _of_object(schema, root, depth)
    return SIMPLE.get(str(word), "JSON")


def _of_values(schema: Mapping[str, Any]) -> str | None:
    """What an enum or a const without a type holds."""
    values = [v for v in [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])] if v is not None]
    return "string" if values and all(isinstance(v, str) for v in values) else None


def _of_object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
    properties, more = schema.get("properties") or {}, schema.get("additionalProperties")
    if not properties and isinstance(more, Mapping):
        return f"MAP(VARCHAR, {sql_type(more, root, depth + 1)})"
    if not properties or len({str(n).lower() for n in properties}) < len(properties):
        return "JSON"
    return f"STRUCT({', '.join(f'{_quoted(n)} {sql_type(s, root, depth + 1)}' for n, s in properties.items())})"


def _of_schema(name: str, schema: Mapping[str, Any], bind: Bind) -> Outputs:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(dict(schema))
    except SchemaError as e:
        raise _unreadable(f"it is no JSON schema: {e.message[:200]}") from None
    kind = str(bind(sql_type(schema, schema)))
    if _is_object(schema):
        return Outputs((Output(name, kind),), schema, whole=True)
    inner = {k: v for k, v in schema.items() if k not in ("$defs", "definitions", "$schema")}
    shared = {k: v for k, v in schema.items() if k in ("$defs", "definitions", "$schema")}
    return Outputs((Output(name, kind),), {**object_schema({name: inner}), **shared})


def _is_object(schema: Mapping[str, Any]) -> bool:
    target = followed(str(schema["$ref"]), schema) if "$ref" in schema else schema
    return isinstance(target, Mapping) and (target.get("type") == "object" or "properties" in target)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _unreadable(f"it is no JSON: {e}") from None


def _unreadable(why: str) -> OptionError:
    return OptionError(
        f"The option 'schema' cannot be used, {why}.",
        "Give a JSON schema as text ('{\"type\": \"object\", …}'), or a type: schema = 'STRUCT(a INTEGER, b DATE)'",
    )


def _quoted(name: Any) -> str:
    return '"' + str(name).replace('"', '""') + '"'
