"""What actors of a Ray cluster gain and cost: rows a second of slow handlers, overhead where answers cost nothing.

    python benchmarks/fleet.py [scaling] [overhead] [--rows 100000]

The cluster is made on this machine.  Handlers that take 50 and 500 ms for a row only sleep, so that sixteen of them
need no sixteen cores: it is the sharing that is measured.  One actor is the peer of 2 and 16, the handler in this
process that of the overhead, in the same run, in turns.  Writes results/fleet.jsonl and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import describe_machine

import sqlft
from sqlft.handler import Completion, Message, ModelSpec, Predictor, Request
from sqlft.inference.resolve import create_handler, find_engine
from sqlft.options import build_options

HANDLERS = Path(__file__).resolve().parent.parent / "tests" / "handlers"
"""Holds `toiler`, a handler that takes as long as it is asked to."""
RESULTS = Path(__file__).resolve().parent / "results" / "fleet.jsonl"
ACTORS = (1, 2, 16)
TARGETS = {2: 1.9, 16: 14.0}
SECONDS = {0.05: 40, 0.5: 12}
"""What a row takes, and how many rows each actor gets."""
OVERHEAD_TARGET = 5.0
"""Milliseconds per 1,000 rows."""
ROUNDS = 7


@contextmanager
def prepared() -> Iterator[sqlft.Connection]:
    """A connection with engines of 1, 2 and 16 actors, and `here` in this process."""
    sys.path.insert(0, str(HANDLERS))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQLFT_HOME"] = folder
        with sqlft.connect(warn=print) as con:
            con.execute("CREATE MODEL here PREDICT a USING engine = 'toiler'")
            for count in ACTORS:
                con.execute(
                    f"CREATE ML_ENGINE e{count} FROM ray USING handler = 'toiler', address = 'local', "
                    f"actors = {count}, num_cpus = 0.01"
                )
                con.execute(f"CREATE MODEL m{count} PREDICT a USING engine = 'e{count}'")
            yield con


def ask(con: sqlft.Connection, model: str, rows: int, options: str) -> float:
    """Seconds for so many rows, all different."""
    query = (
        f"SELECT count(m.a) FROM (SELECT 'row ' || i AS x FROM range({rows}) r(i)) t JOIN {model} m ON m.content = t.x "
        f"USING cache = false, {options}"
    )
    started = time.perf_counter()
    assert con.execute(query).fetchall() == [(rows,)]
    return time.perf_counter() - started


def warm_up(con: sqlft.Connection, model: str, actors: int) -> float:
    """Ask until all actors are there; how long the first answer took."""
    first = ask(con, model, 1, "seconds = 0")
    ask(con, model, 40 * actors, "seconds = 0.2")
    return first


def scaling(con: sqlft.Connection, rows: int) -> list[dict[str, Any]]:
    """Rows a second by actors."""
    found = []
    for seconds, each in SECONDS.items():
        rates = {count: each * count / ask(con, f"m{count}", each * count, f"seconds = {seconds}") for count in ACTORS}
        for count, rate in rates.items():
            gain = rate / rates[1]
            found.append(
                {
                    "what": "scaling",
                    "seconds": seconds,
                    "actors": count,
                    "rows": each * count,
                    "rows_per_second": rate,
                    "gain": gain,
                    "ok": gain >= TARGETS.get(count, 0),
                }
            )
    return found


def overhead(con: sqlft.Connection, rows: int) -> list[dict[str, Any]]:
    """Milliseconds per 1,000 rows beyond those of the handler in this process, by wall clock and processor of this one.

    Of the predictors alone, without a query: the least of some rounds in turns, for other work only adds.
    """
    found = []
    for count in (1, 2):
        there, here = (make_predictor(con, name) for name in (f"e{count}", "toiler"))
        rounds = [(*time_rows(here, rows), *time_rows(there, rows)) for _ in range(ROUNDS)]
        wall_here, cpu_here, wall_there, cpu_there = (min(column) for column in zip(*rounds, strict=True))
        there.close()
        wall, cpu = (1e6 * (more - less) / rows for more, less in ((wall_there, wall_here), (cpu_there, cpu_here)))
        found.append(
            {
                "what": "overhead",
                "actors": count,
                "rows": rows,
                "ms_per_1000_rows": wall,
                "cpu_ms_per_1000_rows": cpu,
                "rounds": rounds,
                "ok": wall <= OVERHEAD_TARGET,
            }
        )
    return found


def make_predictor(con: sqlft.Connection, engine: str) -> Predictor:
    """The toiler, ready to answer, by an engine."""
    handler = create_handler(con.session, find_engine(con.session, engine))
    return handler.open(ModelSpec(""), None, build_options(type(handler).predict_options, {}, "this benchmark"))


def time_rows(predictor: Predictor, rows: int) -> tuple[float, float]:
    """Seconds for so many requests, of the clock and of this process's processor time."""
    requests = (Request(i, (Message("user", f"row {i}"),)) for i in range(rows))
    started, busy = time.perf_counter(), time.process_time()
    answered = sum(isinstance(event, Completion) for event in predictor.predict(requests))
    assert answered == rows
    return time.perf_counter() - started, time.process_time() - busy


WHAT = {"scaling": scaling, "overhead": overhead}


def main() -> None:
    """Run what is named, print a table, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=[[], *WHAT])
    parser.add_argument("--rows", type=int, default=100_000)
    parsed = parser.parse_args()
    with prepared() as con:
        first = {count: warm_up(con, f"m{count}", count) for count in ACTORS}
        found = [row for name in parsed.what or WHAT for row in WHAT[name](con, parsed.rows)]
    about = {"day": time.strftime("%Y-%m-%d"), **describe_machine("ray"), "load": os.getloadavg()[0]}
    with RESULTS.open("a", encoding="utf-8") as results:
        for row in found:
            results.write(json.dumps({**about, **row}) + "\n")
    for row in found:
        if row["what"] == "scaling":
            print(
                f"{1000 * row['seconds']:4.0f} ms  {row['actors']:2} actors  {row['rows_per_second']:8.1f} rows/s  "
                f"{row['gain']:5.2f}x"
            )
        else:
            print(
                f"overhead  {row['actors']:2} actors  {row['ms_per_1000_rows']:5.2f} ms per 1,000 rows, "
                f"{row['cpu_ms_per_1000_rows']:5.2f} ms of the processor"
            )
    print(json.dumps({"first_answer_seconds": first, "rows": found}))


if __name__ == "__main__":
    main()
