"""Texts of queries: what Spider's official evaluator changes in them before it runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator

TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<string>'(?:[^']|'')*'?)
    |(?P<quoted>"(?:[^"]|"")*"?|`[^`]*`?|\[[^\]]*\]?)
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|\|\||.)""",
    re.S | re.X,
)
CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.I)
READING_WORDS = {"select", "with", "values"}
SPLIT_SIGNS = (("> =", ">="), ("< =", "<="), ("! =", "!="))


def tokenize(query: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token, spaces and comments included."""
    return ((m.lastgroup or "sign", m.group()) for m in TOKEN.finditer(query))


def is_reading(query: str) -> bool:
    """Whether a SQLite query begins with a word that reads: no comment alone, no empty statement before another."""
    for match in TOKEN.finditer(query.removeprefix("\ufeff")):
        if match.lastgroup != "space":
            return match.group().lower() in READING_WORDS
    return False


def repair_query(query: str) -> str:
    """Signs that were split put together, and MySQL's current year as 2020: the year the data was made in."""
    for split, whole in SPLIT_SIGNS:
        query = query.replace(split, whole)
    return CURRENT_YEAR.sub("2020", query)


def remove_distinct(query: str, *, only_select: bool = False) -> str:
    """The query without the word DISTINCT; `only_select` leaves DISTINCT ON and IS DISTINCT FROM as they are."""
    if "distinct" not in query.lower():
        return query
    found = list(tokenize(query))
    return "".join(
        text
        for i, (kind, text) in enumerate(found)
        if not (kind == "word" and text.lower() == "distinct" and not (only_select and _is_distinct_operator(found, i)))
    )


def is_ordered(gold: str) -> bool:
    """Whether the order of rows counts: `order by` stands anywhere in the gold, as the official evaluator looks."""
    return "order by" in gold.lower()


def _is_distinct_operator(found: list[tuple[str, str]], i: int) -> bool:
    following = next((text.lower() for kind, text in found[i + 1 :] if kind != "space"), "")
    return following in ("on", "from")
