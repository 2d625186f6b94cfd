"""Trainings seen and steered from another terminal, and what a shell says of them when it starts and ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqlft.catalog.records import VersionKey
from sqlft.errors import DatabaseLocked
from sqlft.shell.reminders import remind_at_end, remind_at_start
from sqlft.shell.shell import Location
from sqlft.training.follow import describe_outcome

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MODEL = "CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny', prompt_template = '{{question}}'"
ROWS = "SELECT 'q' || i AS question, 'a' || i AS answer FROM range(60) t(i)"


def test_a_second_terminal_watches_cancels_and_resumes(
    run_sqlft: Run, start_sqlft: Callable[..., Any], tmp_path: Path, until: Callable[..., Any]
) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"2": "listen"}))
    tune = f"FINETUNE m FROM ({ROWS}) USING control = '{tmp_path}'"
    with start_sqlft(
        "app.duckdb", "-c", MODEL, "-c", tune, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as trains:
        until((tmp_path / "at-2").exists)
        locked = run_sqlft("app.duckdb", "-c", "SHOW MODELS")
        assert locked.returncode == 1
        assert "app.duckdb is open in another process" in locked.stderr
        assert "sqlft models -d app.duckdb" in locked.stderr
        listed = run_sqlft("models", "-d", "app.duckdb", "-csv")
        assert "m,2,false,training,2 of 4,0.5,stranger" in listed.stdout
        cancelled = run_sqlft("cancel", "-d", "app.duckdb", "-csv")
        assert (cancelled.returncode, cancelled.stderr) == (0, "")
        assert "m,stranger,mindsdb,false,2,cancelled" in cancelled.stdout
        assert "was cancelled at step 2 of 4" in trains.communicate()[1].decode()
    nothing = run_sqlft("watch", "-d", "app.duckdb")
    assert (nothing.returncode, nothing.stderr.splitlines()[0]) == (1, "Error: No version trains.")
    (tmp_path / "go").touch()
    resumed = run_sqlft("resume", "m", "-d", "app.duckdb", "-csv")
    assert "m,stranger,mindsdb,true,2,complete" in resumed.stdout
    ended = run_sqlft("watch", "m.2", "-d", "app.duckdb")
    assert ended.returncode == 0
    assert "m.2 is complete in" in ended.stderr
    assert "EVALUATE MODEL m.1, m.2 ON (SELECT question, answer FROM …);" in ended.stderr


def test_what_is_not_there(run_sqlft: Run) -> None:
    assert "There is no file nothing.duckdb." in run_sqlft("models", "-d", "nothing.duckdb").stderr
    run_sqlft("app.duckdb", "-c", MODEL)
    done = run_sqlft("cancel", "n.2", "-d", "app.duckdb")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Error: There is no model or version 'n.2'.")


def test_the_lock_error_names_who_has_it() -> None:
    text = 'Could not set lock on file "a.duckdb": Conflicting lock is held in /usr/bin/python3.11 (PID 77). See also'
    assert DatabaseLocked.from_duckdb("a.duckdb", text).message == (
        "a.duckdb is open in another process (python3.11, process 77), and only one may have it."
    )


def test_after_a_training_its_losses_cost_and_the_next_statement(connection_with_model: Any) -> None:
    pytest.importorskip("scipy", reason="the extra [evaluation] is not installed")
    told: list[str] = []
    connection_with_model.con.session.show_notice = told.append
    connection_with_model.train("steps = 2")
    [done, following] = told[-2:]
    assert done.startswith("m.2 is complete in ")
    assert "; loss 1 → 0.5; validation loss 2 → 1; cost $" in done
    assert following == (
        "Is it better? On rows that it has not learnt: EVALUATE MODEL m.1, m.2 ON (SELECT question, answer FROM …);"
    )
    assert connection_with_model.run(following.partition(": ")[2].replace("…", "rows").rstrip(";"))


def test_names_that_need_quotes_have_them(connection_with_model: Any) -> None:
    connection_with_model.run(
        """CREATE MODEL n PREDICT "order" USING engine = 'stranger', base = 'tiny',"""
        " prompt_template = '{{Input Column}}'"
    )
    connection_with_model.run("""FINETUNE n FROM (SELECT question AS "Input Column", answer AS "order" FROM rows)""")
    last = list(describe_outcome(connection_with_model.con.session, connection_with_model.catalog.versions()[-1]))[-1]
    assert 'ON (SELECT "Input Column", "order" FROM …)' in last


def test_a_shell_says_what_was_left_and_what_comes_next(connection_with_model: Any) -> None:
    assert list(remind_at_start(connection_with_model.catalog)) == [
        "Ask a model: SELECT answer FROM m WHERE question = '…';"
    ]
    connection_with_model.train("steps = 2")
    key: VersionKey = connection_with_model.catalog.versions()[-1].key
    step = {"step": 4, "total_steps": 23}
    connection_with_model.catalog.update_version(key, status="interrupted", progress=step)
    assert list(remind_at_start(connection_with_model.catalog)) == [
        "m.2 was interrupted at step 4 of 23. Go on with it: RESUME MODEL m.2;"
    ]
    connection_with_model.run("DROP MODEL m")
    assert list(remind_at_start(connection_with_model.catalog)) == [
        "There is no model yet. How one is made: .help CREATE MODEL"
    ]


def test_what_trains_in_memory_is_cancelled_when_the_shell_is_left(run_sqlft: Run, tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"1": "listen"}))
    tune = f"FINETUNE m FROM ({ROWS}) USING control = '{tmp_path}', wait = false"
    left = run_sqlft("-c", MODEL, "-c", tune)
    assert left.returncode == 0
    assert "The training of m.2 is cancelled" in left.stderr
    assert run_sqlft("-c", "SELECT count(*) AS models FROM sqlft.models", "-csv").stdout == "models\n0\n"


def test_a_catalog_of_its_own_is_seen_from_another_terminal(run_sqlft: Run) -> None:
    run_sqlft("--catalog", "models", "-c", MODEL)
    listed = run_sqlft("models", "--catalog", "models", "-csv")
    assert listed.stdout.splitlines()[1].startswith("m,1,true,complete")
    nowhere = run_sqlft("models")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "-d app.duckdb, --catalog folder" in nowhere.stderr
    assert "There is no folder missing." in run_sqlft("models", "--catalog", "missing").stderr


def test_a_shell_that_is_left_says_what_trains_on(connection_with_model: Any, until: Callable[..., Any]) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-2")
    until(lambda: connection_with_model.catalog.versions()[-1].progress.get("step") == 2)
    [line] = remind_at_end(connection_with_model.catalog, Location("app.duckdb"))
    assert line == "m.2 trains on in the background at step 2 of 4: sqlft watch m.2 -d app.duckdb"
    assert next(iter(remind_at_start(connection_with_model.catalog))) == (
        "m.2 trains in the background at step 2 of 4. Stop it: CANCEL MODEL m.2;"
    )
    connection_with_model.training.go()
    until(lambda: connection_with_model.catalog.versions()[-1].status == "complete")
    assert list(remind_at_end(connection_with_model.catalog, Location("app.duckdb"))) == []
