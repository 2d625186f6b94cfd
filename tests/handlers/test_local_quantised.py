"""Bases in 8 and 4 bits: trained, asked, and told apart from what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.kernels import fused, quantised
from sqlft_local.kernels.packing import Example, pack
from sqlft_local.options import ModelOptions, PredictOptions, TrainOptions
from sqlft_local.train import lora

from sqlft.errors import HandlerNotInstalled
from sqlft.handler import Message, ModelSpec, Request, TrainingSet

KINDS = ["int8", "nf4"]
TAUGHT = [(f"How many in singer{i}?", f"SELECT count(*) FROM singer{i}") for i in range(4)]


def table() -> pa.Table:
    """Conversations of a question and an answer."""
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TAUGHT]
    return pa.table({"messages": turns})


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_learns_and_answers(tiny: Path, tmp_path: Path, kind: str) -> None:
    """What it was taught, from the adapter beside its weights, which stay in few bits."""
    spec = ModelSpec(str(tiny), ModelOptions(quantization=kind, dtype="float32"))
    options = TrainOptions(n_epochs=80, batch_size=4, learning_rate=0.02, lora_dropout=0.0)
    made = Local().train(spec, None, TrainingSet(table()), options, tmp_path, lambda progress: None)
    assert made.details["loss"] < 0.1
    asked = [Request(i, (Message("user", q),)) for i, (q, _) in enumerate(TAUGHT)]
    predictor = Local().open(spec, made, PredictOptions(max_tokens=40, backend="transformers"))
    answers = {c.id: c.text for c in predictor.predict(asked)}
    assert [answers[i] for i in range(4)] == [a for _, a in TAUGHT]


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_are_in_few_bits(tiny: Path, kind: str) -> None:
    """And the adapter's model shares them with the base."""
    loaded = loading.load_base(tiny, ModelOptions(quantization=kind, dtype="float32"), "cpu")
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert quantised.is_quantised(layer)
    assert layer.weight.element_size() == 1
    plain = loading.load_base(tiny, ModelOptions(dtype="float32"), "cpu").model.model.layers[0].mlp.up_proj.weight
    found = quantised.dequantise(layer, torch.float32)
    assert found.shape == plain.shape
    assert (found - plain).abs().max() < (0.02 if kind == "int8" else 0.2) * plain.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_weights(tiny: Path, kind: str) -> None:
    """Lean modules multiply with the weights that the bits stand for."""
    packed = pack([Example([1, 5, 9, 12, 7, 30, 40], [0, 0, 0, 1, 1, 1, 1]), Example([1, 5, 9, 8], [0, 0, 0, 1])])
    gradients = []
    few = loading.load_base(tiny, ModelOptions(quantization=kind, dtype="float32"), "cpu").model
    dense = loading.load_base(tiny, ModelOptions(dtype="float32"), "cpu", training=True).model
    for name, module in few.named_modules():
        if quantised.is_quantised(module):
            dense.get_submodule(name).weight.data = quantised.dequantise(module, torch.float32)
    for model in (few, dense):
        assert fused.fuse_modules(model) == 2 * 3 + 1
        attached = lora.attach(model.train(), TrainOptions(lora_dropout=0.0), None)
        numbers = torch.Generator().manual_seed(3)
        lora.load_parameters(
            attached, {k: torch.randn(v.shape, generator=numbers) * 0.1 for k, v in attached.trained.items()}
        )
        fused.compute_loss(model, packed).backward()
        gradients.append([p.grad for p in attached.trained.values()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-3)


def test_bitsandbytes_may_be_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the error says what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(HandlerNotInstalled, match="needs bitsandbytes"):
        loading.load_base(tiny, ModelOptions(quantization="nf4"), "cpu")
