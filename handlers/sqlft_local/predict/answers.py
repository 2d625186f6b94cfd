"""Rows on their way from a request to a completion: the prompt's tokens, the answer's as they come, where it ends.

Called by `torch_predictor`, `generate` and `openvino`, which run the model; here is what all do with its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

from sqlft.handler import Completion, Delta, Request
from sqlft_local.options import PredictOptions
from sqlft_local.predict.common import PromptRow, encode_request

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sqlft_local.base.tokenization import Renderer


@dataclass
class DecodingRow(PromptRow):
    """One prompt on its way to an answer, token by token."""

    random: torch.Generator | None = None
    logprob: float = 0.0
    output_ids: list[int] = field(default_factory=list)
    lookup: NgramLookup | None = None
    """Where tokens are guessed ahead."""


class AnswerWriter:
    """Makes rows of requests and completions of rows, for one model and the options of one statement."""

    def __init__(self, renderer: Renderer, context: int, options: PredictOptions) -> None:
        self._renderer, self._context = renderer, context
        self._options = options
        self._stop = [s for s in options.stop or () if s]

    def prepare(self, request: Request) -> DecodingRow | Completion:
        """The request as tokens, or why it cannot be answered."""
        found = encode_request(request, self._renderer, self._context, self._options.max_tokens)
        if isinstance(found, Completion):
            return found
        prompt, room = found
        random = None
        if self._options.temperature > 0:
            import torch

            random = torch.Generator().manual_seed(crc32(repr((self._options.seed, prompt)).encode()))
        return DecodingRow(request, prompt, room, random=random)

    def append(self, row: DecodingRow, tokens: Sequence[int], logprobs: Sequence[float] = ()) -> Completion | None:
        """Add tokens, with the logarithms of their probabilities where those are wanted; the completion at the end."""
        for i, token in enumerate(tokens):
            row.output_ids.append(token)
            if self._options.logprobs:
                row.logprob += logprobs[i]
            if (completion := self._complete_if_ended(row, token)) is not None:
                return completion
        if row.lookup is not None:
            row.lookup.add(tokens)
        return None

    def _complete_if_ended(self, row: DecodingRow, token: int) -> Completion | None:
        """The row's completion, if `token` was its last."""
        ended = token in self._renderer.stop_ids
        over = ended or len(row.output_ids) >= row.max_output_tokens
        if not over and not self._stop:
            return None
        answer = self._renderer.parse_ids(row.output_ids[:-1] if ended else row.output_ids, self._stop)
        if not over and not answer.stopped:
            return None
        return Completion(
            row.request.id,
            answer.text,
            input_tokens=len(row.prompt),
            output_tokens=len(row.output_ids),
            logprob=row.logprob if self._options.logprobs and answer.reasoning is None else None,
            truncated=not (ended or answer.stopped),
            reasoning=answer.reasoning,
        )

    def sample(self, logits: Tensor, row: DecodingRow) -> int:
        """A token by its scores (vocabulary); the row's seed decides."""
        import torch

        logits = logits / self._options.temperature
        if self._options.top_k is not None and self._options.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self._options.top_k).values[-1], float("-inf"))
        shares, order = logits.softmax(-1).sort(descending=True)
        shares = shares.masked_fill(shares.cumsum(-1) - shares > self._options.top_p, 0.0)
        return int(order[torch.multinomial(shares, 1, generator=row.random)].item())

    def stream_new_text(self, row: DecodingRow, completion: Completion | None) -> Iterator[Delta]:
        """What is new of the row's answer, without what may yet turn out to be no part of it."""
        if completion is not None:
            text = completion.text or ""
        else:
            text = strip_unfinished(
                self._renderer.parse_ids(row.output_ids, self._stop).text, list_endings(self._renderer, self._stop)
            )
        return row.stream(text)


def list_endings(renderer: Renderer, stop: Sequence[str]) -> tuple[str, ...]:
    """What is no part of an answer once it is complete."""
    return (*stop, renderer.answer_suffix, *renderer.thought_texts)


def strip_unfinished(text: str, endings: Iterable[str]) -> str:
    """An unfinished answer without a letter that lacks bytes, and without what one of the endings begins with."""
    text = text.rstrip("\ufffd")
    held = max((n for end in endings for n in range(1, len(end) + 1) if text.endswith(end[:n])), default=0)
    return text[: len(text) - held]


def compute_token_logprobs(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Natural logarithm of each chosen token's probability, by logits (tokens, vocabulary)."""
    chosen = logits[: len(tokens)].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(chosen, tokens, strict=True)]


LONGEST_NGRAM = 3
"""Last tokens that are looked up, if they stood there before; else fewer, down to `SHORTEST_NGRAM`."""
SHORTEST_NGRAM = 1


class NgramLookup:
    """The tokens of a prompt and its answer so far, and where each few of them stood last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._next_index: dict[tuple[int, ...], int] = {}
        self.add(tokens)

    def add(self, tokens: Iterable[int]) -> None:
        """Tokens that follow."""
        tokens_so_far = self._tokens
        for token in tokens:
            for n in range(SHORTEST_NGRAM, min(LONGEST_NGRAM, len(tokens_so_far)) + 1):
                self._next_index[tuple(tokens_so_far[-n:])] = len(tokens_so_far)
            tokens_so_far.append(token)

    def guess(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come next; none if the last ones are new."""
        tokens_so_far = self._tokens
        for n in range(min(LONGEST_NGRAM, len(tokens_so_far)), SHORTEST_NGRAM - 1, -1):
            place = self._next_index.get(tuple(tokens_so_far[-n:]))
            if place is not None:
                return tokens_so_far[place : place + most]
        return ()
