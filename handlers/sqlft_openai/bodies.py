"""Requests and replies as JSON: what is sent, what comes back, an answer apart from its thinking."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

from sqlft.handler import Message
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import (
    JsonObject,
    ReportedError,
    TokenUsage,
    find_error,
    get_object,
    get_objects,
    get_text,
    parse_json,
    parse_usage,
)
from sqlft_openai.options import PredictOptions, TemplatePredictOptions
from sqlft_openai.providers import Provider

COPIED_OPTIONS = ("top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "reasoning_effort")
LENGTH_REASONS = ("length", "max_tokens", "model_length")
"""What providers call the end of an answer at its limit of tokens."""
REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where providers put thoughts: DeepSeek and older vLLM the first, OpenRouter, Groq and vLLM the second."""
RAISE_MAX_TOKENS = "allow more, USING max_tokens = …"
UNSUPPORTED_PATTERN = re.compile(
    r"unsupported|not support|unrecognized|unknown|not permitted|not allowed|extra input|unexpected"
)


class ParsedAnswer(NamedTuple):
    """What came back for one request."""

    text: str
    usage: TokenUsage
    logprob: float | None = None
    truncated: bool = False
    """It ended at the limit of tokens."""
    reasoning: str | None = None
    """What was thought before it."""


class RequestBuilder:
    """The body of every request of a statement; what the provider does not take is left out from then on."""

    def __init__(self, provider: Provider, model: str, options: PredictOptions, schema: JsonObject | None) -> None:
        self._schema = schema
        self._format = provider.schema if schema is not None else None
        self._body: dict[str, object] = {"model": model}
        pattern = provider.reasoning_models
        reasons = pattern is not None and re.match(pattern, model) is not None
        if options.max_tokens is not None:
            self._body["max_completion_tokens" if reasons else "max_tokens"] = options.max_tokens
        if options.logprobs:
            self._body["logprobs"] = True
        if not reasons:
            self._body["temperature"] = options.temperature
        for name in COPIED_OPTIONS:
            if getattr(options, name) is not None:
                self._body[name] = getattr(options, name)
        if isinstance(options, TemplatePredictOptions) and options.thinking != "keep":
            self._body["chat_template_kwargs"] = {"enable_thinking": options.thinking == "on"}
        self._usage_in_stream = True
        self._refused_limits: set[str] = set()
        """Names under which the token limit was refused."""
        self.revision = 0
        """How often something was left out."""

    def build(self, messages: Sequence[Message], *, stream: bool = False) -> JsonObject:
        """The whole body of one request."""
        body: dict[str, object] = {**self._body, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        if self._format == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": _make_json_schema(self._schema or {})}
        elif self._format == "json_object":  # the prompt describes the schema
            body["response_format"] = {"type": "json_object"}
        if stream:
            body["stream"] = True
            if self._usage_in_stream:
                body["stream_options"] = {"include_usage": True}
        return body

    def adapt(self, error: RequestError, revision: int) -> bool:
        """Leave out what a 400 says the provider does not take; whether the body is now another than of `revision`."""
        text = f"{error.parameter or ''} {error.message} {error.code}".lower()
        if error.status not in (400, 422) or not UNSUPPORTED_PATTERN.search(text):
            return False
        if revision == self.revision:  # else the answer to an earlier request said so
            self.revision += self._leave_out(error, text)
        return revision != self.revision

    def _leave_out(self, error: RequestError, text: str) -> bool:
        if "response_format" in text or "json_schema" in text or "json_object" in text:
            return self._simplify_format()
        if "stream_options" in text and self._usage_in_stream:
            self._usage_in_stream = False
            return True
        for old, new in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
            is_refused = error.parameter == old or f"'{old}'" in text
            if is_refused and old in self._body and old not in self._refused_limits:
                self._refused_limits.add(old)
                self._body[new] = self._body.pop(old)
                return True
        removable = ("temperature", "reasoning_effort", "chat_template_kwargs")
        refused = next((n for n in removable if n in text and n in self._body), None)
        if refused is not None:
            del self._body[refused]
        return refused is not None

    def _simplify_format(self) -> bool:
        if self._format is None:
            return False
        self._format = "json_object" if self._format == "json_schema" else None
        return True


def _make_json_schema(schema: JsonObject) -> JsonObject:
    return {"name": "answer", "strict": _is_strict(schema), "schema": dict(schema)}


def _is_strict(schema: object) -> bool:
    """Whether every object in it names all its keys and takes no others, which `strict` asks for."""
    if isinstance(schema, Mapping):
        if "properties" in schema or schema.get("type") == "object":
            names = set(schema.get("properties", ()))
            if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != names:
                return False
        return all(_is_strict(inner) for inner in schema.values())
    return all(map(_is_strict, schema)) if isinstance(schema, (list, tuple)) else True


def parse_answer(content: bytes, address: Address) -> ParsedAnswer:
    """The answer in a body of status 200; RequestError if there is none."""
    body = get_object(parse_json(content))
    _raise_error(body, address)
    choice = _get_first_choice(body)
    if not ("message" in choice or "error" in choice):
        text = _quote_excerpt(content, address)
        raise RequestError("malformed", f"{address.title} answered without a choice: {text}", True)
    return _parse_choice(choice, get_object(choice.get("message")), parse_usage(body.get("usage")), address)


def _get_first_choice(body: JsonObject) -> JsonObject:
    """The choice of index 0, in whichever order they came; empty if there is none."""
    return next((c for c in get_objects(body.get("choices")) if c.get("index") in (0, None)), {})


def _parse_choice(choice: JsonObject, message: JsonObject, usage: TokenUsage, address: Address) -> ParsedAnswer:
    """What a choice says; RequestError where it reports an error, or has no answer."""
    finish = get_text(choice, "finish_reason")
    if choice.get("error") or finish == "error":
        raise _make_error(find_error({"error": choice.get("error")}), address, usage)
    whole = extract_text(message, finish, usage, address)
    reasoning, text = split_thoughts(whole)
    if text is None and finish in LENGTH_REASONS:
        raise RequestError("length", f"its tokens were used up by thinking: {RAISE_MAX_TOKENS}", usage=usage)
    if text is None:
        raise RequestError("no_text", f"{address.title} thought and gave no answer", True, usage=usage)
    logprob = sum_logprobs(choice.get("logprobs")) if text == whole else None  # that of the thoughts is in it
    thoughts = "\n\n".join(filter(None, (_get_reasoning(message), reasoning))) or None
    return ParsedAnswer(text, usage, logprob, finish in LENGTH_REASONS, thoughts)


def _get_reasoning(message: JsonObject) -> str:
    """What a message, or a part of one, says of its thoughts beside its text."""
    return next((text for name in REASONING_FIELDS if (text := get_text(message, name))), "")


async def read_stream(lines: AsyncIterator[str], address: Address, emit: Callable[[str], None]) -> ParsedAnswer:
    """The answer in a stream of server-sent events, its pieces shown as they come; RequestError if it breaks off."""
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    thought_filter = ThoughtFilter(emit)
    finish: str | None = None
    usage, is_done = TokenUsage(), False
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            is_done = True
            break
        event = _parse_event(data, address)
        usage = parse_usage(event.get("usage")) if event.get("usage") else usage
        choice = _get_first_choice(event)
        delta = get_object(choice.get("delta"))
        finish = get_text(choice, "finish_reason") or finish
        if choice.get("error"):
            raise _make_error(find_error(choice), address, usage)
        if refusal := get_text(delta, "refusal"):
            refusals.append(refusal)
        thoughts.append(_get_reasoning(delta))
        if text := get_text(delta, "content"):
            texts.append(text)
            thought_filter.add(text)
    if not is_done and finish is None:
        raise RequestError("malformed", f"the answer of {address.title} broke off", True)
    content = "".join(texts) if texts or finish == "stop" else None
    message = {"content": content, "refusal": "".join(refusals), REASONING_FIELDS[0]: "".join(thoughts)}
    answer = _parse_choice({"finish_reason": finish}, message, usage, address)
    thought_filter.end(answer.text)
    return answer


def _parse_event(data: str, address: Address) -> JsonObject:
    event = parse_json(data)
    if not isinstance(event, dict):
        text = _quote_excerpt(data.encode(), address)
        raise RequestError("malformed", f"{address.title} streamed what is no JSON: {text}", True)
    _raise_error(event, address)
    return event


def _raise_error(body: JsonObject, address: Address) -> None:
    """RequestError for a body of status 200 that reports an error, whatever else is in it."""
    if (body.get("choices") or body.get("data")) and not body.get("error"):
        return
    error = find_error(body)
    if error is not None:
        raise _make_error(error, address, parse_usage(body.get("usage")))


def _make_error(error: ReportedError | None, address: Address, usage: TokenUsage) -> RequestError:
    """What went wrong by a reply of status 200; it may pass, but for what is wrong with the request."""
    text = address.redact(error.message if error else "the answer broke off")
    code = (error.code if error else "") or "provider_error"
    status = int(code) if code.isdecimal() else None
    is_transient = status is None or status in errors.TRANSIENT_STATUSES or not 400 <= status < 500
    name = code if status is None else f"http_{status}"
    return RequestError(name, f"{address.title} says: {text}", is_transient, usage=usage)


def extract_text(message: JsonObject, finish: str | None, usage: TokenUsage, address: Address) -> str:
    """The message's text; RequestError where the provider withheld it, or it ended before it began."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in get_objects(content))
    if finish == "content_filter":
        raise RequestError("content_filter", f"{address.title} withheld the answer", usage=usage)
    if message.get("refusal") and not content:
        raise RequestError("refusal", address.redact(str(message["refusal"])), usage=usage)
    if finish in LENGTH_REASONS and not content:
        raise RequestError(
            "length", f"its tokens were used up before the answer began: {RAISE_MAX_TOKENS}", usage=usage
        )
    if not content and message.get("tool_calls"):
        return json.dumps(message["tool_calls"], ensure_ascii=False)
    if not isinstance(content, str):
        raise RequestError("no_text", f"{address.title} answered without a text", True, usage=usage)
    return content


def sum_logprobs(value: object) -> float | None:
    """The sum of all tokens' logarithms; None where one is missing.

    >>> sum_logprobs({"content": [{"logprob": -0.25}, {"logprob": -0.5}]})
    -0.75
    """
    content = get_object(value).get("content")
    numbers = [n for token in get_objects(content) if isinstance(n := token.get("logprob"), (int, float))]
    return float(sum(numbers)) if isinstance(content, list) and 0 < len(numbers) == len(content) else None


def _quote_excerpt(content: bytes, address: Address) -> str:
    return repr(address.redact(content.decode("utf-8", "replace"), 80))


THOUGHT_OPENINGS = ("<think>", "<seed:think>", "[THINK]", "<|channel>thought", "<|channel|>analysis")
THOUGHT_BLOCK = re.compile(
    r"<(?P<name>think|seed:think)>(.*?)</(?P=name)>\s*|\[THINK\](.*?)\[/THINK\]\s*|<\|channel>thought(.*?)<channel\|>\s*"
    r"|<\|channel\|>analysis<\|message\|>(.*?)(?:<\|end\|>)?<\|start\|>assistant<\|channel\|>final<\|message\|>",
    re.S,
)
"""Of Qwen and many more, Mistral, Gemma 4 and gpt-oss, where a server does not take them out itself."""
UNOPENED_THOUGHT = re.compile(r"\A(.*?)(?:</(?:seed:)?think>|\[/THINK\])(?=[\s{\[]|\Z)\s*", re.S)


class SplitText(NamedTuple):
    """A text as its thoughts and the answer behind them; None for what it does not have."""

    reasoning: str | None
    answer: str | None


def split_thoughts(text: str) -> SplitText:
    """The thoughts, and the answer alone; that is None where the text ended before one began.

    >>> split_thoughts("<think>2 and 2</think>\\n\\n4")
    SplitText(reasoning='2 and 2', answer='4')
    >>> split_thoughts("so it is 4\\n</think>\\n\\n4").answer
    '4'
    >>> split_thoughts("<think>2 and").answer is None
    True
    """
    thoughts = ["".join(groups) for _, *groups in THOUGHT_BLOCK.findall(text)]
    left = _strip_blocks(text)
    is_unfinished = left.lstrip().startswith(THOUGHT_OPENINGS)
    if not is_unfinished and (unopened := UNOPENED_THOUGHT.match(left)):
        thoughts.append(unopened[1])
        left = left[unopened.end() :]
    reasoning = "\n\n".join(filter(None, map(str.strip, thoughts))) or None
    return SplitText(reasoning, None if is_unfinished or not (left or left == text) else left)


def _strip_blocks(text: str) -> str:
    left = THOUGHT_BLOCK.sub("", text)
    return left if left == text else left.lstrip()


class ThoughtFilter:
    """Hands on what is new of an answer while it grows, without thoughts and without what may become one."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit, self._text, self._shown = emit, "", ""

    def add(self, text: str) -> None:
        """The next piece came."""
        self._text += text
        self._show(_get_safe_prefix(self._text))

    def end(self, answer: str) -> None:
        """The whole answer is known."""
        self._show(answer)

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._emit(text[len(self._shown) :])
            self._shown = text


def _get_safe_prefix(text: str) -> str:
    """The part of an unfinished text that is an answer, whatever follows."""
    if "<" not in text and "[" not in text:
        return text
    left = _strip_blocks(text)
    for opening in THOUGHT_OPENINGS:
        left = left.partition(opening)[0]
        held = next((n for n in range(len(opening) - 1, 0, -1) if left.endswith(opening[:n])), 0)
        left = left[: len(left) - held]
    return left
