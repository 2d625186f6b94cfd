"""How many bytes a training takes, from a config's shapes alone, and the tokens of a pass that fit into memory.

The terms follow what `kernels.fused`, `lora` and `kernels.packing` keep for the backward pass.  Bytes unless said
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlft.errors import OptionError, ProviderError
from sqlft_local.base.config import Shape, shape_of
from sqlft_local.machine import limits
from sqlft_local.options import TrainOptions

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a weight in a linear layer; nf4 has a float32 for every 64."""
PROCESS = 650 << 20
"""Python with torch, transformers and peft loaded."""
SCRATCH = 180 << 20
"""What the libraries of products keep for themselves once a training runs."""
LOOSE = {4: 1.35, 2: 1.35}
"""What a byte of a pass takes by the width of its numbers: allocators leave gaps.  Measured on SmolLM2-135M."""
TRAINED = 16
"""A trained number, its gradient and AdamW's two moments, each float32."""
CHUNK = 128
"""Tokens whose logits are there at a time."""
SEEN = 128
"""Keys of a token whose attention weights are kept, at most about so many."""
MARGIN = 0.1
"""Share of the free memory that is left to others when nobody says how much to take."""


@dataclass(frozen=True)
class Setting:
    """How a base is trained; dtype and quantization as the options have them, dtype never auto."""

    dtype: str = "float32"
    quantization: str = "none"
    r: int = 8
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    dropout: float = 0.05
    checkpointing: bool = False


def weights(shape: Shape, dtype: str, quantization: str = "none") -> int:
    """The base; quantisation leaves embeddings, norms and the output head as they are."""
    each = QUANTISED.get(quantization, WIDTH[dtype])
    return round(shape._in_linear * each + shape._in_tables * WIDTH[dtype])


def adapter_parameters(shape: Shape, r: int, targets: Sequence[str]) -> int:
    """Numbers in the LoRA matrices of `targets`, names of linear layers or all-linear."""
    return shape.layers * sum(r * (a + b) for a, b in _chosen(shape, targets).values())


def adapter(shape: Shape, r: int, targets: Sequence[str]) -> int:
    """The LoRA matrices with gradients and optimizer."""
    return adapter_parameters(shape, r, targets) * TRAINED


def token(shape: Shape, setting: Setting) -> int:
    """What a token of a pass keeps until the backward pass, and what computing it takes at the highest."""
    block = _block(shape, setting)
    at_once = 4 * shape.intermediate * WIDTH[setting.dtype] + 4 * shape.hidden * 4
    kept = shape.layers * shape.hidden * WIDTH[setting.dtype] + block if setting.checkpointing else shape.layers * block
    return round((kept + at_once) * LOOSE[WIDTH[setting.dtype]])


def logit_rows(shape: Shape, setting: Setting, tokens: int) -> int:
    """The logits of the `tokens` of a pass that count in the loss; only a chunk of them is there at a time."""
    rows = min(tokens, CHUNK)
    return rows * shape.vocabulary * 3 * WIDTH[setting.dtype] + tokens * shape.hidden * (WIDTH[setting.dtype] + 4)


def unpacked(shape: Shape, setting: Setting) -> int:
    """The largest quantised weight while it is multiplied."""
    if setting.quantization == "none":
        return 0
    return max(a * b for a, b in shape.linear.values()) * WIDTH[setting.dtype]


def fixed(shape: Shape, setting: Setting) -> int:
    """All that does not depend on the tokens of a pass."""
    kept = weights(shape, setting.dtype, setting.quantization) + adapter(shape, setting.r, setting.targets)
    return PROCESS + SCRATCH + kept + unpacked(shape, setting)


def whole(shape: Shape, setting: Setting, tokens: int) -> int:
    """A training whose passes have `tokens` tokens, at its highest."""
    return fixed(shape, setting) + tokens * token(shape, setting) + logit_rows(shape, setting, tokens)


def tokens_within(shape: Shape, setting: Setting, bytes_left: int) -> int:
    """Tokens of a pass that fit into what `fixed` leaves; 0 if not one does."""
    each = token(shape, setting)
    fits, too_many = 0, max(0, bytes_left) // each + 1
    while too_many - fits > 1:
        tokens = (fits + too_many) // 2
        if tokens * each + logit_rows(shape, setting, tokens) <= bytes_left:
            fits = tokens
        else:
            too_many = tokens
    return fits


def _block(shape: Shape, setting: Setting) -> int:
    """What one block keeps of a token: see the saved tensors in lean, lora and packing."""
    width = WIDTH[setting.dtype]
    h, i, q, kv = shape.hidden, shape.intermediate, shape.heads * shape.head, shape.kv_heads * shape.head
    chosen = _chosen(shape, setting.targets)
    norms = 2 * (h * width + 4)
    attention = (q + 2 * kv + SEEN * shape.heads) * width
    gates = 2 * i * width
    read = {"q_proj": "a", "k_proj": "a", "v_proj": "a", "o_proj": "o", "gate_proj": "m", "up_proj": "m"}
    inputs = {read.get(name, name): size for name, (size, _) in chosen.items()}
    lora = sum(inputs.values()) * width + len(chosen) * setting.r * width
    return norms + attention + gates + lora


def _chosen(shape: Shape, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    if "all-linear" in targets:
        return shape.linear
    return {name: size for name, size in shape.linear.items() if name in targets}


MOST = {"cpu": 2048, "cuda": 16384}
"""Tokens of a pass when memory does not ask for fewer: more is no faster."""
ENOUGH = 256
"""Passes of fewer tokens are slow: then blocks are rather computed twice."""
SURE = 0.95
"""Share of the room that is planned with."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class Budget:
    """Tokens of a pass; `above` are those from which on it is computed with gradient checkpointing."""

    tokens: int
    above: int
    bytes: int | None = None
    """Of the whole process, or of the card."""


def chosen(model: Any, options: TrainOptions, adapter: Any, longest: int, together: int = 1) -> Budget:
    """For a model that is loaded, with its LoRA matrices `adapter`; ProviderError where the longest row has no room.

    `together` processes share the memory of the machine, none that of a card.
    """
    device = model.device.type
    limit = parsed(options.max_memory) if options.max_memory else None
    taken, free = _taken(device), available(device)
    if free is not None:
        allowed = taken + round(free * (1 - MARGIN) / (together if device == "cpu" else 1))
        limit = allowed if limit is None else min(limit, allowed)
    most = options.max_tokens_per_pass or MOST.get(device, MOST["cuda"])
    if limit is None:
        return Budget(most, 0 if options.gradient_checkpointing else 1 << 40)
    shape = shape_of(model.config.to_dict())
    setting = setting_of(model, options, adapter)
    fixed = adapter(shape, setting.r, setting.targets) + unpacked(shape, setting)
    if device == "cpu":  # weights mapped from their file count from when they are first read
        stored = sum(p.numel() * p.element_size() for p in model.parameters())
        fixed += SCRATCH + max(taken, PROCESS + stored)
    else:
        fixed += taken
    return _split(shape, setting, options, limit, round((limit - fixed) * SURE), most, longest)


def _split(
    shape: Shape, setting: Setting, options: TrainOptions, limit: int, left: int, most: int, longest: int
) -> Budget:
    plain = tokens_within(shape, replace(setting, checkpointing=False), left)
    twice = tokens_within(shape, replace(setting, checkpointing=True), left)
    wanted = options.gradient_checkpointing
    largest = plain if wanted is False else twice
    if longest > largest:
        raise _too_little(shape, replace(setting, checkpointing=wanted is not False), limit, left, longest, largest)
    if wanted or (wanted is None and plain < min(ENOUGH, most)):
        return Budget(min(most, twice), 0, limit)
    return Budget(min(most, plain), plain, limit)


def _too_little(shape: Shape, setting: Setting, limit: int, left: int, longest: int, largest: int) -> ProviderError:
    need = limit - left + longest * token(shape, setting) + logit_rows(shape, setting, longest)
    shorter = f"max_length = {largest}, " if largest >= 16 else ""
    return ProviderError(
        f"A row of {longest:,} tokens takes about {shown(need)} to train on, and {shown(limit)} may be used.",
        f"Say {shorter}max_memory = '{shown(need)}' on a machine that has it, or quantization = 'nf4' in CREATE MODEL.",
    )


def setting_of(model: Any, options: TrainOptions, adapter: Any) -> Setting:
    """What is trained, by the names of the layers that have matrices."""
    targets = sorted({name.split(".")[-3] for name in adapter.trained})
    dtype = str(model.dtype).removeprefix("torch.")
    config = getattr(model.config, "quantization_config", None)
    quantization = "none" if config is None else "int8" if getattr(config, "load_in_8bit", False) else "nf4"
    return Setting(dtype, quantization, adapter.config.r, targets, options.lora_dropout)


def parsed(text: str) -> int:
    """Bytes of '8GB', '500 MiB' or a number; OptionError for other texts."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(text), re.IGNORECASE)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise OptionError(f"max_memory is {text!r}.", "Write bytes, or a size such as max_memory = '8GB'.")
    return round(float(found[1]) * unit)


def shown(size: int) -> str:
    """Bytes for people, in the unit that `parsed` reads."""
    return f"{size / 1e9:.1f}GB" if size >= 1e9 else f"{size / 1e6:.0f}MB"


def available(device: str) -> int | None:
    """Bytes that this process may still take, on the device; None where that is not known."""
    if device == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    if device != "cpu":
        return None
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *(max(0, limit - used) for limit, used in limits())])


def _taken(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)
