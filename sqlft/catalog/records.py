"""What the catalog holds: a frozen dataclass a kind of row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["queued", "training", "complete", "failed", "cancelled", "interrupted"]
RUNNING: tuple[Status, ...] = ("queued", "training")
RESUMABLE: tuple[Status, ...] = ("cancelled", "interrupted", "failed")


class ModelKey(NamedTuple):
    """What a model is known by."""

    name: str
    project: str = "mindsdb"

    def __str__(self) -> str:
        """As a statement names it: the default project is left out."""
        return self.name if self.project.lower() == "mindsdb" else f"{self.project}.{self.name}"


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
class OwnPrice:
    """What CREATE PRICE said: USD per million tokens, or an hour of the machine; without a model of a whole engine."""

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
    """A name with numbered versions; `options` is what USING said, secrets as references."""

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
        found: Mapping[str, Any] | None = self.options.get("$outputs")
        return found


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


class Metric(NamedTuple):
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
    """What a metric said of a version's answers on some data, and how it compares with another version there."""

    version: VersionKey
    metric: str
    data_digest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    """The column of right answers; a part of the options too where a model has several outputs."""
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    """How low and high were found: wilson or bootstrap."""
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
