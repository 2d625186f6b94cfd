"""The catalog as tables, `sqlft.models` and the others: columns, types, and the query behind each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
    """A table: the query, and a type for each of its columns."""

    query: str
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
_VERSION_ID = "m.name AS model, m.project AS project, t.number AS version"

TABLE_DEFINITIONS = {
    "engines": TableDefinition(
        "SELECT name, handler, options, created_at FROM engines ORDER BY folded",
        "name text, handler text, options options, created_at time",
    ),
    "models": TableDefinition(
        """SELECT name, project, engine, base, predict, prompt_template, system, active AS active_version,
                  (SELECT count(*) FROM versions v WHERE v.model_id = id) AS versions, options, created_at
           FROM models ORDER BY folded_project, folded""",
        """name text, project text, engine text, base text, predict text, prompt_template text, system text,
           active_version integer, versions integer, options options, created_at time""",
    ),
    "versions": TableDefinition(
        f"""SELECT {_VERSION_ID}, t.status, m.active IS t.number AS active, m.engine, m.base, t.parent, t.tag, t.error,
                   t.row_count, t.data_digest, t.query, t."database", t.options, t.findings, t.details, t.progress,
                   t.artifact_path AS artifact, t.artifact_digest, t.remote_id,
                   t.created_at, t.started_at, t.finished_at, t.seconds
            FROM versions t {_JOIN_MODELS} ORDER BY m.folded_project, m.folded, t.number""",
        """model text, project text, version integer, status text, active boolean, engine text, base text,
           parent integer, tag text, error text, row_count integer, data_digest text, query text, database text,
           options options, findings json, details json, progress json, artifact path, artifact_digest text,
           remote_id text, created_at time, started_at time, finished_at time, seconds number""",
    ),
    "metrics": TableDefinition(
        f"""SELECT {_VERSION_ID}, t.step, t.epoch, t.split, t.name, t.value, t.created_at
            FROM metrics t {_JOIN_MODELS} ORDER BY m.folded_project, m.folded, t.number, t.step, t.split, t.name""",
        """model text, project text, version integer, step integer, epoch number, split text, name text,
           value metric, created_at time""",
    ),
    "usage": TableDefinition(
        """SELECT created_at, statement_id, statement, name AS model, project, number AS version, "rows",
                  distinct_prompts, cached, calls, errors, truncated, input_tokens, output_tokens, cost_usd, seconds
           FROM usage ORDER BY created_at, rowid""",
        """created_at time, statement_id text, statement text, model text, project text, version integer,
           rows integer, distinct_prompts integer, cached integer, calls integer, errors integer,
           truncated integer, input_tokens integer, output_tokens integer, cost_usd number, seconds number""",
    ),
    "evaluations": TableDefinition(
        f"""SELECT {_VERSION_ID}, t.answer, t.metric, t.data_digest, t.options, t.value, t.n, t.low, t.high, t.interval,
                   t.failed, t.seconds, t.cost_usd, t.baseline, t.difference, t.difference_low, t.difference_high,
                   t.p_value, t.test, t.wins, t.ties, t.losses, t.statement, t.created_at
            FROM evaluations t {_JOIN_MODELS} ORDER BY t.created_at, m.folded_project, m.folded, t.number, t.place""",
        """model text, project text, version integer, answer text, metric text, data_digest text, options json,
           value number, n integer, low number, high number, interval text, failed integer, seconds number,
           cost_usd number, baseline text, difference number, difference_low number, difference_high number,
           p_value number, test text, wins integer, ties integer, losses integer, statement text, created_at time""",
    ),
    "evaluation_rows": TableDefinition(
        f"""SELECT {_VERSION_ID}, e.answer, t.metric, t.data_digest, t.options, t.row_number, t.input, t.actual,
                   t.prediction, t.score, t.error
            FROM evaluation_rows t {_JOIN_MODELS}
            JOIN evaluations e USING (model_id, number, metric, data_digest, options)
            ORDER BY m.folded_project, m.folded, t.number, t.data_digest, t.metric, t.options, t.row_number""",
        """model text, project text, version integer, answer text, metric text, data_digest text, options json,
           row_number integer, input json, actual text, prediction text, score number, error text""",
    ),
    "views": TableDefinition(
        """SELECT name, "schema", sql, coalesce(project, 'mindsdb') AS project FROM views ORDER BY folded""",
        "name text, schema text, sql text, project text",
    ),
    "prices": TableDefinition(
        """SELECT engine, model, input, output, cached_input, training, machine_usd_per_hour, created_at
           FROM prices ORDER BY folded_engine, folded_model""",
        """engine text, model text, input number, output number, cached_input number, training number,
           machine_usd_per_hour number, created_at time""",
    ),
    "costs": TableDefinition(
        """SELECT day, model, project, version, sum(statements) AS statements, sum("rows") AS "rows",
                  sum(calls) AS calls, sum(cached) AS cached, sum(errors) AS errors,
                  sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
                  total(seconds) AS seconds,
                  CASE WHEN sum(unpriced) = 0 OR total(cost_usd) > 0 THEN sum(cost_usd) END AS cost_usd,
                  sum(unpriced) AS unpriced,
                  sum(training_seconds) AS training_seconds, sum(training_cost_usd) AS training_cost_usd
           FROM (
             SELECT date(created_at / 1000000, 'unixepoch', 'localtime') AS day, name AS model, project,
                    number AS version, 1 AS statements, "rows", calls, cached, errors, input_tokens, output_tokens,
                    seconds, cost_usd, cost_usd IS NULL AND calls > 0 AS unpriced,
                    NULL AS training_seconds, NULL AS training_cost_usd
             FROM usage
             UNION ALL
             SELECT date(coalesce(t.finished_at, t.created_at) / 1000000, 'unixepoch', 'localtime'), m.name, m.project,
                    t.number, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, t.seconds, json_extract(t.details, '$.cost_usd')
             FROM versions t JOIN models m ON m.id = t.model_id
             WHERE t.seconds IS NOT NULL AND t.finished_at IS NOT NULL)
           GROUP BY day, model, project, version ORDER BY day, project, model, version""",
        """day day, model text, project text, version integer, statements integer, rows integer, calls integer,
           cached integer, errors integer, input_tokens integer, output_tokens integer, seconds number,
           cost_usd number, unpriced integer, training_seconds number, training_cost_usd number""",
    ),
}


def make_schema(columns: str) -> pa.Schema:
    """The schema of columns as a table definition has them: names and types, `[]` behind a type for a list.

    >>> make_schema("NAME text, RANK integer[]").types
    [DataType(string), ListType(list<item: int64>)]
    """
    fields = (column.split() for column in columns.split(","))
    return pa.schema([(name, _arrow_type(kind)) for name, kind in fields])


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
    query, columns = TABLE_DEFINITIONS[name]
    types = dict(column.split() for column in columns.split(","))
    rows = [
        {column: _convert_value(row[column], kind, folder) for column, kind in types.items()}
        for row in db.fetch_rows(query)
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
    """A moment as the clock on the wall has it: what now() compares with."""
    return None if moment is None else moment.astimezone().replace(tzinfo=None)
