"""The words of one database: its tables, models and their columns, engines and their options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import duckdb

from sqlft import plugins
from sqlft.catalog.records import Model
from sqlft.catalog.store import TABLES
from sqlft.connection import Connection
from sqlft.data import Outputs, Prompt
from sqlft.errors import SqlftError
from sqlft.handler import Trainer
from sqlft.options import Option, options_of
from sqlft.session import ModelSettings, QuerySettings, TrainSettings
from sqlft.sql.parser import STATEMENTS
from sqlft.statements.training_data import DataSettings

OURS = tuple(
    sorted(
        {word for heading in STATEMENTS for word in heading if word}
        | {"PREDICT", "USING", "HANDLERS", "CACHE", "FOR", "MODEL", "ENGINE", "PARAMETERS", "RENAME", "MODELS", "DATA"}
    )
)
_COLUMNS = """
SELECT database_name, schema_name, table_name, column_name, data_type,
       database_name = current_database(), schema_name = current_schema()
FROM duckdb_columns() WHERE NOT internal ORDER BY table_oid, column_index"""


@dataclass(frozen=True)
class Relation:
    """What can stand in FROM: columns by name with their types, `kind` is table or model."""

    name: str
    columns: Mapping[str, str]
    kind: str = "table"
    engine: str = ""
    versions: tuple[int, ...] = ()
    is_near: bool = True
    """Whether it needs no schema before its name."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by what they are; names of relations in lower case."""

    keywords: tuple[str, ...] = ()
    relations: Mapping[str, Relation] = field(default_factory=dict)
    schemas: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of tables by the schema or database that they are written after."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """Handlers by the engine's name; a handler is an engine too."""

    def models(self) -> list[Relation]:
        """The models alone."""
        return [r for r in self.relations.values() if r.kind == "model"]


def vocabulary_of(con: Connection, keywords: tuple[str, ...] = OURS) -> Vocabulary:
    """What is there now; what cannot be read just now, as in a failed transaction, is left out."""
    try:
        rows = con.session.con.sql(_COLUMNS).fetchall()
    except duckdb.Error:
        rows = []
    relations, schemas = _tables(rows)
    engines = {name: name for name in plugins.found()}
    try:
        engines |= {e.name: e.handler for e in con.session.catalog.engines()}
        relations |= _models(con)
    except SqlftError:
        pass
    return Vocabulary(keywords, relations, {**schemas, "sqlft": (*TABLES, "settings")}, engines)


def keywords_of(con: Connection) -> tuple[str, ...]:
    """DuckDB's and ours, in capitals."""
    try:
        known = con.session.con.sql("SELECT upper(keyword_name) FROM duckdb_keywords()").fetchall()
    except duckdb.Error:
        known = []
    return tuple(sorted({row[0] for row in known} | set(OURS)))


def options_for(words: list[str], vocabulary: Vocabulary, names: Iterable[str], engine: str) -> dict[str, Option]:
    """The options that USING takes in a statement of these capital words, which mentions these names."""
    words = words[1:] if words[:1] == ["EXPLAIN"] else words
    heading = " ".join(words[:6])
    mentioned = [vocabulary.relations[n.lower()] for n in names if n.lower() in vocabulary.relations]
    models = [r for r in mentioned if r.kind == "model"]
    if "ML_ENGINE" in words[:2]:
        return _declared([engine], vocabulary, "engine_options")
    if heading.startswith("CREATE") and ({"MODEL", "PREDICTOR"} & set(words[:5])):
        trains = [TrainSettings] if "FROM" in words else []
        kinds = ["model_options", "predict_options", *(["train_options"] if trains else [])]
        return {**_of(ModelSettings, *trains), **_declared([engine], vocabulary, *kinds)}
    engines = [m.engine for m in models]
    if heading.startswith(("FINETUNE", "RETRAIN")):
        return {**_of(TrainSettings), **_declared(engines, vocabulary, "train_options")}
    if heading.startswith("ANALYZE TRAINING DATA"):
        return {**_of(TrainSettings if models else DataSettings), **_declared(engines, vocabulary, "train_options")}
    if heading.startswith("RESUME"):
        return {"wait": options_of(TrainSettings)["wait"]}
    return {**_of(QuerySettings), **_declared(engines, vocabulary, "predict_options")} if models else {}


def values_of(option: Option) -> list[str]:
    """What may follow the option's `=`, as it is written in SQL; nothing if that is endless."""
    kinds = [option.type, *get_args(option.type)]
    choices = [str(v) for k in kinds if get_origin(k) is Literal for v in get_args(k)]
    if bool in kinds:
        return ["true", "false"]
    return [f"'{c}'" for c in choices]


def _tables(rows: list[tuple[Any, ...]]) -> tuple[dict[str, Relation], dict[str, tuple[str, ...]]]:
    columns: dict[tuple[str, str, str, bool, bool], dict[str, str]] = {}
    for database, schema, table, column, kind, here, near in rows:
        columns.setdefault((database, schema, table, here, here and near), {})[column] = kind
    relations: dict[str, Relation] = {}
    schemas: dict[str, tuple[str, ...]] = {}
    for (database, schema, table, here, near), known in columns.items():
        if near or table.lower() not in relations:
            relations[table.lower()] = Relation(table, known, is_near=near)
        owner = (schema if here else database).lower()
        schemas[owner] = (*schemas.get(owner, ()), table)
    return relations, schemas


def _models(con: Connection) -> dict[str, Relation]:
    versions = con.session.catalog.versions()
    found = {}
    for model in con.session.catalog.models():
        numbers = tuple(v.key.number for v in versions if v.key.model == model.key)
        found[model.key.name.lower()] = _model(model, numbers)
    return found


def _model(model: Model, versions: tuple[int, ...]) -> Relation:
    inputs = dict.fromkeys(Prompt(model.prompt_template, model.system).inputs, "input")
    columns = Outputs.stored(model.predict, model.outputs).columns
    answers = {c.name: "answer" if c.type == "VARCHAR" else c.type for c in columns}
    first = columns[0].name
    extra = {f"{first}_error": "VARCHAR", f"{first}_usage": "STRUCT", f"{first}_logprob": "DOUBLE"}
    return Relation(model.key.name, {**inputs, **answers, **extra}, "model", model.engine, versions)


def _of(*classes: type) -> dict[str, Option]:
    return {name: option for cls in classes for name, option in options_of(cls).items()}


def _declared(engines: Iterable[str], vocabulary: Vocabulary, *kinds: str) -> dict[str, Option]:
    """What the handlers of these engines declare; a handler that cannot be loaded declares nothing."""
    found: dict[str, Option] = {}
    known = {name.lower(): handler for name, handler in vocabulary.engines.items()}
    for engine in engines:
        try:
            handler = plugins.handler_class(known.get(engine.lower(), engine))
        except SqlftError:
            continue
        for kind in kinds:
            if kind != "train_options" or issubclass(handler, Trainer):
                found.update(options_of(getattr(handler, kind)))
    return found
