"""Models of a database in memory are gone at its end, with all that lay on disk for them; a folder keeps them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
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


def test_keys_that_were_given_go_too(sqlft_home: Path, stranger: Any) -> None:
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
def test_a_script_that_ends_while_it_trains_hears_of_it(stranger: Any, opened: str) -> None:
    stranger.script({1: "listen"})
    code = (
        f"import duckdb, sqlft\nraw = duckdb.connect()\ncon = {opened}\n"
        "con.execute(\"CREATE MODEL m PREDICT a USING engine = 'stranger', base = 'tiny',"
        " prompt_template = '{{q}}'\")\n"
        'con.execute("FINETUNE m FROM (SELECT i AS q, i AS a FROM range(60) t(i))'
        f" USING control = '{stranger.control}', wait = false\")\nprint(con.session.catalog.folder)"
    )
    folder, *told = run(code, PYTHONPATH=os.pathsep.join([*HANDLERS, os.environ.get("PYTHONPATH", "")])).splitlines()
    assert not Path(folder).exists()
    assert any("The training of m.2 is " in line for line in told)


def test_a_training_in_the_background_ends_with_its_database(stranger: Any) -> None:
    notes: list[str] = []
    con = sqlft.connect(warn=notes.append)
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny', prompt_template = '{{q}}'")
    stranger.script({1: "listen"})
    con.execute(
        "FINETUNE m FROM (SELECT i AS q, i AS answer FROM range(60) t(i))"
        f" USING control = '{stranger.control}', wait = false"
    )
    stranger.wait_for("at-1")
    folder = folder_of(con)
    notes.clear()
    con.close()
    [note] = notes
    assert note.startswith("The training of m.2 is cancelled")
    assert "sqlft.connect('app.duckdb')" in note
    assert not folder.exists()
    assert all(worker.process.wait(60) is not None for worker in job._workers)
    assert not folder.exists()
