"""Guesses at what comes next."""

from __future__ import annotations

from sqlft_local.predict.answers import NgramLookup


def test_what_stood_behind_the_same_tokens_comes_again() -> None:
    """The most tokens that stood there before decide, and of those the last time."""
    known = NgramLookup([1, 2, 3, 4, 9, 2, 3, 5, 6, 7, 3])
    assert known.guess(2) == [5, 6]
    known.add([9, 2, 3])
    assert known.guess(4) == [5, 6, 7, 3]
    assert known.guess(1) == [5]


def test_what_is_new_is_not_guessed() -> None:
    """Nor is anything behind the very end."""
    assert NgramLookup([]).guess(3) == ()
    assert NgramLookup([1, 2, 3]).guess(3) == ()
    assert NgramLookup([1, 1]).guess(3) == [1]
