"""DuckDB's own SQL: recognised by its first words, passed on as typed, but for a query's trailing USING k = v."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlft.errors import StatementError
from sqlft.sql.cursor import NAME_KINDS, Cursor, parse_options
from sqlft.sql.lexer import SPACE, Token, tokenize
from sqlft.sql.statements import Plain

_VERBS = (
    "select|with|from|values|insert|update|delete|merge|copy|pragma|begin|start|commit|rollback|end|abort|"
    "attach|detach|install|load|force|call|checkpoint|prepare|execute|deallocate|import|vacuum|"
    "truncate|table|summarize|pivot|unpivot|comment"
)
_KINDS = (
    "table|view|schema|index|sequence|type|macro|function|secret|temp|temporary|unique|persistent|"
    "recursive|materialized|unlogged|local|global|column|role|user"
)
_MODEL = "(?:model|predictor)"
# Queries, which may read models, and what holds a query: only these may end in USING k = v.
_QUERIES = re.compile(r"select|with|from|values|table|insert|create|copy|explain|desc(ribe)?|summarize", re.IGNORECASE)

_LEAD = rf"(?:[{SPACE}(]|--[^\n\r]*+|/\*(?:[^*/]|\*(?!/)|/(?!\*))*+\*/)*+"
_GAP = rf"(?:[{SPACE}]|--[^\n\r]*+)++"
_INDEX = rf"index{_GAP}on{_GAP}knowledge(?:_|{_GAP})base\b"
"""CREATE INDEX ON KNOWLEDGE_BASE and DROP INDEX ON KNOWLEDGE_BASE."""
_PLAIN = re.compile(
    rf"""{_LEAD}(?:
      (?:{_VERBS})\b
    | explain\b(?!{_LEAD}(?:analy[sz]e{_GAP})?(?:finetune|retrain|create{_GAP}(?:or{_GAP}replace{_GAP})?{_MODEL})\b)
    | analyze\b(?!{_LEAD}training{_GAP}data\b)
    | create{_GAP}(?:or{_GAP}replace{_GAP})?(?!{_INDEX})(?:{_KINDS})\b
    | (?:drop|alter){_GAP}(?!{_INDEX})(?:{_KINDS}|database)\b
    | show{_GAP}(?:all{_GAP})?(?:tables|databases|schemas)\b
    | desc(?:ribe)?{_GAP}(?:(?:table|select|with|from|values|insert)\b(?!{_LEAD}\.)|\()
    | set{_GAP}(?:variable|(?:session|local|global)(?!{_GAP}sqlft_)|schema|search_path|threads|memory_limit)\b
    | reset(?!{_GAP}(?:(?:session|local|global){_GAP})?sqlft_)\b
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_ONLY_END = re.compile(r"[\s;]*+\Z")
_USING = re.compile(r"\busing\b(?!\s*+\()", re.IGNORECASE)
_LONG_TEXT = 4096
_MANY_CHARACTERS = 50_000
"""Above these only the ends of a text are searched for names of models."""
TAIL_USAGE = "SELECT … USING key = value, … with USING last"


def is_surely_duckdb(text: str, at: int = 0) -> bool:
    """Whether the statement at `at` is DuckDB's own by its first words."""
    return _PLAIN.match(text, at) is not None


class NameSearch:
    """Whether texts mention one of some names, or a schema of ours; the names are compiled once."""

    def __init__(self) -> None:
        self._names: frozenset[str] | None = None
        self._pattern = _compile_names(frozenset())

    def found_in(self, text: str, names: frozenset[str]) -> bool:
        """Whether the text has one of the names as a word, in any case."""
        if names is not self._names and names != self._names:
            self._names, self._pattern = names, _compile_names(names)
        if len(text) <= _MANY_CHARACTERS:
            return self._pattern.search(text) is not None
        return any(self._pattern.search(part) for part in (text[:_MANY_CHARACTERS], text[-_MANY_CHARACTERS:]))


def _compile_names(names: frozenset[str]) -> re.Pattern[str]:
    listed = "|".join(re.escape(n).replace('"', '""') for n in sorted(names, key=len, reverse=True))
    ours = r'\b(?:sqlft|mindsdb)"?\s*\.'
    return re.compile(rf"{ours}|(?<!\w)(?:{listed})(?!\w)" if listed else ours, re.IGNORECASE)


def may_be_sqlft(text: str) -> bool:
    """False if the text is surely a single statement of DuckDB's own; looks at its first words and for `;`."""
    if _PLAIN.match(text) is None:
        return True
    first = text.find(";")
    return first >= 0 and _ONLY_END.match(text, first) is None


def has_using_tail(text: str) -> bool:
    """False if the text surely has no trailing USING k = v."""
    # Lower-casing all and looking for a word is ten times as fast as a regex that ignores case.
    if len(text) > _LONG_TEXT and "using" not in text.lower():
        return False
    return _USING.search(text) is not None


def parse_plain(text: str, start: int, end: int) -> Plain:
    """DuckDB's statement at text[start:end], split from the options that trail it; they may be wrong, it never is."""
    body = text[start:end]
    if not has_using_tail(body):
        return Plain(body, text=body, offset=start)
    try:
        tokens = tokenize(text, start, end)
    except StatementError:
        return Plain(body, text=body, offset=start)
    place = _find_tail(tokens)
    first = next((t.word for t in tokens if t.text != "("), "")
    if place is None or not _QUERIES.fullmatch(first):
        return Plain(body, text=body, offset=start)
    c = Cursor(text, tokens, place + 1, TAIL_USAGE)
    using = parse_options(c)
    _check_tail_is_last(c, first, place)
    head, tail_end = tokens[place - 1].end, c.tokens[c.index - 1].end
    rest = text[tail_end:end]
    return Plain(text[start:head] + (" " * (tail_end - head) + rest if rest else ""), using, text=body, offset=start)


def _find_tail(tokens: Sequence[Token]) -> int | None:
    """Where USING name[.name …] = stands; DuckDB has no such thing."""
    for place, token in enumerate(tokens):
        if token.word == "USING" and place > 0 and tokens[place - 1].text != ".":
            i = place + 1
            while i + 2 < len(tokens) and tokens[i].kind in NAME_KINDS and tokens[i + 1].text == ".":
                i += 2
            if i + 1 < len(tokens) and tokens[i].kind in NAME_KINDS and tokens[i + 1].text == "=":
                return place
    return None


def _check_tail_is_last(c: Cursor, first: str, place: int) -> None:
    """The options close the statement, or the parenthesis in COPY (…) TO, or the one round it all."""
    opened = sum((t.text == "(") - (t.text == ")") for t in c.tokens[:place] if t.kind == "op")
    rest = c.tokens[c.index :]
    if all(t.text == ")" for t in rest) or (first == "COPY" and opened == 1 and c.token.text == ")"):
        return
    raise c.unexpected("the end of the statement")
