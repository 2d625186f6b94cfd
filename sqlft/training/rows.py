"""Rows of FROM db (SELECT …): the query as typed, with `db` as its default catalog, models in it included."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from sqlft.data.prompts import prompt_text_sql
from sqlft.errors import DataError, NotFound, did_you_mean
from sqlft.inference.cache import Cache
from sqlft.session import Parameters, Session
from sqlft.sql.literals import inline_parameters
from sqlft.sql.names import quote_name, quote_text
from sqlft.sql.passthrough import parse_plain
from sqlft.sql.statements import RowSource

BATCH_ROWS = 100_000


def read_rows(session: Session, source: RowSource, values: Parameters, *, to_train: bool = False) -> pa.Table:
    """All rows of the source; `values` are those of the whole statement's parameters.

    What is read `to_train` comes as prompts show it: see `fetch_lossless`.
    """
    text = inline_parameters(source.query, values, source.parameters)
    with use_database(session, source.database):
        try:
            return _run_query(session, text, fetch_lossless if to_train else _fetch_arrow)
        except duckdb.Error as e:
            if type(e).__module__.startswith("sqlft"):
                raise
            raise DataError(f"The query for the rows failed: {e}", "Correct it: try it alone first.") from e


def _run_query(session: Session, text: str, fetch: Callable[[duckdb.DuckDBPyRelation], pa.Table]) -> pa.Table:
    from sqlft.query import CompletedQuery, NativeQuery, UnchangedQuery, plan_query  # SHOW and DESCRIBE go without it

    statement = parse_plain(text, 0, len(text))
    cache = Cache(session.catalog.folder / "cache.sqlite")
    try:
        planned = plan_query(session, cache, statement, None)
        if isinstance(planned, UnchangedQuery | NativeQuery | CompletedQuery):
            query = planned.sql if isinstance(planned, NativeQuery) else statement.sql
            relation = None if isinstance(planned, CompletedQuery) else session.con.sql(query)
            if relation is None:
                raise DataError("The query for the rows gives none, it is no SELECT.", "Write FROM db (SELECT …).")
            return fetch(relation)
        return fetch(session.con.from_arrow(planned.table()))
    finally:
        cache.close()


NATIVE_TYPES = {
    "boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint",
    "float", "double", "decimal", "varchar", "null",
}  # fmt: skip
"""Types whose values Arrow and Python have as DuckDB has them."""
WIDE_INTEGER_TYPES = {"hugeint", "uhugeint", "bignum"}
MAX_DECIMAL_DIGITS = 38
"""Most of a whole number in Arrow."""


def _fetch_arrow(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    return relation.to_arrow_reader(BATCH_ROWS).read_all()


def fetch_lossless(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """All rows, what Arrow or Python would falsify as DuckDB's own text: infinity, BC, time zones, BIT …

    Nested columns are JSON, as `to_json` has it; whole numbers too wide for 64 bits stay numbers while Arrow has them.
    """
    import pyarrow.compute as pc

    names, kinds = relation.columns, [str(t.id) for t in relation.types]
    if all(kind in NATIVE_TYPES for kind in kinds):
        return _fetch_arrow(relation)
    columns = [_project_lossless(name, kind, names) for name, kind in zip(names, relation.types, strict=True)]
    table = _fetch_arrow(relation.project(", ".join(columns)))
    for i in (i for i, kind in enumerate(kinds) if kind in WIDE_INTEGER_TYPES):
        if (pc.max(pc.utf8_length(table.column(i))).as_py() or 0) <= MAX_DECIMAL_DIGITS:
            table = table.set_column(i, names[i], table.column(i).cast(pa.decimal128(MAX_DECIMAL_DIGITS, 0)))
    return table


def _project_lossless(name: str, kind: duckdb.sqltypes.DuckDBPyType, names: Sequence[str]) -> str:
    quoted = quote_name(name)
    if kind.id in NATIVE_TYPES or [n.lower() for n in names].count(name.lower()) > 1:  # which SQL cannot tell apart
        return quoted
    return f"{prompt_text_sql(quoted, str(kind))} AS {quoted}"


@contextmanager
def use_database(session: Session, database: str | None) -> Iterator[None]:
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
    con.execute(f"USE {quote_name(target)}")
    _drain_result(con)
    try:
        yield
    finally:
        con.execute(_build_restore_statement(old))
        _drain_result(con)


def _build_restore_statement(old: tuple[str, str, str]) -> str:
    search_path, database, schema = old
    if search_path and not re.fullmatch(r"[\w\"]+\.[\w\"]+", search_path):
        return f"SET search_path = {quote_text(search_path)}"
    return f"USE {quote_name(database)}.{quote_name(schema)}"


def _drain_result(con: duckdb.DuckDBPyConnection) -> None:
    con.fetchall()
