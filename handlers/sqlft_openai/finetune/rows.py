"""Conversations to a provider's JSONL, once its rules are kept, and their tokens counted."""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sqlft.errors import DataError
from sqlft.handler import TrainingSet
from sqlft_openai.providers import Engine

ROLES = ("system", "user", "assistant")
NAME = re.compile(r"[^\s<|\\/>]{1,64}")
"""What OpenAI takes as the name of who speaks."""
OVERHEAD, MESSAGE_OVERHEAD = 3, 4
"""Tokens that the chat format adds to an example and to each of its messages."""
FEW, MANY, USUAL_EPOCHS, MOST_EPOCHS = 100, 25_000, 3, 25


class Rule(NamedTuple):
    """What a model's training takes, by the start of the model's name."""

    name: str
    example_tokens: int | None = None
    """Longer examples are cut there."""
    job_tokens: int | None = None
    """Tokens of one job, epochs included."""


RULES = (
    Rule("gpt-3.5-turbo-0613", 4_096, 50_000_000),
    Rule("gpt-35-turbo", 16_385, 50_000_000),
    Rule("gpt-3.5", 16_385, 50_000_000),
    Rule("gpt-4.1", 65_536),
    Rule("gpt-4o", 65_536),
    Rule("gpt-4", 8_192),
    Rule("babbage", 16_384, 50_000_000),
    Rule("davinci", 16_384, 50_000_000),
)
"""From the providers' public documentation, May 2026; the first that fits holds."""


class Pair(NamedTuple):
    """A conversation that ends with the better answer, and the worse one."""

    messages: list[Any]
    rejected: str | None = None

    @property
    def texts(self) -> list[str]:
        """All that is read in training."""
        return [*(m["content"] for m in self.messages), *([self.rejected] if self.rejected else [])]


class Rows(NamedTuple):
    """What goes up."""

    train: list[Pair]
    valid: list[Pair]
    tokens: int
    """Of the training rows, one epoch."""
    epochs: int
    counted: str
    """How the tokens were counted: tiktoken's name for it, or that they are an estimate."""
    left_out: int = 0
    """Rows that a sample left out."""


def rule_of(engine: Engine, model: str) -> Rule:
    """What holds for a model there."""
    plain = model.removeprefix("ft:")
    known = (r for r in RULES if plain.startswith(r.name)) if engine.tuning == "openai" else iter(())
    return next(known, Rule(""))


def checked(engine: Engine, model: str, data: TrainingSet, options: Any) -> Rows:
    """The rows, or DataError that says which rule they break and what would keep it."""
    in_pairs = getattr(options, "method", "") == "dpo"
    train = _pairs(engine, data.train, in_pairs)
    valid = [] if data.valid is None else _pairs(engine, data.valid, in_pairs)
    for what, rows in (("training", train), ("validation", valid)):
        for number, pair in enumerate(rows, 1):
            _check(engine, pair.messages, f"{what} row {number:,}")
            if in_pairs:
                _check_pair(pair, f"{what} row {number:,}")
    count = counting(model)
    sizes = [_size(count, pair) for pair in train]
    rule = rule_of(engine, model)
    _check_longest(engine, model, rule, sizes, count)
    epochs = epochs_of(options.n_epochs, len(train))
    kept = _sample(sizes, epochs, options) if options.max_train_tokens else list(range(len(train)))
    tokens = sum(sizes[i] for i in kept)
    _check_job(engine, model, rule, [sizes[i] for i in kept], epochs, count)
    if len(kept) < engine.least_examples:
        raise DataError(
            f"{engine.title} trains on {engine.least_examples} rows or more, and there are {len(kept)}.",
            "Give more rows" + (", or a larger max_train_tokens." if len(kept) < len(train) else "."),
        )
    return Rows([train[i] for i in kept], valid, tokens, epochs, count.name, len(train) - len(kept))


def epochs_of(given: int | str, rows: int) -> int:
    """Epochs as given; 'auto' as OpenAI's guide reckons them: 3, more for few rows, fewer for very many."""
    if isinstance(given, int):
        return given
    if rows * USUAL_EPOCHS < FEW:
        return min(MOST_EPOCHS, FEW // max(1, rows))
    return max(1, MANY // rows) if rows * USUAL_EPOCHS > MANY else USUAL_EPOCHS


def jsonl(rows: Sequence[Pair]) -> bytes:
    """One line an example."""
    lines = (json.dumps(_line(pair), ensure_ascii=False) for pair in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _line(pair: Pair) -> dict[str, Any]:
    messages = [dict(m) for m in pair.messages]
    if pair.rejected is None:
        return {"messages": messages}
    return {
        "input": {"messages": messages[:-1]},
        "preferred_output": messages[-1:],
        "non_preferred_output": [{"role": "assistant", "content": pair.rejected}],
    }


def _message(message: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """As the provider takes it: a weight of 0 keeps an answer from being learned, a name tells who speaks."""
    made = {"role": message["role"], "content": message["content"]}
    name = message.get("name")
    if name and engine.tuning == "openai" and NAME.fullmatch(name):
        made["name"] = name
    if message.get("weight") == 0 and message["role"] == "assistant":
        made["weight"] = 0
    return made


def _pairs(engine: Engine, table: Any, in_pairs: bool) -> list[Pair]:
    conversations = [[_message(m, engine) for m in messages] for messages in table.column("messages").to_pylist()]
    if not in_pairs:
        return [Pair(messages) for messages in conversations]
    if "rejected" not in table.column_names:
        raise DataError(
            "method = 'dpo' learns from a better and a worse answer, and the rows have no worse ones.",
            "Let the query give it beside the answer, as a column rejected; or prompt, chosen, rejected.",
        )
    worse = table.column("rejected").to_pylist()
    return [Pair(messages, text or "") for messages, text in zip(conversations, worse, strict=True)]


def _check_pair(pair: Pair, where: str) -> None:
    if not (pair.rejected or "").strip():
        raise DataError(f"The {where} has no worse answer.", "Filter out rows whose rejected is empty.")
    if pair.rejected == pair.messages[-1]["content"]:
        raise DataError(f"The worse answer of the {where} is its answer.", "Filter out rows where they are the same.")


def _check(engine: Engine, messages: Any, where: str) -> None:
    roles = [m["role"] for m in messages]
    if unknown := [r for r in roles if r not in ROLES]:
        raise DataError(f"The {where} has the role '{unknown[0]}'.", f"Roles are {', '.join(ROLES)}.")
    if not roles or roles[-1] != "assistant":
        raise DataError(
            f"The {where} does not end with the assistant's answer, as {engine.title} wants it.",
            "Let each conversation end with a row whose role is 'assistant'.",
        )
    if "user" not in roles:
        raise DataError(f"The {where} asks nothing: it has no message of a user.", "Filter it out.")
    if not (messages[-1]["content"] or "").strip():
        raise DataError(f"The answer of the {where} is empty.", "Filter out rows without an answer.")


def _size(count: Count, pair: Pair) -> int:
    return OVERHEAD + sum(MESSAGE_OVERHEAD + count(text) for text in pair.texts)


def _check_longest(engine: Engine, model: str, rule: Rule, sizes: Sequence[int], count: Count) -> None:
    most = rule.example_tokens
    long = [i for i, size in enumerate(sizes, 1) if most is not None and size > most]
    if long:
        shown = ", ".join(f"{i:,}" for i in long[:5])
        raise DataError(
            f"{len(long):,} rows are longer than the {most:,} tokens that {engine.title} trains of an example of "
            f"{model} ({count.name}): row {shown}{' …' if len(long) > 5 else ''}.",
            "It would cut off their answers: shorten them, or filter them out.",
        )


def _check_job(engine: Engine, model: str, rule: Rule, sizes: Sequence[int], epochs: int, count: Count) -> None:
    most, tokens = rule.job_tokens, sum(sizes) * epochs
    if most is None or tokens <= most:
        return
    fit = int(len(sizes) * most / tokens)
    raise DataError(
        f"{len(sizes):,} rows have {tokens:,} tokens in {epochs} epochs ({count.name}), and one job of {model} takes "
        f"{most:,}: about {fit:,} rows fit.",
        f"USING max_train_tokens = {most} trains on a sample that fits; n_epochs = {max(1, epochs - 1)} is another way."
        if epochs > 1
        else f"USING max_train_tokens = {most} trains on a sample that fits.",
    )


def _sample(sizes: Sequence[int], epochs: int, options: Any) -> list[int]:
    """Rows drawn with the seed while they fit, in their order."""
    order = list(range(len(sizes)))
    random.Random(options.seed or 0).shuffle(order)
    left, kept = options.max_train_tokens // epochs, []
    for i in order:
        if sizes[i] <= left:
            kept.append(i)
            left -= sizes[i]
    return sorted(kept)


URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
OLD = ("gpt-3.5", "gpt-35", "gpt-4-", "text-embedding", "babbage", "davinci")
"""Models whose names begin so have the older encoding."""


class Count(NamedTuple):
    """Tokens of a text."""

    name: str
    """For people: what counted."""
    of: Callable[[str], int]
    exact: bool

    def __call__(self, text: str | None) -> int:
        return self.of(text or "")


def counting(model: str) -> Count:
    """The count that fits a model best; nothing is downloaded for it."""
    plain = model.removeprefix("ft:")
    name = "cl100k_base" if plain == "gpt-4" or plain.startswith(OLD) else "o200k_base"
    is_openai = plain.startswith(("gpt-", "o1", "o3", "o4", "chatgpt", "text-embedding", "babbage", "davinci"))
    return (_tiktoken(name) if is_openai else None) or Count(
        "their characters: an estimate of four a token", _quarter, False
    )


def _quarter(text: str) -> int:
    return (len(text) + 3) // 4


@cache
def _tiktoken(name: str) -> Count | None:
    if find_spec("tiktoken") is None or not _cached(name):
        return None
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return Count(f"tiktoken's {name}", lambda text: len(encoding.encode(text, disallowed_special=())), True)


def _cached(name: str) -> bool:
    """Whether tiktoken has the encoding on disk, where it would look."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / "data-gym-cache"
    return (folder / sha1(URL.format(name).encode()).hexdigest()).exists()
