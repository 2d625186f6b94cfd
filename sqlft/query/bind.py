"""What a query reads of ours, which columns are whose, and what gives each input its value.

`sqlft.query.plan_query` calls `bind` with a tree; it gets the tree with views and sqlft's own tables put in, one
`ModelScan` for each model, and one `KnowledgeScan` for each knowledge base that is searched.  Binding asks DuckDB for
columns and types, never for rows, and no model.

A model is a relation with one row for each combination of its inputs, NULL included.  An input is bound by an equality
(in parentheses, reversed, with casts, IN, = ANY, USING) in WHERE or in a join's ON, else by the column of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import duckdb

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import NotSupported, StatementError
from sqlft.inference.resolve import ResolvedVersion
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.retrieval import KnowledgeScan, NamesOfBlock, bind_search, list_chunks
from sqlft.query.scope import (
    BoundQuery,
    ColumnUse,
    Condition,
    InputBinding,
    ModelScan,
    QueryBlock,
    RelationColumns,
    Scan,
    add_ctes,
    drop_schema,
    find_join_path,
    joins,
    leaves,
    output_names,
    remove_scans,
    select,
    select_expression,
    write_conditions,
)
from sqlft.sql.names import format_name

EQUALITY_TYPES = ("COMPARE_EQUAL", "COMPARE_NOT_DISTINCT_FROM")
PRESERVED_SIDES = {"LEFT": ("left",), "RIGHT": ("right",), "FULL": ("left", "right"), "ANTI": ("left",)}
"""Sides of a join whose rows stay without a partner."""


class NameResolver(Protocol):
    """What names of tables stand for; the planner of a statement knows."""

    def resolve_model(self, schema: str, name: str, number: int | None, alias: str) -> ResolvedVersion | None:
        """The version of a model that a name in FROM means."""

    def resolve_knowledge_base(self, schema: str, name: str) -> KnowledgeBase | None:
        """The knowledge base that a name in FROM means."""

    def resolve_table(self, catalog: str, schema: str, name: str) -> Node | None:
        """What stands in the place of a view over models or of one of sqlft's tables."""

    def current_schema(self) -> str:
        """The schema in which names without one are looked for."""

    def is_model_name(self, name: str) -> bool:
        """Whether a model or a view over models has this name."""


class Binder:
    """Finds models and binds their inputs; `bind` is its one use."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, names: NameResolver, text: str, offset_of: Callable[[Node], int]
    ) -> None:
        self._names, self._text, self._offset_of = names, text, offset_of
        self._con = con
        self.columns = RelationColumns(con, names.is_model_name)
        self.scans: list[Scan] = []
        self.blocks: list[QueryBlock] = []
        self._readers: dict[int, tuple[Node, list[tuple[QueryBlock, Node]]]] = {}
        self._depth = 0

    def bind(self, tree: Node) -> BoundQuery:
        """Find the models, then bind them; StatementError names an input that has no value."""
        ast.check_depth(tree)
        self._visit(tree, None, (), None)
        for block in self.blocks:
            self._read_conditions(block)
        for scan in [s for s in self.scans if isinstance(s, KnowledgeScan)]:
            self._find_uses(scan)
            self._bind_knowledge_base(scan)
        models = [s for s in self.scans if isinstance(s, ModelScan)]
        for model in models:
            self._find_uses(model)
        for model in models:
            self._bind_scan(model)
        return BoundQuery(tree, self.scans, self.blocks, self._readers)

    # -- finding -----------------------------------------------------------------------------------------------

    def _visit(self, value: object, block: QueryBlock | None, ctes: tuple[Node, ...], item: Node | None) -> None:
        if isinstance(value, list):
            for inner in value:
                self._visit(inner, block, ctes, item)
        elif isinstance(value, dict):
            if ast.is_query(value):
                self._visit_query(value, block, ctes, item)
            elif ast.is_table(value):
                self._visit_table(value, block, ctes)
            else:
                if value.get("type") == "PIVOT":
                    self._wrap_source(value)
                item = value if ast.is_subquery(value) else None if "class" in value else item
                for inner in list(value.values()):
                    if isinstance(inner, (dict, list)):
                        self._visit(inner, block, ctes, item)

    def _wrap_source(self, pivot: Node) -> None:
        """PIVOT of a table is PIVOT of a query over it, so that a model in it has a block."""
        source = pivot["source"]
        if any(ast.is_table(n) for n in leaves(source)):
            wrapped = ast.relation("(SELECT * FROM __x) AS __y")
            wrapped["alias"] = ast.alias_of(source)
            wrapped["subquery"]["node"]["from_table"] = source
            pivot["source"] = wrapped

    def _visit_query(self, node: Node, block: QueryBlock | None, ctes: tuple[Node, ...], item: Node | None) -> None:
        for entry in ast.ctes(node):
            self._visit(entry["value"], block, ctes, None)
            ctes = (*ctes, entry)
        if node["type"] == "RECURSIVE_CTE_NODE":
            itself: Node = {"key": node["cte_name"], "value": {}}
            self._visit(node["left"], block, (*ctes, itself), None)
            before = len(self.scans)
            self._visit(node["right"], block, (*ctes, itself), None)
            if len(self.scans) > before:
                title = self.scans[before].title
                raise NotSupported(
                    f"The {title} is read inside a recursive CTE: each step would wait for its answers.",
                    "Keep the recursion in a table, and join the model to that.",
                )
            return
        if ast.is_select(node):
            inner = QueryBlock(node, block, item, ctes)
            self.blocks.append(inner)
            for key, value in list(node.items()):
                if key != "cte_map":
                    self._visit(value, inner, ctes, None)
            return
        for key, value in list(node.items()):
            if key != "cte_map":
                self._visit(value, block, ctes, item)

    def _visit_table(self, node: Node, block: QueryBlock | None, ctes: tuple[Node, ...]) -> None:
        catalog, schema, name = ast.table_name(node)
        entry = next((e for e in reversed(ctes) if e["key"].lower() == name.lower()), None) if not schema else None
        if entry is not None:
            if block is not None:
                self._readers.setdefault(id(entry), (entry, []))[1].append((block, node))
            return
        plain, number = ast.split_version(name)
        replacement = self._names.resolve_table(catalog, schema, name)
        if replacement is not None:
            self._substitute_table(node, replacement, block, ctes)
            return
        resolved = None if catalog else self._names.resolve_model(schema, plain, number, node.get("alias", "") or plain)
        if resolved is None:
            base = None if catalog else self._names.resolve_knowledge_base(schema, plain)
            if base is not None:
                self._add_knowledge_base(node, base, number, block)
            return
        if block is None or node.get("column_name_alias"):
            raise NotSupported(
                "A model's columns cannot be renamed in its alias.", "Rename them in the SELECT: m.answer AS a."
            )
        if node.get("sample"):
            raise NotSupported("A model has no rows to sample.", "Sample the table that it is joined to.")
        alias = node.get("alias", "") or resolved.model.key.name
        self._add_scan(ModelScan(len(self.scans), node, alias, block, resolved=resolved))

    def _add_knowledge_base(
        self, node: Node, base: KnowledgeBase, number: int | None, block: QueryBlock | None
    ) -> None:
        name = base.key.name
        if number is not None:
            raise NotSupported(f"The knowledge base '{name}' has no versions.", f"Read {name}.")
        if block is None or node.get("column_name_alias"):
            raise NotSupported(
                "The columns of a knowledge base cannot be renamed in its alias.",
                "Rename them in the SELECT: docs.chunk_content AS text.",
            )
        alias, schema = node.get("alias", "") or name, ast.table_name(node)[1]
        self._add_scan(KnowledgeScan(len(self.scans), node, alias, block, base=base, schema=schema))

    def _add_scan(self, scan: Scan) -> None:
        self.scans.append(scan)
        scan.block.scans.append(scan)

    def _substitute_table(
        self, node: Node, replacement: Node, block: QueryBlock | None, ctes: tuple[Node, ...]
    ) -> None:
        """A view over models, or one of sqlft's tables, in a table's place."""
        schema = ast.table_name(node)[1]
        alias = node.get("alias", "") or ast.split_version(ast.table_name(node)[2])[0]
        if schema and block is not None:
            drop_schema(block.node, alias)
        renamed, sample = node.get("column_name_alias"), node.get("sample")
        node.clear()
        node.update(replacement)
        node["alias"] = alias
        if renamed:
            node["column_name_alias"] = renamed
        if sample:
            node["sample"] = sample
        if not ast.is_subquery(node):
            return
        self._depth += 1
        if self._depth > 100:
            raise NotSupported(
                "Views over models are nested too deeply here.", "Does a view read itself? SHOW MODELS, then DROP VIEW."
            )
        hiding = {entry["key"].lower() for entry in ctes}
        for table in ast.walk(node["subquery"]):
            if ast.is_table(table) and not table.get("schema_name") and table["table_name"].lower() in hiding:
                ast.set_table(table, self._names.current_schema(), table["table_name"])
        self._visit(node["subquery"], block, (), node)
        self._depth -= 1

    # -- which columns are a model's ---------------------------------------------------------------------------

    def _read_conditions(self, block: QueryBlock) -> None:
        node = block.node
        block.conditions = [Condition(c, node) for c in ast.conjuncts(node.get("where_clause"))]
        for join in joins(node.get("from_table")):
            block.conditions += [Condition(c, join) for c in ast.conjuncts(join.get("condition"))]

    def _find_uses(self, scan: Scan) -> None:
        columns = scan.columns
        alias, project = scan.alias.lower(), scan.project.lower()
        path = scan.join_path
        is_visible = not any(ast.join_type(j) in ("SEMI", "ANTI") and side == "right" for j, side in path)
        for node, nested, parameters in self._find_columns(scan.block.node, (), frozenset()):
            if node.get("class") == "STAR":
                star = node.get("relation_name", "").lower()
                if not nested and (star == alias or (star == "" and is_visible)):
                    scan.shows_all_columns = True
                    scan.stars.append(node)
                continue
            names = [n.lower() for n in node["column_names"]]
            if len(names) > 2 and names[0] == project and names[1] == alias:
                del node["column_names"][0]
                names = names[1:]
            if len(names) > 1 and names[0] == alias:
                if not any(alias in {ast.alias_of(i).lower() for i in leaves(s.get("from_table"))} for s in nested):
                    scan.uses.append(ColumnUse(node, names[1], True))
            elif (
                names == [alias]
                and alias not in columns
                and not self._is_other_column(alias, nested, scan, any_column=True)
            ):
                scan.shows_all_columns = True
                scan.rows.append(node)
            elif (
                names[0] in columns
                and names[0] not in parameters
                and not (len(names) > 1 and self._is_alias(names[0], nested, scan.block))
                and not self._is_other_column(names[0], nested, scan, any_column=scan.hides_inputs)
            ):
                scan.uses.append(ColumnUse(node, names[0], False))

    def _find_columns(
        self, value: object, nested: tuple[Node, ...], parameters: frozenset[str], *, top: bool = True
    ) -> Iterator[tuple[Node, tuple[Node, ...], frozenset[str]]]:
        """Columns and stars below a SELECT, each with the SELECTs between and the parameters of lambdas around it."""
        if isinstance(value, list):
            for inner in value:
                yield from self._find_columns(inner, nested, parameters, top=False)
        if not isinstance(value, dict):
            return
        kind = value.get("class")
        if kind in ("COLUMN_REF", "STAR"):
            yield value, nested, parameters
        if kind == "LAMBDA":
            is_json = ast.is_constant(value.get("expr"))  # metadata->'key', which DuckDB reads as a lambda too
            names = {n["column_names"][0].lower() for n in ast.walk(value.get("lhs")) if ast.is_column(n)}
            parameters |= set() if is_json else names
        if ast.is_select(value) and not top:
            nested = (*nested, value)
        is_order = value.get("type") == "ORDER_MODIFIER" and not nested
        for key, inner in list(value.items()):
            if isinstance(inner, (dict, list)) and not (top and key == "cte_map"):
                for found in self._find_columns(inner, nested, parameters, top=False):
                    if not (is_order and found[0].get("class") == "STAR"):  # ORDER BY ALL
                        yield found

    def _is_alias(self, name: str, nested: tuple[Node, ...], block: QueryBlock | None) -> bool:
        """Whether a relation that an expression in a block can see has this name."""
        seen = list(nested)
        while block is not None:
            seen.append(block.node)
            block = block.outer
        return any(name == ast.alias_of(leaf).lower() for node in seen for leaf in leaves(node.get("from_table")))

    def _is_other_column(self, name: str, nested: tuple[Node, ...], scan: Scan, *, any_column: bool = False) -> bool:
        """Whether a bare name means a column of a subquery's table, or of the block's own where it is an input."""
        if any(name in self._columns_of_select(node, scan) for node in nested):
            return True
        if not any_column and name not in {i.lower() for i in scan.inputs}:
            return False
        return any(name in self._leaf_columns(table, scan.block) for table in self._tables_of(scan.block))

    def _columns_of_select(self, node: Node, scan: Scan) -> frozenset[str]:
        block = next((b for b in self.blocks if b.node is node), None)
        scans = block.scans if block else ()
        models = frozenset(c for s in scans for c in s.columns)
        plain = remove_scans(node.get("from_table"), scans)
        return models | self.columns.of(plain, block.ctes if block else scan.block.ctes)

    def _tables_of(self, block: QueryBlock, relation: Node | None = None) -> list[Node]:
        """Relations of a block's FROM, or of a part of it, that are no models."""
        models = {id(s.node) for s in block.scans}
        return [leaf for leaf in leaves(relation or block.node.get("from_table")) if id(leaf) not in models]

    def _leaf_columns(self, leaf: Node, block: QueryBlock) -> frozenset[str]:
        """A relation's columns, a model's too; of a query that reads models, the names of its output columns."""
        scan = next((s for s in block.scans if s.node is leaf), None)
        if scan is not None:
            return frozenset(scan.columns)
        inner = next((b for b in self.blocks if b.item is leaf and b.outer is block), None)
        if inner is None or not any(_is_inside(s.block, inner) for s in self.scans):
            return self.columns.of(leaf, block.ctes)
        return frozenset(output_names(inner.node))

    # -- binding -------------------------------------------------------------------------------------------------

    def _bind_scan(self, scan: Scan) -> None:
        path = find_join_path(scan.block.node["from_table"], scan.node)
        if path is None:
            raise NotSupported(
                f"The {scan.title} stands where only a table can.",
                "Read it in a SELECT: … FROM table JOIN model ON ….",
            )
        self._check_joins(scan, path)
        for name in scan.inputs:
            binding = self._bind_shared(scan, name, path) or self._bind_explicit(scan, name, path)
            if binding is not None:
                scan.bindings[name] = binding
        for name in scan.inputs:
            if name not in scan.bindings:
                scan.bindings[name] = self._bind_same_name(scan, name, path)
        self._bind_shared_outputs(scan, path)

    def _bind_knowledge_base(self, scan: KnowledgeScan) -> None:
        """Read what is searched for; without that, the base is a query for all of its chunks."""
        path = find_join_path(scan.block.node["from_table"], scan.node)
        if path is None:
            raise NotSupported(f"The {scan.title} stands where only a table can.", "Read it in a SELECT: … FROM docs.")
        self._check_joins(scan, path)
        shared = self._bind_shared(scan, "content", path)
        using = list(path[-1][0].get("using_columns", [])) if path else []
        written = list(scan.block.conditions)
        self._bind_shared_outputs(scan, path)
        names = NamesOfBlock(
            self._con,
            lambda column: self._find_alias(column, scan.block),
            self.scans,
            lambda message, next_step: self._make_error(scan, message, next_step),
        )
        if not bind_search(scan, names, shared):
            self.scans.remove(scan)
            scan.block.scans.remove(scan)
            scan.block.conditions = [c for c in scan.block.conditions if any(c is w for w in written)]
            if using:
                path[-1][0]["using_columns"] = using
            if scan.options:
                write_conditions(scan.block)  # options are no conditions
            sample = {k: v for k, v in scan.node.items() if k == "sample"}
            scan.node.clear()
            scan.node.update({**list_chunks(self._con, scan.base), "alias": scan.alias, **sample})
            return
        if scan.node.get("sample"):
            raise NotSupported("What a search finds cannot be sampled here.", "Sample a query around it.")
        for binding in scan.bindings.values():
            for join, side in path:
                if join is binding.holder and self._reads_other_side(scan, binding, join, side):
                    self._check_preserved(scan, "content", join, side)

    def _find_alias(self, column: Node, block: QueryBlock) -> str | None:
        """The relation of a block that a column is of; None for one of a query around it."""
        first, bare = column["column_names"][0].lower(), len(column["column_names"]) == 1
        for leaf in leaves(block.node.get("from_table")):
            scan = next((s for s in block.scans if s.node is leaf), None)
            alias = (scan.alias if scan is not None else ast.alias_of(leaf)).lower()
            if alias == first if not bare else first in self._leaf_columns(leaf, block):
                return alias
        return None

    def _check_joins(self, scan: Scan, path: list[tuple[Node, str]]) -> None:
        for join, _ in path:
            direct = join is path[-1][0]
            if scan.hides_inputs and direct and join.get("ref_type") == "NATURAL":
                raise NotSupported(
                    f"The {scan.title} cannot be joined with NATURAL JOIN.",
                    f"Write ON {scan.alias}.content = table.column.",
                )
            if join.get("ref_type") == "POSITIONAL" or (direct and join.get("ref_type") == "ASOF"):
                kind = str(join["ref_type"])
                raise NotSupported(
                    f"The {scan.title} cannot be joined with {kind} JOIN: its rows have no order.",
                    "Use JOIN or LEFT JOIN.",
                )

    def _bind_shared(self, scan: Scan, name: str, path: list[tuple[Node, str]]) -> InputBinding | None:
        """The binding of an input that USING or NATURAL makes one with a table's column."""
        if not path:
            return None
        join, side = path[-1]
        other = join["right" if side == "left" else "left"]
        if join.get("ref_type") == "NATURAL":
            if name.lower() not in self._side_columns(other, scan.block):
                return None
        elif name.lower() not in [c.lower() for c in join.get("using_columns", [])]:
            return None
        self._check_preserved(scan, name, join, side)
        column = self._column_of(other, name, scan.block)
        return InputBinding(
            [column], holder=join, is_hidden=True, is_shown_by_star=side == "left" and len(column["column_names"]) > 1
        )

    def _bind_shared_outputs(self, scan: Scan, path: list[tuple[Node, str]]) -> None:
        """USING and NATURAL over columns of the answer are equalities; the model's join keeps neither word."""
        if not path:
            return
        join, side = path[-1]
        other = join["right" if side == "left" else "left"]
        shared = [c.lower() for c in join.get("using_columns", [])]
        if join.get("ref_type") == "NATURAL":
            shared = [c for c in scan.columns if c in self._side_columns(other, scan.block)]
            join["ref_type"] = "REGULAR"
        for name in shared:
            if name in (n.lower() for n in scan.inputs):
                continue
            if name not in scan.columns:
                raise self._make_error(
                    scan,
                    f"USING ({name}): the {scan.title} has no column '{name}'.",
                    f"It has {', '.join(scan.columns.values())}.",
                )
            mine = ast.column(scan.alias, scan.columns[name])
            equal = ast.expression("a = b", a=mine, b=self._column_of(other, name, scan.block))
            scan.uses.append(ColumnUse(equal["left"], name, True))
            scan.block.conditions.append(Condition(equal, join))
        join["using_columns"] = []

    def _side_columns(self, relation: Node, block: QueryBlock) -> frozenset[str]:
        return frozenset(c for leaf in leaves(relation) for c in self._leaf_columns(leaf, block))

    def _column_of(self, relation: Node, name: str, block: QueryBlock) -> Node:
        """A column of one of the relation's tables, by its table's alias where there is one."""
        for leaf in leaves(relation):
            if name.lower() in self._leaf_columns(leaf, block):
                scan = next((s for s in block.scans if s.node is leaf), None)
                alias = scan.alias if scan is not None else ast.alias_of(leaf)
                column = ast.column(alias, name) if alias else ast.column(name)
                if scan is not None:
                    scan.uses.append(ColumnUse(column, name.lower(), True))
                return column
        return ast.column(name)

    def _check_preserved(self, scan: Scan, name: str, join: Node, side: str) -> None:
        if side in PRESERVED_SIDES.get(ast.join_type(join), ()):
            kind = ast.join_type(join)
            raise NotSupported(
                f"The {scan.title} has a row for every text there is, and this {kind} JOIN "
                f"would keep those without a partner: the input '{name}' has no end of values.",
                "Put the table on the side that is kept: FROM table LEFT JOIN model ON ….",
            )

    def _bind_explicit(self, scan: Scan, name: str, path: list[tuple[Node, str]]) -> InputBinding | None:
        """The binding that a condition gives; StatementError for one that tries to and cannot."""
        tried: Condition | None = None
        for condition in scan.block.conditions:
            mine = [u for u in scan.find_uses_in(condition.node) if u.column == name.lower()]
            if not mine:
                continue
            binding = self._bind_condition(scan, name, condition.node, {id(u.node) for u in mine})
            if binding is not None:
                for join, side in path:
                    if join is condition.holder and self._reads_other_side(scan, binding, join, side):
                        self._check_preserved(scan, name, join, side)
                binding.conditions = [condition]
                return binding
            if _tries_to_bind(condition.node, {id(u.node) for u in mine}):
                tried = condition
        if tried is not None:
            sql = ast.expression_sql(tried.node)[:200]
            model = scan.name
            raise self._make_error(
                scan,
                f"The condition {sql} does not say what '{name}' of the model '{model}' is: an equality "
                "under OR or NOT, or on a part of it, gives it no value.",
                f"Write one for all rows, joined by AND: {model}.{name} = …, or {model}.{name} IN (…).",
            )
        return None

    def _reads_other_side(self, scan: Scan, binding: InputBinding, join: Node, side: str) -> bool:
        if not any(ast.is_column(n) for tree in binding.trees for n in ast.walk(tree)):
            return False
        return side in PRESERVED_SIDES.get(ast.join_type(join), ())

    def _bind_condition(self, scan: Scan, name: str, node: Node, mine: set[int]) -> InputBinding | None:
        kind = node.get("type")
        if kind in EQUALITY_TYPES:
            for this, other in (("left", "right"), ("right", "left")):
                if _is_input(node[this], mine) and not scan.find_uses_in(node[other]):
                    return InputBinding([node[other]])
        if kind == "COMPARE_IN" and _is_input(node["children"][0], mine):
            values = node["children"][1:]
            if not any(scan.find_uses_in(v) for v in values):
                return InputBinding(values)
        if kind == "SUBQUERY" and node.get("subquery_type") == "ANY" and _is_input(node.get("child"), mine):
            query = node["subquery"]["node"]
            if node.get("comparison_type") in EQUALITY_TYPES and not scan.find_uses_in(query):
                listed = ast.array_items(query)
                return InputBinding([], query) if listed is None else InputBinding(listed)
        if kind == "FUNCTION" and node.get("function_name") == "contains":
            looked_into, item = ast.arguments(node)
            if _is_input(item, mine) and not scan.find_uses_in(looked_into) and self._is_list(scan, looked_into):
                return InputBinding([], select_expression(ast.expression("unnest(x)", x=looked_into)))
        if kind == "CONJUNCTION_OR":
            parts = [self._bind_condition(scan, name, c, mine) for c in _disjuncts(node)]
            if all(p is not None and p.query is None for p in parts):
                return InputBinding([v for p in parts if p is not None for v in p.values])
        return None

    def _is_list(self, scan: Scan, expression: Node) -> bool:
        """Whether `x IN expression` looks into a list, not `contains` into a text."""
        plain = remove_scans(scan.block.node["from_table"], scan.block.scans)
        query = add_ctes(select("unnest(x)", plain), scan.block.ctes)
        query["select_list"] = [ast.expression("unnest(x)", x=expression)]
        try:
            self._con.sql(ast.to_sql(query))
        except duckdb.Error:
            return False
        return True

    def _bind_same_name(self, scan: Scan, name: str, path: list[tuple[Node, str]]) -> InputBinding:
        """The column of the input's name in the nearest table that has one."""
        model, column_name = scan.name, format_name(name)
        for join, side in reversed(path):
            other = join["right" if side == "left" else "left"]
            tables = self._tables_of(scan.block, other)
            if any(name.lower() in self._leaf_columns(leaf, scan.block) for leaf in tables):
                self._check_preserved(scan, name, join, side)
                column = self._find_unambiguous(tables, name, scan)
                return InputBinding([column], holder=join, is_hidden=True)
        if self._tables_of(scan.block):
            raise self._make_error(
                scan,
                f"The input '{name}' of the model '{model}' has no value, and no table has a column of that name.",
                f"Map it: JOIN {model} ON {model}.{column_name} = table.column.",
            )
        raise self._make_error(
            scan,
            f"The input '{name}' of the model '{model}' has no value.",
            f"Give it one: WHERE {column_name} = '…', or JOIN {model} ON {model}.{column_name} = table.column.",
        )

    def _find_unambiguous(self, tables: list[Node], name: str, scan: Scan) -> Node:
        """The column by its table's alias; bare where tables share it by USING, or where it is ambiguous."""
        having = [leaf for leaf in tables if name.lower() in self._leaf_columns(leaf, scan.block)]
        alias = ast.alias_of(having[0])
        return ast.column(alias, name) if len(having) == 1 and alias else ast.column(name)

    def _make_error(self, scan: Scan, message: str, next_step: str) -> StatementError:
        """An error that points at a model."""
        return StatementError(message, self._text, self._offset_of(scan.node), next_step)


def _is_inside(block: QueryBlock | None, outer: QueryBlock) -> bool:
    while block is not None and block is not outer:
        block = block.outer
    return block is outer


def _is_input(node: Node | None, mine: set[int]) -> bool:
    """Whether a side of a comparison is an input's column, with or without a cast."""
    while node is not None and node.get("class") == "CAST":
        node = node["child"]
    return node is not None and id(node) in mine


def _disjuncts(node: Node) -> list[Node]:
    if node.get("type") != "CONJUNCTION_OR":
        conjuncts = ast.conjuncts(node)
        return conjuncts if len(conjuncts) == 1 else [node]
    return [a for child in node["children"] for a in _disjuncts(child)]


def _tries_to_bind(node: Node, mine: set[int]) -> bool:
    """Whether an equality with an input stands somewhere in a condition."""
    for inner in ast.walk(node, into=lambda n: not ast.is_query(n)):
        if inner.get("type") in EQUALITY_TYPES and any(_is_input(inner[side], mine) for side in ("left", "right")):
            return True
        if inner.get("type") == "COMPARE_IN" and _is_input(inner["children"][0], mine):
            return True
        if inner.get("subquery_type") == "ANY" and _is_input(inner.get("child"), mine):
            return True
    return False
