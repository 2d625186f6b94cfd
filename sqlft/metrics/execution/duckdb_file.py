"""A DuckDB database that a query can do nothing but read."""

from __future__ import annotations

import math
import sys
import threading
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import UUID

from sqlft.metrics.execution.results import Row
from sqlft.metrics.execution.sqlite_file import read_bounded

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
PLAIN_TYPES = (bool, int, float, str, bytes, date, datetime, time, UUID, type(None))


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

    def _rows(self, statement: Any) -> Any:
        self._con.execute(statement)
        while batch := self._con.fetchmany(BATCH_ROWS):
            yield from (tuple(_to_comparable(value) for value in row) for row in batch)

    def close(self) -> None:
        """Let go of the file."""
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


def _to_comparable(value: Any) -> Any:
    """A value that compares by `==` and has a hash; a DECIMAL is the DOUBLE it stands for."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if value != value:
        return math.nan  # one object for all, since only that makes it equal to itself, as DuckDB has it
    if isinstance(value, PLAIN_TYPES):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_to_comparable(inner) for inner in value)
    if isinstance(value, dict):
        return tuple((str(key), _to_comparable(inner)) for key, inner in value.items())
    return str(value)
