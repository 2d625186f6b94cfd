"""Limits that are told in headers, and the user's ceilings."""

from __future__ import annotations

import pytest
from sqlft_openai.http.limits import Ceiling, Told, retry_after, seconds_of


def test_a_ceiling_is_a_schedule() -> None:
    ceiling, now, taken = Ceiling(600), 100.0, 0
    while now < 160.0:
        if ceiling.wait(now) <= 0:
            ceiling.take(now)
            taken += 1
        now += 0.01
    assert 595 <= taken <= 601


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("6ms", 0.006), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("1d", 86400.0), ("2", 2.0), ("soon", None)],
)
def test_durations(said: str, seconds: float | None) -> None:
    assert seconds_of(said) == (pytest.approx(seconds) if seconds is not None else None)


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    date, later = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:09 GMT"
    assert retry_after({"retry-after": later, "date": date}) == 9.0  # whatever the time is here
    assert retry_after({"retry-after": "whenever"}) is None
    assert retry_after({}) is None


def headers(limit: int, left: int, reset: str) -> dict[str, str]:
    said = {"limit": str(limit), "remaining": str(left), "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in said.items()}


def test_headers_of_a_bucket_that_fills_evenly() -> None:
    told = Told("requests")
    told.hear(0.0, 1, headers(600, 10, "59s"))
    told.hear(0.1, 2, headers(600, 0, "60s"))
    assert told.wait(0.1) == pytest.approx(0.1)
    assert told.wait(0.3) <= 0


def test_headers_of_a_small_bucket() -> None:
    told = Told("requests")
    told.hear(0.0, 1, headers(600, 9, "100ms"))
    told.hear(0.0, 2, headers(600, 0, "1000ms"))
    assert told.wait(0.0) == pytest.approx(0.1, rel=0.2)
    told.take(1.5, 3, 9)
    assert told.wait(1.5) > 0.05


def test_headers_of_a_window_that_is_used_up() -> None:
    told = Told("requests")
    told.hear(9.0, 1, headers(600, 90, "14s"))
    told.hear(10.0, 2, headers(600, 0, "13s"))
    assert told.wait(10.0) == pytest.approx(13.0)
    assert told.wait(23.0) <= 0


def test_requests_that_the_headers_cannot_know_of_yet_count() -> None:
    told = Told("requests")
    for serial in (1, 2, 3):
        told.take(0.0, serial)
    told.hear(0.1, 1, headers(600, 2, "30s"))
    assert told.wait(0.1) > 0
