"""Splits what was typed into statements and dot-commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sqlft.errors import SqlftError, StatementError
from sqlft.sql.lexer import StatementSpan, split_statements, tokenize
from sqlft.sql.passthrough import is_surely_duckdb

_DOT_LINE = re.compile(
    r"^[ \t]*(?:\.[A-Za-z][^\n]*|\\[a-z?!][^\n]*|(?:exit|quit)[ \t]*;?[ \t]*$)", re.MULTILINE | re.IGNORECASE
)
"""A dot-command, or what people type for one out of habit."""
_EAGER_LENGTH = 1 << 20
"""A text shorter than this is looked through at every new line, a longer one whenever it has doubled."""


class ScriptItem(NamedTuple):
    """One statement or dot-command, and the line of the script on which it starts, from 1."""

    text: str
    line: int = 1

    @property
    def is_command(self) -> bool:
        """Whether this is a dot-command."""
        return _DOT_LINE.fullmatch(self.text) is not None


def is_complete(text: str) -> bool:
    """Whether Enter runs it: nothing but blanks, a dot-command, or what ends with a `;` outside of quotes."""
    return not text.strip(" \t\n;") or _DOT_LINE.match(text.lstrip()) is not None or _ends_statement(text)


def split_script(text: str) -> Iterator[ScriptItem]:
    """The statements and dot-commands of a whole text."""
    script = Script()
    yield from script.feed(text)
    yield from script.finish()


class Script:
    """A text that comes bit by bit."""

    def __init__(self) -> None:
        self._rest = ""
        self._line = 1
        self._looked_at = 0

    def feed(self, text: str) -> Iterator[ScriptItem]:
        """What became complete with this text; its last line counts only when the line's end has come."""
        self._rest += text
        if "\n" in text and (len(self._rest) < _EAGER_LENGTH or len(self._rest) >= 2 * self._looked_at):
            yield from self._commands(self._rest.rfind("\n") + 1)
            yield from self._statements(self._complete_until(self._rest.rfind("\n") + 1))
            self._looked_at = len(self._rest)

    def finish(self) -> Iterator[ScriptItem]:
        """All that is left, complete or not."""
        yield from self._commands(len(self._rest))
        yield from self._statements(len(self._rest))

    def _commands(self, end: int) -> Iterator[ScriptItem]:
        """The dot-commands, each after the statements before it."""
        length = len(self._rest)
        while match := self._next_command(end - (length - len(self._rest))):
            text, after = match[0].strip(), len(self._rest) - match.end()
            yield from self._statements(match.start())
            line = self._line
            self._drop(len(self._rest) - after)
            yield ScriptItem(text, line)

    def _next_command(self, end: int) -> re.Match[str] | None:
        for match in _DOT_LINE.finditer(self._rest, 0, end):
            before = self._rest[: match.start()]
            if _is_blank(before) or _ends_statement(before):
                return match
        return None

    def _complete_until(self, end: int) -> int:
        """Behind the last `;` that ends a statement."""
        text = self._rest[:end]
        if _ends_statement(text) or _is_blank(text):
            return end
        spans = _split_spans(text)
        return spans[-2].end if len(spans) > 1 else 0

    def _statements(self, end: int) -> Iterator[ScriptItem]:
        """The statements before `end`, which leave the rest."""
        text, line, at = self._rest[:end], self._line, 0
        self._drop(end)
        for start, stop in _split_spans(text):
            line += text.count("\n", at, start)
            at = start
            yield ScriptItem(text[start:stop], line)

    def _drop(self, length: int) -> None:
        self._line += self._rest.count("\n", 0, length)
        self._rest = self._rest[length:]


def read_script(path: str) -> str:
    """A script's text; SqlftError if it cannot be read or is not UTF-8."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SqlftError(f"{path} cannot be read: {e.strerror}.", "Check the file's name.") from e
    except UnicodeDecodeError as e:
        raise SqlftError(f"{path} is not UTF-8 (byte {e.start}).", "Save it as UTF-8.") from e


def _ends_statement(text: str) -> bool:
    """Whether a `;` ends the last statement, whatever comments follow it."""
    spans = _split_spans(text)
    return bool(spans) and not _is_open(text, spans[-1]) and ";" in _tokens_after(text, spans[-1].end)


def _is_blank(text: str) -> bool:
    """Whether there are only blanks, comments and `;`."""
    return not split_statements(text)


def _split_spans(text: str) -> list[StatementSpan]:
    """The statements; a `;` inside the parentheses of one of ours does not end it, as in the parser."""
    spans: list[StatementSpan] = []
    for span in split_statements(text):
        if spans and _is_open(text, spans[-1]):
            spans[-1] = StatementSpan(spans[-1].start, span.end)
        else:
            spans.append(span)
    return spans


def _is_open(text: str, span: StatementSpan) -> bool:
    if is_surely_duckdb(text, span.start) or "(" not in text[span.start : span.end]:
        return False
    try:
        ops = [t.text for t in tokenize(text, *span) if t.kind == "op"]
    except StatementError:
        return False
    return ops.count("(") > ops.count(")")


def _tokens_after(text: str, start: int) -> list[str]:
    try:
        return [t.text for t in tokenize(text, start)]
    except StatementError:
        return []
