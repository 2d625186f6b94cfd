"""A DuckDB connection that also understands models."""

from __future__ import annotations

import atexit
import itertools
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import duckdb

from sqlft.catalog import secrets
from sqlft.catalog.home import home
from sqlft.catalog.store import Catalog
from sqlft.errors import SqlftError, did_you_mean
from sqlft.runtime.cache import Cache
from sqlft.runtime.session import Parameters, Session, Tick
from sqlft.sql.parser import maybe_ours, parse
from sqlft.sql.plain import has_using_tail
from sqlft.sql.statements import DescribeModel, Plain, Statement
from sqlft.sql.unmasked import secrets_in

if TYPE_CHECKING:
    import pyarrow as pa

    from sqlft.runtime.stream import Stream

LONG = 50_000
"""Characters above which only the ends of a text are searched for names of models."""
REMEMBERED = 2000
"""Characters up to which a text of DuckDB's own is remembered as such."""
NO_ROWS = "SELECT NULL::BOOLEAN AS Success WHERE false"
_names = itertools.count(1)
_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """DB-API 2.0 as DuckDB's own client has it; whatever is not here is DuckDB's.

    `warn` gets a line of text ("3 of 20 rows failed …"), `progress` a Tick some times a second, `piece` each part of an
    answer as it is written, where a statement asks for one answer and the handler gives parts.
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
        self.session = Session(con, catalog, warn or _warn, progress or _ignore, piece)
        self._cache = cache or Cache(catalog.folder / "cache.sqlite")
        self._stream: Stream | None = None
        self._rows: Iterator[tuple[Any, ...]] | None = None
        self._schema: Any = None
        self._mentions: re.Pattern[str] = _pattern(frozenset())
        self._known: frozenset[str] | None = None
        self._children: list[Connection] = []
        self._is_cursor = False
        self._scans_frames = False
        self._plain: set[Any] = set()
        _open.add(self)

    # -- running -------------------------------------------------------------------------------------------

    def execute(self, query: Any, parameters: Parameters = None, **options: Any) -> Connection:
        """Run one or more statements; the result of the last is there to be fetched."""
        try:
            if self.session.cleanup:
                self._forget()
            if parameters is None and not options and (query in self._plain or self._is_plain(query)):
                try:
                    self._con.execute(query)
                except duckdb.CatalogException as e:
                    return self._again(query, parameters, e)
                return self
            if not isinstance(query, str) or not self._is_ours(query):
                return self._native(query, parameters, **options)
            return self._execute_ours(query, parameters)
        except BaseException as e:
            _discreet(e, query)
            raise

    def _execute_ours(self, query: str, parameters: Parameters) -> Connection:
        self._plain.clear()
        self.session.interrupted = False
        statements = parse(query)
        _end_result(self._con)
        if all(isinstance(s, Plain) and not s.using for s in statements) and not self._is_mentioned(query):
            return self._native(query, parameters)
        for i, statement in enumerate(statements):
            if i:
                self._forget()
            self._run(statement, parameters if i == len(statements) - 1 else None)
        return self

    def _is_plain(self, query: Any) -> bool:
        """Whether it is DuckDB's own; remembered, since a regex in a cold cache costs more than DuckDB's parser."""
        if not isinstance(query, str) or self._is_ours(query):
            return False
        if len(query) <= REMEMBERED:
            if len(self._plain) > 1000:
                self._plain.clear()
            self._plain.add(query)
        return True

    def statements(self, text: str) -> list[Statement]:
        """The statements of a text, to run one by one: `execute(s.text)`."""
        return parse(text)

    def executemany(self, query: Any, parameters: Any = None) -> Connection:
        """Run a statement once for each set of parameters."""
        if not isinstance(query, str) or not self._is_ours(query):
            self._forget()
            self._con.executemany(query, parameters)
            return self
        for some in parameters or []:
            self.execute(query, some)
        return self

    def sql(self, query: str, *, alias: str = "", params: Parameters = None, **options: Any) -> Any:
        """A DuckDB relation of a query; answers of models are in it when this returns."""
        try:
            return self._sql(query, alias, params, options)
        except BaseException as e:
            _discreet(e, query)
            raise

    def _sql(self, query: str, alias: str, params: Parameters, options: dict[str, Any]) -> Any:
        self._forget(keep_registered=True)
        given: dict[str, Any] = {k: v for k, v in (("alias", alias), ("params", params)) if v}
        if not self._is_ours(query):
            try:
                return self._con.sql(query, **given, **options)
            except duckdb.CatalogException as e:
                if (read := self._with_settings(query, e)) is None:
                    raise
                return self._con.sql(read, **given, **options)
        _end_result(self._con)
        self.session.interrupted = False
        statements = parse(query)
        if not statements:
            return self._con.sql(query, **given, **options)
        for statement in statements[:-1]:
            self.execute(statement.text)
            self._forget(keep_registered=True)
        last = statements[-1]
        relation: Any
        if self._is_duckdbs(last):
            relation = self._relation(Plain(last.text, text=last.text), params)
        elif isinstance(last, Plain):
            relation = self._relation(last, params)
        else:
            table = self._run_ours(last, params)
            relation = None if table is None else self._con.from_arrow(table)
        self.session.cleanup.clear()
        return relation.set_alias(alias) if alias and relation is not None else relation

    query = sql

    def relations(self, query: str) -> Iterator[Any] | None:
        """One statement's result as DuckDB relations, each with some of the rows as soon as they are known.

        The first one has the columns and their types, and no rows if others follow; None: there is no result.
        Closing the iterator stops the asking.
        """
        self._forget()
        self.session.interrupted = False
        try:
            try:
                return self._relations(query)
            except duckdb.CatalogException as e:
                if _missing(e).lower() not in self.session.catalog.refresh():
                    raise
                return self._relations(query)
        except BaseException as e:
            _discreet(e, query)
            raise

    def _relations(self, query: str) -> Iterator[Any] | None:
        statements = parse(query) if self._is_ours(query) else []
        if len(statements) == 1 and isinstance(statements[0], Plain):
            from sqlft.runtime.query import Native, Untouched, plan_query

            planned = plan_query(self.session, self._cache, statements[0], None)
            if not isinstance(planned, (Native, Untouched)):
                self._open(planned)
                return self._pieces(planned)
            relation: Any = self._con.sql(planned.sql if isinstance(planned, Native) else statements[0].sql)
        else:
            relation = self.sql(query)
        return None if relation is None else iter([relation])

    def _pieces(self, stream: Stream) -> Iterator[Any]:
        yield self._schema
        try:
            for piece in stream.chunks():  # noqa: UP028  # it would make leaving early an error
                yield piece
        finally:
            stream.close()

    def _relation(self, statement: Plain, params: Parameters) -> Any:
        from sqlft.runtime.query import Native, Untouched, plan_query

        planned = plan_query(self.session, self._cache, statement, params)
        if isinstance(planned, Untouched):
            given: dict[str, Any] = {"params": params} if params else {}
            return self._con.sql(statement.sql, **given)
        if isinstance(planned, Native):
            return self._con.sql(planned.sql)
        planned.start()
        return self._con.from_arrow(planned.table())

    def _run(self, statement: Statement, parameters: Parameters) -> None:
        if isinstance(statement, Plain):
            self._run_plain(statement, parameters)
            return
        if self._is_duckdbs(statement):
            self._run_plain(Plain(statement.text, text=statement.text), parameters)
            return
        table = self._run_ours(statement, parameters)
        if table is None:
            self._con.execute(NO_ROWS)
        else:
            self._show(table)

    def _is_duckdbs(self, statement: Statement) -> bool:
        """DESCRIBE name, where no model has that name."""
        from sqlft.runtime.describe import is_model

        if not isinstance(statement, DescribeModel) or statement.explicit:
            return False
        names = [n for n in (statement.name, statement.or_name) if n is not None]
        return not any(is_model(self.session, n) for n in names)

    def _run_ours(self, statement: Statement, parameters: Parameters) -> pa.Table | None:
        from sqlft.runtime.run import run

        return run(self.session, self._cache, statement, parameters)

    def _run_plain(self, statement: Plain, parameters: Parameters) -> None:
        from sqlft.runtime.query import Native, Untouched, plan_query

        if not statement.using and not self._is_mentioned(statement.sql):
            self._native(statement.text, parameters)
            return
        try:
            planned = plan_query(self.session, self._cache, statement, parameters)
            if isinstance(planned, Untouched):
                self._native(statement.text, parameters)
            elif isinstance(planned, Native):
                self._con.execute(planned.sql)
            else:
                self._open(planned)
        except duckdb.CatalogException as e:
            if not self._sees_variable(e):
                raise
            self._forget()
            self._run_plain(statement, parameters)

    def _open(self, stream: Stream) -> None:
        self._stream = stream
        self.session.cleanup.append(stream.close)
        try:
            self._schema = stream.start()
        except BaseException:
            self._forget()
            raise
        self._rows = stream.rows()

    def _show(self, table: pa.Table) -> None:
        name = f"__sqlft_r{next(_names)}"
        self._con.register(name, table)
        self.session.unregister_later(name)
        self._con.execute(f"SELECT * FROM {name}")

    def _native(self, query: Any, parameters: Parameters, **options: Any) -> Connection:
        try:
            if parameters is None:
                self._con.execute(query, **options)
            else:
                self._con.execute(query, parameters, **options)
        except duckdb.CatalogException as e:
            return self._again(query, parameters, e)
        return self

    def _again(self, query: Any, parameters: Parameters, error: duckdb.Error) -> Connection:
        """A table that DuckDB does not know: another process's model, or a variable of the caller's."""
        if isinstance(query, str) and (read := self._with_settings(query, error)) is not None:
            return self.execute(read, parameters)
        name = _missing(error)
        if isinstance(query, str) and name and name.lower() in self.session.catalog.refresh():
            self._plain.clear()
            return self.execute(query, parameters)
        if not self._sees_variable(error):
            near = did_you_mean(name, self.session.names())
            if near:
                error.add_note(f"No model has this name either.{near}")
            raise error
        return self._native(query, parameters)

    def _with_settings(self, query: str, error: duckdb.Error) -> str | None:
        """The query with the values of sqlft's own settings, if that is what DuckDB did not know."""
        if "sqlft_" not in str(error):
            return None
        from sqlft.runtime.prices import with_settings

        read = with_settings(self.session, query)
        return read if read != query else None

    def _sees_variable(self, error: duckdb.Error) -> bool:
        """Let DuckDB look for the caller's variables behind sqlft's own frames; False if that is no help."""
        if self._scans_frames or not _is_variable(_missing(error), sys._getframe(1)):
            return False
        self._scans_frames = True
        self._con.execute("SET python_scan_all_frames = true")
        self._con.fetchall()
        return True

    def _is_ours(self, query: str) -> bool:
        """Whether sqlft has to look at the text; about 2 microseconds for what is DuckDB's own."""
        if maybe_ours(query) or self._is_mentioned(query):
            return True
        return has_using_tail(query)

    def _is_mentioned(self, query: str) -> bool:
        names = self.session.names()
        if names is not self._known and names != self._known:
            self._known, self._mentions = names, _pattern(names)
        if len(query) > LONG:
            return self._mentions.search(query[:LONG]) is not None or self._mentions.search(query[-LONG:]) is not None
        return self._mentions.search(query) is not None

    def _forget(self, *, keep_registered: bool = False) -> None:
        """Close what the last statement left open."""
        stream, self._stream, self._rows, self._schema = self._stream, None, None, None
        if stream is not None:
            stream.close()
        if self.session.cleanup and not keep_registered:
            _end_result(self._con)
            for undo in self.session.cleanup:
                undo()
            self.session.cleanup.clear()

    # -- fetching ------------------------------------------------------------------------------------------

    @property
    def description(self) -> Any:
        """DB-API's seven-item tuples, a column each."""
        if self._schema is None:
            return self._con.description
        pairs = zip(self._schema.columns, self._schema.types, strict=True)
        return [(name, kind, None, None, None, None, None) for name, kind in pairs]

    @property
    def rowcount(self) -> int:
        """As DuckDB has it: -1."""
        return -1 if self._rows is not None else self._con.rowcount

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None."""
        if self._rows is None:
            return self._con.fetchone()
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """The next `size` rows, fewer at the end."""
        if self._rows is None:
            return self._con.fetchmany(size)
        return list(itertools.islice(self._rows, size))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        if self._rows is None:
            return self._con.fetchall()
        return list(self._rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while (row := self.fetchone()) is not None:
            yield row

    def arrow(self) -> pa.Table:
        """What is left of the result as one Arrow table."""
        if self._stream is not None:
            return self._stream.table()
        if hasattr(self._con, "to_arrow_table"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that this copies, which a design that serves 1.5 accepts
                return self._con.to_arrow_table()
        return self.__getattr__("fetch_arrow_table")()

    to_arrow_table = fetch_arrow_table = arrow

    def fetch_record_batch(self, rows_per_batch: int = 100_000) -> pa.RecordBatchReader:
        """The result as a reader of record batches, streamed."""
        if self._stream is not None:
            return self._stream.reader()
        if hasattr(self._con, "to_arrow_reader"):
            return self._con.to_arrow_reader(rows_per_batch)
        return self.__getattr__("fetch_record_batch")(rows_per_batch)

    to_arrow_reader = fetch_record_batch

    def df(self, **options: Any) -> Any:
        """What is left of the result as a pandas DataFrame."""
        if self._stream is not None:
            return self._con.from_arrow(self._stream.table()).df(**options)
        return self._con.df(**options)

    fetchdf = fetch_df = df

    def pl(self) -> Any:
        """What is left of the result as a polars DataFrame."""
        import polars

        return polars.from_arrow(self.arrow())

    def fetchnumpy(self) -> Any:
        """What is left of the result as NumPy arrays by column."""
        if self._stream is not None:
            return self._con.from_arrow(self._stream.table()).fetchnumpy()
        return self._con.fetchnumpy()

    # -- life ----------------------------------------------------------------------------------------------

    def cursor(self) -> Connection:
        """Another connection to the database; it sees no open transaction or temp table of this one."""
        session = self.session
        child = Connection(
            self._con.cursor(), session.catalog, warn=session.warn, progress=session.progress, cache=self._cache
        )
        child.session.piece = session.piece
        child.session.loaded = session.loaded
        child._is_cursor = True
        child.session.purse = session.purse
        self._children.append(child)
        return child

    duplicate = cursor

    def interrupt(self) -> None:
        """Stop what runs, from another thread: it raises Cancelled or DuckDB's InterruptException."""
        self.session.interrupted = True
        self._con.interrupt()

    def close(self) -> None:
        """Close the result, the cursors and, if it was opened here, the database."""
        for child in self._children:
            child.close()
        self._children.clear()
        try:
            self._forget()
        except duckdb.Error:
            self.session.cleanup.clear()
        if self.session.loaded and not self._is_cursor:
            from sqlft.runtime.unload import unload_all

            unload_all(self.session)
        if "sqlft.runtime.launch" in sys.modules:  # only a session that trains has imported it
            from sqlft.runtime.launch import detach

            detach(self.session)
        if self._owns:
            self._con.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_con":
            raise AttributeError(name)
        return getattr(self._con, name)


def _discreet(error: BaseException, query: Any) -> None:
    """An error repeats no secret, neither of the statement nor of an engine."""
    secrets.discreet(error, secrets_in(query) if isinstance(query, str) else ())


@atexit.register
def _close_all() -> None:
    """A thread that still asks, or an open result, would outlive DuckDB's module."""
    for connection in list(_open):
        connection.close()


def connect(
    database: str | Path = ":memory:",
    read_only: bool = False,
    config: dict[str, Any] | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[Tick], None] | None = None,
    piece: Callable[[str], None] | None = None,
) -> Connection:
    """Open a DuckDB database with models; the catalog lies beside its file, in SQLFT_HOME for `:memory:`."""
    con = duckdb.connect(str(database), read_only, config or {})
    return Connection(con, Catalog(folder_of(str(database)), read_only), warn=warn, progress=progress, piece=piece)


def attach(
    con: duckdb.DuckDBPyConnection,
    *,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[Tick], None] | None = None,
    piece: Callable[[str], None] | None = None,
) -> Connection:
    """Models on an open DuckDB connection, in its transaction; the catalog lies beside its file or in SQLFT_HOME."""
    if isinstance(con, Connection):
        return con
    row = con.sql("SELECT path FROM duckdb_databases() WHERE NOT internal ORDER BY database_oid LIMIT 1").fetchall()
    path = row[0][0] if row and row[0][0] else ":memory:"
    return Connection(con, Catalog(folder_of(path)), warn=warn, progress=progress, piece=piece, owns=False)


def folder_of(database: str) -> Path:
    """Where the catalog of a database lies."""
    if database in ("", ":memory:") or database.startswith((":memory:", "md:")):
        return home()
    path = Path(database).absolute()
    return path.with_name(path.name + ".sqlft")


def _pattern(names: frozenset[str]) -> re.Pattern[str]:
    listed = "|".join(re.escape(n).replace('"', '""') for n in sorted(names, key=len, reverse=True))
    ours = r'\b(?:sqlft|mindsdb)"?\s*\.'
    return re.compile(rf"{ours}|(?<!\w)(?:{listed})(?!\w)" if listed else ours, re.IGNORECASE)


def _missing(error: duckdb.Error) -> str:
    match = re.search(r'with name "?(.+?)"? does not exist', str(error))
    return match.group(1) if match else ""


def _is_variable(name: str, frame: FrameType | None) -> bool:
    """Whether code outside of sqlft has a variable of that name, as DuckDB's own client would find it."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("sqlft."):
        frame = frame.f_back
    return frame is not None and (name in frame.f_locals or name in frame.f_globals)


def _end_result(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB 2.0 refuses other work while a result of execute is open."""
    if hasattr(con, "abort"):
        con.abort()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _ignore(tick: Tick) -> None:
    return None


__all__ = ["Connection", "SqlftError", "attach", "connect"]
