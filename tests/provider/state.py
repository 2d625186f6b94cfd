"""What the provider remembers, and what the test may set; plain attributes, read and written from any thread."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ApiError(Exception):
    """A request that the API would not take: (HTTP status, message, code, param)."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """As OpenAI writes errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class RecordedRequest(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float
    """time.monotonic() of its arrival."""

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class InjectedFault:
    """What goes wrong, for which requests, how often."""

    kind: str
    """A status ('429', '500', '401' …) or one of faults.KINDS."""
    times: int | None = 1
    """How many requests it hits; None: all."""
    path: str = "/chat/completions"
    """Only where the path has this in it."""
    content: str = ""
    """Only where the body has this in it."""
    method: str = ""
    rate: float = 1.0
    """Share of the matching requests that it hits, drawn with the provider's seed."""
    skip: int = 0
    """So many matching requests go well first."""
    after: bool = False
    """The request is carried out, and only the answer is spoilt."""
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "scripted"
    code: str | None = None
    seconds: float = 0.5
    """For 'slow' and 'hang'."""
    hits: int = 0

    def applies_to(self, call: RecordedRequest, draw: random.Random) -> bool:
        """Whether this request is hit."""
        if self.times is not None and self.hits >= self.times:
            return False
        if self.path not in call.path or (self.method and self.method != call.method):
            return False
        if self.content and self.content.encode() not in call.body:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.rate < 1.0 and draw.random() >= self.rate:
            return False
        self.hits += 1
        return True


@dataclass
class ProviderState:
    """Everything between requests."""

    key: str = "sk-test-key"
    """The one key that is right; '' lets everybody in."""
    latency: float = 0.0
    """Seconds before every answer of a model."""
    seed: int = 0
    models: list[str] = field(
        default_factory=lambda: ["gpt-4o-mini", "gpt-3.5-turbo", "gpt-6-luna", "tiny", "text-embedding-3-small"]
    )
    any_model: bool = True
    """Whether unknown models answer too; else 404 model_not_found."""
    answers: dict[str, str] = field(default_factory=dict)
    """Answers by the last message, in place of what `answer` says."""
    answer: Callable[[Sequence[Mapping[str, Any]], str], str] | None = None
    tuned: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each tuned model has learned: last user message to answer."""
    json_schema: bool = True
    """Whether response_format json_schema is known; else 400."""
    extra_fields: set[str] = field(default_factory=set)
    """Further fields that chat completions take: vLLM's."""

    file_polls: int = 1
    """How often a file says 'uploaded' before 'processed'."""
    list_files: bool = True
    statuses: list[str] | None = None
    """What a job says at each look, the last for ever; None: the dialect's usual way to success."""
    batch_statuses: list[str] = field(default_factory=lambda: ["validating", "in_progress", "finalizing", "completed"])
    hold: bool = False
    """While it is true no job and no batch gets any further."""
    fails: str | None = None
    """Jobs fail with this reason, where they would succeed."""
    list_jobs: bool = True
    """Whether jobs can be listed; else 404."""
    echo_metadata: bool = True
    """Whether a job shows the metadata that it was made with."""
    text_times: bool = False
    """created_at as ISO text and not as a number."""
    least_rows: int = 10
    batch_errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Rows of a batch that fail: last message to (status, message)."""
    batch_drops: set[str] = field(default_factory=set)
    """Rows of a batch that are in neither output file."""

    calls: list[RecordedRequest] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    """Completions that were made, by the last message."""
    paid_batch: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Requests answered with 429 by the limit."""
    faults: list[InjectedFault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was sent that the API does not know: every 400 of ours."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Jobs of every dialect by id, as created; those that vanished are gone."""
    created: list[str] = field(default_factory=list)
    """Ids of all jobs that were ever made."""
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployed: dict[str, str] = field(default_factory=dict)
    """Azure's deployments: name to model; empty: every name is a model's."""
    loras: dict[str, str] = field(default_factory=dict)
    """vLLM's adapters: name to path."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self._ids = itertools.count(1)

    def new_id(self, prefix: str) -> str:
        """The next id of a kind."""
        return f"{prefix}{next(self._ids):06d}"

    def count(self, path: str, method: str = "") -> int:
        """How many requests came for paths with this in them."""
        return sum(path in c.path and (not method or c.method == method) for c in list(self.calls))
