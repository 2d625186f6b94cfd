"""What a query compares its columns with: read from its tokens, so that generated rows can be chosen to matter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from sqlft.metrics.execution.queries import tokenize

Value = str | int | float
COMPARISONS = {"=", "==", "<", ">", "<=", ">=", "<>", "!="}
FLIPPED_SIGNS = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
NUMERIC_FUNCTIONS = {"sum", "avg", "total", "abs", "round"}


class ColumnCondition(NamedTuple):
    """column sign values, the column by its bare name in lower case; '' where it is not a plain column."""

    column: str
    sign: str
    values: tuple[Value, ...]


class QueryFacts(NamedTuple):
    """What some queries say of their columns."""

    conditions: tuple[ColumnCondition, ...]
    joined: tuple[tuple[str, str], ...]
    """Pairs of columns that are compared with each other."""
    numeric: frozenset[str]
    """Columns that are summed, averaged or compared with numbers."""


def extract_facts(queries: Iterable[str], columns: frozenset[str]) -> QueryFacts:
    """Facts of all the queries; `columns` are the schema's, in lower case, and tell "column" from "text"."""
    conditions: dict[ColumnCondition, None] = {}
    joined: set[tuple[str, str]] = set()
    numeric: set[str] = set()
    for query in queries:
        found = [(k, t) for k, t in tokenize(query) if k != "space"]
        for i, (_, text) in enumerate(found):
            sign = text.lower()
            if sign in COMPARISONS:
                _add_comparison(found, i, sign, columns, conditions, joined)
            elif sign in ("like", "in", "between"):
                _add_list_condition(found, i, sign, columns, conditions)
            elif sign in NUMERIC_FUNCTIONS and i + 1 < len(found) and found[i + 1][1] == "(":
                numeric.add(_find_column_right(found, i + 2, columns))
        _add_other_literals(found, columns, conditions)
    numeric |= {c.column for c in conditions if c.values and not isinstance(c.values[0], str)}
    return QueryFacts(tuple(conditions), tuple(sorted(joined)), frozenset(numeric - {""}))


def _add_comparison(
    found: list[tuple[str, str]],
    i: int,
    sign: str,
    columns: frozenset[str],
    conditions: dict[ColumnCondition, None],
    joined: set[tuple[str, str]],
) -> None:
    left, right = _find_column_left(found, i, columns), _find_column_right(found, i + 1, columns)
    value, before = _parse_literal(found, i + 1, columns), _parse_literal(found, i - 1, columns)
    sign = {"==": "=", "<>": "!="}.get(sign, sign)
    if left and right:
        joined.add((left, right))
    elif value is not None:
        conditions[ColumnCondition(left, sign, (value,))] = None
    elif before is not None and right:
        conditions[ColumnCondition(right, FLIPPED_SIGNS.get(sign, sign), (before,))] = None


def _add_list_condition(
    found: list[tuple[str, str]], i: int, sign: str, columns: frozenset[str], conditions: dict[ColumnCondition, None]
) -> None:
    negated = i > 0 and found[i - 1][1].lower() == "not"
    left = _find_column_left(found, i - negated, columns)
    values: list[Value] = []
    for j in range(i + 1, min(len(found), i + 40)):
        value = _parse_literal(found, j, columns)
        if value is not None:
            values.append(value)
            if sign == "like" or (sign == "between" and len(values) == 2):
                break
        elif found[j][1].lower() not in ("(", ",", "and", "-"):
            break
    if values:
        conditions[ColumnCondition(left, f"not {sign}" if negated else sign, tuple(values))] = None


def _add_other_literals(
    found: list[tuple[str, str]], columns: frozenset[str], conditions: dict[ColumnCondition, None]
) -> None:
    """Literals that no condition has: planted anywhere."""
    known = {value for c in conditions for value in c.values}
    for i in range(len(found)):
        value = _parse_literal(found, i, columns)
        if value is not None and value not in known and found[i - 1][1].lower() not in ("limit", "offset"):
            conditions[ColumnCondition("", "=", (value,))] = None


def _unquote(text: str) -> str:
    return re.sub(r'^["`\[]|["`\]]$', "", text).lower()


def _find_column_left(found: list[tuple[str, str]], i: int, columns: frozenset[str]) -> str:
    """The column just before token i: c, t.c, or c within one function's parentheses, as in lower(c)."""
    if i >= 1 and found[i - 1][1] == ")":
        i -= 1
    if i < 1 or found[i - 1][0] not in ("word", "quoted"):
        return ""
    name = _unquote(found[i - 1][1])
    return name if name in columns else ""


def _find_column_right(found: list[tuple[str, str]], i: int, columns: frozenset[str]) -> str:
    if i + 2 < len(found) and found[i + 1][1] == ".":
        i += 2
    if i >= len(found) or found[i][0] not in ("word", "quoted"):
        return ""
    name = _unquote(found[i][1])
    return name if name in columns else ""


def _parse_literal(found: list[tuple[str, str]], i: int, columns: frozenset[str]) -> Value | None:
    if not 0 <= i < len(found):
        return None
    kind, text = found[i]
    if text == "-" and i + 1 < len(found) and found[i + 1][0] == "number":
        number = _parse_number(found[i + 1][1])
        return None if number is None else -number
    if kind == "number":
        return _parse_number(text)
    if kind == "string":
        return text[1:-1].replace("''", "'")
    if kind == "quoted" and text[:1] == '"' and _unquote(text) not in columns and (i == 0 or found[i - 1][1] != "."):
        return text[1:-1].replace('""', '"')
    return None


def _parse_number(text: str) -> int | float | None:
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**62 else None
