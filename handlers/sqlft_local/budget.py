"""How many tokens a pass may have, and whether its blocks are computed twice, from the memory there is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from sqlft.errors import OptionError, ProviderError
from sqlft_local import memory
from sqlft_local.hardware import limits
from sqlft_local.memory import Setting, Shape
from sqlft_local.options import TrainOptions

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
        allowed = taken + round(free * (1 - memory.MARGIN) / (together if device == "cpu" else 1))
        limit = allowed if limit is None else min(limit, allowed)
    most = options.max_tokens_per_pass or MOST.get(device, MOST["cuda"])
    if limit is None:
        return Budget(most, 0 if options.gradient_checkpointing else 1 << 40)
    shape = memory.shape_of(model.config.to_dict())
    setting = setting_of(model, options, adapter)
    fixed = memory.adapter(shape, setting.r, setting.targets) + memory.unpacked(shape, setting)
    if device == "cpu":  # weights mapped from their file count from when they are first read
        stored = sum(p.numel() * p.element_size() for p in model.parameters())
        fixed += memory.SCRATCH + max(taken, memory.PROCESS + stored)
    else:
        fixed += taken
    return _split(shape, setting, options, limit, round((limit - fixed) * SURE), most, longest)


def _split(
    shape: Shape, setting: Setting, options: TrainOptions, limit: int, left: int, most: int, longest: int
) -> Budget:
    plain = memory.tokens_within(shape, replace(setting, checkpointing=False), left)
    twice = memory.tokens_within(shape, replace(setting, checkpointing=True), left)
    wanted = options.gradient_checkpointing
    largest = plain if wanted is False else twice
    if longest > largest:
        raise _too_little(shape, replace(setting, checkpointing=wanted is not False), limit, left, longest, largest)
    if wanted or (wanted is None and plain < min(ENOUGH, most)):
        return Budget(min(most, twice), 0, limit)
    return Budget(min(most, plain), plain, limit)


def _too_little(shape: Shape, setting: Setting, limit: int, left: int, longest: int, largest: int) -> ProviderError:
    need = limit - left + longest * memory.token(shape, setting) + memory.logit_rows(shape, setting, longest)
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
