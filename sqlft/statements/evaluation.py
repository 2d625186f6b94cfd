"""EVALUATE metric FROM (…) and EVALUATE MODEL name ON (…): scores with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sqlft.errors import DataError, OptionError, did_you_mean
from sqlft.evaluation.compare import ROW_SCORES_SCHEMA, Comparison, pop_seed
from sqlft.evaluation.scoring import EvaluationOptions, MetricResult, ModelJudge, Scorer, require_judge
from sqlft.metrics import METRICS
from sqlft.session import Parameters, Session
from sqlft.sql.statements import Evaluate
from sqlft.training.rows import read_rows


def run_evaluate(session: Session, statement: Evaluate, parameters: Parameters) -> pa.Table:
    """Score rows, or the answers of versions; the versions' scores are kept in the catalog."""
    for name in statement.metrics:
        METRICS[name]
    table = read_rows(session, statement.source, parameters)
    if table.num_rows == 0:
        raise DataError("The query gives no rows to evaluate on.", "Try it alone first.")
    options = EvaluationOptions(statement.options, table)
    if statement.models:
        return Comparison(session, statement, table, options).run()
    return _evaluate_rows(session, statement, options)


def _evaluate_rows(session: Session, statement: Evaluate, options: EvaluationOptions) -> pa.Table:
    actual = _find_column(options, "actual", options.pop("actual", "actual"))
    prediction = _find_column(options, "prediction", options.pop("prediction", "prediction"))
    seed = pop_seed(options)
    judge = options.pop("judge")
    scorers = options.scorers(statement.metrics, seed, session, lambda key: False)
    _refuse_unknown_options(options.left, scorers)
    require_judge(scorers, judge)
    rows = []
    for scorer in scorers:
        more = {"judge": ModelJudge(session, judge, statement, {})} if "judge" in scorer.metric.needs else {}
        rows.append(_build_row(scorer.name, scorer.score(actual, prediction, **more)))
    return pa.Table.from_pylist(rows, ROW_SCORES_SCHEMA)


def _build_row(metric: str, scored: MetricResult) -> dict[str, object]:
    return {"metric": metric, "value": scored.value, "n": scored.n, **scored.interval._asdict()}


def _find_column(options: EvaluationOptions, role: str, name: Any) -> Any:
    column = options.column(str(name))
    if column is None:
        raise DataError(
            f"The query has no column '{name}'.{did_you_mean(str(name), options.names())}",
            f"Write … AS {role}, or USING {role} = 'column'; it has: {', '.join(options.names())}.",
        )
    return column


def _refuse_unknown_options(left: Mapping[str, object], scorers: Sequence[Scorer]) -> None:
    if left:
        name = next(iter(left))
        known = {"actual", "prediction", "seed", "judge", *(s.name for s in scorers)}
        for scorer in scorers:
            known |= scorer.metric.options
        raise OptionError(
            f"EVALUATE has no option '{name}'.{did_you_mean(name, known)}", f"It has: {', '.join(sorted(known))}."
        )
