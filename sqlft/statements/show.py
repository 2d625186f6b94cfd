"""SHOW of models, engines, handlers, projects and knowledge bases, with the column names that MindsDB gave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.knowledge_bases import is_abandoned
from sqlft.catalog.records import RUNNING, Engine, KnowledgeBase, Model, ModelKey, Version, from_micros, to_json
from sqlft.catalog.tables import make_schema, to_local_time
from sqlft.errors import CatalogError, HandlerNotInstalled
from sqlft.handler import Trainer, WrapsHandler
from sqlft.inference.resolve import find_model, read_outputs
from sqlft.knowledge import tables
from sqlft.plugins import describe_missing_packages
from sqlft.secrets import references
from sqlft.session import Parameters, Session
from sqlft.sql.names import quote_text
from sqlft.sql.statements import ShowEngines, ShowHandlers, ShowKnowledgeBases, ShowList, ShowModels, ShowProjects

MODELS_SCHEMA = make_schema(
    """NAME text, ENGINE text, PROJECT text, ACTIVE boolean, VERSION integer, STATUS text, ACCURACY number,
       PREDICT text, UPDATE_STATUS text, MINDSDB_VERSION text, ERROR text, SELECT_DATA_QUERY text,
       TRAINING_OPTIONS text, CURRENT_TRAINING_PHASE integer, TOTAL_TRAINING_PHASES integer,
       TRAINING_PHASE_NAME text, TAG text, CREATED_AT time, TRAINING_TIME number"""
)
ENGINES_SCHEMA = make_schema("NAME text, HANDLER text, CONNECTION_DATA text, CREATED_AT time")
HANDLERS_SCHEMA = make_schema(
    """NAME text, TYPE text, DESCRIPTION text, PACKAGE text, VERSION text, TRAINS boolean, IMPORT_SUCCESS boolean,
       IMPORT_ERROR text"""
)
KNOWLEDGE_BASES_SCHEMA = make_schema(
    """NAME text, PROJECT text, MODEL text, STORAGE text, PARAMS text, INSERT_STARTED_AT time, INSERT_FINISHED_AT time,
       PROCESSED_ROWS integer, ERROR text, QUERY_ID text, DOCUMENTS integer, CHUNKS integer, WAITING integer"""
)
PROJECTS_SCHEMA = make_schema("NAME text, MODELS integer, CURRENT boolean")


def run_show_models(session: Session, statement: ShowModels, parameters: Parameters) -> pa.Table:
    """One row per model: its active version, or where none is active its newest."""
    project = None if statement.project is None else statement.project.lower()
    models = [m for m in session.catalog.models() if project in (None, m.key.project.lower())]
    if project is not None and not models and (other := session.find_attached(project)) is not None:
        models = other.models()
    known = session.catalog.accuracies()
    versions = [session.resolve_version(m, None) for m in models]
    rows = [build_model_row(m, v, known.get(v.key)) for m, v in zip(models, versions, strict=True)]
    return filter_rows(session, pa.Table.from_pylist(rows, MODELS_SCHEMA), statement, parameters)


def run_show_projects(session: Session, statement: ShowProjects, parameters: Parameters) -> pa.Table:
    """One row per project: how many models it has, and whether USE chose it."""
    names = [m.key.project.lower() for m in session.catalog.models()]
    rows = [
        {"NAME": name, "MODELS": names.count(name.lower()), "CURRENT": name.lower() == session.project.lower()}
        for name in session.catalog.projects()
    ]
    return filter_rows(session, pa.Table.from_pylist(rows, PROJECTS_SCHEMA), statement, parameters)


def run_show_engines(session: Session, statement: ShowEngines, parameters: Parameters) -> pa.Table:
    """A row for each engine that was made; a handler's own name is one too, without a row here."""
    rows = [_build_engine_row(e) for e in session.catalog.engines()]
    return filter_rows(session, pa.Table.from_pylist(rows, ENGINES_SCHEMA), statement, parameters)


def run_show_handlers(session: Session, statement: ShowHandlers, parameters: Parameters) -> pa.Table:
    """A row for each installed handler, and what to install where something is missing."""
    rows = [_build_handler_row(name) for name in sorted(plugins.find_entry_points())]
    return filter_rows(session, pa.Table.from_pylist(rows, HANDLERS_SCHEMA), statement, parameters)


def run_show_knowledge_bases(session: Session, statement: ShowKnowledgeBases, parameters: Parameters) -> pa.Table:
    """One row per knowledge base: what it holds, and how its last INSERT went."""
    known = [session.find_knowledge_base(*base.key) for base in session.catalog.knowledge_bases.list()]
    rows = [build_knowledge_row(session, base) for base in known if base is not None]
    return filter_rows(session, pa.Table.from_pylist(rows, KNOWLEDGE_BASES_SCHEMA), statement, parameters)


def build_versions_table(session: Session) -> pa.Table:
    """`mindsdb.models_versions`: one row per version of each model."""
    known = session.catalog.accuracies()
    models = {m.key: m for m in session.catalog.models()}
    rows = [build_model_row(models[v.key.model], v, known.get(v.key)) for v in session.catalog.versions()]
    return pa.Table.from_pylist(rows, MODELS_SCHEMA)


TABLE_BUILDERS: Mapping[str, Callable[[Session], pa.Table]] = {
    "models": lambda session: run_show_models(session, ShowModels(), None),
    "models_versions": build_versions_table,
    "ml_engines": lambda session: run_show_engines(session, ShowEngines(), None),
    "handlers": lambda session: run_show_handlers(session, ShowHandlers(), None),
    "knowledge_bases": lambda session: run_show_knowledge_bases(session, ShowKnowledgeBases(), None),
}
"""Tables that scripts of MindsDB read, in `mindsdb` or `information_schema`."""


def show_model(session: Session, key: ModelKey, number: int | None = None) -> pa.Table:
    """One version, by default the active one, as SHOW MODELS shows it."""
    model = find_model(session, key)
    version = session.resolve_version(model, number)
    return pa.Table.from_pylist(
        [build_model_row(model, version, session.catalog.accuracies().get(version.key))], MODELS_SCHEMA
    )


def show_engine(session: Session, name: str) -> pa.Table:
    """One engine as SHOW ML_ENGINES shows it."""
    return pa.Table.from_pylist([_build_engine_row(session.catalog.engine(name))], ENGINES_SCHEMA)


def show_knowledge_base(session: Session, base: KnowledgeBase) -> pa.Table:
    """One knowledge base as SHOW KNOWLEDGE_BASES shows it."""
    return pa.Table.from_pylist([build_knowledge_row(session, base)], KNOWLEDGE_BASES_SCHEMA)


def build_knowledge_row(session: Session, base: KnowledgeBase) -> dict[str, object]:
    """What is known of a knowledge base, by the names of MindsDB's columns and ours."""
    state = base.state
    error = "It was ended from outside: run the statement again, and it goes on." if is_abandoned(base) else None
    counts = None
    try:
        counts = tables.count_rows(session.con, base)
    except CatalogError as e:
        error = e.message
    return {
        "NAME": base.key.name,
        "PROJECT": base.key.project,
        "MODEL": base.embedding_model,
        "STORAGE": f"{base.storage}.{tables.SCHEMA}",
        "PARAMS": to_json(references.redact_options(_list_knowledge_options(base))),
        "INSERT_STARTED_AT": to_local_time(from_micros(state.get("started_at"))),
        "INSERT_FINISHED_AT": to_local_time(from_micros(state.get("finished_at"))),
        "PROCESSED_ROWS": state.get("processed_rows"),
        "ERROR": error or state.get("error"),
        "DOCUMENTS": counts and counts.documents,
        "CHUNKS": counts and counts.chunks,
        "WAITING": counts and counts.waiting,
    }


def _list_knowledge_options(base: KnowledgeBase) -> dict[str, object]:
    columns = {"content_columns": list(base.content_columns), "metadata_columns": list(base.metadata_columns)}
    given = {name: value for name, value in base.options.items() if not name.startswith("$")}
    models = {"embedding_model": base.embedding_model, "reranking_model": base.reranking_model}
    known = {**models, **given, **columns, "id_column": base.id_column}
    return {name: value for name, value in known.items() if value is not None}


def build_model_row(model: Model, version: Version, accuracy: float | None = None) -> dict[str, object]:
    """A version's values by the names of MODELS; accuracy is its latest evaluation's."""
    trains = version.status in RUNNING
    return {
        "NAME": model.key.name,
        "ENGINE": model.engine,
        "PROJECT": model.key.project,
        "ACTIVE": version.key.number == model.active,
        "VERSION": version.key.number,
        "STATUS": version.status,
        "ACCURACY": accuracy,
        "PREDICT": ", ".join(read_outputs(model).names),
        "UPDATE_STATUS": "updating" if trains else "up_to_date",
        "ERROR": version.error,
        "SELECT_DATA_QUERY": version.query,
        "TRAINING_OPTIONS": to_json(_list_training_options(model, version)),
        "CURRENT_TRAINING_PHASE": version.progress.get("step"),
        "TOTAL_TRAINING_PHASES": version.progress.get("total_steps"),
        "TRAINING_PHASE_NAME": version.status if trains else None,
        "TAG": version.tag,
        "CREATED_AT": to_local_time(version.created_at),
        "TRAINING_TIME": _count_training_seconds(version),
    }


def list_model_options(model: Model) -> dict[str, object]:
    """The options of CREATE MODEL, secrets hidden."""
    options = {
        "engine": model.engine,
        "base": model.base or None,
        "prompt_template": model.prompt_template,
        "system": model.system,
    }
    own = {name: value for name, value in references.redact_options(model.options).items() if not name.startswith("$")}
    return {name: value for name, value in options.items() if value is not None} | own


def format_connection_data(engine: Engine) -> str:
    """An engine's options as JSON, secrets as stars."""
    return to_json(references.redact_options(engine.options))


def _count_training_seconds(version: Version) -> float | None:
    """Of all parts of a training that was resumed; of one that goes on, those that it reported."""
    if version.status in RUNNING and version.seconds is None and version.started_at is not None:
        return (datetime.now(UTC) - version.started_at).total_seconds()
    return version.seconds


def _list_training_options(model: Model, version: Version) -> Mapping[str, object]:
    return {"target": model.targets[0], "using": list_model_options(model) | references.redact_options(version.options)}


def _build_engine_row(engine: Engine) -> dict[str, object]:
    return {
        "NAME": engine.name,
        "HANDLER": engine.handler,
        "CONNECTION_DATA": format_connection_data(engine),
        "CREATED_AT": to_local_time(engine.created_at),
    }


def _build_handler_row(name: str) -> dict[str, object]:
    package, _, version = plugins.handler_package(name).partition(" ")
    gap = describe_missing_packages(name)
    row = {
        "NAME": name,
        "TYPE": "ml",
        "PACKAGE": package,
        "VERSION": version,
        "IMPORT_SUCCESS": gap is None,
        "IMPORT_ERROR": gap,
    }
    try:
        cls = plugins.load_handler_class(name)
    except HandlerNotInstalled:
        return row
    about = (cls.__doc__ or "").strip().split("\n")[0]
    trains = None if issubclass(cls, WrapsHandler) else issubclass(cls, Trainer)
    return row | {"TRAINS": trains, "DESCRIPTION": about or None}


def filter_rows(
    session: Session, table: pa.Table, statement: ShowList, parameters: Parameters, by: str = "NAME"
) -> pa.Table:
    """The rows that LIKE and WHERE leave, as DuckDB judges them."""
    like, where = statement.like, statement.where
    if like is None and where is None:
        return table
    name = "__sqlft_shown"
    pattern = quote_text("%" if like is None else like)
    session.con.register(name, table)
    try:
        query = f"SELECT * FROM (FROM {name} WHERE {by} ILIKE {pattern}) WHERE {where or 'true'}"
        values = parameters if parameters and where is not None else None
        relation = session.con.sql(query) if values is None else session.con.sql(query, params=values)
        return relation.to_arrow_table().cast(table.schema)
    finally:
        session.con.unregister(name)
