"""Texts to vectors of length 1, by the embedding model of a knowledge base.

Called by `insert` for chunks and by `search` for questions.  The model is one of ours and is asked like any other:
through the cache, the ledger and the budgets, equal texts once.
"""

from __future__ import annotations

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import NotSupported, OptionError
from sqlft.handler import HasEmbeddingPrefixes
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.session import Session


def resolve_embedding_model(session: Session, base: KnowledgeBase) -> ResolvedVersion:
    """The model that makes a base's vectors; NotSupported without one, OptionError for one that makes none."""
    if base.embedding_model is None:
        raise NotSupported(
            f"The knowledge base {base.key} has no embedding_model: only its words can be searched.",
            "Write search = 'words', or make it again with USING embedding_model = …",
        )
    resolved = resolve(session, base.embedding_model)
    if not resolved.outputs.is_vector or len(resolved.prompt.inputs) != 1:
        what = "makes no vectors" if not resolved.outputs.is_vector else "has more than one input"
        raise OptionError(
            f"The model '{base.embedding_model}' {what}, so it cannot be the embedding_model of {base.key}.",
            "Make one: CREATE MODEL … PREDICT embedding USING engine = …, base = …, mode = 'embedding'",
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
    """A vector (list<float>) for each text as the model made it, NULL where it failed; and why it failed."""
    import pyarrow.compute as pc

    resolved = resolve_embedding_model(session, base)
    handler = resolved.handler
    if isinstance(handler, HasEmbeddingPrefixes):
        before = handler.embedding_prefixes(resolved.spec)[0 if are_questions else 1]
        if before:
            texts = pc.binary_join_element_wise(before, texts.cast(pa.large_string()), "")
    prompts = runs.prompt_table(resolved, resolved.model.key.name)
    ids = prompts.ids([texts])
    prompts.inference_run.rows += len(texts)
    prompts.ask_all()
    output = resolved.outputs.names[0]
    vectors, errors = prompts.columns(ids, [output, f"{output}_error"])
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
