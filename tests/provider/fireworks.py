"""Fireworks' dialect: datasets, supervisedFineTuningJobs below an account, deployedModels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from provider import files, tuning
from provider.asking import read_json
from provider.state import ApiError, ProviderState

FIELDS = frozenset(
    """displayName dataset evaluationDataset baseModel warmStartFrom outputModel epochs learningRate loraRank
    maxContextLength batchSize earlyStop isTurbo evalAutoCarveout jinjaTemplate wandbConfig nodes region
    learningRateWarmupSteps gradientAccumulationSteps""".split()  # noqa: SIM905
)
DEFAULT_STATUSES = ("CREATING", "PENDING", "VALIDATING", "RUNNING", "RUNNING", "COMPLETED")
FINAL = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EARLY_STOPPED")


async def make_dataset(state: ProviderState, request: web.Request) -> web.Response:
    """POST …/datasets"""
    body = await read_json(request)
    name = body.get("datasetId")
    if not name or set(body) - {"datasetId", "dataset"} or "dataset" not in body:
        raise ApiError(400, "datasetId and dataset are required")
    if name in state.datasets:
        raise ApiError(409, f"dataset {name} already exists")
    state.datasets[name] = {"name": f"accounts/{request.match_info['account']}/datasets/{name}", "polls": 0}
    return web.json_response({**state.datasets[name], "state": "UPLOADING"})


async def fill_dataset(state: ProviderState, request: web.Request) -> web.Response:
    """POST …/datasets/{id}:upload"""
    kept = get_dataset(state, request.match_info["id"])
    form = await files.parse_form(request)
    if "file" not in form:
        raise ApiError(400, "file is required")
    kept["content"] = form["file"][1]
    files.parse_jsonl(kept["content"])
    return web.json_response({})


async def dataset(state: ProviderState, request: web.Request) -> web.Response:
    """GET …/datasets/{id}"""
    kept = get_dataset(state, request.match_info["id"])
    kept["polls"] += 1
    ready = "content" in kept and kept["polls"] >= state.file_polls
    return web.json_response({"name": kept["name"], "state": "READY" if ready else "UPLOADING"})


def get_dataset(state: ProviderState, name: str) -> dict[str, Any]:
    """A dataset by its id or name; ApiError."""
    kept = state.datasets.get(name.rpartition("/")[2])
    if kept is None:
        raise ApiError(404, f"dataset {name} not found")
    return kept


async def create(state: ProviderState, request: web.Request) -> web.Response:
    """POST …/supervisedFineTuningJobs?supervisedFineTuningJobId=…"""
    body = await read_json(request)
    for name in body:
        if name not in FIELDS:
            raise ApiError(400, f"unknown field: {name}", "unknown_parameter", name)
    account = request.match_info["account"]
    wanted = request.query.get("supervisedFineTuningJobId") or state.new_id("sft")
    name = f"accounts/{account}/supervisedFineTuningJobs/{wanted}"
    if wanted in state.jobs:
        raise ApiError(409, f"{name} already exists")
    if not str(body.get("baseModel", body.get("warmStartFrom", ""))).startswith("accounts/"):
        raise ApiError(400, "baseModel must be accounts/…/models/…")
    kept = get_dataset(state, str(body.get("dataset")))
    pairs, chars = tuning.parse_rows(files.parse_jsonl(kept.get("content", b"")), "supervised", "dataset", 3)
    job = {"id": wanted, "object": "sft", "name": name}
    usual = [f"JOB_STATE_{word}" for word in DEFAULT_STATUSES]
    tuning.start_job(state, job, body, usual, pairs, chars // 4 * body.get("epochs", 1))
    job["tuned"] = body.get("outputModel") or f"accounts/{account}/models/{wanted}"
    return web.json_response(to_json(state, job))


def to_json(state: ProviderState, job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in Fireworks' words."""
    status = tuning.get_status(state, job, "JOB_STATE_FAILED")
    failed = status == "JOB_STATE_FAILED"
    return {
        "name": job["name"],
        "displayName": job["asked"].get("displayName", ""),
        "createTime": "2026-05-17T17:35:45.123Z",
        "dataset": job["asked"]["dataset"],
        "baseModel": job["asked"].get("baseModel"),
        "outputModel": job["tuned"],
        "state": status,
        "status": {"code": "INVALID_ARGUMENT" if failed else "OK", "message": state.fails if failed else ""},
        "jobProgress": {"percent": 100 * job["look"] // max(1, len(job["way"]) - 1), "epoch": 1},
    }


async def retrieve(state: ProviderState, request: web.Request) -> web.Response:
    """GET …/supervisedFineTuningJobs/{id}"""
    job = tuning.get_job(state, request)
    tuning.advance(state, job, ("JOB_STATE_COMPLETED",))
    return web.json_response(to_json(state, job))


async def list_all(state: ProviderState, request: web.Request) -> web.Response:
    """GET …/supervisedFineTuningJobs"""
    if not state.list_jobs:
        raise ApiError(404, "not found")
    found = [to_json(state, j) for j in state.jobs.values() if j.get("object") == "sft"]
    return web.json_response({"supervisedFineTuningJobs": found, "nextPageToken": "", "totalSize": len(found)})


async def cancel(state: ProviderState, request: web.Request) -> web.Response:
    """POST …/supervisedFineTuningJobs/{id}:cancel"""
    job = tuning.get_job(state, request)
    if tuning.get_status(state, job, "JOB_STATE_FAILED") in FINAL:
        raise ApiError(400, "the job has ended")
    job["fate"] = "JOB_STATE_CANCELLED"
    return web.json_response({})


async def deploy(state: ProviderState, request: web.Request) -> web.Response:
    """POST …/deployedModels: a tuned model answers only then."""
    body = await read_json(request)
    if body.get("model") not in state.tuned:
        raise ApiError(404, f"model {body.get('model')} not found")
    state.deployed[body["model"]] = body["model"]
    return web.json_response({"name": f"{request.match_info['account']}/deployedModels/1", "state": "DEPLOYING"})


async def accounts(state: ProviderState, request: web.Request) -> web.Response:
    """GET /v1/accounts"""
    return web.json_response({"accounts": [{"name": "accounts/me"}]})
