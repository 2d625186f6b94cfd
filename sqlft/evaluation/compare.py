"""EVALUATE MODEL: versions asked on the same rows, scored side by side, and kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

import pyarrow as pa

from sqlft.catalog import records as catalog_rows
from sqlft.catalog.records import Evaluation, EvaluationRow
from sqlft.errors import CatalogError, DataError, OptionError, did_you_mean
from sqlft.evaluation.forgetting import NO_VERSION, measure_forgetting
from sqlft.evaluation.scoring import (
    EvaluationOptions,
    MetricResult,
    ModelJudge,
    ScoredAnswers,
    Scorer,
    combine_column,
    no_likelihood_error,
    require_judge,
)
from sqlft.handler import Message, ScoresAnswers
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import PromptTable, open_statement_runs
from sqlft.metrics import METRICS, statistics
from sqlft.metrics.general import ADVICE, describe_forgetting, has_forgotten
from sqlft.metrics.statistics import COMPARISON_SCHEMA, NO_COMPARISON, SCORE_SCHEMA, PairedComparison
from sqlft.options import build_options, option_names
from sqlft.redact import redact_statement
from sqlft.session import EvaluateSettings, QuerySettings, Session
from sqlft.sql.names import format_name
from sqlft.sql.statements import Evaluate

MODEL_SCORES_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("version", pa.int64()),
        ("answer", pa.string()),
        *SCORE_SCHEMA,
        ("failed", pa.int64()),
        ("seconds", pa.float64()),
        ("cost_usd", pa.float64()),
        *COMPARISON_SCHEMA,
    ]
)
DEFAULT_METRICS = ("exact_match",)
NO_ACCURACY_METRICS = ("bleu", "r2", "r2_score", "llm_judge")


@dataclass
class EvaluatedVersion:
    """A version and what it answered, one value per row."""

    resolved: ResolvedVersion
    predictions: dict[str, pa.Array] = field(default_factory=dict)
    """By the column of right answers: what it answered."""
    errors: list[str | None] = field(default_factory=list)
    seconds: float | None = None
    """Time per question that was asked now; None if all answers were kept ones."""
    cost_usd: float | None = None
    likelihood: Likelihood | None = None
    """For metrics that need tokens."""


class Likelihood(NamedTuple):
    """The logarithm of the right answers' probability, and their numbers of tokens."""

    logprobs: pa.DoubleArray
    tokens: pa.Int64Array


@dataclass(frozen=True)
class ScoredColumn:
    """A column of right answers and a metric of it: each version has a score in it."""

    place: int
    answer: str
    scorer: Scorer


class Comparison:
    """EVALUATE MODEL: versions asked on the same rows, the first being what the others are compared with."""

    def __init__(self, session: Session, statement: Evaluate, table: pa.Table, options: EvaluationOptions) -> None:
        self._session, self._statement, self._table, self._options = session, statement, table, options
        self._versions = [EvaluatedVersion(resolve(session, name.key, name.version)) for name in statement.models]
        keys = [str(a.resolved.version.key) for a in self._versions]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise OptionError(
                f"{repeated} is named twice.", "Name each version once; a model's name is its active version."
            )
        metrics = _pop_metric_names(options)
        self._seed = pop_seed(options)
        self._judge = options.pop("judge")
        given = {"forgetting": options.pop("forgetting", False)}
        self._measures_forgetting = build_options(EvaluateSettings, given, "EVALUATE MODEL").forgetting
        self.answers = self._find_answer_columns()
        model_options = self._list_model_options()
        self._scorers = options.scorers(metrics, self._seed, session, lambda key: key in model_options)
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
        evaluations: list[tuple[int, Evaluation]] = []
        for cell in (c for c in self._cells if (0, c.place) in scored):
            for a, evaluated in enumerate(self._versions):
                first, second = scored[0, cell.place], scored[a, cell.place]
                paired = cell.scorer.compare(self._actual[cell.answer], first, second) if a else NO_COMPARISON
                evaluations.append((a, self._build_evaluation(evaluated, cell, second.result, paired, started)))
        evaluations.sort(key=lambda pair: pair[0])
        general = self._measure_forgetting() if self._measures_forgetting else []
        self._store([(self._versions[a], e, scored[a, e.place].result) for a, e in evaluations], general)
        rows = [_format_evaluation(e) for e in (*(e for _, e in evaluations), *(e for e, _ in general))]
        return pa.Table.from_pylist(rows, MODEL_SCORES_SCHEMA)

    def _measure_forgetting(self) -> list[tuple[Evaluation, list[EvaluationRow]]]:
        """Of general texts and questions; a warning says what was forgotten."""
        versions = [evaluated.resolved for evaluated in self._versions]
        general = measure_forgetting(self._session, versions, self._statement, self._seed, len(self._cells))
        rows = [_format_evaluation(e) for e, _ in general]
        if forgotten := [describe_forgetting(row) for row in rows if has_forgotten(row)]:
            self._session.show_warning(" ".join((*forgotten, ADVICE)))
        return general

    def _score_all(self) -> dict[tuple[int, int], ScoredAnswers]:
        """By version and cell; of several columns those that a metric cannot score are warned of and left out."""
        scored: dict[tuple[int, int], ScoredAnswers] = {}
        for cell in self._cells:
            try:
                scored |= {(a, cell.place): self._score(evaluated, cell) for a, evaluated in enumerate(self._versions)}
            except DataError as e:
                if len(self.answers) == 1 or (cell is self._cells[-1] and not scored):
                    raise
                self._session.show_warning(f"{cell.scorer.name} cannot score the column '{cell.answer}': {e.message}")
        return scored

    def _score(self, evaluated: EvaluatedVersion, cell: ScoredColumn) -> ScoredAnswers:
        prediction, inputs, judge = evaluated.predictions[cell.answer], {}, {}
        if "tokens" in cell.scorer.metric.needs and evaluated.likelihood is not None:
            prediction, inputs = evaluated.likelihood.logprobs, {"tokens": evaluated.likelihood.tokens}
        if "judge" in cell.scorer.metric.needs:
            judge["judge"] = ModelJudge(self._session, self._judge, self._statement, self._using)
        result = cell.scorer.score(self._actual[cell.answer], prediction, **inputs, **judge)
        return ScoredAnswers(prediction, result, inputs)

    # -- before asking -------------------------------------------------------------------------------------

    def _find_answer_columns(self) -> list[str]:
        """The columns of right answers: those that USING names, else all that are outputs of a model with several."""
        option = self._options.pop("answer", self._options.pop("actual"))
        models = [a.resolved for a in self._versions]
        targets = list(dict.fromkeys(t for r in models for t in (*r.outputs.names, *r.model.targets)))
        values = option if isinstance(option, list) else [option]
        names = [*targets, "answer", "actual"] if option is None else [str(name) for name in values]
        found = [name for name in names if self._options.column(name) is not None]
        if not found or (option is not None and len(found) < len(names)):
            missing = next((name for name in names if name not in found), "")
            raise DataError(
                f"The query has no column with the right answers: {missing if option else ' or '.join(targets)}.",
                f"Write … AS {missing if option else targets[0]}, or USING answer = 'column'; "
                f"it has: {', '.join(self._options.names())}.",
            )
        several = {name.lower() for r in models if len(r.outputs.names) > 1 for name in r.outputs.names}
        chosen = list(dict.fromkeys(found)) if option is not None else [f for f in found if f.lower() in several]
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
        for evaluated in self._versions:
            cls = type(evaluated.resolved.handler).predict_options
            known |= set(self._options.left) if cls is dict else option_names(cls)
        return known

    def _check(self) -> None:
        if len(self._versions) > 1 or self._measures_forgetting:
            statistics.require_packages()
        for evaluated in self._versions:
            for name in evaluated.resolved.prompt.inputs:
                if self._options.column(name) is None:
                    raise DataError(
                        f"The query has no column for the input '{name}' of {evaluated.resolved.version.key}."
                        f"{did_you_mean(name, self._options.names())}",
                        f"Give it one: … AS {format_name(name)}; it has: {', '.join(self._options.names())}.",
                    )
        require_judge(self._scorers, self._judge)
        for resolved in (evaluated.resolved for evaluated in self._versions):
            scores_answers = isinstance(resolved.handler, ScoresAnswers)
            if self._needs_likelihood and (not scores_answers or resolved.outputs.is_typed):
                raise no_likelihood_error(resolved, "perplexity")
            if self._measures_forgetting and not scores_answers:
                raise no_likelihood_error(resolved, "forgetting")
        self._using = dict(self._options.left)

    # -- asking --------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        with open_statement_runs(self._session, self._using, self._statement.text) as runs:
            prompt_tables = [runs.prompt_table(a.resolved, str(a.resolved.model.key.name)) for a in self._versions]
            runs.check_using()
            for evaluated, prompt_table in zip(self._versions, prompt_tables, strict=True):
                self._ask_one(evaluated, prompt_table, any("tokens" not in s.metric.needs for s in self._scorers))
        if self._needs_likelihood:
            for evaluated in self._versions:
                evaluated.likelihood = self._score_likelihood(evaluated.resolved)

    def _ask_one(self, evaluated: EvaluatedVersion, prompt_table: PromptTable, needs_answers: bool) -> None:
        if not needs_answers:
            evaluated.predictions = dict.fromkeys(self.answers, pa.nulls(self._table.num_rows, pa.string()))
            evaluated.errors = [None] * self._table.num_rows
            return
        inputs = [self._options.column(name) for name in evaluated.resolved.prompt.inputs]
        ids = prompt_table.ids(inputs)
        prompt_table.inference_run.rows += self._table.num_rows
        started = time.monotonic()
        prompt_table.ask_all()
        seconds = time.monotonic() - started
        outputs = [self._find_output(evaluated.resolved, answer) for answer in self.answers]
        *answers, errors, usage = prompt_table.columns(ids, [*outputs, f"{outputs[0]}_error", f"{outputs[0]}_usage"])
        predictions = [_serialize_nested(combine_column(column)) for column in answers]
        evaluated.predictions, evaluated.errors = dict(zip(self.answers, predictions, strict=True)), errors.to_pylist()
        once = {i: row for i, row in zip(ids.to_pylist(), usage.to_pylist(), strict=True) if i is not None}
        fresh = [row for row in once.values() if row is not None and not row["cached"]]
        evaluated.seconds = seconds / len(fresh) if fresh else None
        costs = [row["cost_usd"] for row in fresh]
        evaluated.cost_usd = None if None in costs else statistics.mean(costs)

    def _find_output(self, resolved: ResolvedVersion, answer: str) -> str:
        """The output that the right answers are named after, else the first."""
        names = resolved.outputs.names
        return next((name for name in names if name.lower() == answer.lower()), names[0])

    def _score_likelihood(self, resolved: ResolvedVersion) -> Likelihood:
        """Log-probability and tokens of the right answers, by the handler's `score`."""
        prompt = resolved.prompt
        user = prompt.render_column({name: self._options.column(name) for name in prompt.inputs}).to_pylist()
        right = _cast_to_texts(self._actual[self.answers[0]])
        answers = {i: text for i, text in enumerate(right) if text is not None}
        conversations = [(*prompt.conversation(user[i]), Message("assistant", text)) for i, text in answers.items()]
        handler = resolved.handler
        scored = None
        if isinstance(handler, ScoresAnswers):
            scored = handler.score(conversations, resolved.spec, resolved.artifact)
        if scored is None:
            raise no_likelihood_error(resolved, "perplexity")
        by_row = dict(zip(answers, scored, strict=True))
        pairs = [by_row.get(i, (None, None)) for i in range(len(right))]
        return Likelihood(
            pa.array([logprob for logprob, _ in pairs], pa.float64()), pa.array([n for _, n in pairs], pa.int64())
        )

    # -- afterwards ----------------------------------------------------------------------------------------

    def _build_evaluation(
        self,
        evaluated: EvaluatedVersion,
        cell: ScoredColumn,
        scored: MetricResult,
        paired: PairedComparison,
        created_at: datetime,
    ) -> Evaluation:
        key = evaluated.resolved.version.key
        options = {k: "(a column)" if k in cell.scorer.row_wise else v for k, v in sorted(cell.scorer.options.items())}
        if len(evaluated.resolved.outputs.names) > 1:
            options["answer"] = cell.answer
        pace = evaluated.seconds, evaluated.cost_usd
        if evaluated.seconds is None:
            pace = self._session.catalog.last_question_pace(key, self._digest) or pace
        return Evaluation(
            key,
            cell.scorer.name,
            self._digest,
            options=options,
            answer=cell.answer,
            value=scored.value,
            n=scored.n,
            **scored.interval._asdict(),
            **paired._asdict(),
            failed=sum(e is not None for e in evaluated.errors),
            seconds=pace[0],
            cost_usd=pace[1],
            baseline=None if evaluated is self._versions[0] else str(self._versions[0].resolved.version.key),
            statement=redact_statement(self._statement.text),
            place=cell.place,
            is_share=_is_share(cell.scorer, scored),
            created_at=created_at,
        )

    def _store(
        self,
        evaluations: Sequence[tuple[EvaluatedVersion, Evaluation, MetricResult]],
        general: Sequence[tuple[Evaluation, list[EvaluationRow]]],
    ) -> None:
        right = {name.lower() for name in self.answers}
        inputs = self._table.drop_columns([n for n in self._table.column_names if n.lower() in right])
        questions = [catalog_rows.to_json(row) for row in inputs.to_pylist()]
        kept = [(e, self._rows(version, e.answer or "", scored, questions)) for version, e, scored in evaluations]
        kept += [(e, rows) for e, rows in general if e.version.number != NO_VERSION]
        try:
            self._session.catalog.put_evaluations(kept)
        except CatalogError as e:
            self._session.show_warning(f"The scores could not be kept: {e.message}")

    def _rows(
        self, evaluated: EvaluatedVersion, answer: str, scored: MetricResult, questions: Sequence[str]
    ) -> list[EvaluationRow]:
        right, predictions = _cast_to_texts(self._actual[answer]), _cast_to_texts(evaluated.predictions[answer])
        scores = scored.scores or [None] * len(right)
        columns = (questions, right, predictions, scores, evaluated.errors)
        return [EvaluationRow(number, *row) for number, row in enumerate(zip(*columns, strict=True), 1)]


def pop_seed(options: EvaluationOptions) -> int:
    """USING seed = …, 0 without it; OptionError."""
    seed = options.pop("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed is {seed!r}.", "Give a whole number from 0.")
    return seed


def digest_rows(table: pa.Table) -> str:
    """A name for the rows and their order: the same query on the same data has the same."""
    sha = sha256("\0".join(name.lower() for name in table.column_names).encode())
    for batch in table.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            sha.update(catalog_rows.to_json(list(row.values())).encode("utf-8", "replace") + b"\n")
    return sha.hexdigest()


def _pop_metric_names(options: EvaluationOptions) -> list[str]:
    option = options.pop("metrics", options.pop("metric", list(DEFAULT_METRICS)))
    values = option if isinstance(option, list) else [option]
    names = [name for name in values if isinstance(name, str)]
    if not names or len(names) < len(values):
        raise OptionError("metrics names no metric.", "Write: USING metrics = ['exact_match', 'token_f1'].")
    for name in names:
        METRICS[name]
    return names


def _is_share(scorer: Scorer, scored: MetricResult) -> bool:
    """Whether the value is an accuracy: a share of what is right."""
    if scorer.metric.lower_is_better or scorer.name in NO_ACCURACY_METRICS:
        return False
    return scored.value is not None and 0 <= scored.value <= 1


def _format_evaluation(e: Evaluation) -> dict[str, object]:
    names = [name for name in MODEL_SCORES_SCHEMA.names if name not in ("model", "version")]
    return {"model": e.version.model.name, "version": e.version.number, **{name: getattr(e, name) for name in names}}


def _serialize_nested(column: pa.Array) -> pa.Array:
    """A column that metrics can read: nested values as JSON."""
    if not pa.types.is_nested(column.type):
        return column
    return pa.array(_cast_to_texts(column), pa.large_string())


def _cast_to_texts(column: pa.Array) -> list[str | None]:
    try:
        return list(column.cast(pa.large_string()).to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return [None if value is None else catalog_rows.to_json(value) for value in column.to_pylist()]
