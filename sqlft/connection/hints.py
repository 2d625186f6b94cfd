"""Errors of DuckDB's in the words of the query as it was typed, with the next step.

`sqlft.connection` calls `explain_error` with an error and the query; the error says more then.  Names that sqlft made
go, a table or model of the user's is proposed in place of DuckDB's guess, and what was meant as a model is said so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

import duckdb

from sqlft.errors import did_you_mean, format_caret
from sqlft.inference.resolve import build_prompt, read_outputs
from sqlft.query import ast
from sqlft.query.scope import UNKNOWN_NAME
from sqlft.session import MINDSDB_TABLES, Session
from sqlft.sql.lexer import tokenize
from sqlft.sql.names import format_name, quote_text
from sqlft.sql.statements import DEFAULT_PROJECT

GUESS = re.compile(r'\nDid you mean "[^\n]*"\?')
"""What DuckDB proposes for a name, which may be one of its own tables."""
SYSTEM = ("pg_", "duckdb_", "sqlite_", "pragma_", "information_schema")
UNKNOWN_COLUMN = re.compile(r'Referenced column "(.+?)" (?:was )?not found')
INTERNAL_NAME = re.compile(r'"?__sqlft\w*"?(?:, )?')
OWN_TABLES = """
SELECT database_name, schema_name, name, database_name = current_database(),
       list_contains(current_schemas(true), schema_name) AND database_name IN (current_database(), 'temp')
FROM (SELECT database_name, schema_name, table_name AS name FROM duckdb_tables()
      WHERE NOT internal AND schema_name <> 'sqlft_knowledge'
      UNION ALL SELECT database_name, schema_name, view_name FROM duckdb_views() WHERE NOT internal)"""


def explain_error(session: Session, error: duckdb.Error, query: str) -> None:
    """Word an error of DuckDB's for the query as it was typed, and add the next step where sqlft knows one."""
    message = str(error).rstrip()
    if "__sqlft" in message:
        message = INTERNAL_NAME.sub("", message.split("\n\nLINE ")[0].split("\nLINE ")[0]).rstrip(
            " ,:\n"
        ) + _locate_name(message, query)
    hint = _find_hint(session, error, query)
    unknown = UNKNOWN_NAME.search(message)
    if unknown is not None and not unknown["name"].lower().startswith(SYSTEM):
        message = _replace_guess(session, message, unknown["name"], unknown["kind"])
    if hint and hint not in message:
        message = f"{message}\n{hint}"
    if message != str(error):
        error.args = (message,)


def _locate_name(message: str, query: str) -> str:
    """The line of the query with the first name that an error has in quotes."""
    for name in re.findall(r'"([^"]+)"', message.split("\n")[0]):
        match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE)
        if match is not None:
            before = query[: match.start()]
            line = before.count("\n")
            return "\n\n" + format_caret(query, line + 1, match.start() - (before.rfind("\n") + 1) + 1).lstrip("\n")
    return ""


def _find_hint(session: Session, error: duckdb.Error, query: str) -> str:
    message = str(error)
    unknown = UNKNOWN_NAME.search(message)
    if unknown is not None:
        return _explain_name(session, unknown["name"], unknown["kind"])
    if isinstance(error, duckdb.ParserException):
        return _explain_syntax(session, query)
    missing = UNKNOWN_COLUMN.search(message)
    if missing is not None and f'"{missing[1]}"' in query:
        return f"Text stands in single quotes: {quote_text(missing[1])}. Double quotes are for names."
    return ""


def _explain_name(session: Session, name: str, kind: str) -> str:
    model = session.find_model(name) if name.lower() in session.names() else None
    if model is not None:
        inputs = build_prompt(model).inputs
        read = f"SELECT {read_outputs(model).names[0]} FROM {format_name(name)} WHERE {format_name(inputs[0])} = …"
        if "Table" in kind and "Function" not in kind:
            return f"'{name}' is a model; its name is [project.]name[.N], without a database or a schema: {read}."
        return f"'{name}' is a model. Read it like a table: {read}."
    if session.view(name) is not None:
        return f"'{name}' is a view over a model; it is in no other schema: FROM {format_name(name)}."
    for other in session.attached.values():
        if other.find_model(name) is not None:
            database = format_name(other.database)
            return f"'{name}' is a model of the attached database '{other.database}': {database}.{format_name(name)}."
    project = name.partition(".")[0].lower()
    if "." in name and project in (p.lower() for p in session.catalog.projects()):
        return _describe_missing_model(session, *name.split(".", 1))
    return ""


def _describe_missing_model(session: Session, project: str, name: str) -> str:
    known = [m.key.name for m in session.catalog.models() if m.key.project.lower() == project.lower()]
    guess = did_you_mean(name, [*known, *(MINDSDB_TABLES if project.lower() == DEFAULT_PROJECT else ())])
    return f"The project '{project}' has no model '{name}'.{guess} SHOW MODELS FROM {format_name(project)} lists them."


def _replace_guess(session: Session, message: str, name: str, kind: str) -> str:
    """An error with the user's nearest table or model in place of what DuckDB proposes; system tables are none."""
    is_table = kind.split()[-1] in ("Table", "View")
    if name.lower() in session.names():
        return GUESS.sub("", message)
    if not is_table:
        near = _find_nearest(name, {n: n for n in session.names()})
        return GUESS.sub(f'\nDid you mean the model "{near}"? It is read like a table.', message) if near else message
    known = _list_tables(session) | {n: n for n in session.names()}
    near = _find_nearest(name, known)
    guess = f'\nDid you mean "{near}"?' if near else ""
    if GUESS.search(message):
        return GUESS.sub(lambda _: guess, message, count=1)
    head, line, place = message.partition("\n\nLINE ")
    return head + guess + line + place


def _find_nearest(name: str, known: Mapping[str, str]) -> str:
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return known[near[0]] if near else ""


def _list_tables(session: Session) -> dict[str, str]:
    """The user's tables and views as they are written here, by their lower-case names with and without a schema."""
    try:
        rows = session.con.sql(OWN_TABLES).fetchall()
    except duckdb.Error:  # in a failed transaction
        return {}
    known: dict[str, str] = {}
    for database, schema, table, is_here, is_near in rows:
        owner = schema if is_here else database
        shown = table if is_near else f"{owner}.{table}"
        known[f"{owner}.{table}".lower()] = shown
        if is_near or table.lower() not in known:
            known[table.lower()] = shown
    return known


def _explain_syntax(session: Session, query: str) -> str:
    """A name that was meant as a model's: one with a version, or one that is joined without a condition."""
    try:
        tokens = tokenize(query)
    except duckdb.Error:
        return ""
    names = session.names()
    for i, token in enumerate(tokens[:-1]):
        following = tokens[i + 1].text
        is_version = following.startswith(".") and following[1:].isdigit()
        if token.kind in ("word", "quoted") and is_version and token.value.lower() not in names:
            return _explain_missing_model(token.value, session)
        if token.word == "JOIN" and i and tokens[i - 1].word not in ("CROSS", "NATURAL", "POSITIONAL"):
            _, places = ast.complete_joins(query, tokens, lambda name: True)
            name = tokens[i + 1].value
            if places and name.lower() not in names and tokens[i + 1].kind in ("word", "quoted"):
                return _explain_missing_model(name, session)
    return ""


def _explain_missing_model(name: str, session: Session) -> str:
    return f"There is no model '{name}'.{did_you_mean(name, session.names())} SHOW MODELS lists them."
