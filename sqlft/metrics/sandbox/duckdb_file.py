"""A DuckDB database that a query can do nothing but read."""

from __future__ import annotations

import threading
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlft.metrics.sandbox.results import Row
from sqlft.metrics.sandbox.sqlite_file import bounded

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "access_mode": "read_only",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "512MB",
    "max_temp_directory_size": "0B",
    "threads": "1",
    "lock_configuration": "true",
}
BATCH = 1_000
PLAIN = (bool, int, float, str, bytes, date, datetime, time, UUID, type(None))


class DuckDBFile:
    """A file, opened read-only without any access to others."""

    def __init__(self, path: str) -> None:
        import duckdb

        self._con = duckdb.connect(path, config=CONFIG)

    def run(self, query: str, timeout: float, most: int, most_bytes: int | None = None) -> list[Row]:
        """All rows; TooMuch beyond `most` rows or `most_bytes` bytes of texts, else whatever DuckDB raises."""
        import duckdb

        statements = self._con.extract_statements(query)
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise ValueError("not one SELECT")
        clock = threading.Timer(timeout, self._con.interrupt)
        clock.daemon = True
        clock.start()
        try:
            return bounded(self._rows(statements[0]), most, most_bytes)
        finally:
            clock.cancel()

    def _rows(self, statement: Any) -> Any:
        self._con.execute(statement)
        while batch := self._con.fetchmany(BATCH):
            yield from (tuple(_plain(value) for value in row) for row in batch)

    def close(self) -> None:
        """Let go of the file."""
        self._con.close()


def _plain(value: Any) -> Any:
    """A value that compares by `==` and has a hash; a DECIMAL is the DOUBLE it stands for."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(inner) for inner in value)
    if isinstance(value, dict):
        return tuple((str(key), _plain(inner)) for key, inner in value.items())
    return str(value)
