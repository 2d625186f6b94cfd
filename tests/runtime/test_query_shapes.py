"""Queries over models give what the same queries give over tables that hold all the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft import plugins

FIXTURE = Path(__file__).parents[1] / "sql" / "plan" / "shapes.sql"
HANDLERS = Path(__file__).parents[1] / "handlers"
TABLES = """
CREATE TABLE t AS SELECT i AS id, 'p' || (i % 2000) AS x, i % 7 AS k, x AS content FROM range(20000) r(i);
CREATE TABLE u AS SELECT i AS id, i * 2 AS y, 'n' || (i % 5) AS nm FROM range(100) r(i);
CREATE TABLE sink (id BIGINT, answer VARCHAR);
"""
MODELS = """
CREATE MODEL m PREDICT answer USING engine = 'counter';
CREATE MODEL m2 PREDICT label USING engine = 'counter', prompt_template = '{{q}}';
"""
ANSWERS = """
CREATE TABLE m AS SELECT DISTINCT x AS content, 'A:' || upper(x) AS answer FROM (
  SELECT x FROM t UNION ALL SELECT nm FROM u UNION ALL SELECT x || '!' FROM t UNION ALL SELECT id::VARCHAR FROM t);
CREATE TABLE m2 AS SELECT answer AS q, 'A:' || upper(answer) AS label FROM m
  UNION SELECT upper(answer) || 'z', 'A:' || upper(upper(answer) || 'z') FROM m;
"""


def _shapes() -> list[tuple[str, str]]:
    text = FIXTURE.read_text()
    return re.findall(r"^-- calls (.+)\n((?:(?!--).+\n)+)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def model_and_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sqlft.Connection, Any]]:
    """A connection with models, and a plain one with tables in their place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HANDLERS))
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("shapes")))
        plugins.find_entry_points.cache_clear()
        con, raw = sqlft.connect(), duckdb.connect()
        con.execute(TABLES + MODELS)
        raw.execute(TABLES + ANSWERS)
        yield con, raw
        con.close()
    plugins.find_entry_points.cache_clear()


def _result(con: Any, query: str) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
    con.execute(query)
    described = [(d[0], str(d[1])) for d in con.description]
    return [n for n, _ in described], [t for _, t in described], con.fetchall()


def _sorted(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda row: [(v is None, str(v)) for v in row])


@pytest.mark.parametrize(("calls", "query"), _shapes(), ids=[q.strip()[:70] for _, q in _shapes()])
def test_shape(model_and_table: tuple[sqlft.Connection, Any], calls: str, query: str) -> None:
    import counter

    con, raw = model_and_table
    con.execute("DROP CACHE").fetchall()
    before = len(counter.ASKED)
    names, types, rows = _result(con, query)
    asked = len(counter.ASKED) - before
    plain_names, plain_types, plain_rows = _result(raw, query.replace("m.1", "m"))
    assert (names, types) == (plain_names, plain_types)
    if "any rows" in calls:
        assert len(rows) == len(plain_rows)
    elif "ORDER BY" in query.rsplit(")", 1)[-1]:
        assert rows == plain_rows
    else:
        assert _sorted(rows) == _sorted(plain_rows)
    operator, number = re.match(r"(==|<=|>)\s*(\d+)", calls).groups()  # type: ignore[union-attr]
    compare = {"==": asked == int(number), "<=": asked <= int(number), ">": asked > int(number)}
    assert compare[operator], f"{asked} calls, wanted {calls}"
