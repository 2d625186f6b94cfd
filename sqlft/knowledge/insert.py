"""Rows to a knowledge base: chunked, embedded, and written a batch at a time; what is there already costs nothing.

Called by `sqlft.query` for INSERT, DELETE and UPDATE whose target is a knowledge base, and by `sqlft.statements` for
CREATE … FROM and REFRESH.  In: a query that DuckDB runs on the session's connection, models in it answered already.

    query -> a temporary table of rows -> compared by id and digest -> batches: chunk, embed, write

Outside of a transaction each batch is one of its own: a statement that was killed has lost at most one batch, and goes
on where it was when it is run again.  In the user's transaction all of it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from sqlft.catalog.knowledge_bases import PROCESS
from sqlft.catalog.records import KnowledgeBase, to_micros, utc_now
from sqlft.errors import Cancelled, CatalogError, DataError, NotFound, OptionError
from sqlft.handler import Range
from sqlft.inference.resolve import ResolvedVersion, count_tokens
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge import tables, words
from sqlft.knowledge.chunking import split_text
from sqlft.knowledge.definition import match_columns, read_chunk_options
from sqlft.knowledge.embedding import check_dimension, embed_texts, require_same_model, resolve_embedding_model
from sqlft.knowledge.tables import DIGEST, METADATA_PREFIX, run, table_name
from sqlft.knowledge.words import read_arrow, registered
from sqlft.options import build_options
from sqlft.redact import redact_secrets
from sqlft.session import Session, Tick
from sqlft.sql.names import quote_name, quote_text

ROWS, WORK, BATCH = (f"__sqlft_{name}" for name in ("rows", "work", "batch"))
"""Temporary tables of one statement."""
BATCH_ROWS, BATCH_ROWS_OF_WORDS = 1000, 20_000
"""Rows of a batch that is embedded, and of one whose words alone are kept."""
BATCH_CHARACTERS = 10_000_000
"""About as many at most, unless one text has more."""


@dataclass
class InsertSettings:
    """INSERT INTO knowledge_base … USING, CREATE KNOWLEDGE_BASE … FROM and REFRESH"""

    batch_size: Annotated[
        int | None, f"rows of a batch, {BATCH_ROWS} by default, {BATCH_ROWS_OF_WORDS} of words alone", Range(1)
    ] = None
    error: Annotated[
        Literal["raise", "skip"],
        "a row without an id, or whose values do not fit: stop, or leave it out with a warning",
    ] = "raise"
    kb_skip_existing: Annotated[bool, "leave texts alone whose id is there already"] = False
    kb_no_upsert: Annotated[bool, "MindsDB's, for a first load; taken, and without effect"] = False
    threads: Annotated[Any, "MindsDB's; taken, and without effect"] = None
    track_column: Annotated[Any, "MindsDB's; taken, and without effect: a statement that is run again goes on"] = None


class InsertCounts(NamedTuple):
    """What became of the rows; `rows` are those that are in the knowledge base now."""

    rows: int
    added: int = 0
    changed: int = 0
    gone: int = 0


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
    session.require_own_knowledge_base(base)
    with keep_state(session, base) as state, _temporary_tables(session.con):
        head = f"CREATE OR REPLACE TEMP TABLE {ROWS} AS FROM ("  # an error of DuckDB's shows the query's own line
        run(session.con, f"{head}\n{query}\n) SELECT row_number() OVER () AS __place, *")
        return _Insert(session, runs, base, settings, state).run(drop_others)


class _Insert:
    """One statement that inserts; its rows are in the temporary table ROWS."""

    def __init__(
        self, session: Session, runs: StatementRuns, base: KnowledgeBase, settings: InsertSettings, state: InsertState
    ) -> None:
        self._session, self._con, self._runs, self._settings, self._state = session, session.con, runs, settings, state
        relation = self._con.sql(f"SELECT * EXCLUDE (__place) FROM {ROWS} LIMIT 0")
        self._types = {quote_name(n): str(t) for n, t in zip(relation.columns, relation.types, strict=True)}
        is_new = not tables.has_tables(self._con, base)
        self._columns, self._base = match_columns(session, base, relation.columns, is_new=is_new)
        self._chunk_options = read_chunk_options(base.options)
        self._resolved: ResolvedVersion | None = None
        if base.embedding_model is not None:
            self._resolved = require_same_model(session, base)
            runs.prompt_table(self._resolved, self._resolved.model.key.name)
        runs.check_using()
        self._is_own = not tables.is_in_transaction(self._con)

    def run(self, drop_others: bool) -> InsertCounts:
        """Compare the rows with what there is, and write what differs."""
        base, con = self._base, self._con
        self._state.set_metadata_columns(base.metadata_columns)
        tables.write(con, base, self._is_own, self._prepare_tables)
        self._compare()
        counted = "coalesce(max(turn), 0), count(*), count(*) FILTER (old IS NULL)"
        total, rows, added = run(con, f"SELECT {counted} FROM {WORK}")[0]
        self._write_batches(total)
        gone = tables.write(con, base, self._is_own, self._drop_others) if drop_others else 0
        tables.write(con, base, self._is_own, self._update_metadata)
        if self._resolved is not None:
            same = f"doc IN (SELECT old FROM {WORK} WHERE is_same)"
            embed_waiting(self._session, self._runs, base, self._resolved, same)
            warn_of_waiting(self._session, base)
        return InsertCounts(rows, added, total - added, gone)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _prepare_tables(self) -> None:
        """Make the tables, or give those that there are the metadata columns that are new."""
        base, con = self._base, self._con
        metadata = [f"r.{column}" if column else "NULL::VARCHAR" for column in self._columns.metadata]
        if not tables.has_tables(con, base):
            tables.create_tables(con, base, f"{ROWS} AS r", self._id_expression(), metadata)
            return
        tables.add_metadata(con, base)
        id_type = self._types[self._columns.id] if self._columns.id else "VARCHAR"
        written = {
            METADATA_PREFIX + name: c for name, c in zip(base.metadata_columns, self._columns.metadata, strict=True)
        }
        tables.change_types(con, base, {"id": id_type, **{name: self._types[c] for name, c in written.items() if c}})

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
        written_id, id_type = self._id_expression(), self._types[self._columns.id] if self._columns.id else "VARCHAR"
        id = written_id if id_type == known["id"] else f"TRY_CAST({written_id} AS {known['id']})"
        misfits = [f"{id} IS NULL"]
        for name, column in zip(base.metadata_columns, self._columns.metadata, strict=True):
            kind = known[(METADATA_PREFIX + name).lower()]
            if column is not None and self._types[column] != kind:
                misfits.append(f"(r.{column} IS NOT NULL AND TRY_CAST(r.{column} AS {kind}) IS NULL)")
        fits = f"NOT ({' OR '.join(misfits)})"
        self._refuse_misfits(" OR ".join(misfits), written_id, known)
        digest = f"md5(concat({', chr(0), '.join([*self._texts(), quote_text(self._chunk_options.signature)])}))"
        size = " + ".join(f"length({text})" for text in self._texts())
        todo = "d.doc IS NULL" + ("" if self._settings.kb_skip_existing else " OR d.digest <> n.digest")
        run(
            con,
            f"""CREATE OR REPLACE TEMP TABLE {WORK} AS
            WITH named AS (SELECT r.__place AS place, {id} AS id, {digest} AS digest, {size} AS size
                           FROM {ROWS} AS r WHERE {fits}),
                 firsts AS (SELECT * FROM named QUALIFY row_number() OVER (PARTITION BY id ORDER BY place) = 1)
            SELECT n.*, d.doc AS old, coalesce(d.digest = n.digest, false) AS is_same, {todo} AS todo,
                   sum(({todo})::INTEGER) OVER (ORDER BY place)::BIGINT AS turn,
                   sum(CASE WHEN {todo} THEN size ELSE 0 END) OVER (ORDER BY place)::BIGINT AS total_size
            FROM firsts AS n LEFT JOIN {table_name(base, "documents")} AS d ON d.id = n.id ORDER BY place""",
        )
        repeated = f"SELECT (SELECT count(*) FROM {ROWS} AS r WHERE {fits}) - count(*) FROM {WORK}"
        count = run(con, repeated)[0][0]
        if count and self._columns.id is not None:
            self._session.show_warning(f"Rows left out, as an earlier row of this INSERT has their id: {count}.")

    def _refuse_misfits(self, misfits: str, id: str, known: Mapping[str, str]) -> None:
        """DataError for rows without an id or whose values do not fit; with error = 'skip' a warning."""
        query = f"SELECT count(*), count(({id})), first(({id})::VARCHAR) FROM {ROWS} AS r WHERE {misfits}"
        count, named, first = run(self._con, query)[0]
        if not count:
            return
        kinds = ", ".join(f"{name.removeprefix(METADATA_PREFIX)} {kind}" for name, kind in known.items())
        which = f"the first of them has the id {str(first)[:80]!r}" if named else "without an id"
        what = f"Rows that do not fit into '{self._base.key}' ({kinds}): {count}, {which}"
        if self._settings.error == "raise":
            advice = "Give each row an id, CAST the columns in the query, or leave such rows out: USING error = 'skip'."
            raise DataError(f"{what}.", advice)
        self._session.show_warning(f"{what}. They were left out.")

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_batches(self, total: int) -> None:
        size = self._settings.batch_size or (BATCH_ROWS if self._resolved is not None else BATCH_ROWS_OF_WORDS)
        parts = f"(turn - 1) // {size}, total_size // {BATCH_CHARACTERS}"
        spans = run(self._con, f"SELECT min(turn), max(turn) FROM {WORK} WHERE todo GROUP BY {parts} ORDER BY 1")
        with Progress(self._session, f"inserting into {self._base.key}", total) as progress, self._warns_of_parts():
            for first, last in spans:
                progress.begin(first - 1, last)
                turns, labels, contents = self._chunk(first, last)
                batch = prepare_chunks(self._session, self._runs, self._base, contents)
                chunks = batch.chunks.append_column("turn", turns).append_column("label", labels)
                action = partial(self._write_batch, first, last, batch._replace(chunks=chunks))
                tables.write(self._con, self._base, self._is_own, action)
                self._state.keep(processed_rows=last)

    @contextmanager
    def _warns_of_parts(self) -> Iterator[None]:
        """Say so where an error leaves a part of the rows in the user's transaction."""
        try:
            yield
        except BaseException:
            if not self._is_own and self._state.processed_rows:
                self._session.show_warning("A part of the rows is in your transaction: ROLLBACK takes it back.")
            raise

    def _chunk(self, first: int, last: int) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Of the chunks of the rows of these turns: the turns, what follows the id in their own ids, and the texts."""
        texts = ", ".join(f"{text} AS t{i}" for i, text in enumerate(self._texts()))
        turns = f"w.todo AND w.turn BETWEEN {first} AND {last}"
        low, high = run(self._con, f"SELECT min(place), max(place) FROM {WORK} AS w WHERE {turns}")[0]
        rows = run(
            self._con,
            f"SELECT w.turn, {texts} FROM {WORK} AS w JOIN {ROWS} AS r ON r.__place = w.place"
            f" WHERE {turns} AND r.__place BETWEEN {low} AND {high} ORDER BY w.turn",
        )
        found = [(turn, *chunk) for turn, *values in rows for chunk in self._split(values)]
        turn, label, content = zip(*found, strict=True) if found else ((), (), ())
        return pa.array(turn, pa.int64()), pa.array(label, pa.string()), pa.array(content, pa.string())

    def _split(self, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What follows the id in a chunk's id, and its text."""
        for name, text in zip(self._base.content_columns, texts, strict=True):
            chunks = split_text(text, self._chunk_options, self._count_tokens)
            for i, chunk in enumerate(chunks):
                yield f"_{name}:{i + 1}of{len(chunks)}:{chunk.start}to{chunk.end}", chunk.content

    def _count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        resolved = self._resolved
        return None if resolved is None else count_tokens(resolved.handler, texts, resolved.spec)

    def _write_batch(self, first: int, last: int, batch: PreparedChunks) -> None:
        """Write the rows of these turns and their chunks, in place of those of the same ids."""
        base, con = self._base, self._con
        doc, chunk = tables.take_numbers(con, base, last - first + 1, len(batch.chunks))
        documents = table_name(base, "documents")
        run(
            con,
            f"CREATE OR REPLACE TEMP TABLE {BATCH} AS SELECT w.turn, w.place, w.id, w.digest,"
            f" coalesce(d.doc, {doc} + w.turn - {first}) AS doc, d.doc IS NOT NULL AS is_old FROM {WORK} AS w"
            f" LEFT JOIN {documents} AS d ON d.id = w.id WHERE w.todo AND w.turn BETWEEN {first} AND {last}",
        )
        if run(con, f"SELECT count(*) FROM {BATCH} WHERE is_old")[0][0]:
            tables.delete_chunks(con, base, f"doc IN (SELECT doc FROM {BATCH} WHERE is_old)")
            self._update_documents(f"{BATCH} AS b", "b.place", "d.doc = b.doc AND b.is_old", "digest = b.digest")
        stored = "".join(f", {f'r.{column}' if column else 'NULL'}" for column in self._columns.metadata)
        names = "".join(f", {quote_name(METADATA_PREFIX + name)}" for name in base.metadata_columns)
        run(
            con,
            f"INSERT INTO {documents} (doc, id, digest{names}) SELECT b.doc, b.id, b.digest{stored}"
            f" FROM {BATCH} AS b JOIN {ROWS} AS r ON r.__place = b.place WHERE NOT b.is_old ORDER BY b.turn",
        )
        new = f"b.doc, concat(b.id::VARCHAR, c.label) AS chunk_id FROM %s AS c JOIN {BATCH} AS b ON b.turn = c.turn"
        write_chunks(con, base, batch, chunk, new, self._resolved)

    def _update_documents(self, source: str, place: str, condition: str, *assigned: str) -> None:
        """Set the metadata of documents `d` to those of the rows; columns that the rows lack stay as they are."""
        pairs = [
            (quote_name(METADATA_PREFIX + name), f"r.{column}")
            for name, column in zip(self._base.metadata_columns, self._columns.metadata, strict=True)
            if column is not None
        ]
        assignments = [*assigned, *(f"{column} = {value}" for column, value in pairs)]
        if not assignments:
            return
        if not assigned:
            condition += f" AND ({' OR '.join(f'd.{column} IS DISTINCT FROM {value}' for column, value in pairs)})"
        run(
            self._con,
            f"UPDATE {table_name(self._base, 'documents')} AS d SET {', '.join(assignments)} FROM {source}"
            f" JOIN {ROWS} AS r ON r.__place = {place} WHERE {condition}",
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
        return int(run(self._con, f"DELETE FROM {documents} WHERE {gone}")[0][0])


# -- chunks ------------------------------------------------------------------------------------------------------------


class PreparedChunks(NamedTuple):
    """Chunks that are about to be written: `number` from 0, `content`, `vector` and `length`; and their words."""

    chunks: pa.Table
    words: pa.Table
    dimension: int | None = None


def prepare_chunks(session: Session, runs: StatementRuns, base: KnowledgeBase, contents: pa.Array) -> PreparedChunks:
    """Embed texts and find their words; nothing is written."""
    numbers = pa.array(range(len(contents)), pa.int64())
    found, lengths = words.index_chunks(session.con, base, pa.table({"chunk": numbers, "content": contents}))
    vectors, dimension = pa.nulls(len(contents)), None
    if base.embedding_model is not None and len(contents):
        vectors, dimension = embed_chunks(session, runs, base, contents)
    chunks = {"number": numbers, "content": contents, "vector": vectors, "length": lengths}
    return PreparedChunks(pa.table(chunks), found, dimension)


def embed_chunks(
    session: Session, runs: StatementRuns, base: KnowledgeBase, contents: pa.Array | pa.ChunkedArray
) -> tuple[pa.Array, int | None]:
    """Vectors as they are stored, NULL for a text that waits, and how many numbers each has, if there is any."""
    con, state = session.con, tables.read_state(session.con, base)
    kind = pa.list_(pa.float32())
    known = pa.nulls(len(contents), kind)
    if state.model is not None:
        with registered(con, texts=pa.table({"i": range(len(contents)), "content": contents})) as names:
            known = read_arrow(tables.find_vectors(con, base, names["texts"]))["vector"].combine_chunks().cast(kind)
    is_new = known.is_null()
    fresh = embed_texts(session, runs, resolve_embedding_model(session, base), contents.filter(is_new)).vectors
    new_places = iter(range(len(known), len(known) + len(fresh)))
    places = [next(new_places) if new else i for i, new in enumerate(is_new.to_pylist())]
    vectors = pa.concat_arrays([known, fresh.cast(kind)]).take(pa.array(places, pa.int64()))
    expected = state.dimension or base.options.get("vector_size")
    return vectors, check_dimension(base, vectors, expected if isinstance(expected, int) else None)


def write_chunks(
    con: duckdb.DuckDBPyConnection,
    base: KnowledgeBase,
    batch: PreparedChunks,
    first: int,
    source: str,
    resolved: ResolvedVersion | None,
) -> None:
    """Write chunks numbered from `first`, and their words; `source` gives their doc and chunk_id FROM %s AS c."""
    tables.require_vectors(con, base, None if resolved is None else resolved.digest, batch.dimension)
    with registered(con, chunks=batch.chunks, words=batch.words) as names:
        vector = "NULL" if batch.dimension is None else f"c.vector::FLOAT[{batch.dimension}]"
        columns = f"{first} + c.number AS chunk, c.content, {DIGEST.replace('content', 'c.content')} AS digest"
        columns = f"{columns}, {vector} AS vector, c.length, {source % names['chunks']}"
        run(con, f"INSERT INTO {table_name(base, 'chunks')} BY NAME SELECT {columns} ORDER BY c.number")
        columns = f"word, {first} + chunk AS chunk, count FROM {names['words']}"
        run(con, f"INSERT INTO {table_name(base, 'words')} BY NAME SELECT {columns}")


def embed_waiting(
    session: Session, runs: StatementRuns, base: KnowledgeBase, resolved: ResolvedVersion, condition: str = "true"
) -> None:
    """Embed the chunks that have no vector, of those that fulfil a condition on `chunks`, a batch at a time."""
    con, chunks = session.con, table_name(base, "chunks")
    waiting = f"FROM {chunks} WHERE vector IS NULL AND ({condition})"
    total = run(con, f"SELECT count(*) {waiting}")[0][0]
    is_own, last, done = not tables.is_in_transaction(con), -1, 0
    with Progress(session, f"embedding {base.key}", total) as progress:
        while done < total:
            batch = read_arrow(
                con.sql(f"SELECT chunk, content {waiting} AND chunk > {last} ORDER BY chunk LIMIT {BATCH_ROWS}")
            )
            if not len(batch):
                return
            progress.begin(done, done + len(batch))
            vectors, dimension = embed_chunks(session, runs, base, batch["content"])
            last, done = batch["chunk"][-1].as_py(), done + len(batch)
            if dimension is not None:
                found = pa.table({"chunk": batch["chunk"], "vector": vectors})
                tables.write(con, base, is_own, partial(_set_vectors, con, base, resolved.digest, dimension, found))


def warn_of_waiting(session: Session, base: KnowledgeBase) -> None:
    """Say how many chunks cannot be found by their meaning yet."""
    waiting = tables.count_rows(session.con, base).waiting
    if waiting:
        session.show_warning(
            f"Chunks of '{base.key}' that wait for a vector: {waiting}. The others are found; "
            f"REFRESH KNOWLEDGE_BASE {base.key} embeds those that wait."
        )


def _set_vectors(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, model: str, dimension: int, found: pa.Table
) -> None:
    tables.require_vectors(con, base, model, dimension)
    with registered(con, found=found) as names:
        run(
            con,
            f"UPDATE {table_name(base, 'chunks')} AS c SET vector = f.vector::FLOAT[{dimension}]"
            f" FROM {names['found']} AS f WHERE c.chunk = f.chunk AND c.vector IS NULL",
        )


# -- DELETE and UPDATE -------------------------------------------------------------------------------------------------


def delete_documents(session: Session, base: KnowledgeBase, condition: str) -> int:
    """Delete the chunks that fulfil a condition over `visible_columns`, and documents that lost them all; how many.

    Texts of which a part was deleted are whole again when they are inserted again.
    """
    con = session.con
    session.require_own_knowledge_base(base)
    if not tables.has_tables(con, base):
        return 0

    def action() -> int:
        matched = f"SELECT chunk, __doc FROM ({tables.visible_chunks_sql(base, keeps_empty=True)}) WHERE {condition}"
        run(con, f"CREATE OR REPLACE TEMP TABLE {BATCH} AS {matched}")
        tables.delete_chunks(con, base, f"chunk IN (SELECT chunk FROM {BATCH})")
        documents, chunks = table_name(base, "documents"), table_name(base, "chunks")
        touched = f"doc IN (SELECT __doc FROM {BATCH})"
        run(con, f"DELETE FROM {documents} WHERE {touched} AND doc NOT IN (SELECT doc FROM {chunks})")
        run(con, f"UPDATE {documents} SET digest = '' WHERE {touched}")
        return int(run(con, f"SELECT count(*) FROM {BATCH}")[0][0])

    with _temporary_tables(con):
        return tables.write(con, base, not tables.is_in_transaction(con), action)


def update_documents(
    session: Session, runs: StatementRuns, base: KnowledgeBase, assignments: Mapping[str, str], condition: str
) -> int:
    """Set content or metadata of the chunks that fulfil a condition over `visible_columns`; how many chunks.

    `assignments` are SQL over the same columns.  A new text is that of its chunk, which is embedded again; metadata is
    that of the whole document.
    """
    con = session.con
    session.require_own_knowledge_base(base)
    content, metadata = _read_assignments(base, assignments)
    if not tables.has_tables(con, base):
        return 0
    values = "".join(f", ({sql}) AS v{i}" for i, sql in enumerate(metadata.values()))
    with _temporary_tables(con):
        run(
            con,
            f"CREATE OR REPLACE TEMP TABLE {BATCH} AS SELECT row_number() OVER (ORDER BY chunk) - 1 AS number, chunk,"
            f" chunk_id, __doc, {f'({content})::VARCHAR' if content else 'NULL'} AS content{values}"
            f" FROM ({tables.visible_chunks_sql(base, keeps_empty=True)}) WHERE {condition}",
        )
        resolved, batch = None, None
        if content is not None:
            query = f"SELECT coalesce(trim(content), '') = '' AS is_empty, content FROM {BATCH} WHERE chunk IS NOT NULL"
            changed = read_arrow(con.sql(f"{query} ORDER BY number"))
            if True in changed["is_empty"].to_pylist():
                raise DataError("A text would be empty.", f"DELETE FROM {base.key} WHERE … removes texts.")
            resolved = None if base.embedding_model is None else require_same_model(session, base)
            batch = prepare_chunks(session, runs, base, changed["content"].combine_chunks())
        action = partial(_update_chunks, con, base, tuple(metadata), batch, resolved)
        tables.write(con, base, not tables.is_in_transaction(con), action)
        return int(run(con, f"SELECT count(*) FROM {BATCH}")[0][0])


def _read_assignments(base: KnowledgeBase, assignments: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """What content is set to, and metadata columns; OptionError for others."""
    texts = {"chunk_content", base.content_columns[0].lower()} if len(base.content_columns) == 1 else {"chunk_content"}
    folded = {"content" if name.lower() in texts else name.lower(): sql for name, sql in assignments.items()}
    metadata = {name: folded.pop(name.lower()) for name in base.metadata_columns if name.lower() in folded}
    content = folded.pop("content", None)
    if folded:
        raise OptionError(
            f"'{next(iter(folded))}' of the knowledge base '{base.key}' cannot be set.",
            f"Set content, or one of its metadata columns ({', '.join(base.metadata_columns) or 'there are none'}); "
            "INSERT with the same id replaces a text.",
        )
    return content, metadata


def _update_chunks(
    con: duckdb.DuckDBPyConnection,
    base: KnowledgeBase,
    metadata: Sequence[str],
    batch: PreparedChunks | None,
    resolved: ResolvedVersion | None,
) -> None:
    assigned = [f"{quote_name(METADATA_PREFIX + name)} = b.v{i}" for i, name in enumerate(metadata)]
    if batch is not None:
        assigned.append("digest = ''")
        tables.delete_chunks(con, base, f"chunk IN (SELECT chunk FROM {BATCH})")
        _, first = tables.take_numbers(con, base, 0, len(batch.chunks))
        old = f"o.__doc AS doc, o.chunk_id FROM %s AS c JOIN {BATCH} AS o ON o.number = c.number"
        write_chunks(con, base, batch, first, old, resolved)
    run(
        con,
        f"UPDATE {table_name(base, 'documents')} AS d SET {', '.join(assigned)}"
        f" FROM (SELECT DISTINCT ON (__doc) * FROM {BATCH} ORDER BY number) AS b WHERE d.doc = b.__doc",
    )


# -- around a statement ------------------------------------------------------------------------------------------------


class Progress:
    """How far a statement is, in its own terms: what the model says of a batch is a part of it."""

    def __init__(self, session: Session, label: str, total: int) -> None:
        self._session, self._label, self._total = session, label, total
        self._show = session.show_progress
        self._first = self._last = 0
        self._asked = self._asked_before = 0.0

    def __enter__(self) -> Progress:
        self._session.show_progress = self._show_part
        return self

    def __exit__(self, *error: object) -> None:
        self._session.show_progress = self._show

    def begin(self, first: int, last: int) -> None:
        """Rows `first` to `last` come next; Cancelled where somebody wants to stop."""
        if self._session.interrupted:
            raise Cancelled("Interrupted.", "Run it again: what was inserted stays.")
        self._first, self._last, self._asked_before = first, last, self._asked
        self._show(Tick(self._label, first, self._total))

    def _show_part(self, tick: Tick) -> None:
        if not tick.label.startswith("asking") or tick.total is None:
            self._show(tick)
            return
        self._asked = tick.total
        of = tick.total - self._asked_before
        share = min(1.0, max(0.0, (tick.done - self._asked_before) / of)) if of > 0 else 0.0
        self._show(Tick(self._label, self._first + share * (self._last - self._first), self._total))


class InsertState:
    """What a record says of the insert that is going on."""

    def __init__(self, session: Session, base: KnowledgeBase) -> None:
        self._known, self._key = session.catalog.knowledge_bases, base.key
        self._values: dict[str, Any] = {"started_at": to_micros(utc_now()), "processed_rows": 0, "process": PROCESS}
        self.keep(durable=True)

    def keep(self, *, durable: bool = False, **values: object) -> None:
        """Set values, and keep them all."""
        self._values.update(values)
        with suppress(NotFound):  # somebody dropped it meanwhile
            self._known.update(replace(self._known.get(self._key), state=dict(self._values)), durable=durable)

    @property
    def processed_rows(self) -> int:
        """How many rows were written."""
        return int(self._values["processed_rows"])

    def set_metadata_columns(self, names: tuple[str, ...]) -> None:
        """Keep the metadata columns, which the first rows decide where they were not named."""
        record = self._known.get(self._key)
        if record.metadata_columns != names:
            self._known.update(replace(record, metadata_columns=names))


@contextmanager
def keep_state(session: Session, base: KnowledgeBase) -> Iterator[InsertState]:
    """Keep in the record when an insert began and ended, how far it is, and its error."""
    state = InsertState(session, base)
    try:
        yield state
    except BaseException as e:
        message = str(e).split("\n")[0] if isinstance(e, duckdb.Error) else type(e).__name__
        with suppress(CatalogError):
            state.keep(durable=True, finished_at=to_micros(utc_now()), error=redact_secrets(message))
        raise
    state.keep(durable=True, finished_at=to_micros(utc_now()))


@contextmanager
def _temporary_tables(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    finally:
        for table in (ROWS, WORK, BATCH):
            with suppress(duckdb.Error):  # of a transaction that failed
                run(con, f"DROP TABLE IF EXISTS temp.{table}")


def _as_text(column: str, kind: str) -> str:
    """A content column as text: nested values as JSON."""
    is_nested = kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION"))
    return f"({f'to_json({column})' if is_nested else column})::VARCHAR"
