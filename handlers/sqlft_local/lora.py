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
from sqlft_local.quantised import dense

if TYPE_CHECKING:
    from sqlft_local.options import TrainOptions

NAME = "default"
WHICH = ("lora_A", "lora_B")
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input; where a model gives them different ones, they are computed for each."""
SLACK, STARTS = 32, 2048
"""Where in the drawn numbers a mask may begin: at so many places, so many elements apart."""


class Read(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W' + s (drop(x) A') B' of all the layers that read one x, which is dropped out once."""

    @staticmethod
    def forward(ctx: Any, x: Any, mask: Any, layers: Any, *matrices: Any) -> Any:
        """x (…, in), mask like it or None, matrices A (r, in), B (out, r) of each layer -> (…, out) of each."""
        left = x if mask is None else x * mask
        pairs = [(a.to(x.dtype), b.to(x.dtype)) for a, b in zip(matrices[::2], matrices[1::2], strict=True)]
        together = torch.cat([a for a, _ in pairs]) if len(pairs) > 1 else pairs[0][0]
        narrow = linear(left, together).view(-1, together.shape[0])
        outs, place = [], 0
        for layer, (a, b) in zip(layers, pairs, strict=True):
            out = linear(x, dense(layer.base_layer, x.dtype), layer.base_layer.bias)
            own = narrow[:, place : (place := place + a.shape[0])]
            out.view(-1, b.shape[0]).addmm_(own, b.t(), alpha=layer.scaling[NAME])
            outs.append(out)
        ctx.layers = layers
        ctx.save_for_backward(left, mask, narrow, together, *(b for _, b in pairs), *matrices)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x and of the matrices; what flows into x is added up by the products themselves."""
        left, mask, narrow, together, *rest = ctx.saved_tensors
        flat = [g.reshape(-1, g.shape[-1]) for g in grads]
        wanted = ctx.needs_input_grad[0]
        x_grad = left.new_empty(flat[0].shape[0], left.shape[-1]) if wanted else None
        of_narrow, of_matrices, place = torch.empty_like(narrow), [], 0
        for i, (layer, b, grad) in enumerate(zip(ctx.layers, rest, flat, strict=False)):
            if x_grad is not None:
                x_grad.addmm_(grad, dense(layer.base_layer, grad.dtype), beta=1 if i else 0)
            own = slice(place, place := place + b.shape[1])
            scale = layer.scaling[NAME]
            of_narrow[:, own] = (grad @ b).mul_(scale)
            of_matrices.append((grad.t() @ narrow[:, own]).float().mul_(scale))
        of_a = (of_narrow.t() @ left.view(-1, left.shape[-1])).float().split([b.shape[1] for b in rest[: len(flat)]])
        if x_grad is not None:
            if mask is None:
                x_grad.addmm_(of_narrow, together)
            else:
                x_grad.addcmul_(of_narrow @ together, mask.view_as(x_grad))
            x_grad = x_grad.view_as(left)
        both = (g for pair in zip(of_a, of_matrices, strict=True) for g in pair)
        return x_grad, None, None, *both


class Masks:
    """What dropout multiplies with: 0, or what makes up for the zeros.

    On a processor a random number for every element would cost more than the matrices do.  So a pass draws them once,
    8 bits an element, and every use begins at a place of its own.
    """

    def __init__(self, dropout: float) -> None:
        self.dropout = dropout
        self._pools: dict[tuple[int, Any], Any] = {}
        self._seed = 0

    def renew(self) -> None:
        """For another pass."""
        self._pools.clear()
        if self.dropout:
            self._seed = int(torch.randint(2**62, ()).item())

    def __call__(self, x: Any) -> Any:
        """A mask like x."""
        key = (x.numel(), x.device)
        if key not in self._pools:
            self._pools[key] = self._drawn(x)
        start = SLACK * int(torch.randint(STARTS, ()).item())
        return self._pools[key][start : start + x.numel()].view(x.shape)

    def _drawn(self, x: Any) -> Any:
        count = x.numel() + SLACK * STARTS
        numbers = torch.Generator(x.device).manual_seed((self._seed + x.numel()) % 2**63)
        eight = torch.empty((count + 7) // 8, dtype=torch.int64, device=x.device)
        eight.random_(-(2**63), None, generator=numbers)
        out_of = max(1, round(self.dropout * 256))
        return (eight.view(torch.uint8)[:count] >= out_of).to(x.dtype).mul_(256 / (256 - out_of))


class Reader:
    """The layers that read one input: the first one called computes them all."""

    def __init__(self, layers: Sequence[Any], masks: Masks) -> None:
        self.layers = list(layers)
        self.masks = masks
        self._x: Any = None
        self._outs: dict[int, Any] = {}

    def __call__(self, layer: Any, x: Any, *_: Any, **__: Any) -> Any:
        """The forward of one of the layers."""
        if self._x is not x or id(layer) not in self._outs:
            mask = self.masks(x) if layer.training and self.masks.dropout else None
            matrices = (m for one in self.layers for m in (one.lora_A[NAME].weight, one.lora_B[NAME].weight))
            outs = Read.apply(x, mask, self.layers, *matrices)
            self._x, self._outs = x, {id(one): out for one, out in zip(self.layers, outs, strict=True)}
        found = self._outs.pop(id(layer))
        if not self._outs:
            self._x = None
        return found


@dataclass(frozen=True)
class Lora:
    """The trained parameters by their names in a PEFT file, and PEFT's description of them."""

    trained: dict[str, Any]
    config: Any
    masks: Masks


def attach(model: Any, options: TrainOptions, start: Path | None) -> Lora:
    """Put matrices into the model: those of the adapter `start`, whose r, alpha and layers count, or fresh ones."""
    from peft import LoraConfig, inject_adapter_in_model

    given = json.loads((start / "adapter_config.json").read_text(encoding="utf-8")) if start else {}
    config = LoraConfig(
        r=given.get("r", options.r),
        lora_alpha=given.get("lora_alpha", options.lora_alpha),
        target_modules=_targets(given.get("target_modules", options.layers)),
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=NAME)
    except ValueError as e:
        raise OptionError(f"The base has no layers called {', '.join(options.layers)}.", _linear_names(model)) from e
    trained: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and NAME in layer.lora_A:
            for which in WHICH:
                matrix = getattr(layer, which)[NAME]
                matrix.weight.data = matrix.weight.data.float()
                trained[f"base_model.model.{name}.{which}.weight"] = matrix.weight
    masks = Masks(options.lora_dropout)
    for together in _readers(model):
        reader = Reader(together, masks)
        for layer in together:
            layer.forward = partial(reader, layer)
    if start:
        _copy(start, trained)
    config.lora_dropout = options.lora_dropout
    return Lora(trained, config, masks)


def load(lora: Lora, tensors: Mapping[str, Any]) -> None:
    """Set the trained parameters."""
    _fill(lora.trained, tensors)


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


def _fill(trained: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def _copy(start: Path, trained: dict[str, Any]) -> None:
    _, pairs = read_adapter(start)
    tensors = {f"base_model.model.{n}.{w}.weight": t for n, ab in pairs.items() for w, t in zip(WHICH, ab, strict=True)}
    if tensors.keys() != trained.keys() or any(tensors[k].shape != trained[k].shape for k in trained):
        raise other_base(start)
    _fill(trained, tensors)


def _targets(names: Any) -> Any:
    return "all-linear" if names in ("all-linear", ["all-linear"]) else names


def _linear_names(model: Any) -> str:
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return f"Choose target_modules from: {', '.join(sorted(names))}; or target_modules = 'all-linear'."
