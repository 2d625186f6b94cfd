"""What asking and training cost: the user's own prices first, then what the handler knows, else unknown.

Tokens are paid where a price is known for them, otherwise the hours of a machine.  Unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlft.catalog.records import Engine, UserPrice
from sqlft.handler import Artifact, Handler, ModelSpec, Price, Trainer
from sqlft.inference.resolve import Resolved, engine_of
from sqlft.session import Session

MILLION = 1_000_000
HOUR = 3600.0
TOKEN_PRICES = tuple(f.name for f in fields(Price) if f.name != "source")
OWN = "CREATE PRICE"


@dataclass(frozen=True)
class Tariff:
    """How one version is paid: USD per million tokens, or per hour of a machine; both None: unknown."""

    price: Price | None = None
    hourly: float | None = None

    @property
    def known(self) -> bool:
        """Whether what a request costs can be said."""
        return self.per_token or self.hourly is not None

    @property
    def per_token(self) -> bool:
        """Whether tokens are paid, and not hours."""
        return self.price is not None and (self.price.input is not None or self.price.output is not None)

    @property
    def is_own(self) -> bool:
        """Whether the user's CREATE PRICE says it."""
        return self.price is not None and self.price.source.startswith(OWN)

    def of_tokens(self, given: int | None, made: int | None, cached: int | None = None) -> float | None:
        """USD of a request by its tokens; `cached` ones are part of those given."""
        if self.price is None or not self.per_token:
            return None
        kept = min(cached or 0, given or 0)
        cheaper = self.price.input if self.price.cached_input is None else self.price.cached_input
        parts = (
            _usd(None if given is None else given - kept, self.price.input),
            _usd(kept, cheaper),
            _usd(made, self.price.output) if made is not None or self.price.output is not None else 0.0,
        )
        return None if None in parts else sum(p for p in parts if p is not None)

    def of_seconds(self, seconds: float) -> float | None:
        """USD of so many seconds of the machine."""
        return None if self.hourly is None or self.per_token else seconds * self.hourly / HOUR

    def of_training(self, tokens: int | None, seconds: float | None) -> float | None:
        """USD of a training by the tokens trained on, epochs included, or by the machine's seconds."""
        if self.price is not None and self.price.training is not None:
            return _usd(tokens, self.price.training)
        if self.hourly == 0:
            return 0.0
        return None if self.hourly is None or seconds is None else seconds * self.hourly / HOUR


def tariff_of(session: Session, resolved: Resolved) -> Tariff:
    """How a version is paid."""
    remote_id = None if resolved.artifact is None else resolved.artifact.remote_id
    names = [remote_id, ":".join((remote_id or "").split(":")[:2]), resolved.model.key.name, resolved.model.base]
    engine = engine_of(session, resolved.model.engine)
    known = _asked(resolved.handler, resolved.spec, resolved.artifact)
    return _tariff(session, engine, type(resolved.handler), names, known, resolved.model.options)


def tariff_for(
    session: Session, engine: Engine, handler: Handler, spec: ModelSpec, options: Mapping[str, Any]
) -> Tariff:
    """How a training from a base is paid, of a model with these options."""
    return _tariff(session, engine, type(handler), [spec.base], _asked(handler, spec, None), options)


def _tariff(
    session: Session,
    engine: Engine,
    cls: type[Handler],
    names: list[str | None],
    known: Price | None,
    options: Mapping[str, Any],
) -> Tariff:
    own = _own(session, engine, [n for n in names if n])
    price = known
    if own is not None and any(getattr(own, name) is not None for name in TOKEN_PRICES):
        said = {name: value for name in TOKEN_PRICES if (value := getattr(own, name)) is not None}
        price = replace(known or Price(), **said, source=f"{OWN} of {own.created_at:%Y-%m-%d}")
    if own is not None and own.machine_usd_per_hour is not None and not _pays_tokens(own):
        return Tariff(None, own.machine_usd_per_hour)
    return Tariff(price, _hourly(session, engine, cls, options))


def _asked(handler: Handler, spec: ModelSpec, artifact: Artifact | None) -> Price | None:
    """What the handler says; one that fails at it knows no price, which is no reason to answer nothing."""
    try:
        return handler.price(spec, artifact)
    except Exception:
        return None


def _pays_tokens(own: UserPrice) -> bool:
    return own.input is not None or own.output is not None


def _own(session: Session, engine: Engine, names: list[str]) -> UserPrice | None:
    """The most particular of the user's prices: a model's before an engine's, an engine's before its handler's."""
    found = {(p.engine.lower(), (p.model or "").lower()): p for p in session.catalog.prices()}
    if not found:
        return None
    keys = [(e.lower(), n.lower()) for n in (*names, "") for e in (engine.name, engine.handler)]
    return next((found[key] for key in keys if key in found), None)


def _hourly(session: Session, engine: Engine, cls: type[Handler], options: Mapping[str, Any]) -> float | None:
    """The rate of the model or the engine; the session's where the machine is not a provider's."""
    for said in (options, engine.options):
        rate = said.get("machine_usd_per_hour")
        if rate is not None:
            return float(rate)
    is_remote = issubclass(cls, Trainer) and cls.remote
    return None if is_remote else session.machine_usd_per_hour


def _usd(tokens: int | None, price: float | None) -> float | None:
    if tokens == 0:
        return 0.0
    return None if tokens is None or price is None else tokens * price / MILLION


# -- statements --------------------------------------------------------------------------------------------
