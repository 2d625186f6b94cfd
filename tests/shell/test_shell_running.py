"""Ctrl-C while a job runs, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

START = """
import sys, time
from sqlft.errors import Cancelled
from sqlft.session import Tick
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
runner = Runner(Screen())
pressed = []
runner.interrupt = lambda: pressed.append(1)
def say(what): print(what, flush=True)
"""
DEAF = "def job():\n    say('ready')\n    while True: time.sleep(0.01)\n"
HEARS = "def job():\n    say('ready')\n    while not pressed: time.sleep(0.01)\n    raise RuntimeError('stopped')\n"
CANCELS = HEARS.replace("RuntimeError('stopped')", "Cancelled('A checkpoint is kept.', 'RESUME it.')")
ENDS = HEARS.replace("raise RuntimeError('stopped')", "return 'done'")
REPORTS = (
    "def job():\n    said = 0\n    while True:\n        time.sleep(0.01)\n        runner.tick(Tick('x', 1))\n"
    "        if len(pressed) == said: said += 1; say('ready')\n"
)
RUN = """
try:
    say(runner.run(job))
    say(runner.is_stopping)
except BaseException as e:
    say(f"{type(e).__name__} {e}".strip())
"""


@pytest.mark.parametrize(
    ("job", "presses", "ending"),
    [
        (HEARS, 1, ["KeyboardInterrupt"]),
        (CANCELS, 1, ["Cancelled A checkpoint is kept.", "RESUME it."]),
        (ENDS, 1, ["done", "True"]),
        (REPORTS, 2, ["KeyboardInterrupt"]),
        (DEAF, 4, []),
    ],
    ids=["stops", "cancels", "ends", "second", "deaf"],
)
def test_ctrl_c(job: str, presses: int, ending: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START + job + RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and presses:
            process.send_signal(signal.SIGINT)
            presses -= 1
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        rest = [line for line in process.stdout.read().splitlines() if line != "ready"]
        assert rest == ending
        if job is DEAF:
            assert process.wait() == 130
            assert "leaving" in process.stderr.read()
