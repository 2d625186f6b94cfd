"""How threads and processes that compute are run; imports nothing that computes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPINS = "2000"
"""Rounds that OpenMP's threads spin before they sleep: some ten microseconds.  By default it is milliseconds, which on
cores that other work uses too (two threads of three processes on two cores) made an answer ten times slower."""
PREPARED = "128"
"""Products of matrices that stay prepared, by oneDNN and by PyTorch's layer over it.  A step needs about a hundred; by
default it is 1024, and rows of ever other lengths then took 6 MB more in each step of a training."""


def share() -> None:
    """Settings of the libraries that compute, to be made before they are imported: threads that wait for each other
    sleep where they would spin, and few products stay prepared."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, PREPARED)


def usable(given: int | None) -> int:
    """Threads: as many as cores that this process may use; two on one core only disturb each other."""
    if given:
        return given
    try:
        there = len(os.sched_getaffinity(0))
    except AttributeError:
        there = os.cpu_count() or 1
    try:
        twofold = Path("/sys/devices/system/cpu/smt/active").read_text(encoding="ascii").strip() == "1"
    except OSError:
        twofold = False
    return max(1, there // 2 if twofold else there)


def command(module: str, *arguments: str) -> list[str]:
    """What runs a module of ours in a process of its own, with `environment`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """That of this process, in which the other one finds the modules that this one would."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
