"""DuckDB's own statements that read models, views over models or sqlft's tables: planned and answered."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

import duckdb
from sqlglot import exp

from sqlft.catalog.records import View
from sqlft.errors import AlreadyExists, CatalogError, NotSupported, StatementError
from sqlft.runtime.asker import Asker
from sqlft.runtime.cache import Cache
from sqlft.runtime.explain import Explainer, wanted
from sqlft.runtime.literals import inline, quoted
from sqlft.runtime.planning import plan
from sqlft.runtime.prices import with_settings
from sqlft.runtime.rewrite import Rewriter
from sqlft.runtime.session import Parameters, Session
from sqlft.runtime.stream import Stream
from sqlft.sql.lexer import Token, tokens
from sqlft.sql.statements import DEFAULT_PROJECT, Plain

NAME = r'(?:(?:\w+|"[^"]+")\s*\.\s*)*(?P<name>\w+|"(?:[^"]|"")+")'
CREATE = re.compile(
    rf"\s*create\s+(?P<replace>or\s+replace\s+)?(?P<temp>temp(?:orary)?\s+)?(?:recursive\s+)?(?P<kind>table|view)\s+"
    rf"(?P<exists>if\s+not\s+exists\s+)?{NAME}\s*(?P<columns>\([^()]*\)\s*)?(?P<as>as\b)?",
    re.I,
)
DROP = re.compile(rf"\s*drop\s+(?P<kind>table|view)\s+(?P<exists>if\s+exists\s+)?{NAME}", re.I)
BEFORE = re.compile(r"\s*(?P<verb>explain(?P<analyze>\s+analyze\b|\s*\([^)]*\))?|describe|desc)\s+", re.I)
"""What may stand before a query; with ANALYZE it is run."""
SHOWN_VIEW = re.compile(rf"\s*(?P<verb>describe|desc|show|summarize)\s+{NAME}\s*", re.I)
QUERY = re.compile(r"[\s(]*(select|with|from|values)\b", re.I)
READS = frozenset({"FROM", "JOIN", ",", "(", "TABLE", "INTO"})


@dataclass(frozen=True)
class Native:
    """Run this text on DuckDB, without parameters."""

    sql: str


@dataclass(frozen=True)
class Untouched:
    """Nothing of ours in it: run what was typed."""


Planned = Native | Untouched | Stream


def plan_query(session: Session, cache: Cache, statement: Plain, parameters: Parameters) -> Planned:
    """What to do with a statement that may read models; asks what has to be asked before DuckDB runs."""
    try:
        found = tokens(statement.sql)
    except StatementError:
        return Untouched()
    if not _mentions(session, found):
        if statement.using:
            raise StatementError(
                "USING options belong to a query that reads a model, and this one reads none.",
                statement.text,
                len(statement.sql),
                "Take them out, or check the model's name: SHOW MODELS lists them.",
            )
        return Untouched()
    if (read := with_settings(session, statement.sql)) != statement.sql:
        return plan_query(session, cache, replace(statement, sql=read), parameters)
    text = inline(statement.sql, parameters)
    return _data_definition(session, cache, text, statement) or _query(session, cache, text, statement, found)


def _mentions(session: Session, found: list[Token]) -> bool:
    names = session.names()
    for i, token in enumerate(found):
        if token.kind in ("word", "quoted"):
            if token.value.lower() in names:
                return True
            if token.value.lower() in ("sqlft", DEFAULT_PROJECT) and i + 1 < len(found) and found[i + 1].text == ".":
                return True
    return False


def _query(session: Session, cache: Cache, text: str, statement: Plain, found: list[Token]) -> Planned:
    text = _of_view(session, text)
    before = BEFORE.match(text)
    dry = before is not None and "analyze" not in (before["analyze"] or "").lower()
    asker = Asker(session, cache, statement.using, statement.text)
    asker.in_ledger = not dry
    rewriter = Rewriter(session, text[before.end() :] if before else text, asker, dry=dry)
    try:
        outcome = _outcome(session, cache, rewriter, asker, text, before.group() if before else "", found)
    except BaseException:
        asker.finish(error=True)
        raise
    if not isinstance(outcome, Stream):
        asker.finish()
    return outcome


def _outcome(
    session: Session, cache: Cache, rewriter: Rewriter, asker: Asker, text: str, before: str, found: list[Token]
) -> Planned:
    try:
        reading, references = rewriter.read()
    except StatementError:
        if _reads_a_name(session, found) and not _is_duckdbs(session, text):
            raise
        return Untouched()
    if not references:
        return Untouched() if before + rewriter.text == text else Native(before + rewriter.text)
    if isinstance(reading.tree, exp.Create) and reading.tree.args.get("kind") in ("MACRO", "FUNCTION"):
        raise NotSupported(
            f"A macro cannot read a model, and this one reads '{references[0].resolved.model.key.name}'.",
            "Make a view of it, or write the query out.",
        )
    explained, planned = wanted(before), None
    if isinstance(reading.tree, exp.Select) and (explained or not before):
        planned = plan(session, rewriter)
        if planned is not None and explained is None:
            return Stream(session, asker, planned)
    if explained is not None:
        drawn = Explainer(session, cache, asker, rewriter, explained).run(planned)
        return Native(f"FROM {rewriter.register(drawn)}")
    sql = rewriter.run()
    asker.check_using()
    return Native(before + sql)


def _of_view(session: Session, text: str) -> str:
    """DESCRIBE, SHOW or SUMMARIZE of a view that DuckDB does not know, as one of its query."""
    shown = SHOWN_VIEW.fullmatch(text.rstrip("; \n"))
    if shown is None or session.view(_plain_name(shown["name"])) is None:
        return text
    verb = "SUMMARIZE" if shown["verb"].lower() == "summarize" else "DESCRIBE"
    return f"{verb} SELECT * FROM {shown['name']}"


def _is_duckdbs(session: Session, text: str) -> bool:
    """Whether DuckDB can bind a query as it is: then a model's name in it means something else."""
    if not QUERY.match(text):
        return False
    try:
        session.con.sql(text)
    except duckdb.Error:
        return False
    return True


def _reads_a_name(session: Session, found: list[Token]) -> bool:
    """Whether a model's name stands where a table's would."""
    names = session.names()
    for before, token in pairwise(found):
        if token.kind in ("word", "quoted") and token.value.lower() in names and before.text.upper() in READS | {"."}:
            return True
    return any(t.value.lower() in ("sqlft", DEFAULT_PROJECT) for t in found if t.kind in ("word", "quoted"))


def _data_definition(session: Session, cache: Cache, text: str, statement: Plain) -> Planned | None:
    """CREATE VIEW over a model, DROP VIEW of ours, and names that are taken."""
    if (made := CREATE.match(text)) is not None:
        name = _plain_name(made["name"])
        model = session.catalog.find_model(name)
        if model is not None:
            raise AlreadyExists(
                f"'{name}' is a model, and a model and a {made['kind'].lower()} may not share a name.",
                f"Choose another name, or ALTER MODEL {name} RENAME TO ….",
            )
        if made["kind"].lower() == "view":
            return _create_view(session, cache, text, made, statement)
        return None
    if (dropped := DROP.match(text)) is not None:
        name = _plain_name(dropped["name"])
        if session.catalog.find_model(name) is not None:
            raise CatalogError(f"'{name}' is a model.", f"DROP MODEL {name} removes it.")
        if session.view(name) is not None:
            session.drop_view(name)
            return Native("SELECT 0 AS Count WHERE false")
    return None


def _create_view(session: Session, cache: Cache, text: str, made: re.Match[str], statement: Plain) -> Planned | None:
    name, query = _plain_name(made["name"]), text[made.end() :]
    if made["as"] is None:
        return None
    if statement.using:
        raise StatementError(
            "A view keeps no USING options.",
            statement.text,
            len(statement.sql),
            "Give them to the query that reads it.",
        )
    existing = session.view(name)
    asker = Asker(session, cache, {}, statement.text)
    rewriter = Rewriter(session, query, asker, dry=True)
    bound = rewriter.run()
    if not rewriter.seen_models and rewriter.text == query:
        if existing is not None and made["replace"]:
            session.drop_view(name)
        return None
    session.con.sql(bound)
    if existing is not None and made["exists"]:
        return Native("SELECT 0 AS Count WHERE false")
    _check_free(session, name, "view")
    columns = [c.strip().strip('"') for c in (made["columns"] or "").strip().strip("()").split(",") if c.strip()]
    view = View(name, query.strip(), tuple(columns))
    if made["temp"]:
        _add_temporary(session, view, bool(made["replace"]))
    else:
        session.catalog.add_view(view, or_replace=bool(made["replace"]))
    return Native("SELECT 0 AS Count WHERE false")


def _add_temporary(session: Session, view: View, or_replace: bool) -> None:
    if view.name.lower() in session.temporary and not or_replace:
        raise AlreadyExists(
            f"There is a temporary view '{view.name}' already.",
            f"CREATE OR REPLACE TEMP VIEW, or DROP VIEW {view.name}.",
        )
    session.temporary[view.name.lower()] = view


def _check_free(session: Session, name: str, what: str) -> None:
    taken = session.con.sql(
        "SELECT 1 FROM (SELECT table_name AS n FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views()"
        f" WHERE NOT internal) WHERE lower(n) = {quoted(name.lower())}"
    )
    if taken.fetchall():
        raise AlreadyExists(
            f"There is a table or view '{name}' already.",
            f"Choose another name for the {what}, or drop that one first.",
        )


def _plain_name(written: str) -> str:
    return written[1:-1].replace('""', '"') if written.startswith('"') else written
