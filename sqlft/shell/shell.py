"""The shell without its prompt: opens a database, runs statements and dot-commands, writes their results.

A file that is no database is refused with what to type for it; data files DuckDB opens with a view of their rows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from traceback import format_exception
from typing import NamedTuple

import duckdb

from sqlft.catalog.files import catalog_folder
from sqlft.catalog.store import Catalog
from sqlft.connection import Connection, connect
from sqlft.errors import Cancelled, CatalogError, NotFound, SqlftError
from sqlft.shell.output.modes import MODES, Limits
from sqlft.shell.output.result import KeptRows, Result, open_result, to_rows
from sqlft.shell.output.table import Rows, TableStyle, draw_table
from sqlft.shell.reading import ScriptItem
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.sql.names import quote_text

_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*|/\*.*?\*/)*(\w+|\()", re.DOTALL)


class Quit(Exception):  # not an error: .quit
    """Leave the shell."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C stopped a statement, and that has been shown."""


class Failed(Exception):  # its message has been shown
    """A statement failed, and its error has been written."""


def format_error(error: BaseException) -> str:
    """An error as the person sees it: DuckDB's own as it is; whatever should not have happened with its traceback."""
    if isinstance(error, OSError):
        return f"Error: {error.strerror or error}: the output cannot be written."
    if not isinstance(error, duckdb.Error):
        return "".join(format_exception(error)) + "This is a bug in sqlft: please report it with the lines above."
    ours = isinstance(error, SqlftError) and not isinstance(error, Cancelled)
    return f"Error: {error}" if ours else str(error)


HOW_TO_NAME_DATABASE = "Name the database, or the folder of its models: -d app.duckdb, --catalog folder"
DATA_FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson")
"""DuckDB opens these as databases with a view of their rows."""
SETTINGS = (
    "python_enable_replacements = false",  # a variable of the shell's code is no table
    "enable_progress_bar = true",  # without it query_progress says nothing
    "enable_progress_bar_print = false",
)


class Location(NamedTuple):
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
            raise NotFound(
                "Models of a database in memory are seen by their own process only.", f"{HOW_TO_NAME_DATABASE}."
            )
        if not self.folder.exists() and (self.catalog is not None or not Path(self.database).exists()):
            raise NotFound(
                f"There is no {'folder' if self.catalog else 'file'} {self.catalog or self.database}.",
                f"{HOW_TO_NAME_DATABASE}.",
            )
        return self.folder


def open_database(screen: Screen, runner: Runner, location: Location, read_only: bool = False) -> Connection:
    """The database with its models; CatalogError for a file that is none, or that another process has open."""
    piece = screen.show_answer_part if screen.shows_answer_parts else None
    path = Path(location.database)
    if (is_data_file(path) or path.suffix.lower() == ".sql") and not path.exists():
        raise NotFound(f"There is no file {path}.", "Check its name. A new database has another ending: app.duckdb")
    try:
        con = connect(
            location.database, read_only, warn=screen.warn, progress=runner.tick, piece=piece, catalog=location.catalog
        )
        return _configure_connection(screen, runner, con)
    except duckdb.IOException as e:
        if isinstance(e, CatalogError) or "not a valid DuckDB database" not in str(e):
            raise
        raise _not_a_database_error(path) from e


def is_data_file(path: Path) -> bool:
    """Whether it is a file of rows by its name, which DuckDB opens as a database with a view of them."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(DATA_FILES)


def _not_a_database_error(path: Path) -> CatalogError:
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


def open_catalog(screen: Screen, runner: Runner, location: Location) -> Connection:
    """The models of a database without its tables, which another process may have open; NotFound."""
    con = Connection(duckdb.connect(), Catalog(location.existing()), warn=screen.warn, progress=runner.tick)
    return _configure_connection(screen, runner, con)


def _configure_connection(screen: Screen, runner: Runner, con: Connection) -> Connection:
    con.session.show_notice = screen.note
    runner.interrupt, runner.percent = con.interrupt, con.session.con.query_progress
    for setting in SETTINGS:
        con.session.con.execute(f"SET {setting}")
    return con


def describe_location(location: Location) -> str:
    """What is open, as a person reads it."""
    where = "in memory" if location.database == ":memory:" else location.database
    where += f", models in {location.catalog}" if location.catalog else ""
    return f"{where}; its rows: FROM file;" if is_data_file(Path(location.database)) else where


@dataclass
class Shell:
    """One session; `is_interactive` if a person reads along."""

    screen: Screen
    runner: Runner
    con: Connection
    run_command: Callable[[Shell, str], None]
    """Runs a dot-command."""
    location: Location = Location()  # noqa: RUF009  # a tuple
    is_interactive: bool = False
    mode: str = "table"
    timer: bool = False
    limits: Limits = field(default_factory=Limits)
    last: KeptRows | None = None
    """What was read of the last table."""
    last_statement: str = ""
    """The last statement."""

    def run(self, pieces: Iterable[ScriptItem], source: str = "") -> None:
        """Run one after the other; Failed at the first error, which has been shown with its place in `source`."""
        for piece in pieces:
            try:
                if self.runner.is_stopping:
                    raise KeyboardInterrupt
                self._run(piece)
            except (Quit, Failed, Stopped, BrokenPipeError):
                raise
            except KeyboardInterrupt as e:
                self.screen.error("Interrupted.")
                raise Stopped from e
            except Exception as e:
                self.screen.error((f"{source}, line {piece.line}: " if source else "") + format_error(e))
                raise Stopped if isinstance(e, Cancelled) and self.runner.is_stopping else Failed from e
            finally:
                self.screen.flush()

    def run_statement(self, text: str, mode: str | None = None, is_ours: bool = False) -> None:
        """Run one statement and write its result; `is_ours` if the shell has written it."""
        started = perf_counter()
        self.screen.streamed = ""
        try:
            self.runner.run(lambda: self._write(text, mode or self._mode(), is_ours))
        finally:
            if self.timer:
                self.screen.flush()
                self.screen.note(f"Run Time (s): real {perf_counter() - started:.3f}")

    def _mode(self) -> str:
        """How results are written now: a file's ending says so, unless a mode was chosen."""
        return self.screen.file_mode or self.mode if self.mode == "table" else self.mode

    def query(self, text: str) -> list[tuple[str, ...]]:
        """Rows of texts for the shell's own use."""
        return self.con.session.con.sql(text).fetchall()

    def _run(self, piece: ScriptItem) -> None:
        if piece.is_command:
            self.run_command(self, piece.text)
            return
        self.last_statement = piece.text
        try:
            self.run_statement(piece.text)
        finally:
            self.screen.end_once()

    def _write(self, text: str, mode: str, is_ours: bool) -> None:
        with open_result(self.con, text, is_ours) as result:
            if result is None:
                return
            first = _FIRST_WORD.match(text)
            if not result.is_status(first[1].upper() if first else ""):
                self._write_rows(result, mode)
            elif self.is_interactive and self.screen.is_terminal and (changed := result.changed_rows()) is not None:
                self.screen.note(f"({changed:,} row{'' if changed == 1 else 's'})")

    def _write_rows(self, result: Result, mode: str) -> None:
        def write(text: str) -> None:
            if mode != "table" or not self._is_on_screen(result.kept):
                self.runner.write(text)

        if mode == "table" and result.is_plan:
            for batch in result.rows():
                write("".join((row[1] or "").rstrip("\n") + "\n" for row in batch))
        else:
            MODES[mode](result, write, self._table_style(), self.limits)
            self.last = result.kept if result.kept.read else self.last

    def _is_on_screen(self, kept: KeptRows) -> bool:
        """Whether the result is one answer, which was shown whole while it was written."""
        if not self.screen.streamed or kept.count != 1 or len(kept.columns) != 1:
            return False
        return [row for batch in kept.read for row in to_rows(batch)] == [(self.screen.streamed,)]

    def show_again(self, kept: KeptRows) -> None:
        """A table that was shown, nothing of it cut."""
        rows = [row for batch in kept.read for row in to_rows(batch)]
        style = replace(self._table_style(), width=None)
        self.screen.write("".join(line + "\n" for line in draw_table(kept.columns, Rows(rows, (), len(rows)), style)))

    def _table_style(self) -> TableStyle:
        style = self.screen.table_style
        width = self.limits.width or style.width
        return replace(style, width=width, null=style.null if self.limits.null is None else self.limits.null)
