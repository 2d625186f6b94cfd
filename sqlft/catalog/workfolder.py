"""Where a version's files are, and whether the process that trains it is alive.

::

    models/<model>/<number>/          the artifact
    models/<model>/<number>.work/     while it trains, and after for as long as it can be resumed
        lock  log.txt  job.json  train.parquet  valid.parquet  files/

Who trains holds the lock (flock) for its whole life.  The starting session takes it before the version can be
seen and hands the open file down to the worker, so there is no moment at which a version that is about to start
looks dead, and none at which a process id that was given to another process looks alive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from sqlft.log import MARK

LOCK, LOG, JOB, FILES = "lock", "log.txt", "job.json", "files"


def slug(name: str) -> str:
    """A folder name for any model name: itself where that is safe, else made safe and told apart by a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name):
        return name
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("_-") or "model"
    return f"{safe}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def works(folder: Path) -> list[Path]:
    """The work folders below a catalog's folder."""
    return [found.parent for found in folder.glob(f"models/*/*.work/{LOCK}")]


def take(work: Path) -> int | None:
    """The open, locked lock file of a work folder; None while another process has it."""
    import fcntl

    return _lock(work, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)


@contextmanager
def held(work: Path) -> Iterator[int | None]:
    """The lock of a work folder while the block runs; None if somebody trains there, or there is no such folder."""
    lock = take(work) if work.exists() else None
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def alive(work: Path) -> bool:
    """Whether somebody trains in this work folder."""
    import fcntl

    try:
        opened = _lock(work, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if opened is None:
        return True
    os.close(opened)
    return False


def _lock(work: Path, how: int, lock: int) -> int | None:
    import fcntl

    opened = os.open(work / LOCK, how | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(opened, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def epitaph(work: Path, how: str = "died") -> str:
    """What is known of a worker that ended without a word: how, its last line, where its log is."""
    last = _last_line(work / LOG)
    return f"The process that trained it {how}{f': {last}' if last else '.'}{f' (log: {work / LOG})' if last else ''}"


def _last_line(log: Path) -> str:
    with suppress(OSError):
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith(MARK)), "")[:500]
    return ""
