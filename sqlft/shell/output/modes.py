"""The ways to write a result: a function for each mode, and a line in MODES.

Results of our own statements are wide: of them what matters is written, as wide as the screen.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from time import monotonic
from typing import TYPE_CHECKING

from rich.cells import cell_len

from sqlft.shell.output.result import Result, rows_of
from sqlft.shell.output.table import DOTTED, Column, Look, Row, Rows, card, clean, draw, fits, natural, padded, wrapped

if TYPE_CHECKING:
    import pyarrow as pa

Write = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """How many rows a table shows (0: all), how wide it is (0: the screen), what NULL is (None: as the mode has it).

    Rows beyond those shown are only counted, up to so many rows or seconds.
    """

    shown: int = 40
    width: int = 0
    null: str | None = None
    counted: int = 100_000
    seconds: float = 2.0


def table(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Boxes, as wide as the screen; rows beyond the limit are counted, not kept."""
    batches = result.batches_kept()
    rows = _sampled(batches, limits) if limits.shown else _all(batches)
    if result.is_ours:
        text_lines = lines(result.columns, rows, look, is_whole=result.is_described)
    else:
        text_lines = draw(result.columns, rows, look)
    write("".join(line + "\n" for line in text_lines))


def csv(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Commas, a header; NULL is empty and an empty text is ""."""
    write(",".join(_csv(c.name) for c in result.columns) + "\n")
    null = limits.null or ""
    for batch in result.batches():
        rows = zip(*(_csv_cells(column.to_pylist(), null) for column in batch.columns), strict=True)
        write("".join(",".join(row) + "\n" for row in rows))


def as_json(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A list of objects, one a line."""
    before = "["
    for text in _json_objects(result):
        write(before + text)
        before = ",\n"
    write("[]\n" if before == "[" else "]\n")


def line(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A line a value, for long texts; an empty line between rows."""
    names = [clean(c.name) for c in result.columns]
    width = max(map(cell_len, names))
    heads = [f"{look.bold(padded(name, width, right=True))} = " for name in names]
    between = ""
    for batch in result.rows():
        for row in batch:
            values = (look.dim(look.null) if v is None else _plain(v, look) for v in row)
            write(between + "".join(f"{h}{v}\n" for h, v in zip(heads, values, strict=True)))
            between = "\n"


def box(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A table of all rows without types, as wide as it needs to be."""
    rows = _all(result.batches())
    everything = [*rows.head]
    widths = [natural(c, [row[i] for row in everything], look.null) for i, c in enumerate(result.columns)]
    lines = wrapped(result.columns, rows, widths, replace(look, width=None), footer=False)
    write("".join(line + "\n" for line in lines))


def json_lines(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """One object per line, for programs that read line by line."""
    for text in _json_objects(result):
        write(f"{text}\n")


def _json_objects(result: Result) -> Iterator[str]:
    names = [json.dumps(n, ensure_ascii=False) for n in _distinct(result.columns)]
    for batch in result.json():
        for row in batch:
            pairs = ",".join(f"{n}:{'null' if v is None else v}" for n, v in zip(names, row, strict=True))
            yield f"{{{pairs}}}"


def markdown(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A table of Markdown."""

    def cell(text: str) -> str:
        return re.sub(r"\r\n|[\r\n]", "<br>", text.replace("|", "\\|"))

    write(f"| {' | '.join(cell(c.name) for c in result.columns)} |\n")
    write(f"| {' | '.join('---:' if c.is_number else '---' for c in result.columns)} |\n")
    for batch in result.rows():
        for row in batch:
            write(f"| {' | '.join(look.null if v is None else cell(v) for v in row)} |\n")


def as_html(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A table of HTML."""
    write("<table>\n<tr>" + "".join(f"<th>{escape(c.name)}</th>" for c in result.columns) + "</tr>\n")
    for batch in result.rows():
        for row in batch:
            cells = (escape(look.null if v is None else v) for v in row)
            write("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    write("</table>\n")


MODES: dict[str, Callable[[Result, Write, Look, Limits], None]] = {
    "table": table,
    "box": box,
    "csv": csv,
    "json": as_json,
    "jsonlines": json_lines,
    "markdown": markdown,
    "html": as_html,
    "line": line,
}

_NEEDS_QUOTES = re.compile(r'[,"\r\n]|\A\s|\s\Z|\A\Z')
_SUSPICIOUS = re.compile(r'[,"\r\n]|\s\x00|\x00\s|\x00\x00')
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _all(batches: Iterator[pa.RecordBatch]) -> Rows:
    rows = [row for batch in batches for row in rows_of(batch)]
    return Rows(rows, (), len(rows))


def _sampled(batches: Iterator[pa.RecordBatch], limits: Limits) -> Rows:
    """The first rows and, if the end is soon reached, the last ones."""
    head: list[Row] = []
    last: deque[pa.RecordBatch] = deque()
    half, count, end = (limits.shown + 1) // 2, 0, 0.0
    for batch in batches:
        if len(head) < limits.shown + DOTTED:
            head += rows_of(batch.slice(0, limits.shown + DOTTED - len(head)))
            end = monotonic() + limits.seconds
        last.append(batch)
        count += batch.num_rows
        while sum(b.num_rows for b in last) - last[0].num_rows >= limits.shown - half:
            last.popleft()
        if count > limits.shown + DOTTED and (count >= limits.counted or monotonic() > end):
            return Rows(head[: limits.shown], (), count, is_all=False)
    if count <= limits.shown + DOTTED:
        return Rows(head, (), count)
    rows = [row for batch in last for row in rows_of(batch)]
    return Rows(head[:half], rows[len(rows) - (limits.shown - half) :], count)


def _csv_cells(values: list[str | None], null: str) -> list[str]:
    """A column's cells; most need no look at each."""
    if None not in values and not _SUSPICIOUS.search("\x00".join(["", *values, ""])):
        return values
    return [null if v is None else _csv(v) for v in values]


def _csv(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if _NEEDS_QUOTES.search(value) else value


def _distinct(columns: list[Column]) -> list[str]:
    """Names as DuckDB itself tells them apart: a, a_1."""
    names: list[str] = []
    for column in columns:
        name, number = column.name, 0
        while name in names:
            number += 1
            name = f"{column.name}_{number}"
        names.append(name)
    return names


def _plain(value: str, look: Look) -> str:
    """On a terminal no control characters, but line ends and tabs stay."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", value) if look.colour else value


PIPED = 120
"""Columns where there is no screen: mails and logs show that many."""
READABLE = 24
"""A text is not wrapped into a column that is narrower."""
MOST_CARDS = 40
LEAST = (
    *("mindsdb_version", "update_status", "training_phase_name", "training_options", "select_data_query"),
    *("current_training_phase", "total_training_phases", "created_at", "project", "predict", "connection_data"),
    *("interval", "test", "baseline", "seconds", "cost_usd", "ties", "failed", "difference_low", "difference_high"),
    *("losses", "wins", "answer", "details", "rows", "code", "count", "package", "type", "import_success"),
    *("tag", "base", "engine", "minutes", "loss", "training_time", "high", "low", "active"),
)
"""Names of columns in the order in which they give way; what is not among them stays."""
NOT_ON_CARDS = (*LEAST[:7], "rows", "details")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+")


def lines(columns: Sequence[Column], rows: Rows, look: Look, *, is_whole: bool = False) -> Iterator[str]:
    """The result's lines; `is_whole` shows all of a single row that is not NULL, as DESCRIBE does."""
    rows = _short(columns, rows)
    width = look.width or PIPED
    look = replace(look, width=width)
    everything = [*rows.head, *rows.tail]
    if all(fits(columns, row, look) for row in everything[:1]) and _size(columns, everything) <= width:
        return draw(columns, rows, look)
    filled = [i for i in range(len(columns)) if any(row[i] is not None for row in everything)] or [0]
    if len(everything) == 1:
        essential = [i for i in filled if columns[i].name.lower() not in LEAST[:7]]
        return card(columns, everything[0], look, None if is_whole else essential)
    selection = _Chosen(columns, rows, tuple(filled))
    while selection.size > width and (fewer := selection.fewer()) is not None:
        selection = fewer
    if selection.size <= width:
        return draw(selection.titles, selection.cells, look, hidden=selection.hidden)
    widths = _widths(selection, width)
    if widths is not None:
        return wrapped(selection.titles, selection.cells, widths, look, selection.hidden)
    if len(everything) <= MOST_CARDS:
        return _cards(columns, everything, look, [i for i in filled if columns[i].name.lower() not in NOT_ON_CARDS])
    return draw(columns, rows, look)


@dataclass(frozen=True)
class _Chosen:
    """Some of the columns of a result."""

    columns: Sequence[Column]
    rows: Rows
    kept: tuple[int, ...]

    @property
    def titles(self) -> list[Column]:
        return [self.columns[i] for i in self.kept]

    @property
    def cells(self) -> Rows:
        head, tail = ([[row[i] for i in self.kept] for row in part] for part in (self.rows.head, self.rows.tail))
        return Rows(head, tail, self.rows.count, self.rows.is_all)

    @property
    def hidden(self) -> list[str]:
        """Names of the columns that are left out and hold something."""
        left_out = [i for i in range(len(self.columns)) if i not in self.kept]
        everything = [*self.rows.head, *self.rows.tail]
        return [self.columns[i].name for i in left_out if any(row[i] is not None for row in everything)]

    @property
    def size(self) -> int:
        cells = self.cells
        return _size(self.titles, [*cells.head, *cells.tail])

    def fewer(self) -> _Chosen | None:
        """Without the column that matters least."""
        names = {self.columns[i].name.lower(): i for i in self.kept}
        for name in LEAST:
            if name in names:
                return _Chosen(self.columns, self.rows, tuple(i for i in self.kept if i != names[name]))
        return None


def _size(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(natural(c, [row[i] for row in rows]) + 3 for i, c in enumerate(columns)) + 1


def _widths(selection: _Chosen, width: int) -> list[int] | None:
    """Columns' widths with the long texts wrapped into what the others leave; None if that is too little."""
    rows = [*selection.cells.head, *selection.cells.tail]
    sizes = [natural(c, [row[i] for row in rows]) for i, c in enumerate(selection.titles)]
    long = [i for i, size in enumerate(sizes) if size > READABLE]
    room = width - 1 - 3 * len(sizes) - sum(size for i, size in enumerate(sizes) if i not in long)
    for rank, i in enumerate(sorted(long, key=lambda i: sizes[i])):
        share = room // (len(long) - rank)
        if share < READABLE:
            return None
        sizes[i] = min(sizes[i], share)
        room -= sizes[i]
    return sizes if long and room >= 0 else None


def _cards(columns: Sequence[Column], rows: Sequence[Row], look: Look, kept: Sequence[int]) -> Iterator[str]:
    for number, row in enumerate(rows):
        if number:
            yield ""
        yield from card(columns, [None if v == "[]" else v for v in row], look, kept, with_footer=False)


def _short(columns: Sequence[Column], rows: Rows) -> Rows:
    """Numbers with four digits that count, moments to the second."""
    numbers = {i for i, c in enumerate(columns) if c.type in ("DOUBLE", "FLOAT")}
    moments = {i for i, c in enumerate(columns) if c.type.startswith("TIMESTAMP")}

    def cell(place: int, value: str | None) -> str | None:
        if value is None or not (place in numbers or place in moments):
            return value
        return short_number(value) if place in numbers else _MOMENT.sub(r"\1", value)

    head, tail = ([[cell(i, v) for i, v in enumerate(row)] for row in part] for part in (rows.head, rows.tail))
    return Rows(head, tail, rows.count, rows.is_all)


def short_number(text: str) -> str:
    """A number with four digits that count, or all of those before its point.

    >>> short_number("0.23393448656606552"), short_number("174.275427383"), short_number("12345.678")
    ('0.2339', '174.3', '12346')
    """
    number = float(text)
    short = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
    return short if len(short) < len(text) else text
