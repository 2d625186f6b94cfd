"""Names and texts as SQL has them: in the quotes that they need."""

from __future__ import annotations

import re

RESERVED_WORDS = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
    default deferrable desc describe distinct do else end except false fetch for foreign from group having in
    initially intersect into lambda lateral leading like limit not null offset on only or order pivot
    pivot_longer pivot_wider placing predict primary qualify references returning select show some summarize
    symmetric table then to trailing true union unique unpivot using variadic when where window with
    """.split()  # noqa: SIM905
)
"""DuckDB's reserved words, LIKE, and PREDICT, which begins a clause of ours; a test has DuckDB's own list."""
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z", re.IGNORECASE)


def format_name(name: str) -> str:
    """A name as it is typed: in quotes where a statement needs them.

    >>> format_name("answer"), format_name("Input Column"), format_name("order")
    ('answer', '"Input Column"', '"order"')
    """
    return name if _PLAIN_NAME.match(name) and name.lower() not in RESERVED_WORDS else quote_name(name)


def quote_name(name: str) -> str:
    """A name in quotes, for statements that nobody reads.

    >>> print(quote_name('an "x" here'))
    "an ""x"" here"
    """
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """A string literal.

    >>> quote_text("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
