"""Dot-commands about files and other programs: .open, .import, .once, .edit, .shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from sqlft.errors import DataError, SqlftError
from sqlft.shell.opening import Place, open_database
from sqlft.shell.reading import pieces
from sqlft.shell.shell import Shell
from sqlft.sql.names import quote_name, quote_text

DATABASES = """
SELECT database_name AS name, path AS file, readonly AS read_only, database_name = current_database() AS current
FROM duckdb_databases() WHERE NOT internal ORDER BY database_oid"""


def open_(shell: Shell, path: str = ":memory:") -> None:
    """close the database and open another one, made if it is not there; without a file one in memory"""
    place = Place(path)
    con = open_database(shell.screen, shell.runner, place)
    con.session.ask_user = shell.con.session.ask_user
    if shell.is_interactive:
        from sqlft.shell.prompt import at_end, at_start, named

        told = [*at_end(shell.con.session.catalog, shell.place), named(place), *at_start(con.session.catalog)]
    else:
        told = []
    shell.con.close()
    shell.con, shell.place, shell.last = con, place, None
    for line in told:
        shell.screen.note(line)


def databases(shell: Shell) -> None:
    """the databases that are open, with their files"""
    shell.statement(DATABASES)


def import_(shell: Shell, path: str, table: str) -> None:
    """rows of a CSV, Parquet or JSON file into a table, made if it is not there"""
    file = str(Path(path).expanduser())
    into = ".".join(quote_name(part) for part in table.split("."))
    known = shell.query(f"SELECT 1 FROM duckdb_tables() WHERE table_name = {quote_text(table.rpartition('.')[2])}")
    head = f"INSERT INTO {into} " if known else f"CREATE TABLE {into} AS "
    shell.statement(f"{head}SELECT * FROM {quote_text(file)}")


def once(shell: Shell, path: str) -> None:
    """write the result of the next statement to a file"""
    shell.screen.redirect_once(path)


def last(shell: Shell) -> None:
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


def edit(shell: Shell) -> None:
    """write the last statement anew in $EDITOR, and run what was saved"""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statement.sql"
        file.write_text(shell.typed and f"{shell.typed};\n", encoding="utf-8")
        shell.screen.flush()
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except OSError as e:
            raise SqlftError(f"The editor '{editor}' cannot be run: {e.strerror}.", "Set EDITOR to another.") from e
        text = file.read_text(encoding="utf-8")
    if done.returncode == 0 and text.strip():
        shell.screen.note(text.rstrip())
        shell.run(pieces(text))
