"""Statements around a query: views over models made, dropped and renamed; UPDATE and DELETE as queries.

DuckDB cannot bind a query that reads a model, so such a view is kept in the catalog (a temporary one in the session),
as it was typed; a query that reads it has it put in as a query in parentheses.  A view without a model is DuckDB's.
UPDATE … FROM and DELETE … USING become a query over their table, whose rows are matched by rowid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import duckdb

from sqlft.catalog.records import View
from sqlft.errors import AlreadyExists, CatalogError, NotFound, NotSupported, StatementError
from sqlft.session import Session
from sqlft.sql.cursor import Cursor
from sqlft.sql.lexer import Token, tokenize
from sqlft.sql.names import format_name, quote_text

MAIN_SCHEMAS = ("", "main")


@dataclass(frozen=True)
class CreateRelation:
    """CREATE TABLE or CREATE VIEW up to its query."""

    kind: str
    name: str
    """As the catalog has it: the schema before it if that is not main."""
    or_replace: bool
    if_not_exists: bool
    temporary: bool
    columns: tuple[str, ...]
    query: int | None
    """The token at which the query starts; None if there is none."""


def view_key(parts: Sequence[str]) -> str:
    """A view's name in the catalog: [database.][schema.]name without a schema that needs no saying."""
    schema = parts[-2] if len(parts) > 1 else ""
    return parts[-1] if schema.lower() in (*MAIN_SCHEMAS, "temp", "memory") else f"{schema}.{parts[-1]}"


def read_dotted_name(tokens: Sequence[Token], i: int) -> tuple[list[str], int]:
    """The parts of a dotted name at token i, and the token behind it."""
    parts: list[str] = []
    while i < len(tokens) and tokens[i].kind in ("word", "quoted"):
        parts.append(tokens[i].value)
        if i + 1 >= len(tokens) or tokens[i + 1].text != ".":
            return parts, i + 1
        i += 2
    return parts, i


def read_create(tokens: Sequence[Token]) -> CreateRelation | None:
    """CREATE [OR REPLACE] [TEMP] TABLE|VIEW [IF NOT EXISTS] name [(columns)] [AS] query; None for all else."""
    c = Cursor("", list(tokens))
    if not c.skip("CREATE"):
        return None
    or_replace = c.skip("OR", "REPLACE")
    temporary = c.skip("TEMP") or c.skip("TEMPORARY")
    kind = c.next().word.lower()
    exists = c.skip("IF", "NOT", "EXISTS")
    parts, c.index = read_dotted_name(tokens, c.index)
    if kind not in ("table", "view") or not parts:
        return None
    columns: list[str] = []
    if c.token.text == "(" and not starts_query(tokens, c.index + 1):
        while c.token.kind != "end" and c.next().text != ")":
            if c.token.kind in ("word", "quoted") and c.peek(-1).text in ("(", ","):
                columns.append(c.token.value)
    while c.token.kind != "end" and not (
        c.at("AS") or c.token.text == "(" or (kind == "view" and starts_query(tokens, c.index))
    ):
        c.next()
    c.skip("AS")
    query = None if c.token.kind == "end" else c.index
    return CreateRelation(kind, view_key(parts), or_replace, exists, temporary, tuple(columns), query)


def starts_query(tokens: Sequence[Token], i: int) -> bool:
    """Whether a query starts at token i."""
    while i < len(tokens) and tokens[i].text == "(":
        i += 1
    return i < len(tokens) and tokens[i].word in ("SELECT", "WITH", "FROM", "VALUES", "TABLE", "PIVOT", "UNPIVOT")


def top_level(tokens: Sequence[Token], start: int = 0) -> Iterator[tuple[int, Token]]:
    """Tokens outside of brackets, and the outermost brackets themselves, each with its place."""
    depth = 0
    for i in range(start, len(tokens)):
        token = tokens[i]
        depth -= token.kind == "op" and token.text in ")]}"
        if depth == 0:
            yield i, token
        depth += token.kind == "op" and token.text in "([{"


def run_view_statement(
    session: Session, text: str, tokens: Sequence[Token], reads_models: Callable[[str], bool]
) -> bool:
    """Whether it was CREATE, DROP or ALTER of a view of ours, which is done then.

    `reads_models` says whether a query reads models or views over them; it raises what is wrong with one that does.
    """
    created = read_create(tokens)
    if created is not None:
        return _create_view(session, text, tokens, created, reads_models)
    words = [t.word for t in tokens[:6]]
    if words[:2] in (["DROP", "TABLE"], ["DROP", "VIEW"]):
        return _drop_view(session, tokens, if_exists=words[2:4] == ["IF", "EXISTS"])
    if words[:2] == ["ALTER", "VIEW"]:
        return _rename_view(session, text, tokens)
    return False


def _create_view(
    session: Session, text: str, tokens: Sequence[Token], created: CreateRelation, reads_models: Callable[[str], bool]
) -> bool:
    schema, _, name = created.name.rpartition(".")
    if session.find_model(name, schema or None) is not None:
        raise AlreadyExists(
            f"'{created.name}' is a model, and a model and a {created.kind} may not share a name.",
            f"Choose another name, or ALTER MODEL {created.name} RENAME TO ….",
        )
    if session.find_knowledge_base(name, schema or None) is not None:
        raise AlreadyExists(
            f"'{created.name}' is a knowledge base, and a knowledge base and a {created.kind} may not share a name.",
            f"Choose another name for the {created.kind}.",
        )
    existing = session.view(created.name)
    if created.kind == "table":
        if existing is not None and not created.temporary:
            raise _view_exists_error(created.name, "table")
        return False
    if created.query is None:
        return False
    end = tokens[-1].end
    query = text[tokens[created.query].start : end].strip().rstrip(";").strip()
    if not reads_models(query):
        if existing is None:
            return False
        if created.if_not_exists:
            return True
        if not created.or_replace:
            raise _view_exists_error(created.name, "view")
        session.drop_view(created.name)
        return False
    if existing is not None and created.if_not_exists:
        return True
    if existing is None:
        _check_name_is_free(session, created)
    view = View(created.name, query, created.columns, project=session.project)
    if created.temporary:
        _add_temporary_view(session, view, created.or_replace)
    else:
        session.catalog.add_view(view, or_replace=created.or_replace)
    return True


def _view_exists_error(name: str, what: str) -> AlreadyExists:
    return AlreadyExists(
        f"There is a view over a model named '{name}' already.",
        f"Choose another name for the {what}, or DROP VIEW {name}.",
    )


def _add_temporary_view(session: Session, view: View, or_replace: bool) -> None:
    if view.name.lower() in session.temporary_views and not or_replace:
        raise AlreadyExists(
            f"There is a temporary view '{view.name}' already.",
            f"CREATE OR REPLACE TEMP VIEW, or DROP VIEW {view.name}.",
        )
    session.temporary_views[view.name.lower()] = view


def _check_name_is_free(session: Session, created: CreateRelation) -> None:
    """AlreadyExists where DuckDB has a table or view of that name; with OR REPLACE a view of DuckDB's goes."""
    schema, _, name = created.name.rpartition(".")
    if (
        schema
        and not session.con.sql(
            f"FROM duckdb_schemas() WHERE lower(schema_name) = {quote_text(schema.lower())}"
        ).fetchall()
    ):
        raise NotFound(f"There is no schema '{schema}'.", f"CREATE SCHEMA {format_name(schema)} makes it.")
    where = f"lower(n) = {quote_text(name.lower())} AND s = {quote_text(schema or 'main')}"
    taken = session.con.sql(
        "SELECT is_view FROM (SELECT table_name AS n, schema_name AS s, false AS is_view FROM duckdb_tables()"
        f" UNION ALL SELECT view_name, schema_name, true FROM duckdb_views() WHERE NOT internal) WHERE {where}"
    ).fetchall()
    if not taken:
        return
    if created.or_replace and taken[0][0]:
        session.con.execute(f"DROP VIEW {'.'.join(format_name(p) for p in created.name.split('.'))}")
        return
    raise AlreadyExists(
        f"There is a table or view '{created.name}' already.",
        f"Choose another name for the {created.kind}, or drop that one first.",
    )


def _drop_view(session: Session, tokens: Sequence[Token], *, if_exists: bool) -> bool:
    parts, _ = read_dotted_name(tokens, 4 if if_exists else 2)
    if not parts:
        return False
    name = view_key(parts)
    if len(parts) < 3 and session.find_model(parts[-1], parts[-2] if len(parts) > 1 else None) is not None:
        raise CatalogError(f"'{'.'.join(parts)}' is a model.", f"DROP MODEL {'.'.join(parts)} removes it.")
    if len(parts) < 3 and session.find_knowledge_base(parts[-1], parts[-2] if len(parts) > 1 else None) is not None:
        dotted = ".".join(parts)
        raise CatalogError(f"'{dotted}' is a knowledge base.", f"DROP KNOWLEDGE_BASE {dotted} removes it.")
    if session.view(name) is None:
        return False
    if tokens[1].word == "TABLE":
        raise CatalogError(f"'{name}' is a view over a model.", f"DROP VIEW {name} removes it.")
    session.drop_view(name)
    return True


def _rename_view(session: Session, text: str, tokens: Sequence[Token]) -> bool:
    exists = [t.word for t in tokens[2:4]] == ["IF", "EXISTS"]
    parts, i = read_dotted_name(tokens, 4 if exists else 2)
    view = session.view(view_key(parts)) if parts else None
    if view is None:
        return False
    if [t.word for t in tokens[i : i + 2]] != ["RENAME", "TO"]:
        raise NotSupported(
            f"'{view.name}' is a view over a model; it can only be renamed.", "CREATE OR REPLACE VIEW changes it."
        )
    to, _ = read_dotted_name(tokens, i + 2)
    if len(to) != 1:
        raise StatementError("Expected one new name.", text, tokens[i].start, "ALTER VIEW name RENAME TO new_name")
    new = view_key([*parts[:-1], *to])
    created = CreateRelation(
        "view", new, False, False, view.name.lower() in session.temporary_views, view.columns, None
    )
    if session.view(new) is not None:
        raise _view_exists_error(new, "view")
    if session.find_model(new) is not None:
        raise AlreadyExists(f"There is a model '{new}' already.", "Choose another name.")
    _check_name_is_free(session, created)
    renamed = replace(view, name=new)
    if created.temporary:
        del session.temporary_views[view.name.lower()]
        session.temporary_views[new.lower()] = renamed
    else:
        session.catalog.add_view(renamed)
        session.catalog.drop_view(view.name)
    return True


def check_views(session: Session, sql: str, expanded: Sequence[str]) -> None:
    """NotFound that names the view, where a query fails since something that a view reads is gone."""
    if not expanded:
        return
    try:
        session.con.sql(sql)
    except duckdb.CatalogException as e:
        message = str(e).splitlines()[0]
        for name in expanded:
            view = session.view(name)
            gone = view and next((t.value for t in tokenize(view.sql) if f"name {t.value} does" in message), None)
            if gone:
                raise NotFound(
                    f"The view '{name}' reads '{gone}', which is not there any more.",
                    f"Make {gone} again, or write the view again: CREATE OR REPLACE VIEW {name} AS ….",
                ) from e
        raise


# -- UPDATE and DELETE ------------------------------------------------------------------------------------------------

CLAUSES = ("SET", "FROM", "USING", "WHERE", "RETURNING")


def rewrite_as_query(text: str, tokens: Sequence[Token], word: str) -> tuple[str, Callable[[str], str]] | None:
    """The query of what is to be changed, and what makes the statement of its planned text; None if it has no form.

    >>> from sqlft.sql.lexer import tokenize
    >>> query, statement = rewrite_as_query(t := "DELETE FROM u USING t WHERE u.id = t.id", tokenize(t), "DELETE")
    >>> query
    'SELECT u.rowid AS row_ FROM u, t WHERE u.id = t.id'
    >>> statement("SELECT 1")
    'DELETE FROM u WHERE rowid IN (SELECT 1)'
    """
    if tokens[0].word != word:
        return None
    clauses = _split_clauses(text, tokens)
    target, more = (clauses.get(name, "") for name in (("FROM", "USING") if word == "DELETE" else ("UPDATE", "FROM")))
    assignments = [] if word == "DELETE" else _split_assignments(clauses.get("SET", ""))
    if not target or assignments is None:
        return None
    alias = [t for t in tokenize(target) if t.word != "AS"][-1].text
    where, returning = (f" {name} {clauses[name]}" if name in clauses else "" for name in ("WHERE", "RETURNING"))
    sources = f"FROM {target}{f', {more}' if more else ''}{where}"
    if word == "DELETE":
        query = f"SELECT {alias}.rowid AS row_ {sources}"
        return query, lambda planned: f"DELETE FROM {target} WHERE rowid IN ({planned}){returning}"
    values = ", ".join(f"({value}) AS v{i}" for i, (_, value) in enumerate(assignments))
    query = f"SELECT {alias}.rowid AS row_, {values} {sources}"
    assigned = ", ".join(f"{column} = new_.v{i}" for i, (column, _) in enumerate(assignments))
    head = f"UPDATE {target} SET {assigned}"
    return query, lambda planned: f"{head} FROM ({planned}) AS new_ WHERE {alias}.rowid = new_.row_{returning}"


def _split_clauses(text: str, tokens: Sequence[Token]) -> dict[str, str]:
    """The text behind the statement's first word, and behind the word of each clause."""
    words = {tokens[0].word: tokens[0]}
    for i, token in top_level(tokens, 1):
        is_name = tokens[i - 1].text == "." or (token.word == "FROM" and tokens[i - 1].word == "DISTINCT")
        if token.word in CLAUSES and not is_name:
            words.setdefault(token.word, token)
    ends = [*(token.start for token in words.values()), tokens[-1].end][1:]
    return {word: text[token.end : end].strip() for (word, token), end in zip(words.items(), ends, strict=True)}


class Change(NamedTuple):
    """UPDATE or DELETE of one relation without others: the name of its columns' table, and its clauses as text."""

    alias: str
    assignments: list[tuple[str, str]]
    where: str


def read_change(text: str, tokens: Sequence[Token]) -> Change | None:
    """UPDATE or DELETE without FROM, USING or RETURNING; None for any other.

    >>> from sqlft.sql.lexer import tokenize
    >>> read_change(t := "UPDATE docs SET content = 'new' WHERE id = 3", tokenize(t))
    Change(alias='docs', assignments=[('content', "'new'")], where='id = 3')
    """
    clauses = _split_clauses(text, tokens)
    is_delete = tokens[0].word == "DELETE"
    target = clauses.get("FROM" if is_delete else "UPDATE", "")
    others = clauses.keys() - {tokens[0].word, "WHERE", "FROM" if is_delete else "SET"}
    assignments = [] if is_delete else _split_assignments(clauses.get("SET", ""))
    if others or not target or assignments is None or not all(tokenize(name) for name, _ in assignments):
        return None
    alias = [t for t in tokenize(target) if t.word != "AS"][-1].value
    return Change(alias, [(tokenize(name)[-1].value, value) for name, value in assignments], clauses.get("WHERE", ""))


def read_column_list(tokens: Sequence[Token], i: int) -> list[str]:
    """The names in parentheses at token i; none where there is a query in them, or nothing.

    >>> from sqlft.sql.lexer import tokenize
    >>> read_column_list(tokenize('(id, "the text") SELECT 1, 2'), 0)
    ['id', 'the text']
    """
    if i >= len(tokens) or tokens[i].text != "(" or starts_query(tokens, i + 1):
        return []
    close = next((j for j in range(i, len(tokens)) if tokens[j].text == ")"), len(tokens))
    return [t.value for t in tokens[i:close] if t.kind in ("word", "quoted")]


def _split_assignments(text: str) -> list[tuple[str, str]] | None:
    """column = value, …; None for (a, b) = (…), and where there is none."""
    commas = [token for _, token in top_level(tokenize(text)) if token.text == ","]
    starts, ends = [0, *(c.end for c in commas)], [*(c.start for c in commas), len(text)]
    assignments = []
    for part in (text[start:end] for start, end in zip(starts, ends, strict=True)):
        tokens = tokenize(part)
        equal = next((t for t in tokens if t.text == "="), None)
        if equal is None or tokens[0].text == "(":
            return None
        assignments.append((part[: equal.start].strip(), part[equal.end :].strip()))
    return assignments
