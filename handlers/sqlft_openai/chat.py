"""A window of requests under way, answers handed on as they come."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from sqlft.handler import Completion, Piece, Predictor, Request
from sqlft_openai import bodies
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Asking, Line, Sent, about
from sqlft_openai.options import PredictOptions
from sqlft_openai.prices import Spending

PATH = "/chat/completions"
USUAL_ANSWER = 256
"""Tokens that an answer without a limit is thought to take."""


class Chat:
    """What the conversations of one statement share; used in the line's thread only."""

    def __init__(self, asking: Asking, options: PredictOptions, schema: Mapping[str, Any] | None) -> None:
        self._asking, self._options = asking, options
        engine = asking.address.engine
        self._form = bodies.Form(engine, asking.model, options, schema)
        self._spending = Spending(engine, asking.model)

    async def answer(self, request: Request, tell: Callable[[Piece], None], mark: Any) -> Completion:
        """The completion, or the row's error; raises HandlerError where no row can be answered."""
        limit = self._options.max_tokens or USUAL_ANSWER
        tokens = about([m.content for m in request.messages], limit)
        told: list[str] = []

        def hand_on(text: str) -> None:
            told.append(text)
            tell(Piece(request.id, text))

        async def read(lines: AsyncIterator[str]) -> bodies.Answer:
            return await bodies.streamed(lines, self._asking.address, hand_on if not told else _nobody)

        form = self._form
        sent = Sent(
            PATH, lambda: form.body(request.messages, stream=request.stream and not self._options.logprobs), tokens
        )
        try:
            if request.stream and not self._options.logprobs:  # a stream's would have to be put together
                answer = await self._asking.stream(sent, read, form.adapt, mark)
            else:
                answer = await self._asking.ask(sent, self._read, form.adapt, mark)
        except Fault as fault:
            return self._failed(request, fault)
        spent = answer.spent
        if spent.input is not None and spent.output is not None:
            self._asking.correct(spent.input + spent.output - tokens)
        return Completion(request.id, answer.text, None, *self._counted(spent), answer.logprob, answer.truncated)

    def _read(self, content: bytes) -> bodies.Answer:
        return bodies.answer_of(content, self._asking.address)

    def _failed(self, request: Request, fault: Fault) -> Completion:
        """The row's error; an answer that was withheld has been paid all the same."""
        spent = fault.spent if isinstance(fault.spent, bodies.Spent) else bodies.Spent()
        return Completion(request.id, None, fault.row_error(), *self._counted(spent))

    def _counted(self, spent: bodies.Spent) -> tuple[int | None, int | None, int | None, float | None]:
        return spent.input, spent.output, spent.cached, self._spending.cost(spent)


def _nobody(text: str) -> None:
    """Pieces that were shown before the stream broke are not shown again."""


DRAIN_SECONDS = 5.0
"""How long answers that are under way are waited for when no more can be asked."""


class Mark:
    """Where a request is."""

    def __init__(self) -> None:
        self.sent = False
        self.task: asyncio.Task[None] | None = None


class Ended(NamedTuple):
    """A request that gets no completion: called off, or with what makes all requests pointless."""

    id: int
    error: BaseException | None = None


class HostedPredictor(Predictor):
    """At most `window` requests are pulled and not handed on."""

    def __init__(self, line: Line, asking: Asking, chat: Chat, window: int) -> None:
        self._line, self._asking, self._chat, self._window = line, asking, chat, window
        self._told: queue.SimpleQueue[Completion | Piece | Ended] = queue.SimpleQueue()
        self._under_way: dict[int, Mark] = {}
        self._ready: deque[Completion | Piece | BaseException] = deque()
        """Told and not yet handed on."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Piece]:
        """Completions as they come; raises HandlerError once what was under way has been handed on."""
        waiting = iter(requests)
        more = True
        try:
            while True:
                if more and (free := self._window - len(self._under_way)) > 0:
                    taken = list(islice(waiting, free))
                    more = len(taken) == free
                    self._start(taken)
                if not self._under_way and not self._ready:
                    return
                told = self._next(None)
                if isinstance(told, BaseException):
                    self._stop()
                    yield from self._rest(DRAIN_SECONDS)
                    raise told
                yield told
        except GeneratorExit:
            self._stop()
            raise

    def rest(self) -> Iterator[Completion]:
        """Answers that are still under way after predict was closed; nothing new is sent."""
        self._stop()
        yield from self._rest(None)

    def close(self) -> None:
        """Give up what is still under way."""
        self._asking.stopped = True
        marks = list(self._under_way.values())
        self._under_way.clear()
        self._line.loop.call_soon_threadsafe(_cancel, marks, True)

    def _next(self, timeout: float | None) -> Completion | Piece | BaseException:
        """What is told next, what is raised after all that is answered; queue.Empty if there is nothing."""
        while not self._ready:
            self._sort(self._told.get(timeout=timeout))
            while not self._told.empty():
                self._sort(self._told.get())
            if not self._ready and not self._under_way:
                raise queue.Empty  # all was called off
        found = self._ready.popleft()
        if isinstance(found, Completion):
            del self._under_way[found.id]
        return found

    def _sort(self, told: Completion | Piece | Ended) -> None:
        if isinstance(told, Ended):
            self._under_way.pop(told.id, None)
            if told.error is not None:
                self._ready.append(told.error)
        elif isinstance(told, Piece) or told.id in self._under_way:
            self._ready.append(told)

    def _rest(self, seconds: float | None) -> Iterator[Completion]:
        while self._under_way:
            try:
                told = self._next(seconds)
            except queue.Empty:
                return
            if isinstance(told, Completion):
                yield told

    def _start(self, requests: list[Request]) -> None:
        begun = [(request, Mark()) for request in requests]
        self._under_way.update((request.id, mark) for request, mark in begun)
        if begun:
            self._line.loop.call_soon_threadsafe(self._begin, begun)

    def _begin(self, begun: list[tuple[Request, Mark]]) -> None:
        """In the line's thread."""
        for request, mark in begun:
            mark.task = self._line.loop.create_task(self._answer(request, mark))

    async def _answer(self, request: Request, mark: Mark) -> None:
        try:
            self._told.put(await self._chat.answer(request, self._told.put, mark))
        except asyncio.CancelledError:
            self._told.put(Ended(request.id))
        except BaseException as e:
            self._told.put(Ended(request.id, e))

    def _stop(self) -> None:
        """Send nothing more; what is on its way goes on."""
        self._asking.stopped = True
        self._line.loop.call_soon_threadsafe(_cancel, list(self._under_way.values()), False)


def _cancel(marks: list[Mark], sent: bool) -> None:
    """In the line's thread; those that are on their way only if `sent`."""
    for mark in marks:
        if mark.task is not None and (sent or not mark.sent):
            mark.task.cancel()
