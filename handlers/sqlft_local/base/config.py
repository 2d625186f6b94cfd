"""A base's config.json, read in one place: shapes of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What of a decoder's config decides its memory; `linear` has each layer's (in, out) by name."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads * self.head, self.kv_heads * self.head
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
        return self._in_linear + self._in_tables

    @property
    def _in_linear(self) -> int:
        return self.layers * sum(a * b for a, b in self.linear.values())

    @property
    def _in_tables(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden


def shape_of(config: Mapping[str, Any]) -> Shape:
    """From the mapping in a base's config.json, or of transformers' `config.to_dict()`."""
    text = config.get("text_config") or config
    heads = int(text["num_attention_heads"])
    return Shape(
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        intermediate=int(text.get("intermediate_size") or 4 * text["hidden_size"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head=int(text.get("head_dim") or text["hidden_size"] // heads),
        vocabulary=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )
