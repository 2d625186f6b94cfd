"""The command `sqlft`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import duckdb

from sqlft import __version__
from sqlft.errors import SqlftError, did_you_mean

INTERRUPTED, BROKEN_PIPE = 130, 141
EPILOG = """\
Without a command it is `sqlft shell`, with a file `sqlft shell FILE`.

  sqlft shell app.duckdb                        a prompt
  sqlft shell app.duckdb -c 'SHOW MODELS'       one statement
  sqlft shell -f a.sql -f b.sql --mode csv      scripts, results as CSV
  sqlft report my_model -d app.duckdb           what is known of a model, as HTML
  sqlft pull smollm2-135m                       get a base model, print its folder
  sqlft doctor                                  what this machine can do, what to install
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 1 after an error, 130 after Ctrl-C, 141 if nobody reads the output."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parser().parse_args(_with_command(given))
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except duckdb.Error as e:
        sys.stderr.write(f"Error: {e}\n" if isinstance(e, SqlftError) else f"{e}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as e:
        with suppress(OSError):  # what is still in the buffer goes nowhere, instead of failing at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            return BROKEN_PIPE
        sys.stderr.write(f"Error: {e.strerror or e}\n")
        return 1


def shell(parsed: argparse.Namespace) -> int:
    """a prompt for SQL, or scripts"""
    from sqlft.shell.start import Arguments, Source, run_shell

    sources = [Source(text, is_file) for text, is_file in parsed.sources]
    return run_shell(Arguments(parsed.file or ":memory:", sources, parsed.mode, parsed.readonly))


def pull(parsed: argparse.Namespace) -> int:
    """get a base model and print its folder"""
    from sqlft.plugins import handler_class
    from sqlft.runtime.session import Tick
    from sqlft.shell.screen import Screen

    screen = Screen()

    def report(what: str, share: float | None) -> None:
        screen.bar.tick = Tick(what, share or 0.0, None if share is None else 1.0)
        screen.draw()

    handler: Any = handler_class("local")
    try:
        folder = handler.pull(parsed.name, report)
    finally:
        screen.hide_bar()
    print(folder)
    return 0


def doctor(parsed: argparse.Namespace) -> int:
    """what this machine can do, what is installed, which bases fit"""
    from sqlft.runtime.doctor import checkup, report

    found = checkup()
    print(json.dumps(found, indent=2, ensure_ascii=False, default=str) if parsed.json else report(found), end="")
    if parsed.json:
        print()
    return 0


def report(parsed: argparse.Namespace) -> int:
    """write what is known of models to an HTML file"""
    from pathlib import Path

    from sqlft.catalog.store import Catalog
    from sqlft.connection import folder_of
    from sqlft.errors import NotFound
    from sqlft.runtime.report import write

    catalog = Catalog(folder_of(parsed.database), read_only=True)
    known = catalog.models()
    chosen = [m for m in known if parsed.model is None or m.key.name.lower() == parsed.model.lower()]
    if parsed.model is not None and not chosen:
        near = did_you_mean(parsed.model, [m.key.name for m in known])
        raise NotFound(
            f"There is no model '{parsed.model}'.{near}",
            f"There are: {', '.join(m.key.name for m in known)}." if known else "Name the database: -d app.duckdb",
        )
    write(catalog, chosen, Path(parsed.output))
    print(parsed.output)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "shell": shell,
    "pull": pull,
    "report": report,
    "doctor": doctor,
}


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "sqlft",
        description="Fine-tune and run language models from SQL, inside DuckDB.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the versions of sqlft, DuckDB and Python")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    added = {}
    for name, run in COMMANDS.items():
        added[name] = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added[name].set_defaults(run=run)
    _add_shell_arguments(added["shell"])
    added["doctor"].add_argument("--json", action="store_true", help="as JSON")
    added["pull"].add_argument("name", metavar="NAME", help="a preset such as smollm2-135m, a hub id, or a folder")
    added["report"].add_argument("model", metavar="MODEL", nargs="?", help="a model's name; none: all models")
    added["report"].add_argument("-o", metavar="FILE", dest="output", default="report.html", help="the file to write")
    added["report"].add_argument(
        "-d", "--database", metavar="FILE", default=":memory:", help="the database; none: that of in-memory connections"
    )
    return top


def _add_shell_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="the database, made if it is not there; none: in memory"
    )
    repeated: dict[str, Any] = {"dest": "sources", "action": _Source, "default": []}
    parser.add_argument(
        "-c", metavar="SQL", **repeated, help="run this and leave; -c and -f may be repeated, and run in order"
    )
    parser.add_argument(
        "-f", metavar="FILE.sql", **repeated, help="run the statements of this file (- is stdin) and leave"
    )
    parser.add_argument(
        "--mode", choices=["table", "csv", "json", "line"], default="table", help="how results are written"
    )
    parser.add_argument("--readonly", action="store_true", help="open the database read-only")


class _Source(argparse.Action):
    """-c and -f, in the order they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (values, option == "-f")])


class _Version(argparse.Action):
    """--version"""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        from platform import python_version

        print(f"sqlft {__version__} (DuckDB {duckdb.__version__}, Python {python_version()})")
        parser.exit()


def _with_command(given: list[str]) -> list[str]:
    """`shell` may be left out; SqlftError for a word that looks like a mistyped command rather than a file."""
    if not given:
        return ["shell"]
    first = given[0]
    if first in COMMANDS or first in ("-h", "--help", "--version"):
        return given
    if not first.startswith(("-", ":")) and not os.path.exists(first) and not os.path.splitext(first)[1]:
        raise SqlftError(
            f"There is no command '{first}', nor a file of that name.{did_you_mean(first, COMMANDS)}",
            f"sqlft --help lists the commands; sqlft shell {first} makes a database of that name.",
        )
    return ["shell", *given]


if __name__ == "__main__":
    sys.exit(main())
