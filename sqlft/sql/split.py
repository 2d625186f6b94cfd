"""Where the statements of a text begin and end, without reading them: strings are jumped over at C speed."""

from __future__ import annotations

import re
from typing import NamedTuple

from sqlft.sql.lexer import DOLLAR_TAG, ESCAPED, SPACE, WORD_REST, WORD_START, comment_end, dollar_end

# All up to the next ; comment or $tag$; doubled quotes are two strings side by side.
_RUN = re.compile(
    rf"""(?:
      (?![eE]'){WORD_START}{WORD_REST}*+ | [0-9]{WORD_REST}*+
    | {ESCAPED} | '[^']*+' | "[^"]*+" | `[^`]*+`
    | -(?!-) | /(?!\*) | (?!{DOLLAR_TAG})\$
    | [^;'"`$/\-0-9A-Za-z_\x80-\U0010ffff]++ | [{SPACE}]++
    )++""",
    re.VERBOSE | re.DOTALL,
)
_GAP = re.compile(rf"(?:[{SPACE}]++|--[^\n\r]*+)++")
_DOLLAR = re.compile(DOLLAR_TAG)


class Span(NamedTuple):
    """A statement's first character and the one behind its last, comments around it left out."""

    start: int
    end: int


def split(text: str) -> list[Span]:
    """The statements between top-level `;`, empty ones left out; one that never closes a quote takes the rest."""
    spans: list[Span] = []
    at, first, last = 0, -1, -1
    while at < len(text):
        if gap := _GAP.match(text, at):
            at = gap.end()
        elif text.startswith("/*", at) and (close := comment_end(text, at, len(text))) > 0:
            at = close
        elif text[at] == ";":
            if first >= 0:
                spans.append(Span(first, last))
            first, at = -1, at + 1
        else:
            first = at if first < 0 else first
            at = last = _code_end(text, at)
    if first >= 0:
        spans.append(Span(first, last))
    return spans


def _code_end(text: str, at: int) -> int:
    run = _RUN.match(text, at)
    if run:
        return at + len(run[0].rstrip())
    if _DOLLAR.match(text, at):
        close = dollar_end(text, at, len(text))
        return close if close > 0 else len(text)
    if text[at] in "'\"eE/":
        return len(text)
    return at + 1
