"""Texts cut into statements and dot-commands."""

import pytest

from sqlft.shell.reading import Script, ScriptItem, is_complete, split_script

SCRIPT = """\
-- a; comment
SELECT 1; SELECT ';', ";", $$;
.not a command;$$;

.mode csv
/* ;
.neither */ SELECT E'\\';' AS "x;y"
;;
  .tables  people
CREATE MODEL m FROM db (SELECT 1;
) PREDICT y;
SELECT .5"""

EXPECTED = [
    ScriptItem("SELECT 1", 2),
    ScriptItem("SELECT ';', \";\", $$;\n.not a command;$$", 2),
    ScriptItem(".mode csv", 5),
    ScriptItem("SELECT E'\\';' AS \"x;y\"", 7),
    ScriptItem(".tables  people", 9),
    ScriptItem("CREATE MODEL m FROM db (SELECT 1;\n) PREDICT y", 10),
    ScriptItem("SELECT .5", 12),
]


def test_statements_and_commands_with_their_lines() -> None:
    assert list(split_script(SCRIPT)) == EXPECTED


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_script_that_comes_bit_by_bit_gives_the_same(size: int) -> None:
    script = Script()
    found = [p for i in range(0, len(SCRIPT), size) for p in script.feed(SCRIPT[i : i + size])]
    assert [*found, *script.finish()] == EXPECTED


def test_a_statement_is_given_as_soon_as_its_line_ends() -> None:
    script = Script()
    assert list(script.feed("SELECT 1; SELECT")) == []
    assert list(script.feed(" 2\n")) == [ScriptItem("SELECT 1", 1)]
    assert list(script.feed(";\n")) == [ScriptItem("SELECT 2", 1)]


def test_a_comment_that_is_cut_hides_what_follows_in_its_line() -> None:
    script = Script()
    found = [*script.feed("SELECT 1; -- no"), *script.feed("t this; DROP TABLE t;\n"), *script.finish()]
    assert found == [ScriptItem("SELECT 1", 1)]


def test_a_long_string_with_many_semicolons_takes_linear_time() -> None:
    text = "INSERT INTO t VALUES ('" + "x;\n" * 300_000 + "');\n"
    script = Script()
    found = [p for i in range(0, len(text), 1 << 14) for p in script.feed(text[i : i + (1 << 14)])]
    assert len([*found, *script.finish()]) == 1


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "SELECT 1;", "SELECT 1; -- later", "SELECT 1; /* x */ ;", ".mode", "  .tables", "SELECT $a$;$a$;"],
)
def test_enter_runs(text: str) -> None:
    assert is_complete(text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT ';",
        "SELECT $$;",
        "SELECT 1 -- ;",
        "SELECT 1 /* ;",
        '"a;',
        "SELECT E'\\';",
        ".5",
        "FINETUNE m FROM (SELECT 1;",
    ],
)
def test_enter_makes_a_new_line(text: str) -> None:
    assert not is_complete(text)
