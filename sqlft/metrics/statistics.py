"""How sure a score is, and whether two versions differ: 95 % intervals and paired tests, the same at every run.

- Scores that are all 0 or 1: Wilson's interval (Wilson 1927) with z = 1.959964.
- Other scores of rows: the percentile bootstrap of their mean, 10,000 resamples by numpy's default_rng(seed).
- Values of all rows together: the percentile bootstrap over rows, 1,000 resamples.
- Two versions on the same rows: the difference of means with its percentile bootstrap over rows; for scores of 0 and 1
  McNemar's exact test (McNemar 1947), two-sided: the binomial test of the rows where they differ; for other scores
  scipy's paired permutation test of the mean difference, two-sided: exact for up to 13 rows, else 9,999 permutations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from sqlft.metrics.metric import import_package

if TYPE_CHECKING:
    from numpy import bool_, float64, int64
    from numpy.typing import NDArray

Z = 1.959963984540054
RESAMPLES = 10_000
AGGREGATE_RESAMPLES = 1_000
PERMUTATIONS = 9_999
MAX_DRAWN_NUMBERS = 4_000_000
"""Numbers that are drawn at once."""


class ConfidenceInterval(NamedTuple):
    """95 % of the values that would be seen, None of less than two rows; wilson or bootstrap."""

    low: float | None
    high: float | None
    interval: str | None


class PairedComparison(NamedTuple):
    """The second of two versions against the first on the same rows; wins are rows where the second is better."""

    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    test: str | None
    wins: int | None
    ties: int | None
    losses: int | None


SCORE_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),
    ]
)
"""The columns that show a score with its interval."""
COMPARISON_SCHEMA = pa.schema(
    [
        ("baseline", pa.string()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p_value", pa.float64()),
        ("test", pa.string()),
        ("wins", pa.int64()),
        ("ties", pa.int64()),
        ("losses", pa.int64()),
    ]
)
"""Those that show a PairedComparison, behind what it is a comparison with."""
NO_INTERVAL = ConfidenceInterval(None, None, None)
NO_COMPARISON = PairedComparison(None, None, None, None, None, None, None, None)


def mean(scores: Sequence[float]) -> float | None:
    """The mean, None of no rows."""
    return math.fsum(scores) / len(scores) if scores else None


def mean_interval(scores: Sequence[float], seed: int = 0) -> ConfidenceInterval:
    """The 95 % interval of the mean of rows' scores."""
    if not scores:
        return NO_INTERVAL
    if is_binary(scores):
        return wilson_interval(round(math.fsum(scores)), len(scores))
    return bootstrap_mean(scores, seed)


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(score in (0, 1) for score in scores)


def wilson_interval(right: int, n: int) -> ConfidenceInterval:
    """Wilson's score interval of `right` of `n`."""
    share, square = right / n, Z * Z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return ConfidenceInterval(0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half, "wilson")


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> ConfidenceInterval:
    """The percentile bootstrap of the mean; None of a single row."""
    if len(values) < 2:
        return NO_INTERVAL
    numpy = import_package("numpy", "An interval of scores that are not all 0 or 1")
    rng, known = numpy.random.default_rng(seed), numpy.asarray(values, dtype=float)
    at_once = max(1, MAX_DRAWN_NUMBERS // len(values))
    means = [
        known[rng.integers(0, len(values), (min(at_once, RESAMPLES - start), len(values)))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    return _percentile_interval(numpy.concatenate(means))


def bootstrap_all(value: Callable[[NDArray[int64]], float | None], n: int, seed: int = 0) -> ConfidenceInterval:
    """The percentile bootstrap of a value of all rows: `value` of an array of row numbers; None where it has none."""
    if n < 2:
        return NO_INTERVAL
    numpy = import_package("numpy", "An interval")
    rng = numpy.random.default_rng(seed)
    values = [v for _ in range(AGGREGATE_RESAMPLES) if (v := value(rng.integers(0, n, n))) is not None]
    return _percentile_interval(values) if values else NO_INTERVAL


def _percentile_interval(values: Sequence[float] | NDArray[float64]) -> ConfidenceInterval:
    low, high = import_package("numpy", "An interval").percentile(values, [2.5, 97.5])
    return ConfidenceInterval(float(low), float(high), "bootstrap")


def compare_paired(
    first: Sequence[float | None], second: Sequence[float | None], seed: int = 0, *, lower_is_better: bool = False
) -> PairedComparison:
    """Rows' scores of two versions; rows that either has no score of are left out."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return NO_COMPARISON
    gains = [0.0 if math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) else b - a for a, b in pairs]
    more, less = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    wins, losses = (less, more) if lower_is_better else (more, less)
    low, high, _ = bootstrap_mean(gains, seed)
    binary = is_binary([score for pair in pairs for score in pair])
    p_value = mcnemar_test(more, less) if binary else permutation_test(gains, seed)
    test = "mcnemar" if binary else "permutation"
    return PairedComparison(mean(gains), low, high, p_value, test, wins, len(gains) - more - less, losses)


def mcnemar_test(first_only: int, second_only: int) -> float:
    """The two-sided exact p-value, from the numbers of rows that only one version has right."""
    if first_only + second_only == 0:
        return 1.0
    return float(
        import_package("scipy.stats", "McNemar's test").binomtest(first_only, first_only + second_only, 0.5).pvalue
    )


def permutation_test(gains: Sequence[float], seed: int = 0) -> float | None:
    """The two-sided p-value of a mean difference of 0, by swapping versions row by row; None of a single row."""
    if not any(gains):
        return 1.0
    if len(gains) < 2:
        return None
    numpy, stats = import_package("numpy", "A permutation test"), import_package("scipy.stats", "A permutation test")
    result = stats.permutation_test(
        (numpy.asarray(gains, dtype=float),),
        numpy.mean,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        batch=max(1, MAX_DRAWN_NUMBERS // len(gains)),
        random_state=numpy.random.default_rng(seed),
    )
    return float(result.pvalue)


def compare_aggregates(
    value: Callable[[NDArray[int64], NDArray[bool_]], float | None], n: int, seed: int = 0
) -> PairedComparison:
    """Two versions by a value of all rows.

    `value(rows, swapped)` is the second's minus the first's value on an array of row numbers, the versions swapped
    where `swapped` is true.  The p-value is that of 999 random swaps (Phipson and Smyth 2010).
    """
    numpy = import_package("numpy", "A comparison")
    rows, unswapped = numpy.arange(n), numpy.zeros(n, dtype=bool)
    difference = value(rows, unswapped)
    if difference is None:
        return NO_COMPARISON
    low, high, _ = bootstrap_all(lambda chosen: value(chosen, unswapped), n, seed)
    rng = numpy.random.default_rng(seed)
    swapped = [v for _ in range(999) if (v := value(rows, rng.random(n) < 0.5)) is not None]
    as_far = sum(abs(v) >= abs(difference) - 1e-12 for v in swapped)
    p_value = (1 + as_far) / (1 + len(swapped))
    return PairedComparison(difference, low, high, p_value, "permutation", None, None, None)


def is_beyond_chance(low: float | None, high: float | None, p_value: float | None) -> bool:
    """Whether a difference is more than chance: its 95 % interval excludes 0, and the test does not object.

    >>> is_beyond_chance(0.1, 0.3, 0.01), is_beyond_chance(-0.1, 0.3, 0.2), is_beyond_chance(None, None, None)
    (True, False, False)
    """
    return low is not None and high is not None and low * high > 0 and (p_value is None or p_value < 0.05)


def require_packages() -> None:
    """NotSupported before anything is asked, if what comparing needs is not installed."""
    for module in ("numpy", "scipy.stats"):
        import_package(module, "Comparing versions")
