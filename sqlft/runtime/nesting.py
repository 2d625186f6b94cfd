"""Queries around a row-wise block, such as those over a view: what of them can go below the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from sqlft.runtime.anatomy import Block, Span, splice
from sqlft.runtime.inputs import VOLATILE, Clauses, Conjunct
from sqlft.runtime.references import Reading, Reference, is_row_wise, parts_of


@dataclass
class Outer:
    """The row-wise queries around a block, outermost first."""

    clauses: list[Clauses] = field(default_factory=list)
    alias: str = ""
    """The block's name in the innermost of them."""

    @property
    def filters(self) -> bool:
        """Whether any of them has conditions."""
        return any(c.conjuncts for c in self.clauses)

    @property
    def limits(self) -> list[Block]:
        """Those that have a limit."""
        return [c.block for c in self.clauses if c.block.limit is not None]

    def pushed(self, inner: Clauses) -> list[tuple[Conjunct, str]]:
        """Conditions in the words of the block; none of its answers is read by them."""
        if len(self.clauses) != 1 or inner.block.limit is not None:
            return []
        found = []
        for conjunct in self.clauses[0].conjuncts:
            text = self._inside(conjunct.tree, conjunct.text, inner)
            if text is not None and not VOLATILE.search(text):
                found.append((Conjunct(Span(-1 - conjunct.span.start, -1), text, None, conjunct.tree), text))
        return found

    def order(self, inner: Clauses) -> str | None:
        """ORDER BY in the words of the block; None if it reads answers, '' if there is none."""
        ordered = [c for c in self.clauses if c.block.order_by is not None]
        if not ordered:
            return ""
        if len(self.clauses) != 1:
            return None
        text = ordered[0].order_text([])
        if text is None:
            return None
        query = _parsed(f"SELECT 1 ORDER BY {text}")
        prefix = len("SELECT 1 ORDER BY ")
        return None if query is None else self._inside(query.args["order"], text, inner, prefix)

    def _inside(self, tree: Any, text: str, inner: Clauses, offset: int = 0) -> str | None:
        """`text` with the block's output columns replaced by the expressions they come from."""
        if tree is None or any(tree.find_all(exp.Select, exp.Star, exp.Columns)):
            return None
        changes = []
        for column in tree.find_all(exp.Column):
            parts = parts_of(column)
            if len(parts) == 2 and parts[0].name.lower() == self.alias.lower():
                parts = parts[1:]
                start = parts_of(column)[0].span.start
            elif len(parts) == 1:
                start = parts[0].span.start
            else:
                return None
            expression = self._source(parts[0].name, inner)
            if expression is None:
                return None
            changes.append((Span(start - offset, parts[0].span.end - offset), expression))
        return splice(text, changes)

    def _source(self, name: str, inner: Clauses) -> str | None:
        projections = inner.projections()
        if projections is None:  # a star: the names are those of its tables, if no model has them
            models = {c.lower() for r in inner.references for c in (*r.inputs, *r.outputs)}
            return None if name.lower() in models else f'"{name}"'
        for span, alias in projections:
            if alias is not None and alias.lower() == name.lower():
                return None if inner.reads_answers(span) else f"({inner.text[span.start : span.end]})"
        return None


def around(reading: Reading, references: Sequence[Reference]) -> tuple[exp.Select, Outer] | None:
    """The one SELECT that reads models in its FROM, and the row-wise queries from the root down to it."""
    node: Any = reading.tree
    outer = Outer()
    while isinstance(node, exp.Select):
        if any(r.node is node for r in references):
            return node, outer
        inner, alias, position = _only_source(reading, node)
        if inner is None or not is_row_wise(node):
            return None
        block = reading.anatomy.block_holding(position)
        if block is None or block.others or block.in_set_operation or block.distinct:
            return None
        outer.clauses.append(Clauses(reading, block, references))
        node, outer.alias = inner, alias
    return None


def _only_source(reading: Reading, select: exp.Select) -> tuple[Any, str, int]:
    """The query that is the SELECT's one FROM item: a derived table, or a CTE that nobody else reads."""
    from_ = select.args.get("from_") or select.args.get("from")
    if from_ is None or select.args.get("joins") or from_.this.args.get("joins"):
        return None, "", 0
    source = from_.this
    if isinstance(source, exp.Subquery) and isinstance(source.this, exp.Select):
        positions = [n.meta["start"] for n in source.find_all(exp.Identifier) if "start" in n.meta]
        return source.this, source.alias, _opening(reading, min(positions)) if positions else 0
    with_ = select.args.get("with_") or select.args.get("with")
    if isinstance(source, exp.Table) and with_ is not None:
        readers = [t for t in reading.tree.find_all(exp.Table) if t.name.lower() == source.name.lower()]
        for cte in with_.expressions:
            if cte.alias.lower() == source.name.lower() and len(readers) == 1 and isinstance(cte.this, exp.Select):
                return cte.this, source.alias or source.name, source.this.meta["start"]
    return None, "", 0


def _opening(reading: Reading, position: int) -> int:
    """The parenthesis of the derived table around a position in it."""
    anatomy = reading.anatomy
    i = anatomy.index(position)
    depth = anatomy.depth[i]
    while i > 0 and not (
        anatomy.words[i] == "(" and anatomy.depth[i] < depth and anatomy.words[i - 1] in ("FROM", "(")
    ):
        i -= 1
    return anatomy.tokens[i].start


def _parsed(text: str) -> Any:
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        return sqlglot.parse_one(text, read="duckdb")
    except SqlglotError:
        return None
