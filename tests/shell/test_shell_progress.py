"""The progress bar, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator

import pytest

from sqlft.connection.progress import LossCurve, ProgressBar, format_clock_time, format_counts, format_metrics
from sqlft.session import Tick


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def show(bar: ProgressBar, clock: Clock, seconds: float, tick: Tick | None) -> None:
    clock.now += seconds
    bar.tick = tick
    bar.draw()


def test_a_line_now_and_then_where_there_is_no_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, clock)
    for second in range(25):
        show(bar, clock, 1, Tick("m.2 training", second, 100, {"loss": 0.51234, "learning_rate": 1e-4}))
    assert stream.getvalue().splitlines() == [
        "m.2 training: 9/100 · loss 0.5123 · 1:31 left",
        "m.2 training: 19/100 · loss 0.5123 · 1:21 left",
    ]


def test_the_time_left_is_what_the_training_says(clock: Clock) -> None:
    """And goes on falling while one step takes long."""
    stream = io.StringIO()
    bar = ProgressBar(stream, clock)
    for left in (180.0, 180.0, 60.0):
        show(bar, clock, 11, Tick("m.2 training", 1, 54, left=left))
    assert stream.getvalue().splitlines() == [
        "m.2 training: 1/54 · 3:00 left",
        "m.2 training: 1/54 · 2:49 left",
        "m.2 training: 1/54 · 1:00 left",
    ]


class Pty:
    """Both ends of a terminal."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")

    def read(self) -> str:
        """All that was written; the terminal passes it on in pieces, the NUL last."""
        self.stream.write("\0")
        self.stream.flush()
        text = b""
        while not text.endswith(b"\0"):
            text += os.read(self.master, 1 << 16)
        return text[:-1].decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    made = Pty()
    yield made
    made.stream.close()
    os.close(made.master)


def test_a_bar_on_a_terminal_that_goes_away(terminal: Pty, clock: Clock) -> None:
    bar = ProgressBar(terminal.stream, clock)
    show(bar, clock, 1, Tick("m.2 training", 10, 40))
    values = {"loss": 0.5, "valid_loss": 0.75, "examples_per_second": 12.345}
    show(bar, clock, 5, Tick("m.2 training", 20, 40, values))
    text = terminal.read()
    assert "m.2 training" in text
    assert "20/40" in text
    assert "loss 0.5  valid_loss 0.75  12.3 examples/s" in text
    assert "0:10 left" in text
    bar.hide()
    assert "\x1b[2K" in terminal.read()


def test_what_is_short_shows_nothing(terminal: Pty, clock: Clock) -> None:
    bar = ProgressBar(terminal.stream, clock)
    show(bar, clock, 0.4, Tick("asking m.1", 1, 2))
    bar.start()
    show(bar, clock, 0.4, Tick("asking m.1", 1, 2))
    bar.hide_for_statement()
    show(bar, clock, 5, Tick("asking m.1", 1, 2))
    terminal.stream.write("nothing")
    assert terminal.read() == "nothing"


def test_a_sign_of_life_where_no_progress_is_told(terminal: Pty, clock: Clock) -> None:
    bar = ProgressBar(terminal.stream, clock)
    show(bar, clock, 1, None)
    show(bar, clock, 64, None)
    assert "running" in (text := terminal.read())
    assert "1:05" in text


def test_validation_losses_stay_and_losses_draw_a_curve(terminal: Pty, clock: Clock) -> None:
    bar = ProgressBar(terminal.stream, clock)
    show(bar, clock, 1, Tick("m.2 training", 1, 40, {"loss": 2.0, "valid_loss": 1.5}))
    for step in range(2, 6):
        show(bar, clock, 1, Tick("m.2 training", step, 40, {"loss": 2.0 / step, "examples_per_second": 3.0}))
    last = terminal.read().rpartition("5/40")[2]
    assert "loss 0.4  valid_loss 1.5  3 examples/s" in last
    assert "█▄▂▁▁" in last or "█▃▂▁▁" in last
    bar.start()
    show(bar, clock, 1, Tick("m.3 training", 1, 40, {"loss": 2.0}))
    assert "valid_loss" not in terminal.read()


def test_a_long_curve_stays_short() -> None:
    curve = LossCurve()
    for i in range(1000):
        curve.add({"loss": 1000.0 - i})
    assert 8 <= len(curve.sparkline) <= 12
    assert (curve.sparkline[0], curve.sparkline[-1]) == ("█", "▁")
    assert sorted(curve.sparkline, reverse=True) == list(curve.sparkline)


def test_numbers() -> None:
    assert format_counts(Tick("x", 1200, 30000)) == "1,200/30,000"
    assert format_counts(Tick("x", 0.256, 1)) == "26%"
    assert format_counts(Tick("x", 7)) == "7"
    assert format_counts(Tick("x", 0)) == ""
    assert format_metrics({"loss": 1.0, "epoch": 2.0}) == "loss 1"
    assert [format_clock_time(s) for s in (5, 65.4, 3725)] == ["0:05", "1:05", "1:02:05"]
