"""Spider's evaluation of queries: what it changes in their texts before it runs them, and which results are the same.

Results are judged as its test-suite evaluation does (Zhong, Yu and Klein 2020).  The order of columns does not matter,
but one order must serve all rows; duplicates count.  Python's `==` compares values: 2 == 2.0, '2' != 2, NULL equals
NULL and floats are not rounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<string>'(?:[^']|'')*'?)
    |(?P<quoted>"(?:[^"]|"")*"?|`[^`]*`?|\[[^\]]*\]?)
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|\|\||.)""",
    re.S | re.X,
)
CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.I)
READING_WORDS = {"select", "with", "values"}
SPLIT_SIGNS = (("> =", ">="), ("< =", "<="), ("! =", "!="))


def tokenize(query: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token, spaces and comments included."""
    return ((m.lastgroup or "sign", m.group()) for m in TOKEN.finditer(query))


def is_reading(query: str) -> bool:
    """Whether a SQLite query begins with a word that reads: no comment alone, no empty statement before another."""
    for match in TOKEN.finditer(query.removeprefix("\ufeff")):
        if match.lastgroup != "space":
            return match.group().lower() in READING_WORDS
    return False


def repair_query(query: str) -> str:
    """Signs that were split put together, and MySQL's current year as 2020: the year the data was made in."""
    for split, whole in SPLIT_SIGNS:
        query = query.replace(split, whole)
    return CURRENT_YEAR.sub("2020", query)


def remove_distinct(query: str, *, only_select: bool = False) -> str:
    """The query without the word DISTINCT; `only_select` leaves DISTINCT ON and IS DISTINCT FROM as they are."""
    if "distinct" not in query.lower():
        return query
    tokens = list(tokenize(query))
    kept = []
    for i, (kind, text) in enumerate(tokens):
        following = next((after.lower() for k, after in tokens[i + 1 :] if k != "space"), "")
        is_operator = only_select and following in ("on", "from")
        if kind != "word" or text.lower() != "distinct" or is_operator:
            kept.append(text)
    return "".join(kept)


def is_ordered(gold: str) -> bool:
    """Whether the order of rows counts: `order by` is anywhere in the gold, as in the official evaluator."""
    return "order by" in gold.lower()


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
    gold_columns, columns = list(zip(*gold, strict=True)), list(zip(*prediction, strict=True))
    if ordered:
        return Counter(gold_columns) == Counter(columns)
    return Counter(gold) == Counter(prediction) or _is_permutation(gold_columns, columns)


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
    rows = len(gold[0])
    return _match_columns(gold, prediction, fitting, order, frozenset(), [0] * rows, [0] * rows)


def _match_columns(
    gold: list[ColumnValues],
    prediction: list[ColumnValues],
    fitting: list[list[int]],
    order: list[int],
    taken: frozenset[int],
    left: list[int],
    right: list[int],
) -> bool:
    """Try each partner of the gold's next column that keeps the rows so far, as numbered classes, the same bag."""
    if not order:
        return True
    column = gold[order[0]]
    numbers: dict[Hashable, int] = {}
    classes = [numbers.setdefault(pair, len(numbers)) for pair in zip(left, column, strict=True)]
    bag, tried = Counter(classes), set()
    for j in fitting[order[0]]:
        if j in taken or prediction[j] in tried:
            continue
        tried.add(prediction[j])
        others = [numbers.get(pair, -1) for pair in zip(right, prediction[j], strict=True)]
        if Counter(others) == bag and _match_columns(
            gold, prediction, fitting, order[1:], taken | {j}, classes, others
        ):
            return True
    return False
