"""Rows drawn as a table that fits the screen: long cells shortened, columns in the middle left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

from sqlft.handler import LEARNT_END, LEARNT_START

Row = Sequence[str | None]

NULL = "NULL"
DOTS, DOTTED_LINES = "·", 3
"""In place of rows that are left out: a sign, and lines of it."""
NARROW_WIDTH = 20
"""Columns are shortened to this width before any is left out."""
MAX_LINES = 8
"""Of one text that is wrapped."""
MAX_ROW_LINES = 60
"""Of the text of a training row."""
_UNDERLINE, _NO_UNDERLINE = "\x01", "\x02"
"""In cells, where they have no width, until the line is written."""
MAX_CELL_WIDTH = 1000
"""No cell is wider, not even where there is no screen."""
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NUMBER_TYPES = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|U?INTEGER|FLOAT|DOUBLE|BIGNUM|DECIMAL\(.*\))\Z")
_SHORT_TYPES = {
    "TINYINT": "int8",
    "SMALLINT": "int16",
    "INTEGER": "int32",
    "BIGINT": "int64",
    "HUGEINT": "int128",
    "UTINYINT": "uint8",
    "USMALLINT": "uint16",
    "UINTEGER": "uint32",
    "UBIGINT": "uint64",
    "UHUGEINT": "uint128",
    '"NULL"': "null",
}
_TYPE_WORD = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[A-Z]\w*""")


class Column(NamedTuple):
    """A result's column; the type is DuckDB's name of it."""

    name: str
    type: str = "VARCHAR"

    @property
    def is_number(self) -> bool:
        """Whether its cells stand at the right."""
        return _NUMBER_TYPES.match(self.type) is not None


@dataclass(frozen=True)
class Rows:
    """The rows to be shown: the first and the last ones of `count`, which is a lower bound unless `is_all`."""

    head: Sequence[Row]
    tail: Sequence[Row] = ()
    count: int = 0
    is_all: bool = True


@dataclass(frozen=True)
class TableStyle:
    """How a table is drawn: `width` in characters, None where nothing needs to fit."""

    width: int | None = None
    colour: bool = False
    ascii: bool = False
    null: str = NULL

    def dim(self, text: str) -> str:
        """Text that is less important."""
        return f"\x1b[90m{text}\x1b[0m" if self.colour else text

    def bold(self, text: str) -> str:
        """Text that stands out."""
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text

    def underline(self, cell: str) -> str:
        """A cell with its underlined part as the screen takes it."""
        on, off = ("\x1b[4m", "\x1b[24m") if self.colour else ("", "")
        return cell.replace(_UNDERLINE, on).replace(_NO_UNDERLINE, off)


class _DrawnColumn(NamedTuple):
    """A column that is drawn; a hidden part is one of them too."""

    title: str
    type: str
    cells: list[list[str | None]]
    """Lines of each row."""
    width: int
    right: bool


def draw_table(columns: Sequence[Column], rows: Rows, style: TableStyle, hidden: Sequence[str] = ()) -> Iterator[str]:
    """The table's lines, the last one with what it leaves out; `hidden` was left out before."""
    drawn_columns, narrowed = _fit_columns(columns, [*rows.head, *rows.tail], style)
    yield from _draw_box(drawn_columns, rows, style, types=True)
    yield from _draw_footer(_describe_rows(len(columns), narrowed, rows), hidden, style)


def draw_wrapped(
    columns: Sequence[Column],
    rows: Rows,
    widths: Sequence[int],
    style: TableStyle,
    hidden: Sequence[str] = (),
    footer: bool = True,
) -> Iterator[str]:
    """A table whose texts take several lines each, without the line of types."""
    drawn_columns = []
    for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
        cells = [_fold_cell(row[i], width) for row in (*rows.head, *rows.tail)]
        drawn_columns.append(_DrawnColumn(_shorten(column.name, width), "", cells, width, column.is_number))
    yield from _draw_box(drawn_columns, rows, style, types=False)
    yield from _draw_footer(_describe_rows(len(columns), 0, rows) if footer else "", hidden, style)


def _fold_cell(text: str | None, width: int) -> list[str | None]:
    if text is not None and LEARNT_START in text:
        return [*_fold_row_text(text, width)]
    return [None] if text is None else [*fold_text(escape_controls(text), width)]


def _fold_row_text(text: str, width: int) -> list[str]:
    """The text of a training row: its own lines, letter for letter, what is learnt underlined."""
    parts = (escape_controls(part, len(part)) for part in text.split("\n"))
    lines = [line for part in parts for line in chop_cells(part, width) or [""]]
    lines = _underline_learnt(lines)
    half = MAX_ROW_LINES // 2
    return lines if len(lines) <= MAX_ROW_LINES else [*lines[:half], "…", *lines[1 - half :]]


def _underline_learnt(lines: Sequence[str]) -> list[str]:
    underlined, is_open = [], False
    for line in lines:
        marked = line.replace(LEARNT_START, _UNDERLINE + LEARNT_START).replace(LEARNT_END, LEARNT_END + _NO_UNDERLINE)
        marked = _UNDERLINE + marked if is_open else marked
        if LEARNT_START in line or LEARNT_END in line:
            is_open = line.rfind(LEARNT_START) > line.rfind(LEARNT_END)
        underlined.append(marked + _NO_UNDERLINE if is_open else marked)
    return underlined


def draw_card(
    columns: Sequence[Column], row: Row, style: TableStyle, kept: Sequence[int] | None = None, with_footer: bool = True
) -> Iterator[str]:
    """One row, one value per line, without those that are NULL and those not `kept`; the footer says how many."""
    places = range(len(columns)) if kept is None else kept
    values = [(escape_controls(columns[i].name), row[i] or "") for i in places if row[i] is not None]
    width = max((cell_len(name) for name, _ in values), default=0)
    for name, value in values:
        room = MAX_CELL_WIDTH if style.width is None else max(style.width - width - 3, NARROW_WIDTH)
        for number, line in enumerate(_fold_cell(value, room)):
            head = f"{style.bold(pad(name, width, True))} {style.dim('=')}" if number == 0 else " " * (width + 2)
            yield f"{head} {style.underline(line or '')}".rstrip()
    if with_footer and len(values) < len(columns):
        hides = any(v is not None for i, v in enumerate(row) if i not in places)
        others = "DESCRIBE shows all" if hides else "the others are NULL"
        yield style.dim(f"(1 row; {len(columns):,} columns, {len(values):,} shown, {others})")


def fold_text(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken between words where there are some; at most MOST_LINES.

    >>> fold_text("a text of several words", 10)
    ['a text of', 'several', 'words']
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= width:
            lines[-1] = longer
            continue
        first, *more = chop_cells(word, width) or [""]
        lines += [first, *more] if lines[-1] else []
        if not lines[0]:
            lines = [first, *more]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], _shorten(f"{lines[MAX_LINES - 1]}…", width)]
    return lines


def fits_width(columns: Sequence[Column], row: Row, style: TableStyle) -> bool:
    """Whether a table of this row hides no column."""
    return not _fit_columns(columns, [row], style)[1]


def escape_controls(text: str, longest: int = MAX_CELL_WIDTH) -> str:
    """One line without control characters, which a terminal would obey."""
    cut = text[: longest + 1]
    return _CONTROL_CHARACTERS.sub(_escape, cut) if not cut.isprintable() else cut


def shorten_type(name: str) -> str:
    """`BIGINT[]` as `int64[]`; names within a struct and values of an enum stay as they are."""
    return _TYPE_WORD.sub(
        lambda m: m[0] if m[0][0] in "'\"" else _SHORT_TYPES.get(m[0], m[0].lower()), _SHORT_TYPES.get(name, name)
    )


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT_ESCAPES.get(match[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _fit_columns(columns: Sequence[Column], rows: Sequence[Row], style: TableStyle) -> tuple[list[_DrawnColumn], int]:
    """The columns to draw and how many are hidden."""
    sizes = [natural_width(column, [row[i] for row in rows], style.null) for i, column in enumerate(columns)]
    width = style.width
    kept = list(range(len(columns)))
    gap = None
    if width is not None:
        kept, gap = _choose_columns(sizes, width)
        room = width - 1 - 3 * len(kept) - (4 if gap is not None else 0)
        sizes = dict(zip(kept, _share_width([sizes[i] for i in kept], room), strict=True))  # type: ignore[assignment]
    drawn_columns = [_fit_column(columns[i], [row[i] for row in rows], sizes[i]) for i in kept]
    if gap is not None:
        drawn_columns.insert(gap, _DrawnColumn("…", "", [["…"]] * len(rows), 1, False))
    return drawn_columns, len(columns) - len(kept)


def natural_width(column: Column, cells: Sequence[str | None], null: str = NULL) -> int:
    """The width at which nothing of a column is cut, but a long type."""
    widest = max((cell_len(null if c is None else escape_controls(c)) for c in cells), default=0)
    return min(
        MAX_CELL_WIDTH,
        max(cell_len(escape_controls(column.name)), min(len(shorten_type(column.type)), NARROW_WIDTH), widest, 1),
    )


def _choose_columns(sizes: Sequence[int], width: int) -> tuple[list[int], int | None]:
    """The columns that fit when they are narrow, from both ends inwards, and where the others are missing."""
    narrow = [min(s, NARROW_WIDTH) + 3 for s in sizes]
    if sum(narrow) + 1 <= width or len(sizes) == 1:
        return list(range(len(sizes))), None
    room, left, right = width - 1 - 4, 0, len(sizes)
    while left < right:
        from_left = left <= len(sizes) - right
        size = narrow[left] if from_left else narrow[right - 1]
        if size > room and left > 0:
            break
        room -= size
        left, right = (left + 1, right) if from_left else (left, right - 1)
    return [*range(left), *range(right, len(sizes))], left


def _share_width(sizes: Sequence[int], room: int) -> list[int]:
    """Widths that add up to at most `room`: the widest columns give way first."""
    left, widths = max(room, len(sizes)), dict.fromkeys(range(len(sizes)), 1)
    for rank, i in enumerate(sorted(widths, key=lambda i: sizes[i])):
        widths[i] = max(1, min(sizes[i], left // (len(sizes) - rank)))
        left -= widths[i]
    return [widths[i] for i in range(len(sizes))]


def _fit_column(column: Column, cells: Sequence[str | None], width: int) -> _DrawnColumn:
    cut: list[list[str | None]] = [
        [None] if c is None else [*_underline_learnt([_shorten(escape_controls(c), width)])] for c in cells
    ]
    return _DrawnColumn(
        _shorten(escape_controls(column.name), width),
        _shorten(shorten_type(column.type), width),
        cut,
        width,
        column.is_number,
    )


def _shorten(text: str, width: int) -> str:
    """Shortened with … if it is wider than `width` cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"


def pad(text: str, width: int, right: bool) -> str:
    """Filled with blanks up to `width` cells."""
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def _center(text: str, width: int) -> str:
    free = width - cell_len(text)
    return " " * (free // 2) + text + " " * (free - free // 2)


def _draw_rule(shown: Sequence[_DrawnColumn], corners: str, style: TableStyle) -> str:
    left, middle, right = corners[0], corners[-2], corners[-1]
    return left + middle.join(("-" if style.ascii else "─") * (c.width + 2) for c in shown) + right


def _draw_line(edge: str, cells: Iterator[str]) -> str:
    return f"{edge} " + f" {edge} ".join(cells) + f" {edge}"


def _draw_box(columns: Sequence[_DrawnColumn], rows: Rows, style: TableStyle, *, types: bool) -> Iterator[str]:
    edge = style.dim("|" if style.ascii else "│")
    yield style.dim(_draw_rule(columns, "+++" if style.ascii else "┌┬┐", style))
    yield _draw_line(edge, (style.bold(_center(c.title, c.width)) for c in columns))
    if types:
        yield _draw_line(edge, (style.dim(_center(c.type, c.width)) for c in columns))
    yield style.dim(_draw_rule(columns, "+++" if style.ascii else "├┼┤", style))
    for number in range(len(rows.head) + len(rows.tail)):
        if number == len(rows.head):
            yield from _draw_dots(columns, edge, style)
        for cells in zip_longest(*(c.cells[number] for c in columns), fillvalue=""):
            yield _draw_line(edge, (_draw_cell(c, cell, style) for c, cell in zip(columns, cells, strict=True)))
    if not rows.tail and not rows.is_all:
        yield from _draw_dots(columns, edge, style)
    yield style.dim(_draw_rule(columns, "+++" if style.ascii else "└┴┘", style))


def _draw_cell(column: _DrawnColumn, cell: str | None, style: TableStyle) -> str:
    if cell is None:
        return style.dim(pad(_shorten(escape_controls(style.null), column.width), column.width, column.right))
    return style.underline(pad(cell, column.width, column.right))


def _draw_dots(shown: Sequence[_DrawnColumn], edge: str, style: TableStyle) -> Iterator[str]:
    for _ in range(DOTTED_LINES):
        yield _draw_line(edge, (style.dim(pad("." if style.ascii else DOTS, c.width, c.right)) for c in shown))


def _draw_footer(footer: str, hidden: Sequence[str], style: TableStyle) -> Iterator[str]:
    if footer:
        yield style.dim(footer)
    if hidden:
        listed = f"(not shown: {', '.join(hidden)})"
        yield from (style.dim(line) for line in fold_text(listed, style.width or MAX_CELL_WIDTH))


def _describe_rows(columns: int, hidden: int, rows: Rows) -> str:
    seen = len(rows.head) + len(rows.tail)
    parts = []
    if rows.count > seen or not rows.is_all:
        parts.append(f"{'' if rows.is_all else 'more than '}{rows.count:,} rows, {seen:,} shown")
    elif rows.count == 0 or rows.count >= 10 or hidden:
        parts.append(f"{rows.count:,} row{'' if rows.count == 1 else 's'}")
    if hidden:
        parts.append(f"{columns:,} columns, {columns - hidden:,} shown")
    return f"({'; '.join(parts)})" if parts else ""
