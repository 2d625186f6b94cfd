"""A query as DuckDB's own syntax tree: read once, changed in place, written back as text.

DuckDB parses (`json_serialize_sql`) and prints (`json_deserialize_sql`), on a private connection, so that no open
result and no transaction of the user's is touched.  A node is a plain dict as DuckDB gives it; what differs between
its versions is built by parsing a template, never by hand.  Not covered: statements that are no SELECT; their inner
queries are cut out by `sqlft.query.statements`.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any

import duckdb

from sqlft.errors import NotSupported, StatementError
from sqlft.sql.lexer import Token

Node = dict[str, Any]
VERSION_DOT = "\u00b7"
"""What stands for the dot of `name.N` while DuckDB parses: one character too, and part of a name."""
ON_TRUE = " ON true"
IS_DUCKDB_1 = int(duckdb.__version__.split(".")[0]) < 2
MAX_DEPTH = 900
"""Levels of nesting that are walked; Python allows about 1,000 calls."""
_lock = threading.Lock()
_connections: list[duckdb.DuckDBPyConnection] = []
"""The one private connection, once there is one; given back at exit, since DuckDB's module does not outlive it."""
atexit.register(_connections.clear)


def _reset_after_fork() -> None:
    """A forked process has a connection and a lock of its own; the parent's lie there untouched."""
    global _lock
    _lock = threading.Lock()
    _parent_connections.extend(_connections)
    _connections.clear()


_parent_connections: list[duckdb.DuckDBPyConnection] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


class UnparsableQuery(StatementError):
    """A text that DuckDB cannot parse."""


class NotASelect(NotSupported):
    """A text that DuckDB reads and that is no SELECT: it has no tree."""


def _query_duckdb(query: str, *values: str) -> list[tuple[Any, ...]]:
    """Rows of the private connection, which holds no data."""
    with _lock:
        if not _connections:
            _connections.append(duckdb.connect(":memory:", config={"threads": 1}))
        return _connections[0].execute(query, values or None).fetchall()


def parse(text: str) -> Node:
    """The tree of a SELECT.

    UnparsableQuery with DuckDB's words where it is none; NotASelect where DuckDB has no tree for it (PIVOT without IN).

    >>> parse("SELECT 1 AS a")["select_list"][0]["alias"]
    'a'
    """
    try:
        reply: Node = json.loads(_serialize(text))
    except duckdb.Error as e:
        raise NotSupported(f"DuckDB cannot read this query: {_first_line(e)}", "Check its syntax.") from e
    if reply.get("error"):
        if reply.get("error_type") == "not implemented":
            raise NotASelect("This part of the statement is no SELECT.", "Read the model in a SELECT inside it.")
        message = str(reply.get("error_message", "it is no query"))
        position = reply.get("position")
        offset = len(text.encode()[: int(position)].decode(errors="ignore")) if position not in (None, "") else 0
        raise UnparsableQuery(f"{message[:1].upper()}{message[1:]}.", text, offset, "Check the query's syntax.")
    if len(reply["statements"]) != 1:
        raise StatementError("There is more than one query here.", text, 0, "Run them one by one.")
    node: Node = reply["statements"][0]["node"]
    return node


@lru_cache(maxsize=256)
def _serialize(text: str) -> str:
    return str(_query_duckdb("SELECT json_serialize_sql(?::VARCHAR, skip_default := true)", text)[0][0])


def to_sql(node: Node) -> str:
    """A tree as DuckDB writes it.

    >>> to_sql(parse("select 1+1"))
    'SELECT (1 + 1)'
    """
    if IS_DUCKDB_1:
        node = _replace_comma_joins(deepcopy(node))
    whole = {"error": False, "statements": [{"node": node, "named_param_map": []}]}
    try:
        return str(_query_duckdb("SELECT json_deserialize_sql(?)", json.dumps(whole))[0][0])
    except duckdb.SerializationException as e:  # DuckDB 2.0.1 takes 256 levels
        raise NotSupported("This query is nested too deeply.", "Put a part of it into a view or a table.") from e


def _replace_comma_joins(node: Node) -> Node:
    """The tree with joins in place of commas: DuckDB 1.5 prints no parentheses, and a comma binds more loosely."""
    for join in walk(node):
        if is_join(join) and join.get("ref_type") == "CROSS":
            join.update({"ref_type": "REGULAR", "is_implicit": False, "condition": expression("true")})
    return node


def expression_sql(expression: Node) -> str:
    """An expression as DuckDB writes it, which is the name of a column that has no alias."""
    bare = {k: v for k, v in expression.items() if k != "alias"}
    return to_sql({**parse_cached("SELECT 1"), "select_list": [bare]})[len("SELECT ") :]


@lru_cache(maxsize=200)
def parse_cached(text: str) -> Node:
    """The tree of a text that is written in sqlft itself; to be copied, not changed."""
    return parse(text)


def expression(text: str, **parts: Node) -> Node:
    """An expression; columns named like a keyword argument are replaced by its node.

    >>> expression_sql(expression("a + b", a=expression("1"), b=expression("x")))
    '(1 + x)'
    """
    node: Node = parse_cached(f"SELECT {text}")["select_list"][0]
    return substitute(node, parts) if parts else deepcopy(node)


def relation(text: str) -> Node:
    """What stands behind FROM, as a tree."""
    node: Node = deepcopy(parse_cached(f"SELECT 1 FROM {text}")["from_table"])
    return node


def column(*names: str) -> Node:
    """A column, its table's alias before it."""
    node = expression("x")
    node["column_names"] = list(names)
    return node


def copy_column_names(typed: Node, select: Node) -> None:
    """Give columns of a SELECT without an alias the names that they have in another with parameters in it."""
    for item, other in zip(typed["select_list"], select["select_list"], strict=False):
        if not other.get("alias") and any(n.get("class") == "PARAMETER" for n in walk(item)):
            other["alias"] = expression_sql(item)


def parse_integer(constant: Node) -> int | None:
    """The whole number that a literal is."""
    try:
        return int(expression_sql(constant))
    except ValueError:
        return None


def positional_join(names: list[tuple[str, str]]) -> Node:
    """Registered relations side by side: (name, alias) of each."""
    tables = [registered_table(name, alias) for name, alias in names]
    joined = tables[0]
    for table in tables[1:]:
        joined = {**relation("a POSITIONAL JOIN b"), "left": joined, "right": table}
    return joined


def registered_table(name: str, alias: str) -> Node:
    """A registered relation in FROM."""
    table = relation("x AS y")
    set_table(table, "", name)
    table["alias"] = alias
    return table


def literal_type(constant: Node) -> str:
    """VARCHAR for a text in quotes; '' for what DuckDB must be asked."""
    kind = constant.get("literal", {}).get("kind") or constant.get("value", {}).get("type", {}).get("id")
    return "VARCHAR" if is_constant(constant) and kind in ("STRING", "VARCHAR") else ""


def literal_text(constant: Node) -> str:
    """The text that a literal in quotes stands for."""
    return str(constant["literal"].get("text", "") if "literal" in constant else constant["value"].get("value", ""))


def set_table(node: Node, schema: str, name: str) -> None:
    """Let a table's node name another table."""
    alias = alias_of(node)
    new = deepcopy(parse_cached("FROM __schema.__table" if schema else "FROM __table")["from_table"])
    for key in ("catalog_name", "schema_name", "table_name", "qualified_name"):
        node.pop(key, None)
    new.pop("query_location", None)
    node.update({k: v for k, v in new.items() if k in ("schema_name", "table_name", "qualified_name")})
    node["table_name"] = name
    if schema:
        node["schema_name"] = schema
    if "qualified_name" in node:
        node["qualified_name"] = {"path": [schema, name] if schema else [name]}
    node["alias"] = alias


def substitute(node: Node, parts: Mapping[str, Node]) -> Node:
    """A copy of a tree with columns of these bare names replaced."""
    bare = (n for n in walk(node) if is_column(n) and len(n["column_names"]) == 1)
    return copy_replacing(node, {id(n): parts[name] for n in bare if (name := n["column_names"][0]) in parts})


def copy_replacing(node: Node, parts: Mapping[int, Node]) -> Node:
    """A copy of a tree with copies of other ones in place of the nodes whose ids `parts` has."""
    if id(node) in parts:
        return copy_replacing(parts[id(node)], parts)
    return {k: _copy_value(v, parts) if isinstance(v, (dict, list)) else v for k, v in node.items()}


def _copy_value(value: object, parts: Mapping[int, Node]) -> object:
    if isinstance(value, dict):
        return copy_replacing(value, parts)
    return [_copy_value(v, parts) for v in value] if isinstance(value, list) else value


def walk(tree: object, *, into: Callable[[Node], bool] = lambda _: True) -> Iterator[Node]:
    """Every node of a tree, outermost first; nothing below nodes that `into` refuses."""
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            if into(value):
                stack.extend(v for v in reversed(value.values()) if isinstance(v, (dict, list)))
        elif isinstance(value, list):
            stack.extend(v for v in reversed(value) if isinstance(v, (dict, list)))


def check_depth(tree: Node) -> None:
    """NotSupported for a query that is nested more deeply than can be walked."""
    level: list[Node | list[object]] = [tree]
    for _ in range(MAX_DEPTH):
        values = (v for outer in level for v in (outer.values() if isinstance(outer, dict) else outer))
        level = [v for v in values if isinstance(v, (dict, list))]
        if not level:
            return
    raise NotSupported("This query is nested too deeply.", "Put a part of it into a view or a table.")


# -- kinds of nodes ------------------------------------------------------------------------------------------


def is_column(node: Node) -> bool:
    """A column's name, with or without a table before it."""
    return node.get("class") == "COLUMN_REF"


def is_select(node: object) -> bool:
    """One SELECT with its clauses."""
    return isinstance(node, dict) and node.get("type") == "SELECT_NODE"


def is_query(node: object) -> bool:
    """A SELECT, a set operation or a recursive query."""
    return isinstance(node, dict) and str(node.get("type", "")).endswith("_NODE")


def is_table(node: Node) -> bool:
    """A table, a view or a model by its name."""
    return node.get("type") == "BASE_TABLE"


def is_constant(node: Node | None) -> bool:
    """A literal."""
    return node is not None and node.get("class") == "CONSTANT"


def is_join(node: Node | None) -> bool:
    """Two relations joined."""
    return node is not None and node.get("type") == "JOIN"


def join_type(join: Node) -> str:
    """INNER, LEFT, RIGHT, FULL, SEMI or ANTI."""
    return str(join.get("join_type", "INNER"))


def is_subquery(node: Node) -> bool:
    """A query in parentheses in FROM."""
    return node.get("type") == "SUBQUERY" and node.get("class") is None


def table_name(node: Node) -> tuple[str, str, str]:
    """Catalog, schema and name of a table as they are written, '' where they are not."""
    return node.get("catalog_name", ""), node.get("schema_name", ""), node.get("table_name", "")


def alias_of(node: Node) -> str:
    """The name by which columns of a relation in FROM are called; '' if it has none."""
    alias = node.get("alias", "")
    if alias:
        return str(alias)
    if node.get("type") == "TABLE_FUNCTION":
        return str(node["function"].get("function_name", ""))
    return str(node.get("table_name", "")) if is_table(node) else ""


def ctes(node: Node) -> list[Node]:
    """The WITH list of a query: key and value each."""
    entries: list[Node] = node.get("cte_map", {}).get("map", [])
    return entries


def cte_query(entry: Node) -> Node | None:
    """The query of a WITH entry, which DuckDB 2 keeps as a node and DuckDB 1.5 as a statement."""
    value = entry.get("value", {})
    query: Node | None = value.get("query_node") or value.get("query", {}).get("node")
    return query


def modifier(node: Node, kind: str) -> Node | None:
    """ORDER, LIMIT, LIMIT_PERCENT or DISTINCT of a query."""
    return next((m for m in node.get("modifiers", []) if m["type"] == f"{kind}_MODIFIER"), None)


def conjuncts(condition: Node | None) -> list[Node]:
    """The conditions that AND joins, however they are nested.

    NOT (a <> b) is a = b, a comparison of two rows is one of their columns, and true is no condition.
    """
    if condition is None or is_true(condition):
        return []
    if condition.get("type") == "CONJUNCTION_AND":
        return [c for child in condition["children"] for c in conjuncts(child)]
    if (negated := _negate(condition)) is not None:
        return conjuncts(negated)
    if condition.get("type") == "COMPARE_EQUAL":
        left, right = condition["left"], condition["right"]
        if _is_row(left) and _is_row(right) and len(arguments(left)) == len(arguments(right)):
            pairs = zip(arguments(left), arguments(right), strict=True)
            return [c for a, b in pairs for c in conjuncts({**condition, "left": a, "right": b})]
    return [condition]


def is_true(node: Node) -> bool:
    """Whether a condition is the word true, which stands for none."""
    while node.get("class") == "CAST":
        node = node["child"]
    value = node.get("literal", {}).get("text") or node.get("value", {}).get("value")
    return is_constant(node) and value in (True, "true", "t")


def _is_row(node: Node) -> bool:
    return node.get("class") == "FUNCTION" and node.get("function_name") == "row"


NEGATED_TYPES = {
    "COMPARE_NOTEQUAL": "COMPARE_EQUAL",
    "COMPARE_DISTINCT_FROM": "COMPARE_NOT_DISTINCT_FROM",
    "COMPARE_NOT_IN": "COMPARE_IN",
}


def _negate(node: Node) -> Node | None:
    """What NOT (…) is without its NOT, where that is a plain condition."""
    if node.get("type") != "OPERATOR_NOT":
        return None
    inner: Node = node["children"][0]
    if inner.get("type") in NEGATED_TYPES:
        return {**inner, "type": NEGATED_TYPES[inner["type"]]}
    if inner.get("type") == "OPERATOR_NOT":
        negated_twice: Node = inner["children"][0]
        return negated_twice
    if inner.get("type") == "CONJUNCTION_OR":
        negated = [{**node, "children": [child]} for child in inner["children"]]
        return {**inner, "type": "CONJUNCTION_AND", "children": negated}
    return None


def arguments(function: Node) -> list[Node]:
    """A function's arguments."""
    if "arguments" in function:
        return [a["expression"] for a in function["arguments"]]
    return list(function.get("children", []))


def array_items(query: Node) -> list[Node] | None:
    """The values of `= ANY ([a, b])`, which DuckDB reads as a query over them."""
    items = query.get("select_list", [])
    if len(items) != 1 or (query.get("from_table") or {}).get("type", "EMPTY") != "EMPTY" or query.get("where_clause"):
        return None
    unnest = items[0]
    if unnest.get("function_name") != "unnest" or len(arguments(unnest)) != 1:
        return None
    listed = arguments(unnest)[0]
    return arguments(listed) or None if listed.get("function_name") == "list_value" else None


def set_arguments(function: Node, values: list[Node]) -> None:
    """Give a function these arguments."""
    if "arguments" in function:
        template = {k: v for k, v in function["arguments"][0].items() if k != "expression"}
        function["arguments"] = [{**template, "expression": value} for value in values]
    else:
        function["children"] = values


def conjunction(conditions: list[Node]) -> Node | None:
    """Conditions joined by AND; None for none."""
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    node = expression("a AND b")
    node["children"] = conditions
    return node


# -- the text before DuckDB reads it ----------------------------------------------------------------------------


def normalize_names(text: str, tokens: list[Token], is_model: Callable[[str], bool]) -> str:
    """The text with `name.N` as one name and `backticks` as "quotes", every character where it was."""
    out = list(text)
    for i, token in enumerate(tokens):
        if token.kind == "quoted" and text[token.start] == "`":
            out[token.start] = out[token.end - 1] = '"'
        if token.kind not in ("word", "quoted") or not is_model(token.value):
            continue
        dot, end = _find_version(tokens, i)
        if end:
            if token.kind == "quoted":
                out[token.end - 1 : end] = [VERSION_DOT if j == dot else text[j] for j in range(dot, end)] + ['"']
            else:
                out[dot] = VERSION_DOT
    return "".join(out)


def _find_version(tokens: list[Token], i: int) -> tuple[int, int]:
    """Where the dot and the digits of `.N` behind token i are; (0, 0) if there are none."""
    following = tokens[i + 1 : i + 3]
    if following and following[0].kind == "number" and following[0].text.startswith("."):
        digits = following[0].text[1:]
        return (following[0].start, following[0].end) if digits.isdigit() else (0, 0)
    if len(following) == 2 and following[0].text == "." and following[1].text.isdigit():
        return following[0].start, following[1].end
    return 0, 0


@lru_cache(maxsize=1)
def _reserved_words() -> frozenset[str]:
    """Words that cannot be an alias."""
    return frozenset(
        name
        for (name,) in _query_duckdb(
            "SELECT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
        )
    )


def complete_joins(text: str, tokens: list[Token], is_model: Callable[[str], bool]) -> tuple[str, list[int]]:
    """The text with ON true behind models that are joined without a condition, and where that was put.

    >>> from sqlft.sql.lexer import tokenize
    >>> complete_joins("FROM t JOIN m WHERE 1", tokenize("FROM t JOIN m WHERE 1"), lambda name: name == "m")[0]
    'FROM t JOIN m ON true WHERE 1'
    """
    places = []
    for i, token in enumerate(tokens):
        if token.word != "JOIN" or (i and tokens[i - 1].word in ("CROSS", "NATURAL", "POSITIONAL")):
            continue
        last = _find_model_end(tokens, i + 1, is_model)
        if last is None:
            continue
        following = tokens[last + 1 : last + 3]
        if following and following[0].word == "AS":
            last += 2
        elif following and following[0].kind in ("word", "quoted") and following[0].word not in _reserved_words():
            last += 1
        behind = [t.word for t in tokens[last + 1 : last + 3]]
        if behind[:1] == ["ON"] or (behind[:1] == ["USING"] and behind[1:] != ["SAMPLE"]):
            continue
        places.append(tokens[min(last, len(tokens) - 1)].end)
    for place in reversed(places):
        text = f"{text[:place]}{ON_TRUE}{text[place:]}"
    return text, places


def _find_model_end(tokens: list[Token], i: int, is_model: Callable[[str], bool]) -> int | None:
    """The last token of a model's name at token i; None if none stands there."""
    is_name = False
    last = None
    while i < len(tokens) and tokens[i].kind in ("word", "quoted"):
        is_name, last = is_model(tokens[i].value), i
        if is_name:
            _, end = _find_version(tokens, i)
            if end:
                return next(j for j in range(i, len(tokens)) if tokens[j].end == end)
        if i + 1 >= len(tokens) or tokens[i + 1].text != ".":
            break
        i += 2
    return last if is_name else None


def split_version(name: str) -> tuple[str, int | None]:
    """`name·N` as the name and N."""
    plain, dot, digits = name.rpartition(VERSION_DOT)
    return (plain, int(digits)) if dot and digits.isdecimal() else (name, None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


# -- functions -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _read_functions() -> tuple[frozenset[str], frozenset[str]]:
    rows = _query_duckdb(
        "SELECT function_name, bool_and(function_type = 'scalar'), bool_or(stability = 'VOLATILE')"
        " FROM duckdb_functions() GROUP BY 1"
    )
    scalar = frozenset(name for name, is_scalar, _ in rows if is_scalar) | {"row", "alias", "ordinality"}
    return scalar - {"unnest", "unlist", "generate_subscripts"}, frozenset(n for n, _, varies in rows if varies)


def is_scalar(function: str) -> bool:
    """Whether a function of DuckDB's gives one value for each row."""
    return function in _read_functions()[0]


def is_volatile(tree: Node) -> bool:
    """Whether a tree has a part that differs each time it is computed: random(), a sample."""
    return any(
        (n.get("class") == "FUNCTION" and n.get("function_name") in _read_functions()[1]) or n.get("sample")
        for n in walk(tree)
    )


def is_row_wise(node: Node) -> bool:
    """Whether each row of a SELECT's result comes from one row of its FROM and WHERE alone."""
    if node.get("group_expressions") or node.get("group_sets") or node.get("having") or node.get("qualify"):
        return False
    if node.get("aggregate_handling", "STANDARD_HANDLING") != "STANDARD_HANDLING" or node.get("sample"):
        return False
    if modifier(node, "DISTINCT") is not None:
        return False
    order = modifier(node, "ORDER")
    return not any(
        n.get("class") == "WINDOW" or (n.get("class") == "FUNCTION" and not is_scalar(n.get("function_name", "")))
        for n in walk([node["select_list"], order or []], into=lambda n: not is_query(n))
    )
