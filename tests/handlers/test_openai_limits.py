"""Limits in headers, the user's ceilings, and limits that only refusals show: these in simulated time."""

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
from sqlft_openai.http.limits import AdaptivePace, HeaderQuota, Schedule
from sqlft_openai.http.parsing import parse_duration, parse_retry_after

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


class ChangingServer:
    """One server until so many seconds, and another from then on."""

    def __init__(self, first: LimitedServer, until: float, then: LimitedServer) -> None:
        self.first, self.until, self.then = first, until, then

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        return (self.first if now < self.until else self.then).take(now)

    def after(self, now: float) -> float:
        """Seconds until the next is let in."""
        return (self.first if now < self.until else self.then).after(now)


class NoPace(AdaptivePace):
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
        pace: AdaptivePace | None = None,
    ) -> None:
        self._server, self._retry_after, self._network = server, retry_after, network
        self._limiter = pace or AdaptivePace()
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
            after = None if passes or self._retry_after is None else self._retry_after(self._server, self._now)
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


def get_share_used(simulation: Simulation, burst: int = 0, rate: float = 10) -> float:
    """Of a limit, behind a burst."""
    return (ROWS - burst) / simulation.seconds / rate


@pytest.mark.parametrize("retry_after", [None, tell_exact_wait])
@pytest.mark.parametrize("network", [NEAR, QUICK])
@pytest.mark.parametrize("burst", [1, 10, 60])
def test_a_limit_is_found_and_used(burst: int, network: Network, retry_after: RetryAfter) -> None:
    found = Simulation(BucketServer(10, burst), retry_after, network)
    assert get_share_used(found, burst) > 0.9
    assert found.wasted < 0.035


@pytest.mark.parametrize("retry_after", [None, tell_exact_wait])
@pytest.mark.parametrize(("most", "seconds"), [(10, 1.0), (600, 60.0)])
def test_a_limit_by_the_second_and_by_the_minute(most: int, seconds: float, retry_after: RetryAfter) -> None:
    found = Simulation(WindowServer(most, seconds), retry_after)
    assert get_share_used(found) > 0.9
    assert found.wasted < 0.04


@pytest.mark.parametrize("server", [BucketServer(10, 1), BucketServer(10, 10), WindowServer(10, 1.0)])
def test_a_retry_after_of_whole_seconds(server: LimitedServer) -> None:
    found = Simulation(server, tell_whole_seconds)
    assert get_share_used(found) > 0.75
    assert found.wasted < 0.05


@pytest.mark.parametrize("network", [FAR, SLOW])
@pytest.mark.parametrize("burst", [1, 10, 60])
def test_a_limit_far_away(burst: int, network: Network) -> None:
    found = Simulation(BucketServer(10, burst), None, network)
    assert get_share_used(found, burst) > 0.8
    assert found.wasted < 0.05 + network.window / ROWS


@pytest.mark.parametrize("rate", [1, 5, 50, 500])
def test_limits_of_every_size(rate: int) -> None:
    rows = 100 * rate + 100
    for server in (BucketServer(rate, 1), BucketServer(rate, rate), WindowServer(rate, 1.0)):
        found = Simulation(server, rows=rows)
        assert rows / found.seconds > 0.8 * rate
        assert found.wasted < 0.03 + 20 / rows


@pytest.mark.parametrize("network", [NEAR, FAR])
def test_a_retry_after_of_zero_seconds_is_no_limit(network: Network) -> None:
    alone = Simulation(RandomServer(0.0, 0), None, network)
    found = Simulation(RandomServer(0.2, 0), lambda server, now: 0.0, network)
    assert found.seconds < 3 * alone.seconds


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("network", [NEAR, FAR, SLOW])
@pytest.mark.parametrize("after", [None, 1.0, 2.0])
def test_refusals_by_chance_are_no_limit(share: float, network: Network, after: float | None) -> None:
    retry_after: RetryAfter = None if after is None else lambda server, now: after
    ratios = []
    for seed in range(3):
        alone = Simulation(RandomServer(share, seed), retry_after, network, 1000, NoPace())
        ratios.append(Simulation(RandomServer(share, seed), retry_after, network, 1000).seconds / alone.seconds)
    assert mean(ratios) < 2.0
    assert max(ratios) < 3.0


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_refusals_by_chance_take_at_most_twice_the_time_of_none(share: float) -> None:
    none = Simulation(RandomServer(0.0, 0)).seconds
    assert mean(Simulation(RandomServer(share, seed)).seconds for seed in range(5)) < 2 * none


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("burst", [1, 10, 60])
def test_a_limit_behind_refusals_by_chance(share: float, burst: int) -> None:
    found = [Simulation(RandomServer(share, seed, BucketServer(10, burst))) for seed in range(3)]
    assert mean(get_share_used(simulation, burst) for simulation in found) > 0.45
    assert mean(simulation.wasted for simulation in found) < share + 0.3


@pytest.mark.parametrize(("before", "after"), [(10, 5), (5, 20)])
def test_a_limit_that_changes_is_found_again(before: int, after: int) -> None:
    found = Simulation(ChangingServer(BucketServer(before, 1), 40.0, BucketServer(after, 1)))
    best = 40 + (ROWS - 40 * before) / after
    assert best / found.seconds > 0.6
    assert found.wasted < 0.05


def test_a_server_that_lets_nothing_in_is_asked_ever_less_often_and_used_again_at_once() -> None:
    pace, now, sent = AdaptivePace(), 0.0, list[float]()
    for serial in range(1, 100):
        now += max(0.0, pace.wait(now))
        pace.record_request(now, serial)
        sent.append(now)
        pace.record_refusal(now, serial, None)
    assert sent[-1] - sent[-2] >= 10
    for serial in range(100, 130):
        now += max(0.0, pace.wait(now))
        pace.record_request(now, serial)
        pace.record_success(now, serial)
    assert pace.wait(now) < 1


def test_what_was_counted_before_a_pause_says_nothing_after_it() -> None:
    pace = AdaptivePace()
    for serial in range(1, 41):
        pace.record_request(serial / 100, serial)
        pace.record_success(serial / 100, serial)
    now = 10_000.0
    for serial in range(41, 61):  # ten are let in, ten are refused
        pace.record_request(now + serial / 1000, serial)
    for serial in range(41, 51):
        pace.record_success(now + 1, serial)
    for serial in range(51, 61):
        pace.record_refusal(now + 1, serial, None)
    assert 0 < pace.wait(now + 1) < 1
    assert 5 < pace.pace < 100


def test_all_wait_for_a_retry_after_once_some_in_a_row_are_refused() -> None:
    pace = AdaptivePace()
    for serial in range(1, 6):
        pace.record_request(0.0, serial)
    assert not pace.record_refusal(0.1, 1, 30.0), "one row's, until more are refused"
    assert pace.wait(0.1) < 1
    assert [pace.record_refusal(0.1, serial, 30.0) for serial in (2, 3, 4)] == [False, False, True]
    assert pace.wait(0.1) == pytest.approx(30.0)
    assert pace.record_refusal(0.2, 5, 5.0)
    assert pace.wait(0.2) == pytest.approx(29.9)


def test_a_ceiling_is_a_schedule() -> None:
    limiter, now, taken = Schedule(600), 100.0, 0
    while now < 160.0:
        if limiter.wait(now) <= 0:
            limiter.take(now, 1.0)
            taken += 1
        now += 0.01
    assert 595 <= taken <= 601


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6ms", 0.006), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("1d", 86400.0), ("2", 2.0), ("soon", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_retry_after_in_all_its_forms() -> None:
    assert parse_retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert parse_retry_after({"retry-after": "1.5"}) == 1.5
    assert parse_retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    date, later = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:09 GMT"
    assert parse_retry_after({"retry-after": later, "date": date}) == 9.0  # whatever the time is here
    assert parse_retry_after({"retry-after": "whenever"}) is None
    assert parse_retry_after({}) is None


def make_headers(limit: int, left: int, reset: str) -> dict[str, str]:
    values = {"limit": str(limit), "remaining": str(left), "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in values.items()}


def test_headers_of_a_bucket_that_fills_evenly() -> None:
    quota = HeaderQuota("requests")
    quota.read(0.0, make_headers(600, 10, "59s"), 0)
    quota.read(0.1, make_headers(600, 0, "60s"), 0)
    assert quota.wait(0.1, 1) == pytest.approx(0.1)
    assert quota.wait(0.3, 1) <= 0


def test_headers_of_a_small_bucket() -> None:
    quota = HeaderQuota("requests")
    quota.read(0.0, make_headers(600, 9, "100ms"), 0)
    assert quota.wait(0.0, 1) <= 0
    quota.read(0.0, make_headers(600, 0, "1000ms"), 0)
    assert 0 < quota.wait(0.0, 1) <= 1.0
    quota.take(1.5, 9)
    quota.read(1.5, make_headers(600, 0, "900ms"), 0)
    assert quota.wait(1.5, 1) > 0.05


def test_headers_of_a_window_that_is_used_up() -> None:
    quota = HeaderQuota("requests")
    quota.read(9.0, make_headers(600, 90, "14s"), 0)
    quota.read(10.0, make_headers(600, 0, "13s"), 0)
    assert quota.wait(10.0, 1) == pytest.approx(13.0)
    assert quota.wait(23.0, 1) <= 0
    quota.take(23.0, 1)
    assert quota.wait(23.0, 1) <= 0, "all is back"


def test_requests_that_the_headers_cannot_know_of_yet_count() -> None:
    quota = HeaderQuota("requests")
    quota.read(0.1, make_headers(600, 2, "30s"), unseen=2)
    assert quota.wait(0.1, 1) > 0


def test_tokens_that_are_never_all_left_are_not_waited_for() -> None:
    quota = HeaderQuota("tokens")
    tokens = {key.replace("requests", "tokens"): text for key, text in make_headers(1000, 1000, "0s").items()}
    quota.read(0.0, tokens, 0)
    assert quota.wait(0.1, 5000) <= 0
