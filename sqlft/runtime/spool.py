"""Rows of a query, kept in memory while they are few and in a memory-mapped file when they are many."""

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
BATCH = 65_536


class Spool:
    """Record batches in order; random access by row with `slice`."""

    def __init__(
        self, relation: Any, each: Callable[[pa.RecordBatch, int], None], interrupted: Callable[[], bool]
    ) -> None:
        """Read a DuckDB relation to its end; `each` sees every batch and its first row once."""
        self._batches: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self.rows = 0
        self._file: _File | None = None
        reader = relation.to_arrow_reader(BATCH)
        self.schema: pa.Schema = reader.schema
        size = 0
        try:
            for batch in reader:
                if interrupted():
                    raise Cancelled("Interrupted.", "Run it again.")
                if batch.num_rows == 0:
                    continue
                each(batch, self.rows)
                self._starts.append(self.rows)
                self.rows += batch.num_rows
                size += batch.nbytes
                self._batches.append(batch)
                if self._file is None and size > IN_MEMORY:
                    self._file = _File(self.schema)
                if self._file is not None:
                    self._file.take(self._batches)
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
            self._batches = self._file.batches()

    def slice(self, start: int, end: int) -> pa.Table:
        """Rows start … end."""
        pieces = []
        for first, batch in zip(self._starts, self._batches, strict=True):
            low, high = max(start, first), min(end, first + batch.num_rows)
            if low < high:
                pieces.append(batch.slice(low - first, high - low))
            if first >= end:
                break
        return pa.Table.from_batches(pieces, self.schema)

    def close(self) -> None:
        """Forget the rows."""
        self._batches = []
        if self._file is not None:
            self._file.close()


class _File:
    """An Arrow IPC file in the temporary folder."""

    def __init__(self, schema: pa.Schema) -> None:
        handle, name = tempfile.mkstemp(prefix="sqlft-", suffix=".arrow")
        os.close(handle)
        self._path = Path(name)
        self._writer: Any = pa.ipc.new_file(name, schema)
        self._map: Any = None

    def take(self, batches: list[pa.RecordBatch]) -> None:
        """Write what is in the list, in order, and empty it."""
        for batch in batches:
            self._writer.write_batch(batch)
        batches.clear()

    def batches(self) -> list[pa.RecordBatch]:
        """All batches, mapped; the file vanishes with the last of them."""
        self._writer.close()
        self._writer = None
        self._map = pa.memory_map(str(self._path))
        reader = pa.ipc.open_file(self._map)
        found = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        with contextlib.suppress(OSError):  # still open elsewhere on Windows: close() does it
            self._path.unlink()
        return found

    def close(self) -> None:
        """Remove the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer = None
        self._map = None
        self._path.unlink(missing_ok=True)
