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

DuckDB's own errors pass through as they are.  Handlers find here too what keeps a secret out of a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import duckdb

from sqlft.secrets.redact import STARS as STARS
from sqlft.secrets.redact import names_variable as names_variable
from sqlft.secrets.redact import redact as redact
from sqlft.secrets.redact import redact_keys as redact_keys
from sqlft.secrets.redact import redact_statement


class SqlftError(duckdb.Error):
    """What went wrong, and behind it the next step to take."""

    def __init__(self, message: str, next_step: str = "") -> None:
        self.message = message
        self.next_step = next_step
        super().__init__(f"{message}\n{next_step}" if next_step else message)


class StatementError(SqlftError):
    """A text that is no statement of ours; ``line`` and ``column`` count from 1, ``sql`` shows no secret."""

    def __init__(self, message: str, sql: str = "", offset: int = 0, next_step: str = "") -> None:
        sql = self.sql = redact_statement(sql)
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

    @classmethod
    def from_duckdb(cls, database: str, error: object) -> DatabaseLocked:
        """What DuckDB says of the file's lock, with who holds it and what can be done."""
        match = re.search(r"held in (.+?) \(PID (\d+)\)", str(error))
        holder = f" ({Path(match[1]).name}, process {match[2]})" if match else ""
        return cls(
            f"{database} is open in another process{holder}, and only one may have it.",
            "Close it there. What trains there needs no lock: "
            f"sqlft models -d {database}, and sqlft watch, cancel or resume NAME.N.",
        )


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
