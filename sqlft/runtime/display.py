"""What a connection shows by itself where `progress = True`, and in notebooks: a bar, and lines, on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from sqlft import log
from sqlft.runtime.bar import Bar
from sqlft.runtime.session import Tick


class Display(AbstractContextManager[None]):
    """A bar while a call runs, which is a `with` block; the cursors of a connection share it, in several threads too.

    >>> with Display() as nothing:
    ...     pass
    """

    def __init__(self, *, in_notebook: bool = False) -> None:
        self._in_notebook = in_notebook
        self._lock = threading.RLock()
        self._calls = 0
        self._bar = self._new_bar()

    def _new_bar(self) -> Bar:
        return Bar(sys.stderr, in_notebook=self._in_notebook)

    def start(self) -> None:
        """A new statement begins."""
        with self._lock:
            if not self._calls:
                self._bar = self._new_bar()  # on what is stderr now

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._calls -= 1
            self._bar.hide()

    def tick(self, tick: Tick) -> None:
        """For Session.progress; between calls, where a reader goes on to ask, nobody would take the bar away."""
        with self._lock:
            if self._calls:
                self._bar.tick = tick
                self._bar.draw()

    def tell(self, text: str) -> None:
        """For Session.tell: a line for the person at the screen."""
        with self._lock:
            self._bar.hide()
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning at the caller's line, the bar out of its way."""
        with self._lock:
            self._bar.hide()
        log.warn(text)

    def around(self, piece: Callable[[str], None]) -> Callable[[str], None]:
        """`piece` without a bar for the rest of its statement: the answer stands where the bar would be."""

        def shown(text: str) -> None:
            with self._lock:
                self._bar.silence()
            piece(text)

        return shown


def display_for(wanted: bool | None) -> Display | None:
    """What `progress = True`, False or None asks for; None: a display in notebooks."""
    in_notebook = is_notebook()
    return Display(in_notebook=in_notebook) if wanted or (wanted is None and in_notebook) else None


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, of Jupyter or what is like it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
