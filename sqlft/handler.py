"""The contract between sqlft and a handler: with `sqlft.errors`, all that a handler imports.

Requests go in, completions come out, in any order, each as soon as it is known.  The core renders
prompts, splits, deduplicates, caches, retries, publishes artifacts and resolves secrets; a handler
never sees SQL or the catalog.

Options are declared as dataclasses whose fields say what they are for::

    @dataclass
    class PredictOptions:
        temperature: Annotated[float, "0 is greedy", Range(0, 2)] = 0.0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa


ITEM_SEPARATOR, KEY_SEPARATOR = ", ", ": "
"""How JSON is written in the answers that a typed model learns: a grammar that binds them must allow just that."""
CHARS_PER_TOKEN = 4
"""About, in English, where no tokenizer is at hand: OpenAI's rule of thumb.  Code and other languages have fewer."""
TOKENS_PER_MESSAGE, MAX_TOKENS_PER_MESSAGE = 4, 16
"""Tokens that a chat format adds for each message (its role, start and end), about and at most."""


class Message(NamedTuple):
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


def estimate_tokens(text: str) -> int:
    """How many tokens a text has, about, where nothing counts them.

    >>> estimate_tokens("How long is a piece of string?")
    8
    """
    return -(-len(text) // CHARS_PER_TOKEN)


def max_prompt_tokens(messages: Sequence[Message]) -> int:
    """Tokens that a prompt has at most: no tokenizer makes more of a text than it has bytes.

    >>> max_prompt_tokens([Message("user", "naïve")])
    38
    """
    return sum(map(count_bytes, messages)) + MAX_TOKENS_PER_MESSAGE * (len(messages) + 1)


def count_bytes(message: Message) -> int:
    """The message's length in UTF-8."""
    return len(message.content.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to be continued by the model; `stream` asks for its Pieces where the handler has them."""

    id: int
    messages: tuple[Message, ...]
    stream: bool = False


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no answer; the core asks again if it is retryable."""

    code: str
    message: str
    retryable: bool = False
    request_id: str | None = None
    """The provider's own id of the request, for its support."""


class Piece(NamedTuple):
    """A part of an answer that is still being written; the Completion that follows has the whole text."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to the request of the same id, or why there is none.  Tokens are counts."""

    id: int
    text: str | None = None
    error: RowError | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    """What the provider took for this request; None where the core shall reckon it from the price."""
    logprob: float | None = None
    """Natural logarithm of the whole answer's probability, where it was asked for."""
    truncated: bool = False
    """The answer ended at its limit of tokens, and not because it was complete."""


@dataclass(frozen=True)
class Artifact:
    """What training made: a folder of files, or a name that the provider knows."""

    path: Path | None = None
    remote_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """A step of training; `metrics` by name: loss, valid_loss, learning_rate, examples_per_second, epoch, tokens …"""

    step: int
    total_steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    """Until the training ends, at the speed so far; None: whoever shows it divides the steps by the time."""


@dataclass(frozen=True)
class ModelSpec:
    """What CREATE MODEL said: the base, and an instance of the handler's `model_options`.

    `schema` is a JSON schema (an object) that every answer must obey; the answer's text is then JSON.
    """

    base: str
    options: Any = None
    schema: Mapping[str, Any] | None = None
    folder: Path | None = None
    """Where a handler may keep what must outlive a crash of a statement; made by who uses it, None: nowhere."""


@dataclass(frozen=True)
class Price:
    """USD per million tokens, None where it is not known; `training` is per million trained tokens, epochs included."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    training: float | None = None
    source: str = ""
    """Where the price is from, with its date."""


@dataclass(frozen=True)
class Estimate:
    """What a training would take on this machine or at this provider; None where it is not known."""

    examples: int
    tokens: int
    """Tokens trained on, all epochs together."""
    steps: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    memory_available: int | None = None
    cost_usd: float | None = None
    remarks: tuple[str, ...] = ()
    """Choices worth knowing: dtype, quantization, gradient checkpointing …"""
    refusal: tuple[str, str] | None = None
    """Why it cannot be done, with figures, and the setting that would do."""


@dataclass(frozen=True)
class TrainingSet:
    """Conversations; column ``messages``: list<struct<role: string, content: string>>, the assistant's last.

    Where the rows have worse answers too, they are in a column ``rejected``: string.  Where one of the messages has
    them, the structs have ``weight``: int32 as well (0: an answer that is read and not learned; else 1), and
    ``name``: string, who speaks.
    """

    train: pa.Table
    valid: pa.Table | None = None


class Notice(NamedTuple):
    """What a user should know before a model is made, asked or trained: that it ends, or has ended."""

    text: str
    next_step: str
    """What to take in its place."""
    is_refusal: bool = False
    """It cannot be done; a training is tried all the same with USING check = 'warn'."""


@dataclass
class NoOptions:
    """Takes no options."""


class Range(NamedTuple):
    """In an option's Annotated[…]: both ends are allowed."""

    low: float | None = None
    high: float | None = None


class Alias(NamedTuple):
    """In an option's Annotated[…]: an old or foreign name of it."""

    name: str


class Secret(NamedTuple):
    """In an option's Annotated[…]: never stored, listed or logged; env is where it is looked for when not given."""

    env: str | None = None


class Delivery(NamedTuple):
    """In an option's Annotated[…]: how answers are got, which changes none: those kept under another value serve."""


class Predictor(ABC):
    """Opened once a statement, closed at its end."""

    @abstractmethod
    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Piece | Progress]:
        """Answer every request once, in any order.

        Pulls no further ahead than it can work on.  Where answers take minutes, a Progress now and then says how
        many are there, and keeps the statement from giving up.  A bad row is a Completion with an error; raise
        HandlerError only for what makes all rows pointless.
        """

    def rest(self) -> Iterator[Completion]:
        """Answers still under way when reading stopped early; nothing new is begun.  Called before `close`."""
        return iter(())

    def close(self) -> None:  # noqa: B027  # most have nothing to free
        """Free what `open` took; also called after an error."""


class Handler(ABC):
    """Talks to one provider.  Constructing is cheap: no network, no weights."""

    engine_options: ClassVar[type] = NoOptions
    model_options: ClassVar[type] = NoOptions
    predict_options: ClassVar[type] = NoOptions
    instead_of_training: ClassVar[str] = ""
    """What to do where this handler cannot train, if there is something better than another handler."""
    takes_adapters: ClassVar[bool] = False
    """`open` takes artifacts that another handler trained, LoRA adapters in PEFT's layout at `path`; the name to
    give them is `details["serve_as"]`."""

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @classmethod
    def checkup(cls) -> Mapping[str, Any]:
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

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """Tokens of each text, or None where that is not known without the provider."""
        return None

    def count_prompts(self, conversations: Sequence[Sequence[Message]], model: ModelSpec) -> list[int] | None:
        """Tokens of each conversation as the model is given it; None where that is not known without asking."""
        return None

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking and training cost at the provider; None for a machine of one's own or where it is unknown."""
        return None

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]] | None:
        """How probable the last message of each is, given those before it; None where that cannot be known.

        The natural logarithm of its probability, end token included, and its number of tokens.
        """
        return None

    def unload(self, model: ModelSpec, artifact: Artifact | None) -> bool:
        """Free what is kept loaded between statements; True if there was something."""
        return False


class Trainer(Handler):
    """A handler that can also train; being one is the capability."""

    train_options: ClassVar[type] = NoOptions
    remote: ClassVar[bool] = False
    """The provider trains: Ctrl-C only stops watching, and the job goes on there until `cancel`."""
    resume_options: ClassVar[tuple[str, ...]] = ()
    """Names of train_options that RESUME MODEL … USING may change: those that do not decide what is learned."""

    def settled(self, model: ModelSpec, options: Any) -> Any:
        """The `train_options` as they will hold: what was left open, decided.  It is shown and stored."""
        return options

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """What `train` would take, without training; None where nothing can be said.  Takes seconds at most."""
        return None

    def longest_row(self, model: ModelSpec, options: Any) -> int | None:
        """Most tokens that a conversation may have to be trained on whole; None where there is no such limit."""
        limit: int | None = getattr(options, "max_length", None)
        return limit

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

        Called where `remote`, when `train` runs no more; raise ProviderError if the provider cannot be told.
        """


class Vector(list[float]):
    """A text's vector, with the tokens and the cost of making it where they are known."""

    def __init__(self, values: Iterable[float], input_tokens: int | None = None, cost_usd: float | None = None) -> None:
        super().__init__(values)
        self.input_tokens, self.cost_usd = input_tokens, cost_usd


class Embedder(Handler):
    """A handler that turns texts into vectors."""

    @abstractmethod
    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """One vector a text, in order; a `Vector` tells what it cost."""
