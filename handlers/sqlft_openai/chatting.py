"""Conversations to completions: bodies made, adapted to what the provider takes, answers priced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from sqlft.handler import Completion, Piece, Request
from sqlft_openai import bodies
from sqlft_openai.asking import Asking, Sent, about
from sqlft_openai.faults import Fault
from sqlft_openai.options import PredictOptions
from sqlft_openai.spending import Spending

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
