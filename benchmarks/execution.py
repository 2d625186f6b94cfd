"""Pairs of queries that execution_accuracy judges in a second, on Spider's databases and on their schemas alone.

    python benchmarks/execution.py [--processes 2]

Peer: a plain loop over sqlite3 that runs both queries in this process, unprotected, and compares sorted rows.
Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqlft.metrics import METRICS

SHARED = next((p for up in Path(__file__).resolve().parents if (p := up / "shared" / "data").is_dir()), Path("nowhere"))


def spider(split: str) -> list[dict[str, Any]]:
    """Questions of a split with database and schema; every other gold is held against the next of its database."""
    schemas = {r["db_id"]: r["ddl"] for r in pq.read_table(SHARED / f"spider_exec/schemas_{split}.parquet").to_pylist()}
    rows = pq.read_table(SHARED / f"spider_exec/{split}.parquet").to_pylist()
    folder = SHARED / f"spider_exec/databases_{split}"
    return [
        {
            "gold": row["query"],
            "prediction": other["query"] if i % 2 and other["db_id"] == row["db_id"] else row["query"],
            "database": str(folder / row["db_id"] / f"{row['db_id']}.sqlite"),
            "schema": schemas[row["db_id"]],
        }
        for i, (row, other) in enumerate(zip(rows, [*rows[1:], rows[0]], strict=True))
    ]


def judged(rows: list[dict[str, Any]], **options: Any) -> list[float | None]:
    """The scores of the metric."""
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    option = "schema" if options.pop("by_schema", False) else "database"
    scores = METRICS["execution_accuracy"](
        columns["gold"], columns["prediction"], **{option: columns[option]}, **options
    )
    return list(scores.to_pylist())


def plain(rows: list[dict[str, Any]]) -> list[float | None]:
    """The peer."""
    found: list[float | None] = []
    for row in rows:
        with closing(sqlite3.connect(row["database"])) as con:
            con.text_factory = lambda raw: raw.decode(errors="ignore")
            gold = con.execute(row["gold"]).fetchall()
            found.append(float(sorted(map(repr, gold)) == sorted(map(repr, con.execute(row["prediction"]).fetchall()))))
    return found


def measured(name: str, rows: list[dict[str, Any]], judge: Callable[[], list[float | None]]) -> dict[str, Any]:
    """A line of the table."""
    started = time.perf_counter()
    scores = judge()
    seconds = time.perf_counter() - started
    line = {"what": name, "pairs": len(rows), "same": sum(s == 1 for s in scores), "seconds": round(seconds, 2)}
    print(f"{name:42} {len(rows):6,} {line['same']:6,} {seconds:8.2f} s {len(rows) / seconds:8,.0f} pairs/s")
    return line | {"pairs_per_second": round(len(rows) / seconds)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=2)
    processes = parser.parse_args().processes
    if not SHARED.exists():
        print(json.dumps({"benchmark": "execution", "skipped": "no shared data"}))
        return
    warnings.simplefilter("ignore")
    rows = spider("train") + spider("dev")
    few = spider("dev")
    print(f"{'':42} {'pairs':>6} {'same':>6}")
    lines = [
        measured(f"SQLite files, {processes} processes", rows, lambda: judged(rows, processes=processes)),
        measured("SQLite files, 1 process", rows, lambda: judged(rows, processes=1)),
        measured("a plain loop over sqlite3", rows, lambda: plain(rows)),
        measured(
            f"schemas alone, {processes} processes", few, lambda: judged(few, processes=processes, by_schema=True)
        ),
    ]
    print(json.dumps({"benchmark": "execution", "processes": processes, "results": lines}))


if __name__ == "__main__":
    main()
