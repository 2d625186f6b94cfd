"""What is put behind texts, in training as in asking: a separator behind prompts, a stop sequence behind answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlft.handler import Artifact, Message
from sqlft_local.options import ModelOptions, TrainOptions


class Marks(NamedTuple):
    """The separator, and the stop sequences: answers are taught with the first, and end at any, when asked."""

    separator: str = ""
    stop: tuple[str, ...] = ()

    def on(self, messages: Sequence[Message], ask: bool) -> list[Message]:
        """The messages with the marks; a text that ends with its mark already keeps that one."""
        return list(self._marked(messages, ask))

    def details(self) -> dict[str, Any]:
        """As a version remembers them."""
        return {"separator": self.separator or None, "stop": list(self.stop) or None}

    def _marked(self, messages: Sequence[Message], ask: bool) -> Iterator[Message]:
        followers = [*(m.role for m in messages[1:]), "assistant" if ask else ""]
        for message, follower in zip(messages, followers, strict=True):
            if message.role == "assistant":
                mark = self.stop[0] if self.stop else ""
            else:
                mark = self.separator if message.role == "user" and follower == "assistant" else ""
            there = mark and message.content.endswith(mark)
            yield message if there else message._replace(content=message.content + mark)


NO_MARKS = Marks()


def asked_with(model: ModelOptions, artifact: Artifact | None) -> Marks:
    """What a version was trained with, or the model's own where it was not trained."""
    known = {} if artifact is None else artifact.details
    return _marks(known.get("separator", model.separator), known.get("stop", model.stop))


def taught_with(options: TrainOptions, model: ModelOptions, start: Artifact | None) -> Marks:
    """What a training says; where it says nothing, those of the version it starts from, or of the model."""
    before = asked_with(model, start)
    return _marks(
        before.separator if options.separator is None else options.separator,
        before.stop if options.stop is None else options.stop,
    )


def _marks(separator: str | None, stop: Sequence[str] | None) -> Marks:
    return Marks(separator or "", tuple(s for s in stop or () if s))
