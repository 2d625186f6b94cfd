"""FINETUNE, RETRAIN, CANCEL MODEL, RESUME MODEL and EXPLAIN FINETUNE."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.database import build_write_error
from sqlft.catalog.files import acquire_lock
from sqlft.catalog.records import RESUMABLE, RUNNING, VersionKey
from sqlft.catalog.tables import make_schema
from sqlft.data import PreparedData
from sqlft.errors import CatalogError
from sqlft.handler import Estimate, Trainer, TrainingOptions, read_options
from sqlft.inference.resolve import find_engine, find_model
from sqlft.options import build_options, check_option_names, drop_options, is_secret, pick_options
from sqlft.secrets import references
from sqlft.session import Parameters, Session, TrainSettings
from sqlft.sql.statements import CancelModel, CreateModel, ExplainTraining, Finetune, ModelName, ResumeModel, Retrain
from sqlft.statements import models
from sqlft.statements.show import show_model
from sqlft.training import job, start
from sqlft.training.estimate import GIGA, check_training_notice, estimate_training
from sqlft.training.follow import cancel_training, follow_training, is_remote
from sqlft.training.plan import TrainingPlan, plan_finetune, plan_retrain, plan_training
from sqlft.training.row_text import RowTextSettings, list_row_texts
from sqlft.training.start import train_version

RELEASE_SECONDS = 5.0
"""How long a worker that has written its final status may take to be gone."""


def run_finetune(session: Session, statement: Finetune, parameters: Parameters) -> pa.Table:
    """Train the next version from the active one, or from name.N."""
    return show_version(session, train_version(session, plan_finetune(session, statement), parameters))


def run_retrain(session: Session, statement: Retrain, parameters: Parameters) -> pa.Table:
    """Train the next version from the base, on the given rows or those of the latest training."""
    return show_version(session, train_version(session, plan_retrain(session, statement), parameters))


def run_cancel(session: Session, statement: CancelModel, parameters: Parameters) -> pa.Table:
    """Stop a training, from whichever process it was started."""
    key = _find_version_key(session, statement.name, RUNNING)
    version = session.catalog.version(key)
    also = ("failed",) if is_remote(session, session.catalog.model(key.model)) else ()
    if version.status not in (*RUNNING, "interrupted", "cancelled", *also):
        raise CatalogError(
            f"Version {key} is {version.status}: there is nothing to cancel.", "SHOW MODELS shows what trains."
        )
    cancel_training(session, key)
    return show_version(session, key)


def run_resume(session: Session, statement: ResumeModel, parameters: Parameters) -> pa.Table:
    """Go on with a training that was stopped or has failed, from its last checkpoint; watch one at a provider."""
    catalog = session.catalog
    model = find_model(session, statement.name.key)
    session.require_own(model)
    engine = find_engine(session, model.engine)
    cls = plugins.load_engine_class(engine.handler, engine.options)
    changeable = cls.resume_options if issubclass(cls, Trainer) else ()
    check_option_names(statement.options, ["wait", *changeable], "RESUME MODEL")
    wait = build_options(TrainSettings, pick_options(statement.options, TrainSettings), "RESUME MODEL").wait
    changed = {k: v for k, v in statement.options.items() if k in changeable}
    remote = is_remote(session, model)
    key = _find_version_key(session, statement.name, (*RUNNING, *RESUMABLE) if remote else RESUMABLE)
    version = catalog.version(key)
    if remote and version.status in RUNNING:
        if wait:
            follow_training(session, None, key, remote=True)
        return show_version(session, key)
    if version.status not in RESUMABLE:
        going = "it trains right now" if version.status in RUNNING else f"it is {version.status}"
        raise CatalogError(f"Version {key} cannot be resumed, {going}.", f"DESCRIBE {key} shows how it is.")
    work = catalog.work_folder(key)
    if not job.can_resume(work):
        raise CatalogError(
            f"Version {key} cannot be resumed, its training data is gone.",
            f"FINETUNE {key.model.name} FROM … trains a new version.",
        )
    lock = _wait_for_lock(work, key)
    try:
        if issubclass(cls, Trainer):
            options = cls.train_options
            build_options(options, references.reveal(changed), "RESUME MODEL")
            job.change_train_options(
                work, references.hide(changed, lambda name: is_secret(name, options), f"MODEL {model.key.name}")
            )
        catalog.request_cancel(key, False)
        if not catalog.update_version(key, when=RESUMABLE, status="queued", error=None, finished_at=None):
            raise CatalogError(f"Version {key} was resumed by another session.", f"DESCRIBE {key} shows how it is.")
        worker = job.spawn_worker(catalog, key, lock, session, background=not wait)
    finally:
        os.close(lock)
    if wait:
        follow_training(session, worker, key, remote=remote)
    return show_version(session, key)


def show_version(session: Session, key: VersionKey) -> pa.Table:
    """The version as SHOW MODELS shows it."""
    return show_model(session, key.model, key.number)


def _find_version_key(session: Session, name: ModelName, statuses: tuple[str, ...]) -> VersionKey:
    """The version that a name means; without a number the only one that has one of these statuses."""
    model = find_model(session, name.key)
    session.require_own(model)
    if name.version is not None:
        return session.catalog.version(VersionKey(model.key, name.version)).key
    fitting = [v.key for v in session.catalog.versions(model.key) if v.status in statuses]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(str(key) for key in fitting)
    raise CatalogError(
        f"Which version of {name}? {shown} are {' or '.join(statuses)}."
        if fitting
        else f"No version of {name} is {' or '.join(statuses)}.",
        f"Write its number: {fitting[0]}." if fitting else "SHOW MODELS shows the status of each.",
    )


def _wait_for_lock(work: Path, key: VersionKey) -> int:
    """The lock of a work folder whose worker may be about to end."""
    deadline = time.monotonic() + RELEASE_SECONDS
    try:
        while (lock := acquire_lock(work)) is None:
            if time.monotonic() > deadline:
                raise CatalogError(
                    f"Version {key} cannot be resumed, its process still runs.", f"CANCEL MODEL {key} ends it."
                )
            time.sleep(0.05)
        return lock
    except FileNotFoundError as e:
        raise CatalogError(
            f"Version {key} was just completed by another session.", f"DESCRIBE {key} shows how it is."
        ) from e
    except OSError as e:
        raise build_write_error(work, e.strerror or str(e)) from e


EXPLAIN_SCHEMA = make_schema("explain_key text, explain_value text")


def run_explain_training(session: Session, statement: ExplainTraining, parameters: Parameters) -> pa.Table:
    """One row per fact: rows, tokens, steps, memory, minutes, cost, whether it fits, and each finding in the data."""
    training = statement.training
    own = pick_options(training.options, RowTextSettings)
    shown = build_options(RowTextSettings, own, "EXPLAIN FINETUNE").show_rows
    training = replace(training, options=drop_options(training.options, RowTextSettings))
    plan = _plan_statement(session, training)
    check_training_notice(session, plan)
    prepared = start.prepare_training_rows(session, plan, parameters)
    facts = [
        *_list_facts(plan, prepared),
        *_list_estimate_facts(estimate_training(session, plan, prepared)),
        *((f"{finding.level}: {finding.code}", finding) for finding in prepared.findings),
        *((f"row {row.row}", row.text) for row in list_row_texts(plan, prepared, shown)),
    ]
    return pa.Table.from_pylist(
        [{"explain_key": k, "explain_value": _format_value(v)} for k, v in facts], EXPLAIN_SCHEMA
    )


def _plan_statement(session: Session, training: Finetune | Retrain | CreateModel) -> TrainingPlan:
    """What the statement would train, nothing made or kept."""
    if isinstance(training, Finetune):
        return plan_finetune(session, training)
    if isinstance(training, Retrain):
        return plan_retrain(session, training)
    model, options = models.preview_model(session, training)
    assert training.source is not None
    return plan_training(session, model, training.source, options, f"CREATE MODEL {model.key.name}")


def _list_facts(plan: TrainingPlan, prepared: PreparedData) -> Iterator[tuple[str, object]]:
    valid = prepared.training_set.valid
    yield "model", plan.model.key.name
    yield "base", plan.model.base or None
    yield "starts_from", "base" if plan.parent is None or plan.start is None else f"version {plan.parent}"
    yield "rows", prepared.row_count
    yield "training_rows", prepared.training_set.train.num_rows
    yield "validation_rows", 0 if valid is None else valid.num_rows
    options = read_options(TrainingOptions, plan.options)
    yield "epochs", options.n_epochs
    yield "batch_size", options.batch_size


def _list_estimate_facts(estimate: Estimate | None) -> Iterator[tuple[str, object]]:
    """NULL where the handler cannot tell."""
    known = estimate or Estimate(0, 0)
    yield "tokens", known.tokens if estimate else None
    yield "steps", known.steps
    yield "memory_gb", _round_to_unit(known.memory_bytes, GIGA, 2)
    yield "memory_available_gb", _round_to_unit(known.memory_available, GIGA, 2)
    yield "expected_minutes", _round_to_unit(known.seconds, 60, 2)
    yield "cost_usd", _round_to_unit(known.cost_usd, 1, 4)
    yield "fits", None if known.why_not is None and known.memory_bytes is None else known.why_not is None
    if known.why_not is not None:
        yield "refused_because", " ".join(known.why_not)
    for remark in known.remarks:
        yield "remark", remark


def _round_to_unit(value: float | None, unit: float, digits: int) -> float | None:
    return None if value is None else round(value / unit, digits)


def _format_value(value: object) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
