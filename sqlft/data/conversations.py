"""Conversations and findings: `formats` makes the first, `checks` the second.

Here is also how they are split into training and validation rows, and the Arrow table that a trainer gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.privacy import mask_private

Level = Literal["error", "warning", "info"]
MAX_EXAMPLES = 3
EXAMPLE_LENGTH = 80
"""Characters of a prompt, and of an answer, in an example."""


@dataclass(frozen=True)
class Finding:
    """One thing found: how often, up to three rows (from 1) that show it and their texts, and what to do about it."""

    code: str
    level: Level
    count: int
    message: str
    examples: tuple[int, ...] = ()
    what_to_do: str = ""
    shown: tuple[str, ...] = ()
    """The texts of the examples, cut short, with secrets and addresses masked."""

    def __str__(self) -> str:
        return f"{self.message} {self.what_to_do}".strip()


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str
    weight: int = 1
    """0: an answer that is context only."""
    name: str | None = None
    """Which of several users, or assistants, it is of."""
    reasoning: str | None = None
    """What is thought before an answer; learned by models that think."""
    tool_calls: str | None = None
    """The calls of tools that are an answer, or follow it: OpenAI's JSON."""
    tool_call_id: str | None = None
    """Of what a tool said: which call it answers."""

    def __repr__(self) -> str:
        """Without the later fields where they are None: seeded splits go by this text, and are to stay as they are."""
        later = "".join(f", {name}={getattr(self, name)!r}" for name in self._fields[4:] if getattr(self, name))
        return f"Turn(role={self.role!r}, content={self.content!r}, weight={self.weight}, name={self.name!r}{later})"

    @property
    def text(self) -> str:
        """The content, and behind it the calls of tools."""
        return "\n".join(filter(None, (self.content, self.tool_calls)))

    @property
    def is_learned(self) -> bool:
        """Whether training teaches it."""
        return self.role == "assistant" and self.weight != 0


class Conversation(NamedTuple):
    """Messages, and the row of the query's result (from 1) that they start at."""

    row: int
    turns: tuple[Turn, ...]
    rejected: str | None = None
    """The worse answer, where training learns from pairs."""
    tools: str | None = None
    """What may be called: OpenAI's JSON."""

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """All but the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].text

    @property
    def text(self) -> str:
        """All that is read."""
        return "\n".join([*filter(None, [self.tools]), *(t.text for t in self.turns)])


def report_finding(
    code: str,
    level: Level,
    rows: Sequence[int],
    message: str,
    what_to_do: str = "",
    *,
    count: int | None = None,
    shown: Sequence[str] = (),
) -> list[Finding]:
    """A Finding about `rows`, none where there are none; ``{n}`` in the message is the count with its noun."""
    n = len(rows) if count is None else count
    if n == 0:
        return []
    noun = f"{n:,} conversation{'' if n == 1 else 's'}"
    texts = tuple(mask_private(text) for text in shown[:MAX_EXAMPLES])
    return [Finding(code, level, n, message.replace("{n}", noun), tuple(rows[:MAX_EXAMPLES]), what_to_do, texts)]


def add_examples(findings: Sequence[Finding], conversations: Sequence[Conversation]) -> list[Finding]:
    """The findings with the texts of the rows that they name, where they show none of their own."""
    rows = {row for f in findings if not f.shown for row in f.examples}
    known: Mapping[int, Conversation] = {c.row: c for c in conversations if c.row in rows}
    return [
        f if f.shown else replace(f, shown=tuple(_format_example(known[row]) for row in f.examples if row in known))
        for f in findings
    ]


def _format_example(conversation: Conversation) -> str:
    """The last question, whose end differs from row to row, and the start of the last answer."""
    user, assistant = (
        " ".join(mask_private(next((t.content for t in reversed(conversation.turns) if t.role == role), "")).split())
        for role in ("user", "assistant")
    )
    user = user if len(user) <= EXAMPLE_LENGTH else "…" + user[1 - EXAMPLE_LENGTH :]
    return f"{user} → {assistant if len(assistant) <= EXAMPLE_LENGTH else assistant[: EXAMPLE_LENGTH - 1] + '…'}"


TextTest = Callable[[str], object]


class Corpus:
    """Conversations, and which of them hold what; their texts are screened by Arrow."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self.conversations = conversations

    def find_rows(self, screen: str, has: TextTest = bool) -> list[int]:
        """The rows of the conversations with a text that matches `screen` (RE2) and for which `has` is true."""
        return list(dict.fromkeys(c.row for c, t in self.find_turns(screen) if has(t.text)))

    def find_turns(self, screen: str, role: str | None = None) -> Iterator[tuple[Conversation, Turn]]:
        """Each message that matches, with its conversation; with `role` only that role's."""
        hits = pc.indices_nonzero(pc.match_substring_regex(self._texts, screen))
        for i in hits.to_pylist():
            conversation, turn = self._turns[i]
            if role is None or turn.role == role:
                yield conversation, turn

    def sample_evenly(self, most: int) -> Corpus:
        """At most `most` of the conversations, evenly spaced."""
        step = -(-len(self.conversations) // most)
        return self if step <= 1 else Corpus(self.conversations[::step])

    @cached_property
    def _turns(self) -> list[tuple[Conversation, Turn]]:
        return [(c, t) for c in self.conversations for t in c.turns]

    @cached_property
    def _texts(self) -> pa.Array:
        return pa.array([turn.text for _, turn in self._turns], pa.large_string())


MESSAGE_FIELDS = (pa.field("role", pa.string()), pa.field("content", pa.string()))
OPTIONAL_FIELDS = {
    "weight": pa.field("weight", pa.int32()),
    "name": pa.field("name", pa.string()),
    "reasoning": pa.field("reasoning", pa.string()),
    "tool_calls": pa.field("tool_calls", pa.string()),
    "tool_call_id": pa.field("tool_call_id", pa.string()),
}
"""What messages have too, where one of them has it."""
CHUNK_CHARACTERS = 100_000_000
"""A batch's texts must stay below Arrow's 2 GB."""


def build_table(conversations: Sequence[Conversation]) -> pa.Table:
    """A table of messages: list<struct<role: string, content: string>>; rejected and tools: string, if any has them.

    Where a message has a weight of 0, a name, a reasoning …, the structs have that field of OPTIONAL_FIELDS too.
    """
    turns = [t for c in conversations for t in c.turns]
    used = [field for name, field in OPTIONAL_FIELDS.items() if any(getattr(t, name) not in (None, 1) for t in turns)]
    kind = pa.struct([*MESSAGE_FIELDS, *used])
    batches: list[list[Conversation]] = [[]]
    size = 0
    for c in conversations:
        if size > CHUNK_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(c)
        size += sum(len(t.text) + len(t.reasoning or "") for t in c.turns)
    chunks = [pa.array([[t._asdict() for t in c.turns] for c in batch], pa.list_(kind)) for batch in batches]
    table = pa.table({"messages": pa.chunked_array(chunks, pa.list_(kind))})
    for name in ("rejected", "tools"):
        values = [getattr(c, name) for c in conversations]
        if any(value is not None for value in values):
            table = table.append_column(name, pa.array(values, pa.string()))
    return table


MIN_SPLIT_ROWS, MAX_VALIDATION_ROWS = 50, 200


def split_validation(
    conversations: Sequence[Conversation], share: float | None = None, seed: int = 0
) -> tuple[list[Conversation], list[Conversation]]:
    """Train and validation, each in the given order; `share` None is a tenth of 50 or more, at most 200."""
    held = _hold_out_prompts(conversations, _choose_validation_size(len(conversations), share), seed)
    train = [c for c in conversations if c.prompt not in held]
    return train, [c for c in conversations if c.prompt in held]


def _choose_validation_size(count: int, share: float | None) -> int:
    if share is None:
        return min(count // 10, MAX_VALIDATION_ROWS) if count >= MIN_SPLIT_ROWS else 0
    return max(1, round(count * share)) if share > 0 else 0


def _hold_out_prompts(conversations: Sequence[Conversation], target: int, seed: int) -> set[tuple[Turn, ...]]:
    """Prompts in the order that the seed sets, until they make `target` conversations; one stays to train on."""
    sizes: dict[tuple[Turn, ...], int] = defaultdict(int)
    for c in conversations:
        sizes[c.prompt] += 1
    held: set[tuple[Turn, ...]] = set()
    count = 0
    for prompt in sorted(sizes, key=lambda p: sha256(repr((seed, p)).encode()).digest())[:-1] if target else []:
        if count + sizes[prompt] <= target:
            held.add(prompt)
            count += sizes[prompt]
    return held
