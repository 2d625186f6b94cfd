"""What pyproject.toml asks for, as pip 23 can read it: `requirements.py dev`, or another of its groups, or `oldest`.

oldest is constraints.txt, but every package that sqlft itself needs in the oldest version that pyproject.toml allows.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def group(name: str) -> list[str]:
    """The packages of a dependency group and of those it includes."""
    found = []
    for entry in PROJECT["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(entry["include-group"])
    return found


def oldest() -> list[str]:
    """An exact version of every package."""
    needed = [re.match(r"([\w.-]+)>=([\d.]+)", text) for text in PROJECT["project"]["dependencies"]]
    lowest = {same(found[1]): found[2] for found in needed if found}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    others = [pin for pin in pins if same(pin.partition("==")[0]) not in lowest]
    return [*others, *(f"{name}=={version}" for name, version in lowest.items())]


def same(name: str) -> str:
    """A package's name in the one spelling that equals all its others."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print("\n".join(oldest() if sys.argv[1] == "oldest" else group(sys.argv[1])))
