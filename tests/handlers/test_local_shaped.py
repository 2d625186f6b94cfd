"""The models on torch alone give transformers' numbers, and leave to transformers what they do not know."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlft_local.base import loading, torch_llama, weight_cache
from sqlft_local.kernels import packing
from sqlft_local.options import ModelOptions

ROWS = [[5, 6, 7, *range(20, 40)], [5, 6, 7, *range(40, 53)]]


def logits(model: Any) -> torch.Tensor:
    """Of two packed rows."""
    packed = packing.pack([packing.Example(ids, [1.0] * len(ids)) for ids in ROWS])
    with torch.inference_mode():
        found: torch.Tensor = model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            use_cache=False,
            logits_to_keep=packed.source,
            layout=packed,
        ).logits
    return found


SHAPES = pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
    ],
)


@SHAPES
def test_the_numbers_are_those_of_transformers(
    model_maker: Callable[..., Path], kind: str, shape: dict[str, Any]
) -> None:
    """Bit by bit."""
    folder = model_maker(kind=kind, **shape)
    options = ModelOptions(dtype="float32")
    quick = loading._load_with_torch(folder, options, "cpu")
    assert quick is not None
    theirs = loading._load_with_transformers(folder, options, "cpu", training=False)
    assert torch.equal(logits(quick.model), logits(theirs.model))
    assert (quick.context, quick.stop_ids) == (theirs.context, theirs.stop_ids)
    assert (quick.device, quick.model.dtype) == (theirs.device, theirs.model.dtype)


@SHAPES
def test_sixteen_bits_come_nearer_to_float32_than_transformers_do(
    model_maker: Callable[..., Path], kind: str, shape: dict[str, Any]
) -> None:
    """The largest logits above all, of which the next token is made."""
    folder = model_maker(kind=kind, **shape)
    exact = logits(loading._load_with_transformers(folder, ModelOptions(dtype="float32"), "cpu", training=False).model)
    options = ModelOptions(dtype="bfloat16")
    quick = loading._load_with_torch(folder, options, "cpu")
    assert quick is not None
    assert quick.model.dtype == torch.bfloat16
    theirs = loading._load_with_transformers(folder, options, "cpu", training=False)
    best = exact.argmax(-1, keepdim=True)
    ours_off, theirs_off = ((logits(m.model) - exact).gather(-1, best).abs().mean() for m in (quick, theirs))
    assert ours_off < theirs_off


@pytest.mark.parametrize(
    "odd",
    [
        {"model_type": "gemma3_text"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
        {"model_type": "mistral", "sliding_window": 8},
        {"model_type": "qwen2", "use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"quantization_config": {"bits": 4}},
        {"rms_norm_eps": None},
    ],
)
def test_what_it_does_not_know_is_left_to_transformers(tiny: Path, odd: dict[str, Any]) -> None:
    """Never run in another way than it was made for."""
    config = json.loads((tiny / "config.json").read_text())
    assert torch_llama.parse_config(config) is not None
    assert torch_llama.parse_config({**config, **odd}) is None


def test_weights_of_other_names_are_left_to_transformers(model_maker: Callable[..., Path]) -> None:
    """The config says fewer layers than there are."""
    folder = model_maker()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert torch_llama.load(folder, folder.glob("*.safetensors"), torch.float32, "cpu") is None


def test_weights_are_shortened_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a file that is read as it is; where none can be made the base's own are read."""
    own = list(tiny.glob("*.safetensors"))
    assert weight_cache.prepare_weights(tiny, "float32") == own
    [made] = weight_cache.prepare_weights(tiny, "bfloat16")
    assert made.stat().st_size < own[0].stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "_convert_weights", lambda *given: pytest.fail("made twice"))
        assert weight_cache.prepare_weights(tiny, "bfloat16") == [made]
    whole = made.read_bytes()
    made.write_bytes(whole[:-100])
    assert weight_cache.prepare_weights(tiny, "bfloat16") == [made]
    assert made.read_bytes() == whole

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "_convert_weights", full)
    assert weight_cache.prepare_weights(tiny, "float16") == own
    monkeypatch.setattr(weight_cache, "SMALL_BASE_BYTES", 10)
    assert weight_cache.prepare_weights(tiny, "bfloat16") == own


COLD = """
import sys
from pathlib import Path
from sqlft_local import Local
from sqlft_local.options import EngineOptions, PredictOptions
from sqlft.handler import Message, ModelSpec, Request
handler = Local(EngineOptions(device="cpu", threads=1))
for artifact in (None,):
    predictor = handler.open(ModelSpec(sys.argv[1]), artifact, PredictOptions(max_tokens=4, backend="transformers"))
    [said] = predictor.predict([Request(1, (Message("user", "hi"),))])
    assert said.error is None
print([name for name in ("transformers", "scipy", "torch.distributed.tensor", "peft") if name in sys.modules])
"""


def test_the_first_answer_waits_for_no_import_but_torch(tiny: Path) -> None:
    """Once the tokenizer is written down."""
    loading.load_base(tiny, ModelOptions(), "cpu")
    done = subprocess.run([sys.executable, "-c", COLD, str(tiny)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
