"""A database opened for the shell: its connection, what it tells wired to the screen, Ctrl-C to what runs on it.

A file that is no database is refused with what to type for it; data files DuckDB opens with a view of their rows.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from sqlft.catalog.files import catalog_folder
from sqlft.catalog.store import Catalog
from sqlft.connection import Connection, connect
from sqlft.errors import CatalogError, NotFound
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.sql.names import quote_text

NAME_IT = "Name the database, or the folder of its models: -d app.duckdb, --catalog folder"
DATA_FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson")
"""DuckDB opens these as databases with a view of their rows."""
SETTINGS = (
    "python_enable_replacements = false",  # a variable of the shell's code is no table
    "enable_progress_bar = true",  # without it query_progress says nothing
    "enable_progress_bar_print = false",
)


class Place(NamedTuple):
    """Where models are: beside a database, or in a folder of their own."""

    database: str = ":memory:"
    catalog: str | None = None

    @property
    def folder(self) -> Path | None:
        """The catalog's folder; None: in memory, where it is no other process's."""
        return catalog_folder(self.database) if self.catalog is None else Path(self.catalog).expanduser()

    @property
    def flag(self) -> str:
        """What the command line says for it."""
        if self.catalog is not None:
            return f" --catalog {self.catalog}"
        return "" if self.folder is None else f" -d {self.database}"

    def existing(self) -> Path:
        """The folder of what another process has made; NotFound."""
        if self.folder is None:
            raise NotFound("Models of a database in memory are seen by their own process only.", f"{NAME_IT}.")
        if not self.folder.exists() and (self.catalog is not None or not Path(self.database).exists()):
            raise NotFound(
                f"There is no {'folder' if self.catalog else 'file'} {self.catalog or self.database}.", f"{NAME_IT}."
            )
        return self.folder


def open_database(screen: Screen, runner: Runner, place: Place, read_only: bool = False) -> Connection:
    """The database with its models; CatalogError for a file that is none, or that another process has open."""
    live = screen.piece if screen.shows_pieces else None
    given: dict[str, Any] = {"warn": screen.warn, "progress": runner.tick, "piece": live, "catalog": place.catalog}
    path = Path(place.database)
    if (is_data(path) or path.suffix.lower() == ".sql") and not path.exists():
        raise NotFound(f"There is no file {path}.", "Check its name. A new database has another ending: app.duckdb")
    try:
        return _wired(screen, runner, connect(place.database, read_only, **given))
    except duckdb.IOException as e:
        if isinstance(e, CatalogError) or "not a valid DuckDB database" not in str(e):
            raise
        raise _no_database(path) from e


def is_data(path: Path) -> bool:
    """Whether it is a file of rows by its name, which DuckDB opens as a database with a view of them."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(DATA_FILES)


def _no_database(path: Path) -> CatalogError:
    """What to type where a file that is no database was named as one."""
    name = shlex.quote(str(path))
    rows = f'"FROM read_csv({quote_text(str(path))})"'
    if path.stat().st_size == 0:
        return CatalogError(f"{path} is empty, and no database.", f"Remove it, and it is made as one: rm {name}")
    if path.suffix.lower() == ".sql":
        return CatalogError(
            f"{path} is a text file of statements, not a DuckDB database.",
            f"Run them: sqlft shell -f {name}, on a database: sqlft app.duckdb -f {name}, in the shell: .read {name}",
        )
    if _is_text(path):
        return CatalogError(
            f"{path} is a text file, not a DuckDB database.",
            f"Run its statements: sqlft shell -f {name}. Read its rows: sqlft {rows}",
        )
    return CatalogError(
        f"{path} is no DuckDB database.",
        "Name one, or a file that is not there yet to make one: sqlft app.duckdb. "
        f'Many other files can be read: sqlft "FROM {quote_text(str(path))}"',
    )


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        return "\0" not in start.decode("utf-8")
    except UnicodeDecodeError as e:
        return e.start > len(start) - 4 and b"\0" not in start  # a character that is cut


def open_catalog(screen: Screen, runner: Runner, place: Place) -> Connection:
    """The models of a database without its tables, which another process may have open; NotFound."""
    con = Connection(duckdb.connect(), Catalog(place.existing()), warn=screen.warn, progress=runner.tick)
    return _wired(screen, runner, con)


def _wired(screen: Screen, runner: Runner, con: Connection) -> Connection:
    con.session.show_notice = screen.note
    runner.interrupt, runner.percent = con.interrupt, con.session.con.query_progress
    for setting in SETTINGS:
        con.session.con.execute(f"SET {setting}")
    return con
