"""Templates, and that one row and a column of rows are rendered alike."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sqlft.data import Prompt
from sqlft.data.prompts import to_text, to_text_column
from sqlft.errors import DataError
from sqlft.handler import Message


@pytest.mark.parametrize(
    ("template", "inputs"),
    [
        ("{{content}}", ("content",)),
        ("{{ a }} and {{b}}, again {{a}}", ("a", "b")),
        ("{{größe in m}}{{  名前\t}}", ("größe in m", "名前")),
        ("{{Question}} {{question}}", ("Question",)),
        ("{{{name}}}", ("name",)),
        ('{"a": {"b": {{c}} }}', ("c",)),
    ],
)
def test_inputs(template: str, inputs: tuple[str, ...]) -> None:
    assert Prompt(template).inputs == inputs


@pytest.mark.parametrize("template", ["", "no placeholder", "{{}}", "{{ }}", "{{a} b", "{{a}} and {{b", "{ {a} }"])
def test_templates_that_are_wrong(template: str) -> None:
    with pytest.raises(DataError) as caught:
        Prompt(template)
    assert caught.value.next_step


def test_messages() -> None:
    prompt = Prompt("Q: {{q}}\nN: {{n}}", "Be brief.")
    assert prompt.messages({"q": "{{n}}", "n": None}) == (
        Message("system", "Be brief."),
        Message("user", "Q: {{n}}\nN: "),
    )


def test_literal_braces_stay() -> None:
    assert Prompt('{"a": {"b": {{c}}}}').messages({"c": 1})[-1].content == '{"a": {"b": 1}}'


def test_missing_value_names_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'questio'"):
        Prompt("{{question}}").messages({"questio": 1})
    with pytest.raises(DataError, match="question"):
        Prompt("{{question}}").render_column({"x": pa.array([1])})


AS_DUCKDB = [
    "1.0::double", "0.1::float", "1e16::double", "1e15::double", "1e-5::double", "'nan'::double", "'-inf'::double",
    "1e22::float", "42::tinyint", "100::decimal(10,2)", "170141183460469231731687303715884105727::hugeint", "true",
    "date '2024-01-02'", "timestamp '2024-01-02 03:04:05.120'", "timestamp '2024-01-02 03:04:05'",
    "timestamp_ns '2024-01-02 03:04:05.123456789'", "timestamp_s '2024-01-02 03:04:05'",
    "timestamptz '2024-01-02 03:04:05+00'", "time '03:04:05.5'", "interval '1 year 2 days 3 hours'",
    "interval '-1 day'", "interval '1 month 00:00:01.5'", "'abc'::blob", "'\\xAA\\x00'::blob",
    "uuid '550e8400-e29b-41d4-a716-446655440000'", "'a'::enum('a', 'b')", "'😀 \"q\"'", '\'{"a": 1}\'::json',
]  # fmt: skip


@pytest.mark.parametrize("value", AS_DUCKDB)
def test_values_read_as_in_duckdb(value: str) -> None:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    table = con.sql(f"SELECT {value} AS x, ({value})::VARCHAR AS y").to_arrow_table()
    assert to_text_column(table["x"]).to_pylist() == table["y"].to_pylist()


@pytest.mark.parametrize(
    "value",
    [
        "[1, 2]",
        "{'a': 1.5, 'b': [date '2024-01-01', NULL]}",
        "map {'ä': true}",
        "[2.50::decimal(5,2), 3]",
        "[interval '1 day']",
        "[{'at': time '12:00:00', 'id': 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid}]",
    ],
)
def test_nested_values_are_json_as_duckdb_writes_it(value: str) -> None:
    made = duckdb.sql(f"SELECT {value} AS x, to_json({value})::VARCHAR AS text").to_arrow_table()
    assert to_text_column(made["x"]).to_pylist() == made["text"].to_pylist()


def test_a_column_is_rendered_as_its_rows() -> None:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    for value in AS_DUCKDB:
        if "float" in value or "_ns" in value:
            continue  # no Python value holds these
        column = con.sql(f"SELECT CASE WHEN i = 1 THEN NULL ELSE {value} END AS x FROM range(3) t(i) ORDER BY i")
        array = column.to_arrow_table()["x"]
        prompt = Prompt("<{{x}}|{{x}}>{{x}}")
        alone = [prompt.messages({"x": v})[-1].content for v in array.to_pylist()]
        assert prompt.render_column({"x": array}).to_pylist() == alone


def test_texts_that_are_no_unicode() -> None:
    assert to_text("a\ud800") == "a?"
    broken = pa.array([b"a\xff", None]).view(pa.string())
    assert to_text_column(broken).to_pylist() == ["a\ufffd", ""]


def test_dates_beyond_python() -> None:
    array: Any = duckdb.sql("SELECT timestamp '20000-01-02 00:00:00' AS x").to_arrow_table()["x"]
    assert to_text_column(array).to_pylist()[0].startswith("20000-01-02")
