"""ATTACH of a database with models: they are read as db.m, where they lie, and nothing is written there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import sqlft
from sqlft.errors import CatalogError, NotFound

ASK = "SELECT answer FROM {} WHERE q = 'x'"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Another database, with an engine of its own, a model m and a table t."""
    path = tmp_path / "it's theirs.duckdb"
    with sqlft.connect(str(path)) as con:
        con.execute("CREATE ML_ENGINE own_echo FROM echo")
        con.execute("CREATE MODEL m PREDICT answer USING engine = 'own_echo', prompt_template = 'They: {{q}}'")
        con.execute("CREATE TABLE t AS SELECT 'x' AS q")
    return path


@pytest.fixture
def warnings() -> list[str]:
    """What the connection warns of."""
    return []


@pytest.fixture
def con(tmp_path: Path, theirs: Path, warnings: list[str]) -> Iterator[sqlft.Connection]:
    """A connection to which their database is attached."""
    made = sqlft.connect(str(tmp_path / "own.duckdb"), warn=warnings.append)
    attach(made, theirs)
    yield made
    made.close()


def attach(con: sqlft.Connection, path: Path, name: str = "db") -> None:
    """ATTACH, read only as others may have it open."""
    con.execute(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS {name} (READ_ONLY)")


def ask(con: sqlft.Connection, name: str = "db.m") -> str:
    """The answer to x."""
    return str(con.execute(ASK.format(name)).fetchall()[0][0])


def test_its_models_answer(con: sqlft.Connection) -> None:
    """Alone, by version, joined with its table and with ours; from con.sql and a cursor too."""
    assert (ask(con), ask(con, "DB.M"), ask(con, "db.m.1")) == ("They: x",) * 3
    joined = con.execute("SELECT t.q, m.answer FROM db.t t JOIN db.m m ON m.q = t.q").fetchall()
    assert joined == [("x", "They: x")]
    relation = con.sql(ASK.format("db.m"))
    assert relation is not None
    assert relation.fetchall() == [("They: x",)]
    assert ask(con.cursor()) == "They: x"


def test_its_models_are_described_listed_and_evaluated(con: sqlft.Connection) -> None:
    """SHOW MODELS alone lists ours."""
    assert con.execute("DESCRIBE db.m").fetchall()[0][:3] == ("m", "own_echo", "db")
    assert len(con.execute("DESCRIBE db.m.versions").fetchall()) == 1
    assert [row[0] for row in con.execute("SHOW MODELS FROM db").fetchall()] == ["m"]
    assert con.execute("SHOW MODELS").fetchall() == []
    rows = con.execute("EVALUATE MODEL db.m ON (SELECT 'x' AS q, 'They: x' AS answer) USING metrics = ['exact_match']")
    assert rows.fetchall()[0][4] == 1.0


def test_what_it_costs_is_ours(con: sqlft.Connection, theirs: Path) -> None:
    """Usage and cache are booked here; there not one file is made or changed."""
    folder = Path(f"{theirs}.sqlft")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    ask(con)
    ask(con)
    assert con.execute("SELECT project, model, calls FROM sqlft.usage ORDER BY calls").fetchall() == [
        *(("db", "m", 0), ("db", "m", 1))
    ]
    con.execute("SHOW MODELS FROM db")
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "statement",
    [
        "FINETUNE db.m FROM (SELECT 'a' AS q, 'b' AS answer)",
        "RETRAIN db.m",
        "DROP MODEL db.m",
        "DROP MODEL IF EXISTS db.m",
        "DROP MODEL db.m.1",
        "SET active db.m.1",
        "ALTER MODEL db.m RENAME TO x",
        "CANCEL MODEL db.m.1",
        "RESUME MODEL db.m.1",
        "REPORT MODEL db.m",
        "CREATE OR REPLACE MODEL db.m PREDICT answer USING engine = 'echo'",
    ],
)
def test_nothing_of_it_is_changed(con: sqlft.Connection, statement: str) -> None:
    """The error names the ways that there are."""
    with pytest.raises(CatalogError, match=r"only read here\.\nOpen that database for it[\s\S]*FROM EXPORT"):
        con.execute(statement)
    assert ask(con) == "They: x"


@pytest.mark.parametrize(
    "statement", ["CREATE MODEL db.new PREDICT answer USING engine = 'echo'", "CREATE PROJECT db", "CREATE PROJECT DB"]
)
def test_no_project_takes_its_name(con: sqlft.Connection, statement: str) -> None:
    """Its models would be hidden behind ours."""
    with pytest.raises(CatalogError, match=r"'(db|DB)' is an attached database"):
        con.execute(statement)


def test_a_project_of_ours_goes_before_it(con: sqlft.Connection, theirs: Path, warnings: list[str]) -> None:
    """And the clash is told, once."""
    con.execute("CREATE MODEL shop.m PREDICT answer USING engine = 'echo', prompt_template = 'We: {{q}}'")
    attach_again(con, theirs, "shop")
    assert ask(con, "shop.m") == "We: x"
    for _ in range(2):
        with pytest.raises(NotFound):
            con.execute("DESCRIBE MODEL shop.other")
    assert [w for w in warnings if "goes before the attached database" in w] == warnings[-1:]


def attach_again(con: sqlft.Connection, path: Path, name: str) -> None:
    """Under another name."""
    con.execute("DETACH db")
    attach(con, path, name)


def test_detach_ends_it(con: sqlft.Connection, theirs: Path, tmp_path: Path) -> None:
    """Another file under the same name is another catalog."""
    assert ask(con) == "They: x"
    con.execute("DETACH db")
    with pytest.raises(duckdb.CatalogException):
        ask(con)
    with pytest.raises(NotFound):
        con.execute("DESCRIBE MODEL db.m")
    with sqlft.connect(str(tmp_path / "third.duckdb")) as third:
        third.execute("CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'Third: {{q}}'")
    attach(con, tmp_path / "third.duckdb")
    assert ask(con) == "Third: x"


def test_what_others_write_there_is_seen(con: sqlft.Connection, theirs: Path) -> None:
    """By another process, while it is open there and once it is closed: the catalog is a file of its own."""
    assert ask(con) == "They: x"
    con.execute("DETACH db")
    with sqlft.connect(str(theirs)) as other:
        other.execute("CREATE OR REPLACE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'New: {{q}}'")
        found = con.session.attached["db"].find_model("m")  # the last look was before
        assert found is not None
        assert found.prompt_template == "New: {{q}}"
    attach(con, theirs)
    assert ask(con) == "New: x"


def test_an_unqualified_name_is_not_theirs(con: sqlft.Connection) -> None:
    """The error says where the model is."""
    ask(con)
    with pytest.raises(duckdb.CatalogException, match=r"'m' is a model of the attached database 'db': db\.m"):
        con.execute(ASK.format("m"))
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'We: {{q}}'")
    assert (ask(con, "m"), ask(con)) == ("We: x", "They: x")


def test_a_catalog_of_another_format_is_told(con: sqlft.Connection, theirs: Path, warnings: list[str]) -> None:
    """A newer one, a damaged one: the tables are read all the same."""
    con.execute("DETACH db")
    file = Path(f"{theirs}.sqlft") / "catalog.sqlite"
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA user_version = 999")
    raw.close()
    attach(con, theirs)
    with pytest.raises(duckdb.CatalogException):
        ask(con)
    assert "made by a newer sqlft" in warnings[-1]
    con.execute("DETACH db")
    file.write_bytes(os.urandom(4096))
    attach(con, theirs)
    with pytest.raises(duckdb.CatalogException):
        ask(con)
    assert "is damaged" in warnings[-1]
    assert con.execute("FROM db.t").fetchall() == [("x",)]


def test_a_view_of_ours_reads_it(con: sqlft.Connection) -> None:
    """As long as it is attached."""
    con.execute(f"CREATE VIEW v AS {ASK.format('db.m')}")
    assert con.execute("FROM v").fetchall() == [("They: x",)]
