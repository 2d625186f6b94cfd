"""What a provider replies, which may be anything: JSON objects, errors, token counts, the durations of headers.

Called by all that read replies.  In: bytes, or what JSON made of them.  Out: typed parts, empty where there is nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

JsonObject = Mapping[str, object]


def parse_json(content: bytes | str) -> object:
    """What the JSON says; None for what is none."""
    try:
        parsed: object = json.loads(content)
    except ValueError:
        return None
    return parsed


def get_object(value: object) -> JsonObject:
    """The value if it is an object, else an empty one.

    >>> get_object({"id": "a"}), get_object(None), get_object("text")
    ({'id': 'a'}, {}, {})
    """
    return value if isinstance(value, dict) else {}


def get_objects(value: object) -> list[JsonObject]:
    """The objects of a list; none where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def get_text(body: JsonObject, *names: str) -> str | None:
    """The first of these fields that is a text and not empty.

    >>> get_text({"id": "", "name": "b"}, "id", "name")
    'b'
    """
    return next((value for name in names if isinstance(value := body.get(name), str) and value), None)


class TokenUsage(NamedTuple):
    """Tokens that a request took, as the provider counts them."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


NO_USAGE = TokenUsage()


def parse_usage(value: object) -> TokenUsage:
    """Token counts of a usage object; None where they are not given.

    >>> parse_usage({"prompt_tokens": 3, "completion_tokens": "?"})
    TokenUsage(input=3, output=None, cached=None)
    """
    usage = get_object(value)
    cached = get_object(usage.get("prompt_tokens_details")).get("cached_tokens")
    return TokenUsage(
        _parse_count(usage.get("prompt_tokens")), _parse_count(usage.get("completion_tokens")), _parse_count(cached)
    )


def _parse_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class ReportedError(NamedTuple):
    """An error as a body reports it; code, kind and parameter are empty where it has none."""

    message: str
    code: str = ""
    kind: str = ""
    parameter: str = ""


def find_error(body: object) -> ReportedError | None:
    """The error that a body reports, whichever of the usual shapes it has.

    >>> find_error({"error": {"message": "busy", "code": 503}})
    ReportedError(message='busy', code='503', kind='', parameter='')
    >>> find_error({"detail": "no such model"}).message
    'no such model'
    >>> find_error({"choices": []}) is None
    True
    """
    if not isinstance(body, dict):
        return None
    error = body.get("error", body if body.get("object") == "error" or "message" in body else None)
    if isinstance(error, str):
        return ReportedError(error)
    if isinstance(error, dict):
        code, kind, parameter = (str(error.get(name) or "") for name in ("code", "type", "param"))
        return ReportedError(str(error.get("message") or json.dumps(error)), code, kind, parameter)
    detail = body.get("detail")
    return ReportedError(detail if isinstance(detail, str) else json.dumps(detail)) if detail else None


def parse_error(content: bytes) -> ReportedError:
    """The error that a body of a bad status reports; its text where it reports none, nothing for a page of HTML."""
    body = parse_json(content)
    if body is None:
        text = content.decode("utf-8", "replace").strip()
        return ReportedError("" if text[:1] == "<" else text)
    return find_error(body) or ReportedError(json.dumps(body))


DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def parse_duration(text: str) -> float | None:
    """Seconds; None for what is no duration.

    >>> parse_duration("6m0s"), parse_duration("250ms"), parse_duration("2"), parse_duration("soon")
    (360.0, 0.25, 2.0, None)
    """
    text = text.strip().lower()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    parts = DURATION.findall(text)
    if not parts or DURATION.sub("", text):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """How long the provider wants to be left alone, in seconds.

    >>> parse_retry_after({"retry-after": "1.5"}), parse_retry_after({"retry-after-ms": "250"}), parse_retry_after({})
    (1.5, 0.25, None)
    """
    if (text := headers.get("retry-after-ms")) and (wait := parse_duration(text)) is not None:
        return wait / 1000
    if not (text := headers.get("retry-after")):
        return None
    if (wait := parse_duration(text)) is not None:
        return wait
    then = _parse_date(text)
    now = _parse_date(headers.get("date") or "")  # by the provider's clock where it is known: ours may be wrong
    return None if then is None else max(0.0, then - (time.time() if now is None else now))


def _parse_date(text: str) -> float | None:
    """Seconds since 1970 of a date as headers have it."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
