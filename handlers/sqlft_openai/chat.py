"""A window of requests under way, answers handed on as they come."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from sqlft.handler import Completion, Delta, Predictor, Request, estimate_tokens
from sqlft_openai import bodies
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import InferenceClient, OutgoingRequest, TransportThread
from sqlft_openai.options import PredictOptions
from sqlft_openai.prices import CostCalculator

CHAT_PATH = "/chat/completions"
DEFAULT_ANSWER_TOKENS = 256
"""Tokens that an answer without a limit is thought to take."""


class ChatCompletions:
    """What the conversations of one statement share; used in the transport thread only."""

    def __init__(self, client: InferenceClient, options: PredictOptions, schema: Mapping[str, Any] | None) -> None:
        self._client, self._options = client, options
        provider = client.address.provider
        self._builder = bodies.RequestBuilder(provider, client.model, options, schema)
        self._costs = CostCalculator(provider, client.model)

    async def complete(self, request: Request, emit: Callable[[Delta], None], state: Any) -> Completion:
        """The completion, or the row's error; raises HandlerError where no row can be answered."""
        limit = self._options.max_tokens or DEFAULT_ANSWER_TOKENS
        tokens = sum(estimate_tokens(m.content) for m in request.messages) + limit
        shown: list[str] = []

        def show_piece(text: str) -> None:
            shown.append(text)
            emit(Delta(request.id, text))

        async def read(lines: AsyncIterator[str]) -> bodies.ParsedAnswer:
            return await bodies.read_stream(lines, self._client.address, show_piece if not shown else _ignore_piece)

        builder = self._builder
        outgoing = OutgoingRequest(
            CHAT_PATH,
            lambda: builder.build(request.messages, stream=request.stream and not self._options.logprobs),
            tokens,
        )
        try:
            if request.stream and not self._options.logprobs:  # a stream's would have to be put together
                answer = await self._client.stream(outgoing, read, builder.adapt, state)
            else:
                answer = await self._client.send(outgoing, self._read, builder.adapt, state)
        except RequestError as error:
            return self._make_failed_completion(request, error)
        usage = answer.usage
        if usage.input is not None and usage.output is not None:
            self._client.correct_tokens(usage.input + usage.output - tokens)
        return Completion(request.id, answer.text, None, *self._count_tokens(usage), answer.logprob, answer.truncated)

    def _read(self, content: bytes) -> bodies.ParsedAnswer:
        return bodies.parse_answer(content, self._client.address)

    def _make_failed_completion(self, request: Request, error: RequestError) -> Completion:
        """The row's error; an answer that was withheld has been paid all the same."""
        usage = error.usage if isinstance(error.usage, bodies.TokenUsage) else bodies.TokenUsage()
        return Completion(request.id, None, error.to_row_error(), *self._count_tokens(usage))

    def _count_tokens(self, usage: bodies.TokenUsage) -> tuple[int | None, int | None, int | None, float | None]:
        return usage.input, usage.output, usage.cached, self._costs.calculate(usage)


def _ignore_piece(text: str) -> None:
    """Pieces that were shown before the stream broke are not shown again."""


DRAIN_SECONDS = 5.0
"""How long answers that are under way are waited for when no more can be asked."""


class RequestState:
    """Where a request is."""

    def __init__(self) -> None:
        self.is_sent = False
        self.task: asyncio.Task[None] | None = None


class EndedRequest(NamedTuple):
    """A request that gets no completion: called off, or with what makes all requests pointless."""

    id: int
    error: BaseException | None = None


class HostedPredictor(Predictor):
    """At most `window` requests are pulled and not handed on."""

    def __init__(self, thread: TransportThread, client: InferenceClient, chat: ChatCompletions, window: int) -> None:
        self._thread, self._client, self._chat, self._window = thread, client, chat, window
        self._events: queue.SimpleQueue[Completion | Delta | EndedRequest] = queue.SimpleQueue()
        self._in_flight: dict[int, RequestState] = {}
        self._ready: deque[Completion | Delta | BaseException] = deque()
        """Received and not yet handed on."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions as they come; raises HandlerError once what was under way has been handed on."""
        waiting = iter(requests)
        more = True
        try:
            while True:
                if more and (free := self._window - len(self._in_flight)) > 0:
                    batch = list(islice(waiting, free))
                    more = len(batch) == free
                    self._submit(batch)
                if not self._in_flight and not self._ready:
                    return
                event = self._next_event(None)
                if isinstance(event, BaseException):
                    self._stop()
                    yield from self._drain(DRAIN_SECONDS)
                    raise event
                yield event
        except GeneratorExit:
            self._stop()
            raise

    def drain(self) -> Iterator[Completion]:
        """Answers that are still under way after predict was closed; nothing new is sent."""
        self._stop()
        yield from self._drain(None)

    def close(self) -> None:
        """Give up what is still under way."""
        self._client.stopped = True
        states = list(self._in_flight.values())
        self._in_flight.clear()
        self._thread.loop.call_soon_threadsafe(_cancel, states, True)

    def _next_event(self, timeout: float | None) -> Completion | Delta | BaseException:
        """What comes next, or what is raised after all that is answered; queue.Empty if there is nothing."""
        while not self._ready:
            self._dispatch(self._events.get(timeout=timeout))
            while not self._events.empty():
                self._dispatch(self._events.get())
            if not self._ready and not self._in_flight:
                raise queue.Empty  # all was called off
        event = self._ready.popleft()
        if isinstance(event, Completion):
            del self._in_flight[event.id]
        return event

    def _dispatch(self, event: Completion | Delta | EndedRequest) -> None:
        if isinstance(event, EndedRequest):
            self._in_flight.pop(event.id, None)
            if event.error is not None:
                self._ready.append(event.error)
        elif isinstance(event, Delta) or event.id in self._in_flight:
            self._ready.append(event)

    def _drain(self, seconds: float | None) -> Iterator[Completion]:
        while self._in_flight:
            try:
                event = self._next_event(seconds)
            except queue.Empty:
                return
            if isinstance(event, Completion):
                yield event

    def _submit(self, requests: list[Request]) -> None:
        started = [(request, RequestState()) for request in requests]
        self._in_flight.update((request.id, state) for request, state in started)
        if started:
            self._thread.loop.call_soon_threadsafe(self._create_tasks, started)

    def _create_tasks(self, started: list[tuple[Request, RequestState]]) -> None:
        """In the transport thread."""
        for request, state in started:
            state.task = self._thread.loop.create_task(self._answer(request, state))

    async def _answer(self, request: Request, state: RequestState) -> None:
        try:
            self._events.put(await self._chat.complete(request, self._events.put, state))
        except asyncio.CancelledError:
            self._events.put(EndedRequest(request.id))
        except BaseException as e:
            self._events.put(EndedRequest(request.id, e))

    def _stop(self) -> None:
        """Send nothing more; what is on its way goes on."""
        self._client.stopped = True
        self._thread.loop.call_soon_threadsafe(_cancel, list(self._in_flight.values()), False)


def _cancel(states: list[RequestState], with_sent: bool) -> None:
    """In the transport thread; those that are on their way only if `with_sent`."""
    for state in states:
        if state.task is not None and (with_sent or not state.is_sent):
            state.task.cancel()
