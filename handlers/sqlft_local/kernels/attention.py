"""Attention over a packed row on the processor: plain products of matrices, nothing kept but q, k and v.

torch's own fused attention has a backward pass that is slow on processors, the more so in bfloat16; rows of a packed
pass are short, and their scores fit into the cache.  Parts of a like length are computed together, long ones a block of
queries at a time, so that scores take little memory and what causality hides is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

MAX_PADDING = 1.25
"""Parts share a call while padding them to the longest costs at most this."""
PADDING_MULTIPLE = 16
"""Parts are padded to multiples of this."""
QUERY_BLOCK = 256
"""Queries at a time."""
MAX_KEPT_KEYS = 192
"""Keys up to which the weights are kept for the backward pass; with more they are computed again."""


class PartGroup(NamedTuple):
    """Parts that are computed together: where each starts, and its tokens; all see `prefix_length` tokens before."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    before: int

    @property
    def longest(self) -> int:
        """Tokens that the parts are padded to: few different numbers, since products are prepared for each."""
        return -(-self.lengths[0] // PADDING_MULTIPLE) * PADDING_MULTIPLE


class PackedAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Every part sees the prefix and, causally, itself."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, groups: Any, scale: float, window: int | None) -> Any:
        """q (1, heads, tokens, width), k and v (1, fewer heads, tokens, width) -> (1, tokens, heads, width)."""
        ctx.groups, ctx.scale, ctx.window = groups, scale, window
        kept = []
        out = v.new_empty(1, q.shape[2], q.shape[1], v.shape[3])
        keep = any(ctx.needs_input_grad)
        for group in groups:
            qs, ks, vs = _gather_queries(q, k, group), _gather_keys(k, group), _gather_keys(v, group)
            for start, end in _split_queries(group):
                weights = _attention_weights(qs[:, :, start:end], ks, group.before + start, scale, window)
                said = torch.bmm(weights, vs[:, : weights.shape[2]])
                _scatter_block(out, said, group, start, end)
                kept.append(weights if keep and weights.shape[2] <= MAX_KEPT_KEYS else None)
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of q, k and v; the prefix's are summed in float32."""
        q, k, v, *rest = ctx.saved_tensors
        g = grads[0].transpose(1, 2)
        q_grad, k_grad, v_grad = (_empty_like(t) for t in (q, k, v))
        prefix: list[Any] = [0.0, 0.0]
        kept = iter(rest)
        for group in ctx.groups:
            ks, vs = _gather_keys(k, group), _gather_keys(v, group)
            found = (_GradientSum(ks), _GradientSum(vs))
            qs, gs = _gather_queries(q, k, group), _gather_queries(g, v, group)
            for start, end in _split_queries(group):
                weights = next(kept)
                if weights is None:
                    weights = _attention_weights(qs[:, :, start:end], ks, group.before + start, ctx.scale, ctx.window)
                seen = weights.shape[2]
                own_q, own_g = (t[:, :, start:end].reshape(t.shape[0], -1, t.shape[3]) for t in (qs, gs))
                found[1].add(torch.bmm(weights.transpose(1, 2), own_g))
                of_weights = torch.bmm(own_g, vs[:, :seen].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
                found[0].add(torch.bmm(of_scores.transpose(1, 2), own_q))
                _scatter_block(q_grad.transpose(1, 2), torch.bmm(of_scores, ks[:, :seen]), group, start, end)
            for i, (grad, one) in enumerate(zip((k_grad, v_grad), found, strict=True)):
                prefix[i] = prefix[i] + _scatter_key_gradients(grad, one.total, group)
        for grad, one in zip((k_grad, v_grad), prefix, strict=True):
            if torch.is_tensor(one):
                grad[0, :, : one.shape[1]] += one.to(grad.dtype)
        return q_grad, k_grad, v_grad, None, None, None


class _GradientSum:
    """Gradients of keys, whose later ones the first blocks do not see."""

    def __init__(self, like: Any) -> None:
        self._like = like
        self.total: Any = None

    def add(self, part: Any) -> None:
        if self.total is None and part.shape == self._like.shape:
            self.total = part
            return
        if self.total is None:
            self.total = torch.zeros(self._like.shape, dtype=torch.float32)
        self.total[:, : part.shape[1]] += part


@lru_cache(maxsize=64)
def group_parts(prefix: int, lengths: tuple[int, ...]) -> tuple[PartGroup, ...]:
    """The parts of a row, which follow the prefix, longest first; the prefix itself comes first."""
    made = [PartGroup((0,), (prefix,), 0)] if prefix else []
    start, place = 0, prefix
    while start < len(lengths):
        end, tokens = start, 0
        while end < len(lengths) and lengths[start] * (end + 1 - start) <= MAX_PADDING * (tokens + lengths[end]):
            tokens += lengths[end]
            end += 1
        own = lengths[start:end]
        made.append(PartGroup(tuple(_start_positions(place, own)), own, prefix))
        place += tokens
        start = end
    return tuple(made)


def _start_positions(first: int, lengths: Sequence[int]) -> Iterator[int]:
    for n in lengths:
        yield first
        first += n


def _split_queries(group: PartGroup) -> Iterator[tuple[int, int]]:
    for start in range(0, group.longest, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, group.longest)


def _gather_queries(t: Any, k: Any, group: PartGroup) -> Any:
    """The parts of t (1, heads, tokens, width) -> (parts * kv heads, heads of each, longest, width)."""
    made = _stack_parts(t, group, 0)
    return made.view(-1, t.shape[1] // k.shape[1], group.longest, t.shape[3])


def _gather_keys(t: Any, group: PartGroup) -> Any:
    """Prefix and parts of t (1, heads, tokens, width) -> (parts * heads, before + longest, width)."""
    made = _stack_parts(t, group, group.before)
    if group.before:
        made[:, :, : group.before] = t[0, :, : group.before]
    return made.view(-1, group.before + group.longest, t.shape[3])


def _stack_parts(t: Any, group: PartGroup, before: int) -> Any:
    n, even = group.longest, group.lengths[-1] == group.longest
    make = t.new_empty if even else t.new_zeros
    made = make(len(group.starts), t.shape[1], before + n, t.shape[3])
    for i, (start, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        made[i, :, before : before + length] = t[0, :, start : start + length]
    return made


def _attention_weights(queries: Any, keys: Any, first: int, scale: float, window: int | None) -> Any:
    """(rows, times, n, width), (rows, all keys, width) -> (rows, times * n, keys seen); queries start at `first`."""
    rows, times, n, width = queries.shape
    seen = first + n
    flat = queries.reshape(rows, times * n, width)
    scores = torch.baddbmm(flat.new_empty(1, 1, 1), flat, keys[:, :seen].transpose(1, 2), beta=0, alpha=scale)
    shaped = scores.view(rows, times, n, seen)
    if window:
        shaped += _causal_mask(n, first, window, scores.dtype)
    else:
        shaped[..., first:] += _causal_mask(n, 0, None, scores.dtype)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=32)
def _causal_mask(n: int, first: int, window: int | None, dtype: Any) -> Any:
    """(n, first + n): 0 where the query sees the key, else minus infinity."""
    with torch.inference_mode(False):  # kept for training too, also when asking is what makes it
        here = torch.arange(first, first + n).unsqueeze(1)
        there = torch.arange(first + n).unsqueeze(0)
        hidden = there > here
        if window:
            hidden |= there <= here - window
        return torch.zeros(n, first + n, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _scatter_block(out: Any, said: Any, group: PartGroup, start: int, end: int) -> None:
    """Block (parts * kv heads, times * n, width) into its places of out (1, tokens, heads, width)."""
    shaped = said.view(len(group.starts), out.shape[2], end - start, said.shape[2]).transpose(1, 2)
    for i, (place, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        if (n := min(end, length) - start) > 0:
            out[0, place + start : place + start + n] = shaped[i, :n]


def _scatter_key_gradients(out: Any, found: Any, group: PartGroup) -> Any:
    """Gradients of `_gather_keys` into out (1, heads, tokens, width); those of the prefix, summed, are returned."""
    shaped = found.view(len(group.starts), out.shape[1], -1, out.shape[3])
    for i, (place, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        out[0, :, place : place + length] = shaped[i, :, group.before : group.before + length]
    return shaped[:, :, : group.before].sum(0, dtype=torch.float32) if group.before else 0.0


def _empty_like(t: Any) -> Any:
    """As t (1, heads, tokens, width), laid out as the layers before it gave it: tokens first."""
    return t.new_empty(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)
