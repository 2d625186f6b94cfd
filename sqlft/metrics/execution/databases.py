"""SQLite and DuckDB databases that a query can do nothing but read, within bounds of time and memory."""

from __future__ import annotations

import math
import sqlite3
import sys
import threading
import time
from collections.abc import Hashable, Iterable, Iterator
from datetime import date, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from sqlft.metrics.execution.queries import Row, is_reading

if TYPE_CHECKING:
    import duckdb

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


class QueryDatabase(Protocol):
    """A database that can be read."""

    def run(self, query: str, timeout: float, most: int, most_bytes: int | None = None) -> list[Row]:
        """All rows."""

    def close(self) -> None:
        """Close it."""


def read_bounded(rows: Iterable[Row], most: int, most_bytes: int | None) -> list[Row]:
    """The rows of an iterable; ResultTooLarge beyond `most` rows or `most_bytes` bytes of texts."""
    result: list[Row] = []
    size = 0
    for row in rows:
        result.append(row)
        size += measure_row(row)
        if len(result) > most or (most_bytes is not None and size > most_bytes):
            raise ResultTooLarge
    return result


def measure_row(row: Row) -> int:
    """Bytes or letters of a row's texts."""
    return sum(len(value) for value in row if isinstance(value, (str, bytes)))


class SqliteFile:
    """A file, opened so that it cannot be changed, or a database in memory that was filled before."""

    def __init__(self, path: str | None = None, filled: sqlite3.Connection | None = None) -> None:
        # immutable: SQLite takes no lock and looks for no other file; those with a log are copied before
        uri = f"{Path(path or '').absolute().as_uri()}?mode=ro&immutable=1"
        self._con = filled or sqlite3.connect(uri, uri=True, isolation_level=None)
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
        """Close the file."""
        self._con.close()


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action in ALLOWED_ACTIONS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "access_mode": "read_only",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "512MB",
    "temp_directory": "",
    "threads": "1",
    "lock_configuration": "true",
}
BATCH_ROWS = 1_000
PLAIN_TYPES = (bool, int, float, str, bytes, date, datetime, time_of_day, UUID, type(None))


class DuckDBFile:
    """A file, opened read-only without any access to others."""

    def __init__(self, path: str) -> None:
        import duckdb

        sys.modules["pytz"] = _build_pytz_stub()
        self._con = duckdb.connect(path, config=CONFIG)

    def run(self, query: str, timeout: float, most: int, most_bytes: int | None = None) -> list[Row]:
        """All rows; ResultTooLarge beyond `most` rows or `most_bytes` bytes of texts, else whatever DuckDB raises."""
        import duckdb

        if "\0" in query:
            raise ValueError("some versions of DuckDB read on, some stop at a NUL")
        statements = self._con.extract_statements(query)
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise ValueError("not one SELECT")
        clock = threading.Timer(timeout, self._con.interrupt)
        clock.daemon = True
        clock.start()
        try:
            return read_bounded(self._rows(statements[0]), most, most_bytes)
        finally:
            clock.cancel()
            clock.join()  # so that it never interrupts the next query

    def _rows(self, statement: duckdb.Statement) -> Iterator[Row]:
        self._con.execute(statement)
        while batch := self._con.fetchmany(BATCH_ROWS):
            yield from (tuple(_to_comparable(value) for value in row) for row in batch)

    def close(self) -> None:
        """Close the file."""
        self._con.close()


class _Utc(tzinfo):
    """UTC in the shape in which DuckDB asks pytz for it."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "UTC"

    def localize(self, when: datetime) -> datetime:
        """That time as UTC."""
        return when.replace(tzinfo=self)


def _build_pytz_stub() -> ModuleType:
    """In place of pytz, with which DuckDB reads a TIMESTAMPTZ: it may not be installed, and only instants matter."""
    module, utc = ModuleType("pytz"), _Utc()
    module.__dict__.update(timezone=lambda name: utc, utc=utc, UTC=utc)
    return module


def _to_comparable(value: object) -> Hashable:
    """A value that compares by `==` and has a hash; a DECIMAL becomes a number."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and math.isnan(value):
        return math.nan  # one object for all, since only that makes it equal to itself, as DuckDB has it
    if isinstance(value, PLAIN_TYPES):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_to_comparable(inner) for inner in value)
    if isinstance(value, dict):
        return tuple((str(key), _to_comparable(inner)) for key, inner in value.items())
    return str(value)
