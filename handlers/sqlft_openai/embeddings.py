"""Texts to vectors through /embeddings, some hundred a request."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise

from sqlft.errors import ProviderError
from sqlft.handler import Vector
from sqlft_openai.bodies import Spent, spent_of
from sqlft_openai.chat import Mark
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Asking, Line, Sent, about
from sqlft_openai.prices import Spending

TEXTS = 128
"""Texts a request."""
AHEAD = 8
"""Requests under way."""
PATH = "/embeddings"


def embedded(line: Line, asking: Asking, window: int, texts: Iterable[str]) -> Iterator[Sequence[float]]:
    """A vector a text, in order; ProviderError where a request has none after all tries."""
    spending = Spending(asking.address.engine, asking.model)
    waiting = iter(texts)
    batches = iter(lambda: list(islice(waiting, TEXTS)), [])
    under_way = deque(line.run(_vectors(asking, spending, batch)) for batch in islice(batches, min(AHEAD, window)))
    try:
        while under_way:
            vectors = under_way.popleft().result()
            under_way.extend(line.run(_vectors(asking, spending, batch)) for batch in islice(batches, 1))
            yield from vectors
    finally:
        for future in under_way:
            future.cancel()


async def _vectors(asking: Asking, spending: Spending, batch: list[str]) -> list[Vector]:
    # An empty text is refused by some providers, and a space means as little.
    body = {"model": asking.model, "input": [text or " " for text in batch], "encoding_format": "float"}

    def adapt(fault: Fault) -> bool:
        taken = fault.status in (400, 422) and "encoding_format" in f"{fault.parameter} {fault.message}"
        return taken and body.pop("encoding_format", None) is not None

    try:
        sent = Sent(PATH, lambda: body, about(batch, 0))
        vectors, spent = await asking.ask(sent, lambda c: vectors_of(c, len(batch), asking.address), adapt, Mark())
        if spent is not None:
            asking.correct(spent - sent.tokens)
        cost = spending.cost(Spent(spent, 0))
        return [
            Vector(vector, tokens, None if cost is None or not spent else cost * (tokens or 0) / spent)
            for vector, tokens in zip(vectors, _shared(spent, batch), strict=True)
        ]
    except Fault as fault:
        raise ProviderError(
            f"No vectors for {len(batch)} texts, {fault.code}: {fault.message}",
            "Ask again; if it goes on, check the model's name and that texts are not too long for it.",
        ) from None


def _shared(tokens: int | None, batch: Sequence[str]) -> list[int | None]:
    """A request's tokens, shared out over its texts by their length."""
    if tokens is None:
        return [None] * len(batch)
    ends = list(accumulate(len(text) + 1 for text in batch))
    marks = [0, *(round(tokens * end / ends[-1]) for end in ends)]
    return [after - before for before, after in pairwise(marks)]


def vectors_of(content: bytes, count: int, address: Address) -> tuple[list[list[float]], int | None]:
    """(vectors, tokens) in a body of status 200, in the order of the texts; Fault if there are not so many."""
    try:
        body = json.loads(content)
        rows = sorted(body["data"], key=lambda row: row["index"])
        vectors = [row["embedding"] for row in rows]
    except (ValueError, KeyError, TypeError):
        error = errors.error_in(_parsed(content))
        said = address.clean(str(error["message"])) if error else "a body without vectors"
        raise Fault("malformed", f"{address.engine.title} answered with {said}", True) from None
    if len(vectors) != count or not all(isinstance(v, list) and v for v in vectors):
        raise Fault("malformed", f"{address.engine.title} gave {len(vectors)} vectors for {count} texts", True)
    return vectors, spent_of(body.get("usage")).input


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None
