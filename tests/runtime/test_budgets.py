"""max_cost_usd, max_rows, max_seconds and SET sqlft_budget_usd: stopped before the request that would pass them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import BudgetExceeded, OptionError, ProviderError

HANDLERS = Path(__file__).parents[1] / "handlers"
ALL = "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x"
OF_A_ROW = (2 * 1 + 3 * 1) / 1e6
"""The counter says that every prompt has 2 tokens and every answer 3."""
WORST = (3 + 32 + 256) / 1e6
"""What a row is reserved at first: its bytes, two overheads, 256 tokens of answer as it has no max_tokens."""


class PricedConnection:
    """A connection with a table t (id, x) of 20 rows and a model m of the counter's with a price."""

    def __init__(self) -> None:
        import counter

        self.asked = counter.ASKED
        self.asked.clear()
        self.con = sqlft.connect(warn=lambda text: None)
        self.con.execute("CREATE TABLE t AS SELECT i AS id, 'p' || i AS x FROM range(20) r(i)")
        self.con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter', base = 'tiny'")
        self.con.execute("CREATE PRICE FOR counter 'tiny' USING input = 1, output = 1")

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.con.execute(sql, parameters).fetchall()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[PricedConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = PricedConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def test_a_budget_is_never_passed_and_what_was_answered_is_kept(connection: PricedConnection) -> None:
    connection.run("INSERT INTO t SELECT 100 + i, 'p' || (100 + i) FROM range(980) r(i)")
    budget = WORST + 40 * OF_A_ROW
    with pytest.raises(BudgetExceeded, match=r"max_cost_usd = .*\n.*What was answered is kept"):
        connection.run(f"{ALL} USING max_cost_usd = {budget}")
    first = len(connection.asked)
    assert budget - 15 * OF_A_ROW < first * OF_A_ROW <= budget
    assert connection.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] == pytest.approx(first * OF_A_ROW)
    connection.run(ALL)
    assert len(connection.asked) == 1000


def test_rows_count_what_is_asked_and_not_what_is_kept_or_equal(connection: PricedConnection) -> None:
    connection.run("INSERT INTO t SELECT 100 + id, x FROM t")
    with pytest.raises(BudgetExceeded, match="max_rows is 5"):
        connection.run(f"{ALL} USING max_rows = 5")
    assert len(connection.asked) == 5
    assert len(connection.run(f"{ALL} USING max_rows = 15")) == 40
    assert len(connection.asked) == 20


@pytest.mark.parametrize("limit", ["max_cost_usd", "max_rows", "max_seconds"])
def test_nothing_is_asked_at_zero_and_kept_answers_are_given(connection: PricedConnection, limit: str) -> None:
    connection.run(f"{ALL} WHERE t.id < 3")
    connection.asked.clear()
    assert len(connection.run(f"{ALL} WHERE t.id < 3 USING {limit} = 0")) == 3
    with pytest.raises(BudgetExceeded):
        connection.run(f"{ALL} USING {limit} = 0")
    assert connection.asked == []


@pytest.mark.parametrize("limit", ["max_cost_usd = -1", "max_rows = -1", "max_seconds = -0.5", "max_rows = 1.5"])
def test_a_negative_or_broken_limit_is_an_error(connection: PricedConnection, limit: str) -> None:
    with pytest.raises(OptionError):
        connection.run(f"{ALL} USING {limit}")
    with pytest.raises(OptionError):
        connection.run("SET sqlft_budget_usd = -1")
    assert connection.asked == []


def test_without_a_price_no_budget_can_be_promised(connection: PricedConnection) -> None:
    connection.run("DROP PRICE FOR counter 'tiny'")
    with pytest.raises(OptionError, match="CREATE PRICE FOR counter 'tiny'"):
        connection.run(f"{ALL} USING max_cost_usd = 1")
    assert connection.asked == []
    with pytest.raises(BudgetExceeded):
        connection.run(f"{ALL} USING max_cost_usd = 0")


def test_the_time_is_up_while_an_answer_is_awaited(connection: PricedConnection) -> None:
    with pytest.raises(BudgetExceeded, match="max_seconds"):
        connection.run(f"{ALL} USING max_seconds = 0.2, mode = 'gated'")
    import counter

    counter.GATE.release()
    connection.asked.clear()


def test_a_session_has_a_budget_over_all_its_statements_and_cursors(connection: PricedConnection) -> None:
    connection.run("INSERT INTO t SELECT 100 + i, 'p' || (100 + i) FROM range(980) r(i)")
    budget = WORST + 6 * OF_A_ROW
    connection.run(f"SET sqlft_budget_usd = {budget}")
    connection.run(f"{ALL} WHERE t.id < 3")
    with pytest.raises(BudgetExceeded, match="sqlft_budget_usd"):
        connection.con.cursor().execute(f"{ALL} USING cache = false").fetchall()
    assert connection.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] <= budget
    connection.run("RESET sqlft_budget_usd")
    assert len(connection.run(ALL)) == 1000


def test_a_training_that_would_pass_the_budget_does_not_begin(connection_with_model: Any) -> None:
    """The stranger foretells 1,200 tokens at $500 a million: $0.60; it reports 123, which are $0.0615."""
    for limit in ("0.59", "0"):
        connection_with_model.run(f"SET sqlft_budget_usd = {limit}")
        with pytest.raises(
            BudgetExceeded, match=r"Training m would pass .*sqlft_budget_usd = \$0.*about \$0.60.*\n.*SET"
        ):
            connection_with_model.train()
        with pytest.raises(BudgetExceeded, match="Training other"):
            connection_with_model.run(
                "CREATE MODEL other FROM (SELECT * FROM rows) PREDICT answer"
                " USING engine = 'stranger', base = 'tiny', prompt_template = '{{question}}'"
            )
    connection_with_model.run("RESET sqlft_budget_usd")
    with pytest.raises(BudgetExceeded, match=r"max_cost_usd = \$0.50"):
        connection_with_model.train("max_cost_usd = 0.5")
    assert not (connection_with_model.training.folder / "begun").exists()
    assert [v.key.number for v in connection_with_model.catalog.versions()] == [1]
    connection_with_model.run("SET sqlft_budget_usd = 1.2")
    connection_with_model.train("max_cost_usd = 0.6")
    assert connection_with_model.run("SELECT value, spent_usd FROM sqlft.settings WHERE name = 'sqlft_budget_usd'") == [
        (1.2, 0.0615)
    ]
    connection_with_model.train("wait = false")
    assert connection_with_model.con.session.budget.spent == pytest.approx(0.0615 + 0.6)
    with pytest.raises(BudgetExceeded, match="are spent"):
        connection_with_model.train()
    connection_with_model.wait_until_ended(3)


def test_a_machines_hours_are_in_the_budget_of_a_training(connection_with_model: Any) -> None:
    connection_with_model.run(
        "CREATE MODEL own PREDICT answer USING engine = 'stranger', base = 'mine', prompt_template = '{{question}}'"
    )
    connection_with_model.run("SET sqlft_budget_usd = 0.01")
    with pytest.raises(OptionError, match=r"what training own costs is not known.*\n.*machine_usd_per_hour"):
        connection_with_model.train(what="FINETUNE own")
    connection_with_model.run("SET sqlft_machine_usd_per_hour = 0.475")  # 90 seconds: $0.011875
    with pytest.raises(BudgetExceeded, match=r"about \$0.0119"):
        connection_with_model.train(what="FINETUNE own")
    connection_with_model.run("SET sqlft_budget_usd = 0.012")
    connection_with_model.train(what="FINETUNE own")
    ended = connection_with_model.version(2, "own")
    assert connection_with_model.con.session.budget.spent == pytest.approx(ended.details["cost_usd"])
    connection_with_model.run("SET sqlft_machine_usd_per_hour = 0")
    connection_with_model.run("SET sqlft_budget_usd = 0")
    connection_with_model.train(what="FINETUNE own")
    assert connection_with_model.con.session.budget.spent == 0


def test_a_training_that_breaks_off_costs_what_it_took(connection_with_model: Any) -> None:
    connection_with_model.run(
        "CREATE MODEL own PREDICT answer USING engine = 'stranger', base = 'mine', prompt_template = '{{question}}'"
    )
    connection_with_model.run("SET sqlft_machine_usd_per_hour = 3600")
    connection_with_model.run("SET sqlft_budget_usd = 100")
    connection_with_model.training.script({2: "refuse"})
    with pytest.raises(ProviderError, match="Sundays"):
        connection_with_model.train(what="FINETUNE own")
    assert 0 < connection_with_model.con.session.budget.spent < 90


def test_settings_can_be_read(connection: PricedConnection) -> None:
    both = "SELECT current_setting('sqlft_budget_usd'), current_setting('SQLFT_machine_usd_per_hour') AS rate"
    assert connection.run(both) == [(None, None)]
    connection.run("SET sqlft_budget_usd = 2.5")
    connection.run("SET sqlft_machine_usd_per_hour = 0.475")
    assert connection.run(both) == [(2.5, 0.475)]
    assert connection.run(f"{both} FROM sqlft.settings LIMIT 1") == [(2.5, 0.475)]
    assert connection.con.sql(both).fetchall() == [(2.5, 0.475)]
    assert connection.run("SELECT name, value, spent_usd FROM sqlft.settings ORDER BY name") == [
        ("sqlft_budget_usd", 2.5, 0.0),
        ("sqlft_machine_usd_per_hour", 0.475, None),
    ]
    with pytest.raises(OptionError, match="Did you mean 'sqlft_budget_usd'"):
        connection.run("SELECT current_setting('sqlft_budget')")
    assert connection.run("SELECT current_setting('threads') > 0") == [(True,)]


def test_two_models_of_a_statement_share_its_limits(connection: PricedConnection) -> None:
    connection.run("CREATE MODEL n PREDICT reply USING engine = 'counter', base = 'tiny'")
    both = "SELECT m.answer, n.reply FROM t JOIN m ON m.content = t.x JOIN n ON n.content = t.x || '!'"
    with pytest.raises(BudgetExceeded, match="max_rows is 30"):
        connection.run(f"{both} USING max_rows = 30")
    assert len(connection.asked) == 30
    connection.run("DROP CACHE")
    with pytest.raises(BudgetExceeded, match=r"n\.1"):
        connection.run(f"{both} USING n.max_rows = 3")


def test_requests_that_failed_are_asked_again_under_the_same_limits(connection: PricedConnection) -> None:
    assert len(connection.run(f"{ALL} USING max_rows = 20, mode = 'flaky'")) == 20


def test_sessions_in_threads_share_what_is_held_back(connection: PricedConnection) -> None:
    connection.run(f"SET sqlft_budget_usd = {3 * WORST}")
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            connection.con.cursor().execute(f"{ALL} USING cache = false").fetchall()
        except BudgetExceeded as e:
            errors.append(e)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert connection.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] <= 3 * WORST
