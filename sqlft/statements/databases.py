"""CREATE DATABASE … ENGINE = '…': an ATTACH, and before it the extension that it needs; projects and USE.

A database lasts as long as the connection, as ATTACH does; a project is kept in the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import duckdb

from sqlft.errors import AlreadyExists, CatalogError, DataError, NotSupported, did_you_mean
from sqlft.handler import Alias, Secret
from sqlft.options import build_options
from sqlft.secrets import references
from sqlft.session import Parameters, Session
from sqlft.sql.names import format_name, quote_name, quote_text
from sqlft.sql.statements import DEFAULT_PROJECT, CreateDatabase, CreateProject, DropProject, UseProject

READ_FUNCTIONS = {
    ".csv": "read_csv", ".tsv": "read_csv", ".parquet": "read_parquet",
    ".json": "read_json", ".jsonl": "read_json", ".ndjson": "read_json",
}  # fmt: skip
RESERVED_NAMES = ("sqlft", DEFAULT_PROJECT)


@dataclass
class FileParameters:
    """duckdb and sqlite"""

    path: Annotated[str, "the database file", Alias("database"), Alias("db_file"), Alias("db"), Alias("file")]
    read_only: Annotated[bool, "refuse writes to it"] = False


@dataclass
class FilesParameters:
    """files"""

    path: Annotated[str, "a folder of CSV, Parquet or JSON files, or one such file", Alias("folder"), Alias("database")]


@dataclass
class ServerParameters:
    """mysql"""

    host: Annotated[str | None, "where the server is"] = None
    port: Annotated[int | None, "its port"] = None
    user: Annotated[str | None, "who asks", Alias("username")] = None
    password: Annotated[str | None, "the password, better env('NAME')", Secret()] = None
    database: Annotated[str | None, "the database on the server", Alias("dbname"), Alias("db")] = None
    read_only: Annotated[bool, "refuse writes to it"] = False


@dataclass
class PostgresParameters(ServerParameters):
    """postgres"""

    schema: Annotated[str | None, "only this schema"] = None
    sslmode: Annotated[str | None, "as libpq has it: require, disable …"] = None


def run_create_database(session: Session, statement: CreateDatabase, parameters: Parameters) -> None:
    """Attach a database; AlreadyExists, OptionError, NotSupported for an engine that is unknown or not to be had."""
    name, con = statement.name, session.con
    engine = _find_engine(statement.engine)
    what = f"CREATE DATABASE {name}"
    values = references.reveal(references.hide(statement.parameters, lambda _: False, what))
    options: object = build_options(engine.parameters, values, what)
    if name.lower() in RESERVED_NAMES:
        raise CatalogError(f"The name '{name}' is kept for models and their tables.", "Choose another name.")
    if con.execute("SELECT 1 FROM duckdb_databases() WHERE lower(database_name) = lower(?)", [name]).fetchone():
        if statement.if_not_exists:
            return
        if not statement.or_replace:
            raise AlreadyExists(
                f"There is a database '{name}' already.", f"Choose another name, or DETACH {quote_name(name)}."
            )
        con.execute(f"DETACH {quote_name(name)}")
    engine.attach(session, name, options, engine.kind)


def run_create_project(session: Session, statement: CreateProject, parameters: Parameters) -> None:
    """Keep a project, which models can be made in: project.name."""
    name = statement.name
    if statement.if_not_exists and session.catalog.find_project(name) is not None:
        return
    session.catalog.require_writing()
    session.require_own_project(name)
    session.catalog.add_project(name)
    session.show_notice(f"Its models are named {format_name(name)}.name, or name alone after USE {format_name(name)}.")
    if _is_schema(session, name):
        session.show_notice(f"There is a schema '{name}' too. {_BOTH_CHOSEN.format(name=format_name(name))}")


def run_drop_project(session: Session, statement: DropProject, parameters: Parameters) -> None:
    """Forget a project that has no models."""
    if statement.if_exists and session.catalog.find_project(statement.name) is None:
        return
    session.catalog.drop_project(statement.name)
    if session.project.lower() == statement.name.lower():
        session.project = DEFAULT_PROJECT


def run_use_project(session: Session, statement: UseProject, parameters: Parameters) -> None:
    """Choose the project whose models need no project before their names, and DuckDB's schema of that name, if any.

    Models of the default project are found behind those of the chosen one.  A schema that is no project leads back to
    the default project.
    """
    name = statement.name
    project = session.catalog.find_project(name)
    try:
        session.con.execute(f"USE {quote_name(name)}").fetchall()
    except duckdb.CatalogException as e:
        if project is None:
            e.args = (f"{str(e).rstrip()}\n{_suggest_names(session, name)}",)
            raise
        if session.project != project:
            session.show_notice(f"Models are made in project {project}, and looked for there first; tables as before.")
        session.project = project
        return
    session.project = project or DEFAULT_PROJECT
    if project is not None:
        session.show_notice(
            f"'{name}' is a schema and a project of models. {_BOTH_CHOSEN.format(name=format_name(name))}"
        )


_BOTH_CHOSEN = "USE {name} chooses both: tables are looked for in the schema, models in the project."


def _is_schema(session: Session, name: str) -> bool:
    """Whether DuckDB's USE would take the name."""
    row = session.con.execute(
        "SELECT 1 FROM duckdb_schemas() WHERE lower(schema_name) = lower($1) AND database_name = current_database()"
        " UNION ALL SELECT 1 FROM duckdb_databases() WHERE lower(database_name) = lower($1)",
        [name],
    )
    return row.fetchone() is not None


def _suggest_names(session: Session, name: str) -> str:
    """What to type where USE knows neither a schema nor a project of that name."""
    rows = session.con.execute(
        "SELECT schema_name FROM duckdb_schemas() WHERE NOT internal AND database_name = current_database()"
        " UNION SELECT database_name FROM duckdb_databases() WHERE NOT internal"
    ).fetchall()
    near = did_you_mean(name, [*(row[0] for row in rows), *session.catalog.projects()])
    makes = (
        f"CREATE SCHEMA {format_name(name)} makes one for tables, CREATE PROJECT {format_name(name)} one for models."
    )
    return f"No project of models has this name either.{near} {makes}"


def load_extension(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load one of DuckDB's extensions: installed, from its PyPI package, or else fetched; NotSupported."""
    row = con.execute("SELECT installed, loaded FROM duckdb_extensions() WHERE extension_name = ?", [name]).fetchone()
    installed, loaded = row or (False, False)
    if loaded:
        return
    package = _find_packaged_extension(name)
    if not installed and package is not None:
        con.execute(f"LOAD {quote_text(str(package))}")
        return
    try:
        if not installed:
            con.execute(f"INSTALL {name}")
        con.execute(f"LOAD {name}")
    except duckdb.Error as e:
        reason = str(e).strip().splitlines()[0]
        raise NotSupported(
            f"DuckDB {duckdb.__version__} needs its extension '{name}' for that, and cannot get it: {reason}",
            f"With a network, INSTALL {name} gets it. Without: pip install duckdb-extension-{name.replace('_', '-')} "
            f"if there is one for this version, or bring the file {name}.duckdb_extension and INSTALL '<its path>'.",
        ) from e


def _find_engine(name: str) -> DatabaseEngine:
    folded = name.lower()
    if folded in ENGINES:
        return ENGINES[folded]
    raise NotSupported(
        f"CREATE DATABASE does not know the engine '{name}'.{did_you_mean(name, ENGINES)}",
        f"It knows {', '.join(ENGINES)}. For others: export the rows to Parquet or CSV and use ENGINE = 'files', or "
        "INSTALL and LOAD an extension of DuckDB that reads it and ATTACH it.",
    )


def _attach_file(session: Session, name: str, options: FileParameters, kind: str) -> None:
    if kind == "sqlite":
        load_extension(session.con, "sqlite_scanner")
    path = options.path if ":" in options.path[:12] else str(Path(options.path).expanduser())
    new = "://" not in path and path != ":memory:" and not Path(path).exists()
    session.con.execute(
        f"ATTACH {quote_text(str(path))} AS {quote_name(name)} (TYPE {kind}{_format_read_only(options)})"
    )
    if new:
        session.show_warning(
            f"There was no file {path}: '{name}' is a new, empty database. DETACH {name} if that was not meant."
        )


def _attach_server(session: Session, name: str, options: ServerParameters, kind: str) -> None:
    """Attach with a secret of DuckDB's, which keeps the password out of listings and errors."""
    con = session.con
    load_extension(con, f"{kind}_scanner")
    values = {field: getattr(options, field) for field in ("host", "port", "user", "password", "database")}
    parts = [f"{field.upper()} {quote_text(str(value))}" for field, value in values.items() if value is not None]
    secret = quote_name(f"sqlft_{name}")
    con.execute(f"CREATE OR REPLACE TEMPORARY SECRET {secret} ({', '.join([f'TYPE {kind}', *parts])})")
    text, more = "", _format_read_only(options)
    if isinstance(options, PostgresParameters):
        text = f"sslmode={_quote_libpq(options.sslmode)}" if options.sslmode else ""
        more += f", SCHEMA {quote_text(options.schema)}" if options.schema else ""
    try:
        con.execute(f"ATTACH {quote_text(text)} AS {quote_name(name)} (TYPE {kind}, SECRET {secret}{more})")
    except duckdb.Error:
        con.execute(f"DROP TEMPORARY SECRET IF EXISTS {secret}")
        raise


def _attach_files(session: Session, name: str, options: FilesParameters, kind: str) -> None:
    """A database in memory with one view per file."""
    views = _list_views(Path(options.path).expanduser())
    con, database = session.con, quote_name(name)
    con.execute(f"ATTACH ':memory:' AS {database}")
    try:
        for view, path in views.items():
            reader = READ_FUNCTIONS[_get_suffix(path)]
            con.execute(
                f"CREATE VIEW {database}.main.{quote_name(view)} AS SELECT * FROM {reader}({quote_text(str(path))})"
            )
    except duckdb.Error:
        con.execute(f"DETACH {database}")
        raise


def _list_views(path: Path) -> dict[str, Path]:
    """A name for each file that can be read: its stem, with its suffix where two have the same."""
    try:
        files = [path] if path.is_file() else sorted(path.iterdir())
    except OSError as e:
        raise DataError(
            f"The folder {path} cannot be read: {e.strerror}.", "Give PARAMETERS = {'path': 'a folder'}."
        ) from e
    readable = [f.absolute() for f in files if f.is_file() and _get_suffix(f) in READ_FUNCTIONS]
    if not readable:
        raise DataError(
            f"There is no file to read in {path}.", f"It reads: {', '.join(READ_FUNCTIONS)}, also with .gz behind."
        )
    views: dict[str, Path] = {}
    for file in readable:
        stem = file.name.split(".")[0] if not file.name.startswith(".") else file.name
        view = stem if stem.lower() not in {v.lower() for v in views} else f"{stem}_{_get_suffix(file)[1:]}"
        if view in views:
            raise DataError(f"{file} and {views[view]} would both be the view '{view}'.", "Rename one of the files.")
        views[view] = file
    return views


def _get_suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _quote_libpq(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _format_read_only(options: FileParameters | ServerParameters) -> str:
    return ", READ_ONLY" if options.read_only else ""


def _find_packaged_extension(extension: str) -> Path | None:
    """The extension's file for this version of DuckDB in an installed `duckdb-extension-…` package."""
    from importlib.util import find_spec

    spec = find_spec(f"duckdb_extension_{extension}")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{extension}.duckdb_extension"
        if path.exists():
            return path
    return None


class DatabaseEngine(NamedTuple):
    """How CREATE DATABASE attaches a database: its parameters, and what takes them with DuckDB's name of the kind."""

    parameters: type
    attach: Callable[[Session, str, Any, str], None]
    kind: str


_POSTGRES = DatabaseEngine(PostgresParameters, _attach_server, "postgres")
_MYSQL = DatabaseEngine(ServerParameters, _attach_server, "mysql")
ENGINES: Mapping[str, DatabaseEngine] = {
    "duckdb": DatabaseEngine(FileParameters, _attach_file, "duckdb"),
    "sqlite": DatabaseEngine(FileParameters, _attach_file, "sqlite"),
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "files": DatabaseEngine(FilesParameters, _attach_files, "files"),
}
