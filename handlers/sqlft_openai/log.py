"""One line for each request in the logger `sqlft`, at DEBUG: method, address, status, seconds, the provider's id."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlft_openai.address import Address

LOGGER = logging.getLogger("sqlft")


@contextmanager
def logged(method: str, url: str, address: Address) -> Iterator[Callable[[Any], None]]:
    """Log the request that the block sends, which hands over the response as soon as it has its head."""
    began, head = time.monotonic(), "no answer"

    def answered(response: Any) -> None:
        nonlocal head
        headers = response.headers
        request_id = headers.get("x-request-id") or headers.get("apim-request-id") or headers.get("request-id")
        head = f"{response.status_code}{f', request id {request_id}' if request_id else ''}"

    failure = ""
    try:
        yield answered
    except BaseException as e:
        failure = f", {type(e).__name__}: {e}"
        raise
    finally:
        if LOGGER.isEnabledFor(logging.DEBUG):
            said = f"{method} {url}: {head}{failure}"
            LOGGER.debug("%s, %.3f s", address.clean(said, 2000), time.monotonic() - began)
