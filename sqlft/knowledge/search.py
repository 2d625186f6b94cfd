"""Questions to the chunks that answer them best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.inference.statement_runs import StatementRuns
from sqlft.session import Session

SearchKind = Literal["meaning", "words", "both"]
DEFAULT_K = 10


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


def search_chunks(
    session: Session, runs: StatementRuns, base: KnowledgeBase, questions: pa.Table, options: SearchOptions
) -> pa.Table:
    """The best chunks for each question, as `FOUND`: by question, best first.

    `questions` has `text` (NULL finds nothing) and the columns that `options.condition` mentions; `question` is the
    place of a row in it, from 0.  `distance` is the cosine distance (NULL where only words were compared), relevance
    is between 0 and 1.
    """
    raise NotImplementedError
