"""What transformers' modules compute, in fewer passes over memory and with less kept for the backward pass.

A module is replaced only where a trial on random numbers gives what it gave before, so nothing here knows which
architectures have which modules.  For training with frozen weights: weights get no gradients here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import silu

TRIAL = 3
"""Rows of random numbers in a trial."""
CHUNK = 128
"""Tokens whose logits are there in float32 at a time."""


class RmsNorm(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """w x / sqrt(mean(x²) + eps) over the last dimension, in float32 within; keeps x."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
        """x (…, width), weight (width)."""
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Only x's gradient."""
        x, weight, scale = ctx.saved_tensors
        grad, wide = (grads[0] * weight).float(), x.float()
        along = torch.linalg.vecdot(grad, wide).unsqueeze(-1).mul_(scale.square()).div_(x.shape[-1])
        return grad.addcmul(wide, along, value=-1).mul_(scale).to(x.dtype), None, None


class SwiGlu(torch.autograd.Function):  # type: ignore[misc]
    """silu(gate) up; keeps its two arguments and computes silu again."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        """Both of one shape."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), silu(gate).mul_(grads[0])


class SoftmaxLoss(torch.autograd.Function):  # type: ignore[misc]
    """Sum of weight (logsumexp(logits) - logits[target]); the gradient is written where the logits were."""

    @staticmethod
    def forward(ctx: Any, logits: Any, target: Any, weight: Any) -> Any:
        """logits (tokens, vocabulary), target (tokens), weight (tokens) float32 -> a float32 number."""
        whole = torch.cat([part.float().logsumexp(-1) for part in logits.split(CHUNK)])
        said = logits.gather(1, target[:, None])[:, 0].float()
        ctx.save_for_backward(logits, target, weight, whole)
        return ((whole - said) * weight).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Of the logits."""
        logits, target, weight, whole = ctx.saved_tensors
        weight = weight * grads[0]
        for part, w, all_of_it in zip(logits.split(CHUNK), weight.split(CHUNK), whole.split(CHUNK), strict=True):
            part.copy_(part.float().sub_(all_of_it[:, None]).exp_().mul_(w[:, None]))
        return logits.scatter_add_(1, target[:, None], -weight[:, None].to(logits.dtype)), None, None


def apply(model: Any) -> int:
    """Replace the forward of what can be replaced; how many modules that were."""
    done = 0
    for module in list(model.modules()):
        replacement, width = _offer(module)
        if replacement is not None and _same(module.forward, replacement, width, module):
            module.forward = replacement
            done += 1
    return done


def _offer(module: Any) -> tuple[Any, int]:
    """The replacement that the module looks like it could have, and the width of its input."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "RMSNorm" in type(module).__name__ and weight is not None and weight.dim() == 1 and eps is not None:
        return lambda x: RmsNorm.apply(x, module.weight, eps), weight.shape[0]
    if all(hasattr(module, n) for n in ("gate_proj", "up_proj", "down_proj", "act_fn")) and hasattr(
        module.gate_proj, "in_features"
    ):
        return partial(_mlp, module), module.gate_proj.in_features
    return None, 0


def _mlp(module: Any, x: Any) -> Any:
    return module.down_proj(SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))


def _same(before: Any, after: Any, width: int, module: Any) -> bool:
    like = next(module.parameters())
    numbers = torch.randn(TRIAL, width, generator=torch.Generator().manual_seed(0))
    trial = numbers.to(like.device, like.dtype)
    with torch.no_grad():
        try:
            return bool(torch.allclose(before(trial), after(trial), rtol=1e-3, atol=1e-4))
        except (RuntimeError, TypeError):
            return False
