"""What every test gets: a home of its own, and on request a stranger's handler package."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

import sqlft
from sqlft import plugins, redact
from sqlft.catalog.records import ModelKey, Version, VersionKey
from sqlft.catalog.store import Catalog
from sqlft.session import Tick
from sqlft.training import job

HANDLERS = Path(__file__).parent / "handlers"
sys.path.append(str(Path(__file__).parent))  # for the package `provider`
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""

T = TypeVar("T")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests that were started in the background inherit this, and so would every process that they interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _collected_once() -> None:
    """What imports have made is not looked through at each collection: with PyTorch that is a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def sqlft_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own in place of the user's, and no secrets of other tests."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SQLFT_HOME", str(folder))
    monkeypatch.setattr(redact, "_known_secrets", set())
    return folder


@pytest.fixture
def provider() -> Iterator[Any]:
    """A provider of models over real sockets; see tests/provider."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    from provider import Provider

    with Provider() as made:
        yield made


@dataclass
class TrainingControl:
    """Steers the stranger's training through files; see tests/handlers/stranger.py."""

    folder: Path

    def script(self, steps: dict[int | str, str]) -> None:
        """What happens at which step: listen, deaf, kill, exit, memory, crash, …"""
        (self.folder / "go").unlink(missing_ok=True)
        for marker in self.folder.glob("at-*"):
            marker.unlink()
        (self.folder / "script.json").write_text(json.dumps(steps))

    def wait_for(self, name: str) -> Any:
        """What the handler wrote under that name, once it does: begun, at-<step>."""
        path = self.folder / name
        until(path.exists)
        return json.loads(path.read_text())

    def go(self) -> None:
        """Let it go on."""
        (self.folder / "go").touch()


@pytest.fixture
def training_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainingControl]:
    """The package `stranger`, installed beside sqlft with an entry point, and a hand in its training."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    control = tmp_path / "control"
    control.mkdir()
    yield TrainingControl(control)
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def connection_with_model(training_control: TrainingControl) -> Iterator[ConnectionWithModel]:
    """A connection with a table `rows` and a model `m` of the stranger's; its catalog lies in SQLFT_HOME."""
    made = ConnectionWithModel(training_control)
    made.run("CREATE TABLE rows AS SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)")
    made.run("CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny', prompt_template = '{{question}}'")
    made.warnings.clear()
    yield made
    for version in made.con.session.catalog.versions():
        if version.status in ("queued", "training"):
            job.kill_worker(made.con.session.catalog.work_folder(version.key))
    made.con.close()


class ConnectionWithModel:
    """A connection, what it warns of and how far it says it is; other sessions share its catalog."""

    def __init__(self, training_control: TrainingControl) -> None:
        self.warnings: list[str] = []
        self.ticks: list[Tick] = []
        self.on_tick: Callable[[Tick], None] = self.ticks.append
        self.training = training_control
        self.folder = os.environ["SQLFT_HOME"]
        self.con = sqlft.connect(
            warn=self.warnings.append, progress=lambda tick: self.on_tick(tick), catalog=self.folder
        )

    @property
    def catalog(self) -> Catalog:
        return self.con.session.catalog

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.con.execute(sql).fetchall()

    def train(
        self, using: str = "", what: str = "FINETUNE m", rows: str = "SELECT * FROM rows"
    ) -> list[tuple[Any, ...]]:
        """FINETUNE m, steered by the stranger's control folder."""
        more = f", {using}" if using else ""
        return self.run(f"{what} FROM ({rows}) USING control = '{self.training.folder}'{more}")

    def version(self, number: int, name: str = "m") -> Version:
        """A version as the catalog has it."""
        return self.catalog.version(VersionKey(ModelKey(name), number))

    def wait_until_ended(self, number: int) -> Version:
        """A version once it does not train any more."""
        until(lambda: self.version(number).status not in ("queued", "training"))
        return self.version(number)

    def ask(self, question: str, name: str = "m") -> str:
        """A model's answer."""
        return str(self.run(f"SELECT answer FROM {name} WHERE question = '{question}'")[0][0])

    def start_process(self, code: str) -> subprocess.Popen[str]:
        """Another process with a connection `con` on this catalog and the same rows."""
        text = (
            "import sqlft\n"
            f"con = sqlft.connect(warn=lambda text: None, catalog={self.folder!r})\n"
            "con.execute(\"CREATE TABLE rows AS SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)\")\n"
            f"using = \"USING control = '{self.training.folder}'\"\n"
        )
        env = {**os.environ, "PYTHONPATH": str(HANDLERS)}
        return subprocess.Popen(
            [sys.executable, "-c", text + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )


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
