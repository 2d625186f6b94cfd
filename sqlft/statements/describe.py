"""DESCRIBE: a model or an engine in full, and one side of it: DESCRIBE model.data, .metrics, .versions …"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.records import RUNNING, Model, Version, text
from sqlft.data import Prompt
from sqlft.errors import NotFound, did_you_mean
from sqlft.handler import Handler, Trainer
from sqlft.inference.resolve import engine_of, model_of, outputs_of
from sqlft.options import options_of
from sqlft.plugins import handler_gap
from sqlft.secrets import references
from sqlft.session import Parameters, Session, TrainSettings
from sqlft.sql.statements import DescribeEngine, DescribeModel, Name
from sqlft.statements.show import ENGINES, MODELS, connection_data, local, model_options, model_row
from sqlft.training.follow import seconds_of

TEXT, NUMBER, WHOLE, YES = pa.string(), pa.float64(), pa.int64(), pa.bool_()
MODEL = pa.schema(
    [
        *MODELS,
        pa.field("INPUTS", pa.list_(TEXT)),
        pa.field("PROMPT_TEMPLATE", TEXT),
        pa.field("SYSTEM", TEXT),
        pa.field("BASE", TEXT),
        pa.field("PARENT", WHOLE),
        pa.field("STARTED_FROM", TEXT),
        pa.field("REMARKS", pa.list_(TEXT)),
        pa.field("HANDLER", TEXT),
        pa.field("ROWS", WHOLE),
        pa.field("DATA_DIGEST", TEXT),
        pa.field("FINDINGS", pa.list_(TEXT)),
        pa.field("DETAILS", TEXT),
        pa.field("ARTIFACT", TEXT),
        pa.field("ATTRIBUTES", pa.list_(TEXT)),
    ]
)
ENGINE = pa.schema(
    [
        *ENGINES,
        pa.field("PACKAGE", TEXT),
        pa.field("TRAINS", YES),
        pa.field("IMPORT_ERROR", TEXT),
        pa.field("MODELS", pa.list_(TEXT)),
        pa.field("OPTIONS", pa.list_(TEXT)),
    ]
)


def run_describe_model(session: Session, statement: DescribeModel, parameters: Parameters) -> pa.Table:
    """One row with all that is known of a version, or the rows of one attribute of it; NotFound."""
    name, attribute = statement.name, statement.attribute
    if statement.or_name is not None and not is_model(session, name) and is_model(session, statement.or_name):
        name, attribute = statement.or_name, None
    model = model_of(session, name.key)
    version = session.catalog.version_of(model.key, name.version)
    if attribute is None:
        return _whole(session, model, version)
    described = ATTRIBUTES.get(attribute.lower())
    if described is None:
        raise NotFound(
            f"A model has no attribute '{attribute}'.{did_you_mean(attribute, ATTRIBUTES)}",
            f"There are: {', '.join(ATTRIBUTES)}.",
        )
    return described(session, model, version)


def run_describe_engine(session: Session, statement: DescribeEngine, parameters: Parameters) -> pa.Table:
    """One row: an engine, or a handler under its own name, with the options that it takes."""
    engine = engine_of(session, statement.name)
    gap = handler_gap(engine.handler) if engine.handler in plugins.found() else "There is no such handler any more."
    row: dict[str, Any] = {
        "NAME": engine.name,
        "HANDLER": engine.handler,
        "CONNECTION_DATA": connection_data(engine),
        "CREATED_AT": local(engine.created_at),
        "PACKAGE": plugins.package_of(engine.handler) or None,
        "IMPORT_ERROR": gap,
        "MODELS": [m.key.name for m in session.catalog.models() if m.engine.lower() == engine.name.lower()],
    }
    if gap is None:
        cls = plugins.handler_class(engine.handler)
        row |= {"TRAINS": issubclass(cls, Trainer), "OPTIONS": _option_lines(cls)}
    return pa.Table.from_pylist([row], ENGINE)


def is_model(session: Session, name: Name) -> bool:
    """Whether a name means a model: what DESCRIBE without MODEL asks first."""
    return session.find_model(name.name, name.project) is not None


def is_described(session: Session, statement: DescribeModel) -> bool:
    """Whether a DESCRIBE is ours; else it is DuckDB's."""
    names = [statement.name] + ([statement.or_name] if statement.or_name else [])
    return statement.explicit or any(is_model(session, name) for name in names)


def _whole(session: Session, model: Model, version: Version) -> pa.Table:
    accuracy = session.catalog.accuracies().get(version.key)
    row = model_row(model, version, accuracy) | {
        "INPUTS": list(Prompt(model.prompt_template, model.system).inputs),
        "PROMPT_TEMPLATE": model.prompt_template,
        "SYSTEM": model.system,
        "BASE": model.base or None,
        "PARENT": version.parent,
        "STARTED_FROM": _started_from(version),
        "REMARKS": list(version.details.get("remarks") or ()),
        "HANDLER": version.details.get("handler"),
        "ROWS": version.row_count,
        "DATA_DIGEST": version.data_digest,
        "FINDINGS": [f"{f['level']}: {f['message']}" for f in version.findings],
        "DETAILS": text(version.details),
        "ARTIFACT": version.remote_id or (str(version.artifact_path) if version.artifact_path else None),
        "ATTRIBUTES": list(ATTRIBUTES),
    }
    return pa.Table.from_pylist([row], MODEL)


def _started_from(version: Version) -> str | None:
    """The base or a version, and what was done with that one's adapter; None for what was not trained."""
    if version.query is None:
        return None
    before, goes_on = version.details.get("started_from"), version.details.get("continues")
    how = f": {goes_on}" if isinstance(goes_on, str) else ""
    return f"{before}{how}" if before else "the base"


def _inputs(session: Session, model: Model, version: Version) -> pa.Table:
    names = Prompt(model.prompt_template, model.system).inputs
    rows = [{"COLUMN": name, "KIND": "input", "TYPE": "any"} for name in names]
    columns = outputs_of(model).columns
    rows += [{"COLUMN": c.name, "KIND": "output", "TYPE": c.type} for c in columns]
    rows += [
        {"COLUMN": f"{columns[0].name}_error", "KIND": "why there is no answer", "TYPE": "VARCHAR"},
        {"COLUMN": f"{columns[0].name}_usage", "KIND": "tokens, seconds and cost", "TYPE": "STRUCT"},
        {"COLUMN": f"{columns[0].name}_logprob", "KIND": "logarithm of its probability", "TYPE": "DOUBLE"},
    ]
    return pa.Table.from_pylist(rows, pa.schema([("COLUMN", TEXT), ("KIND", TEXT), ("TYPE", TEXT)]))


def _options(session: Session, model: Model, version: Version) -> pa.Table:
    """What was said, what training applied, and the defaults of what was not said."""
    said = model_options(model)
    trained = references.shown(version.options)
    rows = [_option(name, value, "CREATE MODEL") for name, value in said.items()]
    usual = _training_defaults(session, model)
    rows += [
        _option(name, value, "default" if name in usual and usual[name] == value else "training")
        for name, value in trained.items()
        if name not in said
    ]
    for name, value in _defaults(session, model).items():
        if name not in said and name not in trained:
            rows.append(_option(name, value, "default"))
    return pa.Table.from_pylist(rows, pa.schema([("OPTION", TEXT), ("VALUE", TEXT), ("SET_BY", TEXT)]))


def _data(session: Session, model: Model, version: Version) -> pa.Table:
    """One row: what the version was made of."""
    kept = pa.struct(
        [("code", TEXT), ("level", TEXT), ("count", WHOLE), ("message", TEXT), ("examples", pa.list_(WHOLE))]
    )
    schema = pa.schema(
        [("QUERY", TEXT), ("DATABASE", TEXT), ("ROWS", WHOLE), ("DIGEST", TEXT), ("FINDINGS", pa.list_(kept))]
    )
    row = {
        "QUERY": version.query,
        "DATABASE": version.database,
        "ROWS": version.row_count,
        "DIGEST": version.data_digest,
        "FINDINGS": [dict(f) for f in version.findings],
    }
    return pa.Table.from_pylist([row], schema)


def _findings(session: Session, model: Model, version: Version) -> pa.Table:
    schema = pa.schema(
        [
            ("LEVEL", TEXT),
            ("CODE", TEXT),
            ("COUNT", WHOLE),
            ("MESSAGE", TEXT),
            ("EXAMPLES", pa.list_(WHOLE)),
            ("WHAT_TO_DO", TEXT),
            ("SHOWN", pa.list_(TEXT)),
        ]
    )
    rows = [{name.upper(): value for name, value in f.items()} for f in version.findings]
    return pa.Table.from_pylist(rows, schema)


def _estimate(session: Session, model: Model, version: Version) -> pa.Table:
    """What was foreseen before the training, its minutes by its own first steps while it trains; and what it took."""
    foreseen, took = version.details.get("estimate") or {}, version.details
    trains = version.status in RUNNING
    measured = {
        "tokens": took.get("tokens"),
        "steps": took.get("steps"),
        "minutes": None if trains else _in(version.seconds, 60),
        "memory_gb": _in(took.get("peak_memory_bytes"), 1e9),
        "cost_usd": took.get("cost_usd"),
    }
    expected = {
        "tokens": foreseen.get("tokens"),
        "steps": foreseen.get("steps"),
        "minutes": _in(seconds_of(version) or foreseen.get("seconds"), 60),
        "memory_gb": _in(foreseen.get("memory_bytes"), 1e9),
        "cost_usd": foreseen.get("cost_usd"),
    }
    rows = [{"FACT": name, "ESTIMATED": expected[name], "MEASURED": measured[name]} for name in expected]
    return pa.Table.from_pylist(rows, pa.schema([("FACT", TEXT), ("ESTIMATED", NUMBER), ("MEASURED", NUMBER)]))


def _in(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 3)


def _metrics(session: Session, model: Model, version: Version) -> pa.Table:
    schema = pa.schema([("STEP", WHOLE), ("EPOCH", NUMBER), ("SPLIT", TEXT), ("NAME", TEXT), ("VALUE", NUMBER)])
    found = session.catalog.metrics(version.key)
    rows = [{"STEP": m.step, "EPOCH": m.epoch, "SPLIT": m.split, "NAME": m.name, "VALUE": m.value} for m in found]
    return pa.Table.from_pylist(rows, schema)


def _versions(session: Session, model: Model, version: Version) -> pa.Table:
    known = session.catalog.accuracies()
    rows = [
        model_row(model, v, known.get(v.key)) | {"PARENT": v.parent, "ROWS": v.row_count}
        for v in session.catalog.versions(model.key)
    ]
    return pa.Table.from_pylist(rows, pa.schema([*MODELS, pa.field("PARENT", WHOLE), pa.field("ROWS", WHOLE)]))


def _import_error(session: Session, model: Model, version: Version) -> pa.Table:
    """Whether the handler of the model can be used here."""
    handler = engine_of(session, model.engine).handler
    row = {"HANDLER": handler, "IMPORT_ERROR": handler_gap(handler)}
    return pa.Table.from_pylist([row], pa.schema([("HANDLER", TEXT), ("IMPORT_ERROR", TEXT)]))


def _option(name: str, value: Any, set_by: str) -> dict[str, Any]:
    return {"OPTION": name, "VALUE": value if isinstance(value, str) else text(value), "SET_BY": set_by}


def _defaults(session: Session, model: Model) -> dict[str, Any]:
    """Defaults of the options for asking and making; none if the handler cannot be loaded."""
    handler = engine_of(session, model.engine).handler
    if handler_gap(handler) is not None:
        return {}
    cls = plugins.handler_class(handler)
    known = {**options_of(cls.model_options), **options_of(cls.predict_options)}
    return {name: option.default for name, option in known.items()}


def _training_defaults(session: Session, model: Model) -> dict[str, Any]:
    """Defaults of the options for training; none if the handler cannot be loaded or does not train."""
    handler = engine_of(session, model.engine).handler
    cls = plugins.handler_class(handler) if handler_gap(handler) is None else Handler
    if not issubclass(cls, Trainer):
        return {}
    known = {**options_of(TrainSettings), **options_of(cls.train_options)}
    return {name: option.default for name, option in known.items()}


def _option_lines(cls: type[Handler]) -> list[str]:
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
    "model": _whole,
    "info": _whole,
    "inputs": _inputs,
    "features": _inputs,
    "options": _options,
    "args": _options,
    "data": _data,
    "findings": _findings,
    "estimate": _estimate,
    "metrics": _metrics,
    "versions": _versions,
    "import_error": _import_error,
}
