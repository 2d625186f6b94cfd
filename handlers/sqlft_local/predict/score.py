"""How probable a model finds answers that are given: what training's loss is made of, an answer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sqlft.errors import DataError
from sqlft.handler import Message
from sqlft_local.base.loading import LoadedModel
from sqlft_local.kernels.batching import find_layout, prepare_batch, split_passes
from sqlft_local.kernels.fused import compute_logits
from sqlft_local.kernels.packing import Example

if TYPE_CHECKING:
    from sqlft_local._types import Model

BATCH_TOKENS = 2048
"""Tokens of a forward pass, if no conversation is longer."""


def score(loaded: LoadedModel, conversations: Sequence[Sequence[Message]]) -> list[tuple[float, int]]:
    """(log-probability, tokens) of the last message of each, its end mark included.

    DataError for one that ends in no answer, or is longer than the model's context.
    """
    examples = [_build_example(loaded, i, conversation) for i, conversation in enumerate(conversations)]
    found: dict[tuple[int, ...], float] = {}
    different = list({tuple(e.ids): e for e in examples}.values())
    for batch in split_passes(different, BATCH_TOKENS, find_layout(loaded.model)) if different else ():
        found |= _score_batch(loaded.model, batch)
    return [(found[tuple(e.ids)], sum(map(bool, e.weights))) for e in examples]


def _build_example(loaded: LoadedModel, i: int, conversation: Sequence[Message]) -> Example:
    ids, is_answer, _ = loaded.renderer.conversation(list(conversation))
    if not any(is_answer[1:]) or conversation[-1].role != "assistant":
        raise DataError(f"Row {i + 1} has no answer to score.", "Give every row its right answer.")
    if len(ids) > loaded.context:
        raise DataError(
            f"Row {i + 1} has {len(ids)} tokens, more than the model's {loaded.context}.", "Leave out rows so long."
        )
    start = max((j for j, answer in enumerate(is_answer) if not answer), default=-1) + 1
    return Example(ids, [float(j >= max(start, 1)) for j in range(len(ids))])


def _score_batch(model: Model, batch: list[Example]) -> dict[tuple[int, ...], float]:
    packed = prepare_batch(model, batch)
    with torch.inference_mode():
        logits = compute_logits(model, packed)
        chosen = logits.gather(1, packed.target[:, None])[:, 0].float() - logits.float().logsumexp(-1)
    known = iter(chosen.tolist())
    prefix = packed.prefix
    # the order of both: tokens of the common start that any example has to say, then each example's own, longest first
    shared = {j: next(known) for j in range(1, prefix) if any(e.weights[j] for e in batch)}
    found = {}
    for e in sorted(batch, key=lambda e: -len(e.ids)):
        total = sum(value for j, value in shared.items() if e.weights[j])
        own = sum(bool(w) for w in e.weights[max(prefix, 1) :])
        found[tuple(e.ids)] = total + sum(next(known) for _ in range(own))
    return found
