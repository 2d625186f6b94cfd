"""Values as SQL text, parameters put in place, and the literals of a statement that are secrets."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from sqlft.errors import DataError, StatementError
from sqlft.redact import SECRET_PATTERN
from sqlft.sql.lexer import Token, find_parameters, tokenize
from sqlft.sql.names import quote_text
from sqlft.sql.statements import Parameter


def inline_parameters(text: str, values: Any, keys: Sequence[Parameter] | None = None) -> str:
    """`text` with `?`, `$1` and `$name` replaced by the values' literals; `keys` if `text` is part of a statement."""
    if values is None or (isinstance(values, (list, tuple, Mapping)) and not values):
        return text
    found = [t for t in tokenize(text) if t.kind == "parameter"]
    if keys is None:
        keys = find_parameters(found)
        _check_count(keys, values)
    pieces, at = [], 0
    for token, key in zip(found, keys, strict=True):
        pieces += [text[at : token.start], _format_parameter(key.key, values, token, text)]
        at = token.end
    return "".join([*pieces, text[at:]])


def _check_count(keys: Sequence[Parameter], values: Any) -> None:
    """DuckDB's error for values that no parameter takes."""
    if isinstance(values, Mapping):
        left = [str(k) for k in values if k not in {p.key for p in keys} | {str(p.key) for p in keys}]
    else:
        wanted = max((p.key for p in keys if isinstance(p.key, int)), default=0)
        left = [str(i + 1) for i in range(wanted, len(values))]
    if left:
        raise duckdb.InvalidInputException(
            f"Invalid Input Error: the statement has no parameter for the value {', '.join(left)}. "
            "Give one value for each parameter."
        )


def _format_parameter(key: int | str, values: Any, token: Token, text: str) -> str:
    try:
        if isinstance(values, Mapping):
            return format_literal(values[key] if key in values else values[str(key)])
        return format_literal(values[int(key) - 1])
    except (KeyError, IndexError, ValueError):
        raise StatementError(
            f"The parameter {token.text} has no value.", text, token.start, "Give one value for each parameter."
        ) from None


def format_literal(value: Any) -> str:
    """A Python value as DuckDB's SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"({value})" if value < 0 else str(value)
    if isinstance(value, float):
        return f"'{value!r}'::DOUBLE" if math.isfinite(value) else f"'{value}'::DOUBLE"
    if isinstance(value, str):
        return quote_text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "'" + "".join(f"\\x{b:02X}" for b in bytes(value)) + "'::BLOB"
    if isinstance(value, decimal.Decimal):
        return str(value) if value.is_finite() else f"'{value}'::DOUBLE"
    if isinstance(value, datetime.datetime):
        return f"'{value.isoformat(sep=' ')}'::{'TIMESTAMPTZ' if value.tzinfo else 'TIMESTAMP'}"
    if isinstance(value, datetime.date):
        return f"'{value.isoformat()}'::DATE"
    if isinstance(value, datetime.time):
        return f"'{value.isoformat()}'::TIME"
    if isinstance(value, datetime.timedelta):
        microseconds = value.seconds * 1_000_000 + value.microseconds
        return f"(INTERVAL ({value.days}) DAYS + INTERVAL ({microseconds}) MICROSECONDS)"
    if isinstance(value, uuid.UUID):
        return f"'{value}'::UUID"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quote_text(str(k))}: {format_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_literal(v) for v in value) + "]"
    if hasattr(value, "item"):  # a NumPy scalar
        return format_literal(value.item())
    raise DataError(
        f"A parameter of type {type(value).__name__} cannot go with a model in one statement.",
        "Give it as a string, a number, a date, a list or a dict.",
    )


SHORTEST_SECRET = 4


def find_secrets(text: str) -> set[str]:
    """The values that `redact_statement` stars out, as typed and as they are meant, each line of them by itself."""
    found: set[str] = set()
    for match in SECRET_PATTERN.finditer(text):
        for value in {match["quoted"] or match["bare"], *_unquote(match["quoted"] or match["bare"])}:
            found.update((value, *value.splitlines()))
    return {value for value in found if len(value) >= SHORTEST_SECRET}


def _unquote(typed: str) -> list[str]:
    """A literal's own text: without its quotes, and with its escapes undone."""
    inner = re.fullmatch(r"[eE]?(['\"]|\$\w*\$)(.*?)(\1)?", typed, re.DOTALL)
    try:
        values = [t.value for t in tokenize(typed) if t.kind in ("string", "quoted")]
    except StatementError:
        values = []
    return [*values, *([inner[2]] if inner else [])]
