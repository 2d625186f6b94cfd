"""What DuckDB's errors leave unsaid where a model, or what was meant as one, is the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

import duckdb

from sqlft.errors import caret, did_you_mean
from sqlft.query import ast
from sqlft.runtime.models import outputs_of, prompt_of
from sqlft.runtime.session import Session
from sqlft.runtime.show import TABLES
from sqlft.sql.lexer import tokens
from sqlft.sql.names import written
from sqlft.sql.statements import DEFAULT_PROJECT

GUESS = re.compile(r'\nDid you mean "[^\n]*"\?')
"""What DuckDB proposes for a name, which may be one of its own tables."""
SYSTEM = ("pg_", "duckdb_", "sqlite_", "pragma_", "information_schema")
UNKNOWN = re.compile(r'(?P<kind>[\w ]+) with name "?(?P<name>.+?)"? does not exist')
NO_COLUMN = re.compile(r'Referenced column "(.+?)" (?:was )?not found')
INTERNAL = re.compile(r'"?__sqlft\w*"?(?:, )?')
OWN_TABLES = """
SELECT database_name, schema_name, name, database_name = current_database(),
       list_contains(current_schemas(true), schema_name) AND database_name IN (current_database(), 'temp')
FROM (SELECT database_name, schema_name, table_name AS name FROM duckdb_tables() WHERE NOT internal
      UNION ALL SELECT database_name, schema_name, view_name FROM duckdb_views() WHERE NOT internal)"""


def explain(session: Session, error: duckdb.Error, query: str) -> None:
    """Let an error of DuckDB's speak of the query as it was typed, and end with the next step where sqlft knows one."""
    said = str(error).rstrip()
    if "__sqlft" in said:
        said = INTERNAL.sub("", said.split("\n\nLINE ")[0].split("\nLINE ")[0]).rstrip(" ,:\n") + _place(said, query)
    hint = _hint(session, error, query)
    unknown = UNKNOWN.search(said)
    if unknown is not None and not unknown["name"].lower().startswith(SYSTEM):
        said = _with_own_names(session, said, unknown["name"], unknown["kind"])
    if hint and hint not in said:
        said = f"{said}\n{hint}"
    if said != str(error):
        error.args = (said,)


def _place(said: str, query: str) -> str:
    """The line of the query with the first name that an error has in quotes."""
    for name in re.findall(r'"([^"]+)"', said.split("\n")[0]):
        at = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE)
        if at is not None:
            before = query[: at.start()]
            line = before.count("\n")
            return "\n\n" + caret(query, line + 1, at.start() - (before.rfind("\n") + 1) + 1).lstrip("\n")
    return ""


def _hint(session: Session, error: duckdb.Error, query: str) -> str:
    said = str(error)
    unknown = UNKNOWN.search(said)
    if unknown is not None:
        return _about_name(session, unknown["name"], unknown["kind"])
    if isinstance(error, duckdb.ParserException):
        return _about_syntax(session, query)
    missing = NO_COLUMN.search(said)
    if missing is not None and f'"{missing[1]}"' in query:
        text = missing[1].replace("'", "''")
        return f"Text stands in single quotes: '{text}'. Double quotes are for names."
    return ""


def _about_name(session: Session, name: str, kind: str) -> str:
    model = session.find_model(name) if name.lower() in session.names() else None
    if model is not None:
        inputs = prompt_of(model).inputs
        read = f"SELECT {outputs_of(model).names[0]} FROM {written(name)} WHERE {written(inputs[0])} = …"
        if "Table" in kind and "Function" not in kind:
            return f"'{name}' is a model; its name is [project.]name[.N], without a database or a schema: {read}."
        return f"'{name}' is a model. Read it like a table: {read}."
    if name.lower() in session.names():
        return f"'{name}' is a view over a model; it is in no other schema: FROM {written(name)}."
    project = name.partition(".")[0].lower()
    if "." in name and project in (p.lower() for p in session.catalog.projects()):
        return _not_in_project(session, *name.split(".", 1))
    return ""


def _not_in_project(session: Session, project: str, name: str) -> str:
    known = [m.key.name for m in session.catalog.models() if m.key.project.lower() == project.lower()]
    guess = did_you_mean(name, [*known, *(TABLES if project.lower() == DEFAULT_PROJECT else ())])
    return f"The project '{project}' has no model '{name}'.{guess} SHOW MODELS FROM {written(project)} lists them."


def _with_own_names(session: Session, said: str, name: str, kind: str) -> str:
    """An error with the user's nearest table or model in place of what DuckDB proposes; system tables are none."""
    is_table = kind.split()[-1] in ("Table", "View")
    if name.lower() in session.names():
        return GUESS.sub("", said)
    if not is_table:
        near = _nearest(name, {n: n for n in session.names()})
        return GUESS.sub(f'\nDid you mean the model "{near}"? It is read like a table.', said) if near else said
    known = _tables(session) | {n: n for n in session.names()}
    near = _nearest(name, known)
    guess = f'\nDid you mean "{near}"?' if near else ""
    if GUESS.search(said):
        return GUESS.sub(lambda _: guess, said, count=1)
    head, line, place = said.partition("\n\nLINE ")
    return head + guess + line + place


def _nearest(name: str, known: Mapping[str, str]) -> str:
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return known[near[0]] if near else ""


def _tables(session: Session) -> dict[str, str]:
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


def _about_syntax(session: Session, query: str) -> str:
    """A name that was meant as a model's: one with a version, or one that is joined without a condition."""
    try:
        found = tokens(query)
    except duckdb.Error:
        return ""
    names = session.names()
    for i, token in enumerate(found[:-1]):
        following = found[i + 1].text
        is_version = following.startswith(".") and following[1:].isdigit()
        if token.kind in ("word", "quoted") and is_version and token.value.lower() not in names:
            return _no_model(token.value, session)
        if token.word == "JOIN" and i and found[i - 1].word not in ("CROSS", "NATURAL", "POSITIONAL"):
            _, places = ast.complete_joins(query, found, lambda name: True)
            name = found[i + 1].value
            if places and name.lower() not in names and found[i + 1].kind in ("word", "quoted"):
                return _no_model(name, session)
    return ""


def _no_model(name: str, session: Session) -> str:
    return f"There is no model '{name}'.{did_you_mean(name, session.names())} SHOW MODELS lists them."
