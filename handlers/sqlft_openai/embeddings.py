"""Texts to vectors through /embeddings, some hundred per request.

Called by `handler`.  In: texts.  Out: a vector for each, in order.  Asked as answers are, with their limits and
retries, and not by the official client's `embeddings.create`: it always names an encoding, which some servers refuse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

from sqlft.errors import ProviderError
from sqlft.handler import RowError, Vector, estimate_tokens
from sqlft_openai.http.address import Address
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import TokenUsage, find_error, get_object, get_objects, parse_json, parse_usage
from sqlft_openai.http.servers import Server
from sqlft_openai.http.transport import InferenceClient, OutgoingRequest, RequestState, TransportThread
from sqlft_openai.prices import CostCalculator

if TYPE_CHECKING:
    import httpx2

TEXTS_PER_REQUEST = 128
MAX_IN_FLIGHT = 8
"""At each server."""
EMBEDDINGS_PATH = "/embeddings"
REFUSED_STATUSES = (400, 413, 422)
"""For what is in a request."""


def embed_texts(
    thread: TransportThread, client: InferenceClient, texts: Iterable[str], dimensions: int | None = None
) -> Iterator[Vector | RowError]:
    """One vector of so many `dimensions` per text, in order, or why the provider takes no such text.

    ProviderError where a request has none after all tries, whatever its texts are.
    """
    embedder = _Embedder(client, dimensions)
    waiting = iter(texts)
    batches = iter(lambda: list(islice(waiting, TEXTS_PER_REQUEST)), [])
    in_flight = deque(
        thread.run(embedder.embed(batch))
        for batch in islice(batches, min(MAX_IN_FLIGHT * len(client.servers), client.window))
    )
    try:
        while in_flight:
            vectors = in_flight.popleft().result()
            in_flight.extend(thread.run(embedder.embed(batch)) for batch in islice(batches, 1))
            yield from vectors
    finally:
        for future in in_flight:
            future.cancel()


class _Embedder:
    """Requests to one model."""

    def __init__(self, client: InferenceClient, dimensions: int | None) -> None:
        self._client, self._costs = client, CostCalculator(client.provider, client.model)
        self._body: dict[str, object] = {"model": client.model, "encoding_format": "float"}
        if dimensions is not None:
            self._body["dimensions"] = dimensions

    async def embed(self, batch: list[str]) -> list[Vector | RowError]:
        """The vectors of some texts; where they are refused, those of each half, down to the one that is."""
        try:
            return [*await self._request(batch)]
        except RequestError as error:
            if error.status not in REFUSED_STATUSES or not await self._takes_others():
                raise ProviderError(
                    f"No vectors for {len(batch)} texts, {error.code}: {error.message}",
                    "Ask again; if it goes on, check the model's name and that texts are not too long for it.",
                ) from None
            if len(batch) == 1:
                return [RowError(error.code, error.message, request_id=error.request_id)]
        middle = len(batch) // 2
        return [*await self.embed(batch[:middle]), *await self.embed(batch[middle:])]

    async def _takes_others(self) -> bool:
        """Whether it was the texts that were refused: a word is taken."""
        try:
            await self._request(["text"])
        except RequestError:
            return False
        return True

    async def _request(self, batch: list[str]) -> list[Vector]:
        # An empty text is refused by some providers, and a space means as little.
        body = {**self._body, "input": [text or " " for text in batch]}
        tokens = float(sum(map(estimate_tokens, batch)))

        def adapt(error: RequestError, server: Server) -> bool:
            is_refused = error.status in (400, 422) and "encoding_format" in f"{error.parameter} {error.message}"
            return is_refused and body.pop("encoding_format", None) is not None

        async def read(response: httpx2.Response, server: Server) -> tuple[list[list[float]], int | None]:
            vectors, tokens_used = parse_vectors(await response.aread(), len(batch), server.address)
            if tokens_used is not None:
                server.state.limiter.correct_tokens(tokens_used - tokens)
            return vectors, tokens_used

        outgoing = OutgoingRequest(EMBEDDINGS_PATH, lambda server: body, tokens)
        vectors, tokens_used = await self._client.send(outgoing, read, adapt, RequestState())
        cost = self._costs.calculate(TokenUsage(tokens_used, 0))
        return [
            Vector(vector, share, None if cost is None or not tokens_used else cost * (share or 0) / tokens_used)
            for vector, share in zip(vectors, _share_tokens(tokens_used, batch), strict=True)
        ]


def _share_tokens(tokens: int | None, batch: Sequence[str]) -> list[int | None]:
    """A request's tokens, shared out over its texts by their length."""
    if tokens is None:
        return [None] * len(batch)
    ends = list(accumulate(len(text) + 1 for text in batch))
    marks = [0, *(round(tokens * end / ends[-1]) for end in ends)]
    return [after - before for before, after in pairwise(marks)]


def parse_vectors(content: bytes, count: int, address: Address) -> tuple[list[list[float]], int | None]:
    """(vectors, tokens) in a body of status 200, in the order of the texts; RequestError if there are not so many."""
    title, body = address.title, get_object(parse_json(content))
    rows = get_objects(body.get("data"))
    if not rows:
        error = find_error(body)
        text = address.redact(error.message) if error else "a body without vectors"
        raise RequestError("malformed", f"{title} answered with {text}", True)
    by_index = {
        index: vector
        for row in rows
        if isinstance(index := row.get("index"), int) and isinstance(vector := row.get("embedding"), list) and vector
    }
    if sorted(by_index) != list(range(count)):
        raise RequestError("malformed", f"{title} gave {len(by_index)} vectors for {count} texts", True)
    return [by_index[index] for index in range(count)], parse_usage(body.get("usage")).input
