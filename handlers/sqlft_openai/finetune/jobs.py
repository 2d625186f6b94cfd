"""Training at a provider: rows up, one job, watched to its end, through crashes of this side.

What was done is written to `job.json` before and after each step.  A job is made once: its id of ours is on disk
before the request, and after a crash or an answer that never came the provider's jobs are looked through for it
before another is made.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlft.errors import Cancelled, HandlerError, ProviderError
from sqlft.handler import Artifact, Progress
from sqlft_openai.finetune.dialects import (
    RESULT,
    TOKENS,
    Dialect,
    Wanted,
    first_of,
    is_worked_on,
    metrics_of,
    old_body,
    percent_of,
    ready,
    reason_of,
    state_of,
)
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Api

NAME = "job.json"
GROWTH, MOST = 1.5, 30
"""Looks grow rarer by GROWTH, to MOST times the first pause."""
BEAT = 0.2
GONE = 3
"""Looks in a row at which a job must be unknown before it counts as deleted."""
LOST = 30
"""Looks in a row that may fail."""
UPLOADED = 6
"""Looks after which a file that is neither ready nor worked on is tried all the same."""
CREATIONS = 4
NOT_YET = 12
"""How often a job is asked for whose files the provider still looks at."""
NAMELESS = 10
"""Looks at a job that is complete and names no model, after which none is expected."""
LOOKS = 3
"""How often the provider's jobs are looked through for one that may just have been made."""
PAGES = 50


@dataclass
class Known:
    """What is known of the job on this workdir."""

    ours: str = ""
    attempt: int = 0
    digest: str = ""
    files: dict[str, str] = field(default_factory=dict)
    phase: str = "new"
    """new, uploading, creating (a request for a job may be under way), created, ended."""
    job: str | None = None
    word: str = ""
    """The provider's latest status."""
    reported: int = 0
    """The last step that was reported."""
    total: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """What was reported with it."""

    @property
    def tag(self) -> str:
        """Our id of this attempt: with a second one after a job that failed."""
        return f"{self.ours}-{self.attempt}" if self.attempt else self.ours


def read(workdir: Path) -> Known:
    """What job.json says; a new one where there is none."""
    try:
        return Known(**json.loads((workdir / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Known()


def write(workdir: Path, known: Known) -> None:
    """Keep it, also through a power cut."""
    part = workdir / f"{NAME}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(asdict(known), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(workdir / NAME)


class Run:
    """One run of `train` over a job."""

    def __init__(
        self, api: Api, dialect: Dialect, workdir: Path, report: Callable[[Progress], None], poll_seconds: float
    ) -> None:
        self._api, self._dialect, self._workdir, self._report = api, dialect, workdir, report
        self._first_pause = poll_seconds
        self._title = api.address.engine.title
        self._nameless = 0
        self.known = read(workdir)
        self._said = Progress(self.known.reported, self.known.total, self.known.metrics)

    def job(self, train: bytes, valid: bytes, wanted: Wanted) -> Mapping[str, Any]:
        """The finished job, made if need be; ProviderError with the provider's reason where it failed."""
        self._begin(sha256(train + b"\0" + valid).hexdigest())
        if self.known.phase != "created":
            files = self._files(train, valid)
            self._create(wanted._replace(ours=self.known.tag, train=files["train"], valid=files.get("valid")))
        return self._watch()

    def pause(self, seconds: float) -> None:
        """Wait, and be told when to stop."""
        until = time.monotonic() + seconds
        while True:
            self._report(self._said)
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(BEAT, left))

    def _begin(self, digest: str) -> None:
        if self.known.phase == "ended":
            self.known = Known(self.known.ours, self.known.attempt + 1, self.known.digest, self.known.files)
            self._said = Progress(0)
        if not self.known.ours:
            self.known = Known(ours=uuid4().hex)
        if self.known.digest != digest and self.known.phase in ("new", "uploading"):
            self.known.digest, self.known.files = digest, {}
        self._write()

    def _write(self, **now: Any) -> None:
        for name, value in now.items():
            setattr(self.known, name, value)
        write(self._workdir, self.known)

    # files

    def _files(self, train: bytes, valid: bytes) -> dict[str, str]:
        """The files' ids, uploaded once and ready."""
        files = self.known.files
        broke_off = self.known.phase == "uploading"
        for what, content in (("train", train), ("valid", valid)):
            if not content or what in files:
                continue
            name = f"sqlft-{self.known.ours}-{what}.jsonl"
            found = self._uploaded(name) if broke_off else None
            self._write(phase="uploading")
            files[what] = found or self._upload(name, content)
            self._write(files=files)
        for what in files:
            self._until_ready(files[what])
        return files

    def _upload(self, name: str, content: bytes) -> str:
        try:
            return self._api.patiently(lambda: self._dialect.upload(self._api, name, content))
        except Fault as fault:
            wrong = fault.status in (404, 405) or fault.unreachable
            at = "" if fault.unreachable else f" to {self._api.address.base}"
            check = fault.next_step or "Check base_url, and that the server runs and trains."
            raise ProviderError(
                f"The training rows could not be uploaded{at}: {fault.message}",
                f"{check if wrong else 'Mend the cause.'} RESUME MODEL then goes on with it.",
            ) from None

    def _uploaded(self, name: str) -> str | None:
        """A file of that name that is there since before a crash."""
        if self._dialect.files is None:
            return None
        try:
            found = self._api.get(self._dialect.files, limit=100)
        except Fault:
            return None
        items = found.get("data", found) if isinstance(found, Mapping) else found
        items = items if isinstance(items, list) else []
        return next(
            (f["id"] for f in items if isinstance(f, Mapping) and f.get("filename") == name and f.get("id")), None
        )

    def _until_ready(self, name: str) -> None:
        pause, idle = min(0.5, self._first_pause), 0
        while True:
            try:
                file = self._api.get(self._dialect.file.format(id=name.rpartition("/")[2]))
                known = ready(file)
                idle += not is_worked_on(file)
            except Fault as fault:
                if fault.code == "bad_file":
                    self._write(files={}, phase="new")
                    raise ProviderError(
                        f"{self._title} does not take the training file: {fault.message}", "Mend the rows."
                    ) from None
                if fault.status != 404:
                    raise self._lost(fault) from None
                known = None  # a server that does not show its files
            if known or known is None or idle >= UPLOADED:
                return
            self.pause(pause)
            pause = self._later(pause)

    # the job

    def _create(self, wanted: Wanted) -> None:
        if self.known.phase == "creating":
            self._adopt(self._found(wanted, sure=True))
        body, tried, not_yet = self._dialect.body(wanted), 0, 0
        while self.known.phase != "created" and tried - not_yet < CREATIONS:
            tried += 1
            self._write(phase="creating")
            try:
                made = self._api.once("POST", self._dialect.jobs, body=body, query=self._own_id(wanted))
                if not self._adopt(self._name_of(made)):
                    self._adopt(self._found(wanted))
            except Fault as fault:
                refused = fault.status is not None and 400 <= fault.status < 500 and fault.status not in (408, 409)
                if refused:
                    self._write(phase="uploading")
                    body = self._after_refusal(fault, body, wanted, tried)
                    not_yet += tried <= NOT_YET
                else:
                    self._adopt(self._found(wanted))
            except HandlerError:
                self._write(phase="uploading")
                raise
        if self.known.phase != "created":
            raise ProviderError(
                f"{self._title} does not say whether it made the job.",
                "RESUME MODEL looks for it there, and makes it if there is none.",
            )

    def _after_refusal(self, fault: Fault, body: dict[str, Any], wanted: Wanted, tried: int) -> dict[str, Any]:
        """The body to try next; ProviderError where the provider means it."""
        text = f"{fault.parameter or ''} {fault.message}".lower()
        if fault.status == 429 or "being processed" in text or "not ready" in text or "not yet" in text:
            if tried < NOT_YET:
                self.pause(fault.after if fault.after is not None else min(30.0, self._first_pause * 2**tried))
                return body
        elif "metadata" in text and "metadata" in body:
            return {k: v for k, v in body.items() if k != "metadata"}
        elif "method" in text and "method" in body and wanted.options.method != "dpo":
            kept = {"metadata": body["metadata"]} if "metadata" in body else {}
            return {**old_body(wanted), **kept}
        elif "hyperparameters" in text and "method" not in body and "hyperparameters" in body:
            kept = {k: v for k, v in body.items() if k != "hyperparameters"}
            return {
                **kept,
                "method": {"type": "supervised", "supervised": {"hyperparameters": body["hyperparameters"]}},
            }
        raise ProviderError(
            f"{self._title} did not make the job: {fault.message}",
            "Mend the cause; RESUME MODEL tries again, FINETUNE takes other rows or options.",
        )

    def _own_id(self, wanted: Wanted) -> dict[str, str]:
        return {self._dialect.own_id: wanted.ours} if self._dialect.own_id else {}

    def _name_of(self, made: Any) -> str | None:
        found = made.get(self._dialect.id) or made.get("id") if isinstance(made, Mapping) else None
        return found if isinstance(found, str) and found else None

    def _adopt(self, name: str | None) -> bool:
        """Take this job as ours; whether there is one."""
        if name is not None:
            self._write(phase="created", job=name)
        return name is not None

    def _found(self, wanted: Wanted, sure: bool = False) -> str | None:
        """Our job among the provider's, if it is there; it may take it a moment to show."""
        for look in range(1 if sure else LOOKS):
            if look or not sure:
                self.pause(min(2.0, self._first_pause * 2**look))
            try:
                return find(self._api, self._dialect, wanted.ours, wanted.train)
            except LookupError:
                continue
            except Fault as fault:
                if fault.passing or fault.status not in (400, 404, 405, 501):
                    raise self._lost(fault) from None
                raise ProviderError(
                    f"Whether {self._title} made the job is not known, and it does not list its jobs: {fault.message}",
                    f"Look there for a job on the file {wanted.train}: if there is none, FINETUNE again makes another.",
                ) from None
        return None

    # watching

    def _watch(self) -> Mapping[str, Any]:
        pause, gone, lost = self._first_pause, 0, 0
        while True:
            try:
                job = self._api.get(self._dialect.job(self.known.job or ""))
                gone = lost = 0
            except Fault as fault:
                gone, lost = (gone + 1, lost) if fault.status in (404, 410) else (0, lost + 1)
                if gone >= GONE:
                    raise self._deleted(fault) from None
                if lost >= LOST:
                    raise self._lost(fault) from None
                job = {}
            if isinstance(job, Mapping) and job:
                ended = self._look(job)
                if ended is not None:
                    return ended
            self.pause(pause)
            pause = self._later(pause)

    def _look(self, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The job if it is complete; its events are reported."""
        state, word = state_of(job)
        if word != self.known.word:
            self._write(word=word)
        events = self._events(job)
        self._tell(events)
        share = percent_of(job)
        if not events and share is not None and share > self.known.reported:
            self._say(Progress(share, 100))
        if state == "complete":
            if first_of(job, RESULT):
                return job
            self._nameless += 1
            if self._nameless >= NAMELESS:
                raise ProviderError(
                    f"{self._title} says that job {self.known.job} is {word}, and names no model.",
                    "RESUME MODEL looks again; the provider's own pages may tell what became of it.",
                )
        if state == "failed":
            self._write(phase="ended")
            reason = self._api.address.clean(reason_of(job, events))
            raise ProviderError(
                f"{self._title} says that job {self.known.job} failed: {reason}",
                "Mend the cause; RESUME MODEL makes a new job of the same rows, FINETUNE takes others.",
            )
        if state == "cancelled":
            self._write(phase="ended")
            raise Cancelled(f"Job {self.known.job} was cancelled at {self._title}.", "RESUME MODEL makes a new one.")
        return None

    def _events(self, job: Mapping[str, Any]) -> list[Any]:
        """The job's events, oldest first where it matters; none where the provider has none."""
        inside = job.get("events")
        if isinstance(inside, list) and inside:
            return inside
        if self._dialect.events is None:
            return []
        found: list[Any] = []
        after = None
        path = self._dialect.events.format(job=self._dialect.job(self.known.job or ""))
        for _ in range(PAGES):
            try:
                page = self._api.once("GET", path, query={"limit": 100, "after": after})
            except (Fault, HandlerError):  # without events a job is watched all the same
                break
            items = page.get("data") if isinstance(page, Mapping) else page
            if not isinstance(items, list):
                break
            found += items
            last = items[-1].get("id") if items and isinstance(items[-1], Mapping) else None
            steps = [m[0] for m in map(metrics_of, items) if m]
            if not page.get("has_more") or last in (None, after) or (steps and min(steps) <= self.known.reported):
                break
            after = last
        return found

    def _tell(self, events: list[Any]) -> None:
        """Report steps that were not reported yet, in their order."""
        steps: dict[int, tuple[int | None, dict[str, float]]] = {}
        for told in map(metrics_of, events):
            if told and told[0] > self.known.reported:
                total, numbers = steps.get(told[0], (None, {}))
                steps[told[0]] = (told[1] or total, {**numbers, **told[2]})
        for step in sorted(steps):
            total, numbers = steps[step]
            self._say(Progress(step, total if total is None or total >= step else step, numbers))

    def _say(self, progress: Progress) -> None:
        """Report it, and note that, so that whoever takes the job up again goes on from there."""
        self._said = progress
        self._write(reported=progress.step, total=progress.total_steps, metrics=dict(progress.metrics))
        self._report(progress)

    def _later(self, pause: float) -> float:
        return min(pause * GROWTH, self._first_pause * MOST)

    def _deleted(self, fault: Fault) -> ProviderError:
        self._write(phase="ended")
        return ProviderError(
            f"Job {self.known.job} is not at {self._title} any more: {fault.message}",
            "RESUME MODEL makes a new job of the same rows.",
        )

    def _lost(self, fault: Fault) -> ProviderError:
        goes_on = f", where job {self.known.job} goes on" if self.known.phase == "created" else ""
        return ProviderError(
            f"{self._title} could not be asked{goes_on}: {fault.message}", "RESUME MODEL takes it up again."
        )


def find(api: Api, dialect: Dialect, ours: str, train: str | None) -> str | None:
    """The job that has our id or trains on our file; LookupError if there is none, Fault where they are not listed."""
    after = None
    if dialect.own_id:
        return _found_by_id(api, dialect, ours)
    for _ in range(PAGES):
        page = api.get(dialect.jobs, limit=100, after=after)
        items = page.get(dialect.key, page.get("data")) if isinstance(page, Mapping) else page
        items = [j for j in items if isinstance(j, Mapping)] if isinstance(items, list) else []
        for job in items:
            metadata = job.get("metadata")
            tag = metadata.get("sqlft") if isinstance(metadata, Mapping) else None
            of_ours = tag == ours or (tag is None and train is not None and job.get("training_file") == train)
            if of_ours and state_of(job)[0] not in ("failed", "cancelled"):
                return str(job.get(dialect.id) or job["id"])
        last = items[-1].get("id") if items else None
        if not isinstance(page, Mapping) or not page.get("has_more") or last in (None, after):
            break
        after = last
    raise LookupError(ours)


def _found_by_id(api: Api, dialect: Dialect, ours: str) -> str:
    """Where we choose the job's id it is there, or it is not."""
    try:
        job = api.get(dialect.job(ours))
    except Fault as fault:
        if fault.status == 404:
            raise LookupError(ours) from None
        raise
    return str(job.get(dialect.id) or ours)


def cancel(api: Api, dialect: Dialect, workdir: Path) -> None:
    """Stop the job that this workdir knows of, if it still goes; ProviderError if the provider cannot be told."""
    known = read(workdir)
    title = api.address.engine.title
    try:
        name = known.job
        if known.phase == "creating":
            try:
                name = find(api, dialect, known.tag, known.files.get("train"))
            except LookupError:
                name = None
        if known.phase not in ("creating", "created"):
            return
        if name is not None:
            _tell_to_stop(api, dialect, name)
    except Fault as fault:
        raise ProviderError(
            f"{title} could not be told to cancel{f' job {known.job}' if known.job else ''}: {fault.message}",
            "CANCEL MODEL tries again; the provider's own pages can cancel it too.",
        ) from None
    known.phase, known.job = "ended", name
    write(workdir, known)


def _tell_to_stop(api: Api, dialect: Dialect, name: str) -> None:
    """Cancel it; that it is gone or has ended already is as good."""
    try:
        api.post(dialect.cancel.format(job=dialect.job(name)), {})
    except Fault as fault:
        if fault.status not in (400, 404, 409, 410):
            raise
        if fault.status != 404 and state_of(api.get(dialect.job(name)))[0] in ("queued", "training"):
            raise


def artifact_of(job: Mapping[str, Any], run: Run, details: Mapping[str, Any]) -> Artifact:
    """What training made, and what is known of it."""
    tokens = first_of(job, TOKENS)
    found = {
        "provider": run.known.job and str(job.get("organization_id") or ""),
        "job": run.known.job,
        "provider_status": run.known.word,
        "trained_tokens": tokens if isinstance(tokens, int) else None,
        **details,
    }
    return Artifact(
        remote_id=str(first_of(job, RESULT)), details={k: v for k, v in found.items() if v not in (None, "")}
    )
