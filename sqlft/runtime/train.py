"""FINETUNE, RETRAIN, CREATE MODEL … FROM, CANCEL and RESUME: from rows to a new version."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog import secrets
from sqlft.catalog.database import cannot_write
from sqlft.catalog.records import RESUMABLE, RUNNING, Engine, Model, ModelKey, Version, VersionKey
from sqlft.catalog.workfolder import take
from sqlft.data import Prepared, prepare
from sqlft.errors import CatalogError, DataError, NotSupported, OptionError
from sqlft.handler import Artifact, Estimate, Trainer
from sqlft.options import build, check_names, is_secret, names_of, pick, without
from sqlft.runtime import job, launch, sources
from sqlft.runtime.follow import cancel, follow, is_remote
from sqlft.runtime.foresight import foreseen, heed_training, refuse_or_tell, stop_or_warn
from sqlft.runtime.models import (
    engine_of,
    handler_of,
    model_of,
    outputs_of,
    plain,
    prompt_of,
    resolve,
    spec_of,
    trainers,
)
from sqlft.runtime.prices import tariff_for
from sqlft.runtime.reserve import reserved
from sqlft.runtime.session import Parameters, Session
from sqlft.runtime.settings import EngineSettings, TrainSettings
from sqlft.sql.statements import CancelModel, Finetune, Name, ResumeModel, Retrain, Source

BASES = ("base", "model_name", "model")
RELEASE_SECONDS = 5.0
"""How long a worker that has written its final status may take to be gone."""


@dataclass(frozen=True)
class Plan:
    """What to train, from where, with which options; checked, nothing done yet."""

    model: Model
    engine: Engine
    handler: Trainer
    settings: TrainSettings
    options: Any
    """An instance of the handler's train_options."""
    given: Mapping[str, Any]
    """The part of USING that is for the handler, secrets not yet hidden."""
    source: Source
    access: Mapping[str, Any] = field(default_factory=dict)
    """Secrets of the engine that USING gave for this training, such as api_key; not yet hidden."""
    start: Artifact | None = None
    start_digest: str | None = None
    parent: int | None = None


def run_finetune(session: Session, statement: Finetune, parameters: Parameters) -> pa.Table:
    """Train the next version from the active one, or from name.N."""
    plan = finetune_plan(session, statement)
    return train(session, plan, parameters, partial(session.catalog.new_version, plan.model.key))


def run_retrain(session: Session, statement: Retrain, parameters: Parameters) -> pa.Table:
    """Train the next version from the base, on the given rows or those of the latest training."""
    plan = retrain_plan(session, statement)
    return train(session, plan, parameters, partial(session.catalog.new_version, plan.model.key))


def train_new(
    session: Session,
    model: Model,
    source: Source,
    options: Mapping[str, Any],
    parameters: Parameters,
    *,
    or_replace: bool = False,
) -> pa.Table:
    """CREATE MODEL … FROM: keep a new model and train its version 1; `options` are USING's for training."""
    plan = plan_of(session, model, source, options, f"CREATE MODEL {model.key.name}")
    return train(session, plan, parameters, partial(session.catalog.add_model, model, or_replace=or_replace))


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


def finetune_plan(session: Session, statement: Finetune) -> Plan:
    """What FINETUNE would do."""
    found = resolve(session, key_of(statement.name), statement.name.version)
    plan = plan_of(session, found.model, statement.source, statement.options, f"FINETUNE {statement.name}")
    return replace(
        plan, start=found.artifact, start_digest=found.version.artifact_digest, parent=found.version.key.number
    )


def retrain_plan(session: Session, statement: Retrain) -> Plan:
    """What RETRAIN would do."""
    model = model_of(session, key_of(statement.name))
    source, options = statement.source, dict(statement.options)
    if source is None:
        last = _last_training(session, model, statement.name)
        source = Source(last.query or "", last.database)
        options = {**{k: v for k, v in last.options.items() if v is not None}, **options}
    return plan_of(session, model, source, options, f"RETRAIN {statement.name}")


def plan_of(session: Session, model: Model, source: Source, options: Mapping[str, Any], what: str) -> Plan:
    """Check what a training was asked to do; NotSupported, OptionError."""
    engine = engine_of(session, model.engine)
    handler = handler_of(session, engine, model.options)
    if not isinstance(handler, Trainer):
        can = ", ".join(trainers())
        raise NotSupported(
            f"The handler '{engine.handler}' cannot train.",
            handler.instead_of_training
            or (f"These can: {can}; CREATE MODEL … USING engine = …" if can else "Run: pip install 'sqlft[local]'"),
        )
    cls = handler.train_options
    options, access = _of_this_training(model, engine, type(handler), options, what)
    if access:
        handler = handler_of(session, engine, {**model.options, **access})
        assert isinstance(handler, Trainer)
    if cls is not dict:
        check_names(options, names_of(TrainSettings, cls), what)
    settings = build(TrainSettings, pick(options, TrainSettings), what)
    taken = names_of(cls)
    own = {k: v for k, v in options.items() if k in taken or (cls is dict and k not in names_of(TrainSettings))}
    spec = spec_of(type(handler), model.base, model.options, f"Model '{model.key.name}'")
    chosen = handler.settled(spec, build(cls, secrets.reveal(own), what))
    return Plan(model, engine, handler, settings, chosen, own, source, access)


def _of_this_training(
    model: Model, engine: Engine, cls: type[Trainer], options: Mapping[str, Any], what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """USING without the model's engine and base, which may be repeated; and the secrets in it that are the engine's."""
    own = names_of(TrainSettings, cls.train_options)
    left, access = dict(options), {}
    for name, has, word in (("engine", engine.name, "engine"), *((n, model.base, "base") for n in BASES)):
        if name in own or name not in left:
            continue
        said = left.pop(name)
        if str(said).lower() != has.lower():
            raise OptionError(
                f"{what}: the {word} of the model is '{has}', and training does not change it to '{said}'.",
                f"Make another model: CREATE MODEL name PREDICT {model.predict} USING {name} = '{said}', …",
            )
    secret = {n for n in names_of(cls.engine_options) if is_secret(n, cls.engine_options)}
    for name in [n for n in left if n not in own]:
        wanted = "api_key" if name not in secret and name.endswith("_api_key") else name
        if wanted in secret:
            access[wanted] = left.pop(name)
    return left, access


def train(session: Session, plan: Plan, parameters: Parameters, make: Callable[..., Version]) -> pa.Table:
    """Read, check and store the rows, `make` the version, train it in a worker; the version's row."""
    session.catalog.require_writing()
    heed_training(session, plan)
    prepared = prepared_for(session, plan, parameters)
    stop_or_warn(session, plan, prepared)
    estimate = foreseen(session, plan, prepared)
    if estimate is not None:
        refuse_or_tell(session, plan, estimate)
    handler, cls = plan.handler, plan.handler.train_options
    hidden = secrets.hide(plan.given, lambda name: is_secret(name, cls), f"MODEL {plan.model.key.name}")
    access = secrets.hide(plan.access, lambda _: True, f"MODEL {plan.model.key.name}")
    plan = replace(plan, given=hidden)
    wanted = job.Job(
        plan.engine.handler,
        plan.model.base,
        without({**plan.engine.options, **pick(plan.model.options, handler.engine_options), **access}, EngineSettings),
        pick(plan.model.options, handler.model_options),
        hidden,
        job.start_of(plan.start),
        plan.start_digest,
        outputs_of(plan.model).schema,
    )
    fields = _fields(plan, prepared, estimate)
    fields["details"] |= _tariff(session, plan)
    made: list[VersionKey] = []
    name, most, cost = plan.model.key.name, plan.settings.max_cost_usd, _cost(fields["details"], estimate)
    ended = partial(_ended, session, made)
    with reserved(session.purse, name, plan.engine.name, most, cost, ended):
        with launch.staged(session.catalog, wanted, prepared.training_set) as stage:
            version = make(before_commit=stage.settle, **fields)
            made.append(version.key)
            worker = launch.spawn(session.catalog, version.key, stage.lock, session, background=not plan.settings.wait)
        if plan.settings.wait:
            follow(session, worker, version.key, remote=plan.handler.remote)
    return row_of(session, version.key)


def key_of(name: Name) -> ModelKey | str:
    """A model's name as `resolve` takes it."""
    return name.name if name.project is None else ModelKey(name.name, name.project)


def row_of(session: Session, key: VersionKey) -> pa.Table:
    """The version as SHOW MODELS shows it."""
    from sqlft.runtime.show import model_rows

    return model_rows(session, key.model, key.number)


def prepared_for(session: Session, plan: Plan, parameters: Parameters, stops: Sequence[str] | None = None) -> Prepared:
    """The rows as this training would see them, checked; `stops` are further stop sequences, and ask for all checks."""
    rows = sources.read(session, plan.source, parameters, to_train=True)
    valid = validation_source(plan.settings.validation, plan.source)
    outputs, what = outputs_of(plan.model), f"Model '{plan.model.key.name}'"
    spec = spec_of(type(plan.handler), plan.model.base, plan.model.options, what, outputs.schema)
    try:
        return prepare(
            rows,
            prompt_of(plan.model),
            plan.model.targets,
            outputs=outputs,
            valid_rows=None if valid is None else sources.read(session, valid, parameters, to_train=True),
            validation_split=plan.settings.validation_split,
            seed=plan.settings.seed,
            max_length=plan.handler.longest_row(spec, plan.options),
            long_rows=getattr(plan.options, "long_rows", None) or "cut",
            count_tokens=lambda texts: plan.handler.count_tokens(texts, spec),
            stops=[*_stops(plan), *(stops or ())],
            thorough=stops is not None or plan.settings.check != "off",
        )
    except ImportError as e:  # the handler counts tokens
        raise plugins.not_installed(plan.engine.handler, e) from e
    except UnicodeError as e:
        raise DataError(f"The training rows have text that is not valid Unicode: {e}.", "Mend it in the query.") from e


def _stops(plan: Plan) -> list[str]:
    """The stop sequences that the model and the version are asked with, those of what it starts from among them."""
    before = {} if plan.start is None else plan.start.details
    listed = (plan.model.options.get("stop"), {**before, **plan.given}.get("stop"))
    found = (s for some in listed for s in ([some] if isinstance(some, str) else some or ()))
    return list(dict.fromkeys(map(str, found)))


def validation_source(wanted: Any, source: Source) -> Source | None:
    """The query whose rows are the validation set, if USING names one."""
    if wanted is None or isinstance(wanted, Source):
        return wanted
    if isinstance(wanted, str):
        return Source(wanted, source.database)
    raise OptionError("'validation' must be a query.", "Write it in quotes: validation = 'SELECT … FROM …'.")


def _fields(plan: Plan, prepared: Prepared, estimate: Estimate | None) -> dict[str, Any]:
    """The fields of a version that is about to be trained."""
    return {
        "status": "queued",
        "parent": plan.parent,
        "tag": plan.settings.tag,
        "activate": plan.settings.active,
        "query": plan.source.query,
        "database": plan.source.database,
        "row_count": prepared.row_count,
        "data_digest": prepared.digest,
        "options": _applied(plan),
        "findings": tuple(dataclasses.asdict(found) for found in prepared.findings),
        "details": {
            "base": plan.model.base,
            "handler": plugins.package_of(plan.engine.handler),
            **({"started_from": f"version {plan.parent}"} if plan.start is not None else {}),
            **({"estimate": dataclasses.asdict(estimate)} if estimate is not None else {}),
        },
    }


def _tariff(session: Session, plan: Plan) -> dict[str, Any]:
    """What the worker needs to say what the training cost."""
    what = f"Model '{plan.model.key.name}'"
    spec = spec_of(type(plan.handler), plan.model.base, plan.model.options, what)
    tariff = tariff_for(session, plan.engine, plan.handler, spec, plan.model.options)
    training = None if tariff.price is None else tariff.price.training
    rates = {"training_usd_per_million": training, "machine_usd_per_hour": tariff.hourly}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _cost(details: Mapping[str, Any], estimate: Estimate | None) -> float | None:
    """USD that a training will cost; a machine that costs nothing does, however long it takes."""
    if estimate is not None and estimate.cost_usd is not None:
        return estimate.cost_usd
    free = details.get("machine_usd_per_hour") == 0 and "training_usd_per_million" not in details
    return 0.0 if free else None


def _ended(session: Session, made: Sequence[VersionKey]) -> Version | None:
    return session.catalog.version(made[0]) if made else None


def _applied(plan: Plan) -> dict[str, Any]:
    """Every training option as it holds, defaults included, secrets as references."""
    cls = plan.handler.train_options
    validation = validation_source(plan.settings.validation, plan.source)
    core = {
        "seed": plan.settings.seed,
        "validation_split": plan.settings.validation_split,
        "validation": None if validation is None else validation.query,
    }
    own = {name: plan.given.get(name) if is_secret(name, cls) else value for name, value in plain(plan.options).items()}
    return {**core, **own}


def _last_training(session: Session, model: Model, name: Name) -> Version:
    """Version N, or the newest that was trained on a query."""
    if name.version is not None:
        known = [session.catalog.version(VersionKey(model.key, name.version))]
    else:
        known = session.catalog.versions(model.key)
    for version in reversed(known):
        if version.query is not None:
            return version
    raise CatalogError(
        f"{name} was never trained, so there are no rows to train it on again.",
        f"Say which: RETRAIN {name} FROM db (SELECT …).",
    )


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
