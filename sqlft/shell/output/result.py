"""A statement's rows as text, in DuckDB's own words, a few at a time."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from duckdb import DuckDBPyConnection, DuckDBPyRelation, Error

from sqlft.connection import Connection
from sqlft.shell.output.table import Column, Row
from sqlft.sql.parser import may_be_sqlft, parse
from sqlft.sql.statements import DescribeEngine, DescribeModel, Plain

if TYPE_CHECKING:
    import pyarrow as pa

MAX_KEPT_ROWS = 100_000
"""Rows of the last table."""
MANY_COLUMNS = 500
BATCH_ROWS = 2048
"""Rows fetched at once, as many as DuckDB computes at once; answers of models come in relations of their own."""
_STATUS = {"Count": "BIGINT", "Success": "BOOLEAN"}
_ASKS_FOR_ROWS = ("SELECT", "FROM", "VALUES", "TABLE", "WITH", "CALL", "PIVOT", "UNPIVOT", "(")
_PLAN = ["explain_key", "explain_value"]


@dataclass
class KeptRows:
    """What was read of a table, to be shown again."""

    columns: list[Column]
    read: list[pa.RecordBatch]
    count: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep a batch, unless there are many."""
        if self.count < MAX_KEPT_ROWS:
            self.read.append(batch)
            self.count += batch.num_rows


class Result:
    """The rows of one statement, which can be read once.

    `is_ours` if it is about models, and no query; `is_described` if it is to show all that is known.
    """

    def __init__(
        self,
        con: DuckDBPyConnection,
        relations: Iterator[DuckDBPyRelation],
        is_ours: bool = False,
        is_described: bool = False,
    ) -> None:
        first = next(relations)
        self.columns = [Column(n, str(t)) for n, t in zip(first.columns, first.types, strict=True)]
        self.is_ours = is_ours
        self.is_described = is_described
        self.kept = KeptRows(self.columns, [])
        self._con = con
        self._relations = chain([first], relations)

    @property
    def is_plan(self) -> bool:
        """Whether it is EXPLAIN's drawing of a query; of a training EXPLAIN returns one row per fact."""
        return [c.name for c in self.columns] == _PLAN and not self.is_ours

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, each value as DuckDB casts it to VARCHAR."""
        return self._batches("COLUMNS(*)::VARCHAR")

    def batches_kept(self) -> Iterator[pa.RecordBatch]:
        """The same, the first of them also in `kept`."""
        for batch in self.batches():
            self.kept.add(batch)
            yield batch

    def rows(self) -> Iterator[list[Row]]:
        """The same as tuples, some at a time."""
        return map(to_rows, self.batches())

    def json(self) -> Iterator[list[Row]]:
        """Rows, some at a time, each value as JSON; NaN and infinity, which JSON has not, are null."""
        floats = ["FLOAT" in c.type or "DOUBLE" in c.type for c in self.columns]
        for batch in map(to_rows, self._batches("to_json(COLUMNS(*))::VARCHAR")):
            if any(floats):
                batch = [
                    [_replace_non_finite(v) if f else v for v, f in zip(row, floats, strict=True)] for row in batch
                ]
            yield batch

    def is_status(self, first_word: str) -> bool:
        """Whether the statement gives no rows, but says that it is done: CREATE TABLE, INSERT, SET."""
        columns = [(c.name, c.type) for c in self.columns]
        return len(columns) == 1 and columns[0] in _STATUS.items() and first_word not in _ASKS_FOR_ROWS

    def changed_rows(self) -> int | None:
        """How many rows such a statement changed, None if it does not say."""
        counts = [row[0] for batch in self.rows() for row in batch]
        return int(counts[0]) if counts and counts[0] and self.columns[0].name == "Count" else None

    def _batches(self, expression: str) -> Iterator[pa.RecordBatch]:
        with _without_slow_optimizer(self._con) if len(self.columns) > MANY_COLUMNS else nullcontext():
            yield from self._read(expression)

    def _read(self, expression: str) -> Iterator[pa.RecordBatch]:
        for relation in self._relations:
            with closing(relation.project(expression).to_arrow_reader(BATCH_ROWS)) as reader:
                yield from reader


@contextmanager
def open_result(con: Connection, text: str, is_ours: bool = False) -> Iterator[Result | None]:
    """Run one statement; None if it gives nothing at all.  What was not read of it is not asked for.

    `is_ours` is for a query that the shell itself has written.
    """
    relations = con.relations(text)
    if relations is None:
        yield None
        return
    try:
        yield _read_result(con, relations, text, is_ours)
    finally:
        if isinstance(relations, Generator):
            relations.close()


@contextmanager
def _without_slow_optimizer(con: DuckDBPyConnection) -> Iterator[None]:
    """Without an optimizer of DuckDB 2.0 that takes a quarter of a minute for 10,000 expressions."""
    settings = con.sql(
        "SELECT current_setting('disabled_optimizers') FROM duckdb_optimizers() WHERE name = 'projection_placement'"
    ).fetchall()
    before = str(settings[0][0]) if settings else ""
    if not settings:
        yield
        return
    con.execute(f"SET disabled_optimizers = '{','.join(filter(None, [before, 'projection_placement']))}'").fetchall()
    try:
        yield
    finally:
        with suppress(Error):  # in a failed transaction nothing can be set
            con.execute(f"SET disabled_optimizers = '{before}'").fetchall()


def _read_result(con: Connection, relations: Iterator[DuckDBPyRelation], text: str, is_ours: bool) -> Result:
    statements = parse(text) if may_be_sqlft(text) else []
    if any(isinstance(s, DescribeModel) for s in statements):
        from sqlft.statements.describe import describes_model

        if not all(describes_model(con.session, s) for s in statements if isinstance(s, DescribeModel)):
            statements = []
    ours = is_ours or (bool(statements) and not any(isinstance(s, Plain) for s in statements))
    is_described = any(isinstance(s, DescribeModel | DescribeEngine) for s in statements)
    return Result(con.session.con, relations, ours, is_described)


def to_rows(batch: pa.RecordBatch) -> list[Row]:
    """A batch's rows as tuples."""
    return list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _replace_non_finite(value: str | None) -> str | None:
    if value is None or ("NaN" not in value and "Infinity" not in value):
        return value
    return json.dumps(json.loads(value, parse_constant=lambda _: None), ensure_ascii=False, separators=(",", ":"))
