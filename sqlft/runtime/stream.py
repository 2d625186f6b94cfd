"""A query whose every result row comes from one input row, answered piece by piece.

The rows of its tables are spooled in order; then, as answers become known, slices of them are put in the
place of its tables, side by side with the answers (POSITIONAL JOIN), and the rest of the user's text runs
over each slice.  So first rows come while later ones are still being answered, LIMIT stops the asking, and
no Arrow reader is left open on the user's connection.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from sqlft.runtime.anatomy import Block, FromItem, Span, splice
from sqlft.runtime.asker import Asker, Book
from sqlft.runtime.inputs import INNER, Clauses, Conjunct, Inputs, has_star
from sqlft.runtime.literals import identifier
from sqlft.runtime.nesting import Outer, around
from sqlft.runtime.references import Reading, Reference, columns_of, parts_of
from sqlft.runtime.rewrite import Rewriter, bind_error, is_read, limit_numbers, mentioned_outputs, reads_qualified
from sqlft.runtime.session import Session
from sqlft.runtime.spool import Spool
from sqlft.sql.lexer import Token

EXACT = re.compile(
    r"^(BOOLEAN|U?TINYINT|U?SMALLINT|U?INTEGER|U?BIGINT|FLOAT|DOUBLE|DECIMAL\(\d+,\s*\d+\)|VARCHAR|BLOB|DATE|TIME"
    r"|TIMESTAMP(_S|_MS|_NS)?|TIMESTAMP WITH TIME ZONE)(\[\])*$"
)
"""Types that come back from Arrow as they went in."""
FIRST_ROWS = 64
FILTERED_ROWS = (64, 64, 128, 256, 512, 1024, 2048, 4096)
MOST_ROWS = 16384
EMIT_SECONDS = 0.05


@dataclass
class Base:
    """One table of the FROM clause: its alias, and the columns that are needed of it."""

    item: int
    alias: str
    columns: list[str] = field(default_factory=list)
    first: int = 0
    """Place of its first column in the spool."""


@dataclass
class Asked:
    """One model of the FROM clause: where its inputs are in the spool, and which prompt each row has."""

    reference: Reference
    inputs: Inputs
    item: int
    first: int = 0
    book: Book | None = None
    ids: list[pa.Array] = field(default_factory=list)
    new_ids: list[int] = field(default_factory=list)
    """Prompts in order of appearance …"""
    new_rows: list[int] = field(default_factory=list)
    """… and the row where each appears first."""
    starts: list[int] = field(default_factory=list)
    read: bool = True
    shown: list[tuple[str, int]] = field(default_factory=list)
    """Inputs that the result shows, and their places among the kept columns."""

    def take(self, batch: pa.RecordBatch, start: int) -> None:
        """Give the rows of a batch their prompts."""
        assert self.book is not None
        count = len(self.inputs.reference.inputs)
        if not batch.num_rows:
            return
        ids = self.book.ids([batch.column(self.first + k) for k in range(count)])
        self.ids.append(ids)
        self.starts.append(start)
        seen = self.new_ids[-1] if self.new_ids else -1
        encoded = ids.dictionary_encode()
        fresh = [i for i in encoded.dictionary.to_pylist() if i is not None and i > seen]
        if fresh:
            places = _first_places(ids)
            for i in sorted(fresh):
                self.new_ids.append(i)
                self.new_rows.append(start + places[i])

    def ready_end(self, rows: int) -> int:
        """The row before which all rows have answers."""
        if not self.read or not self.new_ids:
            return rows
        assert self.book is not None
        known = self.book.asking.known_before(self.new_ids[-1] + 1)
        place = bisect_left(self.new_ids, known)
        return rows if place == len(self.new_ids) else self.new_rows[place]

    def prompts_before(self, row: int) -> int:
        """How many prompts rows before `row` need, counted in the book."""
        place = bisect_left(self.new_rows, row)
        return self.new_ids[place - 1] + 1 if place else 0

    def slice_ids(self, start: int, end: int) -> pa.Array:
        """The ids of rows start … end."""
        pieces = []
        for first, ids in zip(self.starts, self.ids, strict=True):
            low, high = max(start, first), min(end, first + len(ids))
            if low < high:
                pieces.append(ids.slice(low - first, high - low))
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.int32())


def _first_places(ids: pa.Array) -> dict[int, int]:
    """Row of the first appearance of each id."""
    places = {}
    table = pa.table({"id": ids, "row": pa.array(range(len(ids)), pa.int32())})
    grouped = table.group_by("id").aggregate([("row", "min")])
    for i, row in zip(grouped.column("id").to_pylist(), grouped.column("row_min").to_pylist(), strict=True):
        places[i] = row
    return places


class Stream:
    """A planned query of this kind: `description`, then `chunks`."""

    def __init__(self, session: Session, asker: Asker, plan: Plan) -> None:
        self._session, self._asker, self._plan = session, asker, plan
        self._spool: Spool | None = None
        self._names = {id(x): f"__sqlft_s{id(self):x}_{k}" for k, x in enumerate([*plan.bases, *plan.asked])}
        self._text = plan.chunk_text(self._names)
        self._closed = False

    def start(self) -> Any:
        """Spool the rows; a DuckDB relation that knows the result's columns and types."""
        for asked in self._plan.asked:
            asked.book = self._asker.book(asked.reference.resolved, asked.reference.alias)
        self._asker.check_using()
        try:
            relation = self._session.con.sql(self._plan.spool_query())
        except duckdb.BinderException as e:
            raise bind_error(e, merged_inputs(self._plan.asked), self._plan.clauses.text) from e
        self._spool = Spool(relation, self._take, lambda: self._session.interrupted)
        for asked in self._plan.asked:
            if asked.book is not None:
                asked.book.asking.rows += self._spool.rows
        self._register(0, 0)
        return self._session.con.sql(self._rewritten(dry=True))

    def _take(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """Give the rows their prompts, and keep what the result shows."""
        for asked in self._plan.asked:
            asked.take(batch, start)
        return batch.select(self._plan.kept_columns)

    def chunks(self) -> Iterator[Any]:
        """DuckDB relations, each with some of the result's rows, in order."""
        spool = self._spool
        assert spool is not None
        left, skip = self._plan.count, self._plan.offset
        row, most = 0, iter(FILTERED_ROWS if self._plan.filtered else ())
        cap = FIRST_ROWS // 4
        try:
            while row < spool.rows and left != 0:
                cap = next(most, min(MOST_ROWS, cap * 4))
                end = self._answer(row, min(spool.rows, row + cap))
                self._register(row, end)
                relation = self._session.con.sql(self._rewritten())
                row = end
                if left is not None:
                    relation, left, skip = self._limited(relation, left, skip)
                yield relation
        except BaseException:
            self.close(error=True)
            raise
        self.close()

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The result's rows as DuckDB's client gives them."""
        for relation in self.chunks():
            yield from relation.fetchall()

    def table(self) -> pa.Table:
        """The result as one Arrow table."""
        return self.reader().read_all()

    def reader(self) -> pa.RecordBatchReader:
        """The result as record batches, a chunk's as soon as it is answered."""
        schema = self._session.con.sql(self._rewritten(dry=True)).to_arrow_reader(1).read_all().schema
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for relation in self.chunks():
            table = relation.to_arrow_reader(MOST_ROWS).read_all()
            yield from table.cast(schema).to_batches()

    def _limited(self, relation: Any, left: int, skip: int) -> tuple[Any, int, int]:
        table = relation.to_arrow_reader(MOST_ROWS).read_all()
        skipped = min(skip, table.num_rows)
        table = table.slice(skipped, left)
        return self._session.con.from_arrow(table), left - table.num_rows, skip - skipped

    def _answer(self, row: int, target: int) -> int:
        """Ask until at least one more row can be given out; the row before which all can."""
        started = time.monotonic()
        while True:
            end = min([target, *(a.ready_end(target) for a in self._plan.asked)])
            if end >= target or (end > row and time.monotonic() - started > EMIT_SECONDS):
                return max(end, row)
            slowest = min(self._plan.asked, key=lambda a: a.ready_end(target))
            assert slowest.book is not None
            asking = slowest.book.asking
            wanted = slowest.prompts_before(target)
            asking.advance(wanted, wanted - asking.known_before(wanted))

    def _register(self, start: int, end: int) -> None:
        assert self._spool is not None
        rows = self._spool.slice(start, end)
        for base in self._plan.bases:
            part = rows.select(range(base.first, base.first + len(base.columns))).rename_columns(base.columns)
            self._session.con.register(self._names[id(base)], part)
        for asked in self._plan.asked:
            self._session.con.register(self._names[id(asked)], self._answers(asked, rows, start, end))

    def _answers(self, asked: Asked, rows: pa.Table, start: int, end: int) -> pa.Table:
        assert asked.book is not None
        columns: dict[str, Any] = {name: rows.column(place) for name, place in asked.shown}
        outputs = mentioned_outputs(asked.reference)
        columns.update(zip(outputs, asked.book.columns(asked.slice_ids(start, end), outputs), strict=True))
        return pa.table(columns)

    def _rewritten(self, *, dry: bool = False) -> str:
        """The slice's query; models that wait for the answers of others are asked now."""
        if not self._plan.chained:
            return self._text
        return Rewriter(self._session, self._text, self._asker, dry=dry).run()

    def close(self, error: bool = False) -> None:
        """Give everything back; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._spool is not None:
            self._spool.close()
        for name in self._names.values():
            self._session.unregister_later(name)
        self._asker.finish(error)


@dataclass
class Plan:
    """Which parts of the text become what."""

    clauses: Clauses
    bases: list[Base]
    asked: list[Asked]
    chained: list[Reference]
    kept: list[Conjunct]
    """Conditions that read answers."""
    order: str
    limit: str
    """For the spool query, if nothing is filtered after the models."""
    count: int | None = None
    """Rows still to give out, where the limit could not go below the models."""
    offset: int = 0
    limit_block: Block | None = None
    """Whose limit counts what is given out."""
    kept_columns: list[int] = field(default_factory=list)
    """Columns of the spool query that are kept with the rows."""

    @property
    def filtered(self) -> bool:
        """Whether a limit waits for rows that pass a condition on answers."""
        return self.count is not None

    def spool_query(self) -> str:
        """The tables' rows and the models' inputs."""
        text, block = self.clauses.reading, self.clauses.block
        columns = [f"{identifier(b.alias)}.{identifier(c)}" for b in self.bases for c in b.columns]
        for asked in self.asked:
            columns += [f"({asked.inputs.bindings[n].expression})" for n in asked.reference.inputs]
        listed = ", ".join(f"{c} AS c{k}" for k, c in enumerate(columns))
        merged = merged_inputs(self.asked)
        base, where = self.clauses.base_from(merged), self.clauses.conditions(merged, volatile=True)
        query = f"{text.anatomy.visible_ctes(block.span.start)}SELECT {listed}{f' FROM {base}' if base else ''}"
        query += f" WHERE {' AND '.join(where)}" if where else ""
        if not self.bases and base:
            query = f"SELECT DISTINCT * FROM ({query})"
        return f"{query}{f' ORDER BY {self.order}' if self.order else ''}{self.limit}"

    def chunk_text(self, names: dict[int, str]) -> str:
        """The user's text over slices."""
        clauses, block = self.clauses, self.clauses.block
        changes: list[tuple[Span, str]] = []
        parts: list[tuple[Base | Asked, str]] = [(b, b.alias) for b in self.bases]
        parts += [(a, a.reference.alias) for a in self.asked]
        for part, alias in parts:
            item = block.items[part.item]
            join = " POSITIONAL JOIN " if part.item else ""
            start = item.join.start if part.item else item.span.start
            end = item.condition.end if item.condition is not None else item.span.end
            changes.append((Span(start, end), f"{join}{names[id(part)]} AS {identifier(alias)}"))
        for asked in self.asked:
            covered = block.items[asked.item]
            changes += [
                (u.prefix, "") for u in asked.reference.uses if u.prefix is not None and not _in_item(u.prefix, covered)
            ]
        keep = {c.span for c in self.kept}
        changes += [(c.span, "true") for c in clauses.conjuncts if c.item is None and c.span not in keep]
        moved = [c.text for c in self.kept if c.item is not None and not self._is_chained(c.item)]
        if moved:
            where = f" AND {' AND '.join(f'({m})' for m in moved)}"
            if block.where is not None:
                changes += [
                    (Span(block.conjuncts[0].start, block.conjuncts[0].start), "("),
                    (Span(block.where.end, block.where.end), ")" + where),
                ]
                changes = _merge_touching(changes)
            else:
                changes.append((Span(block.from_.end, block.from_.end), f" WHERE true{where}"))
        for limited in (block, self.limit_block):
            if limited is not None and limited.limit is not None and (limited.limit, "") not in changes:
                changes.append((limited.limit, ""))
        return splice(clauses.text, changes)

    def _is_chained(self, item: int) -> bool:
        return any(self.clauses.item_of(r) == item for r in self.chained)


def _in_item(span: Span, item: FromItem) -> bool:
    end = item.condition.end if item.condition is not None else item.span.end
    return item.span.start <= span.start < end


def _merge_touching(changes: list[tuple[Span, str]]) -> list[tuple[Span, str]]:
    """Insertions sort before replacements that start at the same place, and after those that end there."""
    return sorted(changes, key=lambda c: (c[0].start, c[0].end))


def merged_inputs(asked: list[Asked]) -> Inputs:
    """One plan for the spool query of several models."""
    first = asked[0].inputs
    merged = Inputs(first.reference, bases=first.bases)
    pushed: dict[Span, tuple[Conjunct, str]] = {}
    for one in asked:
        merged.bindings.update({f"{one.item}.{n}": b for n, b in one.inputs.bindings.items()})
        pushed.update({c.span: (c, text) for c, text in one.inputs.pushed})
    merged.implicit = [n for one in asked for n in one.inputs.implicit]
    merged.pushed = list(pushed.values())
    return merged


def plan(session: Session, rewriter: Rewriter) -> Plan | None:
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


def _planned(session: Session, clauses: Clauses, outer: Outer) -> Plan | None:
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
    made = Plan(clauses, bases, asked, chained, kept, order, "", kept_columns=_place(clauses, bases, asked, gone))
    return made if _set_limit(session, made, outer) else None


def _is_simple(clauses: Clauses, asked: list[Asked]) -> bool:
    for i, item in enumerate(clauses.block.items):
        is_model = any(a.item == i for a in asked)
        if item.using or "NATURAL" in item.join_kind or "ASOF" in item.join_kind or "SEMI" in item.join_kind:
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


def _set_limit(session: Session, made: Plan, outer: Outer) -> bool:
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


def _count(session: Session, made: Plan, numbers: tuple[str, str]) -> bool:
    row = session.con.sql(f"SELECT ({numbers[0]})::BIGINT, ({numbers[1]})::BIGINT").fetchall()[0]
    if row[0] is None or row[1] is None or row[0] < 0 or row[1] < 0:
        return False
    made.count, made.offset = row
    return True
