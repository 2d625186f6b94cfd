"""DuckDB's types as JSON has them: a JSON schema for each, values from JSON, to JSON and into Arrow columns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext
from typing import Any
from uuid import UUID

import pyarrow as pa

from sqlft.data.prompts import to_text
from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR

INTEGERS = {
    "tinyint": (-(2**7), 2**7 - 1, pa.int8()),
    "smallint": (-(2**15), 2**15 - 1, pa.int16()),
    "integer": (-(2**31), 2**31 - 1, pa.int32()),
    "bigint": (-(2**63), 2**63 - 1, pa.int64()),
    "hugeint": (-(10**38) + 1, 10**38 - 1, pa.decimal128(38, 0)),
    "utinyint": (0, 2**8 - 1, pa.uint8()),
    "usmallint": (0, 2**16 - 1, pa.uint16()),
    "uinteger": (0, 2**32 - 1, pa.uint32()),
    "ubigint": (0, 2**64 - 1, pa.uint64()),
}
"""Least and largest value, and the type in Arrow."""
TIME_PATTERN = "^[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?$"
CAST_BACK_TYPES = frozenset({"hugeint", "uuid", "json", "enum"})
"""What Arrow has no word for: DuckDB casts it back."""
MAX_DEPTH = 24


class ValueMismatch(ValueError):
    """Why a value is none of its type."""


class WrittenNumber(float):
    """A number of JSON that knows how it was written, for DECIMAL."""

    def __new__(cls, written: str) -> WrittenNumber:
        made = float.__new__(cls, written)
        made.written = written
        return made

    written: str


@dataclass(frozen=True)
class JsonType:
    """One type: `name` is DuckDB's id for it, `parts` are its fields, its element, or key and value."""

    name: str
    text: str
    """As SQL writes it."""
    parts: tuple[tuple[str, JsonType], ...] = ()
    values: tuple[str, ...] = ()
    """Of an ENUM."""
    numbers: tuple[int, int] = (0, 0)
    """Precision and scale of a DECIMAL, length of an array."""

    @property
    def needs_cast(self) -> bool:
        """Whether the type does not come back from Arrow as it went in."""
        return self.name in CAST_BACK_TYPES or any(part.needs_cast for _, part in self.parts)

    @property
    def arrow(self) -> Any:
        """The pa.DataType that DuckDB reads as this type, or that it can cast to it."""
        return _to_arrow_type(self)

    def schema(self, required: bool = False) -> dict[str, Any]:
        """The JSON schema of its values; NULL is among them unless `required`."""
        made = _SCHEMAS[self.name](self)
        if required or not made:
            return made
        made["type"] = [made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
        return made

    def read(self, value: Any) -> Any:
        """A value of JSON as Arrow takes it; ValueMismatch."""
        return None if value is None else _READERS[self.name](self, value)

    def write(self, value: Any) -> str:
        """A Python value of a training row as JSON text; ValueMismatch."""
        return "null" if value is None else _WRITERS[self.name](self, value)


def to_json_type(given: Any, depth: int = 0) -> JsonType:
    """The JsonType of a DuckDBPyType; ValueMismatch where JSON has no good form for it."""
    name, text = str(given.id), str(given)
    name = "json" if text == "JSON" else name
    if depth > MAX_DEPTH:
        raise ValueMismatch("it is nested too deeply")
    if name == "enum":
        return JsonType(name, text, values=tuple(str(v) for v in dict(given.children)["values"]))
    if name == "decimal":
        sizes = dict(given.children)
        return JsonType(name, text, numbers=(int(sizes["precision"]), int(sizes["scale"])))
    if name == "array":
        inner = dict(given.children)
        return JsonType(name, text, (("", to_json_type(inner["child"], depth + 1)),), numbers=(int(inner["size"]), 0))
    parts = given.children if name in ("list", "struct", "map") else ()
    if name == "map" and str(dict(parts)["key"]) != "VARCHAR":
        raise ValueMismatch("the keys of a MAP must be VARCHAR")
    if name not in _SCHEMAS:
        raise ValueMismatch(f"{text} has no form in JSON")
    return JsonType(name, text, tuple((str(n), to_json_type(t, depth + 1)) for n, t in parts))


# -- JSON schemas ------------------------------------------------------------------------------------------


def _build_list_schema(kind: JsonType) -> dict[str, Any]:
    size = {"minItems": kind.numbers[0], "maxItems": kind.numbers[0]} if kind.name == "array" else {}
    return {"type": "array", "items": kind.parts[0][1].schema(), **size}


def _build_struct_schema(kind: JsonType) -> dict[str, Any]:
    return build_object_schema({name: part.schema() for name, part in kind.parts})


def build_object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object that has exactly these properties: what providers' strict modes take."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _build_integer_schema(kind: JsonType) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0} if INTEGERS[kind.name][0] == 0 else {"type": "integer"}


_SCHEMAS: dict[str, Callable[[JsonType], dict[str, Any]]] = {
    **dict.fromkeys(INTEGERS, _build_integer_schema),
    "varchar": lambda _: {"type": "string"},
    "boolean": lambda _: {"type": "boolean"},
    "float": lambda _: {"type": "number"},
    "double": lambda _: {"type": "number"},
    "decimal": lambda _: {"type": "number"},
    "date": lambda _: {"type": "string", "format": "date"},
    "time": lambda _: {"type": "string", "pattern": TIME_PATTERN},
    "timestamp": lambda _: {"type": "string", "format": "date-time"},
    "timestamp with time zone": lambda _: {"type": "string", "format": "date-time"},
    "uuid": lambda _: {"type": "string", "format": "uuid"},
    "json": lambda _: {},
    "enum": lambda kind: {"type": "string", "enum": list(kind.values)},
    "list": _build_list_schema,
    "array": _build_list_schema,
    "struct": _build_struct_schema,
    "map": lambda kind: {"type": "object", "additionalProperties": kind.parts[1][1].schema()},
}

# -- from JSON ---------------------------------------------------------------------------------------------


def _read_text(kind: JsonType, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueMismatch(f"{_shorten_value(value)} is no text")
    if kind.name == "enum" and value not in kind.values:
        raise ValueMismatch(f"{_shorten_value(value)} is none of {', '.join(kind.values)}")
    if kind.name == "uuid":
        return str(_parse_value(kind, UUID, value))
    return to_text(value)


def _read_integer(kind: JsonType, value: Any) -> Any:
    low, high, _ = INTEGERS[kind.name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or math.isinf(value):
        raise ValueMismatch(f"{_shorten_value(value)} is no whole number")
    if value != int(value):
        raise ValueMismatch(f"{_shorten_value(value)} is no whole number")
    if not low <= value <= high:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}")
    return Decimal(int(value)) if kind.name == "hugeint" else int(value)


def _read_number(kind: JsonType, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueMismatch(f"{_shorten_value(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}") from None


def _read_decimal(kind: JsonType, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueMismatch(f"{_shorten_value(value)} is no number")
    precision, scale = kind.numbers
    try:
        with localcontext(prec=precision):
            written = value.written if isinstance(value, WrittenNumber) else str(value)
            return Decimal(written).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
    except InvalidOperation:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}") from None


def _read_bool(kind: JsonType, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueMismatch(f"{_shorten_value(value)} is neither true nor false")
    return value


def _read_moment(kind: JsonType, value: Any) -> Any:
    if kind.name == "date":
        return _parse_value(kind, date.fromisoformat, value)
    if kind.name == "time":
        return _parse_value(kind, time.fromisoformat, value).replace(tzinfo=None)
    moment = _parse_value(kind, datetime.fromisoformat, value)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment if kind.name != "timestamp" else moment.replace(tzinfo=None)


def _parse_value(kind: JsonType, parse: Callable[[str], Any], value: Any) -> Any:
    try:
        return parse(value)
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise ValueMismatch(f"{_shorten_value(value)} is no {kind.text}") from None


def _read_list(kind: JsonType, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueMismatch(f"{_shorten_value(value)} is no list")
    if kind.name == "array" and len(value) != kind.numbers[0]:
        raise ValueMismatch(f"a list of {len(value)} is none of {kind.numbers[0]}")
    return [kind.parts[0][1].read(v) for v in value]


def _read_struct(kind: JsonType, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no object")
    return {name: part.read(value.get(name)) for name, part in kind.parts}


def _read_map(kind: JsonType, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no object")
    return [(to_text(k), kind.parts[1][1].read(v)) for k, v in value.items()]


_READERS: dict[str, Callable[[JsonType, Any], Any]] = {
    **dict.fromkeys(INTEGERS, _read_integer),
    **dict.fromkeys(("float", "double"), _read_number),
    **dict.fromkeys(("date", "time", "timestamp", "timestamp with time zone"), _read_moment),
    **dict.fromkeys(("list", "array"), _read_list),
    **dict.fromkeys(("varchar", "uuid", "enum"), _read_text),
    "decimal": _read_decimal,
    "boolean": _read_bool,
    "struct": _read_struct,
    "map": _read_map,
    "json": lambda _, value: to_text(dumps(value)),
}

# -- to JSON -----------------------------------------------------------------------------------------------


def dumps(value: Any) -> str:
    """JSON as training has it and prompts show it: with the separators of the contract, other alphabets as they are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(ITEM_SEPARATOR, KEY_SEPARATOR))
    return text.replace("\x7f", "\\u007f")  # which grammars want escaped


def _write_text(kind: JsonType, value: Any) -> str:
    """Of what JSON has as it is: the value is checked by reading it back."""
    return dumps(kind.read(str(value) if isinstance(value, UUID) else value))


def _write_number(kind: JsonType, value: Any) -> str:
    number = float(value) if isinstance(value, Decimal) else value
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueMismatch(f"{number} is no number that JSON has")
    read = kind.read(number)
    return dumps(float(pa.scalar(read, pa.float32()).cast(pa.string()).as_py()) if kind.name == "float" else read)


def _write_integer(kind: JsonType, value: Any) -> str:
    return str(int(kind.read(int(value) if isinstance(value, Decimal) and value == int(value) else value)))


def _write_moment(kind: JsonType, value: Any) -> str:
    if isinstance(value, str):
        value = datetime.fromisoformat(value) if kind.name == "date" else kind.read(value)
    if kind.name == "time" or type(value) is date:
        return dumps(value.isoformat())
    if not isinstance(value, datetime):
        raise ValueMismatch(f"{_shorten_value(value)} is no {kind.text}")
    moment = value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return dumps(moment.date().isoformat() if kind.name == "date" else f"{moment.isoformat()}Z")


def _write_list(kind: JsonType, value: Any) -> str:
    value = _parse_nested_json(kind, value)
    if not isinstance(value, (list, tuple)):
        raise ValueMismatch(f"{_shorten_value(value)} is no list")
    return write_array([kind.parts[0][1].write(v) for v in value])


def _write_struct(kind: JsonType, value: Any) -> str:
    value = _parse_nested_json(kind, value)
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no STRUCT")
    given = {str(k).lower(): v for k, v in value.items()}
    if unknown := [k for k in given if k not in {n.lower() for n, _ in kind.parts}]:
        raise ValueMismatch(f"it has a field '{unknown[0]}', which {kind.text} has not")
    return write_object([(name, part.write(given.get(name.lower()))) for name, part in kind.parts])


def _write_map(kind: JsonType, value: Any) -> str:
    value = _parse_nested_json(kind, value)
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        return write_object([(str(k), kind.parts[1][1].write(v)) for k, v in pairs])
    except (TypeError, ValueError) as e:
        raise ValueMismatch(f"{_shorten_value(value)} is no MAP") from e


def _parse_nested_json(kind: JsonType, value: Any) -> Any:
    """A nested value that comes as JSON; what is of the type JSON within it stays text."""
    try:
        return (
            _serialize_inner_json(kind, json.loads(value, parse_float=WrittenNumber))
            if isinstance(value, str)
            else value
        )
    except (ValueError, RecursionError):
        return value


def _serialize_inner_json(kind: JsonType, value: Any) -> Any:
    if kind.name == "json":
        return None if value is None else dumps(value)
    if kind.name == "struct" and isinstance(value, Mapping):
        kinds = {name.lower(): part for name, part in kind.parts}
        return {k: _serialize_inner_json(kinds[k.lower()], v) if k.lower() in kinds else v for k, v in value.items()}
    if kind.name == "map" and isinstance(value, Mapping):
        return {k: _serialize_inner_json(kind.parts[1][1], v) for k, v in value.items()}
    if kind.name in ("list", "array") and isinstance(value, list):
        return [_serialize_inner_json(kind.parts[0][1], v) for v in value]
    return value


def _write_json(kind: JsonType, value: Any) -> str:
    try:
        return dumps(json.loads(value) if isinstance(value, str) else value)
    except (ValueError, TypeError):
        raise ValueMismatch(f"{_shorten_value(value)} is no JSON") from None


def write_object(pairs: list[tuple[str, str]]) -> str:
    """An object of names and JSON texts."""
    return "{" + ITEM_SEPARATOR.join(f"{dumps(name)}{KEY_SEPARATOR}{text}" for name, text in pairs) + "}"


def write_array(texts: list[str]) -> str:
    """An array of JSON texts."""
    return f"[{ITEM_SEPARATOR.join(texts)}]"


_WRITERS: dict[str, Callable[[JsonType, Any], str]] = {
    **dict.fromkeys(INTEGERS, _write_integer),
    **dict.fromkeys(("date", "time", "timestamp", "timestamp with time zone"), _write_moment),
    **dict.fromkeys(("list", "array"), _write_list),
    **dict.fromkeys(("varchar", "uuid", "enum", "boolean"), _write_text),
    **dict.fromkeys(("float", "double"), _write_number),
    "decimal": lambda kind, value: format(_read_decimal(kind, value), "f"),
    "struct": _write_struct,
    "map": _write_map,
    "json": _write_json,
}

# -- Arrow -------------------------------------------------------------------------------------------------

_SCALAR_ARROW_TYPES: dict[str, Any] = {
    **{name: arrow for name, (_, _, arrow) in INTEGERS.items()},
    "varchar": pa.string(),
    "uuid": pa.string(),
    "json": pa.string(),
    "enum": pa.string(),
    "boolean": pa.bool_(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}


def _to_arrow_type(kind: JsonType) -> Any:
    inner = [(name, part.arrow) for name, part in kind.parts]
    if kind.name == "struct":
        return pa.struct(inner)
    if kind.name == "map":
        return pa.map_(inner[0][1], inner[1][1])
    if kind.name == "list":
        return pa.list_(inner[0][1])
    if kind.name == "array":
        return pa.list_(inner[0][1], kind.numbers[0])
    return pa.decimal128(*kind.numbers) if kind.name == "decimal" else _SCALAR_ARROW_TYPES[kind.name]


def _shorten_value(value: Any) -> str:
    try:
        text = dumps(value)
    except (TypeError, ValueError):
        text = to_text(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def canonicalise(value: Any, schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> str:
    """The text of a parsed value.

    >>> canonicalise({"b": None, "a": 1.0}, {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
    '{"a": 1}'
    """
    root = schema if root is None else root
    schema = _resolve_schema(value, schema, root) if depth <= MAX_DEPTH else {}
    for allowed in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())):
        if allowed == value and isinstance(allowed, bool) == isinstance(value, bool):
            return dumps(allowed)
    if isinstance(value, Mapping):
        return write_object(
            [
                (k, canonicalise(v, _find_property_schema(k, schema), root, depth + 1))
                for k, v in _sort_properties(value, schema, root)
            ]
        )
    if isinstance(value, list):
        return write_array([canonicalise(v, schema.get("items", {}), root, depth + 1) for v in value])
    if isinstance(value, float) and _list_type_names(schema) <= {"integer", "null"} and value.is_integer():
        return str(int(value))
    return value.written if isinstance(value, WrittenNumber) else dumps(value)


def resolve_reference(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/name` stands for in the schema itself."""
    found: Any = root if reference.startswith("#") else None
    for part in reference.lstrip("#").strip("/").split("/") if found is not None else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if part and isinstance(found, Mapping) else found
    return found


def _resolve_schema(value: Any, schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a schema holds for the value: references followed, of several the first that fits."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if "$ref" in schema:
            schema = resolve_reference(str(schema["$ref"]), root)
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


def _find_property_schema(name: str, schema: Mapping[str, Any]) -> Any:
    return (schema.get("properties") or {}).get(name, schema.get("additionalProperties", {}))


def _sort_properties(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """The properties in the schema's order, others behind; without a NULL that may not be there and need not be."""
    known, required = schema.get("properties") or {}, schema.get("required") or ()
    names = [*(n for n in known if n in value), *(n for n in value if n not in known)]
    needless = {n for n in names if value[n] is None and n in known and n not in required}
    return [(n, value[n]) for n in names if n not in needless or _fits(None, known[n], root)]


def _list_type_names(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type")
    return set(kinds) if isinstance(kinds, list) else {str(kinds)}
