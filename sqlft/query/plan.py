"""In which order the models of a query are asked, and what of the query goes below them.

`make_plan` takes what `bind` found and returns a `QueryPlan`: data that can be printed and asks nothing.  `execute`
runs it.  Conditions without answers go below the models; so do ORDER BY and LIMIT where that gives the same rows; a
query whose every row comes from one row of its tables is answered slice by slice (`StreamPlan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlft.errors import StatementError
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.scope import (
    BoundQuery,
    ColumnUse,
    Condition,
    ModelScan,
    QueryBlock,
    Scan,
    ScanRemover,
    add_ctes,
    find_join_path,
    is_filtering_join,
    join_laterally,
    leaves,
    limit_and_offset,
    remove_scans,
    select,
    select_expression,
)


@dataclass
class InputQuery:
    """What gives a model its input rows, before any model of the block is asked."""

    relation: Node | None
    where: list[Node]
    inputs: list[Node]
    """An expression for each of the model's inputs."""


@dataclass
class PushedLimit:
    """ORDER BY of a block in the words of its tables, and how many of its first rows are needed."""

    orders: list[Node]
    limit: Node


@dataclass
class StreamPlan:
    """A query that is answered slice by slice."""

    block: QueryBlock
    levels: list[Node]
    """The SELECTs around the block, outermost first, and the block's own."""
    tables: list[Node]
    """Relations of its FROM that are no models, in their order."""
    stages: list[Scan]
    """Its models and contexts, each after those whose answers it needs."""
    answer_conditions: list[Condition]
    """Conditions that read answers."""
    orders: list[Node] = field(default_factory=list)
    input_limit: tuple[Node | None, Node | None] | None = None
    """LIMIT and OFFSET of the rows that are asked about."""
    output_limit: tuple[Node | None, Node | None] | None = None
    """LIMIT and OFFSET of the rows of the result, where they could not go below the models."""


@dataclass
class QueryPlan:
    """The models in the order in which they are asked, and how the rows of the query are returned."""

    bound: BoundQuery
    order: list[Scan]
    pushed_conditions: dict[int, list[Node]]
    """By block: conditions of the queries around it that hold for its rows too."""
    streams: bool = False
    """Whether rows may be returned slice by slice."""
    stream: StreamPlan | None = None

    def __str__(self) -> str:
        """A line for each step.

        ask m.1 (content := t.x) where (t.id < 9)
        """
        lines = []
        for scan in self.order:
            inputs = ", ".join(f"{n} := {_format_trees(b.trees)}" for n, b in scan.bindings.items())
            where = build_input_query(scan, self, {s.number for s in self.order}).where
            verb = "ask" if isinstance(scan, ModelScan) else "search"
            asked = verb if scan.is_read else f"do not {verb}"
            below = f" where {' AND '.join(ast.expression_sql(c) for c in where)}" if where else ""
            lines.append(f"{asked} {scan.key} ({inputs}){below}")
        lines.append("answer slice by slice" if self.stream is not None else "answer as a whole")
        return "\n".join(lines)


def _format_trees(trees: Sequence[Node]) -> str:
    return ", ".join(ast.to_sql(t) if ast.is_query(t) else ast.expression_sql(t) for t in trees)


def make_plan(bound: BoundQuery, *, streams: bool) -> QueryPlan:
    """The plan of a bound query; with `streams` its rows may be returned slice by slice."""
    for scan in bound.scans:
        scan.is_read = scan.gives_rows or _is_read(scan, bound)
    plan = QueryPlan(bound, _order_scans(bound), {}, streams)
    for block in bound.blocks:
        plan.pushed_conditions[id(block.node)] = _push_conditions(block, bound)
    if streams and bound.scans:
        plan.stream = _plan_stream(plan)
    return plan


# -- what is read --------------------------------------------------------------------------------------------------


def _is_read(scan: Scan, bound: BoundQuery) -> bool:
    """Whether anybody reads what it answers; a query in FROM may give out what nobody takes."""
    if scan.shows_all_columns:
        return True
    outputs = {n.lower() for n in scan.all_outputs}
    uses = [u for u in scan.uses if u.column in outputs]
    if not uses:
        return False
    names = _find_output_names(scan, uses, bound)
    if names is None:
        return True
    inside = {id(n) for n in ast.walk(scan.block.node)}
    for node in ast.walk(bound.tree):
        if id(node) in inside:
            continue
        if node.get("class") == "STAR" or node.get("ref_type") == "NATURAL":
            return True
        mentioned = [*node.get("column_names", []), *node.get("using_columns", [])]
        if any(isinstance(n, str) and n.lower() in names for n in mentioned):
            return True
        aliases = {(scan.block.item or {}).get("alias", "").lower()}
        if ast.is_column(node) and node["column_names"][-1].lower() in aliases - {""}:
            return True
    return False


def _find_output_names(scan: Scan, uses: list[ColumnUse], bound: BoundQuery) -> set[str] | None:
    """Names under which a query in FROM or WITH returns these columns; None if they are used otherwise."""
    block = scan.block
    entry = next((e for e, _ in bound.readers.values() if ast.cte_query(e) is block.node), {})
    if (block.item is None and not entry) or not ast.is_row_wise(block.node):
        return None
    if (block.item or {}).get("column_name_alias") or entry.get("value", {}).get("aliases"):
        return None
    names = set()
    direct = {id(item): item for item in block.node["select_list"] if ast.is_column(item)}
    for use in uses:
        if id(use.node) not in direct:
            return None
        names.add((use.node.get("alias") or use.node["column_names"][-1]).lower())
    return names


# -- the order of asking -------------------------------------------------------------------------------------------


def _order_scans(bound: BoundQuery) -> list[Scan]:
    """Each model after those whose answers it needs, else the innermost first."""
    left, order = list(bound.scans), []
    needs = {s.number: _find_needed_scans(s, bound) for s in bound.scans}
    while left:
        unasked = {s.number for s in left}
        ready = [s for s in left if not (needs[s.number] & unasked)]
        if not ready:
            raise StatementError(
                "The models of this query wait for each other's answers.",
                next_step="Let one of them take its inputs from a table.",
            )
        # Knowledge bases first: they are quick, and may leave rows without a chunk.
        best = max(ready, key=lambda s: (not isinstance(s, ModelScan), _count_levels(s.block), -s.number))
        order.append(best)
        left.remove(best)
    return order


def _count_levels(block: QueryBlock) -> int:
    depth, outer = 0, block.outer
    while outer is not None:
        depth, outer = depth + 1, outer.outer
    return depth


def _find_needed_scans(scan: Scan, bound: BoundQuery) -> set[int]:
    """Numbers of the models that must be asked before this one."""
    needed: set[int] = set()
    inside = {id(n) for b in scan.bindings.values() for tree in b.trees for n in ast.walk(tree)}
    base = remove_scans(scan.block.node.get("from_table"), scan.block.scans)
    below = {id(n) for n in ast.walk(base)} if base is not None else set()
    entries = add_ctes(select("*", base), scan.block.ctes) if base is not None else {}
    read = {e["key"].lower() for e in ast.ctes(entries)} if entries else set()
    in_ctes = {id(n) for e in scan.block.ctes if e["key"].lower() in read for n in ast.walk(e)}
    for other in bound.scans:
        if other is scan:
            continue
        if id(other.node) in inside or any(id(u.node) in inside for u in other.uses):
            needed.add(other.number)
        if id(other.node) in below and not _waits_for(other, scan):
            needed.add(other.number)
        if id(other.node) in in_ctes:
            needed.add(other.number)
    return needed


def _waits_for(inner: Scan, outer: Scan) -> bool:
    """Whether a model in a LATERAL query takes an input from the outer model."""
    trees = {id(n) for b in inner.bindings.values() for tree in b.trees for n in ast.walk(tree)}
    return any(id(u.node) in trees for u in outer.uses)


# -- what gives the input rows -------------------------------------------------------------------------------------


def build_input_query(scan: Scan, plan: QueryPlan, unasked: set[int]) -> InputQuery:
    """The relations and conditions that give a model its input rows, without models that are not asked yet."""
    block = scan.block
    waiting = [s for s in plan.bound.scans if s.number in unasked]
    remover = ScanRemover(block, waiting)
    relation = remover.copy_relation(block.node.get("from_table"))
    if relation is not None and remover.has_outer_join and not _reads_tables(scan):
        relation = None  # an outer join keeps the model's rows, whatever its partners are
    bindings = [c for s in waiting for c in s.conditions()]
    path = scan.join_path
    conditions = [
        c.node
        for c in block.conditions
        if c not in bindings
        and c.holder not in remover.kept_joins
        and (c.holder is block.node or is_filtering_join(c.holder, scan, path))
        and _keeps_partners(remover.copy_condition(c.node), c.holder, scan)
    ]
    pushed = plan.pushed_conditions[id(block.node)]
    conditions += [c for c in pushed if _keeps_partners(c, block.node, scan)]
    where = remover.copy_visible(conditions, relation, is_partial=remover.dropped or relation is None)
    relation, lists = join_value_lists([scan], remover, relation)
    inputs = [
        lists.get((scan.number, j)) or remover.copy(scan.bindings[name].values[0]) for j, name in enumerate(scan.inputs)
    ]
    return InputQuery(relation, where, inputs)


def join_value_lists(
    scans: Sequence[Scan], remover: ScanRemover, relation: Node | None = None
) -> tuple[Node | None, dict[tuple[int, int], Node]]:
    """Beside the relation one for each input that takes the values of a list or a query; its column by input."""
    columns = {}
    for scan in scans:
        for j, name in enumerate(scan.inputs):
            binding = scan.bindings[name]
            if binding.is_single_value:
                continue
            if binding.query is not None:
                query = remover.copy(binding.query)
            else:
                values = ast.expression("list_value(x)")
                ast.set_arguments(values, [remover.copy(v) for v in binding.values])
                query = select_expression(ast.expression("unnest(x)", x=values))
            alias = f"__sqlft_in{scan.number}_{j}"
            beside = ast.relation(f"(SELECT 1) AS {alias}(v)")
            beside["subquery"]["node"] = query
            columns[scan.number, j] = ast.column(alias, "v")
            relation = join_laterally(relation, beside)
    return relation, columns


def _keeps_partners(condition: Node | None, holder: Node, scan: Scan) -> bool:
    """Whether a condition may leave out rows before the joins below it: not by what such a join makes NULL.

    A row that is left out early would leave its partner in a FULL JOIN alone, and the condition may hold for that.
    """
    path = scan.join_path
    below = next((i + 1 for i, (join, _) in enumerate(path) if join is holder), 0)
    nullable: set[str] = set()
    for join, side in path[below:]:
        if (ast.join_type(join), side) in (("LEFT", "right"), ("RIGHT", "left"), ("FULL", "left"), ("FULL", "right")):
            nullable |= {ast.alias_of(leaf).lower() for leaf in leaves(join[side]) if leaf is not scan.node}
    if not nullable or condition is None:
        return True
    names = [node["column_names"] for node in ast.walk(condition) if ast.is_column(node)]
    return all(len(name) > 1 and name[0].lower() not in nullable for name in names)


def _reads_tables(scan: Scan) -> bool:
    return any(ast.is_column(n) for b in scan.bindings.values() for t in b.trees for n in ast.walk(t))


# -- conditions of the queries around ------------------------------------------------------------------------------


def _find_reader(block: QueryBlock, bound: BoundQuery) -> tuple[QueryBlock, Node] | None:
    """The one block that reads this one in its FROM, and the relation as which it does."""
    if block.item is not None and block.outer is not None:
        node = block.item["subquery"]["node"]
        return (block.outer, block.item) if node is block.node else None
    for entry, readers in bound.readers.values():
        if ast.cte_query(entry) is block.node and len(readers) == 1 and not entry["value"].get("aliases"):
            return readers[0]
    return None


def _push_conditions(block: QueryBlock, bound: BoundQuery) -> list[Node]:
    """Conditions around a row-wise block on columns that it passes on from its tables, in its own words."""
    reader = _find_reader(block, bound)
    if reader is None or not ast.is_row_wise(block.node) or has_limit(block.node):
        return []
    outer, item = reader
    if item.get("column_name_alias") or not _is_preserved_side(outer, item):
        return []
    only = len(list(leaves(outer.node["from_table"]))) == 1
    pushed = []
    more = [Condition(c, outer.node) for c in _push_conditions(outer, bound)]
    for condition in [*outer.conditions, *more]:
        if condition.holder is outer.node and not ast.is_volatile(condition.node):
            rewritten = _rewrite_inside(condition.node, block, ast.alias_of(item), bound, bare=only)
            if rewritten is not None:
                pushed.append(rewritten)
    return pushed


def _is_preserved_side(outer: QueryBlock, item: Node) -> bool:
    """Whether no outer join makes the item's columns NULL."""
    path = find_join_path(outer.node["from_table"], item)
    if path is None:
        return False
    return all(ast.join_type(j) == "INNER" or (ast.join_type(j) == "LEFT" and side == "left") for j, side in path)


def _rewrite_inside(tree: Node, block: QueryBlock, alias: str, bound: BoundQuery, *, bare: bool) -> Node | None:
    """An outer condition with the block's columns replaced by the expressions they come from; None if it cannot be."""
    parts: dict[int, Node] = {}
    for node in ast.walk(tree):
        if ast.is_query(node) or node.get("class") in ("STAR", "LAMBDA", "WINDOW"):
            return None
        if not ast.is_column(node):
            continue
        names = node["column_names"]
        if len(names) == 2 and names[0].lower() == alias.lower():
            name = names[1]
        elif len(names) == 1 and bare:
            name = names[0]
        else:
            return None
        source = _find_source_expression(name, block, bound)
        if source is None:
            return None
        parts[id(node)] = source
    return ast.copy_replacing(tree, parts) if parts else None


def _find_source_expression(name: str, block: QueryBlock, bound: BoundQuery) -> Node | None:
    """The expression that an output column of a row-wise block comes from; None where that needs an answer."""
    columns = {c for s in block.scans for c in s.columns}
    for item in block.node["select_list"]:
        if item.get("class") == "STAR":
            if item.get("columns") or item.get("replace_list") or item.get("rename_list") or name.lower() in columns:
                return None
            continue
        shown = item.get("alias") or (item["column_names"][-1] if ast.is_column(item) else "")
        if shown.lower() == name.lower():
            return _without_alias(item) if not reads_models(item, bound.scans) else None
    is_star = any(i.get("class") == "STAR" and not i.get("relation_name") for i in block.node["select_list"])
    return ast.column(name) if is_star and name.lower() not in columns else None


def _without_alias(item: Node) -> Node:
    return {k: v for k, v in item.items() if k != "alias"}


def reads_models(tree: Node, scans: Sequence[Scan], *, outputs_only: bool = False) -> bool:
    """Whether a tree mentions a column of a model, or holds a model."""
    inside = {id(n) for n in ast.walk(tree)}
    for scan in scans:
        if id(scan.node) in inside:
            return True
        inputs = {n.lower() for n in scan.inputs} if outputs_only else set()
        if any(id(u.node) in inside and u.column not in inputs for u in scan.uses):
            return True
    return False


# -- ORDER BY and LIMIT --------------------------------------------------------------------------------------------


def rewrite_order_by(node: Node, block: QueryBlock, bound: BoundQuery) -> list[Node] | None:
    """ORDER BY's items as expressions over the tables; None where they read answers or cannot be followed."""
    order = ast.modifier(node, "ORDER")
    if order is None:
        return []
    rewritten = []
    remover = ScanRemover(block, block.scans)
    for item in order["orders"]:
        target = _order_target(item["expression"], node)
        if target is None or reads_models(target, bound.scans, outputs_only=True):
            return None
        copied = remover.copy_condition(target)
        if copied is None or ast.is_constant(copied):
            return None
        rewritten.append({**item, "expression": _without_alias(copied)})
    return rewritten


def _order_target(expression: Node, node: Node) -> Node | None:
    """What an item of ORDER BY means: a place in the select list, an alias, or itself."""
    items = node["select_list"]
    if expression.get("class") == "STAR":
        return None
    if ast.is_constant(expression):
        place = ast.parse_integer(expression)
        has_star = any(i.get("class") == "STAR" for i in items)
        return None if place is None or has_star or not 0 < place <= len(items) else items[place - 1]
    if ast.is_column(expression) and len(expression["column_names"]) == 1:
        name = expression["column_names"][0].lower()
        named: Node = next((i for i in items if i.get("alias", "").lower() == name), expression)
        return named
    return expression


def has_limit(node: Node) -> bool:
    """Whether a SELECT has LIMIT or OFFSET of any kind."""
    return ast.modifier(node, "LIMIT") is not None or ast.modifier(node, "LIMIT_PERCENT") is not None


def push_limit(scan: Scan, plan: QueryPlan) -> PushedLimit | None:
    """ORDER BY and LIMIT for a model's input rows, where that gives the same rows; the model's join is INNER then."""
    block = scan.block
    limit, offset = limit_and_offset(block.node) or (None, None)
    if limit is None or not ast.is_row_wise(block.node) or len(block.scans) != 1:
        return None
    if not all(b.is_single_value for b in scan.bindings.values()):
        return None
    path = scan.join_path
    kinds = [(ast.join_type(join), side) for join, side in path]
    if any(kind not in ("INNER", "LEFT") or (kind, side) == ("LEFT", "left") for kind, side in kinds):
        return None
    others = [c for c in block.conditions if c not in scan.conditions()]
    if any((path and c.holder is path[-1][0]) or reads_models(c.node, plan.bound.scans) for c in others):
        return None
    orders = rewrite_order_by(block.node, block, plan.bound)
    if orders is None:
        return None
    # The query's own OFFSET skips rows by their answers, so those before it are asked about too.
    return PushedLimit(orders, limit if offset is None else ast.expression("a + b", a=limit, b=offset))


# -- slice by slice --------------------------------------------------------------------------------------------------


def _plan_stream(plan: QueryPlan) -> StreamPlan | None:
    """How to answer the query slice by slice; None if it is not of this kind."""
    bound = plan.bound
    place = _find_levels(bound)
    if place is None:
        return None
    block, levels = place
    if any(s.gives_rows for s in bound.scans):
        return None
    scans = [s for s in plan.order if s.block is block]
    if not scans or not all(_is_plain_join(s) for s in scans):
        return None
    if any(_waits_for(other, s) for s in scans for other in bound.scans if other.block is not block):
        return None
    tables = [leaf for leaf in leaves(block.node["from_table"]) if all(leaf is not s.node for s in scans)]
    if tables and not all(b.is_single_value for s in scans for b in s.bindings.values()):
        return None
    remover = ScanRemover(block, scans)
    if remover.copy_relation(block.node["from_table"]) is None and tables:
        return None
    if remover.dropped:
        return None
    bindings = [c for s in scans for c in s.conditions()]
    kept = [
        c
        for c in block.conditions
        if c not in bindings and c.holder not in remover.kept_joins and remover.copy_condition(c.node) is None
    ]
    stream = StreamPlan(block, levels, tables, scans, kept)
    qualify = block.node.get("qualify")
    if qualify is not None and (kept or reads_models(qualify, bound.scans)):
        return None
    orders = _find_stream_order(stream, bound)
    if orders is None or (orders and not tables):
        return None
    stream.orders = orders
    return stream if _place_limit(stream) else None


def _find_levels(bound: BoundQuery) -> tuple[QueryBlock, list[Node]] | None:
    """The one block that reads models, and the row-wise SELECTs from the root down to it."""
    blocks = {id(b.node): b for b in bound.blocks}
    node: Node | None = bound.tree
    levels: list[Node] = []
    while node is not None and ast.is_select(node):
        levels.append(node)
        block = blocks.get(id(node))
        if block is None:  # what stands for a knowledge base that is not searched
            return None
        is_block = bool(block.scans)
        plain = {k: v for k, v in node.items() if not (is_block and k in ("qualify", "sample"))}
        if not ast.is_row_wise(plain):
            return None
        if is_block:
            return block, levels
        node = _find_only_source(node, bound)
    return None


def _find_only_source(node: Node, bound: BoundQuery) -> Node | None:
    """The query that is a SELECT's one relation: one in parentheses, or a WITH entry that nobody else reads."""
    source = node.get("from_table") or {}
    if source.get("column_name_alias") or source.get("sample"):
        return None
    if ast.is_subquery(source):
        query: Node = source["subquery"]["node"]
        return query
    for entry, readers in bound.readers.values():
        if len(readers) == 1 and readers[0][1] is source and not entry["value"].get("aliases"):
            return ast.cte_query(entry)
    return None


def _is_plain_join(scan: Scan) -> bool:
    """Whether a model has one answer for each row of the tables, and no row goes or comes by its join alone."""
    path = scan.join_path
    others = [c for c in scan.block.conditions if c not in scan.conditions()]
    for join, side in path:
        kind, is_direct = ast.join_type(join), join is path[-1][0]
        if kind == "INNER" or (kind == "LEFT" and side == "left"):
            continue
        if kind != "LEFT" or not is_direct or any(c.holder is join for c in others):
            return False
    return True


def _find_stream_order(stream: StreamPlan, bound: BoundQuery) -> list[Node] | None:
    """The order in which rows are asked about: the outermost one that counts."""
    ordered = [n for n in stream.levels if ast.modifier(n, "ORDER") is not None]
    if not ordered:
        return []
    inner = stream.block.node
    if ordered == [inner]:
        return rewrite_order_by(inner, stream.block, bound)
    if len(ordered) > 1 or len(stream.levels) != 2 or has_limit(inner):
        return None
    order_items = rewrite_order_by(ordered[0], QueryBlock(ordered[0]), bound)
    if order_items is None:
        return None
    source = ordered[0]["from_table"]
    remover = ScanRemover(stream.block, stream.stages)
    orders = []
    for item in order_items:
        expression = _rewrite_inside(item["expression"], stream.block, ast.alias_of(source), bound, bare=True)
        copied = None if expression is None else remover.copy_condition(expression)
        if copied is None:
            return None
        orders.append({**item, "expression": copied})
    return orders


def _place_limit(stream: StreamPlan) -> bool:
    """Put LIMIT below the models, or count the rows of the result; False if neither can be."""
    limited = [n for n in stream.levels if has_limit(n)]
    if not limited:
        return True
    if len(limited) > 1 or limit_and_offset(limited[0]) is None:
        return False
    node = limited[0]
    is_inner = node is stream.block.node
    if (len(stream.levels) > 1 and stream.answer_conditions) if is_inner else node is not stream.levels[0]:
        return False
    filters = not is_inner and any(n.get("where_clause") for n in stream.levels[:-1])
    if stream.answer_conditions or filters:
        stream.output_limit = limit_and_offset(node)
    else:
        stream.input_limit = limit_and_offset(node)
    return True
