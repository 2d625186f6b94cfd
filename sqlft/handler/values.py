"""What a handler reads and makes: messages, requests and completions, artifacts and what becomes one, estimates.

Called by the core and by handlers, as `sqlft.handler`.  Dataclasses and tuples without behaviour, and the one estimate
of tokens for texts that nobody counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from sqlft.handler.old_names import NamedFields

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
