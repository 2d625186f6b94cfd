"""What the catalog knows of one model, in the order in which a report tells it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlft.catalog.records import Model
from sqlft.catalog.store import Catalog
from sqlft.inference.resolve import evaluation_of
from sqlft.report.rows import SHARES, Judged, Row, base_name, fewer_is_better, judged, looked_at
from sqlft.session import format_dollars

TOLD = ("device", "dtype", "examples", "validation_examples", "tokens", "best_step")
"""Of a training's details, what it came to."""
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
        """For people: what is known of it, as the least where some prices are not."""
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
    """Each with `before`, the baseline's value of the same metric, where it has a baseline."""
    spent: list[VersionUsage]
    judged: list[Judged]
    """The rows of the newest evaluation, for each column of right answers."""
    findings: dict[int, list[Row]] = field(default_factory=dict)
    """By version, of all that were trained."""

    @property
    def lead(self) -> list[Lead]:
        """What to read first: how many answers are right, for each column of answers; else what the loss came to."""
        told = [
            Lead(format_headline(e), self._of_rows(j, e))
            for j in self.judged
            for e in self.evaluations
            if (e["metric"], e["version"]) == (j.metric, j.now) and e["created_at"] == self._newest(j)
        ]
        return told or self._by_values() or self._by_losses()

    def _newest(self, of: Judged) -> Any:
        return max(e["created_at"] for e in self.evaluations if (e["metric"], e["version"]) == (of.metric, of.now))

    def _of_rows(self, of: Judged, e: Row) -> str:
        against = f" against {e['baseline']}" if e.get("baseline") else ""
        counts = ", ".join(f"{count:,} {of.names[kind]}" for kind, count in of.counts.items())
        return f"{self.model.key.name}.{of.now}{against} in {of.metric}, over {of.count:,} rows: {counts}."

    def _by_values(self) -> list[Lead]:
        """Of metrics that judge all rows together."""
        by_answer: dict[str, list[Row]] = defaultdict(list)
        for e in self.evaluations:
            by_answer[e["answer"]].append(e)
        chosen = [looked_at(rows, self.model.active) for rows in by_answer.values()]
        return [Lead(format_headline(e), format_verdict(e) if e.get("difference") is not None else "") for e in chosen]

    def _by_losses(self) -> list[Lead]:
        told = []
        for split, what in (("train", "loss"), ("valid", "validation loss")):
            points = self.losses[max(self.losses)].get(split, ()) if self.losses else ()
            if len(points) > 1:
                told.append(f"{what} {points[0][1]:.3g}, at the end {points[-1][1]:.3g}")
        if not told:
            return []
        return [Lead(f"{self.model.key.name}.{max(self.losses)}: {', '.join(told)}.", "Its answers are not evaluated.")]

    @property
    def trained(self) -> list[int]:
        """The numbers of versions that were trained."""
        return [v["version"] for v in self.versions if v["row_count"] is not None]

    @property
    def options(self) -> list[tuple[str, dict[int, str]]]:
        """Each training option, and what a training came to, by version; without those that no version has."""
        found: dict[str, dict[int, str]] = {}
        for v in (v for v in self.versions if v["version"] in self.trained):
            for name, value in (*v["options"].items(), *((n, v["details"].get(n)) for n in TOLD)):
                if value not in (None, [], ""):
                    found.setdefault(name, {})[v["version"]] = option_text(value)
        return list(found.items())

    @property
    def to_evaluate(self) -> str | None:
        """The statement that compares the newest version, if it was not compared yet; of versions that answer."""
        ready = [v["version"] for v in self.versions if v["status"] == "complete"]
        if not ready or any(e["version"] == ready[-1] for e in self.evaluations):
            return None
        before = self.model.active if self.model.active in ready[:-1] else ready[0]
        return evaluation_of(self.model, *dict.fromkeys((before, ready[-1])))

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that were evaluated."""
        return list(dict.fromkeys(str(e["metric"]) for e in self.evaluations))

    @property
    def comparisons(self) -> list[Row]:
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
    everyones = _name_metrics(catalog.table("evaluations").to_pylist(), model)
    evaluations = [_with_baseline(e, everyones) for e in everyones if _is_of(e, model)]
    rows = _name_metrics(catalog.table("evaluation_rows").to_pylist(), model)
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
        judged(evaluations, [r for r in rows if _is_of(r, model)], model.active),
        {v["version"]: json.loads(v["findings"] or "[]") for v in versions if v["row_count"] is not None},
    )


def _is_of(row: Row, model: Model) -> bool:
    return (row["model"].lower(), row["project"].lower()) == (model.key.name.lower(), model.key.project.lower())


def _with_baseline(e: Row, everyones: Sequence[Row]) -> Row:
    """With `before`: what the baseline had in the same evaluation."""
    what = ("answer", "metric", "data_digest", "options")
    values = [
        other["value"]
        for other in everyones
        if all(other[name] == e[name] for name in what)
        and e.get("baseline") in (f"{other['model']}.{other['version']}", _full_name(other))
    ]
    return {**e, "before": values[-1] if values else None}


def _full_name(e: Row) -> str:
    return f"{e['project']}.{e['model']}.{e['version']}"


def _name_metrics(rows: list[dict[str, Any]], model: Model) -> list[dict[str, Any]]:
    """Rows whose metric tells of which column it is, where the model has several that were scored."""
    if len({row["answer"] for row in rows if _is_of(row, model)}) > 1:
        for row in rows:
            row["metric"] = f"{row['metric']} of {row['answer']}"
    return rows


def format_headline(e: Row) -> str:
    """`m.2: 52 % right, before 0 %.`, or the values of a metric that is no share of right answers."""
    is_share = base_name(str(e["metric"])) in SHARES
    text = f"{e['model']}.{e['version']}: {_figure(e['value'], e, is_share)}{' right' if is_share else ''}"
    if " of " in str(e["metric"]) and is_share:
        text += f" in {str(e['metric']).partition(' of ')[2]}"
    before = e.get("before")
    if before is None and e.get("difference") is not None:
        before = float(e["value"]) - float(e["difference"])
    if before is not None:
        text += f", before {_figure(before, e, is_share).removeprefix(str(e['metric'])).strip()}"
    return f"{text}{' (lower is better)' if fewer_is_better(str(e['metric'])) else ''}."


def _figure(value: Any, e: Row, is_share: bool) -> str:
    if value is None or value != value:
        return "not known"
    return f"{abs(float(value)):.0%}".replace("%", " %") if is_share else f"{e['metric']} {format_figure(float(value))}"


def format_verdict(e: Row) -> str:
    """`m.2: 52 % right, before 0 %. It scores 0.52 higher than m.1 in exact_match …`"""
    difference = float(e["difference"])
    low, high, p = e.get("difference_low"), e.get("difference_high"), e.get("p_value")
    sure = low is not None and high is not None and low * high > 0 and (p is None or p < 0.05)
    way = "higher" if difference > 0 else "lower" if difference < 0 else "the same"
    text = f"{format_headline(e)} It scores {f'{format_figure(abs(difference))} ' if difference else ''}{way}"
    text += f" {'as' if not difference else 'than'} {e['baseline']} in {e['metric']}, over {e['n']:,} rows"
    if low is not None and high is not None and (difference or low != high):
        text += f" (95 % interval {low:+.3g} to {high:+.3g}{f', p = {p:.2g}' if p is not None else ''})"
    told = (
        "the difference is more than chance" if sure else "it may be chance" if difference else "no difference was seen"
    )
    return f"{text}: {told}."


def option_text(value: Any) -> str:
    """An option's value as USING takes it, cut short."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, bool):
        text = text.lower()
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}…"


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
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _read_table(catalog: Catalog, table: str, model: Model) -> list[dict[str, Any]]:
    return [row for row in catalog.table(table).to_pylist() if _is_of(row, model)]


def _group_losses(metrics: Iterable[Row]) -> dict[int, dict[str, list[tuple[int, float]]]]:
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for row in metrics:
        value = row["value"]
        if row["name"] == "loss" and value is not None and value == value:
            found.setdefault(row["version"], {}).setdefault(row["split"], []).append((row["step"], value))
    return found


def _sum_usage(usage: Iterable[Row]) -> list[VersionUsage]:
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
