"""What one process does in one step of a training: the gradients of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from sqlft_local.kernels import fused
from sqlft_local.kernels.batching import find_layout, prepare_batch, split_passes
from sqlft_local.kernels.packing import Example
from sqlft_local.train import lora

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Model


class StepSettings(TypedDict):
    """What all passes of a step have in common."""

    whole: float
    """What the losses of its tokens are divided by."""
    tokens: int
    """Most of a pass."""
    above: int
    """Passes of more compute their blocks twice."""


def backward(
    model: Model,
    matrices: lora.LoraAdapter,
    examples: Sequence[Example],
    job: StepSettings,
    heartbeat: Callable[[], None],
) -> tuple[float, int]:
    """Add the gradients of examples of a step; their share of its mean loss, and their tokens."""
    loss, tokens = 0.0, 0
    for part in split_passes(examples, job["tokens"], find_layout(model)) if examples else ():
        batch = prepare_batch(model, part)
        matrices.masks.renew()
        fused.set_checkpointing(model, batch.ids.numel() > job["above"])
        found = fused.compute_loss(model, batch) / job["whole"]
        found.backward()
        loss += found.item()
        tokens += sum(len(e.ids) for e in part)
        heartbeat()
    return loss, tokens


def compute_loss(model: Model, examples: Sequence[Example]) -> Tensor:
    """The weighted sum of the losses of the examples' tokens."""
    return fused.compute_loss(model, prepare_batch(model, examples))
