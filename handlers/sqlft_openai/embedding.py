"""Texts to vectors through /embeddings, some hundred a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlft.errors import ProviderError
from sqlft_openai import faults
from sqlft_openai.address import Address, address_of
from sqlft_openai.engines import Engine
from sqlft_openai.faults import Fault
from sqlft_openai.line import line
from sqlft_openai.options import EngineOptions

TEXTS = 128
"""Texts a request."""


def embedded(engine: Engine, options: EngineOptions, model: str, texts: Iterable[str]) -> Iterator[Sequence[float]]:
    """A vector a text, in order; raises HandlerError where a batch has none."""
    address = address_of(engine, options)
    waiting = iter(texts)
    while batch := list(islice(waiting, TEXTS)):
        yield from line().run(_vectors(address, options, model, batch)).result()


async def _vectors(address: Address, options: EngineOptions, model: str, batch: list[str]) -> list[list[float]]:
    response = (
        await line()
        .client(address)
        .post(
            address.url("/embeddings", model),
            content=json.dumps({"model": model, "input": [t or " " for t in batch]}).encode("utf-8", "replace"),
            headers={**address.headers, "Content-Type": "application/json"},
            timeout=options.timeout,
        )
    )
    if response.status_code >= 300:
        found = faults.of_status(response.status_code, response.headers, response.content, address, model)
        raise ProviderError(found.message, "Run it again.") if isinstance(found, Fault) else found
    rows = sorted(json.loads(response.content)["data"], key=lambda r: r["index"])
    return [r["embedding"] for r in rows]
