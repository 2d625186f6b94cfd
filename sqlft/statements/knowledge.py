"""CREATE, ALTER, DROP and REFRESH of knowledge bases; INSERT and SELECT are queries' work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import duckdb
import pyarrow as pa

from sqlft import plugins
from sqlft.catalog.records import KnowledgeBase, ModelKey
from sqlft.errors import AlreadyExists, CatalogError, NotFound, NotSupported, OptionError, did_you_mean
from sqlft.handler import Embedder
from sqlft.inference.cache import Cache
from sqlft.inference.resolve import find_model, list_handlers
from sqlft.inference.statement_runs import open_statement_runs
from sqlft.knowledge import insert, tables
from sqlft.knowledge.definition import (
    KnowledgeSettings,
    check_columns,
    read_chunk_options,
    read_model,
    read_settings,
)
from sqlft.knowledge.embedding import check_embeds, parse_model_name, require_same_model, resolve_embedding_model
from sqlft.knowledge.index import create_index, drop_index
from sqlft.knowledge.insert import InsertSettings, insert_rows
from sqlft.knowledge.reranking import resolve_judge
from sqlft.knowledge.words import DEFAULT_LANGUAGE, check_language
from sqlft.options import build_options, option_names, pick_options
from sqlft.secrets import references
from sqlft.session import Parameters, QuerySettings, Session
from sqlft.sql.literals import inline_parameters
from sqlft.sql.names import format_name
from sqlft.sql.passthrough import parse_plain
from sqlft.sql.statements import (
    AlterKnowledgeBase,
    CreateKnowledgeBase,
    CreateModel,
    DropKnowledgeBase,
    IndexKnowledgeBase,
    ModelName,
    RefreshKnowledgeBase,
)
from sqlft.statements.describe import find_knowledge_base
from sqlft.statements.models import refuse_taken_name, run_create_model
from sqlft.statements.show import show_knowledge_base
from sqlft.training.rows import use_database

RECORD_FIELDS = ("embedding_model", "model", "reranking_model", "content_columns", "id_column", "storage")
"""Options that are fields of the record; metadata_columns are kept among its options, too, where they were named."""
MADE_MODELS = "$models"
"""The option of a record that names the models which its CREATE made; DROP drops them with it."""
URL_PROVIDERS = {"google": "gemini"}
"""Providers of MindsDB's under the names that `plugins` has for what speaks OpenAI's protocol."""


@dataclass
class RefreshSettings:
    """REFRESH KNOWLEDGE_BASE … USING, beside those of INSERT"""

    rebuild: Annotated[bool, "embed all texts again: after a change of the embedding model"] = False
    embedding_model: Annotated[Any, "with rebuild: another embedding model from now on"] = None


def run_create_knowledge_base(session: Session, statement: CreateKnowledgeBase, parameters: Parameters) -> pa.Table:
    """Keep a knowledge base, with FROM filled with the rows of a query; its row."""
    key = ModelKey(statement.name.name, statement.name.project or session.project)
    old = session.find_knowledge_base(*key)
    if old is not None and statement.if_not_exists:
        return show_knowledge_base(session, old)
    session.catalog.require_writing()
    _check_name(session, key, None if statement.or_replace else old)
    of_insert = pick_options(statement.options, InsertSettings, QuerySettings) if statement.source else {}
    given = {name.lower(): value for name, value in statement.options.items() if name not in of_insert}
    settings = read_settings(given, f"CREATE KNOWLEDGE_BASE {key}")
    base = _build_record(session, key, settings, given)
    if statement.source is not None:
        query = inline_parameters(statement.source.query, parameters, statement.source.parameters)
        base = replace(base, query=query, database=statement.source.database)
    if old is not None:
        _drop(session, old)
    tables.drop_tables(session.con, replace(base, storage=base.storage or session.home_database))
    _add(session, base, settings)
    if statement.source is not None:
        _fill_new(session, find_knowledge_base(session, key), of_insert, statement.text)
    return show_knowledge_base(session, find_knowledge_base(session, key))


def run_alter_knowledge_base(session: Session, statement: AlterKnowledgeBase, parameters: Parameters) -> pa.Table:
    """Change columns, preprocessing, the reranking model, or the key of the embedding model; its row.

    What is inserted from then on is as it says; texts that are there stay as they are.
    """
    base = find_knowledge_base(session, statement.name)
    session.require_own_knowledge_base(base)
    given = {name.lower(): value for name, value in statement.options.items()}
    settings = read_settings(given, f"ALTER KNOWLEDGE_BASE {base.key}")
    _refuse_fixed(session, base, given)
    record = session.catalog.knowledge_bases.get(base.key)
    changed = replace(
        record,
        content_columns=tuple(settings.content_columns) if settings.content_columns else record.content_columns,
        metadata_columns=record.metadata_columns
        if settings.metadata_columns is None
        else tuple(settings.metadata_columns),
        id_column=settings.id_column if "id_column" in given else record.id_column,
        options={**record.options, **{k: v for k, v in given.items() if k not in RECORD_FIELDS}},
    )
    check_columns(changed)
    _check_options(changed)
    if "embedding_model" in given or "model" in given:
        _alter_embedding_model(session, base, settings.embedding_model)
    if "reranking_model" in given:
        changed = _replace_model(session, changed, "reranking_model", settings.reranking_model)
    session.catalog.knowledge_bases.update(changed)
    con, changed = session.con, find_knowledge_base(session, base.key)
    if tables.has_tables(con, changed):
        tables.write(con, changed, not tables.is_in_transaction(con), lambda: tables.add_metadata(con, changed))
    return show_knowledge_base(session, find_knowledge_base(session, base.key))


def run_drop_knowledge_base(session: Session, statement: DropKnowledgeBase, parameters: Parameters) -> None:
    """Forget a knowledge base, its texts, and the models that were made for it alone."""
    if statement.if_exists and session.find_knowledge_base(statement.name.name, statement.name.project) is None:
        return
    base = find_knowledge_base(session, statement.name)
    session.require_own_knowledge_base(base)
    _drop(session, base)


def run_refresh_knowledge_base(session: Session, statement: RefreshKnowledgeBase, parameters: Parameters) -> pa.Table:
    """Read the query of CREATE … FROM again: new, changed and gone texts are taken over; embed what waits; its row."""
    base = find_knowledge_base(session, statement.name)
    session.require_own_knowledge_base(base)
    settings = build_options(
        RefreshSettings, pick_options(statement.options, RefreshSettings), f"REFRESH KNOWLEDGE_BASE {base.key}"
    )
    others = {k: v for k, v in statement.options.items() if k not in option_names(RefreshSettings)}
    if settings.embedding_model is not None and not settings.rebuild:
        raise OptionError(
            "Another embedding model embeds all texts again.",
            f"Write: REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true, embedding_model = ….",
        )
    if settings.rebuild:
        base = _begin_rebuilding(session, base, settings.embedding_model)
    if base.query is not None:
        _fill(session, base, others, statement.text)
    else:
        _embed_waiting(session, base, others, statement.text)
    return show_knowledge_base(session, find_knowledge_base(session, base.key))


def run_index_knowledge_base(session: Session, statement: IndexKnowledgeBase, parameters: Parameters) -> None:
    """Make an approximate index of the vectors, for many more than a hundred thousand chunks; or remove it."""
    base = find_knowledge_base(session, statement.name)
    if statement.drops:
        drop_index(session, base)
    else:
        create_index(session, base)


# -- records -----------------------------------------------------------------------------------------------------------


def _refuse_fixed(session: Session, base: KnowledgeBase, given: Mapping[str, object]) -> None:
    """NotSupported for what is decided when a knowledge base is made."""
    if "storage" in given:
        raise NotSupported(
            f"The storage of '{base.key}' cannot be changed.",
            "Make another knowledge base there and insert the texts into it.",
        )
    language = str(base.options.get("language") or DEFAULT_LANGUAGE)
    if given.get("language", language) != language and tables.count_rows(session.con, base).chunks:
        raise NotSupported(
            f"The words of '{base.key}' are stemmed as {language}.",
            f"DELETE FROM {base.key} first and insert the texts again, or make another knowledge base.",
        )


def _check_name(session: Session, key: ModelKey, old: KnowledgeBase | None) -> None:
    """AlreadyExists where the knowledge base is there, or something else has its name."""
    if old is not None:
        raise AlreadyExists(
            f"There is a knowledge base '{old.key}' already.",
            f"INSERT INTO {old.key} adds to it; CREATE OR REPLACE KNOWLEDGE_BASE empties it.",
        )
    if session.find_model(*key) is not None:
        raise AlreadyExists(f"There is a model '{key}' already.", "Choose another name for the knowledge base.")
    refuse_taken_name(session, key, "knowledge base")


def _build_record(
    session: Session, key: ModelKey, settings: KnowledgeSettings, given: Mapping[str, object]
) -> KnowledgeBase:
    """The record without its models, checked."""
    base = KnowledgeBase(
        key,
        content_columns=tuple(settings.content_columns or ("content",)),
        metadata_columns=tuple(settings.metadata_columns or ()),
        id_column=settings.id_column,
        storage=_find_storage(session, settings.storage),
        options={name: value for name, value in given.items() if name not in RECORD_FIELDS},
    )
    check_columns(base)
    _check_options(base)
    for kind, value in (("embedding_model", settings.embedding_model), ("reranking_model", settings.reranking_model)):
        if isinstance(name := _read_wanted_model(session, kind, value), str):
            _check_model(session, key, kind, name)
    return base


def _check_options(base: KnowledgeBase) -> None:
    read_chunk_options(base.options)
    check_language(str(base.options.get("language") or "none"))


def _find_storage(session: Session, storage: str | None) -> str | None:
    """The attached database that `database[.table]` means; None is the one that the catalog lies beside."""
    if storage is None:
        return None
    name = storage.partition(".")[0]
    rows = session.con.execute(
        "SELECT database_name, type, readonly FROM duckdb_databases() WHERE NOT internal"
    ).fetchall()
    known = {row[0].lower(): row for row in rows}
    found = known.get(name.lower())
    if found is None:
        raise NotFound(
            f"There is no database '{name}' to keep the texts in.{did_you_mean(name, known)}",
            "Leave storage out: they are kept in the database that is open. Or ATTACH 'file.duckdb' AS "
            f"{format_name(name)} first.",
        )
    if found[1] != "duckdb" or found[2]:
        kind = "is read-only" if found[2] else f"is of type {found[1]}"
        raise NotSupported(
            f"The database '{name}' {kind}, and texts are kept in a DuckDB file.", "Leave storage out, or ATTACH one."
        )
    return None if found[0] == session.home_database else str(found[0])


def _add(session: Session, base: KnowledgeBase, settings: KnowledgeSettings) -> None:
    """Keep the record, with its models; what was made of them is dropped again if that fails."""
    made: list[str] = []
    try:
        embedding = _resolve_model(session, base.key, "embedding_model", settings.embedding_model, made)
        reranking = _resolve_model(session, base.key, "reranking_model", settings.reranking_model, made)
        if embedding is None:
            session.show_notice(f"'{base.key}' has no embedding_model: its words are searched, and no meaning.")
        options = {**base.options, **({MADE_MODELS: made} if made else {})}
        record = replace(base, embedding_model=embedding, reranking_model=reranking, options=options)
        session.catalog.knowledge_bases.add(record)
    except BaseException:
        _drop_models(session, base.key, made)
        raise


def _drop(session: Session, base: KnowledgeBase) -> None:
    if tables.is_attached(session.con, base):
        tables.drop_tables(session.con, base)
    else:
        session.show_warning(f"Its texts stay in the database '{base.storage}', which is not attached.")
    drop_index(session, base)
    session.catalog.knowledge_bases.drop(base.key)
    _drop_models(session, base.key, base.options.get(MADE_MODELS) or ())


# -- models ------------------------------------------------------------------------------------------------------------


def _resolve_model(session: Session, key: ModelKey, kind: str, value: object, made: list[str]) -> str | None:
    """The name of the model that an option means; one that is described is made, and added to `made`."""
    wanted = _read_wanted_model(session, kind, value)
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        own = str(ModelKey(f"{key.name}_{kind}", key.project))
        name = _make_model(session, key, kind, wanted, or_replace=own in made)
        made[:] = [*(other for other in made if other != name), name]
    else:
        name = wanted
    return _check_model(session, key, kind, name)


def _check_model(session: Session, key: ModelKey, kind: str, name: str) -> str:
    """The model's name as the record has it, if the model can do that."""
    resolved = check_embeds(session, name, key) if kind == "embedding_model" else resolve_judge(session, name)
    _, number = parse_model_name(name)
    return str(resolved.model.key) if number is None else str(resolved.version.key)


def _read_wanted_model(session: Session, kind: str, value: object) -> str | Mapping[str, object] | None:
    """A model's name, or what makes one: an object, or the name of a base that embeds, where no model has it."""
    wanted = read_model(value, kind)
    if kind != "embedding_model" or not isinstance(wanted, str):
        return wanted
    model, _ = parse_model_name(wanted)
    name, project = (model, None) if isinstance(model, str) else model
    return wanted if session.find_model(name, project) is not None else _describe_base(wanted)


def _describe_base(name: str) -> Mapping[str, object]:
    """What makes a model of a base that a handler with embeddings names; NotFound if none does."""
    known: list[str] = []
    for handler in list_handlers(Embedder):
        bases = plugins.load_handler_class(handler).bases()
        if name.lower() in bases:
            return {"provider": handler, "model_name": name}
        known += bases
    raise NotFound(
        f"There is no model '{name}' for embedding_model, and no base of that name.{did_you_mean(name, known)}",
        f"CREATE MODEL {format_name(name)} PREDICT vector USING engine = …, mode = 'embedding' makes one; "
        "embedding_model = 'minilm' takes a small one that runs here, {'provider': 'openai', 'model_name': …} another.",
    )


def _make_model(session: Session, key: ModelKey, kind: str, wanted: Mapping[str, object], or_replace: bool) -> str:
    """A model of the given provider, by CREATE MODEL."""
    options = {name: value for name, value in wanted.items() if name not in ("provider", "engine", "method")}
    provider = wanted.get("provider") or wanted.get("engine")
    if not isinstance(provider, str):
        raise OptionError(f"{kind} has no provider.", "Write: {'provider': 'openai', 'model_name': …}")
    engine, defaults = _find_provider(session, provider)
    options = {**defaults, **options, "engine": engine}
    name = ModelName(f"{key.name}_{kind}", None, key.project)
    if kind == "embedding_model":
        options["mode"] = "embedding"
    elif options.get("mode") in ("pointwise", "listwise"):  # MindsDB's: each chunk is read by itself here
        del options["mode"]
    run_create_model(
        session,
        CreateModel(name, "vector" if kind == "embedding_model" else "answer", options=options, or_replace=or_replace),
        None,
    )
    return str(ModelKey(name.name, key.project))


def _find_provider(session: Session, provider: str) -> tuple[str, Mapping[str, object]]:
    """The engine that a provider's name means, and options that go with it."""
    folded = provider.lower()
    names = {engine.name.lower() for engine in session.catalog.engines()}
    if folded in names or plugins.find_handler_entry(plugins.resolve_handler_alias(folded)[0]) is not None:
        return folded, {}
    known = plugins.OPENAI_COMPATIBLE_URLS.get(URL_PROVIDERS.get(folded, folded))
    return ("openai_compatible", {"base_url": known[1]}) if known else (provider, {})


def _drop_models(session: Session, key: ModelKey, names: object) -> None:
    for name in names if isinstance(names, (list, tuple)) else ():
        model = session.catalog.find_model(name.rpartition(".")[2], key.project)
        if model is not None:
            session.catalog.drop_model(model.key)
            references.forget(model.options)


def _replace_model(session: Session, record: KnowledgeBase, kind: str, value: object) -> KnowledgeBase:
    """The record with another model, in place of one that was made for it."""
    own = str(ModelKey(f"{record.key.name}_{kind}", record.key.project))
    made = list(record.options.get(MADE_MODELS) or ())
    name = _resolve_model(session, record.key, kind, value, made)
    if own in made and name != own:
        _drop_models(session, record.key, [own])
        made.remove(own)
    options = {k: v for k, v in record.options.items() if k != MADE_MODELS} | ({MADE_MODELS: made} if made else {})
    if kind == "embedding_model":
        return replace(record, embedding_model=name, options=options)
    return replace(record, reranking_model=name, options=options)


def _alter_embedding_model(session: Session, base: KnowledgeBase, value: object) -> None:
    """Another key for a model that was made for it; CatalogError for another model, which has other vectors."""
    own = str(ModelKey(f"{base.key.name}_embedding_model", base.key.project))
    wanted = read_model(value, "embedding_model")
    if wanted == base.embedding_model:
        return
    is_key = isinstance(wanted, Mapping) and all(name.endswith("api_key") for name in wanted)
    if not is_key or not isinstance(wanted, Mapping) or own not in (base.options.get(MADE_MODELS) or ()):
        raise CatalogError(
            f"Another embedding model gives other vectors than those that '{base.key}' holds.",
            f"REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true, embedding_model = … embeds all texts again.",
        )
    model = find_model(session, parse_model_name(own)[0])
    given = {name: value for name, value in model.options.items() if not name.startswith("$")}
    options = {**references.reveal(given), "engine": model.engine, "base": model.base, **wanted}
    name = ModelName(model.key.name, None, model.key.project)
    run_create_model(session, CreateModel(name, model.predict, options=options, or_replace=True), None)


# -- rows --------------------------------------------------------------------------------------------------------------


def _fill(session: Session, base: KnowledgeBase, options: Mapping[str, object], text: str) -> None:
    """Make what is in the knowledge base what its query gives."""
    of_insert = pick_options(options, InsertSettings)
    rest = {name: value for name, value in options.items() if name not in of_insert}
    assert base.query is not None
    with use_database(session, base.database), open_statement_runs(session, rest, text) as runs:
        insert_rows(session, runs, base, _plan_rows(session, base.query), of_insert, drop_others=True)


def _fill_new(session: Session, base: KnowledgeBase, options: Mapping[str, object], text: str) -> None:
    """`_fill`; where nothing came of it, the knowledge base is gone again."""
    try:
        _fill(session, base, options, text)
    except duckdb.Error:
        with suppress(duckdb.Error):  # of a transaction that failed, which has no tables then
            if tables.count_rows(session.con, base).documents == 0:
                _drop(session, base)
        raise


def _plan_rows(session: Session, query: str) -> str:
    """The query over plain tables: models that it reads are asked."""
    from sqlft.query import NativeQuery, plan_query  # SHOW and DESCRIBE go without it

    head = f"CREATE TEMP TABLE {insert.ROWS} AS "
    statement = parse_plain(head + query, 0, len(head) + len(query))
    with closing(Cache(session.catalog.folder / "cache.sqlite")) as cache:
        planned = plan_query(session, cache, statement, None)
    return planned.sql.removeprefix(head) if isinstance(planned, NativeQuery) else query


def _embed_waiting(session: Session, base: KnowledgeBase, options: Mapping[str, object], text: str) -> None:
    if base.embedding_model is None or tables.count_rows(session.con, base).waiting == 0:
        session.show_notice(f"'{base.key}' was made without FROM, and no text waits: there is nothing to refresh.")
        return
    rest = {name: value for name, value in options.items() if name not in option_names(InsertSettings)}
    with open_statement_runs(session, rest, text) as runs, insert.keep_state(session, base):
        insert.embed_waiting(session, runs, base, require_same_model(session, base))
        insert.warn_of_waiting(session, base)


def _begin_rebuilding(session: Session, base: KnowledgeBase, embedding_model: object) -> KnowledgeBase:
    """Let all chunks wait for vectors, of the embedding model as it is now or of another one."""
    if embedding_model is not None:
        record = session.catalog.knowledge_bases.get(base.key)
        session.catalog.knowledge_bases.update(_replace_model(session, record, "embedding_model", embedding_model))
        base = find_knowledge_base(session, base.key)
    digest = resolve_embedding_model(session, base).digest
    con = session.con
    if tables.read_state(con, base).model not in (None, digest):  # else it was begun, and goes on
        is_own = not tables.is_in_transaction(con)
        tables.write(con, base, is_own, lambda: tables.forget_vectors(con, base))
    return base
