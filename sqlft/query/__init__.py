"""A SELECT that reads models: parsed by DuckDB, bound, planned, then carried out.

`sqlft.connection` (and whoever reads rows for a training) calls `plan_query` with a statement of DuckDB's own SQL.  It
hands back `UnchangedQuery` (nothing of ours in it: run what was typed), `NativeQuery` (this text over plain tables, the
models asked already), `SlicedQuery` (rows slice by slice, models asked on the way) or `CompletedQuery` (a view of ours
was made or dropped).

    text -> ast.parse -> bind.Binder -> plan.make_plan -> execute.Execution -> inference

Only a SELECT has a tree.  Of other statements the queries inside are cut out by the lexer, planned, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import duckdb
import pyarrow as pa

from sqlft.errors import NotSupported, StatementError, debug
from sqlft.inference.cache import Cache
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.bind import Binder, NameResolver
from sqlft.query.execute import Execution, register_table
from sqlft.query.explain import Explainer, ExplainOptions, parse_explain_options
from sqlft.query.plan import QueryPlan, make_plan
from sqlft.query.scope import BoundQuery
from sqlft.query.slices import SlicedQuery, slice_query
from sqlft.query.statements import (
    check_views,
    read_create,
    read_dotted_name,
    rewrite_as_query,
    run_view_statement,
    starts_query,
    view_key,
)
from sqlft.redact import redact_statement
from sqlft.session import MINDSDB_TABLES, Parameters, Session, inline_settings, settings_table
from sqlft.sql.lexer import Token, tokenize
from sqlft.sql.literals import inline_parameters
from sqlft.sql.names import quote_name
from sqlft.sql.statements import DEFAULT_PROJECT, Plain

SYSTEM_SCHEMA, SETTINGS_TABLE = "sqlft", "settings"


@dataclass(frozen=True)
class NativeQuery:
    """Run this text on DuckDB, without parameters."""

    sql: str


@dataclass(frozen=True)
class UnchangedQuery:
    """Nothing of ours in it: run what was typed."""


@dataclass(frozen=True)
class CompletedQuery:
    """There is nothing to run: a view of ours was made, renamed or dropped, or the rows are known (EXPLAIN)."""

    rows: pa.Table | None = None


PlannedQuery = NativeQuery | UnchangedQuery | CompletedQuery | SlicedQuery


class QuerySpan(NamedTuple):
    """A query inside a statement: what stands before it in the text that is planned, and where it is."""

    start: int
    end: int
    is_all: bool = False
    """Whether the statement is the query and nothing else."""
    prefix: str = ""


def plan_query(session: Session, cache: Cache, statement: Plain, parameters: Parameters) -> PlannedQuery:
    """What to do with a statement that may read models; asks what has to be asked before DuckDB runs."""
    try:
        found = tokenize(statement.sql)
    except StatementError:
        return UnchangedQuery()
    if not _mentions_model(session, found):
        if statement.using:
            raise StatementError(
                "USING options belong to a query that reads a model, and this one reads none.",
                statement.text,
                len(statement.sql),
                "Take them out, or check the model's name: SHOW MODELS lists them.",
            )
        return UnchangedQuery()
    if (read := inline_settings(session, statement.sql)) != statement.sql:
        return plan_query(session, cache, replace(statement, sql=read), parameters)
    try:
        planner = Planner(session, cache, statement, inline_parameters(statement.sql, parameters))
        planner.has_parameters = planner.typed != statement.sql
        return planner.run()
    except RecursionError:
        raise NotSupported("This query is nested too deeply.", "Put a part of it into a view or a table.") from None


def _mentions_model(session: Session, found: list[Token]) -> bool:
    """Whether a model, a view over models or one of sqlft's tables is named anywhere."""
    names = {n.rpartition(".")[2] for n in session.names()}
    for i, token in enumerate(found):
        if token.kind in ("word", "quoted"):
            if token.value.lower() in names:
                return True
            if (
                token.value.lower() in (SYSTEM_SCHEMA, DEFAULT_PROJECT)
                and i + 1 < len(found)
                and found[i + 1].text == "."
            ):
                return True
    return False


class Planner:
    """One statement, its text without parameters."""

    def __init__(self, session: Session, cache: Cache, statement: Plain, text: str) -> None:
        self._session, self._cache, self._statement = session, cache, statement
        found = tokenize(text)
        self.typed = text
        self.has_parameters = False
        """Whether values were put into the text, which name its columns then."""
        self._text = ast.normalize_names(text, found, self._is_model_name)
        self._tokens = found
        self._expanded_views: list[str] = []
        self._resolved: dict[tuple[object, int | None], ResolvedVersion] = {}
        self._statement_runs = StatementRuns(session, cache, statement.using, statement.text)

    def run(self) -> PlannedQuery:
        """Plan the statement's queries; see `plan_query`."""
        if run_view_statement(self._session, self.typed, self._tokens, self._reads_models):
            return CompletedQuery()
        try:
            outcome = self._plan_statement()
        except BaseException:
            self._statement_runs.finish(error=True)
            raise
        if not isinstance(outcome, SlicedQuery):
            self._statement_runs.finish()
        if isinstance(outcome, NativeQuery):
            check_views(self._session, outcome.sql, self._expanded_views)
        return outcome

    def _plan_statement(self) -> PlannedQuery:
        first = _skip_parentheses(self._tokens)
        word = first.word
        if word in ("DESCRIBE", "DESC", "SHOW", "SUMMARIZE", "EXPLAIN", "COPY"):
            return self._plan_prefixed(word)
        self._check_target(word)
        if word == "CREATE" and any(t.word in ("MACRO", "FUNCTION") for t in self._tokens[:5]):
            return self._plan_macro()
        if word in ("UPDATE", "DELETE"):
            return self._plan_change(word)
        piece = self._find_query(word)
        if piece is not None:
            try:
                return self._plan_query(piece)
            except ast.NotASelect:
                pass
        return self._plan_parenthesized()

    def _check_target(self, word: str) -> None:
        """NotSupported where a statement would write into a model, or keep it for later."""
        behind = {"INSERT": "INTO", "MERGE": "INTO", "DELETE": "FROM"}.get(word)
        place = self._find_word((behind,), 0) if behind is not None else 0 if word in ("UPDATE", "TRUNCATE") else None
        parts, _ = read_dotted_name(self._tokens, place + 1) if place is not None else ([], 0)
        if parts and len(parts) < 3 and self._session.find_model(parts[-1], parts[-2] if parts[1:] else None):
            raise NotSupported(
                f"The model '{parts[-1]}' stands where only a table can.", "Write into a table; a model is only read."
            )
        if word == "PREPARE" and _mentions_model(self._session, self._tokens):
            raise NotSupported(
                "PREPARE cannot keep a query that reads a model.", "Run the query itself; it takes parameters too."
            )

    # -- cutting -----------------------------------------------------------------------------------------------------

    def _find_query(self, word: str) -> QuerySpan | None:
        """The query that a statement consists of or ends in."""
        end = self._tokens[-1].end
        if word in ("SELECT", "FROM", "VALUES", "TABLE"):
            return QuerySpan(0, end, is_all=True)
        if word == "WITH":
            verb = self._find_word(("SELECT", "FROM", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE"), 0)
            if verb is None or self._tokens[verb].word not in ("INSERT", "UPDATE", "DELETE", "MERGE"):
                return QuerySpan(0, end, is_all=True)
            if self._tokens[verb].word != "INSERT":
                return None
            with_text = self._text[: self._tokens[verb].start]
            piece = self._find_insert_query(verb)
            return piece and piece._replace(prefix=with_text)
        if word == "INSERT":
            return self._find_insert_query(0)
        made = read_create(self._tokens)
        if made is not None and made.kind == "table" and made.query is not None:
            last = self._skip_with_data(len(self._tokens))
            return QuerySpan(self._tokens[made.query].start, self._tokens[last - 1].end)
        return None

    def _find_insert_query(self, verb: int) -> QuerySpan | None:
        """INSERT INTO table … query [ON CONFLICT …] [RETURNING …]."""
        depth, start = 0, None
        for i in range(verb, len(self._tokens)):
            token = self._tokens[i]
            is_start = depth == 0 and i > verb + 1 and starts_query(self._tokens, i) and self._tokens[i - 1].text != "."
            if start is None and is_start:
                start = i
            depth += (token.text == "(") - (token.text == ")")
            following = self._tokens[i + 1].word if i + 1 < len(self._tokens) else ""
            ends = token.word == "RETURNING" or (token.word == "ON" and following == "CONFLICT")
            if start is not None and depth == 0 and ends:
                return QuerySpan(self._tokens[start].start, self._tokens[i - 1].end)
        return None if start is None else QuerySpan(self._tokens[start].start, self._tokens[-1].end)

    def _skip_with_data(self, last: int) -> int:
        words = [t.word for t in self._tokens[-3:]]
        if words[-3:] == ["WITH", "NO", "DATA"]:
            return last - 3
        return last - 2 if words[-2:] == ["WITH", "DATA"] else last

    def _find_word(self, words: Sequence[str], start: int) -> int | None:
        depth = 0
        for i in range(start, len(self._tokens)):
            token = self._tokens[i]
            depth += (token.text == "(") - (token.text == ")")
            if depth == 0 and token.word in words and (i == 0 or self._tokens[i - 1].text != "."):
                return i
        return None

    def _plan_parenthesized(self) -> PlannedQuery:
        """Queries in parentheses that read models, in a statement of another kind."""
        pieces: list[QuerySpan] = []
        depth, start = 0, None
        for i, token in enumerate(self._tokens):
            if token.text == "(":
                if start is None and starts_query(self._tokens, i + 1):
                    start, depth = i, 0
                depth += 1
            elif token.text == ")":
                depth -= 1
                if start is not None and depth == 0:
                    piece = QuerySpan(self._tokens[start + 1].start, self._tokens[i - 1].end)
                    if _mentions_model(self._session, self._tokens[start:i]):
                        pieces.append(piece)
                    start = None
        return self._splice_queries(pieces)

    def _splice_queries(self, pieces: Sequence[QuerySpan]) -> PlannedQuery:
        out, at, changed = [], 0, False
        for piece in pieces:
            bound = self._bind_query(self._text[piece.start : piece.end], piece.start)
            if bound is None:
                continue
            changed = True
            out += [self._text[at : piece.start], self._run_bound(bound)]
            at = piece.end
        return NativeQuery("".join([*out, self._text[at:]])) if changed else UnchangedQuery()

    # -- statements around a query -------------------------------------------------------------------------------------

    def _plan_query(
        self, piece: QuerySpan, explained: ExplainOptions | None = None, *, dry: bool = False
    ) -> PlannedQuery:
        """One query, by itself or at the end of a statement."""
        query = piece.prefix + self._text[piece.start : piece.end]
        try:
            bound = self._bind_query(query, piece.start - len(piece.prefix))
        except ast.UnparsableQuery:
            if self._text == self.typed:
                return UnchangedQuery()  # DuckDB says it in its own words
            raise
        head = self._text[: piece.start].removeprefix(piece.prefix)
        if bound is None:
            return UnchangedQuery()
        if not bound.scans:
            return NativeQuery(head + ast.to_sql(bound.tree) + self._text[piece.end :])
        dry = dry or [t.word for t in self._tokens[-3:]] == ["WITH", "NO", "DATA"]
        made = self._plan(bound, streams=piece.is_all and not dry)
        self._statement_runs.in_ledger = not dry and (explained is None or explained.analyze)
        run = Execution(
            self._session,
            self._statement_runs,
            made,
            self.typed,
            dry=dry or (explained is not None and not explained.analyze),
        )
        run.reads_inputs = not dry
        if explained is not None:
            drawn = Explainer(self._session, self._cache, self._statement_runs, run, explained).run()
            return CompletedQuery(drawn)
        sliced = slice_query(run)
        if sliced is not None:
            return sliced
        return NativeQuery(head + run.run_to_sql() + self._text[piece.end :])

    def _plan_prefixed(self, word: str) -> PlannedQuery:
        """EXPLAIN of a statement, DESCRIBE and SUMMARIZE of a query, DESCRIBE and COPY of a view."""
        viewed = self._rewrite_over_view(word)
        if viewed is not None:
            return Planner(self._session, self._cache, self._statement, viewed).run()
        if word == "EXPLAIN":
            return self._plan_explain()
        if word == "COPY" or len(self._tokens) < 2 or not starts_query(self._tokens, 1):
            return self._plan_parenthesized()
        try:
            return self._plan_query(QuerySpan(self._tokens[1].start, self._tokens[-1].end), dry=word != "SUMMARIZE")
        except ast.NotASelect:
            return self._plan_parenthesized()

    def _plan_explain(self) -> PlannedQuery:
        """EXPLAIN of the query that a statement consists of or ends in."""
        i = 1
        if self._tokens[1].text == "(":
            i = next(j for j, t in enumerate(self._tokens) if t.text == ")") + 1
        elif self._tokens[1].word in ("ANALYZE", "ANALYSE"):
            i = 2
        if i >= len(self._tokens):
            return UnchangedQuery()
        start = self._tokens[i].start
        explained = parse_explain_options(self._text[:start])
        inner = Planner(self._session, self._cache, self._statement, self.typed[start:])
        inner._statement_runs = self._statement_runs
        word = _skip_parentheses(inner._tokens).word
        piece = inner._find_query(word)
        if word in ("UPDATE", "DELETE") and (found := rewrite_as_query(inner._text, inner._tokens, word)) is not None:
            inner._text, piece = found[0], QuerySpan(0, len(found[0]))
        if piece is None or explained is None:
            return UnchangedQuery()
        try:
            return inner._plan_query(piece, explained=explained)
        except ast.NotASelect:
            return UnchangedQuery()

    def _rewrite_over_view(self, word: str) -> str | None:
        """DESCRIBE, SHOW, SUMMARIZE or COPY of a view that DuckDB does not know, as one of its query."""
        parts, i = read_dotted_name(self._tokens, 1)
        if not parts or self._session.view(view_key(parts)) is None:
            return None
        name = self._text[self._tokens[1].start : self._tokens[i - 1].end]
        if word == "COPY":
            listed = "*"
            if i < len(self._tokens) and self._tokens[i].text == "(":
                close = next(j for j in range(i, len(self._tokens)) if self._tokens[j].text == ")")
                listed = self._text[self._tokens[i].end : self._tokens[close].start]
                i = close + 1
            return (
                f"COPY (SELECT {listed} FROM {name}) {self._text[self._tokens[i].start :]}"
                if i < len(self._tokens)
                else None
            )
        if word == "EXPLAIN" or i < len(self._tokens):
            return None
        return f"{'SUMMARIZE' if word == 'SUMMARIZE' else 'DESCRIBE'} SELECT * FROM {name}"

    def _plan_macro(self) -> PlannedQuery:
        start = next((i for i in range(1, len(self._tokens)) if self._tokens[i].word == "AS"), None)
        query = self._text[self._tokens[start].end :] if start is not None else ""
        query = query.strip().rstrip(";").removeprefix("TABLE") if query else ""
        if query:
            text = query if starts_query(tokenize(query), 0) and not query.startswith("(") else f"SELECT {query}"
            bound = self._bind_query(text, 0)
            if bound is not None and bound.scans:
                raise NotSupported(
                    f"A macro cannot read a model, and this one reads '{bound.scans[0].resolved.model.key.name}'.",
                    "Make a view of it, or write the query out.",
                )
        return UnchangedQuery()

    def _plan_change(self, word: str) -> PlannedQuery:
        """UPDATE and DELETE: what they compute is a query over their table, matched by its rows."""
        found = rewrite_as_query(self._text, self._tokens, word)
        if found is None:
            return self._plan_parenthesized()
        query, statement = found
        try:
            bound = self._bind_query(query, 0)
        except ast.UnparsableQuery:
            return self._plan_parenthesized()
        if bound is None or not bound.scans:
            return UnchangedQuery() if bound is None else self._plan_parenthesized()
        return NativeQuery(statement(self._run_bound(bound)))

    def _run_bound(self, bound: BoundQuery) -> str:
        if not bound.scans:
            return ast.to_sql(bound.tree)
        return Execution(self._session, self._statement_runs, self._plan(bound, streams=False), self.typed).run_to_sql()

    def _plan(self, bound: BoundQuery, *, streams: bool) -> QueryPlan:
        made = make_plan(bound, streams=streams)
        debug("plan of %s\n%s", redact_statement(self._statement.text), made)
        return made

    # -- names ---------------------------------------------------------------------------------------------------------

    def _bind_query(self, query: str, start: int) -> BoundQuery | None:
        """A query's tree with its models bound; None where it reads nothing of ours."""
        tree, inserted = self._parse_query(query)
        if self.has_parameters and query == self._text:
            self._name_parameters(tree)
        changed = len(self._expanded_views)
        self._registered_count = 0

        def offset_of(node: Node) -> int:
            """Where a relation stands in the text as it was typed; DuckDB counts bytes."""
            place = node.get("query_location", 0)
            if place > 4 * len(query):
                return 0
            read = len(query.encode()[:place].decode(errors="ignore"))
            return max(0, start + read - len(ast.ON_TRUE) * sum(p < read for p in inserted))

        schema = lambda: str(self._session.con.sql("SELECT current_schema()").fetchall()[0][0])  # noqa: E731
        names = NameResolver(self._resolve_model, self._resolve_table, schema, self._is_model_name)
        bound = Binder(self._session.con, names, self.typed, offset_of).bind(tree)
        if bound.scans or self._registered_count or len(self._expanded_views) > changed:
            return bound
        return None

    def _name_parameters(self, tree: Node) -> None:
        """Call columns as their text with parameters would, where values were put in."""
        typed = self._statement.sql
        with_parameters, _ = self._parse_query(ast.normalize_names(typed, tokenize(typed), self._is_model_name))
        for one, other in zip(ast.walk(tree), ast.walk(with_parameters), strict=False):
            if ast.is_select(one) and ast.is_select(other):
                ast.copy_column_names(other, one)

    def _parse_query(self, query: str) -> tuple[Node, list[int]]:
        """A query's tree; a model may be joined without a condition, which DuckDB's grammar does not allow."""
        try:
            return ast.parse(query), []
        except ast.UnparsableQuery:
            more, inserted = ast.complete_joins(query, tokenize(query), self._is_model_name_with_version)
            if not inserted:
                raise
            return ast.parse(more), inserted

    def _is_model_name(self, name: str) -> bool:
        return name.lower() in self._session.names()

    def _is_model_name_with_version(self, name: str) -> bool:
        return self._is_model_name(ast.split_version(name)[0])

    def _resolve_model(self, schema: str, name: str, number: int | None, alias: str) -> ResolvedVersion | None:
        model = self._session.find_model(name, schema or None) if self._is_model_name(name) else None
        if model is None:
            return None
        if (model.key, number) not in self._resolved:
            self._resolved[model.key, number] = resolve(self._session, model.key, number)
        return self._statement_runs.override_prompt(self._resolved[model.key, number], alias)

    def _resolve_table(self, catalog: str, schema: str, name: str) -> Node | None:
        """What stands for sqlft.<name>, for one of the tables of `mindsdb`, or for a view of ours."""
        session, lowered = self._session, schema.lower()
        if not catalog and lowered == SYSTEM_SCHEMA and session.find_model(name, SYSTEM_SCHEMA) is None:
            own = settings_table(session) if name.lower() == SETTINGS_TABLE else session.catalog.table(name.lower())
            return self._register_relation(own)
        if not catalog and name.lower() in MINDSDB_TABLES and self._is_mindsdb_table(lowered, name):
            return self._register_relation(session.system_table(session, name.lower()))
        key = view_key([schema, name] if schema else [name])
        view = session.view(key) if key.lower() in session.names() else None
        if view is None:
            return None
        self._expanded_views.append(view.name)
        query, _ = self._parse_query(ast.normalize_names(view.sql, tokenize(view.sql), self._is_model_name))
        self._keep_project(query, view.project or DEFAULT_PROJECT)
        made = ast.relation("(SELECT 1) AS __x")
        made["subquery"]["node"] = query
        if view.columns:
            made["column_name_alias"] = list(view.columns)
        return made

    def _keep_project(self, query: Node, project: str) -> None:
        """Let a view's models be those of the project in which it was made, whatever USE chose since."""
        if project.lower() == self._session.project.lower():
            return
        own = {entry["key"].lower() for node in ast.walk(query) for entry in ast.ctes(node)}
        for node in filter(ast.is_table, ast.walk(query)):
            catalog, schema, name = ast.table_name(node)
            plain, alias = ast.split_version(name)[0], node.get("alias", "")
            if catalog or schema or plain.lower() in own or not self._is_model_name(plain):
                continue
            found = self._session.catalog
            model = found.find_model(plain, project) or found.find_model(plain)
            if model is not None:
                ast.set_table(node, model.key.project, name)
                node["alias"] = alias or model.key.name

    def _is_mindsdb_table(self, schema: str, name: str) -> bool:
        """Whether it is one of MindsDB's tables of models, which a table of that name goes before."""
        if schema in (DEFAULT_PROJECT, "information_schema"):
            return True
        if schema or name.lower() not in self._session.mindsdb_tables:
            return False
        try:
            self._session.con.sql(f"FROM {quote_name(name)}")
        except duckdb.CatalogException:
            return True
        return False

    def _register_relation(self, table: object) -> Node:
        self._registered_count += 1
        made = ast.relation("x AS y")
        ast.set_table(made, "", register_table(self._session, table))
        return made

    def _reads_models(self, query: str) -> bool:
        """Whether a view's query reads models or views over them; raises what is wrong with one that does."""
        text = ast.normalize_names(query, tokenize(query), self._is_model_name)
        try:
            bound = self._bind_query(text, 0)
        except ast.UnparsableQuery:
            if text == query:
                return False  # DuckDB says it in its own words
            raise
        if bound is None:
            return False
        self._refuse_options("A view keeps no USING options.", "Give them to the query that reads it.")
        run = Execution(self._session, self._statement_runs, make_plan(bound, streams=False), self.typed, dry=True)
        run.reads_inputs = False
        self._statement_runs.in_ledger = False
        self._session.con.sql(run.run_to_sql())
        self._statement_runs.finish()
        return True

    def _refuse_options(self, message: str, next_step: str) -> None:
        if self._statement.using:
            raise StatementError(message, self._statement.text, len(self._statement.sql), next_step)


def _skip_parentheses(found: Sequence[Token]) -> Token:
    return next((t for t in found if t.text != "("), found[-1])


__all__ = ["CompletedQuery", "NativeQuery", "PlannedQuery", "SlicedQuery", "UnchangedQuery", "plan_query"]
