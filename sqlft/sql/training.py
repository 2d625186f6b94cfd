"""FINETUNE, RETRAIN, CANCEL, RESUME, SET active and EVALUATE."""

from __future__ import annotations

from sqlft.sql import statements as s
from sqlft.sql.cursor import Cursor
from sqlft.sql.definitions import MODEL_WORDS, using


def finetune(c: Cursor) -> s.Statement:
    """FINETUNE [MODEL] name[.N] FROM [db] (query) [USING …]"""
    name = _named(c)
    c.expect("FROM")
    source = c.source()
    return s.Finetune(name, source, using(c))


def retrain(c: Cursor) -> s.Statement:
    """RETRAIN [MODEL] name [FROM [db] (query)] [USING …]"""
    name = _named(c)
    source = c.source() if c.skip("FROM") else None
    if c.at("PREDICT"):
        raise c.error(
            "RETRAIN keeps the column that CREATE MODEL named.",
            "Leave PREDICT out, or make the model anew with CREATE OR REPLACE MODEL.",
        )
    return s.Retrain(name, source, using(c))


def cancel(c: Cursor) -> s.Statement:
    """CANCEL [MODEL] name[.N]"""
    name = _named(c)
    c.expect_end()
    return s.CancelModel(name)


def resume(c: Cursor) -> s.Statement:
    """RESUME [MODEL] name[.N] [USING …]"""
    return s.ResumeModel(_named(c), using(c))


def set_active(c: Cursor) -> s.Statement:
    """SET active [=] name.N"""
    c.next()
    c.next()
    if not c.skip_op("="):
        c.skip("TO")
    c.keyword_before_name(*MODEL_WORDS)
    name = c.name()
    if name.version is None:
        raise c.error("Which version is to be active?", f"Write its number: SET active {name}.2")
    c.expect_end()
    return s.SetActive(name)


def evaluate(c: Cursor) -> s.Statement:
    """EVALUATE metric, … FROM (query), or EVALUATE MODEL name, … ON (query)"""
    c.next()
    if c.keyword_before_name("MODEL", "MODELS"):
        models = [c.name()]
        while c.skip_op(","):
            models.append(c.name())
        if not c.skip("ON"):
            c.expect("FROM")
        source = c.source()
        return s.Evaluate((), source, tuple(models), using(c))
    metrics = [c.identifier("a metric's name")]
    while c.skip_op(","):
        metrics.append(c.identifier("a metric's name"))
    c.expect("FROM")
    source = c.source()
    return s.Evaluate(tuple(metrics), source, (), using(c))


def _named(c: Cursor) -> s.Name:
    c.next()
    c.keyword_before_name(*MODEL_WORDS)
    return c.name()
