"""Rows to a knowledge base: chunked, embedded, and written a batch at a time; what is there already costs nothing.

Called by `sqlft.query` for INSERT, DELETE and UPDATE whose target is a knowledge base, and by `sqlft.statements` for
CREATE … FROM and REFRESH.  In: a query that DuckDB runs on the session's connection, models in it answered already.

    query -> a temporary table of rows -> compared by id and digest -> batches: chunk, embed, write

Outside of a transaction each batch is one of its own: a statement that was killed has lost at most one batch, and goes
on where it was when it is run again.  In the user's transaction all of it is.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase, to_json, utc_now
from sqlft.errors import Cancelled, CatalogError, DataError, OptionError, SqlftError, did_you_mean
from sqlft.handler import Range
from sqlft.inference.resolve import ResolvedVersion, count_tokens
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge import tables
from sqlft.knowledge.chunking import ChunkOptions, TokenCounter, split_text
from sqlft.knowledge.definition import check_columns, read_chunk_options
from sqlft.knowledge.embedding import check_dimension, embed_texts, require_same_model
from sqlft.knowledge.tables import METADATA_PREFIX, table_name
from sqlft.options import build_options
from sqlft.session import Session, Tick
from sqlft.sql.names import quote_name

ROWS, WORK, BATCH, CHUNKS = (f"temp.main.__sqlft_{name}" for name in ("rows", "work", "batch", "chunks"))
REGISTERED = "__sqlft_new_chunks"
BATCH_ROWS, BATCH_ROWS_OF_WORDS = 1000, 20_000
"""Rows of a batch that is embedded, and of one whose words alone are kept."""
PROCESS = uuid.uuid4().hex
"""This process, as a record's state names who inserts: an insert of another one that has not ended was killed."""


@dataclass
class InsertSettings:
    """INSERT INTO knowledge_base … USING, CREATE KNOWLEDGE_BASE … FROM and REFRESH"""

    batch_size: Annotated[
        int | None, f"rows of a batch, {BATCH_ROWS} by default, {BATCH_ROWS_OF_WORDS} of words alone", Range(1)
    ] = None
    error: Annotated[
        Literal["raise", "skip"], "a row without an id, or whose values do not fit: stop, or leave it out with a warning"
    ] = "raise"
    kb_skip_existing: Annotated[bool, "leave texts alone whose id is there already"] = False
    kb_no_upsert: Annotated[bool, "MindsDB's, for a first load; taken, and without effect"] = False
    threads: Annotated[Any, "MindsDB's; taken, and without effect"] = None
    track_column: Annotated[Any, "MindsDB's; taken, and without effect: a statement that is run again goes on"] = None


class InsertCounts(NamedTuple):
    """What became of the rows."""

    rows: int
    """Those that are in the knowledge base now."""
    added: int = 0
    changed: int = 0
    gone: int = 0


class _Columns(NamedTuple):
    """What the columns of the rows are; the names are theirs, quoted."""

    id: str | None
    content: tuple[str | None, ...]
    """One for each of the base's content columns; None where the rows have no such column."""
    metadata: tuple[str | None, ...]


def insert_rows(
    session: Session,
    runs: StatementRuns,
    base: KnowledgeBase,
    query: str,
    options: Mapping[str, object],
    *,
    drop_others: bool = False,
) -> InsertCounts:
    """Put the rows of a query in, in place of those with the same id; with `drop_others` the rest goes.

    `options` are those of `InsertSettings`; those that asking the embedding model takes are in `runs`.
    """
    settings = build_options(InsertSettings, options, f"INSERT INTO {base.key}")
    session.catalog.require_writing()
    with _kept_state(session, base) as keep, _temporary_tables(session.con):
        con = session.con
        con.execute(f"CREATE OR REPLACE TEMP TABLE {_unqualified(ROWS)} AS SELECT row_number() OVER () AS __place, * FROM ({query}\n)")
        return _Insert(session, runs, base, settings, keep).run(drop_others)


class _Insert:
    """One statement that inserts; its rows are in the temporary table ROWS."""

    def __init__(
        self,
        session: Session,
        runs: StatementRuns,
        base: KnowledgeBase,
        settings: InsertSettings,
        keep: Callable[..., None],
    ) -> None:
        self._session, self._con, self._runs, self._settings, self._keep = session, session.con, runs, settings, keep
        relation = self._con.sql(f"SELECT * EXCLUDE (__place) FROM {ROWS} LIMIT 0")
        self._types = {quote_name(n): str(t) for n, t in zip(relation.columns, relation.types, strict=True)}
        self._columns, self._base = _match_columns(session, base, relation.columns)
        self._chunk_options = read_chunk_options(base.options)
        self._resolved: ResolvedVersion | None = None
        if base.embedding_model is not None:
            self._resolved = require_same_model(session, base)
            runs.prompt_table(self._resolved, self._resolved.model.key.name)
        runs.check_using()
        self._is_own = not tables.is_in_transaction(self._con)

    def run(self, drop_others: bool) -> InsertCounts:
        base, con = self._base, self._con
        if base.metadata_columns != self._session.catalog.knowledge_bases.get(base.key).metadata_columns:
            self._keep(metadata_columns=base.metadata_columns)
        tables.write(con, base, self._is_own, self._prepare_tables)
        self._compare()
        total, rows, added = self._count()
        gone = tables.write(con, base, self._is_own, self._drop_others) if drop_others else 0
        self._write_batches(total)
        tables.write(con, base, self._is_own, self._update_metadata)
        if self._resolved is not None:
            place = f"doc IN (SELECT old FROM {WORK} WHERE is_same)"
            embed_waiting(self._session, self._runs, base, self._resolved, place)
        return InsertCounts(rows, added, total - added, gone)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _prepare_tables(self) -> None:
        """Make the tables, or give those that there are the metadata columns that are new."""
        base, con = self._base, self._con
        metadata = [column or "NULL::VARCHAR" for column in self._columns.metadata]
        if not tables.has_tables(con, base):
            tables.create_tables(con, base, f"{ROWS} AS r", self._id_expression(), metadata)
            return
        known = tables.stored_types(con, base)
        for name, column in zip(base.metadata_columns, metadata, strict=True):
            if (METADATA_PREFIX + name).lower() not in known:
                tables.add_metadata(con, base, name, self._types.get(column, "VARCHAR"))

    def _id_expression(self) -> str:
        """The id of a row: its column, else the first 16 digits of the MD5 of its texts, as MindsDB has it."""
        if self._columns.id is not None:
            return f"r.{self._columns.id}"
        return f"substr(md5(concat_ws(chr(10), {', '.join(self._texts())})), 1, 16)"

    def _texts(self) -> list[str]:
        """The content columns as texts, '' for what is not there."""
        return [
            "''" if column is None else f"coalesce({_as_text(f'r.{column}', self._types[column])}, '')"
            for column in self._columns.content
        ]

    def _compare(self) -> None:
        """Fill WORK: one row per id, with its number in `turn` where it has to be chunked; refuse what does not fit."""
        base, con = self._base, self._con
        known = tables.stored_types(con, base)
        id = self._id_expression()
        cast_id = f"TRY_CAST({id} AS {known['id']})" if self._id_type() != known["id"] else id
        bad = [f"{cast_id} IS NULL"]
        for name, column in zip(base.metadata_columns, self._columns.metadata, strict=True):
            kind = known[(METADATA_PREFIX + name).lower()]
            if column is not None and self._types[column] != kind:
                bad.append(f"(r.{column} IS NOT NULL AND TRY_CAST(r.{column} AS {kind}) IS NULL)")
        self._refuse_rows(" OR ".join(bad), id, known)
        signature = self._chunk_options.signature.replace("'", "''")
        digest = f"md5(concat({', chr(0), '.join([*self._texts(), repr_text(signature)])}))"
        todo = "d.doc IS NULL" + ("" if self._settings.kb_skip_existing else " OR d.digest <> n.digest")
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE {_unqualified(WORK)} AS
            WITH named AS (SELECT r.__place AS place, {cast_id} AS id, {digest} AS digest FROM {ROWS} AS r
                           WHERE NOT ({' OR '.join(bad)})),
                 firsts AS (SELECT * FROM named QUALIFY row_number() OVER (PARTITION BY id ORDER BY place) = 1)
            SELECT n.*, d.doc AS old, coalesce(d.digest = n.digest, false) AS is_same, {todo} AS todo,
                   sum(({todo})::INTEGER) OVER (ORDER BY place)::BIGINT AS turn
            FROM firsts AS n LEFT JOIN {table_name(base, 'documents')} AS d ON d.id = n.id ORDER BY place"""
        )
        repeated = self._fetch(f"SELECT (SELECT count(*) FROM {ROWS} AS r WHERE NOT ({' OR '.join(bad)})) - count(*) FROM {WORK}")
        if repeated[0] and self._columns.id is not None:
            self._session.show_warning(
                f"{repeated[0]} rows have an id that an earlier row of this INSERT has, and were left out."
            )

    def _id_type(self) -> str:
        return "VARCHAR" if self._columns.id is None else self._types[self._columns.id]

    def _refuse_rows(self, bad: str, id: str, known: Mapping[str, str]) -> None:
        """DataError for rows without an id or whose values do not fit; with error = 'skip' a warning."""
        count, first = self._fetch(f"SELECT count(*), first(({id})::VARCHAR) FROM {ROWS} AS r WHERE {bad}")
        if not count:
            return
        named = "no id" if first is None else f"the id '{first[:80]}'"
        kinds = ", ".join(f"{name.removeprefix(METADATA_PREFIX)} {kind}" for name, kind in known.items())
        what = f"{count} rows do not fit into '{self._base.key}' ({kinds}); the first of them has {named}"
        if self._settings.error == "raise":
            raise DataError(
                f"{what}.", "Give each row an id, CAST the columns in the query, or leave such rows out: error = 'skip'."
            )
        self._session.show_warning(f"{what}. They were left out.")

    def _count(self) -> tuple[int, int, int]:
        """Rows that have to be chunked, all rows, and those that are new."""
        total, rows, added = self._fetch(
            f"SELECT coalesce(max(turn), 0), count(*), count(*) FILTER (old IS NULL) FROM {WORK}"
        )
        return int(total), int(rows), int(added)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_batches(self, total: int) -> None:
        size = self._settings.batch_size or (BATCH_ROWS if self._resolved is not None else BATCH_ROWS_OF_WORDS)
        progress = _Progress(self._session, f"inserting into {self._base.key}", total)
        for first in range(1, total + 1, size):
            last = min(total, first + size - 1)
            with progress.batch(first - 1, last):
                chunks = self._chunk(first, last)
                vectors, dimension = self._embed(chunks)
            action = partial(self._write_batch, first, last, chunks, vectors, dimension)
            tables.write(self._con, self._base, self._is_own, action)
            self._keep(processed_rows=last)

    def _chunk(self, first: int, last: int) -> pa.Table:
        """The chunks of the rows of these turns: turn, number, label and content."""
        texts = ", ".join(f"{text} AS t{i}" for i, text in enumerate(self._texts()))
        low, high = self._fetch(f"SELECT min(place), max(place) FROM {WORK} WHERE todo AND turn BETWEEN {first} AND {last}")
        rows = self._con.execute(
            f"SELECT w.turn, {texts} FROM {WORK} AS w JOIN {ROWS} AS r ON r.__place = w.place"
            f" WHERE w.todo AND w.turn BETWEEN {first} AND {last} AND r.__place BETWEEN {low} AND {high} ORDER BY w.turn"
        ).fetchall()
        found = [
            (turn, label, content)
            for turn, *values in rows
            for label, content in self._split(values)
        ]
        turns, labels, contents = zip(*found, strict=True) if found else ((), (), ())
        columns = [pa.array(turns, pa.int64()), pa.array(range(len(found)), pa.int64())]
        return pa.table([*columns, pa.array(labels, pa.string()), pa.array(contents, pa.string())], CHUNK_COLUMNS)

    def _split(self, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What follows the id in a chunk's id, and its content."""
        for name, text in zip(self._base.content_columns, texts, strict=True):
            chunks = split_text(text, self._chunk_options, self._counter())
            for i, chunk in enumerate(chunks):
                yield f"_{name}:{i + 1}of{len(chunks)}:{chunk.start}to{chunk.end}", chunk.content

    def _counter(self) -> TokenCounter | None:
        resolved = self._resolved
        if resolved is None:
            return None
        return lambda texts: count_tokens(resolved.handler, texts, resolved.spec)

    def _embed(self, chunks: pa.Table) -> tuple[pa.Array, int | None]:
        """The chunks' vectors, and how many numbers each has; None as long as that is not known."""
        if self._resolved is None or not len(chunks):
            return pa.nulls(len(chunks), pa.list_(pa.float32())), None
        vectors = embed_texts(self._session, self._runs, self._resolved, chunks["content"]).vectors
        expected = tables.read_state(self._con, self._base).dimension or self._base.options.get("vector_size")
        return vectors, check_dimension(self._base, vectors, expected)

    def _write_batch(self, first: int, last: int, chunks: pa.Table, vectors: pa.Array, dimension: int | None) -> None:
        """Write the rows of these turns and their chunks, in place of those of the same ids."""
        base, con = self._base, self._con
        state = tables.read_state(con, base)
        if state.model is None and dimension is not None and self._resolved is not None:
            tables.set_vectors(con, base, self._resolved.digest, dimension)
            state = tables.read_state(con, base)
        doc, chunk = tables.take_numbers(con, base, last - first + 1, len(chunks))
        documents = table_name(base, "documents")
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {_unqualified(BATCH)} AS SELECT w.turn, w.place, w.id, w.digest,"
            f" coalesce(d.doc, {doc} + w.turn - {first}) AS doc, d.doc IS NOT NULL AS is_old FROM {WORK} AS w"
            f" LEFT JOIN {documents} AS d ON d.id = w.id WHERE w.todo AND w.turn BETWEEN {first} AND {last}"
        )
        if self._fetch(f"SELECT count(*) FROM {BATCH} WHERE is_old")[0]:
            tables.delete_chunks(con, base, f"doc IN (SELECT doc FROM {BATCH} WHERE is_old)")
            self._update_documents(f"{BATCH} AS b", "b.place", "d.doc = b.doc AND b.is_old", "digest = b.digest")
        stored = "".join(f", {column or 'NULL'}" for column in self._columns.metadata)
        names = "".join(f", {quote_name(METADATA_PREFIX + name)}" for name in base.metadata_columns)
        con.execute(
            f"INSERT INTO {documents} (doc, id, digest{names}) SELECT b.doc, b.id, b.digest{stored}"
            f" FROM {BATCH} AS b JOIN {ROWS} AS r ON r.__place = b.place WHERE NOT b.is_old ORDER BY b.turn"
        )
        self._write_chunks(chunk, chunks, vectors, state.dimension or 1)

    def _write_chunks(self, first: int, chunks: pa.Table, vectors: pa.Array, dimension: int) -> None:
        con = self._con
        con.register(REGISTERED, chunks.append_column("vector", vectors))
        try:
            con.execute(
                f"CREATE OR REPLACE TEMP TABLE {_unqualified(CHUNKS)} AS SELECT {first} + c.number AS chunk, b.doc,"
                f" concat(b.id::VARCHAR, c.label) AS chunk_id, c.content, c.vector::FLOAT[{dimension}] AS vector"
                f" FROM {REGISTERED} AS c JOIN {BATCH} AS b ON b.turn = c.turn"
            )
        finally:
            con.unregister(REGISTERED)
        insert_chunks(con, self._base, CHUNKS)

    def _update_documents(self, source: str, place: str, condition: str, *assigned: str) -> None:
        """Set the metadata of documents `d` to those of the rows; columns that the rows lack stay as they are."""
        pairs = [
            (f"{quote_name(METADATA_PREFIX + name)}", f"r.{column}")
            for name, column in zip(self._base.metadata_columns, self._columns.metadata, strict=True)
            if column is not None
        ]
        assignments = [*assigned, *(f"{column} = {value}" for column, value in pairs)]
        if not assignments:
            return
        if not assigned:
            condition += f" AND ({' OR '.join(f'd.{column} IS DISTINCT FROM {value}' for column, value in pairs)})"
        self._con.execute(
            f"UPDATE {table_name(self._base, 'documents')} AS d SET {', '.join(assignments)} FROM {source}"
            f" JOIN {ROWS} AS r ON r.__place = {place} WHERE {condition}"
        )

    def _update_metadata(self) -> None:
        """Of texts that are the same, the metadata may have changed."""
        if not self._settings.kb_skip_existing:
            self._update_documents(f"{WORK} AS w", "w.place", "d.doc = w.old AND w.is_same")

    def _drop_others(self) -> int:
        """Delete documents whose ids are not among the rows; how many."""
        documents = table_name(self._base, "documents")
        gone = f"id NOT IN (SELECT id FROM {WORK})"
        tables.delete_chunks(self._con, self._base, f"doc IN (SELECT doc FROM {documents} WHERE {gone})")
        row = self._con.execute(f"DELETE FROM {documents} WHERE {gone}").fetchone()
        return int(row[0]) if row else 0

    def _fetch(self, sql: str) -> tuple[Any, ...]:
        row = self._con.execute(sql).fetchone()
        assert row is not None
        return row
