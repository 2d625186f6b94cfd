"""Greedy and sampled decoding for many rows at once, without padding; knows nothing of text.

States of earlier tokens are kept in a place a row.  New rows are computed as one packed row, and what they
start with in common only once; each later token of all rows is one step.  A row that leaves hands its
place to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from sqlft_local.packing import common_prefix, own_attention

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 64
"""Places for tokens are taken in blocks of this many."""
WORTH = 16
"""A common start of fewer tokens is not kept."""


class Decoder:
    """Rows on their way, numbered from 0."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lengths: list[int] = []
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._prefix: list[int] = []
        self._prefix_states: dict[int, tuple[Tensor, Tensor]] = {}

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (new rows, vocabulary) of their next tokens."""
        self._share(prompts)
        used = len(self._prefix)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        own = [list(prompts[i][used:]) for i in order]
        lengths = [len(part) for part in own]
        first = len(self.lengths)
        self.lengths += [len(p) for p in prompts]
        layout = _Admission(self, [first + i for i in order], lengths)
        positions = [p for n in lengths for p in range(used, used + n)]
        ends = torch.tensor(lengths).cumsum(0) - 1
        logits = self._forward([[t for part in own for t in part]], [positions], layout, ends)[0]
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return logits[back.to(logits.device)]

    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """What would follow each of as many tokens behind every row: logits (rows, tokens, vocabulary).

        `keep` says how many of them the rows then have.
        """
        more = len(tokens[0])
        layout = _Step(self, torch.tensor(self.lengths, device=self.model.device), more)
        positions = [[n + i for i in range(more)] for n in self.lengths]
        return self._forward([list(row) for row in tokens], positions, layout, torch.arange(more))

    def keep(self, counts: Sequence[int]) -> None:
        """So many of the last step's tokens stay in each row; the others make room for the next ones."""
        self.lengths = [n + more for n, more in zip(self.lengths, counts, strict=True)]

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            n = self.lengths[last]
            with torch.inference_mode():
                for states in (*self._keys.values(), *self._values.values()):
                    states[row, :, :n] = states[last, :, :n]
            self.lengths[row] = n
        self.lengths.pop()

    def _share(self, prompts: Sequence[Sequence[int]]) -> None:
        """Make the kept start one that all the prompts have: the one kept already, or a new one."""
        if self._prefix and all(
            len(p) > len(self._prefix) and list(p[: len(self._prefix)]) == self._prefix for p in prompts
        ):
            return
        n = common_prefix(prompts) if len(prompts) > 1 else 0
        self._prefix = []
        self._prefix_states = {}
        if n >= WORTH:
            start = list(prompts[0][:n])
            layout = _Start(self)
            self._forward([start], [list(range(n))], layout, torch.tensor([n - 1]))
            self._prefix = start

    def _forward(self, ids: Any, positions: Any, layout: Any, keep: Any) -> Tensor:
        device = self.model.device
        with torch.inference_mode():
            logits: Tensor = self.model(
                input_ids=torch.tensor(ids, device=device),
                position_ids=torch.tensor(positions, device=device),
                use_cache=False,
                logits_to_keep=keep.to(device),
                layout=layout,
            ).logits
        return logits

    def _room(self, layer: int, k: Tensor, v: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The layer's keys and values (rows, heads, tokens, width), grown where they are too small."""
        for kept, like in ((self._keys, k), (self._values, v)):
            old = kept.get(layer)
            if old is None or old.shape[0] < rows or old.shape[2] < tokens:
                have = (0, 0) if old is None else (old.shape[0], old.shape[2])
                size = (max(rows, have[0]), -(-max(tokens, have[1]) // ROOM) * ROOM)
                new = like.new_zeros(size[0], like.shape[1], size[1], like.shape[3])
                if old is not None:
                    new[: have[0], :, : have[1]] = old
                kept[layer] = new
        return self._keys[layer], self._values[layer]


class _Start:
    """The common start for itself."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        self._decoder._prefix_states[layer] = (k, v)
        return own_attention([q], [k], [v], None, None, scale, window)[0]


class _Admission:
    """New rows' own parts, one behind the other, each behind the common start."""

    def __init__(self, decoder: Decoder, rows: list[int], lengths: list[int]) -> None:
        self._decoder = decoder
        self._rows = rows
        self._lengths = lengths

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        decoder = self._decoder
        before = decoder._prefix_states.get(layer) if decoder._prefix else None
        used = len(decoder._prefix)
        keys, values = decoder._room(layer, k, v, len(decoder.lengths), max(decoder.lengths) + 1)
        qs, ks, vs = (list(t.split(self._lengths, dim=2)) for t in (q, k, v))
        for row, n, own_k, own_v in zip(self._rows, self._lengths, ks, vs, strict=True):
            for kept, part, own in ((keys, 0, own_k), (values, 1, own_v)):
                if before is not None:
                    kept[row, :, :used] = before[part][0]
                kept[row, :, used : used + n] = own[0]
        prefix = before or (None, None)
        return torch.cat(own_attention(qs, ks, vs, prefix[0], prefix[1], scale, window), dim=1)


class _Step:
    """A few tokens of every row, behind the row's earlier ones."""

    def __init__(self, decoder: Decoder, lengths: Tensor, more: int) -> None:
        self._decoder = decoder
        self._places = lengths[:, None] + torch.arange(more, device=lengths.device)
        self._seen = max(decoder.lengths) + more
        self._rows = torch.arange(len(lengths), device=lengths.device)[:, None]
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        rows, heads, more, width = q.shape
        keys, values = self._decoder._room(layer, k, v, rows, self._seen)
        keys[self._rows, :, self._places] = k.transpose(1, 2)
        values[self._rows, :, self._places] = v.transpose(1, 2)
        kv_heads = k.shape[1]
        times = heads // kv_heads
        out = scaled_dot_product_attention(
            q.reshape(rows, kv_heads, times * more, width),
            keys[:rows, :, : self._seen],
            values[:rows, :, : self._seen],
            attn_mask=self._mask(window, q.dtype, times),
            scale=scale,
        )
        return out.reshape(rows, heads, more, v.shape[3]).transpose(1, 2)

    def _mask(self, window: int | None, dtype: Any, times: int) -> Tensor:
        """(rows, 1, times * tokens, tokens seen): 0 for what is seen, else minus infinity."""
        if window not in self._masks:
            there = torch.arange(self._seen, device=self._places.device)
            hidden = there > self._places[..., None]
            if window:
                hidden |= there <= self._places[..., None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask.repeat(1, times, 1)[:, None]
        return self._masks[window]
