"""Files: uploaded, processed after some looks, read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from provider.state import ApiError, ProviderState

PURPOSES = ("fine-tune", "batch", "assistants", "user_data", "evals", "vision")


async def upload(state: ProviderState, request: web.Request) -> web.Response:
    """POST /files, and Together's /files/upload: multipart with purpose and file."""
    form = await parse_form(request)
    purpose = form.get("purpose", ("", b""))[1].decode()
    if purpose not in PURPOSES:
        raise ApiError(400, f"Invalid value for 'purpose': {purpose!r}.", "invalid_value", "purpose")
    if not form.get("file", ("",))[0]:
        raise ApiError(400, "'file' is a required property", "missing_required_parameter", "file")
    name, content = form["file"]
    if not content.strip():
        raise ApiError(400, "The file is empty.", "empty_file", "file")
    if purpose in ("fine-tune", "batch"):
        parse_jsonl(content)
    return web.json_response(to_json(state, store_file(state, content, name, purpose)))


async def parse_form(request: web.Request) -> dict[str, tuple[str, bytes]]:
    """The parts of a multipart body by name: (file name or '', content)."""
    found = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if found is None:
        raise ApiError(400, "The body must be multipart/form-data.")
    parts = {}
    for part in (await request.read()).split(b"--" + found[1].encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        parts[names["name"]] = (names.get("filename", ""), content.removesuffix(b"\r\n"))
    return parts


def store_file(state: ProviderState, content: bytes, name: str, purpose: str) -> dict[str, Any]:
    """A new file."""
    made = {
        "id": state.new_id("file-"),
        "object": "file",
        "bytes": len(content),
        "created_at": 1760000000,
        "filename": name,
        "purpose": purpose,
        "content": content,
        "polls": 0,
    }
    state.files[made["id"]] = made
    return made


def parse_jsonl(content: bytes) -> list[Any]:
    """The values of a JSONL file; ApiError names the line that is none."""
    found = []
    for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError:
                raise ApiError(400, f"Expected file to have JSONL format. Line {number} is invalid.", None) from None
    return found


def to_json(state: ProviderState, file: Mapping[str, Any]) -> dict[str, Any]:
    """A file as it is shown."""
    done = file["polls"] >= state.file_polls
    shown = {k: v for k, v in file.items() if k not in ("content", "polls")}
    times = {"created_at": "2026-05-01T12:00:00Z"} if state.text_times else {}
    more = {"Processed": done, "FileType": "jsonl", "LineCount": file["content"].count(b"\n")}
    return {**shown, **times, **more, "status": "processed" if done else "uploaded", "status_details": None}


def get_file(state: ProviderState, name: Any, purpose: str, param: str) -> dict[str, Any]:
    """A file that a job or a batch names; ApiError."""
    found = state.files.get(name)
    if found is None:
        raise ApiError(400, f"invalid {param}: {name}", "invalid_file", param)
    if found["purpose"] != purpose:
        raise ApiError(400, f"File '{name}' has purpose '{found['purpose']}', not '{purpose}'.", None, param)
    if found["polls"] < state.file_polls:
        raise ApiError(400, f"File '{name}' is still being processed and is not ready to be used.", None, param)
    return found


async def retrieve(state: ProviderState, request: web.Request) -> web.Response:
    """GET /files/{id}"""
    found = state.files.get(request.match_info["id"])
    if found is None:
        raise ApiError(404, f"No such File object: {request.match_info['id']}", None, "id")
    found["polls"] += 1
    return web.json_response(to_json(state, found))


async def content(state: ProviderState, request: web.Request) -> web.Response:
    """GET /files/{id}/content"""
    found = state.files.get(request.match_info["id"])
    if found is None:
        raise ApiError(404, f"No such File object: {request.match_info['id']}", None, "id")
    return web.Response(body=found["content"], content_type="application/octet-stream")


async def list_all(state: ProviderState, request: web.Request) -> web.Response:
    """GET /files"""
    if not state.list_files:
        raise ApiError(404, f"Invalid URL (GET {request.path})")
    found = [to_json(state, f) for f in reversed(state.files.values())]
    return web.json_response({"object": "list", "data": found, "has_more": False})


async def delete(state: ProviderState, request: web.Request) -> web.Response:
    """DELETE /files/{id}"""
    found = state.files.pop(request.match_info["id"], None)
    if found is None:
        raise ApiError(404, f"No such File object: {request.match_info['id']}", None, "id")
    return web.json_response({"id": found["id"], "object": "file", "deleted": True})
