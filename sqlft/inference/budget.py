"""What one version's requests cost, and whether the next one may be asked.

A request is reserved at its worst case: as many tokens as its prompt has bytes (no tokenizer makes more) or, once
answers have shown how many tokens a byte makes, 1.5 times that; and `max_tokens` of answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from sqlft.catalog.records import RUNNING, Version
from sqlft.errors import BudgetExceeded, NotFound, OptionError
from sqlft.handler import (
    MAX_TOKENS_PER_MESSAGE,
    Completion,
    Message,
    SamplingOptions,
    count_bytes,
    max_prompt_tokens,
    read_options,
)
from sqlft.inference.prices import SECONDS_PER_HOUR, Pricing, find_pricing
from sqlft.inference.resolve import ResolvedVersion
from sqlft.session import Budget, Session, SessionBudget, budget_exceeded_error, format_dollars, reserve_all

SAFETY_MARGIN = 1.5
MIN_ROW_SECONDS = 0.001
"""Least seconds that a row on a machine is charged."""
MIN_SAMPLES = 3
"""Answers after which tokens a byte are taken as known."""
DEFAULT_OUTPUT_TOKENS = 256
"""Tokens reserved for an answer whose request sets no max_tokens, or twice the longest so far."""


class CostTracker:
    """Reservations and costs of one statement at one version."""

    def __init__(self, session: Session, resolved: ResolvedVersion, options: object, limits: Sequence[Budget]) -> None:
        self._session, self._resolved = session, resolved
        self._max_tokens = read_options(SamplingOptions, options).max_tokens
        self._limits = [*limits, session.budget]
        self._pricing: Pricing | None = None
        self._reservations: dict[int, tuple[float | None, int]] = {}
        self._charged_usd = 0.0
        self._known_usd = 0.0
        self._unknown_costs = 0
        self._calls = 0
        self._tokens_per_byte = 0.0
        self._counted_answers = 0
        self._longest_answer = 0
        self.timer = MachineTimer()

    @property
    def pricing(self) -> Pricing:
        """How this version is paid."""
        if self._pricing is None:
            self._pricing = find_pricing(self._session, self._resolved)
        return self._pricing

    @property
    def total(self) -> float | None:
        """USD of all so far: 0 where nothing was asked, None where a part is not known."""
        if self._calls == 0:
            return 0.0
        if (machine := self.pricing.cost_of_seconds(self.timer.elapsed())) is not None:
            return machine
        return None if self._unknown_costs else self._known_usd

    def check(self, messages: Sequence[Message]) -> None:
        """Raise before anything is opened if the first request can already not be asked."""
        worst = self._worst_cost(messages)
        for limit in self._limits:
            if limit.has_cost_limit and limit.usd and not self.pricing.known:
                raise _unknown_cost_error(self._resolved, limit)
            exceeded = limit.find_exceeded(worst if limit.has_cost_limit else 0.0)
            if exceeded is not None:
                raise budget_exceeded_error(exceeded, str(self._resolved.version.key))

    def admit(self, i: int, messages: Sequence[Message], *, first: bool) -> BudgetExceeded | None:
        """Reserve for a request that is about to be handed out, or say why it must not be; called in any thread."""
        if not self._is_metered:
            self._calls += 1
            return None
        size = sum(map(count_bytes, messages))
        worst = self._worst_cost(messages) if self._bounds_cost else None
        exceeded = reserve_all(self._limits, worst, int(first))
        if exceeded is not None:
            return budget_exceeded_error(exceeded, str(self._resolved.version.key))
        self._calls += 1
        self._reservations[i] = (worst, size)
        self.timer.begin(i)
        return None

    def settle(self, c: Completion) -> float | None:
        """What an answer cost, in place of what was reserved for it; None if that is not known."""
        if not self._is_metered:
            return self._add_cost(c, self._find_cost(c, 0.0))
        worst, size = self._reservations.pop(c.id, (None, 0))
        seconds = self.timer.end(c.id)
        cost = self._add_cost(c, self._find_cost(c, seconds))
        spent = worst if cost is None and c.error is None else cost
        for limit in self._limits:
            limit.settle(worst, spent)
        self._charged_usd += spent or 0.0
        self._learn_rates(c, size)
        return cost

    def _add_cost(self, c: Completion, cost: float | None) -> float | None:
        if cost is not None:
            self._known_usd += cost
        elif c.error is None:
            self._unknown_costs += 1
        return cost

    @cached_property
    def _is_metered(self) -> bool:
        """Whether a limit or the price of a machine's time needs each request's share; most statements have none."""
        return self.pricing.cost_of_seconds(1.0) is not None or any(limit.is_set for limit in self._limits)

    def release_request(self, i: int) -> None:
        """A request that will not be answered."""
        if not self._is_metered:
            return
        worst, _ = self._reservations.pop(i, (None, 0))
        self.timer.end(i)
        self._release(worst)

    def check_running(self) -> None:
        """Raise where a limit is passed while nothing comes: the time, or the machine's money."""
        for limit in self._limits:
            time_exceeded = limit.find_time_exceeded()
            if time_exceeded is not None:
                raise budget_exceeded_error(time_exceeded, str(self._resolved.version.key))
            running = self.pricing.cost_of_seconds(self.timer.elapsed()) if limit.has_cost_limit else None
            if (
                running is not None
                and (exceeded := limit.find_exceeded(running - self._charged_usd - limit.reserved, 0)) is not None
            ):
                raise budget_exceeded_error(exceeded, str(self._resolved.version.key))

    def close(self) -> None:
        """Release what is still reserved, and count machine time that no row had."""
        for worst, _ in list(self._reservations.values()):
            self._release(worst)
        self._reservations.clear()
        if self._calls and (machine := self.pricing.cost_of_seconds(self.timer.elapsed())) is not None:
            rest, self._charged_usd = machine - self._charged_usd, machine
            for limit in self._limits:
                limit.settle(None, max(0.0, rest))

    @property
    def _bounds_cost(self) -> bool:
        return any(limit.has_cost_limit for limit in self._limits)

    def _release(self, worst: float | None) -> None:
        for limit in self._limits:
            limit.settle(worst, None)

    def _find_cost(self, c: Completion, seconds: float) -> float | None:
        pricing = self.pricing
        if c.cost_usd is not None and not pricing.is_own:
            return c.cost_usd
        if c.error is not None and c.input_tokens is None and pricing.is_per_token:
            return None
        machine = pricing.cost_of_seconds(seconds)
        return pricing.cost_of_tokens(c.input_tokens, c.output_tokens, c.cached_tokens) if machine is None else machine

    def _worst_cost(self, messages: Sequence[Message]) -> float | None:
        """The most that a request can cost in USD; of a machine's time, as much as the longest row had so far."""
        machine = self.pricing.cost_of_seconds(max(self.timer.longest, MIN_ROW_SECONDS))
        if machine is not None:
            return machine
        input_tokens = max_prompt_tokens(messages)
        if self._counted_answers >= MIN_SAMPLES:
            learned = SAFETY_MARGIN * self._tokens_per_byte * sum(map(count_bytes, messages))
            input_tokens = min(input_tokens, int(learned) + MAX_TOKENS_PER_MESSAGE)
        return self.pricing.cost_of_tokens(input_tokens, self._max_output_tokens())

    def _max_output_tokens(self) -> int:
        if self._max_tokens is not None:
            return self._max_tokens
        return 2 * self._longest_answer if self._longest_answer else DEFAULT_OUTPUT_TOKENS

    def _learn_rates(self, c: Completion, size: int) -> None:
        if c.input_tokens is not None and size:
            self._tokens_per_byte = max(self._tokens_per_byte, c.input_tokens / size)
            self._counted_answers += 1
        self._longest_answer = max(self._longest_answer, c.output_tokens or 0)


def _unknown_cost_error(resolved: ResolvedVersion, limit: Budget) -> OptionError:
    engine = resolved.model.engine
    named = f" '{resolved.model.base}'" if resolved.model.base else ""
    return OptionError(
        f"{limit.name} = {limit.usd:g} cannot be promised: what {resolved.version.key} costs is not known.",
        f"CREATE PRICE FOR {engine}{named} USING input = …, output = … (USD per million tokens);"
        f" for a machine: CREATE PRICE FOR {engine} USING machine_usd_per_hour = … (0 if it costs nothing).",
    )


class MachineTimer:
    """Time that a machine works, each moment shared equally by the rows under way; several threads tell it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._share = 0.0
        self._waiting = 0.0
        self._started: dict[int, float] = {}
        self.seconds = 0.0
        """The machine's time so far."""
        self.longest = 0.0
        """The largest share of a row so far."""

    def start(self) -> None:
        """The machine works from now on."""
        with self._lock:
            self._since = self._clock()

    def pause(self) -> None:
        """It waits, for the next call of `start`."""
        with self._lock:
            self._add_elapsed()
            self._since = None

    def begin(self, row: int) -> None:
        """A row is under way."""
        with self._lock:
            self._add_elapsed()
            self._started[row] = self._share

    def end(self, row: int) -> float:
        """Its seconds: its part of the time since then, and of what went before the first row, as loading does."""
        with self._lock:
            self._add_elapsed()
            if self._started:
                self._share += self._waiting / len(self._started)
                self._waiting = 0.0
            seconds = self._share - self._started.pop(row, self._share)
            self.longest = max(self.longest, seconds)
            return seconds

    def elapsed(self) -> float:
        """The machine's seconds up to this moment."""
        with self._lock:
            self._add_elapsed()
            return self.seconds

    def _add_elapsed(self) -> None:
        if self._since is None:
            return
        at = self._clock()
        passed, self._since = at - self._since, at
        self.seconds += passed
        if self._started:
            self._share += passed / len(self._started)
        else:
            self._waiting += passed


@contextmanager
def hold_training_budget(
    session_budget: SessionBudget,
    name: str,
    engine: str,
    most: float | None,
    cost: float | None,
    version: Callable[[], Version | None],
) -> Iterator[None]:
    """Hold `cost` USD back under SET sqlft_budget_usd and `most`; BudgetExceeded if it does not fit.

    OptionError if there is a budget and `cost` is not known.  Afterwards what `version` says that it cost is spent; one
    that goes on in the background, its estimate.
    """
    limits = [limit for limit in (Budget(most, name="max_cost_usd"), session_budget) if limit.has_cost_limit]
    if limits and cost is None:
        raise _unknown_training_cost_error(limits[0], name, engine)
    _reserve_all(limits, name, cost or 0.0)
    spent: float | None = cost
    try:
        yield
    finally:
        try:
            trained = version()
        except NotFound:  # it was dropped while it trained, and what it cost with it
            trained = None
        if trained is None or trained.status not in RUNNING:
            spent = None if trained is None else _find_training_cost(trained)
        for limit in limits:
            limit.settle(cost, spent)


def _reserve_all(limits: Sequence[Budget], name: str, cost: float) -> None:
    for i, limit in enumerate(limits):
        if limit.reserve(cost) is None:
            continue
        for earlier in limits[:i]:
            earlier.settle(cost, None)
        reserved_text = f", {format_dollars(limit.reserved)} held for requests under way" if limit.reserved > 0 else ""
        raise BudgetExceeded(
            f"Training {name} would pass the budget: {format_dollars(limit.spent)} of {limit.name}"
            f" = {format_dollars(limit.usd or 0.0)} are"
            f" spent{reserved_text}, and it will cost about {format_dollars(cost)}.",
            f"Train on fewer rows or for fewer epochs, or {_advise_raising(limit)}; "
            "EXPLAIN FINETUNE tells what it will take.",
        )


def _advise_raising(limit: Budget) -> str:
    return f"SET {limit.name} higher" if isinstance(limit, SessionBudget) else f"give a higher {limit.name}"


def _find_training_cost(version: Version) -> float | None:
    """What an ended training cost; of one that broke off the machine's time so far, tokens being unknown."""
    cost = version.details.get("cost_usd")
    if cost is not None:
        return float(cost)
    hourly = version.details.get("machine_usd_per_hour")
    return None if hourly is None or version.seconds is None else hourly * version.seconds / SECONDS_PER_HOUR


def _unknown_training_cost_error(limit: Budget, name: str, engine: str) -> OptionError:
    return OptionError(
        f"{limit.name} = {limit.usd:g} cannot be promised: what training {name} costs is not known.",
        f"CREATE PRICE FOR {engine} USING training = … (USD per million tokens), or machine_usd_per_hour = …"
        f" (0 if the machine costs nothing).",
    )
