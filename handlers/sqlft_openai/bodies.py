"""Requests and replies as JSON: what is sent, what comes back, an answer apart from its thinking."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlft.handler import Message
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import Fault
from sqlft_openai.options import PredictOptions
from sqlft_openai.providers import Engine

PLAIN = ("top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "reasoning_effort")
REASONING = re.compile(r"^(ft:)?(o\d|gpt-[5-9])")
"""Models that take max_completion_tokens and no temperature."""
CUT = ("length", "max_tokens", "model_length")
"""What providers call the end of an answer at its limit of tokens."""
ALLOW_MORE = "allow more, USING max_tokens = …"
NOT_TAKEN = re.compile(r"unsupported|not support|unrecognized|unknown|not permitted|not allowed|extra input|unexpected")


class Spent(NamedTuple):
    """Tokens that a request took, as the provider counts them."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


class Answer(NamedTuple):
    """What came back for one request."""

    text: str
    spent: Spent
    logprob: float | None = None
    truncated: bool = False
    """It ended at the limit of tokens."""


class Form:
    """The body of every request of a statement; what the provider does not take is left out from then on."""

    def __init__(self, engine: Engine, model: str, options: PredictOptions, schema: Mapping[str, Any] | None) -> None:
        self._schema = schema
        self._format = engine.schema if schema is not None else None
        self._given: dict[str, Any] = {"model": model}
        reasons = engine.prices in ("openai", "azure") and REASONING.match(model) is not None
        if options.max_tokens is not None:
            self._given["max_completion_tokens" if reasons else "max_tokens"] = options.max_tokens
        if options.logprobs:
            self._given["logprobs"] = True
        if not reasons:
            self._given["temperature"] = options.temperature
        for name in PLAIN:
            if getattr(options, name) is not None:
                self._given[name] = getattr(options, name)
        self._usage_in_stream = True
        self._refused: set[str] = set()
        """Names under which the token limit was refused."""

    def body(self, messages: Sequence[Message], *, stream: bool = False) -> dict[str, Any]:
        """The whole body of one request."""
        body = {**self._given, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        if self._format == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": _named(self._schema or {})}
        elif self._format == "json_object":  # the prompt tells of the schema
            body["response_format"] = {"type": "json_object"}
        if stream:
            body["stream"] = True
            if self._usage_in_stream:
                body["stream_options"] = {"include_usage": True}
        return body

    def adapt(self, fault: Fault) -> bool:
        """Leave out what a 400 says the provider does not take; whether the body is now another."""
        said = f"{fault.parameter or ''} {fault.message} {fault.code}".lower()
        if fault.status not in (400, 422) or not NOT_TAKEN.search(said):
            return False
        if "response_format" in said or "json_schema" in said or "json_object" in said:
            return self._simpler_format()
        if "stream_options" in said and self._usage_in_stream:
            self._usage_in_stream = False
            return True
        for old, new in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
            if (
                old in self._given
                and (fault.parameter == old or said.find(f"'{old}'") >= 0)
                and old not in self._refused
            ):
                self._refused.add(old)
                self._given[new] = self._given.pop(old)
                return True
        refused = next((n for n in ("temperature", "reasoning_effort") if n in said and n in self._given), None)
        if refused is not None:
            del self._given[refused]
        return refused is not None

    def _simpler_format(self) -> bool:
        if self._format is None:
            return False
        self._format = "json_object" if self._format == "json_schema" else None
        return True


def _named(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "answer", "strict": _is_strict(schema), "schema": dict(schema)}


def _is_strict(schema: Any) -> bool:
    """Whether every object in it names all its keys and takes no others, which `strict` asks for."""
    if isinstance(schema, Mapping):
        if "properties" in schema or schema.get("type") == "object":
            names = set(schema.get("properties", ()))
            if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != names:
                return False
        return all(_is_strict(inner) for inner in schema.values())
    return all(map(_is_strict, schema)) if isinstance(schema, (list, tuple)) else True


def answer_of(content: bytes, address: Address) -> Answer:
    """The answer in a body of status 200; Fault if there is none."""
    title = address.engine.title
    try:
        body = json.loads(content)
    except ValueError:
        raise Fault("malformed", f"{title} answered with no JSON: {_shown(content, address)}", True) from None
    _raise_error(body, address)
    choice = _first(body.get("choices")) if isinstance(body, dict) else None
    if choice is None or not ("message" in choice or "error" in choice):
        raise Fault("malformed", f"{title} answered without a choice: {_shown(content, address)}", True)
    return _answer(choice, choice.get("message"), spent_of(body.get("usage")), address)


def _first(choices: Any) -> dict[str, Any] | None:
    """The choice of index 0, in whichever order they came; None if there is none."""
    found = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    return next((c for c in found if c.get("index") in (0, None)), None)


def _answer(choice: Mapping[str, Any], message: Any, spent: Spent, address: Address) -> Answer:
    """What a choice says; Fault where it speaks of an error, or has no answer."""
    finish = choice.get("finish_reason")
    if choice.get("error") or finish == "error":
        raise _fault_of(errors.error_in({"error": choice.get("error")}), address, spent)
    said = text_of(message, finish, spent, address)
    text = without_thoughts(said)
    if text is None and finish in CUT:
        raise Fault("length", f"its tokens were used up by thinking: {ALLOW_MORE}", spent=spent)
    if text is None:
        raise Fault("no_text", f"{address.engine.title} thought and gave no answer", True, spent=spent)
    logprob = logprob_of(choice.get("logprobs")) if text == said else None  # that of the thoughts is in it
    return Answer(text, spent, logprob, finish in CUT)


async def streamed(lines: AsyncIterator[str], address: Address, tell: Callable[[str], None]) -> Answer:
    """The answer in a stream of server-sent events, its pieces told as they come; Fault if it breaks off."""
    texts: list[str] = []
    spoken = Spoken(tell)
    message: dict[str, Any] = {}
    finish, spent, done = None, Spent(), False
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
            break
        event = _event(data, address)
        spent = spent_of(event.get("usage")) if event.get("usage") else spent
        choice = _first(event.get("choices")) or {}
        delta = choice.get("delta") or {}
        finish = choice.get("finish_reason") or finish
        if choice.get("error"):
            raise _fault_of(errors.error_in(choice), address, spent)
        if delta.get("refusal"):
            message["refusal"] = message.get("refusal", "") + delta["refusal"]
        if delta.get("content"):
            texts.append(delta["content"])
            spoken.add(delta["content"])
    if not done and finish is None:
        raise Fault("malformed", f"the answer of {address.engine.title} broke off", True)
    message["content"] = "".join(texts) if texts or finish == "stop" else None
    answer = _answer({"finish_reason": finish}, message, spent, address)
    spoken.end(answer.text)
    return answer


def _event(data: str, address: Address) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        shown = _shown(data.encode(), address)
        raise Fault("malformed", f"{address.engine.title} streamed what is no JSON: {shown}", True)
    _raise_error(event, address)
    return event


def _raise_error(body: Any, address: Address) -> None:
    """Fault for a body of status 200 that speaks of an error, whatever else is in it."""
    has_answer = isinstance(body, dict) and (body.get("choices") or body.get("data"))
    if has_answer and not body.get("error"):
        return
    error = errors.error_in(body)
    if error is not None:
        raise _fault_of(error, address, spent_of(body.get("usage")))


def _fault_of(error: Mapping[str, Any] | None, address: Address, spent: Spent) -> Fault:
    """What went wrong by a reply of status 200; it may pass, but for what is wrong with the request."""
    said = address.clean(str((error or {}).get("message") or "the answer broke off"))
    code = str((error or {}).get("code") or "provider_error")
    status = int(code) if code.isdecimal() else None
    passing = status is None or status in errors.PASSING or not 400 <= status < 500
    named = code if status is None else f"http_{status}"
    return Fault(named, f"{address.engine.title} says: {said}", passing, spent=spent)


def text_of(message: Any, finish: str | None, spent: Spent, address: Address) -> str:
    """The message's text; Fault where the provider withheld it, or it ended before it began."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    if finish == "content_filter":
        raise Fault("content_filter", f"{address.engine.title} withheld the answer", spent=spent)
    if isinstance(message, dict) and message.get("refusal") and not content:
        raise Fault("refusal", address.clean(str(message["refusal"])), spent=spent)
    if finish in CUT and not content:
        raise Fault("length", f"its tokens were used up before the answer began: {ALLOW_MORE}", spent=spent)
    if not isinstance(content, str):
        raise Fault("no_text", f"{address.engine.title} answered without a text", True, spent=spent)
    return content


def logprob_of(logprobs: Any) -> float | None:
    """The sum of all tokens' logarithms; None where one is not told."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    told = [t["logprob"] for t in tokens if isinstance(t, dict) and isinstance(t.get("logprob"), (int, float))]
    return float(sum(told)) if len(told) == len(tokens) else None


def spent_of(usage: Any) -> Spent:
    """Token counts of a usage object; None where they are not given."""
    if not isinstance(usage, dict):
        return Spent()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Spent(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _shown(content: bytes, address: Address) -> str:
    return repr(address.clean(content.decode("utf-8", "replace"), 80))


OPENINGS = ("<think>", "<seed:think>", "[THINK]")
BLOCK = re.compile(r"<(think|seed:think)>.*?</\1>\s*|\[THINK\].*?\[/THINK\]\s*", re.S)
UNOPENED = re.compile(r"\A.*?(?:</(?:seed:)?think>|\[/THINK\])(?=[\s{\[]|\Z)\s*", re.S)


def without_thoughts(text: str) -> str | None:
    """The answer alone; None where the text ended before one began.

    >>> without_thoughts("<think>2 and 2</think>\\n\\n4")
    '4'
    >>> without_thoughts("so it is 4\\n</think>\\n\\n4")
    '4'
    >>> without_thoughts("<think>2 and") is None
    True
    """
    left = _without_blocks(text)
    if left.lstrip().startswith(OPENINGS):
        return None
    unopened = UNOPENED.match(left)
    if unopened is not None:
        left = left[unopened.end() :]
    return left if left or left == text else None


def _without_blocks(text: str) -> str:
    left = BLOCK.sub("", text)
    return left if left == text else left.lstrip()


class Spoken:
    """Hands on what is new of an answer while it grows, without thoughts and without what may become one."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._text, self._shown = tell, "", ""

    def add(self, text: str) -> None:
        """The next piece came."""
        self._text += text
        self._show(_sure(self._text))

    def end(self, answer: str) -> None:
        """The whole answer is known."""
        self._show(answer)

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._tell(text[len(self._shown) :])
            self._shown = text


def _sure(text: str) -> str:
    """The part of an unfinished text that is an answer, whatever follows."""
    if "<" not in text and "[" not in text:
        return text
    left = _without_blocks(text)
    for opening in OPENINGS:
        left = left.partition(opening)[0]
        held = next((n for n in range(len(opening) - 1, 0, -1) if left.endswith(opening[:n])), 0)
        left = left[: len(left) - held]
    return left
