"""The shell as a person has it: the command in a process of its own, through pipes or at a terminal."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

HANDLERS = Path(__file__).parent.parent / "handlers"
PATIENCE = 60
"""Seconds after which a test that waits has failed."""
SQLFT = [sys.executable, "-m", "sqlft"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**more: str) -> dict[str, str]:
    """The test's, with the handlers of tests/handlers installed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    path = os.pathsep.join(filter(None, [str(HANDLERS), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm-256color", **more}


@pytest.fixture
def run_sqlft(tmp_path: Path) -> Run:
    """Runs `sqlft …` in tmp_path; `stdin` is the text that is piped in."""

    def call(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SQLFT, *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=environment(**more),
            timeout=PATIENCE,
        )

    return call


@pytest.fixture
def start_sqlft(tmp_path: Path) -> Callable[..., subprocess.Popen[Any]]:
    """Starts `sqlft …` in tmp_path and does not wait."""

    def call(*arguments: str | bytes, **given: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen([*SQLFT, *arguments], cwd=tmp_path, env=environment(), **given)

    return call


class Terminal:
    """A shell at a terminal of `columns`; `screen` is all that was written, without escape codes."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 100, into: str = "", **more: str) -> None:
        self._written: list[str] = []
        self.child: Any = pexpect.spawn(
            "bash",
            ["-c", shlex.join([*SQLFT, *arguments]) + (f" > {into}" if into else "")],
            env=environment(**more),
            cwd=str(folder),
            encoding="utf-8",
            dimensions=(40, columns),
            timeout=PATIENCE,
        )
        self.child.logfile_read = self

    def write(self, text: str) -> None:
        self._written.append(text)

    def flush(self) -> None:
        """For pexpect."""

    @property
    def raw(self) -> str:
        return "".join(self._written)

    @property
    def screen(self) -> str:
        return _ESCAPES.sub("", self.raw)

    def prompt(self) -> None:
        """Wait for the next prompt."""
        self.child.expect(r"sqlft> ")

    def type(self, text: str) -> str:
        """Type a line and wait for the next prompt; what was written meanwhile."""
        before = len(self.raw)
        self.child.send(f"{text}\r")
        self.child.expect(r"\x1b\[\?2004l")
        self.prompt()
        return _ESCAPES.sub("", self.raw[before:])

    def start(self, text: str, until: str) -> None:
        """Type a line and wait until something is written."""
        self.child.send(f"{text}\r")
        self.child.expect(r"\x1b\[\?2004l")
        self.child.expect(until)

    def end(self) -> int | None:
        """Wait for the process to end; its exit code."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        code: int | None = self.child.exitstatus
        return code


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Makes shells at terminals, in tmp_path."""
    made: list[Terminal] = []

    def spawn(*arguments: str, **how: Any) -> Terminal:
        shell = Terminal(tmp_path, *arguments, **how)
        made.append(shell)
        return shell

    yield spawn
    for shell in made:
        shell.child.close(force=True)
