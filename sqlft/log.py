"""What is reported beside results: warnings at the caller's line, and the logger `sqlft`.

The logger has DEBUG messages only: plans, requests, answers counted, what happens to trainings.  To read them,
give it a level and a handler; `write_log_to` does so for the command line and the processes that train.  As long as
nobody has imported `logging` nobody reads, so that sqlft does not import it either.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from sqlft.errors import SqlftWarning
from sqlft.secrets.redact import redact_secrets

if TYPE_CHECKING:
    import logging

NAME = "sqlft"
VARIABLE = "SQLFT_LOG"
"""The environment variable that is `debug` where the command line and trainings show their log."""
LINE_PREFIX = "DEBUG "
"""How lines begin that `write_log_to` writes."""
DEBUG = 10
_SKIPPED_MODULES = ("contextlib", "functools", "weakref")
"""Modules between our own frames, and never who called us."""
_log_handlers: list[logging.Handler] = []


def debug(text: str, *values: object) -> None:
    """Log a message, its values put in as logging does, secrets redacted; cheap where nobody reads."""
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    if logger.isEnabledFor(DEBUG):
        logger.debug("%s", redact_secrets(text % values), stacklevel=2)


def is_requested() -> bool:
    """Whether the environment asks for the log to be shown."""
    return os.environ.get(VARIABLE, "").lower() == "debug"


def write_log_to(write: Callable[[str], object]) -> None:
    """Let the log be written, a line at a time; in place of where an earlier call has it written."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in self.format(record).splitlines():
                write(f"{LINE_PREFIX}{line}")

    logger = logging.getLogger(NAME)
    while _log_handlers:
        logger.removeHandler(_log_handlers.pop())
    handler = Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(DEBUG)
    _log_handlers.append(handler)


def warn(text: str) -> None:
    """A SqlftWarning at the line that called sqlft, shown each time.

    Where warnings are errors (`python -W error`) it is shown all the same, and not raised: it would come in the middle
    of results that are paid for.
    """
    text = redact_secrets(text)
    frame = _find_caller(sys._getframe(1))
    file, line = (NAME, 1) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    module = NAME if frame is None else str(frame.f_globals.get("__name__"))
    try:
        warnings.warn_explicit(text, SqlftWarning, file, line, module)  # without a registry none is left out as known
    except SqlftWarning as e:
        warnings.showwarning(e, SqlftWarning, file, line)


def _find_caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is not sqlft's; None in a thread that sqlft or DuckDB has started."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] != NAME and name not in _SKIPPED_MODULES:
            return None if name == "threading" else frame
        frame = frame.f_back
    return None
