"""Rows that wait for the answers of models: in memory, or in a file where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import duckdb
import pyarrow as pa

from sqlft.errors import Cancelled, DataError
from sqlft.sql.names import quote_name

BATCH_ROWS = 16384
MAX_MEMORY_BYTES = 32 * 1024 * 1024
"""Bytes above which rows go to a file."""


class Spool:
    """Record batches in order; rows are read back by `slice`."""

    def __init__(
        self,
        reader: pa.RecordBatchReader,
        each: Callable[[pa.RecordBatch, int], pa.RecordBatch],
        interrupted: Callable[[], bool],
    ) -> None:
        """Read record batches to their end; `each` sees every batch and its first row once, and says what to keep."""
        self._batches: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self.rows = 0
        self._file: _SpoolFile | None = None
        self.schema: pa.Schema = each(pa.RecordBatch.from_pylist([], reader.schema), 0).schema
        try:
            size = 0
            for batch in reader:
                if interrupted():
                    raise Cancelled("Interrupted.", "Run it again.")
                if batch.num_rows:
                    kept = each(batch, self.rows)
                    size += kept.nbytes
                    self._append(kept, batch.num_rows, size)
        except OSError as e:
            self.close()
            raise DataError(
                f"The rows of the query could not be kept on disk: {e}.",
                f"Free some space in {tempfile.gettempdir()}, or set TMPDIR to a larger disk.",
            ) from e
        except BaseException:
            self.close()
            raise
        if self._file is not None:
            self._file.finish()

    def _append(self, batch: pa.RecordBatch, rows: int, size: int) -> None:
        self._starts.append(self.rows)
        self.rows += rows
        self._batches.append(batch)
        if self._file is None and size > MAX_MEMORY_BYTES:
            self._file = _SpoolFile(self.schema)
        if self._file is not None:
            self._file.write(self._batches)
            self._batches.clear()

    def slice(self, start: int, end: int) -> pa.Table:
        """Rows start … end."""
        pieces = []
        ends = [*self._starts[1:], self.rows]
        for i, (first, last) in enumerate(zip(self._starts, ends, strict=False)):
            low, high = max(start, first), min(end, last)
            if low < high:
                batch = self._batches[i] if self._file is None else self._file.batch(i)
                pieces.append(batch.slice(low - first, high - low))
        return pa.Table.from_batches(pieces, self.schema)

    def close(self) -> None:
        """Forget the rows."""
        self._batches = []
        if self._file is not None:
            self._file.close()


class _SpoolFile:
    """An Arrow IPC file in the temporary folder, gone at `close`; read, not mapped, since that counts as memory."""

    def __init__(self, schema: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile(prefix="sqlft-", suffix=".arrow")  # noqa: SIM115  # until close()
        self._writer = pa.ipc.new_file(self._file, schema)
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        self._last: tuple[int, pa.RecordBatch] | None = None

    def write(self, batches: list[pa.RecordBatch]) -> None:
        """Append batches."""
        for batch in batches:
            self._writer.write_batch(batch)

    def finish(self) -> None:
        """No more to write."""
        self._writer.close()
        self._reader = pa.ipc.open_file(self._file)

    def batch(self, i: int) -> pa.RecordBatch:
        """Batch number i; the last one read is kept."""
        assert self._reader is not None
        if self._last is None or self._last[0] != i:
            self._last = None
            self._last = (i, self._reader.get_batch(i))
        return self._last[1]

    def close(self) -> None:
        """Remove the file."""
        self._last = self._reader = None
        self._file.close()


def make_relation(con: duckdb.DuckDBPyConnection, table: pa.Table) -> duckdb.DuckDBPyRelation:
    """An Arrow table as a relation, names that stand twice as they are."""
    names = table.column_names
    if len({n.lower() for n in names}) == len(names):
        return con.from_arrow(table)
    plain = table.rename_columns([f"c{k}" for k in range(len(names))])
    return con.from_arrow(plain).project(", ".join(f"c{k} AS {quote_name(n)}" for k, n in enumerate(names)))
