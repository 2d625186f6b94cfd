"""The classes that a handler inherits, and what `open` returns.

Called by the core in this order: constructed, `check`, `open`, `predict`, `close`; a `Trainer` is trained in a worker
process.  What a handler may have besides is in `capabilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sqlft.handler.old_names import refuse_old_names
from sqlft.handler.options import LengthOptions, NoOptions, WrapperOptions, read_options
from sqlft.handler.values import (
    Artifact,
    Completion,
    Delta,
    Estimate,
    ModelSpec,
    Notice,
    Progress,
    Request,
    RowError,
    TrainingSet,
)


class Predictor(ABC):
    """Opened once a statement, closed at its end."""

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        refuse_old_names(cls, "rest")

    @abstractmethod
    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta | Progress]:
        """Answer every request once, in any order: an event stream.

        Pulls no further ahead than it can work on, and only in the thread that steps what this returns, while it is
        stepped: `requests` is not safe for others, so threads of the handler's own get what was pulled.

        Where answers take minutes, a Progress now and then says how many are there, and keeps the statement from
        giving up.  A bad row is a Completion with an error; raise HandlerError only for what makes all rows
        pointless.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to free
        """Free what `open` took; also called after an error."""


class Handler(ABC):
    """Talks to one provider.  Constructing is cheap: no network, no weights.

    What more it can do is a class of its own: `Trainer`, `Embedder` and `LoadsAdapters` are inherited; those of
    `capabilities`, such as `CountsTokens`, it is by having their method.
    """

    engine_options: ClassVar[type[object]] = NoOptions
    model_options: ClassVar[type[object]] = NoOptions
    predict_options: ClassVar[type[object]] = NoOptions
    instead_of_training: ClassVar[str] = ""
    """What to do where this handler cannot train, if there is something better than another handler."""

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        refuse_old_names(cls, "checkup", "count_prompts", "settled", "longest_row")

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @classmethod
    def diagnose(cls) -> Mapping[str, object]:
        """For `sqlft doctor`: what of this machine matters to the handler, as JSON can hold it; quick, no network."""
        return {}

    @classmethod
    def bases(cls) -> Mapping[str, str]:
        """Bases that can be named in CREATE MODEL, with what each is; for completion: quick, no network, no weights."""
        return {}

    def check(self, model: ModelSpec) -> None:  # noqa: B027  # most have nothing to check
        """Raise OptionError or ProviderError if no model can be made so; called by CREATE MODEL, cheap."""

    def notice(self, model: ModelSpec, artifact: Artifact | None, *, training: bool = False) -> Notice | None:
        """What ends of what asking or `training` this needs; CREATE MODEL, FINETUNE and EXPLAIN show it.  Cheap."""
        return None

    @abstractmethod
    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Get ready to answer; `options` is an instance of `predict_options`, artifact None is the base itself."""

    def unload(self, model: ModelSpec, artifact: Artifact | None) -> bool:
        """Free what is kept loaded between statements; True if there was something."""
        return False


class LoadsAdapters(Handler):
    """A handler whose `open` takes artifacts that another one trained: LoRA adapters in PEFT's layout at `path`.

    The name to give them is `details["serve_as"]`.
    """


class Trainer(Handler):
    """A handler that can also train; being one is the capability."""

    train_options: ClassVar[type[object]] = NoOptions
    remote: ClassVar[bool] = False
    """The provider trains: Ctrl-C only stops watching, and the job goes on there until `cancel`."""
    resume_options: ClassVar[tuple[str, ...]] = ()
    """Names of train_options that RESUME MODEL … USING may change: those that do not decide what is learned."""

    def resolve_options(self, model: ModelSpec, options: Any) -> Any:
        """The `train_options` as they will hold: what was left open, decided.  It is shown and stored."""
        return options

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """What `train` would take, without training; None where it cannot be estimated.  Takes seconds at most."""
        return None

    def max_row_tokens(self, model: ModelSpec, options: Any) -> int | None:
        """Most tokens that a conversation may have to be trained on whole; None where there is no such limit."""
        return read_options(LengthOptions, options).max_length

    @abstractmethod
    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """Train from `start` (None: from the base) and return what was made, its files below `workdir`.

        Called again on the same `workdir` it resumes.  `report` raises Cancelled when the user wants to
        stop: save what resuming needs and let it through.  Of a remote training it only says that nobody
        watches any more: leave the job alone, and take it up again when called on this `workdir`.  `report`
        with what was reported last costs nothing, so call it while waiting.
        """

    def cancel(self, model: ModelSpec, workdir: Path) -> None:  # only remote jobs outlive their worker
        """Stop at the provider the job that `train` began on `workdir`, if there is one that still goes.

        Called where `remote`, when `train` runs no more; raise ProviderError if the provider cannot be reached.
        """


class Vector(list[float]):
    """A text's vector, with the tokens and the cost of making it where they are known."""

    def __init__(self, values: Iterable[float], input_tokens: int | None = None, cost_usd: float | None = None) -> None:
        super().__init__(values)
        self.input_tokens, self.cost_usd = input_tokens, cost_usd


class Embedder(Handler):
    """A handler that turns texts into vectors."""

    @abstractmethod
    def embed(
        self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None
    ) -> Iterator[Sequence[float] | RowError]:
        """One vector per text, in order, or why it has none; a `Vector` tells what it cost."""


class Reranker(Handler):
    """A handler that tells how well texts answer a question."""

    @abstractmethod
    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        """A score between 0 and 1 for each (question, text), in order."""


class WrapsHandler(Handler):
    """A handler that lets another one do the work somewhere else; the engine's option `handler` says which.

    It is never constructed: what `wrap` makes of it and of the other one is.
    """

    engine_options: ClassVar[type[WrapperOptions]] = WrapperOptions

    @classmethod
    @abstractmethod
    def wrap(cls, wrapped: type[Handler]) -> type[Handler]:
        """A class that can do what `wrapped` can, and takes the engine options of both: see `join_options`.

        The simplest is a subclass of `wrapped` that does elsewhere what is work.
        """
