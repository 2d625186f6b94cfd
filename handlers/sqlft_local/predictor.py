"""Asking: prompts in, answers out as each is finished, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from zlib import crc32

import torch

from sqlft.errors import ProviderError
from sqlft.handler import Completion, Piece, Predictor, Request
from sqlft_local.asking import room_for, width
from sqlft_local.decoding import Decoder
from sqlft_local.load_errors import is_memory, out_of_memory
from sqlft_local.loading import Loaded
from sqlft_local.lookup import Lookup
from sqlft_local.options import PredictOptions

GUESSED = 4
"""Most tokens that are guessed of a row at a time."""
AT_ONCE = 48
"""Tokens of a step, of all rows, up to which guesses cost less than they bring."""


@dataclass
class Row:
    """One prompt on its way to an answer."""

    request: Request
    prompt: list[int]
    room: int
    """Most tokens of its answer."""
    random: Any = None
    logprob: float = 0.0
    said: list[int] = field(default_factory=list)
    shown: str = ""
    """What was handed on of an answer that is watched while it is written."""
    lookup: Lookup | None = None


class LocalPredictor(Predictor):
    """Answers `batch_size` prompts at a time; a finished one makes room for the next."""

    def __init__(self, loaded: Loaded, options: PredictOptions, give_back: Callable[[], None] = lambda: None) -> None:
        self.loaded = loaded
        self.options = options
        self._stop = [s for s in options.stop or () if s]
        self._give_back: Callable[[], None] | None = give_back
        self._decoder: Decoder | None = Decoder(loaded.model)

    def close(self) -> None:
        """Free the states of what is being answered; the model stays for the next statement."""
        self._decoder = None
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Piece]:
        """Completions in the order in which they are finished, and Pieces of those that stream."""
        waiting = iter(requests)
        rows: list[Row] = []
        more = True
        pulled = 0
        while more or rows:
            most = width(self.options.batch_size, pulled > len(rows))
            if more and len(rows) <= most * 3 // 4:
                taken = list(islice(waiting, most - len(rows)))
                more = len(taken) == most - len(rows)
                pulled += len(taken)
                admitted = []
                for request in taken:
                    row = self._row(request)
                    if isinstance(row, Row):
                        admitted.append(row)
                    else:
                        yield row
                yield from self._advance(rows, admitted)
            if rows:
                yield from self._advance(rows, [])

    def _row(self, request: Request) -> Row | Completion:
        """The request as tokens, or why it cannot be answered."""
        found = room_for(request, self.loaded.renderer, self.loaded.context, self.options.max_tokens)
        if isinstance(found, Completion):
            return found
        prompt, room = found
        random = None
        if self.options.temperature > 0:
            random = torch.Generator().manual_seed(crc32(repr((self.options.seed, prompt)).encode()))
        lookup = Lookup(prompt) if self.options.temperature == 0 else None
        return Row(request, prompt, room, random, lookup=lookup)

    def _advance(self, rows: list[Row], admitted: list[Row]) -> Iterator[Completion | Piece]:
        """One token for each of `rows`, or the first one for those `admitted`; the finished leave."""
        if self._decoder is None:
            raise ProviderError("The predictor is closed.", "Open another one.")
        guesses: list[list[int]] = []
        try:
            if admitted:
                logits = self._decoder.admit([r.prompt for r in admitted])[:, None]
                first = len(rows)
                rows += admitted
            elif rows:
                guesses = self._guesses(rows)
                logits = self._decoder.step([[r.said[-1], *g] for r, g in zip(rows, guesses, strict=True)])
                first = 0
            else:
                return
        except (RuntimeError, MemoryError) as e:
            if not is_memory(e):
                raise
            raise out_of_memory("answering") from e
        chosen = self._choose(logits, rows[first:], guesses)
        if not admitted:
            self._decoder.keep([len(tokens) for tokens in chosen])
        finished = []
        pieces: list[Piece] = []
        for i, (row, tokens) in enumerate(zip(rows[first:], chosen, strict=True), first):
            completion = self._said(row, tokens, logits[i - first])
            if completion:
                finished.append((i, completion))
            if row.request.stream:
                pieces += self._piece(row, completion)
        for i, _ in reversed(finished):
            self._decoder.leave(i)
            rows[i] = rows[-1]
            rows.pop()
        yield from pieces
        for _, completion in finished:
            yield completion

    def _piece(self, row: Row, completion: Completion | None) -> Iterator[Piece]:
        """What is new of the row's answer, without what may yet turn out to be no part of it."""
        renderer = self.loaded.renderer
        if completion is not None:
            text = completion.text or ""
        else:
            text = steady(renderer.text_until(row.said, self._stop)[0], (*self._stop, renderer.trail))
        if len(text) > len(row.shown) and text.startswith(row.shown):
            yield Piece(row.request.id, text[len(row.shown) :])
            row.shown = text

    def _guesses(self, rows: list[Row]) -> list[list[int]]:
        """Equally many tokens for each row that may come next; none where answers are sampled."""
        worth = max(0, min(GUESSED, AT_ONCE // len(rows) - 1))
        room = min(worth, *(r.room - len(r.said) - 1 for r in rows))  # none has tokens behind the context
        found = [r.lookup.guess(room) if r.lookup else () for r in rows]
        most = max(map(len, found))
        return [[*guess, *[0] * (most - len(guess))] for guess in found]

    def _said(self, row: Row, tokens: list[int], logits: Any) -> Completion | None:
        """Add tokens to the row; its completion if one of them was the last."""
        if self.options.logprobs:
            shares = _likely(logits, tokens)
        for i, token in enumerate(tokens):
            row.said.append(token)
            if self.options.logprobs:
                row.logprob += shares[i]
            if (completion := self._ended(row, token)) is not None:
                return completion
        if row.lookup is not None:
            row.lookup.add(tokens)
        return None

    def _ended(self, row: Row, token: int) -> Completion | None:
        """The row's completion, if `token` was its last."""
        ended = token in self.loaded.stop_ids
        over = ended or len(row.said) >= row.room
        if not over and not self._stop:
            return None
        text, stopped = self.loaded.renderer.text_until(row.said[:-1] if ended else row.said, self._stop)
        if not over and not stopped:
            return None
        return Completion(
            row.request.id,
            text,
            input_tokens=len(row.prompt),
            output_tokens=len(row.said),
            logprob=row.logprob if self.options.logprobs else None,
            truncated=not (ended or stopped),
        )

    def _choose(self, logits: Any, rows: list[Row], guesses: list[list[int]]) -> list[list[int]]:
        """The next tokens of each row: those that were guessed right, and one more."""
        if self.options.temperature > 0:
            return [[self._sample(one[0], row)] for one, row in zip(logits.float().cpu(), rows, strict=True)]
        best: list[list[int]] = logits.argmax(-1).tolist()
        return [_agreed(said, guess) for said, guess in zip(best, guesses or [[]] * len(best), strict=True)]

    def _sample(self, logits: Any, row: Row) -> int:
        logits = logits / self.options.temperature
        if self.options.top_k is not None and self.options.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.options.top_k).values[-1], float("-inf"))
        shares, order = logits.softmax(-1).sort(descending=True)
        shares = shares.masked_fill(shares.cumsum(-1) - shares > self.options.top_p, 0.0)
        return int(order[torch.multinomial(shares, 1, generator=row.random)].item())


def steady(text: str, endings: Iterable[str]) -> str:
    """An unfinished answer without a letter that lacks bytes, and without what one of the endings begins with."""
    text = text.rstrip("\ufffd")
    held = max((n for end in endings for n in range(1, len(end) + 1) if text.endswith(end[:n])), default=0)
    return text[: len(text) - held]


def _agreed(said: list[int], guess: list[int]) -> list[int]:
    """Of what the model says behind each guessed token what stands behind right ones."""
    right = next((i for i, (a, b) in enumerate(zip(said, guess, strict=False)) if a != b), len(guess))
    return said[: right + 1]


def _likely(logits: Any, chosen: list[int]) -> list[float]:
    """Natural logarithm of each chosen token's share."""
    picked = torch.tensor(chosen, device=logits.device)[:, None]
    found: list[float] = logits[: len(chosen)].float().log_softmax(-1).gather(1, picked)[:, 0].tolist()
    return found
