"""What the catalog holds: a frozen dataclass for each kind of row, and how it is read from and written to SQLite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from sqlft.errors import CatalogError, did_you_mean

if TYPE_CHECKING:
    import sqlite3


Status = Literal["queued", "training", "complete", "failed", "cancelled", "interrupted"]
RUNNING: tuple[Status, ...] = ("queued", "training")
RESUMABLE: tuple[Status, ...] = ("cancelled", "interrupted", "failed")
DEFAULT_PROJECT = "mindsdb"


class ModelKey(NamedTuple):
    """What a model is known by."""

    name: str
    project: str = DEFAULT_PROJECT

    def __str__(self) -> str:
        """As a statement names it: the default project is left out."""
        return self.name if self.project.lower() == DEFAULT_PROJECT else f"{self.project}.{self.name}"


class VersionKey(NamedTuple):
    """What a version is known by; numbers start at 1 and are never reused."""

    model: ModelKey
    number: int

    def __str__(self) -> str:
        return f"{self.model}.{self.number}"


@dataclass(frozen=True)
class Engine:
    """A configured handler; its options hold references to secrets, never secrets."""

    name: str
    handler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True)
class UserPrice:
    """A price of CREATE PRICE: USD per million tokens, or an hour of the machine; without a model of a whole engine."""

    engine: str
    model: str | None = None
    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    training: float | None = None
    machine_usd_per_hour: float | None = None
    created_at: datetime | None = None


@dataclass(frozen=True)
class Model:
    """A name with numbered versions; `options` are those of USING, secrets as references."""

    key: ModelKey
    engine: str
    base: str
    predict: str
    prompt_template: str
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    active: int | None = None
    created_at: datetime | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the answer's column in training rows: what PREDICT named, and what AS made of it."""
        named = self.options.get("$predict")
        return (self.predict,) if named is None else (named, self.predict)

    @property
    def outputs(self) -> Mapping[str, Any] | None:
        """Columns and JSON schema of typed answers, as CREATE MODEL made them of what was typed."""
        outputs: Mapping[str, Any] | None = self.options.get("$outputs")
        return outputs


@dataclass(frozen=True)
class Version:
    """One state of a model: the base itself, or what a training made of it."""

    key: VersionKey
    status: Status
    parent: int | None = None
    """The version whose artifact training started from; None: the base."""
    tag: str | None = None
    error: str | None = None
    activate: bool = True
    """Whether it becomes the active version when it completes."""
    query: str | None = None
    """The training query as typed."""
    database: str | None = None
    row_count: int | None = None
    data_digest: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Training options as they were applied, defaults included."""
    findings: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Handler and package versions, tokens, steps, final losses …"""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """How far training is: step, total_steps, seconds_left and the latest metrics by name."""
    artifact_path: Path | None = None
    remote_id: str | None = None
    artifact_digest: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = None


class TrainingMetric(NamedTuple):
    """One number that training reported; split is train or valid."""

    version: VersionKey
    step: int
    epoch: float | None
    split: str
    name: str
    value: float
    created_at: datetime


@dataclass(frozen=True)
class View:
    """A view whose query reads a model; DuckDB could not bind it, so it is kept here."""

    name: str
    sql: str
    columns: tuple[str, ...] = ()
    schema: str | None = None
    project: str | None = None
    """Where its models are looked for first; None: the default project."""


@dataclass(frozen=True)
class KnowledgeBase:
    """Texts that queries search; it shares the names of the models.  Its texts are in tables of the user's database."""

    key: ModelKey
    embedding_model: str | None = None
    """The name of a model with `mode = 'embedding'`; None: words are searched only."""
    reranking_model: str | None = None
    content_columns: tuple[str, ...] = ("content",)
    metadata_columns: tuple[str, ...] = ()
    """Known with the first rows where they were not named."""
    id_column: str | None = None
    """None: the id is made of the content."""
    storage: str | None = None
    """The attached database that holds its tables; None in the catalog is the one that the catalog lies beside, whose
    name `Session.find_knowledge_base` fills in."""
    query: str | None = None
    """FROM (SELECT …), as typed: what REFRESH reads."""
    database: str | None = None
    """The database of that query."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The other options of USING, and what ALTER made of them; secrets as references."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Of the last insert: started_at, finished_at, processed_rows, error, process."""
    created_at: datetime | None = None


@dataclass(frozen=True)
class Usage:
    """What one statement asked of one model version."""

    statement_id: str
    version: VersionKey
    statement: str = ""
    rows: int = 0
    distinct_prompts: int = 0
    cached: int = 0
    calls: int = 0
    errors: int = 0
    truncated: int = 0
    """Answers that are cut off at their limit of tokens."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    seconds: float = 0.0
    input_chars: int = 0
    """Characters of the prompts whose tokens were counted."""
    created_at: datetime | None = None


@dataclass(frozen=True)
class Evaluation:
    """The score of a version's answers by a metric on some data, and how it compares with another version there."""

    version: VersionKey
    metric: str
    data_digest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    """The column of right answers; a part of the options too where a model has several outputs.  None: forgetting."""
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    """How low and high were computed: wilson or bootstrap."""
    failed: int = 0
    """Rows without an answer because of an error."""
    seconds: float | None = None
    """Of a question that was asked, on average; so is cost_usd."""
    cost_usd: float | None = None
    baseline: str | None = None
    """The version that this one is held against."""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    test: str | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    statement: str = ""
    place: int = 0
    """Which of the statement's metrics it is, from 0."""
    is_share: bool = False
    """Whether the value is a share of what is right: what SHOW MODELS calls accuracy."""
    created_at: datetime | None = None


class EvaluationRow(NamedTuple):
    """One row of an evaluation; numbers count from 1 in the query's order, the input is JSON."""

    row_number: int
    input: str | None
    actual: str | None
    prediction: str | None
    score: float | None
    error: str | None


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_FIELDS = ("created_at", "started_at", "finished_at")
JSON_FIELDS = (
    *("options", "findings", "details", "progress", "columns", "content_columns", "metadata_columns", "state"),
)
R = TypeVar("R")
VERSION_FIELDS = tuple(f.name for f in fields(Version) if f.name != "key")


def utc_now() -> datetime:
    """This moment, as records have it."""
    return datetime.now(UTC)


def to_micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970 UTC; a datetime without a zone counts as local time."""
    return None if moment is None else (moment.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int | None) -> datetime | None:
    """The datetime, in UTC, of so many microseconds."""
    return None if micros is None else EPOCH + timedelta(microseconds=micros)


def to_json(value: object) -> str:
    """A nested value as JSON; what JSON has no word for is written as text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_convert_value)
    except ValueError:
        return json.dumps(_replace_nan(value), ensure_ascii=False, default=_convert_value)


def record_to_columns(
    record: Engine | UserPrice | Model | View | KnowledgeBase | Usage | Evaluation,
) -> dict[str, object]:
    """A record's fields as column values, but for its key; one that is made without a time is made now."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in ("key", "version")}
    if "created_at" in values:
        values["created_at"] = values["created_at"] or utc_now()
    return {name: _to_column(value) for name, value in values.items()}


def version_to_columns(folder: Path, values: Mapping[str, object]) -> dict[str, object]:
    """Fields of Version as column values; an artifact's path is kept relative so that the folder can move."""
    for name in values:
        if name not in VERSION_FIELDS:
            raise CatalogError(f"A version has no field '{name}'.{did_you_mean(name, VERSION_FIELDS)}")
    columns = {name: _to_column(value) for name, value in values.items()}
    path = values.get("artifact_path")
    if isinstance(path, Path | str):
        path = Path(path)
        columns["artifact_path"] = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    return columns


def _to_column(value: object) -> object:
    if isinstance(value, datetime):
        return to_micros(value)
    return to_json(value) if isinstance(value, (Mapping, list, tuple)) else value


def record_from_row(cls: type[R], row: sqlite3.Row, **known: object) -> R:
    """A record of this class from a row; `known` are fields that have no column of their name."""
    make: Callable[..., R] = cls
    values = {name: _from_column(name, row[name]) for name in cls.__annotations__ if name not in known}
    return make(**values, **known)


def version_from_row(row: sqlite3.Row, folder: Path) -> Version:
    """A Version from a row of versions that also has its model's name and project."""
    path = None if row["artifact_path"] is None else folder / row["artifact_path"]
    return record_from_row(Version, row, key=version_key_from_row(row), artifact_path=path)


def version_key_from_row(row: sqlite3.Row) -> VersionKey:
    """The key of a row that has name, project and number."""
    return VersionKey(ModelKey(row["name"], row["project"]), row["number"])


def model_from_row(row: sqlite3.Row) -> Model:
    """A Model from a row of models."""
    return record_from_row(Model, row, key=ModelKey(row["name"], row["project"]))


def metric_from_row(row: sqlite3.Row) -> TrainingMetric:
    """A TrainingMetric; SQLite keeps a NaN as NULL."""
    value = math.nan if row["value"] is None else row["value"]
    created_at = from_micros(row["created_at"]) or EPOCH
    return TrainingMetric(
        version_key_from_row(row), row["step"], row["epoch"], row["split"], row["metric"], value, created_at
    )


def _from_column(name: str, value: object) -> object:
    if isinstance(value, int) and name in TIME_FIELDS:
        return from_micros(value)
    if isinstance(value, str) and name in JSON_FIELDS:
        parsed = json.loads(value)
        return tuple(parsed) if isinstance(parsed, list) else parsed
    return bool(value) if name == "activate" else value


def _replace_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _replace_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nan(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _convert_value(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)
