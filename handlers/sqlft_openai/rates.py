"""How fast an account may be asked: what it says in headers, what it refuses, and the user's own ceilings."""

from __future__ import annotations


class Rates:
    """Of one model and key; used in the line's thread only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
