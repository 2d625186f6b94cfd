"""A knowledge base in a FROM clause that is searched: for what, with which filters and options, and its columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from sqlft.catalog.records import KnowledgeBase
from sqlft.handler import Range
from sqlft.knowledge.search import SearchKind
from sqlft.knowledge.tables import visible_columns
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.scope import Scan

RANKING_COLUMNS = ("distance", "relevance")


@dataclass
class RetrievalSettings:
    """SELECT … USING, of a knowledge base: docs.k = 3; all but the last two may be conditions, too"""

    k: Annotated[int | None, "most chunks for each text; without it LIMIT, or 10", Range(1)] = None
    search: Annotated[
        SearchKind | None, "by vectors, by words, or by both; without it by vectors where there is an embedding model"
    ] = None
    hybrid_search: Annotated[bool | None, "MindsDB's word for search = 'both'"] = None
    hybrid_search_alpha: Annotated[
        float | None, "of both: the weight of meaning against words, 0.5 without it", Range(0, 1)
    ] = None
    reranking: Annotated[bool, "whether the reranking model is asked, if there is one"] = True
    separator: Annotated[str | None, "what stands between the chunks in context; without it an empty line"] = None
    max_tokens: Annotated[
        int | None, "most tokens of context, estimated: the first chunk that would pass it ends the context", Range(1)
    ] = None


CONDITION_OPTIONS = ("k", "search", "hybrid_search", "hybrid_search_alpha", "reranking")


@dataclass
class ChunkFilter:
    """A condition on chunks that holds before the best are chosen."""

    node: Node
    columns: list[Node]
    """Where it mentions columns of other tables."""
    uses: list[Node]
    """Where it mentions those of the base."""
    is_nested: bool
    """Whether it has a query in it, which sees the base by its alias."""


@dataclass
class TextSearch:
    """The best chunks for one text."""

    text: Node
    filters: list[ChunkFilter] = field(default_factory=list)
    is_excluded: bool = False
    """Whether it is those that are left out."""
    is_list: bool = False
    """Whether it is a list of texts, and the chunks are the best for any of them."""
    place: int = 0
    """Of the text among the scan's."""


@dataclass
class CombinedSearch:
    """The chunks of any or of all of several searches."""

    kind: Literal["any", "all"]
    parts: list[TextSearch | CombinedSearch]


SearchTree = TextSearch | CombinedSearch


def text_searches(tree: SearchTree) -> Iterator[TextSearch]:
    if isinstance(tree, TextSearch):
        yield tree
    else:
        for part in tree.parts:
            yield from text_searches(part)


def finds_chunks(tree: SearchTree) -> bool:
    """Whether a search does more than leave out."""
    if isinstance(tree, TextSearch):
        return not tree.is_excluded
    return any(finds_chunks(part) for part in tree.parts)


@dataclass(eq=False)
class KnowledgeScan(Scan):
    """A knowledge base in a FROM clause that is searched."""

    hides_inputs: ClassVar[bool] = True

    base: KnowledgeBase = field(kw_only=True)
    schema: str = field(kw_only=True)
    """The project or the attached database that stands before its name, '' if none does."""
    tree: SearchTree = field(init=False)
    texts: list[Node] = field(default_factory=list)
    columns_of_others: list[Node] = field(default_factory=list)
    """Of the filters, each an input."""
    filters: list[ChunkFilter] = field(default_factory=list)
    min_relevance: float | None = None
    above: bool = False
    options: dict[str, object] = field(default_factory=dict)
    """Those that stand among the conditions."""
    limit: int | None = None
    """LIMIT + OFFSET of a query that reads nothing else."""
    row_limit: int | None = None
    """LIMIT + OFFSET of a query that has its rows in the order of its texts, and drops none of them."""
    gives_context: bool = False
    """Whether it has one row for each combination of inputs, with the context and without chunks."""

    @property
    def name(self) -> str:
        return self.base.key.name

    @property
    def project(self) -> str:
        return self.schema or self.base.key.project

    @property
    def key(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        return f"knowledge base '{self.name}'"

    @property
    def inputs(self) -> tuple[str, ...]:
        more = (f"__sqlft_text{i}" for i in range(1, len(self.texts)))
        return ("content", *more, *(f"__sqlft_filter{i}" for i in range(len(self.columns_of_others))))

    def input_trees(self) -> Iterator[Node]:
        """All nodes of the expressions that give its inputs."""
        return (n for binding in self.bindings.values() for tree in binding.trees for n in ast.walk(tree))

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.context_column,) if self.gives_context else self.all_outputs

    @property
    def all_outputs(self) -> tuple[str, ...]:
        return ("context",) if self.gives_context else (*self.chunk_columns, "context")

    @property
    def gives_rows(self) -> bool:
        return not self.gives_context

    @property
    def chunk_columns(self) -> tuple[str, ...]:
        """What a star shows."""
        return (*visible_columns(self.base), *RANKING_COLUMNS)

    @property
    def columns(self) -> dict[str, str]:
        names = (*CONDITION_OPTIONS, "content", "context", *self.chunk_columns)
        return {n.lower(): n for n in names}

    @property
    def place_column(self) -> str:
        """The hidden column by which rows are in order."""
        return f"__sqlft_r{self.number}"

    @property
    def context_column(self) -> str:
        """The column in which the context stands, which a star does not show."""
        return f"__sqlft_x{self.number}"

    @property
    def extra_columns(self) -> tuple[str, ...]:
        return (self.place_column,)

    def shown_column(self, name: str) -> str:
        return self.hidden_column(name)

    def find_shown_inputs(self) -> list[str]:
        return ["content"] if any(u.column == "content" for u in self.find_free_uses()) else []

    def find_hidden_columns(self) -> dict[str, str]:
        shown = {n: self.hidden_column(n) for n in self.find_shown_inputs()}
        return {**shown, **({"context": self.context_column} if self.shows_context else {})}

    @property
    def row_columns(self) -> tuple[str, ...]:
        return self.chunk_columns

    @property
    def shows_context(self) -> bool:
        """Whether the context is read."""
        return any(u.column == "context" for u in self.uses)
