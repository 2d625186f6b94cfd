"""CREATE, DROP and SHOW PRICE; SET and RESET of what a session may spend."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from sqlft.catalog.records import UserPrice
from sqlft.catalog.tables import make_schema
from sqlft.errors import NotFound, OptionError
from sqlft.inference.prices import TOKEN_PRICE_FIELDS
from sqlft.inference.resolve import find_engine
from sqlft.options import build_options
from sqlft.session import BUDGET_SETTING, Parameters, PriceSettings, Session, SessionSettings, check_setting_name
from sqlft.sql.statements import CreatePrice, DropPrice, ResetSetting, SetSetting, ShowPrices
from sqlft.statements.show import filter_rows

PRICES_SCHEMA = make_schema(
    f"ENGINE text, MODEL text, {', '.join(f'{name.upper()} number' for name in TOKEN_PRICE_FIELDS)},"
    " MACHINE_USD_PER_HOUR number, CREATED_AT time"
)


def run_create_price(session: Session, statement: CreatePrice, parameters: Parameters) -> pa.Table:
    """Keep a price of the user's; its row."""
    find_engine(session, statement.engine)
    what = f"The price of {statement.engine}{f' {statement.model!r}' if statement.model else ''}"
    values = vars(build_options(PriceSettings, statement.options, what))
    if all(value is None for value in values.values()):
        raise OptionError(f"{what} has no number.", f"Add: USING input = …, output = … (of {', '.join(values)}).")
    price = UserPrice(statement.engine, statement.model, **values)
    known = {(p.engine.lower(), (p.model or "").lower()) for p in session.catalog.prices()}
    if not (statement.if_not_exists and (price.engine.lower(), (price.model or "").lower()) in known):
        session.catalog.add_price(price, statement.or_replace)
    same = [(p.engine.lower(), p.model) == (price.engine.lower(), price.model) for p in session.catalog.prices()]
    return _list_prices(session).filter(pa.array(same))


def run_drop_price(session: Session, statement: DropPrice, parameters: Parameters) -> None:
    """Forget a price of the user's."""
    try:
        session.catalog.drop_price(statement.engine, statement.model)
    except NotFound:
        if not statement.if_exists:
            raise


def run_show_prices(session: Session, statement: ShowPrices, parameters: Parameters) -> pa.Table:
    """A row for each price that CREATE PRICE gave."""
    return filter_rows(session, _list_prices(session), statement, parameters, by="ENGINE")


def run_set_setting(session: Session, statement: SetSetting, parameters: Parameters) -> None:
    """SET sqlft_…, for this session."""
    names = {f"sqlft_{f.name}" for f in fields(SessionSettings)}
    values = {k: None if isinstance(v, str) and v.lower() == "default" else v for k, v in statement.options.items()}
    for name in values:
        check_setting_name(name, names)
    settings = build_options(SessionSettings, {k.removeprefix("sqlft_"): v for k, v in values.items()}, "SET")
    if BUDGET_SETTING in values:
        session.budget.set(settings.budget_usd)
    if "sqlft_machine_usd_per_hour" in values:
        session.budget.machine_usd_per_hour = settings.machine_usd_per_hour


def run_reset_setting(session: Session, statement: ResetSetting, parameters: Parameters) -> None:
    """RESET sqlft_…"""
    run_set_setting(session, SetSetting({statement.name: None}), parameters)


def _list_prices(session: Session) -> pa.Table:
    table = session.catalog.table("prices")
    return table.rename_columns([name.upper() for name in table.column_names]).cast(PRICES_SCHEMA)
