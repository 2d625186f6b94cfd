"""A worker's job in its folder, and its process: started, detached, killed.

A worker reads its standard input from the session that started it.  When that ends without a word (kill -9), the worker
stops at its next step and can be resumed.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from sqlft.catalog import records
from sqlft.catalog.database import build_write_error
from sqlft.catalog.files import FILES_FOLDER, JOB_FILE, LOCK_FILE, LOG_FILE, hold_lock, is_locked
from sqlft.catalog.records import VersionKey
from sqlft.catalog.store import Catalog
from sqlft.errors import CatalogError, debug
from sqlft.handler import Artifact, TrainingSet

RESERVE_FILE, RESERVE_BYTES = "reserve", 1 << 20
"""A file that is deleted when the disk is full, so that the catalog can still record that it is."""


@dataclass(frozen=True)
class TrainingJob:
    """One training: options as USING gave them, secrets as references."""

    handler: str
    base: str
    engine_options: Mapping[str, object] = field(default_factory=dict)
    model_options: Mapping[str, object] = field(default_factory=dict)
    train_options: Mapping[str, object] = field(default_factory=dict)
    start: Artifact | None = None
    """What training starts from; None is the base."""
    start_digest: str | None = None
    schema: Mapping[str, object] | None = None
    """The JSON schema of the answers, if they are typed."""


def write_job(work: Path, job: TrainingJob, data: TrainingSet) -> None:
    """Put job and snapshot into a work folder; OSError where that cannot be."""
    import pyarrow.parquet as parquet

    (work / FILES_FOLDER).mkdir()
    (work / JOB_FILE).write_text(records.to_json(asdict(job)), encoding="utf-8")
    write_reserve(work)
    parquet.write_table(data.train, work / "train.parquet")
    if data.valid is not None:
        parquet.write_table(data.valid, work / "valid.parquet")


def change_train_options(work: Path, options: Mapping[str, object]) -> None:
    """Other training options for a job that is resumed."""
    if not options:
        return
    known = json.loads((work / JOB_FILE).read_text(encoding="utf-8"))
    known["train_options"] = {**known["train_options"], **options}
    (work / JOB_FILE).write_text(records.to_json(known), encoding="utf-8")


def write_reserve(work: Path) -> None:
    """Keep some room for the last status of the worker."""
    if not (work / RESERVE_FILE).exists():
        (work / RESERVE_FILE).write_bytes(bytes(RESERVE_BYTES))


def read_job(work: Path) -> tuple[TrainingJob, TrainingSet]:
    """Job and snapshot of a work folder; CatalogError if they are gone or damaged."""
    import pyarrow.parquet as parquet

    try:
        fields = json.loads((work / JOB_FILE).read_text(encoding="utf-8"))
        start = fields["start"]
        if start is not None:
            path = None if start["path"] is None else Path(start["path"])
            fields["start"] = Artifact(path, start["remote_id"], start["details"])
        job = TrainingJob(**fields)
        train = parquet.read_table(work / "train.parquet")
        kept = work / "valid.parquet"
        return job, TrainingSet(train, parquet.read_table(kept) if kept.exists() else None)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise CatalogError(
            f"The rows this version was to be trained on cannot be read from {work}: {e}.",
            "Train a new version: FINETUNE …",
        ) from e


def can_resume(work: Path) -> bool:
    """Whether a work folder still has what its worker needs."""
    return (work / JOB_FILE).exists() and (work / "train.parquet").exists()


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


DETACH_MESSAGE = b"d"
STALE_SECONDS = 3600.0
KILL_SECONDS = 5.0


@dataclass
class TrainingWorker:
    """A process that trains one version, started here."""

    process: subprocess.Popen[bytes]
    session: int
    """id() of the session that started it."""
    background: bool
    """Whether it goes on when its session closes."""

    def detach(self) -> None:
        """Let it go on alone."""
        debug("training: process %d goes on alone", self.process.pid)
        stdin = self.process.stdin
        if stdin is not None and not stdin.closed:
            with suppress(OSError):
                os.write(stdin.fileno(), DETACH_MESSAGE)
            with suppress(OSError):
                stdin.close()

    def kill(self) -> None:
        """End it and what it started, now."""
        debug("training: process %d is killed", self.process.pid)
        _kill_process_group(self.process.pid)
        self.process.wait()


_workers: list[TrainingWorker] = []
_workers_lock = threading.Lock()
"""Held while `_workers` changes: connections of several threads start trainings."""


@dataclass
class StagedWork:
    """A work folder that is complete but has no version yet; its lock is ours."""

    folder: Path
    lock: int

    def move_to(self, key: VersionKey, work: Path) -> None:
        """Become the work folder of a version; called while nobody can see that version."""
        if work.exists():  # a number that a crash kept from being committed
            shutil.rmtree(work)
        work.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.folder, work)
        self.folder = work


@contextmanager
def stage_work(catalog: Catalog, job: TrainingJob, data: TrainingSet) -> Iterator[StagedWork]:
    """A work folder with job and snapshot in it, removed again unless a worker took it; CatalogError: disk full."""
    with stage_folder(catalog) as staged:
        write_job(staged.folder, job, data)
        yield staged


@contextmanager
def stage_folder(catalog: Catalog) -> Iterator[StagedWork]:
    """An empty folder beside those of the models, removed at the end, or once this process is dead."""
    catalog.require_writing()
    models = catalog.folder / "models"
    folder = models / f".staging-{uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        with hold_lock(folder) as lock:
            assert lock is not None
            _remove_stale(models)
            yield StagedWork(folder, lock)
    except OSError as e:
        raise build_write_error(folder, e.strerror or str(e)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spawn_worker(catalog: Catalog, key: VersionKey, lock: int, session: object, *, background: bool) -> TrainingWorker:
    """Start the worker of a version that is queued; it holds the lock from its first moment."""
    work = catalog.work_folder(key)
    command = [sys.executable, "-P", "-m", "sqlft.training.worker", str(catalog.folder.absolute()), *key.model]
    try:
        with open(work / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                [*command, str(key.number), str(lock)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C at the terminal is for the session, which then asks the worker to stop
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
    except OSError as e:
        error = f"The training process could not be started: {e}."
        catalog.update_version(key, status="failed", error=error)
        raise CatalogError(error, f"Correct that, then RESUME MODEL {key}.") from e
    debug("training %s: process %d started, its log is %s", key, process.pid, work / LOG_FILE)
    worker = TrainingWorker(process, id(session), background)
    with _workers_lock:
        _workers[:] = [w for w in _workers if w.process.poll() is None] + [worker]
    return worker


def detach_workers(session: object | None = None) -> None:
    """Let the background workers of a session (None: of all) go on alone; call it when a session closes in order."""
    with _workers_lock:
        known = list(_workers)
    for worker in known:
        if worker.background and (session is None or worker.session == id(session)):
            worker.detach()


def kill_worker(work: Path) -> None:
    """End the worker that holds a work folder, wherever it was started."""
    with suppress(OSError, ValueError):
        pid = int((work / LOCK_FILE).read_text())
        if is_locked(work):
            _kill_process_group(pid)
            deadline = time.monotonic() + KILL_SECONDS
            while is_locked(work) and time.monotonic() < deadline:
                time.sleep(0.01)


def _kill_process_group(pid: int) -> None:
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _remove_stale(models: Path) -> None:
    """Delete what sessions that were killed while they staged have left."""
    for folder in models.glob(".staging-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                with hold_lock(folder) as lock:
                    if lock is not None:
                        shutil.rmtree(folder, ignore_errors=True)


def _reset_after_fork() -> None:
    """A forked child must not keep the parent's workers alive, nor let them go."""
    global _workers_lock
    _workers_lock = threading.Lock()  # another thread of the parent may have held it
    for worker in _workers:
        if worker.process.stdin is not None:
            with suppress(OSError):
                worker.process.stdin.close()
        worker.process.returncode = 0
    _workers.clear()


atexit.register(detach_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
