"""A query that reads models, turned step by step into one that reads tables of their answers.

Each step reads the text, picks a model whose inputs are known by now (innermost first), runs the query that
gives its input rows, asks, registers a relation with the answers and splices its name in.  What DuckDB then
runs is the user's own text over plain tables, so names, types and semantics are DuckDB's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from sqlft.catalog.records import ModelKey
from sqlft.errors import NotSupported, StatementError
from sqlft.runtime.anatomy import Block, Span, splice
from sqlft.runtime.asker import Asker, Book
from sqlft.runtime.inputs import Clauses, Inputs
from sqlft.runtime.literals import identifier
from sqlft.runtime.models import Resolved, resolve
from sqlft.runtime.prices import settings
from sqlft.runtime.references import Reading, Reference, Use
from sqlft.runtime.session import Session
from sqlft.runtime.show import run_show_engines, run_show_models
from sqlft.sql.statements import DEFAULT_PROJECT, ShowEngines, ShowModels

SYSTEM, SETTINGS = "sqlft", "settings"
SHOWN: Mapping[str, Callable[[Session], pa.Table]] = {
    "models": lambda session: run_show_models(session, ShowModels(), None),
    "ml_engines": lambda session: run_show_engines(session, ShowEngines(), None),
}
"""Tables of the project `mindsdb`, as scripts from there read them."""
CHANCE = re.compile(r"\btablesample\b|\busing\s+sample\b|\b(where|order\s+by)\b[^;]*\brandom\s*\(", re.I)
"""Rows of a FROM clause that differ each time."""
MOST_STEPS = 200
DISTINCT = "SELECT *, count(*) AS __sqlft_rows FROM ({body}) GROUP BY ALL"
"""Each input once, and how many rows have it."""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Step:
    """A model that was replaced: the query that gives its inputs, and the columns of what stands in its place."""

    reference: Reference
    book: Book
    query: str
    rows: int
    read: bool
    columns: frozenset[str]


class Rewriter:
    """Holds the text while it changes; `dry` asks nothing, for DESCRIBE, EXPLAIN and views."""

    def __init__(self, session: Session, text: str, asker: Asker, *, dry: bool = False) -> None:
        self.session, self.text, self.asker, self.dry = session, text, asker, dry
        self._resolved: dict[tuple[ModelKey, int | None], Resolved] = {}
        self.seen_models = False
        self.steps: list[Step] = []
        self.before_asking: Callable[[Step], None] = lambda step: None
        """Called with each step when its prompts are known, and not asked yet."""
        self._last_query = ""

    # -- reading -------------------------------------------------------------------------------------------

    def read(self) -> tuple[Reading, list[Reference]]:
        """The text with our views and tables put in, and the models it reads."""
        for _ in range(MOST_STEPS):
            reading = Reading(self.text, self._is_model_name)
            changes: list[tuple[Span, str]] = []
            references = []
            for table, schema, name, span in reading.tables():
                new = self._table_text(schema, name)
                if new is not None:
                    aliased = table.args.get("alias") is not None
                    changes.append((span, new if aliased else f"{new} AS {identifier(name)}"))
                    continue
                resolved = self._model_at(reading, schema, name, span)
                if resolved is not None:
                    asked = self.asker.prompted(resolved, table.alias or resolved.model.key.name)
                    reference = reading.reference(table, span, asked)
                    reference.uses = [u for u in reference.uses if not self._is_hidden(reading, reference, u)]
                    references.append(reference)
            if not changes:
                self.seen_models = self.seen_models or bool(references)
                return reading, references
            self.text = splice(self.text, changes)
        raise NotSupported(
            "Views over models are nested too deeply here.", "Does a view read itself? SHOW MODELS, then DROP VIEW."
        )

    def _is_model_name(self, name: str) -> bool:
        return name.lower() in self.session.names()

    def _is_hidden(self, reading: Reading, reference: Reference, use: Use) -> bool:
        """Whether a bare name in a subquery means a column of the subquery's own tables."""
        if "." in self.text[use.span.start : use.span.end]:
            return False
        anatomy = reading.anatomy
        for block in anatomy.scopes(use.span.start, reference.block):
            tables = self.text[block.from_.start : block.from_.end]
            ctes = anatomy.visible_ctes(block.span.start)
            try:
                self.session.con.sql(f"{ctes}SELECT {identifier(use.column)} FROM {tables}")
                return True
            except duckdb.Error:  # not theirs, or they hang on another model
                continue
        return False

    def _table_text(self, schema: str, name: str) -> str | None:
        """What stands for sqlft.<name> or a view of ours."""
        if schema.lower() == SYSTEM and self.session.catalog.find_model(name, SYSTEM) is None:
            own = settings(self.session) if name.lower() == SETTINGS else self.session.catalog.table(name.lower())
            return self.register(own)
        if schema.lower() == DEFAULT_PROJECT and name.lower() in SHOWN:
            return self.register(SHOWN[name.lower()](self.session))
        if schema.lower() in ("", "main", "memory") and self._is_model_name(name):
            view = self.session.view(name)
            if view is not None:
                if not view.columns:
                    return f"({view.sql}\n)"
                return f"(SELECT * FROM ({view.sql}\n) AS v({', '.join(map(identifier, view.columns))}))"
        return None

    def _model_at(self, reading: Reading, schema: str, name: str, span: Span) -> Resolved | None:
        model = self.session.catalog.find_model(name, schema or None) if self._is_model_name(name) else None
        if model is None:
            return None
        number = reading.version_at(span)
        if (model.key, number) not in self._resolved:
            self._resolved[model.key, number] = resolve(self.session, model.key, number)
        return self._resolved[model.key, number]

    # -- rewriting -----------------------------------------------------------------------------------------

    def run(self, keep: Callable[[Reference], bool] = lambda _: False) -> str:
        """Replace all models but those to `keep`; the text that DuckDB can run."""
        for _ in range(MOST_STEPS):
            reading, references = self.read()
            todo = [r for r in references if not keep(r)]
            if not todo:
                return self.text
            reference, inputs, clauses = self._next(reading, references, todo)
            self.text = splice(self.text, self._replace(reference, inputs, clauses))
        raise NotSupported("This query reads too many models.", "Put a part of it into a table first.")

    def _next(
        self, reading: Reading, all_: list[Reference], todo: list[Reference]
    ) -> tuple[Reference, Inputs, Clauses]:
        """A model whose inputs depend on no other that is left: innermost first."""
        waiting: Reference | None = None
        for reference in sorted(todo, key=lambda r: -r.depth):
            clauses = Clauses(reading, reference.block, all_, self.session.con)
            inputs = clauses.plan(reference)
            if not inputs.depends:
                return reference, inputs, clauses
            waiting = reference
        assert waiting is not None
        raise StatementError(
            "The models of this query wait for each other's answers.",
            self.text,
            waiting.span.start,
            "Let one of them take its inputs from a table.",
        )

    def _replace(self, reference: Reference, inputs: Inputs, clauses: Clauses) -> list[tuple[Span, str]]:
        book = self.asker.book(reference.resolved, reference.alias)
        limited = limit_of(clauses, inputs)
        rows = self._input_rows(reference, inputs, clauses, limited)
        relation = recast(self.register(self._answers(book, clauses, inputs, rows)), reference)
        return substitution(reference, inputs, clauses, relation, limited=limited is not None)

    def _input_rows(self, reference: Reference, inputs: Inputs, clauses: Clauses, limited: str | None) -> pa.Table:
        names = [f"__i{k}" for k in range(len(reference.inputs))]
        expressions = [
            f"({inputs.bindings[n].expression}) AS {name}" for n, name in zip(reference.inputs, names, strict=True)
        ]
        base, where = clauses.base_from(inputs), clauses.conditions(inputs, volatile=False)
        if CHANCE.search(base) and not self.dry:
            raise NotSupported(
                "The rows for the model are drawn by chance, and this query would need to draw the same ones twice.",
                "Draw them into a table first: CREATE TEMP TABLE drawn AS …, and join that.",
            )
        body = f"SELECT {', '.join(expressions)}{f' FROM {base}' if base else ''}"
        body += f" WHERE {' AND '.join(where)}" if where else ""
        if limited is not None:
            body += f" {limited}"
        prefix = clauses.reading.anatomy.visible_ctes(reference.block.span.start)
        query = f"{prefix}{DISTINCT.format(body=body)}"
        outer: Block | None = reference.block
        while True:
            try:
                return self._fetch(query)
            except duckdb.BinderException as e:
                outer = clauses.reading.anatomy.enclosing_block(outer) if outer is not None else None
                if outer is None:
                    raise bind_error(e, inputs, self.text) from e
                body = self._widened(clauses, outer, body)
                query = f"{prefix}{DISTINCT.format(body=body)}"

    def _widened(self, clauses: Clauses, outer: Block, body: str) -> str:
        """A correlated subquery's inputs for every row of the query around it."""
        around = Clauses(clauses.reading, outer, clauses.all)
        nothing = Inputs(clauses.all[0])
        nothing.bases = [i for i in range(len(outer.items)) if not around.is_model(i)]
        pushed = [
            c
            for c in around.conjuncts
            if not any(c.span.has(r.span.start) or any(c.span.has(u.span.start) for u in r.uses) for r in clauses.all)
        ]
        nothing.pushed = [(c, c.text) for c in pushed]
        base = around.base_from(nothing)
        where = around.conditions(nothing, volatile=False)
        joined = f"{base}, LATERAL ({body}) AS __sqlft_inner" if base else f"({body}) AS __sqlft_inner"
        return f"SELECT __sqlft_inner.* FROM {joined}" + (f" WHERE {' AND '.join(where)}" if where else "")

    def _fetch(self, query: str) -> pa.Table:
        # con.sql binds without running, and a failure to bind leaves the user's transaction alive
        self._last_query = query
        return self.session.con.sql(query).to_arrow_reader(100_000).read_all()

    def _answers(self, book: Book, clauses: Clauses, inputs: Inputs, rows: pa.Table) -> pa.Table:
        """The relation of inputs and answers."""
        reference = inputs.reference
        outputs = mentioned_outputs(reference)
        ids = book.ids([rows.column(k) for k in range(len(reference.inputs))])
        weights = rows.column(len(reference.inputs)).to_pylist()
        book.asking.rows += sum(weights)
        read = is_read(reference, clauses)
        names = {*reference.inputs, *outputs, *(hidden(k) for k in range(len(reference.inputs)))}
        columns_read = frozenset(name.lower() for name in names)
        self.steps.append(Step(reference, book, self._last_query, sum(weights), read, columns_read))
        self.before_asking(self.steps[-1])
        if not self.dry and read:
            book.ask_all()
        columns: dict[str, Any] = {}
        for k, name in enumerate(reference.inputs):
            if name in inputs.implicit:
                columns[hidden(k)] = rows.column(k)
            if name not in inputs.implicit or reads_qualified(reference, name, self.text):
                columns[name] = rows.column(k)
        columns.update(zip(outputs, book.columns(ids, outputs, weights), strict=True))
        return pa.table(columns)

    def register(self, table: pa.Table) -> str:
        """Make the table readable for this statement; its name."""
        name = f"__sqlft_{next(_numbers)}"
        self.session.con.register(name, table)
        self.session.unregister_later(name)
        return name


# -- pieces of text ----------------------------------------------------------------------------------------


def substitution(
    reference: Reference, inputs: Inputs, clauses: Clauses, relation: str, *, limited: bool
) -> list[tuple[Span, str]]:
    """The changes that put the relation in the model's place."""
    item = clauses.block.items[clauses.item_of(reference)]
    changes = [(u.prefix, "") for u in reference.uses if u.prefix is not None]
    alias = identifier(reference.alias)
    if inputs.implicit:
        equal = " AND ".join(
            f"r.{hidden(k)} IS NOT DISTINCT FROM ({inputs.bindings[n].expression})"
            for k, n in enumerate(reference.inputs)
            if n in inputs.implicit
        )
        columns = ", ".join(hidden(k) for k, n in enumerate(reference.inputs) if n in inputs.implicit)
        if item.join_kind == "":
            raise StatementError(
                "The model stands before the table that gives its inputs.",
                clauses.text,
                reference.span.start,
                f"Put the table first: FROM table JOIN {reference.alias}.",
            )
        new = f"LATERAL (SELECT * EXCLUDE ({columns}) FROM {relation} AS r WHERE {equal}) AS {alias}"
        changes.append((item.span, new))
    else:
        changes.append((reference.span, relation if reference.aliased else f"{relation} AS {alias}"))
    if inputs.bases:
        changes += _null_safe(inputs)
    if item.join_kind.endswith("JOIN") and item.join_kind != "CROSS JOIN":
        if item.condition is None:
            changes.append((Span(item.span.end, item.span.end), " ON true"))
        inner = limited and clauses.only_bindings(item, inputs)
        wanted = "JOIN" if inner else "LEFT JOIN" if item.using else None
        if wanted is not None:
            changes.append((item.join, wanted))
    return changes


def _null_safe(inputs: Inputs) -> list[tuple[Span, str]]:
    """`=` that binds an input holds for NULL too: each row has one answer."""
    changes = []
    for binding in inputs.bindings.values():
        if binding.sides is not None and binding.operator is not None:
            left, right = binding.sides
            changes += [
                (Span(left.start, left.start), "("),
                (Span(left.end, right.start), ") IS NOT DISTINCT FROM ("),
                (Span(right.end, right.end), ")"),
            ]
    return changes


def limit_of(clauses: Clauses, inputs: Inputs) -> str | None:
    """ORDER BY and LIMIT for the input query where that gives the same result."""
    block = clauses.block
    if block.limit is None or inputs.kept or not clauses.is_row_wise():
        return None
    if len(clauses.references) != 1 or len(inputs.bases) + 1 != len(block.items):
        return None
    item = block.items[clauses.item_of(inputs.reference)]
    if (
        not clauses.only_bindings(item, inputs)
        or item.using
        or "%" in clauses.text[block.limit.start : block.limit.end]
    ):
        return None
    order = clauses.order_text(clauses.references)
    limit = limit_numbers(clauses, block)
    if order is None or limit is None:
        return None
    count, offset = limit
    return f"{f'ORDER BY {order} ' if order else ''}LIMIT ({count}) + ({offset})"


def limit_numbers(clauses: Clauses, block: Block) -> tuple[str, str] | None:
    """The expressions of LIMIT and OFFSET; None where there is more to it (a percentage, OFFSET alone)."""
    assert block.limit is not None
    anatomy = clauses.reading.anatomy
    inside = [i for i, t in enumerate(anatomy.tokens) if block.limit.has(t.start)]
    found: dict[str, list[int]] = {}
    current = ""
    depth = anatomy.depth[inside[0]]
    for i in inside:
        if anatomy.words[i] in ("LIMIT", "OFFSET") and anatomy.depth[i] == depth:
            current = anatomy.words[i]
            found[current] = []
        else:
            found[current].append(i)
    if not found.get("LIMIT") or anatomy.words[found["LIMIT"][-1]] in ("%", "PERCENT", "ALL", "NULL", "ROWS", "ROW"):
        return None
    texts = {
        word: clauses.text[anatomy.tokens[at[0]].start : anatomy.tokens[at[-1]].end] for word, at in found.items() if at
    }
    return texts["LIMIT"], texts.get("OFFSET", "0").removesuffix("ROWS").removesuffix("rows")


def hidden(k: int) -> str:
    """The name of an input column that joins but is not seen."""
    return f"__sqlft_input_{k}"


def mentioned_outputs(reference: Reference) -> list[str]:
    """The answer's columns, and those about it where the text mentions them: a star shows the answer only."""
    about = reference.resolved.outputs.derived
    return [*reference.targets, *(name for name in about if reference.reads(name))]


def recast(relation: str, reference: Reference) -> str:
    """The relation with the types that Arrow has no word for, as SQL."""
    outputs = reference.resolved.outputs
    parts = zip(outputs.columns, outputs.kinds, strict=True)
    casts = [f"{identifier(c.name)}::{kind.text} AS {identifier(c.name)}" for c, kind in parts if kind.recast]
    return f"(SELECT * REPLACE ({', '.join(casts)}) FROM {relation})" if casts else relation


def reads_qualified(reference: Reference, name: str, text: str) -> bool:
    """Whether the text says alias.name."""
    return any(u.column.lower() == name.lower() and "." in text[u.span.start : u.span.end] for u in reference.uses)


def is_read(reference: Reference, clauses: Clauses) -> bool:
    """Whether anybody reads what the model answers; a subquery may give out what nobody takes."""
    if reference.whole:
        return True
    outputs = {name.lower() for name in reference.outputs}
    uses = [u.span for u in reference.uses if u.column.lower() in outputs]
    names = clauses.given_out(reference, uses) if uses else set()
    if names is None:
        return True
    outside = [t for t in clauses.reading.tokens if not reference.block.span.has(t.start)]
    return any(t.value.lower() in names for t in outside if t.kind in ("word", "quoted"))


def bind_error(error: duckdb.Error, inputs: Inputs, text: str) -> Exception:
    """What DuckDB says of an unbound input, in the words of the model."""
    for name in inputs.implicit:
        if name.lower() in str(error).lower() and "not found" in str(error).lower():
            model = inputs.reference.resolved.model.key.name
            return StatementError(
                f"The input '{name}' of the model '{model}' has no value, and no table has a column of that name.",
                text,
                inputs.reference.span.start,
                f"Map it: JOIN {model} ON {model}.{name} = table.column.",
            )
    absent = re.search(r'Referenced table "(.+?)" not found', str(error))
    if absent is not None and inputs.bindings:
        return StatementError(
            f"An input of the model '{inputs.reference.resolved.model.key.name}' comes from '{absent[1]}', "
            "which is joined to the model's answer.",
            text,
            inputs.reference.span.start,
            f"Put the table first: FROM {absent[1]} JOIN …, or the condition on the answer into WHERE.",
        )
    return error
