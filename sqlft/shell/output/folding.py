"""Messages folded to the screen: between words, and excerpts of a statement around the place that a caret shows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from rich.cells import cell_len

_EXCERPT = re.compile(r"LINE \d+(?:, column \d+)?: ")
_CARET = re.compile(r" *\^+ *")
_INDENT = re.compile(r"\s*(?:\S+ {2,})?")
ELLIPSIS = "…"


def fold_message(text: str, width: int | None, hanging: bool = False) -> str:
    """The text with no line wider than the screen; `hanging` puts what is folded below the last column of a list.

    >>> print(fold_message("There is no model 'm'. SHOW MODELS lists them.", 24))
    There is no model 'm'.
    SHOW MODELS lists them.
    """
    if width is None or all(cell_len(line) <= width for line in text.split("\n")):
        return text
    return "\n".join(_fold_lines(text.split("\n"), width, hanging))


def _fold_lines(lines: list[str], width: int, hanging: bool) -> Iterator[str]:
    i = 0
    while i < len(lines):
        line, following = lines[i], lines[i + 1] if i + 1 < len(lines) else ""
        head = _EXCERPT.match(line)
        if head is not None and _CARET.fullmatch(following):
            yield from _cut_excerpt(head[0], line[head.end() :], following, width)
            i += 2
            continue
        yield from _wrap_line(line, width, hanging)
        i += 1


def _wrap_line(line: str, width: int, hanging: bool) -> Iterator[str]:
    if cell_len(line) <= width:
        yield line
        return
    match = _INDENT.match(line) if hanging else re.match(r"\s*", line)
    indent = match[0] if match and len(match[0]) < width // 2 else ""
    yield from textwrap.wrap(
        line[len(indent) :],
        width,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [line]


def _cut_excerpt(head: str, excerpt: str, caret: str, width: int) -> Iterator[str]:
    """The part of an excerpt that fits, with the caret in it."""
    room = max(width - len(head), 10)
    at = max(len(caret) - len(caret.lstrip()) - len(head), 0)
    if len(excerpt) <= room:
        yield f"{head}{excerpt}"
        yield caret[:width]
        return
    start = max(0, min(at - room // 2, len(excerpt) - room))
    visible = excerpt[start : start + room]
    visible = (ELLIPSIS if start else visible[:1]) + visible[1:]
    visible = visible[:-1] + (ELLIPSIS if start + room < len(excerpt) else visible[-1:])
    marks = min(caret.count("^"), room - (at - start))
    yield f"{head}{visible}"
    yield " " * (len(head) + at - start) + "^" * max(marks, 1)
