"""`sqlft.connect` and `sqlft.attach`: a database, the catalog beside it, and who watches its statements."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb

from sqlft.catalog.files import catalog_folder
from sqlft.catalog.store import Catalog
from sqlft.catalog.temporary import TemporaryCatalog, get_temporary_catalog
from sqlft.connection.connection import Connection, close_all, kill_training
from sqlft.errors import DatabaseLocked, SqlftError
from sqlft.session import Tick

atexit.register(close_all)


def connect(
    database: str | Path = ":memory:",
    read_only: bool = False,
    config: dict[str, str | bool | int | float | list[str]] | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[Tick], None] | bool | None = None,
    piece: Callable[[str], None] | None = None,
    catalog: str | Path | None = None,
) -> Connection:
    """Open a DuckDB database with models: they are kept beside its file, those of one in memory until it is closed.

    `catalog` is another folder for them, which lasts.
    `progress = True` shows a bar on stderr, which notebooks have unless it is False; a function gets a Tick instead.

    >>> with connect() as con:
    ...     _ = con.execute("CREATE MODEL m PREDICT answer USING engine = 'echo'")
    ...     con.execute("SELECT answer FROM m WHERE content = 'Hello'").fetchall()
    [('Hello',)]
    """
    try:
        con = duckdb.connect(str(database), read_only, config or {})
    except duckdb.IOException as e:
        if "lock on file" not in str(e):
            raise
        raise DatabaseLocked.from_duckdb(str(database), e) from e
    folder = catalog_folder(str(database)) if catalog is None else Path(catalog).expanduser()
    opened = _make_temporary_catalog() if folder is None else Catalog(folder, read_only)
    return _make_connection(con, opened, progress, warn, piece)


def attach(
    con: duckdb.DuckDBPyConnection,
    *,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[Tick], None] | bool | None = None,
    piece: Callable[[str], None] | None = None,
    catalog: str | Path | None = None,
) -> Connection:
    """Models on an open DuckDB connection, in its transaction; they are kept beside its file, or in `catalog`.

    Those of a database in memory are there as long as that connection.

    >>> con = attach(duckdb.connect())
    >>> con.execute("CREATE TABLE t AS SELECT 42 AS x").execute("FROM t").fetchall()
    [(42,)]
    """
    if isinstance(con, Connection):
        return con
    if not isinstance(con, duckdb.DuckDBPyConnection):
        raise _not_a_connection_error(con)
    rows = con.sql("SELECT path FROM duckdb_databases() WHERE NOT internal ORDER BY database_oid LIMIT 1").fetchall()
    path = rows[0][0] if rows and rows[0][0] else ":memory:"
    folder = catalog_folder(path) if catalog is None else Path(catalog).expanduser()
    opened = get_temporary_catalog(con, kill_training) if folder is None else Catalog(folder)
    return _make_connection(con, opened, progress, warn, piece, owns=False)


def _make_temporary_catalog() -> TemporaryCatalog:
    catalog = TemporaryCatalog(kill_training)
    atexit.unregister(close_all)
    atexit.register(close_all)  # before the folder is deleted: what was registered last goes first
    return catalog


def _not_a_connection_error(value: object) -> SqlftError:
    """The error where attach was given something else, most often a file's name."""
    file = repr(str(value)) if isinstance(value, (str, Path)) else "'app.duckdb'"
    return SqlftError(
        f"sqlft.attach takes an open DuckDB connection, and this is a {type(value).__name__}.",
        f"Open the file: sqlft.connect({file}). Or pass a connection: sqlft.attach(duckdb.connect({file})).",
    )


def _make_connection(
    con: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    progress: Callable[[Tick], None] | bool | None,
    warn: Callable[[str], None] | None,
    piece: Callable[[str], None] | None,
    owns: bool = True,
) -> Connection:
    if callable(progress):
        return Connection(con, catalog, warn=warn, progress=progress, piece=piece, owns=owns)
    if progress or "IPython" in sys.modules:
        from sqlft.connection.progress import ConnectionWithProgress, make_display

        if (display := make_display(progress)) is not None:
            return ConnectionWithProgress(display, con, catalog, warn=warn, piece=piece, owns=owns)
    return Connection(con, catalog, warn=warn, piece=piece, owns=owns)
