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

RAMP = 0.002
"""Seconds between the first requests, so that a refusal is noticed before many more are sent."""
RAMPED = 32
LATE = 0.05
"""A schedule that fell behind by more than this does not catch up."""
LONGEST_PROBE = 6.0
IN_A_ROW = 3
RECENT = 40
THICK = 8
"""A refusal with fewer let in since the last one says that the pace is all wrong."""
MANY = 8
"""So many refusals in a row, or of RECENT, say that there is a limit and the pace is all wrong."""
BLOCKED = 0.8
"""Share of a cycle without anything let in, from which on the provider counts by the window;"""
LONG = 2.0
"""or so many seconds."""
BY_CHANCE = 0.85
"""A refusal at so much less than what went well has another reason."""
STEADY = 5
"""A pace that was found with fewer is a guess, and grows fast."""
NEXT_LOOK = 0.25
"""What an answer tells may change how long to wait: looked at again after this."""
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
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(found).timestamp() - time.time())
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


class Learned:
    """What refusals teach where no header tells: additive increase, multiplicative decrease of a pace.

    Refusals here and there are no limit.  Where they come one after the other, single requests are sent, at growing
    distances, until one passes; how many have passed since that was so last, and in which time, is the pace to go on
    with.  From then on it grows with each that passes, and falls with each that is refused.
    """

    def __init__(self) -> None:
        self.pace: float | None = None
        """Requests a second; None: no limit was met yet."""
        self._next = self._paused_until = 0.0
        self._serial = self._event_serial = 0
        self._probing = self._probe_sent = False
        self._probe_wait = self._probe_at = self._probing_from = 0.0
        self._cycle_at: float | None = None
        self._let_in = 0
        """Requests since the cycle began that were not refused."""
        self._bad = 0.0
        """The pace of the last refusal."""
        self._highest = 0.0
        """The fastest pace at which one was refused, since probes went."""
        self._steep = False
        self._recent: deque[int] = deque(maxlen=RECENT)
        """Serials of those refused of late, 0 for those let in."""

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        if self._probing and self._probe_sent:
            return NEXT_LOOK
        return max(self._paused_until, self._next) - now

    def take(self, now: float, serial: int) -> None:
        """A request goes."""
        self._serial = serial
        self._let_in += 1
        if self._cycle_at is None:
            self._cycle_at = now
        if self._probing:
            self._probe_sent, self._probe_at = True, now
        elif self.pace is not None:
            self._next = max(self._next, now) + 1 / self.pace
        elif serial <= RAMPED:
            self._next = now + RAMP

    def passed(self, now: float, serial: int) -> None:
        """A request was let in."""
        self._recent.append(0)
        if serial <= self._event_serial:
            return
        if self._probing:
            self._go_on(now)
        elif self.pace is not None:
            near = abs(self.pace - self._bad) < 0.03 * self._bad
            self.pace *= 1.15 if self._steep else 1.0004 if near else 1.01

    def refused(self, now: float, serial: int, after: float | None) -> bool:
        """A request was refused, and told to wait `after` seconds; whether that concerns all."""
        self._let_in -= 1
        self._recent.append(serial)
        if serial <= self._event_serial:  # sent before the last refusal was known
            self._paused_until = max(self._paused_until, now + (after or 0.0))
            return True
        if self._probing:
            self._probe_sent = False
            self._probe_wait = min(LONGEST_PROBE, self._probe_wait * 2)
        elif self._many() or (self.pace is not None and (self._steep or self._let_in < THICK)):
            self._probing, self._probe_sent, self._probing_from = True, False, now
            self._probe_wait = 0.05 if self.pace is None else min(1.0, 0.5 / self.pace)
        elif self.pace is None or self.pace < BY_CHANCE * self._highest:
            return False
        else:
            self._bad, self._highest = self.pace, max(self._highest, self.pace)
            self.pace *= 0.94
            self._probe_wait = 0.5 / self.pace
            self._cycle_at, self._let_in = now, 0
        self._event_serial = self._serial
        self._paused_until = now + (after if after is not None else self._probe_wait)
        return True

    def lost(self, serial: int) -> None:
        """A request ended in another way; a probe is sent again."""
        if self._probing and serial > self._event_serial:
            self._probe_sent = False

    def _many(self) -> bool:
        """Whether the last refusal is one of some in a row, or of many."""
        refused = {s for s in self._recent if s > self._event_serial}
        last = self._recent[-1]
        return len(refused) >= MANY or all(last - i in refused for i in range(IN_A_ROW))

    def _measured(self, now: float) -> float:
        """Requests a second that were let in since the cycle began."""
        return max(1, self._let_in) / max(1e-3, now - (self._cycle_at or 0.0))

    def _go_on(self, now: float) -> None:
        """A probe passed."""
        waited, cycle = self._probe_at - self._probing_from, self._probe_at - (self._cycle_at or 0.0)
        if self.pace is None and waited < min(LONG, BLOCKED * cycle):  # what passed before came from a burst
            self.pace, self._steep = 1 / max(1e-3, waited), True
        else:
            self.pace, self._steep = self._measured(self._probe_at), self._let_in < STEADY
        self._probing = self._probe_sent = False
        self._cycle_at, self._let_in = self._probe_at, 0
        self._event_serial = self._serial
        self._next, self._highest = now + 1 / self.pace, 0.0


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
