"""CREATE DATABASE: files of every kind, and servers whose passwords nobody sees."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.errors import AlreadyExists, CatalogError, DataError, MissingSecret, NotSupported, OptionError, SqlftError

Con = sqlft.Connection


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def con(warnings: list[str]) -> Iterator[Con]:
    made = sqlft.connect(warn=warnings.append)
    yield made
    made.close()


def create(con: Con, engine: str, parameters: str, name: str = "d") -> None:
    con.execute(f"CREATE DATABASE {name} WITH ENGINE = '{engine}', PARAMETERS = {{{parameters}}}")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "it's rows.duckdb"
    with duckdb.connect(str(path)) as made:
        made.execute("CREATE SCHEMA demo; CREATE TABLE demo.t AS SELECT 1 AS x")
    return path


@pytest.mark.parametrize("key", ["path", "database", "db_file"])
def test_duckdb(con: Con, rows: Path, warnings: list[str], key: str) -> None:
    con.execute(f"CREATE DATABASE d WITH ENGINE = 'duckdb', PARAMETERS = {{'{key}': ?}}", [str(rows)])
    assert con.execute("SELECT x FROM d.demo.t").fetchall() == [(1,)]
    con.execute("INSERT INTO d.demo.t VALUES (2)")
    assert warnings == []


def test_its_tables_are_found_by_a_training_query(con: Con, rows: Path, training_control: Any) -> None:
    con.execute("CREATE DATABASE d WITH ENGINE = 'duckdb', PARAMETERS = {'path': ?, 'read_only': true}", [str(rows)])
    con.execute(
        "CREATE MODEL m FROM d (SELECT 'q' AS question, x AS answer FROM demo.t) PREDICT answer "
        "USING engine = 'stranger', question_column = 'question'"
    )
    assert con.execute("SELECT answer FROM m WHERE question = 'q'").fetchall() == [("1",)]
    with pytest.raises(duckdb.Error, match="read-only"):
        con.execute("INSERT INTO d.demo.t VALUES (2)")


def test_a_file_that_is_not_there_is_told(con: Con, tmp_path: Path, warnings: list[str]) -> None:
    create(con, "DuckDB", f"'path': '{tmp_path}/new.duckdb'")
    assert "new, empty" in warnings[0]


def test_in_memory(con: Con, warnings: list[str]) -> None:
    create(con, "duckdb", "'path': ':memory:'")
    con.execute("CREATE TABLE d.t (x INTEGER)")
    assert warnings == []


def test_names_that_exist(con: Con) -> None:
    create(con, "duckdb", "'path': ':memory:'")
    con.execute("CREATE TABLE d.t (x INTEGER)")
    with pytest.raises(AlreadyExists, match="DETACH"):
        create(con, "duckdb", "'path': ':memory:'", "D")
    con.execute("CREATE DATABASE IF NOT EXISTS d WITH ENGINE = 'duckdb', PARAMETERS = {'path': ':memory:'}")
    con.execute("SELECT * FROM d.t")
    con.execute("CREATE OR REPLACE DATABASE d WITH ENGINE = 'duckdb', PARAMETERS = {'path': ':memory:'}")
    with pytest.raises(duckdb.CatalogException):
        con.execute("SELECT * FROM d.t")


@pytest.mark.parametrize(
    ("engine", "parameters", "kind", "words"),
    [
        ("mongodb", "", NotSupported, "ENGINE = 'files'"),
        ("postgress", "'host': 'x'", NotSupported, "Did you mean 'postgres'?"),
        ("duckdb", "", OptionError, "needs the option 'path'"),
        ("duckdb", "'paht': 'x'", OptionError, "Did you mean 'path'?"),
        ("postgres", "'hots': 'x'", OptionError, "Did you mean 'host'?"),
        ("mysql", "'sslmode': 'x'", OptionError, "no option 'sslmode'"),
        ("postgres", "'port': 'many'", OptionError, "must be integer"),
        ("postgres", "'password': env('NOT_SET_ANYWHERE')", MissingSecret, "NOT_SET_ANYWHERE"),
        ("files", "'path': '/nowhere/at/all'", DataError, "cannot be read"),
    ],
)
def test_what_cannot_be(con: Con, engine: str, parameters: str, kind: type[SqlftError], words: str) -> None:
    with pytest.raises(kind) as caught:
        create(con, engine, parameters)
    assert words in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["sqlft", "MindsDB"])
def test_names_that_are_kept(con: Con, name: str) -> None:
    with pytest.raises(CatalogError, match="is kept"):
        create(con, "duckdb", "'path': ':memory:'", name)


# files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my files"
    made.mkdir()
    (made / "people.csv").write_text("id,name\n1,Ada\n")
    (made / "people.json").write_text('[{"id": 2}]')
    (made / "my lines.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (made / "notes.txt").write_text("not a table")
    duckdb.sql("SELECT 3 AS x").to_parquet(str(made / "big.parquet"))
    duckdb.sql("SELECT 4 AS x").to_csv(str(made / "packed.csv.gz"), compression="gzip")
    return made


def test_files(con: Con, folder: Path) -> None:
    con.execute("CREATE DATABASE files WITH ENGINE = 'files', PARAMETERS = {'path': ?}", [str(folder)])
    found = {
        name: con.execute(f'SELECT * FROM files."{name}" ORDER BY 1').fetchall()
        for (name,) in con.execute(
            "SELECT view_name FROM duckdb_views() WHERE database_name = 'files' AND NOT internal"
        ).fetchall()
    }
    assert found == {
        "people": [(1, "Ada")],
        "people_json": [(2,)],
        "my lines": [(1,), (2,)],
        "big": [(3,)],
        "packed": [(4,)],
    }


def test_one_file(con: Con, folder: Path) -> None:
    create(con, "files", f"'path': '{folder}/people.csv'")
    assert con.execute("SELECT name FROM d.people").fetchall() == [("Ada",)]


def test_a_folder_without_any(con: Con, folder: Path) -> None:
    with pytest.raises(DataError, match="no file to read"):
        create(con, "files", f"'path': '{folder}/notes.txt'")


def test_a_file_that_cannot_be_read_leaves_nothing(con: Con, folder: Path) -> None:
    (folder / "broken.parquet").write_text("no parquet")
    with pytest.raises(duckdb.Error):
        create(con, "files", f"'path': '{folder}'")
    create(con, "duckdb", "'path': ':memory:'")


# what needs an extension: it works, or the error says what to install


def expect_failure(con: Con, engine: str, parameters: str) -> duckdb.Error | None:
    """Why it could not be attached; an extension that is not to be had is told with its cure."""
    try:
        create(con, engine, parameters)
    except duckdb.Error as e:
        failed = e
    else:
        return None
    if isinstance(failed, NotSupported):
        assert f"duckdb-extension-{engine}-scanner" in failed.next_step
        assert duckdb.__version__ in failed.message
    return failed


def test_sqlite(con: Con, tmp_path: Path, training_control: Any) -> None:
    path = tmp_path / "old.sqlite"
    made = sqlite3.connect(path)
    made.executescript("CREATE TABLE t (q TEXT, a TEXT); INSERT INTO t VALUES ('x', 'y');")
    made.close()
    failed = expect_failure(con, "sqlite", f"'db_file': '{path}'")
    if failed is None:
        con.execute(
            "CREATE MODEL m FROM d (SELECT q AS content, a AS answer FROM t) PREDICT answer USING engine = 'stranger'"
        )
        assert con.execute("SELECT answer FROM d.t JOIN m ON m.content = t.q").fetchall() == [("y",)]
    else:
        assert isinstance(failed, NotSupported)


def test_a_server_that_is_not_there_tells_no_password(con: Con) -> None:
    parameters = (
        "'host': '127.0.0.1', 'port': 1, 'user': 'u', 'password': 'ge''heim', 'database': 'x', 'sslmode': 'disable'"
    )
    failed = expect_failure(con, "postgres", parameters)
    assert failed is not None
    assert isinstance(failed, NotSupported) or "127.0.0.1" in str(failed)
    assert "heim" not in str(failed)
    assert con.execute("FROM duckdb_secrets()").fetchall() == []
