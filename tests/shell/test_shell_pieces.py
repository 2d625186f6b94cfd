"""An answer that is shown while it is written: at a terminal, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins

HANDLERS = Path(__file__).parent.parent / "handlers"
MODEL = "CREATE MODEL m PREDICT answer USING engine = 'scribe', pieces = true;"
ONE = "SELECT answer FROM m WHERE content = 'the cat sat';"


def test_an_answer_that_was_shown_while_it_was_written_is_not_shown_again(open_terminal: Callable[..., Any]) -> None:
    shell = open_terminal("shell")
    shell.prompt()
    shell.type(MODEL)
    shown = shell.type(ONE).replace("\r", "").rpartition(";\n")[2]
    assert shown.startswith("the cat sat\n")
    assert "┌" not in shown
    assert "┌" in shell.type(".last")
    assert shell.raw.count("\x1b[90mcat \x1b[0m") == 1
    again = shell.type(ONE).replace("\r", "").rpartition(";\n")[2]
    assert again.startswith("┌")  # a kept answer has no pieces


def test_a_result_of_more_columns_is_shown_below_the_answer(open_terminal: Callable[..., Any]) -> None:
    shell = open_terminal("shell")
    shell.prompt()
    shell.type(MODEL)
    shown = shell.type("SELECT answer, 1 AS n FROM m WHERE content = 'the cat sat';").replace("\r", "")
    assert "the cat sat\n┌" in shown


def test_what_would_move_the_cursor_is_shown_as_text(open_terminal: Callable[..., Any]) -> None:
    shell = open_terminal("shell")
    shell.prompt()
    shell.type(MODEL)
    shown = shell.type("SELECT answer FROM m WHERE content = 'a ' || chr(27) || '[2J b';")
    assert "\x1b[2J" not in shell.raw
    assert "\\x1b[2J" in shown


def test_several_answers_have_no_pieces(open_terminal: Callable[..., Any]) -> None:
    shell = open_terminal("shell")
    shell.prompt()
    shell.type(MODEL)
    assert "one two\r\n┌" not in shell.type("SELECT answer FROM m WHERE content IN ('one two', 'three four');")


def test_no_pieces_where_the_output_is_no_terminal(open_terminal: Callable[..., Any], tmp_path: Path) -> None:
    shell = open_terminal("shell", "-c", f"{MODEL} {ONE}", into="out.txt")
    assert shell.end() == 0
    assert "cat" not in shell.screen
    assert (tmp_path / "out.txt").read_text().count("the cat sat") == 1


def test_python_gets_the_pieces_of_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    pieces: list[str] = []
    con = sqlft.connect(piece=pieces.append)
    con.execute(MODEL)
    assert con.execute(ONE).fetchall() == [("the cat sat",)]
    assert pieces == ["the ", "cat ", "sat"]
    con.execute("CREATE OR REPLACE MODEL m PREDICT (a INTEGER) USING engine = 'scribe', pieces = true")
    pieces.clear()
    con.execute("SELECT a FROM m WHERE content = 'not json¦{\"a\": 1}'")
    assert (con.fetchall(), "".join(pieces)) == ([(1,)], "not json")  # what is mended is not written twice
    con.close()
    plugins.find_entry_points.cache_clear()
