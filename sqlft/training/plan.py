"""What a training will do, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlft.catalog.records import Engine, Model, Version, VersionKey
from sqlft.errors import CatalogError, NotSupported, OptionError
from sqlft.handler import Artifact, ModelSpec, Trainer
from sqlft.inference.resolve import (
    build_model_spec,
    create_handler,
    find_engine,
    find_model,
    list_handlers,
    read_outputs,
    resolve,
)
from sqlft.options import build_options, check_option_names, drop_options, is_secret, option_names, pick_options
from sqlft.secrets import references
from sqlft.session import Session, TrainSettings
from sqlft.sql.statements import Finetune, ModelName, Retrain, RowSource

BASE_OPTIONS = ("base", "model_name", "model")


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, from where, with which options; checked, nothing done yet."""

    model: Model
    engine: Engine
    handler: Trainer
    spec: ModelSpec
    settings: TrainSettings
    options: Any
    """An instance of the handler's train_options."""
    raw_options: Mapping[str, object]
    """The part of USING that is for the handler, secrets not yet hidden."""
    source: RowSource
    engine_secrets: Mapping[str, object] = field(default_factory=dict)
    """Secrets of the engine that USING gave for this training, such as api_key; not yet hidden."""
    start: Artifact | None = None
    start_digest: str | None = None
    parent: int | None = None


def plan_finetune(session: Session, statement: Finetune) -> TrainingPlan:
    """What FINETUNE would do."""
    start = resolve(session, statement.name.key, statement.name.version)
    plan = plan_training(session, start.model, statement.source, statement.options, f"FINETUNE {statement.name}")
    digest, parent = start.version.artifact_digest, start.version.key.number
    return replace(plan, start=start.artifact, start_digest=digest, parent=parent)


def plan_retrain(session: Session, statement: Retrain) -> TrainingPlan:
    """What RETRAIN would do."""
    model = find_model(session, statement.name.key)
    session.require_own(model)
    source, options = statement.source, dict(statement.options)
    if source is None:
        last = _find_last_training(session, model, statement.name)
        source = RowSource(last.query or "", last.database)
        options = {**{k: v for k, v in last.options.items() if v is not None}, **options}
    return plan_training(session, model, source, options, f"RETRAIN {statement.name}")


def plan_training(
    session: Session, model: Model, source: RowSource, options: Mapping[str, object], what: str
) -> TrainingPlan:
    """Check what a training was asked to do; NotSupported, OptionError."""
    session.require_own(model)
    engine = find_engine(session, model.engine)
    handler = create_handler(session, engine, model.options)
    if not isinstance(handler, Trainer):
        can = ", ".join(list_handlers(Trainer))
        raise NotSupported(
            f"The handler '{engine.handler}' cannot train.",
            handler.instead_of_training
            or (f"These can: {can}; CREATE MODEL … USING engine = …" if can else "Run: pip install 'sqlft[local]'"),
        )
    cls = handler.train_options
    options, access = _split_training_options(model, engine, type(handler), options, what)
    if access:
        handler = create_handler(session, engine, {**model.options, **access})
        assert isinstance(handler, Trainer)
    if cls is not dict:
        check_option_names(options, option_names(TrainSettings, cls), what)
    settings = build_options(TrainSettings, pick_options(options, TrainSettings), what)
    raw_options = drop_options(options, TrainSettings) if cls is dict else pick_options(options, cls)
    schema = read_outputs(model).schema
    spec = build_model_spec(type(handler), model.base, model.options, f"Model '{model.key.name}'", schema)
    resolved = handler.resolve_options(spec, build_options(cls, references.reveal(raw_options), what))
    return TrainingPlan(model, engine, handler, spec, settings, resolved, raw_options, source, access)


def _split_training_options(
    model: Model, engine: Engine, cls: type[Trainer], options: Mapping[str, object], what: str
) -> tuple[dict[str, object], dict[str, object]]:
    """USING without the model's engine and base, which may be repeated; and the secrets in it that are the engine's."""
    known = option_names(TrainSettings, cls.train_options)
    left, access = dict(options), {}
    for name, current, word in (("engine", engine.name, "engine"), *((n, model.base, "base") for n in BASE_OPTIONS)):
        if name in known or name not in left:
            continue
        value = left.pop(name)
        if str(value).lower() != current.lower():
            raise OptionError(
                f"{what}: the {word} of the model is '{current}', and training does not change it to '{value}'.",
                f"Make another model: CREATE MODEL name PREDICT {model.predict} USING {name} = '{value}', …",
            )
    secrets = {n for n in option_names(cls.engine_options) if is_secret(n, cls.engine_options)}
    for name in [n for n in left if n not in known]:
        secret = "api_key" if name not in secrets and name.endswith("_api_key") else name
        if secret in secrets:
            access[secret] = left.pop(name)
    return left, access


def parse_validation_source(value: object, source: RowSource) -> RowSource | None:
    """The query whose rows are the validation set, if USING names one."""
    if value is None or isinstance(value, RowSource):
        return value
    if isinstance(value, str):
        return RowSource(value, source.database)
    raise OptionError("'validation' must be a query.", "Write it in quotes: validation = 'SELECT … FROM …'.")


def _find_last_training(session: Session, model: Model, name: ModelName) -> Version:
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
