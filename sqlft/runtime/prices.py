"""What asking and training cost: the user's own prices first, then what the handler knows, else unknown.

Tokens are paid where a price is known for them, otherwise the hours of a machine.  Unknown is None, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from sqlft.catalog.records import Engine, OwnPrice
from sqlft.errors import NotFound, OptionError, did_you_mean
from sqlft.handler import Artifact, Handler, ModelSpec, Price, Trainer
from sqlft.options import build
from sqlft.runtime.models import Resolved, engine_of
from sqlft.runtime.session import Parameters, Session
from sqlft.runtime.settings import PriceSettings, SessionSettings
from sqlft.runtime.show import chosen
from sqlft.sql.statements import CreatePrice, DropPrice, ResetSetting, SetSetting, ShowPrices

MILLION = 1_000_000
BUDGET = "sqlft_budget_usd"
CURRENT = re.compile(r"\bcurrent_setting\s*\(\s*'(sqlft_\w*)'\s*\)", re.IGNORECASE)
HOUR = 3600.0
TOKEN_PRICES = tuple(f.name for f in fields(Price) if f.name != "source")
OWN = "CREATE PRICE"
PRICES = pa.schema(
    [
        ("ENGINE", pa.string()),
        ("MODEL", pa.string()),
        *((name.upper(), pa.float64()) for name in (*TOKEN_PRICES, "machine_usd_per_hour")),
        ("CREATED_AT", pa.timestamp("us")),
    ]
)


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


def _pays_tokens(own: OwnPrice) -> bool:
    return own.input is not None or own.output is not None


def _own(session: Session, engine: Engine, names: list[str]) -> OwnPrice | None:
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


def run_create_price(session: Session, statement: CreatePrice, parameters: Parameters) -> pa.Table:
    """Keep a price of the user's; its row."""
    engine_of(session, statement.engine)
    what = f"The price of {statement.engine}{f' {statement.model!r}' if statement.model else ''}"
    said = build(PriceSettings, statement.options, what)
    values = {f.name: getattr(said, f.name) for f in fields(said)}
    if all(value is None for value in values.values()):
        raise OptionError(f"{what} has no number.", f"Add: USING input = …, output = … (of {', '.join(values)}).")
    own = OwnPrice(statement.engine, statement.model, **values)
    known = {(p.engine.lower(), (p.model or "").lower()) for p in session.catalog.prices()}
    if not (statement.if_not_exists and (own.engine.lower(), (own.model or "").lower()) in known):
        session.catalog.add_price(own, statement.or_replace)
    return _listed(session).filter(
        pa.array([(p.engine.lower(), p.model) == (own.engine.lower(), own.model) for p in session.catalog.prices()])
    )


def run_drop_price(session: Session, statement: DropPrice, parameters: Parameters) -> None:
    """Forget a price of the user's."""
    try:
        session.catalog.drop_price(statement.engine, statement.model)
    except NotFound:
        if not statement.if_exists:
            raise


def run_show_prices(session: Session, statement: ShowPrices, parameters: Parameters) -> pa.Table:
    """A row for each price that CREATE PRICE gave."""
    return chosen(session, _listed(session), statement.like, statement.where, parameters, by="ENGINE")


def run_set_setting(session: Session, statement: SetSetting, parameters: Parameters) -> None:
    """SET sqlft_…, for this session."""
    names = {f"sqlft_{f.name}" for f in fields(SessionSettings)}
    given = {k: None if isinstance(v, str) and v.lower() == "default" else v for k, v in statement.options.items()}
    for name in given:
        _check_setting(name, names)
    said = build(SessionSettings, {k.removeprefix("sqlft_"): v for k, v in given.items()}, "SET")
    if BUDGET in given:
        session.purse.set(said.budget_usd)
    if "sqlft_machine_usd_per_hour" in given:
        session.purse.machine_usd_per_hour = said.machine_usd_per_hour


def run_reset_setting(session: Session, statement: ResetSetting, parameters: Parameters) -> None:
    """RESET sqlft_…"""
    run_set_setting(session, SetSetting({statement.name: None}), parameters)


def settings(session: Session) -> pa.Table:
    """`sqlft.settings`: what SET sqlft_… said, NULL where it said nothing."""
    names = [f"sqlft_{f.name}" for f in fields(SessionSettings)]
    spent = session.purse.spent if session.purse.bounds_cost else None
    return pa.table(
        {
            "name": names,
            "value": pa.array([setting(session, name) for name in names], pa.float64()),
            "spent_usd": pa.array([spent if name == BUDGET else None for name in names], pa.float64()),
        }
    )


def setting(session: Session, name: str) -> float | None:
    """One of sqlft's own settings; OptionError for an unknown name."""
    known: dict[str, float | None] = {
        BUDGET: session.purse.usd,
        "sqlft_machine_usd_per_hour": session.purse.machine_usd_per_hour,
    }
    _check_setting(name, set(known))
    return known[name]


def with_settings(session: Session, query: str) -> str:
    """A query in which current_setting('sqlft_…') has its value."""

    def found(match: re.Match[str]) -> str:
        value = setting(session, match[1].lower())
        return "NULL::DOUBLE" if value is None else f"{value!r}::DOUBLE"

    return CURRENT.sub(found, query)


def _check_setting(name: str, known: set[str]) -> None:
    if name not in known:
        raise OptionError(
            f"There is no setting '{name}'.{did_you_mean(name, known)}", f"There are: {', '.join(sorted(known))}."
        )


def _listed(session: Session) -> pa.Table:
    table = session.catalog.table("prices")
    return table.rename_columns([name.upper() for name in table.column_names]).cast(PRICES)
