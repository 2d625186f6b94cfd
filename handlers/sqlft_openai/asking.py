"""One request to its answer: sent, and sent again where that may help."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from sqlft.handler import Completion, Piece, Request
from sqlft_openai import bodies, faults
from sqlft_openai.address import Address
from sqlft_openai.faults import Fault
from sqlft_openai.line import Line
from sqlft_openai.options import EngineOptions, PredictOptions
from sqlft_openai.rates import Rates

MAX_RETRIES = 10
PATH = "/chat/completions"


class Asking:
    """What the requests of one statement share."""

    def __init__(
        self,
        line: Line,
        address: Address,
        rates: Rates,
        options: EngineOptions,
        model: str,
        asked: PredictOptions,
        schema: Mapping[str, Any] | None,
    ) -> None:
        self._line, self._address, self._rates, self._options, self._model = line, address, rates, options, model
        self._body = bodies.parameters(address.engine, model, asked, schema)
        self._described = schema if address.engine.schema == "json_object" else None
        self._stopped = False

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True

    async def answer(self, request: Request, tell: Callable[[Piece], None]) -> Completion:
        """The completion, after as many tries as it takes; raises HandlerError where no row can be answered."""
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._once(request)
            except Fault as fault:
                if not fault.passing or tries > MAX_RETRIES:
                    return Completion(request.id, error=fault.row_error(tries))
                await asyncio.sleep(min(8.0, 0.1 * 2**tries) * (0.5 + random.random() / 2))
                continue
            spent = answer.spent
            return Completion(
                request.id,
                answer.text,
                input_tokens=spent.input,
                output_tokens=spent.output,
                cached_tokens=spent.cached,
            )

    async def _once(self, request: Request) -> bodies.Answer:
        body = {**self._body, "messages": bodies.messages(request.messages, self._described)}
        content = json.dumps(body).encode("utf-8", "replace")
        http = self._line.client(self._address)
        try:
            async with asyncio.timeout(self._options.timeout):
                response = await http.post(
                    self._address.url(PATH, self._model),
                    content=content,
                    headers={**self._address.headers, "Content-Type": "application/json"},
                    timeout=self._options.timeout,
                )
        except Exception as e:
            found = faults.of_exception(e, self._address, self._options.timeout)
            raise found from None
        if response.status_code >= 300:
            raise faults.of_status(response.status_code, response.headers, response.content, self._address, self._model)
        return bodies.answer_of(response.content, self._address)
