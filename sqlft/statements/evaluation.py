"""EVALUATE metric FROM (…), EVALUATE MODEL name ON (…) and EVALUATE KNOWLEDGE_BASE: scores with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import DataError, OptionError, did_you_mean
from sqlft.evaluation.compare import Comparison, pop_seed
from sqlft.evaluation.scoring import EvaluationOptions, MetricResult, ModelJudge, Scorer, require_judge
from sqlft.inference.statement_runs import StatementRuns, open_statement_runs
from sqlft.knowledge import evaluate
from sqlft.knowledge.evaluate import KnowledgeEvaluateSettings
from sqlft.knowledge.words import registered
from sqlft.metrics import METRICS
from sqlft.metrics.statistics import SCORE_SCHEMA
from sqlft.options import build_options, drop_options, pick_options
from sqlft.session import Parameters, Session
from sqlft.sql.names import quote_name
from sqlft.sql.statements import Evaluate, EvaluateKnowledgeBase, RowSource
from sqlft.statements.describe import find_knowledge_base
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
    return pa.Table.from_pylist(rows, SCORE_SCHEMA)


def _build_row(metric: str, scored: MetricResult) -> dict[str, object]:
    return {"metric": metric, "value": scored.value, "n": scored.n, **scored.interval._asdict()}


def run_evaluate_knowledge_base(
    session: Session, statement: EvaluateKnowledgeBase, parameters: Parameters
) -> pa.Table | None:
    """Score what is found for judged questions; without ON as MindsDB does, with the questions of its test_table."""
    bases = [find_knowledge_base(session, name) for name in statement.names]
    folded = {name.lower(): value for name, value in statement.options.items()}
    what = "EVALUATE KNOWLEDGE_BASE"
    own = pick_options(folded, evaluate.KnowledgeEvaluateSettings)
    settings = build_options(evaluate.KnowledgeEvaluateSettings, own, what)
    with open_statement_runs(session, drop_options(folded, evaluate.KnowledgeEvaluateSettings), statement.text) as runs:
        for base in bases:
            evaluate.open_models(session, runs, base, settings)
        runs.check_using()
        if statement.source is not None:
            rows = _read_questions(session, statement.source, parameters)
            return evaluate.evaluate_searches(session, runs, bases, rows, settings)
        if len(bases) > 1 or settings.test_table is None:
            raise OptionError(
                f"{what} needs judged questions.",
                "Write: … ON (SELECT question, id FROM …); or as MindsDB has it, for one of them, "
                "USING test_table = 'a table with question and doc_id'.",
            )
        return _evaluate_like_mindsdb(session, runs, bases[0], settings, settings.test_table)


MINDSDB_VERSIONS = {"doc_id": evaluate.evaluate_by_doc_id, "llm_relevancy": evaluate.evaluate_by_relevancy}


def _evaluate_like_mindsdb(
    session: Session, runs: StatementRuns, base: KnowledgeBase, settings: KnowledgeEvaluateSettings, table: str
) -> pa.Table | None:
    version = MINDSDB_VERSIONS.get(settings.version.lower())
    if version is None:
        raise OptionError(f"There is no version '{settings.version}'.", f"There are: {', '.join(MINDSDB_VERSIONS)}.")
    if settings.generate_data:
        texts = _read_questions(session, RowSource(evaluate.sample_sql(base, settings)), None)
        _save_table(session, table, evaluate.generate_questions(session, runs, base, texts, settings))
    if not settings.evaluate:
        return None
    rows = _read_questions(session, RowSource(f"FROM {_quote_table(table)}"), None)
    result = pa.Table.from_pylist([version(session, runs, base, rows, settings)])
    if settings.save_to is not None:
        _save_table(session, settings.save_to, result, adds=True)
    return result


def _read_questions(session: Session, source: RowSource, parameters: Parameters) -> pa.Table:
    rows = read_rows(session, source, parameters)
    if rows.num_rows == 0:
        raise DataError("The query gives no rows to evaluate on.", "Try it alone first.")
    return rows


def _save_table(session: Session, name: str, rows: pa.Table, *, adds: bool = False) -> None:
    """In place of the table of that name; or added to it, if it is there."""
    with registered(session.con, rows=rows) as names:
        table = _quote_table(name)
        if adds:
            session.con.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM {names['rows']} LIMIT 0").fetchall()
            session.con.execute(f"INSERT INTO {table} BY NAME FROM {names['rows']}").fetchall()
        else:
            session.con.execute(f"CREATE OR REPLACE TABLE {table} AS FROM {names['rows']}").fetchall()


def _quote_table(name: str) -> str:
    """A table as MindsDB's options name it: database.table, as text."""
    return ".".join(quote_name(part) for part in name.split("."))


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
