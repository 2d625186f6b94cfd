"""Many examples as one row of tokens, without padding, their common start computed once.

A row is the common prefix and then every example's own part.  An own part attends to the prefix and,
causally, to itself; its positions go on where the prefix ends.  So states, loss and gradients equal those
of the examples computed one by one: for a prefix p, own parts o_i and losses L_i

    L = sum_i L_i(p, o_i),   dL/do_i = dL_i/do_i,   dL/dp = sum_i dL_i/dp

Nothing here knows a model's architecture: transformers' attention registry calls `attend` of the layout
that was passed to the model's forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from sqlft.errors import NotSupported
from sqlft_local.kernels import is_on

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION_NAME = "sqlft"
"""The name under which transformers knows this attention."""
ROW_MULTIPLE = 64
"""A row has a multiple of so many tokens: for every length products are prepared anew, which takes time and memory."""
MAX_PADDING = 1.25
"""Own parts share one attention call while padding them to the longest costs at most this."""


class Layout(Protocol):
    """Says which tokens of a forward pass see which."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """q (rows, heads, tokens, width), k and v with fewer heads -> (rows, tokens, heads, width)."""
        ...


@cache
def register_attention() -> None:
    """Make the attention known to transformers, without a mask of its own."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attention_forward)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    odd = next((k for k in ("softcap", "s_aux", "position_bias") if given.get(k) is not None), None)
    if odd:
        raise NotSupported(
            f"The base's attention uses {odd}, which the local engine does not know.", "Use another base."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout: Layout = given["layout"]
    return layout.attend(module.layer_idx, query, key, value, scale, given.get("sliding_window")), None


@dataclass(frozen=True)
class Example:
    """Token ids, and the weight in the loss of each as something to be said (0: not at all)."""

    ids: Sequence[int]
    weights: Sequence[float]


@dataclass(frozen=True)
class PackedExamples:
    """Examples as one row: `ids` and `positions` (1, tokens); own part i has `lengths[i]` tokens, longest first.

    A few tokens at the ends of the parts only fill up.
    `source[j]` is the place in the row whose state predicts `target[j]`, with `weight[j]` in the loss.
    """

    ids: Tensor
    positions: Tensor
    prefix: int
    lengths: tuple[int, ...]
    source: Tensor
    target: Tensor
    weight: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention within the row."""
        if q.device.type != "cpu" or not is_on("attention"):
            return self.attend_with_torch(q, k, v, scale, window)
        from sqlft_local.kernels import attention

        groups = attention.group_parts(self.prefix, self.lengths)
        attended: Tensor = attention.PackedAttention.apply(q, k, v, groups, scale, window)
        return attended

    def attend_with_torch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention by torch's own, which is fused for graphics cards."""
        import torch

        sizes = [self.prefix, *self.lengths] if self.prefix else list(self.lengths)
        qs, ks, vs = (list(t.split(sizes, dim=2)) for t in (q, k, v))
        done = []
        k_prefix = v_prefix = None
        if self.prefix:
            k_prefix, v_prefix = ks.pop(0), vs.pop(0)
            done += attend_parts([qs.pop(0)], [k_prefix], [v_prefix], None, None, scale, window)
        done += attend_parts(qs, ks, vs, k_prefix, v_prefix, scale, window)
        return torch.cat(done, dim=1)


def pack(examples: Sequence[Example], device: Any = "cpu") -> PackedExamples:
    """Examples of at least one token each, as one row.

    >>> row = pack([Example([7, 1, 2], [0, 0, 1]), Example([7, 3, 4], [0, 0, 1])])
    >>> row.prefix, row.lengths, row.source.tolist(), row.target.tolist()
    (1, (32, 31), [1, 33], [2, 4])
    """
    import torch

    examples = sorted(examples, key=lambda e: -len(e.ids))
    prefix = common_prefix_length([e.ids for e in examples]) if len(examples) > 1 else 0
    ids = list(examples[0].ids[:prefix])
    positions = list(range(prefix))
    source: list[int] = []
    target: list[int] = []
    weight: list[float] = []
    for j in range(1, prefix):
        if total := sum(e.weights[j] for e in examples):
            source.append(j - 1)
            target.append(ids[j])
            weight.append(total)
    fillers = _count_fillers(prefix + sum(len(e.ids) - prefix for e in examples), len(examples))
    for e, filler in zip(examples, fillers, strict=True):
        start = len(ids)
        for j in range(max(prefix, 1), len(e.ids)):
            if e.weights[j]:
                source.append(start + j - prefix - 1 if j > prefix else prefix - 1)
                target.append(e.ids[j])
                weight.append(e.weights[j])
        ids += [*e.ids[prefix:], *[e.ids[-1]] * filler]
        positions += range(prefix, len(e.ids) + filler)
    whole = {"dtype": torch.long, "device": device}
    return PackedExamples(
        torch.tensor([ids], **whole),
        torch.tensor([positions], **whole),
        prefix,
        tuple(len(e.ids) - prefix + filler for e, filler in zip(examples, fillers, strict=True)),
        torch.tensor(source, **whole),
        torch.tensor(target, **whole),
        torch.tensor(weight, dtype=torch.float32, device=device),
    )


def _count_fillers(tokens: int, parts: int) -> list[int]:
    """How many tokens that nothing sees to put behind each part, so that the row has a multiple of EVEN."""
    each, more = divmod(-tokens % ROW_MULTIPLE, parts)
    return [each + (i < more) for i in range(parts)]


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows start with, short of the shortest row: every row keeps a part of its own.

    >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    if not is_on("prefix"):
        return 0
    low, high = min(map(list, rows)), max(map(list, rows))
    most = min(len(r) for r in rows) - 1
    return next((i for i in range(most) if low[i] != high[i]), max(most, 0))


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
    """Neighbours of about one length."""
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
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    rows, n = len(qs), qs[0].shape[2]
    q, k, v = (_stack_padded(t, n) for t in (qs, ks, vs))
    prefix = 0
    if k_prefix is not None and v_prefix is not None:
        prefix = k_prefix.shape[2]
        k = torch.cat([k_prefix.expand(rows, -1, -1, -1), k], dim=2)
        v = torch.cat([v_prefix.expand(rows, -1, -1, -1), v], dim=2)
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[3]
    folded = q.reshape(rows, kv_heads, heads // kv_heads * n, width)
    mask = _causal_mask(n, prefix, window, heads // kv_heads, q.dtype, q.device)
    out = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
    parts = out.reshape(rows, heads, n, v.shape[3]).transpose(1, 2).unbind(0)
    return [part[: own.shape[2]].unsqueeze(0) for part, own in zip(parts, qs, strict=True)]


def _stack_padded(parts: list[Tensor], n: int) -> Tensor:
    import torch
    from torch.nn.functional import pad

    if len(parts) == 1:
        return parts[0]
    return torch.cat([p if p.shape[2] == n else pad(p, (0, 0, 0, n - p.shape[2])) for p in parts])


@lru_cache(maxsize=16)
def _causal_mask(n: int, prefix: int, window: int | None, times: int, dtype: Any, device: Any) -> Tensor:
    """(times * n, prefix + n): 0 where the own token sees the token, else minus infinity."""
    import torch

    with torch.inference_mode(False):  # kept for training too, also when asking is what makes it
        here = torch.arange(prefix, prefix + n, device=device).unsqueeze(1)
        there = torch.arange(prefix + n, device=device).unsqueeze(0)
        hidden = there > here
        if window:
            hidden |= there <= here - window
        return (
            torch.zeros(n, prefix + n, dtype=dtype, device=device).masked_fill_(hidden, float("-inf")).repeat(times, 1)
        )
