"""The provider's side of files, jobs and batches: one request, its answer as JSON, and what went wrong."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from sqlft_openai import faults
from sqlft_openai.address import Address
from sqlft_openai.faults import Fault
from sqlft_openai.line import line
from sqlft_openai.log import logged
from sqlft_openai.options import EngineOptions
from sqlft_openai.rates import retry_after

UPLOAD_SECONDS = 1800.0
TRIES = 6
MOST_WAIT = 30.0
T = TypeVar("T")
Pause = Callable[[float], None]
"""Waits so many seconds, and raises Cancelled when it shall not."""


class Api:
    """Requests to one account; `pause` is called between tries."""

    def __init__(self, address: Address, options: EngineOptions, pause: Pause = time.sleep, model: str = "") -> None:
        self.address, self._timeout, self._pause, self._model = address, options.timeout, pause, model
        self._base: str | None = None

    def get(self, path: str, **query: Any) -> Any:
        """The JSON behind a path; tried again where that may help."""
        return self.patiently(lambda: self.once("GET", path, query=query))

    def post(self, path: str, body: Any = None) -> Any:
        """What a request does that may be sent twice; tried again where that may help."""
        return self.patiently(lambda: self.once("POST", path, body=body))

    def upload(self, path: str, content: bytes, name: str, **fields: str) -> Any:
        """A file as multipart/form-data; one request and no more."""
        return self.once("POST", path, file=(name, content), fields=fields)

    def content(self, path: str) -> bytes:
        """The bytes behind a path."""
        return self.patiently(lambda: self._bytes("GET", path, {}))

    def text(self, method: str, path: str, body: Any) -> str:
        """The answer to JSON, where it is text; one request and no more."""
        headers = {"Content-Type": "application/json"}
        return self._bytes(method, path, {"content": json.dumps(body).encode(), "headers": headers}).decode()

    def patiently(self, work: Callable[[], T]) -> T:
        """Do it until it succeeds or fails for good; the last Fault after TRIES."""
        tried = 0
        while True:
            tried += 1
            try:
                return work()
            except Fault as fault:
                if not fault.passing or tried == TRIES:
                    raise
                self._pause(_wait_of(fault, tried))

    def once(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        file: tuple[str, bytes] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Any:
        """One request and no more; Fault with its status, or HandlerError where nothing can succeed."""
        sent: dict[str, Any] = {}
        if file is not None:
            sent = {"data": dict(fields or {}), "files": {"file": (*file, "application/jsonl")}}
        elif body is not None:
            sent = {
                "content": json.dumps(body).encode("utf-8", "replace"),
                "headers": {"Content-Type": "application/json"},
            }
        content = self._bytes(method, path, sent, query)
        try:
            return json.loads(content) if content.strip() else {}
        except ValueError:
            shown = self.address.clean(content.decode("utf-8", "replace"), 80)
            title = self.address.engine.title
            raise Fault("malformed", f"{title} answered with no JSON: {shown!r}", True) from None

    def _bytes(self, method: str, path: str, sent: dict[str, Any], query: Mapping[str, Any] | None = None) -> bytes:
        response = None
        for base in (self._base,) if self._base else self.address.bases:
            response = self._response(method, self._url(base, path, query), sent)
            if response.status_code not in (404, 405):
                self._base = base
                break
        assert response is not None
        if response.status_code >= 300:
            raise _fault_of(response, self.address, self._model)
        return bytes(response.content)

    def _url(self, base: str, path: str, query: Mapping[str, Any] | None) -> str:
        asked = urlencode({k: v for k, v in (query or {}).items() if v is not None})
        whole = f"{base if path.startswith('/') else ''}{path}{self.address.query}"
        return f"{whole}{'&' if '?' in whole else '?'}{asked}" if asked else whole

    def _response(self, method: str, url: str, sent: dict[str, Any]) -> Any:
        timeout = UPLOAD_SECONDS if "files" in sent else self._timeout
        headers = {**self.address.headers, **sent.get("headers", {})}

        async def go() -> Any:
            http = line().client(self.address)
            with logged(method, url, self.address) as answered:
                response = await http.request(method, url, **{**sent, "headers": headers}, timeout=timeout)
                answered(response)
                return response

        try:
            return line().run(go()).result()
        except Exception as e:
            raise faults.of_exception(e, self.address, timeout) from None


def _fault_of(response: Any, address: Address, model: str) -> BaseException:
    status = response.status_code
    found = faults.of_status(status, response.headers, response.content, address, model)
    if isinstance(found, Fault):
        found.after = retry_after(response.headers)
        return found
    if status in (404, 405):  # there may be no such job, or no such path: who asks knows
        return Fault("not_found", f"{address.engine.title} says: {_said(response, address)}", False, status)
    return found


def _said(response: Any, address: Address) -> str:
    """The provider's own words, or the status."""
    try:
        error = faults.error_in(json.loads(response.content)) or {}
    except ValueError:
        error = {}
    return address.clean(str(error.get("message") or f"status {response.status_code}"))


def _wait_of(fault: Fault, tried: int) -> float:
    if fault.after is not None:
        return min(fault.after, 600.0)
    return min(MOST_WAIT, 0.25 * float(2**tried)) * (0.5 + random.random() / 2)
