"""Answers with types: what training writes, asking reads back; schemas as types, and types as schemas."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest

from sqlft.data import OutputColumn, OutputMismatch, Outputs
from sqlft.data.json_schema import to_sql_type
from sqlft.data.json_types import to_json_type
from sqlft.data.outputs import build_vector_array, decode_vector, encode_vector, parse_outputs

VALUES = {
    "VARCHAR": "'a \"b\" 🦆'", "BOOLEAN": "false", "TINYINT": "-3", "UBIGINT": "18446744073709551615",
    "HUGEINT": "170141183460469231731687303", "FLOAT": "1.5", "DOUBLE": "1e-7",
    "DECIMAL(38, 10)": "12345678901.0000000001",
    "DATE": "'2024-02-29'", "TIME": "'01:02:03.000004'", "TIMESTAMP": "'2024-01-02 03:04:05.678'",
    "TIMESTAMPTZ": "'2024-01-02 03:04:05+02'", "UUID": "'8a6e0804-2bd0-4672-b79d-d97027f9071a'",
    "ENUM('a''b', 'ü')": "'a''b'", "JSON": "'{\"x\": [1, null]}'", "INTEGER[][]": "[[1, NULL], NULL, []]",
    "DOUBLE[2]": "[1, 2.5]", 'STRUCT("a b" DECIMAL(4, 1), t DATE[])': "{'a b': 1.5, 't': ['2020-01-01']}",
    "MAP(VARCHAR, UUID)": "MAP {'k': '8a6e0804-2bd0-4672-b79d-d97027f9071a'}",
    "STRUCT(e ENUM('x'))[]": "[{'e': 'x'}, NULL]",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "literal"), VALUES.items(), ids=list(VALUES))
def test_what_training_writes_is_read_back_as_the_same_value(kind: str, literal: str) -> None:
    con = duckdb.connect()
    name = str(con.sql(f"SELECT NULL::{kind} AS x").types[0])
    outputs = Outputs.from_columns([OutputColumn("x", name)])
    rows = con.sql(f"SELECT ({literal})::{kind} AS x UNION ALL SELECT NULL").to_arrow_table()
    texts = [outputs.write([value]) for value in rows.column("x").to_pylist()]
    assert json.loads(texts[1]) == {"x": None}
    read = outputs.arrow(0, [outputs.parse(text)[0] for text in texts])
    con.register("answers", duckdb.connect().from_arrow(_table(read)).to_arrow_table())
    same = con.sql(f"SELECT x::{kind} IS NOT DISTINCT FROM ({literal})::{kind}, x IS NULL FROM answers").fetchall()
    if name == "JSON":
        assert json.loads(read[0].as_py()) == {"x": [1, None]}
    else:
        assert same[0] == (True, False)
    assert same[1][1]


def _table(column: Any) -> Any:
    import pyarrow as pa

    return pa.table({"x": column})


@pytest.mark.parametrize(
    "kind", ["BLOB", "INTERVAL", "BIT", "MAP(INTEGER, INTEGER)", "UNION(a INTEGER, b DATE)", "TIMETZ"]
)
def test_types_without_a_form_in_json(kind: str) -> None:
    with pytest.raises(ValueError, match=r"form in JSON|keys of a MAP"):
        to_json_type(duckdb.sqltype(kind))


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "VARCHAR"),
        ({"type": ["integer", "null"]}, "BIGINT"),
        ({"enum": ["a", "b", None]}, "VARCHAR"),
        ({"enum": ["a", 1]}, "JSON"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "DOUBLE"),
        ({"anyOf": [{"type": "number"}, {"type": "string"}]}, "JSON"),
        ({"type": "array"}, "JSON[]"),
        ({"type": "object"}, "JSON"),
        ({"type": "object", "properties": {"a": {}, "A": {}}}, "JSON"),
        ({"type": "object", "properties": {'q"x': {"type": "string", "format": "uuid"}}}, 'STRUCT("q""x" UUID)'),
        ({"$ref": "https://example.com/other"}, "JSON"),
        (True, "JSON"),
    ],
)
def test_a_json_schema_as_a_type(schema: Any, kind: str) -> None:
    assert to_sql_type(schema, schema if isinstance(schema, dict) else {}) == kind


def test_a_schema_that_holds_itself_ends() -> None:
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    outputs = parse_outputs("a", schema, duckdb.sqltype)
    assert outputs.parse('{"next": {"next": {}}}')[0]["next"]["next"]["next"] is None


def test_a_lone_surrogate_and_a_huge_number_do_no_harm() -> None:
    outputs = Outputs.from_columns([OutputColumn("s", "VARCHAR"), OutputColumn("i", "BIGINT")])
    assert outputs.parse('{"s": "\\ud83d", "i": 1.0}') == ("?", 1)
    for wrong in ('{"s": "", "i": 1e400}', '{"s": "", "i": ' + "9" * 5000 + "}", "[" * 100_000):
        with pytest.raises(OutputMismatch):
            outputs.parse(wrong)


def test_vectors_as_arrow() -> None:
    made = build_vector_array([decode_vector(encode_vector([1, 0.5])), None, decode_vector(encode_vector([]))])
    assert made.to_pylist() == [[1.0, 0.5], None, []]
    with pytest.raises(OutputMismatch):
        decode_vector("no vector")
