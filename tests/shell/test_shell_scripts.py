"""`sqlft shell` with -c, -f and pipes: order, exit codes, and which stream says what."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[Any]]
PATIENCE = 60
ENDLESS = "SELECT count(*) FROM range(1000000) a, range(10000000) b WHERE a.range * b.range = -1"
MODEL = "CREATE MODEL m PREDICT answer USING engine = 'counter', prompt_template = '{{content}}'"


def test_several_of_c_and_f_run_in_order(run_sqlft: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("INSERT INTO t VALUES (2);\nINSERT INTO t VALUES (3)")
    done = run_sqlft(
        *("shell", "--mode", "csv", "-c", "CREATE TABLE t (i INT); INSERT INTO t VALUES (1)"),
        *("-f", "a.sql", "-c", "SELECT i FROM t", "-c", "SELECT max(i) AS m FROM t;"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "i\n1\n2\n3\nm\n3\n", "")


def test_the_first_error_ends_it_with_its_caret_on_stderr(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "--mode", "csv", "-c", "SELECT 1 AS a; SELECT * FORM t; SELECT 2 AS b", "-c", "SELECT 3")
    assert (done.returncode, done.stdout) == (1, "a\n1\n")
    assert done.stderr.startswith("Parser Error: syntax error")
    assert "LINE 1: SELECT * FORM t" in done.stderr
    assert "\x1b" not in done.stderr


def test_an_error_of_ours_has_its_caret_and_the_next_step(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", "CREATE MODEL m PREDIC answer")
    message, line, caret, step = done.stderr.splitlines()
    assert done.returncode == 1
    assert message.startswith("Error: ")
    assert line.index("PREDIC ") == caret.index("^")
    assert step


def test_an_error_in_a_file_is_told_with_its_line(run_sqlft: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("SELECT 1;\n\n-- here\nSELECT nothing;\n")
    done = run_sqlft("shell", "-f", "a.sql")
    assert done.returncode == 1
    assert done.stderr.startswith("a.sql, line 4: Binder Error")


def test_a_file_that_is_read_stops_the_script_that_reads_it(run_sqlft: Run, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("SELECT nothing")
    done = run_sqlft("shell", "--mode", "csv", "-c", "SELECT 1 AS a;\n.read a.sql\nSELECT 2 AS b;")
    assert (done.returncode, done.stdout) == (1, "a\n1\n")
    assert done.stderr.count("Error") == 1


def test_what_is_piped_in_is_a_script(run_sqlft: Run) -> None:
    done = run_sqlft(stdin="\ufeff.mode csv\nSELECT 1 AS a;\nSELECT\n'x;' AS b\n; SELECT 3 AS c -- no end")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n1\nb\nx;\nc\n3\n", "")
    assert run_sqlft("shell", "-f", "-", stdin="SELEC 1").returncode == 1


def test_a_piped_statement_runs_before_the_next_one_comes(start_sqlft: Start) -> None:
    with start_sqlft("--mode", "csv", stdin=PIPE, stdout=PIPE, text=True) as shell:
        for number in ("1", "2"):
            shell.stdin.write(f"SELECT {number} AS a;\n")
            shell.stdin.flush()
            assert [shell.stdout.readline(), shell.stdout.readline()] == ["a\n", f"{number}\n"]


def test_no_colour_in_a_pipe(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", "SELECT NULL AS x, 'text' AS y; SELECT * FROM range(50)")
    assert "\x1b" not in done.stdout + done.stderr
    assert "NULL" in done.stdout
    assert "(50 rows, 40 shown)" in done.stdout


def test_a_long_result_is_counted_or_cut(run_sqlft: Run) -> None:
    assert run_sqlft("shell", "-c", "SELECT * FROM range(20000)").stdout.endswith("(20,000 rows, 40 shown)\n")
    assert (
        run_sqlft("shell", "-c", "SELECT * FROM range(1000000000000)")
        .stdout.splitlines()[-1]
        .startswith("(more than 1")
    )
    every = run_sqlft("shell", "-c", ".maxrows 0", "-c", "SELECT * FROM range(50)").stdout
    assert every.endswith("(50 rows)\n")


def test_json_and_csv_are_read_by_others(run_sqlft: Run) -> None:
    query = "SELECT i, i || E',\\n\"' AS s, [i, NULL] AS l, 'NaN'::DOUBLE AS n FROM range(5000) t(i)"
    rows = json.loads(run_sqlft("shell", "-c", query, "--mode", "json").stdout)
    assert rows[4999] == {"i": 4999, "s": '4999,\n"', "l": [4999, None], "n": None}
    table = list(csv.reader(io.StringIO(run_sqlft("shell", "-c", query, "--mode", "csv").stdout)))
    assert len(table) == 5001
    assert table[-1] == ["4999", '4999,\n"', "[4999, NULL]", "nan"]


def test_ten_thousand_columns_and_ten_megabytes(run_sqlft: Run) -> None:
    wide = "FROM (PIVOT (SELECT i FROM range(10000) t(i)) ON i USING sum(i))"
    setting = "SELECT current_setting('disabled_optimizers') AS x"
    done = run_sqlft("shell", "-c", wide, "-c", setting, "--mode", "csv")
    header, row, *after = done.stdout.splitlines()
    assert header == row
    assert header.count(",") == 9999
    assert after == ["x", '""']
    assert run_sqlft("shell", "-c", wide, COLUMNS="80").stdout.endswith("(1 row; 10,000 columns, 8 shown)\n")
    long = run_sqlft("shell", "-c", "SELECT repeat('x', 10000000) AS long", "--mode", "json").stdout
    assert len(json.loads(long)[0]["long"]) == 10_000_000


def test_results_go_to_a_file_and_back(run_sqlft: Run, tmp_path: Path) -> None:
    script = ".mode csv\n.output 'my file.csv'\nSELECT 1 AS a;\n.output\nSELECT 2 AS b;\n.output nowhere/x\n"
    done = run_sqlft("shell", stdin=script)
    assert done.stdout == "b\n2\n"
    assert (tmp_path / "my file.csv").read_text() == "a\n1\n"
    assert done.returncode == 1
    assert "nowhere/x cannot be written" in done.stderr


def test_tables_and_schema(run_sqlft: Run) -> None:
    script = "CREATE TABLE t (i INT);CREATE VIEW v AS SELECT 1 AS x;\n.mode csv\n.tables\n.tables v\n.schema t\n"
    done = run_sqlft("shell", "-c", script)
    header = "database,schema,name,kind,columns\n"
    table, view = "memory,main,t,table,1\n", "memory,main,v,view,1\n"
    assert done.stdout == f"{header}{table}{view}{header}{view}CREATE TABLE t(i INTEGER);\n"


def test_help_names_every_command(run_sqlft: Run) -> None:
    shown = run_sqlft("shell", "-c", ".help").stdout
    for name in ("help", "mode", "tables", "models", "schema", "timer", "read", "quit", "output", "maxrows"):
        assert f".{name}" in shown


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (".mod csv", "There is no command '.mod'. Did you mean '.mode'?"),
        (".mode cvs", "Did you mean 'csv'?"),
        (".read", ".read takes FILE."),
        (".read nothing.sql", "nothing.sql cannot be read: No such file or directory."),
        (".timer maybe", ".timer is on or off, not 'maybe'."),
        (".maxrows many", ".maxrows takes a number, not 'many'."),
    ],
)
def test_a_wrong_command_says_what_would_be_right(run_sqlft: Run, command: str, told: str) -> None:
    done = run_sqlft("shell", "-c", command)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr


def test_quit_ends_a_script_without_error(run_sqlft: Run) -> None:
    done = run_sqlft("shell", stdin=".mode csv\nSELECT 1 AS a;\n.quit\nSELECT nothing;\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n1\n", "")


def test_the_timer_speaks_on_stderr(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "--mode", "csv", "-c", ".timer on", "-c", "SELECT 1 AS a")
    assert done.stdout == "a\n1\n"
    assert done.stderr.startswith("Run Time (s): real ")


def test_warnings_of_a_statement_go_to_stderr(run_sqlft: Run) -> None:
    query = "SELECT t.i, m.answer FROM range(13) t(i) JOIN m ON m.content = 'q' || t.i USING mode = 'bad_rows'"
    done = run_sqlft("shell", "app.duckdb", "--mode", "csv", "-c", MODEL, "-c", "SELECT 1 AS a", "-c", query)
    assert done.returncode == 0, done.stderr
    assert "3,\n" in done.stdout
    assert "A:Q4" in done.stdout
    assert "1 of 13" in done.stderr


def test_a_model_is_asked_for_no_more_than_what_is_shown(run_sqlft: Run) -> None:
    run_sqlft("shell", "app.duckdb", "-c", MODEL)
    query = "SELECT t.i, m.answer FROM range(400000) t(i) JOIN m ON m.content = 'q' || t.i"
    done = run_sqlft("shell", "app.duckdb", "-c", query, "--mode", "table")
    assert "rows, 40 shown)" in done.stdout.splitlines()[-1]
    usage = run_sqlft("shell", "app.duckdb", "--mode", "csv", "-c", "SELECT calls FROM sqlft.usage")
    assert int(usage.stdout.split()[1]) < 400_000


def test_models_are_listed(run_sqlft: Run) -> None:
    run_sqlft("shell", "app.duckdb", "-c", MODEL)
    done = run_sqlft("shell", "app.duckdb", "--mode", "csv", "-c", ".models")
    assert done.stdout.splitlines()[1].startswith("m,1,true,complete,,,counter,")


def test_a_wide_answer_about_a_model_is_a_card(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", MODEL, "-c", "DESCRIBE m", COLUMNS="80")
    assert " NAME = m\n" in done.stdout
    assert "│" not in done.stdout


def test_python_variables_are_no_tables(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", "SELECT * FROM self")
    assert done.returncode == 1
    assert done.stderr.startswith("Catalog Error: Table with name self does not exist!")


@pytest.mark.parametrize("name", ["missing/app.duckdb", "text.duckdb"])
def test_a_database_that_cannot_be_opened(run_sqlft: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.duckdb").write_text("this is no database, but quite a long text" * 100)
    done = run_sqlft("shell", name, "-c", "SELECT 1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert name in done.stderr


def test_read_only(run_sqlft: Run) -> None:
    run_sqlft("shell", "app.duckdb", "-c", "CREATE TABLE t (i INT)")
    done = run_sqlft("shell", "app.duckdb", "--readonly", "-c", "SELECT count(*) FROM t", "-c", "DROP TABLE t")
    assert done.returncode == 1
    assert "read-only" in done.stderr


def test_text_that_is_no_utf8(run_sqlft: Run, start_sqlft: Start, tmp_path: Path) -> None:
    (tmp_path / "latin.sql").write_bytes(b"SELECT '\xe9';")
    assert "latin.sql is not UTF-8" in run_sqlft("shell", "-f", "latin.sql").stderr
    for arguments, stdin in (([b"-c", b"SELECT '\xe9'"], b""), ([], b"SELECT '\xe9';\n")):
        with start_sqlft("shell", *arguments, stdin=PIPE, stderr=PIPE) as shell:
            _, told = shell.communicate(stdin)
        assert shell.returncode == 1
        assert b"UTF-8" in told
        assert b"Traceback" not in told


def test_an_ascii_terminal_gets_ascii_boxes(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", "SELECT 'ü' AS a", PYTHONIOENCODING="ascii:replace")
    assert done.stdout.startswith("+---------+\n|    a    |\n")


def test_a_reader_that_leaves_is_no_error(start_sqlft: Start) -> None:
    query = "SELECT * FROM range(100000000)"
    with start_sqlft("shell", "--mode", "csv", "-c", query, stdout=PIPE, stderr=PIPE) as shell:
        assert shell.stdout.readline() == b"range\n"
        shell.stdout.close()
        assert (shell.wait(PATIENCE), shell.stderr.read()) == (141, b"")


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_disk_is_told(start_sqlft: Start, count: int) -> None:
    query = f"SELECT * FROM range({count})"
    with (
        open("/dev/full", "w") as full,
        start_sqlft("shell", "-c", query, stdout=full, stderr=PIPE, text=True) as shell,
    ):
        told = shell.stderr.read()
    assert shell.returncode == 1
    assert "No space left on device" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "statement",
    [ENDLESS, f"{MODEL}; SELECT answer FROM m WHERE content = 'x' USING mode = 'hangs'"],
    ids=["sql", "model"],
)
def test_ctrl_c_ends_a_script(start_sqlft: Start, statement: str) -> None:
    scripts = ("-c", "SELECT 'begun';", "-c", statement, "-c", "SELECT 'never'")
    with start_sqlft("shell", *scripts, stdout=PIPE, stderr=PIPE, text=True) as shell:
        while "begun" not in (line := shell.stdout.readline()):
            assert line
        shell.send_signal(signal.SIGINT)
        rest, told = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == 130
    assert "never" not in rest
    assert "Traceback" not in told
    assert "nterrupted" in told
