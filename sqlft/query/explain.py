"""EXPLAIN and EXPLAIN ANALYZE of a query that reads models: DuckDB's plan with the models in it.

EXPLAIN runs the part of the query that gives the models their inputs, to count rows and prompts, and asks nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import pyarrow as pa

from sqlft.errors import NotSupported
from sqlft.handler import SharesWork
from sqlft.inference.cache import Cache
from sqlft.inference.estimate import InferenceEstimate, Interval, estimate_inference, estimate_unseen_prompts
from sqlft.inference.run import InferenceRun
from sqlft.inference.statement_runs import PromptTable
from sqlft.query import ast
from sqlft.query.ast import Node
from sqlft.query.execute import Execution
from sqlft.query.retrieval import FIRST_TEXTS, SearchStep
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


class ExplainedModel(NamedTuple):
    """One model of the plan: what asking it is estimated to take, and the prompts with what it then took."""

    estimate: InferenceEstimate
    prompt_table: PromptTable
    note: str = ""


def parse_explain(text: str) -> tuple[ExplainOptions, int] | None:
    """EXPLAIN's own words, and where the statement behind them starts; NotSupported for another format.

    >>> parse_explain("EXPLAIN (ANALYZE, FORMAT JSON) SELECT 1")
    (ExplainOptions(analyze=True, as_json=True), 31)
    """
    heading = EXPLAIN_HEADING.match(text)
    if heading is None or heading.end() == len(text):
        return None
    words = [w.split() for w in (heading["options"] or "").upper().split(",") if w.strip()]
    formats = [w[-1] for w in words if w[0] == "FORMAT"]
    others = [w[0] for w in words if w not in (["ANALYZE"], ["FORMAT", "JSON"], ["FORMAT", "TEXT"])]
    if others:
        what = f"format {formats[0].lower()}" if formats else f"option {others[0].lower()}"
        raise NotSupported(f"EXPLAIN has no {what} for queries that read models.", ADVICE)
    analyze = heading["analyze"] is not None or ["ANALYZE"] in words
    return ExplainOptions(analyze, formats == ["JSON"]), heading.end()


class Explainer:
    """Explains one query."""

    def __init__(self, session: Session, cache: Cache, execution: Execution, options: ExplainOptions) -> None:
        self._session, self._cache, self._execution, self._options = session, cache, execution, options
        self._models: list[ExplainedModel] = []
        self._embeddings: list[ExplainedModel] = []
        self._began = time.monotonic()

    def run(self) -> pa.Table:
        """The plan as DuckDB's EXPLAIN gives one: a row of explain_key and explain_value."""
        sliced = slice_query(self._execution, streams_contexts=False)
        root, rows = self._explain_whole() if sliced is None else self._explain_slices(sliced)
        key = "analyzed_plan" if self._options.analyze else "physical_plan"
        value = self._format_json(root, rows) if self._options.as_json else self._format_text(root, rows)
        return pa.table({"explain_key": [key], "explain_value": [value]})

    # -- answered slice by slice ---------------------------------------------------------------------------

    def _explain_slices(self, sliced: SlicedQuery) -> tuple[Operator, int | None]:
        try:
            sliced.start()
            node = self._plan(sliced.spool_query)
            outer = _drop_row_counts(self._plan(sliced.text))
            for model in sliced.models:
                rows = model.prompt_table.inference_run.rows
                if model.is_chained:
                    rows = max((m.estimate.rows for m in self._models), default=0)
                if isinstance(model.scan, ModelScan) and isinstance(model.prompt_table, PromptTable):
                    self._add_estimate(model.scan, model.prompt_table, rows, may_stop=sliced.is_filtered)
            row_count = None
            if self._options.analyze:
                row_count = sum(slice_.to_arrow_reader(2048).read_all().num_rows for slice_ in sliced.chunks())
            self._place_searches(node)
        finally:
            sliced.close()
        for explained in self._models:
            node = self._make_model_operator(explained, [node])
        for scan in (m.scan for m in sliced.models if not isinstance(m.scan, ModelScan)):
            note = "It is searched for answers of the model below, as context."
            node = Operator(f"Knowledge Base {scan.name}", [note], [node], facts={"Knowledge Base": scan.name})
        return _insert_operator(outer, node), row_count

    # -- answered as a whole -------------------------------------------------------------------------------

    def _explain_whole(self) -> tuple[Operator, int | None]:
        steps = []
        for step in self._execution.ask_models():
            self._add_estimate(step.scan, step.prompt_table, step.rows)
            steps.append(step)
        analyzed = self._options.analyze
        root = self._plan(self._execution.final_sql(), "ANALYZE, " if analyzed else "")
        for explained, step in zip(self._models, steps, strict=True):
            node = self._make_model_operator(explained, [self._plan(step.query)])
            if not _replace_scan(root, step.columns, node):
                root.children.append(node)
        self._place_searches(root)
        return root, root.rows if analyzed else None

    def _place_searches(self, root: Operator) -> None:
        """Put an operator for each knowledge base where what was found in it is read."""
        for step in self._execution.searches:
            node = self._make_search_operator(step)
            if not _replace_scan(root, step.columns, node):
                root.children.append(node)

    def _make_search_operator(self, step: SearchStep) -> Operator:
        scan, options = step.scan, step.search.options
        texts = step.texts()
        kind = {"meaning": "by meaning", "words": "by words", "both": f"by meaning ({options.alpha:g}) and words"}
        filters = " AND ".join(ast.expression_sql(made.node) for made in scan.filters)
        lines = [f"Search: {kind[options.search]}", f"Best: {options.k}{' as context' if scan.gives_context else ''}"]
        lines += [f"Filters: {filters}"] if filters else []
        if options.min_relevance is not None:
            lines.append(f"Relevance: {'>' if options.above else '>='} {options.min_relevance:g}")
        lines += [f"Rows: {format_count(step.rows)}", f"Distinct Texts: {format_count(len(texts))}"]
        facts: dict[str, object] = {
            "Knowledge Base": scan.name,
            "Search": options.search,
            "Best": options.k,
            "Filters": filters,
            "Rows": step.rows,
            "Distinct Texts": len(texts),
        }
        if options.search != "words" and scan.is_read:
            prompts = step.search.open_questions(None if self._options.analyze else texts)
            run = prompts.inference_run
            waiting = [] if self._options.analyze else run.unanswered_prompts()
            model = (self._session, self._cache, prompts.resolved, run.options)
            least = None if scan.row_limit is None else min(FIRST_TEXTS, len(waiting))
            estimate = estimate_inference(*model, len(texts), len(texts), waiting, least)
            explained = ExplainedModel(estimate, prompts)
            self._embeddings.append(explained)
            lines += [f"Embedding Model: {prompts.resolved.version.key}", *_format_embedding(estimate)]
            facts |= {"Embedding Model": str(prompts.resolved.version.key), "Estimate": _estimate_as_json(estimate)}
            if self._options.analyze:
                lines += _format_usage(run)
        if self._options.analyze:
            lines.append(f"Found: {format_count(step.found)}")
            facts["Found"] = step.found
        else:
            lines.append("What it finds is not known yet: its rows are guessed.")
            lines += [] if scan.row_limit is None else ["It stops when LIMIT has enough rows."]
        inputs = [self._plan(step.query)] if any(map(ast.is_column, scan.input_trees())) else []
        return Operator(f"Knowledge Base {scan.name}", lines, inputs, facts=facts)

    # -- what is estimated and what happened ---------------------------------------------------------------

    def _add_estimate(self, scan: ModelScan, prompts: PromptTable, rows: int, *, may_stop: bool = False) -> None:
        note = ""
        run = prompts.inference_run
        waiting = run.unanswered_prompts() if scan.is_read else []
        count = len(run.answers)
        model = (self._session, self._cache, prompts.resolved, run.options)
        if scan.is_read and rows and not count and self._models:
            note = "its prompts need the answers of the model below"
            below = self._models[-1].estimate
            most = max(rows, below.rows)
            estimate = estimate_unseen_prompts(*model, most, below.prompts or round(below.asked.expected), most)
        else:
            least = min(1, len(waiting)) if may_stop else None
            estimate = estimate_inference(*model, rows, count if scan.is_read else 0, waiting, least)
        if not scan.is_read:
            note = "nobody reads its answer: it is not asked"
        elif may_stop and waiting:
            note = "it stops when enough rows pass"
        self._models.append(ExplainedModel(estimate, prompts, note))

    def _make_model_operator(self, explained: ExplainedModel, children: list[Operator]) -> Operator:
        resolved = explained.prompt_table.resolved
        model, version, handler = resolved.model, resolved.version.key, resolved.handler
        lines = [f"Engine: {model.engine}{f', base {model.base}' if model.base else ''}"]
        share = handler.describe_share(resolved.spec, resolved.artifact) if isinstance(handler, SharesWork) else []
        lines += share
        lines += [explained.note] if explained.note else []
        lines += _format_estimate(explained.estimate)
        facts: dict[str, object] = {
            "Model": str(version),
            "Engine": model.engine,
            "Base": model.base,
            **({"Shared by": share} if share else {}),
            "Estimate": _estimate_as_json(explained.estimate),
        }
        first = next(m for m in self._models if m.prompt_table is explained.prompt_table)
        if self._options.analyze and first is explained:
            run = explained.prompt_table.inference_run
            lines += _format_usage(run)
            totals = {name: value for name, value in asdict(run.totals).items() if name != "input_chars"}
            facts["Actual"] = {**totals, "cost_usd": run.cost_usd, "seconds": run.seconds}
        return Operator(f"Model {version}", lines, children, facts=facts)

    def _plan(self, sql: str, more: str = "") -> Operator:
        rows = self._session.con.execute(f"EXPLAIN ({more}FORMAT JSON) {sql}").fetchall()
        plan: Node | list[Node] = json.loads(rows[-1][1])
        if isinstance(plan, dict):
            plan = plan.get("operator") or plan.get("children") or [plan]
        return read_operator(plan[0])

    # -- the whole -----------------------------------------------------------------------------------------

    def _format_text(self, root: Operator, rows: int | None) -> str:
        if self._options.analyze:
            asked = [*self._models, *self._embeddings]
            runs = {id(m.prompt_table): m.prompt_table.inference_run for m in asked}.values()
            costs = [run.cost_usd for run in runs]
            total = sum(cost for cost in costs if cost is not None)
            head = [
                f"Total Time: {time.monotonic() - self._began:.4f}s",
                f"Cost: {'not known' if None in costs else format_dollars(total)}",
                *([] if rows is None else [f"Rows: {format_count(rows)}"]),
            ]
            return f"{format_operators(Operator('Summary', head))}\n{format_operators(root)}"
        estimates = [m.estimate for m in [*self._models, *self._embeddings]]
        head = [
            f"Requests: {_format_range(_sum_ranges([e.asked for e in estimates]))}",
            f"Cost: {_format_range(_sum_ranges([e.cost_usd for e in estimates]), format_dollars)}",
            f"Time: {_format_range(_sum_ranges([e.seconds for e in estimates]), _format_duration)}",
            "No model was asked for this.",
        ]
        return f"{format_operators(Operator('Estimate', head))}\n{format_operators(root)}"

    def _format_json(self, root: Operator, rows: int | None) -> str:
        if not self._options.analyze:
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


def _format_estimate(estimate: InferenceEstimate) -> list[str]:
    is_counted = estimate.counted == "counted" and estimate.input_tokens.exact
    is_known = estimate.prompts or not estimate.asked.high
    lines = [
        f"Rows: {format_count(estimate.rows)}",
        f"Distinct Prompts: {format_count(estimate.prompts) if is_known else 'not known'}",
        f"Cached: {format_count(estimate.cached)}",
        f"To Ask: {_format_range(estimate.asked)}",
        f"Tokens In: {_format_range(estimate.input_tokens)}",
        f"Tokens Out: {_format_range(estimate.output_tokens)}",
        f"Cost: {_format_range(estimate.cost_usd, format_dollars)}",
        f"Time: {_format_range(estimate.seconds, _format_duration)}",
    ]
    if estimate.asked.high:
        lines += [] if is_counted else [f"Prompts are estimated: {estimate.counted}"]
        earlier = f"from {estimate.earlier} earlier ones" if estimate.earlier else "there are no earlier ones"
        lines.append(f"Answers are estimated: {earlier}")
    return lines


def _format_embedding(estimate: InferenceEstimate) -> list[str]:
    """Of an estimate what is worth knowing of texts to embed."""
    return [
        f"Embedded Already: {format_count(estimate.cached)}",
        f"To Embed: {_format_range(estimate.asked)}",
        f"Cost: {_format_range(estimate.cost_usd, format_dollars)}",
        f"Time: {_format_range(estimate.seconds, _format_duration)}",
    ]


def _format_usage(run: InferenceRun) -> list[str]:
    totals = run.totals
    return [
        "Then:",
        f"Asked: {format_count(totals.calls)}, Cached: {format_count(totals.cached)}, "
        f"Errors: {format_count(totals.errors)}",
        f"Tokens In: {format_count(totals.input_tokens)}, Out: {format_count(totals.output_tokens)}",
        f"Cost: {'not known' if run.cost_usd is None else format_dollars(run.cost_usd)}",
        f"Time: {_format_duration(run.seconds)}",
    ]


def _estimate_as_json(estimate: InferenceEstimate) -> dict[str, object]:
    """The estimate for JSON: a figure and its interval each."""
    figures: dict[str, object] = {
        "rows": estimate.rows,
        "distinct_prompts": estimate.prompts,
        "cached": estimate.cached,
    }
    for name in ("asked", "input_tokens", "output_tokens", "cost_usd", "seconds"):
        figure: Interval | None = getattr(estimate, name)
        low, expected, high = (None, None, None) if figure is None else figure
        figures |= {name: expected, f"{name}_low": low, f"{name}_high": high}
    return {**figures, "earlier_answers": estimate.earlier, "prompts_told": estimate.counted}


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


# -- the plan as text, the way PostgreSQL writes one -----------------------------------------------------------------

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
    """How many it returned, where it ran."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What JSON has in place of the lines."""

    def json(self) -> dict[str, object]:
        """As EXPLAIN (FORMAT JSON) has it."""
        return {"name": self.name, "children": [c.json() for c in self.children], "extra_info": dict(self.facts)}


def read_operator(plan: Node) -> Operator:
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


def _format_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("\n", ", ")


def format_operators(node: Operator, indent: str = "") -> str:
    """The tree as text: an operator, what is known of it, and below it what its rows come from.

    >>> print(format_operators(Operator("FILTER", ["~2 rows"], [Operator("SEQ_SCAN", ["Table: t"])])), end="")
    Filter
      ~2 rows
      ->  Seq Scan
            Table: t
    """
    title = node.name if node.name != node.name.upper() else node.name.replace("_", " ").title()
    inner = f"{indent}      " if indent else "  "
    lines = [f"{indent}->  {title}" if indent else title, *(f"{inner}{line}" for line in node.lines)]
    return "\n".join(lines) + "\n" + "".join(format_operators(child, inner) for child in node.children)
