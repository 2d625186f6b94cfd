"""The parent's side of SQLite files that a writer left, or is at work on: a copy without a log, which can be read."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

LOG_SUFFIXES = ("-wal", "-journal")


def snapshot_databases(paths: Iterable[str], folder: Path) -> Mapping[str, str]:
    """Where to read each of these SQLite files: in `folder` those with a log beside them; sqlite3.Error, OSError.

    SQLite could read a file with a log only by writing beside it, which no judge of predictions may do.
    """
    found = {}
    for number, path in enumerate(paths):
        logs = [end for end in LOG_SUFFIXES if (log := Path(path + end)).is_file() and log.stat().st_size]
        found[path] = _copy_without_log(path, logs, folder / f"{number}.sqlite") if logs else path
    return found


def _copy_without_log(path: str, logs: list[str], copy: Path) -> str:
    for end in ("", *logs):
        shutil.copyfile(path + end, f"{copy}{end}")
    with closing(sqlite3.connect(copy)) as con:
        con.execute("PRAGMA journal_mode = DELETE").fetchall()
    return str(copy)
