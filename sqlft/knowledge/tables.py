"""Where a knowledge base keeps its texts: three tables in the user's DuckDB file, and how they are read.

All of them are written in the user's own transaction.  They have no keys and no indexes: DuckDB checks those too
eagerly for rows that are replaced, and none is needed by a search that reads everything.

`documents`: one row per text, `doc` BIGINT, `id` of the type that the rows had, `digest` VARCHAR (of the texts and of
how they are chunked), and `m_<name>` for each metadata column, of its own type.

`chunks`: `chunk` BIGINT, `doc`, `chunk_id` VARCHAR, `content` VARCHAR, `vector` FLOAT[dimension] (NULL: not embedded
yet), `length` INTEGER (its number of words, in the sense of `words`).

`words`: `word` VARCHAR (stemmed), `chunk`, `count` INTEGER.
"""

from __future__ import annotations

import duckdb

from sqlft.catalog.records import KnowledgeBase
from sqlft.sql.names import quote_name

SCHEMA = "sqlft_knowledge"
METADATA_PREFIX = "m_"


def table_name(base: KnowledgeBase, table: str) -> str:
    """The quoted name of one of its tables: documents, chunks or words.

    >>> from sqlft.catalog.records import ModelKey
    >>> table_name(KnowledgeBase(ModelKey("docs")), "chunks")
    'sqlft_knowledge."mindsdb.docs.chunks"'
    """
    database = "" if base.storage is None else f"{quote_name(base.storage)}."
    return f"{database}{SCHEMA}.{quote_name(f'{base.key.project}.{base.key.name}.{table}'.lower())}"


def has_tables(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> bool:
    """Whether anything was inserted that this transaction sees."""
    try:
        con.sql(f"FROM {table_name(base, 'chunks')}")  # binding fails without an end of the user's transaction
    except duckdb.CatalogException:
        return False
    return True


def visible_columns(base: KnowledgeBase) -> tuple[str, ...]:
    """Names of the columns that a query sees, besides `distance` and `relevance`."""
    return ("id", "chunk_id", "chunk_content", "metadata", *base.metadata_columns)


def visible_chunks_sql(base: KnowledgeBase) -> str:
    """A query for all chunks: `chunk`, and the columns of `visible_columns`."""
    columns = [quote_name(name) for name in base.metadata_columns]
    stored = [f"d.{quote_name(METADATA_PREFIX + name)}" for name in base.metadata_columns]
    packed = ", ".join(f"{name} := {value}" for name, value in zip(columns, stored, strict=True))
    metadata = f"to_json(struct_pack({packed}))" if packed else "'{}'::JSON"
    shown = "".join(f", {value} AS {name}" for name, value in zip(columns, stored, strict=True))
    return (
        f"SELECT c.chunk, d.id, c.chunk_id, c.content AS chunk_content, {metadata} AS metadata{shown} "
        f"FROM {table_name(base, 'chunks')} AS c JOIN {table_name(base, 'documents')} AS d USING (doc)"
    )
