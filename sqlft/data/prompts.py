"""Templates and values to prompts: the one rendering, for asking and for training.

A value reads as DuckDB's cast to VARCHAR has it, nested ones as JSON, NULL as nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from sqlft.errors import DataError, did_you_mean
from sqlft.handler import Message

PLACEHOLDER = re.compile(r"\{\{\s*([^{}\r\n]*[^{}\s])\s*\}\}")


@dataclass(frozen=True)
class Prompt:
    """A template with ``{{name}}`` placeholders and a system message before it.

    DataError if the template has no placeholder, or a ``{{`` that does not close.
    """

    template: str
    system: str | None = None
    inputs: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Names of the placeholders in order of first appearance; their case does not matter, the first is kept."""
    _parts: tuple[str | int, ...] = field(init=False, repr=False, compare=False)
    """Literal texts, and positions in `inputs`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", to_text(self.template))
        object.__setattr__(self, "system", None if self.system is None else to_text(self.system))
        inputs, parts = _parse_template(self.template)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "_parts", parts)

    @property
    def is_single_input(self) -> bool:
        """Whether the prompt is one input's text and nothing else."""
        return self._parts == (0,)

    def messages(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The conversation that asks for one row; `values` by input name, of any type, NULL is ''."""
        try:
            texts = [to_text(values[name]) for name in self.inputs]
        except KeyError as e:
            raise self._missing_value_error(e.args[0], values) from None
        return self.conversation("".join([p if isinstance(p, str) else texts[p] for p in self._parts]))

    def render_column(self, columns: Mapping[str, Any]) -> Any:
        """The user texts of many rows, as `messages` has them: arrays by input name -> pa.LargeStringArray."""
        try:
            texts = [to_text_column(columns[name]) for name in self.inputs]
        except KeyError as e:
            raise self._missing_value_error(e.args[0], columns) from None
        if self.is_single_input:
            return texts[0]
        import pyarrow.compute as pc

        pieces = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else texts[p] for p in self._parts]
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))

    def conversation(self, user: str) -> tuple[Message, ...]:
        """The system message, if there is one, and a rendered user text."""
        asked = Message("user", user)
        return (asked,) if self.system is None else (Message("system", self.system), asked)

    def _missing_value_error(self, name: str, given: Mapping[str, Any]) -> DataError:
        return DataError(
            f"The prompt has a placeholder {{{{{name}}}}}, and there is no value for it.{did_you_mean(name, given)}",
            f"Give each of its inputs: {', '.join(self.inputs)}.",
        )


def _parse_template(template: str) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    inputs: dict[str, tuple[int, str]] = {}
    parts: list[str | int] = []
    for i, piece in enumerate(PLACEHOLDER.split(template)):
        if i % 2:
            parts.append(inputs.setdefault(piece.casefold(), (len(inputs), piece))[0])
        elif piece:
            _check_literal(piece)
            parts.append(piece)
    if not inputs:
        single = re.search(r"\{\s*([A-Za-z_]\w*)\s*\}", template)
        raise DataError(
            f"The prompt_template {template[:80]!r} has no placeholder, so every row would ask the same.",
            f"An input has two braces on each side: {{{{{single[1]}}}}}, not {{{single[1]}}}."
            if single
            else "Put the name of an input in double braces: prompt_template = '{{content}}'.",
        )
    return tuple(name for _, name in inputs.values()), tuple(parts)


def _check_literal(piece: str) -> None:
    if (at := piece.find("{{")) >= 0:
        raise DataError(
            f"The prompt_template has a '{{{{' without a name and '}}}}' behind it: {piece[at : at + 40]!r}.",
            "Write a placeholder as {{name}}; for literal braces put a space between them.",
        )


MICROSECONDS_PER_DAY = 86_400_000_000


def to_text(value: Any) -> str:
    """One Python value as text; NULL is ''."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if value is None:
        return ""
    if isinstance(value, pa.Scalar):
        return to_text(to_text_column(pa.array([value.as_py()], value.type))[0].as_py())
    for kind, shown in _FORMATTERS:
        if isinstance(value, kind):
            return shown(value)
    return str(value)


def to_text_column(column: Any) -> Any:
    """A pa.Array or pa.ChunkedArray of any type as a pa.LargeStringArray without NULLs."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return to_text_column(pa.array([to_text(v) for v in column.to_pylist()], pa.large_string()))
    if pa.types.is_dictionary(kind):
        return to_text_column(column.cast(kind.value_type))
    if _is_text(kind):
        return _replace_invalid_utf8(_combine_chunks(column.cast(pa.large_string()))).fill_null("")
    if pa.types.is_integer(kind):
        return _combine_chunks(column.cast(pa.large_string())).fill_null("")
    return pa.array([to_text(v) for v in _python_values(column)], pa.large_string())


def _python_values(column: Any) -> list[Any]:
    """What `to_text` reads as DuckDB would: floats with their own shortest digits, maps as mappings."""
    kind = column.type
    if pa.types.is_floating(kind) and not pa.types.is_float64(kind):
        return [None if v is None else float(v) for v in column.cast(pa.string()).to_pylist()]
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return [None if v is None else _strip_zeros(v) for v in column.cast(pa.string()).to_pylist()]
    try:
        return list(column.to_pylist(maps_as_pydicts="lossy")) if pa.types.is_nested(kind) else list(column.to_pylist())
    except (ValueError, OverflowError):  # a date that Python's calendar does not reach
        return list(column.cast(pa.string()).to_pylist())


def _is_text(kind: Any) -> bool:
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind))


def _combine_chunks(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _replace_invalid_utf8(array: Any) -> Any:
    """The same texts, bytes that are no UTF-8 replaced by U+FFFD."""
    try:
        array.validate(full=True)
        return array
    except pa.ArrowInvalid:
        texts = [None if v is None else v.decode("utf-8", "replace") for v in array.cast(pa.large_binary()).to_pylist()]
        return pa.array(texts, pa.large_string())


def _format_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02X}" for b in value)


def _strip_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format_time(value: datetime | time) -> str:
    """DuckDB's form: no trailing zeros in the fraction, whole hours of an offset without minutes."""
    bare = str(value.replace(tzinfo=None))
    offset = str(value)[len(bare) :]
    return _strip_zeros(bare) + (offset[:3] if offset.endswith(":00") else offset)


def _format_interval(months: int, days: int, microseconds: int) -> str:
    sign = "-" if months < 0 else ""
    years, months = divmod(abs(months), 12)
    parts = [f"{sign}{years} year{'s'[: years != 1]}"] if years else []
    parts += [f"{sign}{months} month{'s'[: months != 1]}"] if months else []
    parts += [f"{days} day{'s'[: days not in (1, -1)]}"] if days else []
    if microseconds or not parts:
        seconds, fraction = divmod(abs(microseconds), 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append("-"[: microseconds < 0] + _strip_zeros(f"{clock}.{fraction:06}"))
    return " ".join(parts)


def _format_json(value: Any) -> str:
    """As DuckDB's to_json has it."""
    return json.dumps(_to_json_value(value), ensure_ascii=False, separators=(",", ":"))


def _to_json_value(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        return float(value)
    if isinstance(value, Mapping):
        return {to_text(k): _to_json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)) and not isinstance(value, pa.MonthDayNano):
        return [_to_json_value(v) for v in value]
    return to_text(value)


def _format_timedelta(value: timedelta) -> str:
    return _format_interval(0, *divmod(value // timedelta(microseconds=1), MICROSECONDS_PER_DAY))


_FORMATTERS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (bool, lambda v: "true" if v else "false"),
    ((int, float), repr),
    (Decimal, lambda v: format(v, "f")),
    ((datetime, time), _format_time),
    (date, str),
    (pa.MonthDayNano, lambda v: _format_interval(v.months, v.days, v.nanoseconds // 1000)),
    (timedelta, _format_timedelta),
    ((bytes, bytearray, memoryview), lambda v: _format_bytes(bytes(v))),
    ((list, tuple, Mapping, set), _format_json),
)


def is_nested_type(kind: str) -> bool:
    """Whether a prompt has a value of this type as JSON."""
    return kind.endswith("]") or kind.startswith(("STRUCT(", "MAP(", "UNION("))


def prompt_text_sql(expression: str, kind: str) -> str:
    """SQL for the text of a value in a prompt: what DuckDB writes, nested ones as JSON.

    >>> prompt_text_sql("x", "INTEGER[]")
    'CAST(to_json(x) AS VARCHAR)'
    """
    return f"CAST(to_json({expression}) AS VARCHAR)" if is_nested_type(kind) else f"CAST({expression} AS VARCHAR)"
