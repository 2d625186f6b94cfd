"""Which keywords may come next in a statement, by its syntax as the statements' docstrings and QUERIES write it.

`complete` calls `find_next_keywords` with the tokens before the cursor.  Capitals are keywords, small letters and signs
stand for anything, `[…]` may be left out, `[…]*` may be repeated, `a|b` is one of them.  A syntax becomes a state
machine; what leads out of the states that the tokens reach are the keywords.  Nothing is refused here: text that fits
no syntax has no keywords to go on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from sqlft.sql import statements
from sqlft.sql.lexer import Token

_KINDS = ("", "LEFT ", "CROSS ", "INNER ", "RIGHT ", "FULL ", "SEMI ", "ANTI ", "ASOF ")
JOINS = f"[{'|'.join(f'{kind}JOIN relation [ON condition|USING (columns)]' for kind in _KINDS)}]*"
CLAUSES = (
    f"{JOINS} [WHERE condition [AND condition|OR condition]*] [GROUP BY columns|GROUP BY ALL] [HAVING condition]"
    " [QUALIFY condition] [ORDER BY columns [ASC|DESC]|ORDER BY ALL] [LIMIT count] [OFFSET count]"
)
_SETS = ("UNION ALL", "UNION ALL BY NAME", "UNION", "INTERSECT", "EXCEPT")
END = f"[USING options] [{'|'.join(f'{word} SELECT columns' for word in _SETS)}]"
QUERIES = (
    f"SELECT [DISTINCT] columns [FROM relation {CLAUSES}] {END}",
    f"FROM relation {CLAUSES} [SELECT [DISTINCT] columns] {END}",
    "WITH [RECURSIVE] name AS (query) SELECT|FROM",
    "EXPLAIN [ANALYZE] SELECT|FROM|FINETUNE|RETRAIN|CREATE",
    "CREATE [OR REPLACE] [TEMP] TABLE|VIEW|MACRO [IF NOT EXISTS] name AS SELECT|FROM|WITH",
    "CREATE SCHEMA|TYPE|SEQUENCE|SECRET|INDEX [IF NOT EXISTS] name",
    "DROP TABLE|VIEW|SCHEMA|MACRO|SEQUENCE|INDEX|TYPE|SECRET [IF EXISTS] name [CASCADE]",
    "ALTER TABLE|VIEW [IF EXISTS] name [ADD COLUMN c|DROP COLUMN c|RENAME TO c|RENAME COLUMN c TO d|ALTER COLUMN c]",
    "INSERT [OR REPLACE|IGNORE] INTO table [BY NAME] SELECT|FROM|VALUES",
    "UPDATE table SET assignments [FROM relation] [WHERE condition] [RETURNING columns]",
    "DELETE FROM table [USING relation] [WHERE condition] [RETURNING columns]",
    "COPY table TO|FROM 'file' [(options)]",
    "ATTACH [IF NOT EXISTS] 'file' [AS name]",
    "DETACH [DATABASE] [IF EXISTS] name",
    "EXPORT DATABASE 'folder'",
    "IMPORT DATABASE 'folder'",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "SET ACTIVE version",
    "SUMMARIZE table",
    "PIVOT table ON columns [USING aggregates] [GROUP BY columns]",
    "UNPIVOT table ON columns INTO NAME name VALUE name",
)
"""DuckDB's own statements, as far as people type them by hand; one that is within another is read by itself."""
SYNONYMS = {"PREDICTOR", "PREDICTORS", "MODEL_ACTIVE", "IN"}
"""Understood, and not proposed."""
STARTS = (
    *("SELECT", "FROM", "WITH", "CREATE", "INSERT", "UPDATE", "DELETE", "COPY", "SHOW", "DESCRIBE", "SUMMARIZE"),
    *("FINETUNE", "EVALUATE", "ANALYZE TRAINING DATA", "EXPLAIN", "RETRAIN", "DROP", "ALTER", "SET", "USE", "ATTACH"),
    *("CANCEL MODEL", "RESUME MODEL", "UNLOAD", "REPORT MODEL", "EXPORT MODEL", "PIVOT", "BEGIN", "COMMIT"),
)
"""What a statement may begin with, likeliest first."""
_ITEM = re.compile(r"\[|\]\*?|\||[A-Z][A-Z_]+(?![\w.])|[^\s\[\]|]+")
_OPERAND_ONLY = re.compile(r"\[[^A-Z\[\]]*(?:\.N)?\]")
_NEXT_FORM = re.compile(r", (?=[A-Z_]{3,} (?:[A-Z]{2,}|metric))")
ANYTHING = None


class _Machine:
    """States as numbers; edges by keyword, or by ANYTHING, and those that need no token."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[str | None, int]]] = []
        self.free: list[list[int]] = []
        self.optional: set[int] = set()
        """Where what may be left out begins."""

    def state(self) -> int:
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def closure(self, states: Iterable[int]) -> list[int]:
        """The states that are reached without a token, in the order of the syntax."""
        reached: list[int] = []
        stack = [*states][::-1]
        while stack:
            state = stack.pop()
            if state not in reached:
                reached.append(state)
                stack += self.free[state][::-1]
        return reached

    def step(self, states: Sequence[int], word: str) -> list[int]:
        """Behind a token; a keyword that is expected is never taken for a name."""
        edges = [edge for state in states for edge in self.edges[state]]
        by_word = [to for label, to in edges if label == word]
        return self.closure(by_word or [to for label, to in edges if label is ANYTHING])

    def keywords(self, states: Sequence[int]) -> Iterator[str]:
        """Those that lead out of the states, each with those that must follow it; what may be left out comes last."""
        for state in sorted(states, key=lambda one: one in self.optional):
            for label, to in self.edges[state]:
                if label is not ANYTHING:
                    yield from self._spelt_out(label, to)

    def _spelt_out(self, words: str, state: int) -> Iterator[str]:
        reached = self.closure([state])
        out = [edge for source in reached for edge in self.edges[source]]
        if len(reached) == 1 and len(out) == 1 and out[0][0] is not ANYTHING:
            yield from self._spelt_out(f"{words} {out[0][0]}", out[0][1])
        else:
            yield words


class _Reader:
    """Makes a machine of a syntax."""

    def __init__(self, syntax: str, machine: _Machine) -> None:
        self._items = _ITEM.findall(_OPERAND_ONLY.sub("", syntax))
        self._at = 0
        self._made = machine
        self._is_behind_operand = False

    def read(self, start: int) -> int:
        """The state behind all items."""
        while self._at < len(self._items):
            start = self._alternatives(start)
        return start

    def _alternatives(self, start: int) -> int:
        """a|b|c: single words."""
        before = self._is_behind_operand
        end = self._one(start)
        while self._at < len(self._items) and self._items[self._at] == "|":
            self._at += 1
            self._is_behind_operand = before
            self._made.free[self._one(start)].append(end)
        return end

    def _one(self, start: int) -> int:
        item = self._items[self._at]
        self._at += 1
        if item == "[":
            return self._optional(start)
        end = self._made.state()
        if _is_keyword(item):
            self._made.edges[start].append((item, end))
            self._is_behind_operand = False
            return end
        self._made.edges[start].append((ANYTHING, end))
        self._made.edges[end].append((ANYTHING, end))
        if self._is_behind_operand:  # a name and a query are one operand
            self._made.free[start].append(end)
        self._is_behind_operand = True
        return end

    def _optional(self, start: int) -> int:
        before = self._is_behind_operand
        end = self._made.state()
        while True:
            first = self._made.state()
            self._made.optional.add(first)
            self._made.free[start].append(first)
            self._is_behind_operand = before
            last = self._sequence(first)
            self._made.free[last].append(end)
            closing = self._items[self._at] if self._at < len(self._items) else "]"
            self._at += 1
            if closing != "|":
                break
        self._made.free[start].append(end)
        if closing == "]*":
            self._made.free[end].append(start)
        self._is_behind_operand = before
        return end

    def _sequence(self, start: int) -> int:
        """Within a bracket an alternative may be several words, [ON condition|USING (columns)], but [FROM|IN name]."""
        while self._at < len(self._items) and not self._items[self._at].startswith(("]", "|")):
            items = self._items[self._at : self._at + 3]
            between_keywords = len(items) == 3 and items[1] == "|" and all(map(_is_keyword, items[::2]))
            start = self._alternatives(start) if between_keywords else self._one(start)
        return start


def _is_keyword(item: str) -> bool:
    return re.fullmatch(r"[A-Z][A-Z_]+", item) is not None


@cache
def _build_machine() -> tuple[_Machine, int]:
    """All syntaxes in one machine, and where it begins."""
    machine = _Machine()
    start = machine.state()
    for syntax in dict.fromkeys((*_own_syntaxes(), *QUERIES)):
        first = machine.state()
        machine.free[start].append(first)
        _Reader(syntax, machine).read(first)
    return machine, start


def _own_syntaxes() -> Iterator[str]:
    kinds = [k for k in vars(statements).values() if isinstance(k, type) and issubclass(k, statements.Statement)]
    usages = [(kind.__doc__ or "").partition(";")[0] for kind in kinds]
    for usage in sorted(usages, key=lambda text: "MODEL" not in text):
        if re.match(r"[A-Z]{3}", usage) and "sqlft_" not in usage:
            yield from (form for form in _NEXT_FORM.split(usage) if not form.startswith("EXPLAIN"))


class NextKeywords(NamedTuple):
    """The keywords that may come next, in the order of the syntax, and whether a name or a value may."""

    keywords: list[str]
    takes_name: bool = True


def find_next_keywords(tokens: Sequence[Token]) -> NextKeywords:
    """What may come behind the tokens.

    >>> from sqlft.sql.lexer import tokenize
    >>> find_next_keywords(tokenize("FINETUNE my_model")).keywords, find_next_keywords(tokenize("CREATE OR"))
    (['FROM'], NextKeywords(keywords=['REPLACE'], takes_name=False))
    >>> find_next_keywords(tokenize("SHOW MODELS FROM shop")).keywords
    ['LIKE', 'WHERE']
    """
    machine, start = _build_machine()
    if _opens_query(tokens):
        return NextKeywords(["SELECT", "FROM", "WITH"], takes_name=False)
    words, is_inside = _find_innermost(tokens)
    if words is None or (words and words[-1] in UNFINISHED):
        return NextKeywords([])
    states = machine.closure([start])
    for word in words:
        states = machine.step(states, word)
    keywords = [k for k in dict.fromkeys(machine.keywords(states)) if k not in SYNONYMS]
    is_query = words[:1] in (["SELECT"], ["FROM"], ["WITH"])
    if is_inside and is_query and "JOIN" not in words:
        keywords = [k for k in keywords if k != "USING"]  # options stand behind the whole query
    takes_name = any(label is ANYTHING for state in states for label, _ in machine.edges[state])
    return NextKeywords(keywords, takes_name or not states)


UNFINISHED = (",", ".", "=", "<>", "!=", "<", ">", "<=", ">=", "+", "-", "/", "%", "||", "::", "->", "->>")
"""Behind these comes a name or a value."""


def _opens_query(tokens: Sequence[Token]) -> bool:
    """Whether a parenthesis has just been opened in which a query is likeliest."""
    if len(tokens) < 2 or tokens[-1].text != "(":
        return False
    before, first = tokens[-2].word, tokens[0].word
    if before in ("FROM", "JOIN", "IN", "EXISTS", "ANY", "ALL", "COPY"):
        return True
    in_ours = first in ("EVALUATE", "FINETUNE", "RETRAIN", "ANALYZE", "CREATE")
    return (
        (before == "ON" and first == "EVALUATE")
        or (before == "AS" and first in ("WITH", "CREATE"))
        or (
            in_ours and any(t.word == "FROM" for t in tokens[-3:-1])  # FROM db (SELECT …
        )
    )


def _find_innermost(tokens: Sequence[Token]) -> tuple[list[str] | None, bool]:
    """The words of the query that the cursor is in, what stands in its parentheses as one; whether it is within others.

    None in parentheses that hold no query: of a function, of columns.
    """
    levels: list[list[str]] = [[]]
    for token in tokens:
        words = levels[-1]
        if token.text in ("(", "["):
            levels.append([])
        elif token.text in (")", "]") and len(levels) > 1:
            levels.pop()
            levels[-1].append("()")
        elif _begins_query(words, token.word):
            levels[-1] = [token.word]
        elif words[:1] == ["WITH"] and words[-1] == ",":
            levels[-1] = ["WITH", token.word]  # the next query's name
        else:
            words.append(token.word or (token.text if token.kind == "op" else ""))
    is_inside = len(levels) > 1
    if is_inside and levels[-1][:1] not in (["SELECT"], ["FROM"], ["WITH"]):
        return None, is_inside
    return levels[-1], is_inside


def _begins_query(before: Sequence[str], word: str) -> bool:
    """Whether a query or a statement within another begins here: in CREATE … AS, INSERT, EXPLAIN, WITH, UNION."""
    if not before:
        return word in ("SELECT", "FROM", "WITH")
    if before[0] == "EXPLAIN":
        return word not in ("", "ANALYZE")
    if word not in ("SELECT", "FROM", "WITH"):
        return False
    if before[-1] in ("UNION", "ALL", "NAME", "INTERSECT", "EXCEPT"):
        return True
    return before[0] in ("INSERT", "WITH") or (before[0] == "CREATE" and before[-1] == "AS")
