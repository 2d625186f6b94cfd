"""Start a training: rows read, checked and stored, a version made, its worker running.

The statements call `train_version` with a plan; it returns the key of the new version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from sqlft import plugins
from sqlft.catalog.records import Version, VersionKey
from sqlft.data import PreparedData, prepare
from sqlft.errors import DataError
from sqlft.handler import Estimate, LengthOptions, read_options
from sqlft.inference.budget import hold_training_budget
from sqlft.inference.prices import find_training_pricing
from sqlft.inference.resolve import build_prompt, count_tokens, options_to_json, read_outputs
from sqlft.options import drop_options, is_secret, pick_options
from sqlft.secrets import references
from sqlft.session import EngineSettings, Parameters, Session
from sqlft.training import job
from sqlft.training.estimate import check_estimate, check_findings, check_training_notice, estimate_training
from sqlft.training.follow import follow_training
from sqlft.training.plan import TrainingPlan, parse_validation_source
from sqlft.training.rows import read_rows


def train_version(
    session: Session, plan: TrainingPlan, parameters: Parameters, make: Callable[..., Version] | None = None
) -> VersionKey:
    """Read, check and store the rows, `make` a version (else the model's next), train it in a worker; its key."""
    session.catalog.require_writing()
    check_training_notice(session, plan)
    prepared = prepare_training_rows(session, plan, parameters)
    check_findings(session, plan, prepared)
    estimate = estimate_training(session, plan, prepared)
    check_estimate(session, plan, estimate)
    plan = _hide_secrets(plan)
    fields = _build_version_fields(session, plan, prepared, estimate)
    make = make or partial(session.catalog.new_version, plan.model.key)
    made_keys: list[VersionKey] = []
    with _hold_budget(session, plan, estimate, made_keys):
        with job.stage_work(session.catalog, _build_job(plan), prepared.training_set) as stage:
            key = make(before_commit=stage.move_to, **fields).key
            made_keys.append(key)
            worker = job.spawn_worker(session.catalog, key, stage.lock, session, background=not plan.settings.wait)
        if plan.settings.wait:
            follow_training(session, worker, key, remote=plan.handler.remote)
    return key


def _hold_budget(
    session: Session, plan: TrainingPlan, estimate: Estimate | None, made_keys: Sequence[VersionKey]
) -> AbstractContextManager[None]:
    """The estimated cost held back until what the made version cost is known; an idle machine may cost nothing."""
    cost = None if estimate is None else estimate.cost_usd
    rates = _find_training_rates(session, plan)
    if cost is None and rates == {"machine_usd_per_hour": 0.0}:
        cost = 0.0
    return hold_training_budget(
        session.budget,
        plan.model.key.name,
        plan.engine.name,
        plan.settings.max_cost_usd,
        cost,
        lambda: session.catalog.version(made_keys[0]) if made_keys else None,
    )


def _hide_secrets(plan: TrainingPlan) -> TrainingPlan:
    """The plan as it may be written down: its secrets are references."""
    cls, owner = plan.handler.train_options, f"MODEL {plan.model.key.name}"
    return replace(
        plan,
        raw_options=references.hide(plan.raw_options, lambda name: is_secret(name, cls), owner),
        engine_secrets=references.hide(plan.engine_secrets, lambda _: True, owner),
    )


def _build_job(plan: TrainingPlan) -> job.TrainingJob:
    """What the worker reads in its folder."""
    handler, model = plan.handler, plan.model
    of_model = pick_options(model.options, handler.engine_options)
    return job.TrainingJob(
        plan.engine.handler,
        model.base,
        drop_options({**plan.engine.options, **of_model, **plan.engine_secrets}, EngineSettings),
        pick_options(model.options, handler.model_options),
        dict(plan.raw_options),
        plan.start,
        plan.start_digest,
        plan.spec.schema,
    )


def prepare_training_rows(
    session: Session, plan: TrainingPlan, parameters: Parameters, stops: Sequence[str] | None = None
) -> PreparedData:
    """The rows as this training would see them, checked; `stops` are further stop sequences, and ask for all checks."""
    rows = read_rows(session, plan.source, parameters, to_train=True)
    valid = parse_validation_source(plan.settings.validation, plan.source)
    try:
        return prepare(
            rows,
            build_prompt(plan.model),
            plan.model.targets,
            outputs=read_outputs(plan.model),
            valid_rows=None if valid is None else read_rows(session, valid, parameters, to_train=True),
            validation_split=plan.settings.validation_split,
            seed=plan.settings.seed,
            max_length=plan.handler.max_row_tokens(plan.spec, plan.options),
            long_rows=read_options(LengthOptions, plan.options).long_rows or "cut",
            count_tokens=lambda texts: count_tokens(plan.handler, texts, plan.spec),
            stops=[*_collect_stop_sequences(plan), *(stops or ())],
            thorough=stops is not None or plan.settings.check != "off",
        )
    except ImportError as e:  # the handler counts tokens
        raise plugins.not_installed_error(plan.engine.handler, e) from e
    except UnicodeError as e:
        raise DataError(
            f"The training rows have text that is not valid Unicode: {e}.", "Correct it in the query."
        ) from e


def _collect_stop_sequences(plan: TrainingPlan) -> list[str]:
    """The stop sequences that the model and the version are asked with, those of what it starts from among them."""
    before = {} if plan.start is None else plan.start.details
    listed = (plan.model.options.get("stop"), {**before, **plan.raw_options}.get("stop"))
    stops = (s for some in listed for s in ([some] if isinstance(some, str) else some or ()))
    return list(dict.fromkeys(map(str, stops)))


def _build_version_fields(
    session: Session, plan: TrainingPlan, prepared: PreparedData, estimate: Estimate | None
) -> dict[str, object]:
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
        "options": _list_applied_options(plan),
        "findings": tuple(dataclasses.asdict(finding) for finding in prepared.findings),
        "details": {
            "base": plan.model.base,
            "handler": plugins.handler_package(plan.engine.handler),
            **({"started_from": f"version {plan.parent}"} if plan.start is not None else {}),
            **({"estimate": dataclasses.asdict(estimate)} if estimate is not None else {}),
            **_find_training_rates(session, plan),
        },
    }


def _find_training_rates(session: Session, plan: TrainingPlan) -> dict[str, float]:
    """What the worker needs to say what the training cost."""
    pricing = find_training_pricing(session, plan.engine, plan.handler, plan.spec, plan.model.options)
    per_million = None if pricing.price is None else pricing.price.training
    rates = {"training_usd_per_million": per_million, "machine_usd_per_hour": pricing.hourly}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _list_applied_options(plan: TrainingPlan) -> dict[str, object]:
    """Every training option as it is applied, defaults included, secrets as references."""
    cls = plan.handler.train_options
    validation = parse_validation_source(plan.settings.validation, plan.source)
    core = {
        "seed": plan.settings.seed,
        "validation_split": plan.settings.validation_split,
        "validation": None if validation is None else validation.query,
    }
    own = {
        name: plan.raw_options.get(name) if is_secret(name, cls) else value
        for name, value in options_to_json(plan.options).items()
    }
    return {**core, **own}
