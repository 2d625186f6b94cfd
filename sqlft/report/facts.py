"""What the catalog knows of one model, in the order of a report."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlft._types import Row
from sqlft.catalog.records import Model
from sqlft.catalog.store import Catalog
from sqlft.inference.resolve import evaluation_of
from sqlft.metrics.general import GENERAL_METRICS, describe_forgetting
from sqlft.metrics.statistics import is_beyond_chance
from sqlft.report.rows import SHARES, JudgedRows, base_name, choose_evaluation, is_lower_better, judge_rows
from sqlft.session import format_dollars

TRAINING_RESULTS = ("device", "dtype", "examples", "validation_examples", "tokens", "best_step")
"""Which of a training's details are its results."""
WIDEST = 200
"""Letters of an option's value that are shown."""


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
        """As text: the sum of what is known, "at least" where some prices are not."""
        known = self.cost_usd if self.cost_usd or not self.unpriced_calls else None
        least = "at least " if known is not None and self.unpriced_calls else ""
        return f"{least}{format_figure(known, 'usd')}"

    @property
    def cost_per_thousand(self) -> float | None:
        """USD for a thousand requests, where the price is known."""
        return None if self.cost_usd is None or not self.priced_calls else 1000 * self.cost_usd / self.priced_calls


class Lead(NamedTuple):
    """A sentence of figures, and what they are of."""

    headline: str
    about: str


@dataclass
class ModelFacts:
    """One model."""

    model: Model
    versions: Sequence[Row]
    losses: dict[int, dict[str, list[tuple[int, float]]]]
    """By version and split: (step, loss)."""
    evaluations: Sequence[Row]
    """Each with `before`, the baseline's value of the same metric, where it has a baseline; but for forgetting."""
    usage: list[VersionUsage]
    judged: list[JudgedRows]
    """The rows of the newest evaluation, for each column of right answers."""
    findings: dict[int, list[Row]] = field(default_factory=dict)
    """By version, for trained versions."""
    forgetting: list[str] = field(default_factory=list)
    """How versions stand against their base on general texts and questions, in sentences."""

    @property
    def lead(self) -> list[Lead]:
        """What to read first: how many answers are right, for each column of answers; else the loss."""
        leads = []
        for judged in self.judged:
            of_version = [e for e in self.evaluations if (e["metric"], e["version"]) == (judged.metric, judged.now)]
            newest = max(e["created_at"] for e in of_version)
            leads += [
                Lead(format_headline(e), self._count_rows(judged, e)) for e in of_version if e["created_at"] == newest
            ]
        return leads or self._list_values() or self._list_losses()

    def _count_rows(self, rows: JudgedRows, e: Row) -> str:
        against = f" against {e['baseline']}" if e.get("baseline") else ""
        counts = ", ".join(f"{count:,} {rows.names[outcome]}" for outcome, count in rows.counts.items())
        return f"{self.model.key.name}.{rows.now}{against} in {rows.metric}, over {rows.count:,} rows: {counts}."

    def _list_values(self) -> list[Lead]:
        """Of metrics that judge all rows together."""
        by_answer: dict[str, list[Row]] = defaultdict(list)
        for e in self.evaluations:
            by_answer[e["answer"]].append(e)
        chosen = [choose_evaluation(rows, self.model.active) for rows in by_answer.values()]
        return [Lead(format_headline(e), format_verdict(e) if e.get("difference") is not None else "") for e in chosen]

    def _list_losses(self) -> list[Lead]:
        losses = []
        for split, what in (("train", "loss"), ("valid", "validation loss")):
            points = self.losses[max(self.losses)].get(split, ()) if self.losses else ()
            if len(points) > 1:
                losses.append(f"{what} {points[0][1]:.3g}, at the end {points[-1][1]:.3g}")
        if not losses:
            return []
        return [
            Lead(f"{self.model.key.name}.{max(self.losses)}: {', '.join(losses)}.", "Its answers are not evaluated.")
        ]

    @property
    def trained(self) -> list[int]:
        """The numbers of versions that were trained."""
        return [v["version"] for v in self.versions if v["row_count"] is not None]

    @property
    def options(self) -> list[tuple[str, dict[int, str]]]:
        """Each option and result of trainings, by version; without those that no version has."""
        options: dict[str, dict[int, str]] = {}
        for v in (v for v in self.versions if v["version"] in self.trained):
            for name, value in (*v["options"].items(), *((n, v["details"].get(n)) for n in TRAINING_RESULTS)):
                if value not in (None, [], ""):
                    options.setdefault(name, {})[v["version"]] = format_option(value)
        return list(options.items())

    @property
    def to_evaluate(self) -> str | None:
        """The statement that compares the newest version, if it was not compared yet; of versions that answer."""
        ready = [v["version"] for v in self.versions if v["status"] == "complete"]
        if not ready or any(e["version"] == ready[-1] for e in self.evaluations):
            return None
        before = self.model.active if self.model.active in ready[:-1] else ready[0]
        return evaluation_of(self.model, *dict.fromkeys((before, ready[-1])))

    @property
    def comparisons(self) -> list[Row]:
        """Evaluations that were compared with another version's on the same rows."""
        return [e for e in self.evaluations if e.get("baseline") and e.get("difference") is not None]

    @property
    def is_priced(self) -> bool:
        """Whether any request of the model had a price."""
        return any(s.priced_calls for s in self.usage)

    @property
    def verdicts(self) -> list[str]:
        """The comparisons as sentences."""
        return [format_verdict(e) for e in self.comparisons]


def collect_model_facts(catalog: Catalog, model: Model) -> ModelFacts:
    """What the catalog knows of a model."""
    kept = catalog.table("evaluations").to_pylist()
    general = [e for e in kept if e["metric"] in GENERAL_METRICS and _is_of(e, model)]
    of_all_models = _name_metrics([e for e in kept if e["metric"] not in GENERAL_METRICS], model)
    evaluations = [_add_baseline_value(e, of_all_models) for e in of_all_models if _is_of(e, model)]
    kept_rows = catalog.table("evaluation_rows").to_pylist()
    rows = _name_metrics([row for row in kept_rows if row["metric"] not in GENERAL_METRICS], model)
    versions = [
        {**v, "details": json.loads(v["details"] or "{}"), "options": json.loads(v["options"] or "{}")}
        for v in _read_table(catalog, "versions", model)
    ]
    return ModelFacts(
        model,
        versions,
        _group_losses(_read_table(catalog, "metrics", model)),
        evaluations,
        _sum_usage(_read_table(catalog, "usage", model)),
        judge_rows(evaluations, [r for r in rows if _is_of(r, model)], model.active),
        {v["version"]: json.loads(v["findings"] or "[]") for v in versions if v["row_count"] is not None},
        [describe_forgetting(e) for e in general if e["baseline"]],
    )


def _is_of(row: Row, model: Model) -> bool:
    return (row["model"].lower(), row["project"].lower()) == (model.key.name.lower(), model.key.project.lower())


def _add_baseline_value(e: Row, evaluations: Sequence[Row]) -> Row:
    """With `before`: the baseline's value in the same evaluation."""
    values = []
    for other in evaluations:
        version = f"{other['model']}.{other['version']}"
        is_same = all(other[name] == e[name] for name in ("answer", "metric", "data_digest", "options"))
        if is_same and e.get("baseline") in (version, f"{other['project']}.{version}"):
            values.append(other["value"])
    return {**e, "before": values[-1] if values else None}


def _name_metrics(rows: Sequence[Row], model: Model) -> Sequence[Row]:
    """Rows whose metric names its column of right answers, where the model has several that were scored."""
    if len({row["answer"] for row in rows if _is_of(row, model)}) < 2:
        return rows
    return [{**row, "metric": f"{row['metric']} of {row['answer']}"} for row in rows]


def format_headline(e: Row) -> str:
    """The value and the one before; `right` where the metric is a share of right answers.

    >>> format_headline({"model": "m", "version": 2, "metric": "accuracy", "value": 0.5, "difference": 0.25})
    'm.2: 50 % right, before 25 %.'
    """
    is_share = base_name(str(e["metric"])) in SHARES
    text = f"{e['model']}.{e['version']}: {_format_metric(e['value'], e, is_share)}{' right' if is_share else ''}"
    if " of " in str(e["metric"]) and is_share:
        text += f" in {str(e['metric']).partition(' of ')[2]}"
    before = e.get("before")
    if before is None and e.get("difference") is not None:
        before = float(e["value"]) - float(e["difference"])
    if before is not None:
        text += f", before {_format_metric(before, e, is_share).removeprefix(str(e['metric'])).strip()}"
    return f"{text}{' (lower is better)' if is_lower_better(str(e['metric'])) else ''}."


def _format_metric(value: float | None, e: Row, is_share: bool) -> str:
    if value is None or value != value:
        return "not known"
    return f"{abs(float(value)):.0%}".replace("%", " %") if is_share else f"{e['metric']} {format_figure(float(value))}"


def format_verdict(e: Row) -> str:
    """The headline, the difference to the baseline, and whether it may be chance."""
    difference = float(e["difference"])
    low, high, p = e.get("difference_low"), e.get("difference_high"), e.get("p_value")
    sure = is_beyond_chance(low, high, p)
    direction = "higher" if difference > 0 else "lower" if difference < 0 else "the same"
    text = f"{format_headline(e)} It scores {f'{format_figure(abs(difference))} ' if difference else ''}{direction}"
    text += f" {'as' if not difference else 'than'} {e['baseline']} in {e['metric']}, over {e['n']:,} rows"
    if low is not None and high is not None and (difference or low != high):
        text += f" (95 % interval {low:+.3g} to {high:+.3g}{f', p = {p:.2g}' if p is not None else ''})"
    chance = "it may be chance" if difference else "no difference was seen"
    return f"{text}: {'the difference is more than chance' if sure else chance}."


def format_option(value: object) -> str:
    """An option's value as USING takes it, cut short."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, bool):
        text = text.lower()
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}…"


def format_figure(value: object, kind: str = "") -> str:
    """A figure as text; a dash where it is not known.

    >>> format_figure(1234.6), format_figure(90.0, "seconds"), format_figure(None)
    ('1,235', '90 s', '–')
    """
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, (int, float)):
        return str(value)
    if kind == "usd":
        return format_dollars(float(value))
    if kind == "seconds":
        return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:,}"


def _read_table(catalog: Catalog, table: str, model: Model) -> list[Row]:
    return [row for row in catalog.table(table).to_pylist() if _is_of(row, model)]


def _group_losses(metrics: Iterable[Row]) -> dict[int, dict[str, list[tuple[int, float]]]]:
    losses: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for row in metrics:
        value = row["value"]
        if row["name"] == "loss" and value is not None and value == value:
            losses.setdefault(row["version"], {}).setdefault(row["split"], []).append((row["step"], value))
    return losses


def _sum_usage(rows: Iterable[Row]) -> list[VersionUsage]:
    usage: dict[int, VersionUsage] = {}
    for row in rows:
        total = usage.setdefault(row["version"], VersionUsage(row["version"]))
        for name in ("calls", "cached", "errors", "input_tokens", "output_tokens"):
            setattr(total, name, getattr(total, name) + row[name])
        if row["calls"]:
            total.seconds += row["seconds"]
        if row["cost_usd"] is not None:
            total.cost_usd = (total.cost_usd or 0.0) + row["cost_usd"]
            total.priced_calls += row["calls"]
        else:
            total.unpriced_calls += row["calls"]
    return [usage[number] for number in sorted(usage)]
