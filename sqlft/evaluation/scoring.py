"""Metrics over rows: which options each takes, its value with an interval, two versions side by side, the judge."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.errors import Cancelled, DataError, NotSupported, OptionError, SqlftError, did_you_mean
from sqlft.handler import ScoresAnswers
from sqlft.inference.resolve import ResolvedVersion, list_handlers, resolve
from sqlft.inference.statement_runs import open_statement_runs
from sqlft.metrics import METRICS, Metric, statistics
from sqlft.metrics.statistics import ConfidenceInterval, PairedComparison
from sqlft.options import option_names
from sqlft.session import QuerySettings, Session
from sqlft.sql.statements import Evaluate

if TYPE_CHECKING:
    from numpy import bool_, int64
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MetricResult:
    """A metric over some rows."""

    value: float | None
    n: int
    interval: ConfidenceInterval
    scores: list[float | None] | None
    """One per row, where the metric has them."""


@dataclass(frozen=True)
class ScoredAnswers:
    """What one version answered, and its score."""

    prediction: pa.Array
    result: MetricResult
    inputs: Mapping[str, pa.Array] = field(default_factory=dict)
    """Columns that were added for the metric."""


@dataclass(frozen=True)
class Scorer:
    """A metric with the options of a statement, for the rows of its query."""

    name: str
    metric: Metric
    options: Mapping[str, object]
    """Constants, and columns of one value per row."""
    row_wise: tuple[str, ...]
    """Options that are columns."""
    seed: int
    warn: Callable[[str], None]
    interrupted: Callable[[], bool]

    def score(self, actual: pa.Array, prediction: pa.Array, **inputs: object) -> MetricResult:
        """The value over all rows; `inputs` are what EVALUATE adds to the options."""
        scores = self._run(actual, prediction, None, inputs)
        if self.metric.aggregate:
            interval = statistics.bootstrap_all(
                lambda rows: self._run(actual, prediction, rows, inputs)[0], len(actual), self.seed
            )
            return MetricResult(scores[0], self._count(actual, prediction), interval, None)
        known = [s for s in scores if s is not None]
        return MetricResult(statistics.mean(known), len(known), statistics.mean_interval(known, self.seed), scores)

    def compare(self, actual: pa.Array, first: ScoredAnswers, second: ScoredAnswers) -> PairedComparison:
        """The second version against the first."""
        if first.result.scores is not None and second.result.scores is not None:
            return statistics.compare_paired(
                first.result.scores, second.result.scores, self.seed, lower_is_better=self.metric.lower_is_better
            )

        def difference(rows: NDArray[int64], swapped: NDArray[bool_]) -> float | None:
            mask = pa.array(swapped)
            before, after = (
                self._run(
                    actual,
                    pc.if_else(mask, other.prediction, one.prediction),
                    rows,
                    {name: pc.if_else(mask, other.inputs[name], column) for name, column in one.inputs.items()},
                )[0]
                for one, other in ((first, second), (second, first))
            )
            return None if before is None or after is None else after - before

        return statistics.compare_aggregates(difference, len(actual), self.seed)

    def _run(
        self, actual: pa.Array, prediction: pa.Array, rows: NDArray[int64] | None, inputs: Mapping[str, object]
    ) -> list[float | None]:
        if self.interrupted():
            raise Cancelled(f"{self.name} was not computed to its end.", "Run it again: answers are kept.")
        options = {**self.options, **inputs}
        if "interrupted" in self.metric.needs:
            options["interrupted"] = self.interrupted
        if rows is not None:
            chosen = pa.array(rows)
            actual, prediction = actual.take(chosen), prediction.take(chosen)
            options |= {k: v.take(chosen) for k, v in options.items() if isinstance(v, pa.Array)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            scores = self._call(actual, prediction, options)
        if rows is None:
            for warning in caught:
                self.warn(f"{self.name}: {warning.message}")
        return [s if s is not None and math.isfinite(s) else None for s in scores.to_pylist()]

    def _call(self, actual: pa.Array, prediction: pa.Array, options: Mapping[str, object]) -> pa.Array:
        try:
            return self.metric(actual=actual, prediction=prediction, **options)
        except SqlftError:
            raise
        except Exception as e:
            raise DataError(
                f"The metric '{self.name}' failed: {type(e).__name__}: {e}", "Check its options and the two columns."
            ) from e

    def _count(self, actual: pa.Array, prediction: pa.Array) -> int:
        counted = self.metric.counted
        column = actual if counted is None else counted(actual, prediction)
        return len(column) - int(column.null_count)


class EvaluationOptions:
    """USING of an EVALUATE, distributed to the metrics; what none of them takes is left."""

    def __init__(self, options: Mapping[str, object], table: pa.Table) -> None:
        self.left = dict(options)
        self._table = table
        self._columns = {name.lower(): name for name in reversed(table.column_names)}

    def pop(self, name: str, default: object = None) -> object:
        """An option that is for EVALUATE itself."""
        return self.left.pop(name, default)

    def column(self, name: str) -> pa.Array | None:
        """A column of the rows as one array, None if there is none of that name."""
        exact = self._columns.get(name.lower())
        return None if exact is None else combine_column(self._table.column(self._table.column_names.index(exact)))

    def names(self) -> list[str]:
        """The rows' columns."""
        return list(self._table.column_names)

    def scorers(self, names: Sequence[str], seed: int, session: Session, keep: Callable[[str], bool]) -> list[Scorer]:
        """One Scorer per metric; `keep` is true of plain options that others need too."""
        used: set[str] = set()
        scorers = []
        for name in dict.fromkeys(names):
            metric = METRICS[name]
            own = self.left.get(name)
            metric_options = own if isinstance(own, Mapping) else {}
            selected, plain = self._select_options(metric, metric_options, name, keep)
            used |= plain | ({name} if isinstance(own, Mapping) else set())
            options = {option: self._resolve_column(metric, option, value) for option, value in selected.items()}
            for option in metric.columns:
                if option not in options and (column := self.column(option)) is not None:
                    options[option] = column
            if "database" in options and "schema" in options and "schema" not in selected:
                del options["schema"]
            row_wise = tuple(o for o, value in options.items() if isinstance(value, pa.Array))
            scorers.append(
                Scorer(name, metric, options, row_wise, seed, session.show_warning, lambda: session.interrupted)
            )
        for name in used:
            self.left.pop(name, None)
        return scorers

    def _select_options(
        self, metric: Metric, metric_options: Mapping[str, object], name: str, keep: Callable[[str], bool]
    ) -> tuple[dict[str, object], set[str]]:
        """The metric's options, and which of them are in USING itself."""
        known = metric.options
        if not metric.takes_any_option:
            wrong = next((key for key in metric_options if key not in known), None)
            if wrong is not None:
                raise OptionError(
                    f"{name} has no option '{wrong}'.{did_you_mean(wrong, known)}",
                    f"It has: {', '.join(sorted(known))}." if known else "It has none.",
                )
        plain = {k: v for k, v in self.left.items() if k in known and not keep(k)}
        return {**plain, **metric_options}, set(plain)

    def _resolve_column(self, metric: Metric, option: str, value: object) -> object:
        """The column that is named, where an option may be a column."""
        if option in metric.columns and isinstance(value, str):
            column = self.column(value)
            return value if column is None else column
        return value


def combine_column(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def require_judge(scorers: Sequence[Scorer], judge: object) -> None:
    """OptionError if a metric asks a judge and USING names none."""
    judged = next((s.name for s in scorers if "judge" in s.metric.needs), None)
    if judged and not judge:
        raise OptionError(f"{judged} needs a model that judges.", "Write: USING judge = 'name of a model'.")


def no_likelihood_error(resolved: ResolvedVersion, option: str) -> NotSupported:
    """The error where `option` needs a handler that can score answers."""
    return NotSupported(
        f"The handler '{resolved.handler_name}' cannot tell how probable an answer of {resolved.version.key} is.",
        f"Leave {option} out, or evaluate a model of a handler that can: {', '.join(list_handlers(ScoresAnswers))}.",
    )


class ModelJudge:
    """Asks a model of ours; given to metrics that need a `judge`."""

    def __init__(self, session: Session, name: object, statement: Evaluate, using: Mapping[str, object]) -> None:
        self._session, self._statement = session, statement
        self._using = {k: v for k, v in using.items() if k in option_names(QuerySettings)}
        self._resolved = resolve(session, *_parse_version_name(str(name)))
        if len(self._resolved.prompt.inputs) != 1:
            raise OptionError(
                f"The judge '{name}' has {len(self._resolved.prompt.inputs)} inputs.",
                "Take a model with one, such as prompt_template = '{{content}}'.",
            )

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """One answer per prompt, None where it failed."""
        with open_statement_runs(self._session, self._using, self._statement.text) as runs:
            prompt_table = runs.prompt_table(self._resolved, self._resolved.model.key.name)
            ids = prompt_table.ids([pa.array(prompts, pa.large_string())])
            prompt_table.inference_run.rows += len(prompts)
            prompt_table.ask_all()
            return list(prompt_table.columns(ids, [self._resolved.outputs.names[0]])[0].to_pylist())


def _parse_version_name(text: str) -> tuple[str, int | None]:
    name, dot, number = text.rpartition(".")
    return (name, int(number)) if dot and number.isdecimal() else (text, None)
