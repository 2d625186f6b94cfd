"""What a model in a query is to be asked: from its block's clauses to the query that gives its input rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from sqlft.errors import NotSupported, StatementError
from sqlft.runtime.anatomy import Block, FromItem, Span, splice
from sqlft.runtime.lists import Lists
from sqlft.runtime.references import Reading, Reference

VOLATILE = re.compile(r"\b(random|uuid|uuidv4|uuidv7|gen_random_uuid|nextval|setseed)\s*\(", re.I)
ANY = re.compile(r"(?:any|some)\s*(\((\s*(?:select|with|from|values)\b)?.*\))", re.I | re.S)
INNER = frozenset({"", ",", "JOIN", "INNER JOIN", "CROSS JOIN"})
MODEL_JOINS = INNER | {"LEFT JOIN", "LEFT OUTER JOIN"}


@dataclass
class Conjunct:
    """A condition joined by AND in ON or WHERE."""

    span: Span
    text: str
    item: int | None
    """The FROM item whose ON it stands in; None for WHERE."""
    tree: Any
    """None if sqlglot cannot read it alone."""


@dataclass
class Binding:
    """How an input gets its value."""

    expression: str
    conjunct: Conjunct | None = None
    operator: Span | None = None
    """The `=`, where there is one."""
    source: str | None = None
    """A relation of one column for IN (…)."""
    reads: tuple[int, ...] = ()
    """Other models that it depends on, by their place in the list."""
    sides: tuple[Span, Span] | None = None


@dataclass
class Inputs:
    """The plan for one reference."""

    reference: Reference
    bindings: dict[str, Binding] = field(default_factory=dict)
    implicit: list[str] = field(default_factory=list)
    """Inputs that take the column of their name."""
    pushed: list[tuple[Conjunct, str]] = field(default_factory=list)
    """Conditions that hold before the model is asked, rewritten without its columns."""
    kept: list[Conjunct] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    """FROM items that give the input rows."""
    depends: set[int] = field(default_factory=set)


class Clauses(Lists):
    """One block and the unresolved models in it."""

    def __init__(self, reading: Reading, block: Block, references: Sequence[Reference], con: Any = None) -> None:
        super().__init__(reading, block, references)
        self._con = con
        self._columns: frozenset[str] | None = None
        self.conjuncts = [*self._of(block.conjuncts, None)]
        for i, item in enumerate(block.items):
            self.conjuncts += self._of(item.on, i)

    def _of(self, spans: Iterable[Span], item: int | None) -> Iterator[Conjunct]:
        for span in spans:
            text = self.text[span.start : span.end]
            try:
                tree: Any = sqlglot.parse_one(text, read="duckdb")
            except (SqlglotError, ValueError, RecursionError):
                tree = None
            yield Conjunct(span, text, item, tree)

    def item_of(self, reference: Reference) -> int:
        """The FROM item that the reference is."""
        return next(i for i, item in enumerate(self.block.items) if item.span.has(reference.span.start))

    def is_model(self, i: int) -> bool:
        """Whether FROM item i is a model, or holds one that is not resolved."""
        return any(self.block.items[i].span.has(r.span.start) for r in self.all)

    def plan(self, reference: Reference) -> Inputs:
        """Bind every input; StatementError names the one that has no value."""
        inputs = Inputs(reference)
        self._check_join(reference)
        for name in reference.inputs:
            binding = self._binding(reference, name)
            if binding is not None:
                inputs.bindings[name] = binding
                inputs.depends.update(binding.reads)
        inputs.bases = self._bases(inputs)
        self._bind_the_rest(inputs)
        self._sort_conjuncts(inputs)
        return inputs

    def _check_join(self, reference: Reference) -> None:
        item = self.block.items[self.item_of(reference)]
        if item.join_kind not in MODEL_JOINS:
            raise NotSupported(
                f"A model cannot be joined with {item.join_kind}.", "Use JOIN or LEFT JOIN: every row has one answer."
            )

    def _binding(self, reference: Reference, name: str) -> Binding | None:
        item = self.block.items[self.item_of(reference)]
        if any(u.lower() == name.lower() for u in item.using):
            return Binding(_quoted(name))
        for conjunct in self.conjuncts:
            mine = self.uses_in(reference, conjunct.span)
            if conjunct.tree is None or not mine or any(u.column.lower() != name.lower() for u in mine):
                continue
            if (
                any("." not in self.text[u.span.start : u.span.end] for u in mine)
                and name.lower() in self.base_columns()
            ):
                continue
            if len(mine) == 1:
                found = self._from_equality(conjunct, mine[0].span) or self._from_in(conjunct, mine[0].span)
            else:
                found = self._from_or(conjunct, reference)
            if found is not None:
                found.reads = self._models_read(reference, conjunct.span)
                return found
        return None

    def base_columns(self) -> frozenset[str]:
        """Columns of the block's tables, in lower case: there a bare name means them and not a model's input."""
        if self._columns is None:
            inputs = Inputs(self.references[0])
            inputs.bases = self._bases(inputs)
            base, ctes = self.base_from(inputs), self.reading.anatomy.visible_ctes(self.block.span.start)
            try:
                bound = self._con.sql(f"{ctes}SELECT * FROM {base}").columns if base else []
            except duckdb.Error:  # it hangs on a query around it, or on another model
                bound = []
            self._columns = frozenset(c.lower() for c in bound)
        return self._columns

    def _models_read(self, reference: Reference, span: Span) -> tuple[int, ...]:
        """Other unresolved models on which the text in a span depends."""
        return tuple(
            i
            for i, other in enumerate(self.all)
            if other is not reference
            and (
                span.has(other.span.start)
                or any(span.has(u.span.start) for u in other.uses if self._is_others(u, other))
            )
        )

    def _is_others(self, use: Any, other: Reference) -> bool:
        """An unqualified input name is more likely a table's column than another model's input."""
        qualified = "." in self.text[use.span.start : use.span.end]
        return qualified or use.column.lower() in {o.lower() for o in other.outputs}

    def _from_equality(self, conjunct: Conjunct, use: Span) -> Binding | None:
        if not isinstance(conjunct.tree, (exp.EQ, exp.NullSafeEQ)):
            return None
        operator = self._operator(conjunct.span, ("=", "==", "IS"))
        if operator is None:
            return None
        left = _trimmed(self.text, Span(conjunct.span.start, operator.start))
        right = _trimmed(self.text, Span(operator.end, conjunct.span.end))
        if left == use:
            any_of = ANY.fullmatch(self.text[right.start : right.end])
            if any_of is not None:
                return self._listed(conjunct, any_of[1] if any_of[2] else f"(SELECT unnest({any_of[1]}))")
            other = right
        elif right == use:
            other = left
        else:
            return None
        return Binding(self.text[other.start : other.end], conjunct, operator, sides=(left, right))

    def _operator(self, span: Span, words: Sequence[str]) -> Span | None:
        """The comparison at the outermost depth: `=` or IS NOT DISTINCT FROM."""
        a = self.reading.anatomy
        inside = [i for i, t in enumerate(a.tokens) if span.has(t.start)]
        outermost = min(a.depth[i] for i in inside)
        for i in inside:
            if a.depth[i] == outermost and a.words[i] in words:
                last = i + 3 if a.words[i] == "IS" else i
                return Span(a.tokens[i].start, a.tokens[last].end)
        return None

    def _from_or(self, conjunct: Conjunct, reference: Reference) -> Binding | None:
        """`input = a OR input = b` is input IN (a, b)."""
        values = []
        for span in self.reading.anatomy.alternatives(conjunct.span):
            one = next(iter(self._of([span], conjunct.item)))
            mine = self.uses_in(reference, span)
            found = self._from_equality(one, mine[0].span) if len(mine) == 1 else None
            if found is None:
                return None
            values.append(found.expression)
        return self._listed(conjunct, f"(SELECT unnest([{', '.join(values)}]))")

    def _listed(self, conjunct: Conjunct, query: str) -> Binding:
        name = f"__sqlft_in_{conjunct.span.start}"
        return Binding(f"{name}.v", conjunct, None, f"LATERAL {query} AS {name}(v)")

    def _from_in(self, conjunct: Conjunct, use: Span) -> Binding | None:
        if not isinstance(conjunct.tree, exp.In) or use.start != conjunct.span.start:
            return None
        word = self._operator(conjunct.span, ("IN",))
        if word is None:
            return None
        what = self.text[word.end : conjunct.span.end].strip()
        if conjunct.tree.args.get("query") is None:
            is_list = bool(conjunct.tree.expressions)
            what = f"(SELECT unnest({f'[{what[1:-1]}]' if is_list else what}))"
        return self._listed(conjunct, what)

    def _bases(self, inputs: Inputs) -> list[int]:
        """Items without models whose ON needs no answer."""
        bases = []
        for i, item in enumerate(self.block.items):
            if self.is_model(i):
                continue
            outputs = any(
                use.column.lower() in {o.lower() for o in r.outputs}
                for span in item.on
                for r in self.references
                for use in self.uses_in(r, span)
            )
            if not outputs:
                bases.append(i)
        return bases

    def _bind_the_rest(self, inputs: Inputs) -> None:
        reference = inputs.reference
        for name in reference.inputs:
            if name in inputs.bindings:
                continue
            if not inputs.bases:
                raise self._unbound(reference, name)
            inputs.implicit.append(name)
            inputs.bindings[name] = Binding(_quoted(name))

    def _unbound(self, reference: Reference, name: str) -> StatementError:
        model = reference.resolved.model.key.name
        return StatementError(
            f"The input '{name}' of the model '{model}' has no value.",
            self.text,
            reference.span.start,
            f"Give it one: WHERE {name} = '…', or JOIN {model} ON {model}.{name} = table.column.",
        )

    def _sort_conjuncts(self, inputs: Inputs) -> None:
        bound = {id(b.conjunct) for b in inputs.bindings.values() if b.conjunct is not None}
        deferred = [i for i in range(len(self.block.items)) if i not in inputs.bases and not self.is_model(i)]
        for conjunct in self.conjuncts:
            if id(conjunct) in bound:
                continue
            rewritten = self._without_model(inputs, conjunct) if not deferred else None
            if rewritten is None:
                inputs.kept.append(conjunct)
            else:
                inputs.pushed.append((conjunct, rewritten))

    def _without_model(self, inputs: Inputs, conjunct: Conjunct) -> str | None:
        """The condition with the model's inputs replaced by what they are bound to, or None if that cannot be."""
        if conjunct.tree is None or self._models_read(inputs.reference, conjunct.span):
            return None
        changes = []
        for use in self.uses_in(inputs.reference, conjunct.span):
            name = next((n for n in inputs.bindings if n.lower() == use.column.lower()), None)
            if name is None:
                return None
            expression = inputs.bindings[name].expression
            if name not in inputs.implicit or "." in self.text[use.span.start : use.span.end]:
                changes.append((_relative(use.span, conjunct.span), f"({expression})"))
        return splice(conjunct.text, changes)

    # -- texts ---------------------------------------------------------------------------------------------

    def base_from(self, inputs: Inputs) -> str:
        """FROM of the input query, without the word; '' where nothing but literals is needed."""
        pieces: list[str] = []
        items = self.block.items
        for i in inputs.bases:
            item = items[i]
            relation = self.text[item.span.start : item.span.end]
            condition = "" if item.condition is None else self.text[item.condition.start : item.condition.end]
            join = self.text[item.join.start : item.join.end] or ","
            if any(self.uses_in(r, item.condition) for r in self.references if item.condition is not None):
                join, condition = ",", ""
            pieces.append(relation if not pieces else f"{'' if join == ',' else ' '}{join} {relation} {condition}")
            if not pieces[:-1] and condition and join != ",":
                pieces[-1] = relation
        sources = [b.source for b in inputs.bindings.values() if b.source]
        if not pieces and sources:
            pieces.append("(SELECT 1) AS __sqlft_one")
        return "".join([*pieces, *(f", {s}" for s in sources)])

    def conditions(self, inputs: Inputs, *, volatile: bool) -> list[str]:
        """Conditions for the input query; those of a LEFT JOIN's ON count only for what is asked."""
        found = []
        for conjunct, text in inputs.pushed:
            if conjunct.item is not None and self._stays_in_base(inputs, conjunct.item):
                continue
            if volatile or not VOLATILE.search(text):
                found.append(f"({text})")
        return found

    def _stays_in_base(self, inputs: Inputs, i: int) -> bool:
        """Whether item i is a base whose ON is kept as it is in `base_from`."""
        condition = self.block.items[i].condition
        return (
            i in inputs.bases
            and i != inputs.bases[0]
            and condition is not None
            and not any(self.uses_in(r, condition) for r in self.references)
        )

    def only_bindings(self, item: FromItem, inputs: Inputs) -> bool:
        """Whether the item's ON has nothing but bindings."""
        bound = {b.conjunct.span for b in inputs.bindings.values() if b.conjunct is not None}
        return all(span in bound for span in item.on)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else '"' + name.replace('"', '""') + '"'


def _relative(span: Span, to: Span) -> Span:
    return Span(span.start - to.start, span.end - to.start)


def _trimmed(text: str, span: Span) -> Span:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, start + len(piece.strip()))
