"""Secrets are referenced, never kept in a catalog: {"$env": name}, or {"$secret": id} of a file for its owner only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import uuid4

from sqlft.errors import CatalogError, MissingSecret
from sqlft.options import Env
from sqlft.redact import STARS, redact
from sqlft.secrets.home import secrets_folder


def hide(options: Mapping[str, object], is_secret: Callable[[str], bool], owner: str) -> dict[str, object]:
    """`options` with references in place of env(…) and of literal secrets, which are written to the user's folder.

    `owner` is what has them, as a statement names it: "ML_ENGINE my_openai".
    """
    return {name: _hide_value(name, value, is_secret, owner) for name, value in options.items()}


def reveal(options: Mapping[str, object]) -> dict[str, object]:
    """`options` with the value of every reference and env(…); MissingSecret names the variable or the statement."""
    return {name: _reveal_value(name, value) for name, value in options.items()}


def redact_options(options: Mapping[str, object]) -> dict[str, object]:
    """`options` as a person may see them."""
    return {name: _redact_option(value) for name, value in options.items()}


def redact_text(text: str, options: Mapping[str, object]) -> str:
    """`text` with stars for every value that the references in `options` stand for."""
    for name, value in options.items():
        if isinstance(value, Mapping) and _is_reference(value):
            with suppress(MissingSecret):
                text = redact(text, str(_reveal_value(name, value)))
        elif isinstance(value, Mapping):
            text = redact_text(text, value)
    return text


def forget(options: Mapping[str, object]) -> None:
    """Delete the files that the references in `options` lead to."""
    for value in options.values():
        if isinstance(value, Mapping):
            if "$secret" in value:
                with suppress(OSError):
                    (secrets_folder() / _get_file_name(value)).unlink()
            else:
                forget(value)


def _hide_value(name: str, value: object, is_secret: Callable[[str], bool], owner: str) -> object:
    if isinstance(value, Env):
        return {"$env": value.name}
    if isinstance(value, Mapping):
        return value if _is_reference(value) else hide(value, is_secret, owner)
    if value is None or not is_secret(name):
        return value
    return {"$secret": _write_secret(name, value, owner), "of": owner}


def _write_secret(name: str, value: object, owner: str) -> str:
    secret_id = uuid4().hex
    path = secrets_folder() / secret_id
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"of": owner, "name": name, "value": value}, file, default=str)
    except OSError as e:
        raise CatalogError(
            f"The secret '{name}' cannot be kept in {path.parent}: {e.strerror}.",
            "Free some space there, or keep it in the environment: env('NAME').",
        ) from e
    return secret_id


def _reveal_value(name: str, value: object) -> object:
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
    value = os.environ.get(variable)
    if not value:
        raise MissingSecret(
            f"The option '{name}' is taken from the environment variable {variable}, which is not set.",
            f"Set it before starting: export {variable}=…",
        )
    return value


def _read_secret(name: str, reference: Mapping[str, object]) -> object:
    path = secrets_folder() / _get_file_name(reference)
    try:
        return json.loads(path.read_text(encoding="utf-8"))["value"]
    except (OSError, ValueError, KeyError) as e:
        owner = str(reference.get("of") or "ML_ENGINE …")
        raise MissingSecret(
            f"The secret '{name}' of {owner} is not in {path.parent}: another user stored it, or another machine.",
            f"Give it anew: DROP {owner}, then CREATE {owner} … USING {name} = '…' or env('NAME').",
        ) from e


def _get_file_name(reference: Mapping[str, object]) -> str:
    named = str(reference["$secret"])
    return named if re.fullmatch(r"[0-9a-f]{32}", named) else "unknown"


def _is_reference(value: Mapping[str, object]) -> bool:
    return "$secret" in value or "$env" in value


def _redact_option(value: object) -> object:
    if not isinstance(value, Mapping):
        return f"env('{value.name}')" if isinstance(value, Env) else value
    if "$env" in value:
        return f"env('{value['$env']}')"
    return STARS if "$secret" in value else redact_options(value)
