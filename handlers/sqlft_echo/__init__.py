"""Answers with the last message: the smallest handler there is, for the documentation and for tests."""

from collections.abc import Iterable, Iterator
from typing import Any

from sqlft.handler import Artifact, Completion, Handler, ModelSpec, Predictor, Request


class Echo(Handler):
    """Needs no base and no key."""

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Nothing to open."""
        return EchoPredictor()


class EchoPredictor(Predictor):
    """Gives back what it is asked."""

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion a request, at once."""
        for request in requests:
            yield Completion.ok(request.id, request.messages[-1].content)
