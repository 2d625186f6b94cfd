"""A SELECT that reads models or knowledge bases: parsed by DuckDB, bound, planned, then carried out.

`sqlft.connection` (and whoever reads rows for a training) calls `plan_query` with a statement of DuckDB's own SQL.  It
hands back `UnchangedQuery` (nothing of ours in it: run what was typed), `NativeQuery` (this text over plain tables, the
models asked already), `SlicedQuery` (rows slice by slice, models asked on the way) or `CompletedQuery` (a view of ours
was made or dropped, a knowledge base was written into).

    text -> ast.parse -> bind.Binder -> plan.make_plan -> execute.Execution -> inference, knowledge

Only a SELECT has a tree.  Of other statements the queries inside are cut out by the lexer, planned, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import duckdb
import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import NotSupported, StatementError, debug
from sqlft.inference.cache import Cache
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge.tables import has_tables, visible_chunks_sql
from sqlft.options import option_names
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.bind import Binder
from sqlft.query.execute import Execution, register_table
from sqlft.query.explain import Explainer, ExplainOptions, parse_explain
from sqlft.query.plan import QueryPlan, make_plan
from sqlft.query.scope import BoundQuery
from sqlft.query.slices import SlicedQuery, slice_query
from sqlft.query.statements import (
    check_views,
    read_change,
    read_column_list,
    read_create,
    read_dotted_name,
    rewrite_as_query,
    run_view_statement,
    starts_query,
    top_level,
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
        tokens = tokenize(statement.sql)
    except StatementError:
        return UnchangedQuery()
    if not _mentions_model(session, tokens):
        if statement.using:
            raise StatementError(
                "USING options belong to a query that reads a model, and this one reads none.",
                statement.text,
                len(statement.sql),
                "Take them out, or check the model's name: SHOW MODELS lists them.",
            )
        return UnchangedQuery()
    if (sql := inline_settings(session, statement.sql)) != statement.sql:
        return plan_query(session, cache, replace(statement, sql=sql), parameters)
    try:
        planner = Planner(session, cache, statement, inline_parameters(statement.sql, parameters))
        planner.has_parameters = planner.typed != statement.sql
        return planner.run()
    except RecursionError:
        raise NotSupported("This query is nested too deeply.", "Put a part of it into a view or a table.") from None


def _mentions_model(session: Session, tokens: list[Token]) -> bool:
    """Whether a model, a view over models or one of sqlft's tables is named anywhere."""
    names = {n.rpartition(".")[2] for n in session.names()}
    words = [token.value.lower() if token.kind in ("word", "quoted") else "" for token in tokens]
    schemas = (i + 1 for i, word in enumerate(words) if word in (SYSTEM_SCHEMA, DEFAULT_PROJECT))
    return not names.isdisjoint(words) or any(i < len(tokens) and tokens[i].text == "." for i in schemas)


class Planner:
    """One statement, its text without parameters."""

    def __init__(self, session: Session, cache: Cache, statement: Plain, text: str) -> None:
        self._session, self._cache, self._statement = session, cache, statement
        tokens = tokenize(text)
        self.typed = text
        self.has_parameters = False
        """Whether values were put into the text, which name its columns then."""
        self._text = ast.normalize_names(text, tokens, self.is_model_name)
        self._tokens = tokens
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
        word = _skip_parentheses(self._tokens).word
        if word in ("DESCRIBE", "DESC", "SHOW", "SUMMARIZE", "EXPLAIN", "COPY"):
            return self._plan_prefixed(word)
        if (written := self._write_target(word)) is not None:
            return written
        if word == "CREATE" and any(t.word in ("MACRO", "FUNCTION") for t in self._tokens[:5]):
            return self._plan_macro()
        if word in ("UPDATE", "DELETE"):
            return self._plan_change(word)
        span = self._find_query(word)
        if span is not None:
            try:
                return self._plan_query(span)
            except ast.NotASelect:
                pass
        return self._plan_parenthesized()

    def _write_target(self, word: str) -> PlannedQuery | None:
        """What a statement did that writes into a knowledge base; NotSupported for a model, and for what is kept."""
        verb = self._find_word("INSERT", "UPDATE", "DELETE", "MERGE") if word == "WITH" else 0
        if word == "PREPARE" and _mentions_model(self._session, self._tokens):
            raise NotSupported(
                "PREPARE cannot keep a query that reads a model or a knowledge base.",
                "Run the query itself; it takes parameters too.",
            )
        word = self._tokens[verb].word if verb is not None else ""
        parts, end = self._find_target(word, verb)
        if not parts or len(parts) > 2 or not self.is_model_name(parts[-1]):
            return None
        project = parts[-2] if parts[1:] else None
        if self._session.find_model(parts[-1], project):
            raise NotSupported(
                f"The model '{parts[-1]}' stands where only a table can.", "Write into a table; a model is only read."
            )
        base = self._session.find_knowledge_base(parts[-1], project)
        if base is None:
            return None
        assert verb is not None
        if word == "INSERT":
            count = self._insert_into(base, verb, end)
        elif word in ("UPDATE", "DELETE") and verb == 0:
            count = self._change(base, word)
        else:
            raise NotSupported(
                f"{word} cannot write into the knowledge base '{base.key.name}'.",
                f"INSERT INTO {base.key.name} SELECT … replaces texts of the same id; DELETE FROM {base.key.name} "
                "WHERE … removes texts.",
            )
        return CompletedQuery(pa.table({"Count": pa.array([count], pa.int64())}))

    def _find_target(self, word: str, verb: int | None) -> tuple[list[str], int]:
        """The name of what a statement writes into, and the token behind it."""
        behind = {"INSERT": "INTO", "MERGE": "INTO", "DELETE": "FROM"}.get(word)
        place = self._find_word(behind) if behind is not None else verb if word in ("UPDATE", "TRUNCATE") else None
        return ([], 0) if place is None else read_dotted_name(self._tokens, place + 1)

    def _insert_into(self, base: KnowledgeBase, verb: int, behind_name: int) -> int:
        """INSERT INTO knowledge_base [(columns)] query; how many rows."""
        from sqlft.knowledge.insert import InsertSettings, insert_rows

        span = self._find_insert_query(verb)
        columns = read_column_list(self._tokens, behind_name)
        before = [t.word for t in self._tokens if span is not None and t.end <= span.start]
        if span is None or before[-1] == "DEFAULT" or self._text[span.end :].strip(" ;\n"):
            raise NotSupported(
                "INSERT INTO a knowledge base takes a query or VALUES, and nothing behind it.",
                f"Write INSERT INTO {base.key.name} SELECT … [USING batch_size = …]: the same id replaces a text.",
            )
        own = option_names(InsertSettings)
        options = {k: v for k, v in self._statement.using.items() if k.lower() in own}
        using = {k: v for k, v in self._statement.using.items() if k not in options}
        self._statement_runs = StatementRuns(self._session, self._cache, using, self._statement.text)
        with_text = self._text[: self._tokens[verb].start]
        query = self._plan_inner(f"{with_text}{self._text[span.start : span.end]}", span.start - len(with_text))
        if columns:
            query = f"SELECT * FROM ({query}\n) AS rows_({', '.join(map(quote_name, columns))})"
        return insert_rows(self._session, self._statement_runs, base, query, options).rows

    def _plan_inner(self, query: str, start: int) -> str:
        """The text that DuckDB runs for a query inside a statement, its models asked."""
        try:
            bound = self._bind_query(query, start)
        except (ast.NotASelect, ast.UnparsableQuery):
            return query  # DuckDB runs it, or says what is wrong in its own words
        return query if bound is None else self._run_bound(bound)

    def _change(self, base: KnowledgeBase, word: str) -> int:
        """UPDATE and DELETE of a knowledge base's texts; how many."""
        from sqlft.knowledge.insert import delete_documents, update_documents

        change = read_change(self._text, self._tokens)
        if change is None:
            raise NotSupported(
                f"{word} of a knowledge base takes a condition, and no other clauses.",
                f"Write DELETE FROM {base.key.name} WHERE …, or UPDATE {base.key.name} SET content = … WHERE id = ….",
            )
        where = "true"
        if change.where:
            alias = quote_name(change.alias)
            chunks = f"({visible_chunks_sql(base, keeps_empty=True)}) AS {alias}"
            place = f"coalesce({alias}.chunk, -1 - {alias}.__doc)"
            chosen = self._plan_inner(f"SELECT {place} FROM {chunks} WHERE\n{change.where}", 0)
            where = f"coalesce(chunk, -1 - __doc) IN ({chosen})"
            self._check_condition(base, chosen)
        if word == "DELETE":
            return delete_documents(self._session, base, where)
        return update_documents(self._session, self._statement_runs, base, dict(change.assignments), where)

    def _check_condition(self, base: KnowledgeBase, chosen: str) -> None:
        """StatementError where what is to be changed is searched for: a search is never all that there is."""
        try:
            if has_tables(self._session.con, base):
                self._session.con.sql(chosen)
        except duckdb.BinderException as e:
            if '"content"' not in str(e):
                raise
            name = base.key.name
            raise StatementError(
                f"{self._tokens[0].word} does not search, and 'content' is what '{name}' is searched for.",
                self.typed,
                0,
                f"Write WHERE id IN (SELECT id FROM {name} WHERE content = '…' LIMIT 1), or WHERE chunk_content = '…'.",
            ) from e

    # -- cutting -----------------------------------------------------------------------------------------------------

    def _find_query(self, word: str) -> QuerySpan | None:
        """The query that a statement consists of or ends in."""
        end = self._tokens[-1].end
        if word in ("SELECT", "FROM", "VALUES", "TABLE"):
            return QuerySpan(0, end, is_all=True)
        if word == "WITH":
            verb = self._find_word("SELECT", "FROM", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE")
            if verb is None or self._tokens[verb].word not in ("INSERT", "UPDATE", "DELETE", "MERGE"):
                return QuerySpan(0, end, is_all=True)
            if self._tokens[verb].word != "INSERT":
                return None
            with_text = self._text[: self._tokens[verb].start]
            span = self._find_insert_query(verb)
            return span and span._replace(prefix=with_text)
        if word == "INSERT":
            return self._find_insert_query(0)
        created = read_create(self._tokens)
        if created is not None and created.kind == "table" and created.query is not None:
            words = [t.word for t in self._tokens]
            tail = next(
                (tail for tail in (["WITH", "NO", "DATA"], ["WITH", "DATA"]) if words[-len(tail) :] == tail), []
            )
            return QuerySpan(self._tokens[created.query].start, self._tokens[-1 - len(tail)].end)
        return None

    def _find_insert_query(self, verb: int) -> QuerySpan | None:
        """INSERT INTO table … query [ON CONFLICT …] [RETURNING …]."""
        tokens, start = self._tokens, None
        for i, token in top_level(tokens, verb):
            if start is None and i > verb + 1 and starts_query(tokens, i) and tokens[i - 1].text != ".":
                start = i
            following = tokens[i + 1].word if i + 1 < len(tokens) else ""
            ends = token.word == "RETURNING" or (token.word == "ON" and following == "CONFLICT")
            if start is not None and ends:
                return QuerySpan(tokens[start].start, tokens[i - 1].end)
        return None if start is None else QuerySpan(tokens[start].start, tokens[-1].end)

    def _find_word(self, *words: str) -> int | None:
        places = (i for i, token in top_level(self._tokens) if token.word in words)
        return next((i for i in places if i == 0 or self._tokens[i - 1].text != "."), None)

    def _plan_parenthesized(self) -> PlannedQuery:
        """Queries in parentheses that read models, in a statement of another kind."""
        out: list[str] = []
        at, depth, start = 0, 0, None
        for i, token in enumerate(self._tokens):
            if token.text == "(":
                if start is None and starts_query(self._tokens, i + 1):
                    start, depth = i, 0
                depth += 1
            elif token.text == ")":
                depth -= 1
                if start is not None and depth == 0:
                    first, end = self._tokens[start + 1].start, self._tokens[i - 1].end
                    mentions = _mentions_model(self._session, self._tokens[start:i])
                    bound = self._bind_query(self._text[first:end], first) if mentions else None
                    if bound is not None:
                        out += [self._text[at:first], self._run_bound(bound)]
                        at = end
                    start = None
        return NativeQuery("".join([*out, self._text[at:]])) if out else UnchangedQuery()

    # -- statements around a query -------------------------------------------------------------------------------------

    def _plan_query(self, span: QuerySpan, options: ExplainOptions | None = None, *, dry: bool = False) -> PlannedQuery:
        """One query, by itself or at the end of a statement."""
        query = span.prefix + self._text[span.start : span.end]
        try:
            bound = self._bind_query(query, span.start - len(span.prefix))
        except ast.UnparsableQuery:
            if self._text == self.typed:
                return UnchangedQuery()  # DuckDB says it in its own words
            raise
        head = self._text[: span.start].removeprefix(span.prefix)
        if bound is None:
            return UnchangedQuery()
        if not bound.scans:
            self._statement_runs.check_using()
            return NativeQuery(head + ast.to_sql(bound.tree) + self._text[span.end :])
        dry = dry or [t.word for t in self._tokens[-3:]] == ["WITH", "NO", "DATA"]
        plan = self._plan(bound, streams=span.is_all and not dry)
        asks = not dry and (options is None or options.analyze)
        self._statement_runs.in_ledger = asks
        run = Execution(self._session, self._statement_runs, plan, self.typed, dry=not asks)
        run.reads_inputs = not dry
        if options is not None:
            return CompletedQuery(Explainer(self._session, self._cache, run, options).run())
        return slice_query(run) or NativeQuery(head + run.run_to_sql() + self._text[span.end :])

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
        heading = parse_explain(self._text)
        if heading is None:
            return UnchangedQuery()
        options, start = heading
        inner = Planner(self._session, self._cache, self._statement, self.typed[start:])
        inner._statement_runs = self._statement_runs
        word = _skip_parentheses(inner._tokens).word
        span = inner._find_query(word)
        if word == "INSERT" and span is not None and inner._is_knowledge_base(inner._find_target(word, 0)[0]):
            only = f"{self.typed[:start]}{inner.typed[span.start : span.end]}"
            planned = Planner(self._session, self._cache, self._statement, only).run()
            return NativeQuery(only) if isinstance(planned, UnchangedQuery) else planned
        if word in ("UPDATE", "DELETE") and (rewrite := rewrite_as_query(inner._text, inner._tokens, word)) is not None:
            inner._text, span = rewrite[0], QuerySpan(0, len(rewrite[0]))
        if span is None:
            return UnchangedQuery()
        try:
            planned = inner._plan_query(span, options)
        except ast.NotASelect:
            return UnchangedQuery()
        return NativeQuery(self.typed[:start] + planned.sql) if isinstance(planned, NativeQuery) else planned

    def _rewrite_over_view(self, word: str) -> str | None:
        """DESCRIBE, SHOW, SUMMARIZE or COPY of a view that DuckDB does not know, as one of its query."""
        parts, i = read_dotted_name(self._tokens, 1)
        if not parts or (self._session.view(view_key(parts)) is None and not self._is_knowledge_base(parts)):
            return None
        name = self._text[self._tokens[1].start : self._tokens[i - 1].end]
        if word == "COPY":
            columns = "*"
            if i < len(self._tokens) and self._tokens[i].text == "(":
                close = next(j for j in range(i, len(self._tokens)) if self._tokens[j].text == ")")
                columns = self._text[self._tokens[i].end : self._tokens[close].start]
                i = close + 1
            rest = self._text[self._tokens[i].start :] if i < len(self._tokens) else None
            if rest and rest[:4].upper() == "FROM" and self._is_knowledge_base(parts):
                raise NotSupported(
                    f"COPY cannot write into the knowledge base '{parts[-1]}'.",
                    f"Write INSERT INTO {name} SELECT … FROM 'file'.",
                )
            return rest and f"COPY (SELECT {columns} FROM {name}) {rest}"
        if word == "EXPLAIN" or i < len(self._tokens):
            return None
        return f"{'SUMMARIZE' if word == 'SUMMARIZE' else 'DESCRIBE'} SELECT * FROM {name}"

    def _is_knowledge_base(self, parts: Sequence[str]) -> bool:
        """Whether [project.]name is a knowledge base."""
        if not 0 < len(parts) < 3 or not self.is_model_name(parts[-1]):
            return False
        return self._session.find_knowledge_base(parts[-1], parts[-2] if parts[1:] else None) is not None

    def _plan_macro(self) -> PlannedQuery:
        start = next((token.end for token in self._tokens if token.word == "AS"), len(self._text))
        query = self._text[start:].strip().rstrip(";").removeprefix("TABLE")
        if query:
            text = query if starts_query(tokenize(query), 0) and not query.startswith("(") else f"SELECT {query}"
            bound = self._bind_query(text, 0)
            if bound is not None and bound.scans:
                raise NotSupported(
                    f"A macro cannot read a model, and this one reads '{bound.scans[0].name}'.",
                    "Make a view of it, or write the query out.",
                )
        return UnchangedQuery()

    def _plan_change(self, word: str) -> PlannedQuery:
        """UPDATE and DELETE: what they compute is a query over their table, matched by its rows."""
        rewrite = rewrite_as_query(self._text, self._tokens, word)
        if rewrite is None:
            return self._plan_parenthesized()
        query, statement = rewrite
        try:
            bound = self._bind_query(query, 0)
        except ast.UnparsableQuery:
            return self._plan_parenthesized()
        if bound is None:
            return UnchangedQuery()
        if bound.scans or self._registered_count:
            return NativeQuery(statement(self._run_bound(bound)))
        return self._plan_parenthesized()

    def _run_bound(self, bound: BoundQuery) -> str:
        if not bound.scans:
            return ast.to_sql(bound.tree)
        return Execution(self._session, self._statement_runs, self._plan(bound, streams=False), self.typed).run_to_sql()

    def _plan(self, bound: BoundQuery, *, streams: bool) -> QueryPlan:
        plan = make_plan(bound, streams=streams)
        debug("plan of %s\n%s", redact_statement(self._statement.text), plan)
        return plan

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

        bound = Binder(self._session.con, self, self.typed, offset_of).bind(tree)
        if bound.scans or self._registered_count or len(self._expanded_views) > changed:
            return bound
        return None

    def _name_parameters(self, tree: Node) -> None:
        """Call columns as their text with parameters would, where values were put in."""
        typed = self._statement.sql
        with_parameters, _ = self._parse_query(ast.normalize_names(typed, tokenize(typed), self.is_model_name))
        for one, other in zip(ast.walk(tree), ast.walk(with_parameters), strict=False):
            if ast.is_select(one) and ast.is_select(other):
                ast.copy_column_names(other, one)

    def _parse_query(self, query: str) -> tuple[Node, list[int]]:
        """A query's tree; a model may be joined without a condition, which DuckDB's grammar does not allow."""
        try:
            return ast.parse(query), []
        except ast.UnparsableQuery:
            more, inserted = ast.complete_joins(
                query, tokenize(query), lambda name: self.is_model_name(ast.split_version(name)[0])
            )
            if not inserted:
                raise
            return ast.parse(more), inserted

    def is_model_name(self, name: str) -> bool:
        return name.lower() in self._session.names()

    def resolve_model(self, schema: str, name: str, number: int | None, alias: str) -> ResolvedVersion | None:
        model = self._session.find_model(name, schema or None) if self.is_model_name(name) else None
        if model is None:
            return None
        if (model.key, number) not in self._resolved:
            self._resolved[model.key, number] = resolve(self._session, model.key, number)
        return self._statement_runs.override_prompt(self._resolved[model.key, number], alias)

    def resolve_knowledge_base(self, schema: str, name: str) -> KnowledgeBase | None:
        """See `NameResolver`."""
        base = self._session.find_knowledge_base(name, schema or None) if self.is_model_name(name) else None
        if base is not None:
            self._registered_count += 1  # a query that only lists chunks reads something of ours, too
        return base

    def resolve_table(self, catalog: str, schema: str, name: str) -> Node | None:
        """What stands for sqlft.<name>, for one of the tables of `mindsdb`, or for a view of ours."""
        session, lowered = self._session, schema.lower()
        if not catalog and lowered == SYSTEM_SCHEMA and session.find_model(name, SYSTEM_SCHEMA) is None:
            table = settings_table(session) if name.lower() == SETTINGS_TABLE else session.catalog.table(name.lower())
            return self._register_relation(table)
        if not catalog and name.lower() in MINDSDB_TABLES and self._is_mindsdb_table(lowered, name):
            return self._register_relation(session.system_table(session, name.lower()))
        key = view_key([schema, name] if schema else [name])
        view = session.view(key) if key.lower() in session.names() else None
        if view is None:
            return None
        self._expanded_views.append(view.name)
        query, _ = self._parse_query(ast.normalize_names(view.sql, tokenize(view.sql), self.is_model_name))
        self._keep_project(query, view.project or DEFAULT_PROJECT)
        relation = ast.relation("(SELECT 1) AS __x")
        relation["subquery"]["node"] = query
        if view.columns:
            relation["column_name_alias"] = list(view.columns)
        return relation

    def _keep_project(self, query: Node, project: str) -> None:
        """Let a view's models be those of the project in which it was made, whatever USE chose since."""
        if project.lower() == self._session.project.lower():
            return
        cte_names = {entry["key"].lower() for node in ast.walk(query) for entry in ast.ctes(node)}
        for node in filter(ast.is_table, ast.walk(query)):
            catalog, schema, name = ast.table_name(node)
            plain, alias = ast.split_version(name)[0], node.get("alias", "")
            if catalog or schema or plain.lower() in cte_names or not self.is_model_name(plain):
                continue
            models = self._session.catalog
            model = models.find_model(plain, project) or models.find_model(plain)
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
        return ast.registered_table(register_table(self._session, table), "y")

    def current_schema(self) -> str:
        """See `NameResolver`."""
        return str(self._session.con.sql("SELECT current_schema()").fetchall()[0][0])

    def _reads_models(self, query: str) -> bool:
        """Whether a view's query reads models or views over them; raises what is wrong with one that does."""
        text = ast.normalize_names(query, tokenize(query), self.is_model_name)
        try:
            bound = self._bind_query(text, 0)
        except ast.UnparsableQuery:
            if text == query:
                return False  # DuckDB says it in its own words
            raise
        if bound is None:
            return False
        if self._statement.using:
            message, next_step = "A view keeps no USING options.", "Give them to the query that reads it."
            raise StatementError(message, self._statement.text, len(self._statement.sql), next_step)
        run = Execution(self._session, self._statement_runs, make_plan(bound, streams=False), self.typed, dry=True)
        run.reads_inputs = False
        self._statement_runs.in_ledger = False
        self._session.con.sql(run.run_to_sql())
        self._statement_runs.finish()
        return True


def _skip_parentheses(tokens: Sequence[Token]) -> Token:
    return next((t for t in tokens if t.text != "("), tokens[-1])


__all__ = ["CompletedQuery", "NativeQuery", "PlannedQuery", "SlicedQuery", "UnchangedQuery", "plan_query"]
