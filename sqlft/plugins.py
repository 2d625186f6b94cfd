"""Handlers and metrics by entry point: their names without importing any, and exactly one loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from sqlft.errors import HandlerNotInstalled, did_you_mean
from sqlft.handler import Handler

HANDLERS = "sqlft.handlers"


@cache
def found(group: str = HANDLERS) -> Mapping[str, EntryPoint]:
    """Entry points of a group by name; nothing is imported."""
    return MappingProxyType({e.name: e for e in entry_points(group=group)})


def package_of(name: str) -> str:
    """``"package version"`` that ships a handler, or ''."""
    dist = found()[name].dist if name in found() else None
    return f"{dist.name} {dist.version}" if dist else ""


def entry_of(name: str) -> EntryPoint | None:
    """The handler's entry point; looks again for one that was installed since the first look."""
    for _ in range(2):
        for known in (name, name.lower()):
            if known in found():
                return found()[known]
        found.cache_clear()
    return None


def handler_class(name: str) -> type[Handler]:
    """Load the handler called `name`; HandlerNotInstalled if there is none or its imports fail."""
    entry = entry_of(name)
    if entry is None:
        raise HandlerNotInstalled(
            f"There is no handler '{name}'.{did_you_mean(name, found())}",
            "SHOW HANDLERS lists those that are installed; pip install adds others.",
        )
    try:
        loaded = entry.load()
    except ImportError as e:
        raise not_installed(name, e) from e
    except Exception as e:
        raise HandlerNotInstalled(
            f"The handler '{name}' could not be loaded: {type(e).__name__}: {e}", "Reinstall the package that ships it."
        ) from e
    if not (isinstance(loaded, type) and issubclass(loaded, Handler)):
        raise HandlerNotInstalled(
            f"The entry point '{name}' is no Handler class.",
            f"Let {entry.value} be a subclass of sqlft.handler.Handler.",
        )
    return loaded


def not_installed(name: str, error: ImportError) -> HandlerNotInstalled:
    """The error for an import that failed in a handler, then or later, with what to install."""
    entry = entry_of(name)
    extra = entry.extras[0] if entry and entry.extras else name
    owner = entry.dist.name if entry and entry.dist else "sqlft"
    return HandlerNotInstalled(
        f"The handler '{name}' needs a package that is not installed ({error}).", f"Run: pip install '{owner}[{extra}]'"
    )
