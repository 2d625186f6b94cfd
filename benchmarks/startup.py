"""What `import sqlft` and the start of the shell cost, beside the imports that they cannot do without.

    python benchmarks/startup.py [--rounds 20] [--modules 15]

Every command is a process of its own, all of them in turns.  `--modules N` lists the N modules of `import sqlft` that
take longest by themselves, but for those of the peers.  Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

PEER = "import duckdb, pyarrow"
COMMANDS = {
    "nothing": ["-c", "pass"],
    "import duckdb": ["-c", "import duckdb"],
    PEER: ["-c", PEER],
    "import sqlft": ["-c", "import sqlft"],
    "import sqlft, pyarrow": ["-c", "import sqlft, pyarrow"],
    "select 1 in duckdb": ["-c", "import duckdb; print(duckdb.connect().execute('select 1').fetchall())"],
    "select 1 in sqlft": ["-c", "import sqlft; print(sqlft.connect().execute('select 1').fetchall())"],
    "select 1 in sqlft shell": ["-m", "sqlft", "shell", "-c", "select 1"],
}
IMPORTED = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|\s*(\S+)")


class Cost(NamedTuple):
    """Medians of a process's seconds: on the clock, and of the processor."""

    wall: float
    processor: float


def spent(arguments: list[str]) -> Cost:
    """What one run of Python takes."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return Cost(wall, user + system)


def measured(rounds: int) -> dict[str, Cost]:
    """Every command, in turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            cost = spent(arguments)
            if turn:  # the first one compiles
                costs[name].append(cost)
    return {name: Cost(*map(statistics.median, zip(*some, strict=True))) for name, some in costs.items()}


def modules(code: str) -> dict[str, int]:
    """Microseconds that each module takes by itself."""
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    return {name: int(own) for own, _, name in IMPORTED.findall(told.stderr)}


def ratios(costs: dict[str, Cost]) -> dict[str, float]:
    """What is promised: import at most 1.3 times the peer's, the shell at most half a second beyond duckdb's import."""
    shell, duckdb = costs["select 1 in sqlft shell"], costs["import duckdb"]
    return {
        "import_ratio": costs["import sqlft"].wall / costs[PEER].wall,
        "import_ratio_processor": costs["import sqlft"].processor / costs[PEER].processor,
        "import_ratio_with_pyarrow": costs["import sqlft, pyarrow"].wall / costs[PEER].wall,
        "shell_beyond_duckdb_seconds": shell.wall - duckdb.wall,
        "shell_beyond_duckdb_processor_seconds": shell.processor - duckdb.processor,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each command")
    parser.add_argument("--modules", type=int, default=0, help="how many modules to list")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQLFT_HOME"] = folder
        costs = measured(given.rounds)
    print(f"{'':26}{'seconds':>10}{'processor':>11}")
    for name, cost in costs.items():
        print(f"{name:26}{cost.wall:10.3f}{cost.processor:11.3f}")
    promised = ratios(costs)
    for name, value in promised.items():
        print(f"{name:40}{value:7.3f}")
    peers = modules(PEER)
    own = {name: micro for name, micro in modules("import sqlft").items() if name not in peers}
    for name in sorted(own, key=own.__getitem__, reverse=True)[: given.modules]:
        print(f"{name:40}{own[name] / 1000:7.1f} ms")
    seconds = {name: round(cost.wall, 4) for name, cost in costs.items()}
    print(json.dumps({"seconds": seconds, **{name: round(value, 3) for name, value in promised.items()}}))


if __name__ == "__main__":
    main()
