"""The ways to write a result: a function a mode, and a line in MODES."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from sqlft.shell import own
from sqlft.shell.result import Result, rows_of
from sqlft.shell.table import DOTTED, Column, Look, Row, Rows, clean, draw, natural, padded, wrapped

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
        lines = own.lines(result.columns, rows, look, is_whole=result.is_described)
    else:
        lines = draw(result.columns, rows, look)
    write("".join(line + "\n" for line in lines))


def csv(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Commas, a header; NULL is empty and an empty text is ""."""
    write(",".join(_csv(c.name) for c in result.columns) + "\n")
    null = limits.null or ""
    for batch in result.batches():
        rows = zip(*(_csv_cells(column.to_pylist(), null) for column in batch.columns), strict=True)
        write("".join(",".join(row) + "\n" for row in rows))


def as_json(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """A list of objects, one a line."""
    names = [json.dumps(n, ensure_ascii=False) for n in _distinct(result.columns)]
    before = "["
    for batch in result.json():
        for row in batch:
            pairs = ",".join(f"{n}:{'null' if v is None else v}" for n, v in zip(names, row, strict=True))
            write(f"{before}{{{pairs}}}")
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
    """An object a line, for programs that read line by line."""
    names = [json.dumps(n, ensure_ascii=False) for n in _distinct(result.columns)]
    for batch in result.json():
        for row in batch:
            pairs = ",".join(f"{n}:{'null' if v is None else v}" for n, v in zip(names, row, strict=True))
            write(f"{{{pairs}}}\n")


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


def _csv_cells(values: list[Any], null: str) -> list[str]:
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
