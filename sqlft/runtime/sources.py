"""Rows of FROM db (SELECT …): the query as typed, with `db` as its default catalog, models in it included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from sqlft.errors import DataError, NotFound, did_you_mean
from sqlft.runtime.cache import Cache
from sqlft.runtime.literals import identifier, inline
from sqlft.runtime.session import Parameters, Session
from sqlft.sql.plain import plain
from sqlft.sql.statements import Source


def read(session: Session, source: Source, values: Parameters) -> pa.Table:
    """All rows of the source; `values` are those of the whole statement's parameters."""
    text = inline(source.query, values, source.parameters)
    with default_catalog(session, source.database):
        try:
            return _rows(session, text)
        except duckdb.Error as e:
            if type(e).__module__.startswith("sqlft"):
                raise
            raise DataError(f"The query for the rows failed: {e}", "Mend it: try it alone first.") from e


def _rows(session: Session, text: str) -> pa.Table:
    from sqlft.query import Done, Native, Untouched, plan_query  # SHOW and DESCRIBE go without it

    statement = plain(text, 0, len(text))
    cache = Cache(session.catalog.folder / "cache.sqlite")
    try:
        planned = plan_query(session, cache, statement, None)
        if isinstance(planned, Untouched | Native | Done):
            query = planned.sql if isinstance(planned, Native) else statement.sql
            relation = None if isinstance(planned, Done) else session.con.sql(query)
            if relation is None:
                raise DataError("The query for the rows gives none, it is no SELECT.", "Write FROM db (SELECT …).")
            return relation.to_arrow_reader(100_000).read_all()
        return planned.table()
    finally:
        cache.close()


@contextmanager
def default_catalog(session: Session, database: str | None) -> Iterator[None]:
    """Tables are looked for in `database`, an attached catalog or a schema, first."""
    if database is None:
        yield
        return
    con = session.con
    known = [r[0] for r in con.sql("SELECT database_name FROM duckdb_databases() WHERE NOT internal").fetchall()]
    schemas = [
        r[0]
        for r in con.sql("SELECT schema_name FROM duckdb_schemas() WHERE database_name = current_database()").fetchall()
    ]
    target = next((n for n in [*known, *schemas] if n.lower() == database.lower()), None)
    if target is None:
        if database.lower() in ("mindsdb", "main", "memory"):
            yield
            return
        raise NotFound(
            f"There is no database '{database}'.{did_you_mean(database, known)}",
            f"ATTACH a file or a server under that name, or CREATE DATABASE {database} WITH ENGINE = …; "
            "FROM (SELECT …) reads what is open here.",
        )
    old = con.sql("SELECT current_setting('search_path'), current_database(), current_schema()").fetchall()[0]
    con.execute(f"USE {identifier(target)}")
    _finish(con)
    try:
        yield
    finally:
        con.execute(_restore(old))
        _finish(con)


def _restore(old: tuple[str, str, str]) -> str:
    search_path, database, schema = old
    if search_path and not re.fullmatch(r"[\w\"]+\.[\w\"]+", search_path):
        return "SET search_path = '" + search_path.replace("'", "''") + "'"
    return f"USE {identifier(database)}.{identifier(schema)}"


def _finish(con: duckdb.DuckDBPyConnection) -> None:
    con.fetchall()
