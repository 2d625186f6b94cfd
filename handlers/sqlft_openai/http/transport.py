"""One request to its answer: the event loop's thread, a turn among others, and sent again where that may help.

Each request is logged at DEBUG, without its secrets.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode
from urllib.request import getproxies_environment

from sqlft.errors import HandlerError, ProviderError
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import Fault, NoPath
from sqlft_openai.http.limits import Rates, retry_after
from sqlft_openai.options import EngineOptions

IDLE_SECONDS = 30.0


class Line:
    """A loop in a thread of its own, with its connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._clients: dict[tuple[tuple[str, str], ...], Any] = {}
        """By the proxies of the environment, which are read once."""
        self._rates: dict[tuple[Any, ...], Rates] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self.loop.run_forever, name="sqlft-openai", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start work in the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def client(self, address: Address) -> Any:
        """The HTTP client of the official package that reaches the address; called in the loop."""
        proxies = () if address.local else tuple(getproxies_environment().items())
        if proxies not in self._clients:
            self._clients[proxies] = _http(trust_env=not address.local)
        return self._clients[proxies]

    def rates(self, address: Address, model: str, options: EngineOptions) -> Rates:
        """What is known of this model's rates for this key."""
        ceilings = (options.requests_per_minute, options.tokens_per_minute)
        key = (address.base, address.key, model, *ceilings)
        with self._lock:
            if key not in self._rates:
                self._rates[key] = Rates(*ceilings)
            return self._rates[key]

    def close(self) -> None:
        """Hang up; at the end of the process."""
        try:
            self.run(self._close()).result(1.0)
        except Exception:  # the process ends anyway
            return

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


_LINES: dict[int, Line] = {}
_LOCK = threading.Lock()


def line() -> Line:
    """This process's line; a fork gets its own."""
    with _LOCK:
        if os.getpid() not in _LINES:
            _LINES.clear()
            _LINES[os.getpid()] = made = Line()
            atexit.register(made.close)
        return _LINES[os.getpid()]


def _http(*, trust_env: bool) -> Any:
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
    given: dict[str, Any] = {"trust_env": trust_env, "limits": limits, "follow_redirects": False}
    try:
        return openai.DefaultAioHttpClient(**given)
    except RuntimeError:  # without aiohttp it works too, at two thirds of the speed
        return openai.DefaultAsyncHttpx2Client(**given)


UPLOAD_SECONDS = 1800.0
TRIES = 6
MOST_WAIT = 30.0
T = TypeVar("T")
Pause = Callable[[float], None]
"""Waits so many seconds, and raises Cancelled when it shall not."""


class Api:
    """Requests to one account; `pause` is called between tries."""

    def __init__(self, address: Address, options: EngineOptions, pause: Pause = time.sleep, model: str = "") -> None:
        self.address, self._timeout, self._pause, self._model = address, options.timeout, pause, model
        self._base: str | None = None

    def get(self, path: str, **query: Any) -> Any:
        """The JSON behind a path; tried again where that may help."""
        return self.patiently(lambda: self.once("GET", path, query=query))

    def post(self, path: str, body: Any = None) -> Any:
        """What a request does that may be sent twice; tried again where that may help."""
        return self.patiently(lambda: self.once("POST", path, body=body))

    def upload(self, path: str, content: bytes, name: str, **fields: str) -> Any:
        """A file as multipart/form-data; one request and no more."""
        return self.once("POST", path, file=(name, content), fields=fields)

    def content(self, path: str) -> bytes:
        """The bytes behind a path."""
        return self.patiently(lambda: self._bytes("GET", path, {}))

    def text(self, method: str, path: str, body: Any) -> str:
        """The answer to JSON, where it is text; one request and no more."""
        headers = {"Content-Type": "application/json"}
        return self._bytes(method, path, {"content": json.dumps(body).encode(), "headers": headers}).decode()

    def patiently(self, work: Callable[[], T]) -> T:
        """Do it until it succeeds or fails for good; the last Fault after TRIES."""
        tried = 0
        while True:
            tried += 1
            try:
                return work()
            except Fault as fault:
                if not fault.passing or tried == TRIES:
                    raise
                self._pause(_wait_of(fault, tried))

    def once(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        file: tuple[str, bytes] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Any:
        """One request and no more; Fault with its status, or HandlerError where nothing can succeed."""
        sent: dict[str, Any] = {}
        if file is not None:
            sent = {"data": dict(fields or {}), "files": {"file": (*file, "application/jsonl")}}
        elif body is not None:
            sent = {
                "content": json.dumps(body).encode("utf-8", "replace"),
                "headers": {"Content-Type": "application/json"},
            }
        content = self._bytes(method, path, sent, query)
        try:
            return json.loads(content) if content.strip() else {}
        except ValueError:
            shown = self.address.clean(content.decode("utf-8", "replace"), 80)
            title = self.address.engine.title
            raise Fault("malformed", f"{title} answered with no JSON: {shown!r}", True) from None

    def _bytes(self, method: str, path: str, sent: dict[str, Any], query: Mapping[str, Any] | None = None) -> bytes:
        response = None
        for base in (self._base,) if self._base else self.address.bases:
            response = self._response(method, self._url(base, path, query), sent)
            if response.status_code not in (404, 405):
                self._base = base
                break
        assert response is not None
        if response.status_code >= 300:
            raise _fault_of(response, self.address, self._model)
        return bytes(response.content)

    def _url(self, base: str, path: str, query: Mapping[str, Any] | None) -> str:
        asked = urlencode({k: v for k, v in (query or {}).items() if v is not None})
        whole = f"{base if path.startswith('/') else ''}{path}{self.address.query}"
        return f"{whole}{'&' if '?' in whole else '?'}{asked}" if asked else whole

    def _response(self, method: str, url: str, sent: dict[str, Any]) -> Any:
        timeout = UPLOAD_SECONDS if "files" in sent else self._timeout
        headers = {**self.address.headers, **sent.get("headers", {})}

        async def go() -> Any:
            http = line().client(self.address)
            with logged(method, url, self.address) as answered:
                response = await http.request(method, url, **{**sent, "headers": headers}, timeout=timeout)
                answered(response)
                return response

        try:
            return line().run(go()).result()
        except Exception as e:
            raise errors.of_exception(e, self.address, timeout) from None


def _fault_of(response: Any, address: Address, model: str) -> BaseException:
    status = response.status_code
    found = errors.of_status(status, response.headers, response.content, address, model)
    if isinstance(found, Fault):
        found.after = retry_after(response.headers)
        return found
    if status in (404, 405):  # there may be no such job, or no such path: who asks knows
        return Fault("not_found", f"{address.engine.title} says: {_said(response, address)}", False, status)
    return found


def _said(response: Any, address: Address) -> str:
    """The provider's own words, or the status."""
    try:
        error = errors.error_in(json.loads(response.content)) or {}
    except ValueError:
        error = {}
    return address.clean(str(error.get("message") or f"status {response.status_code}"))


def _wait_of(fault: Fault, tried: int) -> float:
    if fault.after is not None:
        return min(fault.after, 600.0)
    return min(MOST_WAIT, 0.25 * float(2**tried)) * (0.5 + random.random() / 2)


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
            raise errors.unreachable(fault)
        if fault.dropped and not self._answered and failed >= FIRST_DROPS:
            raise errors.always_dropped(fault, self.address)
        if not fault.passing or failed > most:
            if fault.unreachable and self._answered == answered:
                raise errors.unreachable(fault)
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
        return errors.of_exception(error, self.address, self._timeout)

    def _check(self, status: int, headers: Mapping[str, str], content: bytes, serial: int) -> None:
        if status < 300:
            self._rates.answered(serial, headers)
            return
        fault = errors.of_status(status, headers, content, self.address, self.model)
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


LOGGER = logging.getLogger("sqlft")


@contextmanager
def logged(method: str, url: str, address: Address) -> Iterator[Callable[[Any], None]]:
    """Log the request that the block sends, which hands over the response as soon as it has its head."""
    began, head = time.monotonic(), "no answer"

    def answered(response: Any) -> None:
        nonlocal head
        headers = response.headers
        request_id = headers.get("x-request-id") or headers.get("apim-request-id") or headers.get("request-id")
        head = f"{response.status_code}{f', request id {request_id}' if request_id else ''}"

    failure = ""
    try:
        yield answered
    except BaseException as e:
        failure = f", {type(e).__name__}: {e}"
        raise
    finally:
        if LOGGER.isEnabledFor(logging.DEBUG):
            said = f"{method} {url}: {head}{failure}"
            LOGGER.debug("%s, %.3f s", address.clean(said, 2000), time.monotonic() - began)
