"""docs/shell.md: its session and its commands print what it says, and it knows every dot-command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlft.shell.commands import COMMANDS
from sqlft.shell.output.modes import MODES

PAGE = (Path(__file__).parents[2] / "docs/shell.md").read_text(encoding="utf-8")
SESSION = next(b for b in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if b.startswith("sqlft> "))
CONSOLE = re.findall(
    r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)[1], re.MULTILINE
)  # type: ignore[index]
PROMPT = re.compile(r"^(?:sqlft> |   \.\.\.> )(.*\n)", re.MULTILINE)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?")


def test_the_session(run_sqlft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_sqlft("shell", stdin="".join(PROMPT.findall(SESSION)), COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert MOMENT.sub("", done.stdout) == MOMENT.sub("", PROMPT.sub("", SESSION))


def test_the_commands(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "\n".join(command for command, _ in CONSOLE)
    done = subprocess.run(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout == "".join(printed for _, printed in CONSOLE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_dot_command_is_there(name: str) -> None:
    usage = f".{name} {COMMANDS[name].takes}".strip().replace("|", "\\|")
    assert f"| `{usage}` |" in PAGE


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_there(name: str) -> None:
    assert f"- `{name}` " in PAGE
