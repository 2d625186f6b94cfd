"""A handler that writes what the prompt says: typed answers, vectors, pieces, prices, logprobs.

A prompt ``a¦b`` is answered with ``a``, and with ``b`` when it is asked once more; ``!code`` is an error; ``p7`` is
answered with the JSON of person 7; ``a⇒b`` is thought and answered.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sqlft.handler import (
    Artifact,
    Completion,
    Delta,
    Embedder,
    Message,
    ModelSpec,
    Predictor,
    Price,
    Request,
    RowError,
)

ASKED: list[tuple[Message, ...]] = []
"""Every conversation, in order."""
EMBEDDED: list[str] = []
SCHEMAS: list[Any] = []
"""The schema of every model that was opened."""
PRICES: list[Price | None] = [None]


@dataclass
class ModelOptions:
    """CREATE MODEL … USING"""

    mode: Annotated[Literal["text", "embedding"], "answers or vectors"] = "text"


@dataclass
class PredictOptions:
    """SELECT … USING"""

    temperature: Annotated[float, "above 0 no answer is kept"] = 0.0
    logprobs: Annotated[bool, "tell how likely an answer is"] = False
    pieces: Annotated[bool, "give out each word as it is written"] = False


class Scribe(Embedder):
    """Writes what it is told to."""

    model_options = ModelOptions
    predict_options = PredictOptions

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        SCHEMAS.append(model.schema)
        return Writing(options)

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        return PRICES[0]

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        for text in texts:
            EMBEDDED.append(text)
            yield [float(len(text)), float(text.count("a")), 1.0]


class Writing(Predictor):
    """Each request by itself."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        for request in requests:
            ASKED.append(request.messages)
            prompts = [m.content for m in request.messages if m.role == "user"]
            attempts = prompts[0].split("¦")
            text = attempts[min(len(prompts), len(attempts)) - 1]
            if text.startswith("!"):
                yield Completion(request.id, error=RowError(text[1:], "no", request_id="req_9"))
                continue
            *thoughts, text = text.split("⇒")
            text = person(int(text[1:])) if re.fullmatch(r"p\d+", text) else text
            if request.stream and self.options.pieces:
                yield from (Delta(request.id, word) for word in re.findall(r"\S+\s*", text))
            yield Completion(
                request.id,
                text,
                input_tokens=10,
                output_tokens=4,
                cached_tokens=6,
                logprob=-0.5 if self.options.logprobs else None,
                reasoning=thoughts[0] if thoughts else None,
            )


def person(i: int) -> str:
    """Person i as JSON."""
    pet = None if i % 3 == 0 else {"kind": "cat", "born": f"2020-01-{i % 28 + 1:02}"}
    tags = [f"t{k}" for k in range(i % 3)]
    made = {"name": f"Ñ{i}", "age": i % 90, "tags": tags, "mood": "good" if i % 2 else None, "pet": pet}
    return json.dumps({**made, "price": i / 4}, ensure_ascii=bool(i % 2))
