"""The shell at a terminal, typed into."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pexpect
import pytest

Open = Callable[..., Any]
ENDLESS = "SELECT count(*) FROM range(1000000) a, range(10000000) b WHERE a.range * b.range = -1;"


@pytest.fixture
def shell(open_terminal: Open) -> Any:
    """A shell at its first prompt."""
    made = open_terminal("shell")
    made.prompt()
    return made


def test_it_says_what_it_is_and_leaves_with_ctrl_d(open_terminal: Open, tmp_path: Path) -> None:
    shell = open_terminal("app.duckdb")
    shell.prompt()
    assert "sqlft 0." in shell.screen
    assert "DuckDB" in shell.screen
    assert "app.duckdb" in shell.screen
    shell.child.sendeof()
    assert shell.end() == 0
    assert (tmp_path / "app.duckdb").exists()


@pytest.mark.parametrize("leave", [".quit", "exit", "quit;", "\\q"])
def test_it_leaves_with_what_people_type(shell: Any, leave: str) -> None:
    shell.child.send(f"{leave}\r")
    assert shell.end() == 0


def test_a_statement_of_several_lines(shell: Any) -> None:
    shell.child.send("SELECT ';' AS a, -- ;\r")
    shell.child.expect(r"   \.\.\.> ")
    shell.child.send("$$x\r")
    shell.child.expect(r"   \.\.\.> ")
    written = shell.type(";$$ AS b;")
    assert "│ ;       │ x\\n;    │" in written


def test_the_prompt_names_the_project_in_use(shell: Any) -> None:
    shell.type("CREATE PROJECT shop;")
    shell.child.send("USE shop;\r")
    shell.child.expect("sqlft:shop> ")
    shell.child.send("USE mindsdb;\r")
    shell.prompt()


def test_two_statements_in_a_line_print_both(shell: Any) -> None:
    written = shell.type("SELECT 11 AS a; SELECT 22 AS b;")
    assert "11 │" in written
    assert "22 │" in written


def test_an_error_is_red_and_the_session_goes_on(shell: Any) -> None:
    before = len(shell.raw)
    shell.type("SELECT * FROM nowhere;")
    assert "\x1b[31mCatalog Error" in shell.raw[before:]
    assert "5 │" in shell.type("SELECT 5 AS a;")


def test_how_many_rows_were_changed_is_told(shell: Any) -> None:
    told = duckdb.__version__ >= "2"  # before, relations do not tell
    assert ("(3 rows)" in shell.type("CREATE TABLE t AS FROM range(3);")) is told
    assert ("(1 row)" in shell.type("DELETE FROM t WHERE range = 1;")) is told


def test_ctrl_c_stops_the_statement_and_keeps_the_session(shell: Any) -> None:
    shell.type("SET VARIABLE kept = 42;")
    shell.start(ENDLESS, "running")
    shell.child.sendintr()
    shell.child.expect("Interrupted")
    shell.prompt()
    assert "42 │" in shell.type("SELECT getvariable('kept') AS a;")


def test_ctrl_c_stops_the_statements_behind_it_too(shell: Any) -> None:
    shell.start(f"{ENDLESS} SELECT 'never' || ' this';", "running")
    shell.child.sendintr()
    shell.child.expect("Interrupted")
    shell.prompt()
    assert "never this" not in shell.screen


def test_ctrl_c_stops_a_long_output(shell: Any) -> None:
    shell.type(".mode csv")
    shell.start("SELECT * FROM range(1000000000);", "10000\r")
    shell.child.sendintr()
    shell.child.expect("Interrupted")
    shell.prompt()
    assert "42" in shell.type("SELECT 42 AS a;")


def test_ctrl_c_stops_a_model_that_does_not_answer(shell: Any) -> None:
    shell.type("CREATE MODEL m PREDICT answer USING engine = 'counter', prompt_template = '{{content}}';")
    shell.start("SELECT answer FROM m WHERE content = 'x' USING mode = 'hangs';", "running .* 0:0")
    shell.child.sendintr()
    shell.child.expect("Interrupted")
    shell.prompt()
    assert "A:X " in shell.type("SELECT answer FROM m WHERE content = 'x';")


def test_ctrl_c_at_the_prompt_drops_what_was_typed(shell: Any) -> None:
    shell.child.send("SELECT 1 +")
    shell.child.sendintr()
    shell.child.expect(r"\x1b\[\?2004l")
    shell.prompt()
    assert "7 │" in shell.type("SELECT 7 AS a;")


def test_what_is_typed_ahead_waits_for_the_prompt(shell: Any) -> None:
    before = len(shell.raw)
    shell.child.send("SELECT count(*) AS first_one FROM range(2000000000) t(i) WHERE i % 7 = 3;\r")
    shell.child.expect(r"\x1b\[\?2004l")
    shell.child.send("SELECT 33 AS typed_ahead;\r")
    shell.child.expect("285714286")
    assert "typed_ahead" not in shell.raw[before:].partition("first_one")[2].partition("285714286")[0]
    shell.child.expect("33 ")
    shell.prompt()
    assert "44 │" in shell.type("SELECT 44 AS a;")


@pytest.mark.parametrize("columns", [60, 120])
def test_messages_are_folded_between_words(open_terminal: Open, columns: int) -> None:
    shell = open_terminal("shell", columns=columns)
    shell.prompt()
    wrong = "SELECT aaaaaaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbb, ccccccccc FORM dddddddddd, eeeeeeeeeeeeeee"
    written = shell.type(f"{wrong};").replace("\r", "")
    caret = next(line for line in written.split("\n") if line.strip(" ^") == "" and "^" in line)
    excerpt = next(line for line in written.split("\n") if line.startswith("LINE 1: "))
    assert len(excerpt) <= columns
    assert excerpt[caret.index("^") :].startswith("dddd")
    written = shell.type("CREATE MODEL m PREDICT answer USING engine = 'echo', nonsense = 1;").replace("\r", "")
    told = written.partition("Error: ")[2]
    assert max(map(len, told.split("\n"))) <= columns
    assert "It takes:" in told


def test_open_says_what_is_open_and_what_was_left(open_terminal: Open, tmp_path: Path) -> None:
    shell = open_terminal("app.duckdb")
    shell.prompt()
    shell.type("CREATE MODEL m PREDICT answer USING engine = 'counter', prompt_template = '{{content}}';")
    written = shell.type(".open")
    assert "in memory" in written
    assert "There is no model yet" in written
    written = shell.type(".open app.duckdb")
    assert "app.duckdb\r" in written.partition(".open app.duckdb")[2]
    assert "Ask a model: SELECT answer FROM m" in written


def test_tab_completes_and_enter_runs_what_is_complete(open_terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "steps.sql").write_text("SELECT 40 + 2 AS a;")
    for name in ("days.csv", "dates.csv"):
        (tmp_path / name).write_text("b\n77\n")
    shell = open_terminal("shell")
    shell.prompt()
    shell.child.send(".read st\t")
    shell.child.expect("eps.")
    assert "42 │" in shell.type("")
    shell.child.send("SELECT * FROM 'da\t")
    shell.child.expect("dates.csv")
    shell.child.send("\t")
    shell.child.expect("tes.csv")
    shell.child.send("\r")  # takes the choice, and makes no new line
    assert "77 │" in shell.type(";")
    assert "...>" not in shell.screen


def test_a_training_shows_its_losses_and_stops_at_ctrl_c(open_terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"2": "listen"}))
    shell = open_terminal("app.duckdb", columns=140)
    shell.prompt()
    shell.type("CREATE MODEL m PREDICT answer USING engine = 'stranger', prompt_template = '{{question}}';")
    rows = "SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)"
    shell.start(f"FINETUNE m FROM ({rows}) USING control = '{tmp_path}';", "loss 0.5  valid_loss 1")
    assert "m.2 training" in shell.screen
    assert "2/4" in shell.screen
    shell.child.sendintr()
    shell.child.expect("Stop the training of m.2")
    shell.child.send("s\r")
    shell.child.expect("was stopped at step 2 of 4")
    shell.child.expect("RESUME MODEL m.2")
    shell.prompt()
    (tmp_path / "go").touch()
    assert "complete" in shell.type("RESUME MODEL m.2;")


@pytest.mark.parametrize("answer", ["b", "n", "no", "", "again"])
def test_ctrl_c_asks_what_shall_become_of_a_training(open_terminal: Open, tmp_path: Path, answer: str) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"2": "listen"}))
    shell = open_terminal("app.duckdb", columns=140)
    shell.prompt()
    shell.type("CREATE MODEL m PREDICT answer USING engine = 'stranger', prompt_template = '{{question}}';")
    rows = "SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)"
    shell.start(f"FINETUNE m FROM ({rows}) USING control = '{tmp_path}';", "2/4")
    shell.child.sendintr()
    shell.child.expect("continue here .also Enter.: ")
    if answer == "again":
        shell.child.sendintr()
        shell.child.expect("was stopped at step 2 of 4")
    elif answer == "b":
        shell.child.send("b\r")
        shell.child.expect("m.2 trains in the background")
        shell.prompt()
        (tmp_path / "go").touch()
        return
    else:
        shell.child.send(f"{answer}\r")
        (tmp_path / "go").touch()
        shell.child.expect("complete")
    shell.prompt()
    assert "7 │" in shell.type("SELECT 7 AS a;")


def test_null_is_not_the_text_null(shell: Any) -> None:
    before = len(shell.raw)
    shell.type("SELECT NULL::VARCHAR AS a, 'NULL' AS b;")
    assert shell.raw[before:].count("\x1b[90mNULL") == 1


def test_tables_fit_the_screen(open_terminal: Open) -> None:
    shell = open_terminal("shell", columns=60)
    shell.prompt()
    written = shell.type("SELECT * FROM (PIVOT (SELECT i FROM range(30) t(i)) ON i USING sum(i));")
    boxes = [line for line in written.splitlines() if line.startswith(("┌", "│", "└"))]
    assert len(boxes) == 5
    assert all(len(line) <= 60 for line in boxes)
    assert "… │" in written


def test_a_dot_command_and_the_mode_stay(shell: Any) -> None:
    shell.type(".mode line")
    assert "a = 1" in shell.type("SELECT 1 AS a, 'x' AS b;")
    assert ".maxrows" in shell.type(".help")
    assert "Did you mean '.timer'" in shell.type(".timr on")
    shell.type(".timer on")
    assert "Run Time (s): real" in shell.type("SELECT 1 AS a;")


def test_tab_completes(shell: Any) -> None:
    shell.type("CREATE TABLE zebras (stripes INTEGER);")
    shell.child.send("SELECT * FROM zeb\t")
    shell.child.expect("ras")
    assert "stripes" in shell.type(" LIMIT 0;")


def test_the_next_session_remembers_without_secrets(open_terminal: Open, sqlft_home: Path) -> None:
    shell = open_terminal("shell")
    shell.prompt()
    shell.type("SELECT 'remember me' AS api_key, 'but' AS x WHERE 'a' <> 'b';")
    shell.type("CREATE ML_ENGINE e FROM stranger USING api_key = 'sk-this-is-very-secret';")
    shell.child.sendeof()
    shell.end()
    kept = (sqlft_home / "history").read_text()
    assert "remember me" in kept
    assert "CREATE ML_ENGINE e FROM stranger USING api_key = '********';" in kept
    assert "very-secret" not in kept
    again = open_terminal("shell")
    again.prompt()
    again.child.send("\x1b[A\x1b[A")
    again.child.expect("remember me")


def test_a_secret_is_masked_for_the_arrow_keys_too(shell: Any) -> None:
    shell.type("CREATE ML_ENGINE e FROM stranger USING api_key = 'sk-this-is-very-secret';")
    before = len(shell.raw)
    shell.child.send("\x1b[A")
    shell.child.expect(r"\*\*\*\*")
    assert "very-secret" not in shell.raw[before:]


def test_the_prompt_is_seen_where_results_go_to_a_file(open_terminal: Open, tmp_path: Path) -> None:
    shell = open_terminal("shell", into="results.csv")
    shell.prompt()
    shell.type(".mode csv")
    shell.type("SELECT 42 AS a;")
    shell.child.sendeof()
    shell.child.expect(pexpect.EOF)
    assert (tmp_path / "results.csv").read_text() == "a\n42\n"


def test_colour_only_where_it_is_wanted(open_terminal: Open) -> None:
    arguments = ("shell", "-c", "SELECT NULL::VARCHAR AS a; SELECT nothing")
    coloured = open_terminal(*arguments)
    assert coloured.end() == 1
    assert "\x1b[90mNULL" in coloured.raw
    assert "\x1b[31mBinder Error" in coloured.raw
    plain = open_terminal(*arguments, NO_COLOR="1")
    assert plain.end() == 1
    assert "\x1b" not in plain.raw
