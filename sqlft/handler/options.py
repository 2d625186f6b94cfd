"""How a handler declares its options: what may stand in their Annotated[…], and those that the core reads too.

Called by handlers, which inherit the classes, and by the core, which reads any handler's options with `read_options`.
Not here: how USING (…) becomes an instance of them (`sqlft.options`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass, make_dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar, get_type_hints

from sqlft.errors import NotSupported


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


@dataclass(kw_only=True)
class WrapperOptions:
    """For `engine_options` of a handler that wraps another; those that inherit it are keyword-only, too."""

    handler: Annotated[str, "the handler that does the work: SHOW HANDLERS lists them", Delivery()]


def join_options(own: type, wrapped: type) -> type:
    """A dataclass with the options of both; NotSupported where they share a name.

    >>> join_options(WrapperOptions, EmbeddingOptions)(handler="local", mode="embedding")
    EngineOptions(mode='embedding', handler='local')
    """
    hints = get_type_hints(wrapped, include_extras=True)
    if shared := sorted(hints.keys() & get_type_hints(own).keys()):
        raise NotSupported(
            f"Both {own.__module__} and {wrapped.__module__} have an engine option '{shared[0]}'.",
            "One of them has to rename it before one can wrap the other.",
        )
    fields = (
        [] if is_dataclass(wrapped) else [(name, hint, _copy_default(wrapped, name)) for name, hint in hints.items()]
    )
    return make_dataclass("EngineOptions", fields, bases=(own, wrapped), kw_only=True)


def _copy_default(cls: type, name: str) -> object:
    """The default of an annotated class's option, for a dataclass."""
    if not hasattr(cls, name):
        return field()
    default: object = getattr(cls, name)
    return field(default_factory=lambda: default) if isinstance(default, list | dict) else field(default=default)


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
