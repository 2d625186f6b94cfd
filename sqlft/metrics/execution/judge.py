"""The child: reads a line of JSON a gold from its input, writes one for the gold and one for each prediction.

Nothing that a prediction does may reach further than this process, which its parent kills when it says nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from sqlft.metrics.execution import generated_db
from sqlft.metrics.execution.queries import is_ordered, remove_distinct, repair_query
from sqlft.metrics.execution.results import Row, is_equal_result
from sqlft.metrics.execution.sqlite_file import SqliteFile, measure_row

MAX_MEMORY_BYTES = 2 << 30
"""Bytes of address space of this process, where the system can limit it."""
MAX_ROWS = 1_000_000
"""Rows of a gold."""
GRACE_SECONDS = 2.0
"""Seconds of work beyond its time after which this process ends, whoever is there to kill it."""
ENOUGH_DATABASES, MAX_DATABASES = 6, 16
"""Databases made from a schema that have to agree, and how many are made to find so many that are fit."""


class QueryDatabase(Protocol):
    """A database that can be read."""

    def run(self, query: str, timeout: float, most: int, most_bytes: int | None = None) -> list[Row]:
        """All rows."""

    def close(self) -> None:
        """Let go of it."""


class Deadline:
    """The seconds that are left for one gold or one prediction."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds; TimeoutError if none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        return left


class ExecutionJudge:
    """Keeps the last database open: golds come sorted by database."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._open: tuple[str, QueryDatabase] | None = None

    def judge(self, work: dict[str, Any]) -> None:
        """One gold and its predictions: a line when the database is open, one for the gold, one for each prediction."""
        try:
            gold = _normalise_query(work["gold"], work)
            database = None if work["kind"] == "schema" else self._database(work)
            self._write_line(opened=True)
            _set_alarm(work["gold_timeout"])
            same = _compare_on_schema(work, gold) if database is None else _compare_rows(work, gold, database)
        except Exception as e:
            self._write_line(gold=f"{type(e).__name__}: {e}"[:500])
            return
        self._write_line(gold=None)
        for text in work["predictions"]:
            _set_alarm(work["timeout"])
            self._score(same, text, work)
        _set_alarm(None)

    def _score(self, same: Callable[[str], bool], text: str, work: dict[str, Any]) -> None:
        """0 for whatever fails; a process that ran out of memory is no place for the next query."""
        try:
            text = _normalise_query(text, work)
            self._write_line(score=int(bool(text) and same(text)))
        except Exception as e:
            spent = isinstance(e, MemoryError) or "memory" in str(e).lower()
            self._write_line(score=0, ended=spent)
            if spent:
                os._exit(0)

    def _database(self, work: dict[str, Any]) -> QueryDatabase:
        path = work["database"]
        if self._open is None or self._open[0] != path:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            self._open = (path, _open_database(work["kind"], path))
        return self._open[1]

    def _write_line(self, **line: Any) -> None:
        self._output.write(json.dumps(line) + "\n")
        self._output.flush()


def _compare_rows(work: dict[str, Any], gold: str, database: QueryDatabase) -> Callable[[str], bool]:
    """What tells whether a prediction gives the gold's rows, which are read once."""
    ordered = is_ordered(work["gold"])
    rows = database.run(gold, work["gold_timeout"], MAX_ROWS)
    size = sum(map(measure_row, rows))

    def same(text: str) -> bool:
        return is_equal_result(rows, database.run(text, work["timeout"], len(rows), size), ordered=ordered)

    return same


def _compare_on_schema(work: dict[str, Any], gold: str) -> Callable[[str], bool]:
    """What tells whether a prediction agrees with the gold on generated rows."""
    with _open_generated(work["database"], [gold], 0) as database:
        database.run(gold, work["gold_timeout"], MAX_ROWS)
    return lambda text: _agree_on_schema(work, gold, text, is_ordered(work["gold"]))


def _agree_on_schema(work: dict[str, Any], gold: str, text: str, ordered: bool) -> bool:
    """Whether both queries agree on enough fillings; those where the gold itself is not decided count little."""
    deadline, fit, telling = Deadline(work["timeout"]), 0, 0
    for number in range(MAX_DATABASES):
        with _open_generated(work["database"], [gold, text], number) as database:
            wanted = database.run(gold, deadline.remaining(), MAX_ROWS)
            database.reverse_unordered(True)
            decided = is_equal_result(wanted, database.run(gold, deadline.remaining(), MAX_ROWS), ordered=ordered)
            database.reverse_unordered(False)
            given = database.run(text, deadline.remaining(), MAX_ROWS)
        if not decided:
            continue
        if not is_equal_result(wanted, given, ordered=ordered):
            return False
        fit, telling = fit + 1, telling + bool(wanted)
        if fit >= ENOUGH_DATABASES and telling >= ENOUGH_DATABASES // 2:
            break
    return fit > 0 or is_equal_result(wanted, given, ordered=ordered)


@contextlib.contextmanager
def _open_generated(schema: str, queries: list[str], number: int) -> Iterator[SqliteFile]:
    database = SqliteFile(filled=generated_db.generate_database(schema, queries, number))
    try:
        yield database
    finally:
        database.close()


def _normalise_query(text: str, work: dict[str, Any]) -> str:
    text = repair_query(text).strip(" \t\r\n").rstrip(" \t\r\n;")
    return text if work["keep_distinct"] else remove_distinct(text, only_select=work["kind"] == "duckdb")


def _open_database(kind: str, path: str) -> QueryDatabase:
    if kind == "duckdb":
        from sqlft.metrics.execution.duckdb_file import DuckDBFile

        return DuckDBFile(path)
    return SqliteFile(path)


def _limit_resources() -> None:
    """No files, no core, bounded memory; systems without such limits have SQLite's and DuckDB's own."""
    try:
        import resource
    except ImportError:
        return
    wanted = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: MAX_MEMORY_BYTES}
    for what, most in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _set_alarm(seconds: float | None) -> None:
    """Let the system end this process after so much work, should its parent be gone and a query not see the clock."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0 if seconds is None else seconds + GRACE_SECONDS)


def main() -> None:
    """Serve until the input ends."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _limit_resources()
    judge = ExecutionJudge(output)
    output.write("{}\n")
    output.flush()
    for line in sys.stdin:
        judge.judge(json.loads(line))
