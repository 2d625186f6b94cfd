"""The ways to write a result: one function and one line in MODES for each.

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

from sqlft.shell.output.result import Result, to_rows
from sqlft.shell.output.table import (
    DOTTED_LINES,
    Column,
    Row,
    Rows,
    TableStyle,
    draw_card,
    draw_table,
    draw_wrapped,
    escape_controls,
    fits_width,
    natural_width,
    pad,
)

if TYPE_CHECKING:
    import pyarrow as pa

Write = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """How many rows a table shows (0: all), how wide it is (0: the screen), what NULL is (None: as the mode has it).

    Rows beyond those shown are only counted, up to `counted` rows or `seconds`.
    """

    shown: int = 40
    width: int = 0
    null: str | None = None
    counted: int = 100_000
    seconds: float = 2.0


def write_table(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """Boxes, as wide as the screen; rows beyond the limit are counted, not kept."""
    batches = result.batches_kept()
    rows = _sample(batches, limits) if limits.shown else _read_all(batches)
    if result.is_ours:
        text_lines = draw_own_result(result.columns, rows, style, is_whole=result.is_described)
    else:
        text_lines = draw_table(result.columns, rows, style)
    write("".join(line + "\n" for line in text_lines))


def write_csv(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """Comma-separated with a header; NULL is empty and an empty text is ""."""
    write(",".join(_quote_csv(c.name) for c in result.columns) + "\n")
    null = limits.null or ""
    for batch in result.batches():
        rows = zip(*(_csv_cells(column.to_pylist(), null) for column in batch.columns), strict=True)
        write("".join(",".join(row) + "\n" for row in rows))


def write_json(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """A list of objects, one per line."""
    before = "["
    for text in _json_objects(result):
        write(before + text)
        before = ",\n"
    write("[]\n" if before == "[" else "]\n")


def write_lines(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """One line per value, for long texts; an empty line between rows."""
    names = [escape_controls(c.name) for c in result.columns]
    width = max(map(cell_len, names))
    heads = [f"{style.bold(pad(name, width, right=True))} = " for name in names]
    between = ""
    for batch in result.rows():
        for row in batch:
            values = (style.dim(style.null) if v is None else _escape_value(v, style) for v in row)
            write(between + "".join(f"{h}{v}\n" for h, v in zip(heads, values, strict=True)))
            between = "\n"


def write_box(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """A table of all rows without types, as wide as its contents."""
    rows = _read_all(result.batches())
    everything = [*rows.head]
    widths = [natural_width(c, [row[i] for row in everything], style.null) for i, c in enumerate(result.columns)]
    lines = draw_wrapped(result.columns, rows, widths, replace(style, width=None), footer=False)
    write("".join(line + "\n" for line in lines))


def write_json_lines(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """One object per line, for programs that read line by line."""
    for text in _json_objects(result):
        write(f"{text}\n")


def _json_objects(result: Result) -> Iterator[str]:
    names = [json.dumps(n, ensure_ascii=False) for n in _distinct_names(result.columns)]
    for batch in result.json():
        for row in batch:
            pairs = ",".join(f"{n}:{'null' if v is None else v}" for n, v in zip(names, row, strict=True))
            yield f"{{{pairs}}}"


def write_markdown(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """A table of Markdown."""

    def cell(text: str) -> str:
        return re.sub(r"\r\n|[\r\n]", "<br>", text.replace("|", "\\|"))

    write(f"| {' | '.join(cell(c.name) for c in result.columns)} |\n")
    write(f"| {' | '.join('---:' if c.is_number else '---' for c in result.columns)} |\n")
    for batch in result.rows():
        for row in batch:
            write(f"| {' | '.join(style.null if v is None else cell(v) for v in row)} |\n")


def write_html(result: Result, write: Write, style: TableStyle, limits: Limits) -> None:
    """A table of HTML."""
    write("<table>\n<tr>" + "".join(f"<th>{escape(c.name)}</th>" for c in result.columns) + "</tr>\n")
    for batch in result.rows():
        for row in batch:
            cells = (escape(style.null if v is None else v) for v in row)
            write("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    write("</table>\n")


MODES: dict[str, Callable[[Result, Write, TableStyle, Limits], None]] = {
    "table": write_table,
    "box": write_box,
    "csv": write_csv,
    "json": write_json,
    "jsonlines": write_json_lines,
    "markdown": write_markdown,
    "html": write_html,
    "line": write_lines,
}

_NEEDS_QUOTES = re.compile(r'[,"\r\n]|\A\s|\s\Z|\A\Z')
_SUSPICIOUS = re.compile(r'[,"\r\n]|\s\x00|\x00\s|\x00\x00')
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _read_all(batches: Iterator[pa.RecordBatch]) -> Rows:
    rows = [row for batch in batches for row in to_rows(batch)]
    return Rows(rows, (), len(rows))


def _sample(batches: Iterator[pa.RecordBatch], limits: Limits) -> Rows:
    """The first rows and, if the end is soon reached, the last ones."""
    head: list[Row] = []
    last: deque[pa.RecordBatch] = deque()
    half, count, end = (limits.shown + 1) // 2, 0, 0.0
    for batch in batches:
        if len(head) < limits.shown + DOTTED_LINES:
            head += to_rows(batch.slice(0, limits.shown + DOTTED_LINES - len(head)))
            end = monotonic() + limits.seconds
        last.append(batch)
        count += batch.num_rows
        while sum(b.num_rows for b in last) - last[0].num_rows >= limits.shown - half:
            last.popleft()
        if count > limits.shown + DOTTED_LINES and (count >= limits.counted or monotonic() > end):
            return Rows(head[: limits.shown], (), count, is_all=False)
    if count <= limits.shown + DOTTED_LINES:
        return Rows(head, (), count)
    rows = [row for batch in last for row in to_rows(batch)]
    return Rows(head[:half], rows[len(rows) - (limits.shown - half) :], count)


def _csv_cells(values: list[str | None], null: str) -> list[str]:
    """A column's cells; most need no look at each."""
    texts = [v for v in values if v is not None]
    if len(texts) == len(values) and not _SUSPICIOUS.search("\x00".join(["", *texts, ""])):
        return texts
    return [null if v is None else _quote_csv(v) for v in values]


def _quote_csv(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if _NEEDS_QUOTES.search(value) else value


def _distinct_names(columns: list[Column]) -> list[str]:
    """Names as DuckDB itself tells them apart: a, a_1."""
    names: list[str] = []
    for column in columns:
        name, number = column.name, 0
        while name in names:
            number += 1
            name = f"{column.name}_{number}"
        names.append(name)
    return names


def _escape_value(value: str, style: TableStyle) -> str:
    """On a terminal no control characters, but line ends and tabs stay."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", value) if style.colour else value


PIPED_WIDTH = 120
"""Columns where there is no screen: mails and logs show that many."""
MIN_WRAPPED_WIDTH = 24
"""A text is not wrapped into a column that is narrower."""
MAX_CARDS = 40
LEAST_IMPORTANT = (
    *("mindsdb_version", "update_status", "training_phase_name", "training_options", "select_data_query"),
    *("current_training_phase", "total_training_phases", "created_at", "project", "predict", "connection_data"),
    *("interval", "test", "baseline", "seconds", "cost_usd", "ties", "failed", "difference_low", "difference_high"),
    *("losses", "wins", "answer", "details", "rows", "code", "count", "package", "type", "import_success"),
    *("tag", "base", "engine", "minutes", "loss", "training_time", "high", "low", "active"),
)
"""Names of columns in the order in which they give way; what is not among them stays."""
NOT_ON_CARDS = (*LEAST_IMPORTANT[:7], "rows", "details")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+")


def draw_own_result(
    columns: Sequence[Column], rows: Rows, style: TableStyle, *, is_whole: bool = False
) -> Iterator[str]:
    """The result's lines; `is_whole` shows all of a single row that is not NULL, as DESCRIBE does."""
    rows = _shorten_values(columns, rows)
    width = style.width or PIPED_WIDTH
    style = replace(style, width=width)
    everything = [*rows.head, *rows.tail]
    if all(fits_width(columns, row, style) for row in everything[:1]) and _table_width(columns, everything) <= width:
        return draw_table(columns, rows, style)
    filled = [i for i in range(len(columns)) if any(row[i] is not None for row in everything)] or [0]
    if len(everything) == 1:
        essential = [i for i in filled if columns[i].name.lower() not in LEAST_IMPORTANT[:7]]
        return draw_card(columns, everything[0], style, None if is_whole else essential)
    selection = _Selection(columns, rows, tuple(filled))
    while selection.size > width and (fewer := selection.fewer()) is not None:
        selection = fewer
    if selection.size <= width:
        return draw_table(selection.titles, selection.cells, style, hidden=selection.hidden)
    widths = _wrap_widths(selection, width)
    if widths is not None:
        return draw_wrapped(selection.titles, selection.cells, widths, style, selection.hidden)
    if len(everything) <= MAX_CARDS:
        return _draw_cards(
            columns, everything, style, [i for i in filled if columns[i].name.lower() not in NOT_ON_CARDS]
        )
    return draw_table(columns, rows, style)


@dataclass(frozen=True)
class _Selection:
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
        return _table_width(self.titles, [*cells.head, *cells.tail])

    def fewer(self) -> _Selection | None:
        """Without the column that matters least."""
        names = {self.columns[i].name.lower(): i for i in self.kept}
        for name in LEAST_IMPORTANT:
            if name in names:
                return _Selection(self.columns, self.rows, tuple(i for i in self.kept if i != names[name]))
        return None


def _table_width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(natural_width(c, [row[i] for row in rows]) + 3 for i, c in enumerate(columns)) + 1


def _wrap_widths(selection: _Selection, width: int) -> list[int] | None:
    """Columns' widths with the long texts wrapped into what the others leave; None if that is too little."""
    rows = [*selection.cells.head, *selection.cells.tail]
    sizes = [natural_width(c, [row[i] for row in rows]) for i, c in enumerate(selection.titles)]
    long = [i for i, size in enumerate(sizes) if size > MIN_WRAPPED_WIDTH]
    room = width - 1 - 3 * len(sizes) - sum(size for i, size in enumerate(sizes) if i not in long)
    for rank, i in enumerate(sorted(long, key=lambda i: sizes[i])):
        share = room // (len(long) - rank)
        if share < MIN_WRAPPED_WIDTH:
            return None
        sizes[i] = min(sizes[i], share)
        room -= sizes[i]
    return sizes if long and room >= 0 else None


def _draw_cards(
    columns: Sequence[Column], rows: Sequence[Row], style: TableStyle, kept: Sequence[int]
) -> Iterator[str]:
    for number, row in enumerate(rows):
        if number:
            yield ""
        yield from draw_card(columns, [None if v == "[]" else v for v in row], style, kept, with_footer=False)


def _shorten_values(columns: Sequence[Column], rows: Rows) -> Rows:
    """Numbers with four digits that count, moments to the second."""
    numbers = {i for i, c in enumerate(columns) if c.type in ("DOUBLE", "FLOAT")}
    moments = {i for i, c in enumerate(columns) if c.type.startswith("TIMESTAMP")}

    def cell(place: int, value: str | None) -> str | None:
        if value is None or not (place in numbers or place in moments):
            return value
        return shorten_number(value) if place in numbers else _MOMENT.sub(r"\1", value)

    head, tail = ([[cell(i, v) for i, v in enumerate(row)] for row in part] for part in (rows.head, rows.tail))
    return Rows(head, tail, rows.count, rows.is_all)


def shorten_number(text: str) -> str:
    """A number with four digits that count, or all of those before its point.

    >>> shorten_number("0.23393448656606552"), shorten_number("174.275427383"), shorten_number("12345.678")
    ('0.2339', '174.3', '12346')
    """
    number = float(text)
    short = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
    return short if len(short) < len(text) else text
