"""Which queries can be answered piece by piece, and how."""

from __future__ import annotations

import re

import duckdb

from sqlft.runtime.anatomy import FromItem, Span
from sqlft.runtime.inputs import INNER, Clauses, Conjunct, Inputs
from sqlft.runtime.layout import Asked, Base, Layout
from sqlft.runtime.lists import has_star
from sqlft.runtime.literals import identifier
from sqlft.runtime.nesting import Outer, around
from sqlft.runtime.references import Reading, Reference, columns_of, parts_of
from sqlft.runtime.rewrite import Rewriter, is_read, limit_numbers, reads_qualified
from sqlft.runtime.session import Session
from sqlft.sql.lexer import Token

EXACT = re.compile(
    r"^(BOOLEAN|U?TINYINT|U?SMALLINT|U?INTEGER|U?BIGINT|FLOAT|DOUBLE|DECIMAL\(\d+,\s*\d+\)|VARCHAR|BLOB|DATE|TIME"
    r"|TIMESTAMP(_S|_MS|_NS)?|TIMESTAMP WITH TIME ZONE)(\[\])*$"
)
"""Types that come back from Arrow as they went in."""


def plan(session: Session, rewriter: Rewriter) -> Layout | None:
    """How to stream the rewriter's query, or None if it is not of this kind; resolves models in subqueries."""
    reading, references = rewriter.read()
    found = around(reading, references)
    if found is None:
        return None
    node, outer = found
    tops = [r for r in references if r.node is node]
    if not Clauses(reading, tops[0].block, references, session.con).is_row_wise():
        return None
    if len(tops) < len(references):
        if outer.clauses:
            return None
        rewriter.run(keep=lambda r: r.node.parent is None)
        reading, references = rewriter.read()
    return _planned(session, Clauses(reading, references[0].block, references, session.con), outer)


def _planned(session: Session, clauses: Clauses, outer: Outer) -> Layout | None:
    plans = [(r, clauses.plan(r)) for r in clauses.references]
    asked = [Asked(r, p, clauses.item_of(r), read=is_read(r, clauses)) for r, p in plans if not p.depends]
    if not asked or not _is_simple(clauses, asked):
        return None
    chained = [r for r, p in plans if p.depends]
    direct = {clauses.item_of(a.reference) for a in asked} | {clauses.item_of(r) for r in chained}
    if len(direct) + len(asked[0].inputs.bases) != len(clauses.block.items):
        return None
    kept = _kept(clauses, asked, chained)
    order = outer.order(clauses) or clauses.order_text(clauses.references)
    if kept is None or order is None or outer.order(clauses) is None:
        return None
    if order and not asked[0].inputs.bases:
        return None
    pushed = outer.pushed(clauses)
    asked[0].inputs.pushed += pushed
    gone = _gone(clauses, chained, kept)
    bases = _bases(session, clauses, asked[0].inputs, gone)
    if bases is None:
        return None
    made = Layout(clauses, bases, asked, chained, kept, order, "", kept_columns=_place(clauses, bases, asked, gone))
    return made if _set_limit(session, made, outer) else None


def _is_simple(clauses: Clauses, asked: list[Asked]) -> bool:
    for i, item in enumerate(clauses.block.items):
        is_model = any(a.item == i for a in asked)
        if item.using and not (is_model and _merges(clauses, asked_at(asked, i), item)):
            return False
        if "NATURAL" in item.join_kind or "ASOF" in item.join_kind or "SEMI" in item.join_kind:
            return False
        if "ANTI" in item.join_kind or (i and not is_model and item.join_kind == "POSITIONAL JOIN"):
            return False
        reads_model = item.condition is not None and any(clauses.uses_in(a.reference, item.condition) for a in asked)
        if not is_model and reads_model and not clauses.is_model(i):
            return False
        if is_model and item.join_kind not in INNER and not clauses.only_bindings(item, asked_at(asked, i).inputs):
            return False
        if "RIGHT" in item.join_kind or "FULL" in item.join_kind:
            return False
    return True


def _merges(clauses: Clauses, asked: Asked, item: FromItem) -> bool:
    """Whether USING (…) may count as if it were not written: the slice then shows the table's column alone."""
    reference, names = asked.reference, [name.lower() for name in item.using]
    inputs = {name.lower(): name for name in reference.inputs}
    if any(name not in inputs or reads_qualified(reference, name, clauses.text) for name in names):
        return False
    if asked.item == 0 or _is_whole(clauses.reading, reference.alias):
        return False
    asked.inputs.implicit += [inputs[name] for name in names]
    return True


def asked_at(asked: list[Asked], item: int) -> Asked:
    """The model that is FROM item number `item`."""
    return next(a for a in asked if a.item == item)


def _kept(clauses: Clauses, asked: list[Asked], chained: list[Reference]) -> list[Conjunct] | None:
    """Conditions that neither bind an input nor hold before the models."""
    bound = {b.conjunct.span for a in asked for b in a.inputs.bindings.values() if b.conjunct is not None}
    pushed = {c.span for a in asked for c, _ in a.inputs.pushed}
    bases = set(asked[0].inputs.bases)
    kept = [c for c in clauses.conjuncts if c.span not in bound | pushed and c.item not in bases]
    chained_items = {clauses.item_of(r) for r in chained}
    for conjunct, _ in [p for a in asked for p in a.inputs.pushed]:
        if conjunct.item in chained_items:
            return None
    return kept


def _bases(session: Session, clauses: Clauses, inputs: Inputs, gone: list[Span]) -> list[Base] | None:
    """The tables with their needed columns; None where a name or a type would not survive the spool."""
    names = {t.value.lower() for t in _left_tokens(clauses, gone) if t.kind in ("word", "quoted")}
    star = has_star(clauses.reading.tree)
    base_from = clauses.base_from(inputs)
    ctes = clauses.reading.anatomy.visible_ctes(clauses.block.span.start)
    if _has_long_names(clauses):
        return None
    bases: list[Base] = []
    for i in inputs.bases:
        alias = alias_of(clauses.reading, clauses.block.items[i])
        if alias is None:
            return None
        try:
            relation = session.con.sql(f"{ctes}SELECT {identifier(alias)}.* FROM {base_from}")
        except duckdb.Error:
            return None
        everything = star or _is_whole(clauses.reading, alias)
        columns = [
            (c, str(t))
            for c, t in zip(relation.columns, relation.types, strict=True)
            if everything or c.lower() in names
        ]
        if not columns:
            columns = [(relation.columns[0], str(relation.types[0]))]
        lowered = [c.lower() for c, _ in columns]
        if len(set(lowered)) != len(lowered) or not all(EXACT.match(t) for _, t in columns):
            return None
        bases.append(Base(i, alias, [c for c, _ in columns]))
    return bases


def _has_long_names(clauses: Clauses) -> bool:
    """Whether a column is called by more than its table's alias, which a slice does not have."""
    aliases = {alias_of(clauses.reading, item) for item in clauses.block.items} | {"mindsdb"}
    known = {a.lower() for a in aliases if a is not None} | {r.alias.lower() for r in clauses.all}
    long = [parts for c in columns_of(clauses.reading.tree) if len(parts := parts_of(c)) > 2]
    return any(parts[0].name.lower() not in known for parts in long)


def _is_whole(reading: Reading, alias: str) -> bool:
    return any([p.name.lower() for p in parts_of(c)] == [alias.lower()] for c in columns_of(reading.tree))


def alias_of(reading: Reading, item: FromItem) -> str | None:
    """The name by which columns of a FROM item are called; None if that is not plain."""
    a = reading.anatomy
    inside = [i for i, t in enumerate(a.tokens) if item.span.has(t.start)]
    outermost = min(a.depth[i] for i in inside)
    top = [i for i in inside if a.depth[i] == outermost]
    for i in top:
        if a.words[i] == "AS":
            return a.tokens[i + 1].value
        if a.words[i] == "TABLESAMPLE":
            return None
    last = top[-1]
    if a.words[last] == ")":
        opening = max(i for i in top if a.words[i] == "(")
        last = opening - 1
        if last not in top:
            return None
    return a.tokens[last].value if a.tokens[last].kind in ("word", "quoted") else None


def _gone(clauses: Clauses, chained: list[Reference], kept: list[Conjunct]) -> list[Span]:
    """Parts of the text that the slices' query has no longer."""
    spans = {c.span for c in clauses.conjuncts} - {c.span for c in kept}
    chained_items = {clauses.item_of(r) for r in chained}
    for i, item in enumerate(clauses.block.items):
        if i in chained_items and item.condition is not None:
            spans = {s for s in spans if not item.condition.has(s.start)}
    return list(spans)


def _left_tokens(clauses: Clauses, gone: list[Span]) -> list[Token]:
    return [t for t in clauses.reading.tokens if not any(s.has(t.start) for s in gone)]


def _place(clauses: Clauses, bases: list[Base], asked: list[Asked], gone: list[Span]) -> list[int]:
    """Give every column its place in the spool query; those that are kept."""
    at = 0
    for base in bases:
        base.first = at
        at += len(base.columns)
    kept = list(range(at))
    for one in asked:
        one.first = at
        shows_all = has_star(clauses.reading.tree) or _is_whole(clauses.reading, one.reference.alias)
        left = {u.column.lower() for u in one.reference.uses if not any(s.has(u.span.start) for s in gone)}
        for k, name in enumerate(one.reference.inputs):
            hidden = name in one.inputs.implicit and not reads_qualified(one.reference, name, clauses.text)
            if not hidden and (shows_all or name.lower() in left):
                one.shown.append((name, len(kept)))
                kept.append(at + k)
        at += len(one.reference.inputs)
    return kept


def _set_limit(session: Session, made: Layout, outer: Outer) -> bool:
    """Put LIMIT below the models, or count what is given out; False if neither can be."""
    block = made.clauses.block
    if block.limit is not None:
        numbers = limit_numbers(made.clauses, block)
        if numbers is None or (made.kept and outer.clauses):
            return False
        if not made.kept:
            made.limit = f" LIMIT ({numbers[0]}) OFFSET ({numbers[1]})"
        else:
            made.limit_block = block
            return _count(session, made, numbers)
    if not outer.limits:
        return True
    numbers = limit_numbers(made.clauses, outer.limits[0])
    if numbers is None or len(outer.limits) > 1 or len(outer.clauses) > 1:
        return False
    made.limit_block = outer.limits[0]
    if made.limit or made.kept or outer.filters:
        return _count(session, made, numbers)
    made.limit = f" LIMIT ({numbers[0]}) OFFSET ({numbers[1]})"
    return True


def _count(session: Session, made: Layout, numbers: tuple[str, str]) -> bool:
    row = session.con.sql(f"SELECT ({numbers[0]})::BIGINT, ({numbers[1]})::BIGINT").fetchall()[0]
    if row[0] is None or row[1] is None or row[0] < 0 or row[1] < 0:
        return False
    made.count, made.offset = row
    return True
