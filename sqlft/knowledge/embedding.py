"""Texts to vectors by the embedding model of a knowledge base, through the cache, the ledger and the budgets.

Called by `insert` with chunks and by `search` with questions.  Out: vectors of length 1, NULL where a text is NULL or
the model failed at it.  Here too: whether the model is still the one that made the stored vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sqlft.catalog.records import KnowledgeBase, ModelKey
from sqlft.errors import CatalogError, DataError, NotFound, NotSupported
from sqlft.handler import HasEmbeddingPrefixes
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge.tables import read_state
from sqlft.session import Session
from sqlft.sql.names import format_name


class Embedded(NamedTuple):
    """A vector for each text, list<float>, and how many there are none of because of an error."""

    vectors: pa.Array
    failed: int = 0


def parse_model_name(name: str) -> tuple[ModelKey | str, int | None]:
    """A model as a record names it, [project.]name[.N]: its key and version.

    >>> parse_model_name("shop.minilm.2")
    (ModelKey(name='minilm', project='shop'), 2)
    """
    parts = name.split(".")
    number = int(parts.pop()) if len(parts) > 1 and parts[-1].isdecimal() else None
    return (parts[-1] if len(parts) == 1 else ModelKey(parts[-1], ".".join(parts[:-1]))), number


def resolve_embedding_model(session: Session, base: KnowledgeBase) -> ResolvedVersion:
    """The model that embeds for it; NotSupported where it has none, NotFound where that was dropped."""
    if base.embedding_model is None:
        raise NotSupported(
            f"The knowledge base '{base.key}' has no embedding model: its words are searched only.",
            "Write search = 'words', or make it again with USING embedding_model = ….",
        )
    return check_embeds(session, base.embedding_model, base.key)


def check_embeds(session: Session, name: str, key: ModelKey) -> ResolvedVersion:
    """The model of that name; an error of ours where it does not turn one text into a vector."""
    model, number = parse_model_name(name)
    try:
        resolved = resolve(session, model, number)
    except NotFound as e:
        raise NotFound(
            f"The embedding model '{name}' of the knowledge base '{key}' is not there. {e.message}",
            "Make it again with CREATE MODEL; where that gives other vectors: "
            f"REFRESH KNOWLEDGE_BASE {key} USING rebuild = true, embedding_model = ….",
        ) from e
    if not resolved.outputs.is_vector:
        raise NotSupported(
            f"The model '{name}' gives texts and no vectors.",
            f"CREATE MODEL {format_name(resolved.model.key.name)}_vectors PREDICT vector USING engine = …, "
            "mode = 'embedding' makes one that does.",
        )
    if len(resolved.prompt.inputs) != 1:
        raise NotSupported(
            f"The model '{name}' has {len(resolved.prompt.inputs)} inputs, and one text is embedded.",
            "Make it with one input: prompt_template = '{{content}}'.",
        )
    return resolved


def require_same_model(session: Session, base: KnowledgeBase) -> ResolvedVersion:
    """The embedding model, if the stored vectors are its own; CatalogError with the statement that rebuilds them."""
    resolved = resolve_embedding_model(session, base)
    known = read_state(session.con, base).model
    if known is not None and known != resolved.digest:
        raise CatalogError(
            f"The vectors of '{base.key}' were made by another model than '{base.embedding_model}' is now.",
            f"REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true embeds its texts again.",
        )
    return resolved


def embed_texts(
    session: Session,
    runs: StatementRuns,
    resolved: ResolvedVersion,
    texts: pa.Array | pa.ChunkedArray,
    *,
    are_questions: bool = False,
) -> Embedded:
    """A vector of length 1 for each text, equal ones asked for once; what was asked is not kept in memory."""
    texts = add_prefix(resolved, texts, are_questions=are_questions)
    table = runs.prompt_table(resolved, resolved.model.key.name)
    run, output = table.inference_run, resolved.outputs.names[0]
    start = len(run.answers)
    run.rows += len(texts)
    ids = table.ids([texts], is_all=True)
    table.ask_all()
    vectors = _normalize(session.con, table.columns(ids, [output])[0])
    run.forget_answers(start, are_stored=not are_questions)
    return Embedded(vectors, vectors.null_count - texts.null_count)


def add_prefix(
    resolved: ResolvedVersion, texts: pa.Array | pa.ChunkedArray, *, are_questions: bool
) -> pa.Array | pa.ChunkedArray:
    """The texts behind what the model was trained to have before texts, or before questions."""
    if not isinstance(resolved.handler, HasEmbeddingPrefixes):
        return texts
    prefix = resolved.handler.embedding_prefixes(resolved.spec)[0 if are_questions else 1]
    if not prefix:
        return texts
    before, nothing = (pa.scalar(part, pa.large_string()) for part in (prefix, ""))
    return pc.binary_join_element_wise(before, texts.cast(pa.large_string()), nothing)


def _normalize(con: duckdb.DuckDBPyConnection, vectors: pa.Array) -> pa.Array:
    """Vectors of length 1; a zero vector stays, one without numbers or with one that is none becomes NULL."""
    name = "__sqlft_vectors"
    con.register(name, pa.table({"v": vectors, "i": pa.array(range(len(vectors)), pa.int64())}))
    try:
        scaled = "list_transform(v, lambda x: (x / n)::FLOAT)"
        relation = con.sql(
            f"SELECT CASE WHEN len(v) > 0 AND isfinite(n) THEN CASE WHEN n > 0 THEN {scaled} ELSE v END END AS v"
            f" FROM (SELECT *, sqrt(list_inner_product(v::DOUBLE[], v::DOUBLE[])) AS n FROM {name}) ORDER BY i"
        )
        return relation.to_arrow_table().column(0).combine_chunks()
    finally:
        con.unregister(name)


def check_dimension(base: KnowledgeBase, vectors: pa.Array, expected: int | None) -> int | None:
    """How many numbers the vectors have; DataError where they differ, or are not as many as expected."""
    sizes = pc.unique(pc.list_value_length(vectors).drop_null()).to_pylist()
    found = next((size for size in sizes if size != expected), None)
    if found is None:
        return expected
    if len(sizes) > 1 or expected is not None:
        other = expected if expected is not None else sizes[1]
        raise DataError(
            f"The embedding model '{base.embedding_model}' gave a vector of {found} numbers, and others have {other}.",
            f"If the model has changed: REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true.",
        )
    return int(found)
