"""DuckDB's types as JSON has them: a JSON schema for each, values from JSON, to JSON and into Arrow columns.

`outputs` calls this for each column of a typed model.  Why DuckDB's own from_json does not do it:
docs/decisions/009-typed-answers-and-near-duplicates.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext
from typing import TypeVar
from uuid import UUID

import duckdb
import pyarrow as pa

from sqlft._types import Json, JsonSchema
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
TYPES_WITH_PARTS = frozenset({"enum", "decimal", "array", "list", "struct", "map"})
MAX_DEPTH = 24


class ValueMismatch(ValueError):
    """Why a value is not of its type."""


class WrittenNumber(float):
    """A number of JSON that knows how it was written, for DECIMAL."""

    written: str

    def __new__(cls, written: str) -> WrittenNumber:
        number = float.__new__(cls, written)
        number.written = written
        return number


@dataclass(frozen=True)
class JsonType:
    """One type: `name` is DuckDB's id for it, `parts` are its fields, its element, or key and value."""

    name: str
    text: str
    """As SQL writes it."""
    parts: tuple[tuple[str, JsonType], ...] = ()
    values: tuple[str, ...] = ()
    """Of an ENUM."""
    numbers: tuple[int, ...] = ()
    """Precision and scale of a DECIMAL, length of an array."""

    @property
    def needs_cast(self) -> bool:
        """Whether the type does not come back from Arrow as it went in."""
        return self.name in CAST_BACK_TYPES or any(part.needs_cast for _, part in self.parts)

    @property
    def arrow(self) -> pa.DataType:
        """The type in Arrow that DuckDB reads as this type, or that it can cast to it."""
        fields = [(name, part.arrow) for name, part in self.parts]
        match self.name:
            case "struct":
                return pa.struct(fields)
            case "map":
                return pa.map_(fields[0][1], fields[1][1])
            case "list":
                return pa.list_(fields[0][1])
            case "array":
                return pa.list_(fields[0][1], self.numbers[0])
            case "decimal":
                return pa.decimal128(*self.numbers)
        return _SCALAR_ARROW_TYPES[self.name]

    def schema(self, required: bool = False) -> JsonSchema:
        """The JSON schema of its values; NULL is among them unless `required`."""
        schema = dict(_SCHEMAS[self.name](self))
        if required or not schema:
            return schema
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
        return schema

    def read(self, value: object) -> object:
        """A value of JSON as Arrow takes it; ValueMismatch."""
        return None if value is None else _READERS[self.name](self, value)

    def to_json(self, value: object, is_parsed: bool = False) -> Json:
        """A Python value of a training row as JSON has it; ValueMismatch.

        A nested value may come as JSON text.  What is of the type JSON is text too, unless it `is_parsed` already.
        """
        if value is None:
            return None
        if self.parts and isinstance(value, str):
            with suppress(ValueError, RecursionError):
                value, is_parsed = json.loads(value, parse_float=WrittenNumber), True
        return _CONVERTERS[self.name](self, value, is_parsed)


def to_json_type(kind: duckdb.sqltypes.DuckDBPyType, depth: int = 0) -> JsonType:
    """The JsonType of DuckDB's type; ValueMismatch where JSON has no good form for it.

    >>> to_json_type(duckdb.sqltype("DECIMAL(4, 2)[]")).schema(required=True)
    {'type': 'array', 'items': {'type': ['number', 'null']}}
    """
    name, text = str(kind.id), str(kind)
    name = "json" if text == "JSON" else name
    if depth > MAX_DEPTH:
        raise ValueMismatch("it is nested too deeply")
    if name not in _SCHEMAS:
        raise ValueMismatch(f"{text} has no form in JSON")
    if name not in TYPES_WITH_PARTS:
        return JsonType(name, text)
    parts, values, numbers = [], [], []
    for part, child in kind.children:
        if isinstance(child, int):
            numbers.append(child)
        elif isinstance(child, list):
            values = child
        else:
            parts.append((part, to_json_type(child, depth + 1)))
    if name == "map" and parts[0][1].text != "VARCHAR":
        raise ValueMismatch("the keys of a MAP must be VARCHAR")
    return JsonType(name, text, tuple(parts), tuple(values), tuple(numbers))


# -- JSON schemas ------------------------------------------------------------------------------------------


def build_object_schema(properties: Mapping[str, JsonSchema]) -> JsonSchema:
    """An object that has exactly these properties: what providers' strict modes take."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _build_integer_schema(kind: JsonType) -> JsonSchema:
    return {"type": "integer", "minimum": 0} if INTEGERS[kind.name][0] == 0 else {"type": "integer"}


def _build_list_schema(kind: JsonType) -> JsonSchema:
    size = {"minItems": kind.numbers[0], "maxItems": kind.numbers[0]} if kind.name == "array" else {}
    return {"type": "array", "items": kind.parts[0][1].schema(), **size}


_SCHEMAS: dict[str, Callable[[JsonType], JsonSchema]] = {
    **dict.fromkeys(INTEGERS, _build_integer_schema),
    "varchar": lambda _: {"type": "string"},
    "boolean": lambda _: {"type": "boolean"},
    **dict.fromkeys(("float", "double", "decimal"), lambda _: {"type": "number"}),
    "date": lambda _: {"type": "string", "format": "date"},
    "time": lambda _: {"type": "string", "pattern": TIME_PATTERN},
    **dict.fromkeys(("timestamp", "timestamp with time zone"), lambda _: {"type": "string", "format": "date-time"}),
    "uuid": lambda _: {"type": "string", "format": "uuid"},
    "json": lambda _: {},
    "enum": lambda kind: {"type": "string", "enum": list(kind.values)},
    **dict.fromkeys(("list", "array"), _build_list_schema),
    "struct": lambda kind: build_object_schema({name: part.schema() for name, part in kind.parts}),
    "map": lambda kind: {"type": "object", "additionalProperties": kind.parts[1][1].schema()},
}

# -- from JSON ---------------------------------------------------------------------------------------------


def _read_text(kind: JsonType, value: object) -> str:
    if not isinstance(value, str):
        raise ValueMismatch(f"{_shorten_value(value)} is no text")
    if kind.name == "enum" and value not in kind.values:
        raise ValueMismatch(f"{_shorten_value(value)} is none of {', '.join(kind.values)}")
    return str(_parse_text(kind, UUID, value)) if kind.name == "uuid" else to_text(value)


def _read_integer(kind: JsonType, value: object) -> int | Decimal:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_whole:
        raise ValueMismatch(f"{_shorten_value(value)} is no whole number")
    low, high, _ = INTEGERS[kind.name]
    if not low <= value <= high:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}")
    return Decimal(int(value)) if kind.name == "hugeint" else int(value)


def _read_number(kind: JsonType, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueMismatch(f"{_shorten_value(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}") from None


def _read_decimal(kind: JsonType, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueMismatch(f"{_shorten_value(value)} is no number")
    precision, scale = kind.numbers
    try:
        with localcontext(prec=precision):
            written = value.written if isinstance(value, WrittenNumber) else str(value)
            return Decimal(written).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
    except InvalidOperation:
        raise ValueMismatch(f"{_shorten_value(value)} is out of range for {kind.text}") from None


def _read_bool(kind: JsonType, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueMismatch(f"{_shorten_value(value)} is neither true nor false")
    return value


def _read_moment(kind: JsonType, value: object) -> date | time:
    if kind.name == "date":
        return _parse_text(kind, date.fromisoformat, value)
    if kind.name == "time":
        return _parse_text(kind, time.fromisoformat, value).replace(tzinfo=None)
    moment = _parse_text(kind, datetime.fromisoformat, value)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment if kind.name != "timestamp" else moment.replace(tzinfo=None)


Parsed = TypeVar("Parsed")


def _parse_text(kind: JsonType, parse: Callable[[str], Parsed], value: object) -> Parsed:
    if isinstance(value, str):
        with suppress(ValueError, OverflowError):
            return parse(value)
    raise ValueMismatch(f"{_shorten_value(value)} is no {kind.text}")


def _read_list(kind: JsonType, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueMismatch(f"{_shorten_value(value)} is no list")
    if kind.name == "array" and len(value) != kind.numbers[0]:
        raise ValueMismatch(f"a list of {len(value)} is none of {kind.numbers[0]}")
    return [kind.parts[0][1].read(v) for v in value]


def _read_struct(kind: JsonType, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no object")
    return {name: part.read(value.get(name)) for name, part in kind.parts}


def _read_map(kind: JsonType, value: object) -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no object")
    return [(to_text(k), kind.parts[1][1].read(v)) for k, v in value.items()]


_READERS: dict[str, Callable[[JsonType, object], object]] = {
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


def dumps(value: object) -> str:
    """JSON as training has it and prompts show it: with the separators of the contract, other alphabets as they are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(ITEM_SEPARATOR, KEY_SEPARATOR))
    return text.replace("\x7f", "\\u007f")  # which grammars want escaped


def _convert_integer(kind: JsonType, value: object, is_parsed: bool) -> int:
    return int(_read_integer(kind, int(value) if isinstance(value, Decimal) and value == int(value) else value))


def _convert_number(kind: JsonType, value: object, is_parsed: bool) -> float:
    number = float(value) if isinstance(value, Decimal) else value
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueMismatch(f"{number} is no number that JSON has")
    read = _read_number(kind, number)
    return float(pa.scalar(read, pa.float32()).cast(pa.string()).as_py()) if kind.name == "float" else read


def _convert_moment(kind: JsonType, value: object, is_parsed: bool) -> str:
    if isinstance(value, str):
        value = datetime.fromisoformat(value) if kind.name == "date" else kind.read(value)
    if (kind.name == "time" and isinstance(value, time)) or type(value) is date:
        return value.isoformat()
    if not isinstance(value, datetime):
        raise ValueMismatch(f"{_shorten_value(value)} is no {kind.text}")
    moment = value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return moment.date().isoformat() if kind.name == "date" else f"{moment.isoformat()}Z"


def _convert_list(kind: JsonType, value: object, is_parsed: bool) -> list[Json]:
    if not isinstance(value, (list, tuple)):
        raise ValueMismatch(f"{_shorten_value(value)} is no list")
    return [kind.parts[0][1].to_json(v, is_parsed) for v in value]


def _convert_struct(kind: JsonType, value: object, is_parsed: bool) -> dict[str, Json]:
    if not isinstance(value, Mapping):
        raise ValueMismatch(f"{_shorten_value(value)} is no STRUCT")
    fields = {str(k).lower(): v for k, v in value.items()}
    if unknown := [k for k in fields if k not in {n.lower() for n, _ in kind.parts}]:
        raise ValueMismatch(f"it has a field '{unknown[0]}', which {kind.text} has not")
    return {name: part.to_json(fields.get(name.lower()), is_parsed) for name, part in kind.parts}


def _convert_map(kind: JsonType, value: object, is_parsed: bool) -> dict[str, Json]:
    if not isinstance(value, (Mapping, list)):
        raise ValueMismatch(f"{_shorten_value(value)} is no MAP")
    try:
        pairs = value.items() if isinstance(value, Mapping) else value
        return {str(k): kind.parts[1][1].to_json(v, is_parsed) for k, v in pairs}
    except (TypeError, ValueError) as e:
        raise ValueMismatch(f"{_shorten_value(value)} is no MAP") from e


def _convert_json(kind: JsonType, value: object, is_parsed: bool) -> Json:
    try:
        text = dumps(json.loads(value) if isinstance(value, str) and not is_parsed else value)
    except (ValueError, TypeError):
        raise ValueMismatch(f"{_shorten_value(value)} is no JSON") from None
    parsed: Json = json.loads(text)
    return parsed


_CONVERTERS: dict[str, Callable[[JsonType, object, bool], Json]] = {
    **dict.fromkeys(INTEGERS, _convert_integer),
    **dict.fromkeys(("date", "time", "timestamp", "timestamp with time zone"), _convert_moment),
    **dict.fromkeys(("list", "array"), _convert_list),
    **dict.fromkeys(("varchar", "enum"), lambda kind, value, _: _read_text(kind, value)),
    "boolean": lambda kind, value, _: _read_bool(kind, value),
    **dict.fromkeys(("float", "double"), _convert_number),
    "uuid": lambda kind, value, _: _read_text(kind, str(value) if isinstance(value, UUID) else value),
    "decimal": lambda kind, value, _: WrittenNumber(format(_read_decimal(kind, value), "f")),
    "struct": _convert_struct,
    "map": _convert_map,
    "json": _convert_json,
}

# -- Arrow -------------------------------------------------------------------------------------------------

_SCALAR_ARROW_TYPES: dict[str, pa.DataType] = {
    **{name: arrow for name, (_, _, arrow) in INTEGERS.items()},
    **dict.fromkeys(("varchar", "uuid", "json", "enum"), pa.string()),
    "boolean": pa.bool_(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}


def _shorten_value(value: object) -> str:
    try:
        text = dumps(value)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
