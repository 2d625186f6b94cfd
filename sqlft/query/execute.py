"""A plan carried out: input rows are fetched, models are asked, their answers stand where the models stood.

`sqlft.query` calls it with a plan; it gives back the text that DuckDB runs (`Execution.run_to_sql`), or rows slice by
slice (`SlicedQuery`).  Answers are joined by the text of the inputs, byte by byte: never by what DuckDB takes
for equal (collations, intervals, -0.0), so each row has the answer to its own text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from sqlft.data.prompts import is_nested_type, prompt_text_sql
from sqlft.errors import NotSupported, StatementError
from sqlft.inference.statement_runs import PromptTable, StatementRuns
from sqlft.knowledge.search import FOUND
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.plan import PushedLimit, QueryPlan, build_input_query, make_plan, push_limit
from sqlft.query.retrieval import ContextTable, KnowledgeScan, Search, SearchStep, build_search_options
from sqlft.query.scope import (
    Condition,
    ModelScan,
    QueryBlock,
    Scan,
    ScanRemover,
    add_ctes,
    hide_columns,
    join_laterally,
    leaves,
    rename_hidden_columns,
    select,
    write_conditions,
)
from sqlft.session import Session
from sqlft.sql.names import quote_name

EXACT_TYPES = frozenset(
    {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT"}
    | {"DOUBLE", "VARCHAR", "BLOB", "DATE", "TIME", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
    | {"TIMESTAMP WITH TIME ZONE"}
)
"""Types that come back from Arrow as they went in; DECIMAL too, and lists of them."""
DETAIL_SUFFIXES = ("_usage", "_logprob", "_reasoning")
"""Ends of columns that need more of an answer than its text."""
_relation_numbers = itertools.count(1)


@dataclass(frozen=True)
class ModelStep:
    """A model whose input rows are read: the query that gave them, and which prompt each distinct one is."""

    scan: ModelScan
    prompt_table: PromptTable
    query: str
    inputs: pa.Table
    """Distinct texts of the inputs: k0 …, their values where they are shown: v0 …, and n rows each."""
    types: list[str]
    prompt_ids: pa.Array
    rows: int
    is_limited: bool
    """Whether a LIMIT of the query went below the model."""

    @property
    def columns(self) -> frozenset[str]:
        """Lower-case names of the columns that what stands in the model's place may have."""
        scan = self.scan
        names = (*scan.inputs, *scan.outputs, *(scan.hidden_column(n) for n in scan.inputs), *_key_columns(scan))
        return frozenset(n.lower() for n in names)


def is_exact_type(kind: str) -> bool:
    """Whether a type comes back from Arrow as it went in."""
    plain = kind
    while plain.endswith("[]"):
        plain = plain[:-2]
    return plain in EXACT_TYPES or plain.startswith("DECIMAL(")


def is_cast_back(kind: str) -> bool:
    """Whether a value of this type is kept as its text and cast back, since Arrow would change it."""
    return not (is_exact_type(kind) or is_nested_type(kind) or kind in ("JSON", '"NULL"'))


def _encode_text(text: Node) -> Node:
    """What texts are compared by: their bytes, whatever collation is set."""
    return ast.expression("encode(x)", x=text)


class Execution:
    """One query's models, asked; `dry` asks nothing and fetches no rows, for DESCRIBE, views and WITH NO DATA."""

    def __init__(
        self, session: Session, statement_runs: StatementRuns, plan: QueryPlan, text: str, *, dry: bool = False
    ) -> None:
        self.session, self.statement_runs, self.plan, self.text, self.dry = session, statement_runs, plan, text, dry
        self.reads_inputs = not dry
        """Whether input rows are fetched; EXPLAIN does, and asks nothing."""
        self.searches: list[SearchStep] = []
        """Knowledge bases that were searched."""
        self.casts: dict[str, str] = {}
        """By registered relation: the query that gives its columns their types.

        It is put into the text, since not every version of DuckDB has a tree for every type.
        """
        self.prompt_tables = {
            s.number: statement_runs.prompt_table(s.resolved, s.alias)
            for s in plan.bound.scans
            if isinstance(s, ModelScan)
        }
        for scan in plan.bound.scans:
            if isinstance(scan, KnowledgeScan):
                build_search_options(scan, statement_runs)
        statement_runs.check_using()
        detailed = [s.number for s in plan.bound.scans if any(n.endswith(DETAIL_SUFFIXES) for n in s.outputs)]
        for prompts in self.prompt_tables.values():
            prompts.inference_run.keeps_details = any(self.prompt_tables[n] is prompts for n in detailed)
        _name_columns(plan)
        for scan in plan.bound.scans:
            if scan.hides_inputs:
                rename_hidden_columns(scan)

    def run_to_sql(self) -> str:
        """Ask all models; the query over their answers."""
        for _ in self.ask_models():
            pass
        return self.final_sql()

    def ask_models(self) -> Iterator[ModelStep]:
        """Ask the models one after the other; yields each when its prompts are known, before it is asked."""
        self.search_first(later=False)
        if self.reads_inputs:
            self._keep_volatile_rows()
        unasked = {s.number for s in self.plan.order}
        for scan in self.plan.order:
            if isinstance(scan, ModelScan):
                step = self.read_prompts(scan, unasked)
                yield step
                self.put_answers(step)
            elif isinstance(scan, KnowledgeScan):
                self._search(scan, unasked)
            unasked.discard(scan.number)

    def search_first(self, *, later: bool) -> None:
        """Search the knowledge bases that need no model's answer; what they have is a table to the plan then.

        With `later` contexts are left to a query that is answered slice by slice, if it is one.
        """
        bound = self.plan.bound
        first = list(itertools.takewhile(lambda s: isinstance(s, KnowledgeScan), self.plan.order))
        if not first:
            return
        if self.reads_inputs:
            self._keep_volatile_rows()
        unasked = {s.number for s in self.plan.order}
        if not later:
            self._search_all(first, unasked)
        elif any(s.gives_rows for s in first):
            last = max(i for i, s in enumerate(first) if s.gives_rows)
            self._search_all(first[: last + 1], unasked)
        if self.plan.stream is None:
            self._search_all([s for s in first if s in bound.scans], unasked)

    def _search_all(self, scans: Sequence[Scan], unasked: set[int]) -> None:
        bound = self.plan.bound
        for scan in scans:
            if isinstance(scan, KnowledgeScan):
                self._search(scan, unasked)
            unasked.discard(scan.number)
            bound.scans.remove(scan)
            scan.block.scans.remove(scan)
        self.plan = make_plan(bound, streams=self.plan.streams)

    def _drops_rows(self, scan: KnowledgeScan) -> bool:
        """Whether another scan of the block may leave out rows of this one, by its answers or its chunks."""
        others = [s for s in scan.block.scans if s is not scan]
        bindings = [c for s in scan.block.scans for c in s.conditions()]
        left = [c for c in scan.block.conditions if all(c is not b for b in bindings)]
        return any(s.gives_rows or any(s.find_uses_in(c.node) for c in left) for s in others)

    def open_answers(self, scan: Scan) -> PromptTable | ContextTable:
        """Where a model's answers, or the contexts of a knowledge base, are found by their inputs."""
        if isinstance(scan, KnowledgeScan):
            return ContextTable(self.session, self.statement_runs, scan)
        return self.prompt_tables[scan.number]

    def _search(self, scan: KnowledgeScan, unasked: set[int]) -> None:
        """Search a knowledge base for the distinct inputs of the query, and put a relation of chunks in its place."""
        import pyarrow.compute as pc

        inputs, query, types = self._read_input_rows(scan, None, unasked)
        search = Search(self.session, self.statement_runs, scan, types)
        found = FOUND.empty_table()
        if self.reads_inputs and scan.is_read and inputs.num_rows:
            if self.dry:
                found = search.guess(inputs)
            else:
                found = search.find(inputs, None if self._drops_rows(scan) else scan.row_limit)
        found_name = register_table(self.session, found)
        rows = int(pc.sum(inputs.column("n")).as_py() or 0)
        self.searches.append(SearchStep(scan, search, query, rows, inputs, found.num_rows))
        key_columns = dict(zip(scan.inputs, _key_columns(scan), strict=True))
        joined = {name for name in scan.inputs if self._is_joined(scan, name)}
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"question_": pa.array(range(inputs.num_rows), pa.int64())}
        shown = {}
        for j, name in enumerate(scan.inputs):
            if name in joined:
                columns[key_columns[name]] = inputs.column(f"k{j}")
            if name in scan.find_shown_inputs():
                columns[scan.shown_column(name)] = inputs.column(f"k{j}")
                shown[scan.shown_column(name)] = types[j]
        if scan.shows_context:
            columns[scan.context_column] = search.contexts(found_name, inputs.num_rows)
        kept = [c for c in columns if c not in shown and c != "question_"]
        keys_name = register_table(self.session, pa.table(columns))
        name = new_relation_name()
        self.casts[name] = search.relation_sql(found_name, keys_name, shown, kept)
        self._replace(scan, ast.registered_table(name, scan.alias), types, joined, limited=False)

    def final_sql(self) -> str:
        """The query with relations of answers in the models' places."""
        return self.to_sql(self.plan.bound.tree)

    def to_sql(self, tree: Node) -> str:
        """A tree as text, relations of answers with their types."""
        text = ast.to_sql(tree)
        for name, query in self.casts.items():
            text = text.replace(name, query)
        return text

    def _keep_volatile_rows(self) -> None:
        """Keep the rows of relations that differ each time they are read: samples, random()."""
        for block in self.plan.bound.blocks:
            models = [s.node for s in block.scans]
            for leaf in list(leaves(block.node.get("from_table"))):
                is_chance = models and not any(leaf is m for m in models) and ast.is_volatile(leaf)
                if is_chance or leaf.get("type") == "SHOW_REF":  # SHOW TABLES would show the answers
                    self._keep_rows(leaf, block)

    def _keep_rows(self, leaf: Node, block: QueryBlock) -> None:
        query = self.to_sql(add_ctes(select("*", leaf), block.ctes))
        try:
            relation = self.session.con.sql(query)
        except duckdb.Error:
            relation = None
        if relation is None or not all(is_exact_type(str(t)) for t in relation.types):
            raise NotSupported(
                "The rows for the model are drawn by chance, and this query would need to draw the same ones twice.",
                "Draw them into a table first: CREATE TEMP TABLE drawn AS …, and join that.",
            )
        name = register_table(self.session, relation.to_arrow_reader(100_000).read_all())
        table = ast.registered_table(name, ast.alias_of(leaf))
        leaf.clear()
        leaf.update(table)

    # -- one model -----------------------------------------------------------------------------------------------

    def read_prompts(self, scan: ModelScan, unasked: set[int]) -> ModelStep:
        """Read a model's input rows and give them their prompts; nothing is asked."""
        import pyarrow.compute as pc

        limit = push_limit(scan, self.plan)
        inputs, query, types = self._read_input_rows(scan, limit, unasked)
        prompts = self.prompt_tables[scan.number]
        texts = [inputs.column(f"k{j}") for j in range(len(scan.inputs))]
        is_only = sum(p is prompts for p in self.prompt_tables.values()) == 1
        rows = int(pc.sum(inputs.column("n")).as_py() or 0)
        prompts.inference_run.rows += rows
        return ModelStep(
            scan, prompts, query, inputs, types, prompts.ids(texts, is_all=is_only), rows, limit is not None
        )

    def put_answers(self, step: ModelStep) -> None:
        """Ask a model, and put a relation of its answers in its place."""
        scan, types, inputs = step.scan, step.types, step.inputs
        if self.reads_inputs and not self.dry and scan.is_read:
            step.prompt_table.ask_all()
        columns: dict[str, pa.ChunkedArray] = {}
        casts: dict[str, str] = {}
        keys = dict(zip(scan.inputs, _key_columns(scan), strict=True))
        joined = {name for name in scan.inputs if self._is_joined(scan, name)}
        shown = scan.find_shown_inputs()
        for j, name in enumerate(scan.inputs):
            if name in joined:
                columns[keys[name]] = inputs.column(f"k{j}")
            if name in shown:
                column = scan.shown_column(name)
                by_text = is_cast_back(types[j])
                columns[column] = inputs.column(f"k{j}" if by_text else f"v{j}")
                if by_text:
                    casts[column] = types[j]
        answers = step.prompt_table.columns(step.prompt_ids, scan.outputs, inputs.column("n"))
        columns.update(zip(scan.outputs, answers, strict=True))
        relation = self._make_relation(scan, register_table(self.session, pa.table(columns)), casts)
        self._replace(scan, relation, types, joined, limited=step.is_limited)

    def _read_input_rows(
        self, scan: Scan, limit: PushedLimit | None, unasked: set[int]
    ) -> tuple[pa.Table, str, list[str]]:
        """The rows of a step's inputs, the query that gave them, and the inputs' types."""
        base = build_input_query(scan, self.plan, unasked)
        body = select("1", base.relation, base.where)
        body["select_list"] = [{**deepcopy(v), "alias": f"v{j}"} for j, v in enumerate(base.inputs)]
        if limit is not None:
            body["modifiers"] = make_modifiers(limit.orders, limit.limit, None)
        body = add_ctes(body, scan.block.ctes)
        kinds, body = self._bind(scan, body, unasked)
        shown = scan.find_shown_inputs()
        count = range(len(scan.inputs))
        keys = ", ".join(f"encode({prompt_text_sql(f'v{j}', kinds[j])}) AS b{j}" for j in count)
        kept = [j for j in count if scan.inputs[j] in shown and not is_cast_back(kinds[j])]
        values = "".join(f", first(v{j}) AS v{j}" for j in kept)
        texts = ", ".join(f"decode(b{j}) AS k{j}" for j in count)
        groups = ", ".join(f"b{j}" for j in count)
        place, order = (", row_number() OVER () AS place_", " ORDER BY min(place_)") if scan.gives_rows else ("", "")
        inner = f"SELECT *, {keys}{place} FROM ({self.to_sql(body)}) AS rows_"
        having = "" if self.reads_inputs else " HAVING false"
        query = f"SELECT {texts}{values}, count(*) AS n FROM ({inner}) AS keys_ GROUP BY {groups}{having}{order}"
        table = self.session.con.sql(query).to_arrow_reader(100_000).read_all()
        return table, query, kinds

    def _bind(self, scan: Scan, body: Node, unasked: set[int]) -> tuple[list[str], Node]:
        """The types of the inputs; a correlated subquery's rows are those for every row of the queries around it."""
        block: QueryBlock = scan.block
        while True:
            try:
                # con.sql binds without running, and a failure to bind leaves the user's transaction alive
                kinds = [str(t) for t in self.session.con.sql(self.to_sql(body)).types]
                return kinds, body
            except duckdb.BinderException as e:
                if block.outer is None:
                    raise self.bind_error(e, [scan]) from e
                body = self._widen_to_outer(body, block, block.outer, unasked)
                block = block.outer

    def _widen_to_outer(self, body: Node, inner: QueryBlock, outer: QueryBlock, unasked: set[int]) -> Node:
        waiting = [s for s in self.plan.bound.scans if s.number in unasked]
        remover = ScanRemover(outer, waiting, leave_out=inner.item)
        relation = remover.copy_relation(outer.node.get("from_table"))
        inside = id(inner.node)
        bindings = [c for s in waiting for c in s.conditions()]
        conditions = [
            c.node
            for c in outer.conditions
            if c.holder is outer.node and c not in bindings and all(id(n) != inside for n in ast.walk(c.node))
        ]
        where = remover.copy_visible(conditions, relation, is_partial=remover.dropped or inner.item is not None)
        around = ast.relation("(SELECT 1) AS __sqlft_inner")
        around["subquery"]["node"] = body
        return add_ctes(select("__sqlft_inner.*", join_laterally(relation, around), where), outer.ctes)

    # -- its place in the query --------------------------------------------------------------------------------------

    def _is_joined(self, scan: Scan, name: str) -> bool:
        """Whether rows find their answers by this input; one that is the same for all rows needs no comparing."""
        binding = scan.bindings[name]
        if binding.query is not None:
            try:
                self.session.con.sql(self.to_sql(add_ctes(deepcopy(binding.query), scan.block.ctes)))
                return False
            except duckdb.Error:
                return True
        return any(ast.is_column(n) for v in binding.values for n in ast.walk(v))

    def _make_relation(self, scan: ModelScan, name: str, casts: dict[str, str]) -> Node:
        if all_casts := {**casts, **answer_casts(scan)}:
            self.casts[name] = cast_relation_sql(name, all_casts)
        return ast.registered_table(name, scan.alias)

    def _replace(self, scan: Scan, relation: Node, kinds: list[str], joined: set[str], *, limited: bool) -> None:
        """Put a relation of answers in the model's place, and comparisons of texts in that of its bindings."""
        block = scan.block
        path = scan.join_path
        for j, name in enumerate(scan.inputs):
            binding = scan.bindings[name]
            bound = [c for c in block.conditions if c in binding.conditions]
            equal = self._make_equality(scan, j, kinds[j]) if name in joined else None
            for i, condition in enumerate(bound):
                if equal is None or i:
                    block.conditions.remove(condition)
                else:
                    condition.node = equal
            if not bound and equal is not None:
                holder = binding.holder if binding.holder is not None else block.node
                block.conditions.append(Condition(equal, holder))
        keys = [k for n, k in zip(scan.inputs, _key_columns(scan), strict=True) if n in joined]
        hide_columns(scan, [*keys, *scan.extra_columns])
        scan.node.clear()
        scan.node.update(relation)
        if limited and path and path[-1][0].get("join_type") == "LEFT":
            path[-1][0]["join_type"] = "INNER"
        write_conditions(block)

    def _make_equality(self, scan: Scan, j: int, kind: str) -> Node:
        binding = scan.bindings[scan.inputs[j]]
        key = _encode_text(ast.column(scan.alias, _key_columns(scan)[j]))
        text = ast.expression(prompt_text_sql("x", kind))
        if binding.query is not None:
            query = "SELECT 1 FROM (SELECT 1) AS __q(v) WHERE a IS NOT DISTINCT FROM b"
            exists = ast.expression(
                f"EXISTS ({query})", a=key, b=_encode_text(ast.expression(prompt_text_sql("__q.v", kind)))
            )
            exists["subquery"]["node"]["from_table"]["subquery"]["node"] = binding.query
            return exists
        several = len(binding.values) > 1
        equalities = []
        for value in binding.values:
            same = ast.expression(f"CAST(x AS {kind})", x=value) if several else value
            right = _encode_text(ast.substitute(text, {"x": same}))
            equalities.append(ast.expression("a IS NOT DISTINCT FROM b", a=key, b=right))
        if len(equalities) == 1:
            return equalities[0]
        either = ast.expression("a OR b")
        either["children"] = equalities
        return either

    def bind_error(self, error: duckdb.Error, scans: Sequence[Scan]) -> Exception:
        """What DuckDB says of an input that it cannot bind, in the words of the model."""
        message = str(error)
        for scan in scans:
            joined = {ast.alias_of(leaf).lower() for leaf in leaves(scan.block.node["from_table"])}
            for node in (n for b in scan.bindings.values() for tree in b.trees for n in ast.walk(tree)):
                table = node["column_names"][0] if ast.is_column(node) and len(node["column_names"]) > 1 else ""
                if table.lower() in joined and f'table "{table}" not found' in message:
                    return StatementError(
                        f"An input of the {scan.title} comes from '{table}', which is joined to the model's answer.",
                        self.text,
                        0,
                        f"Put the table first: FROM {table} JOIN …, or the condition on the answer into WHERE.",
                    )
        return error


def new_relation_name() -> str:
    """A name for a registered relation that nothing else has."""
    return f"__sqlft_{next(_relation_numbers)}_"


def register_table(session: Session, table: pa.Table) -> str:
    """Make a table readable for this statement; its name."""
    name = new_relation_name()
    session.con.register(name, table)
    session.unregister_later(name)
    return name


def answer_casts(scan: Scan) -> dict[str, str]:
    """The types of answers that Arrow has no word for, by column."""
    if not isinstance(scan, ModelScan):
        return {}
    outputs = scan.resolved.outputs
    return {c.name: kind.text for c, kind in zip(outputs.columns, outputs.kinds, strict=True) if kind.needs_cast}


def _key_columns(scan: Scan) -> list[str]:
    return [f"__sqlft_k{scan.number}_{j}" for j in range(len(scan.inputs))]


def cast_relation_sql(name: str, casts: dict[str, str]) -> str:
    """A relation with the types that Arrow has no word for, as SQL."""
    listed = ", ".join(f"CAST({quote_name(c)} AS {kind}) AS {quote_name(c)}" for c, kind in casts.items())
    return f"(SELECT * REPLACE ({listed}) FROM {name})"


def make_modifiers(orders: list[Node], limit: Node | None, offset: Node | None) -> list[Node]:
    modifiers: list[Node] = []
    if orders:
        modifiers.append({"type": "ORDER_MODIFIER", "orders": deepcopy(orders)})
    if limit is not None or offset is not None:
        modifiers.append({"type": "LIMIT_MODIFIER", "limit": deepcopy(limit), "offset": deepcopy(offset)})
    return modifiers


def _name_columns(plan: QueryPlan) -> None:
    """Give columns that have no alias the name that their text would have given them, before the text changes."""
    changed = {id(s.node) for s in plan.bound.scans}
    for scan in plan.bound.scans:
        hidden = {n.lower() for n in scan.find_hidden_columns()}
        changed |= {id(u.node) for u in scan.uses if (u.qualified or scan.hides_inputs) and u.column in hidden}
        changed |= {id(n) for n in scan.rows}
    for block in plan.bound.blocks:
        for item in block.node["select_list"]:
            if not item.get("alias") and item.get("class") != "STAR" and any(id(n) in changed for n in ast.walk(item)):
                name = item["column_names"][-1] if ast.is_column(item) else ast.expression_sql(item)
                item["alias"] = name.replace(ast.VERSION_DOT, ".")
