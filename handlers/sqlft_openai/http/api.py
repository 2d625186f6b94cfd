"""Requests that are no answers: files, jobs, batches, adapters; by the official client, and one at a time.

Called by `batch`, `finetune` and `handler`.  In: a path and a body.  Out: the JSON object of the reply, or an error.
The client does HTTP, multipart, pages and Azure's paths; retries are ours, since it takes any body of status 200.
What makes something is noted on disk before it is sent, so that after a crash nothing is made twice.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlft.errors import HandlerError
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import MAX_RETRY_AFTER, RequestError
from sqlft_openai.http.parsing import JsonObject, get_object, get_text, parse_error, parse_json
from sqlft_openai.http.transport import describe_head, log_exchange
from sqlft_openai.options import EngineOptions

if TYPE_CHECKING:
    import httpx2
    import openai
    from _typeshed import DataclassInstance

UPLOAD_SECONDS = 1800.0
MAX_TRIES = 6
MAX_WAIT = 30.0
MAX_ITEMS = 5000
"""Of a list: what is older is not looked for."""
HTTP_HEADERS = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"),
    "user-agent",
}
READY_STATUSES = ("processed", "ready", "succeeded", "completed", "success")
BROKEN_STATUSES = ("error", "failed", "deleted", "cancelled")
PROCESSING_STATUSES = ("pending", "running", "processing", "validating", "uploading")
PAUSE_GROWTH, MAX_PAUSE_FACTOR = 1.5, 30
"""Looks grow rarer by GROWTH, to MAX times the first pause."""
MAX_IDLE_POLLS = 6
"""Looks after which a file that is neither ready nor worked on is tried all the same."""
MAX_NOT_FOUND, MAX_FAILED_POLLS = 3, 30
"""Looks in a row at which something must be unknown before it counts as gone; that may fail."""
T = TypeVar("T")
Record = TypeVar("Record", bound="DataclassInstance")


class ApiClient:
    """Requests to one account."""

    def __init__(self, address: Address, options: EngineOptions, model: str = "") -> None:
        self.address, self._options, self._model = address, options, model
        self._bases = list(address.bases)
        """Addresses that may be the right one, until one is known to be."""

    @cached_property
    def sdk(self) -> openai.OpenAI:
        """The official client, which retries nothing."""
        import httpx2
        import openai

        address, timeout = self.address, self._options.timeout
        http_client = httpx2.Client(
            trust_env=not address.is_local,
            event_hooks={"request": [self._set_headers], "response": [self._check_body]},
        )
        if not address.api_version:
            return openai.OpenAI(
                base_url=address.base, api_key="-", timeout=timeout, max_retries=0, http_client=http_client
            )
        return openai.AzureOpenAI(
            base_url=address.base,
            api_version=address.api_version,
            api_key="-",
            timeout=timeout,
            max_retries=0,
            http_client=http_client,
        )

    def get(self, path: str) -> JsonObject:
        """The object behind a path; tried again where that may help."""
        return self.retry(lambda: self._send(lambda: self.sdk.get(path, cast_to=dict[str, object])))

    def post(self, path: str, body: JsonObject, query: JsonObject | None = None) -> JsonObject:
        """What a request made; one request and no more."""
        return self._send(
            lambda: self.sdk.post(path, body=body, cast_to=dict[str, object], options={"params": query or {}})
        )

    def post_for_text(self, path: str, body: JsonObject) -> str:
        """The answer of a server that answers with text; one request and no more."""
        return self._send(
            lambda: self.sdk.post(path, body=body, cast_to=str, options={"headers": {"Accept": "text/plain"}})
        )

    def upload(self, path: str, name: str, content: bytes, **fields: str) -> JsonObject:
        """The object of a new file, sent as multipart/form-data; one request and no more."""
        return self._send(
            lambda: self.sdk.post(
                path,
                body=fields,
                files={"file": (name, content, "application/jsonl")},
                cast_to=dict[str, object],
                options={"headers": {"Content-Type": "multipart/form-data"}, "timeout": UPLOAD_SECONDS},
            )
        )

    def read_file(self, name: str) -> bytes:
        """A file's content; tried again where that may help."""
        return self.retry(lambda: self._send(lambda: self.sdk.files.content(name).content))

    def list_objects(self, path: str, max_tries: int = MAX_TRIES) -> Iterator[JsonObject]:
        """The objects of a list, newest first, page by page; a page is tried again where that may help."""
        from openai import BaseModel
        from openai.pagination import SyncCursorPage

        def get_first() -> SyncCursorPage[BaseModel]:
            kind = SyncCursorPage[BaseModel]
            return self.sdk.get_api_list(path, page=kind, model=BaseModel, options={"params": {"limit": 100}})

        def iterate() -> Iterator[JsonObject]:
            page = self.retry(lambda: self._send(get_first), max_tries)
            while True:
                yield from (item.to_dict(warnings=False) for item in page.data or [] if isinstance(item, BaseModel))
                if not page.has_more or not page.has_next_page():
                    return
                page = self.retry(partial(self._send, page.get_next_page), max_tries)

        return islice(iterate(), MAX_ITEMS)

    def wait_for_file(self, path: str, first_pause: float, pause: Callable[[float], None]) -> None:
        """Wait while the provider looks at a file; a server that does not show its files has it.

        RequestError where it is not taken, with the code bad_file, or not to be seen.
        """
        seconds, idle = min(0.5, first_pause), 0
        while idle < MAX_IDLE_POLLS:
            try:
                file = self.get(path)
            except RequestError as error:
                if error.status == 404:
                    return
                raise
            if _is_ready(file) is not False:
                return
            idle += (get_text(file, "status", "state") or "").lower() not in PROCESSING_STATUSES
            pause(seconds)
            seconds = lengthen_pause(seconds, first_pause)

    def retry(self, work: Callable[[], T], max_tries: int = MAX_TRIES) -> T:
        """Do it until it succeeds or fails for good; the last RequestError after so many tries."""
        tries = 0
        while True:
            tries += 1
            try:
                return work()
            except RequestError as error:
                if not error.is_transient or tries == max_tries:
                    raise
                pause = min(MAX_WAIT, 0.25 * 2.0**tries) * (0.5 + random.random() / 2)
                time.sleep(pause if error.retry_after is None else min(error.retry_after, MAX_RETRY_AFTER))

    def _send(self, work: Callable[[], T]) -> T:
        """One request, to the next address too where the first has no such path; RequestError or HandlerError."""
        import openai

        while True:
            try:
                reply = work()
                del self._bases[1:]
                return reply
            except openai.APIStatusError as e:
                if e.status_code in (404, 405) and len(self._bases) > 1:
                    self._bases.pop(0)
                    self.sdk.base_url = self._bases[0]
                    continue
                raise self._read_status(e) from None
            except openai.APIError as e:
                log_exchange(self.address, e.request.method, str(e.request.url), f"no answer, {type(e).__name__}", 0.0)
                raise errors.error_from_exception(e, self.address, self._options.timeout) from None

    def _read_status(self, error: openai.APIStatusError) -> RequestError | HandlerError:
        status, response = error.status_code, error.response
        meaning = errors.error_from_status(status, response.headers, response.content, self.address, self._model)
        if status in (404, 405) and isinstance(meaning, HandlerError):  # no such job, or no such path: who asks knows
            text = self.address.redact(parse_error(response.content).message) or f"status {status}"
            return RequestError("not_found", f"{self.address.title} says: {text}", False, status)
        return meaning

    def _set_headers(self, request: httpx2.Request) -> None:
        """The account's own, in place of those that the client has from the environment, which are OpenAI's."""
        for name in set(request.headers) - HTTP_HEADERS:
            del request.headers[name]
        request.headers.update(self.address.headers)

    def _check_body(self, response: httpx2.Response) -> None:
        """RequestError for a status of 200 without JSON where that was asked for, which the client would take."""
        response.read()
        request, seconds = response.request, response.elapsed.total_seconds()
        log_exchange(self.address, request.method, str(request.url), describe_head(response), seconds)
        wants_json = request.headers.get("accept") == "application/json"
        if response.status_code < 300 and wants_json and not isinstance(parse_json(response.content or b"{}"), dict):
            text = self.address.redact(response.text, 80)
            raise RequestError("malformed", f"{self.address.title} answered with no JSON: {text!r}", True)


class Poller:
    """Looks at what takes long, through what may pass."""

    def __init__(self, api: ApiClient, path: str) -> None:
        self._api, self._path = api, path
        self._not_found = self._failed = 0

    def poll(self) -> JsonObject:
        """What is there; empty where it could not be seen now, RequestError once it is gone or unseen for long."""
        try:
            reply = self._api.get(self._path)
        except RequestError as error:
            if error.status in (404, 410):
                self._not_found += 1
            else:
                self._not_found, self._failed = 0, self._failed + 1
            if self._not_found >= MAX_NOT_FOUND or self._failed >= MAX_FAILED_POLLS:
                raise
            return {}
        self._not_found = self._failed = 0
        return reply


def lengthen_pause(seconds: float, first: float) -> float:
    """The pause after one of so many seconds.

    >>> lengthen_pause(2.0, 1.0), lengthen_pause(29.0, 1.0)
    (3.0, 30.0)
    """
    return min(seconds * PAUSE_GROWTH, first * MAX_PAUSE_FACTOR)


def _is_ready(file: JsonObject) -> bool | None:
    """Whether a file can be read there; None where that is not said, RequestError where it never will be."""
    status = (get_text(file, "status", "state") or "").lower()
    if status in BROKEN_STATUSES:
        raise RequestError("bad_file", str(file.get("status_details") or file.get("error") or status))
    if status in READY_STATUSES or file.get("Processed") is True:
        return True
    return None if not status and "Processed" not in file else False


def read_record(cls: type[Record], path: Path) -> Record | None:
    """What was written; None where there is nothing, or what is no such record."""
    try:
        return cls(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(record: DataclassInstance, path: Path) -> None:
    """Keep it, also through a power cut."""
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def is_ours(made: JsonObject, tag: str, file: str | None) -> bool:
    """Whether a job or a batch has our tag, or reads our file where its tag is not shown.

    >>> is_ours({"metadata": {"sqlft": "a"}}, "a", None), is_ours({"training_file": "f"}, "a", "f")
    (True, True)
    """
    found = get_text(get_object(made.get("metadata")), "sqlft")
    files = (made.get("training_file"), made.get("input_file_id"))
    return found == tag or (found is None and file is not None and file in files)
