"""How many requests a provider takes: what its headers say, and what its refusals teach where they say nothing.

Called by `transport`, in its thread only.  In: the user's ceilings, the headers of answers, refusals.  Out: the moment
at which the next request may go.  Times are seconds of one monotonic clock; serial numbers grow by one per request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from math import inf

from sqlft_openai.http.parsing import parse_duration

MAX_LAG = 0.05
"""A schedule that fell behind by more than this does not catch up."""


class Schedule:
    """The user's ceiling, of requests or of tokens per minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        return self._next - now if self._seconds_each else 0.0

    def take(self, now: float, amount: float) -> None:
        """So much goes."""
        self._next = max(self._next, now - MAX_LAG) + amount * self._seconds_each

    def correct(self, amount: float) -> None:
        """So much more, or less, went than was taken."""
        self._next += amount * self._seconds_each


EVEN_TOLERANCE = 0.2
"""Of the limit: how far `reset` may be from that of a bucket which fills evenly within a minute."""


class HeaderQuota:
    """What x-ratelimit headers say is left, of requests or of tokens.

    `reset` is when all is back.  Where it fits a bucket that fills evenly within a minute, as OpenAI's does, what is
    used comes back evenly; else nothing comes back before it, as with a window or a small bucket.
    """

    def __init__(self, kind: str) -> None:
        self._names = tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
        self._left = inf
        self._most = 1.0
        self._per_second = 0.0
        self._at = self._end = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Seconds until so much is left."""
        amount = min(amount, self._most)
        if self._left >= amount or now >= self._end:
            return 0.0
        missing = amount - self._left - self._per_second * (now - self._at)
        return min(self._end - now, missing / self._per_second if self._per_second else inf)

    def take(self, now: float, amount: float) -> None:
        """So much goes."""
        if now >= self._end:
            self._left = max(self._left, self._most)
        elif self._per_second:
            self._left = min(self._most, self._left + self._per_second * (now - self._at))
        self._left, self._at = self._left - amount, now

    def read(self, now: float, headers: Mapping[str, str], unseen: float) -> None:
        """The headers of an answer, which do not count the `unseen` amount that went after its request."""
        try:
            limit, left = (float(headers[name]) for name in self._names[:2])
        except (KeyError, ValueError):
            return
        reset = parse_duration(headers.get(self._names[2]) or "60")
        reset = 60.0 if reset is None else reset
        is_even = abs(reset * limit / 60 - (limit - left)) <= EVEN_TOLERANCE * limit
        self._per_second = limit / 60 if is_even else 0.0
        self._most, self._left = max(self._most, left), left - unseen
        self._at, self._end = now, now + reset


INCREASE = 0.002
"""Of the last limit: how much the pace grows with each request that is let in."""
DECREASE = 0.5
RECENT_SECONDS, RECENT_SHARE, MOST_SHARE = 10.0, 0.9, 0.5
"""The pace keeps this share of what was let in over this time, and that of the most that ever was."""
REFUSED_IN_A_ROW = 4
"""So many say that none is let in: then nothing is kept, and a Retry-After stops all requests."""
MIN_PACE = 0.1
IDLE_SECONDS = 5.0
"""Without a request for so long, what went before says nothing of now."""
RAMP_SECONDS, RAMP_REQUESTS = 0.003, 256
"""The first requests go one by one, so that a refusal is noticed before many more are sent."""


class AdaptivePace:
    """Additive increase, multiplicative decrease of requests per second (Chiu and Jain, 1989), as TCP does it.

    The refusals of one flight of requests count once.  Below half of the last limit, or what was let in of late, the
    pace doubles with each request that is let in (TCP's slow start, RFC 5681); above, it grows by a constant.  A
    Retry-After of 0 seconds speaks of no limit.
    """

    def __init__(self) -> None:
        self.pace = inf
        """Requests per second; inf: no limit was met yet."""
        self._limit = inf
        """The pace at which the last refusal came while others were let in."""
        self._next = self._paused_until = 0.0
        self._serial = self._decided = 0
        """The last request; the last one that was sent before the latest decrease."""
        self._last = -inf
        """When the last request went."""
        self._first, self._since = 1, 0.0
        """The first request behind a pause, and when it went; then, when the first one was refused."""
        self._let_in: deque[float] = deque()
        self._most = 0
        """Most that were ever let in within RECENT_SECONDS."""
        self._refused_in_a_row = 0

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        return max(self._paused_until, self._next) - now

    def record_request(self, now: float, serial: int) -> None:
        """A request goes."""
        if self.pace == inf and now - self._last > IDLE_SECONDS:
            self._first, self._since = serial, now
        self._serial, self._last = serial, now
        if self.pace < inf:
            self._next = max(self._next, now) + 1 / self.pace
        elif serial <= RAMP_REQUESTS:
            self._next = now + RAMP_SECONDS / (1 + serial / 64)

    def record_success(self, now: float, serial: int) -> None:
        """A request was let in."""
        self._refused_in_a_row = 0
        if self.pace == inf:
            return
        self._let_in.append(now)
        recent = self._measure_recent(now)
        if serial > self._decided:
            slow_start = min(self.pace * 2, max(self._limit / 2, RECENT_SHARE * recent))
            self.pace = max(slow_start, self.pace + self._limit * INCREASE)

    def record_refusal(self, now: float, serial: int, after: float | None) -> bool:
        """A request was refused, with a Retry-After of so many seconds; whether all wait for that."""
        if after == 0:
            return False
        self._refused_in_a_row += 1
        is_blocked = self._refused_in_a_row >= REFUSED_IN_A_ROW
        if is_blocked:
            self._paused_until = max(self._paused_until, now + (after or 0.0))
        if serial > self._decided:
            self._decrease(now, is_blocked)
        return is_blocked

    def _decrease(self, now: float, is_blocked: bool) -> None:
        if self.pace == inf:
            self.pace = self._limit = (self._serial - self._first + 1) / max(0.01, now - self._since)
            self._since = now  # what was let in before may have been a burst
        least = MIN_PACE
        if not is_blocked:
            self._limit = self.pace
            recent = self._measure_recent(now)
            least = max(MIN_PACE, RECENT_SHARE * recent, MOST_SHARE * self._most / RECENT_SECONDS)
        self.pace = max(self.pace * DECREASE, least)
        self._decided, self._next = self._serial, now + 1 / self.pace

    def _measure_recent(self, now: float) -> float:
        """Requests per second that were let in of late."""
        self._most = max(self._most, len(self._let_in))
        while self._let_in and self._let_in[0] < now - RECENT_SECONDS:
            self._let_in.popleft()
        return len(self._let_in) / max(1.0, min(RECENT_SECONDS, now - self._since))


RECHECK_SECONDS = 0.25
"""An answer may change how long to wait: looked at again after this."""


class RateLimiter:
    """Of one model and key."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = Schedule(requests_per_minute), Schedule(tokens_per_minute)
        self._left_requests, self._left_tokens = HeaderQuota("requests"), HeaderQuota("tokens")
        self._pace = AdaptivePace()
        self._serial = 0
        self._sent: deque[tuple[int, float]] = deque(maxlen=4096)
        """(serial, tokens) of requests that headers may not count yet."""
        self._queue = asyncio.Lock()

    async def acquire(self, tokens: float) -> int:
        """Wait until a request of about so many tokens may go; its serial number."""
        if self._queue.locked() or self._wait(time.monotonic(), tokens) > 0:
            async with self._queue:
                while (wait := self._wait(time.monotonic(), tokens)) > 0:
                    await asyncio.sleep(min(wait, RECHECK_SECONDS))
                return self._take(tokens)
        return self._take(tokens)

    def record_answer(self, serial: int, headers: Mapping[str, str]) -> None:
        """A request was let in."""
        now = time.monotonic()
        self._pace.record_success(now, serial)
        self._read_headers(now, serial, headers)

    def record_refusal(self, serial: int, headers: Mapping[str, str], after: float | None) -> bool:
        """A request was refused for coming too fast; whether `acquire` makes all wait for it."""
        now = time.monotonic()
        self._read_headers(now, serial, headers)
        return self._pace.record_refusal(now, serial, after)

    def correct_tokens(self, tokens: float) -> None:
        """A request took so many tokens more than was estimated."""
        self._tokens.correct(tokens)

    def _wait(self, now: float, tokens: float) -> float:
        waits = (self._requests.wait(now), self._tokens.wait(now), self._pace.wait(now))
        return max(*waits, self._left_requests.wait(now, 1.0), self._left_tokens.wait(now, tokens))

    def _take(self, tokens: float) -> int:
        now = time.monotonic()
        self._serial += 1
        self._sent.append((self._serial, tokens))
        self._requests.take(now, 1.0)
        self._tokens.take(now, tokens)
        self._left_requests.take(now, 1.0)
        self._left_tokens.take(now, tokens)
        self._pace.record_request(now, self._serial)
        return self._serial

    def _read_headers(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        while self._sent and self._sent[0][0] <= serial:
            self._sent.popleft()
        self._left_requests.read(now, headers, len(self._sent))
        self._left_tokens.read(now, headers, sum(tokens for _, tokens in self._sent))
