"""A training against the budget: its estimate is held back before anything is spent, what it cost is booked after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlft.catalog.records import RUNNING, Version
from sqlft.errors import BudgetExceeded, NotFound, OptionError
from sqlft.runtime.limits import Limits, Purse, dollars
from sqlft.runtime.prices import HOUR


@contextmanager
def reserved(
    purse: Purse,
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
    limits = [one for one in (Limits(most, name="max_cost_usd"), purse) if one.bounds_cost]
    if limits and cost is None:
        raise _unknown(limits[0], name, engine)
    _hold(limits, name, cost or 0.0)
    spent: float | None = cost
    try:
        yield
    finally:
        try:
            made = version()
        except NotFound:  # it was dropped while it trained, and what it cost with it
            made = None
        if made is None or made.status not in RUNNING:
            spent = None if made is None else _spent(made)
        for one in limits:
            one.settle(cost, spent)


def _hold(limits: Sequence[Limits], name: str, cost: float) -> None:
    for i, one in enumerate(limits):
        if one.reserve(cost) is None:
            continue
        for earlier in limits[:i]:
            earlier.settle(cost, None)
        held = f", {dollars(one.reserved)} held for requests under way" if one.reserved > 0 else ""
        raise BudgetExceeded(
            f"Training {name} would pass the budget: {dollars(one.spent)} of {one.name} = {dollars(one.usd or 0.0)} are"
            f" spent{held}, and it will cost about {dollars(cost)}.",
            f"Train on fewer rows or for fewer epochs, or {_raised(one)}; EXPLAIN FINETUNE tells what it will take.",
        )


def _raised(limit: Limits) -> str:
    return f"SET {limit.name} higher" if isinstance(limit, Purse) else f"give a higher {limit.name}"


def _spent(version: Version) -> float | None:
    """What an ended training cost; of one that broke off the machine's time so far, tokens being unknown."""
    known = version.details.get("cost_usd")
    if known is not None:
        return float(known)
    hourly = version.details.get("machine_usd_per_hour")
    return None if hourly is None or version.seconds is None else hourly * version.seconds / HOUR


def _unknown(limit: Limits, name: str, engine: str) -> OptionError:
    return OptionError(
        f"{limit.name} = {limit.usd:g} cannot be promised: what training {name} costs is not known.",
        f"CREATE PRICE FOR {engine} USING training = … (USD per million tokens), or machine_usd_per_hour = …"
        f" (0 if the machine costs nothing).",
    )
