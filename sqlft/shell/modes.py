"""The ways to write a result: a function a mode, and a line in MODES."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import monotonic

from sqlft.shell.result import Result
from sqlft.shell.table import NULL, Column, Look, Row, Rows, clean, draw

Write = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """How many rows a table shows (0: all), and how far others are only counted: rows, seconds."""

    shown: int = 40
    counted: int = 100_000
    seconds: float = 2.0


def table(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Boxes, as wide as the screen; rows beyond the limit are counted, not kept."""
    batches = result.rows()
    rows = (row for batch in batches for row in batch)
    drawn = (line + "\n" for line in draw(result.columns, _sampled(rows, limits), look))
    text = "".join(drawn)
    batches.close()  # type: ignore[attr-defined]  # a generator, whose reader is to be closed at once
    write(text)


def csv(result: Result, write: Write, look: Look, limits: Limits) -> None:
    """Commas, a header; NULL is empty and an empty text is ""."""
    write(",".join(_csv(c.name) for c in result.columns) + "\n")
    for batch in result.rows():
        write("".join(",".join(map(_csv, row)) + "\n" for row in batch))


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
    width = max(map(len, names))
    between = ""
    for batch in result.rows():
        for row in batch:
            write(between)
            for name, value in zip(names, row, strict=True):
                write(f"{look.bold(name.rjust(width))} = {look.dim(NULL) if value is None else _plain(value, look)}\n")
            between = "\n"


MODES: dict[str, Callable[[Result, Write, Look, Limits], None]] = {
    "table": table,
    "csv": csv,
    "json": as_json,
    "line": line,
}

_NEEDS_QUOTES = re.compile(r'[,"\r\n]|^$|^\s|\s$')
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _sampled(rows: Iterator[Row], limits: Limits) -> Rows:
    if not limits.shown:
        head = list(rows)
        return Rows(head, (), len(head))
    head = list(islice(rows, limits.shown))
    half = (limits.shown + 1) // 2
    tail = deque(head[half:], maxlen=max(1, limits.shown - half))
    count, end = len(head), monotonic() + limits.seconds
    for row in rows:
        if count >= limits.counted or monotonic() > end:
            return Rows(head, (), count, is_all=False)
        tail.append(row)
        count += 1
    return Rows(head, (), count) if count == len(head) else Rows(head[:half], list(tail), count)


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
