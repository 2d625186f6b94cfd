"""EXPLAIN and EXPLAIN ANALYZE of a query that reads models: DuckDB's plan with the models in it.

EXPLAIN runs the part of the query that gives the models their inputs, to count rows and prompts, and asks nothing.
"""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from sqlft.errors import NotSupported
from sqlft.inference.cache import Cache
from sqlft.inference.estimate import Forecast, Range, forecast, unseen
from sqlft.inference.statement_runs import Asker, Book
from sqlft.query.execute import Execution, Step
from sqlft.query.scope import Scan
from sqlft.query.slices import Sliced, slice_up
from sqlft.session import Session, dollars

HEADING = re.compile(r"\s*explain\s*(?:(?P<analyze>analyze)\b|\((?P<options>[^)]*)\))?\s*", re.I)
ADVICE = "Write EXPLAIN, EXPLAIN ANALYZE, EXPLAIN (FORMAT JSON) or EXPLAIN (ANALYZE, FORMAT JSON)."


def count(number: float) -> str:
    """1,234"""
    return f"{round(number):,}"


class Wanted(NamedTuple):
    """What EXPLAIN's own words ask for."""

    analyze: bool = False
    as_json: bool = False


@dataclass
class Told:
    """One model of the plan: what was foreseen, and the book with what then happened."""

    scan: Scan
    forecast: Forecast
    book: Book
    note: str = ""


def wanted(before: str) -> Wanted | None:
    """What stands before the query, if it is EXPLAIN; NotSupported for a format that this has not."""
    heading = HEADING.fullmatch(before)
    if heading is None:
        return None
    words = [w.split() for w in (heading["options"] or "").upper().split(",") if w.strip()]
    formats = [w[-1] for w in words if w[0] == "FORMAT"]
    others = [w[0] for w in words if w not in (["ANALYZE"], ["FORMAT", "JSON"], ["FORMAT", "TEXT"])]
    if others:
        what = f"format {formats[0].lower()}" if formats else f"option {others[0].lower()}"
        raise NotSupported(f"EXPLAIN has no {what} for queries that read models.", ADVICE)
    return Wanted(heading["analyze"] is not None or ["ANALYZE"] in words, formats == ["JSON"])


class Explainer:
    """Draws one query's plan."""

    def __init__(self, session: Session, cache: Cache, asker: Asker, execution: Execution, what: Wanted) -> None:
        self._session, self._cache, self._asker, self._execution, self._what = session, cache, asker, execution, what
        self._told: list[Told] = []
        self._began = time.monotonic()

    def run(self) -> pa.Table:
        """The plan as DuckDB's EXPLAIN gives one: a row of explain_key and explain_value."""
        sliced = slice_up(self._execution)
        root, rows = self._pieces() if sliced is None else self._slices(sliced)
        key = "analyzed_plan" if self._what.analyze else "physical_plan"
        value = self._json(root, rows) if self._what.as_json else self._text(root, rows)
        return pa.table({"explain_key": [key], "explain_value": [value]})

    # -- answered piece by piece ---------------------------------------------------------------------------

    def _slices(self, sliced: Sliced) -> tuple[Operator, int | None]:
        try:
            sliced.start()
            inner = self._plan(sliced.spool_query)
            outer = _without_rows(self._plan(sliced.text))
            for asked in sliced.asked:
                rows = asked.book.asking.rows
                if asked.waits:
                    rows = max((t.forecast.rows for t in self._told), default=0)
                self._foresee(asked.scan, asked.book, rows, asked.scan.is_read, sliced.is_filtered)
            given = None
            if self._what.analyze:
                given = sum(piece.to_arrow_reader(2048).read_all().num_rows for piece in sliced.chunks())
        finally:
            sliced.close()
        node = inner
        for told in self._told:
            node = self._model(told, [node])
        return _in_place(outer, node), given

    # -- answered as a whole -------------------------------------------------------------------------------

    def _pieces(self) -> tuple[Operator, int | None]:
        self._execution.before_asking = self._before
        sql = self._execution.whole()
        analyzed = self._what.analyze
        root = self._plan(sql, "ANALYZE, " if analyzed else "")
        for told, step in zip(self._told, self._execution.steps, strict=True):
            node = self._model(told, [self._plan(step.query)])
            if not _replaced(root, step.columns, node):
                root.children.append(node)
        return root, root.rows if analyzed else None

    def _before(self, step: Step) -> None:
        self._foresee(step.scan, step.book, step.rows, step.scan.is_read, False)

    # -- what is foreseen and what happened ----------------------------------------------------------------

    def _foresee(self, scan: Scan, book: Book, rows: int, read: bool, may_stop: bool) -> None:
        note = ""
        waiting = book.asking.waiting() if read else []
        prompts = len(book.asking.answers)
        least = min(1, len(waiting)) if may_stop else None
        of = (self._session, self._cache, book.resolved, book.asking.options)
        if read and rows and not prompts and self._told:
            note = "its prompts need the answers of the model below"
            below = self._told[-1].forecast
            most = max(rows, below.rows)
            told = unseen(*of, most, below.prompts or round(below.asked.expected), most)
        else:
            told = forecast(*of, rows, prompts if read else 0, waiting, least)
        if not read:
            note = "nobody reads its answer: it is not asked"
        elif may_stop and waiting:
            note = "it stops when enough rows pass"
        self._told.append(Told(scan, told, book, note))

    def _model(self, told: Told, children: list[Operator]) -> Operator:
        model = told.book.resolved.model
        version = told.book.resolved.version.key
        lines = [f"Engine: {model.engine}{f', base {model.base}' if model.base else ''}"]
        lines += [told.note] if told.note else []
        lines += _foreseen(told.forecast)
        facts: dict[str, Any] = {
            "Model": str(version),
            "Engine": model.engine,
            "Base": model.base,
            "Estimate": _plain(told.forecast),
        }
        first = next(t for t in self._told if t.book is told.book)
        if self._what.analyze and first is told:
            actual = _actual(told.book)
            facts["Actual"] = actual
            lines += _happened(actual)
        return Operator(f"Model {version}", lines, children, facts=facts)

    def _plan(self, sql: str, more: str = "") -> Operator:
        found = self._session.con.execute(f"EXPLAIN ({more}FORMAT JSON) {sql}").fetchall()
        plan: Any = json.loads(found[-1][1])
        if isinstance(plan, Mapping):
            plan = plan.get("operator") or plan.get("children") or [plan]
        return node_of(plan[0])

    # -- the whole -----------------------------------------------------------------------------------------

    def _text(self, root: Operator, rows: int | None) -> str:
        costs = [t.forecast.cost_usd for t in self._told]
        if self._what.analyze:
            spent = [_actual(book)["cost_usd"] for book in {id(t.book): t.book for t in self._told}.values()]
            total = "not known" if None in spent else dollars(sum(spent))
            head = [f"Total Time: {time.monotonic() - self._began:.4f}s", f"Cost: {total}"]
            head += [] if rows is None else [f"Rows: {count(rows)}"]
            return boxed("Summary", head) + draw(root)
        cost = _sum(costs)
        head = [
            f"Requests: {_figure(_sum([t.forecast.asked for t in self._told]))}",
            f"Cost: {_figure(cost, dollars)}",
            f"Time: {_figure(_sum([t.forecast.seconds for t in self._told]), _duration)}",
            "No model was asked for this.",
        ]
        return boxed("Estimate", head) + draw(root)

    def _json(self, root: Operator, rows: int | None) -> str:
        if not self._what.analyze:
            return json.dumps([root.json()], indent=4, default=str)
        seconds = time.monotonic() - self._began
        return json.dumps({"latency": seconds, "rows_returned": rows, "operator": [root.json()]}, indent=4, default=str)


def _in_place(root: Operator, node: Operator) -> Operator:
    """The tree with `node` where it reads answers: at the nearest operator that is above all of its Arrow scans."""
    if sum(_arrows(c) > 0 for c in root.children) == 1 and _arrows(root) > int(root.is_arrow):
        root.children = [_in_place(c, node) if _arrows(c) else c for c in root.children]
        return root
    return node if _arrows(root) else Operator(root.name, root.lines, [*root.children, node], facts=root.facts)


def _without_rows(node: Operator) -> Operator:
    """The plan over answers that are not there yet, without DuckDB's count of them."""
    node.lines = [line for line in node.lines if not line.startswith("~")]
    for child in node.children:
        _without_rows(child)
    return node


def _arrows(node: Operator) -> int:
    return int(node.is_arrow) + sum(_arrows(c) for c in node.children)


def _replaced(root: Operator, columns: frozenset[str], node: Operator) -> bool:
    """Whether a scan of these columns was found below `root`, and `node` put in its place."""
    for i, child in enumerate(root.children):
        if child.is_arrow and not child.children and child.columns <= columns:
            root.children[i] = node
            return True
        if _replaced(child, columns, node):
            return True
    return False


def _foreseen(told: Forecast) -> list[str]:
    exact = told.counted == "counted" and told.input_tokens.exact
    lines = [
        f"Rows: {count(told.rows)}",
        f"Distinct Prompts: {count(told.prompts) if told.prompts or not told.asked.high else 'not known'}",
        f"Cached: {count(told.cached)}",
        f"To Ask: {_figure(told.asked)}",
        f"Tokens In: {_figure(told.input_tokens)}",
        f"Tokens Out: {_figure(told.output_tokens)}",
        f"Cost: {_figure(told.cost_usd, dollars)}",
        f"Time: {_figure(told.seconds, _duration)}",
    ]
    if told.asked.high:
        lines += [] if exact else [f"Prompts are told {told.counted}"]
        lines += [f"Answers are told by {told.earlier} earlier" if told.earlier else "There are no earlier answers"]
    return lines


def _happened(actual: Mapping[str, Any]) -> list[str]:
    cost = actual["cost_usd"]
    return [
        "Then:",
        f"Asked: {count(actual['calls'])}, Cached: {count(actual['cached'])}, Errors: {count(actual['errors'])}",
        f"Tokens In: {count(actual['input_tokens'])}, Out: {count(actual['output_tokens'])}",
        f"Cost: {'not known' if cost is None else dollars(cost)}",
        f"Time: {_duration(actual['seconds'])}",
    ]


def _actual(book: Book) -> dict[str, Any]:
    asking = book.asking
    return {
        **{name: value for name, value in asdict(asking.tally).items() if name != "input_chars"},
        "cost_usd": asking.cost_usd,
        "seconds": asking.seconds,
    }


def _plain(told: Forecast) -> dict[str, Any]:
    """The forecast for JSON: a figure and its interval each."""
    found: dict[str, Any] = {"rows": told.rows, "distinct_prompts": told.prompts, "cached": told.cached}
    for name in ("asked", "input_tokens", "output_tokens", "cost_usd", "seconds"):
        figure: Range | None = getattr(told, name)
        low, expected, high = (None, None, None) if figure is None else figure
        found |= {name: expected, f"{name}_low": low, f"{name}_high": high}
    return {**found, "earlier_answers": told.earlier, "prompts_told": told.counted}


def _sum(figures: list[Range | None]) -> Range | None:
    total = Range(0, 0, 0)
    for figure in figures:
        if figure is None:
            return None
        total = total.plus(figure)
    return total


def _figure(figure: Range | None, shown: Callable[[float], str] = count) -> str:
    if figure is None:
        return "not known"
    if figure.exact:
        return shown(figure.expected)
    return f"~{shown(figure.expected)} ({shown(figure.low)} to {shown(figure.high)})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


# -- the plan as a tree of boxes, the way DuckDB draws one: first child below, the others to its right ----------------

WIDTH = 33
"""Letters of a box's lines, at most."""
ROWS = ("operator_cardinality", "intermediate_rows")
TIMES = ("operator_timing", "timing")
NAMES = ("name", "operator_name", "type", "operator_type")
ROOTS = ("RESULT_COLLECTOR", "EXPLAIN_ANALYZE", "QUERY")


@dataclass
class Operator:
    """One operator: its name, lines `key: value` or `value`, and what its rows come from."""

    name: str
    lines: list[str] = field(default_factory=list)
    children: list[Operator] = field(default_factory=list)
    columns: frozenset[str] = frozenset()
    """What a scan reads, in lower case."""
    is_arrow: bool = False
    rows: int | None = None
    """How many it gave, where it ran."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has in place of the lines."""

    def json(self) -> dict[str, Any]:
        """As EXPLAIN (FORMAT JSON) has it."""
        return {"name": self.name, "children": [c.json() for c in self.children], "extra_info": dict(self.facts)}


def node_of(plan: Mapping[str, Any]) -> Operator:
    """An operator of DuckDB's EXPLAIN (FORMAT JSON), with or without ANALYZE."""
    name = str(next((plan[n] for n in NAMES if plan.get(n)), "")).strip()
    children = [node_of(c) for c in plan.get("children", [])]
    if name in ROOTS and len(children) == 1:
        return children[0]
    extra = dict(plan.get("extra_info") or {})
    estimated = extra.pop("Estimated Cardinality", None)
    lines = [f"{key}: {_line(value)}" for key, value in extra.items() if value not in ("", [], None)]
    actual = next((plan[n] for n in ROWS if n in plan), None)
    if actual is not None:
        seconds = next((plan[n] for n in TIMES if n in plan), 0.0)
        lines.append(f"{count(actual)} row{'s'[: actual != 1]} in {seconds:.4f} s")
    elif estimated is not None:
        lines.append(f"~{estimated} rows")
    reads = extra.get("Projections", [])
    columns = frozenset(str(c).strip('"').lower() for c in ([reads] if isinstance(reads, str) else reads))
    facts = {k: v for k, v in plan.items() if k not in ("children", "extra_info", *NAMES)} | (
        extra if estimated is None else {**extra, "Estimated Cardinality": estimated}
    )
    is_arrow = "ARROW_SCAN" in str(extra.get("Function", "")) or "ARROW_SCAN" in name
    return Operator(name, lines, children, columns, is_arrow, actual, facts)


def draw(root: Operator) -> str:
    """The tree as text."""
    return "\n".join(line.rstrip() for line in _block(root, _widths(root, {}, 0)[0], 0)) + "\n"


def boxed(title: str, lines: list[str]) -> str:
    """One box by itself."""
    width = max(len(title) + 3, *(len(line) for line in lines), 0)
    return "\n".join(_box(title, lines, width, above=False, below=False)) + "\n"


def _line(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("\n", ", ")


def _wrapped(lines: list[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        found += textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=True) or [""]
    return found


def _title(node: Operator) -> str:
    return node.name if node.name != node.name.upper() else node.name.replace("_", " ").title()


def _widths(node: Operator, widths: dict[int, int], column: int) -> tuple[dict[int, int], int]:
    """The width of every column of boxes, and the first column that is free."""
    needed = max([len(_title(node)) + 4, *(len(line) for line in _wrapped(node.lines))])
    widths[column] = max(widths.get(column, 0), needed)
    free = column + 1
    for k, child in enumerate(node.children):
        _, end = _widths(child, widths, column if k == 0 else free)
        free = max(free, end)
    return widths, free


def _span(node: Operator) -> int:
    """How many columns a node and what is below it take."""
    return max(1, sum(_span(c) for c in node.children))


def _block(node: Operator, widths: dict[int, int], column: int, above: bool = False) -> list[str]:
    width = widths[column]
    lines = _box(_title(node), _wrapped(node.lines), width, above=above, below=bool(node.children))
    if not node.children:
        return lines
    places = [column]
    for child in node.children[:-1]:
        places.append(places[-1] + _span(child))
    starts = [sum(widths[c] + 6 for c in range(column, place)) for place in places]
    if len(places) > 1:
        lines.append(_connector([s + _middle(widths[p]) for s, p in zip(starts, places, strict=True)]))
    blocks = [_block(child, widths, place, above=True) for child, place in zip(node.children, places, strict=True)]
    for row in range(max(map(len, blocks))):
        line = ""
        for start, block in zip(starts, blocks, strict=True):
            if row < len(block):
                line = line.ljust(start) + block[row]
        lines.append(line)
    return lines


def _box(title: str, lines: list[str], width: int, *, above: bool, below: bool) -> list[str]:
    top = list(f"╭─ {title} ".ljust(width + 3, "─") + "╮")
    bottom = list("╰" + "─" * (width + 2) + "╯")
    at = _middle(width)
    if above and at > len(title) + 3:
        top[at] = "┴"
    if below:
        bottom[at] = "┬"
    return ["".join(top), *(f"│ {line.ljust(width)} │" for line in lines), "".join(bottom)]


def _middle(width: int) -> int:
    return (width + 4) // 2


def _connector(places: list[int]) -> str:
    line = list(" " * (places[-1] + 1))
    line[places[0] : places[-1]] = "─" * (places[-1] - places[0])
    line[places[0]], line[places[-1]] = "├", "╮"
    for place in places[1:-1]:
        line[place] = "┬"
    return "".join(line)
