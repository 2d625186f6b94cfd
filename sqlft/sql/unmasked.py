"""What `masked` stars out: the secrets of a statement, to be looked for in what is said of it."""

from __future__ import annotations

import re

from sqlft.errors import StatementError
from sqlft.sql.lexer import tokens
from sqlft.sql.masking import SECRET

SHORTEST = 4


def secrets_in(text: str) -> set[str]:
    """The values that `masked` stars out, as typed and as they are meant, each line of them by itself."""
    found: set[str] = set()
    for match in SECRET.finditer(text):
        for value in {match["quoted"] or match["bare"], *_meant(match["quoted"] or match["bare"])}:
            found.update((value, *value.splitlines()))
    return {value for value in found if len(value) >= SHORTEST}


def _meant(typed: str) -> list[str]:
    """A literal's own text: without its quotes, and with its escapes undone."""
    inner = re.fullmatch(r"[eE]?(['\"]|\$\w*\$)(.*?)(\1)?", typed, re.DOTALL)
    try:
        values = [t.value for t in tokens(typed) if t.kind in ("string", "quoted")]
    except StatementError:
        values = []
    return [*values, *([inner[2]] if inner else [])]
