"""What `sqlft.connect` and `sqlft.attach` are given: files, locks, progress, and what is none of it."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.connection import progress
from sqlft.connection.progress import ConnectionWithProgress

MODEL = "CREATE MODEL m PREDICT answer USING engine = 'echo'"


class Screen(io.TextIOWrapper):
    """A terminal for stderr: what is written there is read at its other end."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self._read: list[bytes] = []
        super().__init__(os.fdopen(slave, "wb", buffering=0), "utf-8", write_through=True)

    def write(self, text: str) -> int:
        """As a terminal does, read it on the way: one that is full lets its writer wait."""
        written = super().write(text)
        while select.select([self.master], [], [], 0)[0]:
            self._read.append(os.read(self.master, 100_000))
        return written

    def read(self) -> str:
        """All that was written since the last time, a mark behind it."""
        self.write("\0")
        while not (text := b"".join(self._read)).endswith(b"\0"):
            self._read.append(os.read(self.master, 100_000))
        self._read.clear()
        return text[:-1].decode()


@pytest.fixture(autouse=True)
def bars_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bars are drawn from the first tick on; terminals are closed at the end."""
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "FRAME_SECONDS", 0.0)
    yield
    while _screens:
        screen = _screens.pop()
        screen.close()
        os.close(screen.master)


_screens: list[Screen] = []


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal as stderr, from now on: pytest puts its own there after fixtures have run."""
    screen = Screen()
    _screens.append(screen)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def rows_of(con: sqlft.Connection) -> list[Any]:
    con.execute(MODEL)
    return con.execute("SELECT m.answer FROM range(3) t(i) JOIN m ON m.content = i::VARCHAR ORDER BY ALL").fetchall()


def test_a_bar_while_a_statement_runs_and_none_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with sqlft.connect(progress=True) as con:
        assert rows_of(con) == [("0",), ("1",), ("2",)]
    told = screen.read()
    assert "asking m.1  3/3" in told
    assert told.endswith("\x1b[2K")  # the bar's line is empty
    assert told.rstrip().count("\x1b[?25h") == told.count("\x1b[?25l")  # the cursor is there again


def test_a_training_tells_its_estimate_and_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, connection_with_model: Any
) -> None:
    screen = terminal(monkeypatch)
    with sqlft.connect(progress=True, catalog=connection_with_model.folder) as con:
        con.execute(
            f"FINETUNE m FROM (FROM range(60) t(i) SELECT i AS question, i AS answer) "
            f"{using(connection_with_model)}, steps = 2"
        )
    told = screen.read()
    assert re.search(r" m\.2 (starting|training)  ", told)
    assert "m: 54 rows, 1,200 tokens, 2 steps, about " in told.partition(" m.2 ")[0]  # the estimate
    assert "m.2 is complete in " in told
    assert "EVALUATE MODEL m.1, m.2 ON (SELECT question, answer FROM …);" in told


def test_cursors_show_it_too_and_a_function_gets_ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen = terminal(monkeypatch)
    with sqlft.connect(progress=True) as con:
        assert isinstance(con.cursor(), ConnectionWithProgress)
        rows_of(con.cursor())
    assert "asking m.1  3/3" in screen.read()
    ticks: list[sqlft.Tick] = []
    with sqlft.connect(tmp_path / "app.duckdb", progress=ticks.append) as con:
        rows_of(con)
    assert ticks[-1] == sqlft.Tick("asking m.1", 3, 3)
    assert screen.read() == ""


@pytest.mark.parametrize("progress", [None, False])
def test_a_script_is_silent_unless_it_asks(monkeypatch: pytest.MonkeyPatch, progress: bool | None) -> None:
    screen = terminal(monkeypatch)
    with sqlft.connect(progress=progress) as con:
        rows_of(con)
    assert screen.read() == ""


def test_no_bar_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with sqlft.connect(progress=True) as con:
        rows_of(con)
        assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def notebook(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a kernel has: IPython with a kernel, and a stderr that is no terminal."""
    ipython, stream = ModuleType("IPython"), io.StringIO()
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_notebook_has_a_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = notebook(monkeypatch)
    with sqlft.connect() as con:
        assert rows_of(con) == [("0",), ("1",), ("2",)]
    drawn = stream.getvalue().split("\r")
    assert any(line.startswith(f"{'█' * 16} asking m.1  3/3") for line in drawn)
    assert "\x1b" not in stream.getvalue()
    assert drawn[-2].strip() == drawn[-1] == ""  # written over


def test_a_notebook_is_silent_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = notebook(monkeypatch)
    with sqlft.connect(progress=False) as con:
        rows_of(con)
    assert stream.getvalue() == ""


def test_a_warning_comes_in_place_of_the_bar(monkeypatch: pytest.MonkeyPatch, connection_with_model: Any) -> None:
    terminal(monkeypatch)
    with (
        sqlft.connect(progress=True, catalog=connection_with_model.folder) as con,
        pytest.warns(sqlft.SqlftWarning) as found,
    ):
        con.execute(
            f"FINETUNE m FROM (FROM range(3) t(i) SELECT i AS question, i AS answer) "
            f"{using(connection_with_model)}, steps = 1"
        )
    assert {w.filename for w in found if w.category is sqlft.SqlftWarning} == {__file__}


def using(connection_with_model: Any) -> str:
    return f"USING control = '{connection_with_model.training.folder}'"


def test_a_file_that_another_process_has_open(tmp_path: Path) -> None:
    file = tmp_path / "app.duckdb"
    code = f"import duckdb; con = duckdb.connect({str(file)!r}); print('open', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(sqlft.DatabaseLocked, match=f"open in another process .*process {holder.pid}") as found:
        sqlft.connect(file)
    assert f"sqlft models -d {file}" in found.value.next_step
    with pytest.raises(duckdb.IOException):  # as without sqlft
        sqlft.connect(file)
    holder.communicate("\n")
    sqlft.connect(file).close()


@pytest.mark.parametrize("method", ["table", "view"])
def test_a_model_or_a_view_over_models_by_its_name_alone(method: str) -> None:
    with sqlft.connect() as con:
        con.execute(MODEL)
        con.execute("CREATE TABLE words AS SELECT 'hello' AS content")
        con.execute("CREATE VIEW answers AS SELECT m.answer FROM words JOIN m ON m.content = words.content")
        read = getattr(con, method)
        assert read("answers").fetchall() == [("hello",)]
        with pytest.raises(sqlft.StatementError, match="The input 'content' of the model 'm' has no value"):
            read("m")
        with pytest.raises(duckdb.CatalogException, match="nothing"):
            read("nothing")
    assert sqlft.connect().execute("CREATE TABLE words AS SELECT 1 AS x").table("words").fetchall() == [(1,)]


def test_other_errors_of_duckdb_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(duckdb.IOException, match="does not exist") as found:
        sqlft.connect(tmp_path / "nothing.duckdb", read_only=True)
    assert type(found.value) is duckdb.IOException


@pytest.mark.parametrize(
    ("given", "next_step"),
    [
        ("my.duckdb", "sqlft.connect('my.duckdb')"),
        (Path("my.duckdb"), "sqlft.attach(duckdb.connect('my.duckdb'))"),
        (None, "sqlft.attach(duckdb.connect('app.duckdb'))"),
    ],
)
def test_attach_wants_a_connection(given: Any, next_step: str) -> None:
    with pytest.raises(sqlft.SqlftError, match="takes an open DuckDB connection") as found:
        sqlft.attach(given)
    assert next_step in found.value.next_step


def test_what_was_opened_read_only_says_how_to_write(tmp_path: Path) -> None:
    file = tmp_path / "app.duckdb"
    sqlft.connect(file).close()
    with sqlft.connect(file, read_only=True) as con, pytest.raises(sqlft.CatalogError, match="read-only") as found:
        con.execute(MODEL)
    assert "without read_only = True" in found.value.next_step
