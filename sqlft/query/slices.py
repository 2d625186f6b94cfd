"""A query whose every row comes from one row of its tables, answered slice by slice while models are asked."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import duckdb
import pyarrow as pa

from sqlft.data.prompts import prompt_text_sql
from sqlft.errors import StatementError
from sqlft.inference.statement_runs import PromptTable
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.execute import (
    Execution,
    answer_casts,
    cast_relation_sql,
    is_cast_back,
    is_exact_type,
    make_modifiers,
    new_relation_name,
)
from sqlft.query.plan import StreamPlan, join_value_lists
from sqlft.query.retrieval import ContextTable
from sqlft.query.scope import ModelScan, Scan, ScanRemover, add_ctes, drop_schema, hide_columns, leaves, select
from sqlft.query.spool import BATCH_ROWS, Spool, make_relation
from sqlft.sql.names import quote_name

FIRST_ROWS, MAX_ROWS = 64, 16384
FILTERED_ROWS = (64, 64, 128, 256, 512, 1024, 2048, 4096)
EMIT_SECONDS = 0.05


@dataclass
class SpooledTable:
    """A relation of the FROM clause that is no model: its alias, and the columns that are needed of it."""

    node: Node
    alias: str
    columns: list[str]
    kinds: dict[tuple[str, str], str]
    """The types of all of its columns, by alias and name in lower case."""
    first: int = 0
    """Place of its first column among those that are kept."""


def find_spooled_tables(run: Execution, stream: StreamPlan) -> list[SpooledTable] | None:
    """The tables with their needed columns; None where a name or a type would not survive the spool."""
    block, con = stream.block, run.session.con
    remover = ScanRemover(block, stream.stages)
    for i, leaf in enumerate(stream.tables):
        if not ast.alias_of(leaf):
            leaf["alias"] = f"__sqlft_t{i}"
        elif not leaf.get("alias"):
            leaf["alias"] = ast.alias_of(leaf)
    aliases = [leaf["alias"].lower() for leaf in stream.tables] + [s.alias.lower() for s in stream.stages]
    if len(set(aliases)) < len(aliases):
        return None
    relation = remover.copy_relation(block.node["from_table"])
    if any(j.get("using_columns") or j.get("ref_type") == "NATURAL" for j in remover.kept_joins):
        return None
    if any(ast.join_type(j) in ("SEMI", "ANTI") for j in remover.kept_joins):
        return None
    for alias in aliases:
        drop_schema(block.node, alias)
    direct = [s for s in stream.stages if not _waits_for_answers(s, remover)]
    bound_away = {id(n) for s in direct for c in s.conditions() for n in ast.walk(c.node)}
    names: set[str] = set()
    whole: set[str] = set()
    for node in ast.walk(run.plan.bound.tree):
        if ast.is_column(node) and id(node) not in bound_away:
            names.update(n.lower() for n in node["column_names"])
            if len(node["column_names"]) == 1:
                whole.add(node["column_names"][0].lower())
        elif node.get("class") == "STAR":
            whole.update([node["relation_name"].lower()] if node.get("relation_name") else aliases)
    tables = []
    first = 0
    for leaf in stream.tables:
        try:
            rows = con.sql(_all_columns_sql(run, stream, leaf, relation))
        except duckdb.Error:
            return None
        types = [(name, str(kind)) for name, kind in zip(rows.columns, rows.types, strict=True)]
        everything = leaf["alias"].lower() in whole
        columns = [(c, t) for c, t in types if everything or c.lower() in names] or types[:1]
        lowered = [c.lower() for c, _ in columns]
        if len(set(lowered)) != len(lowered) or not all(is_exact_type(t) for _, t in columns):
            return None
        kinds = {(leaf["alias"].lower(), c.lower()): t for c, t in types}
        tables.append(SpooledTable(leaf, leaf["alias"], [c for c, _ in columns], kinds, first))
        first += len(columns)
    return tables


def _waits_for_answers(scan: Scan, remover: ScanRemover) -> bool:
    """Whether an input comes from an answer that is not known yet."""
    singles = [b.values[0] for b in scan.bindings.values() if b.is_single_value]
    return any(remover.copy_condition(v) is None for v in singles)


def _all_columns_sql(run: Execution, stream: StreamPlan, leaf: Node, relation: Node | None) -> str:
    """SELECT alias.* FROM the tables; that of a single one is written by hand, which is quicker."""
    if relation is not None and ast.is_table(relation):
        parts = [p for p in ast.table_name(relation) if p and p not in run.casts]
        is_plain = not any(relation.get(k) for k in ("sample", "column_name_alias", "at_clause"))
        if is_plain and parts and parts[-1].lower() not in {e["key"].lower() for e in stream.block.ctes}:
            return f"SELECT * FROM {'.'.join(map(quote_name, parts))}"
    query = add_ctes(select("x.*", relation), stream.block.ctes)
    query["select_list"][0]["relation_name"] = leaf["alias"]
    return run.to_sql(query)


@dataclass
class SlicedModel:
    """One model of the FROM clause: which prompt each row has."""

    scan: Scan
    prompt_table: PromptTable | ContextTable
    expressions: list[Node]
    """What gives its inputs; over the answers of others where `is_chained`."""
    is_chained: bool
    kinds: list[str] = field(default_factory=list)
    first: int = 0
    """Place of its first text in the spool query."""
    shown_columns: list[tuple[str, int]] = field(default_factory=list)
    """Inputs that the result shows, and their places among the kept columns."""
    ids: list[pa.Array] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    first_ids: array[int] = field(default_factory=partial(array, "q"))
    """Prompts in order of appearance …"""
    first_rows: array[int] = field(default_factory=partial(array, "q"))
    """… and the row where each appears first."""

    def set_types(self, kinds: list[str]) -> None:
        """What its inputs are, once that is known."""
        self.kinds = kinds
        if isinstance(self.prompt_table, ContextTable):
            self.prompt_table.types = kinds

    def add_rows(self, ids: pa.Array, start: int) -> None:
        """Give rows their prompts."""
        self.ids.append(ids)
        self.starts.append(start)
        seen = self.first_ids[-1] if self.first_ids else -1
        encoded = ids.dictionary_encode()
        for i, place in zip(encoded.dictionary.to_pylist(), _find_first_rows(encoded.indices), strict=True):
            if i > seen:
                self.first_ids.append(i)
                self.first_rows.append(start + place)

    def count_ready_rows(self, rows: int) -> int:
        """The row before which all rows have answers."""
        if not self.scan.is_read or not self.first_ids:
            return rows
        known = self.prompt_table.inference_run.count_answered(self.first_ids[-1] + 1)
        place = bisect_left(self.first_ids, known)
        return rows if place == len(self.first_ids) else self.first_rows[place]

    def count_prompts_before(self, row: int) -> int:
        """How many prompts rows before `row` need, as the prompt table counts them."""
        place = bisect_left(self.first_rows, row)
        return self.first_ids[place - 1] + 1 if place else 0

    def slice_ids(self, start: int, end: int) -> pa.Array:
        """The ids of rows start … end."""
        pieces = []
        for first, ids in zip(self.starts, self.ids, strict=True):
            low, high = max(start, first), min(end, first + len(ids))
            if low < high:
                pieces.append(ids.slice(low - first, high - low))
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.int32())


def _find_first_rows(codes: pa.Array) -> list[int]:
    """The row where each code of a dictionary appears first: codes count up in that order, NULL between them."""
    import pyarrow.compute as pc

    highest = pc.cumulative_max(pc.fill_null(codes, -1))
    before = pa.concat_arrays([pa.array([-1], highest.type), highest.slice(0, max(0, len(highest) - 1))])
    return list(pc.indices_nonzero(pc.greater(highest, before)).to_pylist())


class SlicedQuery:
    """A query whose every result row comes from one row of its tables, answered piece by piece.

    The rows of its tables are spooled in order; then, as answers become known, slices of them are put in the place of
    its tables, side by side with the answers (POSITIONAL JOIN), and the rest of the query runs over each slice.  So
    first rows come while later ones are still being answered, LIMIT stops the asking, and no Arrow reader is left open
    on the user's connection.
    """

    def __init__(self, run: Execution, stream: StreamPlan, tables: list[SpooledTable]) -> None:
        self.run, self.stream, self.tables = run, stream, tables
        self._session = run.session
        self._con = run.session.con
        self._spool: Spool | None = None
        self._closed = False
        self._first_relation: duckdb.DuckDBPyRelation | None = None
        """The one slice of rows whose answers the cache had."""
        self._limit: tuple[int | None, int] = (None, 0)
        remover = ScanRemover(stream.block, stream.stages)
        self.models = []
        for scan in stream.stages:
            waits = _waits_for_answers(scan, remover)
            # A list's values come from a relation of their own, whose column `_make_spool_query` puts in.
            values = [remover.copy(b.values[0] if b.is_single_value else {}) for b in scan.bindings.values()]
            self.models.append(SlicedModel(scan, run.open_answers(scan), values, waits))
        self._names = {id(x): new_relation_name() for x in [*tables, *self.models]}
        self.spool_query = self._make_spool_query(remover)
        self._order = [*leaves(stream.block.node["from_table"])]
        self.text = self._make_slice_query()

    @property
    def is_filtered(self) -> bool:
        """Whether a limit waits for rows that pass a condition on answers."""
        return self.stream.output_limit is not None

    # -- the two queries ---------------------------------------------------------------------------------------------

    def _make_spool_query(self, remover: ScanRemover) -> str:
        """The tables' rows, the texts of the models' inputs, and their values where they are shown."""
        stream, block = self.stream, self.stream.block
        relation = remover.copy_relation(block.node["from_table"])
        placed = [*stream.answer_conditions, *(c for s in stream.stages for c in s.conditions())]
        left = [c for c in block.conditions if c not in placed and c.holder not in remover.kept_joins]
        where = [copied for c in left if (copied := remover.copy_condition(c.node)) is not None]
        where += self.run.plan.pushed_conditions[id(block.node)]
        columns = [ast.column(t.alias, c) for t in self.tables for c in t.columns]
        direct = [a for a in self.models if not a.is_chained]
        count = len(columns)
        if not self.tables:
            relation, lists = join_value_lists([a.scan for a in direct], remover)
            for model in direct:
                model.expressions = [lists.get((model.scan.number, j), e) for j, e in enumerate(model.expressions)]
        inputs = [e for a in direct for e in a.expressions]
        body = select("1", relation, where)
        kinds = iter(self._find_types(inputs, body))
        texts: list[Node] = []
        values: list[Node] = []
        for model in direct:
            model.set_types([next(kinds) for _ in model.expressions])
            for name, expression, kind in zip(model.scan.inputs, model.expressions, model.kinds, strict=True):
                texts.append(ast.expression(prompt_text_sql("x", kind), x=expression))
                if name in model.scan.find_shown_inputs():
                    model.shown_columns.append((model.scan.shown_column(name), count + len(values)))
                    values.append(texts[-1] if is_cast_back(kind) else expression)
        place = count + len(values)
        for model in direct:
            model.first, place = place, place + len(model.expressions)
        self._kept = list(range(count + len(values)))
        body["select_list"] = [{**deepcopy(e), "alias": f"c{k}"} for k, e in enumerate([*columns, *values, *texts])]
        for key in ("qualify", "sample"):
            if block.node.get(key):
                body[key] = block.node[key]
        body["modifiers"] = make_modifiers(stream.orders, *(stream.input_limit or (None, None)))
        query = self.run.to_sql(add_ctes(body, block.ctes))
        if not self.tables and inputs and relation is not None:
            keys = ", ".join(f"encode(c{k})" for k in range(len(values), place))
            numbered = f"SELECT *, row_number() OVER () AS n_ FROM ({query}) AS rows_"
            query = f"SELECT DISTINCT ON ({keys}) * FROM ({numbered}) AS numbered_ ORDER BY n_"
        return query

    def _find_types(self, expressions: list[Node], body: Node) -> list[str]:
        """The types of expressions over the tables; DuckDB is asked where they are not plain texts or columns."""
        known = {place: kind for t in self.tables for place, kind in t.kinds.items()}
        kinds = [
            known.get(tuple(n.lower() for n in e["column_names"]), "") if ast.is_column(e) else ast.literal_type(e)
            for e in expressions
        ]
        if all(kinds):
            return kinds
        asked = add_ctes({**body, "select_list": deepcopy(expressions)}, self.stream.block.ctes)
        return [str(t) for t in self._bind_query(asked).types]

    def _bind_query(self, query: Node) -> duckdb.DuckDBPyRelation:
        try:
            return self._con.sql(self.run.to_sql(query))
        except duckdb.BinderException as e:
            raise self.run.bind_error(e, self.stream.stages) from e

    def _make_slice_query(self) -> str:
        """The user's query over slices; the tree is changed for good."""
        stream, block = self.stream, self.stream.block
        for model in self.models:
            hide_columns(model.scan, [])
        block.node["from_table"] = ast.positional_join([self._name_part(self._find_part(leaf)) for leaf in self._order])
        block.node["where_clause"] = ast.conjunction([c.node for c in stream.answer_conditions])
        for node in stream.levels:
            if stream.input_limit is not None or stream.output_limit is not None:
                node["modifiers"] = [m for m in node.get("modifiers", []) if m["type"] != "LIMIT_MODIFIER"]
        for key in ("qualify", "sample"):
            block.node[key] = None
        return self.run.to_sql(self.run.plan.bound.tree)

    def _find_part(self, leaf: Node) -> SpooledTable | SlicedModel:
        table = next((t for t in self.tables if t.node is leaf), None)
        return table or next(m for m in self.models if m.scan.node is leaf)

    def _name_part(self, part: SpooledTable | SlicedModel) -> tuple[str, str]:
        """The registered name and the alias of a table's rows or a model's answers."""
        name = self._names[id(part)]
        if isinstance(part, SpooledTable):
            return name, part.alias
        scan = part.scan
        casts = answer_casts(scan)
        shown = {n for n, _ in part.shown_columns}
        for input_, kind in zip(scan.inputs, part.kinds, strict=False):
            column = scan.shown_column(input_)
            if column in shown and is_cast_back(kind):
                casts[column] = kind
        if casts:
            self.run.casts[name] = cast_relation_sql(name, casts)
        return name, scan.alias

    # -- running -----------------------------------------------------------------------------------------------------

    def start(self) -> duckdb.DuckDBPyRelation:
        """Spool the rows; a DuckDB relation that knows the result's columns and types."""
        try:
            return self._start()
        except BaseException:
            self.close(error=True)
            raise

    def _start(self) -> duckdb.DuckDBPyRelation:
        reader = self._read_literal_rows() or self._con.sql(self.spool_query).to_arrow_reader(BATCH_ROWS)
        self._spool = Spool(reader, self._assign_prompts, lambda: self._session.interrupted)
        for model in self.models:
            model.prompt_table.inference_run.rows += self._spool.rows
        if self.stream.output_limit is not None:
            self._limit = self._evaluate_limit(*self.stream.output_limit)
        is_known = self._spool.rows <= FIRST_ROWS and all(self._is_cached(a) for a in self.models)
        self._register(0, self._spool.rows if is_known else 0)
        relation = self._con.sql(self.text)
        self._first_relation = relation if is_known else None
        return relation

    def _read_literal_rows(self) -> pa.RecordBatchReader | None:
        """The one row of a query whose inputs are texts in quotes, as DuckDB would give it."""
        inputs = [e for a in self.models for e in a.expressions]
        conditions = [c for c in self.stream.block.conditions if c not in self.stream.answer_conditions]
        bindings = sum(len(s.conditions()) for s in self.stream.stages)
        if self.tables or self.stream.input_limit is not None or len(conditions) != bindings:
            return None
        if not all(ast.is_constant(e) and ast.literal_type(e) for e in inputs):
            return None
        pairs = [(a.scan, n, e) for a in self.models for n, e in zip(a.scan.inputs, a.expressions, strict=True)]
        shown = [expression for scan, name, expression in pairs if name in scan.find_shown_inputs()]
        arrays = [pa.array([ast.literal_text(e)], pa.string()) for e in [*shown, *inputs]]
        batch = pa.RecordBatch.from_arrays(arrays, [f"c{k}" for k in range(len(arrays))])
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])

    def _is_cached(self, model: SlicedModel) -> bool:
        """Whether the cache has all answers, so that the first slice need not wait for anything."""
        if model.is_chained:
            return False
        return not model.scan.is_read or model.prompt_table.inference_run.read_cache()

    def _evaluate_limit(self, limit: Node | None, offset: Node | None) -> tuple[int | None, int]:
        listed = [f"({ast.expression_sql(n)})::BIGINT" if n is not None else "NULL" for n in (limit, offset)]
        row = self._con.sql(f"SELECT {', '.join(listed)}").fetchall()[0]
        if any(n is not None and n < 0 for n in row):
            raise StatementError(
                "LIMIT and OFFSET must not be negative.", self.run.text, 0, "Write a number from 0 on."
            )
        return row[0], row[1] or 0

    def _assign_prompts(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """Give the rows their prompts, and keep what the result shows."""
        for model in self.models:
            if not model.is_chained and batch.num_rows:
                columns = [batch.column(model.first + k) for k in range(len(model.expressions))]
                model.add_rows(model.prompt_table.ids(columns), start)
        return batch.select(self._kept)

    def chunks(self) -> Iterator[duckdb.DuckDBPyRelation]:
        """DuckDB relations, each with some of the result's rows, in order."""
        spool = self._spool
        assert spool is not None
        left, skip = self._limit
        row, most = 0, iter(FILTERED_ROWS if self.is_filtered else ())
        cap = FIRST_ROWS // 4
        try:
            while row < spool.rows and left != 0:
                cap = next(most, min(MAX_ROWS, cap * 4))
                if self._first_relation is not None:
                    relation, end = self._first_relation, spool.rows
                else:
                    end = self._answer(row, min(spool.rows, row + cap))
                    self._register(row, end)
                    relation = self._con.sql(self.text)
                row = end
                if self.is_filtered:
                    relation, left, skip = self._apply_limit(relation, left, skip)
                yield relation
        except BaseException:
            self.close(error=True)
            raise
        self.close()

    def _answer(self, row: int, target: int) -> int:
        """Ask until at least one more row can be returned; the row before which all can."""
        started = time.monotonic()
        direct = [a for a in self.models if not a.is_chained]
        while True:
            end = min([target, *(a.count_ready_rows(target) for a in direct)])
            if end >= target or (end > row and time.monotonic() - started > EMIT_SECONDS):
                return max(end, row)
            slowest = min(direct, key=lambda a: a.count_ready_rows(target))
            asking = slowest.prompt_table.inference_run
            needed = slowest.count_prompts_before(target)
            asking.advance(needed, needed - asking.count_answered(needed))

    def _register(self, start: int, end: int) -> None:
        assert self._spool is not None
        rows = self._spool.slice(start, end)
        for table in self.tables:
            part = rows.select(range(table.first, table.first + len(table.columns))).rename_columns(table.columns)
            self._con.register(self._names[id(table)], part)
        for model in self.models:
            if not model.is_chained:
                self._con.register(
                    self._names[id(model)], self._make_answer_table(model, rows, model.slice_ids(start, end))
                )
        for model in self.models:
            if model.is_chained:
                self._register_chained_model(model, rows.num_rows, start)

    def _register_chained_model(self, model: SlicedModel, rows: int, start: int) -> None:
        """Ask a model whose inputs are the answers of others, for the rows of a slice."""
        known = [a for a in self.models if not a.is_chained or a.ids]
        sources: list[SpooledTable | SlicedModel] = [*self.tables, *known]
        joined = ast.positional_join([self._name_part(x) for x in sources if x is not model])
        if not model.kinds:
            body = select("1", joined)
            body["select_list"] = deepcopy(model.expressions)
            model.set_types([str(t) for t in self._bind_query(body).types])
        values = [ast.expression_sql(e) for e in model.expressions]
        texts = [prompt_text_sql(v, kind) for v, kind in zip(values, model.kinds, strict=True)]
        shown = [t if is_cast_back(k) else v for t, v, k in zip(texts, values, model.kinds, strict=True)]
        query = self.run.to_sql(select(", ".join(f"{c} AS c{k}" for k, c in enumerate([*texts, *shown])), joined))
        inputs = self._con.sql(query).to_arrow_reader(MAX_ROWS).read_all().slice(0, rows)
        count = len(texts)
        ids = model.prompt_table.ids([inputs.column(k) for k in range(count)])
        if not model.ids:
            model.ids.append(ids)
        if rows and model.scan.is_read:
            model.prompt_table.ask_all()
        names = model.scan.find_shown_inputs()
        model.shown_columns = [
            (model.scan.shown_column(n), count + j) for j, n in enumerate(model.scan.inputs) if n in names
        ]
        self._con.register(self._names[id(model)], self._make_answer_table(model, inputs, ids))

    def _make_answer_table(self, model: SlicedModel, rows: pa.Table, ids: pa.Array) -> pa.Table:
        columns: dict[str, pa.ChunkedArray] = {name: rows.column(place) for name, place in model.shown_columns}
        columns.update(zip(model.scan.outputs, model.prompt_table.columns(ids, model.scan.outputs), strict=True))
        return pa.table(columns)

    # -- results -----------------------------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        """The result as one Arrow table."""
        schema: pa.Schema = self.start().to_arrow_reader(1).read_all().schema
        pieces = (relation.to_arrow_reader(BATCH_ROWS).read_all().cast(schema) for relation in self.chunks())
        return pa.Table.from_batches((batch for piece in pieces for batch in piece.to_batches()), schema)

    def _apply_limit(
        self, relation: duckdb.DuckDBPyRelation, left: int | None, skip: int
    ) -> tuple[duckdb.DuckDBPyRelation, int | None, int]:
        table = relation.to_arrow_reader(MAX_ROWS).read_all()
        skipped = min(skip, table.num_rows)
        table = table.slice(skipped) if left is None else table.slice(skipped, left)
        return make_relation(self._con, table), None if left is None else left - table.num_rows, skip - skipped

    def close(self, error: bool = False) -> None:
        """Release everything; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._spool is not None:
            self._spool.close()
        for name in self._names.values():
            self._session.unregister_later(name)
        self.run.statement_runs.finish(error)


def slice_query(run: Execution, *, streams_contexts: bool = True) -> SlicedQuery | None:
    """A query answered slice by slice, its other models asked already; None if it cannot be.

    Without `streams_contexts` knowledge bases are searched before, for all rows.
    """
    run.search_first(later=streams_contexts)
    stream = run.plan.stream
    tables = find_spooled_tables(run, stream) if stream is not None else None
    if stream is None or tables is None:
        return None
    unasked = {s.number for s in run.plan.order}
    for scan in run.plan.order:
        if isinstance(scan, ModelScan) and scan not in stream.stages:
            run.put_answers(run.read_prompts(scan, unasked))
            unasked.discard(scan.number)
    return SlicedQuery(run, stream, tables)
