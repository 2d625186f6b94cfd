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
from sqlft.inference.estimate import InferenceEstimate, Interval, estimate_inference, estimate_unseen_prompts
from sqlft.inference.statement_runs import PromptTable, StatementRuns
from sqlft.query.execute import Execution, ModelStep
from sqlft.query.scope import ModelScan
from sqlft.query.slices import SlicedQuery, slice_query
from sqlft.session import Session, format_dollars

EXPLAIN_HEADING = re.compile(r"\s*explain\s*(?:(?P<analyze>analyze)\b|\((?P<options>[^)]*)\))?\s*", re.I)
ADVICE = "Write EXPLAIN, EXPLAIN ANALYZE, EXPLAIN (FORMAT JSON) or EXPLAIN (ANALYZE, FORMAT JSON)."


def format_count(number: float) -> str:
    """1,234"""
    return f"{round(number):,}"


class ExplainOptions(NamedTuple):
    """What EXPLAIN's own words ask for."""

    analyze: bool = False
    as_json: bool = False


@dataclass
class ExplainedModel:
    """One model of the plan: what was foreseen, and the book with what then happened."""

    scan: ModelScan
    forecast: InferenceEstimate
    prompt_table: PromptTable
    note: str = ""


def parse_explain_options(before: str) -> ExplainOptions | None:
    """What stands before the query, if it is EXPLAIN; NotSupported for a format that this has not."""
    heading = EXPLAIN_HEADING.fullmatch(before)
    if heading is None:
        return None
    words = [w.split() for w in (heading["options"] or "").upper().split(",") if w.strip()]
    formats = [w[-1] for w in words if w[0] == "FORMAT"]
    others = [w[0] for w in words if w not in (["ANALYZE"], ["FORMAT", "JSON"], ["FORMAT", "TEXT"])]
    if others:
        what = f"format {formats[0].lower()}" if formats else f"option {others[0].lower()}"
        raise NotSupported(f"EXPLAIN has no {what} for queries that read models.", ADVICE)
    return ExplainOptions(heading["analyze"] is not None or ["ANALYZE"] in words, formats == ["JSON"])


class Explainer:
    """Draws one query's plan."""

    def __init__(
        self, session: Session, cache: Cache, asker: StatementRuns, execution: Execution, what: ExplainOptions
    ) -> None:
        self._session, self._cache, self._statement_runs, self._execution, self._explain_options = (
            session,
            cache,
            asker,
            execution,
            what,
        )
        self._models: list[ExplainedModel] = []
        self._began = time.monotonic()

    def run(self) -> pa.Table:
        """The plan as DuckDB's EXPLAIN gives one: a row of explain_key and explain_value."""
        sliced = slice_query(self._execution)
        root, rows = self._explain_whole() if sliced is None else self._explain_slices(sliced)
        key = "analyzed_plan" if self._explain_options.analyze else "physical_plan"
        value = self._format_json(root, rows) if self._explain_options.as_json else self._format_text(root, rows)
        return pa.table({"explain_key": [key], "explain_value": [value]})

    # -- answered piece by piece ---------------------------------------------------------------------------

    def _explain_slices(self, sliced: SlicedQuery) -> tuple[Operator, int | None]:
        try:
            sliced.start()
            inner = self._plan(sliced.spool_query)
            outer = _drop_row_counts(self._plan(sliced.text))
            for asked in sliced.models:
                rows = asked.prompt_table.inference_run.rows
                if asked.is_chained:
                    rows = max((t.forecast.rows for t in self._models), default=0)
                self._add_estimate(asked.scan, asked.prompt_table, rows, asked.scan.is_read, sliced.is_filtered)
            given = None
            if self._explain_options.analyze:
                given = sum(piece.to_arrow_reader(2048).read_all().num_rows for piece in sliced.chunks())
        finally:
            sliced.close()
        node = inner
        for told in self._models:
            node = self._make_model_operator(told, [node])
        return _insert_operator(outer, node), given

    # -- answered as a whole -------------------------------------------------------------------------------

    def _explain_whole(self) -> tuple[Operator, int | None]:
        self._execution.before_asking = self._add_step_estimate
        sql = self._execution.run_to_sql()
        analyzed = self._explain_options.analyze
        root = self._plan(sql, "ANALYZE, " if analyzed else "")
        for told, step in zip(self._models, self._execution.steps, strict=True):
            node = self._make_model_operator(told, [self._plan(step.query)])
            if not _replace_scan(root, step.columns, node):
                root.children.append(node)
        return root, root.rows if analyzed else None

    def _add_step_estimate(self, step: ModelStep) -> None:
        self._add_estimate(step.scan, step.prompt_table, step.rows, step.scan.is_read, False)

    # -- what is foreseen and what happened ----------------------------------------------------------------

    def _add_estimate(self, scan: ModelScan, book: PromptTable, rows: int, read: bool, may_stop: bool) -> None:
        note = ""
        waiting = book.inference_run.unanswered_prompts() if read else []
        prompts = len(book.inference_run.answers)
        least = min(1, len(waiting)) if may_stop else None
        of = (self._session, self._cache, book.resolved, book.inference_run.options)
        if read and rows and not prompts and self._models:
            note = "its prompts need the answers of the model below"
            below = self._models[-1].forecast
            most = max(rows, below.rows)
            told = estimate_unseen_prompts(*of, most, below.prompts or round(below.asked.expected), most)
        else:
            told = estimate_inference(*of, rows, prompts if read else 0, waiting, least)
        if not read:
            note = "nobody reads its answer: it is not asked"
        elif may_stop and waiting:
            note = "it stops when enough rows pass"
        self._models.append(ExplainedModel(scan, told, book, note))

    def _make_model_operator(self, told: ExplainedModel, children: list[Operator]) -> Operator:
        model = told.prompt_table.resolved.model
        version = told.prompt_table.resolved.version.key
        lines = [f"Engine: {model.engine}{f', base {model.base}' if model.base else ''}"]
        lines += [told.note] if told.note else []
        lines += _format_estimate(told.forecast)
        facts: dict[str, Any] = {
            "Model": str(version),
            "Engine": model.engine,
            "Base": model.base,
            "Estimate": _estimate_as_json(told.forecast),
        }
        first = next(t for t in self._models if t.prompt_table is told.prompt_table)
        if self._explain_options.analyze and first is told:
            actual = _read_usage(told.prompt_table)
            facts["Actual"] = actual
            lines += _format_usage(actual)
        return Operator(f"Model {version}", lines, children, facts=facts)

    def _plan(self, sql: str, more: str = "") -> Operator:
        found = self._session.con.execute(f"EXPLAIN ({more}FORMAT JSON) {sql}").fetchall()
        plan: Any = json.loads(found[-1][1])
        if isinstance(plan, Mapping):
            plan = plan.get("operator") or plan.get("children") or [plan]
        return read_operator(plan[0])

    # -- the whole -----------------------------------------------------------------------------------------

    def _format_text(self, root: Operator, rows: int | None) -> str:
        costs = [t.forecast.cost_usd for t in self._models]
        if self._explain_options.analyze:
            spent = [
                _read_usage(book)["cost_usd"]
                for book in {id(t.prompt_table): t.prompt_table for t in self._models}.values()
            ]
            total = "not known" if None in spent else format_dollars(sum(spent))
            head = [f"Total Time: {time.monotonic() - self._began:.4f}s", f"Cost: {total}"]
            head += [] if rows is None else [f"Rows: {format_count(rows)}"]
            return draw_box("Summary", head) + draw_operators(root)
        cost = _sum_ranges(costs)
        head = [
            f"Requests: {_format_range(_sum_ranges([t.forecast.asked for t in self._models]))}",
            f"Cost: {_format_range(cost, format_dollars)}",
            f"Time: {_format_range(_sum_ranges([t.forecast.seconds for t in self._models]), _format_duration)}",
            "No model was asked for this.",
        ]
        return draw_box("Estimate", head) + draw_operators(root)

    def _format_json(self, root: Operator, rows: int | None) -> str:
        if not self._explain_options.analyze:
            return json.dumps([root.json()], indent=4, default=str)
        seconds = time.monotonic() - self._began
        return json.dumps({"latency": seconds, "rows_returned": rows, "operator": [root.json()]}, indent=4, default=str)


def _insert_operator(root: Operator, node: Operator) -> Operator:
    """The tree with `node` where it reads answers: at the nearest operator that is above all of its Arrow scans."""
    if sum(_count_arrow_scans(c) > 0 for c in root.children) == 1 and _count_arrow_scans(root) > int(root.is_arrow):
        root.children = [_insert_operator(c, node) if _count_arrow_scans(c) else c for c in root.children]
        return root
    return (
        node if _count_arrow_scans(root) else Operator(root.name, root.lines, [*root.children, node], facts=root.facts)
    )


def _drop_row_counts(node: Operator) -> Operator:
    """The plan over answers that are not there yet, without DuckDB's count of them."""
    node.lines = [line for line in node.lines if not line.startswith("~")]
    for child in node.children:
        _drop_row_counts(child)
    return node


def _count_arrow_scans(node: Operator) -> int:
    return int(node.is_arrow) + sum(_count_arrow_scans(c) for c in node.children)


def _replace_scan(root: Operator, columns: frozenset[str], node: Operator) -> bool:
    """Whether a scan of these columns was found below `root`, and `node` put in its place."""
    for i, child in enumerate(root.children):
        if child.is_arrow and not child.children and child.columns <= columns:
            root.children[i] = node
            return True
        if _replace_scan(child, columns, node):
            return True
    return False


def _format_estimate(told: InferenceEstimate) -> list[str]:
    exact = told.counted == "counted" and told.input_tokens.exact
    lines = [
        f"Rows: {format_count(told.rows)}",
        f"Distinct Prompts: {format_count(told.prompts) if told.prompts or not told.asked.high else 'not known'}",
        f"Cached: {format_count(told.cached)}",
        f"To Ask: {_format_range(told.asked)}",
        f"Tokens In: {_format_range(told.input_tokens)}",
        f"Tokens Out: {_format_range(told.output_tokens)}",
        f"Cost: {_format_range(told.cost_usd, format_dollars)}",
        f"Time: {_format_range(told.seconds, _format_duration)}",
    ]
    if told.asked.high:
        lines += [] if exact else [f"Prompts are told {told.counted}"]
        lines += [f"Answers are told by {told.earlier} earlier" if told.earlier else "There are no earlier answers"]
    return lines


def _format_usage(actual: Mapping[str, Any]) -> list[str]:
    cost = actual["cost_usd"]
    return [
        "Then:",
        f"Asked: {format_count(actual['calls'])}, Cached: {format_count(actual['cached'])}, "
        f"Errors: {format_count(actual['errors'])}",
        f"Tokens In: {format_count(actual['input_tokens'])}, Out: {format_count(actual['output_tokens'])}",
        f"Cost: {'not known' if cost is None else format_dollars(cost)}",
        f"Time: {_format_duration(actual['seconds'])}",
    ]


def _read_usage(book: PromptTable) -> dict[str, Any]:
    asking = book.inference_run
    return {
        **{name: value for name, value in asdict(asking.totals).items() if name != "input_chars"},
        "cost_usd": asking.cost_usd,
        "seconds": asking.seconds,
    }


def _estimate_as_json(told: InferenceEstimate) -> dict[str, Any]:
    """The forecast for JSON: a figure and its interval each."""
    found: dict[str, Any] = {"rows": told.rows, "distinct_prompts": told.prompts, "cached": told.cached}
    for name in ("asked", "input_tokens", "output_tokens", "cost_usd", "seconds"):
        figure: Interval | None = getattr(told, name)
        low, expected, high = (None, None, None) if figure is None else figure
        found |= {name: expected, f"{name}_low": low, f"{name}_high": high}
    return {**found, "earlier_answers": told.earlier, "prompts_told": told.counted}


def _sum_ranges(figures: list[Interval | None]) -> Interval | None:
    total = Interval(0, 0, 0)
    for figure in figures:
        if figure is None:
            return None
        total = total.plus(figure)
    return total


def _format_range(figure: Interval | None, shown: Callable[[float], str] = format_count) -> str:
    if figure is None:
        return "not known"
    if figure.exact:
        return shown(figure.expected)
    return f"~{shown(figure.expected)} ({shown(figure.low)} to {shown(figure.high)})"


def _format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


# -- the plan as a tree of boxes, the way DuckDB draws one: first child below, the others to its right ----------------

BOX_WIDTH = 33
"""Letters of a box's lines, at most."""
ROW_COUNT_KEYS = ("operator_cardinality", "intermediate_rows")
TIMING_KEYS = ("operator_timing", "timing")
NAME_KEYS = ("name", "operator_name", "type", "operator_type")
ROOT_NAMES = ("RESULT_COLLECTOR", "EXPLAIN_ANALYZE", "QUERY")


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


def read_operator(plan: Mapping[str, Any]) -> Operator:
    """An operator of DuckDB's EXPLAIN (FORMAT JSON), with or without ANALYZE."""
    name = str(next((plan[n] for n in NAME_KEYS if plan.get(n)), "")).strip()
    children = [read_operator(c) for c in plan.get("children", [])]
    if name in ROOT_NAMES and len(children) == 1:
        return children[0]
    extra = dict(plan.get("extra_info") or {})
    estimated = extra.pop("Estimated Cardinality", None)
    lines = [f"{key}: {_format_value(value)}" for key, value in extra.items() if value not in ("", [], None)]
    actual = next((plan[n] for n in ROW_COUNT_KEYS if n in plan), None)
    if actual is not None:
        seconds = next((plan[n] for n in TIMING_KEYS if n in plan), 0.0)
        lines.append(f"{format_count(actual)} row{'s'[: actual != 1]} in {seconds:.4f} s")
    elif estimated is not None:
        lines.append(f"~{estimated} rows")
    reads = extra.get("Projections", [])
    columns = frozenset(str(c).strip('"').lower() for c in ([reads] if isinstance(reads, str) else reads))
    facts = {k: v for k, v in plan.items() if k not in ("children", "extra_info", *NAME_KEYS)} | (
        extra if estimated is None else {**extra, "Estimated Cardinality": estimated}
    )
    is_arrow = "ARROW_SCAN" in str(extra.get("Function", "")) or "ARROW_SCAN" in name
    return Operator(name, lines, children, columns, is_arrow, actual, facts)


def draw_operators(root: Operator) -> str:
    """The tree as text."""
    return "\n".join(line.rstrip() for line in _draw_block(root, _measure_columns(root, {}, 0)[0], 0)) + "\n"


def draw_box(title: str, lines: list[str]) -> str:
    """One box by itself."""
    width = max(len(title) + 3, *(len(line) for line in lines), 0)
    return "\n".join(_draw_box_lines(title, lines, width, above=False, below=False)) + "\n"


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("\n", ", ")


def _wrap_lines(lines: list[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        found += textwrap.wrap(line, BOX_WIDTH, subsequent_indent="  ", break_long_words=True) or [""]
    return found


def _format_title(node: Operator) -> str:
    return node.name if node.name != node.name.upper() else node.name.replace("_", " ").title()


def _measure_columns(node: Operator, widths: dict[int, int], column: int) -> tuple[dict[int, int], int]:
    """The width of every column of boxes, and the first column that is free."""
    needed = max([len(_format_title(node)) + 4, *(len(line) for line in _wrap_lines(node.lines))])
    widths[column] = max(widths.get(column, 0), needed)
    free = column + 1
    for k, child in enumerate(node.children):
        _, end = _measure_columns(child, widths, column if k == 0 else free)
        free = max(free, end)
    return widths, free


def _count_columns(node: Operator) -> int:
    """How many columns a node and what is below it take."""
    return max(1, sum(_count_columns(c) for c in node.children))


def _draw_block(node: Operator, widths: dict[int, int], column: int, above: bool = False) -> list[str]:
    width = widths[column]
    lines = _draw_box_lines(_format_title(node), _wrap_lines(node.lines), width, above=above, below=bool(node.children))
    if not node.children:
        return lines
    places = [column]
    for child in node.children[:-1]:
        places.append(places[-1] + _count_columns(child))
    starts = [sum(widths[c] + 6 for c in range(column, place)) for place in places]
    if len(places) > 1:
        lines.append(_draw_connector([s + _middle(widths[p]) for s, p in zip(starts, places, strict=True)]))
    blocks = [_draw_block(child, widths, place, above=True) for child, place in zip(node.children, places, strict=True)]
    for row in range(max(map(len, blocks))):
        line = ""
        for start, block in zip(starts, blocks, strict=True):
            if row < len(block):
                line = line.ljust(start) + block[row]
        lines.append(line)
    return lines


def _draw_box_lines(title: str, lines: list[str], width: int, *, above: bool, below: bool) -> list[str]:
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


def _draw_connector(places: list[int]) -> str:
    line = list(" " * (places[-1] + 1))
    line[places[0] : places[-1]] = "─" * (places[-1] - places[0])
    line[places[0]], line[places[-1]] = "├", "╮"
    for place in places[1:-1]:
        line[place] = "┬"
    return "".join(line)
