"""How many bytes a training takes, from a config's shapes alone, and the tokens of a pass that fit into memory.

The terms follow what `kernels.fused`, `lora` and `kernels.packing` keep for the backward pass.  Bytes unless stated
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlft.errors import OptionError, ProviderError
from sqlft_local.base.config import DecoderShape, read_shape
from sqlft_local.kernels.batching import is_packed
from sqlft_local.machine import read_cgroup_limits
from sqlft_local.options import TrainOptions

if TYPE_CHECKING:
    from sqlft_local._types import Model
    from sqlft_local.train.lora import LoraAdapter

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a weight in a linear layer; nf4 has a float32 for every 64."""
PROCESS_BYTES = 650 << 20
"""Python with torch, transformers and peft loaded."""
LIBRARY_BYTES = 180 << 20
"""What the libraries of products keep for themselves once a training runs."""
ALLOCATOR_OVERHEAD = {4: 1.5, 2: 1.35}
"""What a byte of a pass takes by the width of its numbers: allocators leave gaps.  Measured on SmolLM2-135M."""
RECOMPUTED_BLOCKS = 2
"""Blocks whose tensors are in memory at once with checkpointing: computed again, their gradients, and what was freed
and not given back.  Measured on SmolLM2-135M: 0.85 of the peak in float32, 0.98 in bfloat16."""
TRAINED_BYTES = 16
"""A trained number, its gradient and AdamW's two moments, each float32."""
LOGIT_CHUNK = 128
"""Tokens whose logits are there at a time."""
MAX_KEPT_KEYS = 128
"""Keys of a token whose attention weights are kept, at most about so many."""
FREE_MARGIN = 0.1
"""Share of the free memory that is left to others when nobody says how much to take."""


@dataclass(frozen=True)
class TrainingSetup:
    """How a base is trained; dtype and quantization as the options have them, dtype never auto."""

    dtype: str = "float32"
    quantization: str = "none"
    r: int = 8
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    dropout: float = 0.05
    checkpointing: bool = False


def estimate_weight_bytes(shape: DecoderShape, dtype: str, quantization: str = "none") -> int:
    """The base; quantisation leaves embeddings, norms and the output head as they are."""
    each = QUANTISED_BYTES.get(quantization, DTYPE_BYTES[dtype])
    return round(shape._linear_parameters * each + shape._other_parameters * DTYPE_BYTES[dtype])


def count_adapter_parameters(shape: DecoderShape, r: int, targets: Sequence[str]) -> int:
    """Numbers in the LoRA matrices of `targets`, names of linear layers or all-linear."""
    return shape.layers * sum(r * (a + b) for a, b in _select_layers(shape, targets).values())


def estimate_adapter_bytes(shape: DecoderShape, r: int, targets: Sequence[str]) -> int:
    """The LoRA matrices with gradients and optimizer."""
    return count_adapter_parameters(shape, r, targets) * TRAINED_BYTES


def estimate_token_bytes(shape: DecoderShape, setting: TrainingSetup) -> int:
    """What a token of a pass keeps until the backward pass, and what computing it takes at the highest."""
    block = _estimate_block_bytes(shape, setting)
    at_once = 4 * shape.intermediate_size * DTYPE_BYTES[setting.dtype] + 4 * shape.hidden_size * 4
    kept = (
        shape.layers * shape.hidden_size * DTYPE_BYTES[setting.dtype] + RECOMPUTED_BLOCKS * block
        if setting.checkpointing
        else shape.layers * block
    )
    return round((kept + at_once) * ALLOCATOR_OVERHEAD[DTYPE_BYTES[setting.dtype]])


def estimate_logit_bytes(shape: DecoderShape, setting: TrainingSetup, tokens: int) -> int:
    """The logits of the `tokens` of a pass that count in the loss; only a chunk of them is there at a time."""
    rows = min(tokens, LOGIT_CHUNK)
    return rows * shape.vocab_size * 3 * DTYPE_BYTES[setting.dtype] + tokens * shape.hidden_size * (
        DTYPE_BYTES[setting.dtype] + 4
    )


def estimate_dequantised_bytes(shape: DecoderShape, setting: TrainingSetup) -> int:
    """The largest quantised weight while it is multiplied."""
    if setting.quantization == "none":
        return 0
    return max(a * b for a, b in shape.linear_layers.values()) * DTYPE_BYTES[setting.dtype]


def estimate_fixed_bytes(shape: DecoderShape, setting: TrainingSetup) -> int:
    """All that does not depend on the tokens of a pass."""
    kept = estimate_weight_bytes(shape, setting.dtype, setting.quantization) + estimate_adapter_bytes(
        shape, setting.r, setting.targets
    )
    return PROCESS_BYTES + LIBRARY_BYTES + kept + estimate_dequantised_bytes(shape, setting)


def estimate_training_bytes(shape: DecoderShape, setting: TrainingSetup, tokens: int) -> int:
    """A training whose passes have `tokens` tokens, at its highest."""
    return (
        estimate_fixed_bytes(shape, setting)
        + tokens * estimate_token_bytes(shape, setting)
        + estimate_logit_bytes(shape, setting, tokens)
    )


def fit_tokens(shape: DecoderShape, setting: TrainingSetup, bytes_left: int) -> int:
    """Tokens of a pass that fit into what `estimate_fixed_bytes` leaves; 0 if not one does."""
    each = estimate_token_bytes(shape, setting)
    fits, too_many = 0, max(0, bytes_left) // each + 1
    while too_many - fits > 1:
        tokens = (fits + too_many) // 2
        if tokens * each + estimate_logit_bytes(shape, setting, tokens) <= bytes_left:
            fits = tokens
        else:
            too_many = tokens
    return fits


def _estimate_block_bytes(shape: DecoderShape, setting: TrainingSetup) -> int:
    """What one block keeps of a token: see the saved tensors in fused, lora and packing."""
    width = DTYPE_BYTES[setting.dtype]
    h, i, q, kv = (
        shape.hidden_size,
        shape.intermediate_size,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )
    chosen = _select_layers(shape, setting.targets)
    norms = 2 * (h * width + 4)
    attention = (q + 2 * kv + MAX_KEPT_KEYS * shape.heads) * width
    gates = 2 * i * width
    read = {"q_proj": "a", "k_proj": "a", "v_proj": "a", "o_proj": "o", "gate_proj": "m", "up_proj": "m"}
    inputs = {read.get(name, name): size for name, (size, _) in chosen.items()}
    lora = sum(inputs.values()) * width + len(chosen) * setting.r * width
    return norms + attention + gates + lora


def _select_layers(shape: DecoderShape, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    if "all-linear" in targets:
        return shape.linear_layers
    return {name: size for name, size in shape.linear_layers.items() if name in targets}


MAX_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass when memory does not ask for fewer: more is no faster."""
FAST_PASS_TOKENS = 256
"""Passes of fewer tokens are slow: then blocks are rather computed twice."""
UNLIMITED_TOKENS = 1 << 40
PLANNED_SHARE = 0.95
"""Share of the room that is planned with."""
SIZE_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@dataclass(frozen=True)
class PassBudget:
    """Tokens of a pass; `above` are those from which on it is computed with gradient checkpointing."""

    tokens: int
    above: int
    longest: int
    """Tokens of the longest row that has room."""
    bytes: int | None = None
    """Of the whole process, or of the card."""


def plan_passes(
    model: Model, options: TrainOptions, adapter: LoraAdapter, longest: int, together: int = 1
) -> PassBudget:
    """For a model that is loaded, with its LoRA matrices `adapter`; ProviderError where the longest row has no room.

    `together` processes share the memory of the machine, none that of a card.
    """
    device = model.device.type
    taken, free = _read_used_memory(device), read_available_memory(device)
    limit = limit_bytes(options, None if free is None else free // (together if device == "cpu" else 1), taken)
    if not is_packed(model):
        return _plan_padded_passes(model, options, adapter, longest, limit, taken)
    shape = read_shape(model.config.to_dict())
    setting = read_setup(model, options, adapter)
    fixed = estimate_adapter_bytes(shape, setting.r, setting.targets) + estimate_dequantised_bytes(shape, setting)
    if device == "cpu":  # weights mapped from their file count from when they are first read
        stored = sum(p.numel() * p.element_size() for p in model.parameters())
        fixed += LIBRARY_BYTES + max(taken, PROCESS_BYTES + stored)
    else:
        fixed += taken
    budget = fit_passes(shape, setting, options, device, limit, fixed)
    if limit is not None and longest > budget.longest:
        again = replace(setting, checkpointing=options.gradient_checkpointing is not False)
        raise _too_little_memory_error(shape, again, limit, limit - _plan_room(limit, fixed), longest, budget.longest)
    return budget


TRIAL_TOKENS = (16, 48)
"""Tokens of the rows whose passes are measured: what they keep grows with their tokens."""


def _plan_padded_passes(
    model: Model, options: TrainOptions, adapter: LoraAdapter, longest: int, limit: int | None, taken: int
) -> PassBudget:
    """For bases of any layers: what a pass keeps is measured on the model itself."""
    most = options.max_tokens_per_pass or MAX_TOKENS_PER_PASS.get(model.device.type, MAX_TOKENS_PER_PASS["cuda"])
    if limit is None:
        return PassBudget(most, 0 if options.gradient_checkpointing else UNLIMITED_TOKENS, UNLIMITED_TOKENS)
    fixed = taken + LIBRARY_BYTES + TRAINED_BYTES * sum(p.numel() for p in adapter.trained.values())
    left = max(0, _plan_room(limit, fixed))
    plain, twice = (left // max(1, size) for size in _measure_token_bytes(model))
    wanted = options.gradient_checkpointing
    always = bool(wanted) or (wanted is None and plain < min(FAST_PASS_TOKENS, most))
    largest = plain if wanted is False else max(plain, twice)
    if longest > largest:
        need = limit + (longest - largest) * left // max(1, largest)
        raise ProviderError(
            f"A row of {longest:,} tokens takes about {format_size(need)} to train on, "
            f"and {format_size(limit)} may be used.",
            f"Say max_length = {largest}, or max_memory = '{format_size(need)}' on a machine that has it.",
        )
    return PassBudget(min(most, largest if always else plain), 0 if always else plain, largest, limit)


def _measure_token_bytes(model: Model) -> tuple[int, int]:
    """Bytes of a token of a pass, its logits and allocators' gaps included: plain, and with blocks computed again."""
    from sqlft_local.kernels import fused

    plain, inputs = (_measure_kept_bytes(model, again) for again in (False, True))
    blocks = max(1, fused.count_checkpointed_blocks(model))
    logits = 3 * 4 * model.get_input_embeddings().num_embeddings
    factor = ALLOCATOR_OVERHEAD[model.dtype.itemsize]
    return round((plain + logits) * factor), round((inputs + (plain - inputs) / blocks + logits) * factor)


def _measure_kept_bytes(model: Model, checkpointing: bool) -> float:
    """Bytes that a token keeps until the backward pass: the difference of a long and a short row."""
    import torch

    from sqlft_local.kernels import fused
    from sqlft_local.kernels.batching import prepare_batch
    from sqlft_local.kernels.packing import Example

    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training, found = model.training, []
    model.train()
    fused.set_checkpointing(model, checkpointing)
    for tokens in TRIAL_TOKENS:
        kept.clear()
        ids = [i % model.get_input_embeddings().num_embeddings for i in range(tokens)]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = fused.compute_loss(model, prepare_batch(model, [Example(ids, [1.0] * tokens)]))
        found.append(sum(kept.values()))
        del loss
    model.train(training)
    few, many = TRIAL_TOKENS
    return (found[1] - found[0]) / (many - few)


def limit_bytes(options: TrainOptions, free: int | None, taken: int = 0) -> int | None:
    """Bytes that a training may take: what `max_memory` says, of what is free less a tenth, and has been taken."""
    named = parse_size(options.max_memory) if options.max_memory else None
    allowed = None if free is None else taken + round(free * (1 - FREE_MARGIN))
    return min((n for n in (named, allowed) if n is not None), default=None)


def fit_passes(
    shape: DecoderShape, setting: TrainingSetup, options: TrainOptions, device: str, limit: int | None, fixed: int
) -> PassBudget:
    """The passes that fit into `limit` bytes, of which `fixed` do not depend on tokens; no limit fits every pass.

    Blocks are computed twice where memory asks for it, unless `gradient_checkpointing` says.
    """
    most = options.max_tokens_per_pass or MAX_TOKENS_PER_PASS.get(device, MAX_TOKENS_PER_PASS["cuda"])
    wanted = options.gradient_checkpointing
    plain = twice = UNLIMITED_TOKENS
    if limit is not None:
        left = _plan_room(limit, fixed)
        plain = fit_tokens(shape, replace(setting, checkpointing=False), left)
        twice = fit_tokens(shape, replace(setting, checkpointing=True), left)
    if wanted or (wanted is None and plain < min(FAST_PASS_TOKENS, most)):
        return PassBudget(min(most, twice), 0, twice, limit)
    longest, above = (plain, UNLIMITED_TOKENS) if wanted is False else (twice, plain)
    return PassBudget(min(most, plain), above, longest, limit)


def _plan_room(limit: int, fixed: int) -> int:
    return round((limit - fixed) * PLANNED_SHARE)


def _too_little_memory_error(
    shape: DecoderShape, setting: TrainingSetup, limit: int, fixed: int, longest: int, largest: int
) -> ProviderError:
    need = fixed + longest * estimate_token_bytes(shape, setting) + estimate_logit_bytes(shape, setting, longest)
    shorter = f"max_length = {largest}, " if largest >= 16 else ""
    return ProviderError(
        f"A row of {longest:,} tokens takes about {format_size(need)} to train on, "
        f"and {format_size(limit)} may be used.",
        f"Say {shorter}max_memory = '{format_size(need)}' on a machine that has it, "
        "or quantization = 'nf4' in CREATE MODEL.",
    )


def read_setup(model: Model, options: TrainOptions, adapter: LoraAdapter) -> TrainingSetup:
    """What is trained, by the names of the layers that have matrices."""
    targets = sorted({name.split(".")[-3] for name in adapter.trained})
    dtype = str(model.dtype).removeprefix("torch.")
    config = getattr(model.config, "quantization_config", None)
    quantization = "none" if config is None else "int8" if getattr(config, "load_in_8bit", False) else "nf4"
    return TrainingSetup(dtype, quantization, adapter.config.r, targets, options.lora_dropout)


def parse_size(text: str) -> int:
    """Bytes of '8GB', '500 MiB' or a number; OptionError for other texts."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(text), re.IGNORECASE)
    unit = SIZE_UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise OptionError(f"max_memory is {text!r}.", "Write bytes, or a size such as max_memory = '8GB'.")
    return round(float(found[1]) * unit)


def format_size(size: int) -> str:
    """Bytes for people, in the unit that `parse_size` reads."""
    return f"{size / 1e9:.1f}GB" if size >= 1e9 else f"{size / 1e6:.0f}MB"


def read_available_memory(device: str) -> int | None:
    """Bytes that this process may still take, on the device; None where that is not known."""
    if device == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    if device != "cpu":
        return None
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *(max(0, limit - used) for limit, used in read_cgroup_limits())])


def _read_used_memory(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)
