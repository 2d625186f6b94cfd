"""Each metric against values worked out by hand, and the rule of NULLs for all of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

from sqlft.errors import DataError, NotFound
from sqlft.metrics import METRICS


def scores(name: str, actual: list[Any], prediction: list[Any], **options: Any) -> list[float | None]:
    made = METRICS[name](actual=pa.array(actual), prediction=pa.array(prediction), **options)
    assert made.type == pa.float64()
    return made.to_pylist()  # type: ignore[no-any-return]


def test_exact_match() -> None:
    assert scores("exact_match", ["a", "a", "é"], ["a", "A", "é"]) == [1, 0, 1]
    assert scores("exact_match", ["SELECT  1;", "a b", "a"], ["select 1", "ab", " A \n;"], normalise=True) == [1, 0, 1]


def test_token_f1() -> None:
    assert scores("token_f1", ["a b", "a b c", "x", "f(a)"], ["B a", "a", "y", "f ( a )"]) == [1, 0.5, 0, 1]
    assert scores("token_f1", ["a a b"], ["a"]) == [0.5]
    assert scores("token_f1", ["", "", "a"], ["", "a", ""]) == [1, 0, 0]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_nulls(name: str) -> None:
    assert scores(name, ["a", None, None, "a"], [None, "a", None, "a"]) == [0, None, None, 1]
    assert scores(name, [], []) == []
    assert scores(name, [None], [None]) == [None]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_columns_of_any_kind(name: str) -> None:
    chunked = pa.chunked_array([[1, 2], [3]])
    assert METRICS[name](actual=chunked, prediction=pa.array(["1", "2", "4"])).to_pylist() == [1, 1, 0]
    with pytest.raises(DataError):
        METRICS[name](actual=pa.array(["a"]), prediction=pa.array(["a", "b"]))
    with pytest.raises(DataError, match="CAST"):
        METRICS[name](actual=pa.array([{"a": 1}]), prediction=pa.array([{"a": 1}]))


def test_unknown_metric() -> None:
    assert "exact_match" in METRICS
    assert "exakt_match" not in METRICS
    with pytest.raises(NotFound, match="Did you mean 'exact_match'"):
        METRICS["exakt_match"]


def test_naming_metrics_imports_none() -> None:
    code = "import sys, sqlft.metrics as m; len(m.METRICS); assert not [n for n in sys.modules if 'token_f1' in n]"
    subprocess.run([sys.executable, "-c", code], check=True)
