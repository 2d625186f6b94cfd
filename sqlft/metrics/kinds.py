"""What a metric says of itself, and the packages that some need."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from sqlft.errors import NotSupported

Function = TypeVar("Function", bound=Callable[..., Any])


def aggregate(metric: Function) -> Function:
    """Marks a metric that gives one value for all rows together, in an array of one."""
    setattr(metric, "aggregate", True)  # noqa: B010  # a function has no such attribute of its own
    return metric


def lower_is_better(metric: Function) -> Function:
    """Marks a metric whose best value is the lowest."""
    setattr(metric, "lower_is_better", True)  # noqa: B010
    return metric


def columns(*names: str) -> Callable[[Function], Function]:
    """Marks options that are columns of the rows, if the rows have columns of these names."""

    def mark(metric: Function) -> Function:
        setattr(metric, "columns", names)  # noqa: B010
        return metric

    return mark


def counted(rows: Callable[..., Any]) -> Callable[[Function], Function]:
    """Marks an aggregate metric that counts only the rows which this metric of rows has a score for."""

    def mark(metric: Function) -> Function:
        setattr(metric, "counted", rows)  # noqa: B010
        return metric

    return mark


def is_aggregate(metric: Any) -> bool:
    """Whether a metric gives one value for all rows."""
    return bool(getattr(metric, "aggregate", False))


def is_lower_better(metric: Any) -> bool:
    """Whether a metric's best value is the lowest."""
    return bool(getattr(metric, "lower_is_better", False))


def package(module: str, metric: str) -> Any:
    """An optional package's module; NotSupported says what to install."""
    try:
        return import_module(module)
    except ImportError as e:
        raise NotSupported(
            f"{metric} needs the package {module.partition('.')[0]}, which is not installed ({e}).",
            "Run: pip install 'sqlft[evaluation]'",
        ) from e
