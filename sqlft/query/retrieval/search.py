"""Searching: distinct inputs to chunks, several searches to one, and the relation that stands for the base."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sqlft.catalog.records import KnowledgeBase
from sqlft.data.prompts import is_nested_type
from sqlft.handler import estimate_tokens
from sqlft.inference.statement_runs import PromptTable, StatementRuns
from sqlft.knowledge.embedding import add_prefix, resolve_embedding_model
from sqlft.knowledge.search import DEFAULT_K, FOUND, SearchKind, SearchOptions, search_chunks
from sqlft.knowledge.tables import empty_chunks_sql, has_tables, visible_chunks_sql, visible_columns
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.retrieval.scan import (
    RANKING_COLUMNS,
    ChunkFilter,
    CombinedSearch,
    KnowledgeScan,
    RetrievalSettings,
    SearchTree,
    TextSearch,
    text_searches,
)
from sqlft.query.scope import add_ctes, select
from sqlft.session import Session
from sqlft.sql.names import quote_name

EXCLUDED_CANDIDATES = 100
EXCLUDED_RELEVANCE = 0.5
"""content <> 'text' leaves out those of so many best chunks that are as relevant as this, as MindsDB has it."""
CONTEXTS_AT_ONCE = 1024
FIRST_TEXTS = 16
"""So many are searched for at first where a LIMIT may need no more."""
INTERSECTED_CANDIDATES = 100
"""From so many best chunks for each text those are taken that are good for all."""


def list_chunks(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> Node:
    """What stands for a knowledge base that is not searched: a query for all of its chunks."""
    columns = ", ".join(quote_name(n) for n in visible_columns(base))
    ranking = ", ".join(f"CAST(NULL AS DOUBLE) AS {name}" for name in RANKING_COLUMNS)
    relation = ast.relation("(SELECT 1) AS __x")
    relation["subquery"]["node"] = ast.parse(f"SELECT {columns}, {ranking} FROM ({_chunks_sql(con, base)}) AS chunks_")
    return relation


def _chunks_sql(con: duckdb.DuckDBPyConnection, base: KnowledgeBase) -> str:
    """A query for all chunks; one without rows where nothing was ever inserted."""
    return visible_chunks_sql(base) if has_tables(con, base) else empty_chunks_sql(base)


@dataclass(frozen=True)
class SearchStep:
    """One knowledge base, searched: what EXPLAIN shows of it."""

    scan: KnowledgeScan
    search: Search
    query: str
    """What gave the rows that it is searched for."""
    rows: int
    inputs: pa.Table
    """The distinct inputs as texts: k0 …"""
    found: int
    """How many chunks were found."""

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns by which what was found is known in DuckDB's plan."""
        keys = (f"__sqlft_k{self.scan.number}_{j}" for j in range(len(self.scan.inputs)))
        return frozenset([*FOUND.names, "question_", *keys, *self.scan.find_hidden_columns().values()])

    def texts(self) -> pa.ChunkedArray:
        """The distinct texts that are searched for."""
        texts: list[str] = []
        for search in text_searches(self.scan.tree):
            column = self.inputs.column(f"k{search.place}").to_pylist()
            texts += [t for _, t in _spread(column)] if search.is_list else [t for t in column if t is not None]
        return pa.chunked_array([pa.array(dict.fromkeys(texts), pa.string())])


def build_search_options(scan: KnowledgeScan, runs: StatementRuns) -> tuple[RetrievalSettings, SearchOptions]:
    """What USING and the conditions say of a search; OptionError for what cannot be."""
    settings = runs.alias_settings(RetrievalSettings, scan.alias, scan.options, f"Knowledge base '{scan.name}'")
    hybrid = settings.hybrid_search or (settings.hybrid_search is None and settings.hybrid_search_alpha is not None)
    default: SearchKind = "words" if scan.base.embedding_model is None else "both" if hybrid else "meaning"
    alpha = 0.5 if settings.hybrid_search_alpha is None else settings.hybrid_search_alpha
    k = settings.k or (DEFAULT_K if scan.limit is None else scan.limit)
    return settings, SearchOptions(
        k, settings.search or default, alpha, scan.min_relevance, scan.above, None, settings.reranking
    )


class Search:
    """One knowledge base, searched for the distinct inputs of a query."""

    def __init__(self, session: Session, runs: StatementRuns, scan: KnowledgeScan, types: Sequence[str]) -> None:
        self._session, self._runs, self._scan, self._types = session, runs, scan, types
        self.settings, self.options = build_search_options(scan, runs)

    def find(self, inputs: pa.Table, limit: int | None = None) -> pa.Table:
        """The best chunks for each row of inputs, as `FOUND`; `question` is the row.

        With `limit` those of the first rows that have so many.
        """
        if limit is None:
            return self._find_all(inputs)
        parts = [FOUND.empty_table()]
        start, size = 0, FIRST_TEXTS
        while start < inputs.num_rows and sum(len(part) for part in parts) < limit:
            part = self._find_all(inputs.slice(start, size))
            parts.append(part.set_column(0, FOUND.field(0), pc.add(part.column("question"), start)))
            start, size = start + size, size * 4
        return pa.concat_tables(parts)

    def _find_all(self, inputs: pa.Table) -> pa.Table:
        tree, k = self._scan.tree, self.options.k
        if isinstance(tree, TextSearch) and not tree.is_excluded:
            return self._find_text(tree, inputs, self.options)
        searches = list(text_searches(tree))
        excluded = sum(s.is_excluded for s in searches)
        candidates = k + EXCLUDED_CANDIDATES * excluded
        if isinstance(tree, CombinedSearch) and tree.kind == "all" and len(searches) - excluded > 1:
            candidates = max(candidates, INTERSECTED_CANDIDATES + EXCLUDED_CANDIDATES * excluded)
        results = {}
        for search in searches:
            options = replace(self.options, k=candidates)
            if search.is_excluded:
                options = replace(
                    options, k=EXCLUDED_CANDIDATES, min_relevance=EXCLUDED_RELEVANCE, above=False, reranking=False
                )
            results[id(search)] = _by_question(self._find_text(search, inputs, options))
        combined = {}
        for question in range(inputs.num_rows):
            of_question = {key: found.get(question, {}) for key, found in results.items()}
            combined[question] = _combine_found(tree, of_question, k) or {}
        return _to_table(combined)

    def open_questions(self, texts: pa.ChunkedArray | None) -> PromptTable:
        """The prompts of the embedding model, with these texts among them."""
        resolved = resolve_embedding_model(self._session, self._scan.base)
        prompts = self._runs.prompt_table(resolved, resolved.model.key.name)
        if texts is not None and len(texts):
            prompts.ids([add_prefix(resolved, texts, are_questions=True)])
        return prompts

    def guess(self, inputs: pa.Table) -> pa.Table:
        """As many chunks for each row of inputs as there may be, for an estimate that asks no model."""
        k = self.options.k
        chunks = self._session.con.sql(f"SELECT chunk FROM ({_chunks_sql(self._session.con, self._scan.base)}) AS c_")
        known = [row[0] for row in chunks.limit(max(1000, k)).fetchall()]
        rows = [
            {"question": question, "chunk": known[(question * k + rank) % len(known)], "rank": rank + 1}
            for question in range(inputs.num_rows)
            for rank in range(min(k, len(known)))
        ]
        return pa.Table.from_pylist(rows, FOUND)

    def _find_text(self, search: TextSearch, inputs: pa.Table, options: SearchOptions) -> pa.Table:
        scan = self._scan
        columns = {"text": inputs.column(f"k{search.place}")}
        for i in range(len(scan.columns_of_others)):
            columns[f"f{i}"] = inputs.column(f"k{len(scan.texts) + i}")
        rows: list[int] | None = None
        if search.is_list:
            spread = _spread(columns["text"].to_pylist())
            rows = [row for row, _ in spread]
            columns = {name: column.take(rows) for name, column in columns.items()}
            columns["text"] = pa.chunked_array([pa.array([text for _, text in spread], pa.string())])
        conditions = [self._filter_sql(made) for made in [*scan.filters, *search.filters]]
        condition = " AND ".join(f"({c})" for c in conditions) or None
        options = replace(options, condition=condition)
        found = search_chunks(self._session, self._runs, scan.base, pa.table(columns), options)
        return found if rows is None else _merge_questions(found, rows)

    def _filter_sql(self, made: ChunkFilter) -> str:
        """A filter in the words of `SearchOptions.condition`."""
        scan = self._scan
        if made.is_nested:
            relation = list_chunks(self._session.con, scan.base)
            relation["alias"] = scan.alias
            query = add_ctes(select("chunk_id", relation, [made.node]), scan.block.ctes)
            query["select_list"] = [ast.column(scan.alias, "chunk_id")]
            return f"chunk_id IN ({ast.to_sql(query)})"
        names = [ast.expression_sql(c) for c in scan.columns_of_others]
        parts: dict[int, Node] = {}
        for column in made.columns:
            i = names.index(ast.expression_sql(column))
            parts[id(column)] = self._input_value(i, self._types[len(scan.texts) + i])
        for use in made.uses:
            qualified = len(use["column_names"]) > 1 and use["column_names"][0].lower() == scan.alias.lower()
            parts[id(use)] = ast.column(*use["column_names"][int(qualified) :])
        return ast.expression_sql(ast.copy_replacing(made.node, parts))

    @staticmethod
    def _input_value(i: int, kind: str) -> Node:
        """The value of a filter's input, which is kept as its text."""
        text = ast.column("q", f"f{i}")
        if kind in ("VARCHAR", '"NULL"'):
            return text
        return ast.expression(f"CAST({'CAST(x AS JSON)' if is_nested_type(kind) else 'x'} AS {kind})", x=text)

    # -- what stands in its place ------------------------------------------------------------------------------------

    def relation_sql(self, found: str, keys: str, shown: Mapping[str, str], kept: Sequence[str]) -> str:
        """The relation of chunks: `found` and `keys` are registered, `shown` columns of keys have these types.

        `kept` are the columns of keys by which rows are joined, and context.
        """
        values = [f"CAST(k_.{quote_name(n)} AS {kind}) AS {quote_name(n)}" for n, kind in shown.items()]
        values += [f"k_.{quote_name(n)}" for n in kept]
        if self._scan.gives_context:
            return f"(SELECT {', '.join([*values, f'k_.question_ AS {self._scan.place_column}'])} FROM {keys} AS k_)"
        chunks = _chunks_sql(self._session.con, self._scan.base)
        columns = [f"v_.{quote_name(n)}" for n in visible_columns(self._scan.base)]
        ranking = [f"f_.{name}" for name in RANKING_COLUMNS]
        place = f"f_.question * 4294967296 + f_.rank AS {self._scan.place_column}"
        return (
            f"(SELECT {', '.join([*columns, *ranking, *values, place])} FROM {found} AS f_ "
            f"JOIN {keys} AS k_ ON k_.question_ = f_.question JOIN ({chunks}) AS v_ ON v_.chunk = f_.chunk)"
        )

    def contexts(self, found: str, rows: int) -> pa.Array:
        """The best chunks of each row of inputs as one text, empty where there is none."""
        texts: list[list[str]] = [[] for _ in range(rows)]
        sizes = [0] * rows
        chunks = _chunks_sql(self._session.con, self._scan.base)
        query = (
            f"SELECT f_.question, v_.chunk_content FROM {found} AS f_ JOIN ({chunks}) AS v_ ON v_.chunk = f_.chunk "
            f"WHERE f_.rank <= {self.options.k} ORDER BY f_.question, f_.rank"
        )
        most = self.settings.max_tokens
        separator = "\n\n" if self.settings.separator is None else self.settings.separator
        for batch in self._session.con.sql(query).to_arrow_reader(10_000):
            for question, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                sizes[question] += estimate_tokens(text) + (estimate_tokens(separator) if texts[question] else 0)
                if most is None or sizes[question] <= most:
                    texts[question].append(text)
        return pa.array([separator.join(parts) for parts in texts], pa.string())


class ContextTable:
    """Contexts by distinct inputs, found as the rows of a result need them: what `PromptTable` is for answers.

    Only the numbers of the chunks are kept; their texts are read again with each slice of rows.
    """

    def __init__(self, session: Session, runs: StatementRuns, scan: KnowledgeScan) -> None:
        self._session, self._runs, self._scan = session, runs, scan
        self.types: list[str] = []
        """Of the inputs, known before any of them."""
        self.rows = 0
        self._ids: dict[bytes, int] = {}
        self._waiting: deque[tuple[str | None, ...]] = deque()
        self._chunks: list[list[int]] = []
        """Of each distinct combination of inputs that was searched for, best first."""

    @cached_property
    def _search(self) -> Search:
        return Search(self._session, self._runs, self._scan, self.types)

    @property
    def inference_run(self) -> ContextTable:
        """Itself: it is asked where a model's run would be."""
        return self

    def ids(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.Array:
        """The number of each row of inputs."""
        ids = []
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            key = blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key not in self._ids:
                self._ids[key] = len(self._ids)
                self._waiting.append(row)
            ids.append(self._ids[key])
        return pa.array(ids, pa.int32())

    def read_cache(self) -> bool:
        """Whether all contexts are known without a search."""
        return not self._waiting

    def count_answered(self, end: int) -> int:
        """How many of the first `end` inputs were searched for."""
        return min(end, len(self._chunks))

    def advance(self, end: int, limit: int) -> None:
        """Search for at most `limit` more of the first `end` inputs."""
        count = min(limit, end - len(self._chunks), CONTEXTS_AT_ONCE)
        rows = [self._waiting.popleft() for _ in range(max(0, count))]
        inputs = pa.table(
            {f"k{j}": pa.array([row[j] for row in rows], pa.string()) for j in range(len(self._scan.inputs))}
        )
        found = self._search.find(inputs)
        chunks: list[list[int]] = [[] for _ in rows]
        for question, chunk in zip(
            found.column("question").to_pylist(), found.column("chunk").to_pylist(), strict=True
        ):
            chunks[question].append(chunk)
        self._chunks += chunks

    def ask_all(self) -> None:
        """Search for all inputs so far."""
        while self._waiting:
            self.advance(len(self._ids), len(self._ids))

    def columns(self, ids: pa.Array, names: Sequence[str]) -> list[pa.Array]:
        """The contexts of these inputs, the one column; NULL where nobody reads them."""
        if not self._scan.is_read:
            return [pa.nulls(len(ids), pa.string()) for _ in names]
        encoded = ids.dictionary_encode()
        rows = [
            {"question": question, "chunk": chunk, "rank": rank}
            for question, i in enumerate(encoded.dictionary.to_pylist())
            for rank, chunk in enumerate(self._chunks[i], 1)
        ]
        name = f"__sqlft_contexts{self._scan.number}"
        self._session.con.register(name, pa.Table.from_pylist(rows, FOUND))
        try:
            contexts = self._search.contexts(name, len(encoded.dictionary))
        finally:
            self._session.con.unregister(name)
        return [contexts.take(encoded.indices) for _ in names]


Found = dict[int, tuple[float | None, float]]
"""By chunk: distance and relevance."""


def _spread(lists: Sequence[str | None]) -> list[tuple[int, str]]:
    """The texts of JSON lists, each with the place of its list."""
    return [(row, text) for row, listed in enumerate(lists) for text in json.loads(listed or "[]") if text is not None]


def _merge_questions(found: pa.Table, rows: Sequence[int]) -> pa.Table:
    """What was found for any question of a row as what was found for the row, each chunk at its best."""
    best: dict[int, Found] = {}
    for question, chunks in _by_question(found).items():
        row = best.setdefault(rows[question], {})
        for chunk, place in chunks.items():
            row[chunk] = max(place, row.get(chunk, place), key=lambda p: p[1])
    return _to_table(best)


def _to_table(found: Mapping[int, Found]) -> pa.Table:
    """`FOUND`, the most relevant first."""
    rows = []
    for question, chunks in sorted(found.items()):
        ranked = sorted(chunks.items(), key=lambda item: (-item[1][1], item[0]))
        rows += [
            {"question": question, "chunk": chunk, "rank": rank, "distance": distance, "relevance": relevance}
            for rank, (chunk, (distance, relevance)) in enumerate(ranked, 1)
        ]
    return pa.Table.from_pylist(rows, FOUND)


def _by_question(found: pa.Table) -> dict[int, Found]:
    by_question: dict[int, Found] = {}
    columns = [found.column(n).to_pylist() for n in ("question", "chunk", "distance", "relevance")]
    for question, chunk, distance, relevance in zip(*columns, strict=True):
        by_question.setdefault(question, {})[chunk] = (distance, relevance)
    return by_question


def _combine_found(tree: SearchTree, found: Mapping[int, Found], k: int) -> Found | None:
    """The chunks of a search for one row of inputs; None where it only leaves out."""
    if isinstance(tree, TextSearch):
        return None if tree.is_excluded else found[id(tree)]
    if tree.kind == "any":
        best: Found = {}
        for part in tree.parts:
            for chunk, place in list((_combine_found(part, found, k) or {}).items())[:k]:
                if chunk not in best or place[1] > best[chunk][1]:
                    best[chunk] = place
        return best
    results = [r for p in tree.parts if (r := _combine_found(p, found, k)) is not None]
    if not results:
        return None
    out = {chunk for s in text_searches(tree) if s.is_excluded for chunk in found[id(s)]}
    common = [c for c in results[0] if c not in out and all(c in r for r in results)]
    worst = {c: min((r[c] for r in results), key=lambda place: place[1]) for c in common}
    return dict(sorted(worst.items(), key=lambda item: (-item[1][1], item[0]))[:k])
