"""CREATE, DROP, RENAME of models and engines; SET active; UNLOAD and DROP CACHE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import duckdb
import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.records import Engine, Model, ModelKey, VersionKey
from sqlft.data import OutputColumn, Outputs, Prompt, outputs
from sqlft.data.json_schema import parse_json_struct
from sqlft.data.outputs import SCORE_TYPE, VECTOR_TYPE
from sqlft.data.prompts import PLACEHOLDER
from sqlft.errors import (
    AlreadyExists,
    NotFound,
    OptionError,
    ProviderError,
    SqlftError,
    StatementError,
)
from sqlft.handler import Handler, ModelSpec, Trainer
from sqlft.inference.cache import Cache
from sqlft.inference.resolve import (
    PAIR_TEMPLATE,
    build_model_spec,
    check_retirement,
    create_handler,
    find_engine,
    find_model,
    find_number_type,
    resolve,
)
from sqlft.options import (
    build_options,
    check_option_names,
    drop_options,
    is_secret,
    option_names,
    pick_options,
    resolve_aliases,
)
from sqlft.secrets import references
from sqlft.session import EngineSettings, ModelSettings, Parameters, Session, TrainSettings
from sqlft.sql import statements as s
from sqlft.sql.lexer import tokenize
from sqlft.sql.names import format_name
from sqlft.sql.statements import (
    CreateEngine,
    CreateModel,
    DropEngine,
    DropModel,
    RenameModel,
    SetActive,
)
from sqlft.statements import show
from sqlft.statements.imports import ImportedModel, keep_import, read_import, require_taker
from sqlft.training.follow import cancel_trainings
from sqlft.training.plan import plan_training
from sqlft.training.start import train_version

SINGLE_BRACES = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}")
OLD_OPTION_NAMES = {"api_base": "base_url", "ollama_serve_url": "base_url"}
"""Options under their old names; a `…_api_key` is the api_key of a handler that has no other."""


def run_create_engine(session: Session, statement: CreateEngine, parameters: Parameters) -> pa.Table | None:
    """Keep a configured handler; its row."""
    name, catalog = statement.name, session.catalog
    if statement.if_not_exists and any(e.name.lower() == name.lower() for e in catalog.engines()):
        return show.show_engine(session, name)
    catalog.require_writing()
    handler, defaults = plugins.resolve_handler_alias(statement.handler)
    cls = plugins.load_engine_class(handler, statement.options)
    handler = handler.lower() if handler.lower() in plugins.find_entry_points() else handler
    if name.lower() in plugins.find_entry_points() and name.lower() != handler:
        raise AlreadyExists(f"'{name}' is the name of a handler.", "Choose another name for the engine.")
    what = f"Engine '{name}'"
    options = _rename_old_options(statement.options, option_names(cls.engine_options, EngineSettings))
    options = {**defaults, **resolve_aliases(options, cls.engine_options)} if defaults else options
    _check_engine_options(session, cls, options, what)
    hidden = references.hide(options, lambda n: is_secret(n, cls.engine_options), f"ML_ENGINE {name}")
    try:
        catalog.add_engine(Engine(name, handler, hidden))
    except BaseException:
        references.forget(hidden)
        raise
    return show.show_engine(session, name)


def run_drop_engine(session: Session, statement: DropEngine, parameters: Parameters) -> None:
    """Forget an engine and its secrets; CatalogError while a model uses it."""
    known = {e.name.lower(): e for e in session.catalog.engines()}
    engine = known.get(statement.name.lower())
    if engine is None and statement.if_exists:
        return
    if engine is None and statement.name.lower() in plugins.find_entry_points():
        raise NotFound(
            f"'{statement.name}' is a handler, and no engine was made with that name.",
            "There is nothing to drop; a handler goes with the package that ships it.",
        )
    session.catalog.drop_engine(statement.name)
    if engine is not None:
        references.forget(engine.options)


def run_create_model(session: Session, statement: CreateModel, parameters: Parameters) -> pa.Table | None:
    """Keep a model whose version 1 is its base, or with FROM train that version; its row."""
    key = ModelKey(statement.name.name, statement.name.project or session.project)
    old = session.find_model(*key)
    if old is not None and statement.if_not_exists:
        return show.show_model(session, old.key)
    session.catalog.require_writing()
    if old is not None:
        session.require_own(old)
    if old is not None and not statement.or_replace:
        raise AlreadyExists(
            f"There is a model '{old.key}' already.",
            f"FINETUNE {old.key} makes its next version; CREATE OR REPLACE MODEL or DROP MODEL does away with it.",
        )
    refuse_taken_name(session, key)
    statement, imported = read_import(statement)
    definition = _build_definition(session, statement, key, imported)
    _check_with_handler(session, definition)
    hidden = references.hide(definition.options, definition.is_secret, f"MODEL {key.name}")
    if statement.alias:
        hidden["$predict"] = statement.predict
    if definition.outputs.is_typed:
        hidden["$outputs"] = definition.outputs.to_catalog()
    model = replace(definition.model, options=hidden)
    _warn_of_foreign_placeholders(session, model.prompt_template)
    try:
        table = _add_model(session, statement, model, definition, parameters)
    except BaseException:
        current = session.find_model(*key)
        if current is None or current.options != hidden:
            references.forget(hidden)
        elif old is not None:
            references.forget(old.options)
        raise
    if old is not None:
        references.forget(old.options)
    return table


def preview_model(session: Session, statement: CreateModel) -> tuple[Model, Mapping[str, object]]:
    """The model that CREATE MODEL would keep, and USING's options for its training; nothing is kept."""
    key = ModelKey(statement.name.name, statement.name.project or session.project)
    definition = _build_definition(session, statement, key)
    _check_with_handler(session, definition)
    hidden = references.hide(definition.options, lambda _: False, f"MODEL {key.name}")
    return replace(definition.model, options=hidden), definition.training


def run_drop_model(session: Session, statement: DropModel, parameters: Parameters) -> None:
    """Forget a model, whose trainings are stopped, or one version of it that is neither active nor trains."""
    name, catalog = statement.name, session.catalog
    found = session.find_model(name.name, name.project)
    if found is None and statement.if_exists:
        return
    model = find_model(session, name.key)
    session.require_own(model)
    if name.version is None:
        catalog.knowledge_bases.require_unused(model.key, "dropped")
        cancel_trainings(session, model.key)
        catalog.drop_model(model.key)
        references.forget(model.options)
        return
    key = VersionKey(model.key, name.version)
    if statement.if_exists and key not in {v.key for v in catalog.versions(model.key)}:
        return
    catalog.drop_version(key)


def run_rename_model(session: Session, statement: RenameModel, parameters: Parameters) -> pa.Table:
    """Give a model another name; its row."""
    model = find_model(session, statement.name.key)
    session.require_own(model)
    to = ModelKey(statement.to.name, statement.to.project or model.key.project)
    if to.name.lower() != model.key.name.lower():
        refuse_taken_name(session, to)
    session.catalog.knowledge_bases.require_unused(model.key, "renamed")
    session.catalog.rename_model(model.key, to)
    return show.show_model(session, to)


def run_set_active(session: Session, statement: SetActive, parameters: Parameters) -> pa.Table:
    """Let a complete version answer for its model; its row."""
    name = statement.name
    model = find_model(session, name.key)
    session.require_own(model)
    session.catalog.set_active(session.catalog.resolve_version(model.key, name.version).key)
    return show.show_model(session, model.key)


@dataclass(frozen=True)
class _ModelDefinition:
    """A model that CREATE MODEL asks for, checked; its options are the handler's, secrets still plain."""

    model: Model
    engine: Engine
    handler: type[Handler]
    settings: ModelSettings
    outputs: Outputs
    options: Mapping[str, object]
    training: Mapping[str, object]
    trains: bool
    """FROM was given: its training is checked by itself."""
    imported: ImportedModel | None = None

    def is_secret(self, name: str) -> bool:
        """Whether an option's value must not be kept in the catalog."""
        cls = self.handler
        return is_secret(name, cls.engine_options, cls.model_options, cls.predict_options)


def _build_definition(
    session: Session, statement: CreateModel, key: ModelKey, imported: ImportedModel | None = None
) -> _ModelDefinition:
    what = f"CREATE MODEL {key.name}"
    engine_name = statement.options.get("engine")
    if not isinstance(engine_name, str):
        raise OptionError(
            f"{what} needs the option 'engine'.", "Add: USING engine = 'local' (SHOW HANDLERS lists others)."
        )
    engine = find_engine(session, engine_name)
    cls = plugins.load_engine_class(engine.handler, engine.options)
    if imported is not None:
        require_taker(cls, engine.name)
    classes = (EngineSettings, cls.engine_options, cls.model_options, cls.predict_options)
    for_training = _list_training_options(cls)
    options = _rename_old_options(statement.options, option_names(ModelSettings, *classes) | for_training)
    _check_option_names(options, classes, for_training if statement.source else set(), for_training, what)
    settings = build_options(ModelSettings, pick_options(options, ModelSettings), what)
    kept = {k: v for k, v in pick_options(options, *classes).items() if k not in option_names(ModelSettings)}
    output = statement.alias or statement.predict
    number_type = find_number_type(cls, kept)
    template = _build_pair_template(settings) if number_type == SCORE_TYPE else _build_template(settings, output)
    model = Model(key, engine.name, settings.base or "", output, template, settings.system)
    taken = imported.read_outputs() if imported is not None else None
    outputs = taken or resolve_outputs(session, statement, output, _resolve_schema(settings), number_type)
    _check_columns(model, outputs, statement)
    training = {k: v for k, v in options.items() if k in for_training} if statement.source else {}
    trains = statement.source is not None
    return _ModelDefinition(model, engine, cls, settings, outputs, kept, training, trains, imported)


def _resolve_schema(settings: ModelSettings) -> object:
    if settings.json_struct is None:
        return settings.schema
    if settings.schema is not None:
        raise OptionError("The answer has a schema and a json_struct.", "Leave one of them out: they say the same.")
    return parse_json_struct(settings.json_struct)


def _list_training_options(cls: type[Handler]) -> set[str]:
    return option_names(TrainSettings, cls.train_options) if issubclass(cls, Trainer) else set()


def _check_option_names(
    options: Mapping[str, object], classes: tuple[type, ...], training: set[str], for_training: set[str], what: str
) -> None:
    if dict in classes:
        return
    known = option_names(ModelSettings, *classes) | training
    for name in options:
        if name not in known and name in for_training:
            raise OptionError(
                f"{what}: '{name}' is an option of training, and nothing is trained here.",
                "Give it to FINETUNE or RETRAIN, or train at once: CREATE MODEL … FROM db (SELECT …) PREDICT … USING …",
            )
    check_option_names(options, known, what)


def _build_template(settings: ModelSettings, output: str) -> str:
    if settings.prompt_template is not None:
        return settings.prompt_template
    if settings.answer_column and settings.answer_column.lower() != output.lower():
        raise OptionError(
            f"The answer is the column '{output}', and not '{settings.answer_column}'.",
            f"Leave the option out, or write PREDICT {format_name(settings.answer_column)}.",
        )
    if settings.context_column is not None:
        question = settings.question_column or "question"
        return f"Context: {{{{{settings.context_column}}}}}\nQuestion: {{{{{question}}}}}\nAnswer:"
    return f"{{{{{settings.question_column or 'content'}}}}}"


def _build_pair_template(settings: ModelSettings) -> str:
    if settings.prompt_template or settings.system or settings.question_column or settings.context_column:
        raise OptionError(
            "A model with mode = 'rerank' reads a question and a text as they are: it has no prompt of its own.",
            "Leave prompt_template out; its inputs are question and text.",
        )
    return PAIR_TEMPLATE


def _check_columns(model: Model, outputs: Outputs, statement: CreateModel) -> None:
    """DataError for a template that is wrong; OptionError where the output's name is an input's too."""
    inputs = {name.lower(): name for name in Prompt(model.prompt_template, model.system).inputs}
    for name in inputs.values():
        _check_input(name)
    if model.system and (placeholder := PLACEHOLDER.search(model.system)):
        raise OptionError(
            f"The system message has the placeholder {placeholder.group()}, and it is the same for every row.",
            "Put placeholders into prompt_template.",
        )
    other = f"{statement.predict}_out"
    for taken in (*outputs.names, *outputs.derived):
        if taken.lower() in inputs:
            raise OptionError(
                f"The model's answer and one of its inputs would both be the column '{inputs[taken.lower()]}'.",
                f"Give the answer another name: PREDICT {format_name(statement.predict)} AS {format_name(other)}."
                if not statement.columns
                else f"Give the answer's column another name, {taken}_out.",
            )


def _check_input(name: str) -> None:
    """OptionError for a text in double braces that was meant as a literal or as code, and is no column's name."""
    filtered = re.fullmatch(r"(\w+)\s*\|.*", name)
    if filtered:
        raise OptionError(
            f"The prompt_template has {{{{{name}}}}}, and a placeholder is a name alone: there are no filters.",
            f"Write {{{{{filtered[1]}}}}}, and change the value in the query that asks.",
        )
    if re.search(r"[\"'`:]\s*:|^[\"'`]|[\"'`]$|^\W+$", name):
        raise OptionError(
            f"The prompt_template has {{{{{name}}}}}, and double braces hold an input's name.",
            f"For braces that stay in the prompt write single ones, {{{name}}}; an input is {{{{name}}}}.",
        )


def _warn_of_foreign_placeholders(session: Session, template: str) -> None:
    """{x} is what Python and LangChain have, {% … %} is Jinja's; here they are texts as any other."""
    for placeholder in dict.fromkeys(SINGLE_BRACES.findall(template)):
        session.show_warning(
            f"{{{placeholder}}} in the prompt_template is plain text. An input is written {{{{{placeholder}}}}}."
        )
    if block := re.search(r"\{%.*?%\}", template, re.DOTALL):
        session.show_warning(
            f"{block[0]} in the prompt_template is plain text. Make such texts in the query that asks."
        )


def _check_with_handler(session: Session, definition: _ModelDefinition) -> None:
    """Whether the handler can make such a model, its options tried on."""
    what = f"Model '{definition.model.key.name}'"
    options = references.reveal(references.hide(definition.options, lambda _: False, what))
    handler = create_handler(session, definition.engine, options)
    build_options(definition.handler.predict_options, pick_options(options, definition.handler.predict_options), what)
    spec: ModelSpec = build_model_spec(
        definition.handler, definition.model.base, options, what, definition.outputs.schema
    )
    try:
        with definition.imported.explain_base() if definition.imported else nullcontext():
            handler.check(spec)
    except SqlftError:
        raise
    except Exception as e:
        raise ProviderError(
            f"The handler '{definition.engine.handler}' failed at checking the model: {type(e).__name__}: {e}",
            "Check the model's options; if they are right, tell those who wrote the handler.",
        ) from e
    if definition.imported is not None and (definition.imported.adapter or not definition.outputs.is_vector):
        definition.imported.check(handler, spec)
    if not definition.trains:
        check_retirement(session, handler, spec)


def _add_model(
    session: Session, statement: CreateModel, model: Model, definition: _ModelDefinition, parameters: Parameters
) -> pa.Table:
    if statement.source is not None:
        what = f"CREATE MODEL {model.key.name}"
        plan = plan_training(session, model, statement.source, definition.training, what)
        make = partial(session.catalog.add_model, model, or_replace=statement.or_replace)
        key = train_version(session, plan, parameters, make)
        return show.show_model(session, key.model, key.number)
    details = {"base": model.base, "handler": plugins.handler_package(definition.engine.handler)}
    keep = partial(session.catalog.add_model, model, or_replace=statement.or_replace)
    if definition.imported is not None:
        keep_import(session, definition.imported, keep, details, definition.settings.tag)
    else:
        keep(tag=definition.settings.tag, details=details)
    return show.show_model(session, model.key)


def refuse_taken_name(session: Session, key: ModelKey, what: str = "model") -> None:
    """AlreadyExists if a table or a view that a query would find has the name, or stands in the project's schema."""
    session.require_own_project(key.project)
    row = session.con.execute(
        "SELECT kind, name FROM (SELECT 'table' AS kind, database_name, schema_name, table_name AS name"
        " FROM duckdb_tables() UNION ALL SELECT 'view', database_name, schema_name, view_name FROM duckdb_views())"
        " WHERE lower(name) = lower($1) AND (database_name IN (current_database(), 'temp')"
        " AND (list_contains(current_schemas(true), schema_name) OR lower(schema_name) = lower($2))"
        " OR lower(database_name) = lower($2) AND schema_name = 'main')",
        [key.name, key.project],
    ).fetchone()
    if row:
        raise AlreadyExists(
            f"There is a {row[0]} '{row[1]}' already, and a query could not tell the {what} from it.",
            f"Choose another name for the {what}, or rename the {row[0]}.",
        )


def _check_engine_options(session: Session, cls: type[Handler], options: Mapping[str, object], what: str) -> None:
    """OptionError for what does not fit; a variable of the environment may be set later."""
    try:
        revealed = references.reveal(references.hide(options, lambda _: False, what))
    except SqlftError as e:
        if cls.engine_options is not dict:
            check_option_names(options, option_names(cls.engine_options, EngineSettings), what)
        session.show_warning(f"{e.message} It is needed when a model of this engine is asked.")
        return
    build_options(EngineSettings, pick_options(revealed, EngineSettings), what)
    try:
        build_options(cls.engine_options, drop_options(revealed, EngineSettings), what)
    except OptionError:
        if cls.engine_options is not dict:  # its list of names is to have ours too
            check_option_names(options, option_names(cls.engine_options, EngineSettings), what)
        raise


def _rename_old_options(options: Mapping[str, object], known: set[str]) -> dict[str, object]:
    """Options with MindsDB's names in place of which the handler has others."""
    renamed: dict[str, object] = {}
    for name, value in options.items():
        new = OLD_OPTION_NAMES.get(name, "api_key" if name.endswith("_api_key") else name)
        is_old = name not in known and new in known
        if is_old and new in options:
            raise OptionError(f"'{name}' and '{new}' are two names for one option.", f"Leave '{name}' out.")
        renamed[new if is_old else name] = value
    return renamed


def resolve_outputs(
    session: Session, statement: CreateModel, name: str, schema: object, number_type: str | None
) -> Outputs:
    """The columns of a model's answers; OptionError or DataError for types that cannot be."""
    if number_type and (statement.columns or schema is not None):
        what = "An embedding" if number_type == VECTOR_TYPE else "A score"
        raise OptionError(f"{what} is {number_type}, and has no other type.", f"Write: PREDICT {name} USING mode = …")
    if statement.columns and schema is not None:
        raise OptionError(
            "The answer has types in PREDICT (…) and a schema in USING.", "Leave one of them out: they say the same."
        )
    if number_type:
        return Outputs((OutputColumn(name, number_type),))
    if statement.columns:
        columns = [
            OutputColumn(c.name, str(parse_type(session, c.type, f"The column '{c.name}'")), c.required)
            for c in statement.columns
        ]
        return _refuse_derived_names(Outputs.from_columns(columns))
    if schema is None:
        return Outputs((OutputColumn(name),))
    return outputs.parse_outputs(name, schema, lambda text: parse_type(session, text, "The option 'schema'"))


def parse_type(session: Session, text: str, what: str) -> duckdb.sqltypes.DuckDBPyType:
    """The DuckDBPyType that the user's connection knows by a type's text; OptionError."""
    why = ""
    try:
        if any(token.text == ";" for token in tokenize(text)):
            raise StatementError("a type ends before a semicolon")
        return session.con.sql(f"SELECT CAST(NULL AS {text}) AS x").types[0]
    except (duckdb.Error, StatementError) as e:
        why = str(e).splitlines()[0]
    raise OptionError(
        f"{what} has the type {text}, which DuckDB does not know: {why}",
        "Write a type of DuckDB, such as VARCHAR, INTEGER, DECIMAL(10,2), DATE, VARCHAR[], STRUCT(a INTEGER).",
    )


def _refuse_derived_names(outputs: Outputs) -> Outputs:
    """The same, if no column has the name of one that is about another."""
    derived = {name.lower() for name in outputs.derived}
    for name in outputs.names:
        if name.lower() in derived:
            raise OptionError(
                f"The column '{name}' would be what says of '{name.rpartition('_')[0]}' how it was answered.",
                f"Give it another name: {name}_text.",
            )
    return outputs


def run_unload(session: Session, statement: s.UnloadModel, parameters: Parameters) -> pa.Table:
    """One row per version that was in memory: it is freed at once, or when the query that asks it is done."""
    name = statement.name
    models = session.catalog.models() if name is None else [find_model(session, name.key)]
    wanted_number = name.version if name else None
    freed: list[tuple[str, int]] = []
    for model in models:
        for number in [v.key.number for v in session.versions(model)] if wanted_number is None else [wanted_number]:
            try:
                version = resolve(session, model.key, number)
            except SqlftError:
                if wanted_number is not None:
                    raise
                continue  # one that never was complete is not in memory
            if version.handler.unload(version.spec, version.artifact):
                freed.append((model.key.name, version.version.key.number))
            session.unloaders.pop(version.digest, None)
    return pa.table(
        {"model": pa.array([m for m, _ in freed], pa.string()), "version": pa.array([n for _, n in freed], pa.int64())}
    )


def run_drop_cache(session: Session, statement: s.DropCache, parameters: Parameters) -> pa.Table:
    """Forget kept answers, all of them or a model's, also of a model that is gone."""
    name = statement.name
    kept = None
    if name is not None:
        model = session.find_model(name.name, name.project)
        key = model.key if model else ModelKey(name.name, name.project or session.project)
        kept = str(key if name.version is None else VersionKey(key, name.version))
    with closing(Cache(session.catalog.folder / "cache.sqlite")) as cache:
        return pa.table({"dropped_answers": [cache.drop(kept)]})


def unload_all(session: Session) -> None:
    """Free what the session's statements have loaded."""
    for free in list(session.unloaders.values()):
        try:
            free()
        except SqlftError:
            continue
    session.unloaders.clear()
