"""Models that answer with vectors: a handler's `embed` as a predictor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlft.data.outputs import vector_text
from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import Artifact, Completion, Embedder, Handler, ModelSpec, Predictor, Request, Vector


def embeds_texts(cls: type[Handler], options: Mapping[str, Any]) -> bool:
    """Whether a model's options ask for embeddings; NotSupported if the handler has none."""
    if str(options.get("mode")).lower() != "embedding":
        return False
    if not issubclass(cls, Embedder):
        raise NotSupported(
            f"The handler '{cls.__name__}' makes no embeddings.", "Use another engine, or leave mode = 'embedding' out."
        )
    return True


class Embedding(Predictor):
    """Answers each request with the vector of its last message, as `vector_text`."""

    def __init__(self, handler: Embedder, model: ModelSpec, artifact: Artifact | None) -> None:
        self._handler, self._model, self._artifact = handler, model, artifact

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Vectors come in the order of the texts."""
        waiting: deque[int] = deque()

        def texts() -> Iterator[str]:
            for request in requests:
                waiting.append(request.id)
                yield request.messages[-1].content

        for found in self._handler.embed(texts(), self._model, self._artifact):
            if not waiting:
                raise ProviderError(
                    "The handler gave more vectors than it was given texts.", "Tell those who wrote the handler."
                )
            tokens, cost = (found.input_tokens, found.cost_usd) if isinstance(found, Vector) else (None, None)
            output = None if tokens is None else 0
            yield Completion(
                waiting.popleft(), vector_text(found), input_tokens=tokens, output_tokens=output, cost_usd=cost
            )
