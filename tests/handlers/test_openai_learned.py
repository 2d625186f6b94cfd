"""Limits that only refusals tell, and refusals by chance, in simulated time: how much is used, how much is wasted."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple, Protocol

import pytest
from sqlft_openai.http.limits import AdaptiveRateLimiter

ROWS = 900


class LimitedServer(Protocol):
    """Lets requests in, or not."""

    def take(self, now: float) -> bool:
        """Whether one more is let in."""

    def after(self, now: float) -> float:
        """Seconds until the next is let in."""


class BucketServer:
    """So many a second, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.left, self.at = rate, burst, burst, 0.0

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        self.left, self.at = min(self.burst, self.left + (now - self.at) * self.rate), now
        if self.left < 1 - 1e-9:
            return False
        self.left -= 1
        return True

    def after(self, now: float) -> float:
        """Seconds until the next is let in."""
        return max(0.0, (1 - self.left) / self.rate)


class WindowServer:
    """So many in each window of so many seconds."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds, self.window, self.taken = most, seconds, -1, 0

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        if int(now / self.seconds) != self.window:
            self.window, self.taken = int(now / self.seconds), 0
        self.taken += 1
        return self.taken <= self.most

    def after(self, now: float) -> float:
        """Seconds until the next is let in."""
        return (self.window + 1) * self.seconds - now


class RandomServer:
    """Refuses this share at random, however slowly they come; the others reach the limit behind it."""

    def __init__(self, share: float, seed: int, behind: LimitedServer | None = None) -> None:
        self.share, self.random, self.behind = share, random.Random(seed), behind

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        return self.random.random() >= self.share and (self.behind is None or self.behind.take(now))

    def after(self, now: float) -> float:
        """Seconds until the next is let in."""
        return self.behind.after(now) if self.behind else 0.0


class NoLimiter(AdaptiveRateLimiter):
    """Learns nothing: each request that was refused waits for itself."""

    def record_refusal(self, now: float, serial: int, after: float | None) -> bool:
        """It was no limit."""
        return False


class Network(NamedTuple):
    """Requests under way at once, seconds to an answer, seconds to a refusal."""

    window: int = 32
    answer: float = 0.05
    refusal: float = 0.003


NEAR, QUICK, FAR, SLOW = Network(), Network(32, 0.002, 0.002), Network(64, 0.05, 0.05), Network(32, 1.0, 0.05)
RetryAfter = Callable[[LimitedServer, float], float] | None


def tell_exact_wait(server: LimitedServer, now: float) -> float:
    """A retry-after that says when the next is let in."""
    return server.after(now)


def tell_whole_seconds(server: LimitedServer, now: float) -> float:
    """A retry-after of whole seconds."""
    return math.ceil(server.after(now))


@dataclass
class SimulatedRow:
    """A row as `InferenceClient` asks it."""

    failed: int = 0
    answered: int = 0
    """How many had been answered when it was refused last."""


class Simulation:
    """So many rows asked of a server: `seconds`, and the share of requests that were `wasted`."""

    def __init__(
        self,
        server: LimitedServer,
        retry_after: RetryAfter = None,
        network: Network = NEAR,
        rows: int = ROWS,
        *,
        limiter: AdaptiveRateLimiter,
    ) -> None:
        self._server, self._told, self._network, self._limiter = server, retry_after, network, limiter
        self._todo, self._under_way = rows, 0
        self._turns: deque[SimulatedRow] = deque()
        self._random = random.Random(0)
        self._events: list[tuple[float, int, int, bool | None, SimulatedRow, float | None]] = []
        self._now, self._serial, self._answered, self._order, refusals = 0.0, 0, 0, 0, 0
        while self._answered < rows:
            self._send()
            self._now = max(self._now, self._next())
            while self._events and self._events[0][0] <= self._now:
                _, _, serial, passed, row, after = heapq.heappop(self._events)
                if passed is None:
                    self._turns.append(row)
                elif passed:
                    self._limiter.record_success(self._now, serial)
                    self._answered += 1
                    self._under_way -= 1
                else:
                    refusals += 1
                    self._refused(serial, row, after)
        self.seconds, self.wasted = self._now, refusals / (rows + refusals)

    def _send(self) -> None:
        while self._todo and self._under_way < self._network.window:
            self._todo, self._under_way = self._todo - 1, self._under_way + 1
            self._turns.append(SimulatedRow(answered=self._answered))
        while self._turns and self._limiter.wait(self._now) <= 1e-9:
            self._serial += 1
            self._limiter.record_request(self._now, self._serial)
            passes = self._server.take(self._now)
            after = None if passes or self._told is None else self._told(self._server, self._now)
            took = self._network.answer if passes else self._network.refusal
            self._later(took * self._random.uniform(0.8, 1.2), self._serial, passes, self._turns.popleft(), after)

    def _refused(self, serial: int, row: SimulatedRow, after: float | None) -> None:
        row.failed += row.answered == self._answered
        row.answered = self._answered
        assert row.failed <= 10, "a row would have given up"
        if self._limiter.record_refusal(self._now, serial, after):
            self._turns.append(row)
            return
        wait = min(8.0, 0.1 * 2 ** min(10, row.failed - 1)) * (0.5 + self._random.random() / 2)
        self._later(max(wait, after or 0.0), 0, None, row)

    def _later(
        self, seconds: float, serial: int, passed: bool | None, row: SimulatedRow, after: float | None = None
    ) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._now + seconds, self._order, serial, passed, row, after))

    def _next(self) -> float:
        ready = [self._now + min(max(self._limiter.wait(self._now), 1e-4), 0.25)] if self._turns else []
        return min([*ready, *(event[0] for event in self._events[:1])])


def simulate(
    server: LimitedServer, retry_after: RetryAfter = None, network: Network = NEAR, rows: int = ROWS
) -> Simulation:
    """The outcome with what the adaptive limiter learns."""
    return Simulation(server, retry_after, network, rows, limiter=AdaptiveRateLimiter())


@pytest.mark.parametrize("retry_after", [None, tell_exact_wait])
@pytest.mark.parametrize("network", [NEAR, QUICK])
@pytest.mark.parametrize("burst", [1, 10, 60])
def test_a_limit_is_found_and_used(burst: int, network: Network, retry_after: RetryAfter) -> None:
    found = simulate(BucketServer(10, burst), retry_after, network)
    assert (ROWS - burst) / found.seconds > 0.9 * 10
    assert found.wasted < 0.035


@pytest.mark.parametrize("retry_after", [None, tell_exact_wait])
@pytest.mark.parametrize(("most", "seconds"), [(10, 1.0), (600, 60.0)])
def test_a_limit_by_the_second_and_by_the_minute(most: int, seconds: float, retry_after: RetryAfter) -> None:
    found = simulate(WindowServer(most, seconds), retry_after)
    assert ROWS / found.seconds > 0.9 * 10
    assert found.wasted < 0.04


@pytest.mark.parametrize("server", [BucketServer(10, 1), BucketServer(10, 10), WindowServer(10, 1.0)])
def test_a_retry_after_of_whole_seconds(server: LimitedServer) -> None:
    found = simulate(server, tell_whole_seconds)
    assert ROWS / found.seconds > 0.75 * 10
    assert found.wasted < 0.05


@pytest.mark.parametrize("network", [FAR, SLOW])
@pytest.mark.parametrize("burst", [1, 10])
def test_a_limit_far_away(burst: int, network: Network) -> None:
    found = simulate(BucketServer(10, burst), None, network)
    assert (ROWS - burst) / found.seconds > 0.8 * 10
    assert found.wasted < 0.05 + network.window / ROWS


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("network", [NEAR, FAR, SLOW])
@pytest.mark.parametrize("after", [None, 1.0, 2.0])
def test_refusals_by_chance_are_no_limit(share: float, network: Network, after: float | None) -> None:
    retry_after: RetryAfter = None if after is None else lambda server, now: after
    rates = []
    for seed in range(3):
        alone = Simulation(RandomServer(share, seed), retry_after, network, 1000, limiter=NoLimiter())
        rates.append(simulate(RandomServer(share, seed), retry_after, network, 1000).seconds / alone.seconds)
    assert mean(rates) < 2.0
    assert max(rates) < 3.0


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("burst", [1, 10, 60])
def test_a_limit_behind_refusals_by_chance(share: float, burst: int) -> None:
    found = [simulate(RandomServer(share, seed, BucketServer(10, burst))) for seed in range(3)]
    assert (ROWS - burst) / mean(f.seconds for f in found) > 0.45 * 10
    assert mean(f.wasted for f in found) < share + 0.3


def test_what_was_counted_before_a_pause_says_nothing_after_it() -> None:
    limiter = AdaptiveRateLimiter()
    for serial in range(1, 41):
        limiter.record_request(serial / 100, serial)
        limiter.record_success(serial / 100, serial)
    now = 10_000.0
    for serial in range(41, 61):  # ten pass, ten are refused in a row
        limiter.record_request(now + serial / 1000, serial)
    for serial in range(41, 51):
        limiter.record_success(now + 1, serial)
    for serial in range(51, 61):
        limiter.record_refusal(now + 1, serial, None)
    assert limiter.wait(now + 1) > 0
    limiter.record_request(now + 1.1, 61)
    limiter.record_success(now + 1.2, 61)
    assert 1 < limiter.pace < 100
