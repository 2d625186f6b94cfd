"""Asking on torch: many prompts at a time, each answered as soon as it is finished.

A greedy answer may take several tokens at once where its prompt holds what comes next (prompt lookup, Saxena 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from sqlft.handler import Completion, Delta, Request
from sqlft_local.base.loading import LoadedModel
from sqlft_local.errors import is_out_of_memory, out_of_memory_error
from sqlft_local.kernels.attention import attend_parts
from sqlft_local.kernels.packing import common_prefix_length
from sqlft_local.options import PredictOptions
from sqlft_local.predict.answers import AnswerWriter, DecodingRow, NgramLookup, compute_token_logprobs
from sqlft_local.predict.common import SharedModelPredictor, choose_batch_size, closed_error

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Dtype, Model
    from sqlft_local.kernels.packing import Layout

MAX_GUESSES = 4
"""Most tokens that are guessed of a row at a time."""
MAX_STEP_TOKENS = 48
"""Tokens of a step, of all rows, up to which guesses cost less than they bring."""


class TorchPredictor(SharedModelPredictor):
    """Answers `batch_size` prompts at a time; a finished one makes room for the next."""

    def __init__(
        self, loaded: LoadedModel, options: PredictOptions, release: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(release)
        self.loaded = loaded
        self.options = options
        self._writer = AnswerWriter(loaded.renderer, loaded.context, options)
        self._decoder: BatchDecoder | None = BatchDecoder(loaded.model)

    def close(self) -> None:
        """Free the states of what is being answered; the model stays for the next statement."""
        self._decoder = None
        super().close()

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions in the order in which they are finished, and Deltas of those that stream."""
        waiting = iter(requests)
        rows: list[DecodingRow] = []
        more = True
        pulled = 0
        while more or rows:
            most = choose_batch_size(self.options.batch_size, pulled > len(rows))
            if more and len(rows) <= most * 3 // 4:
                taken = list(islice(waiting, most - len(rows)))
                more = len(taken) == most - len(rows)
                pulled += len(taken)
                admitted = []
                for request in taken:
                    row = self._writer.prepare(request)
                    if isinstance(row, DecodingRow):
                        row.lookup = NgramLookup(row.prompt) if self.options.temperature == 0 else None
                        admitted.append(row)
                    else:
                        yield row
                yield from self._advance(rows, admitted)
            if rows:
                yield from self._advance(rows, [])

    def _advance(self, rows: list[DecodingRow], admitted: list[DecodingRow]) -> Iterator[Completion | Delta]:
        """One token for each of `rows`, or the first one for those `admitted`; the finished leave."""
        if self._decoder is None:
            raise closed_error()
        guesses: list[list[int]] = []
        try:
            if admitted:
                logits = self._decoder.admit([r.prompt for r in admitted])[:, None]
                first = len(rows)
                rows += admitted
            elif rows:
                guesses = self._guess_tokens(rows)
                logits = self._decoder.step([[r.output_ids[-1], *g] for r, g in zip(rows, guesses, strict=True)])
                first = 0
            else:
                return
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            raise out_of_memory_error("answering") from e
        chosen = self._choose(logits, rows[first:], guesses)
        if not admitted:
            self._decoder.accept([len(tokens) for tokens in chosen])
        finished = []
        deltas: list[Delta] = []
        for i, (row, tokens) in enumerate(zip(rows[first:], chosen, strict=True), first):
            shares = compute_token_logprobs(logits[i - first], tokens) if self.options.logprobs else ()
            completion = self._writer.append(row, tokens, shares)
            if completion:
                finished.append((i, completion))
            if row.request.stream:
                deltas += self._writer.stream_new_text(row, completion)
        for i, _ in reversed(finished):
            self._decoder.remove(i)
            rows[i] = rows[-1]
            rows.pop()
        yield from deltas
        for _, completion in finished:
            yield completion

    def _guess_tokens(self, rows: list[DecodingRow]) -> list[list[int]]:
        """Equally many tokens for each row that may come next; none where answers are sampled."""
        worth = max(0, min(MAX_GUESSES, MAX_STEP_TOKENS // len(rows) - 1))
        room = min(
            worth, *(r.max_output_tokens - len(r.output_ids) - 1 for r in rows)
        )  # none has tokens behind the context
        found = [r.lookup.guess(room) if r.lookup else () for r in rows]
        most = max(map(len, found))
        return [[*guess, *[0] * (most - len(guess))] for guess in found]

    def _choose(self, logits: Tensor, rows: list[DecodingRow], guesses: list[list[int]]) -> list[list[int]]:
        """The next tokens of each row: those that were guessed right, and one more."""
        if self.options.temperature > 0:
            return [[self._writer.sample(one[0], row)] for one, row in zip(logits.float().cpu(), rows, strict=True)]
        best: list[list[int]] = logits.argmax(-1).tolist()
        return [
            _accept_guesses(likeliest, guess)
            for likeliest, guess in zip(best, guesses or [[]] * len(best), strict=True)
        ]


def _accept_guesses(likeliest: list[int], guess: list[int]) -> list[int]:
    """Of what the model says behind each guessed token what stands behind right ones."""
    right = next((i for i, (a, b) in enumerate(zip(likeliest, guess, strict=False)) if a != b), len(guess))
    return likeliest[: right + 1]


CACHE_BLOCK = 64
"""Places for tokens are taken in blocks of this many."""
MIN_PREFIX = 16
"""A common start of fewer tokens is not kept."""


class BatchDecoder:
    """Rows on their way, numbered from 0."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.lengths: list[int] = []
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._prefix: list[int] = []
        self._prefix_states: dict[int, tuple[Tensor, Tensor]] = {}

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (new rows, vocabulary) of their next tokens."""
        self._compute_prefix(prompts)
        used = len(self._prefix)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        own = [list(prompts[i][used:]) for i in order]
        lengths = [len(part) for part in own]
        first = len(self.lengths)
        self.lengths += [len(p) for p in prompts]
        layout = _AdmissionLayout(self, [first + i for i in order], lengths)
        positions = [p for n in lengths for p in range(used, used + n)]
        ends = torch.tensor(lengths).cumsum(0) - 1
        logits = self._forward([[t for part in own for t in part]], [positions], layout, ends)[0]
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return logits[back.to(logits.device)]

    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """What would follow each of as many tokens behind every row: logits (rows, tokens, vocabulary).

        `accept` says how many of them the rows then have.
        """
        more = len(tokens[0])
        layout = _StepLayout(self, torch.tensor(self.lengths, device=self.model.device), more)
        positions = [[n + i for i in range(more)] for n in self.lengths]
        return self._forward([list(row) for row in tokens], positions, layout, torch.arange(more))

    def accept(self, counts: Sequence[int]) -> None:
        """So many of the last step's tokens stay in each row; the others make room for the next ones."""
        self.lengths = [n + more for n, more in zip(self.lengths, counts, strict=True)]

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            n = self.lengths[last]
            with torch.inference_mode():
                for states in (*self._keys.values(), *self._values.values()):
                    states[row, :, :n] = states[last, :, :n]
            self.lengths[row] = n
        self.lengths.pop()

    def _compute_prefix(self, prompts: Sequence[Sequence[int]]) -> None:
        """Make the kept start one that all the prompts have: the one kept already, or a new one."""
        if self._prefix and all(
            len(p) > len(self._prefix) and list(p[: len(self._prefix)]) == self._prefix for p in prompts
        ):
            return
        n = common_prefix_length(prompts) if len(prompts) > 1 else 0
        self._prefix = []
        self._prefix_states = {}
        if n >= MIN_PREFIX:
            start = list(prompts[0][:n])
            layout = _PrefixLayout(self)
            self._forward([start], [list(range(n))], layout, torch.tensor([n - 1]))
            self._prefix = start

    def _forward(
        self, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], layout: Layout, keep: Tensor
    ) -> Tensor:
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

    def _allocate(self, layer: int, k: Tensor, v: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The layer's keys and values (rows, heads, tokens, width), grown where they are too small."""
        for kept, like in ((self._keys, k), (self._values, v)):
            old = kept.get(layer)
            if old is None or old.shape[0] < rows or old.shape[2] < tokens:
                have = (0, 0) if old is None else (old.shape[0], old.shape[2])
                size = (max(rows, have[0]), -(-max(tokens, have[1]) // CACHE_BLOCK) * CACHE_BLOCK)
                new = like.new_zeros(size[0], like.shape[1], size[1], like.shape[3])
                if old is not None:
                    new[: have[0], :, : have[1]] = old
                kept[layer] = new
        return self._keys[layer], self._values[layer]


class _PrefixLayout:
    """The common start for itself."""

    def __init__(self, decoder: BatchDecoder) -> None:
        self._decoder = decoder

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        self._decoder._prefix_states[layer] = (k, v)
        return attend_parts([q], [k], [v], None, None, scale, window)[0]


class _AdmissionLayout:
    """New rows' own parts, one behind the other, each behind the common start."""

    def __init__(self, decoder: BatchDecoder, rows: list[int], lengths: list[int]) -> None:
        self._decoder = decoder
        self._rows = rows
        self._lengths = lengths

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        decoder = self._decoder
        before = decoder._prefix_states.get(layer) if decoder._prefix else None
        used = len(decoder._prefix)
        keys, values = decoder._allocate(layer, k, v, len(decoder.lengths), max(decoder.lengths) + 1)
        qs, ks, vs = (list(t.split(self._lengths, dim=2)) for t in (q, k, v))
        for row, n, own_k, own_v in zip(self._rows, self._lengths, ks, vs, strict=True):
            for kept, part, own in ((keys, 0, own_k), (values, 1, own_v)):
                if before is not None:
                    kept[row, :, :used] = before[part][0]
                kept[row, :, used : used + n] = own[0]
        prefix = before or (None, None)
        return torch.cat(attend_parts(qs, ks, vs, prefix[0], prefix[1], scale, window), dim=1)


class _StepLayout:
    """A few tokens of every row, behind the row's earlier ones."""

    def __init__(self, decoder: BatchDecoder, lengths: Tensor, more: int) -> None:
        self._decoder = decoder
        self._places = lengths[:, None] + torch.arange(more, device=lengths.device)
        self._seen = max(decoder.lengths) + more
        self._rows = torch.arange(len(lengths), device=lengths.device)[:, None]
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        rows, heads, more, width = q.shape
        keys, values = self._decoder._allocate(layer, k, v, rows, self._seen)
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

    def _mask(self, window: int | None, dtype: Dtype, times: int) -> Tensor:
        """(rows, 1, times * tokens, tokens seen): 0 for what is seen, else minus infinity."""
        if window not in self._masks:
            there = torch.arange(self._seen, device=self._places.device)
            hidden = there > self._places[..., None]
            if window:
                hidden |= there <= self._places[..., None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask.repeat(1, times, 1)[:, None]
        return self._masks[window]
