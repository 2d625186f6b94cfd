"""Wait for a training: show how far it is, stop it when the person says so, tell how it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from sqlft import errors, plugins
from sqlft.catalog.records import RESUMABLE, RUNNING, Metric, Model, ModelKey, Version, VersionKey
from sqlft.catalog.store import Catalog
from sqlft.catalog.workfolder import FILES, epitaph, held
from sqlft.data import Prompt
from sqlft.errors import Cancelled, CatalogError, HandlerError, SqlftError, StatementError
from sqlft.handler import Trainer
from sqlft.log import debug
from sqlft.runtime import launch
from sqlft.runtime.launch import Worker
from sqlft.runtime.models import engine_of, handler_of, outputs_of, spec_of
from sqlft.runtime.session import ANSWER_SECONDS, STOPS, Session, Tick
from sqlft.sql.names import written

POLL = 0.1
STOP_SECONDS = 15.0
"""How long a worker has to stop by itself: longer than the grace it gives its handler."""


def follow(session: Session, worker: Worker | None, key: VersionKey, *, remote: bool = False) -> Version:
    """Wait until a training is complete; Cancelled or the error that it failed with otherwise.

    Ctrl-C stops a training here, after a question where a person sits at the screen, who may leave it running in the
    background; of one that is `remote` it stops the watching only.  Without a worker it is one that another session
    started.
    """
    try:
        ended = _watched(session, worker, key, asks=not remote)
    except KeyboardInterrupt:
        if remote or worker is None:
            raise _left(session, worker, key) from None
        raise _stopped(session, worker, key) from None
    if ended.status in RUNNING:
        return ended
    if ended.status == "interrupted" and session.catalog.cancel_requested(key):
        ended = replace(ended, status="cancelled")  # by another session, which tells the provider now
    if worker is not None:
        if ended.status == "interrupted":
            ended = _with_exit_code(session.catalog, worker, key)
        with suppress(subprocess.TimeoutExpired):  # it still tidies up
            worker.process.wait(launch.KILL_SECONDS)
    if ended.status != "complete":
        raise error_of(ended)
    for line in outcome(session, ended):
        session.tell(line)
    return ended


def watch_until_end(session: Session, key: VersionKey) -> str:
    """Wait for a training that another session started; how it ended, its error raised."""
    version = _until_final(session, None, key, "training")
    if version.status != "complete":
        raise error_of(version)
    return "\n".join(outcome(session, version))


def outcome(session: Session, version: Version) -> Iterator[str]:
    """What a training came to: losses, minutes and cost, and the statement that compares it with what was before."""
    model, details = session.catalog.model(version.key.model), version.details
    parts = [f"{version.key} is complete"]
    if version.seconds is not None:
        parts[0] += f" in {_duration(version.seconds)}"
    parts += _losses(session.catalog.metrics(version.key))
    if details.get("cost_usd") is not None:
        parts.append(f"cost ${details['cost_usd']:.3g}")
    yield f"{'; '.join(parts)}."
    before = version.parent or next((v.key.number for v in session.catalog.versions(model.key)), version.key.number)
    if before != version.key.number:
        columns = [*Prompt(model.prompt_template).inputs, *outputs_of(model).names]
        yield (
            f"Is it better? On rows that it has not learnt: EVALUATE MODEL {model.key}.{before}, {version.key}"
            f" ON (SELECT {', '.join(map(written, columns))} FROM …);"
        )


def _losses(metrics: Sequence[Metric]) -> Iterator[str]:
    """`loss 2.1 → 0.3`, that of validation rows too."""
    for split, what in (("train", "loss"), ("valid", "validation loss")):
        values = [m.value for m in sorted(metrics, key=lambda m: m.step) if m.split == split and m.name == "loss"]
        if len(values) > 1:
            yield f"{what} {values[0]:.3g} → {values[-1]:.3g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} seconds" if seconds < 100 else f"{seconds / 60:.3g} minutes"


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
    if catalog.version(key).status != "complete":
        _cancel_there(session, key)
    stopped = (*RUNNING, "interrupted", *(("failed",) if is_remote(session, catalog.model(key.model)) else ()))
    catalog.update_version(key, when=stopped, status="cancelled", error="Stopped on request.")
    return catalog.version(key)


def stop_all(session: Session, model: ModelKey) -> None:
    """Cancel whatever trains of a model: before it is dropped."""
    versions = session.catalog.versions(model)
    remote = any(v.status in RESUMABLE for v in versions) and is_remote(session, session.catalog.model(model))
    running = [v.key for v in versions if v.status in RUNNING or (remote and v.status in RESUMABLE)]
    for key in running:
        session.catalog.request_cancel(key)
    for key in running:
        try:
            cancel(session, key)
        except HandlerError as e:  # the provider is out of reach, and the model is to go all the same
            session.warn(f"{e.message} Its job may go on there.")


def stop_for_good(session: Session) -> None:
    """Cancel all that trains, with a warning: the catalog goes, and nobody could ask what it came to."""
    catalog = session.catalog
    for version in (v for v in catalog.versions() if v.status in RUNNING):
        session.warn(
            f"The training of {version.key} is cancelled{how_far(version)}: its database is in memory and ends. "
            "Wait for it, or give the models a place: sqlft.connect('app.duckdb'), sqlft.connect(catalog='folder')."
        )
    for model in catalog.models():
        stop_all(session, model.key)


def is_remote(session: Session, model: Model) -> bool:
    """Whether a model's trainings run at a provider."""
    cls = plugins.handler_class(engine_of(session, model.engine).handler)
    return issubclass(cls, Trainer) and cls.remote


def _cancel_there(session: Session, key: VersionKey) -> None:
    """Tell the provider, whose job goes on without a worker; HandlerError if it cannot be told."""
    model = session.catalog.model(key.model)
    if not is_remote(session, model):
        return
    engine = engine_of(session, model.engine)
    handler = handler_of(session, engine, model.options)
    assert isinstance(handler, Trainer)
    spec = spec_of(type(handler), model.base, model.options, f"Model '{model.key.name}'")
    work = session.catalog.work(key)
    deadline = time.monotonic() + STOP_SECONDS
    while work.exists():
        with held(work) as lock:
            if lock is not None:
                handler.cancel(spec, work / FILES)
                return
        if time.monotonic() > deadline:  # a worker that ends holds it a moment longer
            raise CatalogError(f"{key} was resumed by another session.", f"CANCEL MODEL {key} stops that one.")
        time.sleep(POLL / 2)


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
            f"The training of {key} was cancelled{how_far(version)}.", f"RESUME MODEL {key} goes on with it."
        )
    if version.status == "interrupted":
        return HandlerError(f"The training of {key} was interrupted. {message}", next_step)
    kind = getattr(errors, str(version.details.get("error_type")), HandlerError)
    if not issubclass(kind, SqlftError) or issubclass(kind, StatementError):
        kind = HandlerError
    return kind(f"The training of {key} failed: {message}", next_step)


def _watched(session: Session, worker: Worker | None, key: VersionKey, *, asks: bool) -> Version:
    """The version when it ended, or still running where the person said that it shall go on in the background."""
    while True:
        try:
            return _until_final(session, worker, key, "training")
        except KeyboardInterrupt:
            if not asks or worker is None or session.choose is None:
                raise
        answer = session.choose(
            _QUESTION.format(key=key, seconds=ANSWER_SECONDS), lambda: session.catalog.version(key).status in RUNNING
        )
        version = session.catalog.version(key)
        if answer in ("", *STOPS) and version.status in RUNNING:
            raise KeyboardInterrupt
        session.interrupted = False
        if answer == "b":
            worker.background = True
            session.tell(
                f"{key} trains in the background; DESCRIBE {key} tells how far it is, CANCEL MODEL {key} stops it."
            )
            return version


_QUESTION = (
    "Stop the training of {key}? Its checkpoint is kept, and RESUME MODEL {key} goes on from there.\n"
    "  s  stop (also Ctrl-C again, or no answer in {seconds:.0f} seconds)\n"
    "  b  train on in the background\n"
    "  n  no, continue here (also Enter): "
)


def _until_final(
    session: Session, worker: Worker | None, key: VersionKey, what: str, deadline: float = float("inf")
) -> Version:
    logged = None
    while (version := session.catalog.version(key)).status in RUNNING and time.monotonic() < deadline:
        if (now := (version.status, version.progress)) != logged:
            logged = now
            debug("training %s: %s%s %s", key, version.status, how_far(version), version.progress.get("metrics", ""))
        session.progress(tick(version, what))
        if session.interrupted and what == "training":
            raise KeyboardInterrupt
        if worker is None:
            time.sleep(POLL)
        else:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(POLL)
    debug("training %s: %s%s", key, version.status, f", {version.error}" if version.error else "")
    return version


def _left(session: Session, worker: Worker | None, key: VersionKey) -> Cancelled:
    """Watch no longer; the worker goes on, also when this session ends."""
    if worker is not None:
        worker.detach()
    version = session.catalog.version(key)
    if version.status == "complete":
        return Cancelled(f"The training of {key} was complete already.", f"DESCRIBE {key} shows it.")
    return Cancelled(
        f"{key} is no longer waited for, and its training goes on at the provider{how_far(version)}.",
        f"RESUME MODEL {key} waits for it again; CANCEL MODEL {key} cancels it there.",
    )


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
    return Cancelled(f"The training of {key} was stopped{how_far(version)}.", f"RESUME MODEL {key} goes on with it.")


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


def how_far(version: Version) -> str:
    """` at step 2 of 4`, or nothing if that is not known."""
    step, total = version.progress.get("step"), version.progress.get("total_steps")
    return "" if step is None else f" at step {step}" if total is None else f" at step {step} of {total}"
