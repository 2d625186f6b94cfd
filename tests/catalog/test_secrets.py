from __future__ import annotations

import json
import re
import stat
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from sqlft.errors import MissingSecret, StatementError
from sqlft.handler import Secret
from sqlft.options import Env, build_options, is_secret
from sqlft.redact import redact, redact_error
from sqlft.secrets import references

KEY = "sk-very-secret"


def test_a_literal_goes_to_a_file_for_its_owner_only(sqlft_home: Path) -> None:
    hidden = references.hide(
        {"api_key": KEY, "base_url": "http://x", "deep": {"password": KEY}}, is_secret, "ML_ENGINE e"
    )
    assert KEY not in json.dumps(hidden)
    assert hidden["base_url"] == "http://x"
    folder = sqlft_home / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert [stat.S_IMODE(f.stat().st_mode) for f in files] == [0o600] * 2
    assert references.reveal(hidden) == {"api_key": KEY, "base_url": "http://x", "deep": {"password": KEY}}
    assert references.redact_options(hidden) == {
        "api_key": "****",
        "base_url": "http://x",
        "deep": {"password": "****"},
    }
    references.forget(hidden)
    assert list(folder.iterdir()) == []


def test_hiding_twice_changes_nothing(sqlft_home: Path) -> None:
    hidden = references.hide({"api_key": KEY}, is_secret, "ML_ENGINE e")
    assert references.hide(hidden, is_secret, "MODEL m") == hidden


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = references.hide({"api_key": Env("MY_KEY"), "region": Env("MY_REGION")}, is_secret, "ML_ENGINE e")
    assert hidden == {"api_key": {"$env": "MY_KEY"}, "region": {"$env": "MY_REGION"}}
    assert references.redact_options(hidden)["api_key"] == "env('MY_KEY')"
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(MissingSecret, match=r"MY_REGION[^$]*export MY_REGION"):
        references.reveal(hidden)
    monkeypatch.setenv("MY_REGION", "eu")
    assert references.reveal(hidden) == {"api_key": KEY, "region": "eu"}


def test_a_file_that_is_gone(sqlft_home: Path) -> None:
    hidden = references.hide({"api_key": KEY}, is_secret, "ML_ENGINE my_openai")
    for file in (sqlft_home / "secrets").iterdir():
        file.unlink()
    with pytest.raises(MissingSecret, match="DROP ML_ENGINE my_openai"):
        references.reveal(hidden)


def test_a_made_up_reference_reads_no_other_file(sqlft_home: Path) -> None:
    (sqlft_home / "x").write_text(json.dumps({"value": "stolen"}))
    with pytest.raises(MissingSecret):
        references.reveal({"api_key": {"$secret": "../x"}})


def test_texts_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-other")
    hidden = references.hide({"api_key": KEY, "deep": {"token_secret": Env("MY_KEY")}}, is_secret, "ML_ENGINE e")
    assert references.redact_text(f"key {KEY} and sk-other fail", hidden) == "key **** and **** fail"


def test_an_error_its_notes_and_its_causes_are_redacted() -> None:
    build_options(Login, {"api_key": KEY, "user": "me-myself"}, "It")
    error = StatementError("No.", f"USING x = '{KEY}'", 3, f"Not {KEY!r}.")
    error.__cause__ = ValueError(f"{KEY} and 'other-secret'")
    error.add_note(f"Also {KEY}, me-myself.")
    redact_error(error, {"other-secret"})
    told = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert KEY not in told
    assert "other-secret" not in told
    assert "Also ****, me-myself." in told
    assert "and '************'" in told


@pytest.mark.parametrize("cut", ["...{end}', 1) + nonsense", "SELECT nonsense, '{start}...", "...{start}{end}' x..."])
def test_an_excerpt_that_begins_or_ends_within_a_secret(cut: str) -> None:
    secret = "0123456789abcdefghij"
    line = cut.format(start=secret[:10], end=secret[10:])
    error = ValueError(f"Parser Error: no\n\nLINE 1: {line}\n        ^")
    redact_error(error, {secret})
    shown = str(error).splitlines()[2]
    assert not any(secret[i : i + 6] in shown for i in range(15))
    assert len(shown) == len(f"LINE 1: {line}")


@pytest.mark.parametrize("word", ["x", "none", "EMPTY", "ollama", "lm-studio", "sk-no-key-required", "not-needed"])
def test_a_word_in_a_keys_place_is_starred_out_in_a_header_only(word: str) -> None:
    build_options(Login, {"api_key": word}, "It")
    sent = f"Authorization: Bearer {word}"
    text = f"max_tokens of {word}, '{word}' and {word}s; none left in x"
    error = ValueError(f"{text}; {sent}, {sent}y")
    redact_error(error, {word, f"'{word}'"})
    assert re.sub(r"\*+", "****", str(error)) == f"{text}; Authorization: Bearer ****, {sent}y"


def test_a_word_in_a_keys_place_is_starred_out_where_a_statement_is_quoted() -> None:
    error = ValueError("no 'ollama'\n\nLINE 1: … PASSWORD 'ollama' oops\n        ^")
    redact_error(error, {"ollama", "'ollama'"})
    assert str(error) == "no 'ollama'\n\nLINE 1: … PASSWORD '******' oops\n        ^"


@pytest.mark.parametrize("key", ["sk-1234", "hunter2", "swordfishes", "a-pass-phrase"])
def test_a_key_is_starred_out_wherever_it_stands(key: str) -> None:
    build_options(Login, {"api_key": key}, "It")
    error = ValueError(f"a{key}b and {key}")
    redact_error(error)
    assert str(error) == "a****b and ****"


@dataclass
class Login:
    """Options with a secret."""

    api_key: Annotated[str | None, "the key", Secret()] = None
    user: Annotated[str, "who"] = ""


@pytest.mark.parametrize("given", ["OPENAI_API_KEY", "${HF_TOKEN}", "$MY_KEY", "env(OPENAI_API_KEY)"])
def test_the_name_of_a_variable_given_as_a_key_is_not_starred_out(given: str) -> None:
    """Whatever else a message says of that variable stays readable."""
    assert redact(f"Set the environment variable {given}.", given) == f"Set the environment variable {given}."
    assert redact("password $ecret2word", "$ecret2word") == "password ****"
