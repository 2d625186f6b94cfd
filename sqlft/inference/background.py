"""An iterator stepped in a thread of its own, on demand, so that Ctrl-C and time-outs work while it blocks."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import WeakSet

from sqlft.errors import Cancelled, ProviderError

T = TypeVar("T")
_BUSY_THREADS: WeakSet[threading.Thread] = WeakSet()
POLL_SECONDS = 0.1


EXIT_SECONDS = 2.0
"""How long a process that ends waits for answers that are still on their way."""


class BackgroundIterator(Generic[T]):
    """Takes items only when asked to; after `close` it takes none.

    An iterator that has ended is made again when more is asked for.  `make`, `late` and `close` run in the thread too,
    for libraries that depend on the calling thread; `late` gets what nobody takes any more.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[T]],
        close: Callable[[], None],
        late: Callable[[list[T]], None] = lambda _: None,
    ) -> None:
        self._make_iterator, self._close_source, self._handle_late = make, close, late
        self._batch_requests: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        self._batches: queue.SimpleQueue[tuple[list[T], bool, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.stopped = False
        self._timeout = self._deadline = 0.0

    def keep_alive(self) -> None:
        """The time-out begins again: something goes on that is not the answer's."""
        self._deadline = time.monotonic() + self._timeout

    def next_batch(
        self, most: int, seconds: float, timeout: float, interrupted: Callable[[], bool]
    ) -> tuple[list[T], bool]:
        """At least one item (unless there are no more), at most `most`, and no longer than `seconds` after the first.

        Returns the items and whether the iterator has ended; raises what it raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sqlft-ask", daemon=True)
            self._thread.start()
        self._batch_requests.put((most, seconds))
        self._timeout = timeout
        self.keep_alive()
        while True:
            try:
                items, ended, error = self._batches.get(timeout=min(POLL_SECONDS, timeout))
                break
            except queue.Empty:
                if interrupted():
                    raise Cancelled("Interrupted.", "Run it again: what was answered is kept.") from None
                if time.monotonic() > self._deadline:
                    raise ProviderError(
                        f"No answer came in {timeout:g} seconds.",
                        "Check the model's endpoint or machine, or allow more: USING timeout=… (seconds).",
                    ) from None
        if error is not None and not items:
            raise error
        if error is not None:  # first hand over what came before the error
            self._batches.put(([], True, error))
            return items, False
        return items, ended

    def close(self, patience: float = 2.0) -> None:
        """Stop; waits `patience` seconds for a handler in the middle of something, which then ends by itself."""
        self.stopped = True
        if self._thread is not None:
            self._batch_requests.put(None)
            self._thread.join(patience)
            if self._thread.is_alive():
                _join_at_exit(self._thread)

    def _run(self) -> None:
        iterator: Iterator[T] | None = None
        try:
            while (order := self._batch_requests.get()) is not None:
                items: list[T] = []
                ended, error = False, None
                try:
                    if iterator is None:
                        iterator = iter(self._make_iterator())
                    until = time.monotonic() + order[1]
                    while len(items) < order[0]:
                        items.append(next(iterator))
                        if self.stopped or time.monotonic() > until:
                            break
                except StopIteration:
                    ended, iterator = True, None
                except BaseException as e:
                    error = e
                self._batches.put((items, ended, error))
        finally:
            self._close_iterator(iterator)

    def _hand_over_late(self) -> None:
        while not self._batches.empty():
            self._handle_late(self._batches.get()[0])

    def _close_iterator(self, iterator: Iterator[T] | None) -> None:
        for end in (self._hand_over_late, getattr(iterator, "close", None), self._close_source):
            try:
                if end is not None:
                    end()
            except Exception:  # a handler that fails at closing has already given its answers
                continue


def _join_at_exit(thread: threading.Thread) -> None:
    """Give a thread that still takes answers in a moment before the process ends."""
    if not _BUSY_THREADS:  # registered late, so that it runs before what handlers registered to close their connections
        atexit.register(_join_busy_threads)
    _BUSY_THREADS.add(thread)


def _join_busy_threads() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for thread in list(_BUSY_THREADS):
        thread.join(max(0.0, until - time.monotonic()))
