"""The servers of an engine: which one takes the next request, and which are left out because they are down.

Called by `transport`, in its thread only.  In: how many tokens a request takes, what became of it.  Out: the server
that has the fewest requests under way of those that may be asked now.  With one server only its limits are waited for.

A server is down after a connection that nobody took, or after FAILURES_IN_A_ROW (statuses from 500, dropped
connections, no answer in time).  It is left out for a while, twice as long each time, and then one request tries it.
Where all are down none is left out, so that each row finds out for itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.limits import RECHECK_SECONDS, RateLimiter

LOGGER = logging.getLogger("sqlft")
FAILURES_IN_A_ROW = 3
FIRST_OUTAGE, MAX_OUTAGE = 0.5, 60.0
"""Seconds for which a server is left out."""


@dataclass(eq=False)
class ServerState:
    """What this process knows of a server, for one key and model."""

    limiter: RateLimiter
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    outages: int = 0
    """How often it was left out since it last answered."""
    out_until: float = 0.0
    said: str = ""
    """At its last failure."""

    def record_answer(self) -> None:
        """It is there."""
        self.failures = self.outages = 0

    def record_failure(self, said: str, *, is_down: bool, seconds: float) -> float:
        """It gave no answer; seconds for which it is left out from now on, 0 where it is not."""
        now = time.monotonic()
        self.failures, self.said = self.failures + 1, said
        if now < self.out_until or not (is_down or self.outages or self.failures >= FAILURES_IN_A_ROW):
            return 0.0
        pause = max(seconds, min(MAX_OUTAGE, FIRST_OUTAGE * 2.0**self.outages))
        self.outages, self.out_until = self.outages + 1, now + pause
        return pause

    @property
    def is_down(self) -> bool:
        """Whether it was left out, and has not answered since."""
        return self.outages > 0

    def may_be_asked(self, now: float) -> bool:
        """Whether it is up, or somebody must look whether it is up again."""
        return not self.is_down or (now >= self.out_until and not self.in_flight)


@dataclass(eq=False)
class Server:
    """A server as one statement asks it."""

    address: Address
    state: ServerState
    base: str = field(init=False)
    """Of the address's candidates, the one that is asked."""
    has_answered: bool = False

    def __post_init__(self) -> None:
        self.base = self.address.base


class ServerPool:
    """What the requests of one statement choose from."""

    def __init__(self, servers: Sequence[Server], most_in_flight: int) -> None:
        self.servers, self._most = servers, most_in_flight
        self._queue = asyncio.Lock()
        self._released = asyncio.Event()

    async def acquire(self, tokens: float, held: Mapping[Server, float]) -> tuple[Server, int]:
        """Wait until a request of about so many tokens may go; where it goes, and its serial number there.

        `held` says until when the row would rather not be asked there again.
        """
        if self._queue.locked() or (server := self._find_free(tokens, held)) is None:
            async with self._queue:
                while (server := self._find_free(tokens, held)) is None:
                    await self._wait(tokens)
                return self._take(server, tokens)
        return self._take(server, tokens)

    def release(self, server: Server) -> None:
        """A request that was acquired has ended."""
        server.state.in_flight -= 1
        self._released.set()

    def record_answer(self, server: Server) -> None:
        """A request was answered."""
        server.has_answered = True
        server.state.record_answer()

    def record_failure(self, server: Server, error: RequestError) -> None:
        """A request was not, which may be the server's fault."""
        if not self.is_single and (error.is_servers_fault or error.wants_long_pause):
            is_down = error.is_unreachable or error.wants_long_pause
            self._record_failure(server, error.message, is_down=is_down, seconds=error.retry_after or 0.0)

    def leave_out(self, server: Server, said: str) -> None:
        """Ask the others instead."""
        self._record_failure(server, said, is_down=True)

    @property
    def is_single(self) -> bool:
        """Whether there is no choice."""
        return len(self.servers) == 1

    def has_others(self, server: Server) -> bool:
        """Whether another one is up."""
        return any(not other.state.is_down for other in self.servers if other is not server)

    @property
    def is_down(self) -> bool:
        """Whether there are several, and all are down."""
        return not self.is_single and all(server.state.is_down for server in self.servers)

    def describe_outage(self) -> str:
        """What each server said at last."""
        return "; ".join(server.state.said for server in self.servers)

    async def wait_for_turn(self, held: Mapping[Server, float]) -> None:
        """Wait until a row may be asked again, by a server that is not left out."""
        while (left := self._get_hold(held) - time.monotonic()) > 0:
            await asyncio.sleep(left if self.is_single else min(left, RECHECK_SECONDS))

    def _get_hold(self, held: Mapping[Server, float]) -> float:
        return min(held.get(server, 0.0) for server in self._list_candidates(time.monotonic()))

    def _list_candidates(self, now: float) -> Sequence[Server]:
        """Those that are not left out, or all where all would be."""
        if self.is_single or self.is_down:
            return self.servers
        return [server for server in self.servers if server.state.may_be_asked(now)]

    def _find_free(self, tokens: float, held: Mapping[Server, float]) -> Server | None:
        now = time.monotonic()
        free = [server for server in self._list_with_room(now) if server.state.limiter.wait(now, tokens) <= 0]
        return min(free, key=lambda s: (held.get(s, 0.0) > now, s.state.in_flight, s.state.failures), default=None)

    def _list_with_room(self, now: float) -> Sequence[Server]:
        """Those that may have one more request under way, whatever their limits say; of one the window is the limit."""
        if self.is_single:
            return self.servers
        return [server for server in self._list_candidates(now) if server.state.in_flight < self._most]

    async def _wait(self, tokens: float) -> None:
        """Wait until it may be another's turn: an answer may change that, too."""
        now = time.monotonic()
        waits = [server.state.limiter.wait(now, tokens) for server in self._list_with_room(now)]
        self._released.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min([RECHECK_SECONDS, *waits])):
                await self._released.wait()

    def _take(self, server: Server, tokens: float) -> tuple[Server, int]:
        server.state.in_flight += 1
        return server, server.state.limiter.take(tokens)

    def _record_failure(self, server: Server, said: str, *, is_down: bool, seconds: float = 0.0) -> None:
        if pause := server.state.record_failure(said, is_down=is_down, seconds=seconds):
            LOGGER.debug("%s is left out for %g s: %s", server.address.base, pause, said)
