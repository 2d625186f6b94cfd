"""`sqlft shell`: opens the database, runs scripts or the prompt, and closes it whatever happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import duckdb

from sqlft import errors
from sqlft.errors import SqlftError
from sqlft.shell.reading import Script, ScriptItem, read_script, split_script
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.shell.shell import Failed, Location, Quit, Shell, Stopped, format_error, open_database

INTERRUPTED = 130
FAILED = 1
RC = "~/.sqlftrc"
"""Statements and dot-commands that are run when a shell starts."""


class Source(NamedTuple):
    """What `-c` (`is_file` False) or `-f` gave; the file `-` is stdin."""

    text: str
    is_file: bool


@dataclass(frozen=True)
class Arguments:
    """The command line of `sqlft shell`."""

    place: Location = Location()  # noqa: RUF009  # a tuple
    sources: Sequence[Source] = ()
    mode: str | None = None
    read_only: bool = False
    reads_rc: bool = True


def run_shell(arguments: Arguments) -> int:
    """Run it all; the process's exit code."""
    screen = Screen()
    if errors.is_log_requested():
        errors.write_log_to(screen.note)
    runner = Runner(screen)
    try:
        con = open_database(screen, runner, arguments.place, arguments.read_only)
    except duckdb.Error as e:
        screen.error(format_error(e))
        return FAILED
    interactive = not arguments.sources and sys.stdin.isatty()
    if interactive:
        con.session.ask_user = runner.choose
        runner.hides_typing = True
    shell = Shell(screen, runner, con, _run_command, arguments.place, is_interactive=interactive)
    try:
        if arguments.reads_rc:
            _read_rc(shell)
        shell.mode = arguments.mode or shell.mode
        return _run(shell, arguments)
    finally:
        screen.redirect(None)
        runner.close()
        shell.con.close()


def _read_rc(shell: Shell) -> None:
    """Run the statements in RC; an error in it is shown, and the shell goes on."""
    path = Path(RC).expanduser()
    if not path.exists():
        return
    try:
        with suppress(Failed, Quit):
            shell.run(split_script(read_script(str(path))), source=RC)
    except SqlftError as e:
        shell.screen.error(format_error(e))


def _run(shell: Shell, arguments: Arguments) -> int:
    try:
        if shell.is_interactive:
            from sqlft.shell.prompt import converse

            converse(shell)
        for source in arguments.sources:
            _run_source(shell, source)
        if not shell.is_interactive and not arguments.sources:
            shell.run(_read_stream(sys.stdin.buffer), source="stdin")
    except Quit:
        return 0
    except Failed:
        return FAILED
    except Stopped:
        return INTERRUPTED
    except KeyboardInterrupt:  # between two statements
        shell.screen.error("Interrupted.")
        shell.screen.flush()
        return INTERRUPTED
    except SqlftError as e:
        shell.screen.error(format_error(e))
        return FAILED
    return 0


def _run_source(shell: Shell, source: Source) -> None:
    if source.is_file and source.text == "-":
        shell.run(_read_stream(sys.stdin.buffer), source="stdin")
    elif source.is_file:
        shell.run(split_script(read_script(source.text)), source=source.text)
    else:
        shell.run(split_script(_check_encoding(source.text)))


def _read_stream(stream: BinaryIO) -> Iterator[ScriptItem]:
    """The pieces of a piped script, each as soon as its line has come."""
    script, waiting = Script(), b""
    while block := os.read(stream.fileno(), 1 << 16):
        lines, end, waiting = (waiting + block).rpartition(b"\n")
        yield from script.feed(_decode(lines + end))
    yield from script.feed(_decode(waiting))
    yield from script.finish()


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise SqlftError(f"The input is not UTF-8: {text[e.start : e.start + 8]!r}.", "Convert it to UTF-8.") from e


def _check_encoding(text: str) -> str:
    """The argument of -c, unless it has bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise SqlftError("The statement of -c is not UTF-8.", "Convert it to UTF-8, or put it into a file: -f.") from e
    return text


def _run_command(shell: Shell, text: str) -> None:
    """A dot-command; what the commands need is imported at the first one."""
    from sqlft.shell.commands import run_command

    run_command(shell, text)
