"""Attention over a packed row on the processor: plain products of matrices, nothing kept but q, k and v.

torch's own fused attention has a backward pass that is slow on processors, the more so in bfloat16; rows of a packed
pass are short, and their scores fit into the cache.  Parts of a like length are computed together, long ones a block of
queries at a time, so that scores take little memory and what causality hides is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from sqlft_local._types import AutogradContext, Device, Dtype

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
    """Every part sees the prefix and, causally, itself.

    With mask M, a part's queries Q, the keys K and values V it sees:

        P = softmax(s Q K' + M),  O = P V
        dV = P' dO,  dP = dO V',  dS = P * (dP - rowsum(dP * P)),  dQ = s dS K,  dK = s dS' Q

    dK and dV of the prefix are summed over the parts.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        groups: Sequence[PartGroup],
        scale: float,
        window: int | None,
    ) -> Tensor:
        """q (1, heads, tokens, width), k and v (1, fewer heads, tokens, width) -> (1, tokens, heads, width)."""
        ctx.groups, ctx.scale, ctx.window = groups, scale, window
        kept = []
        out = v.new_empty(1, q.shape[2], q.shape[1], v.shape[3])
        keep = any(ctx.needs_input_grad)
        for group in groups:
            qs, ks, vs = _gather_queries(q, k, group), _gather_keys(k, group), _gather_keys(v, group)
            for start, end in _split_queries(group):
                weights = _attention_weights(qs[:, :, start:end], ks, group.before + start, scale, window)
                block = torch.bmm(weights, vs[:, : weights.shape[2]])
                _scatter_block(out, block, group, start, end)
                kept.append(weights if keep and weights.shape[2] <= MAX_KEPT_KEYS else None)
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    def backward(ctx: AutogradContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v; the prefix's are summed in float32."""
        q, k, v, *rest = ctx.saved_tensors
        g = grads[0].transpose(1, 2)
        q_grad, k_grad, v_grad = (_empty_like(t) for t in (q, k, v))
        prefix: list[Tensor | float] = [0.0, 0.0]
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
        for grad, shared in zip((k_grad, v_grad), prefix, strict=True):
            if not isinstance(shared, float):
                grad[0, :, : shared.shape[1]] += shared.to(grad.dtype)
        return q_grad, k_grad, v_grad, None, None, None


class _GradientSum:
    """Gradients of keys, whose later ones the first blocks do not see."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self.total: Tensor | None = None

    def add(self, part: Tensor) -> None:
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
    starts = tuple(accumulate(lengths, initial=prefix))
    made += (PartGroup(starts[own], lengths[own], prefix) for own in _group_by_length(lengths))
    return tuple(made)


def _split_queries(group: PartGroup) -> Iterator[tuple[int, int]]:
    for start in range(0, group.longest, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, group.longest)


def _gather_queries(t: Tensor, k: Tensor, group: PartGroup) -> Tensor:
    """The parts of t (1, heads, tokens, width) -> (parts * kv heads, heads of each, longest, width)."""
    made = _stack_parts(t, group, 0)
    return made.view(-1, t.shape[1] // k.shape[1], group.longest, t.shape[3])


def _gather_keys(t: Tensor, group: PartGroup) -> Tensor:
    """Prefix and parts of t (1, heads, tokens, width) -> (parts * heads, before + longest, width)."""
    made = _stack_parts(t, group, group.before)
    if group.before:
        made[:, :, : group.before] = t[0, :, : group.before]
    return made.view(-1, group.before + group.longest, t.shape[3])


def _stack_parts(t: Tensor, group: PartGroup, before: int) -> Tensor:
    n, even = group.longest, group.lengths[-1] == group.longest
    make = t.new_empty if even else t.new_zeros
    made = make(len(group.starts), t.shape[1], before + n, t.shape[3])
    for i, (start, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        made[i, :, before : before + length] = t[0, :, start : start + length]
    return made


def _attention_weights(queries: Tensor, keys: Tensor, first: int, scale: float, window: int | None) -> Tensor:
    """(rows, times, n, width), (rows, all keys, width) -> (rows, times * n, keys seen); queries start at `first`."""
    rows, times, n, width = queries.shape
    seen = first + n
    flat = queries.reshape(rows, times * n, width)
    scores = torch.baddbmm(flat.new_empty(1, 1, 1), flat, keys[:, :seen].transpose(1, 2), beta=0, alpha=scale)
    shaped = scores.view(rows, times, n, seen)
    if window:
        shaped += _causal_mask(n, first, window, scores.dtype, scores.device)
    else:
        shaped[..., first:] += _causal_mask(n, 0, None, scores.dtype, scores.device)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=32)
def _causal_mask(n: int, before: int, window: int | None, dtype: Dtype, device: Device, times: int = 1) -> Tensor:
    """(times * n, before + n): 0 where the query sees the key, else minus infinity."""
    with torch.inference_mode(False):  # kept for training too, also when asking is what makes it
        here = torch.arange(before, before + n, device=device).unsqueeze(1)
        there = torch.arange(before + n, device=device).unsqueeze(0)
        hidden = there > here
        if window:
            hidden |= there <= here - window
        mask = torch.zeros(n, before + n, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        return mask.repeat(times, 1)


def _scatter_block(out: Tensor, block: Tensor, group: PartGroup, start: int, end: int) -> None:
    """Block (parts * kv heads, times * n, width) into its places of out (1, tokens, heads, width)."""
    shaped = block.view(len(group.starts), out.shape[2], end - start, block.shape[2]).transpose(1, 2)
    for i, (place, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        if (n := min(end, length) - start) > 0:
            out[0, place + start : place + start + n] = shaped[i, :n]


def _scatter_key_gradients(out: Tensor, found: Tensor, group: PartGroup) -> Tensor | float:
    """Gradients of `_gather_keys` into out (1, heads, tokens, width); those of the prefix, summed, are returned."""
    shaped = found.view(len(group.starts), out.shape[1], -1, out.shape[3])
    for i, (place, length) in enumerate(zip(group.starts, group.lengths, strict=True)):
        out[0, :, place : place + length] = shaped[i, :, group.before : group.before + length]
    return shaped[:, :, : group.before].sum(0, dtype=torch.float32) if group.before else 0.0


def _empty_like(t: Tensor) -> Tensor:
    """As t (1, heads, tokens, width), laid out as the layers before it gave it: tokens first."""
    return t.new_empty(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)


def attend_parts(
    qs: list[Tensor],
    ks: list[Tensor],
    vs: list[Tensor],
    k_prefix: Tensor | None,
    v_prefix: Tensor | None,
    scale: float,
    window: int | None,
) -> list[Tensor]:
    """Parts (1, heads, n_i, width), longest first, see prefix and, causally, themselves -> (1, n_i, heads, width)."""
    done = []
    for group in _group_by_length([q.shape[2] for q in qs]):
        done += _attend_group(qs[group], ks[group], vs[group], k_prefix, v_prefix, scale, window)
    return done


def _group_by_length(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbours of about one length, of lengths that fall."""
    start = 0
    while start < len(lengths):
        end, tokens = start, 0
        while end < len(lengths) and lengths[start] * (end + 1 - start) <= MAX_PADDING * (tokens + lengths[end]):
            tokens += lengths[end]
            end += 1
        yield slice(start, end)
        start = end


def _attend_group(
    qs: list[Tensor],
    ks: list[Tensor],
    vs: list[Tensor],
    k_prefix: Tensor | None,
    v_prefix: Tensor | None,
    scale: float,
    window: int | None,
) -> list[Tensor]:
    """Own parts padded to the longest; padding stands behind, where causality hides it."""
    rows, n = len(qs), qs[0].shape[2]
    q, k, v = (_stack_padded(t, n) for t in (qs, ks, vs))
    prefix = 0
    if k_prefix is not None and v_prefix is not None:
        prefix = k_prefix.shape[2]
        k = torch.cat([k_prefix.expand(rows, -1, -1, -1), k], dim=2)
        v = torch.cat([v_prefix.expand(rows, -1, -1, -1), v], dim=2)
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[3]
    folded = q.reshape(rows, kv_heads, heads // kv_heads * n, width)
    mask = _causal_mask(n, prefix, window, q.dtype, q.device, heads // kv_heads)
    out = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
    parts = out.reshape(rows, heads, n, v.shape[3]).transpose(1, 2).unbind(0)
    return [part[: own.shape[2]].unsqueeze(0) for part, own in zip(parts, qs, strict=True)]


def _stack_padded(parts: list[Tensor], n: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p if p.shape[2] == n else pad(p, (0, 0, 0, n - p.shape[2])) for p in parts])
