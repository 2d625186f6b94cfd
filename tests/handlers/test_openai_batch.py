"""Batches at a provider: split, matched by id, failures asked again, found again after a crash, at half the price."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlft_openai import batch

import sqlft
from sqlft.errors import Cancelled, ProviderError

QUERY = "SELECT q.i, m.answer, m.answer_error FROM qs q JOIN m ON m.question = q.question ORDER BY q.i"


class Asked:
    """A connection with a model `m` of a provider's and a table `qs` of questions."""

    def __init__(self, provider: Any, engine: str = "openai") -> None:
        self.provider, self.warnings, self.ticks = provider, list[str](), list[Any]()
        self.on_tick: Callable[[Any], None] = self.ticks.append
        self.con = sqlft.connect(
            warn=self.warnings.append, progress=lambda tick: self.on_tick(tick), catalog=os.environ["SQLFT_HOME"]
        )
        to = f"azure_endpoint = '{provider.root}'" if engine == "azure_openai" else f"base_url = '{provider.url}'"
        self.run(f"CREATE ML_ENGINE e FROM {engine} USING {to}, api_key = '{provider.key}', poll_seconds = 0.02")
        self.run(
            "CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'gpt-4o-mini',"
            " prompt_template = '{{question}}'"
        )
        self.table(20)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    def table(self, count: int) -> None:
        self.run(f"CREATE OR REPLACE TABLE qs AS SELECT i, 'q' || i AS question FROM range({count}) t(i)")

    def ask(self, using: str = "batch = true") -> list[tuple[Any, ...]]:
        return self.run(f"{QUERY} USING {using}")

    @property
    def kept(self) -> list[Path]:
        """The ledger's files."""
        return list(self.con.session.catalog.folder.rglob("batches/*.json"))


@pytest.fixture
def asked(provider: Any) -> Asked:
    return Asked(provider)


def right(count: int) -> list[tuple[Any, ...]]:
    return [(i, f"A:q{i}", None) for i in range(count)]


def test_a_batch(asked: Asked, provider: Any) -> None:
    assert asked.ask() == right(20)
    assert (len(provider.batches), provider.count("/chat/completions"), provider.problems) == (1, 0, [])
    assert set(provider.paid.values()) == {1}
    assert asked.kept == []
    assert any(t.done == 20 and t.total == 20 for t in asked.ticks)
    assert asked.ask("batch = false") == right(20)
    assert len(provider.paid) == 20
    assert provider.count("/chat/completions") == 0


def test_a_clock_that_jumps_changes_nothing(asked: Asked, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true, hours = time.time, itertools.cycle((0, 1, -1, 24))
    monkeypatch.setattr(time, "time", lambda: true() + 3600 * next(hours))
    assert asked.ask() == right(20)
    assert len(provider.batches) == 1
    assert set(provider.paid.values()) == {1}


def test_half_the_price(asked: Asked) -> None:
    usage = "SELECT sum(m.answer_usage.cost_usd) FROM qs q JOIN m ON m.question = q.question"
    [(half,)] = asked.run(f"{usage} USING batch = true, cache = false")
    [(whole,)] = asked.run(f"{usage} USING cache = false")
    assert half == pytest.approx(whole / 2)


@pytest.mark.parametrize("engine", ["azure_openai", "openai_compatible", "anyscale_endpoints"])
def test_other_engines(provider: Any, engine: str) -> None:
    asked = Asked(provider, engine)
    assert asked.ask() == right(20)
    assert provider.problems == []
    assert len(provider.batches) == 1


def test_an_engine_without_batches(provider: Any) -> None:
    with pytest.raises(sqlft.NotSupported, match="Together AI has no batch API"):
        Asked(provider, "together").ask()


def test_splits(asked: Asked, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 8)
    assert asked.ask() == right(20)
    assert sorted(len(b["rows"]) for b in provider.batches.values()) == [4, 8, 8]
    monkeypatch.setattr(batch, "MOST_REQUESTS", 50_000)
    monkeypatch.setattr(batch, "MOST_BYTES", 1000)
    assert asked.ask("batch = true, cache = false") == right(20)
    sizes = [len(f["content"]) for f in provider.files.values() if f["purpose"] == "batch"]
    assert max(sizes[3:]) <= 1000
    assert len(sizes) > 4


def test_failures_are_asked_again_or_reported(asked: Asked, provider: Any) -> None:
    provider.batch_errors = {"q3": (400, "odd text"), "q5": (500, "busy")}
    provider.batch_drops = {"q7"}

    def mend(tick: Any) -> None:
        if len(provider.batches) == 1 and all(b["look"] >= 3 for b in provider.batches.values()):
            provider.batch_errors.pop("q5", None)
            provider.batch_drops.clear()

    asked.on_tick = mend
    found = asked.ask()
    assert [row for row in found if row[2]] == [(3, None, found[3][2])]
    assert "odd text" in found[3][2]
    assert found[5][1] == "A:q5"
    assert found[7][1] == "A:q7"
    assert set(provider.paid.values()) == {1}


def test_a_batch_that_fails(asked: Asked, provider: Any) -> None:
    provider.fails = "the file is odd"
    with pytest.raises(ProviderError, match="failed: the file is odd"):
        asked.ask()
    provider.fails = None
    assert asked.ask() == right(20)


@pytest.mark.parametrize("kind", ["429", "500", "drop", "html", "empty", "null", "half"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_one_batch_whatever_becomes_of_the_request(asked: Asked, provider: Any, kind: str, after: bool) -> None:
    provider.fault(kind, path="/batches", method="POST", after=after and kind != "429", retry_after=0)
    assert asked.ask() == right(20)
    assert len(provider.batches) == 1


def test_ctrl_c_and_again(asked: Asked, provider: Any) -> None:
    provider.hold = True

    def interrupt(tick: Any) -> None:
        if provider.count("/batches/", "GET"):
            asked.con.interrupt()

    asked.on_tick = interrupt
    with pytest.raises(Cancelled):
        asked.ask()
    asked.on_tick = asked.ticks.append
    assert len(asked.kept) == 1
    provider.hold = False
    assert asked.ask() == right(20)
    assert len(provider.batches) == 1
    assert asked.kept == []


@pytest.mark.parametrize("moment", ["made", "watched"])
def test_kill_and_again(asked: Asked, provider: Any, until: Any, moment: str) -> None:
    provider.hold = True
    if moment == "made":
        provider.fault("hang", path="/batches", method="POST", after=True, seconds=60)
    code = (
        "import os, sqlft\ncon = sqlft.connect(catalog=os.environ['SQLFT_HOME'])\n"
        "con.execute(\"CREATE TABLE qs AS SELECT i, 'q' || i AS question FROM range(20) t(i)\")\n"
        f'con.execute("{QUERY} USING batch = true").fetchall()'
    )
    other = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: provider.batches if moment == "made" else provider.count("/batches/", "GET"))
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert [json.loads(p.read_text())["phase"] for p in asked.kept] == ["creating" if moment == "made" else "created"]
    assert provider.key not in asked.kept[0].read_text()
    provider.hold = False
    asked.table(25)
    assert asked.ask() == right(25)
    assert sorted(len(b["rows"]) for b in provider.batches.values()) == [5, 20]
    assert set(provider.paid.values()) == {1}
    assert asked.kept == []


def test_a_batch_is_waited_for_longer_than_the_timeout(asked: Asked, provider: Any) -> None:
    provider.batch_statuses = ["validating"] + ["in_progress"] * 7 + ["completed"]
    asked.run(
        f"CREATE ML_ENGINE slow FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}',"
        " poll_seconds = 0.2"
    )
    asked.run("CREATE MODEL s PREDICT answer USING engine = 'slow', prompt_template = '{{question}}'")
    query = "SELECT count(s.answer) FROM qs q JOIN s ON s.question = q.question USING batch = true, timeout = 3"
    assert asked.run(query) == [(20,)]


def test_a_cut_line_and_a_strange_status(asked: Asked, provider: Any) -> None:
    provider.batch_statuses = ["validating", "reticulating", "completed"]
    provider.text_times = True
    assert asked.ask() == right(20)
