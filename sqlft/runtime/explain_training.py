"""EXPLAIN FINETUNE, EXPLAIN RETRAIN, EXPLAIN CREATE MODEL … FROM: what a training would take, without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sqlft.data import Prepared
from sqlft.handler import Estimate
from sqlft.runtime import define, train
from sqlft.runtime.foresight import GIGA, foreseen, heed_training
from sqlft.runtime.session import Parameters, Session
from sqlft.sql.statements import CreateModel, ExplainTraining, Finetune, Retrain
from sqlft.training.plan import Plan, finetune_plan, plan_of, retrain_plan

FACTS = pa.schema([("explain_key", pa.string()), ("explain_value", pa.string())])


def run_explain_training(session: Session, statement: ExplainTraining, parameters: Parameters) -> pa.Table:
    """A row a fact: rows, tokens, steps, memory, minutes, cost, whether it fits, and each finding in the data."""
    plan = _plan_explained(session, statement.training)
    heed_training(session, plan)
    prepared = train.prepared_for(session, plan, parameters)
    facts = [*_facts(plan, prepared, foreseen(session, plan, prepared)), *_findings(prepared)]
    return pa.Table.from_pylist([{"explain_key": k, "explain_value": _text(v)} for k, v in facts], FACTS)


def _plan_explained(session: Session, training: Finetune | Retrain | CreateModel) -> Plan:
    """What the statement would train, nothing made or kept."""
    if isinstance(training, Finetune):
        return finetune_plan(session, training)
    if isinstance(training, Retrain):
        return retrain_plan(session, training)
    model, options = define.planned_model(session, training)
    assert training.source is not None
    return plan_of(session, model, training.source, options, f"CREATE MODEL {model.key.name}")


def _facts(plan: Plan, prepared: Prepared, estimate: Estimate | None) -> Iterator[tuple[str, Any]]:
    valid = prepared.training_set.valid
    yield "model", plan.model.key.name
    yield "base", plan.model.base or None
    yield "starts_from", "base" if plan.parent is None or plan.start is None else f"version {plan.parent}"
    yield "rows", prepared.row_count
    yield "training_rows", prepared.training_set.train.num_rows
    yield "validation_rows", 0 if valid is None else valid.num_rows
    yield "epochs", getattr(plan.options, "n_epochs", None)
    yield "batch_size", getattr(plan.options, "batch_size", None)
    yield from _estimated(estimate)


def _estimated(estimate: Estimate | None) -> Iterator[tuple[str, Any]]:
    """NULL where the handler cannot tell."""
    known = estimate or Estimate(0, 0)
    yield "tokens", known.tokens if estimate else None
    yield "steps", known.steps
    yield "memory_gb", _rounded(known.memory_bytes, GIGA, 2)
    yield "memory_available_gb", _rounded(known.memory_available, GIGA, 2)
    yield "expected_minutes", _rounded(known.seconds, 60, 2)
    yield "cost_usd", _rounded(known.cost_usd, 1, 4)
    fits = None if known.refusal is None and known.memory_bytes is None else known.refusal is None
    yield "fits", fits
    if known.refusal is not None:
        yield "refused_because", " ".join(known.refusal)
    for remark in known.remarks:
        yield "remark", remark


def _findings(prepared: Prepared) -> Iterator[tuple[str, Any]]:
    for found in prepared.findings:
        yield f"{found.level}: {found.code}", str(found)


def _rounded(value: float | None, unit: float, digits: int) -> float | None:
    return None if value is None else round(value / unit, digits)


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
