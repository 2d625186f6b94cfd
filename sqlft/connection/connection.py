"""A DuckDB connection that also understands models: each statement goes to DuckDB as it is, or is planned by us.

`opening` makes it; people, the shell and servers call it.  Out: a result to be fetched, or relations.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TypeVar

import duckdb

from sqlft import errors
from sqlft.catalog.files import list_work_folders
from sqlft.catalog.store import Catalog
from sqlft.catalog.temporary import TemporaryCatalog
from sqlft.connection.fetching import Relation, ResultFetcher, abort_open_result
from sqlft.errors import SqlftError
from sqlft.inference.cache import Cache
from sqlft.redact import redact_error
from sqlft.session import MINDSDB_TABLES, Parameters, Session, Tick
from sqlft.sql.literals import find_secrets, inline_parameters
from sqlft.sql.names import format_name
from sqlft.sql.parser import may_be_sqlft, parse
from sqlft.sql.passthrough import NameSearch, has_using_tail
from sqlft.sql.statements import DescribeModel, Plain, Statement

if TYPE_CHECKING:
    import pyarrow as pa

    from sqlft.connection.results import Result
    from sqlft.query import CompletedQuery, PlannedQuery
    from sqlft.query.slices import SlicedQuery

REMEMBERED_LENGTH = 2000
"""Characters up to which a text of DuckDB's own is remembered as such."""
UNKNOWN_SETTING = 'parameter "sqlft_'
"""In DuckDB's error about a setting of sqlft's own."""
Query = str | duckdb.Statement
T = TypeVar("T")
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection(ResultFetcher):
    """DB-API 2.0 as DuckDB's own client has it; whatever is not here is DuckDB's.

    `warn` gets a line of text ("3 of 20 rows failed …"), `progress` a Tick some times a second, `piece` each part of an
    answer as it is written, where a statement asks for one answer and the handler gives parts.

    Programs that show results themselves, as the shell does, take `statements` and `relations`.  `session` holds what
    statements share (catalog, settings, budget); it is the core's own, and may change with any version.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        catalog: Catalog,
        *,
        warn: Callable[[str], None] | None = None,
        progress: Callable[[Tick], None] | None = None,
        piece: Callable[[str], None] | None = None,
        owns: bool = True,
        cache: Cache | None = None,
    ) -> None:
        self._con = con
        self._owns = owns
        self.session = Session(
            con,
            catalog,
            warn or errors.show_warning,
            progress or (lambda tick: None),
            piece,
            system_table=_read_system_table,
        )
        self._cache = cache or Cache(catalog.folder / "cache.sqlite")
        self._mentions = NameSearch()
        self._cursors: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._is_cursor = False
        self._is_scanning_frames = False
        self._native_texts: set[str] = set()
        _open_connections.add(self)

    # -- running -------------------------------------------------------------------------------------------

    def execute(self, query: Query, parameters: Parameters = None) -> Connection:
        """Run one or more statements; the result of the last is there to be fetched."""
        try:
            if self.session.cleanup or self._result is not None:
                self._close_result()
            if parameters is None and isinstance(query, str) and query in self._native_texts:
                try:
                    self._con.execute(query)
                except duckdb.Error as e:
                    self._recover(e, query, None)
            elif not isinstance(query, str):
                self._run_native(query, parameters)
            elif self._is_native(query):
                self._execute_native(query, parameters)
            else:
                self._execute_statements(query, parameters)
            return self
        except BaseException as e:
            _redact_error(e, query)
            raise

    def _execute_statements(self, query: str, parameters: Parameters) -> None:
        self._native_texts.clear()
        self.session.interrupted = False
        statements = parse(query)
        abort_open_result(self._con)
        if all(isinstance(s, Plain) and not s.using for s in statements) and not self._mentions_model(query):
            self._execute_native(query, parameters)
            return
        for i, statement in enumerate(statements):
            if i:
                self._close_result()
                abort_open_result(self._con)
            self._run(statement, parameters if i == len(statements) - 1 else None)

    def _is_native(self, query: str) -> bool:
        """Whether it is DuckDB's own; remembered, since a regex in a cold cache costs more than DuckDB's parser."""
        if self._may_need_sqlft(query):
            return False
        if len(query) <= REMEMBERED_LENGTH:
            if len(self._native_texts) > 1000:
                self._native_texts.clear()
            self._native_texts.add(query)
        return True

    def statements(self, text: str) -> list[Statement]:
        """The statements of a text, to run one by one: `execute(s.text)`."""
        return parse(text)

    def executemany(self, query: Query, parameters: Sequence[Parameters] | None = None) -> Connection:
        """Run a statement once for each set of parameters."""
        if not isinstance(query, str) or not self._may_need_sqlft(query):
            self._close_result()
            self._retry(query, lambda: self._con.executemany(query, parameters))
            return self
        for values in parameters or []:
            self.execute(query, values)
        return self

    def sql(self, query: str, *, alias: str = "", params: Parameters = None) -> Relation | None:
        """A DuckDB relation of a query; answers of models are in it when this returns.

        None of a statement that gives no rows, as CREATE TABLE.
        """
        try:
            return self._sql(query, alias, params)
        except BaseException as e:
            _redact_error(e, query)
            raise

    def _sql(self, query: str, alias: str, params: Parameters) -> Relation | None:
        self._close_result()

        def run_native(text: str) -> Relation | None:
            return self._con.sql(text, alias=alias, params=params or None)

        if not self._may_need_sqlft(query):
            return self._retry(query, lambda: self._run_with_settings(query, run_native))
        abort_open_result(self._con)
        self.session.interrupted = False
        statements = parse(query)
        if not statements:
            return run_native(query)
        for statement in statements[:-1]:
            self.execute(statement.text)
            self._close_result()
            abort_open_result(self._con)
        relation = self._retry(query, lambda: self._make_relation(statements[-1], params))
        return relation.set_alias(alias) if alias and relation is not None else relation

    query = from_query = sql

    def table(self, table_name: str) -> Relation | None:
        """A DuckDB relation of a table, or of a view over models; a model itself is asked by a query only."""
        return self._read_by_name(table_name, self._con.table)

    def view(self, view_name: str) -> Relation | None:
        """A DuckDB relation of a view, over models too."""
        return self._read_by_name(view_name, self._con.view)

    def _read_by_name(self, name: str, read_native: Callable[[str], Relation]) -> Relation | None:
        if not self._mentions_model(name):
            return read_native(name)
        return self.sql(f"FROM {format_name(name) if name.lower() in self.session.names() else name}")

    def _make_relation(self, statement: Statement, params: Parameters) -> Relation | None:
        """A statement's result as a relation that outlives the next statement; None if it has none."""
        from sqlft.query import CompletedQuery
        from sqlft.statements.run import run_statement

        if not isinstance(statement, Plain) and not self._is_duckdb_describe(statement):
            table = run_statement(self.session, statement, params)
            return None if table is None else self._con.from_arrow(table)
        planned = self._plan_statement(statement, params)
        if isinstance(planned, CompletedQuery):
            return None if planned.rows is None else self._con.from_arrow(planned.rows)
        if isinstance(planned, str):
            relation = self._con.sql(planned)
            return relation if relation is None or not self.session.cleanup else self._detach_relation(relation)
        try:
            return self._to_relation(planned.table())
        finally:
            planned.close()
            self._close_result()

    def _detach_relation(self, relation: Relation) -> Relation:
        """The relation's rows, or itself with what it reads where Arrow would change their types."""
        from sqlft.query.execute import is_exact_type

        if all(is_exact_type(str(t)) for t in relation.types):
            table = relation.to_arrow_reader(100_000).read_all()
            del relation
            self._close_result()
            return self._to_relation(table)
        self.session.cleanup.clear()
        return relation

    def relations(self, query: str) -> Iterator[Relation] | None:
        """One statement's result as DuckDB relations, each with some of the rows as soon as they are known.

        The first one has the columns and their types, and no rows if others follow; None: there is no result.
        Closing the iterator stops the asking.
        """
        self._close_result()
        self.session.interrupted = False
        try:
            return self._retry(query, lambda: self._relations(query))
        except BaseException as e:
            _redact_error(e, query)
            raise

    def _relations(self, query: str) -> Iterator[Relation] | None:
        statements = parse(query) if self._may_need_sqlft(query) else []
        if len(statements) == 1 and isinstance(statements[0], Plain):
            from sqlft.query import CompletedQuery, SlicedQuery

            planned = self._plan_statement(statements[0], None)
            if isinstance(planned, SlicedQuery):
                self._open_result(planned, query)
                assert self._result is not None
                return self._stream_relations(self._result)
            if isinstance(planned, CompletedQuery):
                return None if planned.rows is None else iter([self._con.from_arrow(planned.rows)])
            relation: Relation | None = self._con.sql(planned)
        else:
            relation = self.sql(query)
        return None if relation is None else iter([relation])

    def _stream_relations(self, result: Result) -> Iterator[Relation]:
        yield result.relation.limit(0)
        try:
            for piece in result.relations():  # noqa: UP028  # it would make leaving early an error
                yield piece
        finally:
            result.close()

    def _plan_statement(self, statement: Statement, params: Parameters) -> str | SlicedQuery | CompletedQuery:
        """The text that DuckDB runs, a query that is answered slice by slice, or what is done already."""
        from sqlft.query import NativeQuery, UnchangedQuery

        planned = self._plan_query(statement, params)
        if isinstance(planned, UnchangedQuery):
            return inline_parameters(statement.sql if isinstance(statement, Plain) else statement.text, params)
        return planned.sql if isinstance(planned, NativeQuery) else planned

    def _plan_query(self, statement: Statement, params: Parameters) -> PlannedQuery:
        from sqlft.query import plan_query

        duckdb_statement = statement if isinstance(statement, Plain) else Plain(statement.text, text=statement.text)
        return plan_query(self.session, self._cache, duckdb_statement, params)

    def _run(self, statement: Statement, parameters: Parameters) -> None:
        if isinstance(statement, Plain) or self._is_duckdb_describe(statement):
            self._run_plain(statement, parameters)
            return
        from sqlft.statements.run import run_statement

        self._set_result(self._retry(statement.text, lambda: run_statement(self.session, statement, parameters)))

    def _is_duckdb_describe(self, statement: Statement) -> bool:
        """DESCRIBE name, where no model has that name."""
        from sqlft.statements.describe import describes_model

        return isinstance(statement, DescribeModel) and not describes_model(self.session, statement)

    def _run_plain(self, statement: Statement, parameters: Parameters) -> None:
        using = isinstance(statement, Plain) and statement.using
        if not using and not self._mentions_model(statement.text):
            self._execute_native(statement.text, parameters)
            return
        self._retry(statement.text, lambda: self._run_planned(statement, parameters))

    def _run_planned(self, statement: Statement, parameters: Parameters) -> None:
        from sqlft.query import CompletedQuery, NativeQuery, UnchangedQuery

        planned = self._plan_query(statement, parameters)
        if isinstance(planned, UnchangedQuery):
            self._run_with_settings(statement.text, lambda text: self._run_native(text, parameters))
        elif isinstance(planned, CompletedQuery):
            self._set_result(planned.rows)
        elif isinstance(planned, NativeQuery):
            self._con.execute(planned.sql)
        else:
            self._open_result(planned, statement.text)

    def _execute_native(self, query: str, parameters: Parameters) -> None:
        try:
            self._run_native(query, parameters)
        except duckdb.Error as e:
            self._recover(e, query, parameters)

    def _run_native(self, query: Query, parameters: Parameters) -> None:
        if parameters is None:
            self._con.execute(query)
        else:
            self._con.execute(query, parameters)

    def _recover(self, error: duckdb.Error, query: str, parameters: Parameters) -> None:
        """Run a query that failed as DuckDB's own, where what it lacks is ours or the caller's; else raise that."""
        if isinstance(error, duckdb.CatalogException) and UNKNOWN_SETTING in str(error):
            self._run_with_settings(query, lambda text: self._run_native(text, parameters))
            return
        is_ours = self._resolve_unknown_name(error, query)
        if is_ours is None:
            raise error
        self._native_texts.discard(query)
        if is_ours:
            self.execute(query, parameters)
        else:
            self._run_native(query, parameters)

    def _retry(self, query: Query, action: Callable[[], T]) -> T:
        """What `action` returns; once more where DuckDB did not know a name that is there now."""
        while True:
            try:
                return action()
            except duckdb.Error as e:
                if not isinstance(query, str) or self._resolve_unknown_name(e, query) is None:
                    raise
                self._close_result()

    def _resolve_unknown_name(self, error: duckdb.Error, query: str) -> bool | None:
        """Whether to plan a query again (True) or only to run it again (False); None, with a hint, if neither helps."""
        unknown = error if isinstance(error, duckdb.CatalogException) else error.__cause__
        if isinstance(unknown, duckdb.CatalogException):
            from sqlft.query.scope import find_unknown_name

            name = find_unknown_name(str(unknown))
            before = self.session.catalog.names()
            if self.session.catalog.refresh() is not before and name.lower() in self.session.names():
                return True
            if self._is_attached_model(name.lower()):
                return True
            if self._enable_frame_scan(name):
                return False
            if self._is_mindsdb_table(name.lower()):
                return True
        if not isinstance(error, SqlftError):
            from sqlft.connection.hints import explain_error

            explain_error(self.session, error, query)
        return None

    def _is_attached_model(self, name: str) -> bool:
        """Whether a name that DuckDB does not know is a model's of a database that was attached since the last look."""
        before = self.session.names()
        self.session.refresh_attached()
        return name not in before and name in self.session.names()

    def _is_mindsdb_table(self, name: str) -> bool:
        """Whether a name that DuckDB does not know is a table that MindsDB has, asked for the first time."""
        is_new = name in MINDSDB_TABLES and name not in self.session.mindsdb_tables
        if is_new:
            self.session.mindsdb_tables.add(name)
        return is_new

    def _run_with_settings(self, query: str, run: Callable[[str], T]) -> T:
        """Run a query; with the values of sqlft's own settings where that is what DuckDB does not know."""
        try:
            return run(query)
        except duckdb.CatalogException as e:
            if UNKNOWN_SETTING not in str(e) or not isinstance(query, str):
                raise
            from sqlft.session import inline_settings

            read = inline_settings(self.session, query)
            if read == query:
                raise
            return run(read)

    def _enable_frame_scan(self, name: str) -> bool:
        """Let DuckDB look for the caller's variables behind sqlft's own frames; False if that is no help."""
        if self._is_scanning_frames or not _is_variable(name, sys._getframe(1)):
            return False
        self._is_scanning_frames = True
        self._con.execute("SET python_scan_all_frames = true")
        self._con.fetchall()
        return True

    def _may_need_sqlft(self, query: str) -> bool:
        """Whether sqlft has to look at the text; about 2 microseconds for what is DuckDB's own."""
        return may_be_sqlft(query) or self._mentions_model(query) or has_using_tail(query)

    def _mentions_model(self, query: str) -> bool:
        return self._mentions.found_in(query, self.session.names())

    # -- life ----------------------------------------------------------------------------------------------

    def cursor(self) -> Connection:
        """Another connection to the database; it sees no open transaction or temp table of this one."""
        session = self.session
        child = self._make_cursor(self._con.cursor())
        child.session.show_answer_part, child.session.show_notice = session.show_answer_part, session.show_notice
        child.session.unloaders = session.unloaders
        child._is_cursor = True
        child.session.budget, child.session.attached = session.budget, session.attached
        child.session.told = session.told
        self._cursors.add(child)
        return child

    duplicate = cursor

    def _make_cursor(self, con: duckdb.DuckDBPyConnection) -> Connection:
        """Another connection with the same callbacks."""
        session = self.session
        return Connection(
            con, session.catalog, warn=session.show_warning, progress=session.show_progress, cache=self._cache
        )

    def interrupt(self) -> None:
        """Stop what runs, from another thread: it raises Cancelled or DuckDB's InterruptException."""
        self.session.interrupted = True
        self._con.interrupt()

    def close(self) -> None:
        """Close the result, the cursors and, if it was opened here, the database."""
        for child in list(self._cursors):
            child.close()
        try:
            self._close_result()
        except duckdb.Error:
            self.session.cleanup.clear()
        if self.session.unloaders and not self._is_cursor:
            from sqlft.statements.models import unload_all

            unload_all(self.session)
        catalog = self.session.catalog
        ends = isinstance(catalog, TemporaryCatalog) and self._owns and not self._is_cursor and catalog.delete.alive
        if "sqlft.training.job" in sys.modules:  # only a session that trains has imported it
            from sqlft.training.follow import cancel_all_trainings
            from sqlft.training.job import detach_workers

            if ends:
                cancel_all_trainings(self.session)
                for work in list_work_folders(catalog.folder):  # one that has written its end may not be gone yet
                    kill_training(work)
            detach_workers(self.session)
        if not self._is_cursor:
            self._cache.close()
            catalog.close()
        if ends:
            assert isinstance(catalog, TemporaryCatalog)
            catalog.delete()
        if self._owns:
            self._con.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _redact_error(error: BaseException, query: Query) -> None:
    """An error repeats no secret, neither of the statement nor of an engine."""
    redact_error(error, find_secrets(query) if isinstance(query, str) else ())


def close_all() -> None:
    """Close what is open: a thread that still asks, or an open result, would outlive DuckDB's module."""
    for connection in list(_open_connections):
        connection.close()


def kill_training(work: Path) -> None:
    """End the process that trains in a work folder."""
    from sqlft.training.job import kill_worker

    kill_worker(work)


def _is_variable(name: str, frame: FrameType | None) -> bool:
    """Whether code outside of sqlft has a variable of that name, as DuckDB's own client would find it."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("sqlft."):
        frame = frame.f_back
    return frame is not None and (name in frame.f_locals or name in frame.f_globals)


def _read_system_table(session: Session, name: str) -> pa.Table:
    from sqlft.statements.show import TABLE_BUILDERS

    return TABLE_BUILDERS[name](session)
