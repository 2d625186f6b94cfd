"""Statements with faults give DuckDB's errors or ours, and leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from query import hostile
from query.hostile import Target, faults, mutate
from query.world import OLD, TABLES

SEED, STATEMENTS, CHUNK = 1, 1500, 50
NAMES = [
    "SELECT m('some text')",
    "SELECT m(content) FROM t",
    "CALL m()",
    "PRAGMA table_info('m')",
    "SELECT * FROM pragma_table_info('m')",
    "SELECT * FROM query_table('m')",
    "SELECT * FROM query_table(['m', 't'])",
    "SELECT * FROM m()",
    "SELECT answer FROM m(content := 'a')",
    "SELECT t.id, s.answer FROM t, m(t.x) s",
    "SELECT * FROM main.m WHERE content = 'x'",
    "SELECT * FROM memory.m WHERE content = 'x'",
    "SELECT * FROM memory.main.m WHERE content = 'x'",
    "SELECT * FROM other.m",
    "SELECT * FROM nowhere.m WHERE content = 'x'",
    "SELECT * FROM m.99 WHERE content = 'x'",
    "SELECT * FROM m..x",
    "SELECT * FROM m.m.m.m",
    "SELECT model FROM sqlft..versions",
    "VACUUM m",
    "DROP SCHEMA m",
    "DROP TABLE m",
    "SELECT 'x'::m",
    "SELECT CAST('x' AS m)",
    "CREATE TABLE z (a m)",
    "INSERT INTO m VALUES ('x', 'y')",
    "DELETE FROM m",
    "UPDATE m SET content = 'x'",
    "ALTER TABLE m ADD COLUMN z INTEGER",
    "CREATE INDEX i ON m (content)",
    "COMMENT ON TABLE m IS 'x'",
    "SELECT * FROM m",
    "SELECT count(*) FROM m",
    "FROM t JOIN m ON",
    "SELECT t.  FROM t JOIN m ON",
    "SELECT t.id, m.answer FROM \ufeff JOIN m USING (content) WHERE t.id < 20",
    "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x OR t.id = 1",
    *(() if OLD else ("SELECT t.id, m.answer FROM t JOIN m ON NOT (m.content = t.x)",)),  # 1.5 reads it as <>
    "CREATE TABLE capitals AS SELECT m2  'The capital of ' || country FROM (VALUES ('France')) t(country)",
    "CREATE VIEW s1.v5 AS SELECT t.id, m.answer FROM t JOIN m",
    "CREATE MACRO f(a) AS (SELECT answer FROM m WHERE content = a)",
    "PREPARE p AS SELECT answer FROM m WHERE content = $1",
    "WITH RECURSIVE r AS (SELECT 'x' AS a UNION ALL SELECT answer FROM m WHERE content = r.a) FROM r LIMIT 3",
]
"""Each of these is an error."""
DEEP = {
    "parentheses": "SELECT " + "(" * 1200 + "1" + ")" * 1200 + " FROM t JOIN m ON m.content = t.x",
    "parentheses round a binding": "SELECT answer FROM m WHERE " + "(" * 400 + "content = 'x'" + ")" * 400,
    "open parentheses": "SELECT answer FROM m WHERE " + "(" * 300,
    "subqueries": "SELECT * FROM (" * 40 + "SELECT answer FROM m WHERE content = 'x'" + ")" * 40,
    "many subqueries": "SELECT * FROM (" * 1200 + "SELECT answer FROM m WHERE content = 'x'" + ")" * 1200,
    "AND": "SELECT answer FROM m WHERE content = 'x'" + " AND length(answer) > 1" * 500,
    "OR": "SELECT answer FROM m WHERE " + " OR ".join(f"content = 'v{i}'" for i in range(900)),
    "IN": "SELECT count(answer) FROM m WHERE content IN (" + ", ".join(f"'v{i}'" for i in range(3000)) + ")",
    "concatenations": "SELECT answer FROM m WHERE content = 'x'" + " || 'x'" * 3000,
    "UNION ALL": " UNION ALL ".join(["SELECT answer FROM m WHERE content = 'x'"] * 60),
    "CASE": "SELECT " + "CASE WHEN true THEN " * 900 + "m.answer" + " END" * 900 + " FROM t JOIN m ON m.content = t.x",
    "NOT": "SELECT answer FROM m WHERE content = 'x' AND " + "NOT " * 3000 + "true",
    "lists": "SELECT " + "[" * 2000 + "m.answer" + "]" * 2000 + " FROM t JOIN m ON m.content = t.x",
    "unary": "SELECT answer, " + "- " * 5000 + "1 FROM m WHERE content = 'x'",
    "CTEs": "WITH "
    + ", ".join(f"q{i} AS (SELECT * FROM {f'q{i - 1}' if i else 't'})" for i in range(60))
    + " SELECT q59.id, m.answer FROM q59 JOIN m ON m.content = q59.x",
    "a long text": "SELECT answer FROM m WHERE content = '" + "it''s; " * 50_000 + "'",
    "comments": "SELECT answer FROM m " + "/* m */ -- m\n" * 1000 + "WHERE content = 'x'",
    "semicolons": ";" * 500 + "SELECT answer FROM m WHERE content = 'x'" + ";" * 500,
    "dots": "SELECT m" + ".m" * 300 + " FROM m WHERE content = 'x'",
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A connection that is made anew as often as needed; files are written into a folder of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SQLFT_HOME", str(folder))
        made = Target(Path(folder))
        yield made
        made.con.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB's own connection with a table of all answers."""
    with duckdb.connect() as made:
        made.execute(TABLES + "CREATE TABLE m AS SELECT DISTINCT x AS content, 'A: ' || x AS answer FROM t")
        yield made


@pytest.mark.parametrize("first", range(0, STATEMENTS, CHUNK))
def test_faults_in_statements(target: Target, first: int) -> None:
    found = list(faults(target, SEED, range(first, first + CHUNK)))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("statement", NAMES)
def test_names_where_none_belongs(target: Target, statement: str) -> None:
    assert not list(target.faults(statement))
    with pytest.raises(duckdb.Error):
        target.con.execute(statement).fetchall()


@pytest.mark.parametrize("statement", ["SHOW m", "DESCRIBE m", 'DESCRIBE "m"'])
def test_a_model_is_described(target: Target, statement: str) -> None:
    assert not list(target.faults(statement))
    assert target.con.execute(statement).fetchall() == target.con.execute("DESCRIBE MODEL m").fetchall()


@pytest.mark.parametrize("name", ["with_context", "from_email", "table1", "selector", "values_x", "insert_it"])
def test_a_name_may_begin_like_a_statement(target: Target, name: str) -> None:
    target.con.execute(f"CREATE OR REPLACE MODEL {name} PREDICT answer USING engine = 'echo'")
    for statement in (f"DESCRIBE {name}", f"DESCRIBE {name}.inputs", f"SELECT answer FROM {name} WHERE content = 'x'"):
        assert not list(target.faults(statement))
        assert target.con.execute(statement).fetchall()


@pytest.mark.parametrize("kind", list(DEEP))
def test_deep_and_long_statements(target: Target, kind: str) -> None:
    found = list(target.faults(DEEP[kind]))
    assert not found, "\n".join(found)[:2000]


def test_what_duckdb_reads_at_that_depth_is_answered(target: Target) -> None:
    target.renew()
    for kind in (
        "parentheses round a binding",
        "subqueries",
        "AND",
        "IN",
        "UNION ALL",
        "CTEs",
        "comments",
        "semicolons",
    ):
        assert target.con.execute(DEEP[kind]).fetchall(), kind


@pytest.mark.parametrize("character", hostile.BLANKS, ids=[f"U+{ord(c):04X}" for c in hostile.BLANKS])
@pytest.mark.parametrize("place", [1, 4, 6, 8, 11])
def test_odd_blanks_mean_what_they_mean_to_duckdb(
    target: Target, plain: duckdb.DuckDBPyConnection, character: str, place: int
) -> None:
    if OLD and character == "\0":
        pytest.skip("DuckDB 1.5 ends a statement there")
    words = [
        "SELECT",
        "t.id",
        ",",
        "m.answer",
        "FROM t",
        "JOIN",
        "m",
        "ON",
        "m.content",
        "=",
        "t.x",
        "WHERE",
        "t.id < 5",
    ]
    query = " ".join(words[:place]) + character + " ".join(words[place:])
    try:
        wanted = plain.execute(query).fetchall()
    except duckdb.Error:
        wanted = None
    assert not list(target.faults(query))
    if wanted is not None:
        assert sorted(target.con.execute(query).fetchall()) == sorted(wanted)


def test_a_comment_ends_a_word(target: Target) -> None:
    query = "SELECT t.id, m.answer FROM t JOIN-- a comment\nm"
    assert not list(target.faults(query))
    assert len(target.con.execute(query).fetchall()) == 12


def test_faults_are_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def escape(*args: object) -> None:
        print("a word", file=sys.stderr)
        raise KeyError("inside")

    monkeypatch.setattr(target.con, "execute", escape)
    found = [fault.split(":")[0] for fault in target.faults("SELECT 1")]
    assert found == ["KeyError escaped", "SELECT 42 fails afterwards", "written to stderr or logged"]
    assert not list(target.faults("SELECT 1"))


def test_statements_are_always_the_same_and_differ() -> None:
    texts = [mutate(SEED, number) for number in range(300)]
    assert texts == [mutate(SEED, number) for number in range(300)]
    assert len(set(texts)) > 270
