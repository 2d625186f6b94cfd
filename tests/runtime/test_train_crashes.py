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


def pids(shop: Any) -> list[int]:
    """Processes that train for this catalog."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(shop.catalog.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def first_step(shop: Any, number: int) -> int:
    """The step at which the run that completed a version began."""
    return int(shop.version(number).details["first_step"])


def test_in_the_background(shop: Any, until: Any) -> None:
    shop.stranger.script({2: "listen"})
    shop.train("wait = false")
    assert shop.version(2).status in ("queued", "training")
    shop.stranger.wait_for("at-2")
    assert shop.version(2).status == "training"
    until(lambda: shop.run("SELECT max(step) FROM sqlft.metrics") == [(2,)])
    assert shop.ask("q1") == "tiny does not know"
    shop.stranger.go()
    assert shop.ended(2).status == "complete"
    assert shop.ask("q1") == "a1"


def test_cancel_from_another_process_and_resume(shop: Any) -> None:
    shop.stranger.script({3: "listen"})
    shop.train("wait = false")
    shop.stranger.wait_for("at-3")
    other = shop.another("print(con.execute('CANCEL MODEL m.2').fetchall())")
    assert "cancelled" in other.communicate()[0]
    assert other.returncode == 0
    second = shop.version(2)
    assert (second.status, second.error) == ("cancelled", "Stopped on request.")
    assert shop.ask("q1") == "tiny does not know"
    shop.stranger.script({})
    shop.run("RESUME MODEL m.2")
    assert shop.version(2).status == "complete"
    assert first_step(shop, 2) == 3
    assert shop.ask("q1") == "a1"
    assert (second.details["steps"], shop.version(2).details["steps"]) == (3, 4)
    assert shop.version(2).seconds > second.seconds > 0
    assert [v.key.number for v in shop.catalog.versions()] == [1, 2]


def test_a_secret_of_resume_is_not_written_beside_the_rows(shop: Any) -> None:
    shop.stranger.script({2: "listen"})
    shop.train("wait = false")
    shop.stranger.wait_for("at-2")
    shop.run("CANCEL MODEL m.2")
    key = shop.ended(2).key
    shop.stranger.script({3: "listen"})
    shop.run("RESUME MODEL m.2 USING wait = false, hub_token = 'hf_of_nobody_else'")
    shop.stranger.wait_for("at-3")
    written = (shop.catalog.work_folder(key) / "job.json").read_text(encoding="utf-8")
    shop.run("CANCEL MODEL m.2")
    assert "hub_token" in written
    assert "hf_of_nobody_else" not in written


def test_a_resumed_training_costs_what_all_its_parts_cost(shop: Any) -> None:
    shop.run("CREATE PRICE FOR stranger USING machine_usd_per_hour = 3600")
    shop.stranger.script({3: "listen"})
    shop.train("wait = false")
    shop.stranger.wait_for("at-3")
    shop.run("CANCEL MODEL m.2")
    first = shop.ended(2)
    assert first.details["cost_usd"] == pytest.approx(first.seconds, rel=0.2)
    shop.stranger.script({})
    shop.run("RESUME MODEL m.2")
    whole = shop.version(2)
    assert whole.details["cost_usd"] > first.details["cost_usd"]
    assert whole.details["cost_usd"] == pytest.approx(whole.seconds, rel=0.2)


def test_ctrl_c_while_waiting(shop: Any) -> None:
    shop.stranger.script({3: "listen"})

    def on_tick(tick: Any) -> None:
        if tick.done == 3 and "training" in tick.label:
            raise KeyboardInterrupt

    shop.on_tick = on_tick
    with pytest.raises(Cancelled, match=r"stopped at step 3 of 4[^$]*RESUME MODEL m\.2"):
        shop.train()
    assert shop.version(2).status == "cancelled"
    assert pids(shop) == []
    shop.on_tick = shop.ticks.append
    shop.stranger.go()
    shop.run("RESUME MODEL m.2")
    assert first_step(shop, 2) == 3


def test_a_second_ctrl_c_does_not_wait(shop: Any) -> None:
    shop.stranger.script({3: "deaf"})

    def on_tick(tick: Any) -> None:
        if tick.done == 3:
            raise KeyboardInterrupt

    shop.on_tick = on_tick
    with pytest.raises(Cancelled, match=r"RESUME MODEL m\.2"):
        shop.train()
    assert shop.version(2).status == "cancelled"
    assert pids(shop) == []


def test_interrupt_from_a_thread(shop: Any) -> None:
    shop.stranger.script({3: "listen"})

    def interrupt() -> None:
        shop.stranger.wait_for("at-3")
        shop.con.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Cancelled):
        shop.train()
    thread.join()
    assert shop.version(2).status == "cancelled"


def test_sigint_at_the_terminal(shop: Any) -> None:
    shop.stranger.script({3: "listen"})
    code = "try:\n    con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')\n"
    other = shop.another(code + "except sqlft.Cancelled as e:\n    print(e)")
    shop.stranger.wait_for("at-3")
    other.send_signal(signal.SIGINT)
    said, errors = other.communicate()
    assert "RESUME MODEL m.2" in said, errors
    assert shop.version(2).status == "cancelled"


def test_a_killed_worker(shop: Any) -> None:
    shop.stranger.script({3: "kill"})
    with pytest.raises(HandlerError, match=r"SIGKILL[^$]*RESUME MODEL m\.2"):
        shop.train()
    second = shop.version(2)
    assert second.status == "interrupted"
    assert shop.ask("q1") == "tiny does not know"
    assert not shop.catalog.artifact_folder(second.key).exists()
    shop.stranger.script({})
    shop.run("RESUME MODEL m.2")
    assert (shop.version(2).status, shop.version(2).error) == ("complete", None)
    assert first_step(shop, 2) == 3


def test_a_killed_worker_in_the_background(shop: Any, until: Any) -> None:
    shop.stranger.script({3: "listen"})
    shop.train("wait = false")
    os.kill(shop.stranger.wait_for("at-3"), signal.SIGKILL)
    assert shop.ended(2).status == "interrupted"
    assert shop.run("SELECT status FROM sqlft.versions WHERE version = 2") == [("interrupted",)]
    shop.run("CANCEL MODEL m.2")
    assert shop.version(2).status == "cancelled"


def test_a_worker_that_ends_by_itself(shop: Any) -> None:
    shop.stranger.script({2: "exit"})
    with pytest.raises(HandlerError, match=r"exit code 3: the stranger gives up \(log: "):
        shop.train()
    assert shop.version(2).status == "interrupted"


def test_a_killed_session(shop: Any) -> None:
    shop.stranger.script({3: "listen"})
    other = shop.another("con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')")
    shop.stranger.wait_for("at-3")
    other.kill()
    other.communicate()
    second = shop.ended(2)
    assert (second.status, second.error) == ("interrupted", "The session that started it ended.")
    assert shop.catalog.model(second.key.model).active == 1
    shop.stranger.go()
    shop.run("RESUME MODEL m.2")
    assert first_step(shop, 2) == 3


def test_a_killed_session_and_a_handler_that_does_not_listen(shop: Any, until: Any) -> None:
    shop.stranger.script({3: "deaf"})
    other = shop.another("con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')")
    shop.stranger.wait_for("at-3")
    other.kill()
    other.communicate()
    assert shop.ended(2).status == "interrupted"
    until(lambda: pids(shop) == [])


def test_cancel_of_a_handler_that_does_not_listen(shop: Any, until: Any) -> None:
    shop.stranger.script({3: "deaf"})
    shop.train("wait = false")
    shop.stranger.wait_for("at-3")
    shop.run("CANCEL MODEL m")
    assert shop.version(2).status == "cancelled"
    until(lambda: pids(shop) == [])


@pytest.mark.parametrize("ending", ["", "con.close()", "raise ValueError('my script is wrong')"])
def test_a_session_that_ends_in_order_lets_it_go_on(shop: Any, ending: str) -> None:
    shop.stranger.script({3: "listen"})
    other = shop.another(f"con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {{using}}, wait = false')\n{ending}")
    other.communicate()
    shop.stranger.wait_for("at-3")
    shop.stranger.go()
    assert shop.ended(2).status == "complete"


def test_a_closed_session_that_is_killed_later(shop: Any) -> None:
    shop.stranger.script({3: "listen"})
    code = "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, wait = false')\ncon.close()\n"
    shop.another(code + "import os\nos.kill(os.getpid(), 9)").communicate()
    shop.stranger.wait_for("at-3")
    shop.stranger.go()
    assert shop.ended(2).status == "complete"


@pytest.mark.parametrize("script", ["wrap", "swallow"])
def test_a_handler_that_hides_the_cancelling(shop: Any, script: str) -> None:
    shop.stranger.script({4: script})
    shop.train("wait = false")
    shop.stranger.wait_for("at-4")
    shop.run("CANCEL MODEL m.2")
    assert shop.version(2).status == "cancelled"


def test_what_a_handler_raises(shop: Any) -> None:
    shop.stranger.script({2: "refuse"})
    with pytest.raises(
        ProviderError, match=r"The training of m\.2 failed: The provider is closed on Sundays\.\nCome back"
    ):
        shop.train()
    shop.stranger.script({2: "memory"})
    with pytest.raises(HandlerError, match=r"m\.3 failed: The training ran out of memory\.\n.*smaller batch_size"):
        shop.train()
    shop.stranger.script({2: "nospace"})
    with pytest.raises(HandlerError, match=r"The disk is full[^$]*Free some space"):
        shop.train()
    assert [v.status for v in shop.catalog.versions()] == ["complete", "failed", "failed", "failed"]
    assert shop.version(2).error == "The provider is closed on Sundays.\nCome back on Monday."
    shop.stranger.script({})
    assert shop.version(2).details["error_type"] == "ProviderError"
    shop.run("RESUME MODEL m.2 USING wait = true")
    assert "error_type" not in shop.version(2).details
    shop.run("RESUME MODEL m.3")
    assert shop.catalog.model(shop.version(3).key.model).active == 3
    shop.run("DROP MODEL m.4")
    shop.train()
    assert [v.key.number for v in shop.catalog.versions()] == [1, 2, 3, 5]


def test_two_sessions_train_one_model(shop: Any) -> None:
    shop.stranger.script({2: "listen"})
    code = "print(con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, steps = 3').fetchall())"
    others = [shop.another(code) for _ in range(2)]
    shop.stranger.wait_for("at-2")
    shop.ticks.clear()
    shop.stranger.go()
    for other in others:
        assert "complete" in other.communicate()[0]
    assert [(v.key.number, v.status) for v in shop.catalog.versions()] == [
        (1, "complete"),
        (2, "complete"),
        (3, "complete"),
    ]


def test_resume_is_for_what_was_stopped(shop: Any) -> None:
    with pytest.raises(CatalogError, match="it is complete"):
        shop.run("RESUME MODEL m.1")
    with pytest.raises(CatalogError, match="nothing to cancel"):
        shop.run("CANCEL MODEL m.1")
    with pytest.raises(CatalogError, match="No version of m"):
        shop.run("CANCEL MODEL m")
    shop.stranger.script({2: "listen"})
    shop.train("wait = false")
    with pytest.raises(CatalogError, match="trains right now"):
        shop.run("RESUME MODEL m.2")
    shop.stranger.go()
    shop.ended(2)


def test_only_one_resumes(shop: Any) -> None:
    shop.stranger.script({3: "kill"})
    with pytest.raises(HandlerError):
        shop.train()
    shop.stranger.script({3: "listen"})
    code = "try:\n    con.execute('RESUME MODEL m.2 USING wait = false')\n    print('won')\n"
    others = [shop.another(code + "except sqlft.CatalogError as e:\n    print(e)") for _ in range(3)]
    said = [other.communicate()[0] for other in others]
    assert sum("won" in text for text in said) == 1, said
    shop.stranger.go()
    assert shop.ended(2).status == "complete"


def test_resume_without_the_rows(shop: Any) -> None:
    shop.stranger.script({3: "kill"})
    with pytest.raises(HandlerError):
        shop.train()
    (shop.catalog.work_folder(shop.version(2).key) / "train.parquet").unlink()
    with pytest.raises(CatalogError, match="training data is gone"):
        shop.run("RESUME MODEL m.2")


def test_dropping_a_model_ends_its_training(shop: Any, until: Any) -> None:
    shop.stranger.script({2: "listen"})
    shop.train("wait = false")
    shop.stranger.wait_for("at-2")
    shop.run("DROP MODEL m")
    until(lambda: pids(shop) == [])
    assert shop.catalog.models() == []
    assert not (shop.catalog.folder / "models" / "m").exists()


def test_a_disk_that_is_full(shop: Any) -> None:
    shop.stranger.script({2: "disk"})
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({4 << 20}, {4 << 20}))\n"
    other = shop.another(limited + "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}')")
    assert "The disk is full" in other.communicate()[1]
    second = shop.version(2)
    assert second.status == "failed"
    assert "RESUME MODEL m.2" in (second.error or "")


def test_a_fork_of_the_session_does_not_keep_its_worker(shop: Any) -> None:
    shop.stranger.script({3: "listen"})
    other = shop.another(
        "import os, time\n"
        "con.execute(f'FINETUNE m FROM (SELECT * FROM rows) {using}, wait = false')\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n    os._exit(0)\n"
        "print(child, flush=True)\nos.kill(os.getpid(), 9)"
    )
    assert other.stdout is not None
    child = int(other.stdout.readline())
    assert shop.ended(2).status == "interrupted"
    os.kill(child, signal.SIGKILL)
    other.communicate()


def test_the_worker_imports_no_database(shop: Any) -> None:
    code = "import sys, sqlft.training.worker; print('sqlft.query' in sys.modules, 'sqlglot' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
