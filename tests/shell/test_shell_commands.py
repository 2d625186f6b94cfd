"""Dot-commands that people know from DuckDB's shell, and help on statements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqlft import cli
from sqlft.shell.help import EXAMPLES, HEADINGS, explain_topic
from sqlft.shell.output.modes import MODES
from sqlft.sql import statements as s
from sqlft.sql.parser import parse
from sqlft.statements.run import RUNNERS

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs `sqlft shell` in tmp_path, a home without an rc: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*lines: str, options: tuple[str, ...] = ("--mode", "csv")) -> tuple[int, str, str]:
        Path("script.sql").write_text("\n".join(lines), encoding="utf-8")
        code = cli.main(["shell", *options, "-f", "script.sql"])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_open_closes_the_one_and_opens_the_other(shell: Shell) -> None:
    lines = ["CREATE TABLE t AS SELECT 1 AS a;", ".open b.duckdb", "CREATE TABLE u AS SELECT 2 AS b;", ".databases"]
    code, out, err = shell(*lines, ".open a.duckdb", "FROM u;")
    assert code == 1
    assert out.startswith("name,file,read_only,current\nb,")
    assert out.endswith("b.duckdb,false,true\n")
    assert "Table with name u does not exist" in err
    assert shell(".open b.duckdb", "FROM u;")[:2] == (0, "b\n2\n")


def test_a_database_that_cannot_be_opened_leaves_the_old_one(shell: Shell) -> None:
    Path("text.duckdb").write_text("no database" * 1000)
    assert shell(".open text.duckdb")[0] == 1


def test_once_and_output(shell: Shell) -> None:
    lines = [".output all.csv", "SELECT 1 AS a;", ".once one.csv", "SELECT 2 AS b;", "SELECT 3 AS c;", ".output"]
    assert shell(*lines, "SELECT 4 AS d;")[1] == "d\n4\n"
    assert Path("one.csv").read_text() == "b\n2\n"
    assert Path("all.csv").read_text() == "a\n1\nc\n3\n"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.csv", "a\n1\n"),
        ("a.json", '[{"a":1}]\n'),
        ("a.jsonl", '{"a":1}\n'),
        ("a.md", "| a |\n| ---: |\n| 1 |\n"),
        ("a.HTML", "<table>\n<tr><th>a</th></tr>\n<tr><td>1</td></tr>\n</table>\n"),
    ],
)
def test_a_files_ending_says_its_form_unless_a_mode_was_chosen(shell: Shell, name: str, written: str) -> None:
    lines = [f".once {name}", "SELECT 1 AS a;", f".output all-{name}", "SELECT 1 AS a;", ".once b.txt"]
    out = shell(*lines, "SELECT 2 AS b;", "SELECT 1 AS a;", ".output", "SELECT 4 AS d;", options=())[1]
    assert Path(name).read_text() == written
    assert Path(f"all-{name}").read_text() == written * 2
    assert "│" in Path("b.txt").read_text()
    assert "│" in out
    shell(".mode line", f".once {name}", "SELECT 1 AS a;", options=())
    assert Path(name).read_text() == "a = 1\n"


def test_import_makes_a_table_and_adds_to_it(shell: Shell) -> None:
    Path("rows.csv").write_text("a,b\n1,x\n2,y\n")
    imported = '.import rows.csv "my rows"'
    assert shell(imported, imported, 'SELECT count(*) AS n, max(b) AS b FROM "my rows";')[1] == "n,b\n4,y\n"


def test_last_shows_what_was_cut(shell: Shell) -> None:
    lines = [".maxrows 2", "SELECT i, repeat('x', 90) AS x FROM range(9) t(i);", ".last"]
    out = shell(*lines, options=("--mode", "table"))[1]
    cut, whole = out.split("(9 rows, 2 shown)\n")
    assert cut.count("x" * 90) == 2
    assert whole.count("x" * 90) == 9
    assert shell(".last")[0] == 1


def test_maxwidth_and_nullvalue(shell: Shell) -> None:
    out = shell(".maxwidth 30", "SELECT repeat('x', 90) AS x;", ".maxwidth", options=("--mode", "table"))[1]
    assert max(map(len, out.splitlines())) == 30
    assert out.endswith("\n30\n")
    assert shell(".nullvalue -", "SELECT NULL AS a, '' AS b;", ".nullvalue")[1] == 'a,b\n-,""\n-\n'
    assert " none │" in shell(".nullvalue none", "SELECT NULL AS a;", options=("--mode", "table"))[1]


def test_shell_takes_the_line_as_it_is(shell: Shell) -> None:
    code, out, err = shell(".shell echo \"two  blanks\" '$HOME' | tr b B", ".shell exit 3")
    assert (code, out) == (1, "two  Blanks $HOME\n")
    assert "ended with exit code 3" in err


def test_edit_runs_what_the_editor_saved(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "sed -i s/1/42/")
    assert shell("SELECT 1 AS a;", ".edit")[1] == "a\n1\na\n42\n"


def test_exit_in_a_script_and_habits(shell: Shell) -> None:
    for leave in ("exit", "quit;", "  EXIT ;", "\\q"):
        assert shell("SELECT 1 AS a;", leave, "SELECT 2 AS b;")[:2] == (0, "a\n1\n")
    assert shell("SELECT 1 AS", "exit", ";")[:2] == (0, "exit\n1\n")


def test_an_rc_is_read_first_and_options_go_before_it(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / ".sqlftrc").write_text(".mode json\nSET VARIABLE x = 7;\n")
    line = "SELECT getvariable('x') AS x;"
    assert shell(line, options=())[1] == '[{"x":7}]\n'
    assert shell(line, options=("-csv",))[1] == "x\n7\n"
    assert shell(line, options=("-csv", "--no-init"))[1] == "x\n\n"
    (tmp_path / ".sqlftrc").write_text(".mode nothing\n")
    code, _, err = shell(line, options=())
    assert code == 0
    assert "~/.sqlftrc, line 1: Error: There is no mode 'nothing'" in err


def test_a_command_that_is_not_here_is_not_guessed(shell: Shell) -> None:
    assert shell(".headers on")[2].endswith("Error: There is no command '.headers'.\n.help lists them.\n")
    assert ".plot takes CHART [MODEL]. The charts are loss, metrics, cost, speed." in shell(".plot")[2]


def test_a_statement_behind_the_file(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    for given in (["app.duckdb", "-markdown", "SELECT 1 AS a"], ["-markdown", "app.duckdb", "SELECT 1 AS a"]):
        assert cli.main(["shell", *given]) == 0
        assert capfd.readouterr().out == "| a |\n| ---: |\n| 1 |\n"


def test_the_command_line_knows_every_mode() -> None:
    assert tuple(MODES) == cli.MODES


# .help STATEMENT


@pytest.mark.parametrize("kind", [s.Plain, *RUNNERS, s.DropCache], ids=lambda kind: kind.__name__)
def test_every_statement_has_an_example_that_is_one(kind: type[s.Statement]) -> None:
    [statement] = parse(EXAMPLES[kind])
    assert type(statement) is kind
    assert kind in HEADINGS.values()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("finetune", "FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]"),
        ("FINETUNE", "validation_split  share of the rows kept"),
        ("finetune my_model", "Example:"),
        ("create model", "prompt_template  the prompt;"),
        ("model", "CREATE [OR REPLACE] MODEL"),
        ("create", ".help CREATE ML_ENGINE"),
        ("show", ".help SHOW PROJECTS"),
        ("show modles", ".help SHOW MODELS"),
        ("evaluate", "judge       the model that llm_judge asks"),
        ("analyze", "ANALYZE TRAINING DATA FROM"),
        ("SET sqlft_budget_usd", "SET sqlft_budget_usd = 5"),
        ("desc", "DESCRIBE [MODEL] name"),
        ("select", "max_cost_usd"),
        (".once", ".once FILE  write the result of the next statement to a file"),
    ],
)
def test_help_on_a_statement(shell: Shell, words: str, told: str) -> None:
    code, out, err = shell(f".help {words}")
    assert (code, err) == (0, "")
    assert told in out


def test_help_on_nothing_known(shell: Shell) -> None:
    code, _, err = shell(".help FINETUN")
    assert code == 1
    assert "There is no help on 'FINETUN'. Did you mean 'FINETUNE'?" in err


def test_help_fits_the_screen() -> None:
    for heading in HEADINGS:
        assert max(map(len, explain_topic(heading, 80))) <= 80, heading


@pytest.mark.parametrize("width", [60, 80])
def test_the_list_of_commands_fits_the_screen(shell: Shell, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = shell(".help", options=())[1]
    assert max(map(len, out.splitlines())) <= width
    assert "\n.output [FILE]" in out


def test_help_speaks_of_no_exceptions() -> None:
    told = [line for heading in HEADINGS for line in explain_topic(heading, 500)]
    assert not [line for line in told if "NotFound" in line or "Error" in line or "its row" in line]
