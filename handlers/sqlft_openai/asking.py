"""One request to its answer: sent when its turn comes, and sent again where that may help."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlft.errors import HandlerError, ProviderError
from sqlft_openai import faults
from sqlft_openai.address import Address
from sqlft_openai.faults import Fault, NoPath
from sqlft_openai.line import Line
from sqlft_openai.log import logged
from sqlft_openai.options import EngineOptions
from sqlft_openai.rates import retry_after

T = TypeVar("T")
MAX_RETRIES = 10
"""Where the user says nothing; being refused while others are answered is then no failure."""
FIRST_TRIES = 3
"""An address that never answered is given up after so many."""
FIRST_DROPS = 5
"""One that answers nothing but drops connections, after so many."""
LONGEST_PAUSE = 8.0
LONGEST_WAIT = 600.0
"""A provider that wants to be left alone for longer ends the statement."""
SHARE_OF_PATIENCE = 0.9
"""A request may take this share of the time in which the statement wants an answer."""


class Sent(NamedTuple):
    """What is sent: a path, a body, and about how many tokens it will take."""

    path: str
    body: Callable[[], Mapping[str, Any]]
    """Made anew for each try, since what a provider does not take is left out."""
    tokens: float = 0.0


class Asking:
    """What the requests of one statement share; used in the line's thread only, but for `stop`."""

    def __init__(
        self,
        line: Line,
        address: Address,
        options: EngineOptions,
        model: str,
        max_retries: int | None = None,
        patience: float | None = None,
    ) -> None:
        self.address, self.model = address, model
        self._line, self._rates = line, line.rates(address, model, options)
        self._max_retries = max_retries
        self._timeout = min(options.timeout, patience * SHARE_OF_PATIENCE if patience else options.timeout)
        self._base = address.base
        self._headers = {**address.headers, "Content-Type": "application/json"}
        self._answered = 0
        self.stopped = False

    async def ask(self, sent: Sent, read: Callable[[bytes], T], adapt: Callable[[Fault], bool], mark: Any) -> T:
        """What `read` makes of the answer, after as many tries as it takes.

        Raises Fault for this request alone and HandlerError where none can be answered.  `adapt` may change what is
        sent after a 400; `mark.sent` is true while a request is on its way.
        """
        made: T = await self._tried(sent, lambda serial: self._once(sent, read, serial), adapt, mark)
        return made

    async def stream(
        self, sent: Sent, read: Callable[[AsyncIterator[str]], Any], adapt: Callable[[Fault], bool], mark: Any
    ) -> Any:
        """As `ask`, for an answer that comes line by line; `read` is a coroutine over its lines."""
        return await self._tried(sent, lambda serial: self._streamed(sent, read, serial), adapt, mark)

    async def _tried(self, sent: Sent, once: Callable[[int], Any], adapt: Callable[[Fault], bool], mark: Any) -> Any:
        tries = failed = 0
        answered = self._answered
        while True:
            serial = await self._rates.turn(sent.tokens)
            tries += 1
            mark.sent = True
            try:
                made = await once(serial)
                self._answered += 1
                return made
            except asyncio.CancelledError:  # nobody will hear what became of it, and others may wait for that
                self._rates.lost(serial)
                raise
            except NoPath:
                if self._answered or self._base == self.address.bases[-1]:
                    raise
                self._base = self.address.bases[-1]
                continue
            except Fault as fault:
                mark.sent = False
                if self.stopped:
                    raise
                if adapt(fault):
                    continue
                if not fault.limited or self._max_retries is not None or self._answered == answered:
                    failed += 1
                self._give_up(fault, tries, failed, answered)
                answered = self._answered
                await self._pause(fault, failed)

    def _give_up(self, fault: Fault, tries: int, failed: int, answered: int) -> None:
        """Raise where asking again does not help, or is not allowed."""
        fault.tries = tries
        if fault.after is not None and fault.after > LONGEST_WAIT:
            raise ProviderError(
                f"{self.address.engine.title} wants to be left alone for {fault.after:g} seconds: {fault.message}",
                "Run it again then: what was answered is kept.",
            )
        most = MAX_RETRIES if self._max_retries is None else self._max_retries
        if fault.unreachable and not self._answered and failed >= min(FIRST_TRIES, most + 1):
            raise faults.unreachable(fault)
        if fault.dropped and not self._answered and failed >= FIRST_DROPS:
            raise faults.always_dropped(fault, self.address)
        if not fault.passing or failed > most:
            if fault.unreachable and self._answered == answered:
                raise faults.unreachable(fault)
            raise fault

    async def _pause(self, fault: Fault, failed: int) -> None:
        if fault.queued:  # its turn comes when the provider takes requests again
            return
        wait = min(LONGEST_PAUSE, 0.1 * 2 ** min(10, failed - 1)) * (0.5 + random.random() / 2)
        await asyncio.sleep(max(wait, fault.after or 0.0))

    async def _once(self, sent: Sent, read: Callable[[bytes], T], serial: int) -> T:
        url, content = self._url(sent.path), encoded(sent.body())
        try:
            with logged("POST", url, self.address) as answered:
                async with asyncio.timeout(self._timeout):
                    response = await self._line.client(self.address).post(
                        url, content=content, headers=self._headers, timeout=self._timeout
                    )
                answered(response)
        except Exception as e:
            raise self._fault(e, serial) from None
        self._check(response.status_code, response.headers, response.content, serial)
        try:
            return read(response.content)
        except Fault as fault:
            fault.request_id = fault.request_id or response.headers.get("x-request-id")
            raise

    async def _streamed(self, sent: Sent, read: Callable[[AsyncIterator[str]], Any], serial: int) -> Any:
        url, content = self._url(sent.path), encoded(sent.body())
        http = self._line.client(self.address)
        try:
            sending = http.stream("POST", url, content=content, headers=self._headers, timeout=self._timeout)
            with logged("POST", url, self.address) as answered:
                async with sending as response:
                    answered(response)
                    whole = await response.aread() if response.status_code >= 300 else b""
                    self._check(response.status_code, response.headers, whole, serial)
                    return await read(response.aiter_lines())
        except (Fault, HandlerError):
            raise
        except Exception as e:
            raise self._fault(e, serial) from None

    def _url(self, path: str) -> str:
        return self.address.url(path, self.model, self._base)

    def _fault(self, error: Exception, serial: int) -> Exception:
        self._rates.lost(serial)
        return faults.of_exception(error, self.address, self._timeout)

    def _check(self, status: int, headers: Mapping[str, str], content: bytes, serial: int) -> None:
        if status < 300:
            self._rates.answered(serial, headers)
            return
        fault = faults.of_status(status, headers, content, self.address, self.model)
        if isinstance(fault, Fault):
            fault.after = retry_after(headers)
            if fault.limited:
                fault.queued = self._rates.refused(serial, headers, fault.after)
                raise fault
        self._rates.lost(serial)
        raise fault

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than was thought."""
        self._rates.correct(tokens)


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON as it is sent; half a surrogate pair becomes a question mark."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def about(texts: Sequence[str], answer: float) -> float:
    """Tokens that texts and an answer take, guessed."""
    return sum(map(len, texts)) / 4 + answer
