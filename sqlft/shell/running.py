"""One statement at a time in a thread of its own, so that Ctrl-C is heard whatever it is doing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sqlft.errors import Cancelled
from sqlft.runtime.session import Tick
from sqlft.shell.screen import Screen

POLL = 0.1
PATIENCE = 3
"""Ctrl-C so often, and a statement that does not stop takes the shell with it."""


class Runner:
    """Runs jobs; Ctrl-C calls `interrupt`, the second one also breaks what reports progress.

    `percent` says how far a job is that does not report itself, -1 if that is not known.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._presses = 0
        self._reports = False
        self.interrupt: Callable[[], None] = lambda: None
        self.percent: Callable[[], float] = lambda: -1.0

    @property
    def is_stopping(self) -> bool:
        """Whether Ctrl-C was pressed, also during a job that was done before it was heard."""
        return self._presses > 0

    def forgive(self) -> None:
        """What was stopped has stopped: go on."""
        self._presses = 0

    def tick(self, tick: Tick) -> None:
        """For Session.progress."""
        self._reports = True
        self._screen.bar.tick = tick
        if self._presses > 1:
            raise KeyboardInterrupt

    def write(self, text: str) -> None:
        """Results; stops a long output after Ctrl-C."""
        if self.is_stopping:
            raise KeyboardInterrupt
        self._screen.write(text)

    def run(self, job: Callable[[], Any]) -> Any:
        """What `job` returns or raises; KeyboardInterrupt if Ctrl-C stopped it."""
        outcome: list[Any] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                outcome.append(job())
            except BaseException as e:
                errors.append(e)
            finally:
                done.set()

        self._reports = False
        self._screen.bar.start()
        with self._listening():
            threading.Thread(target=work, name="sqlft-statement", daemon=True).start()
            while not done.wait(POLL):
                self._watch()
        self._screen.hide_bar()
        if not errors:
            return outcome[0]
        if self._presses and not isinstance(errors[0], Cancelled):
            raise KeyboardInterrupt from errors[0]
        raise errors[0]

    def _watch(self) -> None:
        """An interrupt that came between two queries was not heard, so it is repeated."""
        if self._presses:
            self.interrupt()
        elif not self._reports and self._screen.bar.is_terminal and (percent := self.percent()) > 0:
            self._screen.bar.tick = Tick("running", percent / 100, 1.0)
        self._screen.draw()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        self._screen.bar.tick = Tick("stopping", 0)
        if self._presses > PATIENCE:
            os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"")  # the bar had hidden the cursor
            os.write(2, b"The statement does not stop; leaving.\n")
            os._exit(130)
        self.interrupt()
