"""Rows of a query, kept in memory while they are few and in a file when they are many."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from sqlft.errors import Cancelled, DataError

IN_MEMORY = 32 * 1024 * 1024
"""Bytes above which rows go to a file."""
BATCH = 16384


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
        self._file: _File | None = None
        self.schema: pa.Schema = each(pa.RecordBatch.from_pylist([], reader.schema), 0).schema
        try:
            size = 0
            for batch in reader:
                if interrupted():
                    raise Cancelled("Interrupted.", "Run it again.")
                if batch.num_rows:
                    kept = each(batch, self.rows)
                    size += kept.nbytes
                    self._take(kept, batch.num_rows, size)
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

    def _take(self, batch: pa.RecordBatch, rows: int, size: int) -> None:
        self._starts.append(self.rows)
        self.rows += rows
        self._batches.append(batch)
        if self._file is None and size > IN_MEMORY:
            self._file = _File(self.schema)
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
                pieces.append(self._batch(i).slice(low - first, high - low))
        return pa.Table.from_batches(pieces, self.schema)

    def _batch(self, i: int) -> pa.RecordBatch:
        return self._batches[i] if self._file is None else self._file.batch(i)

    def close(self) -> None:
        """Forget the rows."""
        self._batches = []
        if self._file is not None:
            self._file.close()


class _File:
    """An Arrow IPC file in the temporary folder; read, not mapped, so that it does not count as memory."""

    def __init__(self, schema: pa.Schema) -> None:
        handle, name = tempfile.mkstemp(prefix="sqlft-", suffix=".arrow")
        os.close(handle)
        self._path = Path(name)
        self._writer: Any = pa.ipc.new_file(name, schema)
        self._reader: Any = None
        self._last: tuple[int, pa.RecordBatch] | None = None

    def write(self, batches: list[pa.RecordBatch]) -> None:
        """Append batches."""
        for batch in batches:
            self._writer.write_batch(batch)

    def finish(self) -> None:
        """No more to write; the file vanishes when it is let go of."""
        self._writer.close()
        self._writer = None
        self._reader = pa.ipc.open_file(pa.OSFile(str(self._path)))
        with contextlib.suppress(OSError):  # still open on Windows: close() does it
            self._path.unlink()

    def batch(self, i: int) -> pa.RecordBatch:
        """Batch number i; the last one read is kept."""
        if self._last is None or self._last[0] != i:
            self._last = None
            self._last = (i, self._reader.get_batch(i))
        return self._last[1]

    def close(self) -> None:
        """Remove the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer = None
        self._last = self._reader = None
        self._path.unlink(missing_ok=True)
