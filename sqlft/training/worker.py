"""The process that trains one version: `python -m sqlft.training.worker folder model project number lock`.

It opens the catalog and never a DuckDB file.  Whatever happens to it, the version ends in one final status: written
here, or, if this process dies, by whoever finds its lock free.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, SupportsFloat, cast

from sqlft import errors, plugins
from sqlft.catalog import files, records
from sqlft.catalog.files import FILES_FOLDER, LOG_FILE
from sqlft.catalog.records import RUNNING, ModelKey, VersionKey
from sqlft.catalog.store import Catalog
from sqlft.errors import Cancelled, CatalogError, HandlerError, NotFound, NotSupported, SqlftError, debug
from sqlft.handler import Artifact, ModelSpec, Progress, Trainer, TrainingDetails, TrainingSet
from sqlft.options import build_options
from sqlft.redact import redact_secrets
from sqlft.secrets import references
from sqlft.training import job
from sqlft.training.job import DETACH_MESSAGE
from sqlft.training.row_text import keep_first_rows

POLL_SECONDS = 0.1
"""Seconds between two looks at the catalog and the session, and between two writes of metrics."""
GRACE_SECONDS = {"cancelled": 10.0, "interrupted": 5.0}
"""Seconds that a handler has to come by `report` before its process is ended."""
END_DETAILS = ("error_type", "steps", "metrics", "cost_usd")
"""What an earlier end of a resumed training wrote of itself."""
PACKAGES = ("sqlft", "torch", "transformers", "peft", "safetensors", "numpy", "pyarrow", "duckdb")

StopReason = Literal["cancelled", "interrupted"]
_STOP_MESSAGES: dict[StopReason, str] = {
    "cancelled": "Stopped on request.",
    "interrupted": "The session that started it ended.",
}


class TrainingRun:
    """One run of a handler's `train`, and the thread that watches it."""

    def __init__(self, catalog: Catalog, key: VersionKey, session: int) -> None:
        self.catalog = catalog
        self.key = key
        self.work = catalog.work_folder(key)
        self.job = job.TrainingJob("", "")
        self.session_pipe: int | None = session
        """Read end of the pipe from the session; None once it sent DETACH_MESSAGE or is gone."""
        self.start_time = time.monotonic()
        self.earlier_seconds: float | None = None
        """Seconds of the parts before this one, once they are known."""
        self.stop_reason: StopReason | None = None
        self.stop_requested_at = 0.0
        self.is_loading = True
        self.has_raised = False
        self.details: dict[str, object] = {}
        self._reports: list[Progress] = []
        self._last_report: Progress | None = None
        self._flush_lock = threading.Lock()
        self._end_lock = threading.Lock()

    def run(self) -> None:
        """Train and publish; every end is written to the catalog."""
        threading.Thread(target=self._watch, daemon=True).start()
        with suppress(OSError):
            job.write_reserve(self.work)
        try:
            self.job, data = job.read_job(self.work)
            artifact = self._train(data)
            if self.has_raised:
                raise Cancelled(_STOP_MESSAGES[self.stop_reason or "cancelled"])
            with self._end_lock:
                self._publish(artifact)
        except BaseException as e:
            with self._end_lock:
                if self.stop_reason and (self.has_raised or isinstance(e, Cancelled)):
                    self._write_stopped(self.stop_reason)
                elif isinstance(e, Cancelled):
                    self._write_end("cancelled", e.message)
                else:
                    self._log(self._redact_secrets(traceback.format_exc()))
                    self._write_end(
                        "failed", self._redact_secrets(explain_failure(e, self.key, self.work / LOG_FILE)), e
                    )

    def report(self, progress: Progress) -> None:
        """What the handler calls: cheap, raises Cancelled when the training is to stop."""
        numbers = {
            str(name): number
            for name, value in progress.metrics.items()
            if (number := _parse_number(value)) is not None
        }
        total = progress.total_steps
        left = None if progress.seconds_left is None else round(float(progress.seconds_left), 1)
        report = Progress(int(progress.step), None if total is None else int(total), numbers, left)
        if report != self._last_report:
            self._reports.append(report)
            self._last_report = report
        if self.stop_reason:
            self.has_raised = True
            raise Cancelled(_STOP_MESSAGES[self.stop_reason], f"RESUME MODEL {self.key} goes on with it.")

    def _train(self, data: TrainingSet) -> Artifact:
        cls = plugins.load_engine_class(self.job.handler, self.job.engine_options)
        if not issubclass(cls, Trainer):
            raise NotSupported(f"The handler '{self.job.handler}' cannot train.", "SHOW HANDLERS lists those that can.")
        what = f"Version {self.key}"
        handler = cls(build_options(cls.engine_options, references.reveal(self.job.engine_options), what))
        model_options = build_options(cls.model_options, references.reveal(self.job.model_options), what)
        spec = ModelSpec(self.job.base, model_options, self.job.schema)
        options = build_options(cls.train_options, references.reveal(self.job.train_options), what)
        start = self.job.start
        if start is not None and start.path is not None:
            files.verify_artifact(start.path, self.job.start_digest)
        self._mark_started()
        try:
            made = handler.train(spec, start, data, options, self.work / FILES_FOLDER, self.report)
            with suppress(Exception):  # what was trained is whole without it
                self.details["first_rows"] = keep_first_rows(handler, spec, start, data, options)
            return made
        except ImportError as e:
            raise plugins.not_installed_error(self.job.handler, e) from e

    def _mark_started(self) -> None:
        known = self.catalog.version(self.key)
        before = {name: value for name, value in known.details.items() if name not in END_DETAILS}
        self.details = {**before, **_list_environment(self.job.handler)}
        now = {"status": "training", "started_at": known.started_at or records.utc_now(), "details": self.details}
        ours = self.catalog.update_version(self.key, when=RUNNING, **now)
        self.is_loading = False
        debug("training %s: process %d trains with %s", self.key, os.getpid(), self.job.handler)
        if self.stop_reason or not ours:
            raise Cancelled(_STOP_MESSAGES[self.stop_reason or "cancelled"])

    def _publish(self, artifact: Artifact) -> None:
        if not isinstance(artifact, Artifact) or (artifact.path is None and artifact.remote_id is None):
            raise HandlerError(
                f"The handler '{self.job.handler}' trained and returned no artifact: {repr(artifact)[:200]}.",
                "Let its train() return Artifact(path=…) or Artifact(remote_id=…).",
            )
        (self.work / job.RESERVE_FILE).unlink(missing_ok=True)
        opened, digest = None, None
        if artifact.path is not None:
            opened, digest = files.publish_artifact(
                self._copy_if_outside(artifact.path), self.catalog.artifact_folder(self.key)
            )
        with suppress(CatalogError):
            self._flush()
        self.catalog.publish(
            self.key,
            artifact_path=opened,
            artifact_digest=digest,
            remote_id=artifact.remote_id,
            details={
                "peak_memory_bytes": measure_peak_memory(),
                **self._list_last_progress(),
                **self._compute_cost(cast(TrainingDetails, artifact.details)),
                **artifact.details,
                **self.details,
            },
            seconds=self._total_seconds(),
        )
        debug("training %s: published in %.1f s", self.key, self._total_seconds())
        shutil.rmtree(self.work, ignore_errors=True)

    def _copy_if_outside(self, path: Path) -> Path:
        """The path that the handler returned, or a copy of what is not below its workdir and so not ours to move."""
        files = (self.work / FILES_FOLDER).resolve()
        target = (files / path).resolve()
        if not target.exists():
            raise HandlerError(
                f"The handler '{self.job.handler}' returned an artifact that is not there: {path}.",
                "Let its train() write the files before it returns.",
            )
        if target.is_relative_to(files):
            return target
        copy = self.work / "copied" / target.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        return Path(shutil.copytree(target, copy) if target.is_dir() else shutil.copy2(target, copy))

    def _write_stopped(self, why: StopReason) -> None:
        """Stopped here; a job at a provider goes on until the session that cancels it cancels it there."""
        self._write_end("interrupted" if self._is_remote() else why, _STOP_MESSAGES[why])

    def _is_remote(self) -> bool:
        if not self.job.handler:
            return False
        cls = plugins.load_engine_class(self.job.handler, self.job.engine_options)
        return issubclass(cls, Trainer) and cls.remote

    def _write_end(self, status: str, error: str, cause: BaseException | None = None) -> None:
        """Write a final status that is not complete; where the disk is full, after some room was made."""
        for _ in range(50):
            try:
                with suppress(CatalogError):
                    self._flush()
                details = {**self._compute_cost({}), **self.details, **self._list_last_progress()}
                if isinstance(cause, SqlftError):
                    details["error_type"] = type(cause).__name__
                now = {"finished_at": records.utc_now(), "seconds": self._total_seconds()}
                self.catalog.update_version(self.key, when=RUNNING, status=status, error=error, details=details, **now)
                return
            except NotFound:  # it was dropped
                return
            except CatalogError as e:
                self._log(f"could not write the status {status}: {e}")
                time.sleep(POLL_SECONDS)

    def _log(self, text: str) -> None:
        """Write to the log; what is logged are failures, which a full disk may have caused, so room is made first."""
        with suppress(OSError):
            (self.work / job.RESERVE_FILE).unlink(missing_ok=True)
            print(text, file=sys.stderr, flush=True)

    def _redact_secrets(self, text: str) -> str:
        for options in (self.job.engine_options, self.job.model_options, self.job.train_options):
            text = references.redact_text(text, options)
        return redact_secrets(text)

    def _total_seconds(self) -> float:
        """Of all parts of the training."""
        if self.earlier_seconds is None:
            self.earlier_seconds = self.catalog.version(self.key).seconds or 0.0
        return self.earlier_seconds + time.monotonic() - self.start_time

    def _list_last_progress(self) -> dict[str, object]:
        progress = self.catalog.version(self.key).progress
        return {"steps": progress["step"], "metrics": progress["metrics"]} if progress else {}

    def _compute_cost(self, details: TrainingDetails) -> dict[str, object]:
        """What it cost in USD by tokens, else by this machine's hours; nothing where that is not known."""
        by_token, hourly = (self.details.get(name) for name in ("training_usd_per_million", "machine_usd_per_hour"))
        tokens = details.get("trained_tokens", details.get("tokens"))
        if isinstance(by_token, float | int):
            return {"cost_usd": by_token * tokens / 1e6} if tokens is not None else {}
        return {"cost_usd": hourly * self._total_seconds() / 3600} if isinstance(hourly, float | int) else {}

    def _flush(self) -> None:
        with self._flush_lock:
            count = len(self._reports)
            if count:
                self.catalog.add_progress(self.key, self._reports[:count], self._total_seconds())
                del self._reports[:count]

    def _watch(self) -> None:
        """Watch the session and cancel requests, write metrics, and end a handler that does not stop."""
        while True:
            self._poll_session()
            with suppress(CatalogError):
                if self.stop_reason is None and self.catalog.cancel_requested(self.key):
                    self._request_stop("cancelled")
                self._flush()
            waited = time.monotonic() - self.stop_requested_at
            if (
                self.stop_reason
                and (self.is_loading or waited > GRACE_SECONDS[self.stop_reason])
                and self._end_lock.acquire(blocking=False)
            ):
                self._write_stopped(self.stop_reason)
                kill_own_process_group()

    def _poll_session(self) -> None:
        """Wait a beat, or until the session says something or is gone."""
        if self.session_pipe is None:
            time.sleep(POLL_SECONDS)
            return
        ready, _, _ = select.select([self.session_pipe], [], [], POLL_SECONDS)
        if ready:
            if os.read(self.session_pipe, 1) == DETACH_MESSAGE:
                debug("training %s: its session has ended, it goes on", self.key)
            else:
                self._request_stop("interrupted")
            os.close(self.session_pipe)
            self.session_pipe = None

    def _request_stop(self, why: StopReason) -> None:
        if self.stop_reason is None:
            self.stop_requested_at = time.monotonic()
            self.stop_reason = why
            debug("training %s: to be stopped. %s", self.key, _STOP_MESSAGES[why])

    def terminate(self, *_: object) -> None:
        """SIGTERM: stop as if the session had ended."""
        self._request_stop("interrupted")


def explain_failure(error: BaseException, key: VersionKey, log: Path) -> str:
    """What went wrong in a training, and the next step."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, SqlftError):
        return text
    if isinstance(error, MemoryError) or "OutOfMemory" in name or "out of memory" in text or "can't allocate" in text:
        return (
            f"The training ran out of memory{f' ({text[:300]})' if text else ''}.\n"
            "Train a new version with a smaller batch_size or max_length, or on a smaller base."
        )
    if job.is_disk_full(error):
        return f"The disk is full: {text}.\nFree some space, then RESUME MODEL {key} goes on from its last checkpoint."
    return f"{name}: {text} (log: {log})\nCorrect the cause, then RESUME MODEL {key} goes on from its last checkpoint."


def measure_peak_memory() -> int:
    """Most bytes that this process had in main memory; a handler that trains elsewhere reports its own figure.

    Linux counts into `ru_maxrss` what the process that started this one had, so that its status is read there.
    """
    import resource

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _parse_number(value: SupportsFloat) -> float | None:
    """What a handler reports as a metric, if it is one: a float, an int, a tensor or array of one number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def kill_own_process_group() -> None:
    """End this process and all it started, without waiting for any thread."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _list_environment(handler: str) -> dict[str, object]:
    """What trains: the handler's package and the versions that matter."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {"handler": plugins.handler_package(handler) or handler, "packages": packages}


def _hold_lock(lock: int) -> None:
    """Hold the lock and sign it; processes that the handler forks neither have it nor our way with SIGTERM."""
    held = [lock]

    def release_lock() -> None:
        while held:
            os.close(held.pop())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.set_inheritable(lock, False)
    os.register_at_fork(after_in_child=release_lock)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def main(arguments: list[str]) -> None:
    """Train the version that the arguments name."""
    if errors.is_log_requested():
        errors.write_log_to(partial(print, file=sys.stderr, flush=True))
    folder, model, project, number, lock = arguments
    _hold_lock(int(lock))
    session = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    training = TrainingRun(Catalog(Path(folder)), VersionKey(ModelKey(model, project), int(number)), session)
    signal.signal(signal.SIGTERM, training.terminate)
    training.run()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # threads that the handler left behind must not keep the lock


if __name__ == "__main__":
    main(sys.argv[1:])
