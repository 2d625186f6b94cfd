"""Queries over models with typed answers give what the same queries give over tables that hold all the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft import plugins

FIXTURE = Path(__file__).parents[1] / "sql" / "plan" / "typed.sql"
HANDLERS = Path(__file__).parents[1] / "handlers"
COLUMNS = """name VARCHAR NOT NULL, age INTEGER, tags VARCHAR[], mood ENUM('bad', 'good'),
  pet STRUCT(kind VARCHAR, born DATE), price DECIMAL(10, 2)"""
STRUCT = f"STRUCT({COLUMNS.replace(' NOT NULL', '')})"
TABLES = "CREATE TABLE t AS SELECT i AS id, 'p' || i AS x, x AS content FROM range(300) r(i)"
MODELS = f"""
CREATE MODEL m PREDICT ({COLUMNS}) USING engine = 'scribe';
CREATE MODEL whole PREDICT answer USING engine = 'scribe', schema = $${STRUCT}$$;
"""


@pytest.fixture(scope="module")
def model_and_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sqlft.Connection, Any]]:
    """A connection with models, and a plain one with tables in their place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HANDLERS))
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("typed")))
        plugins.find_entry_points.cache_clear()
        import scribe

        con, raw = sqlft.connect(), duckdb.connect()
        con.execute(f"{TABLES}; {MODELS}")
        raw.execute(f"{TABLES}; CREATE TABLE told (content VARCHAR, text VARCHAR)")
        raw.executemany("INSERT INTO told VALUES (?, ?)", [[f"p{i}", scribe.person(i)] for i in range(300)])
        raw.execute(f"CREATE TABLE whole AS SELECT content, text::JSON::{STRUCT} AS answer FROM told")
        raw.execute("CREATE TABLE m AS SELECT content, unnest(answer) FROM whole")
        yield con, raw
        con.close()
    plugins.find_entry_points.cache_clear()


def _result(con: Any, query: str) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    con.execute(query)
    return [(d[0], str(d[1])) for d in con.description], con.fetchall()


def _sorted(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=str)


@pytest.mark.parametrize(
    ("calls", "query"),
    [
        pytest.param(*found, id=found[1].strip()[:70])
        for found in re.findall(r"^-- calls (.+)\n((?:(?!--).+\n)+)", FIXTURE.read_text(), re.MULTILINE)
    ],
)
def test_typed_shape(model_and_table: tuple[sqlft.Connection, Any], calls: str, query: str) -> None:
    import scribe

    con, raw = model_and_table
    con.execute("DROP CACHE").fetchall()
    scribe.ASKED.clear()
    described, rows = _result(con, query)
    asked = len(scribe.ASKED)
    plain_described, plain_rows = _result(raw, query)
    assert described == plain_described
    ordered = "ORDER BY" in query.rsplit(")", 1)[-1]
    assert (rows if ordered else _sorted(rows)) == (plain_rows if ordered else _sorted(plain_rows))
    operator, number = re.match(r"(==|<=)\s*(\d+)", calls).groups()  # type: ignore[union-attr]
    assert asked == int(number) if operator == "==" else asked <= int(number), f"{asked} calls, wanted {calls}"
