"""`USING batch = true`: all prompts in a file, answered within a day at half the price.

What was sent is written to a store before it is sent: crashes here lose nothing, and nothing is paid twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from sqlft.errors import HandlerError, NotSupported, ProviderError
from sqlft.handler import Completion, Predictor, Progress, Request
from sqlft_openai.bodies import RequestBuilder, parse_answer
from sqlft_openai.http import errors
from sqlft_openai.http.api import ApiClient, Poller, is_ours, lengthen_pause, read_record, write_record
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import JsonObject, find_error, get_object, get_objects, get_text, parse_json
from sqlft_openai.prices import CostCalculator

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
PRICE_FACTOR = 0.5
"""Of the price of asking directly."""
FINAL_STATUSES = ("completed", "failed", "expired", "cancelled", "canceled")
PROGRESS_SECONDS = 1.0
MAX_CREATE_TRIES = 4
Pending = dict[str, tuple[int, JsonObject]]
"""Requests that have no answer yet, (id, body), by custom_id."""


class BatchPredictor(Predictor):
    """Pulls everything, for a batch is sent as a whole."""

    def __init__(
        self, api: ApiClient, builder: RequestBuilder, costs: CostCalculator, store: BatchStore, poll_seconds: float
    ) -> None:
        provider = api.address.provider
        if provider.batch_path is None:
            raise NotSupported(
                f"{provider.title} has no batch API that sqlft speaks.", "Leave batch out, and ask directly."
            )
        self._api, self._builder, self._costs, self._store = api, builder, costs, store
        self._endpoint, self._title, self._first_pause = provider.batch_path, provider.title, poll_seconds
        self._finished: list[BatchRecord] = []
        self._answered: list[tuple[BatchRecord, str]] = []
        """Answers that were handed on; until `close` they might not have been kept."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Progress]:
        """Completions batch by batch, and in between how many requests have been answered there."""
        pending: Pending = {}
        for request in requests:
            body = self._builder.build(request.messages)
            name = _hash_body(body)
            pending[f"{name}-{request.id}" if name in pending else name] = (request.id, body)
        if not pending:
            return
        yield Progress(0, len(pending))
        entries = list(self._resume_batches(pending))
        in_flight = {name for entry in entries for name in entry.ids if name not in entry.settled}
        for lines in _split_requests(self._endpoint, [(n, b) for n, (_, b) in pending.items() if n not in in_flight]):
            entries.append(self._submit(lines))
            yield Progress(0, len(pending))
        yield from self._collect_answers(entries, pending)

    def close(self) -> None:
        """Forget the batches whose answers were all taken; the others are found by the next statement."""
        for entry, name in self._answered:
            entry.settled.append(name)
        self._store.forget_answered(self._finished)
        self._finished, self._answered = [], []

    # to the provider

    def _resume_batches(self, pending: Pending) -> Iterator[BatchRecord]:
        """Batches of earlier statements that answer some of this one's prompts."""
        for entry in self._store.entries():
            if not any(name in pending for name in entry.ids if name not in entry.settled):
                continue
            if entry.phase == "creating" and not self._find_batch(entry):
                self._store.forget(entry)
            else:
                yield entry

    def _submit(self, lines: Mapping[str, bytes]) -> BatchRecord:
        entry = BatchRecord(self._store.account, list(lines))
        self._store.write(entry)
        content = b"".join(lines.values())
        try:
            name = f"sqlft-{entry.ours}.jsonl"
            entry.file = self._api.retry(partial(self._upload, name, content))
        except RequestError as e:
            raise self._make_error("The requests could not be uploaded", e) from None
        try:
            self._api.wait_for_file(f"/files/{entry.file}", self._first_pause, time.sleep)
        except RequestError as e:
            if e.code == "bad_file":
                raise self._make_error("The file of requests was not taken", e) from None
        entry.phase = "creating"
        self._store.write(entry)
        self._create_batch(entry)
        return entry

    def _upload(self, name: str, content: bytes) -> str:
        if found := get_text(self._api.upload("/files", name, content, purpose="batch"), "id"):
            return found
        raise RequestError("malformed", f"{self._title} gave no id.", True)

    def _create_batch(self, entry: BatchRecord) -> None:
        body: dict[str, object] = {
            "input_file_id": entry.file,
            "endpoint": self._endpoint,
            "completion_window": "24h",
            "metadata": {"sqlft": entry.ours},
        }
        for tries in range(1, MAX_CREATE_TRIES + 1):
            try:
                entry.batch = get_text(self._api.post("/batches", body), "id")
            except RequestError as error:
                refused = error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409, 429)
                if refused and "metadata" in error.message.lower() and "metadata" in body:
                    del body["metadata"]
                    continue
                if refused:
                    self._store.forget(entry)
                    raise self._make_error("The batch was not made", error) from None
                time.sleep(min(30.0, error.retry_after or self._first_pause * 2**tries))
            except HandlerError:
                self._store.forget(entry)
                raise
            if entry.batch is not None or self._find_batch(entry):
                entry.phase = "created"
                self._store.write(entry)
                return
        raise ProviderError(
            f"{self._title} does not say whether it made the batch.", "Run it again: the batch is looked for there."
        )

    def _find_batch(self, entry: BatchRecord) -> bool:
        """Whether the batch is there that a request may have made; noted if so."""
        try:
            batches = self._api.list_objects("/batches")
            batch = next((b for b in batches if is_ours(b, entry.ours, entry.file)), None)
        except RequestError as error:
            raise self._make_error("Whether the batch was made is not known", error) from None
        if batch is not None:
            entry.batch, entry.phase = get_text(batch, "id"), "created"
            self._store.write(entry)
        return batch is not None

    # from the provider

    def _collect_answers(self, entries: list[BatchRecord], pending: Pending) -> Iterator[Completion | Progress]:
        seconds, total = self._first_pause, len(pending)
        done = [0] * len(entries)
        left = {place: Poller(self._api, f"/batches/{entry.batch}") for place, entry in enumerate(entries)}
        while left:
            for place, poller in list(left.items()):
                batch = self._look(poller, entries[place])
                counts = get_object(batch.get("request_counts"))
                if counts:
                    done[place] = sum(n for w in ("completed", "failed") if isinstance(n := counts.get(w), int))
                if (get_text(batch, "status") or "").lower() in (*FINAL_STATUSES, "gone"):
                    del left[place]
                    self._finished.append(entries[place])
                    yield from self._read_answers(entries[place], batch, pending)
            yield Progress(min(total, sum(done)), total)
            until = time.monotonic() + (seconds if left else 0)
            while (rest := until - time.monotonic()) > 0:
                time.sleep(min(PROGRESS_SECONDS, rest))
                yield Progress(min(total, sum(done)), total)
            seconds = lengthen_pause(seconds, self._first_pause)
        for name in list(pending):
            yield Completion.failed(pending.pop(name)[0], "no_answer", "the batch has no answer to it", retryable=True)

    def _look(self, poller: Poller, entry: BatchRecord) -> JsonObject:
        """The batch as it is now; empty where it could not be seen."""
        try:
            return poller.poll()
        except RequestError as error:
            if error.status in (404, 410):
                return {"status": "gone"}
            raise ProviderError(
                f"{self._title} could not be asked about batch {entry.batch}: {error.message}",
                "Run it again: the batch goes on, and what was asked is not asked twice.",
            ) from None

    def _read_answers(self, entry: BatchRecord, batch: JsonObject, pending: Pending) -> Iterator[Completion]:
        """The answers of a batch that has ended."""
        status = get_text(batch, "status")
        if status == "failed" and not batch.get("output_file_id"):
            self._store.forget(entry)
            raise ProviderError(
                f"{self._title} says that batch {entry.batch} failed: {self._api.address.redact(_get_reason(batch))}",
                "Mend the cause, then run it again.",
            )
        for line in self._read_lines(batch):
            name = get_text(line, "custom_id")
            if name is not None and name in pending and name in entry.ids:
                completion = self._make_completion(pending.pop(name)[0], line)
                if completion.error is None:
                    self._answered.append((entry, name))
                else:
                    self._settle(entry, name)
                yield completion
        codes = {"cancelled": "cancelled", "canceled": "cancelled", "gone": "cancelled", "expired": "expired"}
        code = codes.get(status or "", "no_answer")
        for name in [n for n in entry.ids if n in pending and n not in entry.settled]:
            self._settle(entry, name)
            message = f"batch {entry.batch} ended ({status}) without an answer to it"
            yield Completion.failed(pending.pop(name)[0], code, message, retryable=code != "cancelled")

    def _settle(self, entry: BatchRecord, name: str) -> None:
        """A request has failed: another statement asks it again."""
        entry.settled.append(name)
        self._store.write(entry)

    def _read_lines(self, batch: JsonObject) -> Iterator[JsonObject]:
        for name in ("output_file_id", "error_file_id"):
            file = get_text(batch, name)
            if file is None:
                continue
            try:
                content = self._api.read_file(file)
            except RequestError as error:
                raise self._make_error("The answers could not be read", error) from None
            yield from filter(None, (get_object(parse_json(line)) for line in content.splitlines()))

    def _make_completion(self, number: int, line: JsonObject) -> Completion:
        """One line's answer, at half the price."""
        response = get_object(line.get("response"))
        content = json.dumps(response.get("body")).encode()
        status = response.get("status_code")
        status = status if isinstance(status, int) else 200 if response.get("body") else 500
        request_id = get_text(response, "request_id")
        try:
            if not response and (error := find_error(line)):
                raise RequestError(error.code or "batch_error", error.message)
            if status >= 300:
                raise errors.error_from_status(status, {}, content, self._api.address, "")
            answer = parse_answer(content, self._api.address)
        except RequestError as failure:
            again = failure.is_transient or self._builder.adapt(failure, self._builder.revision)
            return Completion.failed(number, failure.code, failure.message, retryable=again, request_id=request_id)
        except HandlerError as e:
            return Completion.failed(number, f"http_{status}", e.message, request_id=request_id)
        cost = self._costs.calculate(answer.usage)
        half = None if cost is None else cost * PRICE_FACTOR
        return Completion(
            number, answer.text, None, *answer.usage, half, truncated=answer.truncated, reasoning=answer.reasoning
        )

    def _make_error(self, what: str, error: RequestError) -> ProviderError:
        return ProviderError(f"{what}: {error.message}", "Run it again: what was asked is not asked twice.")


def _hash_body(body: JsonObject) -> str:
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:40]


def _split_requests(endpoint: str, requests: Sequence[tuple[str, JsonObject]]) -> Iterator[dict[str, bytes]]:
    """Lines by custom_id, as many as one batch takes."""
    part: dict[str, bytes] = {}
    size = 0
    for name, body in requests:
        line = {"custom_id": name, "method": "POST", "url": endpoint, "body": body}
        written = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if part and (len(part) >= MAX_REQUESTS or size + len(written) > MAX_BYTES):
            yield part
            part, size = {}, 0
        part[name] = written
        size += len(written)
    if part:
        yield part


def _get_reason(batch: JsonObject) -> str:
    reported = batch.get("errors")
    listed = get_objects(get_object(reported).get("data") or reported)
    messages = [get_text(error, "message") or str(error) for error in listed]
    return "; ".join(messages[:3]) or "it gives no reason"


RETENTION_SECONDS = 30 * 86_400.0
"""How long providers keep a batch's answers."""


@dataclass
class BatchRecord:
    """One batch: what it asks, and how far it is."""

    account: str
    """Whose batch it is: the address and the model."""
    ids: list[str]
    """custom_id of each request."""
    ours: str = field(default_factory=lambda: uuid4().hex)
    file: str | None = None
    batch: str | None = None
    phase: str = "new"
    """new, creating (a request for the batch may be under way), created."""
    settled: list[str] = field(default_factory=list)
    """Requests whose answer or failure was handed on: another statement asks them again."""
    at: float = field(default_factory=time.time)


class BatchStore:
    """The entries below a folder; without one they last as long as the statement."""

    def __init__(self, folder: Path | None, account: str) -> None:
        self._folder, self.account = folder, account

    def entries(self) -> Iterator[BatchRecord]:
        """This account's batches that may be at the provider, oldest first."""
        files = [] if self._folder is None else self._folder.glob("*.json")
        entries = [entry for path in files if (entry := read_record(BatchRecord, path)) is not None]
        for entry in sorted(entries, key=lambda e: e.at):
            if time.time() - entry.at > RETENTION_SECONDS or entry.phase == "new":
                self.forget(entry)
            elif entry.account == self.account:
                yield entry

    def write(self, entry: BatchRecord) -> None:
        """Keep an entry, also through a power cut."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_record(entry, self._folder / f"{entry.ours}.json")

    def forget_answered(self, entries: Iterable[BatchRecord]) -> None:
        """Keep what was handed on, and forget the entries of which that is all."""
        for entry in entries:
            if set(entry.ids) <= set(entry.settled):
                self.forget(entry)
            else:
                self.write(entry)

    def forget(self, entry: BatchRecord) -> None:
        """It answers nothing any more, or was never sent."""
        if self._folder is not None:
            (self._folder / f"{entry.ours}.json").unlink(missing_ok=True)
