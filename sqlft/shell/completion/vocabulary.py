"""The words of one database: its tables, models and their columns, engines with their options and bases, functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args, get_origin

import duckdb

from sqlft import plugins
from sqlft.catalog.records import DEFAULT_PROJECT, Model
from sqlft.catalog.tables import TABLE_DEFINITIONS, columns_of
from sqlft.connection import Connection
from sqlft.data import Outputs, Prompt
from sqlft.errors import SqlftError
from sqlft.handler import Trainer
from sqlft.knowledge.definition import KnowledgeSettings
from sqlft.knowledge.evaluate import KnowledgeEvaluateSettings
from sqlft.knowledge.insert import InsertSettings
from sqlft.knowledge.tables import visible_columns
from sqlft.options import Option, options_of
from sqlft.session import EvaluateSettings, ModelSettings, PriceSettings, QuerySettings, SessionSettings, TrainSettings
from sqlft.sql.parser import STATEMENTS
from sqlft.statements.knowledge import RefreshSettings
from sqlft.statements.training_data import DataSettings
from sqlft.training.row_text import RowTextSettings

OWN_KEYWORDS = tuple(
    sorted(
        {word for heading in STATEMENTS for word in heading if word}
        | {"PREDICT", "USING", "HANDLERS", "CACHE", "FOR", "MODEL", "ENGINE", "PARAMETERS", "RENAME", "MODELS", "DATA"}
    )
)
KNOWLEDGE_BASE = "knowledge base"
RANKING_COLUMNS = {"distance": "DOUBLE", "relevance": "DOUBLE", "context": "the best chunks as one text"}
_COLUMNS = """
SELECT database_name, schema_name, table_name, column_name, data_type,
       database_name = current_database(), schema_name = current_schema()
FROM duckdb_columns() WHERE NOT internal AND schema_name <> 'sqlft_knowledge' ORDER BY table_oid, column_index"""


_FUNCTIONS = """
SELECT function_name, any_value(function_type), coalesce(any_value(description), '')
FROM duckdb_functions() WHERE regexp_full_match(function_name, '[a-z]\\w*')
GROUP BY function_name ORDER BY function_name"""
_TABLE_FUNCTIONS = ("table", "table_macro")


@dataclass(frozen=True)
class Language:
    """What is the same in every database: keywords in capitals; functions and settings with what they are."""

    keywords: tuple[str, ...] = OWN_KEYWORDS
    functions: Mapping[str, str] = field(default_factory=dict)
    table_functions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """What can stand in FROM: columns by name with their types, `kind` is table, model or knowledge base."""

    name: str
    columns: Mapping[str, str]
    kind: str = "table"
    engine: str = ""
    versions: tuple[int, ...] = ()
    is_near: bool = True
    """Whether it needs no schema before its name."""
    project: str = ""
    """What must be written before a model's name; nothing where its name alone means it."""
    base: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Words by what they are; names of relations in lower case."""

    language: Language = field(default_factory=Language)
    relations: Mapping[str, Relation] = field(default_factory=dict)
    schemas: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What is written after a schema, a database or a project, with what it is."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """Handlers by the engine's name; a handler is an engine too."""
    projects: tuple[str, ...] = ()

    def models(self) -> list[Relation]:
        """The models alone."""
        return [r for r in self.relations.values() if r.kind == "model"]


def read_vocabulary(con: Connection, language: Language | None = None) -> Vocabulary:
    """What is there now; what cannot be read just now, as in a failed transaction, is left out."""
    try:
        rows = con.session.con.sql(_COLUMNS).fetchall()
    except duckdb.Error:
        rows = []
    relations, schemas = _group_tables(rows)
    engines = {name: name for name in plugins.find_entry_points()}
    projects: tuple[str, ...] = ()
    try:
        engines |= {e.name: plugins.find_answering_handler(e.handler, e.options) for e in con.session.catalog.engines()}
        relations |= _read_models(con) | _read_knowledge_bases(con)
        projects = tuple(con.session.catalog.projects())
        for model in con.session.catalog.models():
            schemas.setdefault(model.key.project.lower(), {})[model.key.name] = "model"
        for base in con.session.catalog.knowledge_bases.list():
            schemas.setdefault(base.key.project.lower(), {})[base.key.name] = KNOWLEDGE_BASE
    except SqlftError:
        pass
    relations |= {f"sqlft.{name}": Relation(name, columns_of(name), is_near=False) for name in TABLE_DEFINITIONS}
    system_tables = dict.fromkeys((*TABLE_DEFINITIONS, "settings"), "table")
    return Vocabulary(language or Language(), relations, {**schemas, "sqlft": system_tables}, engines, projects)


def read_language(con: Connection) -> Language:
    """DuckDB's words and ours."""
    try:
        raw = con.session.con
        words = {row[0] for row in raw.sql("SELECT upper(keyword_name) FROM duckdb_keywords()").fetchall()}
        functions = raw.sql(_FUNCTIONS).fetchall()
        types = raw.sql("SELECT DISTINCT upper(type_name) FROM duckdb_types() ORDER BY 1").fetchall()
        settings = dict(raw.sql("SELECT name, description FROM duckdb_settings() ORDER BY name").fetchall())
    except duckdb.Error:
        return Language()
    ours = {f"sqlft_{name}": option.doc for name, option in options_of(SessionSettings).items()}
    return Language(
        tuple(sorted(words | set(OWN_KEYWORDS))),
        {name: about or "function" for name, kind, about in functions if kind not in _TABLE_FUNCTIONS},
        {name: about or "table function" for name, kind, about in functions if kind in _TABLE_FUNCTIONS},
        {**ours, **settings},
        tuple(row[0] for row in types),
    )


def list_bases(engine: str, vocabulary: Vocabulary) -> dict[str, str]:
    """Bases that an engine's handler names, then those that its models have; of all engines for ''."""
    handlers = {name.lower(): handler for name, handler in vocabulary.engines.items()}
    wanted_handlers = [handlers.get(engine.lower(), engine)] if engine else sorted(set(handlers.values()))
    bases: dict[str, str] = {}
    for name in wanted_handlers:
        try:
            declared = plugins.load_handler_class(name).bases()
        except SqlftError:
            continue
        bases |= {base: about if engine else f"{name}: {about}" for base, about in declared.items()}
    used = (m for m in vocabulary.models() if m.base and (not engine or m.engine.lower() == engine.lower()))
    return bases | {m.base: f"base of {m.name}" for m in used if m.base not in bases}


def find_options(words: list[str], vocabulary: Vocabulary, names: Iterable[str], engine: str) -> dict[str, Option]:
    """The options that USING takes in a statement of these capital words, which mentions these names."""
    explains = words[:1] == ["EXPLAIN"]
    words = words[1:] if explains else words
    shows = [RowTextSettings] if explains else []
    heading = " ".join(words[:6])
    mentioned = [vocabulary.relations[n.lower()] for n in names if n.lower() in vocabulary.relations]
    models = [r for r in mentioned if r.kind == "model"]
    if "ML_ENGINE" in words[:2]:
        return _handler_options([engine], vocabulary, "engine_options")
    if heading.startswith("CREATE") and ({"MODEL", "PREDICTOR"} & set(words[:5])):
        trains = [TrainSettings] if "FROM" in words else []
        kinds = ["model_options", "predict_options", "engine_options", *(["train_options"] if trains else [])]
        shows = shows if trains else []
        return {**_core_options(ModelSettings, *trains, *shows), **_handler_options([engine], vocabulary, *kinds)}
    engines = [m.engine for m in models]
    if "KNOWLEDGE_BASE" in words[:4]:
        return _knowledge_options(words)
    if words[:2] == ["INSERT", "INTO"] and any(r.kind == KNOWLEDGE_BASE for r in mentioned):
        return _core_options(InsertSettings)
    if heading.startswith(("FINETUNE", "RETRAIN")):
        return {**_core_options(TrainSettings, *shows), **_handler_options(engines, vocabulary, "train_options")}
    if heading.startswith("EVALUATE"):
        return {
            **_core_options(EvaluateSettings),
            **_core_options(QuerySettings),
            **_handler_options(engines, vocabulary, "predict_options"),
        }
    if "PRICE" in words[:4]:
        return _core_options(PriceSettings)
    if heading.startswith("ANALYZE TRAINING DATA"):
        return {
            **_core_options(*([TrainSettings, RowTextSettings] if models else [DataSettings])),
            **_handler_options(engines, vocabulary, "train_options"),
        }
    if heading.startswith("RESUME"):
        return {"wait": options_of(TrainSettings)["wait"]}
    return (
        {**_core_options(QuerySettings), **_handler_options(engines, vocabulary, "predict_options")} if models else {}
    )


def _knowledge_options(words: Sequence[str]) -> dict[str, Option]:
    """Of statements about knowledge bases."""
    if words[0] == "REFRESH":
        return _core_options(RefreshSettings, InsertSettings)
    if words[0] == "EVALUATE":
        return _core_options(KnowledgeEvaluateSettings)
    fills = [InsertSettings] if words[0] == "CREATE" and "FROM" in words else []
    return _core_options(KnowledgeSettings, *fills)


def list_values(option: Option) -> list[str]:
    """What may follow the option's `=`, as it is written in SQL; nothing if that is endless."""
    if option.secret is not None:
        return [f"env('{option.secret.env}')"] if option.secret.env else []
    kinds = [option.type, *get_args(option.type)]
    choices = [str(v) for k in kinds if get_origin(k) is Literal for v in get_args(k)]
    if bool in kinds:
        return ["true", "false"]
    return [f"'{c}'" for c in choices]


def _group_tables(
    rows: list[tuple[str, str, str, str, str, bool, bool]],
) -> tuple[dict[str, Relation], dict[str, dict[str, str]]]:
    columns: dict[tuple[str, str, str, bool, bool], dict[str, str]] = {}
    for database, schema, table, column, kind, in_current_database, near in rows:
        columns.setdefault((database, schema, table, in_current_database, in_current_database and near), {})[column] = (
            kind
        )
    relations: dict[str, Relation] = {}
    schemas: dict[str, dict[str, str]] = {}
    for (database, schema, table, in_current_database, near), columns_of_table in columns.items():
        if near or table.lower() not in relations:
            relations[table.lower()] = Relation(table, columns_of_table, is_near=near)
        owner = (schema if in_current_database else database).lower()
        schemas.setdefault(owner, {})[table] = "table"
    return relations, schemas


def _read_models(con: Connection) -> dict[str, Relation]:
    """By their names alone where those mean them, else with the project."""
    versions = con.session.catalog.versions()
    models = con.session.catalog.models()
    relations = {}
    for model in models:
        numbers = tuple(v.key.number for v in versions if v.key.model == model.key)
        same = [m.key.project for m in models if m.key.name.lower() == model.key.name.lower()]
        first = (p for p in (con.session.project, DEFAULT_PROJECT) if p in same)
        is_meant = next(first, model.key.project if len(same) == 1 else "") == model.key.project
        project = "" if is_meant else model.key.project
        key = model.key.name.lower() if is_meant else f"{project}.{model.key.name}".lower()
        relations[key] = replace(_describe_model(model, numbers), project=project)
    return relations


def _read_knowledge_bases(con: Connection) -> dict[str, Relation]:
    """By their names; those of another project than the default one with it."""
    relations = {}
    for base in con.session.catalog.knowledge_bases.list():
        columns = {"content": "question", **dict.fromkeys(visible_columns(base), "found"), **RANKING_COLUMNS}
        project = "" if base.key.project.lower() in (DEFAULT_PROJECT, con.session.project.lower()) else base.key.project
        key = f"{project}.{base.key.name}".lstrip(".").lower()
        relations[key] = Relation(base.key.name, columns, KNOWLEDGE_BASE, project=project)
    return relations


def _describe_model(model: Model, versions: tuple[int, ...]) -> Relation:
    inputs = dict.fromkeys(Prompt(model.prompt_template, model.system).inputs, "input")
    columns = Outputs.from_catalog(model.predict, model.outputs).columns
    answers = {c.name: "answer" if c.type == "VARCHAR" else c.type for c in columns}
    first = columns[0].name
    kinds = {"error": "VARCHAR", "usage": "STRUCT", "logprob": "DOUBLE", "reasoning": "VARCHAR"}
    extra = {f"{first}_{suffix}": kind for suffix, kind in kinds.items()}
    return Relation(model.key.name, {**inputs, **answers, **extra}, "model", model.engine, versions, base=model.base)


def _core_options(*classes: type) -> dict[str, Option]:
    return {name: option for cls in classes for name, option in options_of(cls).items()}


def _handler_options(engines: Iterable[str], vocabulary: Vocabulary, *kinds: str) -> dict[str, Option]:
    """What the handlers of these engines declare; a handler that cannot be loaded declares nothing."""
    options: dict[str, Option] = {}
    handlers = {name.lower(): handler for name, handler in vocabulary.engines.items()}
    for engine in engines:
        try:
            handler = plugins.load_handler_class(handlers.get(engine.lower(), engine))
        except SqlftError:
            continue
        for kind in kinds:
            if kind != "train_options" or issubclass(handler, Trainer):
                options.update(options_of(getattr(handler, kind)))
    return options
