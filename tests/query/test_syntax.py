"""Every construct of DuckDB's SELECT works beside a model and a knowledge base: in a CTE or a subquery next to one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import sqlft
from query.world import OLD, Outcome, fetch, sort_rows

QUERIES = [line for line in (Path(__file__).parent / "syntax.sql").read_text().split("\n") if line and line[:2] != "--"]
WRAPPED = {
    "alone": "{}",
    "cte": "WITH q AS ({}\n), a AS (SELECT answer FROM m WHERE content = 'x') SELECT * FROM q CROSS JOIN a",
    "search": "WITH q AS ({}\n), a AS (SELECT id FROM docs WHERE content = 'x') SELECT q.* FROM q CROSS JOIN a",
    "subquery": "SELECT *, (SELECT answer FROM m WHERE content = 'x') AS said FROM ({}\n) AS q",
}
FEWEST = {"alone": 0.95, "cte": 0.9, "search": 0.9, "subquery": 0.9}
"""The share of queries that plain DuckDB must run, so that they are compared."""
TABLES = """
CREATE TABLE items AS SELECT * FROM (VALUES
  (1, 'apple', 'fruit', 1.50, 3, DATE '2024-01-01', TIMESTAMP '2024-01-01 10:00:00', ['red', 'sweet'],
   {'a': 1, 'b': 'x'}, MAP {'x': 1}, true),
  (2, 'Pear', 'fruit', NULL, 1, DATE '2024-01-03', TIMESTAMP '2024-01-03 11:30:00', ['green'],
   {'a': 2, 'b': 'y'}, MAP {'x': 2}, false),
  (3, 'leek', 'veg', 2.25, 2, DATE '2024-02-01', TIMESTAMP '2024-02-01 00:00:00', [],
   {'a': 3, 'b': NULL}, MAP {'y': 3}, true),
  (4, 'pea', 'veg', 0.10, 3, DATE '2024-02-29', NULL, ['green', 'sweet', 'small'],
   {'a': NULL, 'b': 'z'}, MAP {'x': 4, 'y': 5}, NULL),
  (5, NULL, NULL, 9.99, 5, NULL, TIMESTAMP '2024-03-01 12:00:00', NULL, NULL, NULL, false)
) v(id, name, grp, price, qty, d, ts, tags, info, mp, flag);
CREATE TABLE sales AS SELECT * FROM (VALUES
  (1, 1, DATE '2024-01-02', 10), (2, 1, DATE '2024-02-02', 20), (3, 3, DATE '2024-02-03', 5),
  (4, 9, DATE '2024-03-01', 7)
) v(id, item_id, day, amount);
CREATE TABLE rates AS SELECT * FROM (VALUES
  (1, DATE '2024-01-01', DATE '2024-01-01', 1.1), (3, DATE '2024-02-01', DATE '2024-02-01', 1.2)
) v(item_id, since, day, rate);
CREATE TABLE stock AS SELECT * FROM (VALUES (1, 'A1'), (3, 'A2'), (4, 'B1')) v(id, bin);
CREATE TABLE small AS SELECT 1 AS one;
"""
ModelAndTable = tuple[sqlft.Connection, duckdb.DuckDBPyConnection]


@pytest.fixture(scope="module")
def model_and_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelAndTable]:
    """A connection with a model, and a plain one with a table in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("syntax")))
        con, raw = sqlft.connect(), duckdb.connect()
        con.execute(TABLES + "CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'A: {{content}}'")
        con.execute("CREATE KNOWLEDGE_BASE docs; INSERT INTO docs (id, content) VALUES (1, 'x')")
        raw.execute(TABLES + "CREATE TABLE m AS SELECT 'x' AS content, 'A: x' AS answer")
        raw.execute("CREATE TABLE docs AS SELECT 1 AS id, 'x' AS content")
        yield con, raw
        con.close()
    raw.close()


def _plain(raw: duckdb.DuckDBPyConnection, query: str) -> Outcome | None:
    """What plain DuckDB gives, if this version knows the syntax."""
    try:
        return fetch(raw, query)
    except duckdb.Error:
        return None


@pytest.mark.parametrize("where", list(WRAPPED))
@pytest.mark.parametrize("query", QUERIES, ids=[q[:60] for q in QUERIES])
def test_syntax(model_and_table: ModelAndTable, query: str, where: str) -> None:
    con, raw = model_and_table
    text = WRAPPED[where].format(query)
    if OLD and " 5., " in query:
        pytest.skip("DuckDB 1.5 prints 5. as 5, which has another type")
    if (plain := _plain(raw, text)) is None:
        pytest.skip("not in this version of DuckDB, or not in such a place")
    given = fetch(con, text)
    assert given.names == plain.names
    assert given.types == plain.types
    assert sort_rows(given.rows) == sort_rows(plain.rows)


@pytest.mark.parametrize("where", list(WRAPPED))
def test_most_are_compared(model_and_table: ModelAndTable, where: str) -> None:
    refused = [q for q in QUERIES if _plain(model_and_table[1], WRAPPED[where].format(q)) is None]
    assert 1 - len(refused) / len(QUERIES) >= FEWEST[where], "\n".join(refused)


def test_queries_give_the_same_twice(model_and_table: ModelAndTable) -> None:
    for query in QUERIES:
        if (once := _plain(model_and_table[1], query)) is not None:
            again = fetch(model_and_table[1], query)
            assert sort_rows(once.rows) == sort_rows(again.rows), query
