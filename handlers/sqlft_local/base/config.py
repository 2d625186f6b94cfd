"""A base's config.json, read in one place: shapes of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def read_shape(config: Mapping[str, Any]) -> DecoderShape:
    """From the mapping in a base's config.json, or of transformers' `config.to_dict()`."""
    text = config.get("text_config") or config
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
