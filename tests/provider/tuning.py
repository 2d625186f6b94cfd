"""fine_tuning/jobs in OpenAI's shape, and what its dialects share: rows, learning by heart, the way of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from provider import files
from provider.asking import read_json
from provider.state import ApiError, ProviderState

FIELDS = frozenset(
    """model training_file hyperparameters integrations metadata method seed suffix validation_file""".split()  # noqa: SIM905
)
HYPERPARAMETER_RANGES = {
    "n_epochs": (1, 50),
    "batch_size": (1, 256),
    "learning_rate_multiplier": (1e-9, 1e9),
    "beta": (0, 2),
}
DEFAULT_STATUSES = ("validating_files", "queued", "running", "running", "succeeded")
FINAL = ("succeeded", "failed", "cancelled")
RUNNING = ("running", "JOB_STATE_RUNNING")


async def create(state: ProviderState, request: web.Request) -> web.Response:
    """POST /fine_tuning/jobs"""
    body = await read_json(request)
    for name in body:
        if name not in FIELDS:
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", "unknown_parameter", name)
    if not isinstance(body.get("model"), str):
        raise ApiError(400, "you must provide a model parameter", param="model")
    if "embedding" in body["model"]:
        raise ApiError(400, f"Model {body['model']} is not available for fine-tuning.", "model_not_available", "model")
    metadata = body.get("metadata") or {}
    if len(metadata) > 16 or any(len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in metadata.items()):
        raise ApiError(400, "Invalid 'metadata'.", "invalid_value", "metadata")
    if len(body.get("suffix") or "") > 64:
        raise ApiError(400, "Invalid 'suffix': string too long.", "string_above_max_length", "suffix")
    kind, given = parse_method(body)
    check_hyperparameters(given)
    pairs, chars = parse_training_file(state, body.get("training_file"), kind, "training_file", state.least_rows)
    if body.get("validation_file"):
        parse_training_file(state, body["validation_file"], kind, "validation_file", 1)
    epochs = given.get("n_epochs", "auto")
    epochs = 3 if epochs == "auto" else epochs
    name = state.new_id("ftjob-")
    job = {
        "id": name,
        "object": "fine_tuning.job",
        "created_at": 1760000000,
        "model": body["model"],
        "training_file": body["training_file"],
        "validation_file": body.get("validation_file"),
        "hyperparameters": {"n_epochs": epochs, "batch_size": 1, "learning_rate_multiplier": 1.8, **given},
        "metadata": metadata,
        "method": {"type": kind, kind: {"hyperparameters": given}},
        "seed": body.get("seed", 1),
        "organization_id": "org-1",
        "result_files": [],
        "user_provided_suffix": body.get("suffix"),
    }
    start_job(state, job, body, DEFAULT_STATUSES, pairs, chars // 4 * epochs)
    job["tuned"] = f"ft:{body['model']}:org:{body.get('suffix') or ''}:{name[6:]}"
    return web.json_response(to_json(state, job))


def parse_method(body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(supervised or dpo, hyperparameters); ApiError."""
    method = body.get("method")
    if method is None:
        return "supervised", dict(body.get("hyperparameters") or {})
    kind = method.get("type") if isinstance(method, Mapping) else None
    if kind not in ("supervised", "dpo") or set(method) - {"type", kind}:
        raise ApiError(400, "Invalid 'method'.", "invalid_value", "method")
    if body.get("hyperparameters") is not None:
        raise ApiError(400, "Give 'hyperparameters' within 'method' only.", "invalid_value", "hyperparameters")
    return kind, dict((method.get(kind) or {}).get("hyperparameters") or {})


def check_hyperparameters(given: Mapping[str, Any]) -> None:
    """ApiError for hyperparameters that are unknown or out of range."""
    for name, value in given.items():
        if name not in HYPERPARAMETER_RANGES:
            raise ApiError(400, f"Unknown hyperparameter: {name}", "unknown_parameter", name)
        low, high = HYPERPARAMETER_RANGES[name]
        if value != "auto" and (isinstance(value, (str, bool)) or not low <= value <= high):
            raise ApiError(400, f"Invalid '{name}': {value}.", "invalid_value", name)


def parse_training_file(
    state: ProviderState, name: Any, kind: str, param: str, least: int
) -> tuple[dict[str, str], int]:
    """(last user message to answer, characters) of a training file; ApiError."""
    rows = files.parse_jsonl(files.get_file(state, name, "fine-tune", param)["content"])
    return parse_rows(rows, kind, param, least)


def parse_rows(rows: Sequence[Any], kind: str, param: str, least: int) -> tuple[dict[str, str], int]:
    """The same of rows."""
    if len(rows) < least:
        raise ApiError(
            400,
            f"Training file has {len(rows)} example(s), but must have at least {least} examples",
            "invalid_n_examples",
            param,
        )
    pairs, chars = {}, 0
    for number, row in enumerate(rows, 1):
        try:
            messages = _get_preference_messages(row) if kind == "dpo" else _get_messages(row)
        except (KeyError, TypeError, AssertionError) as e:
            raise ApiError(400, f"Invalid file format. Line {number}: {e!r}", "invalid_training_file", param) from None
        pairs[messages[-2]["content"]] = messages[-1]["content"]
        chars += sum(len(m["content"]) for m in messages)
    return pairs, chars


def _get_messages(row: Any) -> list[dict[str, str]]:
    assert not set(row) - {"messages", "tools", "parallel_tool_calls"}, "unknown keys"
    return _check_conversation(row["messages"])


def _get_preference_messages(row: Any) -> list[dict[str, str]]:
    assert set(row) == {"input", "preferred_output", "non_preferred_output"}, "keys"
    assert row["preferred_output"] != row["non_preferred_output"], "outputs are the same"
    return _check_conversation([*row["input"]["messages"], *row["preferred_output"]])


def _check_conversation(messages: Any) -> list[dict[str, str]]:
    assert len(messages) >= 2, "too few messages"
    for message in messages:
        assert message["role"] in ("system", "user", "assistant"), f"role {message['role']}"
        assert isinstance(message["content"], str), "content"
        assert not set(message) - {"role", "content", "name", "weight"}, "unknown keys in a message"
    assert messages[-1]["role"] == "assistant", "the last message must be from the assistant"
    assert messages[-1]["content"], "an empty answer"
    return list(messages)


def start_job(
    state: ProviderState, job: dict[str, Any], body: Any, way: Sequence[str], pairs: Mapping[str, str], tokens: int
) -> None:
    """Keep a new job: `asked` is the body that made it, `way` what it says from look to look."""
    job |= {"asked": body, "way": list(state.statuses or way), "look": 0, "events": [], "pairs": dict(pairs)}
    job |= {"tokens": tokens, "fate": None, "tuned": None}
    state.jobs[job["id"]] = job
    state.created.append(job["id"])


def get_status(state: ProviderState, job: Mapping[str, Any], failed: str = "failed") -> str:
    """What a job says now."""
    if job["fate"] is not None:
        return str(job["fate"])
    status = job["way"][min(job["look"], len(job["way"]) - 1)]
    return failed if state.fails and status == job["way"][-1] and job["look"] else str(status)


def advance(state: ProviderState, job: dict[str, Any], done: Sequence[str]) -> None:
    """A look at a job: it gets further, reports it, and learns when it is through."""
    if state.hold or job["fate"] is not None:
        return
    if job["look"] < len(job["way"]) - 1:
        job["look"] += 1
    status = get_status(state, job)
    if status in RUNNING:
        step = sum(e["type"] == "metrics" for e in job["events"]) + 1
        job["events"].append(make_event(state, step))
    if status in done:
        state.tuned[job["tuned"]] = job["pairs"]


def make_event(state: ProviderState, step: int, total: int = 4) -> dict[str, Any]:
    """What a running job reports of a step."""
    data = {"step": step, "total_steps": total, "train_loss": 1 / step, "train_mean_token_accuracy": 1 - 0.5 / step}
    data |= {"valid_loss": 1.5 / step, "valid_mean_token_accuracy": 1 - 0.6 / step}
    return {
        "object": "fine_tuning.job.event",
        "id": state.new_id("ftevent-"),
        "created_at": 1760000000 + step,
        "level": "info",
        "message": f"Step {step}/{total}: training loss={1 / step:.2f}, validation loss={1.5 / step:.2f}",
        "type": "metrics",
        "data": data,
    }


def to_json(state: ProviderState, job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in OpenAI's words."""
    status = get_status(state, job)
    hidden = ("asked", "way", "look", "events", "pairs", "tokens", "fate", "tuned")
    shown = {k: v for k, v in job.items() if k not in hidden}
    if not state.echo_metadata:
        del shown["metadata"]
    if state.text_times:
        shown["created_at"] = "2026-05-01T12:00:00Z"
    error = {"code": "invalid_training_file", "message": state.fails, "param": "training_file"}
    over = status in FINAL
    return {
        **shown,
        "status": status,
        "error": error if status == "failed" else None,
        "fine_tuned_model": job["tuned"] if status == "succeeded" else None,
        "trained_tokens": job["tokens"] if status == "succeeded" else None,
        "finished_at": (shown["created_at"]) if over else None,
        "estimated_finish": None,
    }


def get_job(state: ProviderState, request: web.Request) -> dict[str, Any]:
    """The job that a path names; ApiError."""
    found = state.jobs.get(request.match_info["id"])
    if found is None:
        raise ApiError(404, f"Could not find fine tune: {request.match_info['id']}", "fine_tune_not_found", "id")
    return found


async def retrieve(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine_tuning/jobs/{id}"""
    job = get_job(state, request)
    advance(state, job, ("succeeded",))
    return web.json_response(to_json(state, job))


async def list_all(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine_tuning/jobs, newest first, in pages of `limit` after `after`."""
    if not state.list_jobs:
        raise ApiError(404, f"Invalid URL (GET {request.path})")
    found = [j for j in reversed(state.jobs.values()) if j.get("object") == "fine_tuning.job"]
    ids = [j["id"] for j in found]
    after = request.query.get("after")
    start = ids.index(after) + 1 if after in ids else 0
    limit = int(request.query.get("limit", 20))
    page = [to_json(state, j) for j in found[start : start + limit]]
    more = start + limit < len(found)
    return web.json_response({"object": "list", "data": page, "has_more": more})


async def events(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine_tuning/jobs/{id}/events, newest first."""
    found = list(reversed(get_job(state, request)["events"]))
    ids = [e["id"] for e in found]
    after = request.query.get("after")
    start = ids.index(after) + 1 if after in ids else 0
    limit = int(request.query.get("limit", 20))
    more = start + limit < len(found)
    return web.json_response({"object": "list", "data": found[start : start + limit], "has_more": more})


async def checkpoints(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine_tuning/jobs/{id}/checkpoints"""
    get_job(state, request)
    return web.json_response({"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None})


async def cancel(state: ProviderState, request: web.Request) -> web.Response:
    """POST /fine_tuning/jobs/{id}/cancel"""
    job = get_job(state, request)
    if get_status(state, job) in FINAL:
        raise ApiError(400, f"Job has already completed: {job['id']}", None, "id")
    job["fate"] = "cancelled"
    return web.json_response(to_json(state, job))
