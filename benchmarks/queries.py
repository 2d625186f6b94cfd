"""What a query over a model costs: calls of the handler, rows a second, memory, and what other statements pay.

    python benchmarks/queries.py [calls] [streaming] [latency] [passthrough] [--rows 1000000] [--distinct 1000]

Peers run in the same go: a table that holds all the answers in plain DuckDB, a plain loop in Python, and a plain
connection.  Each way of streaming runs in a process of its own, so that memory is its own.  Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

import sqlft

HANDLERS = Path(__file__).resolve().parent.parent / "tests" / "handlers"
"""Holds `counter`, a handler that answers at once and counts what it is asked."""
MODEL = "CREATE OR REPLACE MODEL m PREDICT answer USING engine = 'counter'"
SMALL = "CREATE TABLE t AS SELECT i AS id, 'prompt ' || (i % 2000) AS x, i % 7 AS k FROM range(20000) r(i)"
LARGE = "CREATE TABLE t AS SELECT i AS id, 'prompt ' || (i % {distinct}){long} AS x FROM range({rows}) r(i)"
"""Prompts of 150 letters where they come again and again, short ones where all are different."""
JOIN = "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x"
SHAPES = {
    "one prompt": ("SELECT answer FROM m WHERE content = 'prompt 1'", 1),
    "IN (three values)": ("SELECT answer FROM m WHERE content IN ('prompt 1', 'prompt 2', 'prompt 3')", 3),
    "filter on the input": (f"{JOIN} WHERE t.id < 100", 100),
    "ORDER BY input LIMIT 10": (f"{JOIN} ORDER BY t.id LIMIT 10", 10),
    "both filters, ORDER BY, LIMIT 10": (f"{JOIN} WHERE t.k = 3 AND m.answer LIKE '%7' ORDER BY t.id LIMIT 10", 128),
    "LIMIT 10": (f"{JOIN} LIMIT 10", 64),
    "the whole join": (JOIN, 2000),
    "an output that nobody reads": ("SELECT t.id FROM t JOIN m ON m.content = t.x", 0),
    "a CTE that is read twice": (
        f"WITH a AS ({JOIN}) SELECT count(*) FROM a JOIN a b ON a.id = b.id WHERE a.answer = b.answer",
        2000,
    ),
}
"""Queries over 20,000 rows with 2,000 distinct prompts, and the most calls they may make."""
PLAIN = ("SELECT 42", "SELECT * FROM small", "SELECT k, count(*) FROM t GROUP BY k ORDER BY k")


def calls() -> list[dict[str, Any]]:
    """How often each shape asks, with nothing cached."""
    found = []
    with prepared(SMALL) as con:
        asked = import_module("counter").ASKED
        for name, (query, most) in SHAPES.items():
            con.execute("DROP CACHE").fetchall()
            asked.clear()
            started = time.perf_counter()
            con.execute(query).fetchall()
            seconds = time.perf_counter() - started
            found.append(
                {"shape": name, "calls": len(asked), "most": most, "ok": len(asked) <= most, "seconds": seconds}
            )
    return found


@contextmanager
def prepared(table: str) -> Iterator[sqlft.Connection]:
    """A connection with a table and a model, the handler installed as another package would be."""
    sys.path.insert(0, str(HANDLERS))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQLFT_HOME"] = folder
        with sqlft.connect(warn=print) as con:
            con.execute(table)
            con.execute(MODEL)
            yield con


# -- streaming -------------------------------------------------------------------------------------------------


def in_batches(con: sqlft.Connection) -> Iterator[int]:
    """Record batches, nothing cached."""
    yield 0
    con.execute(JOIN)
    yield 0
    for batch in con.fetch_record_batch():
        yield batch.num_rows


def in_tuples(con: sqlft.Connection) -> Iterator[int]:
    """fetchmany, nothing cached."""
    yield 0
    con.execute(JOIN)
    yield 0
    while rows := con.fetchmany(10_000):
        yield len(rows)


def uncached(con: sqlft.Connection) -> Iterator[int]:
    """Record batches, without the cache."""
    yield 0
    con.execute(f"{JOIN} USING cache = false")
    yield 0
    for batch in con.fetch_record_batch():
        yield batch.num_rows


def aggregated(con: sqlft.Connection) -> Iterator[int]:
    """All answers in one aggregate, without the cache."""
    yield 0
    yield 0
    rows = con.execute(f"SELECT count(*), max(length(m.answer)) FROM ({JOIN}) m USING cache = false").fetchall()
    yield rows[0][0]


def from_cache(con: sqlft.Connection) -> Iterator[int]:
    """Record batches, every answer kept from before."""
    deque(con.execute(JOIN).fetch_record_batch(), maxlen=0)
    yield from in_batches(con)


def plain_table(con: sqlft.Connection) -> Iterator[int]:
    """Plain DuckDB: the answers are a table."""
    raw = con.session.con
    raw.execute("CREATE TABLE answers AS SELECT DISTINCT x AS content, 'A:' || upper(x) AS answer FROM t").fetchall()
    yield 0
    reader = raw.sql(JOIN.replace("JOIN m", "JOIN answers m")).to_arrow_reader(16384)
    yield 0
    for batch in reader:
        yield batch.num_rows


def plain_loop(con: sqlft.Connection) -> Iterator[int]:
    """A loop in Python with a dictionary of answers."""
    raw, answers = con.session.con, dict[str, str]()
    yield 0
    raw.execute("SELECT id, x FROM t")
    yield 0
    while rows := raw.fetchmany(10_000):
        answered = []
        for number, prompt in rows:
            if prompt not in answers:
                answers[prompt] = f"A:{prompt.upper()}"
            answered.append((number, answers[prompt]))
        yield len(answered)


WAYS: dict[str, Callable[[sqlft.Connection], Iterator[int]]] = {
    "sqlft": in_batches,
    "sqlft, tuples": in_tuples,
    "sqlft, without the cache": uncached,
    "sqlft, aggregated": aggregated,
    "sqlft, from the cache": from_cache,
    "plain DuckDB, a table of answers": plain_table,
    "plain Python, a dictionary": plain_loop,
}
"""Each yields first when it is ready, then when the query has started, then the number of rows it has got."""


def stream(way: str, rows: int, distinct: int) -> dict[str, Any]:
    """Rows a second, seconds until the rows are spooled and from there to the first row, and megabytes added."""
    long = "" if distinct == rows else " || repeat(' x', 75)"
    with prepared(LARGE.format(rows=rows, distinct=distinct, long=long)) as con:
        steps = WAYS[way](con)
        next(steps)
        with Memory() as memory:
            started = time.perf_counter()
            next(steps)
            spooled = time.perf_counter()
            count = next(steps)
            first = time.perf_counter()
            count += sum(steps)
            seconds = time.perf_counter() - started
    assert count == rows, f"{way}: {count} rows in place of {rows}"
    return {
        "way": way,
        "rows_per_second": rows / seconds,
        "start_seconds": spooled - started,
        "first_row_seconds": first - spooled,
        "added_mb": memory.added,
    }


class Memory:
    """The megabytes that a block adds to the process, looked at every few milliseconds."""

    def __enter__(self) -> Memory:
        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    @property
    def added(self) -> float:
        return (self._most - self._before) / 1e6


def streaming(rows: int, distinct: int) -> list[dict[str, Any]]:
    """Every way, each in a process of its own."""
    found = []
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--rows", str(rows), "--distinct", str(distinct)]
        found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    return found


# -- latency -----------------------------------------------------------------------------------------------------

QUICK = {
    "a point query from the cache": ("SELECT answer FROM m WHERE content = 'prompt 1'", "SELECT 42"),
    "join of 10 rows, ORDER BY, LIMIT": (
        "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 10 ORDER BY t.id LIMIT 10",
        "SELECT t.id, t.x FROM t WHERE t.id < 10 ORDER BY t.id LIMIT 10",
    ),
}
"""A query over a model, and one like it over tables alone."""


def latency() -> list[dict[str, Any]]:
    """Time of queries with cached answers, in ms, alternating with plain queries on the same connection."""
    with prepared(SMALL) as con:
        found = []
        for name, (query, plain) in QUICK.items():
            ours, raw = in_turns(call(con, query), call(con.session.con, plain))
            found.append({"query": name, "ms": ours * 1e3, "plain_ms": raw * 1e3, "ratio": ours / raw})
        return found


# -- passthrough -----------------------------------------------------------------------------------------------


def passthrough() -> list[dict[str, Any]]:
    """Statements that are DuckDB's own, through sqlft and without it in turns, while the catalog holds a model."""
    found = []
    with prepared(SMALL) as con:
        con.execute("CREATE TABLE small AS SELECT i AS a, i::VARCHAR AS b FROM range(10) r(i)")
        for query in PLAIN:
            ours, raw = in_turns(call(con, query), call(con.session.con, query))
            micro = {"microseconds": ours * 1e6, "raw_microseconds": raw * 1e6}
            found.append({"query": query, **micro, "ratio": ours / raw})
    return found


def call(con: Any, query: str) -> Callable[[], object]:
    """The query and its rows."""
    return lambda: con.execute(query).fetchall()


def in_turns(ours: Callable[[], object], raw: Callable[[], object], rounds: int = 60) -> tuple[float, float]:
    """Median seconds of a call of either; many short turns, so that what else the machine does meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = max(1, round(0.01 / seconds_of(raw, 3)))
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(seconds_of((ours, raw)[which], calls))
    return statistics.median(times[0]), statistics.median(times[1])


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call, the mean of some."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


# -- printing --------------------------------------------------------------------------------------------------


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows below their keys."""
    cells = [list(rows[0]), *([shown(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
    return str(value)


def main() -> None:
    """Run what was asked for, print it, and end with a line of JSON."""
    parts: dict[str, Callable[[int, int], list[dict[str, Any]]]] = {
        "calls": lambda rows, distinct: calls(),
        "streaming": streaming,
        "latency": lambda rows, distinct: latency(),
        "passthrough": lambda rows, distinct: passthrough(),
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="which parts to run; all of them without it")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to stream")
    parser.add_argument("--distinct", type=int, default=1000, help="different prompts among them")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(stream(given.way, given.rows, given.distinct)))
        return
    found: dict[str, Any] = {}
    for part in given.part or parts:
        found[part] = parts[part](given.rows, given.distinct)
        table(part, found[part])
    print("\n" + json.dumps(json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 4))))


if __name__ == "__main__":
    main()
