"""A wrapper as a stranger would write one: the other handler's answers, with marks behind them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from sqlft.handler import (
    Artifact,
    Completion,
    Handler,
    ModelSpec,
    Predictor,
    Range,
    Request,
    WrapperOptions,
    WrapsHandler,
    join_options,
)


@dataclass(kw_only=True)
class LouderOptions(WrapperOptions):
    """CREATE ML_ENGINE … FROM louder USING"""

    marks: Annotated[int, "how many exclamation marks", Range(1, 3)] = 1


class Louder(WrapsHandler):
    """Answers with marks."""

    engine_options = LouderOptions

    @classmethod
    def wrap(cls, wrapped: type[Handler]) -> type[Handler]:
        fields = {"engine_options": join_options(LouderOptions, wrapped.engine_options)}
        return type(f"Louder{wrapped.__name__}", (Marks, wrapped), fields)


class Marks(Handler):
    """Mixed into the wrapped class."""

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        return Marking(super().open(model, artifact, options), "!" * self.options.marks)  # type: ignore[safe-super]


class Marking(Predictor):
    """Puts them behind every answer."""

    def __init__(self, inner: Predictor, marks: str) -> None:
        self.inner, self.marks = inner, marks

    def predict(self, requests: Iterable[Request]) -> Iterator[Any]:
        for event in self.inner.predict(requests):
            yield Completion.ok(event.id, f"{event.text}{self.marks}") if isinstance(event, Completion) else event
