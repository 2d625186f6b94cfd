"""A handler that counts what it is asked, and on request misbehaves in every way there is."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from sqlft.errors import ProviderError
from sqlft.handler import Artifact, Completion, Handler, ModelSpec, Predictor, ReportStage, Request, RowError

ASKED: list[str] = []
"""The last message of every request, in order."""
CLOSED: list[str] = []
GATE = threading.Semaphore(0)
"""Answers of mode 'gated' wait for it."""


@dataclass
class PredictOptions:
    """SELECT … USING"""

    suffix: Annotated[str, "put behind every answer"] = ""
    mode: Annotated[str, "how to behave"] = "plain"
    temperature: Annotated[float, "above 0 no answer is kept"] = 0.0


class Counter(Handler):
    """Answers 'A:' and the prompt in capitals."""

    predict_options = PredictOptions

    def fetch(self, model: ModelSpec, report: ReportStage) -> None:
        """The base 'far' takes ten times as long as some time-outs, and tells how far it is."""
        for step in range(10 if model.base == "far" else 0):
            report("downloading far", step / 10)
            time.sleep(0.1)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        if options.mode == "no_key":
            raise ProviderError("The key is wrong.", "Set COUNTER_KEY.")
        return Counting(options)


class Counting(Predictor):
    """See MODES for how it can behave."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.failed: set[str] = set()

    def answer(self, request: Request) -> Completion:
        text = request.messages[-1].content
        return Completion(request.id, f"A:{text.upper()}{self.options.suffix}", input_tokens=2, output_tokens=3)

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            ASKED.append(request.messages[-1].content)
            yield from MODES[self.options.mode](self, request)

    def close(self) -> None:
        CLOSED.append(self.options.mode)


def flaky(self: Counting, request: Request) -> Iterator[Completion]:
    """Fails once for every prompt, then answers."""
    text = request.messages[-1].content
    if text in self.failed:
        yield self.answer(request)
    else:
        self.failed.add(text)
        yield Completion(request.id, error=RowError("busy", "come again", retryable=True))


def bad_rows(self: Counting, request: Request) -> Iterator[Completion]:
    """Prompts that end in 3 fail for good."""
    if request.messages[-1].content.endswith("3"):
        yield Completion(request.id, error=RowError("bad", "ends in 3"))
    else:
        yield self.answer(request)


def gated(self: Counting, request: Request) -> Iterator[Completion]:
    """Each answer waits for GATE."""
    GATE.acquire()
    yield self.answer(request)


def twice(self: Counting, request: Request) -> Iterator[Completion]:
    yield self.answer(request)
    yield self.answer(request)


def unknown_id(self: Counting, request: Request) -> Iterator[Completion]:
    yield Completion(request.id + 1000, "?")


def silent(self: Counting, request: Request) -> Iterator[Completion]:
    yield from ()


def hangs(self: Counting, request: Request) -> Iterator[Completion]:
    while True:
        time.sleep(0.01)
    yield self.answer(request)


def raises(self: Counting, request: Request) -> Iterator[Completion]:
    raise ValueError("out of luck")
    yield self.answer(request)


def raises_later(self: Counting, request: Request) -> Iterator[Completion]:
    if len(ASKED) > 5:
        raise ProviderError("The account is empty.", "Fill it.")
    yield self.answer(request)


def nothing(self: Counting, request: Request) -> Iterator[Any]:
    yield None


def no_text(self: Counting, request: Request) -> Iterator[Completion]:
    yield Completion(request.id)


def dies(self: Counting, request: Request) -> Iterator[Completion]:
    """Takes the whole process with it at request 500, where COUNTER_DIES is set."""
    if len(ASKED) == 500 and "COUNTER_DIES" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    yield self.answer(request)


def plain(self: Counting, request: Request) -> Iterator[Completion]:
    yield self.answer(request)


MODES: dict[str, Callable[[Counting, Request], Iterator[Any]]] = {
    f.__name__: f
    for f in (
        flaky,
        bad_rows,
        gated,
        twice,
        unknown_id,
        silent,
        hangs,
        raises,
        raises_later,
        nothing,
        no_text,
        dies,
        plain,
    )
}
