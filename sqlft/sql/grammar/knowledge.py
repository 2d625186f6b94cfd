"""Statements about knowledge bases, which are written KNOWLEDGE_BASE or KNOWLEDGE BASE, as MindsDB has them."""

from __future__ import annotations

from sqlft.sql import statements as s
from sqlft.sql.cursor import NAME_KINDS, Cursor, parse_options
from sqlft.sql.grammar.listings import describe, parse_like, parse_where
from sqlft.sql.grammar.models import parse_copy_options, parse_using, skip_if_not_exists
from sqlft.sql.grammar.training import evaluate

NAME = "a knowledge base's name"


def create_knowledge_base(c: Cursor) -> s.Statement:
    """CREATE [OR REPLACE] KNOWLEDGE_BASE [IF NOT EXISTS] name [FROM [db] (query)] [USING …]"""
    c.next()
    or_replace = c.skip("OR", "REPLACE")
    skip_kind(c)
    if_not_exists = skip_if_not_exists(c, or_replace)
    name = c.name("a name for the knowledge base", version=False)
    source = c.source() if c.skip("FROM") else None
    return s.CreateKnowledgeBase(name, source, parse_using(c), or_replace, if_not_exists)


def alter_knowledge_base(c: Cursor) -> s.Statement:
    """ALTER KNOWLEDGE_BASE name USING key = value, …"""
    name = _parse_named(c)
    c.expect("USING")
    options = parse_options(c)
    c.expect_end()
    return s.AlterKnowledgeBase(name, options)


def drop_knowledge_base(c: Cursor) -> s.Statement:
    """DROP KNOWLEDGE_BASE [IF EXISTS] name"""
    c.next()
    skip_kind(c)
    if_exists = c.skip("IF", "EXISTS")
    name = c.name(NAME, version=False)
    c.expect_end()
    return s.DropKnowledgeBase(name, if_exists)


def describe_knowledge_base(c: Cursor) -> s.Statement | None:
    """DESCRIBE KNOWLEDGE_BASE name; a table may be called knowledge."""
    if c.peek(2).kind not in NAME_KINDS:
        return describe(c)
    name = _parse_named(c)
    c.expect_end()
    return s.DescribeKnowledgeBase(name)


def show_knowledge_bases(c: Cursor) -> s.Statement | None:
    """SHOW KNOWLEDGE_BASES [LIKE pattern] [WHERE condition]"""
    if c.peek(1).word == "KNOWLEDGE" and c.peek(2).word != "BASES":
        return describe(c)
    c.next()
    while c.at("FULL") or c.at("EXTENDED"):
        c.next()
    if not c.skip("KNOWLEDGE_BASES"):
        c.expect("KNOWLEDGE", "BASES")
    return s.ShowKnowledgeBases(parse_like(c), parse_where(c))


def refresh_knowledge_base(c: Cursor) -> s.Statement:
    """REFRESH KNOWLEDGE_BASE name [USING …]"""
    return s.RefreshKnowledgeBase(_parse_named(c), parse_using(c))


def evaluate_knowledge_base(c: Cursor) -> s.Statement:
    """EVALUATE KNOWLEDGE_BASE name, … [ON (query)] [USING …]; a metric may be called knowledge."""
    if c.peek(1).word == "KNOWLEDGE" and c.peek(2).word != "BASE":
        return evaluate(c)
    names = [_parse_named(c)]
    while c.skip_op(","):
        names.append(c.name(NAME, version=False))
    source = c.source() if c.skip("ON") or c.skip("FROM") else None
    return s.EvaluateKnowledgeBase(tuple(names), source, parse_using(c))


def create_index(c: Cursor) -> s.Statement | None:
    """CREATE INDEX ON KNOWLEDGE_BASE name [WITH (key = value, …)]; any other index is DuckDB's."""
    name = _parse_indexed(c)
    if name is None:
        return None
    options = parse_copy_options(c) if c.skip("WITH") and c.skip_op("(") else {}
    c.expect_end()
    return s.IndexKnowledgeBase(name, options)


def drop_index(c: Cursor) -> s.Statement | None:
    """DROP INDEX ON KNOWLEDGE_BASE name"""
    name = _parse_indexed(c)
    if name is None:
        return None
    c.expect_end()
    return s.IndexKnowledgeBase(name, drops=True)


def skip_kind(c: Cursor) -> None:
    """Steps over KNOWLEDGE_BASE, or KNOWLEDGE BASE."""
    if not (c.skip("KNOWLEDGE_BASE") or c.skip("KNOWLEDGE", "BASE")):
        raise c.error("Expected KNOWLEDGE_BASE, or KNOWLEDGE BASE.")


def _parse_named(c: Cursor) -> s.ModelName:
    """Steps over the verb and what it is about: the name behind it."""
    c.next()
    skip_kind(c)
    return c.name(NAME, version=False)


def _parse_indexed(c: Cursor) -> s.ModelName | None:
    c.next()
    if not (c.at("INDEX", "ON", "KNOWLEDGE_BASE") or c.at("INDEX", "ON", "KNOWLEDGE", "BASE")):
        return None
    c.next(2)
    skip_kind(c)
    return c.name(NAME, version=False)
