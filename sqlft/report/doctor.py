"""What this machine can do for models, what is installed, and what to install next: `sqlft doctor`."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from sqlft import plugins
from sqlft._types import Row
from sqlft.secrets.home import home

REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")
MIN_FREE_DISK = 5e9
GIGA = 1e9


def run_checkup() -> dict[str, object]:
    """All sections by name, as JSON can hold them; a section that cannot be checked holds the error."""
    checkup: dict[str, object] = {}
    for name, check in SECTIONS.items():
        try:
            found = check()
            if found != {}:
                checkup[name] = found
        except Exception as e:  # whatever is broken here must not hide the rest
            checkup[name] = {"error": f"{type(e).__name__}: {e}"}
    checkup["advice"] = list(_list_advice(checkup)) or ["nothing is missing"]
    return checkup


def format_checkup(checkup: Row) -> str:
    """A checkup as plain text."""
    lines: list[str] = []
    for title, section in checkup.items():
        lines += ["", title.capitalize()]
        rows = section if isinstance(section, list) else list(section.items())
        if rows and isinstance(rows[0], Mapping):
            lines += _format_table(rows)
        else:
            width = max((len(r[0]) for r in rows if isinstance(r, tuple)), default=0)
            lines += [f"  {r[0]:<{width}}  {_format_value(r[1])}" if isinstance(r, tuple) else f"  - {r}" for r in rows]
    return "\n".join(lines[1:]) + "\n"


def _check_software() -> dict[str, str]:
    import duckdb

    return {
        "sqlft": version("sqlft"),
        "DuckDB": duckdb.__version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _check_extras() -> dict[str, Row]:
    """Packages of each extra with their versions, and those that are missing."""
    extras: dict[str, list[str]] = {}
    for requirement in requires("sqlft") or []:
        name, _, marker = requirement.partition(";")
        match, extra = REQUIREMENT.match(name), EXTRA.search(marker)
        if match and extra and match.group() != "sqlft" and _applies_here(marker):
            extras.setdefault(extra.group(1), []).append(match.group())
    return {extra: _find_versions(names) for extra, names in extras.items() if extra != "all"}


def _find_versions(names: Sequence[str]) -> Row:
    installed, missing = {}, []
    for name in names:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    return {"installed": installed, "missing": missing}


def _applies_here(marker: str) -> bool:
    """Whether a requirement's marker means this machine; it does where that is not known."""
    try:
        from packaging.markers import Marker
    except ImportError:
        return True
    return any(Marker(marker.strip()).evaluate({"extra": extra}) for extra in EXTRA.findall(marker))


def _check_folders() -> dict[str, str]:
    folder = home()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return {"home": str(folder), "free disk": f"{shutil.disk_usage(existing).free / GIGA:.1f} GB"}


def _check_handlers() -> dict[str, str]:
    return {name: plugins.describe_missing_packages(name) or "ready" for name in sorted(plugins.find_entry_points())}


def _diagnose_local_handler() -> Row:
    return plugins.load_handler_class("local").diagnose()


def _diagnose_cluster() -> Row:
    """The machines of the Ray cluster that is up; nothing where Ray is not installed."""
    return dict(plugins.load_handler_class("ray").diagnose()) if find_spec("ray") else {}


SECTIONS: Mapping[str, Callable[[], Row | list[Row]]] = {
    "software": _check_software,
    "machine": lambda: dict(_diagnose_local_handler().get("machine", {})),
    "folders": _check_folders,
    "handlers": _check_handlers,
    "extras": _check_extras,
    "cluster": _diagnose_cluster,
    "bases": lambda: list(_diagnose_local_handler().get("bases", [])),
}


def _list_advice(checkup: Row) -> Iterator[str]:
    for extra, packages in checkup["extras"].items():
        if isinstance(packages, Mapping) and packages.get("missing"):
            yield f"pip install 'sqlft[{extra}]' brings {', '.join(packages['missing'])}"
    bases = checkup["bases"] if isinstance(checkup["bases"], list) else []
    if bases and not any(base["here"] for base in bases):
        fits = [base["base"] for base in bases if base["training"] not in (None, "no")]
        if fits:
            yield f"sqlft pull {fits[0]} gets a base that can be trained here"
    try:
        if shutil.disk_usage(Path.home()).free < MIN_FREE_DISK:
            yield "make room on the disk: bases and versions need some gigabytes"
    except OSError:
        pass


def _format_value(value: object) -> str:
    if isinstance(value, Mapping) and "installed" in value:
        installed = ", ".join(f"{name} {number}" for name, number in value["installed"].items())
        missing = f"; missing: {', '.join(value['missing'])}" if value["missing"] else ""
        return (installed or "nothing installed") + missing
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _format_table(rows: Sequence[Row]) -> list[str]:
    cells = [list(rows[0]), *([_format_cell(v) for v in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _format_cell(value: object) -> str:
    return "yes" if value is True else "no" if value is False or value is None else str(value)
