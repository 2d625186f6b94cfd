"""Random queries over models beside the same queries over tables: `python -m tests.query.differential --help`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .generator import generate
from .world import Case, Verdict, World


@dataclass(frozen=True)
class Difference:
    """A case whose two sides differ."""

    seed: int
    number: int
    case: Case
    verdict: Verdict

    def __str__(self) -> str:
        return (
            f"{self.verdict.kind}: seed {self.seed}, query {self.number} (--seed {self.seed} --only {self.number})\n"
            f"  over models:\n{self.case.text('model')}\n  over tables:\n{self.case.text('table')}\n"
            f"  models give {self.verdict.model}\n  tables give {self.verdict.table}\n"
        )


def differences(world: World, seed: int, numbers: range) -> Iterator[Difference]:
    """Cases of a seed whose two sides differ."""
    for number in numbers:
        case = generate(seed, number)
        verdict = world.compare(case)
        if verdict.kind not in ("equal", "left out"):
            yield Difference(seed, number, case, verdict)


def main() -> int:
    """Run as many as wanted; 1 if any differ."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--queries", type=int, default=1000, help="how many")
    reader.add_argument("--seed", type=int, default=1, help="which ones")
    reader.add_argument("--only", type=int, help="the query of that number alone")
    reader.add_argument("--quiet", action="store_true", help="one line for each difference")
    args = reader.parse_args()
    numbers = range(args.queries) if args.only is None else range(args.only, args.only + 1)
    if args.only is not None:
        print(generate(args.seed, args.only).text("model"))
    with tempfile.TemporaryDirectory() as home:
        os.environ["SQLFT_HOME"] = home
        world = World()
        kinds: Counter[str] = Counter()
        for found in differences(world, args.seed, numbers):
            kinds[found.verdict.kind] += 1
            print(str(found).replace("\n", " ")[:400] if args.quiet else found, flush=True)
        world.close()
    wrong = sum(kinds.values())
    print(f"{len(numbers) - wrong} of {len(numbers)} equal", "".join(f"; {n} {k}" for k, n in kinds.most_common()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
