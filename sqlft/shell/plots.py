"""`.plot`: a report's charts as text, drawn by plotext."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlft.catalog.records import Model
from sqlft.errors import DataError, HandlerNotInstalled, NotFound, did_you_mean
from sqlft.report.facts import ModelFacts, collect_model_facts
from sqlft.shell.shell import Shell

WIDTH, HEIGHT, TICKS = 100, 18, 6
MARKS = ("•", "x", "+", "o", "*", "#")
"""What lines are drawn with: told apart without colours, as in a file."""
INSTALL = "Run: pip install 'sqlft[evaluation]'"


def loss(plot: Any, facts: ModelFacts) -> bool:
    """Loss by step, a line for each version and split; what they are stands below, where it hides none of them."""
    marks = iter(MARKS * len(facts.losses))
    names = []
    for number, splits in facts.losses.items():
        for split, points in splits.items():
            steps, values = zip(*points, strict=True)
            mark = next(marks)
            drawn = plot.signal(list(steps), list(values), marker=mark)
            drawn.lines()
            plot.draw(drawn)
            names.append(f"{mark} v{number} {split}")
    plot.label("   ".join(["step", *names]), "x")
    if facts.losses:
        plot.ruler("x").ticks(_whole_ticks([p[0] for s in facts.losses.values() for ps in s.values() for p in ps]))
    return bool(facts.losses)


def _whole_ticks(steps: list[float]) -> list[int]:
    """Steps to write below the chart: whole numbers, a few of them."""
    first, last = int(min(steps)), int(max(steps))
    return sorted({first, *range(first, last, max(1, -(-(last - first) // TICKS))), last})


def metrics(plot: Any, facts: ModelFacts) -> bool:
    """The value of each metric by version."""
    known = [e for e in facts.evaluations if e["value"] is not None and e["value"] == e["value"]]
    return _bars(plot, [(f"{e['metric']} v{e['version']}", e["value"]) for e in known])


def cost(plot: Any, facts: ModelFacts) -> bool:
    """USD a thousand requests by version."""
    return _bars(plot, [(f"v{s.version}", s.cost_per_thousand) for s in facts.spent if s.cost_per_thousand is not None])


def speed(plot: Any, facts: ModelFacts) -> bool:
    """Seconds a request by version."""
    return _bars(plot, [(f"v{s.version}", s.seconds_per_call) for s in facts.spent if s.seconds_per_call is not None])


CHARTS: dict[str, tuple[Callable[[Any, ModelFacts], bool], str, str]] = {
    "loss": (loss, "loss by step", "FINETUNE it first."),
    "metrics": (metrics, "metrics by version", "EVALUATE MODEL … ON (SELECT …) first."),
    "cost": (cost, "USD a thousand requests", "CREATE PRICE or SET sqlft_machine_usd_per_hour, then ask it."),
    "speed": (speed, "seconds a request", "Ask it something first."),
}


def plot(shell: Shell, what: str, name: str | None = None) -> None:
    """a model's loss, metrics, cost or speed as a chart; the newest model if none is named"""
    if what.lower() not in CHARTS:
        known = ", ".join(CHARTS)
        raise NotFound(f"There is no chart '{what}'.{did_you_mean(what, CHARTS)}", f"There are: {known}.")
    try:
        import plotext
    except ImportError as e:
        raise HandlerNotInstalled("Charts need the package 'plotext'.", INSTALL) from e
    model = _model(shell, name)
    draw, title, first = CHARTS[what.lower()]
    figure = plotext.figure
    figure.clear()
    figure.plot_size(min(shell.screen.look.width or WIDTH, WIDTH), HEIGHT)
    if not draw(figure, collect_model_facts(shell.con.session.catalog, model)):
        raise DataError(f"There is nothing to draw of the {what.lower()} of '{model.key}' yet.", first)
    figure.title(f"{model.key.name}: {title}")
    shell.screen.write(f"{figure.build().string(colorless=True).rstrip()}\n")


def _model(shell: Shell, name: str | None) -> Model:
    found = shell.con.session.catalog.models()
    if not found:
        raise NotFound("There is no model yet.", "CREATE MODEL makes one.")
    if name is None:
        return max(found, key=lambda m: (m.created_at is not None, m.created_at, m.key))
    for model in found:
        if model.key.name.lower() == name.lower():
            return model
    raise NotFound(f"There is no model '{name}'.{did_you_mean(name, [m.key.name for m in found])}", "Type .models.")


def _bars(plot: Any, bars: list[tuple[str, float]]) -> bool:
    if bars:
        names = [f"{name} {value:.3g}" for name, value in bars][::-1]
        drawn = plot.bar(names, [value for _, value in bars][::-1], orientation="horizontal", width=0.5)
        plot.draw(drawn)
        top = max(value for _, value in bars)
        plot.ruler("x").lim(min(0.0, *(value for _, value in bars)), top or 1.0)
    return bool(bars)
