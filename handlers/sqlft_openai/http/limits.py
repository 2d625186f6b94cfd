"""How many requests a provider takes: what it says of its limits, and what refusals teach where it says nothing."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

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


RAMP = 0.003
"""Seconds between the first requests, so that a refusal is noticed before many more are sent."""
RAMPED = 256
NEXT_LOOK = 0.25
"""What an answer tells may change how long to wait: looked at again after this."""
IDLE = 5.0
"""Seconds without a request, after which what was counted before says nothing of now."""
IN_A_ROW = 5
"""So many refusals in a row are a limit; of refusals by chance longer rows are expected."""
RECENT = 40
MANY = 14
"""So many refused of RECENT, without a known pace, call for a trial."""
LATELY = 10
"""Answers over which it is measured how many pass in a second."""
TRIAL = 12
SLOWER = 0.6
"""Of the pace: how fast the requests of a trial go."""
HALF = 0.5
"""A trial with this share refused says that the pace is wrong by far."""
MARGIN = 1.3
CREDIT = 3.0
"""Refusals by chance are excused up to MARGIN times their share, and CREDIT of them at once."""
MOST_BY_CHANCE = 0.3
STEEP, EAGER, STEADY = 1.15, 1.008, 1.0005
"""What a pace grows by with each that passes: while it is a guess; when long none was refused; else."""
CALM = 200
DENSE = 25
"""A refusal with fewer let in since the last one calls for a trial."""
FEW = 8
"""With fewer let in nothing is measured."""
FIRST_PROBE, LONGEST_PROBE = 0.05, 6.0
LONG = 2.0
BLOCKED = 0.8
"""A pause of LONG seconds, or of this share of the time, says that the provider counts by the window."""


class Sent(NamedTuple):
    """A request."""

    serial: int
    at: float


@dataclass
class Probe:
    """One request at a time, until one passes."""

    since: float
    pause: float
    told: float = 0.0
    """Seconds for which the provider asked to be left alone."""
    sent: bool = False
    at: float = 0.0


@dataclass
class Trial:
    """Some requests at a slower pace, once one has passed again."""

    last: int | None = None
    refused: int = 0


class Learned:
    """The pace at which to ask; times are seconds of one monotonic clock, serials grow by one a request."""

    def __init__(self) -> None:
        self.pace = inf
        """Requests a second; inf: no limit was met yet."""
        self.share = 0.0
        """Of the requests: how many are refused by chance."""
        self._credit = 0.0
        self._next = self._paused_until = 0.0
        self._serial = self._decided = 0
        """The last request; the last one that was sent before the latest decision."""
        self._probe: Probe | None = None
        self._trial: Trial | None = None
        self._steep = False
        self._calm = 0
        """Requests that passed since one was refused."""
        self._since, self._let_in, self._turned_away = 0.0, 0, 0
        """Of what is measured now: its beginning, those sent that were not refused, those that were."""
        self._sent: deque[Sent] = deque(maxlen=RECENT)
        self._refused: deque[int] = deque(maxlen=RECENT)
        self._passed: deque[float] = deque(maxlen=LATELY)

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        if self._probe and self._probe.sent:
            return NEXT_LOOK
        return max(self._paused_until, self._next) - now

    def take(self, now: float, serial: int) -> None:
        """A request goes."""
        if not self._sent or (not self._probe and now - self._sent[-1].at > IDLE):
            self._measure_from(now)
        self._serial = serial
        self._sent.append(Sent(serial, now))
        self._let_in += 1
        self._credit = min(CREDIT, self._credit + MARGIN * self.share)
        if self._probe:
            self._probe.sent, self._probe.at = True, now
        elif self.pace < inf:
            self._next = max(self._next, now) + 1 / (self.pace * (SLOWER if self._trial else 1.0))
        elif serial <= RAMPED:
            self._next = now + RAMP / (1 + serial / 64)

    def passed(self, now: float, serial: int) -> None:
        """A request was let in."""
        if serial <= self._decided:
            return
        self._passed.append(now)
        if self._probe:
            self._go_on(now, self._probe)
        elif self._trial:
            self._judge(now, serial, self._trial)
        elif self.pace == inf:
            among = self._turned_away - sum(s > serial for s in self._refused)
            self.share = min(MOST_BY_CHANCE, among / (among + max(1, self._let_in))) if among > 2 else 0.0
        else:
            self._calm += 1
            if self.pace <= 2 * self._lately(now):  # a pace that is not used says nothing
                self.pace *= STEEP if self._steep else EAGER if self._calm > CALM else STEADY

    def refused(self, now: float, serial: int, after: float | None) -> bool:
        """A request was refused, and told to wait `after` seconds; whether that concerns all."""
        self._let_in -= 1
        if serial <= self._decided:
            if self._probe:
                self._paused_until = max(self._paused_until, now + (after or 0.0))
            return self._probe is not None
        self._refused.append(serial)
        self._turned_away += 1
        if self._probe:
            self._probe.sent = False
            self._probe.pause = min(LONGEST_PROBE, self._probe.pause * 2)
        elif self._in_a_row(serial):
            self._probe, self._trial = Probe(now, max(FIRST_PROBE, min(1.0, 0.5 / self.pace))), None
            self._refused.clear()
        else:
            self._alone(now, serial)
            return False
        self._decided = self._serial
        self._probe.told += after or 0.0
        self._paused_until = now + (self._probe.pause if after is None else after)
        return True

    def lost(self, serial: int) -> None:
        """A request ended in another way; a probe is sent again."""
        if self._probe and serial > self._decided:
            self._probe.sent = False

    def _in_a_row(self, serial: int) -> bool:
        """Whether it is one of so many in a row, in whichever order they came back."""
        first = last = serial
        while first - 1 in self._refused:
            first -= 1
        while last + 1 in self._refused:
            last += 1
        return last - first >= IN_A_ROW - 1 + int(10 * self.share)

    def _alone(self, now: float, serial: int) -> None:
        """A refusal that may be chance, or a pace somewhat too fast."""
        if self._trial:
            if self._trial.last is not None:
                self._trial.refused += serial <= self._trial.last
                self._judge(now, serial, self._trial)
        elif self._credit >= 1:
            self._credit -= 1
        elif self.pace == inf:
            self._without_pace(now)
        elif not self._steep:
            dense, self._calm = self._calm < DENSE, 0
            self.pace *= 0.9 if dense else 0.96
            if dense:
                self._try()
        elif self._let_in < FEW:
            self.pace /= 2
        else:
            self.pace, self._steep, self._calm = min(self.pace, self._lately(now)), False, CALM
            self._try()

    def _without_pace(self, now: float) -> None:
        """A pace from what passed since the first of many refusals: what passed before may be a burst."""
        refused = {s for s in self._refused if s >= self._sent[0].serial}
        if len(self._sent) == RECENT and len(refused) >= MANY:
            since = [sent for sent in self._sent if sent.serial >= min(refused)]
            self.pace = max(1, len(since) - len(refused)) / max(1e-3, now - since[0].at)
            self._try()

    def _try(self) -> None:
        self._trial, self._decided = Trial(), self._serial

    def _judge(self, now: float, serial: int, trial: Trial) -> None:
        """The trial begins, or may have ended."""
        if trial.last is None:
            trial.last = self._serial + TRIAL
        elif serial >= trial.last:
            self._trial = None
            found = trial.refused / TRIAL
            if found >= HALF:
                self.pace *= 1 - min(0.7, found)
                self._try()
            else:
                self.share = max(found, self.share) if found else 0.0
                self._steep, self._credit = found > 0, CREDIT if found else 0.0
            self._measure_from(now)

    def _go_on(self, now: float, probe: Probe) -> None:
        """A probe passed."""
        self._probe = None
        first, took = self.pace == inf, probe.at - self._since
        waited = max(FIRST_PROBE, probe.at - probe.since - probe.told)
        measured = max(1, self._let_in) / max(1e-3, took)
        if first and not self.share and waited < min(LONG, BLOCKED * took):  # what passed before came from a burst
            self.pace = min(measured, 1 / waited)
        else:
            self.pace = measured if first or self._let_in >= FEW else self.pace / 2
        self._steep, self._calm, self._credit = first or self.share > 0, 0, CREDIT if self.share else 0.0
        self._measure_from(probe.at)
        self._decided, self._next = self._serial, now + 1 / self.pace

    def _measure_from(self, at: float) -> None:
        self._since, self._let_in, self._turned_away = at, 0, 0
        self._passed.clear()

    def _lately(self, now: float) -> float:
        """Requests a second that passed of late."""
        return len(self._passed) / max(1e-3, now - self._passed[0]) if self._passed else inf
