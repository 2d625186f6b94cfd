"""The dot-commands: a function each, and a line in COMMANDS."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import NamedTuple

from sqlft.errors import SqlftError, did_you_mean
from sqlft.shell import tools
from sqlft.shell.folding import folded
from sqlft.shell.modes import MODES
from sqlft.shell.plots import CHARTS, plot
from sqlft.shell.reading import pieces, text_of_file
from sqlft.shell.shell import Quit, Shell
from sqlft.shell.table import NULL, fold
from sqlft.sql.names import quote_text

MODE_ALIASES = {"duckbox": "table", "ndjson": "jsonlines"}
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


def help_(shell: Shell, *words: str) -> None:
    """this list, or help on a statement: .help FINETUNE"""
    about = " ".join(words)
    if about.removeprefix(".").lower() in COMMANDS:
        command = COMMANDS[about.removeprefix(".").lower()]
        line = f".{about.removeprefix('.')} {command.takes}".rstrip() + f"  {command.run.__doc__}\n"
        shell.screen.write(folded(line, shell.screen.look.width, hanging=True))
        return
    if about:
        from sqlft.shell.topics import topic

        shell.screen.write("".join(f"{line}\n" for line in topic(about, shell.screen.look.width or 100)))
        return
    shown = {f".{name} {command.takes}".rstrip(): command for name, command in COMMANDS.items()}
    width = max(map(len, shown))
    lines = [f"{usage.ljust(width)}  {command.run.__doc__}\n" for usage, command in shown.items()]
    shell.screen.write(_listed(lines, width + 2, shell.screen.look.width))
    shell.screen.write(
        folded(
            "\nA statement ends with ; and may take several lines.  Ctrl-C stops it, Ctrl-D leaves, Tab completes.\n"
            "Models: CREATE MODEL, FINETUNE, SHOW MODELS, DESCRIBE name, SELECT … FROM name WHERE input = …\n"
            ".help CREATE MODEL explains a statement: its syntax, its options, an example.\n",
            shell.screen.look.width,
        )
    )


def _listed(lines: list[str], indent: int, width: int | None) -> str:
    """A list in two columns, the second one folded."""
    if width is None or width < indent + 20:
        return "".join(lines)
    folds = ([line[:indent], *fold(line[indent:].rstrip(), width - indent)] for line in lines)
    return "".join(head + ("\n" + " " * indent).join(rest) + "\n" for head, *rest in folds)


def mode(shell: Shell, name: str = "") -> None:
    """how results are written: table, box, csv, json, jsonlines, markdown, html or line"""
    if not name:
        shell.screen.write(f"{shell.mode}\n")
        return
    wanted = MODE_ALIASES.get(name.lower(), name.lower())
    if wanted not in MODES:
        raise SqlftError(f"There is no mode '{name}'.{did_you_mean(name, MODES)}", f"Use .mode {'|'.join(MODES)}.")
    shell.mode = wanted


def tables(shell: Shell, pattern: str = "%") -> None:
    """tables and views; the pattern is one of LIKE"""
    shell.statement(_TABLES.format(like=quote_text(pattern)))


def models(shell: Shell, pattern: str = "%") -> None:
    """models and their versions; sqlft.versions tells more"""
    shell.statement(_MODELS.format(like=quote_text(pattern)), is_ours=True)


def schema(shell: Shell, pattern: str = "%") -> None:
    """the statements that make the tables and views"""
    for (sql,) in shell.query(_SCHEMA.format(like=quote_text(pattern))):
        shell.screen.write(f"{str(sql).rstrip().removesuffix(';')};\n")


def timer(shell: Shell, state: str = "") -> None:
    """show how long each statement takes: on or off"""
    if state.lower() not in ("", "on", "off"):
        raise SqlftError(f".timer is on or off, not '{state}'.", "Use .timer on.")
    shell.timer = state.lower() == "on" if state else not shell.timer
    if not state:
        shell.screen.note(f"The timer is {'on' if shell.timer else 'off'} now.")


def max_rows(shell: Shell, count: str = "") -> None:
    """how many rows a table shows, 0 for all of them"""
    if not count:
        shell.screen.write(f"{shell.limits.shown}\n")
        return
    if not count.isdecimal():
        raise SqlftError(f".maxrows takes a number, not '{count}'.", "Use .maxrows 40, or .maxrows 0 for all rows.")
    shell.limits = replace(shell.limits, shown=int(count))


def max_width(shell: Shell, count: str = "") -> None:
    """how many characters wide a table is, 0 for the width of the screen"""
    if not count:
        shell.screen.write(f"{shell.limits.width}\n")
        return
    if not count.isdecimal():
        raise SqlftError(f".maxwidth takes a number, not '{count}'.", "Use .maxwidth 100, or .maxwidth 0.")
    shell.limits = replace(shell.limits, width=int(count))


def null_value(shell: Shell, text: str | None = None) -> None:
    """what is written for NULL; without a text what it is"""
    if text is None:
        shell.screen.write(f"{NULL if shell.limits.null is None else shell.limits.null}\n")
    else:
        shell.limits = replace(shell.limits, null=text)


def read(shell: Shell, path: str) -> None:
    """run the statements of a file"""
    shell.run(pieces(text_of_file(path)), source=path)


def output(shell: Shell, path: str | None = None) -> None:
    """write results to a file, in the form of its ending (.csv, .json, .md …); without one, back to the screen"""
    shell.screen.redirect(path)


def quit_(shell: Shell) -> None:
    """leave, as Ctrl-D does"""
    raise Quit


class Command(NamedTuple):
    """A dot-command: what it runs, and the arguments as .help shows them.

    Optional ones are in brackets; `…` stands for any number of them, and a COMMAND takes the rest of the line as it is.
    """

    run: Callable[..., None]
    takes: str = ""


COMMANDS = {
    "databases": Command(tools.databases),
    "edit": Command(tools.edit),
    "help": Command(help_, "[STATEMENT…]"),
    "import": Command(tools.import_, "FILE TABLE"),
    "last": Command(tools.last),
    "maxrows": Command(max_rows, "[COUNT]"),
    "maxwidth": Command(max_width, "[COUNT]"),
    "mode": Command(mode, "[MODE]"),
    "models": Command(models, "[PATTERN]"),
    "nullvalue": Command(null_value, "[TEXT]"),
    "once": Command(tools.once, "FILE"),
    "open": Command(tools.open_, "[FILE]"),
    "output": Command(output, "[FILE]"),
    "plot": Command(plot, "CHART [MODEL]"),
    "quit": Command(quit_),
    "read": Command(read, "FILE"),
    "schema": Command(schema, "[PATTERN]"),
    "shell": Command(tools.run_program, "COMMAND"),
    "tables": Command(tables, "[PATTERN]"),
    "timer": Command(timer, "[on|off]"),
}
SAME = {
    ".exit": ".quit",
    ".system": ".shell",
    "exit": ".quit",
    "quit": ".quit",
    "help": ".help",
    "\\q": ".quit",
    "\\?": ".help",
    "\\h": ".help",
    "\\d": ".tables",
    "\\dt": ".tables",
    "\\e": ".edit",
    "\\i": ".read",
    "\\l": ".databases",
    "\\o": ".output",
    "\\timing": ".timer",
    "\\!": ".shell",
}
"""What people type out of habit from the shells of DuckDB and PostgreSQL."""


def run_command(shell: Shell, text: str) -> None:
    """Run one dot-command; SqlftError if there is none of that name or its arguments do not fit."""
    name, arguments = _words(from_habit(text))
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1, cutoff=0.75)
        guess = f" Did you mean '.{near[0]}'?" if near else ""
        raise SqlftError(f"There is no command '.{name}'.{guess}", ".help lists them.")
    takes = command.takes.split()
    needed = sum(not t.startswith("[") for t in takes)
    if takes == ["COMMAND"]:
        arguments = [from_habit(text).partition(" ")[2].strip()] if arguments else []
    if len(arguments) < needed or (len(arguments) > len(takes) and "…" not in command.takes):
        choices = f" The charts are {', '.join(CHARTS)}." if "CHART" in takes else ""
        raise SqlftError(
            f".{name} takes {command.takes or 'nothing'}.{choices}", f"Type: .{name} {command.takes}".rstrip() + "."
        )
    command.run(shell, *arguments)


def from_habit(text: str) -> str:
    """`exit;` and `\\d` as the dot-commands that they mean; any other text as it is."""
    first, _, rest = text.strip().removesuffix(";").strip().partition(" ")
    return f"{SAME[first.lower()]} {rest}".strip() if first.lower() in SAME and "\n" not in rest else text


def _words(text: str) -> tuple[str, Sequence[str]]:
    try:
        first, *rest = shlex.split(text.removesuffix(";"))
    except ValueError:
        first, *rest = text.split()
    return first.removeprefix(".").lower(), rest
