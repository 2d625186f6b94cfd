"""What ANALYZE TRAINING DATA, and so FINETUNE, makes of a query's rows: the right answers, written as DuckDB writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.training.rows import fetch_lossless


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A connection with a model of one input."""
    monkeypatch.setenv("SQLFT_HOME", str(tmp_path))
    with sqlft.connect() as made:
        made.execute("CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = '{{question}}'")
        yield made


def answers(con: Any, columns: str, model: str = "") -> list[str]:
    """The first answers of 60 rows."""
    found = con.execute(f"ANALYZE TRAINING DATA FROM (SELECT {columns} FROM range(60) t(i)) {model}").fetchall()
    return next(list(row[4]) for row in found if row[1] == "answers")


@pytest.mark.parametrize(
    "columns",
    [
        "'q' || i AS prompt, 'good' || i AS chosen, 'bad' || i AS rejected",
        "'q' || i AS prompt, 'good' || i AS completion, 'bad' || i AS rejected",
        "'q' || i AS prompt, 'good' || i AS preferred_output, 'bad' || i AS non_preferred_output",
        "'bad' || i AS rejected, 'good' || i AS chosen, 'q' || i AS question",
        "'q' || i AS instruction, '' AS input, 'good' || i AS output",
        "[{'from': 'human', 'value': 'q' || i}] AS conversations, {'from': 'gpt', 'value': 'good' || i} AS chosen, "
        "{'from': 'gpt', 'value': 'bad' || i} AS rejected",
        "[{'from': 'human', 'value': 'q' || i}, {'from': 'gpt', 'value': 'good' || i}] AS conversations, '[]' AS tools",
        "[{'role': 'user', 'content': 'q' || i}] AS prompt, "
        "[{'role': 'assistant', 'content': 'good' || i}] AS completion",
        "'### Human: q' || i || chr(10) || '### Assistant: good' || i AS text",
    ],
)
@pytest.mark.parametrize("model", ["", "FOR m"])
def test_the_answer_is_the_good_one(con: Any, columns: str, model: str) -> None:
    assert answers(con, columns, model) == ["good0", "good1", "good2"]


def test_a_guessed_answer_is_neither_the_worse_one_nor_tools(con: Any) -> None:
    columns = "'q' || i AS question, 'good' || i AS said, 'bad' || i AS rejected, '[]' AS tools"
    assert answers(con, columns) == ["good0", "good1", "good2"]


@pytest.mark.parametrize("name", ["text", "conversation", "conversations"])
def test_texts_with_labels_are_examples(con: Any, name: str) -> None:
    assert answers(con, f"'It was ' || i AS {name}, 'good' || i AS label") == ["good0", "good1", "good2"]


@pytest.mark.parametrize(
    "columns",
    [
        "'q' || i AS question, 'b' AS label, 1.0::DOUBLE AS n",
        """'q' || i AS prompt, '{"n":1,"label":"b"}' AS completion""",
        "'q' || i AS prompt, {'n': 1, 'label': 'b'} AS completion",
    ],
)
def test_typed_answers_are_taught_in_one_form(con: Any, columns: str) -> None:
    con.execute("CREATE MODEL typed PREDICT (label ENUM('a', 'b'), n INTEGER) "
                "USING engine = 'echo', prompt_template = '{{question}}'")  # fmt: skip
    assert answers(con, columns, "FOR typed") == ['{"label": "b", "n": 1}']


def test_one_bad_row_of_sixty_costs_one_row(con: Any) -> None:
    tool = '[{"role":"user","content":"q"},{"role":"tol","content":"42"},{"role":"assistant","content":"a"}]'
    good = """'[{"role":"user","content":"q' || i || '"},{"role":"assistant","content":"a' || i || '"}]'"""
    found = con.execute(
        f"ANALYZE TRAINING DATA FROM (SELECT CASE WHEN i = 0 THEN '{tool}' ELSE {good} END AS messages"
        " FROM range(60) t(i)) FOR m"
    ).fetchall()
    left_out = next(row for row in found if row[1] == "unknown_role")
    assert (left_out[0], left_out[2], left_out[5]) == ("warning", 1, [1])
    assert "59 conversations" in next(row[3] for row in found if row[1] == "rows")


VALUES = [
    "'infinity'::DATE", "DATE '5877000-01-01'", "DATE '0044-03-15 (BC)'", "DATE '2024-02-29'",
    "'infinity'::TIMESTAMP", "'-infinity'::TIMESTAMPTZ", "TIMESTAMP '2024-01-01 10:00:00.5'",
    "TIMESTAMP_NS '2024-01-01 00:00:00.123456789'", "TIMETZ '12:34:56+02'", "TIME '24:00:00'",
    "'101'::BIT", "'\\xAA'::BLOB", "123456789012345678901234567890::BIGNUM",
    "'x'::VARIANT", "340282366920938463463374607431768211455::UHUGEINT", "170141183460469231731687303715884105727",
    "12::HUGEINT", "1e22::DOUBLE", "0.1::FLOAT", "1.50::DECIMAL(4, 2)", "true", "'a'::ENUM('a', 'b')",
    "INTERVAL '14 months 3 days'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID",
]  # fmt: skip
NESTED = [
    "[INTERVAL '1 day']", "[DATE 'infinity']", "{'a': 1, 'b': [TIMETZ '12:34:56+02']}", "map {'a': 1.5}",
    "union_value(num := 2)", "['101'::BIT]", "[1.0::DOUBLE, NULL]",
]  # fmt: skip


@pytest.mark.parametrize("value", [*VALUES, *NESTED])
def test_values_are_taught_as_duckdb_writes_them(con: Any, value: str) -> None:
    """As text, nested ones as JSON; in prompts and in answers."""
    plain = f"to_json({value})::VARCHAR" if value in NESTED else f"({value})::VARCHAR"
    expected = duckdb.sql(f"SELECT {plain}").fetchall()[0][0]
    assert answers(con, f"'q' || i AS question, {value} AS answer", "FOR m") == [expected]
    found = con.execute(
        f"ANALYZE TRAINING DATA FROM (SELECT {value} AS question, 'a' || i AS answer FROM range(60) t(i)) FOR m"
    ).fetchall()
    shown = next(row[4][0] for row in found if row[1] == "conflicting_answers")
    assert shown == f"{expected} → a1"


def test_answers_of_models_are_taught_with_values_beside_them_intact(con: Any) -> None:
    rows = "SELECT 'infinity'::DATE AS x, 'q' || i AS q FROM range(60) r(i)"
    query = f"SELECT m.answer AS question, t.x AS answer FROM ({rows}) t"
    found = con.execute(f"ANALYZE TRAINING DATA FROM ({query} JOIN m ON m.question = t.q) FOR m").fetchall()
    assert next(list(row[4]) for row in found if row[1] == "answers") == ["infinity"]


def test_numbers_stay_numbers() -> None:
    table = fetch_lossless(
        duckdb.sql("SELECT 1 AS a, 1.5::DOUBLE AS b, sum(i) AS c, DATE '2024-01-01' AS d FROM range(3) t(i)")
    )
    assert table.to_pylist() == [{"a": 1, "b": 1.5, "c": 3, "d": "2024-01-01"}]


def test_columns_of_one_name_are_left_as_they_are() -> None:
    table = fetch_lossless(duckdb.sql("SELECT DATE '2024-01-01' AS a, 2 AS a, DATE '2024-01-01' AS \"b\"\"c\""))
    assert table.column_names == ["a", "a", 'b"c']
    assert table.column(2).to_pylist() == ["2024-01-01"]
