"""Any text gives statements or a StatementError with a next step, and nothing else."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sqlft.errors import StatementError
from sqlft.sql.parser import has_using_tail, may_be_sqlft, parse
from sqlft.sql.statements import Plain, Statement

FIXTURES = sorted((Path(__file__).parent / "parse").glob("*.sql"))
SEEDS = [
    "\n".join(line for line in block.split("\n") if not line.startswith("-->"))
    for file in FIXTURES
    for block in file.read_text(encoding="utf-8").split("\n\n")
]
WORDS = """
    CREATE OR REPLACE MODEL PREDICTOR ML_ENGINE DATABASE IF NOT EXISTS FROM PREDICT USING FINETUNE RETRAIN EVALUATE
    CANCEL RESUME SET active MODEL_ACTIVE DROP CACHE FOR ALTER RENAME TO SHOW MODELS HANDLERS LIKE WHERE DESCRIBE DESC
    ENGINE PARAMETERS WITH SELECT COPY INSERT ON AS ORDER BY WINDOW env TRUE NULL m db x . .1 .2 1 -1 1e9 1e999 ..
    = , ; ( ) [ ] { } : :: ? $1 $n $$ $t$ ' '' 'a' " "a" ` `a` E' E'\\' E'\\UFFFFFFFF' -- /* */ \\ - + @ # % | 🦆 é
"""
PIECES = [*WORDS.split(), "\n", " ", "\t", "\u00a0", "\0", "\ud800", "9" * 30, "0x" + "f" * 20]


def check(text: str) -> None:
    may_be_sqlft(text)
    has_using_tail(text)
    statements = try_parse(text)
    end = 0
    for statement in statements:
        assert isinstance(statement, Statement)
        assert statement.offset >= end
        end = statement.offset + len(statement.text)
        assert text[statement.offset : end] == statement.text
        if isinstance(statement, Plain) and not statement.using:
            assert statement.sql == statement.text
    if statements and not may_be_sqlft(text):
        assert all(isinstance(s, Plain) for s in statements)
        assert len(statements) <= 1


def try_parse(text: str) -> list[Statement]:
    try:
        return parse(text)
    except StatementError as e:
        error = e
    assert error.next_step
    assert error.line >= 1
    assert 1 <= error.column <= len(text) + 1
    return []


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.sampled_from([" ", ""]))
@settings(max_examples=1500, deadline=None)
def test_soup_of_tokens(pieces: list[str], between: str) -> None:
    check(between.join(pieces))


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(PIECES)), max_size=4)
)
@settings(max_examples=1500, deadline=None)
def test_statements_with_faults(seed: str, faults: list[tuple[float, int, str]]) -> None:
    for place, cut, piece in faults:
        at = int(place * len(seed))
        seed = seed[:at] + piece + seed[at + cut :]
    check(seed)


@given(st.text(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_characters(text: str) -> None:
    check(text)


def test_deep_nesting_is_refused_not_crashed_on() -> None:
    for text in ("[" * 20_000, "{a: " * 20_000, "(" * 20_000, "f(a = " * 20_000):
        check(f"CREATE MODEL m PREDICT x USING a = {text}")
        check(f"SELECT 1 USING a = {text}")
        check(f"FINETUNE m FROM db {text}")


def test_long_texts_are_read() -> None:
    prompt = "it''s {{content}}; " * 500_000
    (statement,) = parse(f"CREATE MODEL m PREDICT x USING prompt_template = '{prompt}'")
    assert statement.options["prompt_template"] == prompt.replace("''", "'")  # type: ignore[attr-defined]
    check(f"INSERT INTO t VALUES ('{prompt}'); SELECT 1")
    check("$1" * 100_000 + ";" + "a." * 100_000 + "/*" * 1_000 + "E'" * 1_000)
