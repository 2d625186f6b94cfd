"""A plan carried out: input rows are fetched, models are asked, their answers stand where the models stood.

`sqlft.query` calls it with a plan; it gives back the text that DuckDB runs over plain tables (`Execution.whole`), or
rows slice by slice (`Sliced`).  Answers are joined by the text of the inputs, byte by byte: never by what DuckDB takes
for equal (collations, intervals, -0.0), so each row has the answer to its own text.
"""

from __future__ import annotations

import itertools
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sqlft.errors import NotSupported, StatementError
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.bind import Block, Condition, Scan, drop_schema, joins_to, leaves, select, with_ctes
from sqlft.query.plan import Plan, Remover, Stream, base_of, can_see, limit_below, value_lists
from sqlft.query.spool import BATCH, Spool
from sqlft.runtime.asker import Asker, Book
from sqlft.runtime.literals import identifier
from sqlft.runtime.session import Session

FIRST_ROWS, MOST_ROWS = 64, 16384
FILTERED_ROWS = (64, 64, 128, 256, 512, 1024, 2048, 4096)
EMIT_SECONDS = 0.05
EXACT = frozenset(
    {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT"}
    | {"DOUBLE", "VARCHAR", "BLOB", "DATE", "TIME", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
    | {"TIMESTAMP WITH TIME ZONE"}
)
"""Types that come back from Arrow as they went in; DECIMAL too, and lists of them."""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Step:
    """A model that was asked: the query that gives its inputs, and the columns of what stands in its place."""

    scan: Scan
    book: Book
    query: str
    rows: int
    columns: frozenset[str]


def is_exact(kind: str) -> bool:
    """Whether a type comes back from Arrow as it went in."""
    plain = kind
    while plain.endswith("[]"):
        plain = plain[:-2]
    return plain in EXACT or plain.startswith("DECIMAL(")


def is_nested(kind: str) -> bool:
    """Whether a prompt has a value of this type as JSON."""
    return kind.endswith("]") or kind.startswith(("STRUCT(", "MAP(", "UNION("))


def is_read_back(kind: str) -> bool:
    """Whether a value of this type is kept as its text and cast back, since Arrow would change it."""
    return not (is_exact(kind) or is_nested(kind) or kind in ("JSON", '"NULL"'))


def text_sql(expression: str, kind: str) -> str:
    """SQL for the text of a value in a prompt: what DuckDB writes, nested ones as JSON."""
    return f"CAST(to_json({expression}) AS VARCHAR)" if is_nested(kind) else f"CAST({expression} AS VARCHAR)"


def _key(text: Node) -> Node:
    """What texts are compared by: their bytes, whatever collation is set."""
    return ast.expression("encode(x)", x=text)


class Execution:
    """One query's models, asked; `dry` asks nothing and fetches no rows, for DESCRIBE, views and WITH NO DATA."""

    def __init__(self, session: Session, asker: Asker, plan: Plan, text: str, *, dry: bool = False) -> None:
        self.session, self.asker, self.plan, self.text, self.dry = session, asker, plan, text, dry
        self.counts = not dry
        """Whether input rows are fetched; EXPLAIN does, and asks nothing."""
        self.casts: dict[str, str] = {}
        """By registered relation: the query that gives its columns their types.

        It is put into the text, since not every version of DuckDB has a tree for every type.
        """
        self.steps: list[Step] = []
        self.before_asking: Callable[[Step], None] = lambda step: None
        """Called with each step when its prompts are known, and not asked yet."""
        self.books = {s.number: asker.book(s.resolved, s.alias) for s in plan.bound.scans}
        asker.check_using()
        for book in {id(b): b for b in self.books.values()}.values():
            asked = [s for s in plan.bound.scans if self.books[s.number] is book]
            book.asking.keeps_details = any(n.endswith(("_usage", "_logprob")) for s in asked for n in s.outputs)
        _name_columns(plan)

    def whole(self) -> str:
        """Ask all models; the query over their answers."""
        unasked = {s.number for s in self.plan.order}
        if self.counts:
            self._draw_once()
        for scan in self.plan.order:
            self._ask(scan, unasked)
            unasked.discard(scan.number)
        return self.to_sql(self.plan.bound.tree)

    def to_sql(self, tree: Node) -> str:
        """A tree as text, relations of answers with their types."""
        return self.with_casts(ast.to_sql(tree))

    def with_casts(self, text: str) -> str:
        """A text with the queries that give relations of answers their types."""
        for name, query in self.casts.items():
            text = text.replace(name, query)
        return text

    def sliced(self) -> Sliced | None:
        """The query answered slice by slice, its other models asked before; None if it cannot be."""
        stream = self.plan.stream
        if stream is None:
            return None
        found = _tables(self, stream)
        if found is None:
            return None
        unasked = {s.number for s in self.plan.order}
        for scan in self.plan.order:
            if scan not in stream.stages:
                self._ask(scan, unasked)
                unasked.discard(scan.number)
        return Sliced(self, stream, found)

    def _draw_once(self) -> None:
        """Keep the rows of relations that differ each time they are read: samples, random()."""
        for block in self.plan.bound.blocks:
            models = [s.node for s in block.scans]
            for leaf in list(leaves(block.node.get("from_table"))):
                is_chance = models and not any(leaf is m for m in models) and ast.is_volatile(leaf)
                if is_chance or leaf.get("type") == "SHOW_REF":  # SHOW TABLES would show the answers
                    self._draw(leaf, block)

    def _draw(self, leaf: Node, block: Block) -> None:
        query = self.to_sql(with_ctes(select("*", leaf), block.ctes))
        try:
            found = self.session.con.sql(query)
        except duckdb.Error:
            found = None
        if found is None or not all(is_exact(str(t)) for t in found.types):
            raise NotSupported(
                "The rows for the model are drawn by chance, and this query would need to draw the same ones twice.",
                "Draw them into a table first: CREATE TEMP TABLE drawn AS …, and join that.",
            )
        drawn = ast.relation("x AS y")
        ast.set_table(drawn, "", self.register(found.to_arrow_reader(100_000).read_all()))
        drawn["alias"] = ast.alias_of(leaf)
        leaf.clear()
        leaf.update(drawn)

    # -- one model -----------------------------------------------------------------------------------------------

    def _ask(self, scan: Scan, unasked: set[int]) -> None:
        base = base_of(scan, self.plan, unasked)
        limit = limit_below(scan, self.plan)
        rows, query, kinds = self._input_rows(scan, base, limit, unasked)
        count = len(scan.inputs)
        book = self.books[scan.number]
        texts = [rows.column(f"k{j}") for j in range(count)]
        ids = book.ids(texts)
        weights = rows.column("n").to_pylist()
        book.asking.rows += sum(weights)
        shown = scan.shown()
        names = {*scan.inputs, *scan.outputs, *(scan.hidden(n) for n in scan.inputs), *_keys(scan)}
        self.steps.append(Step(scan, book, query, sum(weights), frozenset(n.lower() for n in names)))
        self.before_asking(self.steps[-1])
        if self.counts and not self.dry and scan.is_read:
            book.ask_all()
        columns: dict[str, Any] = {}
        casts: dict[str, str] = {}
        joined = {name for name, key in zip(scan.inputs, _keys(scan), strict=True) if self._is_joined(scan, name)}
        for j, name in enumerate(scan.inputs):
            if name in joined:
                columns[_keys(scan)[j]] = texts[j]
            if name in shown:
                where = scan.hidden(name) if scan.bindings[name].hidden else name
                by_text = is_read_back(kinds[j])
                columns[where] = texts[j] if by_text else rows.column(f"v{j}")
                if by_text:
                    casts[where] = kinds[j]
        columns.update(zip(scan.outputs, book.columns(ids, scan.outputs, weights), strict=True))
        relation = self._relation(scan, self.register(pa.table(columns)), casts)
        self._replace(scan, relation, kinds, joined, limited=limit is not None)

    def _input_rows(self, scan: Scan, base: Any, limit: Any, unasked: set[int]) -> tuple[pa.Table, str, list[str]]:
        """The distinct texts of a model's inputs: k0 …, their values where they are shown: v0 …, and n rows each."""
        body = select("1", base.relation, base.where)
        body["select_list"] = [{**deepcopy(v), "alias": f"v{j}"} for j, v in enumerate(base.inputs)]
        if limit is not None:
            body["modifiers"] = _modifiers(limit.orders, limit.limit, limit.offset)
        body = with_ctes(body, scan.block.ctes)
        kinds, body = self._bind(scan, body, unasked)
        shown = scan.shown()
        count = range(len(scan.inputs))
        keys = ", ".join(f"encode({text_sql(f'v{j}', kinds[j])}) AS b{j}" for j in count)
        values = "".join(f", first(v{j}) AS v{j}" for j in count if scan.inputs[j] in shown)
        texts = ", ".join(f"decode(b{j}) AS k{j}" for j in count)
        groups = ", ".join(f"b{j}" for j in count)
        inner = f"SELECT *, {keys} FROM ({self.to_sql(body)}) AS rows_"
        query = f"SELECT {texts}{values}, count(*) AS n FROM ({inner}) AS keys_ GROUP BY {groups}"
        if not self.counts:
            query += " HAVING false"
        table = self.session.con.sql(query).to_arrow_reader(100_000).read_all()
        return table, query, kinds

    def _bind(self, scan: Scan, body: Node, unasked: set[int]) -> tuple[list[str], Node]:
        """The types of the inputs; a correlated subquery's rows are those for every row of the queries around it."""
        block: Block = scan.block
        while True:
            try:
                # con.sql binds without running, and a failure to bind leaves the user's transaction alive
                kinds = [str(t) for t in self.session.con.sql(self.to_sql(body)).types]
                return kinds, body
            except duckdb.BinderException as e:
                if block.outer is None:
                    raise self.bind_error(e, [scan]) from e
                body = self._widened(body, block, block.outer, unasked)
                block = block.outer

    def _widened(self, body: Node, inner: Block, outer: Block, unasked: set[int]) -> Node:
        waiting = [s for s in self.plan.bound.scans if s.number in unasked]
        remover = Remover(outer, waiting, leave_out=inner.item)
        relation = remover.without(outer.node.get("from_table"))
        aliases = {ast.alias_of(leaf).lower() for leaf in leaves(relation)}
        dropped = remover.dropped or inner.item is not None
        inside = id(inner.node)
        where = []
        for condition in outer.conditions:
            if condition.holder is not outer.node or any(id(n) == inside for n in ast.walk(condition.node)):
                continue
            made = remover.condition(condition.node)
            if made is not None and not ast.is_volatile(made) and can_see(made, aliases, dropped):
                where.append(made)
        around = ast.relation("(SELECT 1) AS __sqlft_inner")
        around["subquery"]["node"] = body
        joined = around
        if relation is not None:
            joined = ast.relation("a, LATERAL (SELECT 1) AS b")
            joined["left"], joined["right"] = relation, around
        return with_ctes(select("__sqlft_inner.*", joined, where), outer.ctes)

    # -- its place in the query --------------------------------------------------------------------------------------

    def _is_joined(self, scan: Scan, name: str) -> bool:
        """Whether rows find their answers by this input; one that is the same for all rows needs no comparing."""
        binding = scan.bindings[name]
        if binding.query is not None:
            try:
                self.session.con.sql(self.to_sql(with_ctes(deepcopy(binding.query), scan.block.ctes)))
                return False
            except duckdb.Error:
                return True
        return any(ast.is_column(n) for v in binding.values for n in ast.walk(v))

    def _relation(self, scan: Scan, name: str, casts: dict[str, str]) -> Node:
        outputs = scan.resolved.outputs
        parts = zip(outputs.columns, outputs.kinds, strict=True)
        all_casts = {**casts, **{c.name: kind.text for c, kind in parts if kind.recast}}
        if all_casts:
            self.casts[name] = recast(name, all_casts)
        made = ast.relation("x AS y")
        ast.set_table(made, "", name)
        made["alias"] = scan.alias
        return made

    def _replace(self, scan: Scan, relation: Node, kinds: list[str], joined: set[str], *, limited: bool) -> None:
        """Put a relation of answers in the model's place, and comparisons of texts in that of its bindings."""
        block = scan.block
        path = joins_to(block.node["from_table"], scan.node) or []
        for j, name in enumerate(scan.inputs):
            binding = scan.bindings[name]
            own = [c for c in block.conditions if c in binding.conditions]
            equal = self._equal(scan, j, kinds[j]) if name in joined else None
            for condition in own:
                if equal is None:
                    block.conditions.remove(condition)
                else:
                    condition.node = equal
            if not own and equal is not None:
                holder = binding.holder if binding.holder is not None else block.node
                block.conditions.append(Condition(equal, holder))
        hide_columns(scan, [k for n, k in zip(scan.inputs, _keys(scan), strict=True) if n in joined])
        scan.node.clear()
        scan.node.update(relation)
        if limited and path and path[-1][0].get("join_type") == "LEFT":
            path[-1][0]["join_type"] = "INNER"
        write_conditions(block)

    def _equal(self, scan: Scan, j: int, kind: str) -> Node:
        binding = scan.bindings[scan.inputs[j]]
        key = _key(ast.column(scan.alias, _keys(scan)[j]))
        text = ast.expression(text_sql("x", kind))
        if binding.query is not None:
            query = "SELECT 1 FROM (SELECT 1) AS __q(v) WHERE a IS NOT DISTINCT FROM b"
            made = ast.expression(f"EXISTS ({query})", a=key, b=_key(ast.expression(text_sql("__q.v", kind))))
            made["subquery"]["node"]["from_table"]["subquery"]["node"] = binding.query
            return made
        several = len(binding.values) > 1
        found = []
        for value in binding.values:
            same = ast.expression(f"CAST(x AS {kind})", x=value) if several else value
            right = _key(ast.substitute(deepcopy(text), {"x": same}))
            found.append(ast.expression("a IS NOT DISTINCT FROM b", a=key, b=right))
        if len(found) == 1:
            return found[0]
        either = ast.expression("a OR b")
        either["children"] = found
        return either

    def register(self, table: pa.Table) -> str:
        """Make a table readable for this statement; its name."""
        return register(self.session, table)

    def bind_error(self, error: duckdb.Error, scans: Sequence[Scan]) -> Exception:
        """What DuckDB says of an input that it cannot bind, in the words of the model."""
        said = str(error)
        for scan in scans:
            model = scan.resolved.model.key.name
            for tree in [t for b in scan.bindings.values() for t in b.trees]:
                for node in ast.walk(tree):
                    if ast.is_column(node) and len(node["column_names"]) > 1:
                        table = node["column_names"][0]
                        if f'table "{table}" not found' in said and any(
                            ast.alias_of(leaf).lower() == table.lower()
                            for leaf in leaves(scan.block.node["from_table"])
                        ):
                            return StatementError(
                                f"An input of the model '{model}' comes from '{table}', "
                                "which is joined to the model's answer.",
                                self.text,
                                0,
                                f"Put the table first: FROM {table} JOIN …, or the condition on the answer into WHERE.",
                            )
        return error


def register(session: Session, table: Any) -> str:
    """Make a table readable for this statement; its name."""
    name = f"__sqlft_{next(_numbers)}_"
    session.con.register(name, table)
    session.unregister_later(name)
    return name


def _keys(scan: Scan) -> list[str]:
    return [f"__sqlft_k{scan.number}_{j}" for j in range(len(scan.inputs))]


def recast(name: str, casts: dict[str, str]) -> str:
    """A relation with the types that Arrow has no word for, as SQL."""
    listed = ", ".join(f"CAST({identifier(c)} AS {kind}) AS {identifier(c)}" for c, kind in casts.items())
    return f"(SELECT * REPLACE ({listed}) FROM {name})"


def _modifiers(orders: list[Node], limit: Node | None, offset: Node | None) -> list[Node]:
    made: list[Node] = []
    if orders:
        made.append({"type": "ORDER_MODIFIER", "orders": deepcopy(orders)})
    if limit is not None or offset is not None:
        made.append({"type": "LIMIT_MODIFIER", "limit": deepcopy(limit), "offset": deepcopy(offset)})
    return made


def _name_columns(plan: Plan) -> None:
    """Give columns that have no alias the name that their text would have given them, before the text changes."""
    changed = {id(s.node) for s in plan.bound.scans}
    for scan in plan.bound.scans:
        hidden = {n.lower() for n, b in scan.bindings.items() if b.hidden}
        changed |= {id(u.node) for u in scan.uses if u.qualified and u.column in hidden}
        changed |= {id(n) for n in scan.rows}
    for block in plan.bound.blocks:
        for item in block.node["select_list"]:
            if not item.get("alias") and item.get("class") != "STAR" and any(id(n) in changed for n in ast.walk(item)):
                name = item["column_names"][-1] if ast.is_column(item) else ast.expression_sql(item)
                item["alias"] = name.replace(ast.DOT, ".")


def hide_columns(scan: Scan, keys: Sequence[str]) -> None:
    """Let stars, rows and qualified names see what the model shows, and nothing else."""
    hidden = {n: scan.hidden(n) for n, b in scan.bindings.items() if b.hidden and n in scan.shown()}
    for use in scan.uses:
        name = next((n for n in hidden if n.lower() == use.column), None)
        if use.qualified and name is not None:
            use.node["column_names"][1] = hidden[name]
    for node in scan.rows:
        names = [(n, hidden.get(n, n)) for n in scan.inputs] + [(n, n) for n in scan.outputs]
        fields = ", ".join(f"{identifier(n)} := {identifier(scan.alias)}.{identifier(c)}" for n, c in names)
        made = ast.expression(f"struct_pack({fields})")
        alias = node.get("alias", "")
        node.clear()
        node.update({**made, "alias": alias})
    leads = [n for n in hidden if scan.bindings[n].leads]
    for star in scan.stars:
        if leads and not star.get("relation_name"):
            _exclude(star, [*keys, *(c for n, c in hidden.items() if n not in leads)])
            columns = [scan.bindings[n].values[0]["column_names"] for n in leads]
            tables = [{"table": table, "column": column} for table, column in (names[-2:] for names in columns)]
            star["qualified_exclude_list"] = [*star.get("qualified_exclude_list", []), *tables]
            star["rename_list"] = [
                *star.get("rename_list", []),
                *({"key": {"column": hidden[n]}, "value": n} for n in leads),
            ]
        elif star.get("relation_name"):
            _exclude(star, keys)
            star["rename_list"] = [
                *star.get("rename_list", []),
                *({"key": {"column": c}, "value": n} for n, c in hidden.items()),
            ]
        else:
            _exclude(star, [*keys, *hidden.values()])


def _exclude(star: Node, names: Sequence[str]) -> None:
    if not names:
        return
    chosen = star.get("expr")
    if star.get("columns") and chosen is not None and ast.is_constant(chosen):
        star["expr"] = ast.expression("COLUMNS(lambda c: regexp_matches(c, x))", x=chosen)["expr"]
        for inner in ast.walk(star["expr"]):
            if inner.get("class") == "STAR":
                inner["exclude_list"] = list(names)
    elif chosen is None:
        star["exclude_list"] = [*star.get("exclude_list", []), *names]


def write_conditions(block: Block) -> None:
    """Put a block's conditions back into its WHERE and its joins."""
    block.node["where_clause"] = ast.conjunction([c.node for c in block.conditions if c.holder is block.node])
    stack = [block.node.get("from_table")]
    while stack:
        join = stack.pop()
        if join is None or not ast.is_join(join):
            continue
        stack += [join["left"], join["right"]]
        found = [c.node for c in block.conditions if c.holder is join]
        if found:
            join["ref_type"] = (
                "REGULAR" if join.get("ref_type", "REGULAR") == "CROSS" else join.get("ref_type", "REGULAR")
            )
            join["is_implicit"] = False
        elif join.get("ref_type", "REGULAR") == "REGULAR" and not join.get("using_columns"):
            found = [ast.expression("true")]
        join["condition"] = ast.conjunction(found)


# -- slice by slice ------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """A relation of the FROM clause that is no model: its alias, and the columns that are needed of it."""

    node: Node
    alias: str
    columns: list[str]
    kinds: list[str]
    first: int = 0
    """Place of its first column among those that are kept."""


def _tables(run: Execution, stream: Stream) -> list[Table] | None:
    """The tables with their needed columns; None where a name or a type would not survive the spool."""
    block, con = stream.block, run.session.con
    remover = Remover(block, stream.stages)
    for i, leaf in enumerate(stream.tables):
        if not ast.alias_of(leaf):
            leaf["alias"] = f"__sqlft_t{i}"
        elif not leaf.get("alias"):
            leaf["alias"] = ast.alias_of(leaf)
    aliases = [leaf["alias"].lower() for leaf in stream.tables] + [s.alias.lower() for s in stream.stages]
    if len(set(aliases)) < len(aliases):
        return None
    relation = remover.without(block.node["from_table"])
    if any(j.get("using_columns") or j.get("ref_type") == "NATURAL" for j in remover.kept_joins):
        return None
    if any(j.get("join_type") in ("SEMI", "ANTI") for j in remover.kept_joins):
        return None
    for alias in aliases:
        drop_schema(block.node, alias)
    bound_away = {id(n) for s in stream.stages for c in s.conditions() for n in ast.walk(c.node)}
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
        query = with_ctes(select("x.*", relation), block.ctes)
        query["select_list"][0]["relation_name"] = leaf["alias"]
        try:
            found = con.sql(run.to_sql(query))
        except duckdb.Error:
            return None
        everything = leaf["alias"].lower() in whole
        columns = [
            (c, str(t)) for c, t in zip(found.columns, found.types, strict=True) if everything or c.lower() in names
        ] or [(found.columns[0], str(found.types[0]))]
        lowered = [c.lower() for c, _ in columns]
        if len(set(lowered)) != len(lowered) or not all(is_exact(t) for _, t in columns):
            return None
        tables.append(Table(leaf, leaf["alias"], [c for c, _ in columns], [t for _, t in columns], first))
        first += len(columns)
    return tables


@dataclass
class Asked:
    """One model of the FROM clause: which prompt each row has."""

    scan: Scan
    book: Book
    expressions: list[Any]
    """What gives its inputs; over the answers of others where `waits`."""
    waits: bool
    kinds: list[str] = field(default_factory=list)
    first: int = 0
    """Place of its first text in the spool query."""
    shown: list[tuple[str, int]] = field(default_factory=list)
    """Inputs that the result shows, and their places among the kept columns."""
    ids: list[pa.Array] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    new_ids: array[int] = field(default_factory=partial(array, "q"))
    """Prompts in order of appearance …"""
    new_rows: array[int] = field(default_factory=partial(array, "q"))
    """… and the row where each appears first."""

    def take(self, ids: pa.Array, start: int) -> None:
        """Give rows their prompts."""
        self.ids.append(ids)
        self.starts.append(start)
        seen = self.new_ids[-1] if self.new_ids else -1
        encoded = ids.dictionary_encode()
        for i, place in zip(encoded.dictionary.to_pylist(), _first_places(encoded.indices), strict=True):
            if i > seen:
                self.new_ids.append(i)
                self.new_rows.append(start + place)

    def ready_end(self, rows: int) -> int:
        """The row before which all rows have answers."""
        if not self.scan.is_read or not self.new_ids:
            return rows
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


def _first_places(codes: pa.Array) -> list[int]:
    """The row where each code of a dictionary appears first: codes count up in that order, NULL between them."""
    highest = pc.cumulative_max(pc.fill_null(codes, -1))
    before = pa.concat_arrays([pa.array([-1], highest.type), highest.slice(0, max(0, len(highest) - 1))])
    return list(pc.indices_nonzero(pc.greater(highest, before)).to_pylist())


class Sliced:
    """A query whose every result row comes from one row of its tables, answered piece by piece.

    The rows of its tables are spooled in order; then, as answers become known, slices of them are put in the place of
    its tables, side by side with the answers (POSITIONAL JOIN), and the rest of the query runs over each slice.  So
    first rows come while later ones are still being answered, LIMIT stops the asking, and no Arrow reader is left open
    on the user's connection.
    """

    def __init__(self, run: Execution, stream: Stream, tables: list[Table]) -> None:
        self.run, self.stream, self.tables = run, stream, tables
        self._session = run.session
        self._con = run.session.con
        self._spool: Spool | None = None
        self._closed = False
        self._first: Any = None
        """The one slice of rows whose answers the cache had."""
        self._limit: tuple[int | None, int] = (None, 0)
        remover = Remover(stream.block, stream.stages)
        self.asked = []
        for scan in stream.stages:
            values = [b.values[0] if b.is_one else None for b in scan.bindings.values()]
            waits = not all(v is None or remover.condition(v) is not None for v in values)
            made = [remover.copy(v) if v is not None else None for v in values]
            self.asked.append(Asked(scan, run.books[scan.number], made, waits))
        self._names = {id(x): f"__sqlft_{next(_numbers)}_" for x in [*tables, *self.asked]}
        self.spool_query = self._make_spool_query(remover)
        self._order = [*leaves(stream.block.node["from_table"])]
        self.text = self._make_text()

    @property
    def is_filtered(self) -> bool:
        """Whether a limit waits for rows that pass a condition on answers."""
        return self.stream.counted is not None

    # -- the two queries ---------------------------------------------------------------------------------------------

    def _make_spool_query(self, remover: Remover) -> str:
        """The tables' rows, the texts of the models' inputs, and their values where they are shown."""
        stream, block = self.stream, self.stream.block
        relation = remover.without(block.node["from_table"])
        where = [
            made
            for c in block.conditions
            if c not in stream.kept
            and c not in [x for s in stream.stages for x in s.conditions()]
            and c.holder not in remover.kept_joins
            and (made := remover.condition(c.node)) is not None
        ]
        where += self.run.plan.pushed[id(block.node)]
        columns = [ast.column(t.alias, c) for t in self.tables for c in t.columns]
        direct = [a for a in self.asked if not a.waits]
        count = len(columns)
        if not self.tables:
            relation, lists = value_lists([a.scan for a in direct], remover)
            for one in direct:
                one.expressions = [lists.get((one.scan.number, j), e) for j, e in enumerate(one.expressions)]
        inputs = [e for a in direct for e in a.expressions]
        body = select("1", relation, where)
        kinds = iter(self._kinds(inputs, body))
        texts: list[Node] = []
        values: list[Node] = []
        for one in direct:
            one.kinds = [next(kinds) for _ in one.expressions]
            for name, expression, kind in zip(one.scan.inputs, one.expressions, one.kinds, strict=True):
                texts.append(ast.expression(text_sql("x", kind), x=expression))
                if name in one.scan.shown():
                    where_ = one.scan.hidden(name) if one.scan.bindings[name].hidden else name
                    one.shown.append((where_, count + len(values)))
                    values.append(
                        ast.expression(text_sql("x", kind), x=expression) if is_read_back(kind) else expression
                    )
        place = count + len(values)
        for one in direct:
            one.first, place = place, place + len(one.expressions)
        self._kept = list(range(count + len(values)))
        body["select_list"] = [{**deepcopy(e), "alias": f"c{k}"} for k, e in enumerate([*columns, *values, *texts])]
        for key in ("qualify", "sample"):
            if block.node.get(key):
                body[key] = block.node[key]
        body["modifiers"] = _modifiers(stream.orders, *(stream.below or (None, None)))
        query = self.run.to_sql(with_ctes(body, block.ctes))
        if not self.tables and inputs and relation is not None:
            keys = ", ".join(f"encode(c{k})" for k in range(len(values), place))
            numbered = f"SELECT *, row_number() OVER () AS n_ FROM ({query}) AS rows_"
            query = f"SELECT DISTINCT ON ({keys}) * FROM ({numbered}) AS numbered_ ORDER BY n_"
        return query

    def _kinds(self, expressions: list[Node], body: Node) -> list[str]:
        """The types of expressions over the tables; DuckDB is asked where they are not plain texts or columns."""
        known = {(t.alias.lower(), c.lower()): k for t in self.tables for c, k in zip(t.columns, t.kinds, strict=True)}
        kinds = [
            known.get(tuple(n.lower() for n in e["column_names"]), "") if ast.is_column(e) else ast.literal_type(e)
            for e in expressions
        ]
        if all(kinds):
            return kinds
        asked = with_ctes({**body, "select_list": deepcopy(expressions)}, self.stream.block.ctes)
        return [str(t) for t in self._bound(asked).types]

    def _bound(self, query: Node) -> Any:
        try:
            return self._con.sql(self.run.to_sql(query))
        except duckdb.BinderException as e:
            raise self.run.bind_error(e, self.stream.stages) from e

    def _make_text(self) -> str:
        """The user's query over slices; the tree is changed for good."""
        stream, block = self.stream, self.stream.block
        for one in self.asked:
            hide_columns(one.scan, [])
        block.node["from_table"] = ast.positional([self._piece(self._part(leaf)) for leaf in self._order])
        block.node["where_clause"] = ast.conjunction([c.node for c in stream.kept])
        for node in stream.levels:
            if stream.below is not None or stream.counted is not None:
                node["modifiers"] = [m for m in node.get("modifiers", []) if m["type"] != "LIMIT_MODIFIER"]
        for key in ("qualify", "sample"):
            block.node[key] = None
        return self.run.to_sql(self.run.plan.bound.tree)

    def _part(self, leaf: Node) -> Table | Asked:
        found = next((t for t in self.tables if t.node is leaf), None)
        return found if found is not None else next(a for a in self.asked if a.scan.node is leaf)

    def _piece(self, part: Table | Asked) -> tuple[str, str]:
        """The registered name and the alias of a table's rows or a model's answers."""
        if isinstance(part, Table):
            return self._names[id(part)], part.alias
        one = part
        outputs = one.scan.resolved.outputs
        parts = zip(outputs.columns, outputs.kinds, strict=True)
        casts = {c.name: kind.text for c, kind in parts if kind.recast}
        shown = {n for n, _ in one.shown}
        for name, kind in zip(one.scan.inputs, one.kinds, strict=False):
            where = one.scan.hidden(name) if one.scan.bindings[name].hidden else name
            if where in shown and is_read_back(kind):
                casts[where] = kind
        name = self._names[id(one)]
        if casts:
            self.run.casts[name] = recast(name, casts)
        return name, one.scan.alias

    # -- running -----------------------------------------------------------------------------------------------------

    def start(self) -> Any:
        """Spool the rows; a DuckDB relation that knows the result's columns and types."""
        reader = self._literal_rows() or self._con.sql(self.spool_query).to_arrow_reader(BATCH)
        self._spool = Spool(reader, self._take, lambda: self._session.interrupted)
        for one in self.asked:
            one.book.asking.rows += self._spool.rows
        if self.stream.counted is not None:
            self._limit = self._numbers(*self.stream.counted)
        is_known = self._spool.rows <= FIRST_ROWS and all(self._is_known(a) for a in self.asked)
        self._register(0, self._spool.rows if is_known else 0)
        relation = self._con.sql(self.text)
        self._first = relation if is_known else None
        return relation

    def _literal_rows(self) -> pa.RecordBatchReader | None:
        """The one row of a query whose inputs are texts in quotes, as DuckDB would give it."""
        inputs = [e for a in self.asked for e in a.expressions]
        conditions = [c for c in self.stream.block.conditions if c not in self.stream.kept]
        bindings = sum(len(s.conditions()) for s in self.stream.stages)
        if self.tables or self.stream.below is not None or len(conditions) != bindings:
            return None
        if not all(ast.is_constant(e) and ast.literal_type(e) for e in inputs):
            return None
        shown = [
            e for a in self.asked for n, e in zip(a.scan.inputs, a.expressions, strict=True) if n in a.scan.shown()
        ]
        arrays = [pa.array([ast.literal_text(e)], pa.string()) for e in [*shown, *inputs]]
        batch = pa.RecordBatch.from_arrays(arrays, [f"c{k}" for k in range(len(arrays))])
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])

    def _is_known(self, one: Asked) -> bool:
        """Whether the cache has all answers, so that the first slice need not wait for anything."""
        if one.waits:
            return False
        return not one.scan.is_read or one.book.asking.recall()

    def _numbers(self, limit: Node | None, offset: Node | None) -> tuple[int | None, int]:
        listed = [f"({ast.expression_sql(n)})::BIGINT" if n is not None else "NULL" for n in (limit, offset)]
        row = self._con.sql(f"SELECT {', '.join(listed)}").fetchall()[0]
        if any(n is not None and n < 0 for n in row):
            raise StatementError(
                "LIMIT and OFFSET must not be negative.", self.run.text, 0, "Write a number from 0 on."
            )
        return row[0], row[1] or 0

    def _take(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """Give the rows their prompts, and keep what the result shows."""
        for one in self.asked:
            if not one.waits and batch.num_rows:
                columns = [batch.column(one.first + k) for k in range(len(one.expressions))]
                one.take(one.book.ids(columns), start)
        return batch.select(self._kept)

    def chunks(self) -> Iterator[Any]:
        """DuckDB relations, each with some of the result's rows, in order."""
        spool = self._spool
        assert spool is not None
        left, skip = self._limit
        row, most = 0, iter(FILTERED_ROWS if self.is_filtered else ())
        cap = FIRST_ROWS // 4
        try:
            while row < spool.rows and left != 0:
                cap = next(most, min(MOST_ROWS, cap * 4))
                if self._first is not None:
                    relation, end = self._first, spool.rows
                else:
                    end = self._answer(row, min(spool.rows, row + cap))
                    self._register(row, end)
                    relation = self._con.sql(self.text)
                row = end
                if self.is_filtered:
                    relation, left, skip = self._limited(relation, left, skip)
                yield relation
        except BaseException:
            self.close(error=True)
            raise
        self.close()

    def _answer(self, row: int, target: int) -> int:
        """Ask until at least one more row can be given out; the row before which all can."""
        started = time.monotonic()
        direct = [a for a in self.asked if not a.waits]
        while True:
            end = min([target, *(a.ready_end(target) for a in direct)])
            if end >= target or (end > row and time.monotonic() - started > EMIT_SECONDS):
                return max(end, row)
            slowest = min(direct, key=lambda a: a.ready_end(target))
            asking = slowest.book.asking
            needed = slowest.prompts_before(target)
            asking.advance(needed, needed - asking.known_before(needed))

    def _register(self, start: int, end: int) -> None:
        assert self._spool is not None
        rows = self._spool.slice(start, end)
        for table in self.tables:
            part = rows.select(range(table.first, table.first + len(table.columns))).rename_columns(table.columns)
            self._con.register(self._names[id(table)], part)
        for one in self.asked:
            if not one.waits:
                self._con.register(self._names[id(one)], self._answers(one, rows, one.slice_ids(start, end)))
        for one in self.asked:
            if one.waits:
                self._register_chained(one, rows.num_rows, start)

    def _register_chained(self, one: Asked, rows: int, start: int) -> None:
        """Ask a model whose inputs are the answers of others, for the rows of a slice."""
        known = [a for a in self.asked if not a.waits or a.ids]
        sources: list[Table | Asked] = [*self.tables, *known]
        joined = ast.positional([self._piece(x) for x in sources if x is not one])
        if not one.kinds:
            body = select("1", joined)
            body["select_list"] = deepcopy(one.expressions)
            one.kinds = [str(t) for t in self._bound(body).types]
        columns = [text_sql(ast.expression_sql(e), k) for e, k in zip(one.expressions, one.kinds, strict=True)]
        values = [
            text_sql(ast.expression_sql(e), k) if is_read_back(k) else ast.expression_sql(e)
            for e, k in zip(one.expressions, one.kinds, strict=True)
        ]
        query = self.run.to_sql(select(", ".join(f"{c} AS c{k}" for k, c in enumerate([*columns, *values])), joined))
        found = self._con.sql(query).to_arrow_reader(MOST_ROWS).read_all().slice(0, rows)
        count = len(columns)
        ids = one.book.ids([found.column(k) for k in range(count)])
        if not one.ids:
            one.ids.append(ids)
        if rows and one.scan.is_read:
            one.book.ask_all()
        shown = {n: found.column(count + j) for j, n in enumerate(one.scan.inputs) if n in one.scan.shown()}
        one.shown = [(one.scan.hidden(n) if one.scan.bindings[n].hidden else n, -1) for n in shown]
        table = {where: column for (where, _), column in zip(one.shown, shown.values(), strict=True)}
        table.update(zip(one.scan.outputs, one.book.columns(ids, one.scan.outputs), strict=True))
        self._con.register(self._names[id(one)], pa.table(table))

    def _answers(self, one: Asked, rows: pa.Table, ids: pa.Array) -> pa.Table:
        columns: dict[str, Any] = {name: rows.column(place) for name, place in one.shown}
        columns.update(zip(one.scan.outputs, one.book.columns(ids, one.scan.outputs), strict=True))
        return pa.table(columns)

    # -- results -----------------------------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        """The result as one Arrow table."""
        return Result(self._con, self.start(), self.chunks(), self.close).table()

    def _limited(self, relation: Any, left: int | None, skip: int) -> tuple[Any, int | None, int]:
        table = relation.to_arrow_reader(MOST_ROWS).read_all()
        skipped = min(skip, table.num_rows)
        table = table.slice(skipped) if left is None else table.slice(skipped, left)
        return relation_of(self._con, table), None if left is None else left - table.num_rows, skip - skipped

    def close(self, error: bool = False) -> None:
        """Give everything back; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._spool is not None:
            self._spool.close()
        for name in self._names.values():
            self._session.unregister_later(name)
        self.run.asker.finish(error)


def relation_of(con: duckdb.DuckDBPyConnection, table: pa.Table) -> Any:
    """An Arrow table as a relation, names that stand twice as they are."""
    names = table.column_names
    if len({n.lower() for n in names}) == len(names):
        return con.from_arrow(table)
    plain = table.rename_columns([f"c{k}" for k in range(len(names))])
    return con.from_arrow(plain).project(", ".join(f"c{k} AS {identifier(n)}" for k, n in enumerate(names)))


class Result:
    """What is left of a result's rows, to be fetched one way or another, mixed as one likes."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        relation: Any,
        chunks: Iterator[Any],
        close: Callable[[], None],
        explain: Callable[[duckdb.Error], object] = lambda error: None,
    ) -> None:
        """`relation` has the columns and no rows; `chunks` are relations with the rows, in order.

        `explain` gets an error that fetching raises, to say it in the words of the query.
        """
        self._con, self._chunks, self.close, self._explain = con, chunks, close, explain
        self.relation = relation
        self.columns, self.types = list(relation.columns), list(relation.types)
        self._current: Any = None
        """The chunk that is being given out as rows."""
        self._rows: list[tuple[Any, ...]] = []
        self._given = 0
        self.is_done = False
        """Whether all was given out as a table."""

    @cached_property
    def _schema(self) -> pa.Schema:
        found: pa.Schema = self.relation.to_arrow_reader(1).read_all().schema
        return found

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows that are left, as DuckDB's client gives them."""
        while True:
            while self._given < len(self._rows):
                self._given += 1
                yield self._rows[self._given - 1]
            self._rows, self._given = [], 0
            self._current = next(self._chunks, None)
            if self._current is None:
                return
            with self._explained():
                self._rows = self._current.fetchall()

    def relations(self) -> Iterator[Any]:
        """What is left as DuckDB relations."""
        if self._given < len(self._rows):
            rest = self._current.limit(len(self._rows) - self._given, offset=self._given)
            self._rows, self._given = [], 0
            yield rest
        yield from self._chunks

    def reader(self) -> pa.RecordBatchReader:
        """What is left as record batches, a chunk's as soon as it is answered."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def table(self) -> pa.Table:
        """What is left as one Arrow table."""
        schema = self._schema
        self.is_done = True
        return pa.Table.from_batches(self._batches(), schema)

    def next(self, rows: int) -> pa.Table:
        """The next rows as an Arrow table; an empty one at the end."""
        schema = self._schema
        for relation in self.relations():
            with self._explained():
                table = relation.to_arrow_reader(MOST_ROWS).read_all().cast(schema)
            if table.num_rows:
                self._current = relation_of(self._con, table)
                self._rows, self._given = self._current.fetchall(), min(rows, table.num_rows)
                return table.slice(0, rows)
        return schema.empty_table()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        schema = self._schema
        for relation in self.relations():
            with self._explained():
                table = relation.to_arrow_reader(MOST_ROWS).read_all()
            yield from table.cast(schema).to_batches()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as e:
            self._explain(e)
            raise
