"""What is proposed for a name that is not there: the user's own tables and models, never DuckDB's system tables."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

import sqlft
from sqlft.connection import Connection

MADE = (
    "CREATE TABLE questions (id INTEGER, body VARCHAR)",
    "CREATE SCHEMA sales",
    "CREATE TABLE sales.orders (a INTEGER)",
    "CREATE VIEW answers_view AS SELECT 1 AS a",
    "CREATE MODEL text_to_sql PREDICT sql USING engine = 'echo'",
    "CREATE MODEL shop.greeter PREDICT answer USING engine = 'echo'",
)


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    """A database with tables in two schemas, a view, and models in two projects."""
    made = sqlft.connect()
    for sql in MADE:
        made.execute(sql).fetchall()
    yield made
    made.close()


def said(con: Connection, sql: str) -> list[str]:
    """The lines behind the first one of the error, without the excerpt of the statement."""
    with pytest.raises(duckdb.Error) as caught:
        con.execute(sql).fetchall()
    lines = str(caught.value).splitlines()[1:]
    return [line for line in lines if line.strip(" ^") and not line.startswith("LINE 1")]


@pytest.mark.parametrize(
    ("sql", "proposed"),
    [
        ("FROM question", "questions"),
        ("FROM memory.question", "questions"),
        ("CREATE VIEW v AS FROM questons", "questions"),
        ("INSERT INTO questons VALUES (1)", "questions"),
        ("UPDATE queston SET id = 1", "questions"),
        ("SELECT * FROM qestions q JOIN text_to_sql m ON m.content = q.body", "questions"),
        ("FROM order_s", "sales.orders"),
        ("FROM sale.orders", "sales.orders"),
        ("FROM sales.order", "sales.orders"),
        ("FROM answer_view", "answers_view"),
        ("DROP VIEW answer_view", "answers_view"),
        ("FROM texttosql", "text_to_sql"),
        ("DESCRIBE text_to_sq", "text_to_sql"),
        ("FROM pg_index1", "pg_index"),
        ("FROM duckdb_tabels()", "duckdb_tables"),
        ("SELECT lowwer('a')", "lower"),
    ],
)
def test_the_nearest_of_the_users_names_is_proposed(con: Connection, sql: str, proposed: str) -> None:
    assert said(con, sql) == [f'Did you mean "{proposed}"?']


@pytest.mark.parametrize("sql", ["FROM indexes", "FROM tables1", "CREATE VIEW v AS FROM tables1", "FROM zzz"])
def test_where_nothing_is_near_nothing_is_proposed(con: Connection, sql: str) -> None:
    assert said(con, sql) == []


def test_a_model_is_no_function(con: Connection) -> None:
    [near] = said(con, "SELECT texttosql('a')")
    assert near == 'Did you mean the model "text_to_sql"? It is read like a table.'
    [exact] = said(con, "SELECT text_to_sql('a')")
    assert exact.startswith("'text_to_sql' is a model. Read it like a table: SELECT sql FROM text_to_sql WHERE content")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("FROM shop.greter", "The project 'shop' has no model 'greter'. Did you mean 'greeter'? SHOW MODELS FROM shop"),
        ("FROM mindsdb.modls", "The project 'mindsdb' has no model 'modls'. Did you mean 'models'? SHOW MODELS FROM"),
    ],
)
def test_a_name_that_a_project_does_not_have(con: Connection, sql: str, words: str) -> None:
    assert any(line.startswith(words) for line in said(con, sql))


def test_tables_that_came_and_went(con: Connection) -> None:
    con.execute("CREATE TEMP TABLE passengers (a INTEGER)")
    assert said(con, "FROM pasengers") == ['Did you mean "passengers"?']
    con.execute("DROP TABLE passengers")
    assert said(con, "FROM pasengers") == []


def test_in_a_failed_transaction_the_error_stays_as_it_is(con: Connection) -> None:
    con.execute("CREATE TABLE unique_ (i INTEGER UNIQUE); BEGIN; INSERT INTO unique_ VALUES (1)")
    with pytest.raises(duckdb.Error):
        con.execute("INSERT INTO unique_ VALUES (1)")
    with pytest.raises(duckdb.Error, match="qestions does not exist"):
        con.execute("FROM qestions")
    con.execute("ROLLBACK; DROP TABLE unique_")
