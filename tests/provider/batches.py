"""Batches: many requests in a file, answered in any order, in an output file and an error file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from provider import files
from provider.asking import get_last_text, make_completion, read_json
from provider.state import ApiError, ProviderState

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/chat/completions")
FINAL = ("completed", "failed", "expired", "cancelled")
MOST = 50_000


async def create(state: ProviderState, request: web.Request) -> web.Response:
    """POST /batches"""
    body = await read_json(request)
    for name in body:
        if name not in ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"):
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", "unknown_parameter", name)
    if body.get("endpoint") not in ENDPOINTS:
        raise ApiError(400, f"Invalid value for 'endpoint': {body.get('endpoint')}", "invalid_value", "endpoint")
    if body.get("completion_window") != "24h":
        raise ApiError(400, "Invalid value for 'completion_window'.", "invalid_value", "completion_window")
    given = files.get_file(state, body.get("input_file_id"), "batch", "input_file_id")
    rows = files.parse_jsonl(given["content"])
    _check(rows, body["endpoint"])
    made = {
        "id": state.new_id("batch_"),
        "object": "batch",
        "endpoint": body["endpoint"],
        "completion_window": "24h",
        "input_file_id": body["input_file_id"],
        "metadata": body.get("metadata"),
        "created_at": 1760000000,
        "rows": rows,
        "look": 0,
        "fate": None,
        "output_file_id": None,
        "error_file_id": None,
        "done": 0,
        "failed": 0,
    }
    state.batches[made["id"]] = made
    state.created.append(made["id"])
    return web.json_response(to_json(state, made))


def _check(rows: list[Any], endpoint: str) -> None:
    if not 0 < len(rows) <= MOST:
        raise ApiError(400, f"The file has {len(rows)} requests; at most {MOST} are allowed.", None, "input_file_id")
    seen = set()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or set(row) != {"custom_id", "method", "url", "body"}:
            raise ApiError(400, f"Line {number}: needs custom_id, method, url and body.", "invalid_request")
        if row["method"] != "POST" or row["url"] != endpoint:
            raise ApiError(400, f"Line {number}: method or url does not fit the batch.", "mismatched_endpoint")
        if not isinstance(row["custom_id"], str) or row["custom_id"] in seen:
            raise ApiError(400, f"Line {number}: custom_id is not unique.", "duplicate_custom_id")
        seen.add(row["custom_id"])


def to_json(state: ProviderState, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as it is shown."""
    shown = {k: v for k, v in batch.items() if k not in ("rows", "look", "fate", "done", "failed")}
    counts = {"total": len(batch["rows"]), "completed": batch["done"], "failed": batch["failed"]}
    errors = None
    if get_status(state, batch) == "failed":
        errors = {"object": "list", "data": [{"code": "failed", "line": 1, "message": state.fails, "param": None}]}
    if state.text_times:
        shown["created_at"] = "2026-05-01T12:00:00Z"
    return {**shown, "status": get_status(state, batch), "request_counts": counts, "errors": errors}


def get_status(state: ProviderState, batch: Mapping[str, Any]) -> str:
    """What a batch says now."""
    if batch["fate"]:
        return str(batch["fate"])
    way = state.batch_statuses
    status = way[min(batch["look"], len(way) - 1)]
    return "failed" if state.fails and status == "completed" else status


def _run_batch(state: ProviderState, batch: dict[str, Any]) -> None:
    good, bad = [], []
    rows = list(batch["rows"])
    state.draw.shuffle(rows)
    for row in rows:
        asked = get_last_text(row["body"]["messages"])
        if asked in state.batch_drops:
            continue
        try:
            if asked in state.batch_errors:
                status, message = state.batch_errors[asked]
                raise ApiError(status, message)
            body: Any = make_completion(state, row["body"])
            state.paid_batch[asked] += 1
            status, to = 200, good
        except ApiError as e:
            body, status, to = e.body(), e.status, bad
        response = {"status_code": status, "request_id": state.new_id("req_"), "body": body}
        line = {"id": state.new_id("batch_req_"), "custom_id": row["custom_id"], "response": response, "error": None}
        to.append(json.dumps(line))
    batch["done"], batch["failed"] = len(good), len(bad)
    for name, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            content = ("\n".join(lines) + "\n").encode()
            batch[name] = files.store_file(state, content, f"{batch['id']}_{name}.jsonl", "batch_output")["id"]


def get_batch(state: ProviderState, request: web.Request) -> dict[str, Any]:
    """The batch that a path names; ApiError."""
    found = state.batches.get(request.match_info["id"])
    if found is None:
        raise ApiError(404, f"No batch found with id '{request.match_info['id']}'.", None, "id")
    return found


async def retrieve(state: ProviderState, request: web.Request) -> web.Response:
    """GET /batches/{id}: each look takes it further."""
    batch = get_batch(state, request)
    if not state.hold and not batch["fate"] and batch["look"] < len(state.batch_statuses) - 1:
        batch["look"] += 1
        if get_status(state, batch) in ("completed", "expired"):
            _run_batch(state, batch)
    return web.json_response(to_json(state, batch))


async def list_all(state: ProviderState, request: web.Request) -> web.Response:
    """GET /batches, newest first."""
    found = [to_json(state, b) for b in reversed(state.batches.values())]
    ids = [b["id"] for b in found]
    after = request.query.get("after")
    start = ids.index(after) + 1 if after in ids else 0
    limit = int(request.query.get("limit", 20))
    page = found[start : start + limit]
    return web.json_response({"object": "list", "data": page, "has_more": start + limit < len(found)})


async def cancel(state: ProviderState, request: web.Request) -> web.Response:
    """POST /batches/{id}/cancel"""
    batch = get_batch(state, request)
    if get_status(state, batch) in FINAL:
        raise ApiError(409, f"Cannot cancel a batch with status '{get_status(state, batch)}'.", None)
    batch["fate"] = "cancelled"
    return web.json_response(to_json(state, batch))
