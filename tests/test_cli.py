"""The command `sqlft`: what it takes, prints and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sqlft.cli import main


def base_folder(working_folder: Path) -> Path:
    """As small as a model's folder can be."""
    working_folder.mkdir()
    (working_folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (working_folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return working_folder


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("sqlft 0.")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "shell" in out
    assert "pull" in out


def test_a_module_and_a_command_are_the_same(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "sqlft"], [str(Path(sys.executable).with_name("sqlft"))]):
        done = subprocess.run([*command, "-c", "SELECT 42 AS a", "--mode", "csv"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "a\n42\n", "")


def test_a_file_alone_opens_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new.duckdb", "-c", "CREATE TABLE t AS SELECT 42 AS a"]) == 0
    os.rename("new.duckdb", "old")
    assert main(["old", "-c", "FROM t", "--mode", "csv"]) == 0
    assert capsys.readouterr().out == "a\n42\n"


def test_a_mistyped_command_makes_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shel"]) == 2
    err = capsys.readouterr().err
    assert "Did you mean 'shell'?" in err
    assert "sqlft --help" in err
    assert list(tmp_path.iterdir()) == []


FILES = {
    "a.sql": b"SELECT 42 AS a;",
    "x.csv": b"a\n42\n",
    "notes.txt": "só".encode(),
    "book.xlsx": b"PK\x00\xff\xfe",
    "empty.duckdb": b"",
}


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files that are no databases."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.sql"], "a.sql is a text file of statements, not a DuckDB database.\nRun them: sqlft shell -f a.sql"),
        (["-c", ".open a.sql"], "in the shell: .read a.sql"),
        (["a.sql", "-c", "SELECT 1"], "on a database: sqlft app.duckdb -f a.sql"),
        (
            ["notes.txt"],
            "Run its statements: sqlft shell -f notes.txt. Read its rows: sqlft \"FROM read_csv('notes.txt')",
        ),
        (["book.xlsx"], "book.xlsx is no DuckDB database.\nName one"),
        (["empty.duckdb"], "empty.duckdb is empty, and no database.\nRemove it"),
        (["other.sql"], "There is no file other.sql.\nCheck its name"),
        (["shell", "other.csv"], "There is no file other.csv.\nCheck its name"),
        (["app.duckdb", "a.sql"], "a.sql is a file.\nRun its statements: sqlft app.duckdb -f a.sql"),
    ],
)
def test_a_file_that_is_no_database_says_what_to_type(
    working_folder: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert told in err
    assert {p.name for p in working_folder.iterdir()} == set(FILES)


@pytest.mark.parametrize(
    "arguments",
    [["-f", "a.sql"], ["FROM 'x.csv'"], ["shell", "FROM 'x.csv'"], ["x.csv", "FROM file"], ["SELECT 42 AS a;"]],
)
def test_files_are_read_as_the_message_says(
    working_folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--mode", "csv"]) == 0
    assert capsys.readouterr() == ("a\n42\n", "")
    assert {p.name for p in working_folder.iterdir()} == set(FILES)


@pytest.mark.parametrize(
    "arguments", [["shell", "--mode", "xml"], ["shell", "--nothing"], ["pull"], ["shell", "a", "SELECT 1", "b"]]
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: sqlft" in capsys.readouterr().err


def test_pull_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base_folder(tmp_path / "base")
    assert main(["pull", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{folder}\n", "")


def test_pull_of_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["pull", str(tmp_path / "empty")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert "config.json is missing" in err
