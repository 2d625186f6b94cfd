"""The shell without its prompt: runs statements and dot-commands, writes what they give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from time import perf_counter
from traceback import format_exception
from typing import Any

import duckdb

from sqlft.connection import Connection
from sqlft.errors import Cancelled, SqlftError
from sqlft.shell.modes import MODES, Limits
from sqlft.shell.opening import Place
from sqlft.shell.reading import Piece
from sqlft.shell.result import Kept, Result, open_result, rows_of
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.shell.table import Look, Rows, draw

_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*|/\*.*?\*/)*(\w+|\()", re.DOTALL)


class Quit(Exception):  # not an error: .quit
    """Leave the shell."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C stopped a statement, and that has been said."""


class Failed(Exception):  # its message has been shown
    """A statement failed, and its error has been written."""


@dataclass
class Shell:
    """One session; `is_interactive` if a person reads along."""

    screen: Screen
    runner: Runner
    con: Connection
    place: Place = Place()  # noqa: RUF009  # a tuple
    is_interactive: bool = False
    mode: str = "table"
    timer: bool = False
    limits: Limits = field(default_factory=Limits)
    last: Kept | None = None
    """What was read of the last table."""
    typed: str = ""
    """The last statement."""

    def run(self, pieces: Iterable[Piece], source: str = "") -> None:
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
                self.screen.error((f"{source}, line {piece.line}: " if source else "") + text_of(e))
                raise Stopped if isinstance(e, Cancelled) and self.runner.is_stopping else Failed from e
            finally:
                self.screen.flush()

    def statement(self, text: str, mode: str | None = None, is_ours: bool = False) -> None:
        """Run one statement and write its result; `is_ours` if the shell has written it."""
        started = perf_counter()
        try:
            self.runner.run(lambda: self._write(text, mode or self._mode(), is_ours))
        finally:
            if self.timer:
                self.screen.flush()
                self.screen.note(f"Run Time (s): real {perf_counter() - started:.3f}")

    def _mode(self) -> str:
        """How results are written now: a file's ending says so, unless a mode was chosen."""
        return self.screen.file_mode or self.mode if self.mode == "table" else self.mode

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Rows for the shell's own use: what there is to complete, a table's columns."""
        found: list[tuple[Any, ...]] = self.con.session.con.sql(text).fetchall()
        return found

    def _run(self, piece: Piece) -> None:
        if piece.is_command:
            from sqlft.shell.commands import run_command

            run_command(self, piece.text)
            return
        self.typed = piece.text
        try:
            self.statement(piece.text)
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
        write: Callable[[str], None] = self.runner.write
        if mode == "table" and result.is_plan:
            for batch in result.rows():
                write("".join((row[1] or "").rstrip("\n") + "\n" for row in batch))
        else:
            MODES[mode](result, write, self._look(), self.limits)
            self.last = result.kept if result.kept.read else self.last

    def show_again(self, kept: Kept) -> None:
        """A table that was shown, nothing of it cut."""
        rows = [row for batch in kept.read for row in rows_of(batch)]
        look = replace(self._look(), width=None)
        self.screen.write("".join(line + "\n" for line in draw(kept.columns, Rows(rows, (), len(rows)), look)))

    def _look(self) -> Look:
        look = self.screen.look
        width = self.limits.width or look.width
        return replace(look, width=width, null=look.null if self.limits.null is None else self.limits.null)


def text_of(error: BaseException) -> str:
    """An error as the person sees it: DuckDB's own as it is; whatever should not have happened with its traceback."""
    if isinstance(error, OSError):
        return f"Error: {error.strerror or error}: the output cannot be written."
    if not isinstance(error, duckdb.Error):
        return "".join(format_exception(error)) + "This is a bug in sqlft: please report it with the lines above."
    ours = isinstance(error, SqlftError) and not isinstance(error, Cancelled)
    return f"Error: {error}" if ours else str(error)
