"""What CREATE MODEL says of a model's answers: PREDICT (name type, …), USING schema = …, or a text."""

from __future__ import annotations

from typing import Any

import duckdb

from sqlft.data import Output, Outputs, schemas
from sqlft.data.outputs import VECTOR
from sqlft.errors import OptionError, StatementError
from sqlft.runtime.session import Session
from sqlft.sql.lexer import tokens
from sqlft.sql.statements import CreateModel


def outputs_of(session: Session, statement: CreateModel, name: str, schema: Any, *, embeds: bool) -> Outputs:
    """The columns of a model's answers; OptionError or DataError for types that cannot be."""
    if embeds and (statement.columns or schema is not None):
        raise OptionError("An embedding is FLOAT[], and has no other type.", f"Write: PREDICT {name} USING mode = …")
    if statement.columns and schema is not None:
        raise OptionError(
            "The answer has types in PREDICT (…) and a schema in USING.", "Leave one of them out: they say the same."
        )
    if embeds:
        return Outputs((Output(name, VECTOR),))
    if statement.columns:
        found = [
            Output(c.name, str(bound(session, c.type, f"The column '{c.name}'")), c.required) for c in statement.columns
        ]
        return _free(Outputs.of_columns(found))
    if schema is None:
        return Outputs((Output(name),))
    return schemas.outputs_of(name, schema, lambda text: bound(session, text, "The option 'schema'"))


def bound(session: Session, text: str, what: str) -> Any:
    """The DuckDBPyType that the user's connection knows by a type's text; OptionError."""
    why = ""
    try:
        if any(token.text == ";" for token in tokens(text)):
            raise StatementError("a type ends before a semicolon")
        return session.con.sql(f"SELECT CAST(NULL AS {text}) AS x").types[0]
    except (duckdb.Error, StatementError) as e:
        why = str(e).splitlines()[0]
    raise OptionError(
        f"{what} has the type {text}, which DuckDB does not know: {why}",
        "Write a type of DuckDB, such as VARCHAR, INTEGER, DECIMAL(10,2), DATE, VARCHAR[], STRUCT(a INTEGER).",
    )


def _free(outputs: Outputs) -> Outputs:
    """The same, if no column has the name of one that is about another."""
    derived = {name.lower() for name in outputs.derived}
    for name in outputs.names:
        if name.lower() in derived:
            raise OptionError(
                f"The column '{name}' would be what says of '{name.rpartition('_')[0]}' how it was answered.",
                f"Give it another name: {name}_text.",
            )
    return outputs
