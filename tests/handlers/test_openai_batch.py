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


class BatchConnection:
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
        self.create_table(20)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    def create_table(self, count: int) -> None:
        self.run(f"CREATE OR REPLACE TABLE qs AS SELECT i, 'q' || i AS question FROM range({count}) t(i)")

    def ask(self, using: str = "batch = true") -> list[tuple[Any, ...]]:
        return self.run(f"{QUERY} USING {using}")

    @property
    def record_files(self) -> list[Path]:
        """The files of the batch store."""
        return list(self.con.session.catalog.folder.rglob("batches/*.json"))


@pytest.fixture
def connection(provider: Any) -> BatchConnection:
    return BatchConnection(provider)


def expected_rows(count: int) -> list[tuple[Any, ...]]:
    return [(i, f"A:q{i}", None) for i in range(count)]


def test_a_batch(connection: BatchConnection, provider: Any) -> None:
    assert connection.ask() == expected_rows(20)
    assert (len(provider.batches), provider.count("/chat/completions"), provider.problems) == (1, 0, [])
    assert set(provider.paid.values()) == {1}
    assert connection.record_files == []
    assert any(t.done == 20 and t.total == 20 for t in connection.ticks)
    assert connection.ask("batch = false") == expected_rows(20)
    assert len(provider.paid) == 20
    assert provider.count("/chat/completions") == 0


def test_a_clock_that_jumps_changes_nothing(
    connection: BatchConnection, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, hours = time.time, itertools.cycle((0, 1, -1, 24))
    monkeypatch.setattr(time, "time", lambda: true() + 3600 * next(hours))
    assert connection.ask() == expected_rows(20)
    assert len(provider.batches) == 1
    assert set(provider.paid.values()) == {1}


def test_half_the_price(connection: BatchConnection) -> None:
    usage = "SELECT sum(m.answer_usage.cost_usd) FROM qs q JOIN m ON m.question = q.question"
    [(half,)] = connection.run(f"{usage} USING batch = true, cache = false")
    [(whole,)] = connection.run(f"{usage} USING cache = false")
    assert half == pytest.approx(whole / 2)


@pytest.mark.parametrize("engine", ["azure_openai", "openai_compatible", "anyscale_endpoints"])
def test_other_engines(provider: Any, engine: str) -> None:
    connection = BatchConnection(provider, engine)
    assert connection.ask() == expected_rows(20)
    assert provider.problems == []
    assert len(provider.batches) == 1


def test_an_engine_without_batches(provider: Any) -> None:
    with pytest.raises(sqlft.NotSupported, match="Together AI has no batch API"):
        BatchConnection(provider, "together").ask()


def test_splits(connection: BatchConnection, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_REQUESTS", 8)
    assert connection.ask() == expected_rows(20)
    assert sorted(len(b["rows"]) for b in provider.batches.values()) == [4, 8, 8]
    monkeypatch.setattr(batch, "MAX_REQUESTS", 50_000)
    monkeypatch.setattr(batch, "MAX_BYTES", 1000)
    assert connection.ask("batch = true, cache = false") == expected_rows(20)
    sizes = [len(f["content"]) for f in provider.files.values() if f["purpose"] == "batch"]
    assert max(sizes[3:]) <= 1000
    assert len(sizes) > 4


def test_failures_are_asked_again_or_reported(connection: BatchConnection, provider: Any) -> None:
    provider.batch_errors = {"q3": (400, "odd text"), "q5": (500, "busy")}
    provider.batch_drops = {"q7"}

    def mend(tick: Any) -> None:
        if len(provider.batches) == 1 and all(b["look"] >= 3 for b in provider.batches.values()):
            provider.batch_errors.pop("q5", None)
            provider.batch_drops.clear()

    connection.on_tick = mend
    found = connection.ask()
    assert [row for row in found if row[2]] == [(3, None, found[3][2])]
    assert "odd text" in found[3][2]
    assert found[5][1] == "A:q5"
    assert found[7][1] == "A:q7"
    assert set(provider.paid.values()) == {1}


def test_a_batch_that_fails(connection: BatchConnection, provider: Any) -> None:
    provider.fails = "the file is odd"
    with pytest.raises(ProviderError, match="failed: the file is odd"):
        connection.ask()
    provider.fails = None
    assert connection.ask() == expected_rows(20)


@pytest.mark.parametrize("kind", ["429", "500", "drop", "html", "empty", "null", "half"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_one_batch_whatever_becomes_of_the_request(
    connection: BatchConnection, provider: Any, kind: str, after: bool
) -> None:
    provider.inject_fault(kind, path="/batches", method="POST", after=after and kind != "429", retry_after=0)
    assert connection.ask() == expected_rows(20)
    assert len(provider.batches) == 1


def test_ctrl_c_and_again(connection: BatchConnection, provider: Any) -> None:
    provider.hold = True

    def interrupt(tick: Any) -> None:
        if provider.count("/batches/", "GET"):
            connection.con.interrupt()

    connection.on_tick = interrupt
    with pytest.raises(Cancelled):
        connection.ask()
    connection.on_tick = connection.ticks.append
    assert len(connection.record_files) == 1
    provider.hold = False
    assert connection.ask() == expected_rows(20)
    assert len(provider.batches) == 1
    assert connection.record_files == []


@pytest.mark.parametrize("moment", ["made", "watched"])
def test_kill_and_again(connection: BatchConnection, provider: Any, until: Any, moment: str) -> None:
    provider.hold = True
    if moment == "made":
        provider.inject_fault("hang", path="/batches", method="POST", after=True, seconds=60)
    code = (
        "import os, sqlft\ncon = sqlft.connect(catalog=os.environ['SQLFT_HOME'])\n"
        "con.execute(\"CREATE TABLE qs AS SELECT i, 'q' || i AS question FROM range(20) t(i)\")\n"
        f'con.execute("{QUERY} USING batch = true").fetchall()'
    )
    other = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: provider.batches if moment == "made" else provider.count("/batches/", "GET"))
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert [json.loads(p.read_text())["phase"] for p in connection.record_files] == [
        "creating" if moment == "made" else "created"
    ]
    assert provider.key not in connection.record_files[0].read_text()
    provider.hold = False
    connection.create_table(25)
    assert connection.ask() == expected_rows(25)
    assert sorted(len(b["rows"]) for b in provider.batches.values()) == [5, 20]
    assert set(provider.paid.values()) == {1}
    assert connection.record_files == []


def test_a_batch_is_waited_for_longer_than_the_timeout(connection: BatchConnection, provider: Any) -> None:
    provider.batch_statuses = ["validating"] + ["in_progress"] * 7 + ["completed"]
    connection.run(
        f"CREATE ML_ENGINE slow FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}',"
        " poll_seconds = 0.2"
    )
    connection.run("CREATE MODEL s PREDICT answer USING engine = 'slow', prompt_template = '{{question}}'")
    query = "SELECT count(s.answer) FROM qs q JOIN s ON s.question = q.question USING batch = true, timeout = 3"
    assert connection.run(query) == [(20,)]


def test_a_cut_line_and_a_strange_status(connection: BatchConnection, provider: Any) -> None:
    provider.batch_statuses = ["validating", "reticulating", "completed"]
    provider.text_times = True
    assert connection.ask() == expected_rows(20)
