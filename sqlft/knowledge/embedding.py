"""Texts to vectors of length 1, by the embedding model of a knowledge base.

Called by `insert` for chunks and by `search` for questions.  The model is one of ours and is asked like any other:
through the cache, the ledger and the budgets, equal texts once.  Here too: whether the model is still the one that made
the stored vectors.
"""

from __future__ import annotations

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase, ModelKey
from sqlft.errors import CatalogError, DataError, NotFound, NotSupported
from sqlft.handler import HasEmbeddingPrefixes
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge.tables import read_state
from sqlft.session import Session
from sqlft.sql.names import format_name


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
    base: KnowledgeBase,
    texts: pa.Array | pa.ChunkedArray,
    *,
    are_questions: bool = False,
) -> tuple[pa.Array, pa.Array]:
    """A vector (list<float>) for each text as the model made it, NULL where it failed; and why it failed.

    What was asked is not kept in memory.
    """
    import pyarrow.compute as pc

    resolved = resolve_embedding_model(session, base)
    handler = resolved.handler
    if isinstance(handler, HasEmbeddingPrefixes):
        before = handler.embedding_prefixes(resolved.spec)[0 if are_questions else 1]
        if before:
            texts = pc.binary_join_element_wise(before, texts.cast(pa.large_string()), "")
    prompts = runs.prompt_table(resolved, resolved.model.key.name)
    run, output = prompts.inference_run, resolved.outputs.names[0]
    start = len(run.answers)
    ids = prompts.ids([texts], is_all=True)
    run.rows += len(texts)
    prompts.ask_all()
    vectors, errors = prompts.columns(ids, [output, f"{output}_error"])
    run.forget_answers(start)
    return vectors, errors


def scale_to_unit(vectors: pa.ListArray, dimension: int) -> pa.FixedSizeListArray:
    """The vectors with length 1, as FLOAT[dimension]: a zero vector stays; NULL is one of another length or with a NaN.

    >>> scale_to_unit(pa.array([[3, 4], [0, 0], [1], None], pa.list_(pa.float32())), 2).to_pylist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0], None, None]
    """
    import pyarrow.compute as pc

    is_whole = pc.fill_null(pc.equal(pc.list_value_length(vectors), dimension), False)
    whole = vectors.filter(is_whole)
    numbers, rows = whole.flatten().cast(pa.float64()), pc.list_parent_indices(whole)
    squares = pa.table({"row": rows, "square": pc.multiply(numbers, numbers)})
    sums = squares.group_by("row", use_threads=False).aggregate(
        [("square", "sum", pc.ScalarAggregateOptions(skip_nulls=False))]
    )
    lengths = pc.sqrt(sums.column("square_sum").combine_chunks())
    divisors = pc.if_else(pc.equal(lengths, 0), 1.0, lengths).take(rows)
    unit = pa.FixedSizeListArray.from_arrays(pc.divide(numbers, divisors).cast(pa.float32(), safe=False), dimension)
    place = pc.subtract(pc.cumulative_sum(is_whole.cast(pa.int64())), 1)
    is_finite = pc.fill_null(pc.is_finite(lengths), False)
    place = pc.if_else(is_whole, place, None)
    return unit.take(pc.if_else(pc.fill_null(is_finite.take(place), False), place, None))


def find_dimension(base: KnowledgeBase, vectors: pa.Array, expected: int | None) -> int | None:
    """How many numbers the vectors have; DataError where they differ, or are not as many as expected."""
    import pyarrow.compute as pc

    sizes = pc.unique(pc.list_value_length(vectors).drop_null()).to_pylist()
    other = next((size for size in sizes if size != (expected or sizes[0])), None)
    if other is not None:
        raise DataError(
            f"The embedding model '{base.embedding_model}' gave a vector of {other} numbers, and others have "
            f"{expected or sizes[0]}.",
            f"If the model has changed: REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true.",
        )
    return expected or (sizes[0] if sizes else None)
