"""Chat completions, embeddings, models, and vLLM's adapters."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from provider.state import ApiError, ProviderState

CHAT_FIELDS = frozenset(
    """model messages audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
    max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort
    response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity""".split()  # noqa: SIM905
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2)}


def make_completion(state: ProviderState, body: Any, extra: str | None = None) -> dict[str, Any]:
    """Check a body and answer it, once it is paid; ApiError."""
    check_body(state, body)
    model = extra or body["model"]
    check_model(state, model)
    messages = body["messages"]
    text = make_answer(state, messages, model, body)
    state.paid[get_last_text(messages)] += 1
    given, made = sum(len(str(m.get("content") or "")) for m in messages) // 4 + 3, max(1, len(text) // 4)
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}}
    choice["finish_reason"] = "length" if cap and made > cap else "stop"
    if cap and made > cap:
        choice["message"]["content"], made = text[: cap * 4], cap
    choice["logprobs"] = None
    if body.get("logprobs"):
        words = text.split() or [""]
        choice["logprobs"] = {
            "content": [{"token": w, "logprob": -0.25, "bytes": None, "top_logprobs": []} for w in words]
        }
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    usage["prompt_tokens_details"] = {"cached_tokens": 0}
    return {
        "id": state.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": 1760000000,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def check_body(state: ProviderState, body: Any) -> None:
    """ApiError for what the public API would not take."""
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    for name in body:
        if name not in CHAT_FIELDS and name not in state.extra_fields:
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", "unknown_parameter", name)
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ApiError(400, "you must provide a model parameter", param="model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "Invalid 'messages': empty array.", "empty_array", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ApiError(400, f"Invalid value: messages[{i}].role", "invalid_value", f"messages[{i}].role")
        if not isinstance(message.get("content"), (str, list)):
            raise ApiError(400, f"Invalid type for 'messages[{i}].content'.", "invalid_type", f"messages[{i}].content")
    for name, (low, high) in RANGES.items():
        value = body.get(name)
        if value is not None and not low <= value <= high:
            raise ApiError(400, f"Invalid '{name}': {value} is not between {low} and {high}.", "invalid_value", name)
    stop = body.get("stop")
    if isinstance(stop, list) and not 1 <= len(stop) <= 4:
        raise ApiError(400, "Invalid 'stop': array too long. Expected at most 4.", "array_above_max_length", "stop")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise ApiError(400, "'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    _check_format(state, body.get("response_format"))


def _check_format(state: ProviderState, wanted: Any) -> None:
    if wanted is None:
        return
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise ApiError(400, "Invalid value for 'response_format'.", "invalid_value", "response_format")
    if wanted["type"] != "json_schema":
        return
    if not state.json_schema:
        raise ApiError(400, "'response_format' of type 'json_schema' is not supported with this model.", None, "model")
    schema = wanted.get("json_schema")
    if not isinstance(schema, dict) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", str(schema.get("name", ""))):
        raise ApiError(400, "Missing required parameter: 'response_format.json_schema.name'.", "missing_required")
    if schema.get("strict"):
        _check_strict(schema.get("schema"))


def _check_strict(schema: Any, where: str = "()") -> None:
    if not isinstance(schema, dict):
        raise ApiError(400, f"Invalid schema for response_format: In context={where}, not an object.")
    if schema.get("type") == "object":
        names = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != names:
            raise ApiError(
                400,
                f"Invalid schema for response_format: In context={where}, 'additionalProperties' is required to be "
                "supplied and to be false, and 'required' to include every key in properties.",
                None,
                "response_format",
            )
    for name, inner in schema.get("properties", {}).items():
        _check_strict(inner, f"('properties', '{name}')")
    if "items" in schema:
        _check_strict(schema["items"], f"{where} items")


def check_model(state: ProviderState, model: str) -> None:
    """ApiError if there is no such model."""
    there = {*state.models, *state.tuned, *state.loras}
    if model not in there and (not state.any_model or model.startswith("ft:")):
        raise ApiError(
            404, f"The model `{model}` does not exist or you do not have access to it.", "model_not_found", "model"
        )


def get_last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last message's text."""
    content = messages[-1].get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content)


def make_answer(
    state: ProviderState, messages: Sequence[Mapping[str, Any]], model: str, body: Mapping[str, Any]
) -> str:
    """What a model answers."""
    asked = get_last_text(messages)
    if asked in state.answers:
        return state.answers[asked]
    learned = state.tuned.get(model) or {}
    if asked in learned:
        return learned[asked]
    if state.answer is not None:
        return state.answer(messages, model)
    wanted = (body.get("response_format") or {}).get("json_schema")
    if wanted or (body.get("response_format") or {}).get("type") == "json_object":
        return json.dumps(make_instance((wanted or {}).get("schema", {"type": "object"}), asked))
    return f"A:{asked}"


def make_instance(schema: Mapping[str, Any], text: str) -> Any:
    """Something that obeys a JSON schema, the same for the same text."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return make_instance(schema["anyOf"][0], text)
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: make_instance(inner, text) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [make_instance(schema.get("items", {}), text)]
    return {"integer": len(text), "number": len(text) / 2, "boolean": len(text) % 2 == 0, "null": None}.get(kind, text)


async def chat(state: ProviderState, request: web.Request, model: str | None = None) -> web.StreamResponse:
    """POST /chat/completions; `model` is what Azure's path says."""
    body = await read_json(request)
    if state.latency:
        await asyncio.sleep(state.latency)
    made = make_completion(state, body, model)
    return await _stream_completion(request, made, body) if body.get("stream") else web.json_response(made)


async def _stream_completion(request: web.Request, made: dict[str, Any], body: Mapping[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    common = {"id": made["id"], "object": "chat.completion.chunk", "created": made["created"], "model": made["model"]}
    text = made["choices"][0]["message"]["content"]
    pieces = re.findall(r"\s*\S+\s*|\s+", text) or [""]
    for i, piece in enumerate(pieces):
        delta = {"content": piece} | ({"role": "assistant"} if i == 0 else {})
        await _write_event(response, {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    reason = made["choices"][0]["finish_reason"]
    await _write_event(response, {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        await _write_event(response, {**common, "choices": [], "usage": made["usage"]})
    await response.write(b"data: [DONE]\n\n")
    return response


async def _write_event(response: web.StreamResponse, what: Any) -> None:
    await response.write(f"data: {json.dumps(what)}\n\n".encode())


async def embeddings(state: ProviderState, request: web.Request, model: str | None = None) -> web.Response:
    """POST /embeddings: vectors of eight numbers, the same for the same text."""
    body = await read_json(request)
    for name in body:
        if name not in ("model", "input", "encoding_format", "dimensions", "user"):
            raise ApiError(400, f"Unrecognized request argument supplied: {name}", "unknown_parameter", name)
    if state.latency:
        await asyncio.sleep(state.latency)
    check_model(state, model or body.get("model") or "")
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not texts or not all(isinstance(t, str) and t for t in texts) or len(texts) > 2048:
        raise ApiError(400, "'$.input' is invalid. Please check the API reference.", None, "input")
    size = body.get("dimensions") or 8
    base64 = body.get("encoding_format") == "base64"
    data = []
    for i, text in enumerate(texts):
        state.paid[text] += 1
        data.append({"object": "embedding", "index": i, "embedding": _encode_vector(make_vector(text, size), base64)})
    tokens = sum(len(t) // 4 + 1 for t in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return web.json_response({"object": "list", "data": data, "model": model or body["model"], "usage": usage})


def make_vector(text: str, size: int = 8) -> list[float]:
    """A unit vector that belongs to a text."""
    raw = hashlib.shake_256(text.encode()).digest(size)
    numbers = [(b - 127.5) / 127.5 for b in raw]
    norm = sum(x * x for x in numbers) ** 0.5
    return [x / norm for x in numbers]


def _encode_vector(numbers: list[float], base64: bool) -> Any:
    if not base64:
        return numbers
    import struct
    from base64 import b64encode

    return b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


async def models(state: ProviderState, request: web.Request) -> web.Response:
    """GET /models"""
    names = dict.fromkeys([*state.models, *state.tuned, *state.loras])
    return web.json_response(
        {"object": "list", "data": [{"id": n, "object": "model", "created": 1, "owned_by": "test"} for n in names]}
    )


async def load_adapter(state: ProviderState, request: web.Request) -> web.Response:
    """POST /v1/load_lora_adapter, as vLLM has it: text, not JSON, on success."""
    body = await read_json(request)
    name, path = body.get("lora_name"), body.get("lora_path")
    if not name or not path or set(body) - {"lora_name", "lora_path", "load_inplace"}:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
    if name in state.loras and not body.get("load_inplace"):
        raise ApiError(400, f"The lora adapter '{name}' has already been loaded.", kind="InvalidUserInput")
    from pathlib import Path

    if not (Path(path) / "adapter_config.json").exists():
        raise ApiError(404, f"Loading lora {name} failed: No adapter found for {path}", kind="NotFoundError")
    state.loras[name] = path
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def unload_adapter(state: ProviderState, request: web.Request) -> web.Response:
    """POST /v1/unload_lora_adapter"""
    body = await read_json(request)
    if body.get("lora_name") not in state.loras:
        raise ApiError(404, f"The lora adapter '{body.get('lora_name')}' cannot be found.", kind="NotFoundError")
    del state.loras[body["lora_name"]]
    return web.Response(text="Success")


async def read_json(request: web.Request) -> Any:
    """A JSON object; ApiError."""
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return body
