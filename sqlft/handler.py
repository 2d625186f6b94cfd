"""The contract between sqlft and a handler: with `sqlft.errors`, all that a handler imports.

Requests go in, completions come out, in any order, each as soon as it is known.  The core renders
prompts, splits, deduplicates, caches, retries, publishes artifacts and resolves secrets; a handler
never sees SQL or the catalog.

Options are declared as dataclasses whose fields say what they are for.  Those that the core reads too are inherited,
and may be declared again with another default, range or type::

    @dataclass
    class PredictOptions(SamplingOptions):
        temperature: Annotated[float, "0 is greedy", Range(0, 2)] = 0.0
        style: Annotated[str, "how answers look"] = "plain"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    get_type_hints,
    runtime_checkable,
)

from sqlft.errors import NotSupported
from sqlft.old_names import NamedFields, refuse_old_names

if TYPE_CHECKING:
    import pyarrow as pa


ITEM_SEPARATOR, KEY_SEPARATOR = ", ", ": "
"""How JSON is written in the answers that a typed model learns: a grammar that binds them must allow just that."""
CHARS_PER_TOKEN = 4
"""About, in English, where no tokenizer is at hand: OpenAI's rule of thumb.  Code and other languages have fewer."""
TOKENS_PER_MESSAGE, MAX_TOKENS_PER_MESSAGE = 4, 16
"""Tokens that a chat format adds for each message (its role, start and end), about and at most."""


class Message(NamedTuple):
    """One turn of a conversation; role is system, user or assistant, in training rows tool too."""

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
    """One conversation to be continued by the model; `stream` asks for its Deltas where the handler has them."""

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


class Delta(NamedTuple):
    """A part of an answer that is still being written; the Completion that follows has the whole text."""

    id: int
    text: str


class _CountFields(TypedDict, total=False):
    """Of a Completion: what a request took."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_usd: float | None


class _AnswerFields(_CountFields, total=False):
    """Of a Completion with a text."""

    logprob: float | None
    truncated: bool
    reasoning: str | None


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
    """What the provider took for this request; None where the core computes it from the price."""
    logprob: float | None = None
    """Natural logarithm of the whole answer's probability, where it was asked for."""
    truncated: bool = False
    """The answer ended at its limit of tokens, and not because it was complete."""
    reasoning: str | None = None
    """What the model thought before its answer, which is no part of `text`."""

    @classmethod
    def ok(cls, id: int, text: str, **more: Unpack[_AnswerFields]) -> Completion:
        """An answer; `more` are other fields of it: tokens, cost_usd, logprob, truncated, reasoning.

        >>> Completion.ok(1, "Paris", output_tokens=2).text
        'Paris'
        """
        return cls(id, text, **more)

    @classmethod
    def failed(
        cls,
        id: int,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        request_id: str | None = None,
        **more: Unpack[_CountFields],
    ) -> Completion:
        """No answer, and why: the fields of `RowError`; `more` are tokens and cost_usd.

        >>> Completion.failed(1, "too_long", "The prompt has 9,000 tokens.").error.code
        'too_long'
        """
        return cls(id, error=RowError(code, message, retryable, request_id), **more)


class TrainingDetails(TypedDict, total=False):
    """The details of an artifact that the core reads, each absent or None where it is not known.

    A handler may add others, as JSON can hold them.
    """

    cost_usd: float
    """What the provider took; without it the core computes it from the price, or the machine's hours."""
    tokens: int
    """Tokens that were trained on, all epochs together."""
    trained_tokens: int
    """Those of them that are paid for, where they differ."""
    stop: list[str]
    """Texts that end an answer, as it was taught; a training from this artifact checks its rows for them."""
    continues: str
    """What was done with the version that it started from, in words; DESCRIBE shows it."""
    remarks: Sequence[str]
    """What DESCRIBE shows of how it went."""
    serve_as: str
    """Given to `open` by the core: the name under which another engine is to load the adapter."""
    peak_memory_bytes: int
    """Most memory that training took, where that is not the worker's own."""


@dataclass(frozen=True)
class Artifact(NamedFields):
    """What training made: a folder of files, or a name that the provider knows."""

    path: Path | None = None
    remote_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Those named in `TrainingDetails`, and others."""


@dataclass(frozen=True)
class Progress(NamedFields):
    """A step of training; `metrics` by name: loss, valid_loss, learning_rate, examples_per_second, epoch, tokens …"""

    step: int
    total_steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    """Until the training ends, at the speed so far; None: whoever shows it divides the steps by the time."""


@dataclass(frozen=True)
class ModelSpec:
    """What CREATE MODEL defines: the base, and an instance of the handler's `model_options`.

    `schema` is a JSON schema (an object) that every answer must obey; the answer's text is then JSON.
    """

    base: str
    options: Any = None
    schema: Mapping[str, object] | None = None
    folder: Path | None = None
    """Where a handler may keep what must outlive a crash of a statement; made by who uses it, None: nowhere."""


@dataclass(frozen=True)
class Price(NamedFields):
    """USD per million tokens, None where it is not known; `training` is per million trained tokens, epochs included."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    training: float | None = None
    source: str = ""
    """Where the price is from, with its date."""


@dataclass(frozen=True)
class Estimate(NamedFields):
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
    why_not: tuple[str, str] | None = None
    """Why it cannot be done, with figures, and the setting that would do."""


@dataclass(frozen=True)
class TrainingSet:
    """Conversations; column ``messages``: list<struct<role: string, content: string>>, the assistant's last.

    Where the rows have worse answers too, they are in a column ``rejected``: string.  Where one of the messages has
    them, the structs have ``weight``: int32 as well (0: an answer that is read and not learned; else 1),
    ``name``: string, who speaks, and ``reasoning``: string, what is thought before an answer; where tools are called,
    ``tool_calls`` and ``tool_call_id``: string, and a column ``tools``: string, all in OpenAI's JSON.
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


@dataclass
class SamplingOptions:
    """For `predict_options`.  The core caches answers whose temperature is 0, and estimates cost by max_tokens."""

    max_tokens: Annotated[
        int | None,
        "most tokens of an answer; without it the handler's own limit",
        Alias("max_completion_tokens"),
        Alias("max_output_tokens"),
        Alias("max_new_tokens"),
        Range(1),
    ] = None
    temperature: Annotated[float | None, "0 takes the likeliest tokens", Range(0)] = 0.0
    stop: Annotated[list[str] | None, "texts that end an answer; they are not part of it"] = None


@dataclass
class TrainingOptions:
    """For `train_options`.  EXPLAIN FINETUNE shows both, and estimates tokens by the epochs."""

    n_epochs: Annotated[float | str | None, "how often training goes through the rows", Range(0)] = None
    batch_size: Annotated[int | str | None, "rows a step", Range(1)] = None


@dataclass
class LengthOptions:
    """For `train_options`.  The core drops or refuses rows above max_length; cutting them is the handler's work."""

    max_length: Annotated[int | None, "most tokens of a row", Range(1)] = None
    long_rows: Annotated[
        Literal["cut", "drop", "error"], "rows over max_length: cut from the prompt's middle, drop them, or stop"
    ] = "cut"


@dataclass
class EmbeddingOptions:
    """For `model_options` of an Embedder that answers too: with mode = 'embedding' a model gives vectors."""

    mode: Annotated[str | None, "embedding gives vectors"] = None


Options = TypeVar("Options", bound=SamplingOptions | TrainingOptions | LengthOptions | EmbeddingOptions)


def read_options(cls: type[Options], options: object) -> Options:
    """`options` as one of the classes above; those of a handler that does not inherit it are read by name.

    >>> read_options(SamplingOptions, type("Mine", (), {"max_new_tokens": 7})).max_tokens
    7
    """
    if isinstance(options, cls):
        return options
    result = cls()
    for name, hint in get_type_hints(cls, include_extras=True).items():
        names = (name, *(extra.name for extra in hint.__metadata__ if isinstance(extra, Alias)))
        values = [getattr(options, known) for known in names if hasattr(options, known)]
        if values:
            setattr(result, name, next((value for value in values if value is not None), None))
    return result


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

    What more it can do is a class of its own below: `Trainer`, `Embedder` and `LoadsAdapters` are inherited;
    `CountsTokens`, `CountsPromptTokens`, `Priced` and `ScoresAnswers` it is by having their method.
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


@runtime_checkable
class CountsTokens(Protocol):
    """A handler that knows its tokenizer."""

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """Tokens of each text, or None where that is not known without the provider."""


@runtime_checkable
class CountsPromptTokens(Protocol):
    """A handler that knows how conversations are put to its models."""

    def count_prompt_tokens(self, conversations: Sequence[Sequence[Message]], model: ModelSpec) -> list[int] | None:
        """Tokens of each conversation as the model is given it; None where that is not known without asking."""


@runtime_checkable
class Priced(Protocol):
    """A handler whose provider charges for requests."""

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking and training cost at the provider; None for a machine of one's own or where it is unknown."""


@runtime_checkable
class ScoresAnswers(Protocol):
    """A handler that can tell how probable a given answer is."""

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]] | None:
        """How probable the last message of each is, given those before it; None where that cannot be known.

        The natural logarithm of its probability, end token included, and its number of tokens.
        """


class RowPiece(NamedTuple):
    """A part of a training row's text; `weight` is what learning it counts, 0 for what is only read."""

    text: str
    weight: float = 0.0
    cut_tokens: int = 0
    """How many tokens before it are left out, for the row was too long."""


class RenderedRow(NamedTuple):
    """A training row as it is trained on, special tokens visible; or, `left_out`, why it is not."""

    pieces: tuple[RowPiece, ...]
    tokens: int | None = None
    left_out: str = ""


@runtime_checkable
class RendersRows(Protocol):
    """A trainer that shows the text of training rows."""

    def render_rows(
        self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any
    ) -> list[RenderedRow] | None:
        """Each row of `data.train`, by the code that `train` uses; None where that needs a base that is not here."""


@runtime_checkable
class TakesWeights(Protocol):
    """A handler that answers with weights that others made: CREATE MODEL … FROM ADAPTER, FROM GGUF, FROM EXPORT."""

    def check_weights(self, model: ModelSpec, path: Path) -> Mapping[str, object]:
        """What is known of `path`, for the version's details; HandlerError where the model cannot answer with it.

        `path` is a folder with a LoRA adapter of `model.base` in PEFT's layout, or the base itself: a folder or a file.
        """


@runtime_checkable
class Drains(Protocol):
    """A predictor that has answers under way which are paid for."""

    def drain(self) -> Iterator[Completion]:
        """Those still under way when reading stopped early; nothing new is begun.  Called before `close`."""


ReportStage = Callable[[str, float | None], None]
"""Called with what is going on, and how much of it is done (0 to 1, None: not known); may raise Cancelled."""


@runtime_checkable
class FetchesBases(Protocol):
    """A handler whose bases are downloaded at their first use."""

    def fetch(self, model: ModelSpec, report: ReportStage) -> None:
        """Get what `open` needs and is not on this machine.  The time-out of an answer does not run meanwhile."""


class ExportRequest(NamedTuple):
    """What EXPORT MODEL wants: `name` is the version's, as a file may have it; `system` begins every prompt."""

    name: str
    format: str
    quantization: str | None = None
    system: str | None = None


class ExportNotes(NamedTuple):
    """What the card of an export says: the base's id on the Hugging Face hub or its folder, its licence if it is known.

    `library` reads the folder (peft, transformers, gguf), `usage` is in Markdown and says how it is asked.
    """

    base: str
    licence: str | None
    library: str
    usage: str
    remarks: tuple[str, ...] = ()


@runtime_checkable
class Exports(Protocol):
    """A handler that has the weights, and writes versions out for other programs."""

    export_formats: ClassVar[Mapping[str, tuple[str, ...]]]
    """Formats by name, the default first, and for each the kinds of its numbers (QUANTIZATION), the default first."""

    def check_export(self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest) -> None:
        """NotSupported for what cannot be exported so; called before anything is written, cheap."""

    def export(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path, report: ReportStage
    ) -> ExportNotes:
        """Write the files into `folder`, which is empty."""

    def open_to_compare(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path | None, options: Any
    ) -> Predictor:
        """What answers for VERIFY, in numbers as exact as there are: the version, or its export in `folder`.

        The export is opened by the means of those who will use it, and gets texts.
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
    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """One vector a text, in order; a `Vector` tells what it cost."""


if not TYPE_CHECKING:  # a type checker would take any name for defined

    def __getattr__(name: str) -> NoReturn:
        """The error for a name that the contract had before."""
        if name == "Piece":
            raise NotSupported("sqlft.handler has no Piece any more.", "It is called Delta: change its import.")
        raise AttributeError(f"module 'sqlft.handler' has no attribute {name!r}")
