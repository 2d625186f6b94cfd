"""Bases of every kind of layer train and answer; `make test-architectures` checks every type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from architectures import TYPES, check_type, make_tiny, train
from sqlft_local.base import loading
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import lora, memory

import sqlft
from sqlft.errors import NotSupported, ProviderError

ROWS = "(SELECT 'How many in t' || i || '?' AS question, 'SELECT ' || i AS answer FROM range(8) t(i))"


@pytest.fixture(autouse=True)
def _own_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))


@pytest.mark.parametrize("kind", TYPES)
def test_training_and_answers_are_those_of_transformers_and_peft(kind: str, tmp_path: Path) -> None:
    """Loss, gradients, an adapter that PEFT loads, and answers, several at once and one by one."""
    assert check_type(kind, tmp_path)["matrices"]


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    """With a model whose base has convolutions and experts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = make_tiny("lfm2_moe", tmp_path / "base")
    con = sqlft.connect(warn=lambda text: None)
    con.execute(
        f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{base}', prompt_template = '{{{{question}}}}'"
    )
    yield con
    con.close()


def test_from_sql(connection: sqlft.Connection) -> None:
    """EXPLAIN says how its rows are computed, FINETUNE makes a version, and both versions answer every row."""
    plan = "\n".join(str(row) for row in connection.execute(f"EXPLAIN FINETUNE m FROM {ROWS}").fetchall())
    assert "rows are padded, not packed: it has layers that are no attention (conv)" in plan
    connection.execute(f"FINETUNE m FROM {ROWS} USING n_epochs = 1, validation_split = 0, batch_size = 4")
    for version in ("m.1", "m.2"):
        query = f"SELECT a.answer FROM {ROWS} q JOIN {version} a ON a.question = q.question USING max_tokens = 4"
        assert len(connection.execute(query).fetchall()) == 8


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """The memory of such a base's passes is measured on the base: few tokens a pass, or none."""
    loaded = loading.load_base(
        make_tiny("mamba", tmp_path / "base"), ModelOptions(dtype="float32"), "cpu", training=True
    )
    attached = lora.attach(loaded.model, TrainOptions(target_modules=["all-linear"]), None)
    used = memory.LIBRARY_BYTES + psutil.Process().memory_info().rss

    def plan(spare: int, longest: int) -> memory.PassBudget:
        options = TrainOptions(max_memory=str(used + spare))
        return memory.plan_passes(loaded.model, options, attached, longest)

    assert 16 < plan(20 << 20, 16).tokens < plan(60 << 20, 16).tokens < 2048
    with pytest.raises(ProviderError, match="A row of 5,000 tokens takes about"):
        plan(20 << 20, 5_000)


def test_layers_without_gradients_are_named(tmp_path: Path) -> None:
    """Reformer computes its layers backwards by itself."""
    with pytest.raises(NotSupported, match="hand no gradients"):
        train(make_tiny("reformer", tmp_path / "base"), tmp_path / "work")
