"""Where the shell writes: results to stdout or a file, all else to stderr; colour on a terminal only."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import TextIO

from sqlft.connection.progress import ProgressBar
from sqlft.errors import SqlftError
from sqlft.shell.output.folding import fold_message
from sqlft.shell.output.table import TableStyle, escape_controls

FLUSH_SECONDS = 0.5
"""So long rows may wait for those that come after them."""
MODES_BY_ENDING = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonlines",
    ".ndjson": "jsonlines",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
}
_RED, _YELLOW, _DIM = "31", "33", "90"


class Screen:
    """The streams, with the progress bar out of the way of what is written."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._redirected: TextIO | None = None
        self._redirected_once: TextIO | None = None
        self._lock = threading.RLock()
        self._flushed = monotonic()
        self._is_live = False
        """Whether the cursor stands behind a piece of an answer."""
        self.streamed = ""
        """What was shown so far of the statement's answer while it was written."""
        self.bar = ProgressBar(self._err)

    @property
    def _file(self) -> TextIO | None:
        """Where results go if not to stdout."""
        return self._redirected_once or self._redirected

    @property
    def file_mode(self) -> str | None:
        """How results are written to the file, by its ending."""
        return None if self._file is None else MODES_BY_ENDING.get(Path(self._file.name).suffix.lower())

    @property
    def is_terminal(self) -> bool:
        """Whether results go to a terminal."""
        return self._file is None and self._out.isatty()

    @property
    def table_style(self) -> TableStyle:
        """How tables are to be drawn now."""
        if self._file is not None:
            return TableStyle()
        width = None
        if self._out.isatty() or os.environ.get("COLUMNS"):
            width = max(shutil.get_terminal_size().columns, 10)
        return TableStyle(width, _has_colour(self._out), ascii=not _can_draw(self._out))

    @property
    def shows_answer_parts(self) -> bool:
        """Whether somebody watches: then an answer is shown while it is written."""
        return self._out.isatty() and self._err.isatty()

    def show_answer_part(self, text: str) -> None:
        """A part of an answer that is being written."""
        with self._lock:
            if not self.is_terminal:
                return
            self.bar.hide_for_statement()
            self.streamed += text
            visible = "\n".join(escape_controls(line, len(line)) for line in text.split("\n"))
            self._err.write(f"\x1b[{_DIM}m{visible}\x1b[0m" if _has_colour(self._err) else visible)
            self._err.flush()
            self._is_live = not visible.endswith("\n")

    def _end_answer_part(self) -> None:
        """What else is written starts on a line of its own."""
        if self._is_live:
            self._is_live = False
            self._err.write("\n")
            self._err.flush()

    def write(self, text: str) -> None:
        """Results."""
        with self._lock:
            self._end_answer_part()
            if self._file is not None:
                self._file.write(text)
                return
            if self._out.isatty():
                self.bar.hide_for_statement()
            self._out.write(text)
            if monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Let results be seen."""
        (self._file or self._out).flush()
        self._flushed = monotonic()

    def error(self, text: str) -> None:
        """An error, in red."""
        self._write_message(text, _RED)

    def warn(self, text: str) -> None:
        """A warning of a statement: "3 of 20 rows failed …"."""
        self._write_message(text, _YELLOW)

    def note(self, text: str) -> None:
        """A remark for the person at the terminal."""
        self._write_message(text, _DIM)

    def ask(self, text: str) -> None:
        """A question, or a part of one, the cursor behind it."""
        with self._lock:
            self.bar.hide()
            if self._out.isatty():
                self._out.flush()
            text = fold_message(text, self._message_width())
            self._err.write(f"\r\x1b[K{text}" if _has_colour(self._err) else text)
            self._err.flush()

    def draw(self) -> None:
        """Bring the progress bar up to date."""
        with self._lock:
            self.bar.draw()

    def hide_bar(self) -> None:
        """Take the progress bar away."""
        with self._lock:
            self._end_answer_part()
            self.bar.hide()

    def redirect(self, path: str | None) -> None:
        """Send results to a file from now on, or back to stdout."""
        self.end_once()
        if self._redirected is not None:
            self._redirected.close()
            self._redirected = None
        if path is not None:
            self._redirected = _open_file(path)

    def redirect_once(self, path: str) -> None:
        """Send results to a file until `end_once`."""
        self.end_once()
        self._redirected_once = _open_file(path)

    def end_once(self) -> None:
        """Results go where they went before `redirect_once`."""
        if self._redirected_once is not None:
            self._redirected_once.close()
            self._redirected_once = None

    def _message_width(self) -> int | None:
        return max(shutil.get_terminal_size().columns, 20) if self._err.isatty() else None

    def _write_message(self, text: str, colour: str) -> None:
        with self._lock:
            self._end_answer_part()
            self.bar.hide()
            if self._out.isatty():
                self._out.flush()
            text = fold_message(text, self._message_width())
            if _has_colour(self._err):
                text = f"\r\x1b[K\x1b[{colour}m{text}\x1b[0m"  # over the ^C that the terminal has written, if any
            self._err.write(f"{text}\n")
            self._err.flush()


def _open_file(path: str) -> TextIO:
    try:
        return Path(path).expanduser().open("w", encoding="utf-8")
    except OSError as e:
        raise SqlftError(f"{path} cannot be written: {e.strerror}.", "Name another file.") from e


def _has_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _can_draw(stream: TextIO) -> bool:
    try:
        "│┌…·".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
