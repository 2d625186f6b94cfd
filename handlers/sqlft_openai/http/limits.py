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

MAX_LAG = 0.05
"""A schedule that fell behind by more than this does not catch up."""
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def parse_duration(text: str) -> float | None:
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


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """How long the provider wants to be left alone, in seconds."""
    if (found := headers.get("retry-after-ms")) and (wait := parse_duration(found)) is not None:
        return wait / 1000
    if not (found := headers.get("retry-after")):
        return None
    if (wait := parse_duration(found)) is not None:
        return wait
    then = _parse_date(found)
    now = _parse_date(headers.get("date") or "")  # by the provider's clock, where it tells: this machine's may be wrong
    return None if then is None else max(0.0, then - (time.time() if now is None else now))


def _parse_date(text: str) -> float | None:
    """Seconds since 1970 of a date as headers have it."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


class FixedRateLimiter:
    """So many a second and no more: a schedule, which each request moves on."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        return self._next - now if self._seconds_each else 0.0

    def record_request(self, now: float, amount: float = 1.0) -> None:
        """One goes, or so many tokens."""
        if self._seconds_each:
            self._next = max(self._next, now - MAX_LAG) + amount * self._seconds_each

    def correct_tokens(self, amount: float) -> None:
        """So many tokens more, or fewer, than were taken."""
        self._next += amount * self._seconds_each


class HeaderReading(NamedTuple):
    """What headers said: at which time, what was left, when all is back."""

    at: float
    left: float
    end: float


class HeaderRateLimiter:
    """What x-ratelimit headers say is left, of requests or of tokens.

    It comes back evenly, or all at once when a window ends: then the end stays where it is while less is left.
    """

    def __init__(self, kind: str) -> None:
        self._names = tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
        self._left: float | None = None
        self._most = self._refill = 0.0
        self._at = self._end = 0.0
        self._last: HeaderReading | None = None
        self._is_windowed = False
        self._requests_sent: deque[tuple[int, float]] = deque(maxlen=4096)

    @property
    def has_headers(self) -> bool:
        """Whether any header was read."""
        return self._left is not None

    def wait(self, now: float, amount: float = 1.0) -> float:
        """Seconds until so much is left."""
        if self._left is None:
            return 0.0
        left = self._estimate_left(now)
        amount = min(amount, self._most)
        if left >= amount:
            return 0.0
        return self._end - now if self._is_windowed else (amount - left) / self._refill

    def record_request(self, now: float, serial: int, amount: float = 1.0) -> None:
        """A request goes."""
        if self._left is not None:
            self._left, self._at = self._estimate_left(now) - amount, now
        self._requests_sent.append((serial, amount))

    def read_headers(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        """The headers of the answer to a request; those sent after it may not be counted in them."""
        limit, remaining, reset = (headers.get(name) for name in self._names)
        if remaining is None or limit is None:
            return
        try:
            per_minute, left = float(limit), float(remaining)
        except ValueError:
            return
        after = parse_duration(reset) if reset else None
        while self._requests_sent and self._requests_sent[0][0] <= serial:
            self._requests_sent.popleft()
        self._most, self._at = max(self._most, left, 1.0), now
        self._left = left - sum(amount for _, amount in self._requests_sent)
        self._end = now + (after if after is not None else 60.0)
        even = max(1e-9, per_minute / 60)
        self._refill = self._refill or even
        if self._last is None or self._last.left < left:
            self._last = HeaderReading(now, left, self._end)
        elif (gone := self._last.left - left) >= 2:
            moved = self._end - self._last.end
            self._is_windowed = moved < 0.3 * gone / even
            if not self._is_windowed:
                self._refill = min(even, gone / max(1e-3, moved - (now - self._last.at)))
            self._last = HeaderReading(now, left, self._end)

    def _estimate_left(self, now: float) -> float:
        assert self._left is not None
        if self._is_windowed:
            return max(self._left, self._most) if now >= self._end else self._left
        return min(self._most, self._left + self._refill * (now - self._at))


class RateLimiter:
    """Of one model and key; used in the transport thread only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = FixedRateLimiter(requests_per_minute), FixedRateLimiter(tokens_per_minute)
        self._header_requests, self._header_tokens = HeaderRateLimiter("requests"), HeaderRateLimiter("tokens")
        self._adaptive = AdaptiveRateLimiter()
        self._serial = 0
        self._queue: asyncio.Lock | None = None

    async def acquire(self, tokens: float) -> int:
        """Wait until a request of about so many tokens may go; its serial number."""
        if self._queue is None:
            self._queue = asyncio.Lock()
        if self._queue.locked() or self._wait(time.monotonic(), tokens) > 0:
            async with self._queue:
                while (wait := self._wait(time.monotonic(), tokens)) > 0:
                    await asyncio.sleep(min(wait, RECHECK_SECONDS))
                return self._record_request(tokens)
        return self._record_request(tokens)

    def record_answer(self, serial: int, headers: Mapping[str, str]) -> None:
        """A request was let in."""
        now = time.monotonic()
        self._adaptive.record_success(now, serial)
        self._read_headers(now, serial, headers)

    def correct_tokens(self, tokens: float) -> None:
        """A request took so many tokens more than was thought."""
        self._tokens.correct_tokens(tokens)

    def record_refusal(self, serial: int, headers: Mapping[str, str], after: float | None) -> bool:
        """A request was refused for coming too fast; whether `acquire` makes all wait for it.

        Where only refusals carry limits, and a retry-after beside them, that is what counts: a server whose answers
        say nothing of a limit does not keep one request by request.
        """
        now = time.monotonic()
        if after is None or self._header_requests.has_headers or self._header_tokens.has_headers:
            self._read_headers(now, serial, headers)
        return self._adaptive.record_refusal(now, serial, after)

    def record_failure(self, serial: int) -> None:
        """A request ended in another way."""
        self._adaptive.record_failure(serial)

    def _read_headers(self, now: float, serial: int, headers: Mapping[str, str]) -> None:
        self._header_requests.read_headers(now, serial, headers)
        self._header_tokens.read_headers(now, serial, headers)

    def _wait(self, now: float, tokens: float) -> float:
        return max(
            self._requests.wait(now),
            self._tokens.wait(now),
            self._header_requests.wait(now),
            self._header_tokens.wait(now, tokens),
            self._adaptive.wait(now),
        )

    def _record_request(self, tokens: float) -> int:
        now = time.monotonic()
        self._serial += 1
        self._requests.record_request(now)
        self._tokens.record_request(now, tokens)
        self._header_requests.record_request(now, self._serial)
        self._header_tokens.record_request(now, self._serial, tokens)
        self._adaptive.record_request(now, self._serial)
        return self._serial


RAMP_SECONDS = 0.003
"""Seconds between the first requests, so that a refusal is noticed before many more are sent."""
RAMP_REQUESTS = 256
RECHECK_SECONDS = 0.25
"""What an answer tells may change how long to wait: looked at again after this."""
IDLE_SECONDS = 5.0
"""Seconds without a request, after which what was counted before says nothing of now."""
REFUSALS_IN_A_ROW = 5
"""So many refusals in a row are a limit; of refusals by chance longer rows are expected."""
RECENT_REQUESTS = 40
MANY_REFUSALS = 14
"""So many refused of RECENT, without a known pace, call for a trial."""
RECENT_ANSWERS = 10
"""Answers over which it is measured how many pass in a second."""
TRIAL_REQUESTS = 12
TRIAL_PACE = 0.6
"""Of the pace: how fast the requests of a trial go."""
WRONG_PACE_SHARE = 0.5
"""A trial with this share refused says that the pace is wrong by far."""
CHANCE_MARGIN = 1.3
MAX_CREDIT = 3.0
"""Refusals by chance are excused up to MARGIN times their share, and CREDIT of them at once."""
MAX_CHANCE_SHARE = 0.3
GUESS_GROWTH, CALM_GROWTH, STEADY_GROWTH = 1.15, 1.008, 1.0005
"""What a pace grows by with each that passes: while it is a guess; when long none was refused; else."""
CALM_REQUESTS = 200
DENSE_REQUESTS = 25
"""A refusal with fewer let in since the last one calls for a trial."""
MIN_MEASURED = 8
"""With fewer let in nothing is measured."""
MIN_PROBE_PAUSE, MAX_PROBE_PAUSE = 0.05, 6.0
WINDOW_PAUSE = 2.0
WINDOW_PAUSE_SHARE = 0.8
"""A pause of LONG seconds, or of this share of the time, says that the provider counts by the window."""


class SentRequest(NamedTuple):
    """A request."""

    serial: int
    at: float


@dataclass
class PaceProbe:
    """One request at a time, until one passes."""

    since: float
    pause: float
    asked_pause: float = 0.0
    """Seconds for which the provider asked to be left alone."""
    sent: bool = False
    at: float = 0.0


@dataclass
class PaceTrial:
    """Some requests at a slower pace, once one has passed again."""

    last: int | None = None
    refused: int = 0


class AdaptiveRateLimiter:
    """The pace at which to ask; times are seconds of one monotonic clock, serials grow by one a request."""

    def __init__(self) -> None:
        self.pace = inf
        """Requests a second; inf: no limit was met yet."""
        self.chance_share = 0.0
        """Of the requests: how many are refused by chance."""
        self._credit = 0.0
        self._next = self._paused_until = 0.0
        self._serial = self._last_decided = 0
        """The last request; the last one that was sent before the latest decision."""
        self._probe: PaceProbe | None = None
        self._trial: PaceTrial | None = None
        self._is_guess = False
        self._passed_in_a_row = 0
        """Requests that passed since one was refused."""
        self._measured_since, self._admitted, self._refusals = 0.0, 0, 0
        """Of what is measured now: its beginning, those sent that were not refused, those that were."""
        self._sent: deque[SentRequest] = deque(maxlen=RECENT_REQUESTS)
        self._refused: deque[int] = deque(maxlen=RECENT_REQUESTS)
        self._passed: deque[float] = deque(maxlen=RECENT_ANSWERS)

    def wait(self, now: float) -> float:
        """Seconds until the next may go."""
        if self._probe and self._probe.sent:
            return RECHECK_SECONDS
        return max(self._paused_until, self._next) - now

    def record_request(self, now: float, serial: int) -> None:
        """A request goes."""
        if not self._sent or (not self._probe and now - self._sent[-1].at > IDLE_SECONDS):
            self._reset_measurement(now)
        self._serial = serial
        self._sent.append(SentRequest(serial, now))
        self._admitted += 1
        self._credit = min(MAX_CREDIT, self._credit + CHANCE_MARGIN * self.chance_share)
        if self._probe:
            self._probe.sent, self._probe.at = True, now
        elif self.pace < inf:
            self._next = max(self._next, now) + 1 / (self.pace * (TRIAL_PACE if self._trial else 1.0))
        elif serial <= RAMP_REQUESTS:
            self._next = now + RAMP_SECONDS / (1 + serial / 64)

    def record_success(self, now: float, serial: int) -> None:
        """A request was let in."""
        if serial <= self._last_decided:
            return
        self._passed.append(now)
        if self._probe:
            self._resume_after_probe(now, self._probe)
        elif self._trial:
            self._judge_trial(now, serial, self._trial)
        elif self.pace == inf:
            among = self._refusals - sum(s > serial for s in self._refused)
            self.chance_share = min(MAX_CHANCE_SHARE, among / (among + max(1, self._admitted))) if among > 2 else 0.0
        else:
            self._passed_in_a_row += 1
            if self.pace <= 2 * self._get_recent_rate(now):  # a pace that is not used says nothing
                self.pace *= (
                    GUESS_GROWTH
                    if self._is_guess
                    else CALM_GROWTH
                    if self._passed_in_a_row > CALM_REQUESTS
                    else STEADY_GROWTH
                )

    def record_refusal(self, now: float, serial: int, after: float | None) -> bool:
        """A request was refused, and told to wait `after` seconds; whether that concerns all."""
        self._admitted -= 1
        if serial <= self._last_decided:
            if self._probe:
                self._paused_until = max(self._paused_until, now + (after or 0.0))
            return self._probe is not None
        self._refused.append(serial)
        self._refusals += 1
        if self._probe:
            self._probe.sent = False
            self._probe.pause = min(MAX_PROBE_PAUSE, self._probe.pause * 2)
        elif self._is_in_a_row(serial):
            self._probe, self._trial = PaceProbe(now, max(MIN_PROBE_PAUSE, min(1.0, 0.5 / self.pace))), None
            self._refused.clear()
        else:
            self._handle_single_refusal(now, serial)
            return False
        self._last_decided = self._serial
        self._probe.asked_pause += after or 0.0
        self._paused_until = now + (self._probe.pause if after is None else after)
        return True

    def record_failure(self, serial: int) -> None:
        """A request ended in another way; a probe is sent again."""
        if self._probe and serial > self._last_decided:
            self._probe.sent = False

    def _is_in_a_row(self, serial: int) -> bool:
        """Whether it is one of so many in a row, in whichever order they came back."""
        first = last = serial
        while first - 1 in self._refused:
            first -= 1
        while last + 1 in self._refused:
            last += 1
        return last - first >= REFUSALS_IN_A_ROW - 1 + int(10 * self.chance_share)

    def _handle_single_refusal(self, now: float, serial: int) -> None:
        """A refusal that may be chance, or a pace somewhat too fast."""
        if self._trial:
            if self._trial.last is not None:
                self._trial.refused += serial <= self._trial.last
                self._judge_trial(now, serial, self._trial)
        elif self._credit >= 1:
            self._credit -= 1
        elif self.pace == inf:
            self._measure_first_pace(now)
        elif not self._is_guess:
            dense, self._passed_in_a_row = self._passed_in_a_row < DENSE_REQUESTS, 0
            self.pace *= 0.9 if dense else 0.96
            if dense:
                self._start_trial()
        elif self._admitted < MIN_MEASURED:
            self.pace /= 2
        else:
            self.pace, self._is_guess, self._passed_in_a_row = (
                min(self.pace, self._get_recent_rate(now)),
                False,
                CALM_REQUESTS,
            )
            self._start_trial()

    def _measure_first_pace(self, now: float) -> None:
        """A pace from what passed since the first of many refusals: what passed before may be a burst."""
        refused = {s for s in self._refused if s >= self._sent[0].serial}
        if len(self._sent) == RECENT_REQUESTS and len(refused) >= MANY_REFUSALS:
            since = [sent for sent in self._sent if sent.serial >= min(refused)]
            self.pace = max(1, len(since) - len(refused)) / max(1e-3, now - since[0].at)
            self._start_trial()

    def _start_trial(self) -> None:
        self._trial, self._last_decided = PaceTrial(), self._serial

    def _judge_trial(self, now: float, serial: int, trial: PaceTrial) -> None:
        """The trial begins, or may have ended."""
        if trial.last is None:
            trial.last = self._serial + TRIAL_REQUESTS
        elif serial >= trial.last:
            self._trial = None
            found = trial.refused / TRIAL_REQUESTS
            if found >= WRONG_PACE_SHARE:
                self.pace *= 1 - min(0.7, found)
                self._start_trial()
            else:
                self.chance_share = max(found, self.chance_share) if found else 0.0
                self._is_guess, self._credit = found > 0, MAX_CREDIT if found else 0.0
            self._reset_measurement(now)

    def _resume_after_probe(self, now: float, probe: PaceProbe) -> None:
        """A probe passed."""
        self._probe = None
        first, took = self.pace == inf, probe.at - self._measured_since
        waited = max(MIN_PROBE_PAUSE, probe.at - probe.since - probe.asked_pause)
        measured = max(1, self._admitted) / max(1e-3, took)
        if (
            first and not self.chance_share and waited < min(WINDOW_PAUSE, WINDOW_PAUSE_SHARE * took)
        ):  # what passed before came from a burst
            self.pace = min(measured, 1 / waited)
        else:
            self.pace = measured if first or self._admitted >= MIN_MEASURED else self.pace / 2
        self._is_guess, self._passed_in_a_row, self._credit = (
            first or self.chance_share > 0,
            0,
            MAX_CREDIT if self.chance_share else 0.0,
        )
        self._reset_measurement(probe.at)
        self._last_decided, self._next = self._serial, now + 1 / self.pace

    def _reset_measurement(self, at: float) -> None:
        self._measured_since, self._admitted, self._refusals = at, 0, 0
        self._passed.clear()

    def _get_recent_rate(self, now: float) -> float:
        """Requests a second that passed of late."""
        return len(self._passed) / max(1e-3, now - self._passed[0]) if self._passed else inf
