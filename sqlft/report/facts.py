"""What the catalog knows of one model, in the order in which a report tells it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlft.catalog.records import Model
from sqlft.catalog.store import Catalog
from sqlft.session import format_dollars

MAX_DIFFERING_ROWS = 20
"""Rows that are shown side by side."""
MAX_TEXT_LENGTH = 4000
"""Letters of a text that are shown."""

TableRow = Mapping[str, Any]


SHARE_METRICS = ("exact_match", "accuracy", "execution_accuracy", "function_match", "json_match")
"""Metrics that count right answers."""


@dataclass
class VersionUsage:
    """What asking one version took, all statements together."""

    version: int
    calls: int = 0
    cached: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float | None = None
    priced_calls: int = 0
    unpriced_calls: int = 0

    @property
    def seconds_per_call(self) -> float | None:
        """Seconds of the statements for each request."""
        return self.seconds / self.calls if self.calls else None

    @property
    def cost(self) -> str:
        """For people: what is known of it, as the least where some prices are not."""
        known = self.cost_usd if self.cost_usd or not self.unpriced_calls else None
        least = "at least " if known is not None and self.unpriced_calls else ""
        return f"{least}{format_figure(known, 'usd')}"

    @property
    def cost_per_thousand(self) -> float | None:
        """USD for a thousand requests, where the price is known."""
        return None if self.cost_usd is None or not self.priced_calls else 1000 * self.cost_usd / self.priced_calls


@dataclass(frozen=True)
class VersionAnswer:
    """What one version answered to a row of an evaluation."""

    version: int
    prediction: str | None
    score: float | None
    error: str | None


@dataclass(frozen=True)
class DifferingRow:
    """A row that versions answer differently."""

    metric: str
    number: int
    inputs: list[tuple[str, str]]
    actual: str | None
    answers: list[VersionAnswer]

    @property
    def spread(self) -> float:
        """Between the best and the worst score."""
        scores = [a.score for a in self.answers if a.score is not None]
        return max(scores) - min(scores) if scores else 0.0

    @property
    def best(self) -> str:
        """The version that scores best, or nothing where they score the same."""
        scored = [a for a in self.answers if a.score is not None]
        top = max((a.score or 0.0 for a in scored), default=0.0)
        leaders = [a.version for a in scored if a.score == top]
        return str(leaders[0]) if len(leaders) == 1 and self.spread else ""


@dataclass
class ModelFacts:
    """One model."""

    model: Model
    versions: Sequence[TableRow]
    losses: dict[int, dict[str, list[tuple[int, float]]]]
    """By version and split: (step, loss)."""
    evaluations: Sequence[TableRow]
    spent: list[VersionUsage]
    differing: list[DifferingRow]
    findings: dict[int, list[TableRow]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that were evaluated."""
        return list(dict.fromkeys(str(e["metric"]) for e in self.evaluations))

    @property
    def comparisons(self) -> list[TableRow]:
        """Evaluations that were compared with another version's on the same rows."""
        return [e for e in self.evaluations if e.get("baseline") and e.get("difference") is not None]

    @property
    def is_priced(self) -> bool:
        """Whether any request of the model had a price."""
        return any(s.priced_calls for s in self.spent)

    @property
    def verdicts(self) -> list[str]:
        """The comparisons as sentences."""
        return [format_verdict(e) for e in self.comparisons]


def collect_model_facts(catalog: Catalog, model: Model) -> ModelFacts:
    """What the catalog knows of a model."""
    versions = _read_table(catalog, "versions", model)
    return ModelFacts(
        model,
        [{**v, "details": json.loads(v["details"] or "{}")} for v in versions],
        _group_losses(_read_table(catalog, "metrics", model)),
        _name_metrics(_read_table(catalog, "evaluations", model)),
        _sum_usage(_read_table(catalog, "usage", model)),
        _find_differing_rows(_name_metrics(_read_table(catalog, "evaluation_rows", model))),
        {v["version"]: found for v in versions if (found := json.loads(v["findings"] or "[]"))},
    )


def _name_metrics(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose metric tells of which column it is, where a model has several that were scored."""
    if len({row["answer"] for row in rows}) > 1:
        for row in rows:
            row["metric"] = f"{row['metric']} of {row['answer']}"
    return rows


def format_headline(e: TableRow) -> str:
    """`m.2: 52 % right, before 0 %.`, or the values of a metric that is no share of right answers."""
    value, before = float(e["value"]), float(e["value"]) - float(e["difference"])
    name = f"{e['model']}.{e['version']}"
    if str(e["metric"]).partition(" of ")[0] in SHARE_METRICS:
        return f"{name}: {value:.0%} right, before {abs(before):.0%}.".replace("%", " %")
    return f"{name}: {e['metric']} {value:.3g}, before {before:.3g}."


def format_verdict(e: TableRow) -> str:
    """`m.2: 52 % right, before 0 %. It scores 0.52 higher than m.1 in exact_match …`"""
    difference = float(e["difference"])
    low, high, p = e.get("difference_low"), e.get("difference_high"), e.get("p_value")
    sure = low is not None and high is not None and low * high > 0 and (p is None or p < 0.05)
    way = "higher" if difference > 0 else "lower" if difference < 0 else "the same"
    text = f"{format_headline(e)} It scores {f'{abs(difference):.3g} ' if difference else ''}{way}"
    text += f" {'as' if not difference else 'than'} {e['baseline']} in {e['metric']}, over {e['n']} rows"
    if low is not None and high is not None and (difference or low != high):
        text += f" (95 % interval {low:+.3g} to {high:+.3g}{f', p = {p:.2g}' if p is not None else ''})"
    told = (
        "the difference is more than chance" if sure else "it may be chance" if difference else "no difference was seen"
    )
    return f"{text}: {told}."


def format_figure(value: Any, kind: str = "") -> str:
    """A figure for people; a dash where it is not known."""
    if value is None or value != value:
        return "–"
    if kind == "usd":
        return format_dollars(float(value))
    if kind == "seconds":
        seconds = float(value)
        return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
    if kind == "time":
        return f"{value:%Y-%m-%d %H:%M}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _read_table(catalog: Catalog, table: str, model: Model) -> list[dict[str, Any]]:
    name, project = model.key
    rows: list[dict[str, Any]] = catalog.table(table).to_pylist()
    return [r for r in rows if (r["model"].lower(), r["project"].lower()) == (name.lower(), project.lower())]


def _group_losses(metrics: Iterable[TableRow]) -> dict[int, dict[str, list[tuple[int, float]]]]:
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for row in metrics:
        value = row["value"]
        if row["name"] == "loss" and value is not None and value == value:
            found.setdefault(row["version"], {}).setdefault(row["split"], []).append((row["step"], value))
    return found


def _sum_usage(usage: Iterable[TableRow]) -> list[VersionUsage]:
    found: dict[int, VersionUsage] = {}
    for row in usage:
        one = found.setdefault(row["version"], VersionUsage(row["version"]))
        for name in ("calls", "cached", "errors", "input_tokens", "output_tokens"):
            setattr(one, name, getattr(one, name) + row[name])
        if row["calls"]:
            one.seconds += row["seconds"]
        if row["cost_usd"] is not None:
            one.cost_usd = (one.cost_usd or 0.0) + row["cost_usd"]
            one.priced_calls += row["calls"]
        else:
            one.unpriced_calls += row["calls"]
    return [found[number] for number in sorted(found)]


def _find_differing_rows(rows: Iterable[TableRow]) -> list[DifferingRow]:
    """The rows that versions score most differently, then those that they answer differently; each in one metric."""
    grouped: dict[tuple[Any, ...], list[TableRow]] = defaultdict(list)
    for row in rows:
        grouped[row["data_digest"], row["metric"], row["options"], row["row_number"]].append(row)
    found = [_compare_answers(group) for group in grouped.values() if len({r["prediction"] for r in group}) > 1]
    found.sort(key=lambda d: (-d.spread, d.metric, d.number))
    once = {(d.number, tuple(d.inputs), d.actual): d for d in reversed(found)}
    return [d for d in found if once[d.number, tuple(d.inputs), d.actual] is d][:MAX_DIFFERING_ROWS]


def _compare_answers(group: list[TableRow]) -> DifferingRow:
    first = group[0]
    answers = [
        VersionAnswer(r["version"], _truncate(r["prediction"]), r["score"], _truncate(r["error"])) for r in group
    ]
    return DifferingRow(
        first["metric"],
        first["row_number"],
        _parse_inputs(first["input"]),
        _truncate(first["actual"]),
        sorted(answers, key=lambda a: a.version),
    )


def _parse_inputs(text: str | None) -> list[tuple[str, str]]:
    try:
        told = json.loads(text or "")
    except ValueError:
        told = text
    if isinstance(told, dict):
        return [(str(k), _truncate(str(v)) or "") for k, v in told.items()]
    return [("", _truncate(str(told)) or "")] if told not in (None, "") else []


def _truncate(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT_LENGTH else f"{text[:MAX_TEXT_LENGTH]}…"
