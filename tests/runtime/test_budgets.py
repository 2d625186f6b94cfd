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


class Till:
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
def till(monkeypatch: pytest.MonkeyPatch) -> Iterator[Till]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = Till()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def test_a_budget_is_never_passed_and_what_was_answered_is_kept(till: Till) -> None:
    till.run("INSERT INTO t SELECT 100 + i, 'p' || (100 + i) FROM range(980) r(i)")
    budget = WORST + 40 * OF_A_ROW
    with pytest.raises(BudgetExceeded, match=r"max_cost_usd = .*\n.*What was answered is kept"):
        till.run(f"{ALL} USING max_cost_usd = {budget}")
    first = len(till.asked)
    assert budget - 15 * OF_A_ROW < first * OF_A_ROW <= budget
    assert till.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] == pytest.approx(first * OF_A_ROW)
    till.run(ALL)
    assert len(till.asked) == 1000


def test_rows_count_what_is_asked_and_not_what_is_kept_or_equal(till: Till) -> None:
    till.run("INSERT INTO t SELECT 100 + id, x FROM t")
    with pytest.raises(BudgetExceeded, match="max_rows is 5"):
        till.run(f"{ALL} USING max_rows = 5")
    assert len(till.asked) == 5
    assert len(till.run(f"{ALL} USING max_rows = 15")) == 40
    assert len(till.asked) == 20


@pytest.mark.parametrize("limit", ["max_cost_usd", "max_rows", "max_seconds"])
def test_nothing_is_asked_at_zero_and_kept_answers_are_given(till: Till, limit: str) -> None:
    till.run(f"{ALL} WHERE t.id < 3")
    till.asked.clear()
    assert len(till.run(f"{ALL} WHERE t.id < 3 USING {limit} = 0")) == 3
    with pytest.raises(BudgetExceeded):
        till.run(f"{ALL} USING {limit} = 0")
    assert till.asked == []


@pytest.mark.parametrize("limit", ["max_cost_usd = -1", "max_rows = -1", "max_seconds = -0.5", "max_rows = 1.5"])
def test_a_negative_or_broken_limit_is_an_error(till: Till, limit: str) -> None:
    with pytest.raises(OptionError):
        till.run(f"{ALL} USING {limit}")
    with pytest.raises(OptionError):
        till.run("SET sqlft_budget_usd = -1")
    assert till.asked == []


def test_without_a_price_no_budget_can_be_promised(till: Till) -> None:
    till.run("DROP PRICE FOR counter 'tiny'")
    with pytest.raises(OptionError, match="CREATE PRICE FOR counter 'tiny'"):
        till.run(f"{ALL} USING max_cost_usd = 1")
    assert till.asked == []
    with pytest.raises(BudgetExceeded):
        till.run(f"{ALL} USING max_cost_usd = 0")


def test_the_time_is_up_while_an_answer_is_awaited(till: Till) -> None:
    with pytest.raises(BudgetExceeded, match="max_seconds"):
        till.run(f"{ALL} USING max_seconds = 0.2, mode = 'gated'")
    import counter

    counter.GATE.release()
    till.asked.clear()


def test_a_session_has_a_budget_over_all_its_statements_and_cursors(till: Till) -> None:
    till.run("INSERT INTO t SELECT 100 + i, 'p' || (100 + i) FROM range(980) r(i)")
    budget = WORST + 6 * OF_A_ROW
    till.run(f"SET sqlft_budget_usd = {budget}")
    till.run(f"{ALL} WHERE t.id < 3")
    with pytest.raises(BudgetExceeded, match="sqlft_budget_usd"):
        till.con.cursor().execute(f"{ALL} USING cache = false").fetchall()
    assert till.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] <= budget
    till.run("RESET sqlft_budget_usd")
    assert len(till.run(ALL)) == 1000


def test_a_training_that_would_pass_the_budget_does_not_begin(shop: Any) -> None:
    """The stranger foretells 1,200 tokens at $500 a million: $0.60; it reports 123, which are $0.0615."""
    for limit in ("0.59", "0"):
        shop.run(f"SET sqlft_budget_usd = {limit}")
        with pytest.raises(
            BudgetExceeded, match=r"Training m would pass .*sqlft_budget_usd = \$0.*about \$0.60.*\n.*SET"
        ):
            shop.train()
        with pytest.raises(BudgetExceeded, match="Training other"):
            shop.run(
                "CREATE MODEL other FROM (SELECT * FROM rows) PREDICT answer"
                " USING engine = 'stranger', base = 'tiny', prompt_template = '{{question}}'"
            )
    shop.run("RESET sqlft_budget_usd")
    with pytest.raises(BudgetExceeded, match=r"max_cost_usd = \$0.50"):
        shop.train("max_cost_usd = 0.5")
    assert not (shop.stranger.control / "begun").exists()
    assert [v.key.number for v in shop.catalog.versions()] == [1]
    shop.run("SET sqlft_budget_usd = 1.2")
    shop.train("max_cost_usd = 0.6")
    assert shop.run("SELECT value, spent_usd FROM sqlft.settings WHERE name = 'sqlft_budget_usd'") == [(1.2, 0.0615)]
    shop.train("wait = false")
    assert shop.con.session.budget.spent == pytest.approx(0.0615 + 0.6)
    with pytest.raises(BudgetExceeded, match="are spent"):
        shop.train()
    shop.ended(3)


def test_a_machines_hours_are_in_the_budget_of_a_training(shop: Any) -> None:
    shop.run(
        "CREATE MODEL own PREDICT answer USING engine = 'stranger', base = 'mine', prompt_template = '{{question}}'"
    )
    shop.run("SET sqlft_budget_usd = 0.01")
    with pytest.raises(OptionError, match=r"what training own costs is not known.*\n.*machine_usd_per_hour"):
        shop.train(what="FINETUNE own")
    shop.run("SET sqlft_machine_usd_per_hour = 0.475")  # 90 seconds: $0.011875
    with pytest.raises(BudgetExceeded, match=r"about \$0.0119"):
        shop.train(what="FINETUNE own")
    shop.run("SET sqlft_budget_usd = 0.012")
    shop.train(what="FINETUNE own")
    ended = shop.version(2, "own")
    assert shop.con.session.budget.spent == pytest.approx(ended.details["cost_usd"])
    shop.run("SET sqlft_machine_usd_per_hour = 0")
    shop.run("SET sqlft_budget_usd = 0")
    shop.train(what="FINETUNE own")
    assert shop.con.session.budget.spent == 0


def test_a_training_that_breaks_off_costs_what_it_took(shop: Any) -> None:
    shop.run(
        "CREATE MODEL own PREDICT answer USING engine = 'stranger', base = 'mine', prompt_template = '{{question}}'"
    )
    shop.run("SET sqlft_machine_usd_per_hour = 3600")
    shop.run("SET sqlft_budget_usd = 100")
    shop.stranger.script({2: "refuse"})
    with pytest.raises(ProviderError, match="Sundays"):
        shop.train(what="FINETUNE own")
    assert 0 < shop.con.session.budget.spent < 90


def test_settings_can_be_read(till: Till) -> None:
    both = "SELECT current_setting('sqlft_budget_usd'), current_setting('SQLFT_machine_usd_per_hour') AS rate"
    assert till.run(both) == [(None, None)]
    till.run("SET sqlft_budget_usd = 2.5")
    till.run("SET sqlft_machine_usd_per_hour = 0.475")
    assert till.run(both) == [(2.5, 0.475)]
    assert till.run(f"{both} FROM sqlft.settings LIMIT 1") == [(2.5, 0.475)]
    assert till.con.sql(both).fetchall() == [(2.5, 0.475)]
    assert till.run("SELECT name, value, spent_usd FROM sqlft.settings ORDER BY name") == [
        ("sqlft_budget_usd", 2.5, 0.0),
        ("sqlft_machine_usd_per_hour", 0.475, None),
    ]
    with pytest.raises(OptionError, match="Did you mean 'sqlft_budget_usd'"):
        till.run("SELECT current_setting('sqlft_budget')")
    assert till.run("SELECT current_setting('threads') > 0") == [(True,)]


def test_two_models_of_a_statement_share_its_limits(till: Till) -> None:
    till.run("CREATE MODEL n PREDICT reply USING engine = 'counter', base = 'tiny'")
    both = "SELECT m.answer, n.reply FROM t JOIN m ON m.content = t.x JOIN n ON n.content = t.x || '!'"
    with pytest.raises(BudgetExceeded, match="max_rows is 30"):
        till.run(f"{both} USING max_rows = 30")
    assert len(till.asked) == 30
    till.run("DROP CACHE")
    with pytest.raises(BudgetExceeded, match=r"n\.1"):
        till.run(f"{both} USING n.max_rows = 3")


def test_requests_that_failed_are_asked_again_under_the_same_limits(till: Till) -> None:
    assert len(till.run(f"{ALL} USING max_rows = 20, mode = 'flaky'")) == 20


def test_sessions_in_threads_share_what_is_held_back(till: Till) -> None:
    till.run(f"SET sqlft_budget_usd = {3 * WORST}")
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            till.con.cursor().execute(f"{ALL} USING cache = false").fetchall()
        except BudgetExceeded as e:
            errors.append(e)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert till.run("SELECT sum(cost_usd) FROM sqlft.usage")[0][0] <= 3 * WORST
