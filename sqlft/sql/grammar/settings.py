"""CREATE PRICE, DROP PRICE, SET of what is sqlft's own, and REPORT MODEL."""

from __future__ import annotations

from sqlft.sql import statements as s
from sqlft.sql.cursor import NAME_KINDS, Cursor, parse_options, parse_value

SCOPES = ("SESSION", "LOCAL", "GLOBAL")


def create_price(c: Cursor) -> s.Statement | None:
    """CREATE [OR REPLACE] PRICE [IF NOT EXISTS] FOR engine [model] USING …; DuckDB's where FOR does not follow."""
    c.next()
    or_replace = c.skip("OR", "REPLACE")
    c.next()
    if_not_exists = c.skip("IF", "NOT", "EXISTS")
    if not c.skip("FOR"):
        return None
    engine, model = _parse_price_target(c)
    c.expect("USING")
    options = parse_options(c)
    c.expect_end()
    return s.CreatePrice(engine, model, options, or_replace, if_not_exists)


def drop_price(c: Cursor) -> s.Statement | None:
    """DROP PRICE [IF EXISTS] FOR engine [model]"""
    c.next(2)
    if_exists = c.skip("IF", "EXISTS")
    if not c.skip("FOR"):
        return None
    engine, model = _parse_price_target(c)
    c.expect_end()
    return s.DropPrice(engine, model, if_exists)


def set_setting(c: Cursor) -> s.Statement:
    """SET sqlft_… = value"""
    name = _parse_setting_name(c)
    if not c.skip_op("="):
        c.expect("TO")
    value = parse_value(c)
    c.expect_end()
    return s.SetSetting({name: value})


def reset_setting(c: Cursor) -> s.Statement:
    """RESET sqlft_…"""
    name = _parse_setting_name(c)
    c.expect_end()
    return s.ResetSetting(name)


def report_model(c: Cursor) -> s.Statement:
    """REPORT [MODEL] name [TO 'file.html']"""
    c.next()
    c.skip_keyword_before_name("MODEL", "PREDICTOR")
    name = c.name(version=False)
    path = None
    if c.skip("TO"):
        if c.token.kind not in ("string", "quoted") or not c.token.value:
            raise c.unexpected("a file's name such as 'report.html'")
        path = c.next().value
    c.expect_end()
    return s.ReportModel(name, path)


def _parse_setting_name(c: Cursor) -> str:
    c.next()
    for scope in SCOPES:
        c.skip(scope)
    return c.identifier("a setting's name").lower()


def _parse_price_target(c: Cursor) -> tuple[str, str | None]:
    """engine [[MODEL] model], the model quoted or not: gpt-6-luna."""
    engine = c.identifier("an engine's name")
    if c.token.word == "MODEL" and c.peek(1).kind in NAME_KINDS and c.peek(1).word != "USING":
        c.next()
    if c.token.kind not in NAME_KINDS or c.token.word == "USING":
        return engine, None
    first = c.token
    model = parse_value(c)
    if not isinstance(model, str) or not model:
        raise c.error("The model's name is a text.", "Write: CREATE PRICE FOR openai 'gpt-6-luna' USING …", first)
    return engine, model
