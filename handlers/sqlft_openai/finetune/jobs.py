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
    MODEL_FIELDS,
    TOKEN_FIELDS,
    Dialect,
    JobSpec,
    build_legacy_body,
    find_failure_reason,
    get_first_value,
    is_processing,
    is_ready,
    parse_metrics,
    parse_percent,
    parse_state,
)
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import ApiClient

RECORD_NAME = "job.json"
PAUSE_GROWTH, MAX_PAUSE_FACTOR = 1.5, 30
"""Looks grow rarer by GROWTH, to MOST times the first pause."""
REPORT_SECONDS = 0.2
MAX_NOT_FOUND = 3
"""Looks in a row at which a job must be unknown before it counts as deleted."""
MAX_FAILED_POLLS = 30
"""Looks in a row that may fail."""
MAX_IDLE_POLLS = 6
"""Looks after which a file that is neither ready nor worked on is tried all the same."""
MAX_CREATE_TRIES = 4
MAX_NOT_READY = 12
"""How often a job is asked for whose files the provider still looks at."""
MAX_NAMELESS_POLLS = 10
"""Looks at a job that is complete and names no model, after which none is expected."""
SEARCH_TRIES = 3
"""How often the provider's jobs are looked through for one that may just have been made."""
MAX_PAGES = 50


@dataclass
class JobRecord:
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


def read_record(workdir: Path) -> JobRecord:
    """What job.json says; a new one where there is none."""
    try:
        return JobRecord(**json.loads((workdir / RECORD_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return JobRecord()


def write_record(workdir: Path, record: JobRecord) -> None:
    """Keep it, also through a power cut."""
    part = workdir / f"{RECORD_NAME}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(workdir / RECORD_NAME)


class JobRunner:
    """One run of `train` over a job."""

    def __init__(
        self, api: ApiClient, dialect: Dialect, workdir: Path, report: Callable[[Progress], None], poll_seconds: float
    ) -> None:
        self._api, self._dialect, self._workdir, self._report = api, dialect, workdir, report
        self._first_pause = poll_seconds
        self._title = api.address.provider.title
        self._nameless = 0
        self.record = read_record(workdir)
        self._progress = Progress(self.record.reported, self.record.total, self.record.metrics)

    def run_to_end(self, train: bytes, valid: bytes, spec: JobSpec) -> Mapping[str, Any]:
        """The finished job, made if need be; ProviderError with the provider's reason where it failed."""
        self._start_attempt(sha256(train + b"\0" + valid).hexdigest())
        if self.record.phase != "created":
            files = self._upload_files(train, valid)
            self._create_job(spec._replace(ours=self.record.tag, train=files["train"], valid=files.get("valid")))
        return self._watch()

    def pause(self, seconds: float) -> None:
        """Wait, and be told when to stop."""
        until = time.monotonic() + seconds
        while True:
            self._report(self._progress)
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(REPORT_SECONDS, left))

    def _start_attempt(self, digest: str) -> None:
        if self.record.phase == "ended":
            self.record = JobRecord(self.record.ours, self.record.attempt + 1, self.record.digest, self.record.files)
            self._progress = Progress(0)
        if not self.record.ours:
            self.record = JobRecord(ours=uuid4().hex)
        if self.record.digest != digest and self.record.phase in ("new", "uploading"):
            self.record.digest, self.record.files = digest, {}
        self._save()

    def _save(self, **now: Any) -> None:
        for name, value in now.items():
            setattr(self.record, name, value)
        write_record(self._workdir, self.record)

    # files

    def _upload_files(self, train: bytes, valid: bytes) -> dict[str, str]:
        """The files' ids, uploaded once and ready."""
        files = self.record.files
        broke_off = self.record.phase == "uploading"
        for what, content in (("train", train), ("valid", valid)):
            if not content or what in files:
                continue
            name = f"sqlft-{self.record.ours}-{what}.jsonl"
            found = self._find_uploaded(name) if broke_off else None
            self._save(phase="uploading")
            files[what] = found or self._upload_file(name, content)
            self._save(files=files)
        for what in files:
            self._wait_until_ready(files[what])
        return files

    def _upload_file(self, name: str, content: bytes) -> str:
        try:
            return self._api.retry(lambda: self._dialect.upload(self._api, name, content))
        except RequestError as error:
            wrong = error.status in (404, 405) or error.is_unreachable
            at = "" if error.is_unreachable else f" to {self._api.address.base}"
            check = error.next_step or "Check base_url, and that the server runs and trains."
            raise ProviderError(
                f"The training rows could not be uploaded{at}: {error.message}",
                f"{check if wrong else 'Mend the cause.'} RESUME MODEL then goes on with it.",
            ) from None

    def _find_uploaded(self, name: str) -> str | None:
        """A file of that name that is there since before a crash."""
        if self._dialect.files_path is None:
            return None
        try:
            found = self._api.get(self._dialect.files_path, limit=100)
        except RequestError:
            return None
        items = found.get("data", found) if isinstance(found, Mapping) else found
        items = items if isinstance(items, list) else []
        return next(
            (f["id"] for f in items if isinstance(f, Mapping) and f.get("filename") == name and f.get("id")), None
        )

    def _wait_until_ready(self, name: str) -> None:
        pause, idle = min(0.5, self._first_pause), 0
        while True:
            try:
                file = self._api.get(self._dialect.file_path.format(id=name.rpartition("/")[2]))
                known = is_ready(file)
                idle += not is_processing(file)
            except RequestError as error:
                if error.code == "bad_file":
                    self._save(files={}, phase="new")
                    raise ProviderError(
                        f"{self._title} does not take the training file: {error.message}", "Mend the rows."
                    ) from None
                if error.status != 404:
                    raise self._make_unreachable_error(error) from None
                known = None  # a server that does not show its files
            if known or known is None or idle >= MAX_IDLE_POLLS:
                return
            self.pause(pause)
            pause = self._lengthen_pause(pause)

    # the job

    def _create_job(self, spec: JobSpec) -> None:
        if self.record.phase == "creating":
            self._adopt(self._find_created(spec, sure=True))
        body, tried, not_yet = self._dialect.build_body(spec), 0, 0
        while self.record.phase != "created" and tried - not_yet < MAX_CREATE_TRIES:
            tried += 1
            self._save(phase="creating")
            try:
                made = self._api.send_once("POST", self._dialect.jobs_path, body=body, query=self._build_query(spec))
                if not self._adopt(self._get_job_name(made)):
                    self._adopt(self._find_created(spec))
            except RequestError as error:
                refused = error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409)
                if refused:
                    self._save(phase="uploading")
                    body = self._revise_body(error, body, spec, tried)
                    not_yet += tried <= MAX_NOT_READY
                else:
                    self._adopt(self._find_created(spec))
            except HandlerError:
                self._save(phase="uploading")
                raise
        if self.record.phase != "created":
            raise ProviderError(
                f"{self._title} does not say whether it made the job.",
                "RESUME MODEL looks for it there, and makes it if there is none.",
            )

    def _revise_body(self, error: RequestError, body: dict[str, Any], spec: JobSpec, tried: int) -> dict[str, Any]:
        """The body to try next; ProviderError where the provider means it."""
        text = f"{error.parameter or ''} {error.message}".lower()
        if error.status == 429 or "being processed" in text or "not ready" in text or "not yet" in text:
            if tried < MAX_NOT_READY:
                self.pause(
                    error.retry_after if error.retry_after is not None else min(30.0, self._first_pause * 2**tried)
                )
                return body
        elif "metadata" in text and "metadata" in body:
            return {k: v for k, v in body.items() if k != "metadata"}
        elif "method" in text and "method" in body and spec.options.method != "dpo":
            kept = {"metadata": body["metadata"]} if "metadata" in body else {}
            return {**build_legacy_body(spec), **kept}
        elif "hyperparameters" in text and "method" not in body and "hyperparameters" in body:
            kept = {k: v for k, v in body.items() if k != "hyperparameters"}
            return {
                **kept,
                "method": {"type": "supervised", "supervised": {"hyperparameters": body["hyperparameters"]}},
            }
        raise ProviderError(
            f"{self._title} did not make the job: {error.message}",
            "Mend the cause; RESUME MODEL tries again, FINETUNE takes other rows or options.",
        )

    def _build_query(self, spec: JobSpec) -> dict[str, str]:
        return {self._dialect.job_id_parameter: spec.ours} if self._dialect.job_id_parameter else {}

    def _get_job_name(self, made: Any) -> str | None:
        found = made.get(self._dialect.id_field) or made.get("id") if isinstance(made, Mapping) else None
        return found if isinstance(found, str) and found else None

    def _adopt(self, name: str | None) -> bool:
        """Take this job as ours; whether there is one."""
        if name is not None:
            self._save(phase="created", job=name)
        return name is not None

    def _find_created(self, spec: JobSpec, sure: bool = False) -> str | None:
        """Our job among the provider's, if it is there; it may take it a moment to show."""
        for look in range(1 if sure else SEARCH_TRIES):
            if look or not sure:
                self.pause(min(2.0, self._first_pause * 2**look))
            try:
                return find_job(self._api, self._dialect, spec.ours, spec.train)
            except LookupError:
                continue
            except RequestError as error:
                if error.is_transient or error.status not in (400, 404, 405, 501):
                    raise self._make_unreachable_error(error) from None
                raise ProviderError(
                    f"Whether {self._title} made the job is not known, and it does not list its jobs: {error.message}",
                    f"Look there for a job on the file {spec.train}: if there is none, FINETUNE again makes another.",
                ) from None
        return None

    # watching

    def _watch(self) -> Mapping[str, Any]:
        pause, gone, lost = self._first_pause, 0, 0
        while True:
            try:
                job = self._api.get(self._dialect.get_job_path(self.record.job or ""))
                gone = lost = 0
            except RequestError as error:
                gone, lost = (gone + 1, lost) if error.status in (404, 410) else (0, lost + 1)
                if gone >= MAX_NOT_FOUND:
                    raise self._make_deleted_error(error) from None
                if lost >= MAX_FAILED_POLLS:
                    raise self._make_unreachable_error(error) from None
                job = {}
            if isinstance(job, Mapping) and job:
                ended = self._check_job(job)
                if ended is not None:
                    return ended
            self.pause(pause)
            pause = self._lengthen_pause(pause)

    def _check_job(self, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The job if it is complete; its events are reported."""
        state, word = parse_state(job)
        if word != self.record.word:
            self._save(word=word)
        events = self._fetch_events(job)
        self._report_steps(events)
        share = parse_percent(job)
        if not events and share is not None and share > self.record.reported:
            self._report_progress(Progress(share, 100))
        if state == "complete":
            if get_first_value(job, MODEL_FIELDS):
                return job
            self._nameless += 1
            if self._nameless >= MAX_NAMELESS_POLLS:
                raise ProviderError(
                    f"{self._title} says that job {self.record.job} is {word}, and names no model.",
                    "RESUME MODEL looks again; the provider's own pages may tell what became of it.",
                )
        if state == "failed":
            self._save(phase="ended")
            reason = self._api.address.redact(find_failure_reason(job, events))
            raise ProviderError(
                f"{self._title} says that job {self.record.job} failed: {reason}",
                "Mend the cause; RESUME MODEL makes a new job of the same rows, FINETUNE takes others.",
            )
        if state == "cancelled":
            self._save(phase="ended")
            raise Cancelled(f"Job {self.record.job} was cancelled at {self._title}.", "RESUME MODEL makes a new one.")
        return None

    def _fetch_events(self, job: Mapping[str, Any]) -> list[Any]:
        """The job's events, oldest first where it matters; none where the provider has none."""
        inside = job.get("events")
        if isinstance(inside, list) and inside:
            return inside
        if self._dialect.events_path is None:
            return []
        found: list[Any] = []
        after = None
        path = self._dialect.events_path.format(job=self._dialect.get_job_path(self.record.job or ""))
        for _ in range(MAX_PAGES):
            try:
                page = self._api.send_once("GET", path, query={"limit": 100, "after": after})
            except (RequestError, HandlerError):  # without events a job is watched all the same
                break
            items = page.get("data") if isinstance(page, Mapping) else page
            if not isinstance(items, list):
                break
            found += items
            last = items[-1].get("id") if items and isinstance(items[-1], Mapping) else None
            steps = [m[0] for m in map(parse_metrics, items) if m]
            if not page.get("has_more") or last in (None, after) or (steps and min(steps) <= self.record.reported):
                break
            after = last
        return found

    def _report_steps(self, events: list[Any]) -> None:
        """Report steps that were not reported yet, in their order."""
        steps: dict[int, tuple[int | None, dict[str, float]]] = {}
        for told in map(parse_metrics, events):
            if told and told[0] > self.record.reported:
                total, numbers = steps.get(told[0], (None, {}))
                steps[told[0]] = (told[1] or total, {**numbers, **told[2]})
        for step in sorted(steps):
            total, numbers = steps[step]
            self._report_progress(Progress(step, total if total is None or total >= step else step, numbers))

    def _report_progress(self, progress: Progress) -> None:
        """Report it, and note that, so that whoever takes the job up again goes on from there."""
        self._progress = progress
        self._save(reported=progress.step, total=progress.total_steps, metrics=dict(progress.metrics))
        self._report(progress)

    def _lengthen_pause(self, pause: float) -> float:
        return min(pause * PAUSE_GROWTH, self._first_pause * MAX_PAUSE_FACTOR)

    def _make_deleted_error(self, error: RequestError) -> ProviderError:
        self._save(phase="ended")
        return ProviderError(
            f"Job {self.record.job} is not at {self._title} any more: {error.message}",
            "RESUME MODEL makes a new job of the same rows.",
        )

    def _make_unreachable_error(self, error: RequestError) -> ProviderError:
        goes_on = f", where job {self.record.job} goes on" if self.record.phase == "created" else ""
        return ProviderError(
            f"{self._title} could not be asked{goes_on}: {error.message}", "RESUME MODEL takes it up again."
        )


def find_job(api: ApiClient, dialect: Dialect, ours: str, train: str | None) -> str | None:
    """The job that has our id or trains on our file; LookupError if there is none."""
    after = None
    if dialect.job_id_parameter:
        return _find_job_by_id(api, dialect, ours)
    for _ in range(MAX_PAGES):
        page = api.get(dialect.jobs_path, limit=100, after=after)
        items = page.get(dialect.items_key, page.get("data")) if isinstance(page, Mapping) else page
        items = [j for j in items if isinstance(j, Mapping)] if isinstance(items, list) else []
        for job in items:
            metadata = job.get("metadata")
            tag = metadata.get("sqlft") if isinstance(metadata, Mapping) else None
            of_ours = tag == ours or (tag is None and train is not None and job.get("training_file") == train)
            if of_ours and parse_state(job)[0] not in ("failed", "cancelled"):
                return str(job.get(dialect.id_field) or job["id"])
        last = items[-1].get("id") if items else None
        if not isinstance(page, Mapping) or not page.get("has_more") or last in (None, after):
            break
        after = last
    raise LookupError(ours)


def _find_job_by_id(api: ApiClient, dialect: Dialect, ours: str) -> str:
    """Where we choose the job's id it is there, or it is not."""
    try:
        job = api.get(dialect.get_job_path(ours))
    except RequestError as error:
        if error.status == 404:
            raise LookupError(ours) from None
        raise
    return str(job.get(dialect.id_field) or ours)


def cancel_job(api: ApiClient, dialect: Dialect, workdir: Path) -> None:
    """Stop the job that this workdir knows of, if it still goes; ProviderError if the provider cannot be told."""
    record = read_record(workdir)
    title = api.address.provider.title
    try:
        name = record.job
        if record.phase == "creating":
            try:
                name = find_job(api, dialect, record.tag, record.files.get("train"))
            except LookupError:
                name = None
        if record.phase not in ("creating", "created"):
            return
        if name is not None:
            _request_cancel(api, dialect, name)
    except RequestError as error:
        raise ProviderError(
            f"{title} could not be told to cancel{f' job {record.job}' if record.job else ''}: {error.message}",
            "CANCEL MODEL tries again; the provider's own pages can cancel it too.",
        ) from None
    record.phase, record.job = "ended", name
    write_record(workdir, record)


def _request_cancel(api: ApiClient, dialect: Dialect, name: str) -> None:
    """Cancel it; that it is gone or has ended already is as good."""
    try:
        api.post(dialect.cancel_path.format(job=dialect.get_job_path(name)), {})
    except RequestError as error:
        if error.status not in (400, 404, 409, 410):
            raise
        if error.status != 404 and parse_state(api.get(dialect.get_job_path(name)))[0] in ("queued", "training"):
            raise


def make_artifact(job: Mapping[str, Any], run: JobRunner, details: Mapping[str, Any]) -> Artifact:
    """What training made, and what is known of it."""
    tokens = get_first_value(job, TOKEN_FIELDS)
    found = {
        "provider": run.record.job and str(job.get("organization_id") or ""),
        "job": run.record.job,
        "provider_status": run.record.word,
        "trained_tokens": tokens if isinstance(tokens, int) else None,
        **details,
    }
    return Artifact(
        remote_id=str(get_first_value(job, MODEL_FIELDS)),
        details={k: v for k, v in found.items() if v not in (None, "")},
    )
