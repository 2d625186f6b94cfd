"""Asking by transformers' own generate: for bases whose layers take no packed rows.

Which prompts share a batch is tried on the base: those of any length where padding at their start changes no number,
else those of one length (states of convolutions, linear attention and state spaces would begin with the padding), else
none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sqlft.handler import Completion, Delta, Request
from sqlft_local.base.loading import LoadedModel
from sqlft_local.errors import is_out_of_memory, out_of_memory_error, silence_transformers
from sqlft_local.kernels.batching import logits_agree, make_trial_rows
from sqlft_local.options import PredictOptions
from sqlft_local.predict.answers import AnswerWriter, DecodingRow, compute_token_logprobs
from sqlft_local.predict.common import SharedModelPredictor, choose_batch_size

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Model

TRIAL_TOKENS = 3
"""Tokens that are generated in a trial: states are handed on from one to the next."""


class GeneratePredictor(SharedModelPredictor):
    """Answers up to `batch_size` prompts at a time; all of a batch are computed until the last one is finished."""

    def __init__(
        self, loaded: LoadedModel, options: PredictOptions, release: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(release)
        self._loaded, self._options = loaded, options
        self._writer = AnswerWriter(loaded.renderer, loaded.context, options)

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions in the order in which they are finished, and Deltas of those that stream."""
        waiting = iter(requests)
        answered = False
        while window := list(islice(waiting, choose_batch_size(self._options.batch_size, answered))):
            rows = []
            for request in window:
                row = self._writer.prepare(request)
                if isinstance(row, DecodingRow):
                    rows.append(row)
                else:
                    yield row
            for batch in self._split_batches(rows):
                yield from self._generate(batch)
            answered = True

    def _split_batches(self, rows: Sequence[DecodingRow]) -> Iterator[list[DecodingRow]]:
        """Rows that are computed together, shortest prompts first."""
        rows = sorted(rows, key=lambda r: len(r.prompt))
        batching = find_batching(self._loaded.model) if len(rows) > 1 else "alone"
        if batching == "alone":
            yield from ([row] for row in rows)
        elif batching == "padded":
            yield list(rows)
        else:
            yield from (list(batch) for _, batch in groupby(rows, key=lambda r: len(r.prompt)))

    def _generate(self, rows: list[DecodingRow]) -> Iterator[Completion | Delta]:
        """transformers' loop runs in a thread, which ends with the next token when nobody waits for it any more."""
        self._check_open()
        batch = _Batch(self._writer, rows, self._options.logprobs)
        threads = torch.get_num_threads()

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                longest = max(row.max_output_tokens for row in rows)
                prompts = [row.prompt for row in rows]
                run_generate(self._loaded.model, prompts, longest, batch.choose, lambda: batch.finished)
                batch.events.put(None)
            except BaseException as e:
                batch.events.put(e)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (event := batch.events.get()) is not None:
                if isinstance(event, BaseException):
                    raise out_of_memory_error("answering") if is_out_of_memory(event) else event
                yield event
        finally:
            batch.finished = [True] * len(rows)
            thread.join()


class _Batch:
    """Rows that are generated together; what comes of each token are `events`, the last of them None or an error."""

    def __init__(self, writer: AnswerWriter, rows: Sequence[DecodingRow], logprobs: bool) -> None:
        self._writer, self._rows, self._logprobs = writer, rows, logprobs
        self.finished = [False] * len(rows)
        self.events: SimpleQueue[Completion | Delta | BaseException | None] = SimpleQueue()

    def choose(self, logits: Tensor) -> list[int]:
        """The next token of each row; one that is finished gets any."""
        best: list[int] = logits.argmax(-1).tolist()
        return [
            token if done else self._add_token(i, row, token, logits[i])
            for i, (row, token, done) in enumerate(zip(self._rows, best, self.finished, strict=True))
        ]

    def _add_token(self, i: int, row: DecodingRow, likeliest: int, logits: Tensor) -> int:
        token = likeliest if row.random is None else self._writer.sample(logits.float().cpu(), row)
        shares = compute_token_logprobs(logits[None], [token]) if self._logprobs else ()
        completion = self._writer.append(row, [token], shares)
        if row.request.stream:
            for delta in self._writer.stream_new_text(row, completion):
                self.events.put(delta)
        if completion is not None:
            self.finished[i] = True
            self.events.put(completion)
        return token


class _ChosenTokens(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Leaves transformers no choice."""

    def __init__(self, choose: Callable[[Tensor], list[int]]) -> None:
        self._choose = choose

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary)."""
        chosen = torch.tensor(self._choose(scores), device=scores.device)[:, None]
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


class _FinishedRows(StoppingCriteria):  # type: ignore[misc]
    """Says when to stop."""

    def __init__(self, finished: Callable[[], Sequence[bool]]) -> None:
        self._finished = finished

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Of each row."""
        return torch.tensor(self._finished(), device=input_ids.device)


def run_generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    most: int,
    choose: Callable[[Tensor], list[int]],
    finished: Callable[[], Sequence[bool]],
) -> None:
    """Generate until all rows are finished, `most` tokens at most; shorter prompts are padded at their start.

    `choose` gets the logits (rows, vocabulary) of each step and returns the rows' next tokens.
    """
    longest = max(map(len, prompts))
    ids = [[*[prompt[0]] * (longest - len(prompt)), *prompt] for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with silence_transformers(), torch.inference_mode():
        model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=GenerationConfig(max_new_tokens=most, do_sample=False, use_cache=True),
            logits_processor=LogitsProcessorList([_ChosenTokens(choose)]),
            stopping_criteria=StoppingCriteriaList([_FinishedRows(finished)]),
        )


Batching = Literal["padded", "one length", "alone"]
"""Which prompts are generated together."""
_batching: WeakKeyDictionary[Model, Batching] = WeakKeyDictionary()


def find_batching(model: Model) -> Batching:
    """Which prompts get together the logits that each gets alone; tried once for a loaded model."""
    if model not in _batching:
        _batching[model] = _try_batching(model)
    return _batching[model]


def _try_batching(model: Model) -> Batching:
    long, short = make_trial_rows(model)
    alone = _generate_logits(model, [short])
    trials: tuple[tuple[Batching, list[int]], ...] = (("padded", long), ("one length", short[::-1]))
    for batching, other in trials:
        try:
            if logits_agree(_generate_logits(model, [other, short])[1:], alone):
                return batching
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
    return "alone"


def _generate_logits(model: Model, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits (rows, TRIAL_TOKENS, vocabulary), every row going on with the same tokens."""
    kept: list[Tensor] = []

    def choose(logits: Tensor) -> list[int]:
        kept.append(logits.clone())
        return [len(kept)] * len(prompts)

    run_generate(model, prompts, TRIAL_TOKENS, choose, lambda: [False] * len(prompts))
    return torch.stack(kept, 1)
