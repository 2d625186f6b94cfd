"""Limits in headers, and the user's ceilings."""

from __future__ import annotations

import pytest
from sqlft_openai.http.limits import FixedRateLimiter, HeaderRateLimiter, parse_duration, parse_retry_after


def test_a_ceiling_is_a_schedule() -> None:
    limiter, now, taken = FixedRateLimiter(600), 100.0, 0
    while now < 160.0:
        if limiter.wait(now) <= 0:
            limiter.record_request(now)
            taken += 1
        now += 0.01
    assert 595 <= taken <= 601


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("6ms", 0.006), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("1d", 86400.0), ("2", 2.0), ("soon", None)],
)
def test_durations(said: str, seconds: float | None) -> None:
    assert parse_duration(said) == (pytest.approx(seconds) if seconds is not None else None)


def test_retry_after_in_all_its_forms() -> None:
    assert parse_retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert parse_retry_after({"retry-after": "1.5"}) == 1.5
    assert parse_retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    date, later = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:09 GMT"
    assert parse_retry_after({"retry-after": later, "date": date}) == 9.0  # whatever the time is here
    assert parse_retry_after({"retry-after": "whenever"}) is None
    assert parse_retry_after({}) is None


def headers(limit: int, left: int, reset: str) -> dict[str, str]:
    said = {"limit": str(limit), "remaining": str(left), "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in said.items()}


def test_headers_of_a_bucket_that_fills_evenly() -> None:
    limiter = HeaderRateLimiter("requests")
    limiter.read_headers(0.0, 1, headers(600, 10, "59s"))
    limiter.read_headers(0.1, 2, headers(600, 0, "60s"))
    assert limiter.wait(0.1) == pytest.approx(0.1)
    assert limiter.wait(0.3) <= 0


def test_headers_of_a_small_bucket() -> None:
    limiter = HeaderRateLimiter("requests")
    limiter.read_headers(0.0, 1, headers(600, 9, "100ms"))
    limiter.read_headers(0.0, 2, headers(600, 0, "1000ms"))
    assert limiter.wait(0.0) == pytest.approx(0.1, rel=0.2)
    limiter.record_request(1.5, 3, 9)
    assert limiter.wait(1.5) > 0.05


def test_headers_of_a_window_that_is_used_up() -> None:
    limiter = HeaderRateLimiter("requests")
    limiter.read_headers(9.0, 1, headers(600, 90, "14s"))
    limiter.read_headers(10.0, 2, headers(600, 0, "13s"))
    assert limiter.wait(10.0) == pytest.approx(13.0)
    assert limiter.wait(23.0) <= 0


def test_requests_that_the_headers_cannot_know_of_yet_count() -> None:
    limiter = HeaderRateLimiter("requests")
    for serial in (1, 2, 3):
        limiter.record_request(0.0, serial)
    limiter.read_headers(0.1, 1, headers(600, 2, "30s"))
    assert limiter.wait(0.1) > 0
