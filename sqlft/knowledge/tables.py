"""Where a knowledge base keeps its texts: four tables in the user's DuckDB file, how they are made, and how read.

All of them are written in the user's own transaction.  They have no keys and no indexes: DuckDB checks those too
eagerly for rows that are replaced, and none is needed by a search that reads everything.

`documents`: one row per text, `doc` BIGINT, `id` of the type that the rows had, `digest` VARCHAR (of the texts and of
how they are chunked), and `m_<name>` for each metadata column, of its own type.

`chunks`: `chunk` BIGINT, `doc`, `chunk_id` VARCHAR, `content` VARCHAR, `digest` UBIGINT (of the content, by which the
vector of an equal one is found), `vector` FLOAT[dimension] (NULL: not embedded yet), `length` INTEGER (its number of
words, in the sense of `words`).

`words`: `word` VARCHAR (stemmed), `chunk`, `count` INTEGER.

`state`: one row, `next_doc`, `next_chunk`, and `model` and `dimension` of the vectors, NULL until there is one.  Each
transaction that writes changes this row first: so no two write at once, and DuckDB says so to the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import duckdb

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import CatalogError
from sqlft.sql.names import quote_name

SCHEMA = "sqlft_knowledge"
METADATA_PREFIX = "m_"
DIGEST = "md5_number_lower(content)"
TABLES = ("documents", "chunks", "words", "state")
RETRY_SECONDS = 30.0
"""How long a statement waits for another connection that writes into the same knowledge base."""
T = TypeVar("T")


class StoredState(NamedTuple):
    """What is known of the stored vectors: the digest of the model that made them, and how many numbers they have."""

    model: str | None
    dimension: int | None


class Counts(NamedTuple):
    """How much there is; `waiting` are chunks without a vector."""

    documents: int = 0
    chunks: int = 0
    waiting: int = 0


def table_name(base: KnowledgeBase, table: str) -> str:
    """The quoted name of one of its tables: documents, chunks, words or state.

    >>> from sqlft.catalog.records import ModelKey
    >>> table_name(KnowledgeBase(ModelKey("docs"), storage="shop"), "chunks")
    '"shop".sqlft_knowledge."mindsdb.docs.chunks"'
    """
    database = "" if base.storage is None else f"{quote_name(base.storage)}."
    parts = (base.key.project, base.key.name, table)
    return f"{database}{SCHEMA}.{quote_name('.'.join(part.replace('.', '..').lower() for part in parts))}"


def run(con: duckdb.DuckDBPyConnection, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """The rows of a statement, all of them: DuckDB refuses other work while a result is open."""
    return con.execute(sql, list(values)).fetchall() if values else con.execute(sql).fetchall()


# -- reading -----------------------------------------------------------------------------------------------------------


def visible_columns(base: KnowledgeBase) -> tuple[str, ...]:
    """Names of the columns that a query sees, besides `distance` and `relevance`."""
    return ("id", "chunk_id", "chunk_content", "metadata", *base.metadata_columns)


def visible_chunks_sql(base: KnowledgeBase, *, keeps_empty: bool = False) -> str:
    """A query for all chunks: `chunk`, and the columns of `visible_columns`; for tables that are there.

    With `keeps_empty` documents without a chunk have a row, too, and `__doc` is the document's number.
    """
    columns = [quote_name(name) for name in base.metadata_columns]
    stored = [f"d.{quote_name(METADATA_PREFIX + name)}" for name in base.metadata_columns]
    packed = ", ".join(f"{name} := {value}" for name, value in zip(columns, stored, strict=True))
    metadata = f"to_json(struct_pack({packed}))" if packed else "'{}'::JSON"
    shown = "".join(f", {value} AS {name}" for name, value in zip(columns, stored, strict=True))
    more, join = (", d.doc AS __doc", "RIGHT JOIN") if keeps_empty else ("", "JOIN")
    return (
        f"SELECT c.chunk, d.id, c.chunk_id, c.content AS chunk_content, {metadata} AS metadata{shown}{more} "
        f"FROM {table_name(base, 'chunks')} AS c {join} {table_name(base, 'documents')} AS d USING (doc)"
    )


def empty_chunks_sql(base: KnowledgeBase) -> str:
    """What stands for `visible_chunks_sql` where the tables are not there: the same columns, and no row."""
    names = ("chunk", *visible_columns(base))
    kinds = {"chunk": "BIGINT", "metadata": "JSON"}
    columns = ", ".join(f"NULL::{kinds.get(name, 'VARCHAR')} AS {quote_name(name)}" for name in names)
    return f"SELECT {columns} WHERE false"


def has_tables(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> bool:
    """Whether anything was inserted that this transaction sees: its tables come with the first rows."""
    try:
        con.sql(f"FROM {table_name(base, 'state')}")  # binding fails without an end of the user's transaction
    except (duckdb.CatalogException, duckdb.BinderException):
        if not is_attached(con, base):
            raise CatalogError(
                f"The knowledge base '{base.key}' is kept in the database '{base.storage}', which is not attached.",
                f"ATTACH 'file.duckdb' AS {quote_name(base.storage or '')} first.",
            ) from None
        return False
    return True


def is_attached(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> bool:
    """Whether the database with its tables is."""
    query = "SELECT count(*) FROM duckdb_databases() WHERE lower(database_name) = lower(?)"
    return base.storage is None or run(con, query, [base.storage]) == [(1,)]


def read_state(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> StoredState:
    """What is known of the vectors; nothing where the tables are not there."""
    if not has_tables(con, base):
        return StoredState(None, None)
    return StoredState(*run(con, f"SELECT model, dimension FROM {table_name(base, 'state')}")[0])


def count_rows(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> Counts:
    """Documents, chunks and those of them that wait; of words alone nothing waits."""
    if not has_tables(con, base):
        return Counts()
    waiting = "count(*) - count(vector)" if base.embedding_model is not None else "0"
    documents = f"(SELECT count(*) FROM {table_name(base, 'documents')})"
    return Counts(*run(con, f"SELECT {documents}, count(*), {waiting} FROM {table_name(base, 'chunks')}")[0])


# -- transactions ------------------------------------------------------------------------------------------------------


def is_in_transaction(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the user has a transaction open: two statements in autocommit have different ones."""
    first, second = (run(con, "SELECT txid_current()") for _ in range(2))
    return first == second


@contextmanager
def open_transaction(con: duckdb.DuckDBPyConnection, *, is_own: bool) -> Iterator[None]:
    """A transaction of its own, or the user's."""
    if not is_own:
        yield
        return
    run(con, "BEGIN")
    try:
        yield
        run(con, "COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a COMMIT that failed has ended it
            run(con, "ROLLBACK")
        raise


def write(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, is_own: bool, action: Callable[[], T]) -> T:
    """Run what writes, after a change of the row of `state`; waits for another connection that writes."""
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            with open_transaction(con, is_own=is_own):
                if has_tables(con, base):
                    run(con, f"UPDATE {table_name(base, 'state')} SET next_doc = next_doc")
                return action()
        except duckdb.TransactionException as e:
            if "onflict" not in str(e):
                raise
            if not is_own or time.monotonic() > end:
                raise CatalogError(
                    f"Another connection writes into the knowledge base '{base.key}'.",
                    "Run it again when that is done." if is_own else "ROLLBACK, and run it again when that is done.",
                ) from e
            time.sleep(0.02)


# -- making ------------------------------------------------------------------------------------------------------------


def create_tables(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, rows: str, id: str, columns: Sequence[str]
) -> None:
    """Make them where they are missing, with the types of `id` and of the metadata `columns` in the relation `rows`.

    `columns` are those of the rows for `base.metadata_columns`, as SQL.
    """
    if has_tables(con, base):
        return
    database = "" if base.storage is None else f"{quote_name(base.storage)}."
    run(con, f"CREATE SCHEMA IF NOT EXISTS {database}{SCHEMA}")
    stored = "".join(
        f", {column} AS {quote_name(METADATA_PREFIX + name)}"
        for name, column in zip(base.metadata_columns, columns, strict=True)
    )
    documents = f"SELECT 0::BIGINT AS doc, {id} AS id, ''::VARCHAR AS digest{stored} FROM {rows} LIMIT 0"
    run(con, f"CREATE TABLE {table_name(base, 'documents')} AS {documents}")
    chunks = (
        "chunk BIGINT, doc BIGINT, chunk_id VARCHAR, content VARCHAR, digest UBIGINT, vector FLOAT[1], length INTEGER"
    )
    run(con, f"CREATE TABLE {table_name(base, 'chunks')} ({chunks})")
    run(con, f"CREATE TABLE {table_name(base, 'words')} (word VARCHAR, chunk BIGINT, count INTEGER)")
    state = "SELECT 0::BIGINT AS next_doc, 0::BIGINT AS next_chunk, NULL::VARCHAR AS model, NULL::INTEGER AS dimension"
    run(con, f"CREATE TABLE {table_name(base, 'state')} AS {state}")


def drop_tables(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> None:
    """Remove them; CatalogError in a transaction, since ROLLBACK would bring them back and not their definition."""
    if not has_tables(con, base):
        return
    if is_in_transaction(con):
        raise CatalogError(
            f"'{base.key}' is not dropped in a transaction: ROLLBACK would not bring its definition back.",
            "COMMIT or ROLLBACK first. DELETE FROM removes texts in a transaction.",
        )
    for table in TABLES:
        run(con, f"DROP TABLE IF EXISTS {table_name(base, table)}")


def require_vectors(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, model: str | None, dimension: int | None
) -> None:
    """Give the chunks a column for vectors of this model where they have none yet and the first are there."""
    if model is None or dimension is None or read_state(con, base).model is not None:
        return
    _change_vectors(con, base, dimension)
    run(con, f"UPDATE {table_name(base, 'state')} SET model = ?, dimension = ?", [model, dimension])


def forget_vectors(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> None:
    """Let all chunks wait for vectors, of whatever model."""
    _change_vectors(con, base, 1)
    run(con, f"UPDATE {table_name(base, 'state')} SET model = NULL, dimension = NULL")


def _change_vectors(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, dimension: int) -> None:
    kind = f"FLOAT[{dimension}]"
    run(con, f"ALTER TABLE {table_name(base, 'chunks')} ALTER vector TYPE {kind} USING NULL::{kind}")


def add_metadata(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> None:
    """Add the metadata columns that documents lack, without values; their type is that of the first ones."""
    known = stored_types(con, base)
    for name in base.metadata_columns:
        if (METADATA_PREFIX + name).lower() not in known:
            column = quote_name(METADATA_PREFIX + name)
            run(con, f"ALTER TABLE {table_name(base, 'documents')} ADD COLUMN {column} VARCHAR")


def change_types(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, kinds: Mapping[str, str]) -> None:
    """Give columns of documents that have no value yet the types of those that come."""
    documents, known = table_name(base, "documents"), stored_types(con, base)
    for name, kind in kinds.items():
        column = quote_name(name)
        if known[name.lower()] != kind and run(con, f"SELECT count({column}) FROM {documents}") == [(0,)]:
            run(con, f"ALTER TABLE {documents} ALTER {column} TYPE {kind} USING NULL::{kind}")


def stored_types(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> dict[str, str]:
    """The types of the stored documents' columns, by name: id, and m_<name> for metadata."""
    relation = con.sql(f"SELECT * EXCLUDE (doc, digest) FROM {table_name(base, 'documents')} LIMIT 0")
    return {name.lower(): str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}


def find_vectors(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, texts: str) -> duckdb.DuckDBPyRelation:
    """`vector`, FLOAT[], of chunks with the contents of the relation `texts`, which has `i` and `content`; by `i`."""
    known = (
        f"SELECT c.digest, c.content, any_value(c.vector)::FLOAT[] AS vector FROM {table_name(base, 'chunks')} AS c"
        f" WHERE c.vector IS NOT NULL AND c.digest IN (SELECT {DIGEST} FROM {texts}) GROUP BY c.digest, c.content"
    )
    same = f"k.digest = {DIGEST.replace('content', 't.content')} AND k.content = t.content"
    return con.sql(f"SELECT k.vector FROM {texts} AS t LEFT JOIN ({known}) AS k ON {same} ORDER BY t.i")


def take_numbers(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, docs: int, chunks: int) -> tuple[int, int]:
    """The first of so many new numbers of documents and of chunks."""
    taken = f"SET next_doc = next_doc + {docs}, next_chunk = next_chunk + {chunks} RETURNING next_doc, next_chunk"
    next_doc, next_chunk = run(con, f"UPDATE {table_name(base, 'state')} {taken}")[0]
    return next_doc - docs, next_chunk - chunks


def delete_chunks(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, condition: str) -> None:
    """Delete the chunks that fulfil a condition on the columns of `chunks`, and their words."""
    chunks = table_name(base, "chunks")
    run(con, f"DELETE FROM {table_name(base, 'words')} WHERE chunk IN (SELECT chunk FROM {chunks} WHERE {condition})")
    run(con, f"DELETE FROM {chunks} WHERE {condition}")
