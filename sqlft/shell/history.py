"""What was typed, kept for the arrow keys of the next session, without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from sqlft.errors import StatementError
from sqlft.home import home
from sqlft.redact import names_secret, redact_keys, redact_statement
from sqlft.sql.lexer import Token, tokenize

STARS = "'********'"
_GIVES = {"=", ":", ":=", "=>", "=="}
# Passwords within addresses and connection strings, which no option's name tells.
_INSIDE = [
    re.compile(r"(\w://[^\s:/@']*:)[^\s/@']+(?=@)"),
    re.compile(r"(\b(?:passwo?r?d|pwd|passphrase)\s*=\s*)[^\s;'\"*]+", re.IGNORECASE),
    re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
]


def without_secrets(text: str) -> str:
    """The text with stars in place of keys, passwords and their like; of CREATE SECRET no string stays."""
    try:
        found = tokenize(text)
    except StatementError:
        found, text = [], redact_statement(text)
    for token in sorted(_secrets(found), key=lambda t: -t.start):
        text = text[: token.start] + STARS + text[token.end :]
    for pattern in _INSIDE:
        text = pattern.sub(r"\1********", text)
    return redact_keys(text, "********")


def _secrets(found: list[Token]) -> set[Token]:
    if [t.word for t in found[:1]] == ["CREATE"] and "SECRET" in [t.word for t in found[1:5]]:
        return {t for t in found if t.kind == "string"}
    return {t for i in range(len(found)) if _is_name(found[i]) for t in _value(found, i + 1)}


def _is_name(token: Token) -> bool:
    return token.kind in ("word", "quoted", "string") and (
        names_secret(token.value) or token.value.lower().endswith("key_id")
    )


def _value(found: list[Token], at: int) -> Iterator[Token]:
    """The literals that a secret's name is followed by, up to the next option; nothing of env('NAME')."""
    given = at < len(found) and found[at].text in _GIVES
    kinds = ("string", "quoted", "word", "number") if given else ("string",)
    for token in found[at + given :]:
        if token.kind in kinds and token.word != "ENV":
            yield token
            kinds = ("string",)
        elif token.text != "||":
            return


class SafeHistory(FileHistory):
    """A history file; secrets are masked in memory too."""

    def append_string(self, string: str) -> None:
        """Keep a statement."""
        super().append_string(without_secrets(string))

    def store_string(self, string: str) -> None:
        """Write it, if the file still can be written: a full disk is no reason to stop."""
        try:
            super().store_string(string)
        except OSError:
            return


class SafeMemory(InMemoryHistory):
    """A history that ends with the session."""

    def append_string(self, string: str) -> None:
        """Keep a statement."""
        super().append_string(without_secrets(string))


def open_history() -> History:
    """The history of this user; one in memory where no file can be written."""
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return SafeMemory()
    return SafeHistory(str(path))


def history_file() -> Path:
    """`history` in the user's folder."""
    return home() / "history"
