"""Guesses at what comes next: answers copy names and phrases from their prompts, and say things twice.

Prompt lookup decoding (Saxena 2023): what stood behind the same last tokens before is tried again.  The model computes
all guessed tokens in one step and keeps those that it would have said itself, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST = 3
"""Last tokens that are looked up, if they stood there before; else fewer, down to `SHORTEST`."""
SHORTEST = 1


class Lookup:
    """The tokens of a prompt and its answer so far, and where each few of them stood last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self.add(tokens)

    def add(self, tokens: Iterable[int]) -> None:
        """What was said next."""
        said = self._tokens
        for token in tokens:
            for n in range(SHORTEST, min(LONGEST, len(said)) + 1):
                self._behind[tuple(said[-n:])] = len(said)
            said.append(token)

    def guess(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come next; none if the last ones are new."""
        said = self._tokens
        for n in range(min(LONGEST, len(said)), SHORTEST - 1, -1):
            place = self._behind.get(tuple(said[-n:]))
            if place is not None:
                return said[place : place + most]
        return ()
