"""A training on a node: watched from the driver's machine, its checkpoints brought home as they are written.

Called by `handler`, in the worker process that sqlft starts for a training.  The rows go out as Arrow tables; reports,
the files of the handler's workdir and at last the artifact come home.  When the node dies, another one goes on from the
last checkpoint that is here; so does a training that is resumed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sqlft.errors import Cancelled, HandlerError, SqlftError, debug
from sqlft.handler import Artifact, Estimate, Progress, Trainer, TrainingSet
from sqlft_ray import cluster
from sqlft_ray.actor import Failure, HandlerSource, Work
from sqlft_ray.cluster import ActorHandle
from sqlft_ray.files import Changes, FileState, FileTree, apply_changes, collect_changes, fetch_files, list_files
from sqlft_ray.options import RayOptions
from sqlft_ray.pool import MAX_DEATHS, make_actor, make_depot, make_room

SYNC_SECONDS, SYNC_SHARE = 0.2, 0.05
"""Seconds between two looks for new checkpoints, at least, and how much of the time they may take."""
WAIT_SECONDS, WATCH_SECONDS = 2.0, 1.0
"""For a machine with room, and for news of it, before one looks whether to go on waiting."""


class News(NamedTuple):
    """What a training on a node has to say."""

    reports: list[Progress]
    changes: list[Changes]
    made: Artifact | None = None
    failure: Failure | None = None


class TrainingActor:
    """What Ray runs: one training, in a thread of its own."""

    def __init__(self, source: HandlerSource) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._reports: list[Progress] = []
        self._changes: list[Changes] = []
        self._made: Artifact | None = None
        self._failure: Failure | None = None
        self._reported, self._seen, self._stops = 0, 0, False
        self._next_sync = 0.0
        self._known: dict[str, FileState] = {}

    def estimate(self, work: Work, data: TrainingSet) -> Estimate | None:
        """What the handler says, on this machine."""
        handler, here = self._build(), work.find_files()
        return handler.estimate(here.model, here.artifact, data, here.options)

    def start(self, work: Work, data: TrainingSet, home: FileTree) -> str:
        """Begin, from what is at home already; the name of this machine."""
        threading.Thread(target=self._run, args=(work, data, home), daemon=True).start()
        return os.uname().nodename

    def watch(self, seen: int, stops: bool) -> News:
        """What is new, waited for; so many reports were seen, and where it `stops` the last one raises Cancelled."""
        with self._changed:
            self._seen, self._stops = seen, stops
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._reports or self._changes or self._has_ended(), WATCH_SECONDS)
            reports, self._reports = self._reports, []
            changes, self._changes = self._changes, []
            return News(reports, changes, self._made, self._failure)

    def _has_ended(self) -> bool:
        return self._made is not None or self._failure is not None

    def _build(self) -> Trainer:
        handler = self._source.build()
        assert isinstance(handler, Trainer)
        return handler

    def _run(self, work: Work, data: TrainingSet, home: FileTree) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sqlft-ray-")) / "work"
        made, failure = None, None
        try:
            fetch_files(home, self._folder, work.depot)
            self._known = {state.name: state for state in list_files(self._folder).files}
            handler, here = self._build(), work.find_files()
            made = handler.train(here.model, here.artifact, data, here.options, self._folder, self._report)
            made = self._bring_below(made)
        except BaseException as e:
            failure = Failure.of(e)
        with suppress(OSError):
            self._sync()
        shutil.rmtree(self._folder.parent, ignore_errors=True)
        with self._changed:
            self._made, self._failure = made, failure
            self._changed.notify_all()

    def _report(self, progress: Progress) -> None:
        """Waits until it was seen, so that a training stops at the step at which it is to stop."""
        if time.monotonic() > self._next_sync:
            self._sync()
        with self._changed:
            self._reports.append(progress)
            self._reported += 1
            number = self._reported
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._seen >= number)
        if self._stops:
            raise Cancelled("Stopped on request.", "RESUME MODEL goes on with it.")

    def _sync(self) -> None:
        """Hand over what the handler wrote; it writes nothing meanwhile, for it waits in its report."""
        began = time.monotonic()
        changes = collect_changes(self._folder, self._known)
        with self._changed:
            if changes.written or changes.removed:
                self._changes.append(changes)
            self._changed.notify_all()
        now = time.monotonic()
        self._next_sync = now + max(SYNC_SECONDS, (now - began) / SYNC_SHARE)

    def _bring_below(self, made: Artifact) -> Artifact:
        """The artifact with its path relative to the workdir, copied into it where it lies elsewhere."""
        details = {"trained_on": os.uname().nodename, **made.details}
        if made.path is None:
            return replace(made, details=details)
        path = (self._folder / made.path).resolve()
        folder = self._folder.resolve()
        if not path.is_relative_to(folder):
            copy = folder / "copied" / path.name
            copy.parent.mkdir()
            path = Path(shutil.copytree(path, copy) if path.is_dir() else shutil.copy2(path, copy))
        return replace(made, path=path.relative_to(folder), details=details)


def estimate(options: RayOptions, source: HandlerSource, work: Work, data: TrainingSet) -> Estimate | None:
    """What a machine that could train it says."""
    actor = _hire(options, source)
    result: Estimate | None = _ask(actor, "estimate", _prepare(work), data)
    _dismiss(actor)
    return result


def train(
    options: RayOptions,
    source: HandlerSource,
    work: Work,
    data: TrainingSet,
    workdir: Path,
    report: Callable[[Progress], None],
) -> Artifact:
    """Train on a node, and on another one where that dies; the artifact's files are below `workdir`."""
    from ray import exceptions

    for death in range(1, MAX_DEATHS + 1):
        actor = _hire(options, source)
        try:
            return _Watch(options, actor, workdir, report).follow(work, data)
        except exceptions.RayActorError as e:
            debug("ray: the training's actor died: %s", e)
            if cluster.is_head_gone():
                raise cluster.head_gone_error() from e
            if death == MAX_DEATHS:
                raise _explain_death(e) from e
        except exceptions.RayError as e:
            raise cluster.explain(e) from e
        finally:
            _dismiss(actor)
    raise AssertionError


class _Watch:
    """Follows one actor to its end."""

    def __init__(
        self, options: RayOptions, actor: ActorHandle, workdir: Path, report: Callable[[Progress], None]
    ) -> None:
        self._options, self._actor, self._workdir, self._report = options, actor, workdir, report

    def follow(self, work: Work, data: TrainingSet) -> Artifact:
        import ray

        home = list_files(self._workdir)
        prepared = _prepare(work, home)  # kept, or Ray ends its reader
        started = self._actor.start.remote(prepared, ray.put(data), home)
        self._wait(started)
        seen, cancelled = 0, None
        while True:
            news: News = ray.get(self._actor.watch.remote(seen, cancelled is not None))
            for changes in news.changes:
                apply_changes(self._workdir, changes)
            for progress in news.reports:
                seen += 1
                try:
                    self._report(progress)
                except Cancelled as e:
                    cancelled = e
            if news.failure is not None:
                raise cancelled or news.failure.error
            if news.made is not None and cancelled is not None:
                raise cancelled
            if news.made is not None:
                path = None if news.made.path is None else self._workdir / news.made.path
                return replace(news.made, path=path)

    def _wait(self, started: Any) -> None:
        """Until a machine has room; the user may stop it meanwhile."""
        import ray

        while not ray.wait([started], timeout=WAIT_SECONDS)[0]:
            if not cluster.has_room(self._options):
                self._report(Progress(0))
        debug("ray: the training runs on %s", ray.get(started))


def _hire(options: RayOptions, source: HandlerSource) -> ActorHandle:
    cluster.connect(options.address)
    make_room(options)
    cluster.check_room(options, cluster.list_nodes())
    return make_actor(TrainingActor, options, (source,), threads=4)


def _prepare(work: Work, *more: FileTree) -> Work:
    """With somebody who reads the files that it names, or that are at home, if there are some."""
    return replace(work, depot=make_depot()) if any(tree.files for tree in (*work.trees, *more)) else work


def _ask(actor: ActorHandle, method: str, *arguments: object) -> Any:
    import ray

    try:
        return ray.get(getattr(actor, method).remote(*arguments))
    except ray.exceptions.RayError as e:
        raise cluster.explain(e) from e


def _dismiss(actor: ActorHandle) -> None:
    import ray

    with suppress(Exception):  # it may be dead, or the cluster gone
        ray.kill(actor)


def _explain_death(error: BaseException) -> SqlftError:
    if "No module named" in str(error):
        return cluster.explain(error)
    return HandlerError(
        f"The process that trained died {MAX_DEATHS} times on the cluster: {cluster.explain(error).message}",
        "Memory may be short there: train with a smaller batch_size or max_length; RESUME MODEL goes on from the last "
        "checkpoint.",
    )
