"""Every error that sqlft raises, and its warnings' category, SqlftWarning.

::

    SqlftError (a duckdb.Error, so that ``except duckdb.Error`` sees both)
    ├── StatementError        .sql .line .column
    ├── CatalogError
    │   ├── NotFound
    │   ├── AlreadyExists
    │   └── DatabaseLocked    also a duckdb.IOException
    ├── OptionError
    ├── DataError
    ├── HandlerError
    │   ├── HandlerNotInstalled
    │   ├── NotSupported
    │   ├── MissingSecret
    │   └── ProviderError
    ├── BudgetExceeded
    └── Cancelled

DuckDB's own errors pass through as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

import duckdb

STARS = "****"
PLACEHOLDERS = {
    *("lmstudio", "llamacpp", "localhost", "notneeded", "notrequired", "nokey", "nokeyneeded", "nokeyrequired"),
    *("sknokeyrequired", "dummykey", "fakekey", "testkey", "apikey", "yourkey", "yourapikey"),
}
"""What is given for a key where a server wants any, in letters alone; beside these any single word of ten letters."""
VARIABLE_NAME = re.compile(
    r"\$(?:[A-Z][A-Z0-9_]*|\{\w+\})|(?:env|os\.getenv)\(['\"]?\w+['\"]?\)|[A-Z][A-Z0-9]*_(?:[A-Z0-9]+_)*(?:KEY|TOKEN)"
)
"""The name of a variable, where its value belongs."""


class SqlftError(duckdb.Error):
    """What went wrong, and behind it the next step to take."""

    def __init__(self, message: str, next_step: str = "") -> None:
        self.message = message
        self.next_step = next_step
        super().__init__(f"{message}\n{next_step}" if next_step else message)


class StatementError(SqlftError):
    """A text that is no statement of ours; ``line`` and ``column`` count from 1."""

    def __init__(self, message: str, sql: str = "", offset: int = 0, next_step: str = "") -> None:
        self.sql = sql
        before = sql[:offset]
        self.line = before.count("\n") + 1
        self.column = offset - (before.rfind("\n") + 1) + 1
        super().__init__(message + format_caret(sql, self.line, self.column), next_step)


class CatalogError(SqlftError):
    """The catalog cannot do this."""


class NotFound(CatalogError):
    """No such engine, model or version."""


class AlreadyExists(CatalogError):
    """The name is taken."""


class DatabaseLocked(CatalogError, duckdb.IOException):
    """Another process has the DuckDB file open."""


class OptionError(SqlftError):
    """USING has a key or a value that does not fit."""


class DataError(SqlftError):
    """The rows are not what training or asking needs."""


class HandlerError(SqlftError):
    """A handler failed."""


class HandlerNotInstalled(HandlerError):
    """No such handler, or one whose dependencies are missing."""


class NotSupported(HandlerError):
    """The handler, or sqlft itself, cannot do this."""


class MissingSecret(HandlerError):
    """A key is needed and not there."""


class ProviderError(HandlerError):
    """What makes all rows pointless: bad key, unknown model, no memory."""


class BudgetExceeded(SqlftError):
    """The next request would pass the budget."""


class Cancelled(SqlftError):
    """The user stopped it."""


class SqlftWarning(UserWarning):
    """What a statement did not fail for: "3 of 20 rows failed …"."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the nearest known word, or nothing."""
    by_lower = {k.lower(): k for k in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""


def format_caret(sql: str, line: int, column: int, width: int = 100) -> str:
    if not sql:
        return ""
    text = sql.split("\n")[line - 1].replace("\t", " ").rstrip("\r")
    start = max(0, column - 1 - width // 2)
    piece = text[start : start + width]
    head = f"LINE {line}, column {column}: "
    return f"\n{head}{piece}\n{' ' * (len(head) + column - 1 - start)}^"


def redact(text: str, secret: str, stars: str = STARS) -> str:
    """`text` with stars for a secret; for a word in a key's place only where a header has it.

    >>> redact("Incorrect key: sk-1234abcd", "sk-1234abcd")
    'Incorrect key: ****'
    >>> redact("no model 'ollama'; sent Authorization: Bearer ollama", "ollama")
    "no model 'ollama'; sent Authorization: Bearer ****"
    """
    if not is_placeholder(secret):
        return text.replace(secret, stars)
    return _compile_header_pattern(secret).sub(lambda m: f"{m[1]}{stars}", text)


def is_placeholder(secret: str) -> bool:
    """Whether it is too short or plain to be a secret, as 'x', 'none' or 'ollama' are, or the name of a variable."""
    secret = secret.strip("'\"")
    plain = re.sub(r"[\W_]", "", secret).lower()
    word = bool(re.fullmatch("[A-Za-z]{1,10}", secret))
    return len(secret) < 6 or word or plain in PLACEHOLDERS or names_variable(secret)


def names_variable(secret: str) -> bool:
    """Whether it is the name of an environment variable, such as OPENAI_API_KEY or ${HF_TOKEN}, and no secret."""
    return bool(VARIABLE_NAME.fullmatch(secret))


@lru_cache(maxsize=64)
def _compile_header_pattern(secret: str) -> re.Pattern[str]:
    named = r"\b(?:authorization|(?:x-)?api[-_]?key)\b[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?|\bbearer\s+"
    return re.compile(rf"({named}){re.escape(secret)}(?![\w-])", re.I)
