"""Rows drawn as a table that fits the screen: long cells shortened, columns in the middle left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

Row = Sequence[str | None]

NULL = "NULL"
DOTS, DOTTED = "·", 3
"""In place of rows that are left out: a sign, and lines of it."""
NARROW = 20
"""Columns are shortened to this width before any is left out."""
MOST_LINES = 8
"""Of one text that is wrapped."""
LONGEST = 1000
"""No cell is wider, not even where there is no screen."""
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NUMBERS = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|U?INTEGER|FLOAT|DOUBLE|BIGNUM|DECIMAL\(.*\))\Z")
_TYPES = {
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
        return _NUMBERS.match(self.type) is not None


@dataclass(frozen=True)
class Rows:
    """The rows to be shown: the first and the last ones of `count`, which is a lower bound unless `is_all`."""

    head: Sequence[Row]
    tail: Sequence[Row] = ()
    count: int = 0
    is_all: bool = True


@dataclass(frozen=True)
class Look:
    """How a table is drawn: `width` in characters, None where nothing needs to fit."""

    width: int | None = None
    colour: bool = False
    ascii: bool = False
    null: str = NULL

    def dim(self, text: str) -> str:
        """Text that stands back."""
        return f"\x1b[90m{text}\x1b[0m" if self.colour else text

    def bold(self, text: str) -> str:
        """Text that stands out."""
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text


class _Shown(NamedTuple):
    """A column that is drawn; a hidden part is one of them too."""

    title: str
    type: str
    cells: list[str | None]
    width: int
    right: bool


def draw(columns: Sequence[Column], rows: Rows, look: Look, hidden: Sequence[str] = ()) -> Iterator[str]:
    """The table's lines, with what it leaves out in the last one; `hidden` was left out before."""
    drawn_columns, narrowed = _fitted(columns, [*rows.head, *rows.tail], look)
    edge = look.dim("|" if look.ascii else "│")
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "┌┬┐", look))
    yield _line(edge, (look.bold(_centred(c.title, c.width)) for c in drawn_columns))
    yield _line(edge, (look.dim(_centred(c.type, c.width)) for c in drawn_columns))
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "├┼┤", look))
    yield from _body(drawn_columns, rows, edge, look)
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "└┴┘", look))
    if footer := _footer(len(columns), narrowed, rows):
        yield look.dim(footer)
    yield from _left_out(hidden, look)


def wrapped(
    columns: Sequence[Column],
    rows: Rows,
    widths: Sequence[int],
    look: Look,
    hidden: Sequence[str] = (),
    footer: bool = True,
) -> Iterator[str]:
    """A table whose texts take several lines each, without the line of types."""
    edge = look.dim("|" if look.ascii else "│")
    drawn_columns = [_Shown(c.name, "", [], width, c.is_number) for c, width in zip(columns, widths, strict=True)]
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "┌┬┐", look))
    yield _line(edge, (look.bold(_centred(_cut(c.title, c.width), c.width)) for c in drawn_columns))
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "├┼┤", look))
    for number, row in enumerate([*rows.head, *rows.tail]):
        if number and number == len(rows.head):
            yield from _dots(drawn_columns, edge, look)
        folded = [[None] if v is None else fold(clean(v), c.width) for v, c in zip(row, drawn_columns, strict=True)]
        for i in range(max(map(len, folded))):
            yield _line(
                edge, (_cell(c, f[i] if i < len(f) else "", look) for c, f in zip(drawn_columns, folded, strict=True))
            )
    yield look.dim(_rule(drawn_columns, "+++" if look.ascii else "└┴┘", look))
    if footer and (footer_text := _footer(len(columns), 0, rows)):
        yield look.dim(footer_text)
    yield from _left_out(hidden, look)


def card(
    columns: Sequence[Column], row: Row, look: Look, kept: Sequence[int] | None = None, with_footer: bool = True
) -> Iterator[str]:
    """One row, a value below the other, without those that are NULL and those not `kept`; `with_footer` says how many."""
    places = range(len(columns)) if kept is None else kept
    values = [(clean(columns[i].name), clean(row[i] or "")) for i in places if row[i] is not None]
    width = max((cell_len(name) for name, _ in values), default=0)
    for name, value in values:
        room = LONGEST if look.width is None else max(look.width - width - 3, NARROW)
        for number, line in enumerate(fold(value, room)):
            head = f"{look.bold(padded(name, width, True))} {look.dim('=')}" if number == 0 else " " * (width + 2)
            yield f"{head} {line}".rstrip()
    if with_footer and len(values) < len(columns):
        hides = any(v is not None for i, v in enumerate(row) if i not in places)
        others = "DESCRIBE shows all" if hides else "the others are NULL"
        yield look.dim(f"(1 row; {len(columns):,} columns, {len(values):,} shown, {others})")


def fold(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken between words where there are some; at most MOST_LINES.

    >>> fold("a text of several words", 10)
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
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], _cut(f"{lines[MOST_LINES - 1]}…", width)]
    return lines


def _left_out(hidden: Sequence[str], look: Look) -> Iterator[str]:
    if hidden:
        listed = f"(not shown: {', '.join(hidden)})"
        yield from (look.dim(line) for line in fold(listed, look.width or LONGEST))


def fits(columns: Sequence[Column], row: Row, look: Look) -> bool:
    """Whether a table of this row hides no column."""
    return not _fitted(columns, [row], look)[1]


def clean(text: str, longest: int = LONGEST) -> str:
    """One line without control characters, which a terminal would obey."""
    cut = text[: longest + 1]
    return _UNSEEN.sub(_escaped, cut) if not cut.isprintable() else cut


def short_type(name: str) -> str:
    """`BIGINT[]` as `int64[]`; names within a struct and values of an enum stay as they are."""
    return _TYPE_WORD.sub(
        lambda m: m[0] if m[0][0] in "'\"" else _TYPES.get(m[0], m[0].lower()), _TYPES.get(name, name)
    )


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _fitted(columns: Sequence[Column], rows: Sequence[Row], look: Look) -> tuple[list[_Shown], int]:
    """The columns to draw and how many are hidden."""
    sizes = [natural(column, [row[i] for row in rows], look.null) for i, column in enumerate(columns)]
    width = look.width
    kept = list(range(len(columns)))
    gap = None
    if width is not None:
        kept, gap = _kept(sizes, width)
        room = width - 1 - 3 * len(kept) - (4 if gap is not None else 0)
        sizes = dict(zip(kept, _shared([sizes[i] for i in kept], room), strict=True))  # type: ignore[assignment]
    drawn_columns = [_column(columns[i], [row[i] for row in rows], sizes[i]) for i in kept]
    if gap is not None:
        drawn_columns.insert(gap, _Shown("…", "", ["…"] * len(rows), 1, False))
    return drawn_columns, len(columns) - len(kept)


def natural(column: Column, cells: Sequence[str | None], null: str = NULL) -> int:
    """The width at which nothing of a column is cut, but a long type."""
    widest = max((cell_len(null if c is None else clean(c)) for c in cells), default=0)
    return min(LONGEST, max(cell_len(clean(column.name)), min(len(short_type(column.type)), NARROW), widest, 1))


def _kept(sizes: Sequence[int], width: int) -> tuple[list[int], int | None]:
    """The columns that fit when they are narrow, from both ends inwards, and where the others are missing."""
    narrow = [min(s, NARROW) + 3 for s in sizes]
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


def _shared(sizes: Sequence[int], room: int) -> list[int]:
    """Widths that add up to at most `room`: the widest columns give way first."""
    left, widths = max(room, len(sizes)), dict.fromkeys(range(len(sizes)), 1)
    for rank, i in enumerate(sorted(widths, key=lambda i: sizes[i])):
        widths[i] = max(1, min(sizes[i], left // (len(sizes) - rank)))
        left -= widths[i]
    return [widths[i] for i in range(len(sizes))]


def _column(column: Column, cells: Sequence[str | None], width: int) -> _Shown:
    cut = [None if c is None else _cut(clean(c), width) for c in cells]
    return _Shown(_cut(clean(column.name), width), _cut(short_type(column.type), width), cut, width, column.is_number)


def _cut(text: str, width: int) -> str:
    """Shortened with … if it is wider than `width` cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"


def padded(text: str, width: int, right: bool) -> str:
    """Filled with blanks up to `width` cells."""
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def _centred(text: str, width: int) -> str:
    free = width - cell_len(text)
    return " " * (free // 2) + text + " " * (free - free // 2)


def _rule(shown: Sequence[_Shown], corners: str, look: Look) -> str:
    left, middle, right = corners[0], corners[-2], corners[-1]
    return left + middle.join(("-" if look.ascii else "─") * (c.width + 2) for c in shown) + right


def _line(edge: str, cells: Iterator[str]) -> str:
    return f"{edge} " + f" {edge} ".join(cells) + f" {edge}"


def _body(shown: Sequence[_Shown], rows: Rows, edge: str, look: Look) -> Iterator[str]:
    for number in range(len(rows.head) + len(rows.tail)):
        if number == len(rows.head):
            yield from _dots(shown, edge, look)
        yield _line(edge, (_cell(c, c.cells[number], look) for c in shown))
    if not rows.tail and not rows.is_all:
        yield from _dots(shown, edge, look)


def _cell(column: _Shown, cell: str | None, look: Look) -> str:
    if cell is None:
        return look.dim(padded(_cut(clean(look.null), column.width), column.width, column.right))
    return padded(cell, column.width, column.right)


def _dots(shown: Sequence[_Shown], edge: str, look: Look) -> Iterator[str]:
    for _ in range(DOTTED):
        yield _line(edge, (look.dim(padded("." if look.ascii else DOTS, c.width, c.right)) for c in shown))


def _footer(columns: int, hidden: int, rows: Rows) -> str:
    seen = len(rows.head) + len(rows.tail)
    parts = []
    if rows.count > seen or not rows.is_all:
        parts.append(f"{'' if rows.is_all else 'more than '}{rows.count:,} rows, {seen:,} shown")
    elif rows.count == 0 or rows.count >= 10 or hidden:
        parts.append(f"{rows.count:,} row{'' if rows.count == 1 else 's'}")
    if hidden:
        parts.append(f"{columns:,} columns, {columns - hidden:,} shown")
    return f"({'; '.join(parts)})" if parts else ""
