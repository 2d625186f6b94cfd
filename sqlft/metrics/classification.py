"""Metrics of labels, scikit-learn's: accuracy, balanced accuracy, precision, recall, F1."""

from __future__ import annotations

from collections import Counter
from typing import TypeGuard

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.metric import Column, Metric, cast_to_texts, check_lengths, import_package, metric

AVERAGES = ("binary", "macro", "micro", "weighted")
NO_PREDICTION = "\0none"
"""The label of a missing prediction: never right, and not a class."""


def pair_labels(actual: Column, prediction: Column) -> list[tuple[object, object]]:
    """Both columns as labels, one pair per row: numbers where both columns have them, else texts."""
    check_lengths(actual, prediction)
    if _has_numbers(actual) and _has_numbers(prediction):
        return list(zip(actual.to_pylist(), prediction.to_pylist(), strict=True))
    columns = ([None if t is None else t.strip() for t in cast_to_texts(column)] for column in (actual, prediction))
    return list(zip(*columns, strict=True))


def score_classes(
    name: str,
    actual: Column,
    prediction: Column,
    average: str | None = None,
    positive: object = None,
    **fixed: object,
) -> pa.DoubleArray:
    """`sklearn.metrics.<name>` of all rows in an array of one; rows without an actual label are left out."""
    score = getattr(import_package("sklearn.metrics", name), name)
    pairs = Counter((a, p) for a, p in pair_labels(actual, prediction) if a is not None)
    if not pairs:
        return pa.array([None], pa.float64())
    # sklearn takes labels of one type
    known = sorted({str(label) for pair in pairs for label in pair if label is not None})
    labels = [[NO_PREDICTION if label is None else str(label) for label in side] for side in zip(*pairs, strict=True)]
    if name != "balanced_accuracy_score":
        fixed |= _choose_averaging(average, None if positive is None else str(positive), known, name)
    value = score(*labels, sample_weight=list(pairs.values()), **fixed)
    return pa.array([float(value)], pa.float64())


def _choose_averaging(average: str | None, positive: str | None, known: list[str], name: str) -> dict[str, object]:
    """binary where there is a positive label (given, or 1, true, yes of two), else macro over all labels."""
    if average is not None and average not in AVERAGES:
        raise OptionError(f"average is '{average}'.", f"It can be: {', '.join(AVERAGES)}.")
    if positive is None and len(known) <= 2:
        positive = next((label for label in known if label.lower() in ("1", "1.0", "true", "yes")), None)
        if positive is None and known in (["0"], ["0.0"], ["false"], ["no"]):
            positive = {"0": "1", "0.0": "1.0", "false": "true", "no": "yes"}[known[0]]
    chosen = average or ("macro" if positive is None else "binary")
    if chosen == "binary":
        if positive is None:
            raise OptionError(
                f"{name} with average = 'binary' needs to know the positive label.",
                f"Give positive = one of {', '.join(known[:5])}, or average = 'macro'.",
            )
        return {"labels": [positive], "average": "macro", "zero_division": 0}
    return {"labels": known, "average": chosen, "zero_division": 0}


def _has_numbers(column: Column) -> TypeGuard[pa.Array]:
    kind = getattr(column, "type", pa.null())
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


@metric()
def accuracy(actual: Column, prediction: Column) -> pa.DoubleArray:
    """1 where both labels are equal, else 0; numbers are compared as numbers, texts without spaces at their ends."""
    pairs = pair_labels(actual, prediction)
    return pa.array([None if a is None else float(a == p) for a, p in pairs], pa.float64())


accuracy_score = accuracy


@metric(aggregate=True)
def balanced_accuracy_score(actual: Column, prediction: Column, *, adjusted: bool = False) -> pa.DoubleArray:
    """The mean of each label's recall, 0 to 1 for all rows (scikit-learn's); `adjusted` makes chance 0."""
    return score_classes("balanced_accuracy_score", actual, prediction, adjusted=bool(adjusted))


def _define_class_metric(name: str, summary: str) -> Metric:
    def score(
        actual: Column, prediction: Column, *, average: str | None = None, positive: object = None
    ) -> pa.DoubleArray:
        return score_classes(f"{name}_score", actual, prediction, average, positive)

    score.__name__ = name
    score.__doc__ = f"""{summary}, 0 to 1 for all rows (scikit-learn's {name}_score).

    `average` is binary (of the `positive` label), macro, micro or weighted; without it binary where two labels are
    0/1, false/true or no/yes, else macro.
    """
    return metric(aggregate=True)(score)


f1 = f1_score = _define_class_metric("f1", "The harmonic mean of precision and recall")
precision = precision_score = _define_class_metric(
    "precision", "Of the rows that are given a label, the share that has it"
)
recall = recall_score = _define_class_metric("recall", "Of the rows that have a label, the share that is given it")
