"""The catalog as tables, `sqlft.models` and the others: columns, types, and the query behind each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sqlft.catalog import records
from sqlft.catalog.database import CatalogDatabase
from sqlft.catalog.records import RUNNING, ModelKey, Version, VersionKey
from sqlft.errors import NotFound, did_you_mean
from sqlft.secrets import references


class TableDefinition(NamedTuple):
    """A table: what follows FROM, in which `t` is the catalog's table, and its columns.

    A column is `name type`, or `name type = expression` where it is not the column of that name in `t`.
    """

    source: str
    columns: str


_ARROW_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "json": pa.string(),
    "options": pa.string(),
    "path": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "metric": pa.float64(),
    "boolean": pa.bool_(),
    # Local time without a zone: compares rightly with now(), and needs no pytz as TIMESTAMP WITH TIME ZONE does.
    "time": pa.timestamp("us"),
    "day": pa.date32(),
}

_JOIN_MODELS = "JOIN models m ON m.id = t.model_id"
_VERSION_ID = "model text = m.name, project text = m.project, version integer = t.number"

TABLE_DEFINITIONS = {
    "engines": TableDefinition(
        "engines t ORDER BY folded", "name text, handler text, options options, created_at time"
    ),
    "models": TableDefinition(
        "models t ORDER BY folded_project, folded",
        """name text, project text, engine text, base text, predict text, prompt_template text, system text,
           active_version integer = t.active,
           versions integer = (SELECT count(*) FROM versions v WHERE v.model_id = t.id),
           options options, created_at time""",
    ),
    "versions": TableDefinition(
        f"versions t {_JOIN_MODELS} ORDER BY m.folded_project, m.folded, t.number",
        f"""{_VERSION_ID}, status text, active boolean = m.active IS t.number, engine text = m.engine,
            base text = m.base, parent integer, tag text, error text, row_count integer, data_digest text, query text,
            database text, options options, findings json, details json, progress json,
            artifact path = t.artifact_path, artifact_digest text, remote_id text, created_at time, started_at time,
            finished_at time, seconds number""",
    ),
    "metrics": TableDefinition(
        f"metrics t {_JOIN_MODELS} ORDER BY m.folded_project, m.folded, t.number, t.step, t.split, t.name",
        f"{_VERSION_ID}, step integer, epoch number, split text, name text, value metric, created_at time",
    ),
    "usage": TableDefinition(
        "usage t ORDER BY created_at, rowid",
        """created_at time, statement_id text, statement text, model text = t.name, project text,
           version integer = t.number, rows integer, distinct_prompts integer, cached integer, calls integer,
           errors integer, truncated integer, input_tokens integer, output_tokens integer, cost_usd number,
           seconds number""",
    ),
    "evaluations": TableDefinition(
        f"evaluations t {_JOIN_MODELS} ORDER BY t.created_at, m.folded_project, m.folded, t.number, t.place",
        f"""{_VERSION_ID}, answer text, metric text, data_digest text, options json, value number, n integer,
            low number, high number, interval text, failed integer, seconds number, cost_usd number, baseline text,
            difference number, difference_low number, difference_high number, p_value number, test text,
            wins integer, ties integer, losses integer, statement text, created_at time""",
    ),
    "evaluation_rows": TableDefinition(
        f"""evaluation_rows t {_JOIN_MODELS}
            JOIN evaluations e USING (model_id, number, metric, data_digest, options)
            ORDER BY m.folded_project, m.folded, t.number, t.data_digest, t.metric, t.options, t.row_number""",
        f"""{_VERSION_ID}, answer text = e.answer, metric text, data_digest text, options json, row_number integer,
            input json, actual text, prediction text, score number, error text""",
    ),
    "views": TableDefinition(
        "(SELECT *, coalesce(project, 'mindsdb') AS its_project FROM views) t ORDER BY folded",
        "name text, schema text, sql text, project text = t.its_project",
    ),
    "knowledge_bases": TableDefinition(
        "knowledge_bases t ORDER BY folded_project, folded",
        """name text, project text, embedding_model text, reranking_model text, content_columns json,
           metadata_columns json, id_column text, storage text, query text, database text, options options, state json,
           created_at time""",
    ),
    "prices": TableDefinition(
        "prices t ORDER BY folded_engine, folded_model",
        """engine text, model text, input number, output number, cached_input number, training number,
           machine_usd_per_hour number, created_at time""",
    ),
    "costs": TableDefinition(
        """(SELECT date(created_at / 1000000, 'unixepoch', 'localtime') AS day, name AS model, project,
                   number AS version, 1 AS statements, "rows", calls, cached, errors, input_tokens, output_tokens,
                   seconds, cost_usd, cost_usd IS NULL AND calls > 0 AS unpriced,
                   NULL AS training_seconds, NULL AS training_cost_usd
            FROM usage
            UNION ALL
            SELECT date(coalesce(v.finished_at, v.created_at) / 1000000, 'unixepoch', 'localtime'), m.name, m.project,
                   v.number, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, v.seconds, json_extract(v.details, '$.cost_usd')
            FROM versions v JOIN models m ON m.id = v.model_id
            WHERE v.seconds IS NOT NULL AND v.finished_at IS NOT NULL) t
           GROUP BY day, model, project, version ORDER BY day, project, model, version""",
        """day day, model text, project text, version integer, statements integer = sum(statements),
           rows integer = sum("rows"), calls integer = sum(calls), cached integer = sum(cached),
           errors integer = sum(errors), input_tokens integer = sum(input_tokens),
           output_tokens integer = sum(output_tokens), seconds number = total(seconds),
           cost_usd number = CASE WHEN sum(unpriced) = 0 OR total(cost_usd) > 0 THEN sum(cost_usd) END,
           unpriced integer = sum(unpriced), training_seconds number = sum(training_seconds),
           training_cost_usd number = sum(training_cost_usd)""",
    ),
}


def make_schema(columns: str) -> pa.Schema:
    """The schema of columns as a table definition has them: names and types, `[]` behind a type for a list.

    >>> make_schema("NAME text, RANK integer[]").types
    [DataType(string), ListType(list<item: int64>)]
    """
    return pa.schema([(name, _arrow_type(kind)) for name, kind, _ in _parse_columns(columns)])


def _parse_columns(columns: str) -> Iterator[tuple[str, str, str]]:
    """The name, the type and the expression of each column."""
    for column in columns.split(","):
        declaration, _, expression = column.partition(" = ")
        name, kind = declaration.split()
        yield name, kind, expression.strip() or f't."{name}"'


def _arrow_type(kind: str) -> pa.DataType:
    plain = kind.removesuffix("[]")
    return _ARROW_TYPES[kind] if plain == kind else pa.list_(_ARROW_TYPES[plain])


def columns_of(name: str) -> dict[str, str]:
    """The columns of `sqlft.<name>` with their types."""
    return {field.name: str(field.type) for field in make_schema(TABLE_DEFINITIONS[name].columns)}


def read_table(db: CatalogDatabase, folder: Path, name: str, dead: Mapping[VersionKey, Version]) -> pa.Table:
    """`sqlft.<name>`; without rows its columns have their types all the same.

    `dead` versions are interrupted, which a full or read-only disk may not have let anybody write down.
    """
    if name not in TABLE_DEFINITIONS:
        names = list(TABLE_DEFINITIONS)
        raise NotFound(f"There is no table sqlft.{name}.{did_you_mean(name, names)}", f"There are: {', '.join(names)}.")
    source, columns = TABLE_DEFINITIONS[name]
    parsed = list(_parse_columns(columns))
    selected = ", ".join(f'{expression} AS "{column}"' for column, _, expression in parsed)
    rows = [
        {column: _convert_value(row[column], kind, folder) for column, kind, _ in parsed}
        for row in db.fetch_rows(f"SELECT {selected} FROM {source}")
    ]
    for row in rows if dead else ():
        version = dead.get(VersionKey(ModelKey(row["model"], row["project"]), row["version"]))
        if version is not None and row["status"] in RUNNING:
            row |= {"status": version.status, "error": version.error}
    return pa.Table.from_pylist(rows, schema=make_schema(columns))


def _convert_value(value: Any, kind: str, folder: Path) -> Any:
    if value is None:
        return math.nan if kind == "metric" else None
    if kind == "time":
        return to_local_time(records.from_micros(value))
    if kind == "day":
        return date.fromisoformat(value)
    if kind == "options":
        return records.to_json(references.redact_options(json.loads(value)))
    if kind == "path":
        return str(folder / value)
    return bool(value) if kind == "boolean" else value


def to_local_time(moment: datetime | None) -> datetime | None:
    """A moment in local time: what now() compares with."""
    return None if moment is None else moment.astimezone().replace(tzinfo=None)
