"""LoRA matrices in a model: PEFT puts them in and names them, a function of our own multiplies them.

PEFT's own forward drops out and multiplies an input anew for each of q, k and v, draws a random number for every
element and keeps it; here layers that read the same input share that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input; where a model gives them different ones, each is computed for itself."""


class Narrow(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """drop(x) A': the first, narrow product, for all the layers that read the same x at once."""

    @staticmethod
    def forward(ctx: Any, x: Any, a: Any, dropout: float) -> Any:
        """x (…, in), a (ranks of all the layers, in)."""
        mask = kept(x, dropout) if dropout else None
        left = dropped(x, mask, dropout)
        ctx.save_for_backward(left, a, mask)
        ctx.dropout = dropout
        return linear(left, a.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x and a."""
        left, a, mask = ctx.saved_tensors
        flat = grads[0].reshape(-1, a.shape[0])
        a_grad = (flat.t() @ left.view(-1, left.shape[-1])).to(a.dtype)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = dropped((flat @ a.to(flat.dtype)).view_as(left), mask, ctx.dropout)
        return x_grad, a_grad, None


class Wide(torch.autograd.Function):  # type: ignore[misc]
    """x W' + s n B': the frozen layer and the second, wide product of its LoRA matrices."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, narrow: Any, b: Any, scale: float) -> Any:
        """x (…, in), weight (out, in), narrow (…, r), b (out, r)."""
        out = linear(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(narrow.reshape(-1, b.shape[1]), b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(weight, b, narrow)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, narrow and b."""
        weight, b, narrow = ctx.saved_tensors
        grad = grads[0]
        flat = grad.reshape(-1, grad.shape[-1])
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        narrow_grad = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        b_grad = (flat.t() @ narrow.reshape(flat.shape[0], -1)).to(b.dtype).mul_(ctx.scale)
        return x_grad, None, None, narrow_grad, b_grad, None


def kept(x: Any, dropout: float) -> Any:
    """A byte mask like x, from 8 random bits an element.

    On a processor a random number for every element would cost more than the matrices do.
    """
    if x.device.type != "cpu":
        return torch.randint(256, x.shape, dtype=torch.uint8, device=x.device).ge_(_of_256(dropout))
    drawn = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return (drawn.view(torch.uint8)[: x.numel()].view(x.shape) >= _of_256(dropout)).view(torch.uint8)


def dropped(x: Any, mask: Any, dropout: float) -> Any:
    """x with the mask's zeros, scaled up by what they take away."""
    return x if mask is None else mask.to(x.dtype).mul_(256 / (256 - _of_256(dropout))).mul_(x)


def _of_256(dropout: float) -> int:
    return max(1, round(dropout * 256))


class Reader:
    """The layers that read one input: the first one called computes the narrow products of all."""

    def __init__(self, layers: Sequence[Any], dropout: float) -> None:
        self.layers = list(layers)
        self.dropout = dropout
        self._x: Any = None
        self._narrow: dict[int, Any] = {}

    def __call__(self, layer: Any, x: Any, *_: Any, **__: Any) -> Any:
        """The forward of one of the layers."""
        narrow = self._of(layer, x)
        base = layer.base_layer
        return Wide.apply(x, base.weight, base.bias, narrow, layer.lora_B[NAME].weight, layer.scaling[NAME])

    def _of(self, layer: Any, x: Any) -> Any:
        if self._x is not x or id(layer) not in self._narrow:
            matrices = [one.lora_A[NAME].weight for one in self.layers]
            a = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
            narrow = Narrow.apply(x, a, self.dropout if layer.training else 0.0)
            parts = narrow.split([m.shape[0] for m in matrices], dim=-1)
            self._x, self._narrow = x, {id(one): part for one, part in zip(self.layers, parts, strict=True)}
        found = self._narrow.pop(id(layer))
        if not self._narrow:
            self._x = None
        return found


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
    for together in _readers(model):
        reader = Reader(together, options.lora_dropout)
        for layer in together:
            layer.forward = partial(reader, layer)
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


def _readers(model: Any) -> Iterator[list[Any]]:
    """The trained layers, those together that attention and MLP modules give the same input."""
    for parent in model.modules():
        here = {n: m for n, m in parent.named_children() if hasattr(m, "lora_A") and NAME in m.lora_A}
        for names in TOGETHER:
            if len(together := [here.pop(n) for n in names if n in here]) > 0:
                yield together
        yield from ([layer] for layer in here.values())


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
