"""LoRA matrices in a model: PEFT puts them in and names them, a function of our own multiplies them.

PEFT's own forward drops out and multiplies an input once more for each of q, k and v, draws a random number for every
element and keeps it; here layers that read the same input share that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from sqlft.errors import NotSupported, OptionError
from sqlft_local.base.adapter import SHAPE_SETTINGS, read_adapter_config, read_tensors, wrong_base_error
from sqlft_local.kernels import is_on
from sqlft_local.kernels.batching import is_packed
from sqlft_local.kernels.quantised import dequantise, is_quantised
from sqlft_local.machine import drop_file_pages

if TYPE_CHECKING:
    from sqlft_local._types import AdapterConfig, AutogradContext, Dtype, JsonObject, Layer, Model, TrainedLayer
    from sqlft_local.options import TrainOptions

ADAPTER_NAME = "default"
MATRIX_NAMES = ("lora_A", "lora_B")
ALL_LINEAR = "all-linear"
BYPASSED_LAYERS = ("out_proj", "conv1d")
"""Layers whose weights Mamba's kernels read without calling them, so that PEFT refuses to train them."""
UNTRAINABLE_CLASSES = ("Router", "Grouped")
"""Parts of the names of classes that are linear layers by descent only."""
SHARED_INPUT_LAYERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input; where a model gives them different ones, they are computed for each."""
COLUMN_MULTIPLE = 32
"""Columns come in multiples of this: what matrix units take at a time in 16 bits."""
MASK_STRIDE, MASK_STARTS = 32, 2048
"""Where in the drawn numbers a mask may begin: at so many places, so many elements apart."""


class LoraFunction(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W' + s (drop(x) A') B' of all the layers that read one x, which is dropped out once.

    (x, drop(x) A') times the transpose of (W, s B) is that in one product, and a gradient times (W, s B) is what flows
    into both: thin products cost more than their work, and here only A's are left.  With mask m, for layers i:

        l = m x,  n_i = l A_i',  y_i = x W_i' + s n_i B_i'
        dB_i = s dy_i' n_i,  dn_i = s dy_i B_i,  dA_i = dn_i' l,  dx = sum_i (dy_i W_i + m (dn_i A_i))
    """

    @staticmethod
    def forward(
        ctx: AutogradContext, x: Tensor, mask: Tensor | None, lora_weights: LoraWeights, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        """x (…, in), mask like it or None -> (…, out) of each; the trained matrices are only for their gradients."""
        flat = x.reshape(-1, x.shape[-1])
        narrow = lora_weights.stack_a(x.dtype)
        left = flat if mask is None else flat * mask.view_as(flat)
        wide = torch.cat((flat, left @ narrow.t()), 1)
        ctx.lora_weights, ctx.shape = lora_weights, x.shape
        ctx.save_for_backward(wide, mask, narrow)
        biases = (layer.base_layer.bias for layer in lora_weights.layers)
        outs = (
            linear(wide, w, bias) for w, bias in zip(lora_weights.stack_weights(x.dtype, True), biases, strict=True)
        )
        whole = (*x.shape[:-1], -1)
        return tuple(torch.ops.aten._unsafe_view(out, whole) for out in outs)  # some bases change them in place

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the matrices; what flows into x is added up by the products themselves."""
        (wide, mask, narrow), lora_weights = ctx.saved_tensors, ctx.lora_weights
        flat = [g.reshape(-1, g.shape[-1]) for g in grads]
        width = ctx.shape[-1]
        begin = 0 if ctx.needs_input_grad[0] else width
        both = wide.new_empty(wide.shape[0], wide.shape[1] - begin)
        of_matrices, weights = [], lora_weights.stack_weights(wide.dtype, False)
        for i, (weight, grad, place) in enumerate(zip(weights, flat, lora_weights.column_slices, strict=True)):
            both.addmm_(grad, weight[:, begin:], beta=1 if i else 0)
            of_matrices.append((grad.t() @ wide[:, place]).float().mul_(lora_weights.layers[i].scaling[ADAPTER_NAME]))
        of_x, of_narrow = both[:, : width - begin], both[:, width - begin :]
        x = wide[:, :width]
        left = x if mask is None else x * mask.view_as(x)
        of_a = (of_narrow.t() @ left).float()
        parts = [of_a[p.start - width : p.stop - width] for p in lora_weights.column_slices]
        x_grad = None
        if ctx.needs_input_grad[0]:
            if mask is None:
                x_grad = torch.addmm(of_x, of_narrow, narrow)
            else:
                x_grad = (of_narrow @ narrow).mul_(mask.view_as(x)).add_(of_x)
            x_grad = x_grad.view(ctx.shape)
        return x_grad, None, None, *(g for pair in zip(parts, of_matrices, strict=True) for g in pair)


class LoraWeights:
    """Weights of layers with one input, as `LoraFunction` multiplies them: matrices A below and B beside the base's.

    Plain weights move into memory that has room for B, whose place is filled when B has changed; quantised ones are
    unpacked whenever they are asked for.
    """

    def __init__(self, layers: Sequence[TrainedLayer]) -> None:
        self.layers = list(layers)
        width = layers[0].base_layer.in_features
        self.column_slices, end = [], width
        for layer in layers:
            self.column_slices.append(slice(end, end := end + layer.lora_A[ADAPTER_NAME].weight.shape[0]))
        self._columns = -(-end // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        self._plain = [self._move_weights(layer) for layer in layers]

    def stack_a(self, dtype: Dtype) -> Tensor:
        """A of all layers (as many as there are columns beside the base's, in), zeros after the last."""
        matrices = [layer.lora_A[ADAPTER_NAME].weight.detach().to(dtype) for layer in self.layers]
        rows = self._columns - self.column_slices[-1].stop
        return torch.cat((*matrices, matrices[0].new_zeros(rows, matrices[0].shape[1])))

    def stack_weights(self, dtype: Dtype, fresh: bool) -> Iterator[Tensor]:
        """(W, …, s B, …) of each layer, (out, columns); if not `fresh`, B is as it was the last time."""
        for layer, place, plain in zip(self.layers, self.column_slices, self._plain, strict=True):
            made = self._allocate(layer, dtype) if plain is None else plain
            if plain is None:
                made[:, : layer.base_layer.in_features] = dequantise(layer.base_layer, dtype)
            if fresh or plain is None:
                made[:, place] = layer.lora_B[ADAPTER_NAME].weight.detach() * layer.scaling[ADAPTER_NAME]
            yield made

    def _move_weights(self, layer: TrainedLayer) -> Tensor | None:
        base = layer.base_layer
        if is_quantised(base):
            return None
        made, before = self._allocate(layer, base.weight.dtype), base.weight.data
        made[:, : base.in_features] = before
        base.weight.data = made[:, : base.in_features]
        if before.device.type == "cpu":
            drop_file_pages(before.data_ptr(), before.nbytes)
        return made

    def _allocate(self, layer: TrainedLayer, dtype: Dtype) -> Tensor:
        base = layer.base_layer
        return torch.zeros(base.out_features, self._columns, dtype=dtype, device=base.weight.device)


class DropoutMasks:
    """What dropout multiplies with: 0, or what makes up for the zeros.

    On a processor a random number for every element would cost more than the matrices do.  So a pass draws them once,
    8 bits an element, and every use begins at a place of its own.
    """

    def __init__(self, dropout: float) -> None:
        self.dropout = dropout
        self._pools: dict[tuple[int, torch.device], Tensor] = {}
        self._seed = 0

    def renew(self) -> None:
        """For another pass."""
        self._pools.clear()
        if self.dropout:
            self._seed = int(torch.randint(2**62, ()).item())

    def __call__(self, x: Tensor) -> Tensor:
        """A mask like x."""
        key = (x.numel(), x.device)
        if key not in self._pools:
            self._pools[key] = self._draw_mask(x)
        start = MASK_STRIDE * int(torch.randint(MASK_STARTS, ()).item())
        return self._pools[key][start : start + x.numel()].view(x.shape)

    def _draw_mask(self, x: Tensor) -> Tensor:
        count = x.numel() + MASK_STRIDE * MASK_STARTS
        numbers = torch.Generator(x.device).manual_seed((self._seed + x.numel()) % 2**63)
        eight = torch.empty((count + 7) // 8, dtype=torch.int64, device=x.device)
        eight.random_(-(2**63), None, generator=numbers)
        out_of = max(1, round(self.dropout * 256))
        return (eight.view(torch.uint8)[:count] >= out_of).to(x.dtype).mul_(256 / (256 - out_of))


class LoraGroup:
    """The layers that read one input: the first one called computes them all."""

    def __init__(self, layers: Sequence[TrainedLayer], masks: DropoutMasks) -> None:
        self.lora_weights = LoraWeights(layers)
        self.masks = masks
        self._x: Tensor | None = None
        self._outs: dict[int, Tensor] = {}

    def __call__(self, layer: TrainedLayer, x: Tensor, *_: object, **__: object) -> Tensor:
        """The forward of one of the layers."""
        if self._x is not x or id(layer) not in self._outs:
            mask = self.masks(x) if layer.training and self.masks.dropout else None
            layers = self.lora_weights.layers
            matrices = (m for one in layers for m in (one.lora_A[ADAPTER_NAME].weight, one.lora_B[ADAPTER_NAME].weight))
            outs = LoraFunction.apply(x, mask, self.lora_weights, *matrices)
            self._x, self._outs = x, {id(one): out for one, out in zip(layers, outs, strict=True)}
        found = self._outs.pop(id(layer))
        if not self._outs:
            self._x = None
        return found


@dataclass(frozen=True)
class LoraAdapter:
    """The trained parameters by their names in a PEFT file, and PEFT's description of them."""

    trained: dict[str, Tensor]
    config: AdapterConfig
    masks: DropoutMasks


def attach(model: Model, options: TrainOptions, start: Path | None) -> LoraAdapter:
    """Put matrices into the model: those of the adapter `start`, whose r, alpha and layers count, or fresh ones."""
    given = _read_start_config(start) if start else {}
    targets = _target_modules(given.get("target_modules", options.layers))
    experts = given.get("target_parameters") or (_find_expert_parameters(model) if targets == ALL_LINEAR else [])
    fused = is_on("lora") and is_packed(model)
    excluded = _list_untrainable_layers(model) if targets == ALL_LINEAR else given.get("exclude_modules") or []
    others = {name: given[name] for name in SHAPE_SETTINGS if given.get(name)}
    others = {"r": options.r, "lora_alpha": options.lora_alpha, **others, "target_parameters": experts or None}
    config = _inject(
        model,
        targets,
        excluded,
        **{name: value for name, value in others.items() if name not in ("target_modules", "exclude_modules")},
        task_type="CAUSAL_LM",
        lora_dropout=0.0 if fused or experts else options.lora_dropout,  # PEFT drops nothing out before experts
    )
    trained: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and ADAPTER_NAME in layer.lora_A:
            for which in MATRIX_NAMES:
                matrix = getattr(layer, which)[ADAPTER_NAME]
                matrix.weight.data = matrix.weight.data.float()
                trained[f"base_model.model.{name}.{which}.weight"] = matrix.weight
    masks = DropoutMasks(options.lora_dropout)
    for together in _group_layers(model) if fused else ():
        reader = LoraGroup(together, masks)
        for layer in together:
            layer.forward = partial(reader, layer)
    if start:
        _load_start_adapter(start, trained)
    config.lora_dropout = 0.0 if experts else options.lora_dropout
    return LoraAdapter(trained, config, masks)


def _read_start_config(start: Path) -> JsonObject:
    config = read_adapter_config(start)
    if config.get("use_dora"):
        raise NotSupported(
            f"The adapter in {start} is one of DoRA, which can be asked and is not trained here.",
            "FINETUNE or RETRAIN from version 1, the base, makes a version of plain LoRA beside it.",
        )
    return config


def _inject(model: Model, targets: str | list[str], excluded: Sequence[str], **how: object) -> AdapterConfig:
    """PEFT's matrices beside the layers; OptionError for layers that there are not."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(**how, target_modules=targets, exclude_modules=excluded or None)
    try:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    except ValueError as e:
        if targets == ALL_LINEAR and "incompatible" in str(e) and not set(BYPASSED_LAYERS) <= set(excluded):
            _remove_matrices(model)
            return _inject(model, targets, [*excluded, *BYPASSED_LAYERS], **how)
        raise OptionError(
            f"The base has no layers called {targets if isinstance(targets, str) else ', '.join(targets)}.",
            _list_linear_names(model),
        ) from e
    return config


def _list_untrainable_layers(model: Model) -> list[str]:
    """Linear layers that take no matrices: routers and grouped layers, and towers that no text reaches."""
    sees = model.config.get_text_config() is not model.config
    decoder = {id(layer) for layer in model.get_decoder().modules()} if sees else set()
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and layer is not model.get_output_embeddings()  # which PEFT leaves out by itself
        and (
            (decoder and id(layer) not in decoder) or any(word in type(layer).__name__ for word in UNTRAINABLE_CLASSES)
        )
    ]


def _remove_matrices(model: Model) -> None:
    """Undo what PEFT had put in before it refused a layer."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer.base_layer)


def _find_expert_parameters(model: Model) -> list[str]:
    """The ends of the names of weights that experts of one block have together: (experts, …, …)."""
    return sorted(
        {
            ".".join(name.split(".")[-2:])
            for name, parameter in model.named_parameters()
            if parameter.dim() == 3 and name.split(".")[-2:-1] == ["experts"]
        }
    )


def load_parameters(lora: LoraAdapter, tensors: Mapping[str, Tensor]) -> None:
    """Set the trained parameters."""
    _set_parameters(lora.trained, tensors)


def copy_parameters(lora: LoraAdapter) -> dict[str, Tensor]:
    """A copy of the trained parameters, in main memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in lora.trained.items()}


def save_adapter(lora: LoraAdapter, folder: Path, base: str) -> None:
    """Write a PEFT adapter: safetensors and config."""
    from safetensors.torch import save_file

    lora.config.base_model_name_or_path = base
    lora.config.inference_mode = True
    lora.config.save_pretrained(str(folder))
    save_file(copy_parameters(lora), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _group_layers(model: Model) -> Iterator[list[TrainedLayer]]:
    """The trained layers, those together that attention and MLP modules give the same input."""
    for parent in model.modules():
        here = {n: m for n, m in parent.named_children() if _is_linear_with_matrices(m)}
        for names in SHARED_INPUT_LAYERS:
            if len(together := [here.pop(n) for n in names if n in here]) > 0:
                yield together
        yield from ([layer] for layer in here.values())


def _is_linear_with_matrices(layer: Layer) -> bool:
    return ADAPTER_NAME in getattr(layer, "lora_A", ()) and isinstance(layer.base_layer, torch.nn.Linear)


def _set_parameters(trained: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def _load_start_adapter(start: Path, trained: dict[str, Tensor]) -> None:
    tensors = read_tensors(start)
    if tensors.keys() != trained.keys() or any(tensors[k].shape != trained[k].shape for k in trained):
        raise wrong_base_error(start)
    _set_parameters(trained, tensors)


def _target_modules(names: str | list[str]) -> str | list[str]:
    return ALL_LINEAR if names in (ALL_LINEAR, [ALL_LINEAR]) else names


def _list_linear_names(model: Model) -> str:
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return f"Choose target_modules from: {', '.join(sorted(names))}; or target_modules = 'all-linear'."
