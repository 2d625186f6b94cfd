"""Intervals and tests against scipy's and against values worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sqlft.metrics import statistics

numpy = pytest.importorskip("numpy")
scipy: Any = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 10), (0, 25), (25, 25), (713, 1000)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = scipy.binomtest(right, n).proportion_ci(0.95, "wilson")
    found = statistics.wilson_interval(right, n)
    assert found[:2] == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert statistics.mean_interval([1.0] * right + [0.0] * (n - right)) == found


def test_bootstrap() -> None:
    dice = random.Random(3)
    scores = [dice.random() for _ in range(200)]
    found = statistics.mean_interval(scores)
    assert found.interval == "bootstrap"
    assert statistics.mean_interval(scores) == found
    assert statistics.mean_interval(scores, seed=1) != found
    expected = scipy.bootstrap((scores,), numpy.mean, method="percentile", n_resamples=20_000, vectorized=True)
    low, high = expected.confidence_interval
    assert found[:2] == pytest.approx((low, high), abs=0.004)
    assert statistics.mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, "bootstrap")
    assert statistics.mean_interval([0.5]) == (None, None, None)
    assert statistics.mean_interval([]) == (None, None, None)


def test_bootstrap_of_all_rows() -> None:
    values = numpy.random.default_rng(5).normal(3, 1, 100)
    found = statistics.bootstrap_all(lambda rows: float(values[rows].mean()), 100)
    assert found[:2] == pytest.approx(statistics.bootstrap_mean(list(values))[:2], abs=0.05)
    assert statistics.bootstrap_all(lambda rows: None, 100) == (None, None, None)


def test_mcnemar() -> None:
    first: list[float | None] = [1] * 5 + [0] * 15 + [1] * 10 + [None, 1]
    second: list[float | None] = [0] * 5 + [1] * 15 + [1] * 10 + [1, None]
    found = statistics.compare_paired(first, second)
    assert found.test == "mcnemar"
    assert found.difference == pytest.approx(10 / 30)
    assert (found.wins, found.ties, found.losses) == (15, 10, 5)
    assert found.p_value == pytest.approx(scipy.binomtest(5, 20).pvalue)
    assert found.difference_low is not None
    assert found.difference_high is not None
    assert 0 < found.difference_low < 10 / 30 < found.difference_high
    assert statistics.compare_paired([1, 0], [1, 0]).p_value == 1


def test_permutation() -> None:
    dice = random.Random(4)
    first: list[float | None] = [dice.random() for _ in range(40)]
    second: list[float | None] = [a + dice.gauss(0.1, 0.2) for a in first if a is not None]
    found = statistics.compare_paired(first, second)
    gains = [b - a for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    assert found.test == "permutation"
    assert found.difference == pytest.approx(sum(gains) / 40)
    assert found.p_value == pytest.approx(scipy.ttest_1samp(gains, 0).pvalue, abs=0.02)
    assert statistics.compare_paired(first, second) == found
    # 2 of the 8 ways to give three differences of one direction their signs are as far off
    assert statistics.compare_paired([0.1, 0.2, 0.3], [0.2, 0.4, 0.35]).p_value == 0.25


def test_lower_can_be_better() -> None:
    found = statistics.compare_paired([3.0, 1.0, 2.0], [1.0, 2.0, 2.0], lower_is_better=True)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert found.difference == pytest.approx(-1 / 3)


def test_what_differs_by_rounding_alone_is_a_tie() -> None:
    found = statistics.compare_paired([0.3] * 6, [0.1 + 0.2] * 6)
    assert (found.difference, found.p_value, found.wins, found.ties) == (0, 1, 0, 6)


def test_nothing_to_compare() -> None:
    assert statistics.compare_paired([None], [1.0]) == statistics.NO_COMPARISON
    one = statistics.compare_paired([0.25], [0.5])
    assert (one.difference, one.difference_low, one.p_value, one.wins) == (0.25, None, None, 1)


def test_values_of_all_rows() -> None:
    values = numpy.random.default_rng(6).normal([[0.0], [0.4]], 1, (2, 60))

    def difference(rows: Any, swapped: Any) -> float:
        a, b = numpy.where(swapped, values[::-1], values)[:, rows]
        return float(b.mean() - a.mean())

    found = statistics.compare_aggregates(difference, 60)
    expected = statistics.compare_paired(list(values[0]), list(values[1]))
    assert found.difference == pytest.approx(expected.difference)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.04)
    assert (found.wins, found.test) == (None, "permutation")
