"""What is reported beside results: every error that sqlft raises, its warnings, and the log.

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

DuckDB's own errors pass through as they are.  Warnings are a SqlftWarning at the caller's line.  Handlers find here too
what keeps a secret out of a message.

The logger `sqlft` has DEBUG messages only: plans, requests, answers counted, what happens to trainings.  To read them,
give it a level and a handler; `write_log_to` does so for the command line and the processes that train.  As long as
nobody has imported `logging` nobody reads, so that sqlft does not import it either.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import duckdb

from sqlft.redact import STARS as STARS
from sqlft.redact import names_variable as names_variable
from sqlft.redact import redact as redact
from sqlft.redact import redact_keys as redact_keys
from sqlft.redact import redact_secrets, redact_statement

if TYPE_CHECKING:
    import logging


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


LOGGER_NAME = "sqlft"
LOG_VARIABLE = "SQLFT_LOG"
"""The environment variable that is `debug` where the command line and trainings show their log."""
LOG_LINE_PREFIX = "DEBUG "
"""How lines begin that `write_log_to` writes."""
DEBUG_LEVEL = 10
_SKIPPED_MODULES = ("contextlib", "functools", "weakref")
"""Modules between our own frames, and never who called us."""
_log_handlers: list[logging.Handler] = []


def debug(text: str, *values: object) -> None:
    """Log a message, its values put in as logging does, secrets redacted; cheap where nobody reads."""
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    if logger.isEnabledFor(DEBUG_LEVEL):
        logger.debug("%s", redact_secrets(text % values), stacklevel=2)


def is_log_requested() -> bool:
    """Whether the environment asks for the log to be shown."""
    return os.environ.get(LOG_VARIABLE, "").lower() == "debug"


def write_log_to(write: Callable[[str], object]) -> None:
    """Let the log be written, a line at a time; in place of where an earlier call has it written."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in self.format(record).splitlines():
                write(f"{LOG_LINE_PREFIX}{line}")

    logger = logging.getLogger(LOGGER_NAME)
    while _log_handlers:
        logger.removeHandler(_log_handlers.pop())
    handler = Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(DEBUG_LEVEL)
    _log_handlers.append(handler)


def show_warning(text: str) -> None:
    """A SqlftWarning at the line that called sqlft, shown each time.

    Where warnings are errors (`python -W error`) it is shown all the same, and not raised: it would come in the middle
    of results that are paid for.
    """
    text = redact_secrets(text)
    frame = _find_caller(sys._getframe(1))
    file, line = (LOGGER_NAME, 1) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    module = LOGGER_NAME if frame is None else str(frame.f_globals.get("__name__"))
    try:
        warnings.warn_explicit(text, SqlftWarning, file, line, module)  # without a registry none is left out as known
    except SqlftWarning as e:
        warnings.showwarning(e, SqlftWarning, file, line)


def _find_caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is not sqlft's; None in a thread that sqlft or DuckDB has started."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] != LOGGER_NAME and name not in _SKIPPED_MODULES:
            return None if name == "threading" else frame
        frame = frame.f_back
    return None
