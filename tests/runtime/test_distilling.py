"""A small model learns from a big one's answers in one statement, and each answer is paid for once."""

from __future__ import annotations

from typing import Any

import pytest

from sqlft.errors import ProviderError

LEARN = "SELECT q.question, big.answer FROM qs q JOIN big ON big.question = q.question"


@pytest.fixture
def taught(shop: Any, provider: Any) -> Any:
    shop.run(f"CREATE ML_ENGINE e FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}'")
    shop.run("CREATE MODEL big PREDICT answer USING engine = 'e', prompt_template = '{{question}}'")
    shop.run("CREATE TABLE qs AS SELECT 'q' || (i % 8) AS question FROM range(16) t(i)")
    return shop


def test_in_one_statement(taught: Any, provider: Any) -> None:
    taught.train(rows=LEARN)
    assert taught.version(2).status == "complete"
    assert taught.ask("q3") == "A:q3"
    assert len(provider.paid) == 8
    taught.train(rows=LEARN)
    taught.run(f"RETRAIN m USING control = '{taught.stranger.control}'")
    assert set(provider.paid.values()) == {1}
    assert taught.run("SELECT sum(calls), sum(distinct_prompts) FROM sqlft.usage WHERE model = 'big'") == [(8, 24)]


def test_what_was_paid_before_a_fault_is_kept(taught: Any, provider: Any) -> None:
    provider.fault("quota", None, content="q5")
    with pytest.raises(ProviderError, match="no money left"):
        taught.train(rows=LEARN)
    assert [v.key.number for v in taught.catalog.versions() if v.key.model.name == "m"] == [1]
    provider.faults.clear()
    taught.train(rows=LEARN)
    assert set(provider.paid.values()) == {1}
    assert len(provider.paid) == 8


def test_by_batch(taught: Any, provider: Any) -> None:
    to = f"base_url = '{provider.url}', api_key = '{provider.key}'"
    taught.run(f"CREATE ML_ENGINE b FROM openai USING {to}, poll_seconds = 0.02")
    taught.run("CREATE MODEL patient PREDICT answer USING engine = 'b', prompt_template = '{{question}}', batch = true")
    taught.train(rows=LEARN.replace("big", "patient"))
    assert taught.ask("q3") == "A:q3"
    assert provider.paid_batch == {f"q{i}": 1 for i in range(8)}
    assert len(provider.batches) == 1
