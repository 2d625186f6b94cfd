"""The bytes that shapes say, against what torch counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlft_local import loading, lora, memory
from sqlft_local.memory import Setting, Shape, shape_of
from sqlft_local.options import ModelOptions, TrainOptions
from transformers import AutoConfig

CODELLAMA_34B = Shape(48, 8192, 22016, 64, 8, 128, 32000, False)
CODELLAMA_7B = Shape(32, 4096, 11008, 32, 32, 128, 32016, False)


def test_parameters_are_those_of_the_model(tiny: Path) -> None:
    """Every number of the base, and every one that is trained."""
    loaded = loading.fresh(tiny, ModelOptions(), "cpu")
    shape = shape_of(loaded.model.config.to_dict())
    assert shape.parameters == sum(p.numel() for p in loaded.model.parameters())
    attached = lora.attach(loaded.model, TrainOptions(r=3, target_modules=["q_proj", "down_proj"]), None)
    counted = sum(p.numel() for p in attached.trained.values())
    assert memory.adapter_parameters(shape, 3, ["q_proj", "down_proj"]) == counted
    assert memory.adapter_parameters(shape, 3, ["all-linear"]) > counted


def test_large_models_have_the_sizes_they_are_named_for() -> None:
    """34 billion weights: 67 GB in bfloat16, a little over 34 GB in int8."""
    assert 33e9 < CODELLAMA_34B.parameters < 34.5e9
    assert 6.6e9 < CODELLAMA_7B.parameters < 6.8e9
    assert 66e9 < memory.weights(CODELLAMA_34B, "bfloat16") < 69e9
    assert 33e9 < memory.weights(CODELLAMA_34B, "bfloat16", "int8") < 36e9
    assert 18e9 < memory.weights(CODELLAMA_34B, "bfloat16", "nf4") < 21e9


def test_a_config_without_the_newer_keys() -> None:
    """Older configs name neither the heads of keys nor a head's width."""
    old = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100}
    assert shape_of(old) == Shape(2, 64, 256, 4, 4, 16, 100, False)
    assert shape_of(AutoConfig.for_model("llama", **old, intermediate_size=256).to_dict()).head == 16


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_tokens_that_fit_fill_the_bytes(checkpointing: bool) -> None:
    """One more would be too many."""
    setting = Setting("bfloat16", checkpointing=checkpointing)
    left = 3 << 30
    tokens = memory.tokens_within(CODELLAMA_7B, setting, left)
    above = memory.whole(CODELLAMA_7B, setting, tokens) - memory.fixed(CODELLAMA_7B, setting)
    assert above <= left < above + 2 * memory.token(CODELLAMA_7B, setting)
    assert memory.tokens_within(CODELLAMA_7B, setting, 1000) == 0


def test_checkpointing_takes_a_fraction() -> None:
    """An input a block in place of all that the block keeps."""
    plain, checkpointed = (memory.token(CODELLAMA_34B, Setting("bfloat16", checkpointing=c)) for c in (False, True))
    assert checkpointed < plain / 5
