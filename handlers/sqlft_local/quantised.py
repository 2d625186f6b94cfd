"""Weights of linear layers in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import Any


def dense(layer: Any, dtype: Any) -> Any:
    """A linear layer's weight (out, in) as numbers to multiply; for a quantised one a fresh copy."""
    weight = layer.weight
    kind = type(weight).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    if kind == "Int8Params":
        codes, scales = (weight.CB, weight.SCB) if weight.CB is not None else (layer.state.CB, layer.state.SCB)
        return codes.to(dtype).mul_((scales / 127).to(dtype)[:, None])
    return weight
