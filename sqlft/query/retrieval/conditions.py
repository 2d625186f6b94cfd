"""What the conditions of a query say about a knowledge base: texts, filters, thresholds, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal

import duckdb

from sqlft.errors import StatementError
from sqlft.knowledge.search import DEFAULT_K
from sqlft.knowledge.tables import visible_columns
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.retrieval.scan import (
    CONDITION_OPTIONS,
    ChunkFilter,
    CombinedSearch,
    KnowledgeScan,
    SearchTree,
    TextSearch,
    finds_chunks,
    text_searches,
)
from sqlft.query.scope import (
    Condition,
    InputBinding,
    Scan,
    ScanRemover,
    is_filtering_join,
    joins,
    leaves,
    limit_and_offset,
)
from sqlft.sql.names import quote_text

COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOT_DISTINCT_FROM": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_DISTINCT_FROM": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
REVERSED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
LIKE_FUNCTIONS = {"~~": False, "~~*": False, "!~~": True, "!~~*": True}
"""Whether it is NOT LIKE, by DuckDB's name of the function."""


class NamesOfBlock:
    """What binding knows of the names around a knowledge base."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        alias_of_column: Callable[[Node], str | None],
        scans: Sequence[Scan],
        make_error: Callable[[str, str], StatementError],
    ) -> None:
        """`alias_of_column` is the table of the block that a column is of, None for one of a query around it."""
        self.con, self.alias_of_column, self.scans, self.make_error = con, alias_of_column, scans, make_error

    def evaluate(self, constant: Node) -> object:
        """The value of an expression without columns."""
        value = self.con.sql(f"SELECT {ast.expression_sql(constant)}").fetchall()[0][0]
        return float(value) if isinstance(value, Decimal) else value


class ConditionReader:
    """Reads what the conditions of a block say about one knowledge base in it."""

    def __init__(self, scan: KnowledgeScan, names: NamesOfBlock) -> None:
        self._scan, self._names = scan, names
        self._block = scan.block
        self._path = scan.join_path
        self._uses = {id(u.node): u.column for u in scan.uses}
        self._option_names = set(CONDITION_OPTIONS) - {n.lower() for n in scan.chunk_columns}
        self._searches: list[tuple[Condition, SearchTree]] = []
        self._thresholds: list[Condition] = []
        self._others: list[Condition] = []

    def run(self, shared: InputBinding | None) -> bool:
        """Fill in the scan; False where nothing says what is searched for.  `shared` is the binding by USING."""
        self._check_ambiguity()
        for condition in list(self._block.conditions):
            if columns := self._columns_in(condition.node):
                self._read(condition, columns)
        if not self._searches and shared is None:
            self._check_listing()
            return False
        self._bind_texts(shared)
        self._place_filters()
        self._choose_rows()
        self._find_limit()
        return True

    def _check_ambiguity(self) -> None:
        """StatementError for a bare name that means the search of several knowledge bases."""
        several = sum(isinstance(s, KnowledgeScan) for s in self._block.scans) > 1
        for use in self._scan.uses if several else ():
            if not use.qualified and use.column in self._option_names | {"content", "context"}:
                raise self._names.make_error(
                    f"'{use.column}' is of several knowledge bases here.", f"Write {self._scan.alias}.{use.column}."
                )

    def _columns_in(self, node: Node) -> set[str]:
        return {self._uses[id(n)] for n in ast.walk(node) if id(n) in self._uses}

    def _read(self, condition: Condition, columns: set[str]) -> None:
        node = condition.node
        if self._binds_model(node):
            self._others.append(condition)
        elif columns & self._option_names:
            self._read_option(condition)
        elif (tree := self._parse(node)) is not None:
            self._searches.append((condition, tree))
        elif "content" in columns:
            raise self._names.make_error(
                f"The condition {ast.expression_sql(node)[:200]} does not say what is searched for.",
                f"Write {self._scan.alias}.content = …, LIKE, IN or <>, joined by AND, or by OR with others of these.",
            )
        elif not self._read_threshold(condition):
            self._others.append(condition)

    def _binds_model(self, node: Node) -> bool:
        """Whether it says what a model's input is: m.question = docs.content."""
        sides = _comparison(node)
        for side in sides[1:] if sides is not None else ():
            column = _uncast(side)
            if not ast.is_column(column) or id(column) in self._uses:
                continue
            alias = self._names.alias_of_column(column)
            models = [s for s in self._block.scans if not isinstance(s, KnowledgeScan) and s.alias.lower() == alias]
            if any(column["column_names"][-1].lower() in (n.lower() for n in s.inputs) for s in models):
                return True
        return False

    def _read_option(self, condition: Condition) -> None:
        """`hybrid_search = true` and the like, which are no conditions."""
        operator, *sides = _comparison(condition.node) or ("",)
        names = [name for side in sides if (name := self._uses.get(id(_uncast(side)))) in self._option_names]
        values = [side for side in sides if not _has_columns(side)]
        if operator != "=" or not names or not values:
            options = ", ".join(CONDITION_OPTIONS)
            raise self._names.make_error(
                f"The condition {ast.expression_sql(condition.node)[:200]} is on an option of the search, which "
                "holds for all rows and takes a constant.",
                f"Write {options} as option = value, joined by AND, or USING {self._scan.alias}.option = value.",
            )
        self._scan.options[str(names[0])] = self._names.evaluate(values[0])
        self._block.conditions.remove(condition)

    def _read_threshold(self, condition: Condition) -> bool:
        """Whether it is relevance >= x, which holds before the best are chosen."""
        node = condition.node
        sides = _comparison(node)
        if node.get("type") == "COMPARE_BETWEEN" and self._uses.get(id(_uncast(node["input"]))) == "relevance":
            raise self._threshold_error(node)
        if sides is None:
            return False
        operator, left, right = sides
        if self._uses.get(id(_uncast(right))) == "relevance":
            operator, left, right = REVERSED.get(operator, operator), right, left
        if self._uses.get(id(_uncast(left))) != "relevance" or _has_columns(right):
            return False
        if operator not in (">", ">="):
            raise self._threshold_error(node)
        value = self._names.evaluate(right)
        try:
            least = float(str(value))
        except ValueError:
            least = -1.0
        if not 0 <= least <= 1:
            raise self._names.make_error(
                f"The relevance of a chunk is between 0 and 1, and this asks for {ast.expression_sql(right)}.",
                "Write relevance >= 0.5, or another number from 0 to 1.",
            )
        if self._is_filtering(condition):
            known = self._scan.min_relevance
            if known is None or (least, operator == ">") > (known, self._scan.above):
                self._scan.min_relevance, self._scan.above = least, operator == ">"
            self._thresholds.append(condition)
        return True

    def _threshold_error(self, node: Node) -> StatementError:
        return self._names.make_error(
            f"The condition {ast.expression_sql(node)[:200]} asks for chunks that are not the best."
            " A search finds the best.",
            "Write relevance >= x or > x, or any condition in a query around it: FROM (SELECT … FROM "
            f"{self._scan.name} WHERE content = …) WHERE relevance < x.",
        )

    # -- what is searched for --------------------------------------------------------------------------------------

    def _parse(self, node: Node, *, negated: bool = False) -> SearchTree | None:
        """The search that a condition on the content means; None for a condition of another kind."""
        kind = node.get("type")
        if kind == "OPERATOR_NOT":
            return self._parse(node["children"][0], negated=not negated)
        if (sides := _comparison(node)) is not None:
            for this, other in (sides[1:], sides[:0:-1]):
                if sides[0] in ("=", "<>") and self._is_content(this, other):
                    return TextSearch(other, is_excluded=negated != (sides[0] == "<>"))
            return None
        if kind in ("COMPARE_IN", "COMPARE_NOT_IN") and self._is_content(*node["children"]):
            return _combine_texts(node["children"][1:], is_excluded=negated != (kind == "COMPARE_NOT_IN"))
        if kind == "FUNCTION" and node.get("function_name") in LIKE_FUNCTIONS:
            this, pattern = ast.arguments(node)
            if self._is_content(this, pattern):
                excluded = negated != LIKE_FUNCTIONS[node["function_name"]]
                return TextSearch(_without_percents(pattern), is_excluded=excluded)
            return None
        if kind == "SUBQUERY" and node.get("subquery_type") == "ANY" and self._is_content(node.get("child")):
            query = node["subquery"]["node"]
            if node.get("comparison_type") not in ("COMPARE_EQUAL", "COMPARE_NOT_DISTINCT_FROM"):
                return None
            if (listed := ast.array_items(query)) is not None:
                return _combine_texts(listed, is_excluded=negated)
            return TextSearch(_list_of(query), is_excluded=negated, is_list=True)
        if kind in ("CONJUNCTION_OR", "CONJUNCTION_AND"):
            return self._parse_conjunction(node, negated)
        return None

    def _parse_conjunction(self, node: Node, negated: bool) -> SearchTree | None:
        """Searches joined by OR, or by AND below one, where the others of the latter's conditions are filters."""
        is_any = (node["type"] == "CONJUNCTION_OR") != negated
        parts, filters = [], []
        for child in node["children"] if node["type"] == "CONJUNCTION_OR" else ast.conjuncts(node):
            part = self._parse(child, negated=negated)
            if part is not None:
                parts.append(part)
            elif is_any or negated or (made := self._make_filter(child)) is None:
                return None
            else:
                filters.append(made)
        if not parts or (is_any and any(s.is_excluded for p in parts for s in text_searches(p))):
            return None
        for search in (s for p in parts for s in text_searches(p)):
            search.filters += filters
        return parts[0] if len(parts) == 1 else CombinedSearch("any" if is_any else "all", parts)

    def _is_content(self, node: Node | None, *others: Node) -> bool:
        """Whether it is what is compared with texts: the content, or a chunk's where the texts are constants."""
        column = None if node is None else self._uses.get(id(_uncast(node)))
        if column == "chunk_content":
            return not any(_has_columns(other) for other in others)
        return column == "content" and not any(self._columns_in(other) for other in others)

    def _check_listing(self) -> None:
        """StatementError where a query without a search reads what only a search gives."""
        asked = [c for c in ("context", "content") if any(u.column == c for u in self._scan.uses)]
        asked += ["relevance"] if self._thresholds else []
        asked += ["k"] if "k" in self._scan.options else []
        if asked:
            raise self._names.make_error(
                f"'{asked[0]}' needs something that the knowledge base '{self._scan.name}' is searched for.",
                f"Write WHERE content = '…', or JOIN {self._scan.name} ON {self._scan.name}.content = table.column.",
            )

    def _bind_texts(self, shared: InputBinding | None) -> None:
        """Make each text an input."""
        scan = self._scan
        trees: list[SearchTree] = [tree for _, tree in self._searches]
        if shared is not None:
            trees.insert(0, TextSearch(shared.values[0]))
        scan.tree = trees[0] if len(trees) == 1 else CombinedSearch("all", trees)
        known: dict[str, int] = {}
        for search in text_searches(scan.tree):
            sql = ast.expression_sql(search.text)
            if sql not in known:
                known[sql] = len(scan.texts)
                scan.texts.append(search.text)
            search.place = known[sql]
        if not finds_chunks(scan.tree):
            raise self._names.make_error(
                f"A search of '{scan.name}' that only leaves out chunks has no order.",
                "Say what is searched for, too: content = '…' AND content <> '…'.",
            )
        self._holder = self._searches[0][0].holder if shared is None else shared.holder
        for name, text in zip(scan.inputs, list(scan.texts), strict=True):
            scan.bindings[name] = InputBinding([text], holder=self._holder)
        if shared is not None:
            scan.bindings["content"] = replace(shared, is_hidden=False, is_shown_by_star=False)
        scan.bindings["content"].conditions = [condition for condition, _ in self._searches]

    # -- filters ---------------------------------------------------------------------------------------------------

    def _make_filter(self, node: Node) -> ChunkFilter | None:
        """A condition on chunks alone, or on them and columns of other tables; None for any other."""
        columns = self._columns_in(node)
        visible = {n.lower() for n in visible_columns(self._scan.base)}
        places = {id(s.node) for s in self._names.scans}
        if not columns or not columns <= visible or ast.is_volatile(node):
            return None
        nodes = list(ast.walk(node))
        if any(id(n) in places for n in nodes):
            return None
        is_nested = any(ast.is_query(n) or n.get("class") == "LAMBDA" for n in nodes)
        mine = [n for n in nodes if id(n) in self._uses]
        plain = ast.walk(node, into=lambda n: not ast.is_query(n))
        others = [n for n in plain if ast.is_column(n) and id(n) not in self._uses]
        if is_nested:
            known = {self._scan.alias.lower(), *(ast.alias_of(n).lower() for n in nodes)}
            tables = [n["column_names"][0].lower() for n in nodes if ast.is_column(n) and len(n["column_names"]) > 1]
            if not known.issuperset(tables):
                return None  # it reads a row of another table, which the search does not know
            others = []
        return ChunkFilter(node, others, mine, is_nested)

    def _place_filters(self) -> None:
        """Which of the other conditions hold before the best chunks are chosen."""
        scan = self._scan
        tables = self._find_question_tables()
        self._filtering: list[Condition] = []
        for condition in self._others:
            made = self._make_filter(condition.node)
            if made is not None and self._is_filtering(condition) and self._is_of_question(made, tables):
                scan.filters.append(made)
                self._filtering.append(condition)
        known: set[str] = set()
        for made in self.all_filters():
            for column in made.columns:
                sql = ast.expression_sql(column)
                if sql not in known:
                    known.add(sql)
                    scan.columns_of_others.append(column)
        for name, column in zip(scan.inputs[len(scan.texts) :], scan.columns_of_others, strict=True):
            scan.bindings[name] = InputBinding([column], holder=self._holder)

    def all_filters(self) -> Iterator[ChunkFilter]:
        """Those for all texts, and those for some."""
        yield from self._scan.filters
        for search in text_searches(self._scan.tree):
            yield from search.filters

    def _is_filtering(self, condition: Condition) -> bool:
        """Whether a condition holds for all chunks that the query may show."""
        kind = ast.join_type(condition.holder) if ast.is_join(condition.holder) else "INNER"
        sides = [side for join, side in self._path if join is condition.holder]
        if kind in ("SEMI", "ANTI"):
            return sides == ["right"]
        if condition.holder is not self._block.node and not is_filtering_join(condition.holder, self._scan, self._path):
            return False
        below = next((i + 1 for i, (join, _) in enumerate(self._path) if join is condition.holder), 0)
        nullable = (("LEFT", "right"), ("RIGHT", "left"), ("FULL", "left"), ("FULL", "right"))
        if not any((ast.join_type(join), side) in nullable for join, side in self._path[below:]):
            return True
        # Rows without a chunk come to this condition, too: it may only leave them out.
        sides_of = _comparison(condition.node)
        return (
            sides_of is not None
            and any(id(_uncast(s)) in self._uses for s in sides_of[1:])
            and "DISTINCT" not in str(condition.node["type"])
        )

    def _find_question_tables(self) -> tuple[set[str], set[str], bool]:
        """Tables that the texts come from, those that are joined to them without the base, and whether there is one.

        A table that is joined to the chunks found (ON articles.id = docs.id) is none of them.
        """
        read = {self._names.alias_of_column(n) for text in self._scan.texts for n in _own_columns(text)}
        remover = ScanRemover(self._block, [s for s in self._names.scans if s.block is self._block])
        there = {ast.alias_of(leaf).lower() for leaf in leaves(remover.copy_relation(self._block.node["from_table"]))}
        direct = {alias for alias in read if alias is not None}
        joined = set(direct)
        pairs = [
            {self._names.alias_of_column(n) for n in _own_columns(c.node)} - {None}
            for c in self._block.conditions
            if not any(s.find_uses_in(c.node) for s in self._names.scans)
        ]
        before = -1
        while len(joined) > before:
            before = len(joined)
            for pair in pairs:
                if pair & joined:
                    joined |= {alias for alias in pair if alias in there}
        return direct, joined, bool(read)

    def _is_of_question(self, made: ChunkFilter, tables: tuple[set[str], set[str], bool]) -> bool:
        """Whether a filter's columns of other tables are known with the question."""
        direct, joined, reads_tables = tables
        aliases = {self._names.alias_of_column(n) for n in made.columns}
        of_block = {alias for alias in aliases if alias is not None}
        if not of_block:
            return True
        is_identity = {self._uses[id(n)] for n in made.uses} & {"id", "chunk_id"}
        return reads_tables and of_block <= (direct if is_identity else joined)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _choose_rows(self) -> None:
        """One row for each chunk, or one for each combination of inputs where only their context is read."""
        scan = self._scan
        dealt = {id(n) for c in [*self._filtering, *self._thresholds] for n in ast.walk(c.node)}
        chunk_columns = {n.lower() for n in scan.chunk_columns}
        reads_chunks = any(u.column in chunk_columns and id(u.node) not in dealt for u in scan.find_free_uses())
        if reads_chunks or scan.shows_all_columns or not scan.shows_context:
            return
        scan.gives_context = True
        for condition in [*self._filtering, *self._thresholds]:
            self._block.conditions.remove(condition)

    def _find_limit(self) -> None:
        """LIMIT + OFFSET is how many chunks are needed, where they are all that the query reads."""
        node = self._block.node
        models = [s.node for s in self._block.scans if not isinstance(s, KnowledgeScan)]
        others = [n for n in leaves(node["from_table"]) if n is not self._scan.node and all(n is not m for m in models)]
        if self._scan.gives_context or not ast.is_row_wise(node):
            return
        is_hidden = any(ast.join_type(join) in ("SEMI", "ANTI") and side == "right" for join, side in self._path)
        is_ordered = ast.modifier(node, "ORDER") is None and not is_hidden and (not others or self._block.outer is None)
        if is_ordered:
            self._order_by_place(node)
        rows = self._count_limited_rows(node)
        if not others and rows is not None:
            self._scan.limit = max(DEFAULT_K if models else 1, rows)
        if others and is_ordered and self._keeps_rows():
            self._scan.row_limit = rows

    def _count_limited_rows(self, node: Node) -> int | None:
        """LIMIT + OFFSET, where they are constants."""
        limit, offset = limit_and_offset(node) or (None, None)
        parts = [n for n in (limit, offset) if n is not None]
        if limit is None or any(_has_columns(n) for n in parts):
            return None
        return sum(int(str(self._names.evaluate(ast.expression("CAST(x AS BIGINT)", x=n)) or 0)) for n in parts)

    def _keeps_rows(self) -> bool:
        """Whether each chunk that is found gives a row at least."""
        if any(ast.join_type(join) not in ("INNER", "LEFT") for join in joins(self._block.node["from_table"])):
            return False
        dealt = [*(c for c, _ in self._searches), *self._filtering, *self._thresholds]
        left = [c for c in self._block.conditions if all(c is not d for d in dealt)]
        return not any(self._columns_in(c.node) or ast.is_volatile(c.node) for c in left)

    def _order_by_place(self, node: Node) -> None:
        """Rows that nobody orders are in the order of the texts, the best chunks of each first."""
        order = deepcopy(ast.parse_cached("SELECT 1 ORDER BY 1")["modifiers"][0])
        order["orders"][0]["expression"] = ast.column(self._scan.alias, self._scan.place_column)
        node["modifiers"] = [order, *node.get("modifiers", [])]


def bind_search(scan: KnowledgeScan, names: NamesOfBlock, shared: InputBinding | None) -> bool:
    """Whether a knowledge base is searched; the scan knows then for what.  `shared` is its binding by USING."""
    return ConditionReader(scan, names).run(shared)


def _combine_texts(texts: Sequence[Node], *, is_excluded: bool) -> SearchTree:
    """IN (…), or NOT IN."""
    parts: list[SearchTree] = [TextSearch(text, is_excluded=is_excluded) for text in texts]
    return parts[0] if len(parts) == 1 else CombinedSearch("all" if is_excluded else "any", parts)


def _list_of(query: Node) -> Node:
    """The rows of a query as one list, always in the same order."""
    listed = ast.expression("(SELECT list(DISTINCT v::VARCHAR ORDER BY v::VARCHAR) FROM (SELECT 1) AS __q(v))")
    listed["subquery"]["node"]["from_table"]["subquery"]["node"] = query
    return listed


def _uncast(node: Node) -> Node:
    while node.get("class") == "CAST":
        node = node["child"]
    return node


def _comparison(node: Node) -> tuple[str, Node, Node] | None:
    """The operator and the sides of a comparison."""
    operator = COMPARISONS.get(str(node.get("type")))
    return None if operator is None else (operator, node["left"], node["right"])


def _own_columns(node: Node) -> Iterator[Node]:
    """Columns in an expression that are none of a query inside it."""
    return (n for n in ast.walk(node, into=lambda n: not ast.is_query(n)) if ast.is_column(n))


def _has_columns(node: Node) -> bool:
    return any(ast.is_column(n) or ast.is_query(n) for n in ast.walk(node))


def _without_percents(pattern: Node) -> Node:
    """The text of a LIKE's pattern."""
    if ast.is_constant(pattern) and ast.literal_type(pattern):
        return ast.expression(quote_text(ast.literal_text(pattern).strip("%")))
    return ast.expression("trim(x, '%')", x=pattern)
