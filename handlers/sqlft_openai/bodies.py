"""What is sent and what comes back, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlft.handler import Message
from sqlft_openai import faults
from sqlft_openai.address import Address
from sqlft_openai.engines import Engine
from sqlft_openai.faults import Fault
from sqlft_openai.options import PredictOptions

PLAIN = ("top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "reasoning_effort")
REASONING = ("o1", "o3", "o4", "gpt-5", "gpt-6")
"""Models that take max_completion_tokens and no temperature."""


class Spent(NamedTuple):
    """Tokens that a request took, as the provider counts them."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


class Answer(NamedTuple):
    """What came back for one request."""

    text: str
    spent: Spent


def parameters(engine: Engine, model: str, options: PredictOptions, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body of every request of a statement, but for its messages."""
    reasons = engine.prices in ("openai", "azure") and model.removeprefix("ft:").startswith(REASONING)
    body: dict[str, Any] = {"model": model}
    if options.max_tokens is not None:
        body["max_completion_tokens" if reasons else engine.token_limit] = options.max_tokens
    if not reasons:
        body["temperature"] = options.temperature
    for name in PLAIN:
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    if schema is not None:
        body["response_format"] = response_format(engine, schema)
    return body


def response_format(engine: Engine, schema: Mapping[str, Any]) -> dict[str, Any]:
    """How the answer is made to obey the schema there."""
    if engine.schema == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def messages(given: Sequence[Message], described: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Messages as they are sent; `described` is a schema that the prompt must speak of."""
    sent = [{"role": m.role, "content": m.content} for m in given]
    if described is not None:
        said = f"Answer with one JSON object that obeys this JSON schema: {json.dumps(described)}"
        sent.insert(0, {"role": "system", "content": said})
    return sent


def answer_of(content: bytes, address: Address) -> Answer:
    """The answer in a body of status 200; Fault if there is none."""
    try:
        body = json.loads(content)
    except ValueError:
        shown = address.clean(content.decode("utf-8", "replace"), 80)
        raise Fault("malformed", f"{address.engine.title} answered with no JSON: {shown!r}", True) from None
    error = faults.error_in(body)
    if error is not None and not body.get("choices"):
        said = address.clean(str(error["message"]))
        raise Fault(str(error.get("code") or "provider_error"), f"{address.engine.title} says: {said}", True)
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        shown = address.clean(content.decode("utf-8", "replace"), 80)
        raise Fault("malformed", f"{address.engine.title} answered without a choice: {shown!r}", True) from None
    return Answer(text_of(message, choice.get("finish_reason"), address), spent_of(body.get("usage")))


def text_of(message: Any, finish: str | None, address: Address) -> str:
    """The message's text; Fault where the provider withheld it or it ended before it began."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    if finish == "content_filter":
        raise Fault("content_filter", f"{address.engine.title} withheld the answer", False)
    if isinstance(message, dict) and message.get("refusal") and not content:
        raise Fault("refusal", address.clean(str(message["refusal"])), False)
    if finish == "length" and not content:
        raise Fault(
            "length", "the answer's tokens were used up before it began: allow more, USING max_tokens = …", False
        )
    if not isinstance(content, str):
        raise Fault("no_text", f"{address.engine.title} answered without a text", True)
    return content


def spent_of(usage: Any) -> Spent:
    """Token counts of a usage object; None where they are not given."""
    if not isinstance(usage, dict):
        return Spent()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Spent(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
