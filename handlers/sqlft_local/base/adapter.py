"""A LoRA adapter's folder in PEFT's layout: its matrices, its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import JsonMapping, JsonObject


UNUSUAL_PARTS = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "target_parameters")
"""What a PEFT config may say that makes more of an adapter than a pair of matrices for some linear layers."""


def read_adapter_config(adapter: Path) -> JsonObject:
    """What adapter_config.json says; ProviderError where it cannot be read, NotSupported for what is no LoRA."""
    with _explain_unreadable(adapter):
        config: JsonObject = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise NotSupported(f"The adapter in {adapter} uses {config.get('peft_type')}.", "Use a LoRA adapter.")
    return config


def read_tensors(adapter: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the file."""
    from safetensors.torch import load_file

    with _explain_unreadable(adapter):
        found: dict[str, Tensor] = load_file(adapter / "adapter_model.safetensors")
    return found


@contextmanager
def _explain_unreadable(adapter: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as e:
        raise ProviderError(
            f"The adapter in {adapter} cannot be read: {e}.", "Train the version again: RETRAIN."
        ) from e


def find_unusual_adapter_part(config: JsonMapping) -> str | None:
    """What only PEFT itself computes, if anything."""
    return next((part for part in UNUSUAL_PARTS if config.get(part)), None)


def read_adapter(adapter: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale and, by layer name, the matrices A (r, in) and B (out, r) of a plain LoRA adapter's folder."""
    config = read_adapter_config(adapter)
    if odd := find_unusual_adapter_part(config):
        raise NotSupported(f"The adapter in {adapter} uses {odd}.", "Use backend = 'transformers'.")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(adapter).items():
        name, _, which = key.removesuffix(".weight").rpartition(".")
        pairs.setdefault(name.removeprefix("base_model.model."), {})[which] = tensor
    scale = config["lora_alpha"] / config["r"]
    return scale, {name: (p["lora_A"], p["lora_B"]) for name, p in pairs.items()}


def wrong_base_error(adapter: Path) -> ProviderError:
    """What to say when matrices and layers do not fit together."""
    return ProviderError(
        f"The adapter in {adapter} was made for another base.", "Use the base it was trained on, or RETRAIN."
    )


def digest_adapter(adapter: Path) -> str:
    """Of what is in it, wherever it lies."""
    found = hashlib.sha256()
    try:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            found.update((adapter / name).read_bytes())
    except OSError as e:
        raise ProviderError(
            f"The adapter in {adapter} cannot be read: {e}.", "Train the version again: RETRAIN."
        ) from e
    return found.hexdigest()[:16]
