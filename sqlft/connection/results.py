"""The rows of a result that is being fetched, one way or another.

`fetching` makes a `Result` of the pieces that a query over models comes in, or of one table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from sqlft.query.spool import BATCH_ROWS, make_relation


class Result:
    """What is left of a result's rows, to be fetched one way or another, mixed as one likes."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        relation: duckdb.DuckDBPyRelation,
        chunks: Iterator[duckdb.DuckDBPyRelation],
        close: Callable[[], None],
        explain: Callable[[duckdb.Error], object] = lambda error: None,
    ) -> None:
        """`relation` has the columns and no rows; `chunks` are relations with the rows, in order.

        `explain` gets an error that fetching raises, to say it in the words of the query.
        """
        self._con, self._chunks, self.close, self._explain = con, chunks, close, explain
        self.relation = relation
        self.columns, self.types = list(relation.columns), list(relation.types)
        self._current_relation: duckdb.DuckDBPyRelation | None = None
        """The chunk whose rows are being fetched."""
        self._rows: list[tuple[Any, ...]] = []
        self._fetched_count = 0
        self.is_done = False
        """Whether all was fetched as a table."""

    @cached_property
    def _schema(self) -> pa.Schema:
        schema: pa.Schema = self.relation.to_arrow_reader(1).read_all().schema
        return schema

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows that are left, as DuckDB's client gives them."""
        while True:
            while self._fetched_count < len(self._rows):
                self._fetched_count += 1
                yield self._rows[self._fetched_count - 1]
            self._rows, self._fetched_count = [], 0
            self._current_relation = next(self._chunks, None)
            if self._current_relation is None:
                return
            with self._explain_errors():
                self._rows = self._current_relation.fetchall()

    def relations(self) -> Iterator[duckdb.DuckDBPyRelation]:
        """What is left as DuckDB relations."""
        if self._current_relation is not None and self._fetched_count < len(self._rows):
            rest = self._current_relation.limit(len(self._rows) - self._fetched_count, offset=self._fetched_count)
            self._rows, self._fetched_count = [], 0
            yield rest
        yield from self._chunks

    def reader(self) -> pa.RecordBatchReader:
        """What is left as record batches, a chunk's as soon as it is answered."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def table(self) -> pa.Table:
        """What is left as one Arrow table."""
        schema = self._schema
        self.is_done = True
        return pa.Table.from_batches(self._batches(), schema)

    def next(self, rows: int) -> pa.Table:
        """The next rows as an Arrow table; an empty one at the end."""
        schema = self._schema
        for relation in self.relations():
            with self._explain_errors():
                table = relation.to_arrow_reader(BATCH_ROWS).read_all().cast(schema)
            if table.num_rows:
                self._current_relation = make_relation(self._con, table)
                self._rows, self._fetched_count = self._current_relation.fetchall(), min(rows, table.num_rows)
                return table.slice(0, rows)
        return schema.empty_table()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        schema = self._schema
        for relation in self.relations():
            with self._explain_errors():
                table = relation.to_arrow_reader(BATCH_ROWS).read_all()
            yield from table.cast(schema).to_batches()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as e:
            self._explain(e)
            raise
