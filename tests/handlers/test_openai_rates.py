"""Limits that are told or only felt, in simulated time: how much of them is used, how many requests are wasted."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from sqlft_openai.rates import Ceiling, Learned, Told, retry_after, seconds_of

LATENCY, REFUSAL = 0.05, 0.003


class Bucket:
    """So many a minute, and `burst` at once."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.rate, self.burst, self.left, self.at = per_minute / 60, burst, burst, 0.0

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        self.left, self.at = min(self.burst, self.left + (now - self.at) * self.rate), now
        if self.left < 1 - 1e-9:
            return False
        self.left -= 1
        return True

    def after(self) -> float:
        """Seconds until the next is let in."""
        return max(0.0, (1 - self.left) / self.rate)


class Windowed:
    """So many in each window of so many seconds."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds, self.window, self.taken = most, seconds, -1, 0

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        if int(now / self.seconds) != self.window:
            self.window, self.taken = int(now / self.seconds), 0
        self.taken += 1
        return self.taken <= self.most


class Careless:
    """Refuses every so many-th, however slowly they come."""

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, 0

    def take(self, now: float) -> bool:
        """Whether one more is let in."""
        self.asked += 1
        return self.asked % self.every != 0


def asked(
    limit: Bucket | Windowed | Careless, rows: int, after: Callable[[], float] | None = None
) -> tuple[float, float]:
    """(seconds, share of requests that were refused) with 32 under way."""
    learned, now, serial, free, todo, done, wasted = Learned(), 0.0, 0, 32, rows, 0, 0
    events: list[tuple[float, int, bool, float | None]] = []
    while done < rows:
        while todo and free and learned.wait(now) <= 1e-9:
            serial, free, todo = serial + 1, free - 1, todo - 1
            learned.take(now, serial)
            passes = limit.take(now)
            wait = None if passes or after is None else after()
            heapq.heappush(events, (now + (LATENCY if passes else REFUSAL), serial, passes, wait))
        upcoming = [events[0][0]] if events else []
        now = min([*upcoming, *([now + min(max(learned.wait(now), 1e-4), 0.25)] if todo and free else [])])
        while events and events[0][0] <= now:
            _, which, passes, wait = heapq.heappop(events)
            free += 1
            if passes:
                learned.passed(now, which)
                done += 1
            else:
                learned.refused(now, which, wait)
                wasted, todo = wasted + 1, todo + 1
    return now, wasted / (rows + wasted)


@pytest.mark.parametrize("burst", [1, 10, 60])
@pytest.mark.parametrize("told", [False, True])
def test_a_limit_is_found_and_used(burst: int, told: bool) -> None:
    limit = Bucket(600, burst)
    seconds, wasted = asked(limit, 900, limit.after if told else None)
    assert (900 - burst) / seconds > 0.9 * 10
    assert wasted < 0.05


def test_a_limit_by_the_second_and_by_the_minute() -> None:
    seconds, wasted = asked(Windowed(10, 1.0), 900)
    assert 900 / seconds > 0.9 * 10
    assert wasted < 0.05
    seconds, wasted = asked(Windowed(600, 60.0), 900)
    assert 900 / seconds > 0.9 * 10
    assert wasted < 0.05


def test_refusals_here_and_there_are_no_limit() -> None:
    seconds, _ = asked(Careless(20), 900)
    assert seconds < 3 * 900 * LATENCY / 32


def test_a_ceiling_is_a_schedule() -> None:
    ceiling, now, taken = Ceiling(600), 100.0, 0
    while now < 160.0:
        if ceiling.wait(now) <= 0:
            ceiling.take(now)
            taken += 1
        now += 0.01
    assert 595 <= taken <= 601


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("6ms", 0.006), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("1d", 86400.0), ("2", 2.0), ("soon", None)],
)
def test_durations(said: str, seconds: float | None) -> None:
    assert seconds_of(said) == (pytest.approx(seconds) if seconds is not None else None)


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "whenever"}) is None
    assert retry_after({}) is None


def headers(limit: int, left: int, reset: str) -> dict[str, str]:
    said = {"limit": str(limit), "remaining": str(left), "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in said.items()}


def test_headers_of_a_bucket_that_fills_evenly() -> None:
    told = Told("requests")
    told.hear(0.0, 1, headers(600, 10, "59s"))
    told.hear(0.1, 2, headers(600, 0, "60s"))
    assert told.wait(0.1) == pytest.approx(0.1)
    assert told.wait(0.3) <= 0


def test_headers_of_a_small_bucket() -> None:
    told = Told("requests")
    told.hear(0.0, 1, headers(600, 9, "100ms"))
    told.hear(0.0, 2, headers(600, 0, "1000ms"))
    assert told.wait(0.0) == pytest.approx(0.1, rel=0.2)
    told.take(1.5, 3, 9)
    assert told.wait(1.5) > 0.05


def test_headers_of_a_window_that_is_used_up() -> None:
    told = Told("requests")
    told.hear(9.0, 1, headers(600, 90, "14s"))
    told.hear(10.0, 2, headers(600, 0, "13s"))
    assert told.wait(10.0) == pytest.approx(13.0)
    assert told.wait(23.0) <= 0


def test_requests_that_the_headers_cannot_know_of_yet_count() -> None:
    told = Told("requests")
    for serial in (1, 2, 3):
        told.take(0.0, serial)
    told.hear(0.1, 1, headers(600, 2, "30s"))
    assert told.wait(0.1) > 0
