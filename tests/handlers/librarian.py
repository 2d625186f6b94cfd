"""A handler whose vectors, scores and answers tell how many words two texts share: for knowledge bases.

A text is the sum of a random direction for each of its words, so texts with the same words are near.  A base called
`prefixed` was trained with words before its texts; one that is a number has vectors of that many.  Asked whether a text
answers a question it says yes, as sure as the share of the question's words that are in the text; `!error` in the text
is an error, `!maybe` is neither yes nor no; a vector of `!nan` is no number.
"""

import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from sqlft.handler import Artifact, Completion, Embedder, ModelSpec, Predictor, Request, Reranker, RowError

DIMENSION = 64
EMBEDDED: list[str] = []
"""Every text that was embedded, in order."""
REFUSED: list[str] = []
"""Texts with one of these words get no vector."""
RERANKED: list[tuple[str, str]] = []
"""Every pair that was scored or judged, in order."""


@dataclass
class ModelOptions:
    """CREATE MODEL … USING"""

    mode: Annotated[Literal["text", "embedding", "rerank"], "answers, vectors or scores"] = "text"


@dataclass
class PredictOptions:
    """SELECT … USING"""

    temperature: Annotated[float, "above 0 no answer is kept"] = 0.0
    logprobs: Annotated[bool, "tell how likely an answer is"] = False


class Librarian(Embedder, Reranker):
    """Counts words."""

    model_options = ModelOptions
    predict_options = PredictOptions

    @classmethod
    def bases(cls) -> dict[str, str]:
        return {"prefixed": "words before texts"}

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        return Judging(options)

    def embedding_prefixes(self, model: ModelSpec) -> tuple[str, str]:
        return ("question: ", "text: ") if model.base == "prefixed" else ("", "")

    def embed(
        self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None
    ) -> Iterator[Sequence[float] | RowError]:
        for text in texts:
            EMBEDDED.append(text)
            if any(word in text for word in REFUSED):
                yield RowError("refused", "the text is refused")
                continue
            vector = embed_text(text, int(model.base) if model.base.isdecimal() else DIMENSION)
            yield [math.nan for _ in vector] if "!nan" in text else vector

    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        for question, text in pairs:
            RERANKED.append((question, text))
            yield count_shared(question, text)


class Judging(Predictor):
    """Reads the question and the text in a prompt; repeats any other prompt."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            prompt = request.messages[-1].content
            asked = re.search(r"Question: (.*?)\n+Text: (.*?)\n+Yes or no:$", prompt, re.DOTALL)
            if asked is None:
                yield Completion.ok(request.id, prompt)
                continue
            question, text = asked.groups()
            RERANKED.append((question, text))
            share = count_shared(question, text)
            if "!error" in text:
                yield Completion.failed(request.id, "unreadable", "the text has an error in it")
                continue
            word, sure = ("Yes.", share) if share >= 0.5 else (" no", 1 - share)
            answer = "perhaps" if "!maybe" in text else word
            yield Completion.ok(request.id, answer, logprob=math.log(sure) if self.options.logprobs else None)


def embed_text(text: str, dimension: int = DIMENSION) -> list[float]:
    """The sum of its words' directions."""
    directions = [direction_of(word, dimension) for word in words_of(text)]
    return [sum(numbers) for numbers in zip(*directions, strict=True)] if directions else [0.0] * dimension


@cache
def direction_of(word: str, dimension: int) -> tuple[float, ...]:
    """A random vector, always the same for a word."""
    chance = random.Random(word)
    return tuple(chance.gauss(0, 1) for _ in range(dimension))


def count_shared(question: str, text: str) -> float:
    """The share of the question's words that are in the text."""
    asked, there = set(words_of(question)), set(words_of(text))
    return len(asked & there) / max(1, len(asked))


def words_of(text: str) -> list[str]:
    """Its words, small letters."""
    return re.findall(r"\w+", text.lower())
