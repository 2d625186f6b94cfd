"""A base's config.json, read in one place: shape, context, what is unusual in it, and the tokens that end an answer.

Called by whoever loads, converts or estimates a base; takes its folder, or the mapping in the file or of transformers'
`config.to_dict()`.  What only one way of running a base needs (biases, the norm's epsilon) is read there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_CONTEXT = 4096
"""Tokens of a base whose config says nothing of them."""
DEFAULT_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class DecoderShape:
    """What of a decoder's config decides its memory; `linear_layers` has each layer's (in, out) by name."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block."""
        h, i, q, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def parameters(self) -> int:
        """Numbers in the base."""
        return self._linear_parameters + self._other_parameters

    @property
    def _linear_parameters(self) -> int:
        return self.layers * sum(a * b for a, b in self.linear_layers.values())

    @property
    def _other_parameters(self) -> int:
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden_size


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says; OSError or ValueError where it cannot be read."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is no object")
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text, of a base that sees too."""
    return config.get("text_config") or config


def read_context(config: Mapping[str, Any], wanted: int | None = None) -> int:
    """Tokens that the base was made for, or fewer if so many are wanted.

    >>> read_context({"max_position_embeddings": 512}), read_context({"max_position_embeddings": 512}, 100)
    (512, 100)
    """
    return limit_context(int(text_config(config).get("max_position_embeddings") or DEFAULT_CONTEXT), wanted)


def limit_context(made_for: int, wanted: int | None) -> int:
    """The option `context_length`, for a base that was made for so many tokens."""
    return min(wanted or made_for, made_for)


def read_rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotary embedding's angles."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta")
    return float(theta or DEFAULT_ROPE_THETA)


def find_unusual_part(config: Mapping[str, Any]) -> str | None:
    """What a plain decoder with full attention, SwiGLU and unscaled rotary embeddings does not have, if anything.

    >>> find_unusual_part({"model_type": "mistral", "sliding_window": 4096})
    'a sliding window'
    """
    for rope in (config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
            return f"the position scaling {rope_type}"
    uses_window = config.get("use_sliding_window", config.get("model_type") == "mistral")
    if (uses_window and config.get("sliding_window", True)) or set(config.get("layer_types") or ()) - {
        "full_attention"
    }:
        return "a sliding window"
    if config.get("quantization_config"):
        return "weights that are quantized already"
    if config.get("hidden_act", "silu") != "silu":
        return f"the activation {config['hidden_act']}"
    return None


def read_stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer: those of generation_config.json, without such a file those of config.json."""
    file = folder / "generation_config.json"
    if file.exists():
        said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        config = read_config(folder)
        said = text_config(config).get("eos_token_id", config.get("eos_token_id"))
    return [i for i in (said if isinstance(said, list) else [said]) if i is not None]


def read_shape(config: Mapping[str, Any]) -> DecoderShape:
    """The decoder's sizes; KeyError or TypeError for what is none."""
    text = text_config(config)
    heads = int(text["num_attention_heads"])
    return DecoderShape(
        layers=int(text["num_hidden_layers"]),
        hidden_size=int(text["hidden_size"]),
        intermediate_size=int(text.get("intermediate_size") or 4 * text["hidden_size"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        vocab_size=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )
