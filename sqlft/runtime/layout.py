"""What becomes of the parts of a query that is answered piece by piece: which rows are spooled, which text runs over
each slice of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import pyarrow as pa

from sqlft.runtime.anatomy import Block, FromItem, Span, splice
from sqlft.runtime.asker import Book
from sqlft.runtime.inputs import Clauses, Conjunct, Inputs
from sqlft.runtime.literals import identifier
from sqlft.runtime.references import Reference
from sqlft.runtime.rewrite import recast


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


@dataclass
class Layout:
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
            name = names[id(part)]
            relation = recast(name, part.reference) if isinstance(part, Asked) else name
            changes.append((Span(start, end), f"{join}{relation} AS {identifier(alias)}"))
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
