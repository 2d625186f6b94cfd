"""A SQLite database that a query can do nothing but read."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from sqlft.metrics.execution.queries import is_reading
from sqlft.metrics.execution.results import Row

MAX_HEAP_BYTES = 256 << 20
"""Bytes that SQLite may allocate."""
MAX_VALUE_BYTES = 32 << 20
"""Bytes of one value."""
STEPS_PER_CHECK = 20_000
"""Instructions of SQLite's machine between two looks at the clock."""
ALLOWED_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fsdir", "zipfile", "lsdir", "fts3_tokenizer"}


class ResultTooLarge(Exception):
    """More rows or bytes than may be read."""


class SqliteFile:
    """A file, opened so that it cannot be changed, or a database in memory that was filled before."""

    def __init__(self, path: str | None = None, filled: sqlite3.Connection | None = None) -> None:
        self._con = filled or sqlite3.connect(_build_uri(Path(path or "")), uri=True, isolation_level=None)
        self._deadline = 0.0
        con = self._con
        con.text_factory = lambda raw: raw.decode(errors="ignore")
        con.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")
        con.execute("PRAGMA temp_store = MEMORY")
        con.execute("PRAGMA query_only = ON")
        con.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        con.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        con.execute("SELECT count(*) FROM sqlite_master").fetchall()
        con.set_authorizer(_authorize)
        con.set_progress_handler(lambda: time.monotonic() > self._deadline, STEPS_PER_CHECK)

    def run(self, query: str, timeout: float, most: int, most_bytes: int | None = None) -> list[Row]:
        """All rows; ResultTooLarge beyond `most` rows or `most_bytes` bytes of texts, else whatever SQLite raises."""
        if not is_reading(query):
            raise ValueError("not one SELECT")
        self._deadline = time.monotonic() + timeout
        cursor = self._con.execute(query)
        try:
            return read_bounded(cursor, most, most_bytes)
        finally:
            cursor.close()

    def reverse_unordered(self, on: bool) -> None:
        """Let rows that no ORDER BY orders come the other way round, which shows what a query leaves open."""
        self._con.set_authorizer(None)
        self._con.execute(f"PRAGMA reverse_unordered_selects = {int(on)}")
        self._con.set_authorizer(_authorize)

    def close(self) -> None:
        """Let go of the file."""
        self._con.close()


def read_bounded(rows: object, most: int, most_bytes: int | None) -> list[Row]:
    """The rows of an iterable, ResultTooLarge beyond `most` rows or `most_bytes` bytes of texts."""
    found: list[Row] = []
    size = 0
    for row in rows:  # type: ignore[attr-defined]
        found.append(row)
        size += measure_row(row)
        if len(found) > most or (most_bytes is not None and size > most_bytes):
            raise ResultTooLarge
    return found


def measure_row(row: Row) -> int:
    """Bytes or letters of a row's texts."""
    return sum(len(value) for value in row if isinstance(value, (str, bytes)))


def _build_uri(path: Path) -> str:
    """Immutable: SQLite takes no lock and looks for no other file; those with a log are copied before."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action in ALLOWED_ACTIONS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
