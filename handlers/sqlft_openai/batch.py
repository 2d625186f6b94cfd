"""`USING batch = true`: all prompts in a file, answered within a day at half the price.

What was sent is written to a store before it is sent: crashes here lose nothing, and nothing is paid twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlft.errors import HandlerError, NotSupported, ProviderError
from sqlft.handler import Completion, Predictor, Progress, Request
from sqlft_openai import bodies
from sqlft_openai.http import errors
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import ApiClient
from sqlft_openai.prices import CostCalculator

BATCH_PATHS = {
    "openai": "/v1/chat/completions",
    "azure_openai": "/chat/completions",
    "openai_compatible": "/v1/chat/completions",
    "anyscale_endpoints": "/v1/chat/completions",
}
"""What a batch's lines name as their path, by engine; the others have no batch API of this shape."""
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
PRICE_FACTOR = 0.5
"""Of the price of asking directly."""
FINAL_STATUSES = ("completed", "failed", "expired", "cancelled", "canceled")
PROGRESS_SECONDS, PAUSE_GROWTH, MAX_PAUSE_FACTOR = 1.0, 1.5, 30
MAX_NOT_FOUND, MAX_FAILED_POLLS = 3, 30
MAX_CREATE_TRIES, MAX_PAGES = 4, 50


class BatchPredictor(Predictor):
    """Pulls everything, for a batch is sent as a whole."""

    def __init__(
        self,
        api: ApiClient,
        builder: bodies.RequestBuilder,
        costs: CostCalculator,
        store: BatchStore,
        poll_seconds: float,
    ) -> None:
        provider = api.address.provider
        if provider.name not in BATCH_PATHS:
            raise NotSupported(
                f"{provider.title} has no batch API that sqlft speaks.", "Leave batch out, and ask directly."
            )
        self._api, self._builder, self._costs, self._store = api, builder, costs, store
        self._endpoint, self._title, self._first_pause = BATCH_PATHS[provider.name], provider.title, poll_seconds
        self._finished: list[BatchRecord] = []
        self._answered: list[tuple[BatchRecord, str]] = []
        """Answers that were handed on; until `close` they might not have been kept."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Progress]:
        """Completions batch by batch, and in between how many requests have been answered there."""
        wanted: dict[str, tuple[int, dict[str, Any]]] = {}
        for request in requests:
            body = self._builder.build(request.messages)
            name = _hash_body(body)
            wanted[f"{name}-{request.id}" if name in wanted else name] = (request.id, body)
        if not wanted:
            return
        yield Progress(0, len(wanted))
        entries = list(self._resume_batches(wanted))
        in_flight = {name for entry in entries for name in entry.ids if name not in entry.settled}
        for lines in _split_requests(self._endpoint, [(n, b) for n, (_, b) in wanted.items() if n not in in_flight]):
            entries.append(self._submit(lines))
            yield Progress(0, len(wanted))
        yield from self._collect_answers(entries, wanted)

    def close(self) -> None:
        """Forget the batches whose answers were all taken; the others are found by the next statement."""
        for entry, name in self._answered:
            entry.settled.append(name)
        self._store.forget_answered(self._finished)
        self._finished, self._answered = [], []

    # to the provider

    def _resume_batches(self, wanted: Mapping[str, Any]) -> Iterator[BatchRecord]:
        """Batches of earlier statements that answer some of this one's prompts."""
        for entry in self._store.entries():
            if not any(name in wanted for name in entry.ids if name not in entry.settled):
                continue
            if entry.phase == "creating" and not self._find_batch(entry):
                self._store.forget([entry])
            else:
                yield entry

    def _submit(self, lines: Mapping[str, bytes]) -> BatchRecord:
        entry = self._store.create(list(lines))
        content = b"".join(lines.values())
        try:
            name = f"sqlft-{entry.ours}.jsonl"
            file = self._api.retry(lambda: self._api.upload("/files", content, name, purpose="batch"))
            entry.file = str(file["id"])
        except (RequestError, KeyError, TypeError) as e:
            raise self._make_error("The requests could not be uploaded", e) from None
        self._wait_until_ready(entry)
        entry.phase = "creating"
        self._store.write(entry)
        self._create_batch(entry)
        return entry

    def _wait_until_ready(self, entry: BatchRecord) -> None:
        """Wait while the file says that it is looked at; a server that does not show its files has it."""
        from sqlft_openai.finetune.dialects import is_ready

        pause = min(0.5, self._first_pause)
        for _ in range(6):
            try:
                if is_ready(self._api.get(f"/files/{entry.file}")) is not False:
                    return
            except RequestError as failure:
                if failure.code == "bad_file":
                    raise self._make_error("The file of requests was not taken", failure) from None
                return
            time.sleep(pause)
            pause *= PAUSE_GROWTH

    def _create_batch(self, entry: BatchRecord) -> None:
        body = {
            "input_file_id": entry.file,
            "endpoint": self._endpoint,
            "completion_window": "24h",
            "metadata": {"sqlft": entry.ours},
        }
        for tried in range(1, MAX_CREATE_TRIES + 1):
            try:
                made = self._api.send_once("POST", "/batches", body=body)
                entry.batch = str(made["id"])
            except (KeyError, TypeError):
                pass
            except RequestError as failure:
                refused = (
                    failure.status is not None and 400 <= failure.status < 500 and failure.status not in (408, 409, 429)
                )
                if refused and "metadata" in failure.message.lower() and "metadata" in body:
                    del body["metadata"]
                    continue
                if refused:
                    self._store.forget([entry])
                    raise self._make_error("The batch was not made", failure) from None
                time.sleep(min(30.0, failure.retry_after or self._first_pause * 2**tried))
            except HandlerError:
                self._store.forget([entry])
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
        after = None
        for _ in range(MAX_PAGES):
            try:
                page = self._api.get("/batches", limit=100, after=after)
            except RequestError as failure:
                raise self._make_error("Whether the batch was made is not known", failure) from None
            items = page.get("data") if isinstance(page, Mapping) else page
            items = [b for b in items if isinstance(b, Mapping)] if isinstance(items, list) else []
            for batch in items:
                metadata = batch.get("metadata")
                tag = metadata.get("sqlft") if isinstance(metadata, Mapping) else None
                if tag == entry.ours or batch.get("input_file_id") == entry.file:
                    entry.batch, entry.phase = str(batch["id"]), "created"
                    self._store.write(entry)
                    return True
            last = items[-1].get("id") if items else None
            if not isinstance(page, Mapping) or not page.get("has_more") or last in (None, after):
                return False
            after = last
        return False

    # from the provider

    def _collect_answers(
        self, entries: list[BatchRecord], wanted: dict[str, tuple[int, Any]]
    ) -> Iterator[Completion | Progress]:
        pause, done, total = self._first_pause, dict.fromkeys(range(len(entries)), 0), len(wanted)
        pollers = [BatchPoller(self._api, entry) for entry in entries]
        left = dict(enumerate(pollers))
        while left:
            for place, poller in list(left.items()):
                batch = poller.poll()
                done[place] = poller.done
                if batch is not None:
                    del left[place]
                    self._finished.append(poller.entry)
                    yield from self._read_answers(poller.entry, batch, wanted)
            yield Progress(min(total, sum(done.values())), total)
            until = time.monotonic() + (pause if left else 0)
            while (rest := until - time.monotonic()) > 0:
                time.sleep(min(PROGRESS_SECONDS, rest))
                yield Progress(min(total, sum(done.values())), total)
            pause = min(pause * PAUSE_GROWTH, self._first_pause * MAX_PAUSE_FACTOR)
        for name in list(wanted):
            yield Completion.failed(wanted.pop(name)[0], "no_answer", "the batch has no answer to it", retryable=True)

    def _read_answers(
        self, entry: BatchRecord, batch: Mapping[str, Any], wanted: dict[str, tuple[int, Any]]
    ) -> Iterator[Completion]:
        """The answers of a batch that has ended."""
        status = batch.get("status")
        if status == "failed" and not batch.get("output_file_id"):
            self._store.forget([entry])
            raise ProviderError(
                f"{self._title} says that batch {entry.batch} failed: {self._api.address.redact(_get_reason(batch))}",
                "Mend the cause, then run it again.",
            )
        for line in self._read_lines(batch):
            name = line.get("custom_id")
            if name in wanted and name in entry.ids:
                made = self._make_completion(wanted.pop(name)[0], line)
                if made.error is None:
                    self._answered.append((entry, name))
                else:
                    entry.settled.append(name)
                    self._store.write(entry)
                yield made
        code = (
            "cancelled"
            if status in ("cancelled", "canceled", "gone")
            else "expired"
            if status == "expired"
            else "no_answer"
        )
        for name in [n for n in entry.ids if n in wanted and n not in entry.settled]:
            entry.settled.append(name)
            self._store.write(entry)
            said = f"batch {entry.batch} ended ({status}) without an answer to it"
            yield Completion.failed(wanted.pop(name)[0], code, said, retryable=code != "cancelled")

    def _read_lines(self, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for name in ("output_file_id", "error_file_id"):
            if not batch.get(name):
                continue
            try:
                content = self._api.get_bytes(f"/files/{batch[name]}/content")
            except RequestError as failure:
                raise self._make_error("The answers could not be read", failure) from None
            for text in content.splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # a line that was cut off: its row has no answer
                    continue
                if isinstance(line, Mapping):
                    yield line

    def _make_completion(self, number: int, line: Mapping[str, Any]) -> Completion:
        """One line's answer, at half the price."""
        response = line.get("response")
        response = response if isinstance(response, Mapping) else {}
        content = json.dumps(response.get("body")).encode()
        status = response.get("status_code", 200 if response.get("body") else 500)
        request_id = response.get("request_id")
        try:
            if not response and line.get("error"):
                error = line["error"] if isinstance(line["error"], Mapping) else {"message": str(line["error"])}
                raise RequestError(
                    str(error.get("code") or "batch_error"), str(error.get("message") or "it failed"), False
                )
            if status >= 300:
                raise errors.error_from_status(status, {}, content, self._api.address, "")
            answer = bodies.parse_answer(content, self._api.address)
        except RequestError as failure:
            again = failure.is_transient or self._builder.adapt(failure)
            return Completion.failed(number, failure.code, failure.message, retryable=again, request_id=request_id)
        except HandlerError as e:
            return Completion.failed(number, f"http_{status}", e.message, request_id=request_id)
        usage = answer.usage
        cost = self._costs.calculate(usage)
        half = None if cost is None else cost * PRICE_FACTOR
        counts = (usage.input, usage.output, usage.cached)
        return Completion(number, answer.text, None, *counts, half, truncated=answer.truncated)

    def _make_error(self, what: str, error: Exception) -> ProviderError:
        said = error.message if isinstance(error, RequestError) else f"{self._title} gave no id."
        return ProviderError(f"{what}: {said}", "Run it again: what was asked is not asked twice.")


class BatchPoller:
    """Looks at one batch, through what may pass."""

    def __init__(self, api: ApiClient, entry: BatchRecord) -> None:
        self._api, self.entry = api, entry
        self.done = 0
        self._not_found = self._failed_polls = 0

    def poll(self) -> Mapping[str, Any] | None:
        """The batch if it has ended."""
        try:
            batch = self._api.get(f"/batches/{self.entry.batch}")
            self._not_found = self._failed_polls = 0
        except RequestError as failure:
            self._not_found, self._failed_polls = (
                (self._not_found + 1, self._failed_polls) if failure.status == 404 else (0, self._failed_polls + 1)
            )
            if self._not_found >= MAX_NOT_FOUND:
                return {"status": "gone"}
            if self._failed_polls >= MAX_FAILED_POLLS:
                raise ProviderError(
                    f"{self._api.address.provider.title} could not be asked about batch {self.entry.batch}: "
                    f"{failure.message}",
                    "Run it again later: the batch goes on there, and its answers are taken then.",
                ) from None
            return None
        if not isinstance(batch, Mapping):
            return None
        counts = batch.get("request_counts")
        counts = counts if isinstance(counts, Mapping) else {}
        self.done = sum(n for n in (counts.get("completed"), counts.get("failed")) if isinstance(n, int))
        return batch if str(batch.get("status")).lower() in FINAL_STATUSES else None


def _hash_body(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:40]


def _split_requests(endpoint: str, asked: Sequence[tuple[str, Any]]) -> Iterator[dict[str, bytes]]:
    """Lines by custom_id, as many as one batch takes."""
    part: dict[str, bytes] = {}
    size = 0
    for name, body in asked:
        line = {"custom_id": name, "method": "POST", "url": endpoint, "body": body}
        written = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if part and (len(part) >= MAX_REQUESTS or size + len(written) > MAX_BYTES):
            yield part
            part, size = {}, 0
        part[name] = written
        size += len(written)
    if part:
        yield part


def _get_reason(batch: Mapping[str, Any]) -> str:
    errors = batch.get("errors")
    found = errors.get("data") if isinstance(errors, Mapping) else errors
    told = [str(e.get("message") or e) for e in found if isinstance(e, Mapping)] if isinstance(found, list) else []
    return "; ".join(told[:3]) or "it gives no reason"


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
    """Requests whose answer or failure was handed on: another statement asks them anew."""
    at: float = field(default_factory=time.time)


class BatchStore:
    """The entries below a folder; without one they last as long as the statement."""

    def __init__(self, folder: Path | None, account: str) -> None:
        self._folder, self._account = folder, account

    def entries(self) -> Iterator[BatchRecord]:
        """This account's batches that may be at the provider, oldest first."""
        found = [e for path in self._files() if (e := _read_record(path)) is not None]
        for entry in sorted(found, key=lambda e: e.at):
            if time.time() - entry.at > RETENTION_SECONDS or entry.phase == "new":
                self.forget([entry])
            elif entry.account == self._account:
                yield entry

    def create(self, ids: Sequence[str]) -> BatchRecord:
        """A new entry, on disk."""
        entry = BatchRecord(self._account, list(ids))
        self.write(entry)
        return entry

    def write(self, entry: BatchRecord) -> None:
        """Keep an entry, also through a power cut."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{entry.ours}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path(entry))

    def forget_answered(self, entries: Iterable[BatchRecord]) -> None:
        """Keep what was handed on, and forget the entries of which that is all."""
        for entry in entries:
            if set(entry.ids) <= set(entry.settled):
                self.forget([entry])
            else:
                self.write(entry)

    def forget(self, entries: Iterable[BatchRecord]) -> None:
        """They answer nothing any more, or were never sent."""
        if self._folder is not None:
            for entry in entries:
                self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: BatchRecord) -> Path:
        assert self._folder is not None
        return self._folder / f"{entry.ours}.json"

    def _files(self) -> list[Path]:
        return [] if self._folder is None else list(self._folder.glob("*.json"))


def _read_record(path: Path) -> BatchRecord | None:
    try:
        return BatchRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
