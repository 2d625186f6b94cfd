"""A handler that works in processes of its own: it writes down what it is asked, and by which process."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from sqlft.errors import ProviderError
from sqlft.handler import Artifact, Completion, Delivery, Delta, Handler, ModelSpec, Predictor, Request, RowError


@dataclass
class EngineOptions:
    """CREATE ML_ENGINE … USING"""

    log: Annotated[str | None, "the file that it writes to", Delivery()] = None
    fails: Annotated[str | None, "what goes wrong as it is made: exit, missing"] = None


@dataclass
class PredictOptions:
    """SELECT … USING"""

    seconds: Annotated[float, "how long an answer takes"] = 0.0
    window: Annotated[int, "how many requests it works on at a time"] = 1
    length: Annotated[int, "characters of an answer, more than it would have"] = 0


class Toiler(Handler):
    """Answers with the prompt in capitals; a prompt that is the name of a mishap has it."""

    engine_options = EngineOptions
    predict_options = PredictOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options or EngineOptions())
        if "RAY_JOB_ID" in os.environ and self.options.fails == "exit":
            os._exit(7)
        if "RAY_JOB_ID" in os.environ and self.options.fails == "missing":
            raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        if model.base == "closed":
            raise ProviderError("The account is closed.", "Open it.")
        self.write("open")
        return Toiling(self, options)

    def write(self, what: str) -> None:
        """A line with this process's id, in one piece."""
        if self.options.log is not None:
            with open(self.options.log, "ab", buffering=0) as log:
                log.write(f"{os.getpid()} {what}\n".encode())


class Toiling(Predictor):
    """Works on `window` requests at a time."""

    def __init__(self, handler: Toiler, options: Any) -> None:
        self.handler, self.options = handler, options

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        window: list[Request] = []
        for request in requests:
            self.handler.write(request.messages[-1].content)
            window.append(request)
            if len(window) >= self.options.window:
                yield from self.answer(window)
        yield from self.answer(window)

    def answer(self, window: list[Request]) -> Iterator[Completion | Delta]:
        if window and self.options.seconds:
            time.sleep(self.options.seconds)
        while window:
            request = window.pop()
            text = request.messages[-1].content
            if text == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if text == "raise":
                raise ValueError("out of luck")
            if text == "bad":
                yield Completion(request.id, error=RowError("bad", "cannot be answered"), input_tokens=1)
                continue
            if request.stream:
                yield Delta(request.id, text[:1].upper())
            answer = text.upper() + "." * self.options.length
            yield Completion(request.id, answer, input_tokens=len(text), output_tokens=2, cost_usd=0.25)
