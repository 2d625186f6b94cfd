"""Text to tokens with their offsets, by DuckDB's rules of quoting, and scripts to statements; comments are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from sqlft.errors import StatementError
from sqlft.sql.statements import Parameter

TokenKind = Literal["word", "quoted", "string", "number", "parameter", "op", "end"]

# The spaces of no width, among them the byte order mark at the start of some files, are spaces to DuckDB too.
SPACE = r"\s\u200b\u2060\ufeff"
# All else that is not ASCII belongs to words, as in DuckDB: letters of any script, emoji.
WORD_START = rf"[^\x00-@\[-^`{{-\x7f{SPACE}]"
WORD_REST = rf"[^\x00-#%-/:-@\[-^`{{-\x7f{SPACE}]"
ESCAPED = r"[eE]'(?:[^'\\]|\\.|'')*+'"
DOLLAR_TAG = rf"\$(?:{WORD_START}(?:(?!\$){WORD_REST})*+)?\$"
BLANK = rf"(?:[{SPACE}]|--[^\n\r]*+)*+"

_TOKEN = re.compile(
    rf"""{BLANK}(?:
      (?P<word>     (?![eE]') {WORD_START}{WORD_REST}*+ )
    | (?P<comment>  /\* )
    | (?P<string>   '(?:[^']|'')*+' )
    | (?P<quoted>   "(?:[^"]|"")*+" | `(?:[^`]|``)*+` )
    | (?P<number>   0[xX][0-9a-fA-F]+
                  | (?: [0-9][0-9_]*+ (?:\.[0-9][0-9_]*+)? | \.[0-9][0-9_]*+ ) (?:[eE][+-]?[0-9]+)? )
    | (?P<escaped>  {ESCAPED} )
    | (?P<dollar>   {DOLLAR_TAG} )
    | (?P<parameter> \?[0-9]{{0,9}} | \$[0-9]{{1,9}} | \${WORD_START}{WORD_REST}*+ )
    | (?P<open>     ['"`] | [eE](?=') )
    | (?P<op>       ::|:=|->>|->|=>|==|<=|>=|<>|!=|\|\||\*\*|// | . )
    | (?P<end>      \Z )
    )""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))|''", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}


class Token(NamedTuple):
    """A piece of text, where it starts and ends, and what it means."""

    kind: TokenKind
    text: str
    start: int
    end: int
    value: str = ""
    """The name, the string or the parameter without its quotes or sign; else the text."""

    @property
    def word(self) -> str:
        """In capitals if this is an unquoted word, else empty."""
        return self.text.upper() if self.kind == "word" else ""


def tokenize(text: str, start: int = 0, end: int | None = None) -> list[Token]:
    """The tokens of `text[start:end]`; StatementError where a quote or a comment is never closed."""
    return list(iterate_tokens(text, start, len(text) if end is None else end))


def iterate_tokens(text: str, start: int, end: int) -> Iterator[Token]:
    """The tokens one by one, for who needs only the first."""
    while match := _TOKEN.match(text, start, end):
        kind = match.lastgroup
        first, start = match.span(match.lastindex or 0)
        if kind == "word" or kind == "op" or kind == "number":
            piece = text[first:start]
            yield Token(kind, piece, first, start, piece)  # type: ignore[arg-type]  # mypy does not narrow by ==
        elif kind == "comment":
            start = find_comment_end(text, first, end)
        elif kind == "end":
            return
        else:
            start = find_dollar_end(text, first, end) if kind == "dollar" else start
            if start > 0 and kind != "open":
                yield _make_quoted_token(kind or "", text, first, start)
        if start < 0 or kind == "open":
            raise _unterminated_error(text, first)


def find_parameters(text_or_tokens: str | Iterable[Token], before: int = 0) -> list[Parameter]:
    """The prepared parameters in order of appearance; a `?` counts on from `before`."""
    tokens = tokenize(text_or_tokens) if isinstance(text_or_tokens, str) else text_or_tokens
    keys: list[Parameter] = []
    for token in tokens:
        if token.kind == "parameter":
            before += token.text == "?"
            key = int(token.value) if token.value[:1].isdecimal() else token.value
            keys.append(Parameter(before if token.text == "?" else key))
    return keys


def find_comment_end(text: str, start: int, end: int) -> int:
    """Where the comment that opens at `start` is closed, those inside it too; -1 if never."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start, end):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return -1


def find_dollar_end(text: str, start: int, end: int) -> int:
    """Where the `$tag$` string that opens at `start` is closed; -1 if never."""
    tag = text[start : text.index("$", start + 1) + 1]
    close = text.find(tag, start + len(tag), end)
    return close if close < 0 else close + len(tag)


def _make_quoted_token(kind: str, text: str, start: int, stop: int) -> Token:
    piece = text[start:stop]
    if kind == "quoted":
        return Token("quoted", piece, start, stop, piece[1:-1].replace(piece[0] * 2, piece[0]))
    if kind == "string":
        return Token("string", piece, start, stop, piece[1:-1].replace("''", "'"))
    if kind == "escaped":
        return Token("string", piece, start, stop, _unescape(piece[2:-1], text, start))
    if kind == "dollar":
        tag = piece.index("$", 1) + 1
        return Token("string", piece, start, stop, piece[tag:-tag])
    return Token("parameter", piece, start, stop, piece[1:])


def _unescape(body: str, text: str, start: int) -> str:
    try:
        return _ESCAPE.sub(_decode_escape, body.encode()).decode()
    except (ValueError, OverflowError):
        message = "This E'…' string has an escape that is no character."
        raise StatementError(message, text, start, "Write the character itself.") from None


def _decode_escape(match: re.Match[bytes]) -> bytes:
    short, long, byte, octal, letter = match.groups()
    if short or long:
        return chr(int(short or long, 16)).encode()
    if byte or octal:
        return bytes([int(byte, 16) if byte else int(octal, 8)])
    return _LETTERS.get(letter, letter) if letter else b"'"


def explain_backslash(text: str, at: int) -> tuple[str, str, int, str]:
    """What to say of a `\\'` that was meant as a quote within a string, for `wrong`."""
    return "The string ends here: a backslash does not keep its quote.", text, at + 1, "Write the quote twice: 'It''s'."


def _unterminated_error(text: str, start: int) -> StatementError:
    mark = text[start]
    if mark == "/":
        return StatementError("This comment is never closed.", text, start, "Close it with */.")
    if mark == "'" and (at := text.rfind("\\'", 0, start)) >= 0:
        return StatementError(*explain_backslash(text, at))
    what = "quoted name" if mark in '"`' else "string"
    return StatementError(f"This {what} is never closed.", text, start, "Close it; a quote inside it is written twice.")


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


class StatementSpan(NamedTuple):
    """A statement's first character and the one behind its last, comments around it left out."""

    start: int
    end: int


def split_statements(text: str) -> list[StatementSpan]:
    """The statements between top-level `;`, empty ones left out; one that never closes a quote takes the rest."""
    spans: list[StatementSpan] = []
    at, first, last = 0, -1, -1
    while at < len(text):
        if gap := _GAP.match(text, at):
            at = gap.end()
        elif text.startswith("/*", at) and (close := find_comment_end(text, at, len(text))) > 0:
            at = close
        elif text[at] == ";":
            if first >= 0:
                spans.append(StatementSpan(first, last))
            first, at = -1, at + 1
        else:
            first = at if first < 0 else first
            at = last = _find_code_end(text, at)
    if first >= 0:
        spans.append(StatementSpan(first, last))
    return spans


def _find_code_end(text: str, at: int) -> int:
    run = _RUN.match(text, at)
    if run:
        return at + len(run[0].rstrip())
    if _DOLLAR.match(text, at):
        close = find_dollar_end(text, at, len(text))
        return close if close > 0 else len(text)
    if text[at] in "'\"eE/":
        return len(text)
    return at + 1
