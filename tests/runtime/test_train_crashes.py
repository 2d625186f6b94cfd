"""Life and death of trainings: real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import psutil
import pytest

from sqlft.errors import Cancelled, CatalogError, HandlerError, ProviderError


def pids(connection_with_model: Any) -> list[int]:
    """Processes that train for this catalog."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(connection_with_model.catalog.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def first_step(connection_with_model: Any, number: int) -> int:
    """The step at which the run that completed a version began."""
    return int(connection_with_model.version(number).details["first_step"])


def test_in_the_background(connection_with_model: Any, until: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    assert connection_with_model.version(2).status in ("queued", "training")
    connection_with_model.training.wait_for("at-2")
    assert connection_with_model.version(2).status == "training"
    until(lambda: connection_with_model.run("SELECT max(step) FROM sqlft.metrics") == [(2,)])
    assert connection_with_model.ask("q1") == "tiny does not know"
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"
    assert connection_with_model.ask("q1") == "a1"


def test_cancel_from_another_process_and_resume(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-3")
    other = connection_with_model.start_process("print(con.execute('CANCEL MODEL m.2').fetchall())")
    assert "cancelled" in other.communicate()[0]
    assert other.returncode == 0
    second = connection_with_model.version(2)
    assert (second.status, second.error) == ("cancelled", "Stopped on request.")
    assert connection_with_model.ask("q1") == "tiny does not know"
    connection_with_model.training.script({})
    connection_with_model.run("RESUME MODEL m.2")
    assert connection_with_model.version(2).status == "complete"
    assert first_step(connection_with_model, 2) == 3
    assert connection_with_model.ask("q1") == "a1"
    assert (second.details["steps"], connection_with_model.version(2).details["steps"]) == (3, 4)
    assert connection_with_model.version(2).seconds > second.seconds > 0
    assert [v.key.number for v in connection_with_model.catalog.versions()] == [1, 2]


def test_a_secret_of_resume_is_not_written_beside_the_rows(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-2")
    connection_with_model.run("CANCEL MODEL m.2")
    key = connection_with_model.wait_until_ended(2).key
    connection_with_model.training.script({3: "listen"})
    connection_with_model.run("RESUME MODEL m.2 USING wait = false, hub_token = 'hf_of_nobody_else'")
    connection_with_model.training.wait_for("at-3")
    written = (connection_with_model.catalog.work_folder(key) / "job.json").read_text(encoding="utf-8")
    connection_with_model.run("CANCEL MODEL m.2")
    assert "hub_token" in written
    assert "hf_of_nobody_else" not in written


def test_a_resumed_training_costs_what_all_its_parts_cost(connection_with_model: Any) -> None:
    connection_with_model.run("CREATE PRICE FOR stranger USING machine_usd_per_hour = 3600")
    connection_with_model.training.script({3: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-3")
    connection_with_model.run("CANCEL MODEL m.2")
    first = connection_with_model.wait_until_ended(2)
    assert first.details["cost_usd"] == pytest.approx(first.seconds, rel=0.2)
    connection_with_model.training.script({})
    connection_with_model.run("RESUME MODEL m.2")
    whole = connection_with_model.version(2)
    assert whole.details["cost_usd"] > first.details["cost_usd"]
    assert whole.details["cost_usd"] == pytest.approx(whole.seconds, rel=0.2)


def test_ctrl_c_while_waiting(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})

    def on_tick(tick: Any) -> None:
        if tick.done == 3 and "training" in tick.label:
            raise KeyboardInterrupt

    connection_with_model.on_tick = on_tick
    with pytest.raises(Cancelled, match=r"stopped at step 3 of 4[^$]*RESUME MODEL m\.2"):
        connection_with_model.train()
    assert connection_with_model.version(2).status == "cancelled"
    assert pids(connection_with_model) == []
    connection_with_model.on_tick = connection_with_model.ticks.append
    connection_with_model.training.go()
    connection_with_model.run("RESUME MODEL m.2")
    assert first_step(connection_with_model, 2) == 3


def test_a_second_ctrl_c_does_not_wait(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "deaf"})

    def on_tick(tick: Any) -> None:
        if tick.done == 3:
            raise KeyboardInterrupt

    connection_with_model.on_tick = on_tick
    with pytest.raises(Cancelled, match=r"RESUME MODEL m\.2"):
        connection_with_model.train()
    assert connection_with_model.version(2).status == "cancelled"
    assert pids(connection_with_model) == []


def test_interrupt_from_a_thread(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})

    def interrupt() -> None:
        connection_with_model.training.wait_for("at-3")
        connection_with_model.con.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Cancelled):
        connection_with_model.train()
    thread.join()
    assert connection_with_model.version(2).status == "cancelled"


def test_sigint_at_the_terminal(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    code = "try:\n    con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')\n"
    other = connection_with_model.start_process(code + "except sqlft.Cancelled as e:\n    print(e)")
    connection_with_model.training.wait_for("at-3")
    other.send_signal(signal.SIGINT)
    said, errors = other.communicate()
    assert "RESUME MODEL m.2" in said, errors
    assert connection_with_model.version(2).status == "cancelled"


def test_a_killed_worker(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "kill"})
    with pytest.raises(HandlerError, match=r"SIGKILL[^$]*RESUME MODEL m\.2"):
        connection_with_model.train()
    second = connection_with_model.version(2)
    assert second.status == "interrupted"
    assert connection_with_model.ask("q1") == "tiny does not know"
    assert not connection_with_model.catalog.artifact_folder(second.key).exists()
    connection_with_model.training.script({})
    connection_with_model.run("RESUME MODEL m.2")
    assert (connection_with_model.version(2).status, connection_with_model.version(2).error) == ("complete", None)
    assert first_step(connection_with_model, 2) == 3


def test_a_killed_worker_in_the_background(connection_with_model: Any, until: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    connection_with_model.train("wait = false")
    os.kill(connection_with_model.training.wait_for("at-3"), signal.SIGKILL)
    assert connection_with_model.wait_until_ended(2).status == "interrupted"
    assert connection_with_model.run("SELECT status FROM sqlft.versions WHERE version = 2") == [("interrupted",)]
    connection_with_model.run("CANCEL MODEL m.2")
    assert connection_with_model.version(2).status == "cancelled"


def test_a_worker_that_ends_by_itself(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "exit"})
    with pytest.raises(HandlerError, match=r"exit code 3: the stranger gives up \(log: "):
        connection_with_model.train()
    assert connection_with_model.version(2).status == "interrupted"


def test_a_killed_session(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    other = connection_with_model.start_process("con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')")
    connection_with_model.training.wait_for("at-3")
    other.kill()
    other.communicate()
    second = connection_with_model.wait_until_ended(2)
    assert (second.status, second.error) == ("interrupted", "The session that started it ended.")
    assert connection_with_model.catalog.model(second.key.model).active == 1
    connection_with_model.training.go()
    connection_with_model.run("RESUME MODEL m.2")
    assert first_step(connection_with_model, 2) == 3


def test_a_killed_session_and_a_handler_that_does_not_listen(connection_with_model: Any, until: Any) -> None:
    connection_with_model.training.script({3: "deaf"})
    other = connection_with_model.start_process("con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')")
    connection_with_model.training.wait_for("at-3")
    other.kill()
    other.communicate()
    assert connection_with_model.wait_until_ended(2).status == "interrupted"
    until(lambda: pids(connection_with_model) == [])


def test_cancel_of_a_handler_that_does_not_listen(connection_with_model: Any, until: Any) -> None:
    connection_with_model.training.script({3: "deaf"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-3")
    connection_with_model.run("CANCEL MODEL m")
    assert connection_with_model.version(2).status == "cancelled"
    until(lambda: pids(connection_with_model) == [])


@pytest.mark.parametrize("ending", ["", "con.close()", "raise ValueError('my script is wrong')"])
def test_a_session_that_ends_in_order_lets_it_go_on(connection_with_model: Any, ending: str) -> None:
    connection_with_model.training.script({3: "listen"})
    other = connection_with_model.start_process(
        f"con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {{using}}, wait = false')\n{ending}"
    )
    other.communicate()
    connection_with_model.training.wait_for("at-3")
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"


def test_a_closed_session_that_is_killed_later(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    code = "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, wait = false')\ncon.close()\n"
    connection_with_model.start_process(code + "import os\nos.kill(os.getpid(), 9)").communicate()
    connection_with_model.training.wait_for("at-3")
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"


@pytest.mark.parametrize("script", ["wrap", "swallow"])
def test_a_handler_that_hides_the_cancelling(connection_with_model: Any, script: str) -> None:
    connection_with_model.training.script({4: script})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-4")
    connection_with_model.run("CANCEL MODEL m.2")
    assert connection_with_model.version(2).status == "cancelled"


def test_what_a_handler_raises(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "refuse"})
    with pytest.raises(
        ProviderError, match=r"The training of m\.2 failed: The provider is closed on Sundays\.\nCome back"
    ):
        connection_with_model.train()
    connection_with_model.training.script({2: "memory"})
    with pytest.raises(HandlerError, match=r"m\.3 failed: The training ran out of memory\.\n.*smaller batch_size"):
        connection_with_model.train()
    connection_with_model.training.script({2: "nospace"})
    with pytest.raises(HandlerError, match=r"The disk is full[^$]*Free some space"):
        connection_with_model.train()
    assert [v.status for v in connection_with_model.catalog.versions()] == ["complete", "failed", "failed", "failed"]
    assert connection_with_model.version(2).error == "The provider is closed on Sundays.\nCome back on Monday."
    connection_with_model.training.script({})
    assert connection_with_model.version(2).details["error_type"] == "ProviderError"
    connection_with_model.run("RESUME MODEL m.2 USING wait = true")
    assert "error_type" not in connection_with_model.version(2).details
    connection_with_model.run("RESUME MODEL m.3")
    assert connection_with_model.catalog.model(connection_with_model.version(3).key.model).active == 3
    connection_with_model.run("DROP MODEL m.4")
    connection_with_model.train()
    assert [v.key.number for v in connection_with_model.catalog.versions()] == [1, 2, 3, 5]


def test_two_sessions_train_one_model(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    code = "print(con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, steps = 3').fetchall())"
    others = [connection_with_model.start_process(code) for _ in range(2)]
    connection_with_model.training.wait_for("at-2")
    connection_with_model.ticks.clear()
    connection_with_model.training.go()
    for other in others:
        assert "complete" in other.communicate()[0]
    assert [(v.key.number, v.status) for v in connection_with_model.catalog.versions()] == [
        (1, "complete"),
        (2, "complete"),
        (3, "complete"),
    ]


def test_resume_is_for_what_was_stopped(connection_with_model: Any) -> None:
    with pytest.raises(CatalogError, match="it is complete"):
        connection_with_model.run("RESUME MODEL m.1")
    with pytest.raises(CatalogError, match="nothing to cancel"):
        connection_with_model.run("CANCEL MODEL m.1")
    with pytest.raises(CatalogError, match="No version of m"):
        connection_with_model.run("CANCEL MODEL m")
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    with pytest.raises(CatalogError, match="trains right now"):
        connection_with_model.run("RESUME MODEL m.2")
    connection_with_model.training.go()
    connection_with_model.wait_until_ended(2)


def test_only_one_resumes(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "kill"})
    with pytest.raises(HandlerError):
        connection_with_model.train()
    connection_with_model.training.script({3: "listen"})
    code = "try:\n    con.execute('RESUME MODEL m.2 USING wait = false')\n    print('won')\n"
    others = [
        connection_with_model.start_process(code + "except sqlft.CatalogError as e:\n    print(e)") for _ in range(3)
    ]
    said = [other.communicate()[0] for other in others]
    assert sum("won" in text for text in said) == 1, said
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"


def test_resume_without_the_rows(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "kill"})
    with pytest.raises(HandlerError):
        connection_with_model.train()
    (connection_with_model.catalog.work_folder(connection_with_model.version(2).key) / "train.parquet").unlink()
    with pytest.raises(CatalogError, match="training data is gone"):
        connection_with_model.run("RESUME MODEL m.2")


def test_dropping_a_model_ends_its_training(connection_with_model: Any, until: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-2")
    connection_with_model.run("DROP MODEL m")
    until(lambda: pids(connection_with_model) == [])
    assert connection_with_model.catalog.models() == []
    assert not (connection_with_model.catalog.folder / "models" / "m").exists()


def test_a_disk_that_is_full(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "disk"})
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({4 << 20}, {4 << 20}))\n"
    other = connection_with_model.start_process(
        limited + "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')"
    )
    assert "The disk is full" in other.communicate()[1]
    second = connection_with_model.version(2)
    assert second.status == "failed"
    assert "RESUME MODEL m.2" in (second.error or "")


def test_a_fork_of_the_session_does_not_keep_its_worker(connection_with_model: Any) -> None:
    connection_with_model.training.script({3: "listen"})
    other = connection_with_model.start_process(
        "import os, time\n"
        "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, wait = false')\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n    os._exit(0)\n"
        "print(child, flush=True)\nos.kill(os.getpid(), 9)"
    )
    assert other.stdout is not None
    child = int(other.stdout.readline())
    assert connection_with_model.wait_until_ended(2).status == "interrupted"
    os.kill(child, signal.SIGKILL)
    other.communicate()


def test_the_worker_imports_no_database(connection_with_model: Any) -> None:
    code = "import sys, sqlft.training.worker; print('sqlft.query' in sys.modules, 'sqlglot' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
