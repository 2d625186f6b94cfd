"""Metrics over rows: which options each takes, its value with an interval, two versions side by side, the judge."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sqlft.errors import Cancelled, DataError, OptionError, SqlftError, did_you_mean
from sqlft.inference.resolve import resolve
from sqlft.inference.statement_runs import open_statement_runs
from sqlft.metrics import METRICS, Metric, statistics
from sqlft.metrics.statistics import ConfidenceInterval, PairedComparison
from sqlft.options import option_names
from sqlft.session import QuerySettings, Session
from sqlft.sql.statements import Evaluate


@dataclass(frozen=True)
class MetricResult:
    """What a metric says of some rows; `scores` a row where it has them."""

    value: float | None
    n: int
    interval: ConfidenceInterval
    scores: list[float | None] | None
    mean: float | None = None


@dataclass(frozen=True)
class Scorer:
    """A metric with the options of a statement, for the rows of its query."""

    name: str
    metric: Metric
    options: Mapping[str, Any]
    """Constants, and columns of one value a row."""
    row_wise: tuple[str, ...]
    """Options that are columns."""
    seed: int
    warn: Callable[[str], None]
    interrupted: Callable[[], bool]

    def score(self, actual: Any, prediction: Any, **more: Any) -> MetricResult:
        """The value over all rows; `more` are columns that the runtime adds."""
        raw = self._run(actual, prediction, None, more)
        if self.metric.aggregate:
            value = raw[0]
            interval = statistics.bootstrap_all(
                lambda rows: self._run(actual, prediction, rows, more)[0], len(actual), self.seed
            )
            return MetricResult(value, self._count(actual, prediction), interval, None)
        known = [s for s in raw if s is not None]
        return MetricResult(statistics.mean(known), len(known), statistics.mean_interval(known, self.seed), raw)

    def compare(
        self,
        actual: Any,
        first: tuple[Any, MetricResult, dict[str, Any]],
        second: tuple[Any, MetricResult, dict[str, Any]],
    ) -> PairedComparison:
        """The second version against the first, each as (predictions, what was scored, columns that were added)."""
        lower = self.metric.lower_is_better
        if first[1].scores is not None and second[1].scores is not None:
            return statistics.compare_paired(first[1].scores, second[1].scores, self.seed, lower_is_better=lower)

        def difference(rows: Any, swapped: Any) -> float | None:
            values = []
            for one, other in ((first, second), (second, first)):
                mixed = _swap_rows(one[0], other[0], swapped)
                more = {k: _swap_rows(v, other[2][k], swapped) for k, v in one[2].items()}
                values.append(self._run(actual, mixed, rows, more)[0])
            return None if None in values else values[1] - values[0]

        return statistics.compare_aggregates(difference, len(actual), self.seed)

    def _run(self, actual: Any, prediction: Any, rows: Any, more: Mapping[str, Any]) -> list[Any]:
        if self.interrupted():
            raise Cancelled(f"{self.name} was not computed to its end.", "Run it again: answers are kept.")
        options = {**self.options, **more}
        if "interrupted" in self.metric.needs:
            options["interrupted"] = self.interrupted
        if rows is not None:
            chosen = pa.array(rows)
            actual, prediction = actual.take(chosen), prediction.take(chosen)
            options |= {name: options[name].take(chosen) for name in (*self.row_wise, *more) if name in options}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", RuntimeWarning)
            scores = self._call(actual, prediction, options)
        if rows is None:
            for warning in found:
                self.warn(f"{self.name}: {warning.message}")
        return [s if s is not None and math.isfinite(s) else None for s in scores.to_pylist()]

    def _call(self, actual: Any, prediction: Any, options: Mapping[str, Any]) -> Any:
        try:
            return self.metric(actual=actual, prediction=prediction, **options)
        except SqlftError:
            raise
        except Exception as e:
            raise DataError(
                f"The metric '{self.name}' failed: {type(e).__name__}: {e}", "Check its options and the two columns."
            ) from e

    def _count(self, actual: Any, prediction: Any) -> int:
        counted = self.metric.counted
        column = actual if counted is None else counted(actual, prediction)
        return len(column) - int(column.null_count)


def _swap_rows(first: Any, second: Any, swapped: Any) -> Any:
    """`first`, but `second` where swapped; both Arrow arrays."""
    import pyarrow.compute as pc

    return pc.if_else(pa.array(swapped), second, first)


class EvaluationOptions:
    """USING of an EVALUATE, handed out to the metrics; what none of them takes is left."""

    def __init__(self, given: Mapping[str, Any], table: pa.Table) -> None:
        self.left = dict(given)
        self._table = table
        self._columns = {name.lower(): name for name in reversed(table.column_names)}

    def pop(self, name: str, default: Any = None) -> Any:
        """An option that is for EVALUATE itself."""
        return self.left.pop(name, default)

    def column(self, name: str) -> Any:
        """A column of the rows as one array, None if there is none of that name."""
        found = self._columns.get(name.lower())
        return None if found is None else combine_column(self._table.column(self._table.column_names.index(found)))

    def names(self) -> list[str]:
        """The rows' columns."""
        return list(self._table.column_names)

    def scorers(self, names: Sequence[str], seed: int, session: Session, keep: Callable[[str], bool]) -> list[Scorer]:
        """A Scorer a metric; `keep` says which plain options are for others too and stay with them."""
        used: set[str] = set()
        found = []
        for name in dict.fromkeys(names):
            metric = METRICS[name]
            own = self.left.get(name)
            given, taken = self._given(metric, own if isinstance(own, Mapping) else {}, name, keep)
            used |= taken | ({name} if isinstance(own, Mapping) else set())
            options = {option: self._value(metric, option, value) for option, value in given.items()}
            for option in metric.columns:
                if option not in options and (column := self.column(option)) is not None:
                    options[option] = column
            if "database" in options and "schema" in options and "schema" not in given:
                del options["schema"]
            row_wise = tuple(o for o, value in options.items() if isinstance(value, pa.Array))
            found.append(
                Scorer(name, metric, options, row_wise, seed, session.show_warning, lambda: session.interrupted)
            )
        for name in used:
            self.left.pop(name, None)
        return found

    def _given(
        self, metric: Metric, own: Mapping[str, Any], name: str, keep: Callable[[str], bool]
    ) -> tuple[dict[str, Any], set[str]]:
        known = metric.options
        if not metric.takes_any_option:
            wrong = next((key for key in own if key not in known), None)
            if wrong is not None:
                raise OptionError(
                    f"{name} has no option '{wrong}'.{did_you_mean(wrong, known)}",
                    f"It has: {', '.join(sorted(known))}." if known else "It has none.",
                )
        plain = {k: v for k, v in self.left.items() if k in known and not keep(k)}
        return {**plain, **own}, set(plain)

    def _value(self, metric: Metric, option: str, value: Any) -> Any:
        """The column that is named, where an option may be a column."""
        if option in metric.columns and isinstance(value, str):
            column = self.column(value)
            return value if column is None else column
        return value


def combine_column(column: Any) -> Any:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def require_judge(scorers: Sequence[Scorer], judge: Any) -> None:
    """OptionError if a metric asks a judge and USING names none."""
    judged = next((s.name for s in scorers if "judge" in s.metric.needs), None)
    if judged and not judge:
        raise OptionError(f"{judged} needs a model that judges.", "Write: USING judge = 'name of a model'.")


class ModelJudge:
    """Asks a model of ours; given to metrics that need a `judge`."""

    def __init__(self, session: Session, name: Any, statement: Evaluate, using: Mapping[str, Any]) -> None:
        self._session, self._statement = session, statement
        self._using = {k: v for k, v in using.items() if k in option_names(QuerySettings)}
        self._resolved = resolve(session, *_parse_version_name(str(name)))
        if len(self._resolved.prompt.inputs) != 1:
            raise OptionError(
                f"The judge '{name}' has {len(self._resolved.prompt.inputs)} inputs.",
                "Take a model with one, such as prompt_template = '{{content}}'.",
            )

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """An answer a prompt, None where it failed."""
        with open_statement_runs(self._session, self._using, self._statement.text) as runs:
            prompt_table = runs.prompt_table(self._resolved, self._resolved.model.key.name)
            ids = prompt_table.ids([pa.array(prompts, pa.large_string())])
            prompt_table.inference_run.rows += len(prompts)
            prompt_table.ask_all()
            return list(prompt_table.columns(ids, [self._resolved.outputs.names[0]])[0].to_pylist())


def _parse_version_name(text: str) -> tuple[str, int | None]:
    name, dot, number = text.rpartition(".")
    return (name, int(number)) if dot and number.isdecimal() else (text, None)
