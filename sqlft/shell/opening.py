"""A database opened for the shell: its connection, what it tells wired to the screen, Ctrl-C to what runs on it."""

from __future__ import annotations

from pathlib import Path

import duckdb

from sqlft.catalog.store import Catalog
from sqlft.connection import Connection, connect, folder_of
from sqlft.errors import NotFound
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen

SETTINGS = (
    "python_enable_replacements = false",  # a variable of the shell's code is no table
    "enable_progress_bar = true",  # without it query_progress says nothing
    "enable_progress_bar_print = false",
)


def open_database(screen: Screen, runner: Runner, database: str, read_only: bool = False) -> Connection:
    """The database with its models; DatabaseLocked, with what can be done without it, while another process has it."""
    live = screen.piece if screen.shows_pieces else None
    return _wired(screen, runner, connect(database, read_only, warn=screen.warn, progress=runner.tick, piece=live))


def open_catalog(screen: Screen, runner: Runner, database: str) -> Connection:
    """The models of a database without its tables, which another process may have open; NotFound."""
    folder = folder_of(database)
    if not folder.exists() and not Path(database).exists() and database != ":memory:":
        raise NotFound(f"There is no file {database}.", "Name the database: -d app.duckdb")
    con = Connection(duckdb.connect(), Catalog(folder), warn=screen.warn, progress=runner.tick)
    return _wired(screen, runner, con)


def _wired(screen: Screen, runner: Runner, con: Connection) -> Connection:
    con.session.tell = screen.note
    runner.interrupt, runner.percent = con.interrupt, con.session.con.query_progress
    for setting in SETTINGS:
        con.session.con.execute(f"SET {setting}")
    return con
