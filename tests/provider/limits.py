"""A true limit of requests a minute."""

from __future__ import annotations

import time


class RateLimit:
    """A bucket that holds `burst` requests and fills at `per_minute`; `in_headers` says so in x-ratelimit headers."""

    def __init__(
        self, per_minute: float, burst: float | None = None, in_headers: bool = True, retry_after: bool = True
    ):
        self.per_minute, self.burst = per_minute, burst or max(1.0, per_minute / 60)
        self.is_in_headers, self.retry_after = in_headers, retry_after
        self._left, self._at = self.burst, time.monotonic()

    def admit(self) -> bool:
        """Whether one more request may pass."""
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def headers(self, refused: bool = False) -> dict[str, str]:
        """What an answer says of it."""
        shown = {}
        until_one = max(0.0, (1 - self._left) * 60 / self.per_minute)
        if self.is_in_headers:
            full = (self.burst - self._left) * 60 / self.per_minute
            shown = {
                "x-ratelimit-limit-requests": f"{self.per_minute:g}",
                "x-ratelimit-remaining-requests": str(int(self._left)),
                "x-ratelimit-reset-requests": f"{max(1, int(1000 * full))}ms",
            }
        if refused and self.retry_after:
            shown |= {"retry-after": f"{until_one:.3f}", "retry-after-ms": f"{1000 * until_one:.0f}"}
        return shown
