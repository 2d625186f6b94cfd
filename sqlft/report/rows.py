"""The rows of a model's newest evaluations, by what became of each: `facts` asks, the page shows and filters them.

In come rows of sqlft.evaluations and sqlft.evaluation_rows; out comes a Judged for each column of right answers.  Of
many rows a sample is kept, the counts are of all.  Not covered: earlier evaluations, and rows of other models.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlft.metrics import METRICS

SHARES = ("exact_match", "accuracy", "accuracy_score", "execution_accuracy", "function_match", "json_match")
"""Metrics that count right answers."""
KEPT = 100
"""Rows of a kind that stand in the page."""
LONGEST = 4000
"""Letters of a text that are shown."""
WHOLE = 1 - 1e-9
"""The score of an answer that is right."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What one version answered to a row of an evaluation."""

    version: int
    prediction: str | None
    score: float | None
    error: str | None


@dataclass(frozen=True)
class JudgedRow:
    """A row, and what each version answered."""

    kind: str
    number: int
    inputs: list[tuple[str, str]]
    actual: str | None
    answers: list[Answer]

    @property
    def best(self) -> frozenset[int]:
        """The versions that answer best, where they do not all answer as well."""
        scores = {a.version: a.score for a in self.answers if a.score is not None}
        if len(set(scores.values())) < 2:
            return frozenset()
        top = min(scores.values()) if self._fewer_is_better else max(scores.values())
        return frozenset(version for version, score in scores.items() if score == top)

    _fewer_is_better: bool = False


@dataclass(frozen=True)
class Judged:
    """The rows of one evaluation by one metric: `now` is the version looked at, `before` what it is compared with."""

    metric: str
    now: int
    before: int | None
    names: Mapping[str, str]
    """Kinds of rows, the most telling first, as people call them."""
    counts: Mapping[str, int]
    differing: int
    """Rows that versions answer differently."""
    rows: list[JudgedRow]

    @property
    def count(self) -> int:
        """All rows."""
        return sum(self.counts.values())


def fewer_is_better(metric: str) -> bool:
    """Whether a metric, with the column of answers in its name or without, counts errors."""
    try:
        return METRICS[base_name(metric)].lower_is_better
    except Exception:  # of a package that is not installed here
        return False


def base_name(metric: str) -> str:
    """exact_match, of `exact_match of city`."""
    return metric.partition(" of ")[0]


def judged(evaluations: Sequence[Row], rows: Iterable[Row], active: int | None) -> list[Judged]:
    """For each column of right answers its newest evaluation, by its most telling metric."""
    grouped: dict[tuple[Any, ...], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["score"] is not None:
            grouped[_key(row)][row["row_number"]].append(row)
    newest = sorted((e for e in evaluations if _key(e) in grouped), key=lambda e: e["created_at"], reverse=True)
    found = []
    for answer in dict.fromkeys(e["answer"] for e in reversed(newest)):
        own = [e for e in newest if e["answer"] == answer]
        same = [e for e in own if e["data_digest"] == own[0]["data_digest"]]
        chosen = min(same, key=lambda e: _rank(e["metric"]))
        found.append(_one([e for e in same if _key(e) == _key(chosen)], grouped[_key(chosen)], active))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return row["answer"], row["metric"], row["data_digest"], row["options"]


def _rank(metric: str) -> int:
    base = base_name(metric)
    return SHARES.index(base) if base in SHARES else len(SHARES)


def _one(evaluations: Sequence[Row], rows: Mapping[int, Sequence[Row]], active: int | None) -> Judged:
    by_version = {e["version"]: e for e in reversed(evaluations)}
    chosen = looked_at(list(by_version.values()), active)
    now, before = chosen["version"], _before(chosen, by_version)
    fewer = fewer_is_better(chosen["metric"])
    names = _names(fewer, before)
    found = []
    for number in sorted(rows):
        scores = {r["version"]: r["score"] for r in rows[number]}
        if now in scores and (before is None or before in scores):
            kind = _kind(scores[now], None if before is None else scores[before], fewer)
            found.append(_row(kind, rows[number], fewer))
    counts = Counter(row.kind for row in found)
    kept = [row for kind in names for row in [r for r in found if r.kind == kind][:KEPT]]
    differing = sum(len({r["prediction"] for r in rows[row.number]}) > 1 for row in found)
    return Judged(chosen["metric"], now, before, names, {k: counts[k] for k in names}, differing, kept)


def looked_at(evaluations: Sequence[Row], active: int | None) -> Row:
    """The evaluation of the active version if it was compared, else the newest comparison, else the newest version."""
    compared = [e for e in evaluations if e.get("baseline") and e.get("difference") is not None] or evaluations
    return max(compared, key=lambda e: (e["version"] == active, e["version"]))


def _before(chosen: Row, by_version: Mapping[int, Row]) -> int | None:
    """The version that it was compared with, if that is of the same model; else the first of the others."""
    name, _, number = str(chosen.get("baseline") or "").rpartition(".")
    if number.isdigit() and int(number) in by_version and name.rpartition(".")[2].lower() == chosen["model"].lower():
        return int(number)
    return min((v for v in by_version if v != chosen["version"]), default=None)


def _names(fewer: bool, before: int | None) -> dict[str, str]:
    if fewer and before is not None:
        return {"worse": "worse", "still": "as far off", "better": "better", "right": "right before and now"}
    if before is not None:
        return {
            "worse": "newly wrong",
            "still": "still wrong",
            "better": "newly right",
            "right": "right before and now",
        }
    return {"still": "wrong", "right": "right"}


def _kind(now: float, before: float | None, fewer: bool) -> str:
    """worse, still, better or right."""
    right = now <= 0 if fewer else now >= WHOLE
    if before is None:
        return "right" if right else "still"
    if fewer:
        return "better" if now < before else "worse" if now > before else "right" if right else "still"
    was_right = before >= WHOLE
    return "right" if right and was_right else "better" if right else "worse" if was_right else "still"


def _row(kind: str, answers: Sequence[Row], fewer: bool) -> JudgedRow:
    first = answers[0]
    told = [Answer(r["version"], cut(r["prediction"]), r["score"], cut(r["error"])) for r in answers]
    told.sort(key=lambda a: a.version)
    return JudgedRow(kind, first["row_number"], _inputs(first["input"]), cut(first["actual"]), told, fewer)


def _inputs(text: str | None) -> list[tuple[str, str]]:
    try:
        told = json.loads(text or "")
    except ValueError:
        told = text
    if isinstance(told, dict):
        return [(str(k), cut(str(v)) or "") for k, v in told.items()]
    return [("", cut(str(told)) or "")] if told not in (None, "") else []


def cut(text: str | None) -> str | None:
    """A text no longer than a page bears."""
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"
