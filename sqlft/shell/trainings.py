"""`sqlft models, watch, cancel, resume`: trainings seen and steered from another terminal.

They read the catalog beside the database and never its DuckDB file, which belongs to the process that has it open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlft.catalog.records import RESUMABLE, RUNNING, Version
from sqlft.catalog.store import Catalog
from sqlft.errors import NotFound, did_you_mean
from sqlft.shell.commands import run_command
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.shell.shell import Location, Shell, open_catalog
from sqlft.training.follow import format_progress, watch_until_end


def list_models(place: Location, pattern: str | None, mode: str | None) -> None:
    """Write the models whose names are like the pattern, with their versions and how far those are that train."""
    with _open_shell(place, mode) as shell:
        run_command(shell, ".models" if pattern is None else f".models {pattern}")


def watch_training(place: Location, name: str | None, mode: str | None) -> None:
    """Show how far a training is until it ends; Ctrl-C stops the watching only."""
    with _open_shell(place, mode) as shell:
        version = _find_version(shell.con.session.catalog, name, RUNNING, "trains")
        try:
            ended = shell.runner.run(lambda: watch_until_end(shell.con.session, version.key))
        except KeyboardInterrupt:
            shell.screen.note(f"{version.key} goes on; sqlft cancel {version.key}{place.flag} stops it.")
            raise
        shell.screen.note(ended)


def cancel_training(place: Location, name: str | None, mode: str | None) -> None:
    """Stop a training, whoever started it; its checkpoint is kept."""
    _run_on_version(place, name, mode, RUNNING, "trains", lambda version: f"CANCEL MODEL {version.key}")


def resume_training(place: Location, name: str | None, mode: str | None) -> None:
    """Go on with a training that was stopped or interrupted, from its last checkpoint."""
    _run_on_version(place, name, mode, RESUMABLE, "was stopped or interrupted", lambda v: f"RESUME MODEL {v.key}")


RUNNERS: dict[str, Callable[[Location, str | None, str | None], None]] = {
    "models": list_models,
    "watch": watch_training,
    "cancel": cancel_training,
    "resume": resume_training,
}
"""By the subcommand's name: the database, a name, the mode of output."""


def _run_on_version(
    place: Location,
    name: str | None,
    mode: str | None,
    statuses: tuple[str, ...],
    what: str,
    sql: Callable[[Version], str],
) -> None:
    with _open_shell(place, mode) as shell:
        shell.run_statement(sql(_find_version(shell.con.session.catalog, name, statuses, what)))


def _find_version(catalog: Catalog, name: str | None, statuses: tuple[str, ...], what: str) -> Version:
    """The version of that name, with its number or without; the only one there is where none is named; NotFound."""
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
def _open_shell(place: Location, mode: str | None) -> Iterator[Shell]:
    screen = Screen()
    runner = Runner(screen)
    con = open_catalog(screen, runner, place)
    try:
        yield Shell(screen, runner, con, run_command, place, mode=mode or "table")
    finally:
        screen.flush()
        runner.close()
        con.close()
