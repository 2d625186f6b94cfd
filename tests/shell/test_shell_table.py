"""Tables as they are drawn."""

import pytest
from rich.cells import cell_len

from sqlft.shell.output.table import (
    Column,
    Row,
    Rows,
    TableStyle,
    draw_card,
    draw_table,
    draw_wrapped,
    escape_controls,
    shorten_type,
)

ID, TEXT = Column("id", "BIGINT"), Column("answer", "VARCHAR")


def draw_lines(columns: list[Column], rows: list[Row], width: int | None = None, **look: bool) -> list[str]:
    return list(draw_table(columns, Rows(rows, (), len(rows)), TableStyle(width, **look)))


def test_numbers_stand_right_and_null_is_written() -> None:
    assert draw_lines([ID, TEXT], [("1", "yes"), ("20", None)]) == [
        "┌───────┬─────────┐",
        "│  id   │ answer  │",
        "│ int64 │ varchar │",
        "├───────┼─────────┤",
        "│     1 │ yes     │",
        "│    20 │ NULL    │",
        "└───────┴─────────┘",
    ]


def test_wide_characters_keep_the_edges_straight() -> None:
    lines = draw_lines([ID, TEXT], [("1", "日本語 ✓ 😀"), ("2", "é"), ("3", "e\u0301")])
    assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", [10, 20, 33, 50, 80, 117, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_a_table_is_never_wider_than_the_screen(width: int, count: int) -> None:
    columns = [Column(f"column_{i}" * (1 + i % 3), "DECIMAL(18,3)" if i % 2 else "VARCHAR") for i in range(count)]
    rows: list[Row] = [[f"{i} {'x' * (i * 13 % 90)}" for i in range(count)]] * 3
    lines = draw_lines(columns, rows, width)
    boxes = [line for line in lines if not line.startswith("(")]
    assert {cell_len(line) for line in boxes} == {cell_len(boxes[0])}
    assert cell_len(boxes[0]) <= max(width, 9)


def test_a_long_cell_gives_way_before_a_short_one() -> None:
    lines = draw_lines([ID, TEXT], [("1234567", "x" * 300)], 40)
    assert "1234567" in lines[4]
    assert "xxx…" in lines[4]
    assert cell_len(lines[0]) == 40


def test_columns_in_the_middle_are_left_out() -> None:
    columns = [Column(f"c{i}", "INTEGER") for i in range(10_000)]
    lines = draw_lines(columns, [[str(i) for i in range(10_000)]], 80)
    assert "c0" in lines[1]
    assert "c9999" in lines[1]
    assert "…" in lines[1]
    assert lines[-1] == "(1 row; 10,000 columns, 9 shown)"


def test_rows_left_out_are_told() -> None:
    head: list[Row] = [("0", "a"), ("1", "b")]
    tail: list[Row] = [("19998", "y"), ("19999", "z")]
    lines = list(draw_table([ID, TEXT], Rows(head, tail, 20_000), TableStyle()))
    assert lines[6:9] == ["│     · │ ·       │"] * 3
    assert lines[-1] == "(20,000 rows, 4 shown)"
    cut = list(draw_table([ID, TEXT], Rows(head, (), 5000, is_all=False), TableStyle()))
    assert cut[-1] == "(more than 5,000 rows, 2 shown)"
    assert cut[-5:-2] == ["│     · │ ·       │"] * 3


def test_footers() -> None:
    assert draw_lines([ID], [])[-1] == "(0 rows)"
    assert draw_lines([ID], [("1",)])[-1] == "└───────┘"
    assert draw_lines([ID], [(str(i),) for i in range(10)])[-1] == "(10 rows)"


def test_no_cell_can_steer_the_terminal() -> None:
    lines = draw_lines([Column("a\nb")], [("red \x1b[31m bell \x07\r\n\t\u202e\u2028\x00",)])
    assert lines[4] == "│ red \\x1b[31m bell \\x07\\r\\n\\t\\u202e\\u2028\\x00 │"
    assert "a\\nb" in lines[1]


def test_a_huge_cell_is_cut_also_where_there_is_no_screen() -> None:
    assert cell_len(draw_lines([TEXT], [("x" * 10_000_000,)])[4]) == 1004
    assert len(escape_controls("x" * 5000)) == 1001


def test_colour_marks_null_and_nothing_without_it() -> None:
    coloured = draw_lines([TEXT], [(None,), ("NULL",)], colour=True)
    assert "\x1b[90mNULL" in coloured[4]
    assert "\x1b[90mNULL" not in coloured[5]
    assert "\x1b" not in "".join(draw_lines([TEXT], [(None,)]))


def test_plain_letters_where_lines_cannot_be_drawn() -> None:
    lines = draw_lines([ID, TEXT], [("1", "x")], ascii=True)
    assert lines[0] == "+-------+---------+"
    assert lines[4] == "|     1 | x       |"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("BIGINT", "int64"),
        ("INTEGER[]", "int32[]"),
        ("DECIMAL(18,3)", "decimal(18,3)"),
        ('STRUCT("Key" BIGINT, b VARCHAR)', 'struct("Key" int64, b varchar)'),
        ("ENUM('INTEGER', 'b')", "enum('INTEGER', 'b')"),
        ("MAP(VARCHAR, HUGEINT)", "map(varchar, int128)"),
        ("TIMESTAMP WITH TIME ZONE", "timestamp with time zone"),
    ],
)
def test_types_are_short(name: str, short: str) -> None:
    assert shorten_type(name) == short


def test_a_card_shows_what_is_known() -> None:
    columns = [Column("NAME"), Column("ERROR"), Column("QUERY")]
    assert list(draw_card(columns, ("m", None, "SELECT\n1" + "x" * 50), TableStyle(30))) == [
        " NAME = m",
        "QUERY = SELECT\\n1xxxxxxxxxxxxx",
        "        xxxxxxxxxxxxxxxxxxxxxx",
        "        xxxxxxxxxxxxxxx",
        "(1 row; 3 columns, 2 shown, the others are NULL)",
    ]


ROW_TEXT = "<s>user\n1 + 1 =\nassistant\n⟦It is two,\nor  so</s>⟧"


@pytest.mark.parametrize("colour", [False, True])
def test_what_a_row_teaches_is_underlined_line_by_line(colour: bool) -> None:
    columns = [Column("severity"), Column("finding")]
    rows = Rows([("info", ROW_TEXT), ("info", "other")], (), 2)
    lines = list(draw_wrapped(columns, rows, [8, 12], TableStyle(None, colour), footer=False))
    cells = [line.split("│")[2].strip(" ") if not colour else line for line in lines[3:-2]]
    if not colour:
        assert cells == ["<s>user", "1 + 1 =", "assistant", "⟦It is two,", "or  so</s>⟧"]
    else:
        on, off = "\x1b[4m", "\x1b[24m"
        assert [on in cell for cell in cells] == [off in cell for cell in cells] == [False, False, False, True, True]
        assert f"{on}⟦It is two,{off}" in cells[3]
        assert f"{on}or  so</s>⟧{off}" in cells[4]
    card = [line.strip(" =") for line in draw_card(columns[1:], (ROW_TEXT,), TableStyle(40))]
    assert card[-2:] == ["⟦It is two,", "or  so</s>⟧"]


def test_a_long_row_keeps_both_ends() -> None:
    text = "\n".join(f"line {i}" for i in range(500)) + "⟦yes⟧"
    lines = list(draw_card([TEXT], (text,), TableStyle(40)))
    assert len(lines) == 60
    assert lines[0].endswith("line 0")
    assert lines[-1].endswith("line 499⟦yes⟧")


def test_no_control_character_of_a_row_reaches_the_terminal() -> None:
    for line in draw_lines([TEXT], [("⟦\x1b[31m\x01\x02⟧",), ("\x01",)], colour=True):
        assert "\x1b[31m" not in line
        assert not {"\x01", "\x02"} & set(line)
