"""The metric of SQL: whether both queries give the same rows on the database, as Spider's official evaluator judges."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from sqlft.errors import DataError, OptionError
from sqlft.metrics.execution.pool import GoldQuery, judge_queries
from sqlft.metrics.metric import Column, TextPairs, expand_option, metric, pair_texts

SQLITE, DUCKDB = b"SQLite format 3\0", b"DUCK"
LOG_SUFFIXES = ("-wal", "-journal")
MAX_PROCESSES = 4
MAX_TIMEOUT = 86_400.0
"""Seconds of a query at most: a day."""


@metric(columns=("database", "schema"), needs=("interrupted",))
def execution_accuracy(
    actual: Column,
    prediction: Column,
    *,
    database: Column | os.PathLike[str] | None = None,
    schema: Column | None = None,
    keep_distinct: bool = False,
    timeout: float = 30.0,
    processes: int | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> pa.DoubleArray:
    """1 where the prediction's rows are the actual query's on its `database` (a SQLite or DuckDB file) or `schema`.

    `database` is a path or a column of paths; `schema`, in its place, CREATE TABLE text or a column of it: the queries
    then run on several databases of generated rows.  Predictions can only read, have `timeout` seconds each, and run
    in processes of their own.  An actual query that fails has no score (NULL) and is warned of.  Cancelled once
    `interrupted`, which is called some times a second, returns true.
    """
    _check_options(timeout, processes, keep_distinct)
    pairs = pair_texts(actual, prediction)
    golds = _group_by_gold(pairs, database, schema)
    ordered = sorted(golds, key=lambda gold: (gold.kind, gold.database))
    count = processes or min(os.cpu_count() or 1, MAX_PROCESSES)
    with tempfile.TemporaryDirectory(prefix="sqlft-", ignore_cleanup_errors=True) as folder:
        _copy_logged_databases(golds, Path(folder))
        judge_queries(
            ordered,
            processes=count,
            interrupted=interrupted or (lambda: False),
            keep_distinct=keep_distinct,
            timeout=min(float(timeout), MAX_TIMEOUT),
        )
    return _collect_scores(pairs, golds)


def _check_options(timeout: object, processes: object, keep_distinct: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise OptionError(f"timeout is {timeout!r}, it must be a number above 0.", "Give seconds: timeout = 30.")
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
        raise OptionError(f"processes is {processes!r}, it must be a whole number from 1.", "Give it, or leave it out.")
    if not isinstance(keep_distinct, bool):
        raise OptionError(f"keep_distinct is {keep_distinct!r}.", "Write: keep_distinct = true, or false.")


def _group_by_gold(
    pairs: TextPairs, database: Column | os.PathLike[str] | None, schema: Column | None
) -> list[GoldQuery]:
    """Each different actual query on each database once, with all its predictions."""
    if (database is None) == (schema is None):
        raise OptionError(
            "execution_accuracy needs a database to run the queries on, or a schema.",
            "Give database = '<file>', a column named database in the query, or schema = 'CREATE TABLE …'.",
        )
    what = "schema" if database is None else "database"
    places = expand_option(schema if database is None else database, len(pairs), what)
    kinds = {place: what if what == "schema" else _detect_kind(place) for place in set(places) if place is not None}
    golds: dict[tuple[str, str], GoldQuery] = {}
    for row, ((actual, prediction), place) in enumerate(zip(pairs, places, strict=True)):
        if actual is None:
            continue
        if place is None:
            raise DataError(f"Row {row + 1} has no {what}.", f"Give each row one: a column named {what}.")
        where = place if database is None else os.path.abspath(place)
        gold = golds.setdefault((where, actual), GoldQuery(kinds[place], where, actual))
        gold.predictions.append(prediction or "")
        gold.rows.append(row)
    return list(golds.values())


def _detect_kind(place: str) -> str:
    """sqlite or duckdb, by the file's first bytes; an empty file is an empty SQLite database."""
    try:
        if not Path(place).is_file():  # reading from a pipe would wait for ever
            raise FileNotFoundError(0, "there is no such file" if not Path(place).exists() else "it is no file")
        with Path(place).open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as e:
        raise DataError(
            f"The database '{place}' cannot be read: {getattr(e, 'strerror', None) or e}.",
            "Check the path; it counts from the current folder.",
        ) from e
    if head in (SQLITE, b""):
        return "sqlite"
    if head[8:12] == DUCKDB:
        return "duckdb"
    raise DataError(f"'{place}' is neither a SQLite nor a DuckDB database.", "Give a database's file.")


def _copy_logged_databases(golds: list[GoldQuery], folder: Path) -> None:
    """Let SQLite files with a log beside them be read from a copy in `folder`.

    SQLite could read a file with a log only by writing beside it, which no judge of predictions may do.
    """
    copies: dict[str, str] = {}
    for gold in (gold for gold in golds if gold.kind == "sqlite"):
        if gold.database not in copies:
            copies[gold.database] = _copy_without_log(gold.database, folder / f"{len(copies)}.sqlite")
        gold.database = copies[gold.database]


def _copy_without_log(path: str, copy: Path) -> str:
    """The copy's path, or the file's own where no writer left a log."""
    try:
        logs = [end for end in LOG_SUFFIXES if (log := Path(path + end)).is_file() and log.stat().st_size]
        if not logs:
            return path
        for end in ("", *logs):
            shutil.copyfile(path + end, f"{copy}{end}")
        with closing(sqlite3.connect(copy)) as con:
            con.execute("PRAGMA journal_mode = DELETE").fetchall()
    except (OSError, sqlite3.Error) as e:
        raise DataError(
            f"A database with a log of SQLite beside it cannot be copied: {e}", "End what writes it."
        ) from e
    return str(copy)


def _collect_scores(pairs: TextPairs, golds: list[GoldQuery]) -> pa.DoubleArray:
    scores: list[float | None] = [None] * len(pairs)
    for gold in golds:
        for row, score in zip(gold.rows, gold.scores, strict=gold.error is None):
            scores[row] = score
    failed = sorted((gold.rows[0] + 1, gold.error) for gold in golds if gold.error is not None)
    if failed:
        count = sum(len(gold.rows) for gold in golds if gold.error is not None)
        row, why = failed[0]
        warnings.warn(
            f"{count} of {len(pairs)} actual queries cannot be run and have no score; row {row}: {why}",
            RuntimeWarning,
            stacklevel=4,
        )
    return pa.array(scores, pa.float64())
