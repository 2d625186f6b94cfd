"""How far a long statement is: a bar on a terminal, a line that changes in a notebook, now and then a line elsewhere.

The shell draws a ProgressBar itself; `sqlft.connect(progress=True)` makes a ConnectionWithProgress.  Both write to
stderr.  In: ticks of a session.  Not here: what a tick says (whatever works), answers that are shown as they come.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import update_wrapper
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TextIO, TypeVar

import duckdb

from sqlft import errors
from sqlft.catalog.store import Catalog
from sqlft.connection.connection import Connection
from sqlft.inference.cache import Cache
from sqlft.session import Tick

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOW_AFTER_SECONDS = 0.5
"""Seconds before anything is shown: what is short needs no bar."""
SHOW_UNKNOWN_AFTER_SECONDS = 2.0
"""Seconds before a sign of life of what tells no progress."""
UNKNOWN_TICK = Tick("running", 0)
LINE_SECONDS = 10.0
WIDTH = 16
FRAME_SECONDS = 0.09
"""Seconds between two drawings: a little less than they are asked for."""
MIN_POINTS, MAX_POINTS, HEIGHTS = 3, 12, "▁▂▃▄▅▆▇█"
"""Of the curve of losses."""
_HIDDEN_METRICS = {"examples_per_second", "learning_rate", "epoch", "tokens", "grad_norm"}


class ProgressBar:
    """Shows the latest tick of one statement; `draw` is called some times a second by whoever waits.

    In a notebook, which is no terminal and knows `\\r` of its controls, the bar is one line of text.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic, *, in_notebook: bool = False) -> None:
        self._stream, self._clock, self._in_notebook = stream, clock, in_notebook
        self.is_terminal = stream.isatty() and not in_notebook
        self._width = 0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self.start()

    def start(self) -> None:
        """A new statement begins."""
        self.tick: Tick | None = None
        self._is_quiet = False
        self._drawn = 0.0
        self._begun = self._next_line = self._clock()
        self._curve = LossCurve()
        self._label, self._label_started, self._label_done = "", self._begun, 0.0
        self._reported_left: tuple[float | None, float] = (None, self._begun)
        self._next_line += LINE_SECONDS

    def draw(self) -> None:
        """Show the latest tick."""
        now = self._clock()
        is_live = self.is_terminal or self._in_notebook
        tick = self.tick or (UNKNOWN_TICK if is_live and now - self._begun > SHOW_UNKNOWN_AFTER_SECONDS else None)
        if (
            tick is None
            or self._is_quiet
            or now - self._begun < SHOW_AFTER_SECONDS
            or now - self._drawn < FRAME_SECONDS
        ):
            return
        self._drawn = now
        if tick.label != self._label or tick.done < self._label_done:
            self._label, self._label_started, self._label_done = tick.label, now, tick.done
            self._curve = LossCurve()
        values = self._curve.add(tick.metrics)
        if tick.left != self._reported_left[0]:
            self._reported_left = tick.left, now
        if tick.left is None:
            seconds_left = _estimate_seconds_left(tick, self._label_done, now - self._label_started)
        else:
            seconds_left = max(0.0, tick.left - (now - self._reported_left[1]))
        if is_live:
            self._draw_live(tick, seconds_left, values)
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            parts = [
                format_counts(tick),
                format_metrics(values),
                f"{format_clock_time(seconds_left)} left" if seconds_left is not None else "",
            ]
            text = " · ".join(part for part in parts if part)
            self._stream.write(f"{tick.label}: {text}\n" if text else f"{tick.label} …\n")
            self._stream.flush()

    def hide(self) -> None:
        """Take the bar off the screen; the next `draw` brings it back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._width:
            self._overwrite("")

    def hide_for_statement(self) -> None:
        """No bar for the rest of the statement: its results are being written where the bar is."""
        self._is_quiet = True
        self.hide()

    def _draw_live(self, tick: Tick, seconds_left: float | None, values: Mapping[str, float]) -> None:
        time = (
            format_clock_time(self._clock() - self._begun)
            if seconds_left is None
            else f"{format_clock_time(seconds_left)} left"
        )
        text = "  ".join(
            p for p in (tick.label, format_counts(tick), time, format_metrics(values), self._curve.sparkline) if p
        )
        if self._in_notebook:
            self._overwrite(f"{format_blocks(tick)}{text}")
            return
        if self._progress is None:
            self._progress = _make_rich_progress(self._stream)
            self._task = self._progress.add_task("")
        assert self._task is not None
        self._progress.update(self._task, description=text, completed=tick.done)
        self._progress.tasks[0].total = tick.total  # update() would take None as "leave it"
        self._progress.start()
        self._progress.refresh()

    def _overwrite(self, text: str) -> None:
        """Write a line in place of the last one, the cursor at its start where it is empty."""
        self._stream.write(f"\r{text:<{self._width}}" + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)


class LossCurve:
    """The loss so far, one character for a few steps; validation losses stay visible between validations."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._validation: dict[str, float] = {}

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values with the latest validation losses among them."""
        loss = values.get("loss")
        if loss is not None and (not self._losses or self._losses[-1] != loss):
            self._losses.append(loss)
        self._validation |= {name: value for name, value in values.items() if name.startswith("valid_")}
        if set(self._validation) <= set(values):
            return dict(values)
        names = [*[n for n in ("loss",) if n in values], *self._validation]
        return {n: values.get(n, self._validation.get(n, 0.0)) for n in dict.fromkeys([*names, *values])}

    @property
    def sparkline(self) -> str:
        """`█▆▃▂▁`, the highest loss as high as a letter; nothing of fewer than three losses."""
        if len(self._losses) < MIN_POINTS:
            return ""
        step = -(-len(self._losses) // MAX_POINTS)
        means = [
            sum(part) / len(part) for part in (self._losses[i : i + step] for i in range(0, len(self._losses), step))
        ]
        low, high = min(means), max(means)
        return "".join(HEIGHTS[round((m - low) / (high - low or 1) * (len(HEIGHTS) - 1))] for m in means)


def format_counts(tick: Tick) -> str:
    """`120/600`, or a percentage of what has no unit."""
    if tick.total == 1:
        return f"{tick.done:.0%}"
    if tick.total is None and not tick.done:
        return ""
    return f"{tick.done:,.0f}" if tick.total is None else f"{tick.done:,.0f}/{tick.total:,.0f}"


def format_blocks(tick: Tick) -> str:
    """`████░░░░ ` of what is done, or nothing if that is not known."""
    if not tick.total:
        return ""
    full = min(WIDTH, round(WIDTH * tick.done / tick.total))
    return "█" * full + "░" * (WIDTH - full) + " "


def format_metrics(values: Mapping[str, float]) -> str:
    """`loss 0.532  valid_loss 0.61  12 examples/s`"""
    parts = [
        f"{name} {value:.4g}" for name, value in values.items() if name not in _HIDDEN_METRICS and value is not None
    ]
    speed = values.get("examples_per_second")
    return "  ".join([*parts, *([f"{speed:.3g} examples/s"] if speed else [])])


def format_clock_time(seconds: float) -> str:
    """`1:05` or `2:03:04`"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _estimate_seconds_left(tick: Tick, done_at_first: float, elapsed: float) -> float | None:
    """Seconds to go at the speed so far."""
    gone = tick.done - done_at_first
    if tick.total is None or gone <= 0 or elapsed <= 0:
        return None
    return max(0.0, (tick.total - tick.done) * elapsed / gone)


def _make_rich_progress(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    # in one column, so that a narrow screen cuts the end off and nothing else
    description = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return Progress(
        BarColumn(
            WIDTH,
            complete_style="blue",
            finished_style="blue",
            pulse_style="blue",
            table_column=Column(min_width=WIDTH),
        ),
        description,
        console=Console(file=stream, highlight=False),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


class ProgressDisplay(AbstractContextManager[None]):
    """A bar while a call runs, which is a `with` block; the cursors of a connection share it, in several threads too.

    >>> with ProgressDisplay() as nothing:
    ...     pass
    """

    def __init__(self, *, in_notebook: bool = False) -> None:
        self._in_notebook = in_notebook
        self._lock = threading.RLock()
        self._calls = 0
        self._bar = self._new_bar()

    def _new_bar(self) -> ProgressBar:
        return ProgressBar(sys.stderr, in_notebook=self._in_notebook)

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
        """For Session.show_progress; between calls, where a reader goes on to ask, nobody would take the bar away."""
        with self._lock:
            if self._calls:
                self._bar.tick = tick
                self._bar.draw()

    def show_notice(self, text: str) -> None:
        """For Session.show_notice: a line for the person at the screen."""
        with self._lock:
            self._bar.hide()
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning at the caller's line, the bar out of its way."""
        with self._lock:
            self._bar.hide()
        errors.show_warning(text)

    def wrap_answer_part(self, piece: Callable[[str], None]) -> Callable[[str], None]:
        """`piece` without a bar for the rest of its statement: the answer stands where the bar would be."""

        def shown(text: str) -> None:
            with self._lock:
                self._bar.hide_for_statement()
            piece(text)

        return shown


def make_display(is_requested: bool | None) -> ProgressDisplay | None:
    """What `progress = True`, False or None asks for; None: a display in notebooks."""
    in_notebook = is_notebook()
    return ProgressDisplay(in_notebook=in_notebook) if is_requested or (is_requested is None and in_notebook) else None


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, of Jupyter or what is like it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class ConnectionWithProgress(Connection):
    """A connection that shows how far its statements are; a bar is taken away when the call that drew it ends."""

    def __init__(
        self,
        display: ProgressDisplay,
        con: duckdb.DuckDBPyConnection,
        catalog: Catalog,
        *,
        warn: Callable[[str], None] | None = None,
        piece: Callable[[str], None] | None = None,
        owns: bool = True,
        cache: Cache | None = None,
    ) -> None:
        shown = piece and display.wrap_answer_part(piece)
        super().__init__(
            con, catalog, warn=warn or display.warn, progress=display.tick, piece=shown, owns=owns, cache=cache
        )
        self.session.show_notice = display.show_notice
        self._display = display

    def _make_cursor(self, con: duckdb.DuckDBPyConnection) -> Connection:
        return ConnectionWithProgress(
            self._display, con, self.session.catalog, warn=self.session.show_warning, cache=self._cache
        )


P = ParamSpec("P")
R = TypeVar("R")


def _show_progress(
    method: Callable[Concatenate[Connection, P], R], *, starts: bool
) -> Callable[Concatenate[ConnectionWithProgress, P], R]:
    """A method of Connection within the display's block; `starts`: it begins a statement."""

    def run(self: ConnectionWithProgress, /, *arguments: P.args, **named: P.kwargs) -> R:
        if starts:
            self._display.start()
        with self._display:
            return method(self, *arguments, **named)

    return update_wrapper(run, method)


for _name in ("execute", "executemany", "sql", "query"):
    setattr(ConnectionWithProgress, _name, _show_progress(getattr(Connection, _name), starts=True))
for _name in (
    *("fetchone", "fetchmany", "fetchall", "arrow", "to_arrow_table", "fetch_arrow_table", "pl", "torch", "tf"),
    *("df", "fetchdf", "fetch_df", "fetchnumpy", "fetch_df_chunk"),
):
    setattr(ConnectionWithProgress, _name, _show_progress(getattr(Connection, _name), starts=False))
