"""A small model learns from a big one's answers in one statement, and each answer is paid for once."""

from __future__ import annotations

from typing import Any

import pytest

from sqlft.errors import ProviderError

LEARN = "SELECT q.question, big.answer FROM qs q JOIN big ON big.question = q.question"


@pytest.fixture
def connection_with_teacher(connection_with_model: Any, provider: Any) -> Any:
    connection_with_model.run(
        f"CREATE ML_ENGINE e FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}'"
    )
    connection_with_model.run("CREATE MODEL big PREDICT answer USING engine = 'e', prompt_template = '{{question}}'")
    connection_with_model.run("CREATE TABLE qs AS SELECT 'q' || (i % 8) AS question FROM range(16) t(i)")
    return connection_with_model


def test_in_one_statement(connection_with_teacher: Any, provider: Any) -> None:
    connection_with_teacher.train(rows=LEARN)
    assert connection_with_teacher.version(2).status == "complete"
    assert connection_with_teacher.ask("q3") == "A:q3"
    assert len(provider.paid) == 8
    connection_with_teacher.train(rows=LEARN)
    connection_with_teacher.run(f"RETRAIN m USING control = '{connection_with_teacher.training.folder}'")
    assert set(provider.paid.values()) == {1}
    assert connection_with_teacher.run(
        "SELECT sum(calls), sum(distinct_prompts) FROM sqlft.usage WHERE model = 'big'"
    ) == [(8, 24)]


def test_what_was_paid_before_a_fault_is_kept(connection_with_teacher: Any, provider: Any) -> None:
    provider.inject_fault("quota", None, content="q5")
    with pytest.raises(ProviderError, match="no money left"):
        connection_with_teacher.train(rows=LEARN)
    assert [v.key.number for v in connection_with_teacher.catalog.versions() if v.key.model.name == "m"] == [1]
    provider.faults.clear()
    connection_with_teacher.train(rows=LEARN)
    assert set(provider.paid.values()) == {1}
    assert len(provider.paid) == 8


def test_by_batch(connection_with_teacher: Any, provider: Any) -> None:
    to = f"base_url = '{provider.url}', api_key = '{provider.key}'"
    connection_with_teacher.run(f"CREATE ML_ENGINE b FROM openai USING {to}, poll_seconds = 0.02")
    connection_with_teacher.run(
        "CREATE MODEL patient PREDICT answer USING engine = 'b', prompt_template = '{{question}}', batch = true"
    )
    connection_with_teacher.train(rows=LEARN.replace("big", "patient"))
    assert connection_with_teacher.ask("q3") == "A:q3"
    assert provider.paid_batch == {f"q{i}": 1 for i in range(8)}
    assert len(provider.batches) == 1
