"""The command `sqlft`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import duckdb

from sqlft import __version__, errors
from sqlft.errors import SqlftError, did_you_mean

if TYPE_CHECKING:
    from sqlft.shell.shell import Location

DEBUG_FLAG = "--debug"
EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141
LONG_FLAGS = ("readonly", "no-init", "help")
OPTIONS_WITH_VALUE = ("-c", "-f", "-d", "-o", "--mode", "--database", "--catalog")
VERBS = (
    *("FROM", "SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "SUMMARIZE", "VALUES", "TABLE", "EXPLAIN", "COPY", "PIVOT"),
    *("UNPIVOT", "CREATE", "INSERT", "ATTACH", "SET", "PRAGMA", "CALL", "LOAD", "INSTALL"),
)
"""First words of statements that make sense on a database in memory."""
MODES = ("table", "box", "csv", "json", "jsonlines", "markdown", "html", "line")
EPILOG = """\
Without a command it is `sqlft shell`, with a file `sqlft shell FILE`.

  sqlft shell app.duckdb                        a prompt
  sqlft shell app.duckdb -c 'SHOW MODELS'       one statement
  sqlft app.duckdb -csv 'FROM sales'            the same, short; -json, -markdown …
  sqlft "FROM 'data.csv'"                       rows of a file, no database
  sqlft shell -f a.sql -f b.sql --mode csv      scripts, results as CSV
  sqlft watch -d app.duckdb                     how far a training is that another terminal started
  sqlft cancel my_model.2 -d app.duckdb         stop it, and sqlft resume goes on with it
  sqlft report my_model -d app.duckdb           what is known of a model, as HTML
  sqlft pull smollm2-135m                       get a base model, print its folder
  sqlft doctor                                  what this machine can do, what to install

--debug shows what happens on stderr: plans, requests, trainings; SQLFT_LOG=debug does so too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 1 after an error, 130 after Ctrl-C, 141 if nobody reads the output."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if DEBUG_FLAG in words:
        words.remove(DEBUG_FLAG)
        os.environ[errors.LOG_VARIABLE] = "debug"  # which the processes that train inherit
    if errors.is_log_requested():
        errors.write_log_to(lambda line: sys.stderr.write(f"{line}\n"))
    try:
        parsed = _build_parser().parse_args(_expand_short_options(_add_default_command(words)))
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except _UsageError as e:
        sys.stderr.write(f"Error: {e}\n")
        return EXIT_USAGE
    except duckdb.Error as e:
        sys.stderr.write(f"Error: {e}\n" if isinstance(e, SqlftError) else f"{e}\n")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as e:
        with suppress(OSError):  # what is still in the buffer goes nowhere, instead of failing at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        sys.stderr.write(f"Error: {e.strerror or e}\n")
        return 1


def open_shell(parsed: argparse.Namespace) -> int:
    """Open the prompt, or run the scripts that were given."""
    from sqlft.shell.shell import Location
    from sqlft.shell.start import Arguments, Source, run_shell

    sources = [Source(text, is_file) for text, is_file in parsed.sources]
    if parsed.sql is None and parsed.file is not None and _is_sql(parsed.file):
        parsed.file, parsed.sql = None, parsed.file
    if parsed.sql is not None and not _is_sql(parsed.sql) and os.path.isfile(parsed.sql):
        raise _UsageError(f"{parsed.sql} is a file.", f"Run its statements: sqlft {parsed.file} -f {parsed.sql}")
    if parsed.sql is not None:
        sources.insert(0, Source(parsed.sql, False))
    location = Location(parsed.file or ":memory:", parsed.catalog)
    return run_shell(Arguments(location, sources, parsed.mode, parsed.readonly, not parsed.no_init))


def _find_database(parsed: argparse.Namespace) -> tuple[Location, str | None]:
    """The database and the name; a file may stand in the name's place."""
    from sqlft.shell.shell import Location

    location = Location(parsed.database, parsed.catalog)
    if parsed.name and location.folder is None and os.path.isfile(parsed.name):
        return Location(parsed.name), None
    return location, parsed.name


def steer_training(parsed: argparse.Namespace) -> int:
    """Run `models`, `watch`, `cancel` or `resume`."""
    from sqlft.shell import start

    start.TRAINING_COMMANDS[parsed.command](*_find_database(parsed), parsed.mode)
    return 0


@runtime_checkable
class PullsBases(Protocol):
    """A handler class that can get a base before it is needed."""

    def pull(self, name: str, report: Callable[[str, float | None], None], /) -> Path:
        """The folder of a base, fetched where it is not there; `report` gets what is done and how much of it."""


def pull_base(parsed: argparse.Namespace) -> int:
    """Fetch a base and print its folder."""
    from sqlft.plugins import load_handler_class
    from sqlft.session import Tick
    from sqlft.shell.screen import Screen

    screen = Screen()

    def report(what: str, share: float | None) -> None:
        screen.bar.tick = Tick(what, share or 0.0, None if share is None else 1.0)
        screen.draw()

    handler = load_handler_class("local")
    assert isinstance(handler, PullsBases)
    try:
        folder = handler.pull(parsed.name, report)
    finally:
        screen.hide_bar()
    print(folder)
    return 0


def run_doctor(parsed: argparse.Namespace) -> int:
    """Print what `doctor` finds, as text or as JSON."""
    from sqlft.report.doctor import format_checkup, run_checkup

    checkup = run_checkup()
    if parsed.json:
        print(json.dumps(checkup, indent=2, ensure_ascii=False, default=str))
    else:
        print(format_checkup(checkup), end="")
    return 0


def write_report(parsed: argparse.Namespace) -> int:
    """Write the report of one model, or of all, and print the file's name."""
    from sqlft.catalog.store import Catalog
    from sqlft.errors import NotFound
    from sqlft.report import write_html_report

    parsed.name = parsed.model
    location, parsed.model = _find_database(parsed)
    catalog = Catalog(location.existing(), read_only=True)
    models = catalog.models()
    selected = [m for m in models if parsed.model is None or m.key.name.lower() == parsed.model.lower()]
    if parsed.model is not None and not selected:
        near = did_you_mean(parsed.model, [m.key.name for m in models])
        raise NotFound(
            f"There is no model '{parsed.model}'.{near}",
            f"There are: {', '.join(m.key.name for m in models)}." if models else "Name the database: -d app.duckdb",
        )
    write_html_report(catalog, selected, Path(parsed.output))
    print(parsed.output)
    return 0


class Command(NamedTuple):
    """A subcommand: what runs it, and what --help says of it."""

    run: Callable[[argparse.Namespace], int]
    about: str


COMMANDS = {
    "shell": Command(open_shell, "a prompt for SQL, or scripts"),
    "models": Command(steer_training, "models and their versions, and how far those are that train"),
    "watch": Command(steer_training, "show how far a training is until it ends; Ctrl-C stops the watching only"),
    "cancel": Command(steer_training, "stop a training, whoever started it; its checkpoint is kept"),
    "resume": Command(
        steer_training, "go on with a training that was stopped or interrupted, from its last checkpoint"
    ),
    "pull": Command(pull_base, "get a base model and print its folder"),
    "report": Command(write_report, "write what is known of models to an HTML file"),
    "doctor": Command(run_doctor, "what this machine can do, what is installed, which bases fit"),
}


def _build_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "sqlft",
        description="Fine-tune and run language models from SQL, inside DuckDB.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    versions = f"sqlft {__version__} (DuckDB {duckdb.__version__}, Python {sys.version.split()[0]})"
    top.add_argument(
        "--version", action="version", version=versions, help="show the versions of sqlft, DuckDB and Python"
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    added = {}
    for name, command in COMMANDS.items():
        added[name] = commands.add_parser(name, help=command.about, description=command.about)
        added[name].set_defaults(run=command.run, command=name)
    _add_shell_arguments(added["shell"])
    for name in ("models", "watch", "cancel", "resume"):
        pattern = "models whose names are like this, % stands for any letters"
        added[name].add_argument(
            "name", metavar="NAME", nargs="?", help=pattern if name == "models" else "a version such as my_model.2"
        )
        _add_database_argument(added[name])
        _add_mode_argument(added[name])
    added["doctor"].add_argument("--json", action="store_true", help="as JSON")
    added["pull"].add_argument("name", metavar="NAME", help="a preset such as smollm2-135m, a hub id, or a folder")
    added["report"].add_argument(
        "model", metavar="MODEL", nargs="?", help="a model's name, none: all models; or the database"
    )
    added["report"].add_argument("-o", metavar="FILE", dest="output", default="report.html", help="the file to write")
    _add_database_argument(added["report"])
    return top


def _add_database_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--database", metavar="FILE", default=":memory:", help="the database whose models these are"
    )
    _add_catalog_argument(parser)


def _add_catalog_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--catalog", metavar="FOLDER", help="where the models are, if not beside the database")


def _add_mode_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=MODES, help="how results are written; -csv is short for --mode csv")


def _add_shell_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="the database, made if it is not there; none: in memory"
    )
    _add_catalog_argument(parser)
    parser.add_argument("sql", metavar="SQL", nargs="?", help="run this and leave, as -c does")
    for flag, metavar, about in (
        ("-c", "SQL", "run this and leave; -c and -f may be repeated, and run in order"),
        ("-f", "FILE.sql", "run the statements of this file (- is stdin) and leave"),
    ):
        parser.add_argument(flag, metavar=metavar, dest="sources", action=_SourceAction, default=[], help=about)
    _add_mode_argument(parser)
    parser.add_argument("--no-init", action="store_true", help="do not run ~/.sqlftrc")
    parser.add_argument("--readonly", action="store_true", help="open the database read-only")


class _SourceAction(argparse.Action):
    """-c and -f, in the order they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (values, option == "-f")])


class _UsageError(SqlftError):
    """The command line is wrong."""


def _expand_short_options(words: list[str]) -> list[str]:
    """`-csv` as `--mode csv`, `-readonly` as `--readonly`, as DuckDB's shell takes them; what has no dash comes last.

    >>> _expand_short_options(["shell", "app.duckdb", "-csv", "SELECT 1"])
    ['shell', '--mode', 'csv', 'app.duckdb', 'SELECT 1']
    """
    command, *rest = words
    options: list[str] = []
    operands: list[str] = []
    arguments = iter(rest)
    for argument in arguments:
        name = argument[1:]
        if argument[:1] != "-" or argument == "-":
            operands.append(argument)
        elif name in MODES:
            options += ["--mode", name]
        else:
            options.append(f"-{argument}" if name in LONG_FLAGS else argument)
            if argument in OPTIONS_WITH_VALUE:
                options += itertools.islice(arguments, 1)
    return [command, *options, *operands]


def _is_sql(text: str) -> bool:
    """Whether it is a statement that stands where a file's name could.

    >>> _is_sql("FROM 'data.csv'"), _is_sql("my sales.duckdb"), _is_sql("app.duckdb")
    (True, False, False)
    """
    return len(text.split()) > 1 and text.split()[0].upper() in VERBS and not os.path.exists(text)


def _add_default_command(words: list[str]) -> list[str]:
    """`shell` may be left out; SqlftError for a word that looks like a mistyped command rather than a file."""
    if not words:
        return ["shell"]
    first = words[0]
    if first in COMMANDS or first in ("-h", "--help", "--version"):
        return words
    if not (first.startswith(("-", ":")) or _is_sql(first) or os.path.exists(first) or os.path.splitext(first)[1]):
        raise _UsageError(
            f"There is no command '{first}', nor a file of that name.{did_you_mean(first, COMMANDS)}",
            f"sqlft --help lists the commands; sqlft shell {first} makes a database of that name.",
        )
    return ["shell", *words]


if __name__ == "__main__":
    sys.exit(main())
