"""Trainings at a provider: real workers, a real server, Ctrl-C and kill -9; the job there is made once and lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sqlft
from sqlft.catalog.files import LOCK_FILE
from sqlft.catalog.records import ModelKey, Version, VersionKey
from sqlft.errors import Cancelled, CatalogError, ProviderError
from sqlft.session import Tick
from sqlft.training import job

ROWS = "CREATE TABLE rows AS SELECT 'q' || i AS question, 'a' || i AS answer FROM range(12) t(i)"
FINETUNE = "FINETUNE m FROM (SELECT * FROM rows)"


class RemoteTraining:
    """A connection with a model `m` of a provider's; its catalog lies in SQLFT_HOME."""

    def __init__(self, provider: Any, until: Callable[..., Any]) -> None:
        self.provider, self.until = provider, until
        self.warnings: list[str] = []
        self.on_tick: Callable[[Tick], None] = lambda tick: None
        self.folder = os.environ["SQLFT_HOME"]
        self.con = sqlft.connect(
            warn=self.warnings.append, progress=lambda tick: self.on_tick(tick), catalog=self.folder
        )
        self.run(
            f"CREATE ML_ENGINE e FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}',"
            " poll_seconds = 0.02"
        )
        self.run(
            "CREATE MODEL m PREDICT answer USING engine = 'e', base = 'gpt-4o-mini', prompt_template = '{{question}}'"
        )
        self.run(ROWS)

    @property
    def catalog(self) -> Any:
        return self.con.session.catalog

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    def version(self, number: int = 2) -> Version:
        found: Version = self.catalog.version(VersionKey(ModelKey("m"), number))
        return found

    def wait_until_ended(self, number: int = 2) -> Version:
        self.until(lambda: self.version(number).status not in ("queued", "training"))
        return self.version(number)

    def wait_for_job(self) -> dict[str, Any]:
        """The provider's only job, once it is there and the worker knows of it."""
        self.until(lambda: self.provider.count("/fine_tuning/jobs/", "GET"))
        [job] = self.provider.jobs.values()
        return dict(job)

    def read_worker_pid(self) -> int:
        return int((self.catalog.work_folder(VersionKey(ModelKey("m"), 2)) / LOCK_FILE).read_text())

    def interrupt_when(self, ready: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=lambda: (self.until(ready), self.con.interrupt()))
        thread.start()
        return thread

    def start_process(self, code: str) -> subprocess.Popen[str]:
        text = f"import sqlft\ncon = sqlft.connect(warn=lambda text: None, catalog={self.folder!r})\n{code}"
        return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def remote(provider: Any, until: Any) -> Iterator[RemoteTraining]:
    made = RemoteTraining(provider, until)
    yield made
    for version in made.catalog.versions():
        if version.status in ("queued", "training"):
            job.kill_worker(made.catalog.work_folder(version.key))
    made.con.close()


def test_ctrl_c_detaches_and_resume_watches_again(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    thread = remote.interrupt_when(lambda: provider.count("/fine_tuning/jobs/", "GET"))
    with pytest.raises(Cancelled, match=r"goes on at the provider[^$]*RESUME MODEL m\.2[^$]*CANCEL MODEL m\.2"):
        remote.run(FINETUNE)
    thread.join()
    assert remote.version().status == "training"
    provider.hold = False
    assert remote.run("RESUME MODEL m")[0][5] == "complete"
    assert remote.run("SELECT answer FROM m WHERE question = 'q3'") == [("a3",)]
    assert len(provider.created) == 1
    assert remote.version().details["trained_tokens"] > 0
    assert remote.version().details["cost_usd"] > 0
    assert remote.run("SELECT count(*) > 1 FROM sqlft.metrics WHERE name = 'loss'") == [(True,)]


def test_the_worker_is_killed_between_made_and_written(remote: RemoteTraining, provider: Any) -> None:
    hit = provider.inject_fault("hang", path="/fine_tuning/jobs", method="POST", after=True, seconds=60)
    remote.run(f"{FINETUNE} USING wait = false")
    remote.until(lambda: provider.created)
    os.kill(remote.read_worker_pid(), signal.SIGKILL)
    assert remote.wait_until_ended().status == "interrupted"
    assert hit.hits == 1
    remote.run("RESUME MODEL m.2")
    assert remote.version().status == "complete"
    assert len(provider.created) == 1
    assert provider.count("/files", "POST") == 1


def test_the_worker_is_killed_while_it_watches(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    remote.run(f"{FINETUNE} USING wait = false")
    remote.wait_for_job()
    os.kill(remote.read_worker_pid(), signal.SIGKILL)
    assert remote.wait_until_ended().status == "interrupted"
    provider.hold = False
    resumed = remote.start_process("print(con.execute('RESUME MODEL m.2').fetchall())")
    said, errors = resumed.communicate()
    assert "complete" in said, errors
    assert len(provider.created) == 1


def test_a_killed_session_leaves_the_job_alone(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    other = remote.start_process(f'con.execute("{ROWS}")\ncon.execute("{FINETUNE}")')
    job = remote.wait_for_job()
    other.kill()
    other.communicate()
    assert remote.wait_until_ended().status == "interrupted"
    assert provider.jobs[job["id"]]["fate"] is None
    with pytest.raises(CatalogError, match="interrupted"):
        remote.run("SELECT answer FROM m.2 WHERE question = 'q3'")
    provider.hold = False
    assert remote.run("RESUME MODEL m.2 USING wait = true")[0][5] == "complete"
    assert len(provider.created) == 1


def test_cancel_reaches_the_provider(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    remote.run(f"{FINETUNE} USING wait = false")
    job = remote.wait_for_job()
    assert remote.run("CANCEL MODEL m")[0][5] == "cancelled"
    assert provider.jobs[job["id"]]["fate"] == "cancelled"
    provider.hold = False
    assert remote.run("RESUME MODEL m.2")[0][5] == "complete"
    assert len(provider.created) == 2


def test_cancel_without_a_worker_and_without_a_provider(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    remote.run(f"{FINETUNE} USING wait = false")
    job = remote.wait_for_job()
    os.kill(remote.read_worker_pid(), signal.SIGKILL)
    assert remote.wait_until_ended().status == "interrupted"
    fault = provider.inject_fault("403", None, path="/cancel")
    with pytest.raises(ProviderError):
        remote.run("CANCEL MODEL m.2")
    assert remote.version().status == "interrupted"
    provider.faults.remove(fault)
    other = remote.start_process("print(con.execute('CANCEL MODEL m.2').fetchall())")
    said, errors = other.communicate()
    assert "cancelled" in said, errors
    assert provider.jobs[job["id"]]["fate"] == "cancelled"


def test_cancel_while_another_waits(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    other = remote.start_process(
        f'con.execute("{ROWS}")\ntry:\n    con.execute("{FINETUNE}")\nexcept sqlft.Cancelled as e:\n    print(e)'
    )
    remote.wait_for_job()
    remote.run("CANCEL MODEL m.2")
    said, errors = other.communicate()
    assert "was cancelled" in said, errors


def test_dropping_cancels_and_the_engine_stays(remote: RemoteTraining, provider: Any) -> None:
    provider.hold = True
    remote.run(f"{FINETUNE} USING wait = false")
    job = remote.wait_for_job()
    with pytest.raises(CatalogError, match="used by the model 'm'"):
        remote.run("DROP ML_ENGINE e")
    remote.run("DROP MODEL m")
    assert provider.jobs[job["id"]]["fate"] == "cancelled"


def test_what_the_provider_refuses(remote: RemoteTraining, provider: Any) -> None:
    with pytest.raises(sqlft.DataError, match="10 rows or more, and there are 5"):
        remote.run("FINETUNE m FROM (SELECT * FROM rows LIMIT 5)")
    assert [v.key.number for v in remote.catalog.versions()] == [1]
    assert provider.calls == []
    provider.fails = "line 3 is unsafe"
    with pytest.raises(ProviderError, match=r"(?s)failed: .*line 3 is unsafe"):
        remote.run(FINETUNE)
    assert remote.version().status == "failed"


def test_the_key_is_nowhere(remote: RemoteTraining, provider: Any, sqlft_home: Any) -> None:
    provider.hold = True
    remote.run(f"{FINETUNE} USING wait = false")
    remote.wait_for_job()
    remote.until(
        lambda: "created" in (remote.catalog.work_folder(remote.version().key) / "files" / "job.json").read_text()
    )
    os.kill(remote.read_worker_pid(), signal.SIGKILL)
    remote.wait_until_ended()
    found = [
        str(path)
        for path in sqlft_home.rglob("*")
        if path.is_file() and "secrets" not in path.parts and provider.key.encode() in path.read_bytes()
    ]
    assert found == []
    remote.run("CANCEL MODEL m.2")


def test_vllm_does_not_train(remote: RemoteTraining) -> None:
    remote.run("CREATE MODEL v PREDICT answer USING engine = 'vllm', base = 'x', prompt_template = '{{question}}'")
    with pytest.raises(sqlft.NotSupported, match=r"(?s)vllm.*cannot train.*serve"):
        remote.run("FINETUNE v FROM (SELECT * FROM rows)")
