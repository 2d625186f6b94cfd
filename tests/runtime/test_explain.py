"""EXPLAIN of queries that read models: nothing is asked, and what is foreseen is what then happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import NotSupported, OptionError

HANDLERS = Path(__file__).parents[1] / "handlers"
JOIN = "FROM t JOIN m ON m.content = t.x"


class CounterConnection:
    """A connection with a table t (id, x) of 40 rows and 20 texts, and models m and n of the counter's with a price."""

    def __init__(self) -> None:
        import counter

        self.asked = counter.ASKED
        self.asked.clear()
        self.con = sqlft.connect(warn=lambda text: None)
        self.con.execute("CREATE TABLE t AS SELECT i AS id, 'p' || (10 + i % 20) AS x FROM range(40) r(i)")
        self.con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter', base = 'tiny'")
        self.con.execute("CREATE MODEL n PREDICT reply USING engine = 'counter', base = 'tiny'")
        self.con.execute("CREATE PRICE FOR counter USING input = 1, output = 2")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    def plan(self, sql: str) -> str:
        """EXPLAIN's drawing."""
        [(_, drawn)] = self.run(sql)
        return str(drawn)

    def models(self, sql: str) -> dict[str, dict[str, Any]]:
        """What EXPLAIN (FORMAT JSON) says of each model."""
        found: dict[str, dict[str, Any]] = {}
        told = json.loads(self.plan(f"EXPLAIN (FORMAT JSON) {sql}"))
        todo = list(told)
        while todo:
            node = todo.pop()
            todo += node["children"]
            if "Model" in node["extra_info"]:
                found[node["extra_info"]["Model"]] = node["extra_info"]["Estimate"]
        return found

    def usage(self) -> dict[str, Any]:
        """The latest statement's row in the ledger."""
        table = self.con.execute("SELECT * FROM sqlft.usage ORDER BY created_at DESC LIMIT 1").arrow()
        return dict(table.to_pylist()[0])


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[CounterConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = CounterConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


QUERIES = [
    f"SELECT t.id, m.answer {JOIN}",
    f"SELECT t.id, m.answer {JOIN} WHERE t.id < 7 ORDER BY t.id",
    f"SELECT t.id, m.answer {JOIN} ORDER BY t.id LIMIT 5",
    f"SELECT m.answer, count(*) {JOIN} GROUP BY ALL",
    f"SELECT t.id {JOIN}",
    "SELECT answer FROM m WHERE content IN ('a', 'b')",
    f"WITH c AS (SELECT m.answer AS a {JOIN}) SELECT count(DISTINCT a) FROM c",
]


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_foreseen_is_what_happens(connection: CounterConnection, query: str) -> None:
    connection.run(f"SELECT m.answer {JOIN} WHERE t.id < 3")
    connection.asked.clear()
    told = connection.models(query)["m.1"]
    assert connection.asked == []
    connection.run(query)
    used = connection.usage()
    assert told["asked_low"] == told["asked"] == told["asked_high"] == used["calls"]
    if used["calls"]:
        assert (told["rows"], told["distinct_prompts"]) == (used["rows"], used["distinct_prompts"])
        assert told["cached"] == used["cached"]
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        assert told[f"{name}_low"] <= used[name] <= told[f"{name}_high"], name


def test_a_limit_behind_a_filter_may_stop_early(connection: CounterConnection) -> None:
    query = f"SELECT t.id, m.answer {JOIN} WHERE m.answer LIKE '%1%' LIMIT 3"
    told = connection.models(query)["m.1"]
    connection.run(query)
    assert told["asked_low"] <= connection.usage()["calls"] <= told["asked_high"] == 20


def test_a_model_that_waits_for_another_has_an_upper_bound(connection: CounterConnection) -> None:
    query = f"SELECT n.reply {JOIN} JOIN n ON n.content = m.answer"
    told = connection.models(query)
    connection.run(query)
    assert connection.asked[-1].startswith("A:")
    assert told["n.1"]["asked_low"] <= 20 <= told["n.1"]["asked_high"] == 40
    assert told["n.1"]["cost_usd_high"] > told["m.1"]["cost_usd_low"]


def test_explain_draws_the_models_in_duckdbs_plan_and_leaves_the_ledger(connection: CounterConnection) -> None:
    cursor = connection.con.execute(f"EXPLAIN SELECT t.id, upper(m.answer) {JOIN} WHERE t.id < 9")
    assert [d[0] for d in cursor.description] == ["explain_key", "explain_value"]
    [(key, drawn)] = cursor.fetchall()
    assert key == "physical_plan"
    for words in ("Model m.1", "Rows: 9", "Distinct Prompts: 9", "To Ask: 9", "Cost: ~$", "No model was asked", "Scan"):
        assert words in drawn
    assert connection.asked == []
    assert connection.run("SELECT * FROM sqlft.usage") == []


def test_explain_without_a_price_says_so(connection: CounterConnection) -> None:
    connection.run("DROP PRICE FOR counter")
    assert "Cost: not known" in connection.plan(f"EXPLAIN SELECT m.answer {JOIN}")
    assert connection.models(f"SELECT m.answer {JOIN}")["m.1"]["cost_usd"] is None


@pytest.mark.parametrize("query", [f"SELECT t.id, m.answer {JOIN} WHERE t.id < 30", QUERIES[3]])
def test_explain_analyze_runs_it_and_tells_both(connection: CounterConnection, query: str) -> None:
    [(key, drawn)] = connection.run(f"EXPLAIN ANALYZE {query}")
    assert key == "analyzed_plan"
    assert "To Ask: 20" in drawn
    assert "Asked: 20, Cached: 0, Errors: 0" in drawn
    assert "Tokens In: 40, Out: 60" in drawn
    assert "Cost: $0.00016" in drawn
    assert len(connection.asked) == connection.usage()["calls"] == 20
    told = json.loads(connection.plan(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"))
    assert told["rows_returned"] == len(connection.run(query))


def test_explain_of_what_writes_asks_and_writes_nothing(connection: CounterConnection) -> None:
    connection.run("CREATE TABLE kept (a VARCHAR)")
    drawn = connection.plan(f"EXPLAIN INSERT INTO kept SELECT m.answer {JOIN}")
    assert "Model m.1" in drawn
    assert (connection.asked, connection.run("FROM kept")) == ([], [])


def test_plain_explain_is_duckdbs(connection: CounterConnection) -> None:
    import duckdb

    for text in ("EXPLAIN SELECT 42", "EXPLAIN (FORMAT JSON) SELECT 42"):
        assert connection.run(text) == duckdb.connect().execute(text).fetchall()


def test_options_belong_to_the_query(connection: CounterConnection) -> None:
    assert "To Ask: 20" in connection.plan(f"EXPLAIN SELECT m.answer {JOIN} USING suffix = '!', max_rows = 3")
    with pytest.raises(OptionError, match="Did you mean 'suffix'"):
        connection.run(f"EXPLAIN SELECT m.answer {JOIN} USING sufix = '!'")


@pytest.mark.parametrize("options", ["FORMAT HTML", "FORMAT GRAPHVIZ", "VERBOSE"])
def test_other_formats_are_refused_with_those_there_are(connection: CounterConnection, options: str) -> None:
    with pytest.raises(NotSupported, match="FORMAT JSON"):
        connection.run(f"EXPLAIN ({options}) SELECT m.answer {JOIN}")
