"""The result of a connection's last statement, fetched in the ways that DuckDB's own client has.

`connection` puts it there: rows that come slice by slice while models are asked, or a table.  Where it puts none,
DuckDB's own connection holds the result, and is asked for it.  Not here: what a result is made of (`results`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
from duckdb.sqltypes import DuckDBPyType

from sqlft.session import Session

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import polars
    import pyarrow as pa
    import torch

    from sqlft.connection.results import Result
    from sqlft.query.slices import SlicedQuery

Relation = duckdb.DuckDBPyRelation
Row = tuple[Any, ...]
"""Values as DuckDB gives them to Python."""
NO_ROWS = "SELECT NULL::BOOLEAN AS Success WHERE false"


class ResultFetcher:
    """DB-API's way to a result and DuckDB's others: Arrow, pandas, polars, NumPy, tensors."""

    session: Session
    _con: duckdb.DuckDBPyConnection
    _result: Result | None = None
    _rows: Iterator[Row] | None = None

    def _open_result(self, sliced: SlicedQuery, query: str) -> None:
        from sqlft.connection.hints import explain_error
        from sqlft.connection.results import Result

        self.session.cleanup.append(sliced.close)
        try:
            explained = partial(explain_error, self.session, query=query)
            self._result = Result(self._con, sliced.start(), sliced.chunks(), sliced.close, explained)
        except BaseException:
            self._close_result()
            raise
        self._rows = self._result.rows()

    def _set_result(self, rows: pa.Table | None) -> None:
        """Let rows be the result, or none; no result is open on DuckDB's connection until it is fetched."""
        from sqlft.connection.results import Result

        relation = self._con.sql(NO_ROWS) if rows is None else self._con.from_arrow(rows)
        self._result = Result(self._con, relation.limit(0), iter([relation]), lambda: None)
        self._rows = self._result.rows()

    def _close_result(self) -> None:
        """Close what the last statement left open."""
        result, self._result, self._rows = self._result, None, None
        if result is not None:
            result.close()
        if self.session.cleanup:
            abort_open_result(self._con)
            for undo in self.session.cleanup:
                undo()
            self.session.cleanup.clear()

    @property
    def description(self) -> list[tuple[str, DuckDBPyType, None, None, None, None, None]]:
        """DB-API's seven-item tuples, one per column."""
        if self._result is None:
            return self._con.description
        pairs = zip(self._result.columns, self._result.types, strict=True)
        return [(name, kind, None, None, None, None, None) for name, kind in pairs]

    @property
    def rowcount(self) -> int:
        """As DuckDB has it: -1."""
        return -1 if self._rows is not None else self._con.rowcount

    def fetchone(self) -> Row | None:
        """The next row, or None."""
        if self._rows is None:
            return self._con.fetchone()
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[Row]:
        """The next `size` rows, fewer at the end."""
        if self._rows is None:
            return self._con.fetchmany(size)
        return list(itertools.islice(self._rows, size))

    def fetchall(self) -> list[Row]:
        """All rows that are left."""
        if self._rows is None:
            return self._con.fetchall()
        return list(self._rows)

    def __iter__(self) -> Iterator[Row]:
        while (row := self.fetchone()) is not None:
            yield row

    def arrow(self) -> pa.Table:
        """What is left of the result as one Arrow table."""
        if self._result is not None:
            return self._result.table()
        if hasattr(self._con, "to_arrow_table"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that this copies, which a design that serves 1.5 accepts
                return self._con.to_arrow_table()
        return self.__getattr__("fetch_arrow_table")()

    to_arrow_table = fetch_arrow_table = arrow

    def fetch_record_batch(self, rows_per_batch: int = 100_000) -> pa.RecordBatchReader:
        """The result as a reader of record batches, streamed."""
        if self._result is not None:
            return self._result.reader()
        if hasattr(self._con, "to_arrow_reader"):
            return self._con.to_arrow_reader(rows_per_batch)
        return self.__getattr__("fetch_record_batch")(rows_per_batch)

    to_arrow_reader = fetch_record_batch

    def df(self, *, date_as_object: bool = False) -> pandas.DataFrame | None:
        """What is left of the result as a pandas DataFrame; None where it was read to its end."""
        if self._result is not None:
            return None if self._result.is_done else self._read_rest().df(date_as_object=date_as_object)
        return self._con.df(date_as_object=date_as_object)

    fetchdf = fetch_df = df

    def pl(self) -> polars.DataFrame:
        """What is left of the result as a polars DataFrame."""
        import polars

        return polars.DataFrame(self.arrow())

    def fetchnumpy(self) -> dict[str, np.ndarray[Any, np.dtype[Any]] | pandas.Categorical]:
        """What is left of the result as NumPy arrays by column."""
        if self._result is not None:
            return self._read_rest().fetchnumpy()
        return self._con.fetchnumpy()

    def torch(self) -> dict[str, torch.Tensor]:
        """What is left of the result as PyTorch tensors by column."""
        return self._read_rest().torch() if self._result is not None else self._con.torch()

    def tf(self) -> dict[str, object]:
        """What is left of the result as TensorFlow tensors by column."""
        return self._read_rest().tf() if self._result is not None else self._con.tf()

    def fetch_df_chunk(self, vectors_per_chunk: int = 1, *, date_as_object: bool = False) -> pandas.DataFrame:
        """The next rows of the result as a pandas DataFrame; an empty one at the end."""
        if self._result is None:
            return self._con.fetch_df_chunk(vectors_per_chunk, date_as_object=date_as_object)
        rows: pandas.DataFrame = self._to_relation(self._result.next(2048 * vectors_per_chunk)).df(
            date_as_object=date_as_object
        )
        return rows

    def _read_rest(self) -> Relation:
        assert self._result is not None
        return self._to_relation(self._result.table())

    def _to_relation(self, table: pa.Table) -> Relation:
        from sqlft.query.spool import make_relation

        relation: Relation = make_relation(self._con, table)
        return relation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_con":
            raise AttributeError(name)
        return getattr(self._con, name)


def abort_open_result(con: duckdb.DuckDBPyConnection) -> None:
    """DuckDB 2.0 refuses other work while a result of execute is open."""
    if hasattr(con, "abort"):
        con.abort()
