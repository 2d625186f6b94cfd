"""What transformers' modules compute, in fewer passes over memory and with less kept for the backward pass.

A module is replaced only where a trial on random numbers gives what it gave before, so nothing here knows which
architectures have which modules.  For training with frozen weights: weights get no gradients here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.functional import linear, silu

from sqlft_local.kernels import is_on, packing
from sqlft_local.kernels.batching import ExampleBatch, is_packed, prepare_batch
from sqlft_local.kernels.quantised import dequantise

if TYPE_CHECKING:
    from sqlft_local._types import AutogradContext, Layer, Model

TRIAL_ROWS = 3
"""Rows of random numbers in a trial."""
QUANTISED_TOLERANCE = 0.1
"""What 8 bits may change in a trial, relative to the largest number."""
LOGIT_CHUNK = 128
"""Tokens whose logits are there in float32 at a time."""


class RmsNormFunction(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """RMSNorm over the last dimension of n numbers, the mean in float32; keeps x and s.

    s = 1 / sqrt(mean(x²) + eps),  y = w x s
    dx = s (w dy - x s² sum(w dy x) / n)
    """

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (…, width), weight (width)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Only x's gradient."""
        x, weight, scale = ctx.saved_tensors
        grad = grads[0] * weight
        along = (grad * x).sum(-1, keepdim=True, dtype=torch.float32).mul_(scale.square()).div_(-x.shape[-1])
        return grad.addcmul_(x, along.to(x.dtype)).mul_(scale.to(x.dtype)), None, None


class SwiGluFunction(torch.autograd.Function):  # type: ignore[misc]
    """SwiGLU of gate g and up u; keeps both and computes silu again.  For silu(g) = g σ(g):

    y = silu(g) u
    dg = dy u σ(g) (1 + g (1 - σ(g))),  du = dy silu(g)
    """

    @staticmethod
    def forward(ctx: AutogradContext, gate: Tensor, up: Tensor) -> Tensor:
        """Both of one shape."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), silu(gate).mul_(grads[0])


class MlpFunction(torch.autograd.Function):  # type: ignore[misc]
    """The gated MLP of frozen layers G, U and D; keeps what gate and up gave, g = x G' and u = x U'.

    y = (silu(g) u) D'
    dh = dy D,  du = dh silu(g),  dg = dh u silu'(g),  dx = dg G + du U
    """

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, module: Layer) -> Tensor:
        """x (…, width)."""
        gate, up = (linear(x, dequantise(layer, x.dtype), layer.bias) for layer in (module.gate_proj, module.up_proj))
        ctx.save_for_backward(gate, up)
        ctx.module = module
        return linear(silu(gate).mul_(up), dequantise(module.down_proj, x.dtype), module.down_proj.bias)

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Only x's gradient."""
        (gate, up), module = ctx.saved_tensors, ctx.module
        dtype = gate.dtype
        inner = grads[0] @ dequantise(module.down_proj, dtype)
        of_up = silu(gate).mul_(inner)
        of_gate = torch.ops.aten.silu_backward(inner.mul_(up), gate)
        x_grad = of_gate @ dequantise(module.gate_proj, dtype)
        flat = x_grad.view(-1, x_grad.shape[-1])
        flat.addmm_(of_up.view(-1, of_up.shape[-1]), dequantise(module.up_proj, dtype))
        return x_grad, None


class LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """The loss of tokens x with targets t and weights w, for a frozen head W; its logits are there a chunk at a time.

    z = x W',  L = sum w (logsumexp(z) - z[t])
    dx = w (softmax(z) - onehot(t)) W
    """

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, head: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """x (tokens, width), head (vocabulary, width), target and weight (tokens) -> a float32 number."""
        keep = ctx.needs_input_grad[0]
        total = x.new_zeros((), dtype=torch.float32)
        parts = []
        for own, targets, w in zip(
            x.split(LOGIT_CHUNK), target.split(LOGIT_CHUNK), weight.split(LOGIT_CHUNK), strict=True
        ):
            logits = linear(own, head)
            logs = torch.log_softmax(logits, -1)
            places = targets[:, None]
            total -= (logs.gather(1, places)[:, 0].float() * w).sum()
            if keep:
                shares = logs.exp_().scatter_add_(1, places, -torch.ones_like(places, dtype=x.dtype))
                parts.append((shares @ head).mul_(w[:, None].to(x.dtype)))
        ctx.save_for_backward(torch.cat(parts) if parts else None)
        return total

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of x; it was computed with the loss."""
        (x_grad,) = ctx.saved_tensors
        return x_grad * grads[0].to(x_grad.dtype), None, None, None


_plain_heads: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


def compute_loss(model: Model, batch: ExampleBatch) -> Tensor:
    """The weighted sum of the losses of a batch's tokens; the output head runs only where a token counts."""
    if model not in _plain_heads:
        _plain_heads[model] = _has_plain_head(model)
    if _plain_heads[model] and is_on("head"):
        x = batch.select(model.get_decoder()(**batch.inputs).last_hidden_state)
        head = dequantise(model.get_output_embeddings(), x.dtype)
        return LinearCrossEntropy.apply(x, head, batch.target, batch.weight)
    logits = compute_logits(model, batch).float()
    each = torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")
    return (each * batch.weight).sum()


def compute_logits(model: Model, batch: ExampleBatch) -> Tensor:
    """Logits (targets, vocabulary) where a token counts; packed rows need no others."""
    if is_packed(model):
        return model(**batch.inputs, logits_to_keep=batch.source).logits[0]
    return batch.select(model(**batch.inputs).logits)


def _has_plain_head(model: Model) -> bool:
    """Whether logits are the last states times the head's weight, without a bias, scale or cap."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or not hasattr(model, "get_decoder"):
        return False
    batch = prepare_batch(model, [packing.Example(list(range(3, 3 + TRIAL_ROWS)), [1.0] * TRIAL_ROWS)])
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            expected = model(**batch.inputs).logits
            states = model.get_decoder()(**batch.inputs).last_hidden_state
            found = linear(states, dequantise(head, states.dtype))
        return bool(torch.allclose(expected.to(found.dtype), found, rtol=1e-3, atol=1e-4))
    except (RuntimeError, TypeError, AttributeError):
        return False
    finally:
        model.train(training)


def set_checkpointing(model: Model, wanted: bool) -> None:
    """Whether the next training pass keeps only each block's input, and computes the block again."""
    for module in _list_checkpointed_blocks(model):
        module._gradient_checkpointing_func = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
        module.gradient_checkpointing = wanted


def count_checkpointed_blocks(model: Model) -> int:
    """Blocks that can be computed again; 0 where transformers has none for the base."""
    return len(_list_checkpointed_blocks(model))


def _list_checkpointed_blocks(model: Model) -> list[Layer]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def fuse_modules(model: Model) -> int:
    """Replace the forward of the norms and MLPs that can be replaced; how many modules that were."""
    done = 0
    for module in list(model.modules()):
        replacement, width = _find_replacement(module)
        if replacement is not None and _gives_same_output(module.forward, replacement, width, model):
            module.forward = replacement
            done += 1
    return done


def _find_replacement(module: Layer) -> tuple[Callable[[Tensor], Tensor] | None, int]:
    """The replacement that the module looks like it could have, and the width of its input."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        is_on("norms")
        and "RMSNorm" in type(module).__name__
        and weight is not None
        and weight.dim() == 1
        and eps is not None
    ):
        return lambda x: RmsNormFunction.apply(x, module.weight, eps), weight.shape[0]
    if (
        is_on("mlp")
        and all(hasattr(module, n) for n in ("gate_proj", "up_proj", "down_proj", "act_fn"))
        and hasattr(module.gate_proj, "in_features")
    ):
        return partial(_fused_mlp, module), module.gate_proj.in_features
    return None, 0


def _fused_mlp(module: Layer, x: Tensor) -> Tensor:
    if any(hasattr(layer, "lora_A") for layer in (module.gate_proj, module.up_proj, module.down_proj)):
        return module.down_proj(SwiGluFunction.apply(module.gate_proj(x), module.up_proj(x)))
    return MlpFunction.apply(x, module)


def _gives_same_output(
    before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], width: int, model: Model
) -> bool:
    numbers = torch.randn(TRIAL_ROWS, width, generator=torch.Generator().manual_seed(0))
    trial = numbers.to(model.device, model.dtype)
    with torch.no_grad():
        try:
            expected, found = before(trial), after(trial)
        except (RuntimeError, TypeError):
            return False
        if getattr(model, "is_quantized", False):  # in 8 bits a layer of its own rounds what it reads, too
            return bool((expected - found).abs().max() <= QUANTISED_TOLERANCE * expected.abs().max())
        return bool(torch.allclose(expected, found, rtol=1e-3, atol=1e-4))
