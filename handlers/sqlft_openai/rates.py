"""How fast an account may be asked: what the provider says in headers, what it refuses, and the user's ceilings.

All times are seconds of one monotonic clock.  The classes decide; `Rates` waits.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from sqlft_openai.learned import NEXT_LOOK, Learned

LATE = 0.05
"""A schedule that fell behind by more than this does not catch up."""
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def seconds_of(text: str) -> float | None:
    """6ms, 1s, 6m0s, or a plain number, as seconds; None for anything else."""
    text = text.strip().lower()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    found = DURATION.findall(text)
    if not found or DURATION.sub("", text):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in found)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How long the provider wants to be left alone, in seconds."""
    if (found := headers.get("retry-after-ms")) and (wait := seconds_of(found)) is not None:
        return wait / 1000
    if not (found := headers.get("retry-after")):
        return None
    if (wait := seconds_of(found)) is not None:
        return wait
    then = _moment(found)
    now = _moment(headers.get("date") or "")  # by the provider's clock, where it tells: this machine's may be wrong
    return None if then is None else max(0.0, then - (time.time() if now is None else now))


def _moment(text: str) -> float | None:
    """Seconds since 1970 of a date as headers have it."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


class Ceiling:
    """So many a second and no more: a schedule, which each request moves on."""

    def __init__(self, per_minute: float | None) -> None:
        self._each = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        return self._next - now if self._each else 0.0

    def take(self, now: float, amount: float = 1.0) -> None:
        """One goes, or so many tokens."""
        if self._each:
            self._next = max(self._next, now - LATE) + amount * self._each

    def correct(self, amount: float) -> None:
        """So many tokens more, or fewer, than were taken."""
        self._next += amount * self._each


class Seen(NamedTuple):
    """What headers said: at which time, what was left, when all is back."""

    at: float
    left: float
    end: float


class Told:
    """What x-ratelimit headers say is left, of requests or of tokens.

    It comes back evenly, or all at once when a window ends: then the end stays where it is while less is left.
    """

    def __init__(self, kind: str) -> None:
        self._names = tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
        self._left: float | None = None
        self._most = self._refill = 0.0
        self._at = self._end = 0.0
        self._last: Seen | None = None
        self._windowed = False
        self._taken: deque[tuple[int, float]] = deque(maxlen=4096)

    @property
    def known(self) -> bool:
        """Whether any header was heard."""
        return self._left is not None

    def wait(self, now: float, amount: float = 1.0) -> float:
        """Seconds until so much is left."""
        if self._left is None:
            return 0.0
        left = self._left_at(now)
        amount = min(amount, self._most)
        if left >= amount:
            return 0.0
        return self._end - now if self._windowed else (amount - left) / self._refill

    def take(self, now: float, serial: int, amount: float = 1.0) -> None:
        """A request goes."""
        if self._left is not None:
            self._left, self._at = self._left_at(now) - amount, now
        self._taken.append((serial, amount))

    def hear(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        """The headers of the answer to a request; those sent after it may not be counted in them."""
        limit, remaining, reset = (headers.get(name) for name in self._names)
        if remaining is None or limit is None:
            return
        try:
            per_minute, left = float(limit), float(remaining)
        except ValueError:
            return
        after = seconds_of(reset) if reset else None
        while self._taken and self._taken[0][0] <= serial:
            self._taken.popleft()
        self._most, self._at = max(self._most, left, 1.0), now
        self._left = left - sum(amount for _, amount in self._taken)
        self._end = now + (after if after is not None else 60.0)
        even = max(1e-9, per_minute / 60)
        self._refill = self._refill or even
        if self._last is None or self._last.left < left:
            self._last = Seen(now, left, self._end)
        elif (gone := self._last.left - left) >= 2:
            moved = self._end - self._last.end
            self._windowed = moved < 0.3 * gone / even
            if not self._windowed:
                self._refill = min(even, gone / max(1e-3, moved - (now - self._last.at)))
            self._last = Seen(now, left, self._end)

    def _left_at(self, now: float) -> float:
        assert self._left is not None
        if self._windowed:
            return max(self._left, self._most) if now >= self._end else self._left
        return min(self._most, self._left + self._refill * (now - self._at))


class Rates:
    """Of one model and key; used in the line's thread only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = Ceiling(requests_per_minute), Ceiling(tokens_per_minute)
        self._told_requests, self._told_tokens = Told("requests"), Told("tokens")
        self._learned = Learned()
        self._serial = 0
        self._queue: asyncio.Lock | None = None

    async def turn(self, tokens: float) -> int:
        """Wait until a request of about so many tokens may go; its serial number."""
        if self._queue is None:
            self._queue = asyncio.Lock()
        if self._queue.locked() or self._wait(time.monotonic(), tokens) > 0:
            async with self._queue:
                while (wait := self._wait(time.monotonic(), tokens)) > 0:
                    await asyncio.sleep(min(wait, NEXT_LOOK))
                return self._take(tokens)
        return self._take(tokens)

    def answered(self, serial: int, headers: Mapping[str, str]) -> None:
        """A request was let in."""
        now = time.monotonic()
        self._learned.passed(now, serial)
        self._hear(now, serial, headers)

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than was thought."""
        self._tokens.correct(tokens)

    def refused(self, serial: int, headers: Mapping[str, str], after: float | None) -> bool:
        """A request was refused for coming too fast; whether `turn` makes all wait for it.

        Where only refusals carry limits, and a retry-after beside them, that is what counts: a server whose answers
        say nothing of a limit does not keep one request by request.
        """
        now = time.monotonic()
        if after is None or self._told_requests.known or self._told_tokens.known:
            self._hear(now, serial, headers)
        return self._learned.refused(now, serial, after)

    def lost(self, serial: int) -> None:
        """A request ended in another way."""
        self._learned.lost(serial)

    def _hear(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        self._told_requests.hear(now, serial, headers)
        self._told_tokens.hear(now, serial, headers)

    def _wait(self, now: float, tokens: float) -> float:
        return max(
            self._requests.wait(now),
            self._tokens.wait(now),
            self._told_requests.wait(now),
            self._told_tokens.wait(now, tokens),
            self._learned.wait(now),
        )

    def _take(self, tokens: float) -> int:
        now = time.monotonic()
        self._serial += 1
        self._requests.take(now)
        self._tokens.take(now, tokens)
        self._told_requests.take(now, self._serial)
        self._told_tokens.take(now, self._serial, tokens)
        self._learned.take(now, self._serial)
        return self._serial
