"""What every benchmark says of where its figures are from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def describe_machine(*packages: str) -> dict[str, str]:
    """The processor, and the versions of packages, without those that are not installed."""
    from sqlft_local.machine import detect_machine

    here = detect_machine()
    found = {"processor": f"{here.processor}, {here.cores} cores, {', '.join(here.flags)}"}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
