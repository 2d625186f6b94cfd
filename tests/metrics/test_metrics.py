"""Each metric against values worked out by hand or by the package it stands on, and the rules that all share."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pyarrow as pa
import pytest

from sqlft.errors import DataError, NotFound, NotSupported, OptionError
from sqlft.metrics import METRICS, metric
from sqlft.metrics.metric import as_metric

TEXTS = ["exact_match", "token_f1", "rouge_l", "accuracy", "accuracy_score", "function_match"]
ERRORS = ["mean_absolute_error", "mean_squared_error", "mean_absolute_percentage_error"]


def scores(name: str, actual: Sequence[Any], prediction: Sequence[Any], **options: Any) -> list[float | None]:
    made = METRICS[name](pa.array(actual), pa.array(prediction), **options)
    assert made.type == pa.float64()
    return made.to_pylist()  # type: ignore[no-any-return]


def test_exact_match() -> None:
    assert scores("exact_match", ["a", "a", "é"], ["a", "A", "é"]) == [1, 0, 1]
    assert scores("exact_match", ["SELECT  1;", "a b", "a"], ["select 1", "ab", " A \n;"], normalise=True) == [1, 0, 1]


def test_token_f1() -> None:
    assert scores("token_f1", ["a b", "a b c", "x", "f(a)"], ["B a", "a", "y", "f ( a )"]) == [1, 0.5, 0, 1]
    assert scores("token_f1", ["a a b"], ["a"]) == [0.5]
    assert scores("token_f1", ["", "", "a"], ["", "a", ""]) == [1, 0, 0]


def test_accuracy() -> None:
    assert scores("accuracy", ["cat ", "dog", "dog"], ["cat", "Dog", None]) == [1, 0, 0]
    assert scores("accuracy_score", [1, 2, None], [1.0, 2.5, 3.0]) == [1, 0, None]


@pytest.mark.parametrize("name", TEXTS)
def test_nulls(name: str) -> None:
    if name == "rouge_l":
        pytest.importorskip("rouge_score")
    assert scores(name, ["a", None, None, "a"], [None, "a", None, "a"]) == [0, None, None, 1]
    assert scores(name, [], []) == []
    assert scores(name, [None], [None]) == [None]


@pytest.mark.parametrize("name", TEXTS)
def test_columns_of_any_kind(name: str) -> None:
    if name == "rouge_l":
        pytest.importorskip("rouge_score")
    chunked = pa.chunked_array([[1, 2], [3]])
    assert METRICS[name](actual=chunked, prediction=pa.array(["1", "2", "4"])).to_pylist() == [1, 1, 0]
    with pytest.raises(DataError):
        METRICS[name](actual=pa.array(["a"]), prediction=pa.array(["a", "b"]))
    with pytest.raises(DataError, match="CAST"):
        METRICS[name](actual=pa.array([{"a": 1}]), prediction=pa.array([{"a": 1}]))


def test_rouge_l() -> None:
    pytest.importorskip("rouge_score")
    # words in order: "the cat" of 3 and 4
    assert scores("rouge_l", ["the big cat"], ["the cat sat down"]) == pytest.approx([2 * 2 / (3 + 4)])
    assert scores("rouge_l", ["running cats"], ["run cat"], stem=True) == [1]


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    actual = ["the cat sat on the mat", "it is raining again today", "yes"]
    prediction = ["the cat sat on a mat", "It rains again today .", "yes"]
    expected = sacrebleu.corpus_bleu(prediction, [actual]).score
    assert scores("bleu", actual, prediction) == pytest.approx([expected], abs=1e-9)
    assert scores("bleu", [*actual, None], [*prediction, "x"]) == pytest.approx([expected], abs=1e-9)
    assert scores("bleu", actual, [None, "", None]) == [0]
    assert scores("bleu", [None], ["a"]) == [None]


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_classes_are_scikit_learns(name: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    expected = getattr(metrics, f"{name}_score")
    actual, prediction = [1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 1]
    assert scores(name, actual, prediction) == pytest.approx([expected(actual, prediction)])
    assert scores(name, [bool(a) for a in actual], [bool(p) for p in prediction], average="macro") == pytest.approx(
        [expected(actual, prediction, average="macro")]
    )
    words, said = ["a", "b", "c", "a", "b"], ["a", "c", "c", "b", "b"]
    for average in ("macro", "micro", "weighted"):
        assert scores(f"{name}_score", words, said, average=average) == pytest.approx(
            [expected(words, said, average=average, zero_division=0)]
        )
    assert scores(name, words, said, positive="b") == pytest.approx(
        [expected([w == "b" for w in words], [s == "b" for s in said])]
    )
    with pytest.raises(OptionError, match="positive"):
        scores(name, words, said, average="binary")
    with pytest.raises(OptionError, match="macro"):
        scores(name, words, said, average="mean")


def test_missing_predictions_are_no_class() -> None:
    pytest.importorskip("sklearn")
    assert scores("recall", ["a", "a", "b", None], ["a", None, "b", "b"]) == [0.75]
    assert scores("precision", ["a", "a", "b"], ["a", None, "b"]) == [1]
    assert scores("f1", [None], ["a"]) == [None]


def test_balanced_accuracy_score() -> None:
    balanced_accuracy_score = pytest.importorskip("sklearn.metrics").balanced_accuracy_score
    actual, prediction = ["a", "a", "a", "b", "c"], ["a", "a", "b", "b", "a"]
    assert scores("balanced_accuracy_score", actual, prediction) == [balanced_accuracy_score(actual, prediction)]
    assert scores("balanced_accuracy_score", actual, prediction, adjusted=True) == [
        balanced_accuracy_score(actual, prediction, adjusted=True)
    ]


def test_regression() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    actual, prediction = [3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0]
    for name in ERRORS:
        rows = scores(name, actual, prediction)
        assert math.fsum(r or 0 for r in rows) / 4 == pytest.approx(getattr(metrics, name)(actual, prediction))
    assert scores("root_mean_squared_error", actual, prediction) == [math.sqrt(0.375)]
    assert scores("rmse", actual, prediction) == scores("root_mean_squared_error", actual, prediction)
    assert scores("r2_score", actual, prediction) == pytest.approx([metrics.r2_score(actual, prediction)])
    assert scores("r2", [5, 5], [5, 5]) == [1]
    assert scores("r2", [5, 5], [5, 6]) == [0]
    assert scores("r2", [5], [5]) == [None]


@pytest.mark.parametrize("name", ERRORS)
def test_numbers_in_texts(name: str) -> None:
    assert scores(name, ["4", " 4.0", "4", None], ["4", "4", "four", "4"]) == [0, 0, None, None]
    with pytest.raises(DataError, match="row 2 is no number"):
        scores(name, ["4", "four"], ["4", "4"])


def test_json_match() -> None:
    actual = ['{"a": 1, "b": [1, 2]}'] * 6
    given = ['{"b": [1, 2.0], "a": 1}', '{"a": 1}', '{"a": true, "b": [1, 2]}', "no json", '```{"a": 1}```', None]
    assert scores("json_match", actual, given) == [1, 0, 0, 0, 0, 0]
    assert scores("json_match", actual, given, partial=True) == [1, 0.5, 0.5, 0, 0, 0]
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    assert scores("json_match", actual, given, schema=schema) == [1, 1, 0, 0, 0, 0]
    assert METRICS["json_match"](pa.array([{"a": 1}]), pa.array(['{"a": 1}'])).to_pylist() == [1]
    assert scores("json_match", ["null", "null"], ["null", None]) == [1, 0]
    with pytest.warns(RuntimeWarning, match="1 of 2"):
        assert scores("json_match", ["{", "1"], ["{", "1"]) == [None, 1]
    for bad in ("{", "[]", '{"type": "nothing"}'):
        with pytest.raises(OptionError):
            scores("json_match", ["1"], ["1"], schema=bad)


def test_function_match() -> None:
    gold = "inform(name[Dirt: Showdown], esrb[E 10+ (for Everyone 10 and Older)], genres[driving/racing, sport])"
    turned = "inform( genres[sport, driving/racing],esrb[E 10+ (for Everyone 10 and Older)], name[Dirt:  Showdown] ) "
    wrong = [
        gold.replace("inform", "confirm"),
        gold.replace(", sport", ""),
        gold.replace("Dirt", "dirt"),
        gold.replace("genres", "genre"),
        gold[:-1],
        f"{gold} {gold}",
        "",
    ]
    assert scores("function_match", [gold, "request()"], [turned, "request( )"]) == [1, 1]
    assert scores("function_match", [gold] * len(wrong), wrong) == [0] * len(wrong)
    assert scores("function_match", [gold] * 7, wrong, values=False) == [0, 1, 1, 0, 0, 0, 0]


def test_perplexity() -> None:
    tokens = pa.array([2, 3, 1])
    assert scores("perplexity", ["a", "b", "c"], [-1.0, -3.0, None], tokens=tokens) == pytest.approx([math.exp(4 / 5)])
    with pytest.raises(OptionError, match="EVALUATE MODEL"):
        scores("perplexity", ["a"], [-1.0])


def test_llm_judge_asks_both_ways_round() -> None:
    asked: list[str] = []

    def longer(prompts: Sequence[str]) -> list[str | None]:
        asked.extend(prompts)
        found = []
        for prompt in prompts:
            a, b = (prompt.split(f"Answer {side}:\n")[1].split("\n\n")[0] for side in "AB")
            found.append(
                None if "?" in a + b else "TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "Answer B"
            )
        return found

    given = ["longer one", "ab", "s", "?", None, "x"]
    assert scores("llm_judge", ["short", "cd", "shorter", "x", "y", None], given, judge=longer) == [
        *(1, 0.5, 0, None, 0, None)
    ]
    assert len(asked) == 8
    assert scores("llm_judge", ["x", "y"], ["b", "c"], judge=lambda p: ["a"] * len(p)) == [0.5, 0.5]
    with pytest.raises(OptionError, match="USING judge"):
        scores("llm_judge", ["x"], ["b"])


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("A", 1), ("b", 0), (" tie.", 0.5), ("**B**", 0), ("[[A]]", 1), ("Answer B", 0), ("Tie", 0.5),
        ("A careful look shows that B is the better answer.", 0),
        ("A careful look shows B is better.", 0),
        ("A close comparison: Answer A has an error. So B.", 0),
        ("Answer A is short. Answer B is long. Verdict: A", 1),
        ("Both have merits.\n\nVerdict: b", 0),
        ("A is better.", 1), ("A is correct, so the verdict is A.", 1),
        ("B is better than A.", 0), ("A is better than B", 1), ("I prefer A over B.", 1),
        ("A and B are equal.", 0.5), ("It is a tie.", 0.5), ("the better one is b", 0), ("my choice is a", 1),
        ("Neither can be judged.", None), ("A or B?", None), ("", None), ("A hard question.", None),
        ('{"verdict": "B"}', 0),
    ],
)  # fmt: skip
def test_llm_judge_reads_the_verdict_not_the_first_letter(said: str, first: float | None) -> None:
    given = scores("llm_judge", ["x"], ["y"], judge=lambda prompts: [said, "TIE"])
    assert given == [None if first is None else (1 - first + 0.5) / 2]


def test_kinds() -> None:
    assert {name for name in METRICS if METRICS[name].aggregate} == {
        *("bleu", "precision", "precision_score", "recall", "recall_score", "f1", "f1_score", "perplexity"),
        *("balanced_accuracy_score", "r2", "r2_score", "rmse", "root_mean_squared_error"),
    }
    assert {name for name in METRICS if METRICS[name].lower_is_better} == {
        *(*ERRORS, "rmse", "root_mean_squared_error", "perplexity")
    }


def test_unknown_metric() -> None:
    assert "exact_match" in METRICS
    assert "exakt_match" not in METRICS
    with pytest.raises(NotFound, match="Did you mean 'exact_match'"):
        METRICS["exakt_match"]


def test_a_plain_function_is_a_metric_of_rows() -> None:
    def found(actual: Any, prediction: Any, *, slack: int = 0) -> Any:
        return pa.array([1.0])

    made = as_metric(found, "found")
    assert (made.aggregate, made.needs, made.options, made.takes_any_option) == (False, (), {"slack"}, False)
    assert as_metric(METRICS["bleu"], "bleu") is METRICS["bleu"]


def test_a_function_of_before_the_decorator_is_told_what_to_write() -> None:
    def slow(actual: Any, prediction: Any, *, interrupted: Any = None) -> Any: ...

    slow.aggregate = True  # type: ignore[attr-defined]
    with pytest.raises(NotSupported) as refused:
        as_metric(slow, "slow")
    assert '@sqlft.metrics.metric(aggregate=True, needs=("interrupted",))' in str(refused.value.next_step)
    with pytest.raises(NotSupported, match="'seven' is no metric"):
        as_metric(7, "seven")


def test_a_metric_is_frozen_and_shows_its_documentation() -> None:
    with pytest.raises(FrozenInstanceError):
        METRICS["bleu"].aggregate = False  # type: ignore[misc]
    assert (METRICS["bleu"].__doc__ or "").startswith("Corpus BLEU")
    assert METRICS["execution_accuracy"].options >= {"database", "timeout"}
    assert "interrupted" not in METRICS["execution_accuracy"].options
    with pytest.raises(OptionError, match="asks a judge"):
        metric(aggregate=True, needs=("judge",))(print)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(NotSupported, match=r"sqlft\[evaluation\]"):
        scores("rouge_l", ["a"], ["a"])


def test_naming_metrics_imports_none() -> None:
    code = "import sys, sqlft.metrics as m; len(m.METRICS); assert not [n for n in sys.modules if 'token_f1' in n]"
    subprocess.run([sys.executable, "-c", code], check=True)
