"""What this machine is, and which presets it can train and ask: for `sqlft doctor`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlft_local import bases, memory
from sqlft_local.estimate import called
from sqlft_local.hardware import Machine
from sqlft_local.memory import Setting, Shape
from sqlft_local.presets import PRESETS

ASKED_IN = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes of a weight in the files that are asked; q8_0 has a scale for every 32."""
ASKING_TOKENS = 4096
"""Tokens whose states asking keeps: sixteen prompts of some hundreds."""
ENGINE = 200 << 20
"""The engine that asks, beside the weights."""
GIGA = 1e9


def machine_facts(here: Machine) -> dict[str, Any]:
    """As people read it."""
    device = here.device()
    cards = [f"{g.name}, {g.memory / GIGA:.0f} GB, {g.free / GIGA:.0f} GB free" for g in here.gpus]
    return {
        "processor": here.processor,
        "cores": here.cores,
        "memory": _gigabytes(here.memory),
        "free": _gigabytes(here.free),
        "flags": list(here.flags) or ["none that matter"],
        "gpu": cards or ["Apple's, through Metal"] if here.metal or cards else ["none"],
        "device": device,
        "fast dtypes": list(here.fast(device)),
        "training in": here.dtype("auto", device),
    }


def bases_that_fit(here: Machine) -> list[dict[str, Any]]:
    """A row a preset: whether it is on this machine, and in which numbers it can be trained and asked, if at all."""
    device = here.device()
    free = here.available(device)
    setting = Setting(here.dtype("auto", device))
    rows = []
    for name, preset in PRESETS.items():
        assert preset.shape is not None
        rows.append(
            {
                "base": name,
                "weights": f"{preset.shape.parameters / 1e9:.3g} B",
                "here": bases.local_folder(name) is not None,
                "training": "unknown" if free is None else trained_in(preset.shape, setting, free),
                "asking": "unknown" if free is None else asked_in(preset.shape, free),
            }
        )
    return rows


def trained_in(shape: Shape, setting: Setting, free: int, tokens: int = 1024) -> str | None:
    """The most exact of float32, bfloat16, int8 and nf4 in which a base can be trained in so many free bytes."""
    exact = [replace(setting, dtype=d, quantization="none") for d in dict.fromkeys((setting.dtype, "bfloat16"))]
    packed = [replace(setting, dtype="bfloat16", quantization=q) for q in ("int8", "nf4")]
    for one in (*exact, *packed):
        if memory.whole(shape, replace(one, checkpointing=True), tokens) <= free:
            return called(one)
    return None


def asked_in(shape: Shape, free: int) -> str | None:
    """The most exact of f16 and q8_0 in which a base can be asked."""
    states = ASKING_TOKENS * shape.layers * 2 * shape.kv_heads * shape.head * 2
    for name, each in ASKED_IN.items():
        if shape.parameters * each + states + ENGINE <= free:
            return name
    return None


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIGA:.1f} GB"
