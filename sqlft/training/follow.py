"""Wait for a training: show how far it is, stop it when the person says so, tell how it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from sqlft import errors, plugins
from sqlft.catalog.files import FILES_FOLDER, hold_lock, summarize_exit
from sqlft.catalog.records import RESUMABLE, RUNNING, Model, ModelKey, TrainingMetric, Version, VersionKey
from sqlft.catalog.store import Catalog
from sqlft.errors import Cancelled, CatalogError, HandlerError, SqlftError, StatementError, debug
from sqlft.handler import Trainer
from sqlft.inference.resolve import build_model_spec, create_handler, evaluation_of, find_engine
from sqlft.session import CHOICE_SECONDS, STOP_LETTERS, Session, Tick
from sqlft.training import job
from sqlft.training.estimate import format_duration
from sqlft.training.job import TrainingWorker

POLL_SECONDS = 0.1
FIRST_STEPS, FAR_OFF = 3, 1.5
"""Steps after which a training's own speed counts, and what factor between it and the estimate is worth a line."""
STOP_SECONDS = 15.0
"""How long a worker has to stop by itself: longer than the grace it gives its handler."""


def follow_training(
    session: Session, worker: TrainingWorker | None, key: VersionKey, *, remote: bool = False
) -> Version:
    """Wait until a training is complete; Cancelled or the error that it failed with otherwise.

    Ctrl-C stops a training here, after a question where a person sits at the screen, who may leave it running in the
    background; of one that is `remote` it stops the watching only.  Without a worker it is one that another session
    started.
    """
    try:
        ended = _wait_or_ask(session, worker, key, asks=not remote)
    except KeyboardInterrupt:
        if remote or worker is None:
            raise _stop_watching(session, worker, key) from None
        raise _stop_training(session, worker, key) from None
    if ended.status in RUNNING:
        return ended
    if ended.status == "interrupted" and session.catalog.cancel_requested(key):
        ended = replace(ended, status="cancelled")  # by another session, which cancels the job at the provider now
    if worker is not None:
        if ended.status == "interrupted":
            ended = _add_exit_code(session.catalog, worker, key)
        with suppress(subprocess.TimeoutExpired):  # it still tidies up
            worker.process.wait(job.KILL_SECONDS)
    if ended.status != "complete":
        raise build_training_error(ended)
    for line in describe_outcome(session, ended):
        session.show_notice(line)
    return ended


def watch_until_end(session: Session, key: VersionKey) -> str:
    """Wait for a training that another session started; how it ended, its error raised."""
    version = _wait_until_final(session, None, key, "training")
    if version.status != "complete":
        raise build_training_error(version)
    return "\n".join(describe_outcome(session, version))


def describe_outcome(session: Session, version: Version) -> Iterator[str]:
    """What a training came to: losses, minutes and cost, and the statement that compares it with what was before."""
    model, details = session.catalog.model(version.key.model), version.details
    parts = [f"{version.key} is complete"]
    if version.seconds is not None:
        parts[0] += f" in {_format_duration(version.seconds)}"
    parts += _format_losses(session.catalog.metrics(version.key))
    if details.get("cost_usd") is not None:
        parts.append(f"cost ${details['cost_usd']:.3g}")
    yield f"{'; '.join(parts)}."
    before = version.parent or next((v.key.number for v in session.catalog.versions(model.key)), version.key.number)
    if before != version.key.number:
        statement = evaluation_of(model, before, version.key.number)
        yield f"Is it better? On rows that it has not learnt: {statement};"


def _format_losses(metrics: Sequence[TrainingMetric]) -> Iterator[str]:
    """`loss 2.1 → 0.3`, that of validation rows too."""
    for split, what in (("train", "loss"), ("valid", "validation loss")):
        values = [m.value for m in sorted(metrics, key=lambda m: m.step) if m.split == split and m.name == "loss"]
        if len(values) > 1:
            yield f"{what} {values[0]:.3g} → {values[-1]:.3g}"


def _format_duration(seconds: float) -> str:
    return f"{seconds:.3g} seconds" if seconds < 100 else f"{seconds / 60:.3g} minutes"


def cancel_training(session: Session, key: VersionKey) -> Version:
    """Stop the worker of a version, whoever started it: asked first, ended after STOP_SECONDS."""
    catalog = session.catalog
    catalog.request_cancel(key)
    if _wait_until_final(session, None, key, "stopping", time.monotonic() + STOP_SECONDS).status in RUNNING:
        job.kill_worker(catalog.work_folder(key))
    if catalog.version(key).status != "complete":
        _cancel_at_provider(session, key)
    stopped = (*RUNNING, "interrupted", *(("failed",) if is_remote(session, catalog.model(key.model)) else ()))
    catalog.update_version(key, when=stopped, status="cancelled", error="Stopped on request.")
    return catalog.version(key)


def cancel_trainings(session: Session, model: ModelKey) -> None:
    """Cancel whatever trains of a model: before it is dropped."""
    versions = session.catalog.versions(model)
    remote = any(v.status in RESUMABLE for v in versions) and is_remote(session, session.catalog.model(model))
    running = [v.key for v in versions if v.status in RUNNING or (remote and v.status in RESUMABLE)]
    for key in running:
        session.catalog.request_cancel(key)
    for key in running:
        try:
            cancel_training(session, key)
        except HandlerError as e:  # the provider is out of reach, and the model is to go all the same
            session.show_warning(f"{e.message} Its job may go on there.")


def cancel_all_trainings(session: Session) -> None:
    """Cancel all that trains, with a warning: the catalog goes, and nobody could ask what it came to."""
    catalog = session.catalog
    for version in (v for v in catalog.versions() if v.status in RUNNING):
        session.show_warning(
            f"The training of {version.key} is cancelled{format_progress(version)}: "
            "its database is in memory and ends. "
            "Wait for it, or give the models a place: sqlft.connect('app.duckdb'), sqlft.connect(catalog='folder')."
        )
    for model in catalog.models():
        cancel_trainings(session, model.key)


def is_remote(session: Session, model: Model) -> bool:
    """Whether a model's trainings run at a provider."""
    engine = find_engine(session, model.engine)
    cls = plugins.load_engine_class(engine.handler, engine.options)
    return issubclass(cls, Trainer) and cls.remote


def _cancel_at_provider(session: Session, key: VersionKey) -> None:
    """Cancel the job at the provider, which goes on without a worker; HandlerError if that fails."""
    model = session.catalog.model(key.model)
    if not is_remote(session, model):
        return
    engine = find_engine(session, model.engine)
    handler = create_handler(session, engine, model.options)
    assert isinstance(handler, Trainer)
    spec = build_model_spec(type(handler), model.base, model.options, f"Model '{model.key.name}'")
    work = session.catalog.work_folder(key)
    deadline = time.monotonic() + STOP_SECONDS
    while work.exists():
        with hold_lock(work) as lock:
            if lock is not None:
                handler.cancel(spec, work / FILES_FOLDER)
                return
        if time.monotonic() > deadline:  # a worker that ends holds it a moment longer
            raise CatalogError(f"{key} was resumed by another session.", f"CANCEL MODEL {key} stops that one.")
        time.sleep(POLL_SECONDS / 2)


def to_tick(version: Version, what: str) -> Tick:
    """A version's progress for the bar: steps done and in all, the latest metrics."""
    known = version.progress
    if version.status == "queued":
        return Tick(f"{version.key} starting", 0, None)
    left = known.get("seconds_left") if what == "training" else None
    return Tick(f"{version.key} {what}", known.get("step", 0), known.get("total_steps"), known.get("metrics", {}), left)


def build_training_error(version: Version) -> SqlftError:
    """The error for a training that did not complete, of the class that the handler raised."""
    key = version.key
    message, _, next_step = (version.error or "no reason is known.").rpartition("\n")
    if not message:
        message, next_step = next_step, f"RESUME MODEL {key} goes on from its last checkpoint."
    if version.status == "cancelled":
        return Cancelled(
            f"The training of {key} was cancelled{format_progress(version)}.", f"RESUME MODEL {key} goes on with it."
        )
    if version.status == "interrupted":
        return HandlerError(f"The training of {key} was interrupted. {message}", next_step)
    kind = getattr(errors, str(version.details.get("error_type")), HandlerError)
    if not issubclass(kind, SqlftError) or issubclass(kind, StatementError):
        kind = HandlerError
    return kind(f"The training of {key} failed: {message}", next_step)


def _wait_or_ask(session: Session, worker: TrainingWorker | None, key: VersionKey, *, asks: bool) -> Version:
    """The version when it ended, or still running where the person chose to continue in the background."""
    while True:
        try:
            return _wait_until_final(session, worker, key, "training")
        except KeyboardInterrupt:
            if not asks or worker is None or session.ask_user is None:
                raise
        answer = session.ask_user(
            _STOP_QUESTION.format(key=key, seconds=CHOICE_SECONDS),
            lambda: session.catalog.version(key).status in RUNNING,
        )
        version = session.catalog.version(key)
        if answer in ("", *STOP_LETTERS) and version.status in RUNNING:
            raise KeyboardInterrupt
        session.interrupted = False
        if answer == "b":
            worker.background = True
            session.show_notice(
                f"{key} trains in the background; DESCRIBE {key} shows how far it is, CANCEL MODEL {key} stops it."
            )
            return version


_STOP_QUESTION = (
    "Stop the training of {key}? Its checkpoint is kept, and RESUME MODEL {key} goes on from there.\n"
    "  s  stop (also Ctrl-C again, or no answer in {seconds:.0f} seconds)\n"
    "  b  train on in the background\n"
    "  n  no, continue here (also Enter): "
)


def _wait_until_final(
    session: Session, worker: TrainingWorker | None, key: VersionKey, what: str, deadline: float = float("inf")
) -> Version:
    logged, is_compared = None, what != "training"
    while (version := session.catalog.version(key)).status in RUNNING and time.monotonic() < deadline:
        if (now := (version.status, version.progress)) != logged:
            logged = now
            metrics = version.progress.get("metrics", "")
            debug("training %s: %s%s %s", key, version.status, format_progress(version), metrics)
        if not is_compared and (seconds := predict_seconds(version)) is not None:
            is_compared = True
            if line := _compare_with_estimate(version, seconds):
                session.show_notice(line)
        session.show_progress(to_tick(version, what))
        if session.interrupted and what == "training":
            raise KeyboardInterrupt
        if worker is None:
            time.sleep(POLL_SECONDS)
        else:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(POLL_SECONDS)
    debug("training %s: %s%s", key, version.status, f", {version.error}" if version.error else "")
    return version


def predict_seconds(version: Version) -> float | None:
    """Seconds that a training will take in all, by the speed of its own steps once there are some."""
    known = version.progress
    if version.status not in RUNNING or version.seconds is None or (known.get("step") or 0) < FIRST_STEPS:
        return None
    left = known.get("seconds_left")
    return None if left is None else version.seconds + float(left)


def _compare_with_estimate(version: Version, seconds: float) -> str | None:
    """A notice where the training will take much longer or shorter than was estimated."""
    estimated = (version.details.get("estimate") or {}).get("seconds")
    if not estimated or abs(seconds - estimated) < 60 or 1 / FAR_OFF < seconds / estimated < FAR_OFF:
        return None
    now, before = format_duration(seconds), format_duration(estimated)
    return f"{version.key}: at the speed of its first steps it takes about {now}, and not {before}."


def _stop_watching(session: Session, worker: TrainingWorker | None, key: VersionKey) -> Cancelled:
    """Watch no longer; the worker goes on, also when this session ends."""
    if worker is not None:
        worker.detach()
    version = session.catalog.version(key)
    if version.status == "complete":
        return Cancelled(f"The training of {key} was complete already.", f"DESCRIBE {key} shows it.")
    return Cancelled(
        f"{key} is no longer waited for, and its training goes on at the provider{format_progress(version)}.",
        f"RESUME MODEL {key} waits for it again; CANCEL MODEL {key} cancels it there.",
    )


def _stop_training(session: Session, worker: TrainingWorker, key: VersionKey) -> Cancelled:
    """Stop at the next step, with a checkpoint; a second Ctrl-C does not wait for it."""
    catalog = session.catalog
    catalog.request_cancel(key)
    try:
        version = _wait_until_final(session, worker, key, "stopping", time.monotonic() + STOP_SECONDS)
    except KeyboardInterrupt:
        version = catalog.version(key)
    if version.status in RUNNING:
        worker.kill()
    catalog.update_version(key, when=(*RUNNING, "interrupted"), status="cancelled", error="Stopped on request.")
    version = catalog.version(key)
    if version.status == "complete":
        return Cancelled(f"The training of {key} was complete before it could be stopped.", f"DESCRIBE {key} shows it.")
    return Cancelled(
        f"The training of {key} was stopped{format_progress(version)}.", f"RESUME MODEL {key} goes on with it."
    )


def _add_exit_code(catalog: Catalog, worker: TrainingWorker, key: VersionKey) -> Version:
    """An interrupted version whose error also says how its process ended, which only who started it knows."""
    code = worker.process.wait()
    if code:
        summary = summarize_exit(catalog.work_folder(key), _describe_exit_code(code))
        text = f"{summary}\nRESUME MODEL {key} goes on from its last checkpoint."
        catalog.update_version(key, when=("interrupted",), error=text)
    return catalog.version(key)


def _describe_exit_code(code: int) -> str:
    if code > 0:
        return f"ended by itself with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        why = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"was killed by signal {-code} ({name}){why}"
    return f"was killed by signal {-code}"


def format_progress(version: Version) -> str:
    """` at step 2 of 4`, or nothing if that is not known."""
    step, total = version.progress.get("step"), version.progress.get("total_steps")
    return "" if step is None else f" at step {step}" if total is None else f" at step {step} of {total}"
