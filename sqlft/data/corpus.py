"""All texts of many conversations in one column, so that a regex looks at them in Arrow and not one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.findings import Conversation, Turn

Has = Callable[[str], object]


class Corpus:
    """Conversations, and which of them hold what."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self.conversations = conversations

    def holding(self, screen: str, has: Has = bool, role: str | None = None) -> list[int]:
        """The rows of the conversations with a text that matches `screen` (RE2) and of which `has` is true."""
        return list(dict.fromkeys(c.row for c, t in self.matching(screen, role) if has(t.content)))

    def matching(self, screen: str, role: str | None = None) -> Iterator[tuple[Conversation, Turn]]:
        """Each message that matches, with its conversation; with `role` only that role's."""
        hits = pc.indices_nonzero(pc.match_substring_regex(self._texts, screen))
        for i in hits.to_pylist():
            conversation, turn = self._turns[i]
            if role is None or turn.role == role:
                yield conversation, turn

    def every(self, most: int) -> Corpus:
        """At most so many of the conversations, evenly spaced."""
        step = -(-len(self.conversations) // most)
        return self if step <= 1 else Corpus(self.conversations[::step])

    @cached_property
    def _turns(self) -> list[tuple[Conversation, Turn]]:
        return [(c, t) for c in self.conversations for t in c.turns]

    @cached_property
    def _texts(self) -> pa.Array:
        return pa.array(
            [t.content for t in chain.from_iterable(c.turns for c in self.conversations)], pa.large_string()
        )
