"""Databases made from CREATE TABLE alone: generated rows, in several ways, so that accidental equality is rare.

The idea is that of test suites for text-to-SQL (Zhong, Yu and Klein 2020): two queries that give the same rows on
several databases, whose values sit around the queries' own constants, most probably mean the same.  What the queries
compare their columns with is read from their tokens.
"""

from __future__ import annotations

import operator
import random
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sqlft.metrics.execution.queries import tokenize
from sqlft.sql.names import quote_name

Value = str | int | float
COMPARISONS = {"=", "==", "<", ">", "<=", ">=", "<>", "!="}
FLIPPED_SIGNS = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
OPERATORS: dict[str, Callable[[Value, Value], object]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
NUMERIC_FUNCTIONS = {"sum", "avg", "total", "abs", "round"}


class ColumnCondition(NamedTuple):
    """column sign values, the column by its bare name in lower case; '' where it is not a plain column."""

    column: str
    sign: str
    values: tuple[Value, ...]


class QueryFacts(NamedTuple):
    """What some queries do with their columns."""

    conditions: tuple[ColumnCondition, ...]
    joined: tuple[tuple[str, str], ...]
    """Pairs of columns that are compared with each other."""
    numeric: frozenset[str]
    """Columns that are summed, averaged or compared with numbers."""


def extract_facts(queries: Iterable[str], columns: frozenset[str]) -> QueryFacts:
    """Facts of all the queries; `columns` are the schema's, in lower case: other names in quotes are texts."""
    reader = _FactReader(columns)
    for query in queries:
        reader.read(query)
    numeric = reader.numeric | {c.column for c in reader.conditions if c.values and not isinstance(c.values[0], str)}
    return QueryFacts(tuple(reader.conditions), tuple(sorted(reader.joined)), frozenset(numeric - {""}))


class _FactReader:
    """Reads the tokens of queries, one query after the other."""

    def __init__(self, columns: frozenset[str]) -> None:
        self._columns = columns
        self._tokens: list[tuple[str, str]] = []
        self.conditions: dict[ColumnCondition, None] = {}
        self.joined: set[tuple[str, str]] = set()
        self.numeric: set[str] = set()

    def read(self, query: str) -> None:
        self._tokens = [(kind, text) for kind, text in tokenize(query) if kind != "space"]
        for i in range(len(self._tokens)):
            sign = self._text(i)
            if sign in COMPARISONS:
                self._add_comparison(i, {"==": "=", "<>": "!="}.get(sign, sign))
            elif sign in ("like", "in", "between"):
                self._add_list_condition(i, sign)
            elif sign in NUMERIC_FUNCTIONS and self._text(i + 1) == "(":
                self.numeric.add(self._column_right(i + 2))
        known = {value for c in self.conditions for value in c.values}
        for i in range(len(self._tokens)):  # literals that no condition has: planted anywhere
            value = self._literal(i)
            if value is not None and value not in known and self._text(i - 1) not in ("limit", "offset"):
                self.conditions[ColumnCondition("", "=", (value,))] = None

    def _text(self, i: int) -> str:
        return self._tokens[i][1].lower() if i < len(self._tokens) else ""

    def _add_comparison(self, i: int, sign: str) -> None:
        left, right = self._column_left(i), self._column_right(i + 1)
        value, before = self._literal(i + 1), self._literal(i - 1)
        if left and right:
            self.joined.add((left, right))
        elif value is not None:
            self.conditions[ColumnCondition(left, sign, (value,))] = None
        elif before is not None and right:
            self.conditions[ColumnCondition(right, FLIPPED_SIGNS.get(sign, sign), (before,))] = None

    def _add_list_condition(self, i: int, sign: str) -> None:
        negated = i > 0 and self._text(i - 1) == "not"
        values: list[Value] = []
        for j in range(i + 1, min(len(self._tokens), i + 40)):
            value = self._literal(j)
            if value is not None:
                values.append(value)
                if sign == "like" or (sign == "between" and len(values) == 2):
                    break
            elif self._text(j) not in ("(", ",", "and", "-"):
                break
        if values:
            condition = ColumnCondition(self._column_left(i - negated), f"{'not ' * negated}{sign}", tuple(values))
            self.conditions[condition] = None

    def _column_left(self, i: int) -> str:
        """The column just before token i: c, t.c, or c within one function's parentheses, as in lower(c)."""
        return self._column(i - 2 if i >= 1 and self._text(i - 1) == ")" else i - 1)

    def _column_right(self, i: int) -> str:
        return self._column(i + 2 if i + 2 < len(self._tokens) and self._text(i + 1) == "." else i)

    def _column(self, i: int) -> str:
        if not 0 <= i < len(self._tokens) or self._tokens[i][0] not in ("word", "quoted"):
            return ""
        name = _unquote(self._tokens[i][1])
        return name if name in self._columns else ""

    def _literal(self, i: int) -> Value | None:
        if not 0 <= i < len(self._tokens):
            return None
        kind, text = self._tokens[i]
        if text == "-" and i + 1 < len(self._tokens) and self._tokens[i + 1][0] == "number":
            number = _parse_number(self._tokens[i + 1][1])
            return None if number is None else -number
        if kind == "number":
            return _parse_number(text)
        if kind == "string":
            return text[1:-1].replace("''", "'")
        is_text = text[:1] == '"' and _unquote(text) not in self._columns and (i == 0 or self._text(i - 1) != ".")
        return text[1:-1].replace('""', '"') if kind == "quoted" and is_text else None


def _unquote(text: str) -> str:
    return re.sub(r'^["`\[]|["`\]]$', "", text).lower()


def _parse_number(text: str) -> int | float | None:
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**62 else None


WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "Iris", "Jade", "kelp 2", "Lynx")
DATES = ("2001-05-17", "2008-01-31", "2012-12-01", "2015-07-04", "2016-02-29", "2019-11-20", "2020-03-03")
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 10, 12, 20, 35, 50, 80, 100, 1999, 2005, 2010, 2014, 2018)
REFUSED_ACTIONS = {
    sqlite3.SQLITE_ATTACH,
    sqlite3.SQLITE_DETACH,
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_CREATE_TRIGGER,
}
"""What a schema's text may not do."""


CREATE_TABLE = re.compile(r"""(\s*CREATE\s+TABLE\s+)("[^"]+"|`[^`]+`|\[[^\]]+\]|\w+)""", re.I)


class FillStrategy(NamedTuple):
    """How to fill: rows a table, how many values a column has, share of NULLs, share of values from the constants."""

    rows: int
    width: int
    nulls: float
    constant_share: float


FILL_STRATEGIES = (
    FillStrategy(14, 40, 0.0, 0.3),
    FillStrategy(30, 4, 0.0, 0.5),
    FillStrategy(24, 8, 0.12, 0.4),
    FillStrategy(40, 60, 0.0, 0.2),
    FillStrategy(6, 3, 0.0, 0.6),
    FillStrategy(60, 3, 0.05, 0.6),
    FillStrategy(20, 30, 0.0, 0.7),
    FillStrategy(35, 6, 0.0, 0.3),
)


class GeneratedColumn(NamedTuple):
    """A column of the schema; columns that are compared with each other are of one kind, so that they join."""

    name: str
    kind: str


def generate_database(schema: str, queries: Sequence[str], number: int) -> sqlite3.Connection:
    """Database `number` (from 0) of the schema in memory, around the constants of the queries; sqlite3.Error."""
    con = sqlite3.connect(":memory:", isolation_level=None)
    con.set_authorizer(_authorize)
    for statement in _split_statements(schema):
        _create_table(con, statement)
    con.set_authorizer(None)
    tables = _read_tables(con)
    facts = extract_facts(queries, frozenset(name.lower() for columns in tables.values() for name, _ in columns))
    kinds = _choose_kinds(tables, facts)
    strategy = FILL_STRATEGIES[number % len(FILL_STRATEGIES)]
    generator = _RowGenerator(facts.conditions, strategy, random.Random(f"{number} {schema}"))
    for table, columns in tables.items():
        rows = generator.generate([GeneratedColumn(name.lower(), kinds[name.lower()]) for name, _ in columns])
        parameters = ", ".join("?" * len(columns))
        con.executemany(f"INSERT OR IGNORE INTO {quote_name(table)} VALUES ({parameters})", rows)
    return con


def _authorize(action: int, first: str | None, *_: object) -> int:
    refused = action in REFUSED_ACTIONS or (action == sqlite3.SQLITE_PRAGMA and first != "table_info")
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def _split_statements(schema: str) -> list[str]:
    statements = [""]
    for piece in schema.split(";"):
        statements[-1] += piece
        if sqlite3.complete_statement(statements[-1] + ";"):
            statements.append("")
        else:
            statements[-1] += ";"
    return [text for text in statements if text.strip(" \t\r\n;")]


def _create_table(con: sqlite3.Connection, statement: str) -> None:
    """Run it; a table that is there already, as in contexts made of several, gets the columns it does not have."""
    try:
        con.execute(statement)
    except sqlite3.OperationalError as e:
        repeated = CREATE_TABLE.match(statement)
        if "already exists" not in str(e) or repeated is None:
            raise
        con.execute(f"{repeated[1]}__again{statement[repeated.end() :]}")
        old, new = (
            {r[1].lower(): r[1:3] for r in con.execute(f"PRAGMA table_info({t})")} for t in (repeated[2], "__again")
        )
        for name in new.keys() - old.keys():
            con.execute(f'ALTER TABLE {repeated[2]} ADD COLUMN "{new[name][0]}" {new[name][1]}')
        con.execute("DROP TABLE __again")


def _read_tables(con: sqlite3.Connection) -> dict[str, list[tuple[str, str]]]:
    """The columns of each table, with the types that were declared."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for table, name, declared in con.execute(
        "SELECT t.name, c.name, c.type FROM sqlite_master t, pragma_table_info(t.name) c "
        "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' ORDER BY t.rowid, c.cid"
    ):
        tables.setdefault(table, []).append((name, declared))
    return tables


def _choose_kinds(tables: dict[str, list[tuple[str, str]]], facts: QueryFacts) -> dict[str, str]:
    """The kind of each column: one for those that a query compares, integer where they do not agree."""
    declared = [(name.lower(), kind) for columns in tables.values() for name, kind in columns]
    groups = {name: name for name, _ in declared}
    for left, right in facts.joined:
        old, new = groups[right], groups[left]
        groups = {name: new if group == old else group for name, group in groups.items()}
    kinds: dict[str, set[str]] = {group: set() for group in groups.values()}
    for name, kind in declared:
        kinds[groups[name]].add(_detect_kind(kind, name, facts))
    return {name: next(iter(kinds[g])) if len(kinds[g]) == 1 else "integer" for name, g in groups.items()}


def _detect_kind(declared: str, name: str, facts: QueryFacts) -> str:
    upper = declared.upper()
    if any(word in upper for word in ("INT", "BOOL", "YEAR")):
        return "integer"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return "real"
    if any(word in upper for word in ("DATE", "TIME")):
        return "date"
    return "integer" if name in facts.numeric or re.search(r"(^|_)id$", name) else "text"


class _RowGenerator:
    """Rows around the constants of the queries' conditions."""

    def __init__(self, conditions: Sequence[ColumnCondition], strategy: FillStrategy, generator: random.Random) -> None:
        self._conditions, self._strategy, self._random = conditions, strategy, generator

    def generate(self, columns: Sequence[GeneratedColumn]) -> list[list[Value | None]]:
        """Rows in any order: random ones, and for each condition rows that fail it alone."""
        names = {column.name for column in columns}
        conditions = [c for c in self._conditions if c.column in names]
        rows: list[list[Value | None]] = []
        for failing in (None, None, None, *(c for c in conditions for _ in range(2))):
            rows.append([self._choose_witness(column, failing) for column in columns])
        for _ in range(self._strategy.rows):
            is_null = (self._random.random() < self._strategy.nulls for _ in columns)
            rows.append([None if null else self._choose(column) for column, null in zip(columns, is_null, strict=True)])
        self._random.shuffle(rows)
        return rows

    def _choose(self, column: GeneratedColumn) -> Value:
        near = [v for c in self._conditions if c.column == column.name for v in _list_values_near(c, column.kind)]
        if near and self._random.random() < max(self._strategy.constant_share, 0.5):
            return self._random.choice(near)
        if self._random.random() < self._strategy.constant_share / 4:
            constants = (v for c in self._conditions for v in c.values)
            if anywhere := [v for v in constants if isinstance(v, str) == (column.kind == "text")]:
                return self._random.choice(anywhere)
        return self._choose_plain(column, self._strategy.width)

    def _choose_plain(self, column: GeneratedColumn, width: int) -> Value:
        """One of `width` values that all columns of a kind share."""
        i = self._random.randrange(width)
        if column.kind == "integer":
            return NUMBERS[i] if i < len(NUMBERS) else 3 * i + 1
        if column.kind == "real":
            return i * 2.5 + 0.25 if i % 2 else i
        if column.kind == "date":
            return DATES[i] if i < len(DATES) else f"{1980 + i % 50}-{1 + i % 12:02}-{1 + i % 28:02}"
        return WORDS[i] if i < len(WORDS) else f"{WORDS[i % len(WORDS)]} {i}"

    def _choose_witness(self, column: GeneratedColumn, failing: ColumnCondition | None) -> Value:
        """A value that meets all conditions but `failing`; few different ones, so that the rows join."""
        conditions = [c for c in self._conditions if c.column == column.name]
        if not conditions:
            return self._choose_plain(column, 3)
        candidates = [v for c in conditions for v in _list_values_near(c, column.kind)]
        candidates += [self._choose_plain(column, 12) for _ in range(3)]
        self._random.shuffle(candidates)
        return max(candidates, key=lambda v: sum(_holds(c, v) == (c is not failing) for c in conditions))


def _list_values_near(condition: ColumnCondition, kind: str) -> list[Value]:
    """Values at and beside the constants of a condition."""
    values: list[Value] = []
    for value in condition.values:
        if not isinstance(value, str):
            values += [value, value, value - 1, value + 1]
        elif "like" in condition.sign:
            inner = value.replace("%", "").replace("_", "x")
            values += [inner, inner, f"ab {inner}", f"{inner} yz", f"q {inner} r", inner.swapcase()]
        elif kind in ("integer", "real"):
            values += [value]
        else:
            values += [value, value, value, value.swapcase(), f"{value} 2", value[:-1]]
    return values


def _holds(condition: ColumnCondition, value: Value) -> bool:
    sign, values = condition.sign, condition.values
    if sign.startswith("not "):
        return not _holds(condition._replace(sign=sign[4:]), value)
    if sign == "like":
        pattern = re.escape(str(values[0])).replace("%", ".*").replace("_", ".")
        return re.fullmatch(pattern, str(value), re.I | re.S) is not None
    if sign == "in":
        return value in values
    if isinstance(value, str) != isinstance(values[0], str):
        return False
    if sign == "between":
        return bool(operator.le(values[0], value) and operator.le(value, values[-1]))
    return bool(OPERATORS[sign](value, values[0]))
