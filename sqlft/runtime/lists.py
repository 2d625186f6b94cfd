"""The lists of a block: its projections and its ORDER BY, item by item, and what of them needs a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlglot import exp

from sqlft.runtime.anatomy import Block, Span
from sqlft.runtime.references import Reading, Reference, is_row_wise


class Lists:
    """One block of a text that reads models."""

    def __init__(self, reading: Reading, block: Block, references: Sequence[Reference]) -> None:
        self.text, self.block, self.reading, self.all = reading.text, block, reading, references
        self.references = [r for r in references if r.block.span == block.span]

    def is_row_wise(self) -> bool:
        """Whether each row of the block comes from one row of its FROM."""
        return not self.block.in_set_operation and not self.block.others and is_row_wise(self.references[0].node)

    def uses_in(self, reference: Reference, span: Span) -> list[Any]:
        """Uses of the reference's columns inside a span."""
        return [u for u in reference.uses if span.has(u.span.start)]

    def order_text(self, references: Sequence[Reference]) -> str | None:
        """ORDER BY's items with aliases and ordinals replaced; None where they read an answer or cannot be followed."""
        if self.block.order_by is None:
            return ""
        resolved = []
        projections = self.projections()
        for span in self.split(self.block.order_by):
            text = self._order_item(span, projections)
            if text is None:
                return None
            resolved.append(text)
        return ", ".join(resolved)

    def _order_item(self, span: Span, projections: list[tuple[Span, str | None]] | None) -> str | None:
        text = self.text[span.start : span.end]
        match = re.match(r'\s*(\d+|\w+|"[^"]+")(\s+(?:asc|desc)\b.*|\s+nulls\b.*)?\s*$', text, re.I | re.S)
        if match is None:
            return None if self.reads_answers(span) else text
        head, tail = match.group(1), match.group(2) or ""
        if head.upper() == "ALL" or projections is None:
            return None if head.upper() == "ALL" or head.isdigit() or self.reads_answers(span) else text
        if head.isdigit():
            place = int(head) - 1
            target = projections[place][0] if place < len(projections) else None
        else:
            target = next((s for s, a in projections if a and a.lower() == head.strip('"').lower()), span)
        if target is None or self.reads_answers(target):
            return None
        if target is span:
            return text
        return f"({self.text[target.start : target.end]}){tail}"

    def reads_answers(self, span: Span) -> bool:
        """Whether a piece of the text needs a model."""
        return any(self.uses_in(r, span) or span.has(r.span.start) for r in self.all)

    def projections(self) -> list[tuple[Span, str | None]] | None:
        """(expression, alias) of each projection; None where a star makes their places unknown."""
        if self.block.select is None:
            return None
        found = []
        for span in self.split(self.block.select):
            text = self.text[span.start : span.end]
            if "*" in text and re.search(r"(^|\.)\s*\*|columns\s*\(", text, re.I):
                return None
            found.append(self._projection(span))
        return found

    def given_out(self, reference: Reference, uses: Sequence[Span]) -> set[str] | None:
        """Names under which a derived table or CTE gives out these columns; None if they are used otherwise."""
        node = reference.node
        derived = isinstance(node.parent, exp.CTE) or (
            isinstance(node.parent, exp.Subquery) and isinstance(node.parent.parent, (exp.From, exp.Join))
        )
        if not derived or not self.is_row_wise() or has_star(self.reading.tree, outside=node):
            return None
        given = dict(self.projections() or [])
        names = [given.get(use) for use in uses]
        return None if None in names else {n.lower() for n in names if n is not None}

    def _projection(self, span: Span) -> tuple[Span, str | None]:
        a = self.reading.anatomy
        inside = [i for i, t in enumerate(a.tokens) if span.has(t.start)]
        if len(inside) >= 3 and a.words[inside[-2]] == "AS":
            return Span(span.start, a.tokens[inside[-3]].end), a.tokens[inside[-1]].value
        last = inside[-1] if inside else 0
        if len(inside) >= 2 and a.tokens[last].kind in ("word", "quoted") and a.words[last - 1] not in (".", "::"):
            before = a.tokens[last - 1]
            if before.kind != "op" or before.text in (")", "]"):
                return Span(span.start, before.end), a.tokens[last].value
        if inside and a.tokens[last].kind in ("word", "quoted"):
            return span, a.tokens[last].value
        return span, None

    def split(self, span: Span) -> list[Span]:
        """The parts between commas at the outermost depth."""
        a = self.reading.anatomy
        inside = [i for i, t in enumerate(a.tokens) if span.has(t.start)]
        if inside and a.words[inside[0]] in ("DISTINCT", "ALL"):
            inside = inside[1:]
        if not inside:
            return []
        outermost = min(a.depth[i] for i in inside)
        parts, begin = [], inside[0]
        for i in inside:
            if a.depth[i] == outermost and a.words[i] == ",":
                parts.append(Span(a.tokens[begin].start, a.tokens[i - 1].end))
                begin = i + 1
        parts.append(Span(a.tokens[begin].start, a.tokens[inside[-1]].end))
        return parts


def has_star(tree: Any, outside: Any = None) -> bool:
    """Whether a `*` (but count(*)) or COLUMNS stands in the tree, not counting the part `outside` leaves out."""
    for star in tree.find_all(exp.Star, exp.Columns):
        if isinstance(star.parent, exp.Count):
            continue
        node = star
        while outside is not None and node is not None and node is not outside:
            node = node.parent
        if node is None or outside is None:
            return True
    return False
