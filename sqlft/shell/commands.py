"""The dot-commands: a function each, and a line in COMMANDS."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sqlft.errors import SqlftError, did_you_mean
from sqlft.shell.modes import MODES
from sqlft.shell.plots import plot
from sqlft.shell.reading import pieces
from sqlft.shell.shell import Quit, Shell

_TABLES = """
SELECT database_name AS "database", schema_name AS "schema", table_name AS "name", 'table' AS kind,
       column_count AS "columns"
FROM duckdb_tables() WHERE NOT internal AND table_name ILIKE {like}
UNION ALL
SELECT database_name, schema_name, view_name, 'view', column_count
FROM duckdb_views() WHERE NOT internal AND view_name ILIKE {like}
ORDER BY 1, 2, 3"""
_MODELS = """
SELECT CASE project WHEN 'mindsdb' THEN model ELSE project || '.' || model END AS model, version, active, status,
       CASE WHEN status IN ('queued', 'training')
            THEN (progress ->> '$.step') || ' of ' || (progress ->> '$.total_steps') END AS step,
       (progress ->> '$.metrics.loss')::DOUBLE AS loss, engine, nullif(base, '') AS base, tag,
       round(seconds / 60, 1) AS minutes, error
FROM sqlft.versions WHERE model ILIKE {like}"""
_SCHEMA = """
SELECT sql FROM (
  SELECT database_name, schema_name, table_name AS name, sql, 0 AS rank FROM duckdb_tables() WHERE NOT internal
  UNION ALL SELECT database_name, schema_name, view_name, sql, 1 FROM duckdb_views() WHERE NOT internal
  UNION ALL SELECT database_name, schema_name, table_name, sql, 2 FROM duckdb_indexes())
WHERE sql IS NOT NULL AND name ILIKE {like} ORDER BY database_name, schema_name, rank, name"""


def help_(shell: Shell) -> None:
    """this list"""
    shown = {f".{name} {command.takes}".rstrip(): command for name, command in COMMANDS.items()}
    width = max(map(len, shown))
    for usage, command in shown.items():
        shell.screen.write(f"{usage.ljust(width)}  {command.run.__doc__}\n")
    shell.screen.write(
        "\nA statement ends with ; and may take several lines.  Ctrl-C stops it, Ctrl-D leaves, Tab completes.\n"
        "Models: CREATE MODEL, FINETUNE, SHOW MODELS, DESCRIBE name, SELECT … FROM name WHERE input = …\n"
    )


def mode(shell: Shell, name: str = "") -> None:
    """how results are written: table, csv, json or line"""
    if not name:
        shell.screen.write(f"{shell.mode}\n")
        return
    if name.lower() not in MODES:
        raise SqlftError(f"There is no mode '{name}'.{did_you_mean(name, MODES)}", f"Use .mode {'|'.join(MODES)}.")
    shell.mode = name.lower()


def tables(shell: Shell, pattern: str = "%") -> None:
    """tables and views; the pattern is one of LIKE"""
    shell.statement(_TABLES.format(like=_quoted(pattern)))


def models(shell: Shell, pattern: str = "%") -> None:
    """models and their versions; sqlft.versions tells more"""
    shell.statement(_MODELS.format(like=_quoted(pattern)), is_ours=True)


def schema(shell: Shell, pattern: str = "%") -> None:
    """the statements that make the tables and views"""
    for (sql,) in shell.query(_SCHEMA.format(like=_quoted(pattern))):
        shell.screen.write(f"{str(sql).rstrip().removesuffix(';')};\n")


def timer(shell: Shell, state: str = "") -> None:
    """show how long each statement takes: on or off"""
    if state.lower() not in ("", "on", "off"):
        raise SqlftError(f".timer is on or off, not '{state}'.", "Use .timer on.")
    shell.timer = state.lower() == "on" if state else not shell.timer


def max_rows(shell: Shell, count: str = "") -> None:
    """how many rows a table shows, 0 for all of them"""
    if not count:
        shell.screen.write(f"{shell.limits.shown}\n")
        return
    if not count.isdecimal():
        raise SqlftError(f".maxrows takes a number, not '{count}'.", "Use .maxrows 40, or .maxrows 0 for all rows.")
    shell.limits = replace(shell.limits, shown=int(count))


def read(shell: Shell, path: str) -> None:
    """run the statements of a file"""
    shell.run(pieces(text_of_file(path)), source=path)


def output(shell: Shell, path: str | None = None) -> None:
    """write results to a file; without one, back to the screen"""
    shell.screen.redirect(path)


def quit_(shell: Shell) -> None:
    """leave, as Ctrl-D does"""
    raise Quit


class Command(NamedTuple):
    """A dot-command: what it runs, and the arguments as .help shows them, optional ones in brackets."""

    run: Callable[..., None]
    takes: str = ""


COMMANDS = {
    "help": Command(help_),
    "maxrows": Command(max_rows, "[COUNT]"),
    "mode": Command(mode, "[MODE]"),
    "models": Command(models, "[PATTERN]"),
    "output": Command(output, "[FILE]"),
    "plot": Command(plot, "CHART [MODEL]"),
    "quit": Command(quit_),
    "read": Command(read, "FILE"),
    "schema": Command(schema, "[PATTERN]"),
    "tables": Command(tables, "[PATTERN]"),
    "timer": Command(timer, "[on|off]"),
}
SAME = {
    ".exit": ".quit",
    "exit": ".quit",
    "quit": ".quit",
    "help": ".help",
    "\\q": ".quit",
    "\\?": ".help",
    "\\d": ".tables",
    "\\dt": ".tables",
    "\\i": ".read",
    "\\o": ".output",
    "\\timing": ".timer",
}
"""What people type out of habit from the shells of DuckDB and PostgreSQL."""


def run_command(shell: Shell, text: str) -> None:
    """Run one dot-command; SqlftError if there is none of that name or its arguments do not fit."""
    name, arguments = _words(text)
    command = COMMANDS.get(name)
    if command is None:
        near = did_you_mean(f".{name}", [f".{known}" for known in COMMANDS])
        raise SqlftError(f"There is no command '.{name}'.{near}", ".help lists them.")
    takes = command.takes.split()
    needed = sum(not t.startswith("[") for t in takes)
    if not needed <= len(arguments) <= len(takes):
        raise SqlftError(
            f".{name} takes {command.takes or 'nothing'}.", f"Type: .{name} {command.takes}".rstrip() + "."
        )
    command.run(shell, *arguments)


def from_habit(text: str) -> str:
    """`exit;` and `\\d` as the dot-commands that they mean; any other text as it is."""
    first, _, rest = text.strip().removesuffix(";").strip().partition(" ")
    return f"{SAME[first.lower()]} {rest}".strip() if first.lower() in SAME and "\n" not in rest else text


def text_of_file(path: str) -> str:
    """A script's text; SqlftError if it cannot be read or is not UTF-8."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SqlftError(f"{path} cannot be read: {e.strerror}.", "Check the file's name.") from e
    except UnicodeDecodeError as e:
        raise SqlftError(f"{path} is not UTF-8 (byte {e.start}).", "Save it as UTF-8.") from e


def _words(text: str) -> tuple[str, Sequence[str]]:
    try:
        first, *rest = shlex.split(text.removesuffix(";"))
    except ValueError:
        first, *rest = text.split()
    return first.removeprefix(".").lower(), rest


def _quoted(pattern: str) -> str:
    return "'" + pattern.replace("'", "''") + "'"
