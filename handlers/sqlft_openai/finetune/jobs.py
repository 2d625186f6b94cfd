"""Training at a provider: rows up, one job, watched to its end, through crashes of this side.

What was done is written to `job.json` before and after each step.  A job is made once: its id of ours is on disk
before the request, and after a crash or an answer that never came the provider's jobs are looked through for it
before another is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from uuid import uuid4

from sqlft.errors import Cancelled, HandlerError, ProviderError
from sqlft.handler import Artifact, Progress
from sqlft_openai.finetune.dialects import (
    MODEL_FIELDS,
    TOKEN_FIELDS,
    Dialect,
    JobSpec,
    build_hyperparameters_body,
    find_failure_reason,
    parse_metrics,
    parse_percent,
    parse_state,
)
from sqlft_openai.http.api import ApiClient, Poller, is_ours, lengthen_pause, read_record, write_record
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import JsonObject, get_objects, get_text
from sqlft_openai.options import learns_from_pairs

RECORD_NAME = "job.json"
REPORT_SECONDS = 0.2
MAX_CREATE_TRIES = 4
MAX_NOT_READY = 12
"""How often a job is asked for whose files the provider still looks at."""
MAX_NAMELESS_POLLS = 10
"""Looks at a job that is complete and names no model, after which none is expected."""
SEARCH_TRIES = 3
"""How often the provider's jobs are looked through for one that may just have been made."""
EVENTS_PER_PAGE = 100
ENDED_STATES = ("failed", "cancelled")


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


class JobRunner:
    """One run of `train` over a job."""

    def __init__(
        self, api: ApiClient, dialect: Dialect, workdir: Path, report: Callable[[Progress], None], poll_seconds: float
    ) -> None:
        self._api, self._dialect, self._workdir, self._report = api, dialect, workdir, report
        self._first_pause = poll_seconds
        self._title = api.address.provider.title
        self._nameless = 0
        self.record = read_record(JobRecord, workdir / RECORD_NAME) or JobRecord()
        self._progress = Progress(self.record.reported, self.record.total, self.record.metrics)

    def run_to_end(self, train: bytes, valid: bytes, spec: JobSpec) -> JsonObject:
        """The finished job, made if need be; ProviderError with the provider's reason where it failed."""
        self._start_attempt(sha256(train + b"\0" + valid).hexdigest())
        if self.record.phase != "created":
            files = self._upload_files(train, valid)
            self._create_job(spec._replace(tag=self.record.tag, train=files["train"], valid=files.get("valid")))
        return self._watch()

    def pause(self, seconds: float) -> None:
        """Wait, and hear when to stop."""
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

    def _save(self, **changes: object) -> None:
        for name, value in changes.items():
            setattr(self.record, name, value)
        write_record(self.record, self._workdir / RECORD_NAME)

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
            files = islice(self._api.list_objects(self._dialect.files_path), 100)
            return next((get_text(f, "id") for f in files if f.get("filename") == name), None)
        except RequestError:
            return None

    def _wait_until_ready(self, name: str) -> None:
        path = self._dialect.file_path.format(id=name.rpartition("/")[2])
        try:
            self._api.wait_for_file(path, self._first_pause, self.pause)
        except RequestError as error:
            if error.code != "bad_file":
                raise self._make_unreachable_error(error) from None
            self._save(files={}, phase="new")
            raise ProviderError(
                f"{self._title} does not take the training file: {error.message}", "Mend the rows."
            ) from None

    # the job

    def _create_job(self, spec: JobSpec) -> None:
        if self.record.phase == "creating":
            self._adopt(self._find_created(spec, sure=True))
        body, tries, not_ready = self._dialect.build_body(spec), 0, 0
        parameter = self._dialect.job_id_parameter
        query = {parameter: spec.tag} if parameter else {}
        while self.record.phase != "created" and tries - not_ready < MAX_CREATE_TRIES:
            tries += 1
            self._save(phase="creating")
            try:
                made = self._api.post(self._dialect.jobs_path, body, query)
                if not self._adopt(self._get_job_name(made)):
                    self._adopt(self._find_created(spec))
            except RequestError as error:
                refused = error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409)
                if refused:
                    self._save(phase="uploading")
                    body = self._revise_body(error, body, spec, tries)
                    not_ready += tries <= MAX_NOT_READY
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

    def _revise_body(self, error: RequestError, body: JsonObject, spec: JobSpec, tries: int) -> JsonObject:
        """The body to try next; ProviderError where the provider means it."""
        text = f"{error.parameter or ''} {error.message}".lower()
        if error.status == 429 or "being processed" in text or "not ready" in text or "not yet" in text:
            if tries < MAX_NOT_READY:
                self.pause(min(30.0, self._first_pause * 2**tries) if error.retry_after is None else error.retry_after)
                return body
        elif "metadata" in text and "metadata" in body:
            return {name: value for name, value in body.items() if name != "metadata"}
        elif "method" in text and "method" in body and not learns_from_pairs(spec.options):
            kept = {"metadata": body["metadata"]} if "metadata" in body else {}
            return {**build_hyperparameters_body(spec), **kept}
        elif "hyperparameters" in text and "method" not in body and "hyperparameters" in body:
            kept = {name: value for name, value in body.items() if name != "hyperparameters"}
            supervised = {"hyperparameters": body["hyperparameters"]}
            return {**kept, "method": {"type": "supervised", "supervised": supervised}}
        raise ProviderError(
            f"{self._title} did not make the job: {error.message}",
            "Mend the cause; RESUME MODEL tries again, FINETUNE takes other rows or options.",
        )

    def _get_job_name(self, job: JsonObject) -> str | None:
        return get_text(job, self._dialect.id_field, "id")

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
                if name := find_job(self._api, self._dialect, spec.tag, spec.train):
                    return name
            except RequestError as error:
                if error.is_transient or error.status not in (400, 404, 405, 501):
                    raise self._make_unreachable_error(error) from None
                raise ProviderError(
                    f"Whether {self._title} made the job is not known, and it does not list its jobs: {error.message}",
                    f"Look there for a job on the file {spec.train}: if there is none, FINETUNE again makes another.",
                ) from None
        return None

    # watching

    def _watch(self) -> JsonObject:
        seconds, poller = self._first_pause, Poller(self._api, self._dialect.get_job_path(self.record.job or ""))
        while True:
            try:
                job = poller.poll()
            except RequestError as error:
                if error.status in (404, 410):
                    raise self._make_deleted_error(error) from None
                raise self._make_unreachable_error(error) from None
            if job and self._is_complete(job):
                return job
            self.pause(seconds)
            seconds = lengthen_pause(seconds, self._first_pause)

    def _is_complete(self, job: JsonObject) -> bool:
        """Whether it is; its events are reported, ProviderError or Cancelled where it will never be."""
        state, word = parse_state(job)
        if word != self.record.word:
            self._save(word=word)
        events = self._fetch_events(job)
        self._report_steps(events)
        share = parse_percent(job)
        if not events and share is not None and share > self.record.reported:
            self._report_progress(Progress(share, 100))
        if state == "complete":
            if get_text(job, *MODEL_FIELDS):
                return True
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
        return False

    def _fetch_events(self, job: JsonObject) -> list[JsonObject]:
        """The job's events that may be new; none where the provider has none."""
        if inside := get_objects(job.get("events")):
            return inside
        if self._dialect.events_path is None:
            return []
        events: list[JsonObject] = []
        path = self._dialect.events_path.format(job=self._dialect.get_job_path(self.record.job or ""))
        try:
            for event in self._api.list_objects(path, max_tries=1):
                events.append(event)
                metrics = parse_metrics(event)
                if len(events) % EVENTS_PER_PAGE == 0 and metrics and metrics[0] <= self.record.reported:
                    break
        except (RequestError, HandlerError):  # without events a job is watched all the same
            pass
        return events

    def _report_steps(self, events: Sequence[JsonObject]) -> None:
        """Report steps that were not reported yet, in their order."""
        steps: dict[int, tuple[int | None, dict[str, float]]] = {}
        for metrics in map(parse_metrics, events):
            if metrics and metrics[0] > self.record.reported:
                total, numbers = steps.get(metrics[0], (None, {}))
                steps[metrics[0]] = (metrics[1] or total, {**numbers, **metrics[2]})
        for step, (total, numbers) in sorted(steps.items()):
            self._report_progress(Progress(step, total if total is None or total >= step else step, numbers))

    def _report_progress(self, progress: Progress) -> None:
        """Report it, and note that, so that whoever takes the job up again goes on from there."""
        self._progress = progress
        self._save(reported=progress.step, total=progress.total_steps, metrics=dict(progress.metrics))
        self._report(progress)

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


def find_job(api: ApiClient, dialect: Dialect, tag: str, train: str | None) -> str | None:
    """The job that has our tag or trains on our file; None if there is none."""
    if not dialect.job_id_parameter:
        jobs = (job for job in api.list_objects(dialect.jobs_path) if is_ours(job, tag, train))
        names = (get_text(job, dialect.id_field, "id") for job in jobs if parse_state(job)[0] not in ENDED_STATES)
        return next(names, None)
    try:
        return get_text(api.get(dialect.get_job_path(tag)), dialect.id_field) or tag
    except RequestError as error:
        if error.status == 404:
            return None
        raise


def cancel_job(api: ApiClient, dialect: Dialect, workdir: Path) -> None:
    """Stop the job that this workdir knows of, if it still goes; ProviderError if the provider cannot be told."""
    record = read_record(JobRecord, workdir / RECORD_NAME) or JobRecord()
    if record.phase not in ("creating", "created"):
        return
    try:
        if record.phase == "creating":
            record.job = find_job(api, dialect, record.tag, record.files.get("train"))
        if record.job is not None:
            _request_cancel(api, dialect, record.job)
    except RequestError as error:
        job = f" job {record.job}" if record.job else ""
        raise ProviderError(
            f"{api.address.provider.title} could not be told to cancel{job}: {error.message}",
            "CANCEL MODEL tries again; the provider's own pages can cancel it too.",
        ) from None
    record.phase = "ended"
    write_record(record, workdir / RECORD_NAME)


def _request_cancel(api: ApiClient, dialect: Dialect, name: str) -> None:
    """Cancel it; that it is gone or has ended already is as good."""
    path = dialect.get_job_path(name)
    try:
        api.retry(partial(api.post, dialect.cancel_path.format(job=path), {}))
    except RequestError as error:
        if error.status not in (400, 404, 409, 410):
            raise
        if error.status != 404 and parse_state(api.get(path))[0] in ("queued", "training"):
            raise


def make_artifact(job: JsonObject, record: JobRecord, details: JsonObject) -> Artifact:
    """What training made, and what is known of it."""
    known = {
        "provider": get_text(job, "organization_id"),
        "job": record.job,
        "provider_status": record.word,
        "trained_tokens": next((n for name in TOKEN_FIELDS if isinstance(n := job.get(name), int) and n), None),
        **details,
    }
    kept = {name: value for name, value in known.items() if value not in (None, "")}
    return Artifact(remote_id=get_text(job, *MODEL_FIELDS), details=kept)
