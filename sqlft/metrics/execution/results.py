"""When two results are the same, as Spider's test-suite evaluation judges (Zhong, Yu and Klein 2020).

The order of columns does not matter, but one order must serve all rows; duplicates count.  Python's `==` compares
values: 2 == 2.0, '2' != 2, NULL equals NULL and floats are not rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

Row = tuple[Hashable, ...]
ColumnValues = tuple[Hashable, ...]


def is_equal_result(gold: Sequence[Row], prediction: Sequence[Row], *, ordered: bool) -> bool:
    """Whether both results are the same; two empty ones are, whatever their columns."""
    if not gold or not prediction:
        return not gold and not prediction
    if len(gold) != len(prediction) or len(gold[0]) != len(prediction[0]):
        return False
    if not _has_same_bags(gold, prediction, ordered):
        return False
    given, wanted = list(zip(*gold, strict=True)), list(zip(*prediction, strict=True))
    if ordered:
        return Counter(given) == Counter(wanted)
    return Counter(gold) == Counter(prediction) or _is_permutation(given, wanted)


def _has_same_bags(gold: Sequence[Row], prediction: Sequence[Row], ordered: bool) -> bool:
    """The official evaluator's first look, kept to the letter.

    It sorts each row's values by their text and type, so a row with 3 and 3.5 differs from one with 3.0 and 3.5.
    """
    bags = [[_sort_values(row) for row in rows] for rows in (gold, prediction)]
    return bags[0] == bags[1] if ordered else set(bags[0]) == set(bags[1])


def _sort_values(row: Row) -> Row:
    return row if len(row) == 1 else tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


def _is_permutation(gold: list[ColumnValues], prediction: list[ColumnValues]) -> bool:
    """Whether some order of the prediction's columns gives the gold's bag of rows."""
    bags = [Counter(column) for column in prediction]
    fitting = [[j for j, bag in enumerate(bags) if bag == Counter(column)] for column in gold]
    order = sorted(range(len(gold)), key=lambda i: len(fitting[i]))
    rows = range(len(gold[0]))
    return _match_columns(gold, prediction, fitting, order, frozenset(), [0 for _ in rows], [0 for _ in rows])


def _match_columns(
    gold: list[ColumnValues],
    prediction: list[ColumnValues],
    fitting: list[list[int]],
    order: list[int],
    taken: frozenset[int],
    left: list[int],
    right: list[int],
) -> bool:
    """Give the next column of the gold each partner that keeps the rows so far, as numbered classes, the same bag."""
    if not order:
        return True
    column = gold[order[0]]
    numbers: dict[Hashable, int] = {}
    classes = [numbers.setdefault(pair, len(numbers)) for pair in zip(left, column, strict=True)]
    wanted, tried = Counter(classes), set()
    for j in fitting[order[0]]:
        if j in taken or prediction[j] in tried:
            continue
        tried.add(prediction[j])
        others = [numbers.get(pair, -1) for pair in zip(right, prediction[j], strict=True)]
        if Counter(others) == wanted and _match_columns(
            gold, prediction, fitting, order[1:], taken | {j}, classes, others
        ):
            return True
    return False
