"""One statement at a time in a thread beside the main one, so that Ctrl-C is heard whatever it is doing."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from time import monotonic
from types import FrameType
from typing import Generic, TypeVar

from sqlft.errors import Cancelled
from sqlft.session import CHOICE_SECONDS, STOP_LETTERS, Tick
from sqlft.shell.screen import Screen

T = TypeVar("T")
POLL_SECONDS = 0.1
END_SECONDS = 1.0
MAX_INTERRUPTS = 3
"""Ctrl-C so often, and a statement that does not stop takes the shell with it."""


class _Job(Generic[T]):
    """What is to be run, and what became of it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.done = threading.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self.work())
        except BaseException as e:
            self.error = e
        finally:
            self.done.set()


def _run_jobs(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (run := jobs.get()) is not None:
        run()
        del run  # with the result that it holds


def _end_thread(jobs: SimpleQueue[Callable[[], None] | None], thread: threading.Thread) -> None:
    """Let the thread go before Python ends, which would not clean up what it still holds."""
    jobs.put(None)
    thread.join(END_SECONDS)


class Runner:
    """Runs jobs; Ctrl-C calls `interrupt`, the second one also breaks what reports progress.

    `percent` says how far a job is that does not report itself, -1 if that is not known.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._presses = 0
        self._reports = False
        self._asking = False
        self.hides_typing = False
        """Whether what is typed while a job runs waits for the prompt, instead of being written into the bar."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        thread = threading.Thread(target=_run_jobs, args=[self._jobs], name="sqlft-statements", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _end_thread, self._jobs, thread)
        self.interrupt: Callable[[], None] = lambda: None
        self.percent: Callable[[], float] = lambda: -1.0

    @property
    def is_stopping(self) -> bool:
        """Whether Ctrl-C was pressed, also during a job that was done before it was heard."""
        return self._presses > 0

    def clear_interrupts(self) -> None:
        """What was stopped has stopped: go on."""
        self._presses = 0

    def tick(self, tick: Tick) -> None:
        """For Session.show_progress."""
        self._reports = True
        self._screen.bar.tick = tick
        if self._presses > 1:
            raise KeyboardInterrupt

    def write(self, text: str) -> None:
        """Results; stops a long output after Ctrl-C."""
        if self.is_stopping:
            raise KeyboardInterrupt
        self._screen.write(text)

    def run(self, job: Callable[[], T]) -> T:
        """What `job` returns or raises; KeyboardInterrupt if Ctrl-C stopped it."""
        running = _Job(job)
        self._reports = False
        self._screen.bar.start()
        with self._handle_interrupts(), self._without_echo():
            self._jobs.put(running.run)
            while not running.done.wait(POLL_SECONDS):
                self._watch()
        self._screen.hide_bar()
        if running.error is None:
            return running.results[0]
        if self._presses and not isinstance(running.error, Cancelled):
            raise KeyboardInterrupt from running.error
        raise running.error

    def _watch(self) -> None:
        """An interrupt that came between two queries was not heard, so it is repeated."""
        if self._asking:
            return
        if self._presses:
            self.interrupt()
        elif not self._reports and self._screen.bar.is_terminal and (percent := self.percent()) > 0:
            self._screen.bar.tick = Tick("running", percent / 100, 1.0)
        self._screen.draw()

    def choose(self, question: str, asks: Callable[[], bool]) -> str:
        """For Session.ask_user: the first letter of a line that is typed, n for an empty one.

        '' after another Ctrl-C, or no answer in CHOICE_SECONDS.
        """
        presses, deadline = self._presses, monotonic() + CHOICE_SECONDS
        self._asking = True
        self._set_echo(True)
        try:
            self._screen.ask(question)
            while asks() and self._presses == presses and monotonic() < deadline:
                ready, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
                if ready:
                    line = os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
                    answer = (line.strip().lower()[:1] or "n") if line else ""
                    if answer not in ("", *STOP_LETTERS):
                        self.clear_interrupts()
                    return answer
            self._screen.ask("\n")
            return ""
        finally:
            self._asking = False
            self._set_echo(False)

    @contextmanager
    def _without_echo(self) -> Iterator[None]:
        self._set_echo(False)
        try:
            yield
        finally:
            self._set_echo(True)

    def _set_echo(self, on: bool) -> None:
        """Let the terminal write what is typed, or not."""
        if not self.hides_typing:
            return
        import termios

        with suppress(termios.error, ValueError):
            modes = termios.tcgetattr(sys.stdin)
            modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)

    @contextmanager
    def _handle_interrupts(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        self._screen.bar.tick = Tick("stopping", 0)
        if self._presses > MAX_INTERRUPTS:
            os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"")  # the bar had hidden the cursor
            os.write(2, b"The statement does not stop; leaving.\n")
            self._set_echo(True)
            os._exit(130)
        self.interrupt()
