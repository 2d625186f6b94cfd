"""FINETUNE, RETRAIN, CANCEL MODEL, RESUME MODEL and EXPLAIN FINETUNE."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog import secrets
from sqlft.catalog.database import cannot_write
from sqlft.catalog.records import RESUMABLE, RUNNING, VersionKey
from sqlft.catalog.workfolder import take
from sqlft.errors import CatalogError
from sqlft.handler import Trainer
from sqlft.options import build, check_names, is_secret
from sqlft.runtime import job, launch
from sqlft.runtime.follow import cancel, follow, is_remote
from sqlft.runtime.models import (
    engine_of,
    key_of,
    model_of,
)
from sqlft.runtime.session import Parameters, Session
from sqlft.runtime.settings import TrainSettings
from sqlft.runtime.train import train
from sqlft.sql.statements import CancelModel, Finetune, Name, ResumeModel, Retrain
from sqlft.training.plan import finetune_plan, retrain_plan

RELEASE_SECONDS = 5.0
"""How long a worker that has written its final status may take to be gone."""


def run_finetune(session: Session, statement: Finetune, parameters: Parameters) -> pa.Table:
    """Train the next version from the active one, or from name.N."""
    plan = finetune_plan(session, statement)
    return row_of(session, train(session, plan, parameters, partial(session.catalog.new_version, plan.model.key)))


def run_retrain(session: Session, statement: Retrain, parameters: Parameters) -> pa.Table:
    """Train the next version from the base, on the given rows or those of the latest training."""
    plan = retrain_plan(session, statement)
    return row_of(session, train(session, plan, parameters, partial(session.catalog.new_version, plan.model.key)))


def run_cancel(session: Session, statement: CancelModel, parameters: Parameters) -> pa.Table:
    """Stop a training, from whichever process it was started."""
    key = _version_key(session, statement.name, RUNNING)
    version = session.catalog.version(key)
    also = ("failed",) if is_remote(session, session.catalog.model(key.model)) else ()
    if version.status not in (*RUNNING, "interrupted", "cancelled", *also):
        raise CatalogError(
            f"Version {key} is {version.status}: there is nothing to cancel.", "SHOW MODELS tells what trains."
        )
    cancel(session, key)
    return row_of(session, key)


def run_resume(session: Session, statement: ResumeModel, parameters: Parameters) -> pa.Table:
    """Go on with a training that was stopped or has failed, from its last checkpoint; watch one at a provider."""
    catalog = session.catalog
    model = model_of(session, key_of(statement.name))
    cls = plugins.handler_class(engine_of(session, model.engine).handler)
    changeable = cls.resume_options if issubclass(cls, Trainer) else ()
    check_names(statement.options, ["wait", *changeable], "RESUME MODEL")
    wait = build(TrainSettings, {k: v for k, v in statement.options.items() if k == "wait"}, "RESUME MODEL").wait
    changed = {k: v for k, v in statement.options.items() if k in changeable}
    remote = is_remote(session, model)
    key = _version_key(session, statement.name, (*RUNNING, *RESUMABLE) if remote else RESUMABLE)
    version = catalog.version(key)
    if remote and version.status in RUNNING:
        if wait:
            follow(session, None, key, remote=True)
        return row_of(session, key)
    if version.status not in RESUMABLE:
        going = "it trains right now" if version.status in RUNNING else f"it is {version.status}"
        raise CatalogError(f"Version {key} cannot be resumed, {going}.", f"DESCRIBE {key} shows how it is.")
    work = catalog.work(key)
    if not job.can_resume(work):
        raise CatalogError(
            f"Version {key} cannot be resumed, its training data is gone.",
            f"FINETUNE {key.model.name} FROM … trains anew.",
        )
    lock = _take_soon(work, key)
    try:
        if issubclass(cls, Trainer):
            options = cls.train_options
            build(options, secrets.reveal(changed), "RESUME MODEL")
            job.change(work, secrets.hide(changed, lambda name: is_secret(name, options), f"MODEL {model.key.name}"))
        catalog.request_cancel(key, False)
        if not catalog.update_version(key, when=RESUMABLE, status="queued", error=None, finished_at=None):
            raise CatalogError(f"Version {key} was resumed by another session.", f"DESCRIBE {key} shows how it is.")
        worker = launch.spawn(catalog, key, lock, session, background=not wait)
    finally:
        os.close(lock)
    if wait:
        follow(session, worker, key, remote=remote)
    return row_of(session, key)


def row_of(session: Session, key: VersionKey) -> pa.Table:
    """The version as SHOW MODELS shows it."""
    from sqlft.runtime.show import model_rows

    return model_rows(session, key.model, key.number)


def _version_key(session: Session, name: Name, statuses: tuple[str, ...]) -> VersionKey:
    """The version that a name means; without a number the only one that has one of these statuses."""
    model = model_of(session, key_of(name))
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
        f"Write its number: {fitting[0]}." if fitting else "SHOW MODELS tells how each is.",
    )


def _take_soon(work: Path, key: VersionKey) -> int:
    """The lock of a work folder whose worker may be about to end."""
    deadline = time.monotonic() + RELEASE_SECONDS
    try:
        while (lock := take(work)) is None:
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
        raise cannot_write(work, e.strerror or str(e)) from e
