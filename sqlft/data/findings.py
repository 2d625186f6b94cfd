"""What a check has to say about training rows, and a conversation as the checks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sqlft.data.privacy import masked

Level = Literal["error", "warning", "info"]
EXAMPLES = 3
SHOWN = 80
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

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """All but the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].content


def finding(
    code: str,
    level: Level,
    rows: Sequence[int],
    message: str,
    what_to_do: str = "",
    *,
    count: int | None = None,
    shown: Sequence[str] = (),
) -> Finding:
    """A Finding about `rows`; ``{n}`` in the message is the count with its noun."""
    n = len(rows) if count is None else count
    noun = f"{n:,} conversation{'' if n == 1 else 's'}"
    texts = tuple(masked(text) for text in shown[:EXAMPLES])
    return Finding(code, level, n, message.replace("{n}", noun), tuple(rows[:EXAMPLES]), what_to_do, texts)


def with_examples(findings: Sequence[Finding], conversations: Sequence[Conversation]) -> list[Finding]:
    """The findings with the texts of the rows that they name, where they show none of their own."""
    wanted = {row for f in findings if not f.shown for row in f.examples}
    known: Mapping[int, Conversation] = {c.row: c for c in conversations if c.row in wanted} if wanted else {}
    return [
        f if f.shown else replace(f, shown=tuple(_shown(known[row]) for row in f.examples if row in known))
        for f in findings
    ]


def _shown(conversation: Conversation) -> str:
    asked = next((t.content for t in reversed(conversation.turns) if t.role == "user"), "")
    said = next((t.content for t in reversed(conversation.turns) if t.role == "assistant"), "")
    return f"{_end(masked(asked))} → {_start(masked(said))}"


def _start(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _end(text: str) -> str:
    """The end of a prompt is what differs from row to row."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else "…" + text[1 - SHOWN :]
