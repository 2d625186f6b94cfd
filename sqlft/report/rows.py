"""The rows of a model's newest evaluations, grouped by outcome: `facts` calls this, the page shows and filters them.

In come rows of sqlft.evaluations and sqlft.evaluation_rows; out comes a JudgedRows for each column of right answers.
Of many rows a sample is kept, the counts are of all.  Not covered: earlier evaluations, and rows of other models.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlft._types import Row
from sqlft.metrics import METRICS

SHARES = ("exact_match", "accuracy", "accuracy_score", "execution_accuracy", "function_match", "json_match")
"""Metrics that count right answers."""
KEPT = 100
"""Rows of one outcome that the page shows."""
LONGEST = 4000
"""Letters of a text that are shown."""
RIGHT = 1 - 1e-9
"""The least score of an answer that is right."""
EvaluationKey = tuple[str, str, str, str]
"""The column of right answers, the metric, the digest of the rows, the options."""


@dataclass(frozen=True)
class Answer:
    """One version's answer to a row of an evaluation."""

    version: int
    prediction: str | None
    score: float | None
    error: str | None


@dataclass(frozen=True)
class JudgedRow:
    """A row, and what each version answered."""

    outcome: str
    number: int
    inputs: list[tuple[str, str]]
    actual: str | None
    answers: list[Answer]
    best: frozenset[int]
    """The versions that answer best, where they do not all answer as well."""


@dataclass(frozen=True)
class JudgedRows:
    """The rows of one evaluation by one metric: `now` is the version shown, `before` the one it is compared with."""

    metric: str
    now: int
    before: int | None
    names: Mapping[str, str]
    """How each outcome is called, the most important first."""
    counts: Mapping[str, int]
    differing: int
    """Rows that versions answer differently."""
    rows: list[JudgedRow]

    @property
    def count(self) -> int:
        """All rows."""
        return sum(self.counts.values())


def is_lower_better(metric: str) -> bool:
    """Whether a metric, with the column of answers in its name or without, measures errors."""
    try:
        return METRICS[base_name(metric)].lower_is_better
    except Exception:  # of a package that is not installed here
        return False


def base_name(metric: str) -> str:
    """The metric without the column of right answers.

    >>> base_name("exact_match of city")
    'exact_match'
    """
    return metric.partition(" of ")[0]


def judge_rows(evaluations: Sequence[Row], rows: Iterable[Row], active: int | None) -> list[JudgedRows]:
    """For each column of right answers its newest evaluation, by its most important metric."""
    grouped: dict[EvaluationKey, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["score"] is not None:
            grouped[_key(row)][row["row_number"]].append(row)
    newest = sorted((e for e in evaluations if _key(e) in grouped), key=lambda e: e["created_at"], reverse=True)
    judged = []
    for answer in dict.fromkeys(e["answer"] for e in reversed(newest)):
        of_answer = [e for e in newest if e["answer"] == answer]
        same_data = [e for e in of_answer if e["data_digest"] == of_answer[0]["data_digest"]]
        key = _key(min(same_data, key=lambda e: _rank(e["metric"])))
        judged.append(_judge_evaluation([e for e in same_data if _key(e) == key], grouped[key], active))
    return judged


def _key(row: Row) -> EvaluationKey:
    return row["answer"], row["metric"], row["data_digest"], row["options"]


def _rank(metric: str) -> int:
    base = base_name(metric)
    return SHARES.index(base) if base in SHARES else len(SHARES)


def _judge_evaluation(evaluations: Sequence[Row], rows: Mapping[int, Sequence[Row]], active: int | None) -> JudgedRows:
    by_version = {e["version"]: e for e in reversed(evaluations)}
    chosen = choose_evaluation(list(by_version.values()), active)
    now, before = chosen["version"], _find_baseline(chosen, by_version)
    lower = is_lower_better(chosen["metric"])
    names = _name_outcomes(lower, before)
    judged = []
    for number in sorted(rows):
        scores = {r["version"]: r["score"] for r in rows[number]}
        if now in scores and (before is None or before in scores):
            outcome = _compare_scores(scores[now], None if before is None else scores[before], lower)
            judged.append(_build_row(outcome, rows[number], lower))
    counts = Counter(row.outcome for row in judged)
    kept = [row for outcome in names for row in [r for r in judged if r.outcome == outcome][:KEPT]]
    differing = sum(len({r["prediction"] for r in rows[row.number]}) > 1 for row in judged)
    return JudgedRows(chosen["metric"], now, before, names, {k: counts[k] for k in names}, differing, kept)


def choose_evaluation(evaluations: Sequence[Row], active: int | None) -> Row:
    """The evaluation of the active version if it was compared, else the newest comparison, else the newest version."""
    compared = [e for e in evaluations if e.get("baseline") and e.get("difference") is not None] or evaluations
    return max(compared, key=lambda e: (e["version"] == active, e["version"]))


def _find_baseline(chosen: Row, by_version: Mapping[int, Row]) -> int | None:
    """The version that it was compared with, if that is of the same model; else the first of the others."""
    name, _, number = str(chosen.get("baseline") or "").rpartition(".")
    if number.isdigit() and int(number) in by_version and name.rpartition(".")[2].lower() == chosen["model"].lower():
        return int(number)
    return min((v for v in by_version if v != chosen["version"]), default=None)


def _name_outcomes(lower_is_better: bool, before: int | None) -> dict[str, str]:
    if before is None:
        return {"still": "wrong", "right": "right"}
    worse, still, better = (
        ("worse", "as far off", "better") if lower_is_better else ("newly wrong", "still wrong", "newly right")
    )
    return {"worse": worse, "still": still, "better": better, "right": "right before and now"}


def _compare_scores(now: float, before: float | None, lower_is_better: bool) -> str:
    """worse, still, better or right.

    >>> _compare_scores(1.0, 0.0, False), _compare_scores(0.2, 0.1, True), _compare_scores(0.0, None, False)
    ('better', 'worse', 'still')
    """
    is_right = now <= 0 if lower_is_better else now >= RIGHT
    if before is not None:
        if now < before if lower_is_better else is_right and before < RIGHT:
            return "better"
        if now > before if lower_is_better else before >= RIGHT and not is_right:
            return "worse"
    return "right" if is_right else "still"


def _build_row(outcome: str, rows: Sequence[Row], lower_is_better: bool) -> JudgedRow:
    first = rows[0]
    answers = [Answer(r["version"], shorten(r["prediction"]), r["score"], shorten(r["error"])) for r in rows]
    answers.sort(key=lambda a: a.version)
    scores = {a.version: a.score for a in answers if a.score is not None}
    top = min(scores.values()) if lower_is_better else max(scores.values())
    best = {version for version, score in scores.items() if score == top}
    differ = len(set(scores.values())) > 1
    actual = shorten(first["actual"])
    return JudgedRow(
        outcome, first["row_number"], _parse_inputs(first["input"]), actual, answers, frozenset(best if differ else ())
    )


def _parse_inputs(text: str | None) -> list[tuple[str, str]]:
    try:
        inputs = json.loads(text or "")
    except ValueError:
        inputs = text
    if isinstance(inputs, dict):
        return [(str(k), shorten(str(v)) or "") for k, v in inputs.items()]
    return [("", shorten(str(inputs)) or "")] if inputs not in (None, "") else []


def shorten(text: str | None) -> str | None:
    """A text no longer than the page can hold."""
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"
