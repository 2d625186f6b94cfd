"""Weights of linear layers in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlft.errors import HandlerNotInstalled
from sqlft_local.errors import INSTALL

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Dtype, Layer, Model, QuantizationConfig


def dequantise(layer: Layer, dtype: Dtype) -> Tensor:
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


def quantization_config(quantization: str, dtype: Dtype) -> QuantizationConfig | None:
    """What transformers needs to load a base so; None for none, HandlerNotInstalled without bitsandbytes."""
    if quantization == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError) as e:
        raise HandlerNotInstalled(f"quantization = '{quantization}' needs bitsandbytes ({e}).", INSTALL) from e
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def disable_repacking(model: Model) -> None:
    """Keep the weights as they were stored: bitsandbytes would repack them where it has a kernel for asking alone."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def is_quantised(layer: Layer) -> bool:
    """Whether a layer's weight is not plain numbers."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def list_quantisation_states(model: Model) -> list[object]:
    """What layers keep beside their weights; copies of a model share it."""
    found = (getattr(m, name, None) for m in model.modules() for name in ("state", "quant_state"))
    return [one for one in found if one is not None]
