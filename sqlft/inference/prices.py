"""What asking and training cost: the user's own prices first, then what the handler knows, else unknown.

Tokens are paid where a price is known for them, otherwise the hours of a machine.  Unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import SupportsFloat

from sqlft.catalog.records import Engine, UserPrice
from sqlft.handler import Artifact, Handler, ModelSpec, Price, Priced, Trainer
from sqlft.inference.resolve import ResolvedVersion, find_engine
from sqlft.session import Session

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600.0
TOKEN_PRICE_FIELDS = tuple(f.name for f in fields(Price) if f.name != "source")
OWN_PRICE_SOURCE = "CREATE PRICE"


@dataclass(frozen=True)
class Pricing:
    """How one version is paid: USD per million tokens, or per hour of a machine; both None: unknown."""

    price: Price | None = None
    hourly: float | None = None

    @property
    def known(self) -> bool:
        """Whether the cost of a request is known."""
        return self.is_per_token or self.hourly is not None

    @property
    def is_per_token(self) -> bool:
        """Whether tokens are paid, and not hours."""
        return self.price is not None and (self.price.input is not None or self.price.output is not None)

    @property
    def is_own(self) -> bool:
        """Whether the user's CREATE PRICE says it."""
        return self.price is not None and self.price.source.startswith(OWN_PRICE_SOURCE)

    def cost_of_tokens(
        self, input_tokens: int | None, output_tokens: int | None, cached: int | None = None
    ) -> float | None:
        """USD of a request by its tokens; `cached` ones are part of those given."""
        if self.price is None or not self.is_per_token:
            return None
        cached_tokens = min(cached or 0, input_tokens or 0)
        cheaper = self.price.input if self.price.cached_input is None else self.price.cached_input
        parts = (
            _price_tokens(None if input_tokens is None else input_tokens - cached_tokens, self.price.input),
            _price_tokens(cached_tokens, cheaper),
            _price_tokens(output_tokens, self.price.output)
            if output_tokens is not None or self.price.output is not None
            else 0.0,
        )
        return None if None in parts else sum(p for p in parts if p is not None)

    def cost_of_seconds(self, seconds: float) -> float | None:
        """USD for this many seconds of the machine."""
        return None if self.hourly is None or self.is_per_token else seconds * self.hourly / SECONDS_PER_HOUR

    def cost_of_training(self, tokens: int | None, seconds: float | None) -> float | None:
        """USD of a training by the tokens trained on, epochs included, or by the machine's seconds."""
        if self.price is not None and self.price.training is not None:
            return _price_tokens(tokens, self.price.training)
        if self.hourly == 0:
            return 0.0
        return None if self.hourly is None or seconds is None else seconds * self.hourly / SECONDS_PER_HOUR


def find_pricing(session: Session, resolved: ResolvedVersion) -> Pricing:
    """How a version is paid."""
    remote_id = None if resolved.artifact is None else resolved.artifact.remote_id
    names = [remote_id, ":".join((remote_id or "").split(":")[:2]), resolved.model.key.name, resolved.model.base]
    engine = find_engine(session, resolved.model.engine, resolved.model)
    handler_price = _find_handler_price(resolved.handler, resolved.spec, resolved.artifact)
    return _combine_prices(session, engine, type(resolved.handler), names, handler_price, resolved.model.options)


def find_training_pricing(
    session: Session, engine: Engine, handler: Handler, spec: ModelSpec, options: Mapping[str, object]
) -> Pricing:
    """How a training from a base is paid, of a model with these options."""
    return _combine_prices(
        session, engine, type(handler), [spec.base], _find_handler_price(handler, spec, None), options
    )


def _combine_prices(
    session: Session,
    engine: Engine,
    cls: type[Handler],
    names: list[str | None],
    handler_price: Price | None,
    options: Mapping[str, object],
) -> Pricing:
    user_price = _find_own_price(session, engine, [n for n in names if n])
    price = handler_price
    if user_price is not None and any(getattr(user_price, name) is not None for name in TOKEN_PRICE_FIELDS):
        overrides = {name: value for name in TOKEN_PRICE_FIELDS if (value := getattr(user_price, name)) is not None}
        price = replace(
            handler_price or Price(), **overrides, source=f"{OWN_PRICE_SOURCE} of {user_price.created_at:%Y-%m-%d}"
        )
    if user_price is not None and user_price.machine_usd_per_hour is not None and not _pays_tokens(user_price):
        return Pricing(None, user_price.machine_usd_per_hour)
    return Pricing(price, _find_hourly_rate(session, engine, cls, options))


def _find_handler_price(handler: Handler, spec: ModelSpec, artifact: Artifact | None) -> Price | None:
    """What the handler says; one that fails at it knows no price, which is no reason to answer nothing."""
    try:
        return handler.price(spec, artifact) if isinstance(handler, Priced) else None
    except Exception:
        return None


def _pays_tokens(price: UserPrice) -> bool:
    return price.input is not None or price.output is not None


def _find_own_price(session: Session, engine: Engine, names: list[str]) -> UserPrice | None:
    """The most particular of the user's prices: a model's before an engine's, an engine's before its handler's."""
    prices = {(p.engine.lower(), (p.model or "").lower()): p for p in session.catalog.prices()}
    if not prices:
        return None
    keys = [(e.lower(), n.lower()) for n in (*names, "") for e in (engine.name, engine.handler)]
    return next((prices[key] for key in keys if key in prices), None)


def _find_hourly_rate(
    session: Session, engine: Engine, cls: type[Handler], options: Mapping[str, object]
) -> float | None:
    """The rate of the model or the engine; the session's where the machine is not a provider's."""
    for options_of_owner in (options, engine.options):
        rate = options_of_owner.get("machine_usd_per_hour")
        if isinstance(rate, (str, SupportsFloat)):
            return float(rate)
    is_remote = issubclass(cls, Trainer) and cls.remote
    return None if is_remote else session.machine_usd_per_hour


def _price_tokens(tokens: int | None, price: float | None) -> float | None:
    if tokens == 0:
        return 0.0
    return None if tokens is None or price is None else tokens * price / MILLION
