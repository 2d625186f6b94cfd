"""How many requests a provider takes: what its headers say, and what its refusals teach where they say nothing.

Called by `servers` and `transport`, in their thread only.  In: the user's ceilings, the headers of answers, refusals.
Out: when the next request may go.  Times are seconds of one monotonic clock; serial numbers grow by one per request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from math import inf, sqrt

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


ROUND = 16
"""So many requests are judged together."""
TRIAL_PACE = 0.65
"""Of what is let in: the pace of a trial, at which a limit refuses nothing."""
MARGIN = 2.75
"""Standard errors by which the share refused in a round may be above that of chance."""
EXPECTED_PACE, DECREASE = 0.95, 0.94
"""From this share of the limit on a refusal is no surprise, and the pace becomes this share of what it was."""
INCREASE, FREE_INCREASE = 1.5e-5, 0.1
"""A request that is let in raises the pace by this share, times those since it was set; without a limit, by this."""
REFUSED_IN_A_ROW, CHANCE_IN_A_ROW = 4, 10
"""So many say that none is let in, and so many times the share of chance more."""
MAX_PROBE_PACE, PROBE_DECREASE, MIN_PACE = 30.0, 0.5, 0.1
"""While none is let in, the pace is at most this, times this for each refusal, and at least this."""
IDLE_SECONDS = 5.0
"""Without a request for so long, what went before says nothing of now."""
RAMP_SECONDS, RAMP_REQUESTS = 0.003, 256
"""The first requests go one by one, so that a refusal is noticed before many more are sent."""


class AdaptivePace:
    """Requests per second, which grow and fall by shares; judged are rounds of requests.

    Slower asking lowers the share that is refused where there is a limit, and does not where refusals are by chance.
    So a round with refusals is followed by a trial, a round well below what was let in.  If half of the share or more
    is refused again, that is chance: the pace is what it was, and such a share is ignored from then on.  Else what was
    let in is the limit: the pace stays near it, and grows the faster the longer none is refused.  A Retry-After of 0
    seconds speaks of no limit.
    """

    def __init__(self) -> None:
        self.pace = self._limit = inf
        """Requests per second, and how many are let in; inf: no limit was met yet."""
        self._chance = 0.0
        """The share of requests that is refused however slowly they go."""
        self._trial: tuple[float, float] | None = None
        """During a trial: the pace of the round before, and the share of it that was refused."""
        self._is_blocked = False
        """Whether none is let in."""
        self._next = self._paused_until = 0.0
        self._serial, self._last = 0, -inf
        """The last request, and when it went."""
        self._start, self._began = 0, 0.0
        """The last request before the round, and when the first one of the round went."""
        self._refused: set[int] = set()
        """Of the round."""
        self._let_in = 0
        """Since the pace was set."""
        self._measured, self._measured_since = 0, 0.0
        """Requests let in since none was, or since none was sent; and when that was."""

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        return max(self._paused_until, self._next) - now

    def record_request(self, now: float, serial: int) -> None:
        """A request goes."""
        if now - self._last > IDLE_SECONDS + 1 / self.pace:
            self._start_round()
            self._measured, self._measured_since = 0, now
        if serial == self._start + 1:
            self._began = now
        self._serial, self._last = serial, now
        if self.pace < inf:
            self._next = max(self._next, now) + 1 / self.pace
        elif serial <= RAMP_REQUESTS:
            self._next = now + RAMP_SECONDS / (1 + serial / 64)

    def record_success(self, now: float, serial: int) -> None:
        """A request was let in."""
        self._let_in += 1
        self._measured += 1
        if self._is_blocked and serial > self._start:
            self._unblock(now)
        elif not self._trial and not self._is_blocked:
            self.pace *= 1 + (FREE_INCREASE if self._limit == inf else INCREASE * self._let_in)
        self._judge_round(now, serial)

    def record_refusal(self, now: float, serial: int, after: float | None) -> bool:
        """A request was refused, with a Retry-After of so many seconds; whether all wait for that."""
        if after == 0:
            return False
        if serial > self._start:
            self._refused.add(serial)
            if self._is_blocked or self._is_in_a_row(serial):
                self._is_blocked, self._trial, self._limit = True, None, inf
                self._set_pace(now, min(MAX_PROBE_PACE, self.pace) * PROBE_DECREASE)
            elif (
                not self._trial and inf > self.pace >= EXPECTED_PACE * self._limit and self._is_more_than_chance(serial)
            ):
                self._limit = self.pace
                self._set_pace(now, DECREASE * self.pace)
            self._judge_round(now, serial)
        if self._is_blocked:
            self._paused_until = max(self._paused_until, now + (after or 0.0))
        return self._is_blocked

    def _is_in_a_row(self, serial: int) -> bool:
        count = REFUSED_IN_A_ROW + int(CHANCE_IN_A_ROW * self._chance)
        return self._refused.issuperset(range(serial - count + 1, serial + 1))

    def _is_more_than_chance(self, serial: int) -> bool:
        count = max(ROUND, serial - self._start)
        error = sqrt(self._chance * (1 - self._chance) / count)
        return len(self._refused) / count > self._chance + MARGIN * error

    def _judge_round(self, now: float, serial: int) -> None:
        """Decide at the end of a round."""
        if serial < self._start + ROUND:
            return
        share = min(1.0, len(self._refused) / (serial - self._start))
        if self._trial:
            (pace_before, share_before), self._trial = self._trial, None
            self._chance = share
            if share >= share_before / 2:
                self._limit = inf
            self._set_pace(now, pace_before if self._limit == inf else DECREASE * self._limit)
        elif self._is_more_than_chance(serial):
            rate = (self._serial - self._start) / max(0.01, now - self._began)
            self._limit, self._trial = rate * (1 - share), (self.pace, share)
            self._set_pace(now, TRIAL_PACE * self._limit)
        else:
            self._start_round()

    def _unblock(self, now: float) -> None:
        """One is let in again: at the pace at which some were, waits included."""
        measured = self._measured / max(0.01, now - self._measured_since)
        if measured > self.pace or self._measured >= ROUND / 2:
            self._limit = self.pace = measured
        self._is_blocked, self._measured, self._measured_since = False, 0, now
        self._set_pace(now, self.pace)

    def _set_pace(self, now: float, pace: float) -> None:
        self.pace, self._let_in = max(MIN_PACE, pace), 0
        self._next = now + 1 / self.pace
        self._start_round()

    def _start_round(self) -> None:
        """What is under way belongs to none."""
        self._start = self._serial
        self._refused.clear()


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

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a request of about so many tokens may go."""
        waits = (self._requests.wait(now), self._tokens.wait(now), self._pace.wait(now))
        return max(*waits, self._left_requests.wait(now, 1.0), self._left_tokens.wait(now, tokens))

    def take(self, tokens: float) -> int:
        """Such a request goes; its serial number."""
        now = time.monotonic()
        self._serial += 1
        self._sent.append((self._serial, tokens))
        self._requests.take(now, 1.0)
        self._tokens.take(now, tokens)
        self._left_requests.take(now, 1.0)
        self._left_tokens.take(now, tokens)
        self._pace.record_request(now, self._serial)
        return self._serial

    def record_answer(self, serial: int, headers: Mapping[str, str]) -> None:
        """A request was let in."""
        now = time.monotonic()
        self._pace.record_success(now, serial)
        self._read_headers(now, serial, headers)

    def record_refusal(self, serial: int, headers: Mapping[str, str], after: float | None) -> bool:
        """A request was refused for coming too fast; whether `wait` makes all wait for it."""
        now = time.monotonic()
        self._read_headers(now, serial, headers)
        return self._pace.record_refusal(now, serial, after)

    def correct_tokens(self, tokens: float) -> None:
        """A request took so many tokens more than was estimated."""
        self._tokens.correct(tokens)

    def _read_headers(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        while self._sent and self._sent[0][0] <= serial:
            self._sent.popleft()
        self._left_requests.read(now, headers, len(self._sent))
        self._left_tokens.read(now, headers, sum(tokens for _, tokens in self._sent))
