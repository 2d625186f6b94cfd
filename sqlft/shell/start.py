"""What the command line starts: `sqlft shell`; `sqlft models, watch, cancel, resume` for trainings of other processes.

The shell opens the database, runs scripts or the prompt, and closes it whatever happens.  The others read the catalog
beside the database and never its DuckDB file, which belongs to the process that has it open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import duckdb

from sqlft.catalog.records import RESUMABLE, RUNNING, Version
from sqlft.catalog.store import Catalog
from sqlft.errors import NotFound, SqlftError, did_you_mean, is_log_requested, write_log_to
from sqlft.shell.reading import Script, ScriptItem, read_script, split_script
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.shell.shell import Failed, Location, Quit, Shell, Stopped, format_error, open_catalog, open_database

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

    location: Location = Location()  # noqa: RUF009  # a tuple
    sources: Sequence[Source] = ()
    mode: str | None = None
    read_only: bool = False
    reads_rc: bool = True


def run_shell(arguments: Arguments) -> int:
    """Run it all; the process's exit code."""
    screen = Screen()
    if is_log_requested():
        write_log_to(screen.note)
    runner = Runner(screen)
    try:
        con = open_database(screen, runner, arguments.location, arguments.read_only)
    except duckdb.Error as e:
        screen.error(format_error(e))
        return FAILED
    interactive = not arguments.sources and sys.stdin.isatty()
    if interactive:
        con.session.ask_user = runner.choose
        runner.hides_typing = True
    shell = Shell(screen, runner, con, _run_command, arguments.location, is_interactive=interactive)
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


def list_models(location: Location, pattern: str | None, mode: str | None) -> None:
    """Write the models whose names are like the pattern, with their versions and how far those are that train."""
    with _open_catalog_shell(location, mode) as shell:
        _run_command(shell, ".models" if pattern is None else f".models {pattern}")


def watch_training(location: Location, name: str | None, mode: str | None) -> None:
    """Show how far a training is until it ends; Ctrl-C stops the watching only."""
    from sqlft.training.follow import watch_until_end

    with _open_catalog_shell(location, mode) as shell:
        version = _find_version(shell.con.session.catalog, name, RUNNING, "trains")
        try:
            ended = shell.runner.run(lambda: watch_until_end(shell.con.session, version.key))
        except KeyboardInterrupt:
            shell.screen.note(f"{version.key} goes on; sqlft cancel {version.key}{location.flag} stops it.")
            raise
        shell.screen.note(ended)


def cancel_training(location: Location, name: str | None, mode: str | None) -> None:
    """Stop a training, whoever started it; its checkpoint is kept."""
    _run_on_version(location, name, mode, RUNNING, "trains", lambda version: f"CANCEL MODEL {version.key}")


def resume_training(location: Location, name: str | None, mode: str | None) -> None:
    """Go on with a training that was stopped or interrupted, from its last checkpoint."""
    _run_on_version(location, name, mode, RESUMABLE, "was stopped or interrupted", lambda v: f"RESUME MODEL {v.key}")


TRAINING_COMMANDS: dict[str, Callable[[Location, str | None, str | None], None]] = {
    "models": list_models,
    "watch": watch_training,
    "cancel": cancel_training,
    "resume": resume_training,
}
"""By the subcommand's name: the database, a name, the mode of output."""


def _run_on_version(
    location: Location,
    name: str | None,
    mode: str | None,
    statuses: tuple[str, ...],
    what: str,
    sql: Callable[[Version], str],
) -> None:
    with _open_catalog_shell(location, mode) as shell:
        shell.run_statement(sql(_find_version(shell.con.session.catalog, name, statuses, what)))


def _find_version(catalog: Catalog, name: str | None, statuses: tuple[str, ...], what: str) -> Version:
    """The version of that name, with its number or without; the only one there is where none is named; NotFound."""
    from sqlft.training.follow import format_progress

    versions = catalog.versions()
    fitting = [v for v in versions if v.status in statuses]
    if name is not None:
        folded = name.lower()
        exact = [v for v in versions if folded in (str(v.key).lower(), f"{v.key.model.project}.{v.key}".lower())]
        if exact:
            return exact[0]
        fitting = [v for v in fitting if folded in (str(v.key.model).lower(), v.key.model.name.lower())]
    listed = ", ".join(f"{v.key} ({v.status}{format_progress(v)})" for v in fitting)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise NotFound(f"Which one? {listed}.", f"Write its number: {fitting[-1].key}.")
    names = [str(v.key) for v in versions]
    if name is not None and not any(name.lower() == v.key.model.name.lower() for v in versions):
        raise NotFound(f"There is no model or version '{name}'.{did_you_mean(name, names)}", "sqlft models lists them.")
    raise NotFound(f"No version{f' of {name}' if name else ''} {what}.", "sqlft models -d FILE shows how each is.")


@contextmanager
def _open_catalog_shell(location: Location, mode: str | None) -> Iterator[Shell]:
    screen = Screen()
    runner = Runner(screen)
    con = open_catalog(screen, runner, location)
    try:
        yield Shell(screen, runner, con, _run_command, location, mode=mode or "table")
    finally:
        screen.flush()
        runner.close()
        con.close()
