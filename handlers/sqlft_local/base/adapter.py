"""A LoRA adapter's folder in PEFT's layout: its matrices, its digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError

if TYPE_CHECKING:
    from torch import Tensor


def read_adapter(adapter: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale and, by layer name, the matrices A (r, in) and B (out, r) of a PEFT LoRA adapter's folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as e:
        raise ProviderError(
            f"The adapter in {adapter} cannot be read: {e}.", "Train the version again: RETRAIN."
        ) from e
    odd = next(
        (k for k in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if config.get(k)),
        None,
    )
    if odd or config.get("peft_type") != "LORA":
        raise NotSupported(
            f"The adapter in {adapter} uses {odd or config.get('peft_type')}.", "Use a plain LoRA adapter."
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
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
