"""Texts to vectors through /embeddings, some hundred a request."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise

from sqlft.errors import ProviderError
from sqlft.handler import Vector, estimate_tokens
from sqlft_openai.bodies import TokenUsage, parse_usage
from sqlft_openai.chat import RequestState
from sqlft_openai.http import errors
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import InferenceClient, OutgoingRequest, TransportThread
from sqlft_openai.prices import CostCalculator

TEXTS_PER_REQUEST = 128
"""Texts a request."""
MAX_IN_FLIGHT = 8
"""Requests under way."""
EMBEDDINGS_PATH = "/embeddings"


def embed_texts(
    thread: TransportThread, client: InferenceClient, window: int, texts: Iterable[str]
) -> Iterator[Sequence[float]]:
    """A vector a text, in order; ProviderError where a request has none after all tries."""
    costs = CostCalculator(client.address.provider, client.model)
    waiting = iter(texts)
    batches = iter(lambda: list(islice(waiting, TEXTS_PER_REQUEST)), [])
    in_flight = deque(
        thread.run(_request_vectors(client, costs, batch)) for batch in islice(batches, min(MAX_IN_FLIGHT, window))
    )
    try:
        while in_flight:
            vectors = in_flight.popleft().result()
            in_flight.extend(thread.run(_request_vectors(client, costs, batch)) for batch in islice(batches, 1))
            yield from vectors
    finally:
        for future in in_flight:
            future.cancel()


async def _request_vectors(client: InferenceClient, costs: CostCalculator, batch: list[str]) -> list[Vector]:
    # An empty text is refused by some providers, and a space means as little.
    body = {"model": client.model, "input": [text or " " for text in batch], "encoding_format": "float"}

    def adapt(error: RequestError) -> bool:
        is_refused = error.status in (400, 422) and "encoding_format" in f"{error.parameter} {error.message}"
        return is_refused and body.pop("encoding_format", None) is not None

    try:
        outgoing = OutgoingRequest(EMBEDDINGS_PATH, lambda: body, sum(map(estimate_tokens, batch)))
        vectors, tokens_used = await client.send(
            outgoing, lambda c: parse_vectors(c, len(batch), client.address), adapt, RequestState()
        )
        if tokens_used is not None:
            client.correct_tokens(tokens_used - outgoing.tokens)
        cost = costs.calculate(TokenUsage(tokens_used, 0))
        return [
            Vector(vector, tokens, None if cost is None or not tokens_used else cost * (tokens or 0) / tokens_used)
            for vector, tokens in zip(vectors, _share_tokens(tokens_used, batch), strict=True)
        ]
    except RequestError as error:
        raise ProviderError(
            f"No vectors for {len(batch)} texts, {error.code}: {error.message}",
            "Ask again; if it goes on, check the model's name and that texts are not too long for it.",
        ) from None


def _share_tokens(tokens: int | None, batch: Sequence[str]) -> list[int | None]:
    """A request's tokens, shared out over its texts by their length."""
    if tokens is None:
        return [None] * len(batch)
    ends = list(accumulate(len(text) + 1 for text in batch))
    marks = [0, *(round(tokens * end / ends[-1]) for end in ends)]
    return [after - before for before, after in pairwise(marks)]


def parse_vectors(content: bytes, count: int, address: Address) -> tuple[list[list[float]], int | None]:
    """(vectors, tokens) in a body of status 200, in the order of the texts; RequestError if there are not so many."""
    try:
        body = json.loads(content)
        rows = sorted(body["data"], key=lambda row: row["index"])
        vectors = [row["embedding"] for row in rows]
    except (ValueError, KeyError, TypeError):
        error = errors.find_error(_parse_json(content))
        said = address.redact(str(error["message"])) if error else "a body without vectors"
        raise RequestError("malformed", f"{address.provider.title} answered with {said}", True) from None
    if len(vectors) != count or not all(isinstance(v, list) and v for v in vectors):
        raise RequestError("malformed", f"{address.provider.title} gave {len(vectors)} vectors for {count} texts", True)
    return vectors, parse_usage(body.get("usage")).input


def _parse_json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None
