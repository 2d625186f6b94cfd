"""A report's charts, as SVG that stands in the page: drawn by matplotlib without a display, texts escaped by it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sqlft.report.facts import Facts, Row

WIDTH = 4.8
"""Inches; small enough that the letters can be read on a phone."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people who see fewer colours can tell apart."""
MOST_POINTS = 400
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqlft",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}


def of(facts: Facts) -> dict[str, Markup | None]:
    """The charts by name; None where there are no figures for one."""
    makers: dict[str, Callable[[Facts], Markup | None]] = {
        "loss": loss,
        "metrics": metrics,
        "difference": difference,
        "speed": speed,
        "cost": cost,
    }
    return {name: make(facts) for name, make in makers.items()}


def loss(facts: Facts) -> Markup | None:
    """Loss by step; what was measured on the validation rows has dots."""
    if not facts.losses:
        return None

    def draw(axes: Axes) -> None:
        for number, splits in facts.losses.items():
            for split, points in splits.items():
                steps, values = zip(*_thinned(points), strict=True)
                valid = split == "valid"
                axes.plot(
                    steps,
                    values,
                    color=_colour(number),
                    linestyle="--" if valid else "-",
                    marker="o" if valid or len(steps) == 1 else "",
                    markersize=4,
                    linewidth=1.4,
                    label=f"version {number}, {'validation' if valid else 'training'}",
                )
        axes.set_xlabel("step")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)

    return _svg(draw, 3.2, "Loss by training step")


def metrics(facts: Facts) -> Markup | None:
    """Each metric of each version with its interval."""
    return _dots(
        facts.evaluations,
        lambda e: (f"{e['metric']}  v{e['version']}", e["value"], e["low"], e["high"], e["version"]),
        "value (95 % interval)",
        "Metrics by version",
    )


def difference(facts: Facts) -> Markup | None:
    """Each comparison with its interval, right of the line is better than the baseline."""
    return _dots(
        facts.comparisons,
        lambda e: (
            f"{e['metric']}  v{e['version']} against {_against(e)}",
            e["difference"],
            e.get("difference_low"),
            e.get("difference_high"),
            e["version"],
        ),
        "difference (95 % interval)",
        "Differences between versions",
        zero=True,
    )


def _against(e: Row) -> str:
    """The baseline: v1 where it is of the same model, else with its model's name."""
    name, _, number = str(e["baseline"]).rpartition(".")
    return f"v{number}" if name == e["model"] else str(e["baseline"])


def speed(facts: Facts) -> Markup | None:
    """Seconds a request by version."""
    bars = [(s.version, s.seconds_a_call) for s in facts.spent]
    return _bars(bars, "seconds a request", "Speed by version")


def cost(facts: Facts) -> Markup | None:
    """USD a thousand requests by version."""
    bars = [(s.version, s.cost_a_thousand) for s in facts.spent]
    return _bars(bars, "USD a thousand requests", "Cost by version")


def _bars(bars: Iterable[tuple[int, float | None]], label: str, title: str) -> Markup | None:
    known = [(number, value) for number, value in bars if value is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        names = [f"v{number}" for number, _ in known]
        drawn = axes.barh(names, [value for _, value in known], color=[_colour(number) for number, _ in known])
        axes.bar_label(drawn, labels=[f" {value:.3g}" for _, value in known])
        axes.margins(x=0.2)
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return _svg(draw, 0.9 + 0.4 * len(known), title)


def _dots(
    rows: Sequence[Row], read: Callable[[Row], tuple[Any, ...]], label: str, title: str, zero: bool = False
) -> Markup | None:
    order = list(dict.fromkeys(row["metric"] for row in rows))
    points = [read(row) for row in sorted(rows, key=lambda row: order.index(row["metric"]))]
    points = [p for p in points if p[1] is not None and p[1] == p[1]]
    if not points:
        return None

    def draw(axes: Axes) -> None:
        for place, (_, value, low, high, number) in enumerate(points):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=_colour(number), linewidth=2)
            axes.plot([value], [place], "o", color=_colour(number))
            axes.annotate(f"{value:.3g}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
        if zero:
            axes.axvline(0, color="#444", linewidth=1)
        axes.set_yticks(range(len(points)), [_short(p[0]) for p in points])
        axes.set_ylim(len(points) - 0.4, -0.7)
        axes.set_xlabel(label)

    return _svg(draw, 0.9 + 0.36 * len(points), title)


def _svg(draw: Callable[[Axes], None], height: float, title: str) -> Markup:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = written.getvalue()
    start = text.index("<svg")
    return Markup(text[start : start + 4] + f' role="img" aria-label="{title}"' + text[start + 4 :])


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    step = max(1, len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _colour(version: int) -> str:
    return COLOURS[(version - 1) % len(COLOURS)]


def _short(text: str, width: int = 34) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
