"""LoRA matrices in a model: PEFT puts them in and names them, a function of our own multiplies them.

PEFT's own forward keeps a dropped-out copy of its input for every layer and draws a random number for every
element; this one keeps the input, a byte mask and the r-wide product.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from sqlft.errors import OptionError
from sqlft_local.loading import other_base, read_adapter

if TYPE_CHECKING:
    from sqlft_local.options import TrainOptions

NAME = "default"
WHICH = ("lora_A", "lora_B")


class LoraLinear(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W' + s (drop(x) A') B', W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float, dropout: float) -> Any:
        """x (…, in), weight (out, in), a (r, in), b (out, r)."""
        mask = kept(x, dropout) if dropout else None
        narrow = linear(dropped(x, mask, dropout), a.to(x.dtype))
        out = linear(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(narrow.view(-1, a.shape[0]), b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, mask, narrow)
        ctx.scale, ctx.dropout = scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, a and b."""
        x, weight, a, b, mask, narrow = ctx.saved_tensors
        grad = grads[0]
        flat = grad.reshape(-1, grad.shape[-1])
        narrow_grad = (flat @ b.to(grad.dtype)) * ctx.scale
        b_grad = (flat.t() @ narrow.view(flat.shape[0], -1)).to(b.dtype) * ctx.scale
        a_grad = (narrow_grad.t() @ dropped(x, mask, ctx.dropout).view(flat.shape[0], -1)).to(a.dtype)
        x_grad = None
        if ctx.needs_input_grad[0]:
            through = dropped((narrow_grad @ a.to(grad.dtype)).view_as(x), mask, ctx.dropout)
            x_grad = (flat @ weight).view_as(x) + through
        return x_grad, None, None, a_grad, b_grad, None, None


def kept(x: Any, dropout: float) -> Any:
    """A byte mask like x, drawn 16 bits an element: a random number an element costs more than the matrices do."""
    drawn = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_()
    bits = drawn.view(torch.int16)[: x.numel()].view(x.shape)
    return bits >= round(dropout * 65536) - 32768


def dropped(x: Any, mask: Any, dropout: float) -> Any:
    """x with the mask's zeros, scaled up by what they take away."""
    return x if mask is None else (x * mask).mul_(1 / (1 - dropout))


@dataclass(frozen=True)
class Lora:
    """The trained parameters by their names in a PEFT file, and PEFT's description of them."""

    trained: dict[str, Any]
    config: Any


def attach(model: Any, options: TrainOptions, start: Path | None) -> Lora:
    """Put matrices into the model: those of the adapter `start`, whose r, alpha and layers count, or fresh ones."""
    from peft import LoraConfig, inject_adapter_in_model

    given = json.loads((start / "adapter_config.json").read_text(encoding="utf-8")) if start else {}
    config = LoraConfig(
        r=given.get("r", options.r),
        lora_alpha=given.get("lora_alpha", options.lora_alpha),
        target_modules=_targets(given.get("target_modules", options.target_modules)),
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=NAME)
    except ValueError as e:
        raise OptionError(
            f"The base has no layers called {', '.join(options.target_modules)}.", _linear_names(model)
        ) from e
    trained: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and NAME in layer.lora_A:
            for which in WHICH:
                matrix = getattr(layer, which)[NAME]
                matrix.weight.data = matrix.weight.data.float()
                trained[f"base_model.model.{name}.{which}.weight"] = matrix.weight
            layer.forward = partial(_forward, layer, options.lora_dropout)
    if start:
        _copy(start, trained)
    config.lora_dropout = options.lora_dropout
    return Lora(trained, config)


def load(lora: Lora, tensors: Mapping[str, Any]) -> None:
    """Set the trained parameters."""
    with torch.no_grad():
        for name, parameter in lora.trained.items():
            parameter.copy_(tensors[name])


def taken(lora: Lora) -> dict[str, Any]:
    """A copy of the trained parameters, in main memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in lora.trained.items()}


def save(lora: Lora, folder: Path, base: str) -> None:
    """Write a PEFT adapter: safetensors and config."""
    from safetensors.torch import save_file

    lora.config.base_model_name_or_path = base
    lora.config.inference_mode = True
    lora.config.save_pretrained(str(folder))
    save_file(taken(lora), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _forward(layer: Any, dropout: float, x: Any, *_: Any, **__: Any) -> Any:
    base = layer.base_layer
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[NAME], dropout if layer.training else 0.0)


def _copy(start: Path, trained: dict[str, Any]) -> None:
    _, pairs = read_adapter(start)
    tensors = {f"base_model.model.{n}.{w}.weight": t for n, ab in pairs.items() for w, t in zip(WHICH, ab, strict=True)}
    if tensors.keys() != trained.keys() or any(tensors[k].shape != trained[k].shape for k in trained):
        raise other_base(start)
    load(Lora(trained, None), tensors)


def _targets(names: Any) -> Any:
    return "all-linear" if names in ("all-linear", ["all-linear"]) else names


def _linear_names(model: Any) -> str:
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return f"Choose target_modules from: {', '.join(sorted(names))}; or target_modules = 'all-linear'."
