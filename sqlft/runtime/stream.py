"""A query whose every result row comes from one input row, answered piece by piece.

The rows of its tables are spooled in order; then, as answers become known, slices of them are put in the
place of its tables, side by side with the answers (POSITIONAL JOIN), and the rest of the user's text runs
over each slice.  So first rows come while later ones are still being answered, LIMIT stops the asking, and
no Arrow reader is left open on the user's connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from sqlft.runtime.asker import Asker
from sqlft.runtime.layout import Asked, Layout, merged_inputs
from sqlft.runtime.rewrite import Rewriter, bind_error, mentioned_outputs
from sqlft.runtime.session import Session
from sqlft.runtime.spool import Spool

FIRST_ROWS = 64
FILTERED_ROWS = (64, 64, 128, 256, 512, 1024, 2048, 4096)
MOST_ROWS = 16384
EMIT_SECONDS = 0.05


class Stream:
    """A planned query of this kind: `description`, then `chunks`."""

    def __init__(self, session: Session, asker: Asker, layout: Layout) -> None:
        self._session, self._asker, self._layout = session, asker, layout
        self._spool: Spool | None = None
        self._names = {id(x): f"__sqlft_s{id(self):x}_{k}" for k, x in enumerate([*layout.bases, *layout.asked])}
        self._text = layout.chunk_text(self._names)
        self._closed = False

    def start(self) -> Any:
        """Spool the rows; a DuckDB relation that knows the result's columns and types."""
        for asked in self._layout.asked:
            asked.book = self._asker.book(asked.reference.resolved, asked.reference.alias)
        for waiting in self._layout.chained:
            self._asker.book(waiting.resolved, waiting.alias)
        self._asker.check_using()
        try:
            relation = self._session.con.sql(self._layout.spool_query())
        except duckdb.BinderException as e:
            raise bind_error(e, merged_inputs(self._layout.asked), self._layout.clauses.text) from e
        self._spool = Spool(relation, self._take, lambda: self._session.interrupted)
        for asked in self._layout.asked:
            if asked.book is not None:
                asked.book.asking.rows += self._spool.rows
        self._register(0, 0)
        return self._session.con.sql(self._rewritten(dry=True))

    def _take(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """Give the rows their prompts, and keep what the result shows."""
        for asked in self._layout.asked:
            asked.take(batch, start)
        return batch.select(self._layout.kept_columns)

    def chunks(self) -> Iterator[Any]:
        """DuckDB relations, each with some of the result's rows, in order."""
        spool = self._spool
        assert spool is not None
        left, skip = self._layout.count, self._layout.offset
        row, most = 0, iter(FILTERED_ROWS if self._layout.filtered else ())
        cap = FIRST_ROWS // 4
        try:
            while row < spool.rows and left != 0:
                cap = next(most, min(MOST_ROWS, cap * 4))
                end = self._answer(row, min(spool.rows, row + cap))
                self._register(row, end)
                relation = self._session.con.sql(self._rewritten())
                row = end
                if left is not None:
                    relation, left, skip = self._limited(relation, left, skip)
                yield relation
        except BaseException:
            self.close(error=True)
            raise
        self.close()

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The result's rows as DuckDB's client gives them."""
        for relation in self.chunks():
            yield from relation.fetchall()

    def table(self) -> pa.Table:
        """The result as one Arrow table."""
        return self.reader().read_all()

    def reader(self) -> pa.RecordBatchReader:
        """The result as record batches, a chunk's as soon as it is answered."""
        schema = self._session.con.sql(self._rewritten(dry=True)).to_arrow_reader(1).read_all().schema
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for relation in self.chunks():
            table = relation.to_arrow_reader(MOST_ROWS).read_all()
            yield from table.cast(schema).to_batches()

    def _limited(self, relation: Any, left: int, skip: int) -> tuple[Any, int, int]:
        table = relation.to_arrow_reader(MOST_ROWS).read_all()
        skipped = min(skip, table.num_rows)
        table = table.slice(skipped, left)
        return self._session.con.from_arrow(table), left - table.num_rows, skip - skipped

    def _answer(self, row: int, target: int) -> int:
        """Ask until at least one more row can be given out; the row before which all can."""
        started = time.monotonic()
        while True:
            end = min([target, *(a.ready_end(target) for a in self._layout.asked)])
            if end >= target or (end > row and time.monotonic() - started > EMIT_SECONDS):
                return max(end, row)
            slowest = min(self._layout.asked, key=lambda a: a.ready_end(target))
            assert slowest.book is not None
            asking = slowest.book.asking
            wanted = slowest.prompts_before(target)
            asking.advance(wanted, wanted - asking.known_before(wanted))

    def _register(self, start: int, end: int) -> None:
        assert self._spool is not None
        rows = self._spool.slice(start, end)
        for base in self._layout.bases:
            part = rows.select(range(base.first, base.first + len(base.columns))).rename_columns(base.columns)
            self._session.con.register(self._names[id(base)], part)
        for asked in self._layout.asked:
            self._session.con.register(self._names[id(asked)], self._answers(asked, rows, start, end))

    def _answers(self, asked: Asked, rows: pa.Table, start: int, end: int) -> pa.Table:
        assert asked.book is not None
        columns: dict[str, Any] = {name: rows.column(place) for name, place in asked.shown}
        outputs = mentioned_outputs(asked.reference)
        columns.update(zip(outputs, asked.book.columns(asked.slice_ids(start, end), outputs), strict=True))
        return pa.table(columns)

    def text(self) -> str:
        """The query over a slice's answers; asks nothing."""
        return self._rewritten(dry=True)

    def _rewritten(self, *, dry: bool = False) -> str:
        """The slice's query; models that wait for the answers of others are asked now."""
        if not self._layout.chained:
            return self._text
        return Rewriter(self._session, self._text, self._asker, dry=dry).run()

    def close(self, error: bool = False) -> None:
        """Give everything back; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._spool is not None:
            self._spool.close()
        for name in self._names.values():
            self._session.unregister_later(name)
        self._asker.finish(error)
