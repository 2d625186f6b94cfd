"""A LoRA adapter's folder in PEFT's layout: its matrices, its digest, and whether one that others made is read here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import JsonMapping, JsonObject


UNUSUAL_PARTS = ("use_dora", "fan_in_fan_out", "target_parameters")
"""What a PEFT config may say that makes more of an adapter than a pair of matrices for some linear layers."""
SHAPE_SETTINGS = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
)
"""What of a PEFT config says which layers have matrices, how large they are and what they are multiplied with."""
_SILENT_SETTINGS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version"),
    *("task_type", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "runtime_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "bias"),
)
"""What changes no answer, or is looked at by itself; anything else that is set is refused."""
_INITS_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that change the base's own weights before training."""
_MERGE_HINT = (
    "Where it was made, add it to its base (merge_and_unload, save_pretrained), and take that folder as a base."
)


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


def read_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's matrices by their names in PEFT; NotSupported for tensors that are none."""
    from safetensors import safe_open

    with _explain_unreadable(adapter), safe_open(adapter / "adapter_model.safetensors", framework="pt") as opened:
        names: list[str] = list(opened.keys())
        found = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    for name in names:
        if name.removesuffix(".weight").rpartition(".")[2] not in ("lora_A", "lora_B", "lora_magnitude_vector"):
            raise NotSupported(f"The adapter in {adapter} has {name}, which is no matrix of a layer.", _MERGE_HINT)
    return {name.removeprefix("base_model.model."): shape for name, shape in found.items()}


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
    scale = _compute_scale(config, config["lora_alpha"], config["r"])
    made = {name: (p["lora_A"], p["lora_B"]) for name, p in pairs.items()}
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        made = {name: (a, b * (_find_own_scale(config, name, a.shape[0]) / scale)) for name, (a, b) in made.items()}
    return scale, made


def _compute_scale(config: JsonMapping, alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _find_own_scale(config: JsonMapping, layer: str, rank: int) -> float:
    """What PEFT multiplies a layer's matrices with, whose alpha may be that of a pattern of names."""
    patterns: JsonMapping = config.get("alpha_pattern") or {}
    own = next((alpha for name, alpha in patterns.items() if re.match(rf"(.*\.)?({name})$", layer)), None)
    return _compute_scale(config, config["lora_alpha"] if own is None else own, rank)


def check_readable(adapter: Path) -> JsonObject:
    """The config of an adapter that others made; NotSupported, with the reason, for what is not computed here."""
    if not (adapter / "adapter_model.safetensors").exists() and (adapter / "adapter_model.bin").exists():
        raise NotSupported(
            f"The adapter in {adapter} is a pickle (adapter_model.bin), and unpickling can run any code.",
            "Where it was made, save it as safetensors: model.save_pretrained(folder), by PEFT 0.7 or later.",
        )
    config = read_adapter_config(adapter)
    if why := _find_refusal(config):
        raise NotSupported(f"The adapter in {adapter} {why}.", _MERGE_HINT)
    return config


def _find_refusal(config: JsonMapping) -> str | None:
    """Why an adapter of this config is not read, if it is not."""
    if config.get("modules_to_save"):
        return f"has whole layers of its own beside the matrices (modules_to_save: {config['modules_to_save']})"
    if config.get("bias", "none") != "none":
        return f"has trained the base's biases too (bias: {config['bias']})"
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        return f"answers with no text (task_type: {config['task_type']})"
    if str(config.get("init_lora_weights")).lower().startswith(_INITS_OF_THE_BASE):
        return f"belongs to weights that its training changed (init_lora_weights: {config['init_lora_weights']})"
    known = {*UNUSUAL_PARTS, *SHAPE_SETTINGS, *_SILENT_SETTINGS, "modules_to_save"}
    odd = next((name for name, value in config.items() if value and name not in known), None)
    return None if odd is None else f"uses {odd}, which is not computed here"


def wrong_base_error(adapter: Path, why: str = "") -> ProviderError:
    """What to say when matrices and layers do not fit together."""
    return ProviderError(
        f"The adapter in {adapter} was made for another base{f': {why}' if why else ''}.",
        "Use the base it was trained on, or RETRAIN.",
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
