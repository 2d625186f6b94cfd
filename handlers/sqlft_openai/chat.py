"""A window of requests under way, answers handed on as they come."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sqlft.handler import Completion, Delta, Predictor, Request, estimate_tokens
from sqlft_openai.bodies import ParsedAnswer, RequestBuilder, parse_answer, read_stream
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import JsonObject
from sqlft_openai.http.servers import Server
from sqlft_openai.http.transport import InferenceClient, OutgoingRequest, RequestState, TransportThread
from sqlft_openai.options import PredictOptions
from sqlft_openai.prices import CostCalculator

if TYPE_CHECKING:
    import httpx2

CHAT_PATH = "/chat/completions"
DEFAULT_ANSWER_TOKENS = 256
"""Tokens that an answer without a limit is estimated to take."""


class ChatCompletions:
    """What the conversations of one statement share; used in the transport thread only."""

    def __init__(self, client: InferenceClient, options: PredictOptions, schema: JsonObject | None) -> None:
        self._client, self._options, self._schema = client, options, schema
        self._builders: dict[Server, RequestBuilder] = {}
        """What one server does not take, another of an earlier version may."""
        self._costs = CostCalculator(client.provider, client.model)

    async def complete(self, request: Request, emit: Callable[[Delta], None], state: RequestState) -> Completion:
        """The completion, or the row's error; raises HandlerError where no row can be answered."""
        limit = self._options.max_tokens or DEFAULT_ANSWER_TOKENS
        tokens = sum(estimate_tokens(m.content) for m in request.messages) + limit
        streams = request.stream and not self._options.logprobs  # a stream's would have to be put together
        has_shown, revision = False, 0

        def make_body(server: Server) -> JsonObject:
            nonlocal revision
            builder = self._get_builder(server)
            revision = builder.revision
            return builder.build(request.messages, stream=streams)

        def adapt(error: RequestError, server: Server) -> bool:
            return self._get_builder(server).adapt(error, revision)

        def show_piece(text: str) -> None:
            nonlocal has_shown
            has_shown = True
            emit(Delta(request.id, text))

        async def read(response: httpx2.Response, server: Server) -> ParsedAnswer:
            if streams:
                emit_piece = _ignore_piece if has_shown else show_piece
                answer = await read_stream(response.aiter_lines(), server.address, emit_piece)
            else:
                answer = parse_answer(await response.aread(), server.address)
            if answer.usage.input is not None and answer.usage.output is not None:
                server.state.limiter.correct_tokens(answer.usage.input + answer.usage.output - tokens)
            return answer

        try:
            outgoing = OutgoingRequest(CHAT_PATH, make_body, tokens, streams)
            answer = await self._client.send(outgoing, read, adapt, state)
        except RequestError as error:  # an answer that was withheld has been paid all the same
            cost = self._costs.calculate(error.usage)
            return Completion(request.id, None, error.to_row_error(), *error.usage, cost)
        cost = self._costs.calculate(answer.usage)
        more = (answer.logprob, answer.truncated, answer.reasoning)
        return Completion(request.id, answer.text, None, *answer.usage, cost, *more)

    def _get_builder(self, server: Server) -> RequestBuilder:
        if server not in self._builders:
            self._builders[server] = RequestBuilder(
                self._client.provider, self._client.model, self._options, self._schema
            )
        return self._builders[server]


def _ignore_piece(text: str) -> None:
    """Pieces that were shown before the stream broke are not shown again."""


DRAIN_SECONDS = 5.0
"""How long answers that are under way are waited for when no more can be asked."""


class EndedRequest(NamedTuple):
    """A request that gets no completion: called off, or with what makes all requests pointless."""

    id: int
    error: BaseException | None = None


class HostedPredictor(Predictor):
    """At most `window` requests are pulled and not handed on."""

    def __init__(self, thread: TransportThread, client: InferenceClient, chat: ChatCompletions) -> None:
        self._thread, self._client, self._chat, self._window = thread, client, chat, client.window
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
