"""A base's config.json, read in one place: shape, context, what is unusual in it, and the tokens that end an answer.

Called by whoever loads, converts or estimates a base; takes its folder, or the mapping in the file or of transformers'
`config.to_dict()`.  What only one way of running a base needs (biases, the norm's epsilon) is read there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlft_local._types import JsonMapping, JsonObject

DEFAULT_CONTEXT = 4096
"""Tokens of a base whose config says nothing of them."""
DEFAULT_ROPE_THETA = 10000.0


CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length", "max_sequence_length")
"""What configs call the tokens that a base was made for."""
# fmt: off
UNPACKED_TYPES = frozenset((
    "bamba", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
    "blenderbot-small", "bloom", "camembert", "codegen", "cpmant", "data2vec-text", "diffllama", "doge",
    "electra", "ernie", "falcon", "falcon_h1", "falcon_mamba", "flint", "gemma2", "git", "gpt_neo",
    "gpt_neox_japanese", "gpt_oss", "gptj", "granite_swa", "granitemoe_swa", "hrm_text", "jamba", "mamba",
    "mamba2", "marian", "mbart", "megatron-bert", "mimo_v2_flash", "mpt", "mvp", "nemotron", "nemotron_h", "openai-gpt",
    "pegasus", "phimoe", "plbart", "prophetnet", "recurrent_gemma", "rembert", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "rwkv", "stablelm", "trocr", "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod", "zamba",
))
# fmt: on
"""Types whose layers take no packed rows for what their config does not say: attention of their own, soft caps, sinks,
more than one attention a layer.  Found by tests/architectures.py; others are tried when loaded."""
LAYERS_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN_NAMES = ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embedding_size")
HEADS_NAMES = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS_NAMES = ("num_key_value_heads", "num_kv_heads")
INTERMEDIATE_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")


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


def read_config(folder: Path) -> JsonObject:
    """What config.json says; OSError or ValueError where it cannot be read."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is no object")
    return config


def text_config(config: JsonMapping) -> JsonMapping:
    """The part about text, of a base that sees too."""
    return config.get("text_config") or config


def read_context(config: JsonMapping, wanted: int | None = None) -> int:
    """Tokens that the base was made for, or fewer if so many are wanted.

    >>> read_context({"max_position_embeddings": 512}), read_context({"max_position_embeddings": 512}, 100)
    (512, 100)
    """
    return limit_context(_largest(text_config(config), CONTEXT_NAMES) or DEFAULT_CONTEXT, wanted)


def limit_context(made_for: int, wanted: int | None) -> int:
    """The option `context_length`, for a base that was made for so many tokens."""
    return min(wanted or made_for, made_for)


def read_rope_theta(config: JsonMapping) -> float:
    """The base of the rotary embedding's angles."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta")
    return float(theta or DEFAULT_ROPE_THETA)


def find_unusual_part(config: JsonMapping) -> str | None:
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


TESTED_ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}
"""Architectures whose packed rows tests compare with transformers' own attention; others are tried when loaded."""


def describe_layout(folder: Path) -> str:
    """How rows of a base are trained on and why, as far as its config.json says."""
    try:
        config = read_config(folder)
        obstacle = find_packing_obstacle(config)
    except (OSError, ValueError, AttributeError) as e:
        return f"unknown: its config.json cannot be read ({e})"
    if obstacle is not None:
        return f"padded: {obstacle}"
    return "packed" if config.get("model_type") in TESTED_ARCHITECTURES else "packed, if a trial gives the same numbers"


def find_packing_obstacle(config: JsonMapping) -> str | None:
    """Why rows of such a base are not packed, as far as is known without its weights.

    >>> find_packing_obstacle({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]})
    'it has layers that are no attention (conv)'
    """
    text = text_config(config)
    others = set(text.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers that are no attention ({', '.join(sorted(others))})"
    if {config.get("model_type"), text.get("model_type")} & UNPACKED_TYPES:
        return "its attention is its own"
    return None


def read_stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer: those of generation_config.json, without such a file those of config.json."""
    file = folder / "generation_config.json"
    if file.exists():
        ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        config = read_config(folder)
        ids = text_config(config).get("eos_token_id", config.get("eos_token_id"))
    return [i for i in (ids if isinstance(ids, list) else [ids]) if i is not None]


def read_shape(config: JsonMapping) -> DecoderShape:
    """The decoder's sizes; KeyError or TypeError for what is none.

    Of layers that differ the widest counts, and what is no attention (a state space, a convolution) counts as attention
    of one head: then the sizes are only about right.
    """
    text = text_config(config)
    layers, hidden = _largest(text, LAYERS_NAMES), _largest(text, HIDDEN_NAMES)
    if not layers or not hidden:
        raise KeyError(HIDDEN_NAMES[0] if layers else LAYERS_NAMES[0])
    heads = _largest(text, HEADS_NAMES) or 1
    return DecoderShape(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_largest(text, INTERMEDIATE_NAMES) or 4 * hidden,
        heads=heads,
        kv_heads=_largest(text, KV_HEADS_NAMES) or heads,
        head_dim=_largest(text, ("head_dim",)) or max(1, hidden // heads),
        vocab_size=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )


def _first(config: JsonMapping, names: Sequence[str]) -> int | Sequence[int] | None:
    return next((config[name] for name in names if config.get(name)), None)


def _largest(config: JsonMapping, names: Sequence[str]) -> int:
    """The value under the first of the names that there is, of a list the largest; 0 without one."""
    found = _first(config, names)
    return max(map(int, found), default=0) if isinstance(found, Sequence) else int(found or 0)
