"""Train and validation: seeded, and by prompt, so that equal prompts are never on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256

from sqlft.data.findings import Conversation, Turn

SPLIT_FROM, MOST_VALID = 50, 200


def split(
    conversations: Sequence[Conversation], share: float | None = None, seed: int = 0
) -> tuple[list[Conversation], list[Conversation]]:
    """Train and validation, each in the given order; `share` None is a tenth of 50 or more, at most 200."""
    held = _held(conversations, _wanted(len(conversations), share), seed)
    train = [c for c in conversations if c.prompt not in held]
    return train, [c for c in conversations if c.prompt in held]


def _wanted(count: int, share: float | None) -> int:
    if share is None:
        return min(count // 10, MOST_VALID) if count >= SPLIT_FROM else 0
    return max(1, round(count * share)) if share > 0 else 0


def _held(conversations: Sequence[Conversation], wanted: int, seed: int) -> set[tuple[Turn, ...]]:
    """Prompts in the order that the seed sets, until they make `wanted` conversations; one stays to train on."""
    sizes: dict[tuple[Turn, ...], int] = defaultdict(int)
    for c in conversations:
        sizes[c.prompt] += 1
    held: set[tuple[Turn, ...]] = set()
    count = 0
    for prompt in sorted(sizes, key=lambda p: _order(seed, p))[:-1] if wanted else []:
        if count + sizes[prompt] <= wanted:
            held.add(prompt)
            count += sizes[prompt]
    return held


def _order(seed: int, prompt: tuple[Turn, ...]) -> bytes:
    return sha256(repr((seed, prompt)).encode()).digest()
