"""Loss and gradients of packed rows equal those of padded ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlft_local.base import loading
from sqlft_local.kernels import KERNELS, SWITCH, fused
from sqlft_local.kernels.batching import split_passes
from sqlft_local.kernels.packing import Example, common_prefix_length, pack
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import lora
from sqlft_local.train.rows import sum_weights
from sqlft_local.train.step import compute_loss
from transformers import AutoModelForCausalLM

from sqlft.errors import OptionError

CLOSE = 1e-5


def rows(prefix: int, own: Sequence[int], prompt_weight: float = 0.0, seed: int = 0) -> list[Example]:
    """Rows that share `prefix` tokens; of each own part the second half is the answer."""
    chosen = random.Random(seed)
    shared = [chosen.randrange(3, 300) for _ in range(prefix)]
    made = []
    for i, n in enumerate(own):
        ids = [*shared, 3 + i, *(chosen.randrange(3, 300) for _ in range(n - 1))]
        answer = prefix + n // 2
        made.append(Example(ids, [prompt_weight] * answer + [1.0] * (len(ids) - answer)))
    return made


def padded_loss(model: Any, batch: Sequence[Example]) -> Any:
    """What transformers' own attention gives on rows padded to the longest, logits everywhere."""
    longest = max(len(e.ids) for e in batch)
    ids = torch.tensor([[*e.ids, *[0] * (longest - len(e.ids))] for e in batch])
    mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in batch])
    weights = torch.tensor([[*e.weights, *[0.0] * (longest - len(e.ids))] for e in batch])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum()


def trainable(folder: Path, attention: str) -> tuple[Any, dict[str, Any]]:
    """The model with LoRA matrices that all do something."""
    if attention == "sqlft":
        model = loading.load_base(folder, ModelOptions(dtype="float32"), "cpu", training=True).model
        fused.fuse_modules(model)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).requires_grad_(False)
    attached = lora.attach(model, TrainOptions(lora_dropout=0.0), None)
    numbers = torch.Generator().manual_seed(3)
    lora.load_parameters(
        attached, {k: torch.randn(v.shape, generator=numbers) * 0.1 for k, v in attached.trained.items()}
    )
    return model.train(), attached.trained


def assert_equal_to_padded(folder: Path, batch: Sequence[Example], most: int = 100_000) -> None:
    """Loss and every gradient, by the largest difference relative to the largest value."""
    packed, ours = trainable(folder, "sqlft")
    plain, theirs = trainable(folder, "eager")
    whole = sum_weights(batch)
    loss = 0.0
    for part in split_passes(batch, most):
        found = compute_loss(packed, part) / whole
        found.backward()
        loss += found.item()
    expected = padded_loss(plain, batch) / whole
    expected.backward()
    assert abs(loss - expected.item()) <= CLOSE * abs(expected.item())
    for name, parameter in ours.items():
        reference = theirs[name].grad
        assert (parameter.grad - reference).abs().max() <= CLOSE * reference.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("prefix", [0, 1, 2, 17, 90])
@pytest.mark.parametrize("own", [[9], [8, 8, 8], [2, 30, 7, 3, 64], [5] * 16, [100, 2, 2]])
def test_loss_and_gradients_equal_those_of_padded_rows(tiny: Path, prefix: int, own: list[int]) -> None:
    """Over prefixes, one-row batches and uneven lengths."""
    assert_equal_to_padded(tiny, rows(prefix, own))


@pytest.mark.parametrize("prefix", [0, 1, 20])
def test_prompts_may_count_in_the_loss(tiny: Path, prefix: int) -> None:
    """The shared start counts once for every row that has it."""
    assert_equal_to_padded(tiny, rows(prefix, [9, 4, 30, 4], prompt_weight=0.3))


def test_several_passes_make_one_step(tiny: Path) -> None:
    """Memory is bounded by parts whose gradients add up."""
    batch = rows(11, [20, 3, 40, 9, 9, 14, 2])
    assert len(list(split_passes(batch, 50))) > 2
    assert_equal_to_padded(tiny, batch, most=50)


def test_identical_rows(tiny: Path) -> None:
    """Every row keeps a token of its own."""
    assert_equal_to_padded(tiny, rows(0, [12]) * 3)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("qwen3", {"head_dim": 16}),
        ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
        ("llama", {"num_key_value_heads": 1, "attention_bias": True}),
        ("gemma3_text", {"sliding_window": 8, "head_dim": 16, "query_pre_attn_scalar": 16}),
    ],
)
def test_other_architectures(model_maker: Callable[..., Path], kind: str, shape: dict[str, Any]) -> None:
    """No model's code is copied: what differs is in the attention's arguments."""
    assert_equal_to_padded(model_maker(kind=kind, **shape), rows(13, [20, 3, 9], prompt_weight=0.1))


def test_a_row_is_filled_up_once() -> None:
    """It has the common start once, then each own part, and what is missing to a multiple of 64 behind the parts."""
    packed = pack(rows(17, [2, 30, 7]))
    assert packed.ids.shape == (1, 64)
    assert packed.lengths == (30 + 3, 7 + 3, 2 + 2)
    assert packed.positions[0, 17:19].tolist() == [17, 18]


def test_common_prefix_leaves_every_row_a_token() -> None:
    """Rows without one would have no state to predict from."""
    assert common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix_length([[5], [5, 6]]) == 0
    assert common_prefix_length([[4, 5], [5, 6]]) == 0


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropout_drops_its_share(dropout: float) -> None:
    """In every column, what is left makes up for it, and no two uses drop the same."""
    x = torch.ones(2000, 64)
    torch.manual_seed(1)
    masks = lora.DropoutMasks(dropout)
    masks.renew()
    one, other = masks(x).clone(), masks(x)
    assert ((one > 0).float().mean(0) - (1 - dropout)).abs().max() < 0.05
    assert abs(one.mean().item() - 1) < 0.02
    assert not torch.equal(one, other)
    masks.renew()
    assert not torch.equal(one, masks(x))


def test_leaner_modules_are_used_where_they_compute_the_same(model_maker: Callable[..., Path]) -> None:
    """Gemma's norm multiplies by 1 + w."""
    llama = loading.load_base(model_maker("llama"), ModelOptions(dtype="float32"), "cpu", training=True).model
    gemma = loading.load_base(model_maker("gemma", kind="gemma", head_dim=16), ModelOptions(), "cpu").model
    assert fused.fuse_modules(llama) == 2 * 3 + 1
    assert fused.fuse_modules(gemma) == 0


@pytest.mark.parametrize("off", [*KERNELS, "all"])
def test_a_kernel_that_is_off_changes_nothing_but_speed(tiny: Path, monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    """SQLFT_KERNELS names those that are on."""
    monkeypatch.setenv(SWITCH, ",".join(name for name in KERNELS if off not in (name, "all")) or "none")
    assert_equal_to_padded(tiny, rows(11, [9, 4, 30, 4]))


def test_what_is_off_is_not_put_in(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows(11, [9, 4, 30])
    for on, fused_modules, passes, prefix in (("norms", 2 * 2 + 1, 3, 0), ("mlp packing prefix", 2, 1, 11)):
        monkeypatch.setenv(SWITCH, on)
        model = loading.load_base(tiny, ModelOptions(dtype="float32"), "cpu", training=True).model
        assert fused.fuse_modules(model) == fused_modules
        assert len(list(split_passes(batch, 100_000))) == passes
        assert pack(batch).prefix == prefix
        attached = lora.attach(model, TrainOptions(), None)
        assert not any(isinstance(getattr(m.forward, "func", None), lora.LoraGroup) for m in model.modules())
        assert attached.config.lora_dropout == TrainOptions().lora_dropout
    monkeypatch.setenv(SWITCH, "packing flash")
    with pytest.raises(OptionError, match="no kernel: flash") as caught:
        pack(batch)
    assert "attention" in caught.value.next_step
