"""One request to its answer: the event loop's thread, a turn among others, and sent again where that may help.

Called by `chat` and `embeddings`.  In: a path and a body.  Out: what a reader makes of the reply, or an error.  Each
request is logged at DEBUG, without its secrets.  Not here: requests that are no answers, which `api` sends; which of
several servers takes a request (`servers`).
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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.request import getproxies_environment

from sqlft.errors import HandlerError, ProviderError
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import PathNotFound, RequestError
from sqlft_openai.http.limits import RateLimiter
from sqlft_openai.http.parsing import JsonObject
from sqlft_openai.http.servers import LOGGER, Server, ServerPool, ServerState
from sqlft_openai.options import EngineOptions

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Proxies = tuple[tuple[str, str], ...]
IDLE_SECONDS = 30.0


class TransportThread:
    """A loop in a thread of its own, with its connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._clients: dict[Proxies, httpx2.AsyncClient] = {}
        """By the proxies of the environment, which are read once."""
        self._states: dict[tuple[object, ...], ServerState] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self.loop.run_forever, name="sqlft-openai", daemon=True).start()

    def run(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Start work in the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def get_http_client(self, address: Address) -> httpx2.AsyncClient:
        """The HTTP client of the official package that reaches the address; called in the loop."""
        proxies = () if address.is_local else tuple(getproxies_environment().items())
        if proxies not in self._clients:
            self._clients[proxies] = _make_http_client(trust_env=not address.is_local)
        return self._clients[proxies]

    def get_server(self, address: Address, model: str, options: EngineOptions) -> Server:
        """A server with what is known of it, and of this model's rates there for this key."""
        ceilings = (options.requests_per_minute, options.tokens_per_minute)
        key = (address.base, address.key, model, *ceilings)
        with self._lock:
            if key not in self._states:
                self._states[key] = ServerState(RateLimiter(*ceilings))
            return Server(address, self._states[key])

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


def _make_http_client(*, trust_env: bool) -> httpx2.AsyncClient:
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
    try:
        return openai.DefaultAioHttpClient(trust_env=trust_env, limits=limits, follow_redirects=False)
    except RuntimeError:  # without aiohttp it works too, at two thirds of the speed
        return openai.DefaultAsyncHttpx2Client(trust_env=trust_env, limits=limits, follow_redirects=False)


MAX_RETRIES = 10
"""Where the user says nothing; being refused while others are answered is then no failure."""
MAX_FIRST_TRIES = 3
"""An address that never answered is given up after so many."""
MAX_FIRST_DROPS = 5
"""One that answers nothing but drops connections, after so many."""
MAX_PAUSE = 8.0
TIMEOUT_SHARE = 0.9
"""A request may take this share of the time in which the statement wants an answer."""


class RequestState:
    """Where a request is; who asks may cancel its task."""

    def __init__(self) -> None:
        self.is_sent = False
        self.task: asyncio.Task[None] | None = None


class OutgoingRequest(NamedTuple):
    """What is sent: a path, a body, and about how many tokens it takes."""

    path: str
    make_body: Callable[[Server], JsonObject]
    """Called for each try, since what a server does not take is left out."""
    tokens: float = 0.0
    streams: bool = False
    """Whether the answer comes piece by piece: then only the pause between two of them is limited."""


class InferenceClient:
    """What the requests of one statement share; used in the transport thread only, but for `stopped`."""

    def __init__(
        self,
        thread: TransportThread,
        addresses: Sequence[Address],
        options: EngineOptions,
        model: str,
        max_retries: int | None = None,
        patience: float | None = None,
    ) -> None:
        self.provider, self.model, self._thread = addresses[0].provider, model, thread
        self.servers = [thread.get_server(address, model, options) for address in addresses]
        self._pool = ServerPool(self.servers, options.max_concurrency)
        self.window = options.max_concurrency * len(self.servers)
        """Most requests of a statement under way at a time."""
        self._max_retries = max_retries
        self._timeout = min(options.timeout, patience * TIMEOUT_SHARE if patience else options.timeout)
        self._answer_count = 0
        self.stopped = False

    async def send(
        self,
        request: OutgoingRequest,
        read: Callable[[httpx2.Response, Server], Awaitable[T]],
        adapt: Callable[[RequestError, Server], bool],
        state: RequestState,
    ) -> T:
        """What `read` makes of the reply, after as many tries as it takes.

        RequestError is for this request alone, HandlerError where none can be answered.  `adapt` may change what is
        sent after a 400; `state.is_sent` is true while a request is on its way.
        """
        tries = failed = 0
        answered = self._answer_count
        held: dict[Server, float] = {}
        while True:
            server, serial = await self._pool.acquire(request.tokens, held)
            tries, base = tries + 1, server.base
            try:
                answer = await self._send_once(request, read, server, serial, state)
                self._answer_count += 1
                self._pool.record_answer(server)
                return answer
            except PathNotFound as error:
                if base == server.base and (server.has_answered or base == server.address.bases[-1]):
                    self._leave_out_or_raise(server, error)
                else:
                    server.base = server.address.bases[-1]
            except HandlerError as error:
                self._leave_out_or_raise(server, error)
            except RequestError as error:
                if self.stopped:
                    raise
                if adapt(error, server):
                    continue
                self._pool.record_failure(server, error)
                failed += self._counts_as_failure(error, server, answered)
                self._raise_if_final(error, server, tries, failed, answered)
                answered = self._answer_count
                held[server] = time.monotonic() + _get_pause(error, failed)
                await self._pool.wait_for_turn(held)

    def _leave_out_or_raise(self, server: Server, error: HandlerError) -> None:
        """What makes all requests pointless concerns no other server where this one was down, and starts again."""
        if self.stopped or not server.state.is_down or not self._pool.has_others(server):
            raise error
        self._pool.leave_out(server, error.message)

    def _counts_as_failure(self, error: RequestError, server: Server, answered: int) -> bool:
        """Whether a row has one try less: not where the provider is only slow, or another server is there."""
        if error.is_unreachable or error.wants_long_pause:
            return not self._pool.has_others(server)
        return not error.is_rate_limited or self._max_retries is not None or self._answer_count == answered

    def _raise_if_final(self, error: RequestError, server: Server, tries: int, failed: int, answered: int) -> None:
        """Raise where asking again does not help, or is not allowed."""
        error.tries = tries
        if self._pool.has_others(server) and (error.is_unreachable or error.wants_long_pause):
            return
        if error.wants_long_pause:
            raise ProviderError(
                f"{server.address.title} wants to be left alone for {error.retry_after:g} seconds: {error.message}",
                "Run it again then: what was answered is kept.",
            )
        if self._pool.is_down and error.is_servers_fault:
            error.message = self._pool.describe_outage()
        most = MAX_RETRIES if self._max_retries is None else self._max_retries
        if error.is_unreachable and not self._answer_count and failed >= min(MAX_FIRST_TRIES, most + 1):
            raise errors.make_unreachable_error(error)
        if error.is_dropped and not self._answer_count and failed >= MAX_FIRST_DROPS:
            raise errors.make_dropped_error(error, server.address)
        if not error.is_transient or failed > most:
            if error.is_unreachable and self._answer_count == answered:
                raise errors.make_unreachable_error(error)
            raise error

    async def _send_once(
        self,
        request: OutgoingRequest,
        read: Callable[[httpx2.Response, Server], Awaitable[T]],
        server: Server,
        serial: int,
        state: RequestState,
    ) -> T:
        address, timeout, request_id = server.address, self._timeout, None
        state.is_sent = True
        try:
            url, content = address.url(request.path, self.model, server.base), encode_body(request.make_body(server))
            headers = {**address.headers, "Content-Type": "application/json"}
            http = self._thread.get_http_client(address)
            sending = http.stream("POST", url, content=content, headers=headers, timeout=timeout)
            with log_request(url, address) as record_head:
                async with asyncio.timeout(None if request.streams else timeout), sending as response:
                    record_head(response)
                    request_id = response.headers.get("x-request-id")
                    content = await response.aread() if response.status_code >= 300 else b""
                    self._check_status(response.status_code, response.headers, content, server, serial)
                    return await read(response, server)
        except RequestError as error:
            error.request_id = error.request_id or request_id
            raise
        except HandlerError:
            raise
        except Exception as e:
            raise errors.error_from_exception(e, address, timeout) from None
        finally:
            state.is_sent = False
            self._pool.release(server)

    def _check_status(
        self, status: int, headers: Mapping[str, str], content: bytes, server: Server, serial: int
    ) -> None:
        limiter = server.state.limiter
        if status < 300:
            limiter.record_answer(serial, headers)
            return
        error = errors.error_from_status(status, headers, content, server.address, self.model)
        if isinstance(error, RequestError) and error.is_rate_limited:
            error.is_queued = limiter.record_refusal(serial, headers, error.retry_after)
        raise error


def _get_pause(error: RequestError, failed: int) -> float:
    """Seconds until a row may be asked again where it failed."""
    if error.is_queued:  # its turn comes when the provider takes requests again
        return 0.0
    wait = min(MAX_PAUSE, 0.1 * 2.0 ** min(10, failed - 1)) * (0.5 + random.random() / 2)
    return max(wait, error.retry_after or 0.0)


def encode_body(body: JsonObject) -> bytes:
    """JSON as it is sent; half a surrogate pair becomes a "?"."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def log_exchange(address: Address, method: str, url: str, outcome: str, seconds: float) -> None:
    """Log a request and what became of it, without its secrets."""
    if LOGGER.isEnabledFor(logging.DEBUG):
        LOGGER.debug("%s, %.3f s", address.redact(f"{method} {url}: {outcome}", 2000), seconds)


def describe_head(response: httpx2.Response) -> str:
    """The status and the request's id."""
    headers = response.headers
    request_id = headers.get("x-request-id") or headers.get("apim-request-id") or headers.get("request-id")
    return f"{response.status_code}{f', request id {request_id}' if request_id else ''}"


@contextmanager
def log_request(url: str, address: Address) -> Iterator[Callable[[httpx2.Response], None]]:
    """Log the POST that the block sends, which hands over the response as soon as it has its head."""
    began, outcome = time.monotonic(), "no answer"

    def record_head(response: httpx2.Response) -> None:
        nonlocal outcome
        outcome = describe_head(response)

    try:
        yield record_head
    except BaseException as e:
        outcome += f", {type(e).__name__}: {e}"
        raise
    finally:
        log_exchange(address, "POST", url, outcome, time.monotonic() - began)
