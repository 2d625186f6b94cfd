"""Many examples as one row of tokens, without padding, their common start computed once.

A row is the common prefix and then every example's own part.  An own part attends to the prefix and,
causally, to itself; its positions go on where the prefix ends.  So states, loss and gradients equal those
of the examples computed one by one: for a prefix p, own parts o_i and losses L_i

    L = sum_i L_i(p, o_i),   dL/do_i = dL_i/do_i,   dL/dp = sum_i dL_i/dp

Nothing here knows a model's architecture: transformers' attention registry calls `attend` of the layout
that was passed to the model's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from sqlft.errors import NotSupported
from sqlft_local.kernels import is_on

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Device, Layer

ATTENTION_NAME = "sqlft"
"""The name under which transformers knows this attention."""
ROW_MULTIPLE = 64
"""A row has a multiple of so many tokens: for every length products are prepared again, which takes time and memory."""


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
    module: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **given: object,
) -> tuple[Tensor, None]:
    odd = next((k for k in ("softcap", "s_aux", "position_bias") if given.get(k) is not None), None)
    if odd:
        raise NotSupported(
            f"The base's attention uses {odd}, which the local engine does not know.", "Use another base."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is None:
        raise NotSupported("The base's layers do not hand on how rows are packed.", "Use another base.")
    out = layout.attend(module.layer_idx, query, key, value, scale, sliding_window)
    return out.contiguous(), None  # some bases view it in another shape


@dataclass(frozen=True)
class Example:
    """Token ids, and the weight in the loss of each as something to learn (0: not at all)."""

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

    @property
    def inputs(self) -> dict[str, object]:
        """The arguments of the model's forward."""
        return {"input_ids": self.ids, "position_ids": self.positions, "use_cache": False, "layout": self}

    def select(self, states: Tensor) -> Tensor:
        """Of states (1, tokens, …) those at `source`."""
        return states[0].index_select(0, self.source)

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

        from sqlft_local.kernels.attention import attend_parts

        sizes = [self.prefix, *self.lengths] if self.prefix else list(self.lengths)
        qs, ks, vs = (list(t.split(sizes, dim=2)) for t in (q, k, v))
        done = []
        k_prefix = v_prefix = None
        if self.prefix:
            k_prefix, v_prefix = ks.pop(0), vs.pop(0)
            done += attend_parts([qs.pop(0)], [k_prefix], [v_prefix], None, None, scale, window)
        done += attend_parts(qs, ks, vs, k_prefix, v_prefix, scale, window)
        return torch.cat(done, dim=1)


def pack(examples: Sequence[Example], device: Device | str = "cpu") -> PackedExamples:
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
