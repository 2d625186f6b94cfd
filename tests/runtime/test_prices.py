"""CREATE PRICE and what follows from it: costs of rows, statements, days and trainings; a machine's hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import AlreadyExists, NotFound, OptionError, StatementError
from sqlft.inference.budget import MachineTimer
from sqlft.report.facts import collect_model_facts

HANDLERS = Path(__file__).parents[1] / "handlers"
ALL = "SELECT t.id, m.answer_usage.cost_usd FROM t JOIN m ON m.content = t.x"
# The counter says that every prompt has 2 tokens and every answer 3.
OF_A_ROW = (2 * 10 + 3 * 100) / 1e6


class PricedConnection:
    """A connection with a table t (id, x) of 20 rows and a model m of the counter's, base 'tiny'."""

    def __init__(self) -> None:
        self.con = sqlft.connect(warn=lambda text: None)
        self.con.execute("CREATE TABLE t AS SELECT i AS id, 'p' || i AS x FROM range(20) r(i)")
        self.con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter', base = 'tiny'")

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.con.execute(sql, parameters).fetchall()

    def last(self, what: str = "cost_usd") -> Any:
        """A column of the latest statement's row in the ledger."""
        return self.run(f"SELECT {what} FROM sqlft.usage ORDER BY created_at DESC LIMIT 1")[0][0]


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[PricedConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = PricedConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def test_what_is_not_known_is_null(connection: PricedConnection) -> None:
    assert {cost for _, cost in connection.run(ALL)} == {None}
    assert connection.last() is None
    assert connection.run("SELECT cost_usd, unpriced FROM sqlft.costs") == [(None, 1)]


def test_kept_answers_make_no_sum_of_unknown_prices_known(connection: PricedConnection) -> None:
    few = f"{ALL} WHERE t.id < 3"
    connection.run(few)
    connection.run(few)
    assert (connection.last(), connection.run("SELECT cost_usd, unpriced FROM sqlft.costs")) == (0.0, [(None, 1)])
    [spent] = collect_model_facts(connection.con.session.catalog, connection.con.session.catalog.models()[0]).usage
    assert spent.cost == "–"
    connection.run("CREATE PRICE FOR counter 'tiny' USING input = 10, output = 100")
    connection.run(f"{ALL} WHERE t.id < 4")
    assert connection.run("SELECT cost_usd, unpriced FROM sqlft.costs") == [(pytest.approx(OF_A_ROW), 1)]
    [spent] = collect_model_facts(connection.con.session.catalog, connection.con.session.catalog.models()[0]).usage
    assert spent.cost.startswith("at least $")


def test_an_own_price_counts_tokens_and_kept_answers_are_free(connection: PricedConnection) -> None:
    connection.run("CREATE PRICE FOR counter 'tiny' USING input = 10, output = 100")
    assert [cost for _, cost in connection.run(f"{ALL} WHERE t.id < 3")] == pytest.approx([OF_A_ROW] * 3)
    assert connection.last() == pytest.approx(3 * OF_A_ROW)
    assert [cost for _, cost in connection.run(f"{ALL} WHERE t.id < 4 ORDER BY t.id")] == pytest.approx(
        [0, 0, 0, OF_A_ROW]
    )
    assert connection.last() == pytest.approx(OF_A_ROW)
    connection.run(f"{ALL} WHERE t.id < 4")
    assert connection.last() == 0.0
    assert connection.run("SELECT model, version, statements, calls, input_tokens, cost_usd FROM sqlft.costs") == [
        ("m", 1, 3, 4, 8, pytest.approx(4 * OF_A_ROW))
    ]


def test_half_a_price_is_no_price(connection: PricedConnection) -> None:
    connection.run("CREATE PRICE FOR counter USING input = 10")
    connection.run(ALL)
    assert connection.last() is None


@pytest.mark.parametrize("whose", ["counter 'tiny'", "counter tiny", "COUNTER MODEL 'TINY'", "counter m"])
def test_a_models_price_comes_before_the_engines(connection: PricedConnection, whose: str) -> None:
    connection.run("CREATE PRICE FOR counter USING input = 0, output = 0")
    connection.run(f"CREATE PRICE FOR {whose} USING input = 10, output = 100")
    connection.run(f"{ALL} WHERE t.id = 0")
    assert connection.last() == pytest.approx(OF_A_ROW)


def test_prices_are_listed_replaced_and_dropped(connection: PricedConnection) -> None:
    connection.run("CREATE PRICE FOR counter 'tiny' USING input = ?, output = 2", [1.5])
    with pytest.raises(AlreadyExists, match="CREATE OR REPLACE PRICE"):
        connection.run("CREATE PRICE FOR counter 'TINY' USING input = 9")
    connection.run("CREATE PRICE IF NOT EXISTS FOR counter 'tiny' USING input = 9")
    assert connection.run("SELECT engine, model, input, output, training FROM sqlft.prices") == [
        ("counter", "tiny", 1.5, 2.0, None)
    ]
    row = connection.run("CREATE OR REPLACE PRICE FOR counter 'tiny' USING input = 9, machine_usd_per_hour = 0.475")
    assert row[0][:7] == ("counter", "tiny", 9.0, None, None, None, 0.475)
    assert [r[1] for r in connection.run("SHOW PRICES LIKE 'count%' WHERE input > 8")] == ["tiny"]
    connection.run("DROP PRICE FOR counter 'tiny'")
    assert connection.run("SHOW PRICES") == []
    connection.run("DROP PRICE IF EXISTS FOR counter 'tiny'")
    with pytest.raises(NotFound, match="SHOW PRICES"):
        connection.run("DROP PRICE FOR counter 'tiny'")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("FOR counter USING inptu = 1", OptionError),
        ("FOR counter USING input = -1", OptionError),
        ("FOR counter USING input = 'much'", OptionError),
        ("FOR counter USING input = NULL", OptionError),
        ("FOR nobody USING input = 1", NotFound),
        ("FOR counter", StatementError),
        ("FOR counter 5 USING input = 1", StatementError),
    ],
)
def test_a_wrong_price_is_refused(connection: PricedConnection, wrong: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        connection.run(f"CREATE PRICE {wrong}")


def test_tables_and_settings_of_duckdb_stay_its_own(connection: PricedConnection) -> None:
    connection.run("CREATE TABLE price AS SELECT 1 AS input")
    connection.run("SET threads = 1")
    connection.run("RESET threads")
    connection.run("SET SESSION search_path = 'main'")
    assert connection.run("SELECT input FROM price") == [(1,)]
    with pytest.raises(OptionError, match="Did you mean 'sqlft_budget_usd'"):
        connection.run("SET sqlft_budgt_usd = 1")


@pytest.mark.parametrize(
    "said",
    [
        "SET sqlft_machine_usd_per_hour = 3600",
        "SET SESSION sqlft_machine_usd_per_hour TO 3600",
        "CREATE PRICE FOR counter USING machine_usd_per_hour = 3600",
    ],
)
def test_a_machine_costs_its_seconds_shared_by_the_rows(connection: PricedConnection, said: str) -> None:
    connection.run(said)
    shares = [cost for _, cost in connection.run(ALL)]
    total, seconds = connection.run("SELECT cost_usd, seconds FROM sqlft.usage")[0]
    assert all(share > 0 for share in shares)
    assert sum(shares) <= total * (1 + 1e-9)
    assert 0 < total <= seconds


def test_an_engine_has_a_rate_and_a_machine_of_nothing_costs_nothing(connection: PricedConnection) -> None:
    connection.run("CREATE ML_ENGINE gpu FROM counter USING machine_usd_per_hour = 0")
    connection.run("CREATE MODEL g PREDICT answer USING engine = 'gpu'")
    connection.run("SELECT answer FROM g WHERE content = 'x'")
    assert connection.last() == 0.0
    connection.run("CREATE MODEL h PREDICT answer USING engine = 'counter', machine_usd_per_hour = 0")
    connection.run("SELECT answer FROM h WHERE content = 'x'")
    assert connection.last() == 0.0


def test_the_machine_timer_shares_each_moment_among_the_rows_under_way() -> None:
    now = [0.0]
    timer = MachineTimer(lambda: now[0])
    timer.start()
    now[0] = 1.0  # loading: paid by those that waited for it
    timer.begin(0)
    timer.begin(1)
    now[0] = 3.0
    first = timer.end(0)
    now[0] = 6.0
    second = timer.end(1)
    timer.pause()
    now[0] = 100.0
    assert (first, second) == (1.5, 4.5)
    assert timer.elapsed() == 6.0


def test_a_training_costs_its_hours_or_its_tokens(connection_with_model: Any) -> None:
    connection_with_model.run("CREATE PRICE FOR stranger USING machine_usd_per_hour = 3600")
    connection_with_model.train("steps = 2")
    hours = connection_with_model.version(2)
    assert hours.details["cost_usd"] == pytest.approx(hours.seconds, abs=0.5)
    connection_with_model.run("CREATE OR REPLACE PRICE FOR stranger USING training = 1000")
    connection_with_model.train("steps = 2")
    tokens = connection_with_model.version(3)
    assert tokens.details["cost_usd"] == pytest.approx(1000 * tokens.details["tokens"] / 1e6)
    costs = "SELECT version, training_cost_usd, training_seconds > 0 FROM sqlft.costs ORDER BY version"
    assert connection_with_model.run(costs) == [
        (v, connection_with_model.version(v).details["cost_usd"], True) for v in (2, 3)
    ]
