"""What a check has to say about training rows, and a conversation as the checks see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "info"]
EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing found: how often, what to do about it, and up to three rows (from 1) that show it."""

    code: str
    level: Level
    count: int
    message: str
    examples: tuple[int, ...] = ()


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Messages, and the row of the query's result (from 1) that they start at."""

    row: int
    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """All but the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].content


def finding(code: str, level: Level, rows: Sequence[int], message: str, count: int | None = None) -> Finding:
    """A Finding about `rows`; ``{n}`` in the message is the count with its noun."""
    n = len(rows) if count is None else count
    noun = f"{n:,} conversation{'' if n == 1 else 's'}"
    return Finding(code, level, n, message.replace("{n}", noun), tuple(rows[:EXAMPLES]))
