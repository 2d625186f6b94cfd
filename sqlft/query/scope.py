"""What a query's tree means: its SELECTs, the models in them, their columns, and what gives each input its value.

`bind` fills these in, `plan` and `execute` read them; here are also the questions that all three ask of a FROM clause.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import duckdb

from sqlft.inference.resolve import ResolvedVersion
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.sql.names import quote_name


class ColumnUse(NamedTuple):
    """A column of a model where it is mentioned."""

    node: Node
    column: str
    """In lower case."""
    qualified: bool


@dataclass
class Condition:
    """One of the conditions that AND joins in a WHERE or an ON."""

    node: Node
    holder: Node
    """The SELECT or the join."""

    def __post_init__(self) -> None:
        self.original = self.node


@dataclass
class InputBinding:
    """How an input gets its value: an expression, or each value of a list or a query."""

    values: list[Node]
    query: Node | None = None
    conditions: list[Condition] = field(default_factory=list)
    """Those that say so; a join's USING and the column of the input's name have none."""
    holder: Node | None = None
    """The join whose ON gets the condition that nobody wrote."""
    is_hidden: bool = False
    """Whether the input is one column with a table's, as USING has it."""
    is_shown_by_star: bool = False
    """Whether it is the model's column that a star shows, since USING names it and the model stands first."""

    @property
    def is_single_value(self) -> bool:
        """Whether there is one value for each row of the tables."""
        return self.query is None and len(self.values) == 1

    @property
    def trees(self) -> list[Node]:
        """The expressions and the query."""
        return [*self.values, *([self.query] if self.query is not None else [])]


@dataclass
class QueryBlock:
    """One SELECT that is part of the query."""

    node: Node
    outer: QueryBlock | None = None
    item: Node | None = None
    """The relation in the outer block's FROM that it is; None for a subquery in an expression."""
    ctes: tuple[Node, ...] = ()
    """WITH entries that it can read, outermost first."""
    scans: list[Scan] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)


@dataclass(eq=False)
class Scan(ABC):
    """A relation of ours in a FROM clause, which has rows for each combination of its inputs."""

    hides_inputs: ClassVar[bool] = False
    """Whether stars do not show its inputs, and tables' columns of the names of all of its columns go before."""

    number: int
    node: Node
    """Its place in the tree."""
    alias: str
    block: QueryBlock
    uses: list[ColumnUse] = field(default_factory=list)
    shows_all_columns: bool = False
    """Whether a star or the alias as a row shows all of it."""
    stars: list[Node] = field(default_factory=list)
    rows: list[Node] = field(default_factory=list)
    """Where the alias stands for the whole row."""
    bindings: dict[str, InputBinding] = field(default_factory=dict)
    is_read: bool = True
    """Whether anybody reads what it answers."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As the catalog has it."""

    @property
    @abstractmethod
    def project(self) -> str:
        """That it is in."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What a plan calls it: m.1."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What messages call it: model 'm'."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Its columns that are no inputs, as far as they are read: a star shows those that are no details."""

    @property
    @abstractmethod
    def all_outputs(self) -> tuple[str, ...]:
        """Its columns that are no inputs."""

    @property
    def gives_rows(self) -> bool:
        """Whether it may have none or several rows for a combination of inputs, and not always one."""
        return False

    @property
    def columns(self) -> dict[str, str]:
        """All of its columns, by lower-case name."""
        return {n.lower(): n for n in (*self.inputs, *self.all_outputs)}

    def hidden_column(self, name: str) -> str:
        """The name of an input's column that is one with a table's."""
        return f"__sqlft_i{self.number}_{self.inputs.index(name)}"

    def shown_column(self, name: str) -> str:
        """The column in which an input's values stand: its own, or the hidden one where a table has one so named."""
        return self.hidden_column(name) if self.bindings[name].is_hidden else name

    def find_hidden_columns(self) -> dict[str, str]:
        """Columns that are read under another name than that in which they stand, and that one."""
        shown = self.find_shown_inputs()
        return {n: self.hidden_column(n) for n, b in self.bindings.items() if b.is_hidden and n in shown}

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns of the alias as a row."""
        return (*self.inputs, *self.outputs)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns of what stands in its place that nobody sees."""
        return ()

    def find_shown_inputs(self) -> list[str]:
        """Inputs whose values the result may show."""
        mentioned = {u.column for u in self.find_free_uses()}
        return [n for n in self.inputs if self.shows_all_columns or n.lower() in mentioned]

    def find_free_uses(self) -> list[ColumnUse]:
        """Where its columns are mentioned, but for the conditions that bind its inputs."""
        binding = {id(n) for c in self.conditions() for n in ast.walk(c.original)}
        return [u for u in self.uses if id(u.node) not in binding]

    @property
    def join_path(self) -> list[tuple[Node, str]]:
        """The joins from the root of its FROM down to it, each with the side on which it is."""
        return find_join_path(self.block.node["from_table"], self.node) or []

    def conditions(self) -> list[Condition]:
        """Those that bind its inputs."""
        return [c for b in self.bindings.values() for c in b.conditions]

    def find_uses_in(self, tree: Node) -> list[ColumnUse]:
        """Where a tree mentions one of its columns."""
        inside = {id(n) for n in ast.walk(tree) if ast.is_column(n)}
        return [u for u in self.uses if id(u.node) in inside]


@dataclass(eq=False)
class ModelScan(Scan):
    """A model in a FROM clause."""

    resolved: ResolvedVersion = field(kw_only=True)

    @property
    def name(self) -> str:
        return self.resolved.model.key.name

    @property
    def project(self) -> str:
        return self.resolved.model.key.project

    @property
    def key(self) -> str:
        return str(self.resolved.version.key)

    @property
    def title(self) -> str:
        return f"model '{self.name}'"

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.resolved.prompt.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        derived = (n for n in self.resolved.outputs.derived if any(u.column == n.lower() for u in self.uses))
        return (*self.resolved.outputs.names, *derived)

    @property
    def all_outputs(self) -> tuple[str, ...]:
        return (*self.resolved.outputs.names, *self.resolved.outputs.derived)


class RelationColumns:
    """Names of the columns that relations of a FROM clause have, as DuckDB says."""

    def __init__(self, con: duckdb.DuckDBPyConnection, is_model: Callable[[str], bool]) -> None:
        self._con, self._is_model = con, is_model
        self._known: dict[int, tuple[Node, frozenset[str]]] = {}

    def of(self, relation: Node | None, ctes: Sequence[Node]) -> frozenset[str]:
        """In lower case; empty where it cannot be bound by itself."""
        if relation is None or relation.get("type") == "EMPTY":
            return frozenset()
        if id(relation) not in self._known:
            try:
                query = add_ctes(select("*", relation), ctes)
                names = frozenset(c.lower() for c in self._con.sql(ast.to_sql(query)).columns)
            except duckdb.CatalogException as e:  # it reads a model, or a variable of the caller's
                if not self._is_missing_model(str(e)):
                    raise
                names = frozenset()
            except duckdb.Error:  # it hangs on a query around it
                names = frozenset()
            self._known[id(relation)] = relation, names
        return self._known[id(relation)][1]

    def _is_missing_model(self, error: str) -> bool:
        missing = find_unknown_name(error)
        return not missing or self._is_model(ast.split_version(missing)[0])


def select(columns: str, relation: Node | None = None, where: Sequence[Node] = ()) -> Node:
    """SELECT columns FROM relation WHERE conditions, as a tree."""
    tree = deepcopy(ast.parse_cached(f"SELECT {columns}"))
    if relation is not None:
        tree["from_table"] = deepcopy(relation)
    if where:
        tree["where_clause"] = deepcopy(ast.conjunction(list(where)))
    return tree


def add_ctes(query: Node, ctes: Sequence[Node]) -> Node:
    """The query with those of the WITH entries that it needs, found through each other."""
    needed: list[Node] = []
    names = {ast.table_name(n)[2].lower() for n in ast.walk(query) if ast.is_table(n)}
    for entry in reversed(ctes):
        if entry["key"].lower() in names and all(entry["key"].lower() != n["key"].lower() for n in needed):
            needed.insert(0, entry)
            names |= {ast.table_name(n)[2].lower() for n in ast.walk(entry) if ast.is_table(n)}
    if needed:
        query["cte_map"] = {"map": [*deepcopy(needed), *ast.ctes(query)]}
    return query


def leaves(relation: Node | None) -> Iterator[Node]:
    """The relations of a FROM clause that are no joins, in their order."""
    if relation is None or relation.get("type") == "EMPTY":
        return
    if ast.is_join(relation):
        yield from leaves(relation["left"])
        yield from leaves(relation["right"])
    else:
        yield relation


def joins(relation: Node | None) -> Iterator[Node]:
    """The joins of a FROM clause, outermost first, the right side before the left."""
    if ast.is_join(relation):
        assert relation is not None
        yield relation
        yield from joins(relation["right"])
        yield from joins(relation["left"])


def join_laterally(relation: Node | None, beside: Node) -> Node:
    """A relation for each row of another, if there is one."""
    if relation is None:
        return beside
    joined = ast.relation("a, LATERAL (SELECT 1) AS b")
    joined["left"], joined["right"] = relation, beside
    return joined


def find_join_path(relation: Node, leaf: Node) -> list[tuple[Node, str]] | None:
    """The joins from the root down to a leaf, each with the side on which it is; None if it is not there."""
    if relation is leaf:
        return []
    if not ast.is_join(relation):
        return None
    for side in ("left", "right"):
        path = find_join_path(relation[side], leaf)
        if path is not None:
            return [(relation, side), *path]
    return None


def is_filtering_join(join: Node, scan: Scan, path: Sequence[tuple[Node, str]]) -> bool:
    """Whether rows that a join's ON refuses need no answer of a model."""
    kind = ast.join_type(join)
    return kind == "INNER" or (kind == "LEFT" and any(j is join and side == "right" for j, side in path))


def limit_and_offset(node: Node) -> tuple[Node | None, Node | None] | None:
    """LIMIT and OFFSET as expressions; None where there is none, or one of percents."""
    limit = ast.modifier(node, "LIMIT")
    if limit is None or limit.get("limit_type", "ROW_COUNT") != "ROW_COUNT":
        return None
    return limit.get("limit"), limit.get("offset")


@dataclass
class BoundQuery:
    """A tree and the models in it."""

    tree: Node
    scans: list[Scan]
    blocks: list[QueryBlock]
    readers: dict[int, tuple[Node, list[tuple[QueryBlock, Node]]]]
    """By WITH entry: who reads it, and as which relation."""


def drop_schema(tree: Node, alias: str) -> None:
    """schema.table.column as table.column, for a relation that is in no schema any more."""
    for node in ast.walk(tree):
        names = node.get("column_names", [])
        while (
            ast.is_column(node)
            and alias.lower() in [n.lower() for n in names[1:-1]]
            and names[0].lower() != alias.lower()
        ):
            del names[0]


def rename_hidden_columns(scan: Scan) -> None:
    """Let mentions of columns mean those in which their values stand."""
    hidden = scan.find_hidden_columns()
    for use in scan.uses:
        name = next((n for n in hidden if n.lower() == use.column), None)
        if name is not None and (use.qualified or scan.hides_inputs):
            use.node["column_names"][: 1 + use.qualified] = [scan.alias, hidden[name]]


def hide_columns(scan: Scan, keys: Sequence[str]) -> None:
    """Let stars, rows and qualified names see what the model shows, and nothing else."""
    hidden = scan.find_hidden_columns()
    if not scan.hides_inputs:
        rename_hidden_columns(scan)
    for node in scan.rows:
        names = [(n, hidden.get(n, n)) for n in scan.row_columns]
        fields = ", ".join(f"{quote_name(n)} := {quote_name(scan.alias)}.{quote_name(c)}" for n, c in names)
        struct = ast.expression(f"struct_pack({fields})")
        alias = node.get("alias", "")
        node.clear()
        node.update({**struct, "alias": alias})
    if scan.hides_inputs:
        for star in scan.stars:
            _exclude_from_star(star, [*keys, *hidden.values()])
        return
    leads = [n for n in hidden if scan.bindings[n].is_shown_by_star]
    for star in scan.stars:
        if leads and not star.get("relation_name"):
            _exclude_from_star(star, [*keys, *(c for n, c in hidden.items() if n not in leads)])
            columns = [scan.bindings[n].values[0]["column_names"] for n in leads]
            tables = [{"table": table, "column": column} for table, column in (names[-2:] for names in columns)]
            star["qualified_exclude_list"] = [*star.get("qualified_exclude_list", []), *tables]
            star["rename_list"] = [
                *star.get("rename_list", []),
                *({"key": {"column": hidden[n]}, "value": n} for n in leads),
            ]
        elif star.get("relation_name"):
            _exclude_from_star(star, keys)
            star["rename_list"] = [
                *star.get("rename_list", []),
                *({"key": {"column": c}, "value": n} for n, c in hidden.items()),
            ]
        else:
            _exclude_from_star(star, [*keys, *hidden.values()])


def _exclude_from_star(star: Node, names: Sequence[str]) -> None:
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


def write_conditions(block: QueryBlock) -> None:
    """Put a block's conditions back into its WHERE and its joins."""
    block.node["where_clause"] = ast.conjunction([c.node for c in block.conditions if c.holder is block.node])
    for join in joins(block.node.get("from_table")):
        conditions = [c.node for c in block.conditions if c.holder is join]
        kind = join.get("ref_type", "REGULAR")
        if conditions:
            join["ref_type"] = "REGULAR" if kind == "CROSS" else kind
            join["is_implicit"] = False
        elif kind == "REGULAR" and not join.get("using_columns"):
            conditions = [ast.expression("true")]
        join["condition"] = ast.conjunction(conditions)


def select_expression(expression: Node) -> Node:
    """SELECT expression, as a tree."""
    tree = select("1")
    tree["select_list"] = [expression]
    return tree


def prune_joins(
    relation: Node | None, keep: Callable[[Node], Node | None], join: Callable[[Node, Node, Node], Node]
) -> Node | None:
    """A FROM clause without the relations for which `keep` returns None; `join` makes the joins that are left.

    A relation that an outer join preserves takes the other side with it.  None if nothing is left.
    """
    if relation is None or relation.get("type") == "EMPTY":
        return None
    if not ast.is_join(relation):
        return keep(relation)
    left, right = prune_joins(relation["left"], keep, join), prune_joins(relation["right"], keep, join)
    if left is None:
        return None if ast.join_type(relation) in ("LEFT", "FULL", "ANTI") else right
    return left if right is None else join(relation, left, right)


def remove_scans(relation: Node | None, scans: Sequence[Scan]) -> Node | None:
    """A FROM clause without models: what gives the rows that they are asked for; None if nothing is left."""

    def join(node: Node, left: Node, right: Node) -> Node:
        is_whole = left is node["left"] and right is node["right"]
        return node if is_whole else {**node, "left": left, "right": right}

    return prune_joins(relation, lambda leaf: None if any(leaf is s.node for s in scans) else leaf, join)


class ScanRemover:
    """Takes models that are not asked yet out of a FROM clause and out of conditions."""

    def __init__(self, block: QueryBlock, waiting: Sequence[Scan], leave_out: Node | None = None) -> None:
        self._block = block
        self._places = {id(s.node) for s in waiting}
        self._removed = {id(s.node) for s in waiting if s.block is block} | {id(leave_out)}
        self._inputs: dict[int, Node] = {}
        self._outputs: set[int] = set()
        for scan in waiting:
            inputs = {n.lower(): n for n in scan.inputs}
            for use in scan.uses:
                binding = scan.bindings.get(inputs.get(use.column, ""))
                if binding is not None and binding.is_single_value:
                    self._inputs[id(use.node)] = binding.values[0]
                else:
                    self._outputs.add(id(use.node))
        self.kept_joins: list[Node] = []
        self.dropped = self.has_outer_join = False
        """Whether a relation that is no model is left out, too; and whether there is a join that is not INNER."""

    def copy_condition(self, node: Node) -> Node | None:
        """A copy with the models' inputs replaced by what they are bound to; None if it needs an answer."""
        return self.copy(node) if self._is_free(node) else None

    def _is_free(self, node: Node, depth: int = 0) -> bool:
        for inner in ast.walk(node):
            if id(inner) in self._outputs or id(inner) in self._places:
                return False
            if id(inner) in self._inputs and (depth > 20 or not self._is_free(self._inputs[id(inner)], depth + 1)):
                return False
        return True

    def copy(self, node: Node) -> Node:
        """A copy of a tree, inputs of models replaced."""
        return ast.copy_replacing(node, self._inputs)

    def copy_visible(self, conditions: Sequence[Node], relation: Node | None, *, is_partial: bool) -> list[Node]:
        """Copies of conditions on columns of `relation`, what is left of the FROM clause: all unless `is_partial`."""
        aliases = {ast.alias_of(leaf).lower() for leaf in leaves(relation)}

        def is_visible(column: Node) -> bool:
            names = column["column_names"]
            return not is_partial or (len(names) > 1 and names[0].lower() in aliases)

        copies = [copied for c in conditions if (copied := self.copy_condition(c)) is not None]
        return [
            copied
            for copied in copies
            if not ast.is_volatile(copied) and all(is_visible(n) for n in ast.walk(copied) if ast.is_column(n))
        ]

    def copy_relation(self, relation: Node | None) -> Node | None:
        """A copy of the FROM clause, or None if nothing is left."""
        copied = prune_joins(relation, self._copy_leaf, self._copy_join)
        self.has_outer_join |= any(ast.join_type(join) != "INNER" for join in joins(relation))
        others = sum(id(leaf) not in self._removed for leaf in leaves(relation))
        self.dropped |= len(list(leaves(copied))) < others
        return copied

    def _copy_leaf(self, leaf: Node) -> Node | None:
        return None if id(leaf) in self._removed else self.copy_condition(leaf)

    def _copy_join(self, relation: Node, left: Node, right: Node) -> Node:
        conditions = [self.copy_condition(c.node) for c in self._block.conditions if c.holder is relation]
        if None in conditions:
            return right if ast.join_type(relation) == "RIGHT" else left
        self.kept_joins.append(relation)
        condition = ast.conjunction([c for c in conditions if c is not None])
        if condition is None and relation.get("ref_type", "REGULAR") == "REGULAR" and not relation.get("using_columns"):
            condition = ast.expression("true")
        copied = {k: v for k, v in relation.items() if k not in ("left", "right", "condition")}
        return {**copied, "left": left, "right": right, **({"condition": condition} if condition else {})}


def output_names(node: Node) -> list[str]:
    """Lower-case names of the columns of a SELECT, as far as its text shows them."""
    names = []
    for item in node.get("select_list", []):
        if item.get("alias"):
            names.append(str(item["alias"]).lower())
        elif ast.is_column(item):
            names.append(str(item["column_names"][-1]).lower())
    return names


UNKNOWN_NAME = re.compile(r'(?P<kind>[\w ]+) with name "?(?P<name>.+?)"? does not exist')


def find_unknown_name(error: str) -> str:
    """The name that DuckDB does not know; empty where its error is of another kind.

    >>> find_unknown_name("Catalog Error: Table with name orders does not exist!")
    'orders'
    """
    match = UNKNOWN_NAME.search(error)
    return match["name"] if match else ""
