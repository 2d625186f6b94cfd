from __future__ import annotations

import pytest

from sqlft.errors import StatementError
from sqlft.redact import redact_statement
from sqlft.sql.lexer import find_parameters, split_statements, tokenize


def kinds(text: str) -> list[tuple[str, str]]:
    return [(t.kind, t.value) for t in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ft_sql.1", [("word", "ft_sql"), ("number", ".1")]),
        ("a.1.b", [("word", "a"), ("number", ".1"), ("op", "."), ("word", "b")]),
        ("x . 2", [("word", "x"), ("op", "."), ("number", "2")]),
        ("'it''s'", [("string", "it's")]),
        ('"a""b" `c``d`', [("quoted", 'a"b'), ("quoted", "c`d")]),
        ("$$a'b$$ $t$ $$ $t$", [("string", "a'b"), ("string", " $$ ")]),
        (r"E'a\n\'b\u00e9\x41\101''' e 'x'", [("string", "a\n'béAA'"), ("word", "e"), ("string", "x")]),
        ("? ?2 $1 $name", [("parameter", p) for p in ("", "2", "1", "name")]),
        ("1.5 .5 1e-4 0x1F 1_000", [("number", n) for n in ("1.5", ".5", "1e-4", "0x1F", "1_000")]),
        ("é🦆x a$b größe\u00a0z", [("word", w) for w in ("é🦆x", "a$b", "größe", "z")]),
        ("a--b\nc/* /* d */ */e --", [("word", w) for w in "ace"]),
        ("\ufeffa\u200bb", [("word", "a"), ("word", "b")]),
        ("a->>b::c != d", [*zip(["word", "op"] * 4, ["a", "->>", "b", "::", "c", "!=", "d"], strict=False)]),
    ],
)
def test_tokens(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected
    assert all(text[t.start : t.end] == t.text for t in tokenize(text))


@pytest.mark.parametrize("quote", ["'abc", '"abc', "`abc", "$$abc", "$t$abc$$", "E'abc\\'", "/* a /* b */"])
def test_what_never_closes_is_told_at_its_start(quote: str) -> None:
    with pytest.raises(StatementError, match="never closed") as caught:
        tokenize(f"select 1,\n  {quote}")
    assert (caught.value.line, caught.value.column) == (2, 3)


def test_parameters_count_question_marks() -> None:
    assert [p.key for p in find_parameters("? '?' $1 ? $name ?7 -- ?")] == [1, 1, 2, "name", 7]
    assert [p.key for p in find_parameters("?, ?", before=3)] == [4, 5]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" ; ;; -- c", []),
        ("select 1", ["select 1"]),
        ("-- a\nselect 1 /* b */ ; /* c */ select 2 -- d", ["select 1", "select 2"]),
        (
            "select ';', \";\", `;`, $$;$$, $x$;$$;$x$, E'\\';' /* ; */ ; b",
            ["select ';', \";\", `;`, $$;$$, $x$;$$;$x$, E'\\';'", "b"],
        ),
        ("a 'x; b", ["a 'x; b"]),
        ("a ` ; b", ["a `", "b"]),
        ("a; b /* x; c", ["a", "b /* x; c"]),
        ("type'x;y'; e'x\\';y'; 1e'x';b", ["type'x;y'", "e'x\\';y'", "1e'x'", "b"]),
        ("a$$;b$$", ["a$$", "b$$"]),
        ("$1;$2", ["$1", "$2"]),
    ],
)
def test_split(text: str, pieces: list[str]) -> None:
    assert [text[a:b] for a, b in split_statements(text)] == pieces


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("api_key = 'sk-''1', b", "api_key = ********, b"),
        ('{"password": "p", "user": "u"}', '{"password": ***, "user": "u"}'),
        ("API_KEY=sk-12, b=1", "API_KEY=*****, b=1"),
        ("my_api_key 'sk", "my_api_key ***"),
        ("(ENCRYPTION_KEY 'k')", "(ENCRYPTION_KEY ***)"),
        ("secret = E'a\\'b' c", "secret = ******* c"),
        ("auth_token = $$a\nb$$", "auth_token = ***\n***"),
        ("api_key = ['k', \"l]\"], b = 1", "api_key = ***********, b = 1"),
        ("api_key = env('K'), api_key = ?, api_key = $1", "api_key = env('K'), api_key = ?, api_key = $1"),
        ("select password from t where x = 'y'", "select password from t where x = 'y'"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert redact_statement(text) == shown
    assert len(redact_statement(text)) == len(text)
