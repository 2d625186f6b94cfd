"""DESCRIBE: a model or an engine in full, and one side of it: DESCRIBE model.data, .metrics, .versions …"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.records import RUNNING, Model, Version, to_json
from sqlft.catalog.tables import make_schema, to_local_time
from sqlft.data import Prompt
from sqlft.errors import NotFound, did_you_mean
from sqlft.handler import Handler, Trainer
from sqlft.inference.resolve import find_engine, find_model, read_outputs
from sqlft.options import options_of
from sqlft.plugins import describe_missing_packages
from sqlft.secrets import references
from sqlft.session import Parameters, Session, TrainSettings
from sqlft.sql.statements import DescribeEngine, DescribeModel, ModelName
from sqlft.statements.show import (
    ENGINES_SCHEMA,
    MODELS_SCHEMA,
    build_model_row,
    format_connection_data,
    list_model_options,
)
from sqlft.training.follow import predict_seconds

MODEL_SCHEMA = pa.unify_schemas(
    [
        MODELS_SCHEMA,
        make_schema(
            """INPUTS text[], PROMPT_TEMPLATE text, SYSTEM text, BASE text, PARENT integer, STARTED_FROM text,
               REMARKS text[], HANDLER text, ROWS integer, DATA_DIGEST text, FINDINGS text[], DETAILS text,
               ARTIFACT text, ATTRIBUTES text[]"""
        ),
    ]
)
ENGINE_SCHEMA = pa.unify_schemas(
    [ENGINES_SCHEMA, make_schema("PACKAGE text, TRAINS boolean, IMPORT_ERROR text, MODELS text[], OPTIONS text[]")]
)


def run_describe_model(session: Session, statement: DescribeModel, parameters: Parameters) -> pa.Table:
    """One row with all that is known of a version, or the rows of one attribute of it; NotFound."""
    name, attribute = statement.name, statement.attribute
    if statement.or_name is not None and not is_model(session, name) and is_model(session, statement.or_name):
        name, attribute = statement.or_name, None
    model = find_model(session, name.key)
    version = session.resolve_version(model, name.version)
    if attribute is None:
        return _describe_version(session, model, version)
    described = ATTRIBUTES.get(attribute.lower())
    if described is None:
        raise NotFound(
            f"A model has no attribute '{attribute}'.{did_you_mean(attribute, ATTRIBUTES)}",
            f"There are: {', '.join(ATTRIBUTES)}.",
        )
    return described(session, model, version)


def run_describe_engine(session: Session, statement: DescribeEngine, parameters: Parameters) -> pa.Table:
    """One row: an engine, or a handler under its own name, with the options that it takes."""
    engine = find_engine(session, statement.name)
    gap = (
        describe_missing_packages(engine.handler)
        if engine.handler in plugins.find_entry_points()
        else "There is no such handler any more."
    )
    row: dict[str, object] = {
        "NAME": engine.name,
        "HANDLER": engine.handler,
        "CONNECTION_DATA": format_connection_data(engine),
        "CREATED_AT": to_local_time(engine.created_at),
        "PACKAGE": plugins.handler_package(engine.handler) or None,
        "IMPORT_ERROR": gap,
        "MODELS": [m.key.name for m in session.catalog.models() if m.engine.lower() == engine.name.lower()],
    }
    if gap is None:
        named = plugins.load_handler_class(engine.handler)
        cls = plugins.load_engine_class(engine.handler, engine.options) if engine.options else named
        row |= {"TRAINS": issubclass(cls, Trainer), "OPTIONS": _format_options(cls)}
    return pa.Table.from_pylist([row], ENGINE_SCHEMA)


def is_model(session: Session, name: ModelName) -> bool:
    """Whether a name means a model: what DESCRIBE without MODEL asks first."""
    return session.find_model(name.name, name.project) is not None


def describes_model(session: Session, statement: DescribeModel) -> bool:
    """Whether a DESCRIBE is ours; else it is DuckDB's."""
    names = [statement.name] + ([statement.or_name] if statement.or_name else [])
    return statement.explicit or any(is_model(session, name) for name in names)


def _describe_version(session: Session, model: Model, version: Version) -> pa.Table:
    accuracy = session.catalog.accuracies().get(version.key)
    row = build_model_row(model, version, accuracy) | {
        "INPUTS": list(Prompt(model.prompt_template, model.system).inputs),
        "PROMPT_TEMPLATE": model.prompt_template,
        "SYSTEM": model.system,
        "BASE": model.base or None,
        "PARENT": version.parent,
        "STARTED_FROM": _describe_start(version),
        "REMARKS": list(version.details.get("remarks") or ()),
        "HANDLER": version.details.get("handler"),
        "ROWS": version.row_count,
        "DATA_DIGEST": version.data_digest,
        "FINDINGS": [f"{f['level']}: {f['message']}" for f in version.findings],
        "DETAILS": to_json({name: value for name, value in version.details.items() if name != "first_rows"}),
        "ARTIFACT": version.remote_id or (str(version.artifact_path) if version.artifact_path else None),
        "ATTRIBUTES": list(ATTRIBUTES),
    }
    return pa.Table.from_pylist([row], MODEL_SCHEMA)


def _describe_start(version: Version) -> str | None:
    """The base or a version, and what was done with that one's adapter; None for what was not trained here."""
    if (imported := version.details.get("imported")) is not None:
        return f"taken in from the {imported['from']} {imported['path']}"
    if version.query is None:
        return None
    before, goes_on = version.details.get("started_from"), version.details.get("continues")
    how = f": {goes_on}" if isinstance(goes_on, str) else ""
    return f"{before}{how}" if before else "the base"


def _describe_columns(session: Session, model: Model, version: Version) -> pa.Table:
    names = Prompt(model.prompt_template, model.system).inputs
    rows = [{"COLUMN": name, "KIND": "input", "TYPE": "any"} for name in names]
    columns = read_outputs(model).columns
    rows += [{"COLUMN": c.name, "KIND": "output", "TYPE": c.type} for c in columns]
    rows += [
        {"COLUMN": f"{columns[0].name}_error", "KIND": "why there is no answer", "TYPE": "VARCHAR"},
        {"COLUMN": f"{columns[0].name}_usage", "KIND": "tokens, seconds and cost", "TYPE": "STRUCT"},
        {"COLUMN": f"{columns[0].name}_logprob", "KIND": "logarithm of its probability", "TYPE": "DOUBLE"},
        {"COLUMN": f"{columns[0].name}_reasoning", "KIND": "what was thought before it", "TYPE": "VARCHAR"},
    ]
    return pa.Table.from_pylist(rows, make_schema("COLUMN text, KIND text, TYPE text"))


def _describe_options(session: Session, model: Model, version: Version) -> pa.Table:
    """What CREATE MODEL set, what training applied, and the defaults of the rest."""
    own = list_model_options(model)
    trained = references.redact_options(version.options)
    rows = [_build_option_row(name, value, "CREATE MODEL") for name, value in own.items()]
    usual = _list_defaults(session, model, training=True)
    rows += [
        _build_option_row(name, value, "default" if name in usual and usual[name] == value else "training")
        for name, value in trained.items()
        if name not in own
    ]
    for name, value in _list_defaults(session, model, training=False).items():
        if name not in own and name not in trained:
            rows.append(_build_option_row(name, value, "default"))
    return pa.Table.from_pylist(rows, make_schema("OPTION text, VALUE text, SET_BY text"))


def _describe_data(session: Session, model: Model, version: Version) -> pa.Table:
    """One row: what the version was made of."""
    finding = make_schema("code text, level text, count integer, message text, examples integer[]")
    schema = make_schema("QUERY text, DATABASE text, ROWS integer, DIGEST text")
    schema = schema.append(pa.field("FINDINGS", pa.list_(pa.struct(finding))))
    row = {
        "QUERY": version.query,
        "DATABASE": version.database,
        "ROWS": version.row_count,
        "DIGEST": version.data_digest,
        "FINDINGS": [dict(f) for f in version.findings],
    }
    return pa.Table.from_pylist([row], schema)


def _describe_findings(session: Session, model: Model, version: Version) -> pa.Table:
    schema = make_schema(
        "LEVEL text, CODE text, COUNT integer, MESSAGE text, EXAMPLES integer[], WHAT_TO_DO text, SHOWN text[]"
    )
    rows = [{name.upper(): value for name, value in f.items()} for f in version.findings]
    return pa.Table.from_pylist(rows, schema)


def _describe_estimate(session: Session, model: Model, version: Version) -> pa.Table:
    """What was estimated before the training, its minutes by its own first steps while it trains; and what it took."""
    estimated, took = version.details.get("estimate") or {}, version.details
    trains = version.status in RUNNING
    measured = {
        "tokens": took.get("tokens"),
        "steps": took.get("steps"),
        "minutes": None if trains else _convert_unit(version.seconds, 60),
        "memory_gb": _convert_unit(took.get("peak_memory_bytes"), 1e9),
        "cost_usd": took.get("cost_usd"),
    }
    expected = {
        "tokens": estimated.get("tokens"),
        "steps": estimated.get("steps"),
        "minutes": _convert_unit(predict_seconds(version) or estimated.get("seconds"), 60),
        "memory_gb": _convert_unit(estimated.get("memory_bytes"), 1e9),
        "cost_usd": estimated.get("cost_usd"),
    }
    rows = [{"FACT": name, "ESTIMATED": expected[name], "MEASURED": measured[name]} for name in expected]
    return pa.Table.from_pylist(rows, make_schema("FACT text, ESTIMATED number, MEASURED number"))


def _convert_unit(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 3)


def _describe_metrics(session: Session, model: Model, version: Version) -> pa.Table:
    schema = make_schema("STEP integer, EPOCH number, SPLIT text, NAME text, VALUE number")
    metrics = session.catalog.metrics(version.key)
    rows = [{"STEP": m.step, "EPOCH": m.epoch, "SPLIT": m.split, "NAME": m.name, "VALUE": m.value} for m in metrics]
    return pa.Table.from_pylist(rows, schema)


def _describe_versions(session: Session, model: Model, version: Version) -> pa.Table:
    known = session.catalog.accuracies()
    rows = [
        build_model_row(model, v, known.get(v.key)) | {"PARENT": v.parent, "ROWS": v.row_count}
        for v in session.versions(model)
    ]
    return pa.Table.from_pylist(rows, pa.unify_schemas([MODELS_SCHEMA, make_schema("PARENT integer, ROWS integer")]))


def _describe_import_error(session: Session, model: Model, version: Version) -> pa.Table:
    """Whether the handler of the model can be used here."""
    handler = find_engine(session, model.engine, model).handler
    row = {"HANDLER": handler, "IMPORT_ERROR": describe_missing_packages(handler)}
    return pa.Table.from_pylist([row], make_schema("HANDLER text, IMPORT_ERROR text"))


def _build_option_row(name: str, value: object, set_by: str) -> dict[str, object]:
    return {"OPTION": name, "VALUE": value if isinstance(value, str) else to_json(value), "SET_BY": set_by}


def _list_defaults(session: Session, model: Model, *, training: bool) -> dict[str, object]:
    """Defaults of the options for training, or for making and asking; none if the handler cannot be loaded."""
    engine = find_engine(session, model.engine, model)
    is_here = describe_missing_packages(engine.handler) is None
    cls = plugins.load_engine_class(engine.handler, engine.options) if is_here else Handler
    classes: tuple[type, ...] = (cls.model_options, cls.predict_options)
    if training:
        classes = (TrainSettings, cls.train_options) if issubclass(cls, Trainer) else ()
    return {name: option.default for of in classes for name, option in options_of(of).items()}


def _format_options(cls: type[Handler]) -> list[str]:
    """``engine option api_key (text): what it is for``, all of a handler's options."""
    kinds = {"engine": cls.engine_options, "model": cls.model_options, "query": cls.predict_options}
    if issubclass(cls, Trainer):
        kinds["training"] = cls.train_options
    return [
        f"{kind} option {o.name} ({o.type_name}): {o.doc}"
        for kind, of in kinds.items()
        for o in options_of(of).values()
    ]


ATTRIBUTES: Mapping[str, Callable[[Session, Model, Version], pa.Table]] = {
    "model": _describe_version,
    "info": _describe_version,
    "inputs": _describe_columns,
    "features": _describe_columns,
    "options": _describe_options,
    "args": _describe_options,
    "data": _describe_data,
    "findings": _describe_findings,
    "estimate": _describe_estimate,
    "metrics": _describe_metrics,
    "versions": _describe_versions,
    "import_error": _describe_import_error,
}
