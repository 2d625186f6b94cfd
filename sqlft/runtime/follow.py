"""Wait for a training: show how far it is, stop it when the person says so, tell how it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

from sqlft import errors
from sqlft.catalog.records import RUNNING, ModelKey, Version, VersionKey
from sqlft.catalog.store import Catalog
from sqlft.catalog.workfolder import epitaph
from sqlft.errors import Cancelled, HandlerError, SqlftError, StatementError
from sqlft.runtime import launch
from sqlft.runtime.launch import Worker
from sqlft.runtime.session import Session, Tick

POLL = 0.1
STOP_SECONDS = 15.0
"""How long a worker has to stop by itself: longer than the grace it gives its handler."""


def follow(session: Session, worker: Worker, key: VersionKey) -> Version:
    """Wait until a training is complete; Cancelled or the error that it failed with otherwise."""
    try:
        ended = _until_final(session, worker, key, "training")
    except KeyboardInterrupt:
        raise _stopped(session, worker, key) from None
    if ended.status == "interrupted":
        ended = _with_exit_code(session.catalog, worker, key)
    with suppress(subprocess.TimeoutExpired):  # it still tidies up
        worker.process.wait(launch.KILL_SECONDS)
    if ended.status != "complete":
        raise error_of(ended)
    return ended


def cancel(session: Session, key: VersionKey) -> Version:
    """Stop the worker of a version, whoever started it: asked first, ended after STOP_SECONDS."""
    catalog = session.catalog
    catalog.request_cancel(key)
    deadline = time.monotonic() + STOP_SECONDS
    while (version := catalog.version(key)).status in RUNNING:
        if time.monotonic() > deadline:
            launch.kill(catalog.work(key))
            break
        session.progress(tick(version, "stopping"))
        time.sleep(POLL / 2)
    catalog.update_version(key, when=(*RUNNING, "interrupted"), status="cancelled", error="Stopped on request.")
    return catalog.version(key)


def stop_all(session: Session, model: ModelKey) -> None:
    """Cancel whatever trains of a model: before it is dropped."""
    running = [v.key for v in session.catalog.versions(model) if v.status in RUNNING]
    for key in running:
        session.catalog.request_cancel(key)
    for key in running:
        cancel(session, key)


def tick(version: Version, what: str) -> Tick:
    """A version's progress for the bar: steps done and in all, the latest metrics."""
    known = version.progress
    if version.status == "queued":
        return Tick(f"{version.key} starting", 0, None)
    return Tick(f"{version.key} {what}", known.get("step", 0), known.get("total_steps"), known.get("metrics", {}))


def error_of(version: Version) -> SqlftError:
    """The error for a training that did not complete, of the class that the handler raised."""
    key = version.key
    message, _, next_step = (version.error or "no reason is known.").rpartition("\n")
    if not message:
        message, next_step = next_step, f"RESUME MODEL {key} goes on from its last checkpoint."
    if version.status == "cancelled":
        return Cancelled(
            f"The training of {key} was cancelled{_how_far(version)}.", f"RESUME MODEL {key} goes on with it."
        )
    if version.status == "interrupted":
        return HandlerError(f"The training of {key} was interrupted. {message}", next_step)
    kind = getattr(errors, str(version.details.get("error_type")), HandlerError)
    if not issubclass(kind, SqlftError) or issubclass(kind, StatementError):
        kind = HandlerError
    return kind(f"The training of {key} failed: {message}", next_step)


def _until_final(
    session: Session, worker: Worker, key: VersionKey, what: str, deadline: float = float("inf")
) -> Version:
    while (version := session.catalog.version(key)).status in RUNNING and time.monotonic() < deadline:
        session.progress(tick(version, what))
        if session.interrupted and what == "training":
            raise KeyboardInterrupt
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(POLL)
    return version


def _stopped(session: Session, worker: Worker, key: VersionKey) -> Cancelled:
    """Stop at the next step, with a checkpoint; a second Ctrl-C does not wait for it."""
    catalog = session.catalog
    catalog.request_cancel(key)
    try:
        version = _until_final(session, worker, key, "stopping", time.monotonic() + STOP_SECONDS)
    except KeyboardInterrupt:
        version = catalog.version(key)
    if version.status in RUNNING:
        worker.kill()
    catalog.update_version(key, when=(*RUNNING, "interrupted"), status="cancelled", error="Stopped on request.")
    version = catalog.version(key)
    if version.status == "complete":
        return Cancelled(f"The training of {key} was complete before it could be stopped.", f"DESCRIBE {key} shows it.")
    return Cancelled(f"The training of {key} was stopped{_how_far(version)}.", f"RESUME MODEL {key} goes on with it.")


def _with_exit_code(catalog: Catalog, worker: Worker, key: VersionKey) -> Version:
    """An interrupted version whose error also says how its process ended, which only who started it knows."""
    code = worker.process.wait()
    if code:
        text = f"{epitaph(catalog.work(key), _ending(code))}\nRESUME MODEL {key} goes on from its last checkpoint."
        catalog.update_version(key, when=("interrupted",), error=text)
    return catalog.version(key)


def _ending(code: int) -> str:
    if code > 0:
        return f"ended by itself with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        why = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"was killed by signal {-code} ({name}){why}"
    return f"was killed by signal {-code}"


def _how_far(version: Version) -> str:
    step, total = version.progress.get("step"), version.progress.get("total_steps")
    return "" if step is None else f" at step {step}" if total is None else f" at step {step} of {total}"
