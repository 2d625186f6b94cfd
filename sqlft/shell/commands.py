"""The dot-commands: one function and one line in COMMANDS for each; charts of a report as text, drawn by plotext."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from sqlft.catalog.records import Model
from sqlft.errors import DataError, HandlerNotInstalled, NotFound, SqlftError, did_you_mean
from sqlft.report.facts import ModelFacts, collect_model_facts
from sqlft.shell.output.folding import fold_message
from sqlft.shell.output.modes import MODES
from sqlft.shell.output.table import NULL, fold_text
from sqlft.shell.reading import read_script, split_script
from sqlft.shell.reminders import remind_at_end, remind_at_start
from sqlft.shell.shell import Location, Quit, Shell, describe_location, open_database
from sqlft.sql.names import quote_name, quote_text

Plot = Any
"""A figure of plotext, which has no types."""
MODE_ALIASES = {"duckbox": "table", "ndjson": "jsonlines"}
_TABLES = """
SELECT database_name AS "database", schema_name AS "schema", table_name AS "name", 'table' AS kind,
       column_count AS "columns"
FROM duckdb_tables() WHERE NOT internal AND schema_name <> 'sqlft_knowledge' AND table_name ILIKE {like}
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


def show_help(shell: Shell, *words: str) -> None:
    """this list, or help on a statement: .help FINETUNE"""
    about = " ".join(words)
    if about.removeprefix(".").lower() in COMMANDS:
        command = COMMANDS[about.removeprefix(".").lower()]
        line = f".{about.removeprefix('.')} {command.takes}".rstrip() + f"  {command.run.__doc__}\n"
        shell.screen.write(fold_message(line, shell.screen.table_style.width, hanging=True))
        return
    if about:
        from sqlft.shell.help import explain_topic

        shell.screen.write("".join(f"{line}\n" for line in explain_topic(about, shell.screen.table_style.width or 100)))
        return
    usages = {f".{name} {command.takes}".rstrip(): command for name, command in COMMANDS.items()}
    width = max(map(len, usages))
    lines = [f"{usage.ljust(width)}  {command.run.__doc__}\n" for usage, command in usages.items()]
    shell.screen.write(_format_list(lines, width + 2, shell.screen.table_style.width))
    shell.screen.write(
        fold_message(
            "\nA statement ends with ; and may take several lines.  Ctrl-C stops it, Ctrl-D leaves, Tab completes.\n"
            "Models: CREATE MODEL, FINETUNE, SHOW MODELS, DESCRIBE name, SELECT … FROM name WHERE input = …\n"
            ".help CREATE MODEL explains a statement: its syntax, its options, an example.\n",
            shell.screen.table_style.width,
        )
    )


def _format_list(lines: list[str], indent: int, width: int | None) -> str:
    """A list in two columns, the second one folded."""
    if width is None or width < indent + 20:
        return "".join(lines)
    folds = ([line[:indent], *fold_text(line[indent:].rstrip(), width - indent)] for line in lines)
    return "".join(head + ("\n" + " " * indent).join(rest) + "\n" for head, *rest in folds)


def set_mode(shell: Shell, name: str = "") -> None:
    """how results are written: table, box, csv, json, jsonlines, markdown, html or line"""
    if not name:
        shell.screen.write(f"{shell.mode}\n")
        return
    chosen_mode = MODE_ALIASES.get(name.lower(), name.lower())
    if chosen_mode not in MODES:
        raise SqlftError(f"There is no mode '{name}'.{did_you_mean(name, MODES)}", f"Use .mode {'|'.join(MODES)}.")
    shell.mode = chosen_mode


def list_tables(shell: Shell, pattern: str = "%") -> None:
    """tables and views; the pattern is one of LIKE"""
    shell.run_statement(_TABLES.format(like=quote_text(pattern)))


def list_models(shell: Shell, pattern: str = "%") -> None:
    """models and their versions; sqlft.versions tells more"""
    shell.run_statement(_MODELS.format(like=quote_text(pattern)), is_ours=True)


def show_schema(shell: Shell, pattern: str = "%") -> None:
    """the statements that make the tables and views"""
    for (sql,) in shell.query(_SCHEMA.format(like=quote_text(pattern))):
        shell.screen.write(f"{str(sql).rstrip().removesuffix(';')};\n")


def set_timer(shell: Shell, state: str = "") -> None:
    """show how long each statement takes: on or off"""
    if state.lower() not in ("", "on", "off"):
        raise SqlftError(f".timer is on or off, not '{state}'.", "Use .timer on.")
    shell.timer = state.lower() == "on" if state else not shell.timer
    if not state:
        shell.screen.note(f"The timer is {'on' if shell.timer else 'off'} now.")


def set_max_rows(shell: Shell, count: str = "") -> None:
    """how many rows a table shows, 0 for all of them"""
    shown = _read_count(shell, "maxrows", count, shell.limits.shown, "Use .maxrows 40, or .maxrows 0 for all rows.")
    shell.limits = replace(shell.limits, shown=shown)


def set_max_width(shell: Shell, count: str = "") -> None:
    """how many characters wide a table is, 0 for the width of the screen"""
    width = _read_count(shell, "maxwidth", count, shell.limits.width, "Use .maxwidth 100, or .maxwidth 0.")
    shell.limits = replace(shell.limits, width=width)


def _read_count(shell: Shell, command: str, count: str, current: int, next_step: str) -> int:
    """The number that was typed; without one `current`, which is written."""
    if count and not count.isdecimal():
        raise SqlftError(f".{command} takes a number, not '{count}'.", next_step)
    if not count:
        shell.screen.write(f"{current}\n")
    return int(count or current)


def set_null_value(shell: Shell, text: str | None = None) -> None:
    """what is written for NULL; without a text what it is"""
    if text is None:
        shell.screen.write(f"{NULL if shell.limits.null is None else shell.limits.null}\n")
    else:
        shell.limits = replace(shell.limits, null=text)


def run_file(shell: Shell, path: str) -> None:
    """run the statements of a file"""
    shell.run(split_script(read_script(path)), source=path)


def redirect_output(shell: Shell, path: str | None = None) -> None:
    """write results to a file, in the form of its ending (.csv, .json, .md …); without one, back to the screen"""
    shell.screen.redirect(path)


def leave(shell: Shell) -> None:
    """leave, as Ctrl-D does"""
    raise Quit


class Command(NamedTuple):
    """A dot-command: what it runs, and the arguments as .help shows them.

    Optional ones are in brackets; `…` stands for any number of them, and a COMMAND takes the rest of the line as it is.
    """

    run: Callable[..., None]
    takes: str = ""


DATABASES = """
SELECT database_name AS name, path AS file, readonly AS read_only, database_name = current_database() AS current
FROM duckdb_databases() WHERE NOT internal ORDER BY database_oid"""


def open_other_database(shell: Shell, path: str = ":memory:") -> None:
    """close the database and open another one, made if it is not there; without a file one in memory"""
    location = Location(path)
    con = open_database(shell.screen, shell.runner, location)
    con.session.ask_user = shell.con.session.ask_user
    if shell.is_interactive:
        notes = [
            *remind_at_end(shell.con.session.catalog, shell.location),
            describe_location(location),
            *remind_at_start(con.session.catalog),
        ]
    else:
        notes = []
    shell.con.close()
    shell.con, shell.location, shell.last = con, location, None
    for line in notes:
        shell.screen.note(line)


def list_databases(shell: Shell) -> None:
    """the databases that are open, with their files"""
    shell.run_statement(DATABASES)


def import_file(shell: Shell, path: str, table: str) -> None:
    """rows of a CSV, Parquet or JSON file into a table, made if it is not there"""
    file = str(Path(path).expanduser())
    into = ".".join(quote_name(part) for part in table.split("."))
    existing = shell.query(f"SELECT 1 FROM duckdb_tables() WHERE table_name = {quote_text(table.rpartition('.')[2])}")
    head = f"INSERT INTO {into} " if existing else f"CREATE TABLE {into} AS "
    shell.run_statement(f"{head}SELECT * FROM {quote_text(file)}")


def redirect_once(shell: Shell, path: str) -> None:
    """write the result of the next statement to a file"""
    shell.screen.redirect_once(path)


def show_last(shell: Shell) -> None:
    """the last table again, with all the rows and columns that were read, nothing cut"""
    if shell.last is None:
        raise DataError("There is no last table.", "Run a query in .mode table first.")
    shell.show_again(shell.last)


def run_program(shell: Shell, command: str) -> None:
    """run a command of the system"""
    shell.screen.flush()
    done = subprocess.run(command, shell=True, check=False)
    if done.returncode:
        raise SqlftError(f"'{command}' ended with exit code {done.returncode}.", "Its own message stands above.")


def edit_statement(shell: Shell) -> None:
    """edit the last statement in $EDITOR, and run what was saved"""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statement.sql"
        file.write_text(shell.last_statement and f"{shell.last_statement};\n", encoding="utf-8")
        shell.screen.flush()
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except OSError as e:
            raise SqlftError(f"The editor '{editor}' cannot be run: {e.strerror}.", "Set EDITOR to another.") from e
        text = file.read_text(encoding="utf-8")
    if done.returncode == 0 and text.strip():
        shell.screen.note(text.rstrip())
        shell.run(split_script(text))


WIDTH, HEIGHT, TICKS = 100, 18, 6
MARKS = ("•", "x", "+", "o", "*", "#")
"""What lines are drawn with: distinguishable without colours, as in a file."""
INSTALL = "Run: pip install 'sqlft[evaluation]'"


def draw_loss(plot: Plot, facts: ModelFacts) -> bool:
    """Loss by step, a line for each version and split; what they are stands below, where it hides none of them."""
    marks = iter(MARKS * len(facts.losses))
    names = []
    for number, splits in facts.losses.items():
        for split, points in splits.items():
            steps, values = zip(*points, strict=True)
            mark = next(marks)
            signal = plot.signal(list(steps), list(values), marker=mark)
            signal.lines()
            plot.draw(signal)
            names.append(f"{mark} v{number} {split}")
    plot.label("   ".join(["step", *names]), "x")
    if facts.losses:
        plot.ruler("x").ticks(_choose_ticks([p[0] for s in facts.losses.values() for ps in s.values() for p in ps]))
    return bool(facts.losses)


def _choose_ticks(steps: list[float]) -> list[int]:
    """Steps to write below the chart: whole numbers, a few of them."""
    first, last = int(min(steps)), int(max(steps))
    return sorted({first, *range(first, last, max(1, -(-(last - first) // TICKS))), last})


def draw_metrics(plot: Plot, facts: ModelFacts) -> bool:
    """The value of each metric by version."""
    scored = [e for e in facts.evaluations if e["value"] is not None and e["value"] == e["value"]]
    return _draw_bars(plot, [(f"{e['metric']} v{e['version']}", e["value"]) for e in scored])


def draw_cost(plot: Plot, facts: ModelFacts) -> bool:
    """USD per thousand requests by version."""
    return _draw_bars(
        plot, [(f"v{s.version}", s.cost_per_thousand) for s in facts.usage if s.cost_per_thousand is not None]
    )


def draw_speed(plot: Plot, facts: ModelFacts) -> bool:
    """Seconds per request by version."""
    return _draw_bars(
        plot, [(f"v{s.version}", s.seconds_per_call) for s in facts.usage if s.seconds_per_call is not None]
    )


CHARTS: dict[str, tuple[Callable[[Plot, ModelFacts], bool], str, str]] = {
    "loss": (draw_loss, "loss by step", "FINETUNE it first."),
    "metrics": (draw_metrics, "metrics by version", "EVALUATE MODEL … ON (SELECT …) first."),
    "cost": (draw_cost, "USD a thousand requests", "CREATE PRICE or SET sqlft_machine_usd_per_hour, then ask it."),
    "speed": (draw_speed, "seconds a request", "Ask it something first."),
}


def draw_chart(shell: Shell, what: str, name: str | None = None) -> None:
    """a model's loss, metrics, cost or speed as a chart; the newest model if none is named"""
    if what.lower() not in CHARTS:
        names = ", ".join(CHARTS)
        raise NotFound(f"There is no chart '{what}'.{did_you_mean(what, CHARTS)}", f"There are: {names}.")
    try:
        import plotext
    except ImportError as e:
        raise HandlerNotInstalled("Charts need the package 'plotext'.", INSTALL) from e
    model = _find_model(shell, name)
    draw, title, first = CHARTS[what.lower()]
    figure = plotext.figure
    figure.clear()
    figure.plot_size(min(shell.screen.table_style.width or WIDTH, WIDTH), HEIGHT)
    if not draw(figure, collect_model_facts(shell.con.session.catalog, model)):
        raise DataError(f"There is nothing to draw of the {what.lower()} of '{model.key}' yet.", first)
    figure.title(f"{model.key.name}: {title}")
    shell.screen.write(f"{figure.build().string(colorless=True).rstrip()}\n")


def _find_model(shell: Shell, name: str | None) -> Model:
    models = shell.con.session.catalog.models()
    if not models:
        raise NotFound("There is no model yet.", "CREATE MODEL makes one.")
    if name is None:
        return max(models, key=lambda m: (m.created_at is not None, m.created_at, m.key))
    for model in models:
        if model.key.name.lower() == name.lower():
            return model
    raise NotFound(f"There is no model '{name}'.{did_you_mean(name, [m.key.name for m in models])}", "Type .models.")


def _draw_bars(plot: Plot, bars: list[tuple[str, float]]) -> bool:
    if bars:
        names = [f"{name} {value:.3g}" for name, value in bars][::-1]
        chart = plot.bar(names, [value for _, value in bars][::-1], orientation="horizontal", width=0.5)
        plot.draw(chart)
        top = max(value for _, value in bars)
        plot.ruler("x").lim(min(0.0, *(value for _, value in bars)), top or 1.0)
    return bool(bars)


COMMANDS = {
    "databases": Command(list_databases),
    "edit": Command(edit_statement),
    "help": Command(show_help, "[STATEMENT…]"),
    "import": Command(import_file, "FILE TABLE"),
    "last": Command(show_last),
    "maxrows": Command(set_max_rows, "[COUNT]"),
    "maxwidth": Command(set_max_width, "[COUNT]"),
    "mode": Command(set_mode, "[MODE]"),
    "models": Command(list_models, "[PATTERN]"),
    "nullvalue": Command(set_null_value, "[TEXT]"),
    "once": Command(redirect_once, "FILE"),
    "open": Command(open_other_database, "[FILE]"),
    "output": Command(redirect_output, "[FILE]"),
    "plot": Command(draw_chart, "CHART [MODEL]"),
    "quit": Command(leave),
    "read": Command(run_file, "FILE"),
    "schema": Command(show_schema, "[PATTERN]"),
    "shell": Command(run_program, "COMMAND"),
    "tables": Command(list_tables, "[PATTERN]"),
    "timer": Command(set_timer, "[on|off]"),
}


HABITS = {
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
    name, arguments = _split_words(expand_habit(text))
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1, cutoff=0.75)
        guess = f" Did you mean '.{near[0]}'?" if near else ""
        raise SqlftError(f"There is no command '.{name}'.{guess}", ".help lists them.")
    takes = command.takes.split()
    needed = sum(not t.startswith("[") for t in takes)
    if takes == ["COMMAND"]:
        arguments = [expand_habit(text).partition(" ")[2].strip()] if arguments else []
    if len(arguments) < needed or (len(arguments) > len(takes) and "…" not in command.takes):
        choices = f" The charts are {', '.join(CHARTS)}." if "CHART" in takes else ""
        raise SqlftError(
            f".{name} takes {command.takes or 'nothing'}.{choices}", f"Type: .{name} {command.takes}".rstrip() + "."
        )
    command.run(shell, *arguments)


def expand_habit(text: str) -> str:
    """`exit;` and `\\d` as the dot-commands that they mean; any other text as it is."""
    first, _, rest = text.strip().removesuffix(";").strip().partition(" ")
    return f"{HABITS[first.lower()]} {rest}".strip() if first.lower() in HABITS and "\n" not in rest else text


def _split_words(text: str) -> tuple[str, Sequence[str]]:
    try:
        first, *rest = shlex.split(text.removesuffix(";"))
    except ValueError:
        first, *rest = text.split()
    return first.removeprefix(".").lower(), rest
