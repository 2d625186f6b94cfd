"""What DuckDB's errors leave unsaid where a model, or what was meant as one, is the reason."""

from __future__ import annotations

import re

import duckdb

from sqlft.errors import caret, did_you_mean
from sqlft.inference.resolve import outputs_of, prompt_of
from sqlft.query import ast
from sqlft.session import Session
from sqlft.sql.lexer import tokens
from sqlft.sql.names import written

UNKNOWN = re.compile(r'(?P<kind>[\w ]+) with name "?(?P<name>.+?)"? does not exist')
NO_COLUMN = re.compile(r'Referenced column "(.+?)" (?:was )?not found')


INTERNAL = re.compile(r'"?__sqlft\w*"?(?:, )?')


def explain(session: Session, error: duckdb.Error, query: str) -> None:
    """Let an error of DuckDB's speak of the query as it was typed, and end with the next step where sqlft knows one."""
    said = str(error).rstrip()
    if "__sqlft" in said:
        said = INTERNAL.sub("", said.split("\n\nLINE ")[0].split("\nLINE ")[0]).rstrip(" ,:\n") + _place(said, query)
    hint = _hint(session, error, query)
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
    model = session.catalog.find_model(name) if name.lower() in session.names() else None
    if model is not None:
        inputs = prompt_of(model).inputs
        read = f"SELECT {outputs_of(model).names[0]} FROM {written(name)} WHERE {written(inputs[0])} = …"
        if "Table" in kind and "Function" not in kind:
            return f"'{name}' is a model; its name is [project.]name[.N], without a database or a schema: {read}."
        return f"'{name}' is a model. Read it like a table: {read}."
    if name.lower() in session.names():
        return f"'{name}' is a view over a model; it is in no other schema: FROM {written(name)}."
    near = did_you_mean(name, session.names())
    return f"No model has this name either.{near}" if near else ""


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
