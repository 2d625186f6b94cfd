"""The SQLite file under the catalog: opened when needed, made at the first write, its errors explained.

It knows nothing of models.  One connection per process behind a lock: a catalog call takes microseconds, and
several processes meet in the file, not here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.catalog.schema import MIGRATIONS, migrate, read_schema_version
from sqlft.errors import CatalogError

if TYPE_CHECKING:
    import sqlite3

BUSY_SECONDS = 10.0
_inherited_connections: list[sqlite3.Connection] = []
"""Connections a fork left us: SQLite forbids to use or close them in the child."""


class CatalogDatabase:
    """catalog.sqlite: `fetch_rows` reads (nothing where there is no file yet), `write` is one transaction."""

    def __init__(self, path: Path, read_only: bool = False, untouched: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._untouched = untouched
        self._path_text = str(path)
        self._lock = threading.RLock()
        self._con: sqlite3.Connection | None = None
        self._pid = 0
        self._is_synchronous = True
        self._data_version: int | None = None

    def fetch_rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock, self._translate_errors():
            con = self._open(create=False)
            return [] if con is None else con.execute(sql, values).fetchall()

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction that other writers wait for; it outlives a power cut if `durable`, a crash in any case."""
        with self._lock, self._translate_errors():
            self.require_writing()
            con = self._open(create=True)
            assert con is not None
            if con.in_transaction:
                yield con
                return
            if self._is_synchronous != durable:
                con.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._is_synchronous = durable
            con.execute("BEGIN IMMEDIATE")
            try:
                yield con
                con.execute("COMMIT")
            except BaseException:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                raise

    def require_writing(self) -> None:
        """CatalogError if it was opened read-only."""
        if self.read_only:
            raise CatalogError(
                f"The catalog {self.path} was opened read-only, with its database.",
                "Open the database to write: sqlft.connect without read_only = True, sqlft shell without --readonly.",
            )

    def has_changed(self) -> bool:
        """Whether another connection or process has written since the last time this was asked."""
        if self._con is None and not os.path.exists(
            self._path_text
        ):  # asked before each statement: no Path, no context
            return False
        with self._lock, self._translate_errors():
            con = self._open(create=False)
            seen = None if con is None else con.execute("PRAGMA data_version").fetchone()[0]
            before, self._data_version = self._data_version, seen
            return bool(before != seen)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            if self._con is not None and self._pid == os.getpid():
                self._con.close()
            self._con = self._data_version = None

    def _open(self, *, create: bool) -> sqlite3.Connection | None:
        if self._con is not None:
            if self._pid == os.getpid():
                return self._con
            _inherited_connections.append(self._con)
            self._con = self._data_version = None
        if not (create or self.path.exists()):
            return None
        self._con = self._connect_reading() if self.read_only else self._connect_writing()
        self._pid = os.getpid()
        self._is_synchronous = True
        return self._con

    def _connect_writing(self) -> sqlite3.Connection | None:
        import sqlite3

        existed = self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            con = _connect(self.path, "rwc")
            try:
                con.execute("PRAGMA journal_mode = WAL")
                con.execute("PRAGMA synchronous = FULL")
                con.execute("PRAGMA foreign_keys = ON")
                migrate(con)
            except BaseException:
                con.close()
                raise
            return con
        except sqlite3.OperationalError as e:
            if existed and _is_read_only_error(e):
                return self._connect_reading()
            raise

    def _connect_reading(self) -> sqlite3.Connection | None:
        import sqlite3

        is_written = self.path.with_name(f"{self.path.name}-wal").exists()
        con = _connect(self.path, "ro&immutable=1" if self._untouched and not is_written else "ro")
        try:
            number = read_schema_version(con)
        except sqlite3.OperationalError:
            # A WAL file in a folder where nothing can be made needs immutable=1; no one can be writing to it there.
            con.close()
            con = _connect(self.path, "ro&immutable=1")
            number = read_schema_version(con)
        if number == len(MIGRATIONS):
            return con
        con.close()
        if number == 0:
            return None
        raise CatalogError(
            f"The catalog {self.path} was made by an older sqlft and cannot be brought up to date here.",
            "Open it once where it can be written.",
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except sqlite3.Error as e:
            raise _build_catalog_error(e, self.path) from e
        except OSError as e:
            raise build_write_error(self.path, e.strerror or str(e)) from e
        except UnicodeEncodeError as e:
            raise CatalogError(f"A name or text cannot be kept: {e}.", "Write it in valid Unicode.") from e


def insert_row(con: sqlite3.Connection, table: str, columns: Mapping[str, object], *, or_replace: bool = False) -> None:
    """Keep a row; `or_replace` in place of one with the same key."""
    names = ", ".join(f'"{name}"' for name in columns)
    verb = "INSERT OR REPLACE" if or_replace else "INSERT"
    con.execute(f"{verb} INTO {table} ({names}) VALUES ({format_placeholders(columns)})", list(columns.values()))


def format_placeholders(values: Sized) -> str:
    """`?, ?, ?` for so many values."""
    return ", ".join("?" * len(values))


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    import sqlite3

    uri = f"{path.absolute().as_uri()}?mode={mode}"
    con = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    con.row_factory = sqlite3.Row
    return con


def _is_read_only_error(error: sqlite3.Error) -> bool:
    text = str(error)
    return "readonly" in text or "unable to open" in text


def _build_catalog_error(error: sqlite3.Error, path: Path) -> CatalogError:
    text = str(error)
    if _is_read_only_error(error):
        return build_write_error(path, text)
    if "full" in text or "disk I/O" in text:
        return build_write_error(path, f"no space ({text})")
    if "locked" in text or "busy" in text:
        return CatalogError(
            f"The catalog {path} is being written by another process for more than {BUSY_SECONDS:.0f} s.", "Try again."
        )
    if "not a database" in text or "malformed" in text:
        return CatalogError(
            f"The catalog {path} is damaged: {text}.",
            "Put back a copy of it, or move it away to start with an empty one.",
        )
    return CatalogError(f"The catalog {path}: {text}.", "Check that file and its folder.")


def build_write_error(path: Path, why: str) -> CatalogError:
    """The error for a file or folder of the catalog that cannot be written, or for a disk that is full."""
    if "space" in why or "quota" in why.lower():
        return CatalogError(f"{path} cannot be written: {why}.", "Free some disk space and try again.")
    return CatalogError(
        f"{path} cannot be written: {why}.",
        "Give yourself the right to write to its folder, or open a copy of the database in another one.",
    )
