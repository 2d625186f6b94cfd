"""Models of a database in memory are gone at its end, with all that lay on disk for them; a folder keeps them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.catalog.files import hold_lock
from sqlft.catalog.temporary import remove_abandoned
from sqlft.training import job

HANDLERS = [str(Path(__file__).parents[1] / "handlers")]
MODEL = "CREATE MODEL m PREDICT answer USING engine = 'echo'"
ASK = "SELECT answer FROM m WHERE content = 'x'"


def folder_of(con: sqlft.Connection) -> Path:
    return con.session.catalog.folder


def test_in_memory_is_gone_at_the_end(sqlft_home: Path) -> None:
    with sqlft.connect() as con:
        con.execute(MODEL)
        assert con.execute(ASK).fetchall() == [("x",)]
        folder = folder_of(con)
        assert (folder / "catalog.sqlite").exists()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    assert not (sqlft_home / "catalog.sqlite").exists()
    with sqlft.connect() as con:
        con.execute(MODEL)


def test_keys_that_were_given_go_too(sqlft_home: Path, training_control: Any) -> None:
    with sqlft.connect(warn=lambda text: None) as con:
        con.execute("CREATE ML_ENGINE mine FROM stranger USING api_key = 'sk-of-mine-1'")
        assert len(list((sqlft_home / "secrets").iterdir())) == 1
    assert list((sqlft_home / "secrets").iterdir()) == []


def test_two_connections_share_nothing_and_a_cursor_shares_all() -> None:
    with sqlft.connect() as one, sqlft.connect() as two:
        one.execute(MODEL)
        two.execute(MODEL)
        cursor = one.cursor()
        assert cursor.execute(ASK).fetchall() == [("x",)]
        cursor.close()
        assert one.execute(ASK).fetchall() == [("x",)]


def test_a_connection_that_nobody_has_any_more() -> None:
    con = sqlft.connect()
    con.execute(MODEL)
    folder, cursor = folder_of(con), con.cursor()
    del con
    assert cursor.execute(ASK).fetchall() == [("x",)]
    del cursor
    import gc

    gc.collect()
    assert not folder.exists()


def run(code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **more}
    )
    return done.stdout + done.stderr


def test_at_the_end_of_a_process_that_did_not_close(tmp_path: Path) -> None:
    code = f"import sqlft; con = sqlft.connect(); con.execute({MODEL!r}); print(con.session.catalog.folder)"
    folder = Path(run(code, TMPDIR=str(tmp_path)).strip())
    assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_fork_leaves_the_folder_alone() -> None:
    code = (
        f"import os, sqlft\ncon = sqlft.connect()\ncon.execute({MODEL!r})\n"
        "if (child := os.fork()) == 0:\n    raise SystemExit\n"
        f"os.waitpid(child, 0)\nprint(con.execute({ASK!r}).fetchall())"
    )
    assert run(code).strip() == "[('x',)]"


def test_attached_models_live_as_long_as_the_connection() -> None:
    raw = duckdb.connect()
    first = sqlft.attach(raw)
    first.execute(MODEL)
    folder = folder_of(first)
    first.close()
    assert sqlft.attach(raw).execute(ASK).fetchall() == [("x",)]
    raw.close()
    del raw, first
    import gc

    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_catalog_that_lasts(tmp_path: Path, kind: Any) -> None:
    place = kind(tmp_path / "models")
    for sql in (MODEL, ASK):
        with sqlft.connect(catalog=place) as con:
            con.execute(sql)
    raw = duckdb.connect()
    assert sqlft.attach(raw, catalog=place).execute(ASK).fetchall() == [("x",)]
    assert (tmp_path / "models" / "catalog.sqlite").exists()


@pytest.mark.parametrize("opened", ["sqlft.connect()", "sqlft.attach(raw)"])
def test_a_script_that_ends_while_it_trains_hears_of_it(training_control: Any, opened: str) -> None:
    training_control.script({1: "listen"})
    code = (
        f"import duckdb, sqlft\nraw = duckdb.connect()\ncon = {opened}\n"
        "con.execute(\"CREATE MODEL m PREDICT a USING engine = 'stranger', base = 'tiny',"
        " prompt_template = '{{q}}'\")\n"
        'con.execute("FINETUNE m FROM (SELECT i AS q, i AS a FROM range(60) t(i))'
        f" USING control = '{training_control.folder}', wait = false\")\nprint(con.session.catalog.folder)"
    )
    folder, *told = run(code, PYTHONPATH=os.pathsep.join([*HANDLERS, os.environ.get("PYTHONPATH", "")])).splitlines()
    assert not Path(folder).exists()
    assert any("The training of m.2 is " in line for line in told)


def test_a_training_in_the_background_ends_with_its_database(training_control: Any) -> None:
    notes: list[str] = []
    con = sqlft.connect(warn=notes.append)
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny', prompt_template = '{{q}}'")
    training_control.script({1: "listen"})
    con.execute(
        "FINETUNE m FROM (SELECT i AS q, i AS answer FROM range(60) t(i))"
        f" USING control = '{training_control.folder}', wait = false"
    )
    training_control.wait_for("at-1")
    folder = folder_of(con)
    notes.clear()
    con.close()
    [note] = notes
    assert note.startswith("The training of m.2 is cancelled")
    assert "sqlft.connect('app.duckdb')" in note
    assert not folder.exists()
    assert all(worker.process.wait(60) is not None for worker in job._workers)
    assert not folder.exists()


MAKER = """
import sys, sqlft
con = sqlft.connect(warn=lambda text: None)
con.execute("CREATE ML_ENGINE mine FROM stranger USING api_key = 'sk-of-mine-2'")
print(con.session.catalog.folder, flush=True)
sys.stdin.read()
print(con.execute("SELECT count(*) FROM sqlft.engines").fetchone()[0], flush=True)
"""


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_control: Any) -> Iterator[tuple[Any, Path]]:
    """A process with a database in memory, its folder below tmp_path, and where this process makes its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths = os.pathsep.join([*HANDLERS, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", MAKER], stdin=pipe, stdout=pipe, text=True, env=environment) as made:
        assert made.stdout is not None
        yield made, Path(made.stdout.readline().strip())
        made.kill()


def test_what_a_killed_process_left_goes_at_the_next_start(maker: tuple[Any, Path], sqlft_home: Path) -> None:
    process, folder = maker
    process.kill()
    process.wait()
    assert (folder / "catalog.sqlite").exists()
    with sqlft.connect() as con:
        assert not folder.exists()
        assert folder_of(con).exists()
    assert list((sqlft_home / "secrets").iterdir()) == []


def test_the_folder_of_a_process_that_lives_is_not_touched(maker: tuple[Any, Path]) -> None:
    process, folder = maker
    with sqlft.connect(), sqlft.connect():
        assert folder.exists()
    told, _ = process.communicate("")
    assert told == "1\n"
    assert not folder.exists()


def test_a_folder_in_which_somebody_still_trains_is_not_touched(maker: tuple[Any, Path]) -> None:
    process, folder = maker
    work = folder / "models" / "m" / "2.work"
    work.mkdir(parents=True)
    with hold_lock(work) as lock:
        assert lock is not None
        process.kill()
        process.wait()
        sqlft.connect().close()
        assert folder.exists()
    sqlft.connect().close()
    assert not folder.exists()


def test_a_fork_keeps_the_folder_of_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, sqlft\ncon = sqlft.connect()\nprint(con.session.catalog.folder, flush=True)\n"
        "if os.fork() == 0:\n    os.read(0, 1)\nelse:\n    os.kill(os.getpid(), 9)"
    )
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as parent:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().decode().strip())
        parent.wait()
        remove_abandoned(tmp_path)
        assert folder.exists()
        os.close(writer)
        assert parent.stdout.read() == b""  # the child has ended
    os.close(reader)
    remove_abandoned(tmp_path)
    assert not folder.exists()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("sqlft-being-made", "sqlft-notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.txt").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").touch()
    (tmp_path / "sqlft-link").symlink_to(elsewhere)
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.glob("sqlft-*"))) == 3
    assert (elsewhere / "owner.lock").exists()
