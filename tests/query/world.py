"""Models in one connection, and in a plain one the tables that hold all their answers.

A text of the generators is written once and rendered for both sides: `twin` marks where the two differ, which is where
a model binds (null-safe equality on the side of the tables) and where only sqlft has a spelling (backticks, `m.1`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb

import sqlft

Side = Literal["model", "table"]

TABLES = """
CREATE TABLE t AS SELECT i AS id, i % 3 AS k,
  CASE WHEN i <> 7 THEN 'p' || (i % 5) END AS x, CASE WHEN i NOT IN (5, 10) THEN 'c' || (i % 4) END AS content
  FROM range(12) r(i);
CREATE TABLE u AS SELECT i AS id, i * 2 AS y, 'n' || (i % 3) AS nm, 'c' || (i % 3) AS content FROM range(8) r(i);
CREATE TABLE pq AS SELECT i AS id, 'p' || (i % 3) AS p, CASE WHEN i <> 4 THEN 'c' || (i % 2) END AS q
  FROM range(6) r(i);
"""
MODELS = """
CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'A: {{content}}';
CREATE MODEL m2 PREDICT label USING engine = 'echo', prompt_template = 'L {{q}}';
CREATE MODEL two PREDICT reply USING engine = 'echo', prompt_template = '{{p}}/{{q}}';
"""
LITERALS = ("p1", "p2", "c3", "It's", "x y", "", "a--b", "{k}")
TEXTS = f"""
SELECT DISTINCT v FROM (
  SELECT unnest([x, upper(x), x || '!', content, upper(content), coalesce(x, 'zz'), id::VARCHAR]) AS v FROM t
  UNION ALL SELECT unnest([nm, upper(nm), nm || '!', content, upper(content), id::VARCHAR, y::VARCHAR]) FROM u
  UNION ALL SELECT unnest([p, q, p || '!', upper(p)]) FROM pq
  UNION ALL SELECT unnest([{", ".join("'" + v.replace("'", "''") + "'" for v in LITERALS)}])
  UNION ALL SELECT NULL)
"""
ANSWERS = f"""
CREATE TABLE m AS SELECT v AS content, 'A: ' || v AS answer FROM ({TEXTS});
CREATE TABLE m2 AS SELECT DISTINCT v AS q, 'L ' || v AS label FROM (
  SELECT v FROM ({TEXTS}) UNION SELECT unnest([answer, upper(answer), answer || 'z', upper(content)]) FROM m);
CREATE TABLE two AS SELECT a.v AS p, b.v AS q,
  CASE WHEN a.v IS NOT NULL OR b.v IS NOT NULL THEN concat(a.v, '/', b.v) END AS reply FROM ({TEXTS}) a, ({TEXTS}) b;
"""
_TWIN = re.compile("\x01([^\x01-\x03]*)\x02([^\x01-\x03]*)\x03")
_PARAMETER = re.compile("\x04([^\x04\x05]*)\x05")


def twin(model: str, table: str) -> str:
    """A text that differs between the two sides."""
    return f"\x01{model}\x02{table}\x03"


def parameter(value: str) -> str:
    """A string literal that a case may send as a parameter instead."""
    return f"\x04{value}\x05"


def literal(value: str) -> str:
    """A string as SQL."""
    return "'" + value.replace("'", "''") + "'"


def render(text: str, side: Side, binds: bool = False) -> tuple[str, list[str]]:
    """What one side is sent, and with which parameters.

    >>> render(twin("m.1", "m") + parameter("x"), "table", binds=True)
    ('m?', ['x'])
    """
    while (plain := _TWIN.sub(r"\1" if side == "model" else r"\2", text)) != text:
        text = plain
    values: list[str] = []

    def place(found: re.Match[str]) -> str:
        values.append(found[1])
        return "?" if binds else literal(found[1])

    return _PARAMETER.sub(place, text), values


@dataclass(frozen=True)
class Case:
    """Statements of which the last one's result is compared."""

    statements: Sequence[str]
    ordered: bool = False
    binds: bool = False
    """Whether string literals of the last statement go as parameters."""
    fetch: str = "fetchall"

    def text(self, side: Side) -> str:
        """For people."""
        *first, last = self.statements
        sent, values = render(last, side, self.binds)
        return ";\n".join([*(render(s, side)[0] for s in first), sent]) + (f"  -- {values}" if self.binds else "")


@dataclass(frozen=True)
class Outcome:
    """A result: names, types and rows; or the error."""

    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        head = ", ".join(f"{n} {t}" for n, t in zip(self.names, self.types, strict=True))
        shown = "\n".join(f"    {row}" for row in self.rows[:40])
        return f"{len(self.rows)} rows ({head})\n{shown}"


@dataclass(frozen=True)
class Verdict:
    """What became of a case: `equal`, or how the two sides differ; `left out` where this DuckDB lacks something."""

    kind: str
    model: Outcome
    table: Outcome


class World:
    """The two connections."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.model = sqlft.connect(warn=self.warnings.append)
        self.table = duckdb.connect()
        self.model.execute(TABLES + MODELS)
        self.table.execute(TABLES + ANSWERS)

    def close(self) -> None:
        """Both of them."""
        self.model.close()
        self.table.close()

    def compare(self, case: Case) -> Verdict:
        """Run a case on both sides."""
        table, model = self.run("table", case), self.run("model", case)
        return Verdict(_judge(case, model, table), model, table)

    def run(self, side: Side, case: Case) -> Outcome:
        """Run a case on one side."""
        return _run(self.model if side == "model" else self.table, case, side)


def _run(con: Any, case: Case, side: Side) -> Outcome:
    *first, last = case.statements
    try:
        for statement in first:
            con.execute(render(statement, side)[0])
        text, values = render(last, side, case.binds)
        given = values if case.binds and values else None
        return fetch(con, text, given, case.fetch)
    except duckdb.Error as e:
        return Outcome(error=f"{type(e).__name__}: {e}")
    except Exception as e:
        return Outcome(error=f"ESCAPED {type(e).__name__}: {e}")


OLD = int(duckdb.__version__.split(".")[0]) < 2


def column_names(described: Sequence[str]) -> list[str]:
    """Names of columns in one spelling: DuckDB 1.5 has another for types, lambdas and true that it printed itself."""
    if not OLD:
        return list(described)
    plain = [re.sub(r"CAST\('(t|f)' AS BOOLEAN\)", lambda m: {"t": "true", "f": "false"}[m[1]], n) for n in described]
    plain = [re.sub(r"lambda ([\w, ]+):", r"\1 ->", n.replace('"', "")) for n in plain]
    return [re.sub(r"row\(([\w, ]+)\) ->", r"\1 ->", n) for n in plain]


def fetch(con: Any, text: str, values: Any = None, how: str = "fetchall") -> Outcome:
    """A query's result, read in one of the ways there are."""
    if how == "sql":
        relation = con.sql(text, params=values) if values else con.sql(text)
        return Outcome(column_names(relation.columns), [str(t) for t in relation.types], relation.fetchall())
    con.execute(text, values) if values else con.execute(text)
    described = con.description
    if how == "fetchone":
        rows = []
        while (row := con.fetchone()) is not None:
            rows.append(row)
    elif how == "fetchmany":
        rows = []
        while some := con.fetchmany(3):
            rows += some
    else:
        rows = con.fetchall()
    return Outcome(column_names([d[0] for d in described]), [str(d[1]) for d in described], rows)


def _judge(case: Case, model: Outcome, table: Outcome) -> str:
    if table.error.startswith("NotImplementedException") and not model.error.startswith("ESCAPED"):
        return "left out"
    if table.error:
        return "the case is wrong"
    if model.error:
        if model.error.startswith("ESCAPED"):
            return "an error escaped"
        return "refused" if model.error.startswith(("NotSupported", "StatementError")) else "an error of DuckDB"
    if model.names != table.names:
        return "other names"
    if model.types != table.types:
        return "other types"
    if sort_rows(model.rows) != sort_rows(table.rows):
        return "other rows"
    if case.ordered and [repr(r) for r in model.rows] != [repr(r) for r in table.rows]:
        return "another order"
    return "equal"


def sort_rows(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Rows as a multiset; by their text, so that 0.0 and -0.0 differ and NaN equals itself."""
    return sorted(map(repr, rows))
