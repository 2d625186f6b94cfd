"""The query room from inside: its examples, a plan as text, and an interrupt while answers come."""

from __future__ import annotations

import doctest
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import Cancelled

HANDLERS = Path(__file__).parents[1] / "handlers"


@pytest.mark.parametrize("module", ["ast", "statements"])
def test_examples_are_true(module: str) -> None:
    found = doctest.testmod(import_module(f"sqlft.query.{module}"))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.fixture
def con(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    """A connection with a model of the handler `counter` and 5,000 rows."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    with sqlft.connect(warn=lambda text: None) as made:
        made.execute("CREATE MODEL m PREDICT answer USING engine = 'counter'")
        made.execute("CREATE TABLE t AS SELECT i AS id, 'p' || i AS x FROM range(5000) r(i)")
        yield made
    plugins.find_entry_points.cache_clear()


@pytest.mark.parametrize("using", ["", " USING cache = false"])
def test_an_interrupt_is_heard_between_answers(con: sqlft.Connection, using: str) -> None:
    import counter

    before = len(counter.ASKED)
    con.session.show_progress = lambda tick: con.interrupt()
    with pytest.raises(Cancelled):
        con.execute(f"SELECT count(m.answer) FROM t JOIN m ON m.content = t.x{using}")
    con.session.show_progress = lambda tick: None
    assert len(counter.ASKED) - before < 5000
    assert con.execute("SELECT 42").fetchall() == [(42,)]


def test_a_plan_is_a_text_that_asks_nothing(con: sqlft.Connection, caplog: Any) -> None:
    import counter

    before = len(counter.ASKED)
    with caplog.at_level(logging.DEBUG, logger="sqlft"):
        con.execute("DESCRIBE SELECT m.answer FROM t JOIN m ON (m.content = t.x) WHERE t.id < 3").fetchall()
    assert len(counter.ASKED) == before
    assert "ask m.1 (content := t.x) where (t.id < 3)" in caplog.text


def test_answers_of_a_long_statement_are_found_again(con: sqlft.Connection) -> None:
    import counter

    query = "SELECT count(m.answer), count(DISTINCT m.answer) FROM t JOIN m ON m.content = t.x"
    assert con.execute(query).fetchall() == [(5000, 5000)]
    before = len(counter.ASKED)
    assert con.execute(query).fetchall() == [(5000, 5000)]
    assert len(counter.ASKED) == before
    assert con.execute("DROP CACHE FOR m").fetchall() == [(5000,)]
