"""What a model answers with: PREDICT's columns, the JSON schema that holds them, an answer's text as their values."""

from __future__ import annotations

import json
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from sqlft._types import Json, JsonSchema, Row
from sqlft.data.json_schema import canonicalise, is_json_schema, resolve_reference, to_sql_type
from sqlft.data.json_types import (
    JsonType,
    ValueMismatch,
    WrittenNumber,
    build_object_schema,
    dumps,
    to_json_type,
)
from sqlft.errors import DataError, OptionError
from sqlft.sql.names import quote_name

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

DERIVED_SUFFIXES = ("error", "usage", "logprob", "reasoning")
"""What a model has beside its answer's columns: <column>_error …, the same under each column's name."""
INSTRUCTION = "Answer with JSON that fits this JSON schema, and with nothing else:\n"
MAX_SHOWN_CHARACTERS = 300
VECTOR_TYPE, SCORE_TYPE = "FLOAT[]", "DOUBLE"
"""Types of the one column of models with mode = 'embedding' and 'rerank', which have no schema."""


class OutputMismatch(ValueError):
    """Why a text is no answer of the model's types; the message is for the model as for the user."""


@dataclass(frozen=True)
class OutputColumn:
    """One column of a model's answers; `type` is DuckDB's text for it."""

    name: str
    type: str = "VARCHAR"
    required: bool = False


@dataclass(frozen=True)
class Outputs:
    """The columns of a model's answers; without a schema there is one, and it is the text."""

    columns: tuple[OutputColumn, ...]
    schema: JsonSchema | None = None
    whole: bool = False
    """Whether the one column is the whole JSON, not a property of it."""

    @classmethod
    def from_columns(cls, columns: Sequence[OutputColumn]) -> Outputs:
        """Typed columns: an object with a property for each."""
        properties = {c.name: _parse_column_type(c).schema(c.required) for c in columns}
        return cls(tuple(columns), build_object_schema(properties))

    @classmethod
    def from_catalog(cls, name: str, record: Row | None) -> Outputs:
        """What `to_catalog` returned; None for a model of texts."""
        if record is None:
            return cls((OutputColumn(name),))
        columns = tuple(OutputColumn(*column) for column in record["columns"])
        return cls(columns, record["schema"], record["whole"])

    def to_catalog(self) -> dict[str, object]:
        """As the catalog keeps it."""
        columns = [[c.name, c.type, c.required] for c in self.columns]
        return {"columns": columns, "schema": self.schema, "whole": self.whole}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(c.name for c in self.columns)

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of the columns about an answer: why there is none, what it took, how likely it is, its reasoning."""
        return tuple(f"{name}_{suffix}" for name in self.names for suffix in DERIVED_SUFFIXES)

    @property
    def is_typed(self) -> bool:
        """Whether an answer is anything but a text."""
        return self.schema is not None or self.is_vector or self.is_score

    @property
    def is_vector(self) -> bool:
        """Whether the answer is an embedding."""
        return self.schema is None and self.columns[0].type == VECTOR_TYPE

    @property
    def is_score(self) -> bool:
        """Whether the answer is how well a text answers a question."""
        return self.schema is None and self.columns[0].type == SCORE_TYPE

    @cached_property
    def kinds(self) -> tuple[JsonType, ...]:
        """The columns' types; DataError for one that JSON has no form for."""
        return tuple(_parse_column_type(c) for c in self.columns)

    def arrow(self, place: int, values: Sequence[object]) -> pa.Array:
        """What `parse` returned for a column, as an array that DuckDB reads as its type, or casts to it."""
        if self.is_vector:
            return build_vector_array([v if isinstance(v, bytes) else None for v in values])
        return pa.array(values, self.kinds[place].arrow)

    def system(self, message: str | None) -> str | None:
        """CREATE MODEL's system message, and the form of the answer."""
        if self.schema is None:
            return message
        instruction = f"{INSTRUCTION}{dumps(self.schema)}"
        return f"{message}\n\n{instruction}" if message else instruction

    def parse(self, text: str) -> tuple[object, ...]:
        """An answer's text as values for Arrow, one per column; OutputMismatch."""
        if self.is_vector:
            return (decode_vector(text),)
        if self.is_score:
            return (float(text),)
        if self.schema is None:
            return (text,)
        answer = _parse_answer(text)
        self._validate(answer)
        values = [answer] if self.whole or not isinstance(answer, Mapping) else [answer.get(n) for n in self.names]
        try:
            return tuple(kind.read(value) for kind, value in zip(self.kinds, values, strict=True))
        except ValueMismatch as e:
            raise OutputMismatch(f"{e}.") from None

    def write(self, values: Sequence[object]) -> str:
        """Values of a training row, one per column, as the answer's text; OutputMismatch names the column."""
        fields: dict[str, Json] = {}
        for column, kind, value in zip(self.columns, self.kinds, values, strict=True):
            try:
                fields[column.name] = kind.to_json(value)
            except (TypeError, ValueError, AttributeError, OverflowError) as e:
                why = str(e) if isinstance(e, ValueMismatch) else f"{str(value)[:60]!r} is no {kind.text}"
                raise OutputMismatch(f"{column.name}: {why}") from None
        return self._canonicalise(fields[self.names[0]] if self.whole else fields)

    def canonical(self, text: str) -> str:
        """An answer's JSON in the one form that training teaches and a grammar of the schema takes; OutputMismatch.

        >>> Outputs.from_columns([OutputColumn("a", "INTEGER"), OutputColumn("b")]).canonical('{"b":"x",\\n "a":1.0}')
        '{"a": 1, "b": "x"}'
        """
        return text if self.schema is None else self._canonicalise(_parse_answer(text))

    def _canonicalise(self, answer: Json) -> str:
        text = canonicalise(answer, self.schema)
        self.parse(text)
        return text

    @cached_property
    def _validator(self) -> Validator:
        from jsonschema.validators import validator_for

        schema = dict(self.schema or {})
        return validator_for(schema)(schema)

    def _validate(self, answer: Json) -> None:
        from jsonschema.exceptions import best_match

        wrong = best_match(self._validator.iter_errors(answer))
        if wrong is not None:
            place = ".".join(str(p) for p in wrong.absolute_path)
            raise OutputMismatch(f"{f'{place}: ' if place else ''}{wrong.message[:MAX_SHOWN_CHARACTERS]}.")
        if not self.whole and not isinstance(answer, Mapping):
            raise OutputMismatch("It is no JSON object.")


def encode_vector(values: Sequence[float]) -> str:
    """A vector as the text that answers are kept as: base64 of little-endian float32."""
    return b64encode(_swap_to_little_endian(array("f", values)).tobytes()).decode()


def decode_vector(text: str) -> bytes:
    """The float32 numbers of `encode_vector`, in this machine's order; OutputMismatch."""
    try:
        numbers = array("f", b64decode(text, validate=True))
    except ValueError:
        raise OutputMismatch("It is no vector.") from None
    return _swap_to_little_endian(numbers).tobytes()


def build_vector_array(values: Sequence[bytes | None]) -> pa.Array:
    """What `decode_vector` returns, as a list<float> array."""
    sizes = [0 if v is None else len(v) // 4 for v in values]
    numbers = pa.Array.from_buffers(pa.float32(), sum(sizes), [None, pa.py_buffer(b"".join(v or b"" for v in values))])
    offsets = pa.array([0, *accumulate(sizes)], pa.int32())
    mask = pa.array([v is None for v in values], pa.bool_())
    return pa.ListArray.from_arrays(offsets, numbers, mask=mask)


def _swap_to_little_endian(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _parse_column_type(column: OutputColumn) -> JsonType:
    try:
        return to_json_type(duckdb.sqltype(column.type))
    except ValueMismatch as e:
        raise DataError(
            f"The column '{column.name}' cannot be {column.type}: {e}.",
            "Types that work: VARCHAR, BOOLEAN, whole numbers, FLOAT, DOUBLE, DECIMAL, DATE, TIME, TIMESTAMP, "
            "TIMESTAMPTZ, UUID, ENUM, JSON, and lists, STRUCT and MAP(VARCHAR, …) of them.",
        ) from None


def _parse_answer(text: str) -> Json:
    """The JSON in an answer; some models put it into a fence or words around it."""
    try:
        return _load_json(text)
    except (ValueError, RecursionError) as e:
        inner = text[text.find("{") : text.rfind("}") + 1]
        try:
            return _load_json(inner)
        except (ValueError, RecursionError):
            raise OutputMismatch(f"It is no JSON: {e}.") from None


def _load_json(text: str) -> Json:
    parsed: Json = json.loads(text, parse_float=WrittenNumber, parse_constant=_refuse_constant)
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


BindType = Callable[[str], duckdb.sqltypes.DuckDBPyType]
"""A type's text to the type that the user's connection knows by it."""


def parse_outputs(name: str, schema: object, bind: BindType) -> Outputs:
    """The column `name` with this option `schema`: a JSON schema as text or object, a type, or names with types."""
    if isinstance(schema, str) and schema.lstrip().startswith("{"):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as e:
            raise _schema_error(f"it is no JSON: {e}") from None
    if isinstance(schema, Mapping):
        if is_json_schema(schema):
            return _parse_json_schema(name, schema, bind)
        if not schema or not all(isinstance(t, str) for t in schema.values()):
            raise _schema_error("it is neither a JSON schema nor names with types")
        schema = f"STRUCT({', '.join(f'{quote_name(n)} {t}' for n, t in schema.items())})"
    if not isinstance(schema, str) or not schema.strip():
        raise _schema_error("it is neither a JSON schema nor a type")
    kind = bind(schema)
    column = OutputColumn(name, str(kind))
    if kind.id != "struct":
        return Outputs.from_columns([column])
    return Outputs((column,), to_json_type(kind).schema(required=True), whole=True)


def _parse_json_schema(name: str, schema: JsonSchema, bind: BindType) -> Outputs:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(dict(schema))
    except SchemaError as e:
        raise _schema_error(f"it is no JSON schema: {e.message[:200]}") from None
    column = OutputColumn(name, str(bind(to_sql_type(schema, schema))))
    target = resolve_reference(str(schema["$ref"]), schema) if "$ref" in schema else schema
    if isinstance(target, Mapping) and (target.get("type") == "object" or "properties" in target):
        return Outputs((column,), schema, whole=True)
    shared = {k: v for k, v in schema.items() if k in ("$defs", "definitions", "$schema")}
    inner = {k: v for k, v in schema.items() if k not in shared}
    return Outputs((column,), {**build_object_schema({name: inner}), **shared})


def _schema_error(why: str) -> OptionError:
    return OptionError(
        f"The option 'schema' cannot be used, {why}.",
        "Give a JSON schema as text ('{\"type\": \"object\", …}'), or a type: schema = 'STRUCT(a INTEGER, b DATE)'",
    )
