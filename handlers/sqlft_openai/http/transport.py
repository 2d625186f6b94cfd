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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode
from urllib.request import getproxies_environment

from sqlft.errors import HandlerError, ProviderError
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import PathNotFound, RequestError
from sqlft_openai.http.limits import RateLimiter, parse_retry_after
from sqlft_openai.options import EngineOptions

IDLE_SECONDS = 30.0


class TransportThread:
    """A loop in a thread of its own, with its connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._clients: dict[tuple[tuple[str, str], ...], Any] = {}
        """By the proxies of the environment, which are read once."""
        self._limiters: dict[tuple[Any, ...], RateLimiter] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self.loop.run_forever, name="sqlft-openai", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start work in the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def get_http_client(self, address: Address) -> Any:
        """The HTTP client of the official package that reaches the address; called in the loop."""
        proxies = () if address.is_local else tuple(getproxies_environment().items())
        if proxies not in self._clients:
            self._clients[proxies] = _make_http_client(trust_env=not address.is_local)
        return self._clients[proxies]

    def get_limiter(self, address: Address, model: str, options: EngineOptions) -> RateLimiter:
        """What is known of this model's rates for this key."""
        ceilings = (options.requests_per_minute, options.tokens_per_minute)
        key = (address.base, address.key, model, *ceilings)
        with self._lock:
            if key not in self._limiters:
                self._limiters[key] = RateLimiter(*ceilings)
            return self._limiters[key]

    def close(self) -> None:
        """Hang up; at the end of the process."""
        try:
            self.run(self._close()).result(1.0)
        except Exception:  # the process ends anyway
            return

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


_THREADS: dict[int, TransportThread] = {}
_LOCK = threading.Lock()


def get_transport_thread() -> TransportThread:
    """The thread of this process; a fork gets its own."""
    with _LOCK:
        if os.getpid() not in _THREADS:
            _THREADS.clear()
            _THREADS[os.getpid()] = made = TransportThread()
            atexit.register(made.close)
        return _THREADS[os.getpid()]


def _make_http_client(*, trust_env: bool) -> Any:
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
    given: dict[str, Any] = {"trust_env": trust_env, "limits": limits, "follow_redirects": False}
    try:
        return openai.DefaultAioHttpClient(**given)
    except RuntimeError:  # without aiohttp it works too, at two thirds of the speed
        return openai.DefaultAsyncHttpx2Client(**given)


UPLOAD_SECONDS = 1800.0
MAX_TRIES = 6
MAX_WAIT = 30.0
T = TypeVar("T")
PauseFunction = Callable[[float], None]
"""Waits so many seconds, and raises Cancelled when it shall not."""


class ApiClient:
    """Requests to one account; `pause` is called between tries."""

    def __init__(
        self, address: Address, options: EngineOptions, pause: PauseFunction = time.sleep, model: str = ""
    ) -> None:
        self.address, self._timeout, self._pause, self._model = address, options.timeout, pause, model
        self._base: str | None = None

    def get(self, path: str, **query: Any) -> Any:
        """The JSON behind a path; tried again where that may help."""
        return self.retry(lambda: self.send_once("GET", path, query=query))

    def post(self, path: str, body: Any = None) -> Any:
        """What a request does that may be sent twice; tried again where that may help."""
        return self.retry(lambda: self.send_once("POST", path, body=body))

    def upload(self, path: str, content: bytes, name: str, **fields: str) -> Any:
        """A file as multipart/form-data; one request and no more."""
        return self.send_once("POST", path, file=(name, content), fields=fields)

    def get_bytes(self, path: str) -> bytes:
        """The bytes behind a path."""
        return self.retry(lambda: self._fetch("GET", path, {}))

    def request_text(self, method: str, path: str, body: Any) -> str:
        """The answer to JSON, where it is text; one request and no more."""
        headers = {"Content-Type": "application/json"}
        return self._fetch(method, path, {"content": json.dumps(body).encode(), "headers": headers}).decode()

    def retry(self, work: Callable[[], T]) -> T:
        """Do it until it succeeds or fails for good; the last RequestError after MAX_TRIES."""
        tried = 0
        while True:
            tried += 1
            try:
                return work()
            except RequestError as error:
                if not error.is_transient or tried == MAX_TRIES:
                    raise
                self._pause(_get_retry_pause(error, tried))

    def send_once(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        file: tuple[str, bytes] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Any:
        """One request and no more; RequestError with its status, or HandlerError where nothing can succeed."""
        sent: dict[str, Any] = {}
        if file is not None:
            sent = {"data": dict(fields or {}), "files": {"file": (*file, "application/jsonl")}}
        elif body is not None:
            sent = {
                "content": json.dumps(body).encode("utf-8", "replace"),
                "headers": {"Content-Type": "application/json"},
            }
        content = self._fetch(method, path, sent, query)
        try:
            return json.loads(content) if content.strip() else {}
        except ValueError:
            shown = self.address.redact(content.decode("utf-8", "replace"), 80)
            title = self.address.provider.title
            raise RequestError("malformed", f"{title} answered with no JSON: {shown!r}", True) from None

    def _fetch(self, method: str, path: str, sent: dict[str, Any], query: Mapping[str, Any] | None = None) -> bytes:
        response = None
        for base in (self._base,) if self._base else self.address.bases:
            response = self._send_to(method, self._url(base, path, query), sent)
            if response.status_code not in (404, 405):
                self._base = base
                break
        assert response is not None
        if response.status_code >= 300:
            raise _make_error(response, self.address, self._model)
        return bytes(response.content)

    def _url(self, base: str, path: str, query: Mapping[str, Any] | None) -> str:
        asked = urlencode({k: v for k, v in (query or {}).items() if v is not None})
        whole = f"{base if path.startswith('/') else ''}{path}{self.address.query}"
        return f"{whole}{'&' if '?' in whole else '?'}{asked}" if asked else whole

    def _send_to(self, method: str, url: str, sent: dict[str, Any]) -> Any:
        timeout = UPLOAD_SECONDS if "files" in sent else self._timeout
        headers = {**self.address.headers, **sent.get("headers", {})}

        async def go() -> Any:
            http = get_transport_thread().get_http_client(self.address)
            with log_request(method, url, self.address) as answered:
                response = await http.request(method, url, **{**sent, "headers": headers}, timeout=timeout)
                answered(response)
                return response

        try:
            return get_transport_thread().run(go()).result()
        except Exception as e:
            raise errors.error_from_exception(e, self.address, timeout) from None


def _make_error(response: Any, address: Address, model: str) -> BaseException:
    status = response.status_code
    found = errors.error_from_status(status, response.headers, response.content, address, model)
    if isinstance(found, RequestError):
        found.retry_after = parse_retry_after(response.headers)
        return found
    if status in (404, 405):  # there may be no such job, or no such path: who asks knows
        return RequestError(
            "not_found", f"{address.provider.title} says: {_get_provider_message(response, address)}", False, status
        )
    return found


def _get_provider_message(response: Any, address: Address) -> str:
    """The provider's own words, or the status."""
    try:
        error = errors.find_error(json.loads(response.content)) or {}
    except ValueError:
        error = {}
    return address.redact(str(error.get("message") or f"status {response.status_code}"))


def _get_retry_pause(error: RequestError, tried: int) -> float:
    if error.retry_after is not None:
        return min(error.retry_after, 600.0)
    return min(MAX_WAIT, 0.25 * float(2**tried)) * (0.5 + random.random() / 2)


MAX_RETRIES = 10
"""Where the user says nothing; being refused while others are answered is then no failure."""
MAX_FIRST_TRIES = 3
"""An address that never answered is given up after so many."""
MAX_FIRST_DROPS = 5
"""One that answers nothing but drops connections, after so many."""
MAX_PAUSE = 8.0
MAX_RETRY_AFTER = 600.0
"""A provider that wants to be left alone for longer ends the statement."""
TIMEOUT_SHARE = 0.9
"""A request may take this share of the time in which the statement wants an answer."""


class OutgoingRequest(NamedTuple):
    """What is sent: a path, a body, and about how many tokens it will take."""

    path: str
    make_body: Callable[[], Mapping[str, Any]]
    """Called for each try, since what a provider does not take is left out."""
    tokens: float = 0.0


class InferenceClient:
    """What the requests of one statement share; used in the transport thread only, but for `stopped`."""

    def __init__(
        self,
        thread: TransportThread,
        address: Address,
        options: EngineOptions,
        model: str,
        max_retries: int | None = None,
        patience: float | None = None,
    ) -> None:
        self.address, self.model = address, model
        self._thread, self._limiter = thread, thread.get_limiter(address, model, options)
        self._max_retries = max_retries
        self._timeout = min(options.timeout, patience * TIMEOUT_SHARE if patience else options.timeout)
        self._base = address.base
        self._headers = {**address.headers, "Content-Type": "application/json"}
        self._answer_count = 0
        self.stopped = False

    async def send(
        self, request: OutgoingRequest, read: Callable[[bytes], T], adapt: Callable[[RequestError], bool], state: Any
    ) -> T:
        """What `read` makes of the answer, after as many tries as it takes.

        RequestError is for this request alone, HandlerError where none can be answered.  `adapt` may change what is
        sent after a 400; `state.is_sent` is true while a request is on its way.
        """
        made: T = await self._send_with_retries(
            request, lambda serial: self._send_once(request, read, serial), adapt, state
        )
        return made

    async def stream(
        self,
        request: OutgoingRequest,
        read: Callable[[AsyncIterator[str]], Any],
        adapt: Callable[[RequestError], bool],
        state: Any,
    ) -> Any:
        """As `send`, for an answer that comes line by line; `read` is a coroutine over its lines."""
        return await self._send_with_retries(
            request, lambda serial: self._stream_once(request, read, serial), adapt, state
        )

    async def _send_with_retries(
        self, request: OutgoingRequest, once: Callable[[int], Any], adapt: Callable[[RequestError], bool], state: Any
    ) -> Any:
        tries = failed = 0
        answered = self._answer_count
        while True:
            serial = await self._limiter.acquire(request.tokens)
            tries += 1
            state.is_sent = True
            try:
                made = await once(serial)
                self._answer_count += 1
                return made
            except PathNotFound:
                if self._answer_count or self._base == self.address.bases[-1]:
                    raise
                self._base = self.address.bases[-1]
                continue
            except RequestError as error:
                state.is_sent = False
                if self.stopped:
                    raise
                if adapt(error):
                    continue
                if not error.is_rate_limited or self._max_retries is not None or self._answer_count == answered:
                    failed += 1
                self._raise_if_final(error, tries, failed, answered)
                answered = self._answer_count
                await self._pause(error, failed)

    def _raise_if_final(self, error: RequestError, tries: int, failed: int, answered: int) -> None:
        """Raise where asking again does not help, or is not allowed."""
        error.tries = tries
        if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER:
            raise ProviderError(
                f"{self.address.provider.title} wants to be left alone for {error.retry_after:g} seconds: "
                f"{error.message}",
                "Run it again then: what was answered is kept.",
            )
        most = MAX_RETRIES if self._max_retries is None else self._max_retries
        if error.is_unreachable and not self._answer_count and failed >= min(MAX_FIRST_TRIES, most + 1):
            raise errors.make_unreachable_error(error)
        if error.is_dropped and not self._answer_count and failed >= MAX_FIRST_DROPS:
            raise errors.make_dropped_error(error, self.address)
        if not error.is_transient or failed > most:
            if error.is_unreachable and self._answer_count == answered:
                raise errors.make_unreachable_error(error)
            raise error

    async def _pause(self, error: RequestError, failed: int) -> None:
        if error.is_queued:  # its turn comes when the provider takes requests again
            return
        wait = min(MAX_PAUSE, 0.1 * 2 ** min(10, failed - 1)) * (0.5 + random.random() / 2)
        await asyncio.sleep(max(wait, error.retry_after or 0.0))

    async def _send_once(self, request: OutgoingRequest, read: Callable[[bytes], T], serial: int) -> T:
        url, content = self._url(request.path), encode_body(request.make_body())
        try:
            with log_request("POST", url, self.address) as answered:
                async with asyncio.timeout(self._timeout):
                    response = await self._thread.get_http_client(self.address).post(
                        url, content=content, headers=self._headers, timeout=self._timeout
                    )
                answered(response)
        except Exception as e:
            raise self._make_connection_error(e) from None
        self._check_status(response.status_code, response.headers, response.content, serial)
        try:
            return read(response.content)
        except RequestError as error:
            error.request_id = error.request_id or response.headers.get("x-request-id")
            raise

    async def _stream_once(
        self, request: OutgoingRequest, read: Callable[[AsyncIterator[str]], Any], serial: int
    ) -> Any:
        url, content = self._url(request.path), encode_body(request.make_body())
        http = self._thread.get_http_client(self.address)
        try:
            sending = http.stream("POST", url, content=content, headers=self._headers, timeout=self._timeout)
            with log_request("POST", url, self.address) as answered:
                async with sending as response:
                    answered(response)
                    whole = await response.aread() if response.status_code >= 300 else b""
                    self._check_status(response.status_code, response.headers, whole, serial)
                    return await read(response.aiter_lines())
        except (RequestError, HandlerError):
            raise
        except Exception as e:
            raise self._make_connection_error(e) from None

    def _url(self, path: str) -> str:
        return self.address.url(path, self.model, self._base)

    def _make_connection_error(self, error: Exception) -> Exception:
        return errors.error_from_exception(error, self.address, self._timeout)

    def _check_status(self, status: int, headers: Mapping[str, str], content: bytes, serial: int) -> None:
        if status < 300:
            self._limiter.record_answer(serial, headers)
            return
        error = errors.error_from_status(status, headers, content, self.address, self.model)
        if isinstance(error, RequestError):
            error.retry_after = parse_retry_after(headers)
            if error.is_rate_limited:
                error.is_queued = self._limiter.record_refusal(serial, headers, error.retry_after)
                raise error
        raise error

    def correct_tokens(self, tokens: float) -> None:
        """A request took so many tokens more than was thought."""
        self._limiter.correct_tokens(tokens)


def encode_body(body: Mapping[str, Any]) -> bytes:
    """JSON as it is sent; half a surrogate pair becomes a "?"."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


LOGGER = logging.getLogger("sqlft")


@contextmanager
def log_request(method: str, url: str, address: Address) -> Iterator[Callable[[Any], None]]:
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
            LOGGER.debug("%s, %.3f s", address.redact(said, 2000), time.monotonic() - began)
