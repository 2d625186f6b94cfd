"""What a statement or a session may spend, and the machine's time shared among the rows that it works on.

A request is let through only if its worst case fits: what was spent, what requests in flight may yet cost, and it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlft.errors import BudgetExceeded


class Over(NamedTuple):
    """Which limit a request would pass, in words."""

    what: str
    next_step: str


@dataclass
class Limits:
    """USD, rows and seconds, None for no limit; shared by all that asks under it, in several threads."""

    usd: float | None = None
    rows: int | None = None
    seconds: float | None = None
    name: str = "max_cost_usd"
    spent: float = 0.0
    reserved: float = 0.0
    asked: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bounds_cost(self) -> bool:
        """Whether there is a limit in USD."""
        return self.usd is not None

    @property
    def is_set(self) -> bool:
        """Whether there is a limit at all."""
        return self.usd is not None or self.rows is not None or self.seconds is not None

    def over(self, worst: float | None, rows: int = 1) -> Over | None:
        """What keeps a request from being asked that may cost `worst` USD; None if nothing does."""
        again = "What was answered is kept: run it again with more"
        if self.rows is not None and self.asked + rows > self.rows:
            return Over(f"{self.asked} rows were asked, and max_rows is {self.rows}", f"{again}, or with fewer rows.")
        if (late := self.late()) is not None:
            return late
        if self.usd is None or (worst is not None and self.spent + self.reserved + worst <= self.usd):
            return None
        may = "its price is not known" if worst is None else f"it may cost up to {dollars(worst)}"
        left = f"{dollars(self.spent)} of {self.name} = {dollars(self.usd)} are spent"
        held = f", {dollars(self.reserved)} held for requests under way" if self.reserved > 0 else ""
        return Over(f"{left}{held}, and {may}", f"{again}, with a smaller max_tokens, or with fewer rows.")

    def late(self) -> Over | None:
        """Whether the time is up."""
        if self.seconds is None or time.monotonic() - self.began < self.seconds:
            return None
        again = "What was answered is kept: run it again with more, or with fewer rows."
        return Over(f"max_seconds = {self.seconds:g} have passed", again)

    def reserve(self, worst: float | None, rows: int = 1) -> Over | None:
        """Hold `worst` USD back for a request that is about to be asked, or say why not."""
        with self._lock:
            over = self.over(worst, rows)
            if over is None:
                self.reserved += worst or 0.0
                self.asked += rows
            return over

    def settle(self, worst: float | None, spent: float | None, rows: int = 0) -> None:
        """What a request cost in place of what was held back for it; `rows` if it was not asked after all."""
        with self._lock:
            self.reserved = max(0.0, self.reserved - (worst or 0.0))
            self.spent += spent or 0.0
            self.asked -= rows


@dataclass
class Purse(Limits):
    """What SET says for a session and its cursors."""

    name: str = "sqlft_budget_usd"
    machine_usd_per_hour: float | None = None

    def set(self, usd: float | None) -> None:
        """Begin anew with a limit, or with none."""
        with self._lock:
            self.usd, self.spent = usd, 0.0


def admit(limits: Sequence[Limits], worst: float | None, rows: int = 1) -> Over | None:
    """Hold back for a request under every limit, or under none and say which one it would pass."""
    for i, one in enumerate(limits):
        over = one.reserve(worst, rows)
        if over is not None:
            for earlier in limits[:i]:
                earlier.settle(worst, None, rows)
            return over
    return None


def exceeded(over: Over, asked: str) -> BudgetExceeded:
    """The error for a limit that the next request to `asked` would pass."""
    return BudgetExceeded(f"The next request to {asked} would pass the budget: {over.what}.", over.next_step)


def dollars(amount: float) -> str:
    """$1,234.50, $0.0123, $0.0000123: cents, or three digits that tell something."""
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    digits = 2 - math.floor(math.log10(abs(amount)))
    return f"${amount:.{max(2, digits)}f}".rstrip("0").ljust(5, "0")
