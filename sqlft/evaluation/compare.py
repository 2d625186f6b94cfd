"""EVALUATE MODEL: versions asked on the same rows, scored side by side, and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pyarrow as pa

from sqlft.catalog import records as catalog_rows
from sqlft.catalog.records import Evaluation, EvaluationRow
from sqlft.errors import CatalogError, DataError, NotSupported, OptionError, did_you_mean
from sqlft.evaluation.scoring import EvaluationOptions, MetricResult, ModelJudge, Scorer, combine_column, require_judge
from sqlft.handler import Message, ScoresAnswers
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import PromptTable, open_statement_runs
from sqlft.metrics import METRICS, statistics
from sqlft.metrics.statistics import NO_COMPARISON, PairedComparison
from sqlft.options import option_names
from sqlft.redact import redact_statement
from sqlft.session import QuerySettings, Session
from sqlft.sql.names import format_name
from sqlft.sql.statements import Evaluate

ROW_SCORES_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),
    ]
)
MODEL_SCORES_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("version", pa.int64()),
        ("answer", pa.string()),
        *ROW_SCORES_SCHEMA,
        ("failed", pa.int64()),
        ("seconds", pa.float64()),
        ("cost_usd", pa.float64()),
        ("baseline", pa.string()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p_value", pa.float64()),
        ("test", pa.string()),
        ("wins", pa.int64()),
        ("ties", pa.int64()),
        ("losses", pa.int64()),
    ]
)
DEFAULT_METRICS = ("exact_match",)
NO_ACCURACY_METRICS = ("bleu", "r2", "r2_score", "llm_judge")


@dataclass
class EvaluatedVersion:
    """A version and what it answered, a row each."""

    resolved: ResolvedVersion
    predictions: dict[str, Any] = field(default_factory=dict)
    """By the column of right answers: what it gave for them."""
    errors: list[str | None] = field(default_factory=list)
    seconds: float | None = None
    """Time of asking over the questions that were asked now; None if all answers were kept ones."""
    cost_usd: float | None = None
    likelihood: dict[str, Any] = field(default_factory=dict)
    """For metrics that need tokens: these, and under 'prediction' what they score in place of the answers."""

    def metric_inputs(self, cell: ScoredColumn) -> tuple[Any, dict[str, Any]]:
        """What a metric scores: predictions, and columns added."""
        more = dict(self.likelihood) if "tokens" in cell.scorer.metric.needs else {}
        return more.pop("prediction", self.predictions[cell.answer]), more


@dataclass(frozen=True)
class ScoredColumn:
    """A column of right answers and a metric of it: each version has a score in it."""

    place: int
    answer: str
    scorer: Scorer


class Comparison:
    """EVALUATE MODEL: versions asked on the same rows, the first being what the others are held against."""

    def __init__(self, session: Session, statement: Evaluate, table: pa.Table, options: EvaluationOptions) -> None:
        self._session, self._statement, self._table, self._options = session, statement, table, options
        self._versions = [EvaluatedVersion(resolve(session, name.key, name.version)) for name in statement.models]
        keys = [str(a.resolved.version.key) for a in self._versions]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise OptionError(
                f"{twice} is named twice.", "Name each version once; a model's name is its active version."
            )
        names = _pop_metric_names(options)
        self._seed = pop_seed(options)
        self._judge = options.pop("judge")
        self.answers = self._find_answer_columns()
        taken = self._list_model_options()
        self._scorers = options.scorers(names, self._seed, session, lambda key: key in taken)
        self._needs_likelihood = any("tokens" in s.metric.needs for s in self._scorers)
        self._check()
        self._actual = {answer: _serialize_nested(options.column(answer)) for answer in self.answers}
        pairs = [(answer, scorer) for answer in self.answers for scorer in self._scorers]
        self._cells = [ScoredColumn(place, *pair) for place, pair in enumerate(pairs)]
        self._digest = digest_rows(table)

    def run(self) -> pa.Table:
        """Ask, score, compare, keep."""
        self._ask()
        started = catalog_rows.utc_now()
        scored = self._score_all()
        found: list[tuple[int, Evaluation]] = []
        for cell in (c for c in self._cells if (0, c.place) in scored):
            first = self._get_side(0, cell, scored)
            for a, asked in enumerate(self._versions):
                second = self._get_side(a, cell, scored)
                paired = cell.scorer.compare(self._actual[cell.answer], first, second) if a else NO_COMPARISON
                found.append((a, self._build_evaluation(asked, cell, second[1], paired, started)))
        found.sort(key=lambda one: one[0])
        self._store([(a, e, scored[a, e.place]) for a, e in found])
        return pa.Table.from_pylist([_format_evaluation(e) for _, e in found], MODEL_SCORES_SCHEMA)

    def _score_all(self) -> dict[tuple[int, int], MetricResult]:
        """By version and cell; of several columns those that a metric cannot score are warned of and left out."""
        found: dict[tuple[int, int], MetricResult] = {}
        for cell in self._cells:
            try:
                found |= {(a, cell.place): self._score(asked, cell) for a, asked in enumerate(self._versions)}
            except DataError as e:
                if len(self.answers) == 1 or (cell is self._cells[-1] and not found):
                    raise
                self._session.show_warning(f"{cell.scorer.name} cannot score the column '{cell.answer}': {e.message}")
        return found

    def _get_side(
        self, a: int, cell: ScoredColumn, scored: Mapping[tuple[int, int], MetricResult]
    ) -> tuple[Any, MetricResult, dict[str, Any]]:
        prediction, more = self._versions[a].metric_inputs(cell)
        return prediction, scored[a, cell.place], more

    def _score(self, asked: EvaluatedVersion, cell: ScoredColumn) -> MetricResult:
        prediction, more = asked.metric_inputs(cell)
        if "judge" in cell.scorer.metric.needs:
            more |= {"judge": ModelJudge(self._session, self._judge, self._statement, self._using)}
        return cell.scorer.score(self._actual[cell.answer], prediction, **more)

    # -- before asking -------------------------------------------------------------------------------------

    def _find_answer_columns(self) -> list[str]:
        """The columns of right answers: those that USING names, else all that are outputs of a model with several."""
        said = self._options.pop("answer", self._options.pop("actual"))
        models = [a.resolved for a in self._versions]
        targets = list(dict.fromkeys(t for r in models for t in (*r.outputs.names, *r.model.targets)))
        wanted = [*targets, "answer", "actual"] if said is None else said if isinstance(said, list) else [said]
        found = [str(name) for name in wanted if self._options.column(str(name)) is not None]
        if not found or (said is not None and len(found) < len(wanted)):
            missing = next((str(name) for name in wanted if str(name) not in found), "")
            raise DataError(
                f"The query has no column with the right answers: {missing if said else ' or '.join(targets)}.",
                f"Write … AS {missing if said else targets[0]}, or USING answer = 'column'; "
                f"it has: {', '.join(self._options.names())}.",
            )
        several = {name.lower() for r in models if len(r.outputs.names) > 1 for name in r.outputs.names}
        chosen = list(dict.fromkeys(found)) if said is not None else [f for f in found if f.lower() in several]
        chosen = chosen or found[:1]
        for name in chosen if len(chosen) > 1 else ():
            self._require_output(models, name)
        return chosen

    def _require_output(self, models: Sequence[ResolvedVersion], name: str) -> None:
        """OptionError if a model does not answer one of several columns."""
        for resolved in models:
            if name.lower() not in (output.lower() for output in resolved.outputs.names):
                raise OptionError(
                    f"{resolved.version.key} has no output '{name}'.",
                    f"Say which column to score: USING answer = '…'; it has: {', '.join(resolved.outputs.names)}.",
                )

    def _list_model_options(self) -> set[str]:
        known = set(option_names(QuerySettings))
        for asked in self._versions:
            cls = type(asked.resolved.handler).predict_options
            known |= set(self._options.left) if cls is dict else option_names(cls)
        return known

    def _check(self) -> None:
        if len(self._versions) > 1:
            statistics.require_packages()
        for asked in self._versions:
            for name in asked.resolved.prompt.inputs:
                if self._options.column(name) is None:
                    raise DataError(
                        f"The query has no column for the input '{name}' of {asked.resolved.version.key}."
                        f"{did_you_mean(name, self._options.names())}",
                        f"Give it one: … AS {format_name(name)}; it has: {', '.join(self._options.names())}.",
                    )
        require_judge(self._scorers, self._judge)
        if self._needs_likelihood:
            for asked in self._versions:
                if not isinstance(asked.resolved.handler, ScoresAnswers) or asked.resolved.outputs.is_typed:
                    raise _no_likelihood_error(asked.resolved)
        self._using = dict(self._options.left)

    # -- asking --------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        with open_statement_runs(self._session, self._using, self._statement.text) as runs:
            prompt_tables = [runs.prompt_table(a.resolved, str(a.resolved.model.key.name)) for a in self._versions]
            runs.check_using()
            for asked, prompt_table in zip(self._versions, prompt_tables, strict=True):
                self._ask_one(asked, prompt_table, any("tokens" not in s.metric.needs for s in self._scorers))
        if self._needs_likelihood:
            for asked in self._versions:
                asked.likelihood = self._score_likelihood(asked.resolved)

    def _ask_one(self, asked: EvaluatedVersion, prompt_table: PromptTable, wanted: bool) -> None:
        if not wanted:
            asked.predictions = dict.fromkeys(self.answers, pa.nulls(self._table.num_rows, pa.string()))
            asked.errors = [None] * self._table.num_rows
            return
        inputs = [self._options.column(name) for name in asked.resolved.prompt.inputs]
        ids = prompt_table.ids(inputs)
        prompt_table.inference_run.rows += self._table.num_rows
        started = time.monotonic()
        prompt_table.ask_all()
        seconds = time.monotonic() - started
        outputs = [self._find_output(asked.resolved, answer) for answer in self.answers]
        *found, errors, usage = prompt_table.columns(ids, [*outputs, f"{outputs[0]}_error", f"{outputs[0]}_usage"])
        predictions = [_serialize_nested(combine_column(column)) for column in found]
        asked.predictions, asked.errors = dict(zip(self.answers, predictions, strict=True)), errors.to_pylist()
        once = {i: row for i, row in zip(ids.to_pylist(), usage.to_pylist(), strict=True) if i is not None}
        fresh = [row for row in once.values() if row is not None and not row["cached"]]
        asked.seconds = seconds / len(fresh) if fresh else None
        costs = [row["cost_usd"] for row in fresh]
        asked.cost_usd = None if None in costs else statistics.mean(costs)

    def _find_output(self, resolved: ResolvedVersion, answer: str) -> str:
        """The output that the right answers are named after, else the first."""
        names = resolved.outputs.names
        return next((name for name in names if name.lower() == answer.lower()), names[0])

    def _score_likelihood(self, resolved: ResolvedVersion) -> dict[str, Any]:
        """Log-probability and tokens of the right answers, as the handler's `score` has them."""
        prompt = resolved.prompt
        user = prompt.render_column({name: self._options.column(name) for name in prompt.inputs}).to_pylist()
        right = self._actual[self.answers[0]].cast(pa.large_string()).to_pylist()
        rows = [i for i, text in enumerate(right) if text is not None and user[i] is not None]
        asked = [(*prompt.conversation(user[i]), Message("assistant", right[i])) for i in rows]
        handler = resolved.handler
        scored = handler.score(asked, resolved.spec, resolved.artifact) if isinstance(handler, ScoresAnswers) else None
        if scored is None:
            raise _no_likelihood_error(resolved)
        found = dict(zip(rows, scored, strict=True))
        pairs = [found.get(i) for i in range(len(right))]
        return {
            "prediction": pa.array([None if p is None else p[0] for p in pairs], pa.float64()),
            "tokens": pa.array([None if p is None else p[1] for p in pairs], pa.int64()),
        }

    # -- afterwards ----------------------------------------------------------------------------------------

    def _build_evaluation(
        self,
        asked: EvaluatedVersion,
        cell: ScoredColumn,
        scored: MetricResult,
        paired: PairedComparison,
        created_at: Any,
    ) -> Evaluation:
        key = asked.resolved.version.key
        before = None if asked.seconds is not None else self._session.catalog.last_question_pace(key, self._digest)
        low, high, method = scored.interval
        return Evaluation(
            key,
            cell.scorer.name,
            self._digest,
            options=_serialize_options(cell.scorer)
            | ({"answer": cell.answer} if len(asked.resolved.outputs.names) > 1 else {}),
            answer=cell.answer,
            value=scored.value,
            n=scored.n,
            low=low,
            high=high,
            interval=method,
            failed=sum(e is not None for e in asked.errors),
            seconds=before[0] if before else asked.seconds,
            cost_usd=before[1] if before else asked.cost_usd,
            baseline=None if asked is self._versions[0] else str(self._versions[0].resolved.version.key),
            difference=paired.difference,
            difference_low=paired.low,
            difference_high=paired.high,
            p_value=paired.p_value,
            test=paired.test,
            wins=paired.wins,
            ties=paired.ties,
            losses=paired.losses,
            statement=redact_statement(self._statement.text),
            place=cell.place,
            is_share=_is_share(cell.scorer, scored),
            created_at=created_at,
        )

    def _store(self, found: Sequence[tuple[int, Evaluation, MetricResult]]) -> None:
        right = {name.lower() for name in self.answers}
        inputs = self._table.drop_columns([n for n in self._table.column_names if n.lower() in right])
        questions = [catalog_rows.to_json(row) for row in inputs.to_pylist()]
        kept = [(e, self._rows(self._versions[a], e.answer or "", scored, questions)) for a, e, scored in found]
        try:
            self._session.catalog.put_evaluations(kept)
        except CatalogError as e:
            self._session.show_warning(f"The scores could not be kept: {e.message}")

    def _rows(
        self, asked: EvaluatedVersion, answer: str, scored: MetricResult, questions: Sequence[str]
    ) -> list[EvaluationRow]:
        right, given = _cast_to_texts(self._actual[answer]), _cast_to_texts(asked.predictions[answer])
        scores = scored.scores or [None] * len(right)
        return [
            EvaluationRow(i + 1, questions[i], right[i], given[i], scores[i], asked.errors[i])
            for i in range(len(right))
        ]


def _no_likelihood_error(resolved: ResolvedVersion) -> NotSupported:
    return NotSupported(
        f"The handler '{resolved.handler_name}' cannot tell how probable an answer of {resolved.version.key} is.",
        "Leave perplexity out, or evaluate a model of the engine 'local'.",
    )


def pop_seed(options: EvaluationOptions) -> int:
    """USING seed = …, 0 without it; OptionError."""
    seed = options.pop("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed is {seed!r}.", "Give a whole number from 0.")
    return seed


def digest_rows(table: pa.Table) -> str:
    """A name for the rows and their order: the same query on the same data has the same."""
    made = sha256("\0".join(name.lower() for name in table.column_names).encode())
    for batch in table.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            made.update(catalog_rows.to_json(list(row.values())).encode("utf-8", "replace") + b"\n")
    return made.hexdigest()


def _pop_metric_names(options: EvaluationOptions) -> list[str]:
    said = options.pop("metrics", options.pop("metric", list(DEFAULT_METRICS)))
    names = [said] if isinstance(said, str) else said
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OptionError("metrics names no metric.", "Write: USING metrics = ['exact_match', 'token_f1'].")
    for name in names:
        METRICS[name]
    return names


def _serialize_options(scorer: Scorer) -> dict[str, Any]:
    """A scorer's options as the catalog keeps them: columns as a word."""
    return {k: "(a column)" if k in scorer.row_wise else v for k, v in sorted(scorer.options.items())}


def _is_share(scorer: Scorer, scored: MetricResult) -> bool:
    """Whether the value is what people call accuracy: a share of what is right."""
    if scorer.metric.lower_is_better or scorer.name in NO_ACCURACY_METRICS:
        return False
    return scored.value is not None and 0 <= scored.value <= 1


def _format_evaluation(e: Evaluation) -> dict[str, Any]:
    names = [name for name in MODEL_SCORES_SCHEMA.names if name not in ("model", "version")]
    return {"model": e.version.model.name, "version": e.version.number, **{name: getattr(e, name) for name in names}}


def _serialize_nested(column: Any) -> Any:
    """A column that metrics can read: nested values as JSON."""
    if column is None or not pa.types.is_nested(column.type):
        return column
    return pa.array(_cast_to_texts(column), pa.large_string())


def _cast_to_texts(column: Any) -> list[str | None]:
    try:
        return list(column.cast(pa.large_string()).to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return [None if value is None else catalog_rows.to_json(value) for value in column.to_pylist()]
