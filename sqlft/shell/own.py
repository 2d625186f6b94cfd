"""Results of our own statements, which are wide: what matters of them, as wide as the screen.

`modes.table` calls `lines` for SHOW, DESCRIBE, EVALUATE, ANALYZE and the like.  Numbers have four digits that count,
columns that are NULL throughout go first, then those that matter least; texts are wrapped, and where even that leaves
too little room each row is a card.  Rows of queries are DuckDB's, and drawn by `table.draw` as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlft.shell.table import Column, Look, Row, Rows, card, draw, fits, natural, wrapped

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
    known = [i for i in range(len(columns)) if any(row[i] is not None for row in everything)] or [0]
    if len(everything) == 1:
        brief = [i for i in known if columns[i].name.lower() not in LEAST[:7]]
        return card(columns, everything[0], look, None if is_whole else brief)
    chosen = _Chosen(columns, rows, tuple(known))
    while chosen.size > width and (fewer := chosen.fewer()) is not None:
        chosen = fewer
    if chosen.size <= width:
        return draw(chosen.titles, chosen.cells, look, hidden=chosen.hidden)
    widths = _widths(chosen, width)
    if widths is not None:
        return wrapped(chosen.titles, chosen.cells, widths, look, chosen.hidden)
    if len(everything) <= MOST_CARDS:
        return _cards(columns, everything, look, [i for i in known if columns[i].name.lower() not in NOT_ON_CARDS])
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
        left = [i for i in range(len(self.columns)) if i not in self.kept]
        everything = [*self.rows.head, *self.rows.tail]
        return [self.columns[i].name for i in left if any(row[i] is not None for row in everything)]

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


def _widths(chosen: _Chosen, width: int) -> list[int] | None:
    """Columns' widths with the long texts wrapped into what the others leave; None if that is too little."""
    rows = [*chosen.cells.head, *chosen.cells.tail]
    sizes = [natural(c, [row[i] for row in rows]) for i, c in enumerate(chosen.titles)]
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
        yield from card(columns, [None if v == "[]" else v for v in row], look, kept, told=False)


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
