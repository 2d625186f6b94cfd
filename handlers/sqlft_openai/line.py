"""The thread in which requests are sent, its connections, and what is known of each account's rates.

All statements of a process share them: a connection stays open from one to the next.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any
from urllib.request import getproxies_environment

from sqlft_openai.address import Address
from sqlft_openai.options import EngineOptions
from sqlft_openai.rates import Rates

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
