"""Messages folded to the screen: whole words, and a caret that still points at its place."""

from __future__ import annotations

import pytest

from sqlft.shell.output.folding import fold_message

LONG = "SELECT aaaaaaaaaa, bbbbbbbbbb, cccccccccc FORM dddddddddd WHERE eeeeeeeeee = 1 ORDER BY ffffffffff"


def excerpt(head: str, at: int, count: int = 1) -> str:
    return f"Parser Error: wrong\n\n{head}{LONG}\n{' ' * (len(head) + at)}{'^' * count}\nWrite it right."


def test_what_fits_or_has_no_screen_stays() -> None:
    text = "a line\n  another one"
    assert fold_message(text, 20) == text
    assert fold_message(LONG, None) == LONG


@pytest.mark.parametrize("width", [30, 60, 80])
def test_no_line_is_wider_and_no_word_is_broken(width: int) -> None:
    text = f"Error: {LONG}.\n  s  {LONG}"
    lines = fold_message(text, width).split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_a_list_keeps_its_second_column() -> None:
    lines = fold_message("name  what it is and what it does", 20, hanging=True).split("\n")
    assert lines == ["name  what it is and", "      what it does"]


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize(("head", "count"), [("LINE 1: ", 4), ("LINE 1, column 42: ", 1)])
@pytest.mark.parametrize("word", ["SELECT", "FORM", "ffffffffff"])
def test_the_caret_points_at_its_word(width: int, head: str, count: int, word: str) -> None:
    first, _, shown, caret, last = fold_message(excerpt(head, LONG.index(word), count), width).split("\n")
    assert (first, last) == ("Parser Error: wrong", "Write it right.")
    assert max(len(shown), len(caret)) <= width
    assert shown.startswith(head)
    at = caret.index("^")
    seen = shown[at : at + 3].rstrip("…")
    assert seen
    assert word.startswith(seen)


def test_a_word_wider_than_the_screen_stays_whole() -> None:
    url = "https://example.com/" + "x" * 40
    assert url in fold_message(f"Look at {url} for more of it.", 30)
