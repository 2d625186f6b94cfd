"""What every test gets: a home of its own, and on request a stranger's handler package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sqlft import plugins

HANDLERS = Path(__file__).parent / "handlers"
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""

T = TypeVar("T")


@pytest.fixture(autouse=True)
def sqlft_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own in place of the user's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SQLFT_HOME", str(folder))
    return folder


@dataclass
class Stranger:
    """Steers the stranger's training through files; see tests/handlers/stranger.py."""

    control: Path

    def script(self, steps: dict[int | str, str]) -> None:
        """What happens at which step: listen, deaf, kill, exit, memory, crash, …"""
        (self.control / "go").unlink(missing_ok=True)
        for told in self.control.glob("at-*"):
            told.unlink()
        (self.control / "script.json").write_text(json.dumps(steps))

    def wait_for(self, name: str) -> Any:
        """What the handler told under that name, once it does: begun, at-<step>."""
        path = self.control / name
        until(path.exists)
        return json.loads(path.read_text())

    def go(self) -> None:
        """Let it go on."""
        (self.control / "go").touch()


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    """The package `stranger`, installed beside sqlft with an entry point, and a hand in its training."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.found.cache_clear()
    control = tmp_path / "control"
    control.mkdir()
    yield Stranger(control)
    plugins.found.cache_clear()


def until(what: Callable[[], T]) -> T:
    """Ask until the answer is true; fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return answer


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], T]], T]:
    return until
