"""A database opened for the shell: its connection, what it tells wired to the screen, Ctrl-C to what runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from sqlft.catalog.store import Catalog
from sqlft.connection import Connection, connect, folder_of
from sqlft.errors import NotFound
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen

NAME_IT = "Name the database, or the folder of its models: -d app.duckdb, --catalog folder"
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
        return folder_of(self.database) if self.catalog is None else Path(self.catalog).expanduser()

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
    """The database with its models; DatabaseLocked, with what can be done without it, while another process has it."""
    live = screen.piece if screen.shows_pieces else None
    given: dict[str, Any] = {"warn": screen.warn, "progress": runner.tick, "piece": live, "catalog": place.catalog}
    return _wired(screen, runner, connect(place.database, read_only, **given))


def open_catalog(screen: Screen, runner: Runner, place: Place) -> Connection:
    """The models of a database without its tables, which another process may have open; NotFound."""
    con = Connection(duckdb.connect(), Catalog(place.existing()), warn=screen.warn, progress=runner.tick)
    return _wired(screen, runner, con)


def _wired(screen: Screen, runner: Runner, con: Connection) -> Connection:
    con.session.tell = screen.note
    runner.interrupt, runner.percent = con.interrupt, con.session.con.query_progress
    for setting in SETTINGS:
        con.session.con.execute(f"SET {setting}")
    return con
