"""A place among a statement's tokens, and the values of options read there.

It remembers what would have been welcome, for the error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sqlft.errors import StatementError, did_you_mean
from sqlft.redact import redact_statement
from sqlft.sql.lexer import Token, explain_backslash, find_parameters
from sqlft.sql.statements import Env, ModelName, Parameter, RowSource

# Words that begin a clause of ours: as a name they need quotes, so that a forgotten name is seen.
CLAUSE_WORDS = frozenset({"FROM", "USING", "PREDICT", "SELECT", "WHERE", "TO", "ON", "AS", "LIKE"})
QUERY_WORDS = frozenset(
    {"SELECT", "WITH", "FROM", "VALUES", "TABLE", "DESCRIBE", "SHOW", "SUMMARIZE", "PIVOT", "UNPIVOT"}
)
NAME_KINDS = ("word", "quoted", "string")


class NamePart(NamedTuple):
    """One part of a dotted name: a word, or a version's number."""

    value: str | int
    token: Token


class Cursor:
    """Tokens `index` … of one statement of `text`; `usage` is its syntax as errors show it."""

    def __init__(self, text: str, tokens: list[Token], index: int = 0, usage: str = "") -> None:
        self.text = text
        self.tokens = tokens
        self.index = index
        self.usage = usage
        end = tokens[-1].end if tokens else len(text)
        self._end = Token("end", "", end, end)
        self._expected: list[str] = []

    @property
    def token(self) -> Token:
        """The one at this place; kind `end` behind the last."""
        return self.peek(0)

    def peek(self, ahead: int) -> Token:
        """The token so many further on."""
        place = self.index + ahead
        return self.tokens[place] if place < len(self.tokens) else self._end

    def next(self, count: int = 1) -> Token:
        """Steps over so many tokens; the last of them."""
        self.index += count
        self._expected.clear()
        return self.peek(-1)

    def at(self, *words: str) -> bool:
        """Whether these words come next, unquoted."""
        return all(self.peek(i).word == word for i, word in enumerate(words))

    def skip(self, *words: str) -> bool:
        """Steps over these words if they come next."""
        if not self.at(*words):
            self._expected.append(" ".join(words))
            return False
        self.next(len(words))
        return True

    def skip_op(self, sign: str) -> bool:
        """Steps over an operator or a bracket if it comes next."""
        if self.token.kind != "op" or self.token.text != sign:
            self._expected.append(f"'{sign}'")
            return False
        self.next()
        return True

    def expect(self, *words: str) -> None:
        """Steps over these words, or fails."""
        if not self.skip(*words):
            raise self.unexpected()

    def expect_op(self, sign: str) -> None:
        """Steps over the operator, or fails."""
        if not self.skip_op(sign):
            raise self.unexpected()

    def expect_end(self) -> None:
        """Fails if there is more."""
        if self.token.kind != "end":
            self._expected.append("the end of the statement")
            raise self.unexpected()

    def unexpected(self, *welcome: str) -> StatementError:
        """The error for this token: what it is, and all that would have been welcome."""
        before = self.peek(-1)
        if self.index and before.kind == "string" and before.text.endswith("\\'") and before.end == self.token.start:
            return StatementError(*explain_backslash(self.text, before.end - 2))
        expected = list(dict.fromkeys([*welcome, *self._expected]))
        words = [w.split()[0] for w in expected if w[:1].isupper() and self.token.word]
        listed = " or ".join([", ".join(expected[:-1]), expected[-1]] if expected[1:] else expected)
        message = f"Found {self._shown()}, expected {listed}." if listed else f"{self._shown()} cannot stand here."
        return self.error(message + did_you_mean(self.token.text, words))

    def error(self, message: str, next_step: str = "", token: Token | None = None) -> StatementError:
        """An error that points at `token`, else at this one; the next step is the syntax unless given."""
        return StatementError(message, self.text, (token or self.token).start, next_step or f"Write: {self.usage}")

    def _shown(self, width: int = 40) -> str:
        if self.token.kind == "end":
            return "the end of the statement"
        text = redact_statement(self.text)[self.token.start : self.token.end]
        return f"'{text}'" if len(text) <= width else f"'{text[: width - 1]}…'"

    def skip_keyword_before_name(self, *words: str) -> bool:
        """Steps over an optional MODEL; not if that is itself the name: RETRAIN model USING …"""
        following = self.peek(1)
        named = following.kind in NAME_KINDS and following.word not in CLAUSE_WORDS
        return self.token.word in words and named and self.skip(self.token.word)

    def identifier(self, what: str) -> str:
        """A word, "x", `x` or 'x'."""
        token = self.token
        if token.kind == "number" and self.peek(1).word and self.peek(1).start == token.end:
            raise self.error("A name that starts with a digit needs quotes.", f'Write: "{token.text}…"')
        if token.kind not in NAME_KINDS or token.word in CLAUSE_WORDS:
            raise self.unexpected(what)
        if not token.value or "\0" in token.value:
            raise self.error("This name is empty." if not token.value else "This name has a NUL in it.", token=token)
        self.next()
        return token.value

    def dotted_name(self, what: str) -> list[NamePart]:
        """name, or name.name.1 and so on; numbers may lex as `.1`."""
        first = self.token
        parts = [NamePart(self.identifier(what), first)]
        while True:
            token = self.token
            if token.kind == "number" and token.text[0] == ".":
                parts.append(NamePart(self._version(token.text[1:]), token))
            elif token.kind == "op" and token.text == ".":
                self.next()
                token = self.token
                if token.kind == "number":
                    parts.append(NamePart(self._version(token.text), token))
                elif token.kind in NAME_KINDS and token.value:
                    parts.append(NamePart(token.value, token))
                else:
                    raise self.unexpected("a name", "a version's number")
            else:
                break
            self.next()
        if self.token.text == "-" and self.token.start == self.peek(-1).end:
            raise self.error(
                "A name with a '-' needs quotes.",
                f'Write: "{parts[-1].value}-…", or {parts[-1].value}_… if it is called so.',
            )
        return parts

    def name(self, what: str = "a model's name", version: bool = True) -> ModelName:
        """[project.]name[.N]; without `version` a number is refused."""
        parts = self.dotted_name(what)
        numbers = [p for p in parts if isinstance(p.value, int)]
        words = [str(p.value) for p in parts if isinstance(p.value, str)]
        if numbers and not version:
            raise self.error("A version's number does not belong here.", token=numbers[0].token)
        if numbers[1:] or len(words) > 2 or (numbers and numbers[0] is not parts[-1]):
            raise self.error("A model is named [project.]name[.N], N being a version's number.", token=parts[-1].token)
        number = numbers[0].value if numbers else None
        return ModelName(words[-1], number if isinstance(number, int) else None, words[0] if words[1:] else None)

    def source(self) -> RowSource:
        """What follows FROM: [database] (query), or a table, a file in quotes, a table function."""
        if self.token.kind == "op" and self.token.text == "(":
            return self.query(None)
        if self.token.word in QUERY_WORDS:
            raise self.error("The query must stand in parentheses.", "Write: FROM database (SELECT …)")
        first = self.token
        parts = self.dotted_name("a database's name")
        if self.token.word in QUERY_WORDS:
            database = self.text[first.start : self.peek(-1).end]
            raise self.error("The query must stand in parentheses.", f"Write: FROM {database} (SELECT …)")
        if self.token.text == "(" and not self._is_call():
            if parts[1:]:
                raise self.unexpected("the end of a table's name")
            return self.query(str(parts[0].value))
        return self._table(first)

    def _is_call(self) -> bool:
        """Whether the parenthesis here holds arguments, read_csv('rows.csv'), and no query."""
        inner, is_close = self.peek(1), self.token.start == self.peek(-1).end
        if inner.word in QUERY_WORDS or inner.kind == "end" or inner.text in ("(", ")"):
            return False
        return is_close or inner.kind in ("string", "number", "parameter")

    def _table(self, first: Token) -> RowSource:
        """A whole table, or what a table function gives, as the query that reads it."""
        if self.token.text == "(":
            self.query(None)
        last = self.peek(-1)
        inner = [t for t in self.tokens[: self.index] if t.start >= first.start]
        before = sum(t.text == "?" for t in self.tokens[: self.index - len(inner)] if t.kind == "parameter")
        query = f"SELECT * FROM {self.text[first.start : last.end]}"
        return RowSource(query, None, first.start, tuple(find_parameters(inner, before)))

    def query(self, database: str | None) -> RowSource:
        """A query in parentheses, as typed but for comments and `;` at its edges."""
        opening = self.token
        self.expect_op("(")
        first, depth = self.index, 1
        while depth:
            token = self.next()
            if token.kind == "end":
                raise self.error("This parenthesis is never closed.", "Close it behind the query.", opening)
            depth += (token.text == "(") - (token.text == ")") if token.kind == "op" else 0
        inner = self.tokens[first : self.index - 1]
        while inner and inner[-1].text == ";":
            inner.pop()
        if not inner:
            raise self.error("There is no query between these parentheses.", "Write: FROM database (SELECT …)", opening)
        before = sum(t.text == "?" for t in self.tokens[:first] if t.kind == "parameter")
        query = self.text[inner[0].start : inner[-1].end]
        return RowSource(query, database, inner[0].start, tuple(find_parameters(inner, before)))

    def parameter(self) -> Parameter:
        """The prepared parameter at this place, its position counted over the whole statement."""
        parameters = find_parameters([t for t in self.tokens[: self.index + 1] if t.kind == "parameter"])
        self.next()
        return parameters[-1]

    def _version(self, digits: str) -> int:
        if not digits.isdecimal() or len(digits) > 18:
            raise self.error("A version's number is a whole number such as 2.")
        return int(digits)


CONSTANTS: dict[str, bool | None] = {"NULL": None, "TRUE": True, "FALSE": False}
SIGNS_IN_WORDS = frozenset({"-", ".", "/", ":", "::", "@", "+"})
MAX_DEPTH = 64


def parse_options(c: Cursor) -> dict[str, object]:
    """k = v, x.y = v, …; keys that are not quoted are lower-cased, dotted ones give nested mappings."""
    options: dict[str, object] = {}
    while True:
        first = c.token
        path = [
            str(p.value).lower() if p.token.kind == "word" else str(p.value) for p in c.dotted_name("an option's name")
        ]
        c.expect_op("=")
        _set_option(c, options, path, parse_value(c), first)
        if not c.skip_op(","):
            return options


def parse_value(c: Cursor, depth: int = 0) -> object:
    """Any value: None, bool, int, float, str, list, dict, Parameter, Env, Source."""
    token = c.token
    if depth > MAX_DEPTH:
        raise c.error("This value is nested too deeply.", f"Nest it at most {MAX_DEPTH} deep.")
    if token.kind in ("string", "quoted"):
        return c.next().value
    if token.kind == "number" or (token.text in ("-", "+") and c.peek(1).kind == "number"):
        return _parse_number(c)
    if token.kind == "word":
        return _parse_word(c, depth)
    if token.kind == "parameter":
        return c.parameter()
    if token.text == "{":
        return parse_mapping(c, depth)
    if token.text == "[":
        return _parse_list(c, "]", depth)
    if token.text == "(":
        return c.query(None) if c.peek(1).word in QUERY_WORDS else _parse_list(c, ")", depth)
    if token.text == "@":
        raise c.error("Variables are not read here.", "Pass the value as a prepared parameter: ? or $name.")
    raise c.unexpected("a value")


def parse_mapping(c: Cursor, depth: int = 0) -> dict[str, object]:
    """{"k": v, …} with keys in any quotes or none."""
    c.expect_op("{")
    mapping: dict[str, object] = {}
    while not c.skip_op("}"):
        if mapping:
            c.expect_op(",")
            if c.skip_op("}"):  # a comma behind the last one, as MindsDB's scripts have it
                break
        key = c.token
        if key.kind not in NAME_KINDS:
            raise c.unexpected("a key")
        c.next()
        c.expect_op(":")
        _set_option(c, mapping, [key.value], parse_value(c, depth + 1), key)
    return mapping


def _parse_list(c: Cursor, close: str, depth: int) -> list[object]:
    c.next()
    values: list[object] = []
    while not c.skip_op(close):
        if values:
            c.expect_op(",")
        values.append(parse_value(c, depth + 1))
    return values


def _parse_number(c: Cursor) -> int | float:
    sign = c.next().text if c.token.kind == "op" else ""
    token = c.token
    digits = token.text.replace("_", "")
    if len(digits) > 4000:
        raise c.error("This number is too long.", "Write it in fewer digits.")
    number = int(digits, 0) if digits[:2] in ("0x", "0X") else int(digits) if digits.isdecimal() else float(digits)
    if not math.isfinite(number):
        raise c.error("This number is too large.", "Write one below 1e308.")
    c.next()
    return -number if sign == "-" else number


def _parse_word(c: Cursor, depth: int) -> object:
    """TRUE, NULL …; env('X'); db (SELECT …); Name(k = v, …); or words such as gpt-6-luna, text without quotes."""
    following = c.peek(1)
    if following.kind == "op" and following.text == "(":
        return _parse_call(c, depth)
    first = last = c.next()
    while c.token.start == last.end and (c.token.kind in ("word", "number") or c.token.text in SIGNS_IN_WORDS):
        last = c.next()
    text = c.text[first.start : last.end]
    return CONSTANTS.get(text.upper(), text)


def _parse_call(c: Cursor, depth: int) -> object:
    name = c.next()
    inner = c.peek(1)
    if name.word == "ENV":
        return _parse_env(c)
    if inner.word in QUERY_WORDS:
        return c.query(name.value)
    if inner.kind not in ("word", "quoted"):
        raise c.error(f"There is no function {name.value}() in options.", "Write a plain value, or env('NAME').", name)
    c.next()
    options: dict[str, object] = {"type": name.value}
    while not c.skip_op(")"):
        if len(options) > 1:
            c.expect_op(",")
        key = c.token
        path = [c.identifier("a key")]
        c.expect_op("=")
        _set_option(c, options, path, parse_value(c, depth + 1), key)
    return options


def _parse_env(c: Cursor) -> Env:
    c.expect_op("(")
    name = c.token
    if name.kind not in NAME_KINDS or not name.value:
        raise c.unexpected("the name of an environment variable")
    c.next()
    c.expect_op(")")
    return Env(name.value)


def _set_option(c: Cursor, into: dict[str, object], path: list[str], value: object, at: Token) -> None:
    *outer, last = path
    for key in outer:
        inner = into.setdefault(key, {})
        if not isinstance(inner, dict):
            raise c.error(f"'{key}' has a value already, so it cannot have parts.", "Give it once.", at)
        into = inner
    if last in into:
        raise c.error(f"'{'.'.join(path)}' is given twice.", "Give it once.", at)
    into[last] = value
