"""Where the clauses of one SELECT block are in its text: spans only, nothing is regenerated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlft.errors import NotSupported
from sqlft.sql.lexer import Token

SET_OPERATORS = frozenset({"UNION", "EXCEPT", "INTERSECT"})
CLAUSES = frozenset(
    {
        "SELECT",
        "FROM",
        "WHERE",
        "GROUP",
        "HAVING",
        "QUALIFY",
        "WINDOW",
        "ORDER",
        "LIMIT",
        "OFFSET",
        "FETCH",
        "RETURNING",
    }
)
JOIN_WORDS = frozenset(
    {"JOIN", "INNER", "LEFT", "RIGHT", "FULL", "OUTER", "CROSS", "NATURAL", "SEMI", "ANTI", "ASOF", "POSITIONAL"}
)


class Span(NamedTuple):
    """A piece of the text, end excluded."""

    start: int
    end: int

    def has(self, position: int) -> bool:
        """Whether the position is inside."""
        return self.start <= position < self.end


NOWHERE = Span(0, 0)


@dataclass
class FromItem:
    """One relation of a FROM clause with the join that brings it in."""

    span: Span
    """The relation with its alias."""
    join: Span
    """The words or comma before it; empty for the first."""
    join_kind: str
    """'' for the first, ',' or JOIN, LEFT JOIN …"""
    on: list[Span] = field(default_factory=list)
    """The conjuncts of ON."""
    condition: Span | None = None
    """ON … or USING (…) whole."""
    using: list[str] = field(default_factory=list)


@dataclass
class Block:
    """One SELECT; spans are None where the clause is missing."""

    span: Span
    select: Span | None = None
    """The projections, DISTINCT included; None for FROM-first without SELECT."""
    from_: Span = NOWHERE
    """What follows the word FROM."""
    items: list[FromItem] = field(default_factory=list)
    where: Span | None = None
    """The whole clause with its word; `conjuncts` are its parts."""
    conjuncts: list[Span] = field(default_factory=list)
    order: Span | None = None
    order_by: Span | None = None
    """What follows ORDER BY."""
    limit: Span | None = None
    """LIMIT and OFFSET with their words."""
    others: frozenset[str] = frozenset()
    """GROUP, HAVING, QUALIFY, WINDOW, SAMPLE: what else there is."""
    in_set_operation: bool = False
    distinct: bool = False


class Anatomy:
    """The tokens of a text with their depth."""

    def __init__(self, text: str, tokens: Iterable[Token]) -> None:
        self.text = text
        self.tokens = list(tokens)
        self.words = [t.text.upper() if t.kind == "word" else t.text if t.kind == "op" else "" for t in self.tokens]
        self.depth: list[int] = []
        depth = 0
        for word in self.words:
            if word in (")", "]", "}"):
                depth -= 1
            self.depth.append(depth)
            if word in ("(", "[", "{"):
                depth += 1
        self._at = {t.start: i for i, t in enumerate(self.tokens)}

    def index(self, position: int) -> int:
        """The token that starts at a position."""
        return self._at[position]

    def block_around(self, position: int) -> Block:
        """The SELECT in whose FROM clause the relation at `position` stands."""
        i = self.index(position)
        return self._block_at(self._back_to_from(i, self.depth[i]))

    def enclosing_block(self, block: Block) -> Block | None:
        """The SELECT around a subquery, or None at the outermost and inside a CTE."""
        first = self.index(block.span.start)
        depth = self.depth[first]
        opening = next((j for j in range(first - 1, -1, -1) if self.depth[j] < depth), None)
        if opening is None or self.words[opening] != "(":
            return None
        if self.words[opening - 1] in ("AS", "MATERIALIZED"):
            return None
        around = self._block_at(opening)
        return around if around.from_.end and around.span.has(self.tokens[opening].start) else None

    def block_holding(self, position: int) -> Block | None:
        """The SELECT in whose FROM clause the token at a position stands, if it does."""
        i = self.index(position)
        block = self._block_at(i)
        return block if block.from_.has(position) else None

    def scopes(self, position: int, within: Block) -> Iterator[Block]:
        """The SELECTs with a FROM that hold a position and lie inside `within`, innermost first."""
        i: int | None = self.index(position)
        while i is not None and within.span.has(self.tokens[i].start):
            block, depth = self._block_at(i), self.depth[i]
            if block.span == within.span:
                return
            if block.from_ != NOWHERE:
                yield block
            i = next((j for j in range(i - 1, -1, -1) if self.depth[j] < depth), None)

    def visible_ctes(self, position: int) -> str:
        """`WITH …` of all the CTEs that a query put at `position` would see, or ''."""
        lists, recursive = [], False
        for j, word in enumerate(self.words):
            if word != "WITH" or self.tokens[j].start > position:
                continue
            ctes, is_recursive, depth = self._ctes(j)
            end = self._scope_end(j, depth)
            if not ctes or position >= end:
                continue
            inside = next((k for k, cte in enumerate(ctes) if cte.has(position)), len(ctes))
            lists += [self.text[c.start : c.end] for c in ctes[:inside]]
            recursive = recursive or is_recursive
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(lists)} " if lists else ""

    def _ctes(self, j: int) -> tuple[list[Span], bool, int]:
        depth = self.depth[j]
        recursive = j + 1 < len(self.words) and self.words[j + 1] == "RECURSIVE"
        k = j + (2 if recursive else 1)
        spans: list[Span] = []
        while k < len(self.tokens) and self.tokens[k].kind in ("word", "quoted"):
            begin = k
            while k < len(self.tokens) and not (self.depth[k] == depth and self.words[k] == "AS"):
                if self.depth[k] < depth or self.words[k] in CLAUSES:
                    return spans, recursive, depth
                k += 1
            while k < len(self.tokens) and self.words[k] != "(":
                k += 1
            close = next((m for m in range(k + 1, len(self.tokens)) if self.depth[m] == depth), None)
            if close is None:
                return spans, recursive, depth
            spans.append(Span(self.tokens[begin].start, self.tokens[close].end))
            k = close + 1
            if k >= len(self.tokens) or self.words[k] != ",":
                break
            k += 1
        return spans, recursive, depth

    def _scope_end(self, j: int, depth: int) -> int:
        closing = next((k for k in range(j, len(self.tokens)) if self.depth[k] < depth), None)
        return len(self.text) if closing is None else self.tokens[closing].start

    def _back_to_from(self, i: int, depth: int) -> int:
        for j in range(i - 1, -1, -1):
            if self.depth[j] < depth:
                break
            if self.depth[j] == depth and self.words[j] == "FROM" and not self._is_distinct_from(j):
                return j
        token = self.tokens[i]
        raise NotSupported(
            f"The model at '{token.text}' stands where sqlft cannot follow: in parentheses, or outside of a FROM.",
            "Write it as FROM table JOIN model ON …, without parentheses around the join.",
        )

    def _is_distinct_from(self, j: int) -> bool:
        return j >= 2 and self.words[j - 1] == "DISTINCT" and self.words[j - 2] in ("IS", "NOT")

    def _block_at(self, i: int) -> Block:
        """The SELECT that token i belongs to, at its own depth."""
        depth = self.depth[i]
        boundary = i
        while boundary >= 0:
            if self.depth[boundary] < depth or (
                self.depth[boundary] == depth
                and (
                    self.words[boundary] == ";"
                    or (self.words[boundary] in SET_OPERATORS and not self._is_star_except(boundary))
                )
            ):
                break
            boundary -= 1
        first = boundary + 1
        if self.words[first] != "UPDATE":
            while first < i and not (self.depth[first] == depth and self.words[first] in ("SELECT", "FROM")):
                first += 1
        in_set = boundary >= 0 and self.words[boundary] in SET_OPERATORS
        return self._block(first, depth, in_set)

    def _block(self, first: int, depth: int, in_set: bool) -> Block:
        marks: list[tuple[str, int]] = []
        end = len(self.tokens)
        for j in range(first, len(self.tokens)):
            word = self.words[j]
            if self.depth[j] < depth or (self.depth[j] == depth and word == ";"):
                end = j
                break
            if self.depth[j] != depth:
                continue
            if word in SET_OPERATORS and not self._is_star_except(j):
                in_set, end = True, j
                break
            if word in CLAUSES and not self._is_inside_expression(j):
                marks.append((word, j))
            elif self.words[first] == "UPDATE" and (j == first or word == "SET"):
                marks.append(("FROM" if j == first else word, j))
            elif word == "SAMPLE" and self.words[j - 1] == "USING":
                marks.append(("SAMPLE", j - 1))
            elif word == "CONFLICT" and self.words[j - 1] == "ON":
                marks.append(("CONFLICT", j - 1))
        block = Block(Span(self.tokens[first].start, self._end_of(end)), in_set_operation=in_set)
        ends = [*(m[1] for m in marks[1:]), end][: len(marks)]
        others: set[str] = set()
        for (word, j), stop in zip(marks, ends, strict=True):
            self._clause(block, word, j, stop, others)
        block.others = frozenset(others)
        if in_set:  # they belong to the set operation
            block.order = block.order_by = block.limit = None
        return block

    def _clause(self, block: Block, word: str, j: int, stop: int, others: set[str]) -> None:
        whole = Span(self.tokens[j].start, self._end_of(stop))
        after = Span(self.tokens[j].end, self._end_of(stop))
        if word == "SELECT":
            block.select = after
            block.distinct = j + 1 < stop and self.words[j + 1] == "DISTINCT"
        elif word == "FROM":
            block.from_ = after
            block.items += self._from_items(j + 1, stop)
        elif word == "WHERE":
            block.where = whole
            block.conjuncts = self._conjuncts(j + 1, stop)
        elif word == "ORDER":
            block.order = whole
            block.order_by = Span(self.tokens[j + 1].end, whole.end) if j + 1 < stop else after
        elif word in ("LIMIT", "OFFSET"):
            block.limit = Span(min(block.limit.start, whole.start), whole.end) if block.limit else whole
        else:
            others.add(word)

    def _end_of(self, stop: int) -> int:
        """Where the last token before `stop` ends."""
        return self.tokens[stop - 1].end if stop > 0 else 0

    def _is_inside_expression(self, j: int) -> bool:
        word, before = self.words[j], self.words[j - 1] if j else ""
        if before == ".":
            return True
        if word == "FROM":
            return self._is_distinct_from(j)
        after = self.words[j + 1] if j + 1 < len(self.words) else ""
        if word in ("GROUP", "ORDER"):
            return after != "BY" or before == "WITHIN"
        return False

    def _is_star_except(self, j: int) -> bool:
        """`* EXCEPT (…)` is no set operator."""
        after = self.words[j + 1] if j + 1 < len(self.words) else ""
        return self.words[j] == "EXCEPT" and self.words[j - 1] == "*" and after == "("

    def _conjuncts(self, first: int, stop: int) -> list[Span]:
        """Parts joined by AND at this depth; BETWEEN … AND and CASE … END are kept whole."""
        if first >= stop:
            return []
        if self._is_wrapped(first, stop):
            return self._conjuncts(first + 1, stop - 1)
        depth = min(self.depth[j] for j in range(first, stop))
        if any(
            self.depth[j] == depth and self.words[j] == "OR" and not self._in_case(first, j) for j in range(first, stop)
        ):
            return [Span(self.tokens[first].start, self._end_of(stop))]
        spans, begin, between, cases = [], first, 0, 0
        for j in range(first, stop):
            if self.depth[j] != depth:
                continue
            word = self.words[j]
            if word == "CASE":
                cases += 1
            elif word == "END" and cases:
                cases -= 1
            elif word == "BETWEEN" and not cases:
                between += 1
            elif word == "AND" and not cases:
                if between:
                    between -= 1
                else:
                    spans.append(Span(self.tokens[begin].start, self._end_of(j)))
                    begin = j + 1
        if begin < stop:
            spans.append(Span(self.tokens[begin].start, self._end_of(stop)))
        return spans

    def _is_wrapped(self, first: int, stop: int) -> bool:
        """Whether one pair of parentheses, not a subquery, holds all of it."""
        if self.words[first] != "(" or self.words[stop - 1] != ")" or stop - first < 3:
            return False
        outer = self.depth[first]
        inside = all(self.depth[j] > outer for j in range(first + 1, stop - 1))
        return inside and self.words[first + 1] not in ("SELECT", "WITH", "FROM", "VALUES")

    def alternatives(self, span: Span) -> list[Span]:
        """The parts of a condition joined by OR at its outermost depth."""
        inside = [i for i, t in enumerate(self.tokens) if span.has(t.start)]
        first, stop = inside[0], inside[-1] + 1
        while self._is_wrapped(first, stop):
            first, stop = first + 1, stop - 1
        depth = min(self.depth[j] for j in range(first, stop))
        parts, begin = [], first
        for j in range(first, stop):
            if self.depth[j] == depth and self.words[j] == "OR":
                parts.append(Span(self.tokens[begin].start, self.tokens[j - 1].end))
                begin = j + 1
        return [*parts, Span(self.tokens[begin].start, self.tokens[stop - 1].end)]

    def _in_case(self, first: int, j: int) -> bool:
        cases = 0
        for k in range(first, j):
            cases += {"CASE": 1, "END": -1}.get(self.words[k], 0)
        return cases > 0

    def _from_items(self, first: int, stop: int) -> list[FromItem]:
        """Split at commas and joins at this depth."""
        depth = self.depth[first] if first < stop else 0
        items: list[FromItem] = []
        begin, join_begin = first, first
        j = first
        while j <= stop:
            at_end = j == stop
            word = "" if at_end or self.depth[j] != depth else self.words[j]
            if at_end or word == "," or (word in JOIN_WORDS and self._starts_join(j, begin, stop)):
                items.append(self._item(join_begin, begin, j))
                join_begin = j
                j += 1
                while j < stop and self.depth[j] == depth and self.words[j] in JOIN_WORDS and word != ",":
                    j += 1
                begin = j
                if at_end:
                    break
                continue
            j += 1
        return items

    def _starts_join(self, j: int, begin: int, stop: int) -> bool:
        """A join word that really begins a join (LEFT can be a function, SEMI a name)."""
        if j == begin:
            return False
        for k in range(j, min(j + 4, stop)):
            if self.words[k] == "JOIN":
                return True
            if self.words[k] not in JOIN_WORDS:
                return False
        return False

    def _item(self, join_begin: int, begin: int, end: int) -> FromItem:
        join_words = [self.words[k] for k in range(join_begin, begin)]
        join = Span(self.tokens[join_begin].start, self.tokens[begin - 1].end) if begin > join_begin else None
        depth = self.depth[begin] if begin < len(self.tokens) else 0
        condition = next((k for k in range(begin + 1, end) if self.depth[k] == depth and self._is_condition(k)), None)
        last = condition if condition is not None else end
        item = FromItem(
            Span(self.tokens[begin].start, self._end_of(last)),
            join or Span(self.tokens[begin].start, self.tokens[begin].start),
            " ".join(join_words),
        )
        if condition is not None:
            item.condition = Span(self.tokens[condition].start, self._end_of(end))
            if self.words[condition] == "ON":
                item.on = self._conjuncts(condition + 1, end)
            else:
                names = self.tokens[condition + 2 : end - 1]
                item.using = [t.value for t in names if t.kind in ("word", "quoted")]
        return item

    def _is_condition(self, k: int) -> bool:
        following = self.words[k + 1] if k + 1 < len(self.words) else ""
        return self.words[k] == "ON" or (self.words[k] == "USING" and following == "(")


def splice(text: str, changes: Iterable[tuple[Span, str]]) -> str:
    """The text with spans replaced; they do not overlap."""
    pieces, at = [], 0
    for span, new in sorted(changes):
        pieces += [text[at : span.start], new]
        at = span.end
    return "".join([*pieces, text[at:]])
