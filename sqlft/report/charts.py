"""A report's charts, as SVG that stands in the page: drawn by matplotlib without a display, texts escaped by it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sqlft.report.facts import ModelFacts
from sqlft.report.rows import Row

WIDTH = 4.8
"""Inches; small enough that the letters can be read on a phone."""
INK, LINE = "#010203", "#040506"
"""What becomes the page's own colours, which a dark page has others of."""
VERSIONS = tuple(f"#0a0b{n:02x}" for n in range(7))
"""And those of the versions: the page's --v1 to --v7."""
MAX_POINTS = 400
TALL, EARLY = 4, 0.1
"""How many times higher than all later losses those of the first tenth of the steps may be on a linear axis."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqlft",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "savefig.transparent": True,
}


def draw_charts(facts: ModelFacts) -> dict[str, Markup | None]:
    """The charts by name; None where there are no figures for one."""
    makers: dict[str, Callable[[ModelFacts], Markup | None]] = {
        "loss": draw_loss,
        "metrics": draw_metrics,
        "difference": draw_differences,
        "speed": draw_speed,
        "cost": draw_cost,
    }
    return {name: make(facts) for name, make in makers.items()}


def draw_loss(facts: ModelFacts) -> Markup | None:
    """Loss by step; what was measured on the validation rows has dots."""
    if not facts.losses:
        return None

    def draw(axes: Axes) -> None:
        for number, splits in facts.losses.items():
            for split, points in splits.items():
                steps, values = zip(*_thin_points(points), strict=True)
                valid = split == "valid"
                axes.plot(
                    steps,
                    values,
                    color=_choose_colour(number),
                    linestyle="--" if valid else "-",
                    marker="o" if valid or len(steps) == 1 else "",
                    markersize=4,
                    linewidth=1.4,
                    label=f"version {number}, {'validation' if valid else 'training'}",
                )
        axes.set_xlabel("step")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel("loss")
        curves = [points for splits in facts.losses.values() for points in splits.values()]
        if all(value > 0 for points in curves for _, value in points) and any(map(_is_tall, curves)):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)

    return _render_svg(draw, 3.2, "Loss by training step")


def _is_tall(points: Sequence[tuple[int, float]]) -> bool:
    """Whether the first losses are so high that the later ones would lie flat on the axis."""
    later = [value for _, value in points[max(1, round(EARLY * len(points))) :]]
    return bool(later) and max(value for _, value in points) > TALL * max(later)


def draw_metrics(facts: ModelFacts) -> Markup | None:
    """Each metric of each version with its interval."""
    return _draw_dots(
        facts.evaluations,
        lambda e: (f"{e['metric']}  v{e['version']}", e["value"], e["low"], e["high"], e["version"]),
        "value (95 % interval)",
        "Metrics by version",
    )


def draw_differences(facts: ModelFacts) -> Markup | None:
    """Each comparison with its interval, right of the line is better than the baseline."""
    return _draw_dots(
        facts.comparisons,
        lambda e: (
            f"{e['metric']}  v{e['version']} against {_format_baseline(e)}",
            e["difference"],
            e.get("difference_low"),
            e.get("difference_high"),
            e["version"],
        ),
        "difference (95 % interval)",
        "Differences between versions",
        zero=True,
    )


def _format_baseline(e: Row) -> str:
    """The baseline: v1 where it is of the same model, else with its model's name."""
    name, _, number = str(e["baseline"]).rpartition(".")
    return f"v{number}" if name == e["model"] else str(e["baseline"])


def draw_speed(facts: ModelFacts) -> Markup | None:
    """Seconds a request by version."""
    bars = [(s.version, s.seconds_per_call) for s in facts.spent]
    return _draw_bars(bars, "seconds a request", "Speed by version")


def draw_cost(facts: ModelFacts) -> Markup | None:
    """USD a thousand requests by version."""
    bars = [(s.version, s.cost_per_thousand) for s in facts.spent]
    return _draw_bars(bars, "USD a thousand requests", "Cost by version")


def _draw_bars(bars: Iterable[tuple[int, float | None]], label: str, title: str) -> Markup | None:
    known = [(number, value) for number, value in bars if value is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        names = [f"v{number}" for number, _ in known]
        drawn = axes.barh(names, [value for _, value in known], color=[_choose_colour(number) for number, _ in known])
        axes.bar_label(drawn, labels=[f"{value:.3g}" for _, value in known], padding=6)
        axes.margins(x=0.2)
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return _render_svg(draw, 0.9 + 0.4 * len(known), title)


def _draw_dots(
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
                axes.plot([low, high], [place, place], color=_choose_colour(number), linewidth=2)
            axes.plot([value], [place], "o", color=_choose_colour(number))
            axes.annotate(f"{value:.3g}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(points)), [_shorten(p[0]) for p in points])
        axes.set_ylim(len(points) - 0.4, -0.8)
        axes.set_xlabel(label)

    return _render_svg(draw, 0.9 + 0.36 * len(points), title)


def _render_svg(draw: Callable[[Axes], None], height: float, title: str) -> Markup:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = written.getvalue()
    for colour, name in ((INK, "ink"), (LINE, "line"), *((c, f"v{i + 1}") for i, c in enumerate(VERSIONS))):
        text = text.replace(colour, f"var(--{name})")
    start = text.index("<svg")
    return Markup(text[start : start + 4] + f' role="img" aria-label="{title}"' + text[start + 4 :])


def _thin_points(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    step = max(1, len(points) // MAX_POINTS)
    return [*points[:-1:step], points[-1]]


def _choose_colour(version: int) -> str:
    return VERSIONS[(version - 1) % len(VERSIONS)]


def _shorten(text: str, width: int = 34) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
