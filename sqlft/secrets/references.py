"""Secrets are referenced, never kept in a catalog: {"$env": name}, or {"$secret": id} of a file for its owner only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from sqlft.errors import STARS, CatalogError, MissingSecret, is_placeholder
from sqlft.errors import redact as redact_one
from sqlft.home import secrets_folder
from sqlft.options import Env, redact_secrets

_EXCERPT = re.compile(r"^LINE \d+: (.*)$", re.M)


def hide(options: Mapping[str, Any], is_secret: Callable[[str], bool], owner: str) -> dict[str, Any]:
    """`options` with references in place of env(…) and of literal secrets, which are written to the user's folder.

    `owner` is what has them, as a statement names it: "ML_ENGINE my_openai".
    """
    return {name: _hide_value(name, value, is_secret, owner) for name, value in options.items()}


def reveal(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the value of every reference and env(…); MissingSecret names the variable or the statement."""
    return {name: _reveal_value(name, value) for name, value in options.items()}


def redact_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as a person may see them."""
    return {name: _redact_option(value) for name, value in options.items()}


def redact_text(text: str, options: Mapping[str, Any]) -> str:
    """`text` with stars for every value that the references in `options` stand for."""
    for name, value in options.items():
        if isinstance(value, Mapping) and _is_reference(value):
            with suppress(MissingSecret):
                text = redact_one(text, str(_reveal_value(name, value)))
        elif isinstance(value, Mapping):
            text = redact_text(text, value)
    return text


def redact_error(error: BaseException, also: Iterable[str] = ()) -> None:
    """Take secrets out of an error, its notes and its causes: those that options hold, and `also`."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and one not in found:
            found.append(one)
            left += [one.__cause__, one.__context__]
    values = sorted(also, key=len, reverse=True)
    for one in found:
        one.args = tuple(_redact_value(a, values) for a in one.args)
        for name, value in list(vars(one).items()):
            if isinstance(value, (str, list)):
                setattr(one, name, _redact_value(value, values))


def _redact_value(value: Any, also: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_redact_value(v, also) for v in value]
    if not isinstance(value, str):
        return value
    for secret in also:
        value = redact_one(value, secret, "*" * len(secret))
    return _EXCERPT.sub(
        lambda m: _redact_cut_secrets(_redact_quoted_words(m[0], also), m[1], also), redact_secrets(value)
    )


def _redact_quoted_words(line: str, also: Sequence[str]) -> str:
    """DuckDB's excerpt of a line without the words that were given for keys, where they are quoted."""
    for word in (a for a in also if is_placeholder(a) and a[:1] not in "'\""):
        line = re.sub(rf"(?<=['\"]){re.escape(word)}(?=['\"])", "*" * len(word), line)
    return line


def _redact_cut_secrets(line: str, excerpt: str, also: Sequence[str]) -> str:
    """DuckDB's excerpt of a line, which may begin or end within a secret."""
    for secret in also:
        for size in range(len(secret) - 1, 3, -1):
            if excerpt.startswith("..." + secret[-size:]):
                return line.replace(secret[-size:], "*" * size, 1)
            if excerpt.endswith(secret[:size] + "..."):
                head, _, tail = line.rpartition(secret[:size])
                return head + "*" * size + tail
    return line


def forget(options: Mapping[str, Any]) -> None:
    """Delete the files that the references in `options` lead to."""
    for value in options.values():
        if isinstance(value, Mapping):
            if "$secret" in value:
                with suppress(OSError):
                    (secrets_folder() / _get_file_name(value)).unlink()
            else:
                forget(value)


def _hide_value(name: str, value: Any, is_secret: Callable[[str], bool], owner: str) -> Any:
    if isinstance(value, Env):
        return {"$env": value.name}
    if isinstance(value, Mapping):
        return value if _is_reference(value) else hide(value, is_secret, owner)
    if value is None or not is_secret(name):
        return value
    return {"$secret": _write_secret(name, value, owner), "of": owner}


def _write_secret(name: str, value: Any, owner: str) -> str:
    made = uuid4().hex
    path = secrets_folder() / made
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"of": owner, "name": name, "value": value}, file, default=str)
    except OSError as e:
        raise CatalogError(
            f"The secret '{name}' cannot be kept in {path.parent}: {e.strerror}.",
            "Free some space there, or keep it in the environment: env('NAME').",
        ) from e
    return made


def _reveal_value(name: str, value: Any) -> Any:
    if isinstance(value, Env):
        return _read_environment(name, value.name)
    if not isinstance(value, Mapping):
        return value
    if "$env" in value:
        return _read_environment(name, value["$env"])
    if "$secret" in value:
        return _read_secret(name, value)
    return reveal(value)


def _read_environment(name: str, variable: str) -> str:
    found = os.environ.get(variable)
    if not found:
        raise MissingSecret(
            f"The option '{name}' is taken from the environment variable {variable}, which is not set.",
            f"Set it before starting: export {variable}=…",
        )
    return found


def _read_secret(name: str, reference: Mapping[str, Any]) -> Any:
    path = secrets_folder() / _get_file_name(reference)
    try:
        return json.loads(path.read_text(encoding="utf-8"))["value"]
    except (OSError, ValueError, KeyError) as e:
        owner = str(reference.get("of") or "ML_ENGINE …")
        raise MissingSecret(
            f"The secret '{name}' of {owner} is not in {path.parent}: another user stored it, or another machine.",
            f"Give it anew: DROP {owner}, then CREATE {owner} … USING {name} = '…' or env('NAME').",
        ) from e


def _get_file_name(reference: Mapping[str, Any]) -> str:
    named = str(reference["$secret"])
    return named if re.fullmatch(r"[0-9a-f]{32}", named) else "unknown"


def _is_reference(value: Mapping[str, Any]) -> bool:
    return "$secret" in value or "$env" in value


def _redact_option(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return f"env('{value.name}')" if isinstance(value, Env) else value
    if "$env" in value:
        return f"env('{value['$env']}')"
    return STARS if "$secret" in value else redact_options(value)
