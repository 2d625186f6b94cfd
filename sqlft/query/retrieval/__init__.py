"""A knowledge base in a query: what the conditions say of it, and the relation of chunks in its place.

`bind` makes a `KnowledgeScan` of each one that a FROM clause names and calls `bind_search`.  Without a condition on
`content` it is a view of all its chunks (`list_chunks`).  With one its inputs are the texts that are searched for and
the columns of other tables that its filters mention; it has the best chunks of each, or, where only `context` is read,
one row with all of them as one text.  `execute` reads the distinct inputs and calls `Search`, whose SQL then stands
where the name stood.

    conditions -> scan -> search -> sqlft.knowledge
"""

from sqlft.query.retrieval.conditions import NamesOfBlock, bind_search
from sqlft.query.retrieval.scan import KnowledgeScan
from sqlft.query.retrieval.search import (
    FIRST_TEXTS,
    ContextTable,
    Search,
    SearchStep,
    build_search_options,
    list_chunks,
)

__all__ = [
    "FIRST_TEXTS",
    "ContextTable",
    "KnowledgeScan",
    "NamesOfBlock",
    "Search",
    "SearchStep",
    "bind_search",
    "build_search_options",
    "list_chunks",
]
