"""The child: reads a line of JSON per gold query, writes one for the gold and one for each prediction.

Nothing that a prediction does may reach further than this process, which its parent kills when it is silent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO, TypedDict

from sqlft.metrics.execution.databases import DuckDBFile, QueryDatabase, SqliteFile, measure_row
from sqlft.metrics.execution.generated_db import generate_database
from sqlft.metrics.execution.queries import is_equal_result, is_ordered, remove_distinct, repair_query

MAX_MEMORY_BYTES = 2 << 30
"""Bytes of address space of this process, where the system can limit it."""
MAX_ROWS = 1_000_000
"""Rows of a gold."""
GRACE_SECONDS = 2.0
"""Seconds of work beyond its time after which this process ends, whoever is there to kill it."""
ENOUGH_DATABASES, MAX_DATABASES = 6, 16
"""Generated databases that have to agree, and how many are made to get that many useful ones."""


class JudgeTask(TypedDict):
    """What the parent sends: a gold query, the predictions to compare with it, and how."""

    kind: str
    """sqlite, duckdb or schema."""
    database: str
    """A path, or the CREATE TABLE text of a schema."""
    gold: str
    predictions: list[str]
    keep_distinct: bool
    timeout: float
    gold_timeout: float


class JudgeReply(TypedDict, total=False):
    """What is sent back, a line each: that the database is open, the gold's error or None, then the scores."""

    opened: bool
    gold: str | None
    score: int
    ended: bool
    """Whether this process ends with this line."""


class ExecutionJudge:
    """Keeps the last database open: golds come sorted by database."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._open: tuple[str, QueryDatabase] | None = None

    def judge(self, task: JudgeTask) -> None:
        """One gold and its predictions: a line when the database is open, one for the gold, one for each prediction."""
        try:
            gold = _normalise_query(task["gold"], task)
            database = None if task["kind"] == "schema" else self._open_database(task)
            self._reply({"opened": True})
            _set_alarm(task["gold_timeout"])
            same = _compare_on_schema(task, gold) if database is None else _compare_rows(task, gold, database)
        except Exception as e:
            self._reply({"gold": f"{type(e).__name__}: {e}"[:500]})
            return
        self._reply({"gold": None})
        for text in task["predictions"]:
            _set_alarm(task["timeout"])
            self._score(same, text, task)
        _set_alarm(None)

    def _score(self, same: Callable[[str], bool], text: str, task: JudgeTask) -> None:
        """0 where anything fails; a process that ran out of memory ends before the next query."""
        try:
            text = _normalise_query(text, task)
            self._reply({"score": int(bool(text) and same(text))})
        except Exception as e:
            is_out_of_memory = isinstance(e, MemoryError) or "memory" in str(e).lower()
            self._reply({"score": 0, "ended": is_out_of_memory})
            if is_out_of_memory:
                os._exit(0)

    def _open_database(self, task: JudgeTask) -> QueryDatabase:
        path = task["database"]
        if self._open is not None and self._open[0] != path:
            self._open[1].close()
            self._open = None
        if self._open is None:
            self._open = path, DuckDBFile(path) if task["kind"] == "duckdb" else SqliteFile(path)
        return self._open[1]

    def _reply(self, reply: JudgeReply) -> None:
        self._output.write(json.dumps(reply) + "\n")
        self._output.flush()


def _compare_rows(task: JudgeTask, gold: str, database: QueryDatabase) -> Callable[[str], bool]:
    """A function that compares a prediction with the gold's rows, which are read once."""
    ordered = is_ordered(task["gold"])
    rows = database.run(gold, task["gold_timeout"], MAX_ROWS)
    size = sum(map(measure_row, rows))

    def same(text: str) -> bool:
        return is_equal_result(rows, database.run(text, task["timeout"], len(rows), size), ordered=ordered)

    return same


def _compare_on_schema(task: JudgeTask, gold: str) -> Callable[[str], bool]:
    """A function that compares a prediction with the gold on generated rows."""
    with _open_generated(task["database"], [gold], 0) as database:
        database.run(gold, task["gold_timeout"], MAX_ROWS)
    return lambda text: _agree_on_schema(task, gold, text, is_ordered(task["gold"]))


def _agree_on_schema(task: JudgeTask, gold: str, text: str, ordered: bool) -> bool:
    """Whether both queries agree on enough databases, those aside where the gold's own rows are left open."""
    end, fit, telling = time.monotonic() + task["timeout"], 0, 0
    for number in range(MAX_DATABASES):
        with _open_generated(task["database"], [gold, text], number) as database:
            expected = database.run(gold, _seconds_until(end), MAX_ROWS)
            database.reverse_unordered(True)
            decided = is_equal_result(expected, database.run(gold, _seconds_until(end), MAX_ROWS), ordered=ordered)
            database.reverse_unordered(False)
            actual = database.run(text, _seconds_until(end), MAX_ROWS)
        if not decided:
            continue
        if not is_equal_result(expected, actual, ordered=ordered):
            return False
        fit, telling = fit + 1, telling + bool(expected)
        if fit >= ENOUGH_DATABASES and telling >= ENOUGH_DATABASES // 2:
            break
    return fit > 0 or is_equal_result(expected, actual, ordered=ordered)


def _seconds_until(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("out of time")
    return seconds


@contextlib.contextmanager
def _open_generated(schema: str, queries: list[str], number: int) -> Iterator[SqliteFile]:
    database = SqliteFile(filled=generate_database(schema, queries, number))
    try:
        yield database
    finally:
        database.close()


def _normalise_query(text: str, task: JudgeTask) -> str:
    text = repair_query(text).strip(" \t\r\n").rstrip(" \t\r\n;")
    return text if task["keep_distinct"] else remove_distinct(text, only_select=task["kind"] == "duckdb")


def _limit_resources() -> None:
    """No files, no core, bounded memory; systems without such limits have SQLite's and DuckDB's own."""
    try:
        import resource
    except ImportError:
        return
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: MAX_MEMORY_BYTES}
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _set_alarm(seconds: float | None) -> None:
    """Let the system end this process after this much work, in case its parent is gone and a query hangs."""
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
