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
from typing import NamedTuple, NotRequired, TypedDict

import pyarrow as pa

from sqlft.errors import DataError
from sqlft.handler import CHARS_PER_TOKEN, RenderedRow, RowPiece, TrainingSet, estimate_tokens
from sqlft_openai.http.parsing import JsonObject
from sqlft_openai.options import HostedTrainOptions, learns_from_pairs
from sqlft_openai.providers import Provider, TrainingLimits

ROLES = ("system", "user", "assistant", "tool")
NAME_PATTERN = re.compile(r"[^\s<|\\/>]{1,64}")
"""What OpenAI takes as the name of who speaks."""
EXAMPLE_OVERHEAD, MESSAGE_OVERHEAD = 3, 4
"""Tokens that the chat format adds to an example and to each of its messages."""
FEW_EXAMPLES, MANY_EXAMPLES, DEFAULT_EPOCHS, MAX_EPOCHS = 100, 25_000, 3, 25


class TrainingMessage(TypedDict):
    """As the provider takes it: a weight of 0 keeps an answer from being learned, a name says who speaks.

    An answer that is a call of tools has no content.
    """

    role: str
    content: NotRequired[str]
    tool_calls: NotRequired[list[JsonObject]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[int]


class TrainingExample(NamedTuple):
    """A conversation that ends with the better answer, the worse one, and the tools that may be called."""

    messages: list[TrainingMessage]
    rejected: str | None = None
    tools: list[JsonObject] | None = None

    @property
    def texts(self) -> list[str]:
        """All that is read in training."""
        contents = [*(m.get("content", "") for m in self.messages), self.rejected]
        called = [json.dumps(some) for some in (self.tools, *(m.get("tool_calls") for m in self.messages)) if some]
        return [*filter(None, contents), *called]


class PreparedRows(NamedTuple):
    """What goes up."""

    train: list[TrainingExample]
    valid: list[TrainingExample]
    tokens: int
    """Of the training rows, one epoch."""
    epochs: int
    counted_by: str
    """How the tokens were counted: tiktoken's name for it, or that they are an estimate."""
    left_out: int = 0
    """Rows that a sample left out."""


def find_limits(provider: Provider, model: str) -> TrainingLimits:
    """What holds for a model there."""
    plain = model.removeprefix("ft:")
    return next((r for r in provider.training_limits if plain.startswith(r.name)), TrainingLimits(""))


def prepare_rows(provider: Provider, model: str, data: TrainingSet, options: HostedTrainOptions) -> PreparedRows:
    """The rows, or DataError that says which of its rules they break and what would keep it."""
    in_pairs = learns_from_pairs(options)
    train = read_examples(provider, data.train, options)
    valid = [] if data.valid is None else read_examples(provider, data.valid, options)
    for what, rows in (("training", train), ("validation", valid)):
        for number, example in enumerate(rows, 1):
            _check_messages(provider, example.messages, f"{what} row {number:,}")
            _check_tools(provider, example, f"{what} row {number:,}")
            if in_pairs:
                _check_rejected(example, f"{what} row {number:,}")
    counter = get_token_counter(model)
    sizes = [_count_example_tokens(counter, example) for example in train]
    limits = find_limits(provider, model)
    _check_longest(provider, model, limits, sizes, counter)
    epochs = choose_epochs(options.n_epochs, len(train))
    kept = _sample_rows(sizes, epochs, options) if options.max_train_tokens else list(range(len(train)))
    tokens = sum(sizes[i] for i in kept)
    _check_job_tokens(provider, model, limits, [sizes[i] for i in kept], epochs, counter)
    if len(kept) < provider.min_examples:
        raise DataError(
            f"{provider.title} trains on {provider.min_examples} rows or more, and there are {len(kept)}.",
            "Give more rows" + (", or a larger max_train_tokens." if len(kept) < len(train) else "."),
        )
    return PreparedRows([train[i] for i in kept], valid, tokens, epochs, counter.name, len(train) - len(kept))


def choose_epochs(epochs: int | str, rows: int) -> int:
    """The option's epochs; 'auto' as OpenAI's guide chooses them: 3, more for few rows, fewer for very many.

    >>> choose_epochs(2, 10), choose_epochs("auto", 10), choose_epochs("auto", 5000)
    (2, 10, 3)
    """
    if isinstance(epochs, int):
        return epochs
    if rows * DEFAULT_EPOCHS < FEW_EXAMPLES:
        return min(MAX_EPOCHS, FEW_EXAMPLES // max(1, rows))
    return max(1, MANY_EXAMPLES // rows) if rows * DEFAULT_EPOCHS > MANY_EXAMPLES else DEFAULT_EPOCHS


def format_jsonl(rows: Sequence[TrainingExample]) -> bytes:
    """One line per example."""
    lines = (json.dumps(_format_example(example), ensure_ascii=False) for example in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _format_example(example: TrainingExample) -> JsonObject:
    messages = example.messages
    tools = {"tools": example.tools} if example.tools else {}
    if example.rejected is None:
        return {"messages": messages, **tools}
    return {
        "input": {"messages": messages[:-1], **tools},
        "preferred_output": messages[-1:],
        "non_preferred_output": [{"role": "assistant", "content": example.rejected}],
    }


def show_example(example: TrainingExample) -> RenderedRow:
    """Its line of the JSONL, the answers that are learned marked; of a pair that is the better one."""
    line = json.dumps(_format_example(example), ensure_ascii=False)
    pieces: list[RowPiece] = []
    begin = end = 0
    for k, message in enumerate(example.messages, 1):
        text = json.dumps(message, ensure_ascii=False)
        start = line.index(text, end)
        end = start + len(text)
        is_answer = message["role"] == "assistant" and message.get("weight") != 0
        if is_answer and (example.rejected is None or k == len(example.messages)):
            pieces += [RowPiece(line[begin:start]), RowPiece(text, 1.0)]
            begin = end
    return RenderedRow((*pieces, RowPiece(line[begin:])))


def _format_message(message: Mapping[str, object], provider: Provider) -> TrainingMessage:
    role, content, name = (str(message.get(key) or "") for key in ("role", "content", "name"))
    made = TrainingMessage(role=role, content=content)
    if calls := message.get("tool_calls"):
        made = TrainingMessage(role=role, tool_calls=json.loads(str(calls)))
        if content:
            made["content"] = content
    if answered := message.get("tool_call_id"):
        made["tool_call_id"] = str(answered)
    if name and provider.takes_names and NAME_PATTERN.fullmatch(name):
        made["name"] = name
    if message.get("weight") == 0 and role == "assistant":
        made["weight"] = 0
    return made


def read_examples(provider: Provider, table: pa.Table, options: HostedTrainOptions) -> list[TrainingExample]:
    """The rows as the provider takes them."""
    conversations = [
        [_format_message(m, provider) for m in messages] for messages in table.column("messages").to_pylist()
    ]
    listed = table.column("tools").to_pylist() if "tools" in table.column_names else [None] * table.num_rows
    tools = [json.loads(text) if text else None for text in listed]
    if not learns_from_pairs(options):
        return [TrainingExample(messages, None, some) for messages, some in zip(conversations, tools, strict=True)]
    if "rejected" not in table.column_names:
        raise DataError(
            "method = 'dpo' learns from a better and a worse answer, and the rows have no worse ones.",
            "Let the query give it beside the answer, as a column rejected; or prompt, chosen, rejected.",
        )
    worse = table.column("rejected").to_pylist()
    rows = zip(conversations, worse, tools, strict=True)
    return [TrainingExample(messages, text or "", some) for messages, text, some in rows]


def _check_rejected(example: TrainingExample, where: str) -> None:
    if not (example.rejected or "").strip():
        raise DataError(f"The {where} has no worse answer.", "Filter out rows whose rejected is empty.")
    if example.rejected == example.messages[-1].get("content"):
        raise DataError(f"The worse answer of the {where} is its answer.", "Filter out rows where they are the same.")


def _check_messages(provider: Provider, messages: Sequence[TrainingMessage], where: str) -> None:
    roles = [m["role"] for m in messages]
    if unknown := [r for r in roles if r not in ROLES]:
        raise DataError(f"The {where} has the role '{unknown[0]}'.", f"Roles are {', '.join(ROLES)}.")
    if not roles or roles[-1] != "assistant":
        raise DataError(
            f"The {where} does not end with the assistant's answer, as {provider.title} wants it.",
            "Let each conversation end with a row whose role is 'assistant'.",
        )
    if "user" not in roles:
        raise DataError(f"The {where} asks nothing: it has no message of a user.", "Filter it out.")
    if not messages[-1].get("content", "").strip() and "tool_calls" not in messages[-1]:
        raise DataError(f"The answer of the {where} is empty.", "Filter out rows without an answer.")


def _check_tools(provider: Provider, example: TrainingExample, where: str) -> None:
    calls = [call for m in example.messages for call in m.get("tool_calls", ())]
    replies = [m for m in example.messages if m["role"] == "tool"]
    if not provider.takes_tools and (calls or replies or example.tools):
        raise DataError(f"The {where} has tools, which {provider.title} is not known to train on.", "Filter it out.")
    if any("id" not in call for call in calls) or any("tool_call_id" not in m for m in replies):
        raise DataError(
            f"The {where} does not tell which call a tool answers: {provider.title} wants ids.",
            "Give calls an id, and what tools say its tool_call_id.",
        )


def _count_example_tokens(counter: TokenCounter, example: TrainingExample) -> int:
    return EXAMPLE_OVERHEAD + sum(MESSAGE_OVERHEAD + counter(text) for text in example.texts)


def _check_longest(
    provider: Provider, model: str, limits: TrainingLimits, sizes: Sequence[int], counter: TokenCounter
) -> None:
    most = limits.example_tokens
    long = [i for i, size in enumerate(sizes, 1) if most is not None and size > most]
    if long:
        shown = ", ".join(f"{i:,}" for i in long[:5])
        raise DataError(
            f"{len(long):,} rows are longer than the {most:,} tokens that {provider.title} trains of an example of "
            f"{model} ({counter.name}): row {shown}{' …' if len(long) > 5 else ''}.",
            "It would cut off their answers: shorten them, or filter them out.",
        )


def _check_job_tokens(
    provider: Provider, model: str, limits: TrainingLimits, sizes: Sequence[int], epochs: int, counter: TokenCounter
) -> None:
    most, tokens = limits.job_tokens, sum(sizes) * epochs
    if most is None or tokens <= most:
        return
    fit = int(len(sizes) * most / tokens)
    raise DataError(
        f"{len(sizes):,} rows have {tokens:,} tokens in {epochs} epochs ({counter.name}), and one job of {model} takes "
        f"{most:,}: about {fit:,} rows fit.",
        f"USING max_train_tokens = {most} trains on a sample that fits; n_epochs = {max(1, epochs - 1)} is another way."
        if epochs > 1
        else f"USING max_train_tokens = {most} trains on a sample that fits.",
    )


def _sample_rows(sizes: Sequence[int], epochs: int, options: HostedTrainOptions) -> list[int]:
    """Rows drawn with the seed while they fit, in their order."""
    order = list(range(len(sizes)))
    random.Random(options.seed or 0).shuffle(order)
    left, kept = (options.max_train_tokens or 0) // epochs, []
    for i in order:
        if sizes[i] <= left:
            kept.append(i)
            left -= sizes[i]
    return sorted(kept)


ENCODING_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
CL100K_MODELS = ("gpt-3.5", "gpt-35", "gpt-4-", "text-embedding", "babbage", "davinci")
"""Models whose names begin so have the older encoding."""


class TokenCounter(NamedTuple):
    """Tokens of a text."""

    name: str
    """For people: what counted."""
    count: Callable[[str], int]
    is_exact: bool

    def __call__(self, text: str | None) -> int:
        return self.count(text or "")


def get_token_counter(model: str) -> TokenCounter:
    """The count that fits a model best; nothing is downloaded for it."""
    plain = model.removeprefix("ft:")
    name = "cl100k_base" if plain == "gpt-4" or plain.startswith(CL100K_MODELS) else "o200k_base"
    is_openai = plain.startswith(("gpt-", "o1", "o3", "o4", "chatgpt", "text-embedding", "babbage", "davinci"))
    return (_load_tiktoken(name) if is_openai else None) or TokenCounter(
        f"their characters: an estimate of {CHARS_PER_TOKEN} a token", estimate_tokens, False
    )


@cache
def _load_tiktoken(name: str) -> TokenCounter | None:
    if find_spec("tiktoken") is None or not _is_cached(name):
        return None
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return TokenCounter(f"tiktoken's {name}", lambda text: len(encoding.encode(text, disallowed_special=())), True)


def _is_cached(name: str) -> bool:
    """Whether tiktoken has the encoding on disk, where it would look."""
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(cache) if cache else Path(tempfile.gettempdir()) / "data-gym-cache"
    return (folder / sha1(ENCODING_URL.format(name).encode()).hexdigest()).exists()
