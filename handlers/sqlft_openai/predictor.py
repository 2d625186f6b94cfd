"""Asking: a window of requests under way, answers handed on as they come."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlft.handler import Completion, Piece, Predictor, Request
from sqlft_openai.address import address_of
from sqlft_openai.asking import Asking
from sqlft_openai.engines import Engine
from sqlft_openai.line import line
from sqlft_openai.options import EngineOptions, PredictOptions

DRAIN_SECONDS = 5.0
"""How long answers that are under way are waited for when no more can be asked."""


class HostedPredictor(Predictor):
    """At most `max_concurrency` requests are pulled and not handed on."""

    def __init__(
        self,
        engine: Engine,
        options: EngineOptions,
        model: str,
        asked: PredictOptions,
        schema: Mapping[str, Any] | None,
    ) -> None:
        self._line = line()
        self._window = options.max_concurrency
        address = address_of(engine, options)
        rates = self._line.rates(address, model, options)
        self._asking = Asking(self._line, address, rates, options, model, asked, schema)
        self._told: queue.SimpleQueue[Completion | Piece | BaseException] = queue.SimpleQueue()
        self._under_way: dict[int, Any] = {}

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Piece]:
        """Completions as they come; raises HandlerError once what was under way has been handed on."""
        waiting = iter(requests)
        more = True
        while True:
            while more and len(self._under_way) < self._window:
                request = next(waiting, None)
                if request is None:
                    more = False
                else:
                    self._start(request)
            if not self._under_way:
                return
            yield from self._taken(self._told.get())

    def close(self) -> None:
        """Give up what is still under way."""
        for future in self._under_way.values():
            future.cancel()
        self._under_way.clear()

    def _taken(self, told: Completion | Piece | BaseException) -> Iterator[Completion | Piece]:
        if isinstance(told, BaseException):
            yield from self._drained()
            raise told
        if isinstance(told, Completion):
            self._under_way.pop(told.id, None)
        yield told

    def _drained(self) -> Iterator[Completion | Piece]:
        """Answers that still come after the end; nothing new is sent."""
        self._asking.stop()
        while self._under_way:
            try:
                told = self._told.get(timeout=DRAIN_SECONDS)
            except queue.Empty:
                return
            if isinstance(told, Completion):
                self._under_way.pop(told.id, None)
                yield told

    def _start(self, request: Request) -> None:
        self._under_way[request.id] = self._line.run(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            self._told.put(await self._asking.answer(request, self._told.put))
        except BaseException as e:
            self._told.put(e)
