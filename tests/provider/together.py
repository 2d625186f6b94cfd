"""Together's dialect: /fine-tunes with a flat body; no metadata, times as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from provider import tuning
from provider.asking import read_json
from provider.state import ApiError, ProviderState

FIELDS = frozenset(
    """training_file validation_file model n_epochs n_checkpoints n_evals batch_size learning_rate lr_scheduler
    warmup_ratio max_grad_norm weight_decay random_seed suffix train_on_inputs training_method training_type
    from_checkpoint wandb_api_key""".split()  # noqa: SIM905
)
DEFAULT_STATUSES = ("pending", "queued", "running", "running", "compressing", "uploading", "completed")
KINDS = {"sft": "supervised", "dpo": "dpo"}
FINAL = ("completed", "error", "cancelled", "user_error")


async def create(state: ProviderState, request: web.Request) -> web.Response:
    """POST /fine-tunes"""
    body = await read_json(request)
    for name in body:
        if name not in FIELDS:
            raise ApiError(400, f"Unknown field: {name}", "unknown_parameter", name)
    if not isinstance(body.get("model"), str) and not body.get("from_checkpoint"):
        raise ApiError(400, "model is required", None, "model")
    if len(body.get("suffix") or "") > 40:
        raise ApiError(400, "suffix is longer than 40 characters", None, "suffix")
    size = body.get("batch_size", "max")
    if size != "max" and not isinstance(size, int):
        raise ApiError(400, "batch_size must be a number or 'max'", None, "batch_size")
    if (body.get("training_type") or {"type": "Lora"}).get("type") not in ("Lora", "Full"):
        raise ApiError(400, "training_type.type", None, "training_type")
    method = body.get("training_method") or {"method": "sft"}
    if method.get("method") not in KINDS or set(method) - {"method", "dpo_beta", "train_on_inputs"}:
        raise ApiError(400, "training_method", None, "training_method")
    kind = KINDS[method["method"]]
    pairs, chars = tuning.parse_training_file(state, body.get("training_file"), kind, "training_file", 1)
    name = state.new_id("ft-")
    epochs = body.get("n_epochs", 1)
    job = {"id": name, "object": "fine-tune", "model": body["model"], "training_file": body["training_file"]}
    tuning.start_job(state, job, body, DEFAULT_STATUSES, pairs, chars // 4 * epochs)
    job["tuned"] = f"me/{body['model'].rpartition('/')[2]}-{body.get('suffix') or 'tuned'}-{name[3:]}"
    return web.json_response(to_json(state, job))


def to_json(state: ProviderState, job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in Together's words; a failed one says why in its events."""
    status = tuning.get_status(state, job, "error")
    return {
        "id": job["id"],
        "object": "fine-tune",
        "status": status,
        "model": job["model"],
        "training_file": job["training_file"],
        "validation_file": job["asked"].get("validation_file"),
        "suffix": job["asked"].get("suffix"),
        "model_output_name": job["tuned"],
        "n_epochs": job["asked"].get("n_epochs", 1),
        "created_at": "2026-05-17T17:35:45.123Z",
        "updated_at": "2026-05-17T18:46:23.456Z",
        "token_count": job["tokens"],
        "total_steps": 4,
        "events": list_events_of(state, job),
    }


def list_events_of(state: ProviderState, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What happened to a job, oldest first."""
    shown = [
        {
            "object": "fine-tune-event",
            "created_at": f"2026-05-17T17:36:{e['data']['step']:02d}.000Z",
            "level": "info",
            "message": f"Training step {e['data']['step']}",
            "type": "training_step",
            "step": e["data"]["step"],
            "total_steps": 4,
            "loss": e["data"]["train_loss"],
        }
        for e in job["events"]
    ]
    if tuning.get_status(state, job, "error") == "error":
        shown.append(
            {"object": "fine-tune-event", "level": "error", "message": state.fails or "it failed", "type": "job_error"}
        )
    return shown


async def retrieve(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine-tunes/{id}"""
    job = tuning.get_job(state, request)
    tuning.advance(state, job, ("completed",))
    return web.json_response(to_json(state, job))


async def list_all(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine-tunes"""
    if not state.list_jobs:
        raise ApiError(404, "not found")
    found = [to_json(state, j) for j in state.jobs.values() if j.get("object") == "fine-tune"]
    return web.json_response({"data": found})


async def events(state: ProviderState, request: web.Request) -> web.Response:
    """GET /fine-tunes/{id}/events"""
    return web.json_response({"data": list_events_of(state, tuning.get_job(state, request))})


async def cancel(state: ProviderState, request: web.Request) -> web.Response:
    """POST /fine-tunes/{id}/cancel: asked for first, done at the next look."""
    job = tuning.get_job(state, request)
    if tuning.get_status(state, job, "error") in FINAL:
        raise ApiError(400, "The job has ended already.")
    job["fate"] = "cancelled"
    return web.json_response({**to_json(state, job), "status": "cancel_requested"})
