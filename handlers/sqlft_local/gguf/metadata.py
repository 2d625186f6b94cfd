"""A base's config as the keys and the factors of the rotary embedding that llama.cpp reads.

Called by `write`.  In: all of a config, with transformers' defaults for what its file leaves out.  Out: values by their
key without the architecture's name, and small tensors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlft_local.base.config import read_context, read_shape
from sqlft_local.gguf.architectures import count_heads, count_kv_heads, find_wide_head

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sqlft_local._types import Config, JsonMapping, JsonObject
    from sqlft_local.gguf.architectures import Architecture, Value


def read_full_config(folder: Path) -> JsonObject:
    """The text part of a base's config, with transformers' own defaults."""
    from transformers import AutoConfig

    return complete_config(AutoConfig.from_pretrained(folder))


def complete_config(config: Config) -> JsonObject:
    """The text part, with what only the class says."""
    text = config.get_text_config()
    found: JsonObject = text.to_dict()
    for name, other in (("num_hidden_layers", ""), ("layer_types", "layers_block_type")):
        value = getattr(text, name, None) or getattr(text, other or name, None)
        if found.get(name) is None and value is not None:
            found[name] = value
    return found


def read_rope(config: JsonMapping, layers: str = "full_attention") -> JsonMapping:
    """What is said of the rotary embedding of such layers; empty without one."""
    rope: JsonMapping = config.get("rope_parameters") or {}
    return (rope.get(layers) or {}) if any(isinstance(v, dict) for v in rope.values()) else rope


def describe(config: JsonMapping, architecture: Architecture) -> dict[str, Value]:
    """All keys of a base."""
    shape, rope = read_shape(config), read_rope(config)
    found: dict[str, Value] = {
        "block_count": shape.layers,
        "context_length": read_context(config),
        "vocab_size": shape.vocab_size,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": count_heads(config),
        "attention.head_count_kv": count_kv_heads(config),
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": _first(config, "rms_norm_eps"),
        "attention.layer_norm_epsilon": _first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "attention.sliding_window": config.get("sliding_window") if uses_window(config) else None,
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "expert_count": _first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": _first(config, "num_experts_per_tok", "moe_topk"),
        "expert_feed_forward_length": _first(config, "moe_intermediate_size"),
        "expert_shared_feed_forward_length": _first(config, "shared_expert_intermediate_size"),
        "expert_shared_count": _first(config, "n_shared_experts"),
        "expert_group_count": _first(config, "n_group"),
        "expert_group_used_count": _first(config, "topk_group"),
        "expert_weights_scale": _first(config, "routed_scaling_factor"),
        "expert_weights_norm": _first(config, "norm_topk_prob"),
        "leading_dense_block_count": _count_leading_dense(config),
        "rope.dimension_count": int(shape.head_dim * rope.get("partial_rotary_factor", 1.0)) if rope else None,
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": read_rope(config, "sliding_attention").get("rope_theta"),
        **_describe_scaling(config, rope),
    }
    found |= {key: read(config) for key, read in architecture.keys.items()}
    return {key: value for key, value in found.items() if value is not None}


def uses_window(config: JsonMapping) -> bool:
    """Whether some layer attends to near tokens only."""
    kinds = config.get("layer_types")
    return bool(config.get("use_sliding_window", True)) and (kinds is None or "sliding_attention" in kinds)


def _first(config: JsonMapping, *names: str) -> Value:
    found: Value = next((config[name] for name in names if config.get(name) is not None), None)
    return found


def _count_leading_dense(config: JsonMapping) -> int | None:
    kinds = config.get("mlp_layer_types")
    if kinds:
        return next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    first: int | None = config.get("first_k_dense_replace")
    return first


def _describe_scaling(config: JsonMapping, rope: JsonMapping) -> dict[str, Value]:
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    name = "original_max_position_embeddings"
    original = int(rope.get(name) or config.get(name) or read_context(config))
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    if kind == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": original,
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast"),
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow"),
            "rope.scaling.yarn_attn_factor": rope.get("attention_factor"),
        }
    if kind == "longrope":
        scale = read_context(config) / original
        grown = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": rope.get("attention_factor") or grown,
        }
    return {}


def compute_rope_factors(config: JsonMapping) -> dict[str, Tensor]:
    """Tensors by which llama.cpp divides the angles, under its names; none where nothing is scaled unevenly."""
    import torch

    rope = read_rope(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        return {f"rope_factors_{n}.weight": torch.tensor(rope[f"{n}_factor"]) for n in ("long", "short")}
    size = int(read_shape(config).head_dim * rope.get("partial_rotary_factor", 1.0))
    if kind == "proportional":
        whole = find_wide_head(config) // 2
        turned = int(whole * rope["partial_rotary_factor"])
        return {"rope_freqs.weight": torch.tensor([1.0] * turned + [1e30] * (whole - turned))}
    if kind != "llama3":
        return {}
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2) / size)
    turns = rope["original_max_position_embeddings"] / waves
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": 1 / ((1 - smooth) / rope["factor"] + smooth)}
