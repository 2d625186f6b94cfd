"""`USING batch = true`: all prompts in a file, answered within a day at half the price.

What was sent is written to a ledger before it is sent: crashes here lose nothing, and nothing is paid twice.
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
from sqlft.handler import Completion, Predictor, Progress, Request, RowError
from sqlft_openai import bodies
from sqlft_openai.http import errors
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Api
from sqlft_openai.prices import Spending

ENDPOINTS = {
    "openai": "/v1/chat/completions",
    "azure_openai": "/chat/completions",
    "openai_compatible": "/v1/chat/completions",
    "anyscale_endpoints": "/v1/chat/completions",
}
"""What a batch's lines name as their path, by engine; the others have no batch API of this shape."""
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
PRICE = 0.5
"""Of the price of asking directly."""
FINAL = ("completed", "failed", "expired", "cancelled", "canceled")
BEAT, GROWTH, MOST_PAUSE = 1.0, 1.5, 30
GONE, LOST = 3, 30
CREATIONS, PAGES = 4, 50


class BatchPredictor(Predictor):
    """Pulls everything, for a batch is sent as a whole."""

    def __init__(self, api: Api, form: bodies.Form, spending: Spending, ledger: Ledger, poll_seconds: float) -> None:
        engine = api.address.engine
        if engine.name not in ENDPOINTS:
            raise NotSupported(
                f"{engine.title} has no batch API that sqlft speaks.", "Leave batch out, and ask directly."
            )
        self._api, self._form, self._spending, self._ledger = api, form, spending, ledger
        self._endpoint, self._title, self._first_pause = ENDPOINTS[engine.name], engine.title, poll_seconds
        self._finished: list[Entry] = []
        self._answered: list[tuple[Entry, str]] = []
        """Answers that were handed on; until `close` they might not have been kept."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Progress]:
        """Completions batch by batch, and in between how many requests have been answered there."""
        wanted: dict[str, tuple[int, dict[str, Any]]] = {}
        for request in requests:
            body = self._form.body(request.messages)
            name = _id_of(body)
            wanted[f"{name}-{request.id}" if name in wanted else name] = (request.id, body)
        if not wanted:
            return
        yield Progress(0, len(wanted))
        entries = list(self._taken_up(wanted))
        under_way = {name for entry in entries for name in entry.ids if name not in entry.settled}
        for lines in _parts(self._endpoint, [(n, b) for n, (_, b) in wanted.items() if n not in under_way]):
            entries.append(self._begun(lines))
            yield Progress(0, len(wanted))
        yield from self._answers(entries, wanted)

    def close(self) -> None:
        """Forget the batches whose answers were all taken; the others are found by the next statement."""
        for entry, name in self._answered:
            entry.settled.append(name)
        self._ledger.settle(self._finished)
        self._finished, self._answered = [], []

    # to the provider

    def _taken_up(self, wanted: Mapping[str, Any]) -> Iterator[Entry]:
        """Batches of earlier statements that answer some of this one's prompts."""
        for entry in self._ledger.entries():
            if not any(name in wanted for name in entry.ids if name not in entry.settled):
                continue
            if entry.phase == "creating" and not self._found(entry):
                self._ledger.forget([entry])
            else:
                yield entry

    def _begun(self, lines: Mapping[str, bytes]) -> Entry:
        entry = self._ledger.made(list(lines))
        content = b"".join(lines.values())
        try:
            name = f"sqlft-{entry.ours}.jsonl"
            file = self._api.patiently(lambda: self._api.upload("/files", content, name, purpose="batch"))
            entry.file = str(file["id"])
        except (Fault, KeyError, TypeError) as e:
            raise self._failed("The requests could not be uploaded", e) from None
        self._until_ready(entry)
        entry.phase = "creating"
        self._ledger.write(entry)
        self._create(entry)
        return entry

    def _until_ready(self, entry: Entry) -> None:
        """Wait while the file says that it is looked at; a server that does not show its files has it."""
        from sqlft_openai.finetune.dialects import ready

        pause = min(0.5, self._first_pause)
        for _ in range(6):
            try:
                if ready(self._api.get(f"/files/{entry.file}")) is not False:
                    return
            except Fault as fault:
                if fault.code == "bad_file":
                    raise self._failed("The file of requests was not taken", fault) from None
                return
            time.sleep(pause)
            pause *= GROWTH

    def _create(self, entry: Entry) -> None:
        body = {
            "input_file_id": entry.file,
            "endpoint": self._endpoint,
            "completion_window": "24h",
            "metadata": {"sqlft": entry.ours},
        }
        for tried in range(1, CREATIONS + 1):
            try:
                made = self._api.once("POST", "/batches", body=body)
                entry.batch = str(made["id"])
            except (KeyError, TypeError):
                pass
            except Fault as fault:
                refused = fault.status is not None and 400 <= fault.status < 500 and fault.status not in (408, 409, 429)
                if refused and "metadata" in fault.message.lower() and "metadata" in body:
                    del body["metadata"]
                    continue
                if refused:
                    self._ledger.forget([entry])
                    raise self._failed("The batch was not made", fault) from None
                time.sleep(min(30.0, fault.after or self._first_pause * 2**tried))
            except HandlerError:
                self._ledger.forget([entry])
                raise
            if entry.batch is not None or self._found(entry):
                entry.phase = "created"
                self._ledger.write(entry)
                return
        raise ProviderError(
            f"{self._title} does not say whether it made the batch.", "Run it again: the batch is looked for there."
        )

    def _found(self, entry: Entry) -> bool:
        """Whether the batch is there that a request may have made; noted if so."""
        after = None
        for _ in range(PAGES):
            try:
                page = self._api.get("/batches", limit=100, after=after)
            except Fault as fault:
                raise self._failed("Whether the batch was made is not known", fault) from None
            items = page.get("data") if isinstance(page, Mapping) else page
            items = [b for b in items if isinstance(b, Mapping)] if isinstance(items, list) else []
            for batch in items:
                metadata = batch.get("metadata")
                tag = metadata.get("sqlft") if isinstance(metadata, Mapping) else None
                if tag == entry.ours or batch.get("input_file_id") == entry.file:
                    entry.batch, entry.phase = str(batch["id"]), "created"
                    self._ledger.write(entry)
                    return True
            last = items[-1].get("id") if items else None
            if not isinstance(page, Mapping) or not page.get("has_more") or last in (None, after):
                return False
            after = last
        return False

    # from the provider

    def _answers(self, entries: list[Entry], wanted: dict[str, tuple[int, Any]]) -> Iterator[Completion | Progress]:
        pause, done, total = self._first_pause, dict.fromkeys(range(len(entries)), 0), len(wanted)
        looks = [Look(self._api, entry) for entry in entries]
        left = dict(enumerate(looks))
        while left:
            for place, look in list(left.items()):
                batch = look.at()
                done[place] = look.done
                if batch is not None:
                    del left[place]
                    self._finished.append(look.entry)
                    yield from self._of(look.entry, batch, wanted)
            yield Progress(min(total, sum(done.values())), total)
            until = time.monotonic() + (pause if left else 0)
            while (rest := until - time.monotonic()) > 0:
                time.sleep(min(BEAT, rest))
                yield Progress(min(total, sum(done.values())), total)
            pause = min(pause * GROWTH, self._first_pause * MOST_PAUSE)
        for name in list(wanted):
            yield Completion(wanted.pop(name)[0], error=RowError("no_answer", "the batch has no answer to it", True))

    def _of(self, entry: Entry, batch: Mapping[str, Any], wanted: dict[str, tuple[int, Any]]) -> Iterator[Completion]:
        """The answers of a batch that has ended."""
        status = batch.get("status")
        if status == "failed" and not batch.get("output_file_id"):
            self._ledger.forget([entry])
            raise ProviderError(
                f"{self._title} says that batch {entry.batch} failed: {self._api.address.clean(_reason(batch))}",
                "Mend the cause, then run it again.",
            )
        for line in self._lines(batch):
            name = line.get("custom_id")
            if name in wanted and name in entry.ids:
                made = self._completion(wanted.pop(name)[0], line)
                if made.error is None:
                    self._answered.append((entry, name))
                else:
                    entry.settled.append(name)
                    self._ledger.write(entry)
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
            self._ledger.write(entry)
            said = f"batch {entry.batch} ended ({status}) without an answer to it"
            yield Completion(wanted.pop(name)[0], error=RowError(code, said, code != "cancelled"))

    def _lines(self, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for name in ("output_file_id", "error_file_id"):
            if not batch.get(name):
                continue
            try:
                content = self._api.content(f"/files/{batch[name]}/content")
            except Fault as fault:
                raise self._failed("The answers could not be read", fault) from None
            for text in content.splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # a line that was cut off: its row has no answer
                    continue
                if isinstance(line, Mapping):
                    yield line

    def _completion(self, number: int, line: Mapping[str, Any]) -> Completion:
        """One line's answer, at half the price."""
        response = line.get("response")
        response = response if isinstance(response, Mapping) else {}
        content = json.dumps(response.get("body")).encode()
        status = response.get("status_code", 200 if response.get("body") else 500)
        request_id = response.get("request_id")
        try:
            if not response and line.get("error"):
                error = line["error"] if isinstance(line["error"], Mapping) else {"message": str(line["error"])}
                raise Fault(str(error.get("code") or "batch_error"), str(error.get("message") or "it failed"), False)
            if status >= 300:
                raise errors.of_status(status, {}, content, self._api.address, "")
            answer = bodies.answer_of(content, self._api.address)
        except Fault as fault:
            again = fault.passing or self._form.adapt(fault)
            return Completion(number, error=RowError(fault.code, fault.message, again, request_id))
        except HandlerError as e:
            return Completion(number, error=RowError(f"http_{status}", e.message, False, request_id))
        spent = answer.spent
        cost = self._spending.cost(spent)
        half = None if cost is None else cost * PRICE
        counts = (spent.input, spent.output, spent.cached)
        return Completion(number, answer.text, None, *counts, half, truncated=answer.truncated)

    def _failed(self, what: str, error: Exception) -> ProviderError:
        said = error.message if isinstance(error, Fault) else f"{self._title} gave no id."
        return ProviderError(f"{what}: {said}", "Run it again: what was asked is not asked twice.")


class Look:
    """Looks at one batch, through what may pass."""

    def __init__(self, api: Api, entry: Entry) -> None:
        self._api, self.entry = api, entry
        self.done = 0
        self._gone = self._lost = 0

    def at(self) -> Mapping[str, Any] | None:
        """The batch if it has ended."""
        try:
            batch = self._api.get(f"/batches/{self.entry.batch}")
            self._gone = self._lost = 0
        except Fault as fault:
            self._gone, self._lost = (self._gone + 1, self._lost) if fault.status == 404 else (0, self._lost + 1)
            if self._gone >= GONE:
                return {"status": "gone"}
            if self._lost >= LOST:
                raise ProviderError(
                    f"{self._api.address.engine.title} could not be asked about batch {self.entry.batch}: "
                    f"{fault.message}",
                    "Run it again later: the batch goes on there, and its answers are taken then.",
                ) from None
            return None
        if not isinstance(batch, Mapping):
            return None
        counts = batch.get("request_counts")
        counts = counts if isinstance(counts, Mapping) else {}
        self.done = sum(n for n in (counts.get("completed"), counts.get("failed")) if isinstance(n, int))
        return batch if str(batch.get("status")).lower() in FINAL else None


def _id_of(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:40]


def _parts(endpoint: str, asked: Sequence[tuple[str, Any]]) -> Iterator[dict[str, bytes]]:
    """Lines by custom_id, as many as one batch takes."""
    part: dict[str, bytes] = {}
    size = 0
    for name, body in asked:
        line = {"custom_id": name, "method": "POST", "url": endpoint, "body": body}
        written = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if part and (len(part) >= MOST_REQUESTS or size + len(written) > MOST_BYTES):
            yield part
            part, size = {}, 0
        part[name] = written
        size += len(written)
    if part:
        yield part


def _reason(batch: Mapping[str, Any]) -> str:
    errors = batch.get("errors")
    found = errors.get("data") if isinstance(errors, Mapping) else errors
    told = [str(e.get("message") or e) for e in found if isinstance(e, Mapping)] if isinstance(found, list) else []
    return "; ".join(told[:3]) or "it gives no reason"


KEPT_SECONDS = 30 * 86_400.0
"""How long providers keep a batch's answers."""


@dataclass
class Entry:
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


class Ledger:
    """The entries below a folder; without one they last as long as the statement."""

    def __init__(self, folder: Path | None, account: str) -> None:
        self._folder, self._account = folder, account

    def entries(self) -> Iterator[Entry]:
        """This account's batches that may be at the provider, oldest first."""
        found = [e for path in self._files() if (e := _read(path)) is not None]
        for entry in sorted(found, key=lambda e: e.at):
            if time.time() - entry.at > KEPT_SECONDS or entry.phase == "new":
                self.forget([entry])
            elif entry.account == self._account:
                yield entry

    def made(self, ids: Sequence[str]) -> Entry:
        """A new entry, on disk."""
        entry = Entry(self._account, list(ids))
        self.write(entry)
        return entry

    def write(self, entry: Entry) -> None:
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

    def settle(self, entries: Iterable[Entry]) -> None:
        """Keep what was handed on, and forget the entries of which that is all."""
        for entry in entries:
            if set(entry.ids) <= set(entry.settled):
                self.forget([entry])
            else:
                self.write(entry)

    def forget(self, entries: Iterable[Entry]) -> None:
        """They answer nothing any more, or were never sent."""
        if self._folder is not None:
            for entry in entries:
                self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: Entry) -> Path:
        assert self._folder is not None
        return self._folder / f"{entry.ours}.json"

    def _files(self) -> list[Path]:
        return [] if self._folder is None else list(self._folder.glob("*.json"))


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
