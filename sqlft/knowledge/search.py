"""Questions to the chunks that answer them best: by meaning, by words, or both.

Called by `sqlft.query` and by `evaluate`.  All of it is exact: every vector is compared, every text's words are scored;
but for vectors that have an `index`.

Relevance is between 0 and 1.  By meaning it is 1 / (1 + cosine distance), as MindsDB has it: 1 for the same direction,
0.5 for texts that have nothing in common.  By words it is the BM25 score (see `words`) as a share of what no text can
reach: a text of average length that has each word of the question once has 0.4, one that has them three times 0.67.
By both, ranks are fused (reciprocal rank fusion, Cormack et al. 2009): (alpha / (60 + rank by meaning) + (1 - alpha) /
(60 + rank by words)) · 61, so that the first of both rankings has 1, and the first of one alone, at alpha 0.5, half of
it; the FUSION_DEPTH best of each ranking count, or twice k.  A reranking model's relevance is its own score.  Ties are
in the order of the chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import Cancelled, OptionError, ProviderError
from sqlft.inference.resolve import ResolvedVersion
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge import embedding, reranking, words
from sqlft.knowledge.index import VectorIndex, find_index
from sqlft.knowledge.tables import has_tables, read_state, table_name, visible_chunks_sql
from sqlft.knowledge.words import read_arrow, registered
from sqlft.session import Session
from sqlft.sql.names import quote_name

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

SearchKind = Literal["meaning", "words", "both"]
DEFAULT_K = 10
FUSION_DEPTH = 100
RANK_OFFSET = 60
MIN_MATRIX_QUESTIONS = 6
"""From so many questions on, one pass over the vectors with a matrix product takes less processor time than a query for
each (100,000 x 384: 83 ms for one question by a query, 262 by a product; 320 for six either way)."""
MARGIN = 16
"""Chunks beyond k whose distance is computed again in double precision, in which the order is decided."""
PRODUCT_NOISE = 1e-6
"""By how much products in single precision may be wrong."""
MAX_K = 999_999
"""What DuckDB's min(…, n) takes."""
BLOCK_ROWS, BLOCK_QUESTIONS = 16_384, 512
"""Vectors that are multiplied at once, with so many questions: 32 MB of products."""


@dataclass(frozen=True)
class SearchOptions:
    """How one knowledge base is searched in one query."""

    k: int = DEFAULT_K
    """Most chunks for each question."""
    search: SearchKind = "meaning"
    alpha: float = 0.5
    """Of 'both': the weight of meaning against words, 0 to 1."""
    min_relevance: float | None = None
    above: bool = False
    """Whether the relevance must be more than `min_relevance`, and not just reach it."""
    condition: str | None = None
    """SQL over `visible_columns` as they are named, which chunks must fulfil before the best k are chosen.

    Values that differ by question are columns of `questions`, as `q.f0` …
    """
    reranking: bool = True
    """Whether the base's reranking model, if it has one, is asked."""


FOUND = pa.schema(
    [
        ("question", pa.int64()),
        ("chunk", pa.int64()),
        ("rank", pa.int32()),
        ("distance", pa.float64()),
        ("relevance", pa.float64()),
    ]
)
SCORED = pa.schema([FOUND.field(name) for name in ("question", "chunk", "distance", "relevance")])


def search_chunks(
    session: Session, runs: StatementRuns, base: KnowledgeBase, questions: pa.Table, options: SearchOptions
) -> pa.Table:
    """The best chunks for each question, as `FOUND`: by question, best first.

    `questions` has `text` (NULL finds nothing) and the columns that `options.condition` mentions; `question` is the
    place of a row in it, from 0.  `distance` is the cosine distance (NULL where only words were compared), relevance
    is between 0 and 1.
    """
    _check_options(options)
    places = pa.array(range(questions.num_rows), pa.int64())
    asked = questions.append_column("question", places).filter(questions.column("text").is_valid())
    if not asked.num_rows or not has_tables(session.con, base):
        if options.search != "words":
            embedding.resolve_embedding_model(session, base)
        return FOUND.empty_table()
    search = ChunkSearch(session, runs, base, asked, options.condition)
    reranker = reranking.resolve_reranking_model(session, base) if options.reranking else None
    if reranker is None:
        return _cut(session, search.find(options, options.k), options, "relevance DESC, chunk")
    scored = search.read_again(search.find(options, reranking.count_candidates(options.k)), reranker)
    return _cut(session, scored, options, "relevance DESC, place")


def _check_options(options: SearchOptions) -> None:
    if options.k < 1:
        raise OptionError(f"k is {options.k}.", "Give a whole number from 1.")
    if not 0 <= options.alpha <= 1:
        raise OptionError(f"hybrid_search_alpha is {options.alpha:g}.", "0 is by words alone, 1 by meaning alone.")
    if options.min_relevance is not None and not 0 <= options.min_relevance <= 1:
        raise OptionError(f"relevance is compared with {options.min_relevance:g}.", "It is between 0 and 1.")


def _cut(session: Session, scored: pa.Table, options: SearchOptions, order: str) -> pa.Table:
    """`scored` in order, without what is less relevant than wanted, at most k for each question."""
    least = ""
    if options.min_relevance is not None:
        least = f"WHERE relevance {'>' if options.above else '>='} {options.min_relevance!r}"
    with registered(session.con, scored=scored) as names:
        found = session.con.sql(
            "SELECT question, chunk, (row_number() OVER best)::INTEGER AS rank, distance, relevance "
            f"FROM {names['scored']} {least} WINDOW best AS (PARTITION BY question ORDER BY {order}) "
            f"QUALIFY row_number() OVER best <= {options.k} ORDER BY question, rank"
        )
        return read_arrow(found).cast(FOUND)


class ChunkSearch:
    """The chunks of one base for some questions: those that fulfil a condition, scored in one way or the other.

    `asked` has `question`, `text` and the columns of the condition.
    """

    def __init__(
        self, session: Session, runs: StatementRuns, base: KnowledgeBase, asked: pa.Table, condition: str | None
    ) -> None:
        self._session, self._con, self._runs, self._base = session, session.con, runs, base
        self._asked, self._condition = asked, condition
        self._chunks = table_name(base, "chunks")
        self._values = [name for name in asked.column_names if name not in ("question", "text")] if condition else []
        """Columns of the condition that differ by question."""

    def find(self, options: SearchOptions, n: int) -> pa.Table:
        """The n best for each question, as `SCORED`."""
        if options.search == "words":
            return self.find_by_words(n)
        if options.search == "meaning":
            return self.find_by_meaning(n)
        return self.find_by_both(n, options.alpha)

    def read_again(self, scored: pa.Table, reranker: ResolvedVersion) -> pa.Table:
        """The same chunks with the reranking model's scores as relevance; `place` is where the search had them.

        A pair that has no score keeps its relevance.
        """
        import pyarrow.compute as pc

        with registered(self._con, scored=scored, asked=self._asked.select(["question", "text"])) as names:
            pairs = read_arrow(
                self._con.sql(
                    "SELECT question, chunk, distance, relevance, text, content, "
                    "row_number() OVER (ORDER BY question, relevance DESC, chunk) AS place "
                    f"FROM {names['scored']} JOIN {names['asked']} USING (question) "
                    f"JOIN {self._chunks} USING (chunk) ORDER BY place"
                )
            )
        if not pairs.num_rows:
            return pairs
        scores = reranking.score_pairs(
            self._session, self._runs, reranker, pairs.column("text"), pairs.column("content")
        )
        relevance = pc.coalesce(pa.array(scores, pa.float64()), pairs.column("relevance"))
        return pairs.set_column(pairs.column_names.index("relevance"), "relevance", relevance)

    # -- both ---------------------------------------------------------------------------------------------------------

    def find_by_both(self, n: int, alpha: float) -> pa.Table:
        """By reciprocal rank; a ranking without weight is not asked for."""
        depth = max(FUSION_DEPTH, 2 * n)
        by_meaning = self.find_by_meaning(depth) if alpha > 0 else SCORED.empty_table()
        by_words = self.find_by_words(depth) if alpha < 1 else SCORED.empty_table()
        rank, top = "row_number() OVER (PARTITION BY question ORDER BY relevance DESC, chunk)", RANK_OFFSET + 1
        with registered(self._con, meaning=by_meaning, words=by_words) as names:
            ranked = " UNION ALL ".join(
                f"SELECT question, chunk, distance, {weight!r}::DOUBLE / ({RANK_OFFSET} + {rank}) AS share "
                f"FROM {names[kind]}"
                for kind, weight in (("meaning", top * float(alpha)), ("words", top * (1 - float(alpha))))
            )
            fused = (
                "SELECT question, chunk, max(distance) AS distance, least(1.0, round(sum(share), 12)) AS relevance "
                f"FROM ({ranked}) GROUP BY question, chunk "
                "QUALIFY row_number() OVER (PARTITION BY question ORDER BY relevance DESC, chunk) <= "
            )
            return read_arrow(self._con.sql(f"{fused}{n}")).cast(SCORED)

    # -- words --------------------------------------------------------------------------------------------------------

    def find_by_words(self, n: int) -> pa.Table:
        """The n best for each question by BM25; chunks without any of its words are left out."""
        questions = words.split_questions(self._con, self._base, self._asked)
        if self._asked.num_rows > 1 and find_spec("numpy") is not None:
            return self._find_best_by_words(questions, n)
        with registered(self._con, words=questions, asked=self._asked.select(["question", *self._values])) as names:
            scores = words.scores_sql(self._base, names["words"])
            if self._condition is not None:
                scores = self._keep_allowed(scores, names["asked"])
            best = f"QUALIFY row_number() OVER (PARTITION BY question ORDER BY score DESC, chunk) <= {n}"
            if self._asked.num_rows == 1:  # the same, and faster
                best = f"ORDER BY score DESC, chunk LIMIT {n}"
            query = (
                f"SELECT question, chunk, NULL::DOUBLE AS distance, score / most AS relevance FROM ({scores}) {best}"
            )
            return read_arrow(self._con.sql(query)).cast(SCORED)

    def _find_best_by_words(self, questions: pa.Table, n: int) -> pa.Table:
        """The same for many questions."""
        import pyarrow.compute as pc

        found = []
        for group in self._group_questions(self._asked):
            own = questions.filter(pc.is_in(questions.column("question"), group.column("question").combine_chunks()))
            with registered(self._con, values=group.slice(0, 1).select(["question", *self._values])) as names:
                allowed = self._condition and self._allowed(names["values"])
                found.append(words.find_best(self._con, self._base, own, n, allowed))
        scored = pa.concat_tables(found)
        relevance = pc.divide(scored.column("score"), scored.column("most"))
        distance = pa.nulls(scored.num_rows, pa.float64())
        columns = [scored.column("question"), scored.column("chunk"), distance, relevance]
        return pa.table(columns, SCORED.names).cast(SCORED)

    def _keep_allowed(self, scores: str, asked: str) -> str:
        """The scores of chunks that fulfil the condition for their question."""
        inner = "question AS __question, chunk AS __chunk, score AS __score, most AS __most"
        outer = "__question AS question, __chunk AS chunk, __score AS score, __most AS most"
        return (
            f"SELECT {outer} FROM (SELECT {inner} FROM ({scores})) JOIN ({self._visible()}) AS v ON __chunk = v.chunk "
            f"JOIN ({self._condition_values(asked)}) AS q ON __question = q.__asked WHERE ({self._condition})"
        )

    def _visible(self) -> str:
        return visible_chunks_sql(self._base)

    def _condition_values(self, asked: str) -> str:
        """The columns of the condition, which are `q` in it."""
        return f"SELECT question AS __asked{''.join(f', {quote_name(name)}' for name in self._values)} FROM {asked}"

    # -- meaning ------------------------------------------------------------------------------------------------------

    def find_by_meaning(self, n: int) -> pa.Table:
        """The n nearest for each question by cosine distance; chunks that have no vector yet are left out."""
        vectors = self._embed_questions()
        if not vectors.num_rows:
            return SCORED.empty_table()
        groups = self._group_questions(vectors)
        if len(groups) == 1 or len(groups) * MIN_MATRIX_QUESTIONS <= vectors.num_rows:
            return pa.concat_tables([self._find_nearest_in_group(group, n) for group in groups])
        return self._find_nearest_of_pairs(vectors, n)

    def _embed_questions(self) -> pa.Table:
        """`question` and `vector` of the questions that could be embedded; ProviderError if none could."""
        model = embedding.require_same_model(self._session, self._base)
        dimension = read_state(self._con, self._base).dimension
        if dimension is None:
            return pa.table({"question": pa.array([], pa.int64())})
        found, failed = embedding.embed_texts(
            self._session, self._runs, model, self._asked.column("text"), are_questions=True
        )
        if failed == len(found):
            raise ProviderError(
                f"No question could be embedded by {self._base.embedding_model}.",
                "Ask that model to see why, or search by words: search = 'words'.",
            )
        embedding.check_dimension(self._base, found, dimension)
        vectors = found.filter(found.is_valid()).cast(pa.list_(pa.float32(), dimension))
        asked = self._asked.drop_columns(["text"]).filter(found.is_valid())
        return asked.append_column("vector", vectors)

    def _allowed(self, values: str) -> str:
        """That the chunk `c` fulfils the condition; `values` is the relation of what it compares with."""
        q = f", ({self._condition_values(values)}) AS q"
        return f"c.chunk IN (SELECT v.chunk FROM ({self._visible()}) AS v{q} WHERE ({self._condition}))"

    def _group_questions(self, vectors: pa.Table) -> list[pa.Table]:
        """The questions by equal values for the condition."""
        if not self._values:
            return [vectors]
        columns = ", ".join(map(quote_name, self._values))
        with registered(self._con, vectors=vectors.select(["question", *self._values])) as names:
            ranked = self._con.sql(
                f"SELECT dense_rank() OVER (ORDER BY {columns}) AS r FROM {names['vectors']} ORDER BY question"
            )
            ranks = read_arrow(ranked).column("r").to_pylist()
        groups: dict[int, list[int]] = {}
        for place, rank in enumerate(ranks):
            groups.setdefault(rank, []).append(place)
        return [vectors.take(places) for places in groups.values()]

    def _find_nearest_in_group(self, group: pa.Table, n: int) -> pa.Table:
        with registered(self._con, values=group.slice(0, 1).select(["question", *self._values])) as names:
            return self._find_nearest(group, n, self._condition and self._allowed(names["values"]))

    def _find_nearest(self, vectors: pa.Table, n: int, allowed: str | None) -> pa.Table:
        """The nearest of those that every question may have."""
        if allowed is None and (index := find_index(self._session, self._base)) is not None:
            nearest = self._find_in_index(index, vectors, n)
            if nearest.num_rows == n * vectors.num_rows:
                return nearest
        return self._measure(vectors, self._find_candidates(vectors, n, allowed or "true"), n)

    def _find_in_index(self, index: VectorIndex, vectors: pa.Table, n: int) -> pa.Table:
        """The nearest in the index, and among the chunks that came later; fewer where chunks of it are gone."""
        places, chunks = index.find(_to_matrix(vectors.column("vector").combine_chunks()), n + MARGIN)
        questions = vectors.column("question").combine_chunks().take(pa.array(places))
        candidates = pa.table({"question": questions, "chunk": chunks})
        if index.newer:
            newer = self._find_candidates(vectors, n, f"c.chunk > {index.last}")
            candidates = pa.concat_tables([candidates, newer])
        return self._measure(vectors, candidates, n)

    def _find_candidates(self, vectors: pa.Table, n: int, allowed: str) -> pa.Table:
        """`question` and `chunk` of the n nearest and some more, of chunks that are allowed, by comparing all."""
        source = f"{self._chunks} AS c WHERE c.vector IS NOT NULL AND {allowed}"
        if vectors.num_rows >= MIN_MATRIX_QUESTIONS and find_spec("numpy") is not None:
            candidates, unclear = self._multiply(vectors, n, source)
        else:
            candidates, unclear = None, list(range(vectors.num_rows))
        parts = [self._scan(vectors.slice(i, 1), n + MARGIN, source) for i in unclear]
        return pa.concat_tables(parts if candidates is None else [*parts, candidates])

    def _scan(self, question: pa.Table, n: int, source: str) -> pa.Table:
        """`question` and `chunk` of the n nearest to one question, by a query."""
        number = question.column("question")[0].as_py()
        with registered(self._con, vectors=question.select(["vector"])) as names:
            near = f"array_inner_product(c.vector, (SELECT vector FROM {names['vectors']}))"
            query = (
                f"SELECT {number}::BIGINT AS question, c.chunk FROM {source} ORDER BY {near} DESC, c.chunk LIMIT {n}"
            )
            return read_arrow(self._con.sql(query))

    def _multiply(self, vectors: pa.Table, n: int, source: str) -> tuple[pa.Table, list[int]]:
        """`question` and `chunk` of the n nearest to each question and some more, by products of matrices.

        Besides, the places of questions for which more chunks than that are as near as the last one that is wanted.
        """
        matrix = _to_matrix(vectors.column("vector").combine_chunks())
        nearest = NearestChunks(len(matrix), n + MARGIN)
        with self._con.sql(f"SELECT c.chunk, c.vector FROM {source}").to_arrow_reader(BLOCK_ROWS) as batches:
            for batch in batches:
                if self._session.interrupted:
                    raise Cancelled("Interrupted.", "Run it again.")
                block, chunks = _to_matrix(batch.column("vector")), batch.column("chunk").to_numpy()
                for start in range(0, len(matrix), BLOCK_QUESTIONS):
                    rows = slice(start, start + BLOCK_QUESTIONS)
                    nearest.add(rows, matrix[rows] @ block.T, chunks)
        unclear = nearest.find_unclear(n)
        is_found = nearest.chunks >= 0
        is_found[unclear] = False
        places, columns = is_found.nonzero()
        questions = vectors.column("question").combine_chunks().take(pa.array(places))
        return pa.table({"question": questions, "chunk": nearest.chunks[places, columns]}), unclear

    def _measure(self, vectors: pa.Table, candidates: pa.Table, n: int) -> pa.Table:
        """The n nearest candidates with their distances, computed in double precision."""
        kind = f"DOUBLE[{vectors.schema.field('vector').type.list_size}]"
        with registered(self._con, found=candidates, vectors=vectors.select(["question", "vector"])) as names:
            measured = (
                f"SELECT question, chunk, {_distance_sql(kind)} AS exact FROM {names['found']} "
                f"JOIN {self._chunks} AS c USING (chunk) JOIN {names['vectors']} AS q USING (question)"
            )
            return read_arrow(self._con.sql(_nearest_sql(measured, n))).cast(SCORED)

    def _find_nearest_of_pairs(self, vectors: pa.Table, n: int) -> pa.Table:
        """Where the condition differs by question: only what fulfils it is compared, question by question."""
        kind = f"DOUBLE[{vectors.schema.field('vector').type.list_size}]"
        with registered(self._con, vectors=vectors) as names:
            pairs = (
                f"SELECT q.__asked, v.chunk AS __chunk FROM ({self._condition_values(names['vectors'])}) AS q "
                f"JOIN ({self._visible()}) AS v ON ({self._condition})"
            )
            measured = (
                f"SELECT q.question, c.chunk, {_distance_sql(kind)} AS exact "
                f"FROM ({pairs}) AS p JOIN {self._chunks} AS c ON c.chunk = __chunk "
                f"JOIN {names['vectors']} AS q ON q.question = __asked WHERE c.vector IS NOT NULL"
            )
            return read_arrow(self._con.sql(_nearest_sql(measured, n))).cast(SCORED)


def _distance_sql(kind: str) -> str:
    """The cosine distance of chunks `c` and questions `q`: 1 for a vector of zeros, whatever DuckDB's version says."""
    vectors = f"c.vector::{kind}, q.vector::{kind}"
    return f"CASE WHEN array_inner_product({vectors}) = 0 THEN 1.0 ELSE array_cosine_distance({vectors}) END"


def _nearest_sql(measured: str, n: int) -> str:
    """The n with the least `exact` distance for each question, which is shown without the noise of float32."""
    distance = "greatest(0.0, round(exact, 7))"
    pair = f"struct_pack(distance := {distance}, chunk := chunk)"
    return (
        "SELECT question, pair.chunk, pair.distance, 1 / (1 + pair.distance) AS relevance FROM ("
        f"SELECT question, unnest(min({pair}, {min(n, MAX_K)})) AS pair FROM ({measured}) GROUP BY question)"
    )


class NearestChunks:
    """The n chunks with the greatest products for each question, so far; chunk -1 for none."""

    def __init__(self, questions: int, n: int) -> None:
        import numpy

        self._n = n
        self._products = numpy.full((questions, n), -numpy.inf, numpy.float32)
        self.chunks = numpy.full((questions, n), -1, numpy.int64)

    def add(self, rows: slice, products: NDArray[float32], chunks: NDArray[int64]) -> None:
        """Products of these questions with a block of chunks."""
        import numpy

        if products.shape[1] > self._n:
            best = numpy.argpartition(products, -self._n, axis=1)[:, -self._n :]
            products, numbers = numpy.take_along_axis(products, best, axis=1), chunks[best]
        else:
            numbers = numpy.broadcast_to(chunks, products.shape)
        both = numpy.concatenate([self._products[rows], products], axis=1)
        best = numpy.argpartition(both, -self._n, axis=1)[:, -self._n :]
        self._products[rows] = numpy.take_along_axis(both, best, axis=1)
        self.chunks[rows] = numpy.take_along_axis(numpy.concatenate([self.chunks[rows], numbers], axis=1), best, axis=1)

    def find_unclear(self, n: int) -> list[int]:
        """Questions whose n-th chunk is not clearly nearer than the last one that was kept."""
        import numpy

        if n >= self._n:
            return []
        ordered = -numpy.sort(-self._products, axis=1)
        is_full = ordered[:, -1] > -numpy.inf
        is_near = ordered[:, -1] >= ordered[:, n - 1] - PRODUCT_NOISE
        return [int(i) for i in numpy.flatnonzero(is_full & is_near)]


def _to_matrix(vectors: pa.FixedSizeListArray) -> NDArray[float32]:
    matrix: NDArray[float32] = vectors.flatten().to_numpy(zero_copy_only=False)
    return matrix.reshape(len(vectors), -1)
