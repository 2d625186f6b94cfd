"""CREATE, DROP, RENAME and EXPORT of models, engines and databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlft.sql import statements as s
from sqlft.sql.cursor import NAME_KINDS, Cursor, parse_mapping, parse_options, parse_value
from sqlft.sql.lexer import Token

T = TypeVar("T")
MODEL_WORDS = ("MODEL", "PREDICTOR")
NO_TIME_SERIES = "Time series are not supported: a model answers each row from that row alone."


def create_model(c: Cursor) -> s.Statement | None:
    """CREATE [OR REPLACE] MODEL …; CREATE MODEL (…) is left to an extension of DuckDB that has it."""
    or_replace = skip_create(c)
    if c.token.text == "(":
        return None
    if_not_exists = skip_if_not_exists(c, or_replace)
    name = c.name("a name for the model", version=False)
    is_from = c.skip("FROM")
    origin = _parse_origin(c) if is_from else None
    source = c.source() if is_from and origin is None else None
    if source and c.skip("AS"):  # an old spelling named the data here
        c.identifier("a name")
    if origin is not None and not c.skip("PREDICT"):
        return s.CreateModel(name, "", None, None, parse_using(c), or_replace, if_not_exists, (), origin)
    if origin is None:
        c.expect("PREDICT")
    columns = parse_typed_columns(c) if c.token.text == "(" else parse_untyped_columns(c)
    predict, alias = (columns[0].name, None) if columns else parse_predicted(c)
    _refuse_time_series(c)
    options = parse_using(c)
    return s.CreateModel(name, predict, alias, source, options, or_replace, if_not_exists, columns, origin)


ORIGIN_KINDS = ("ADAPTER", "GGUF", "EXPORT")


def _parse_origin(c: Cursor) -> s.ModelOrigin | None:
    """ADAPTER|GGUF|EXPORT 'path'; None where rows follow, also those of a database or table that is called so."""
    kind, following = c.token.word, c.peek(1)
    if kind not in ORIGIN_KINDS or following.kind == "end" or following.word in ("PREDICT", "AS"):
        return None
    if following.kind != "string":
        if following.text in ("(", "."):
            return None
        raise c.error(f"FROM {kind} takes a path in single quotes.", f"Write: FROM {kind} '/path/to/it'", following)
    if not following.value or "\0" in following.value:
        raise c.error("This path is empty." if not following.value else "This path has a NUL in it.", token=following)
    c.next(2)
    return s.ModelOrigin(kind, following.value)


def parse_typed_columns(c: Cursor) -> tuple[s.TypedColumn, ...]:
    """(name type [NOT NULL], …)"""
    c.expect_op("(")
    columns: list[s.TypedColumn] = []
    while not columns or c.skip_op(","):
        at = c.token
        column = _parse_typed_column(c)
        _refuse_duplicate(c, column.name, columns, at)
        columns.append(column)
    c.expect_op(")")
    return tuple(columns)


def _parse_typed_column(c: Cursor) -> s.TypedColumn:
    name = c.identifier("an answer's column")
    first = last = c.token
    if c.token.text in (",", ")"):
        raise c.error(f"The column '{name}' needs a type.", f"Write: PREDICT ({name} VARCHAR, …)")
    depth = 0
    while c.token.kind != "end" and (depth or c.token.text not in (",", ")")) and not c.at("NOT", "NULL"):
        last = c.next()
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(last.text, 0) if last.kind == "op" else 0
    return s.TypedColumn(name, c.text[first.start : last.end], c.skip("NOT", "NULL"))


def parse_predicted(c: Cursor) -> tuple[str, str | None]:
    """col [AS alias]."""
    if c.token.text == "*":
        raise c.error("PREDICT needs the name of a column.", "Write: PREDICT answer")
    column = c.identifier("the answer's column")
    alias = c.identifier("the column's new name") if c.skip("AS") else None
    return column, alias


def parse_untyped_columns(c: Cursor) -> tuple[s.TypedColumn, ...]:
    """a, b, …: several columns, each of them text; none where there is one name only."""
    if c.token.kind not in NAME_KINDS or c.peek(1).text != ",":
        return ()
    columns: list[s.TypedColumn] = []
    while not columns or c.skip_op(","):
        at = c.token
        name = c.identifier("an answer's column")
        _refuse_duplicate(c, name, columns, at)
        columns.append(s.TypedColumn(name, "VARCHAR"))
    if c.at("AS"):
        raise c.error("Of several columns none is renamed.", f"Write: PREDICT {', '.join(f.name for f in columns)}")
    return tuple(columns)


def _refuse_duplicate(c: Cursor, name: str, columns: Sequence[s.TypedColumn], at: Token) -> None:
    if name.lower() in {f.name.lower() for f in columns}:
        raise c.error(f"The column '{name}' is named twice.", "Name it once.", at)


def parse_using(c: Cursor) -> s.Options:
    """[USING …] and the end of the statement."""
    options: s.Options = parse_options(c) if c.skip("USING") else {}
    c.expect_end()
    return options


def refuse_anomaly_detection(c: Cursor) -> s.Statement | None:
    """CREATE ANOMALY DETECTION MODEL."""
    if not c.at("CREATE", "ANOMALY", "DETECTION"):
        return None
    c.next()
    raise c.error(
        "Anomaly detection models are not supported: sqlft's models are language models.",
        "A model that labels rows does it: CREATE MODEL name PREDICT label USING engine = …, prompt_template = '…'",
    )


def create_project(c: Cursor) -> s.Statement:
    """CREATE PROJECT [IF NOT EXISTS] name"""
    if_not_exists = skip_if_not_exists(c, skip_create(c))
    name = c.identifier("a name for the project")
    c.expect_end()
    return s.CreateProject(name, if_not_exists)


def drop_project(c: Cursor) -> s.Statement:
    """DROP PROJECT [IF EXISTS] name"""
    return s.DropProject(*parse_drop(c, lambda: c.identifier("a project's name")))


def use_project(c: Cursor) -> s.Statement | None:
    """USE name; of a longer name it is DuckDB's."""
    c.next()
    if c.token.kind not in NAME_KINDS or c.peek(1).kind != "end":
        return None
    return s.UseProject(c.next().value)


def create_engine(c: Cursor) -> s.Statement:
    """CREATE ML_ENGINE [IF NOT EXISTS] name FROM handler [USING …]"""
    or_replace = skip_create(c)
    if or_replace:
        raise c.error("An engine is not replaced.", "DROP ML_ENGINE IF EXISTS name first.", c.tokens[1])
    if_not_exists = skip_if_not_exists(c, or_replace)
    name = parse_engine_name(c, "a name for the engine")
    c.expect("FROM")
    handler = c.identifier("a handler's name")
    return s.CreateEngine(name, handler, parse_using(c), if_not_exists)


def parse_engine_name(c: Cursor, what: str) -> str:
    """[project.]name; engines belong to no project, so that is left out."""
    parts = c.dotted_name(what)
    if parts[2:] or not isinstance(parts[-1].value, str):
        raise c.error("An engine is named [project.]name.", token=parts[-1].token)
    return parts[-1].value


def create_database(c: Cursor) -> s.Statement | None:
    """CREATE DATABASE name ENGINE …; without an engine it is DuckDB's affair."""
    or_replace = skip_create(c)
    if_not_exists = skip_if_not_exists(c, or_replace)
    if c.token.kind not in NAME_KINDS:
        return None
    name = c.identifier("a name for the database")
    if not c.skip("WITH"):
        c.skip("USING")
    if not (c.at("ENGINE") or c.at("PARAMETERS")):
        return None
    clauses: dict[str, str | s.Options] = {}
    while c.token.kind != "end":
        _parse_database_clause(c, clauses)
    engine, parameters = clauses.get("ENGINE"), clauses.get("PARAMETERS", {})
    if not isinstance(engine, str) or isinstance(parameters, str):
        raise c.unexpected("ENGINE = 'name'")
    return s.CreateDatabase(name, engine, parameters, if_not_exists, or_replace)


def _parse_database_clause(c: Cursor, clauses: dict[str, str | s.Options]) -> None:
    clause = c.token.word
    if clause in clauses:
        raise c.error(f"{clause} is given twice.", "Give it once.")
    if not c.skip("ENGINE"):
        c.expect("PARAMETERS")
    c.skip_op("=")
    if clause == "PARAMETERS":
        clauses[clause] = parse_mapping(c)
    else:
        first = c.token
        engine = parse_value(c) if first.kind in NAME_KINDS else None
        if not isinstance(engine, str) or not engine:
            raise c.error("ENGINE needs a name.", "Write: ENGINE = 'sqlite'", first)
        clauses[clause] = engine
    if c.skip_op(",") and c.token.kind == "end":
        raise c.unexpected("ENGINE", "PARAMETERS")


def drop_model(c: Cursor) -> s.Statement:
    """DROP MODEL|PREDICTOR [IF EXISTS] name[.N]"""
    return s.DropModel(*parse_drop(c, c.name))


def drop_engine(c: Cursor) -> s.Statement:
    """DROP ML_ENGINE [IF EXISTS] name"""
    return s.DropEngine(*parse_drop(c, lambda: parse_engine_name(c, "an engine's name")))


def drop_cache(c: Cursor) -> s.Statement:
    """DROP CACHE [FOR name[.N]]"""
    c.next(2)
    name = c.name() if c.skip("FOR") else None
    c.expect_end()
    return s.DropCache(name)


def rename_model(c: Cursor) -> s.Statement:
    """ALTER MODEL a RENAME TO b, RENAME [MODEL] a TO b"""
    altered = c.next().word == "ALTER"
    if not c.skip_keyword_before_name(*MODEL_WORDS) and altered:
        c.next()
    name = c.name(version=False)
    if altered:
        c.expect("RENAME")
    c.expect("TO")
    to = c.name("the new name", version=False)
    c.expect_end()
    return s.RenameModel(name, to)


def export_model(c: Cursor) -> s.Statement:
    """EXPORT MODEL name[.N] TO 'folder' [(key [=] value, …)] [USING key = value, …]"""
    c.next(2)
    name = c.name()
    c.expect("TO")
    path: str | s.Parameter
    if c.token.kind == "parameter":
        path = c.parameter()
    elif c.token.kind in ("string", "quoted") and c.token.value:
        path = c.next().value
    else:
        raise c.unexpected("a folder's name such as 'my_model'")
    options = parse_copy_options(c) if c.skip_op("(") else {}
    at = c.token
    for key, value in parse_using(c).items():
        _set_once(c, options, key, value, at)
    return s.ExportModel(name, path, options)


def parse_copy_options(c: Cursor) -> dict[str, object]:
    """key value, key = value, or a key alone, which is true: as DuckDB's COPY has it."""
    options: dict[str, object] = {}
    while not options or c.skip_op(","):
        at = c.token
        key = c.identifier("an option such as FORMAT").lower()
        c.skip_op("=")
        _set_once(c, options, key, True if c.token.text in (",", ")") else parse_value(c), at)
    c.expect_op(")")
    return options


def _set_once(c: Cursor, options: dict[str, object], key: str, value: object, at: Token) -> None:
    if key in options:
        raise c.error(f"'{key}' is given twice.", "Give it once.", at)
    options[key] = value


def parse_drop(c: Cursor, read: Callable[[], T]) -> tuple[T, bool]:
    """Steps over DROP and what is dropped: the name behind it, and whether IF EXISTS was there."""
    c.next(2)
    if_exists = c.skip("IF", "EXISTS")
    name = read()
    c.expect_end()
    return name, if_exists


def skip_create(c: Cursor) -> bool:
    """Steps over CREATE [OR REPLACE] and what is created; whether OR REPLACE was there."""
    c.next()
    or_replace = c.skip("OR", "REPLACE")
    c.next()
    return or_replace


def skip_if_not_exists(c: Cursor, or_replace: bool) -> bool:
    if or_replace and c.at("IF", "NOT", "EXISTS"):
        raise c.error("OR REPLACE and IF NOT EXISTS contradict each other.", "Leave one of them out.")
    return c.skip("IF", "NOT", "EXISTS")


def _refuse_time_series(c: Cursor) -> None:
    for clause in (("ORDER", "BY"), ("GROUP", "BY"), ("WINDOW",), ("HORIZON",)):
        if c.at(*clause):
            raise c.error(
                NO_TIME_SERIES, f"Leave {' '.join(clause)} out, and order or group rows in the query that asks."
            )
