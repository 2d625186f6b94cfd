"""The ways to write a result: a function a mode, and a line in MODES."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from sqlft.shell import own
from sqlft.shell.result import Result, rows_of
from sqlft.shell.table import DOTTED, NULL, Column, Look, Row, Rows, clean, draw, padded

if TYPE_CHECKING:
    import pyarrow as pa

Write = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """How many rows a table shows (0: all), and how far others are only counted: rows, seconds."""

    shown: int = 40
    counted: int = 100_000
    seconds: float = 2.0


def table(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Boxes, as wide as the screen; rows beyond the limit are counted, not kept."""
    batches = result.batches()
    rows = _sampled(batches, limits) if limits.shown else _all(batches)
    if result.is_ours:
        lines = own.lines(result.columns, rows, look, is_whole=result.is_described)
    else:
        lines = draw(result.columns, rows, look)
    write("".join(line + "\n" for line in lines))


def csv(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Commas, a header; NULL is empty and an empty text is ""."""
    write(",".join(_csv(c.name) for c in result.columns) + "\n")
    for batch in result.batches():
        rows = zip(*(_csv_cells(column.to_pylist()) for column in batch.columns), strict=True)
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
            values = (look.dim(NULL) if v is None else _plain(v, look) for v in row)
            write(between + "".join(f"{h}{v}\n" for h, v in zip(heads, values, strict=True)))
            between = "\n"


MODES: dict[str, Callable[[Result, Write, Look, Limits], None]] = {
    "table": table,
    "csv": csv,
    "json": as_json,
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


def _csv_cells(values: list[Any]) -> list[str]:
    """A column's cells; most need no look at each."""
    if None not in values and not _SUSPICIOUS.search("\x00".join(["", *values, ""])):
        return values
    return [_csv(v) for v in values]


def _csv(value: str | None) -> str:
    if value is None:
        return ""
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
