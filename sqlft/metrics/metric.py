"""What all metrics share: the decorator `@metric`, pairs of values, the rule of NULLs, options as columns.

`sqlft.evaluation` reads the `Metric` to know how to call it and what its value means.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from os import PathLike
from types import ModuleType
from typing import Literal, TypeAlias

import pyarrow as pa

from sqlft.errors import DataError, NotSupported, OptionError

Column: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[object]"
"""What a metric scores: an Arrow column, or what Arrow makes one of."""
TextPairs = list[tuple[str | None, str | None]]
Need = Literal["judge", "tokens", "interrupted"]
"""An argument that EVALUATE passes, which no statement can name.

judge: a function from prompts to answers, of the model that USING judge names.  tokens: the number of tokens of each
actual answer, the prediction then being the logarithm of its probability.  interrupted: a function that returns true
when to stop with `sqlft.Cancelled`.
"""


@dataclass(frozen=True)
class Metric:
    """A function of `actual`, `prediction` and options that returns a score for each row, and what it needs.

    >>> @metric(lower_is_better=True)
    ... def typos(actual, prediction, *, most: int = 9):
    ...     return pa.array([0.0] * len(actual))
    >>> typos(["a"], ["a"]).to_pylist(), typos.lower_is_better, sorted(typos.options)
    ([0.0], True, ['most'])
    """

    function: Callable[..., pa.Array]
    aggregate: bool = False
    """Whether it has one value for all rows together, in an array of one."""
    lower_is_better: bool = False
    """Whether it measures errors."""
    columns: tuple[str, ...] = ()
    """Options that are columns of the rows, where the rows have columns of these names."""
    needs: tuple[Need, ...] = ()
    """Arguments that EVALUATE passes, not options."""
    counted: Callable[..., pa.Array] | None = None
    """Of an aggregate: a metric of rows; only those it has a score for are counted."""

    def __post_init__(self) -> None:
        if self.aggregate and "judge" in self.needs:
            raise OptionError(
                f"The metric {self.name} asks a judge and has one value for all rows.",
                "Give a score for each row, without aggregate: their mean is shown.",
            )
        self.__dict__.update(__doc__=self.function.__doc__, __name__=self.name)

    def __call__(self, actual: Column, prediction: Column, **options: object) -> pa.Array:
        return self.function(actual=actual, prediction=prediction, **options)

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    @cached_property
    def options(self) -> frozenset[str]:
        """Names of the options that a statement may give."""
        known = {name for name, p in self._parameters.items() if p.kind != inspect.Parameter.VAR_KEYWORD}
        return frozenset(known - {"actual", "prediction", *self.needs})

    @property
    def takes_any_option(self) -> bool:
        """Whether it is a function of ``**options``."""
        return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.function).parameters)


def metric(
    *,
    aggregate: bool = False,
    lower_is_better: bool = False,
    columns: tuple[str, ...] = (),
    needs: tuple[Need, ...] = (),
    counted: Callable[..., pa.Array] | None = None,
) -> Callable[[Callable[..., pa.Array]], Metric]:
    """Make a function a `Metric`; its fields document the arguments."""
    return partial(
        Metric,
        aggregate=aggregate,
        lower_is_better=lower_is_better,
        columns=columns,
        needs=needs,
        counted=counted,
    )


def as_metric(value: object, name: str) -> Metric:
    """An entry point's Metric, or its plain function, which scores rows; NotSupported says what to write."""
    if isinstance(value, Metric):
        return value
    if not callable(value) or isinstance(value, type):
        raise NotSupported(
            f"The entry point '{name}' is no metric.", "Let it be a function under @sqlft.metrics.metric()."
        )
    arguments = [f"{name}={getattr(value, name)!r}" for name in _OLD_ATTRIBUTES if hasattr(value, name)]
    arguments += ['needs=("interrupted",)'] if "interrupted" in inspect.signature(value).parameters else []
    if arguments:
        raise NotSupported(
            f"The metric '{name}' does not say what it is in a way that sqlft reads.",
            f"Write @sqlft.metrics.metric({', '.join(arguments)}) above the function.",
        )
    return Metric(value)


_OLD_ATTRIBUTES = ("aggregate", "lower_is_better", "columns")
"""Attributes of functions that were read before the decorator was."""


def import_package(module: str, metric: str) -> ModuleType:
    """An optional package's module; NotSupported says what to install."""
    try:
        return import_module(module)
    except ImportError as e:
        raise NotSupported(
            f"{metric} needs the package {module.partition('.')[0]}, which is not installed ({e}).",
            "Run: pip install 'sqlft[evaluation]'",
        ) from e


def score_rows(actual: Column, prediction: Column, score: Callable[[str, str], float]) -> pa.DoubleArray:
    """`score` of each pair: NULL without an actual value, 0 without a prediction.

    >>> score_rows(["a", None, "c"], ["A", "b", None], lambda a, p: float(a == p.lower())).to_pylist()
    [1.0, None, 0.0]
    """
    pairs = pair_texts(actual, prediction)
    return pa.array([None if a is None else 0.0 if p is None else score(a, p) for a, p in pairs], pa.float64())


def pair_texts(actual: Column, prediction: Column) -> TextPairs:
    """Both columns as texts, one pair per row; DataError if they are not of one length."""
    check_lengths(actual, prediction)
    return list(zip(cast_to_texts(actual), cast_to_texts(prediction), strict=True))


def check_lengths(actual: Column, prediction: Column) -> None:
    """DataError if the columns are not of one length."""
    if len(actual) != len(prediction):
        raise DataError(
            f"There are {len(actual):,} actual values and {len(prediction):,} predictions.", "Give one of each a row."
        )


def cast_to_texts(values: Column) -> list[str | None]:
    """Any column as texts; numbers that Arrow writes alike compare as equal texts."""
    kind = "mixed kinds"
    try:
        values = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
        kind = f"the type {values.type}"
        return list(values.cast(pa.large_string()).to_pylist())
    except (pa.ArrowException, ValueError) as e:
        raise DataError(f"Values of {kind} cannot be compared as text: {e}", "CAST them AS VARCHAR.") from e


def expand_option(option: Column | PathLike[str] | None, count: int, name: str) -> list[str | None]:
    """One text per row, from an option that is one text for all rows, or a column of them."""
    if isinstance(option, (str, PathLike)):
        return [str(option)] * count
    if isinstance(option, (list, tuple)):
        option = [str(value) if isinstance(value, PathLike) else value for value in option]
    texts = cast_to_texts(() if option is None else option)
    if len(texts) != count:
        raise DataError(f"{name} has {len(texts):,} values for {count:,} rows.", "Give one for all, or one a row.")
    return texts
