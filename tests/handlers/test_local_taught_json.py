"""What typed models are taught is what asking lets them write: every training answer is accepted by asking's grammar.

llguidance is what llama.cpp, and vLLM by one of its backends, make a grammar of a JSON schema with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from sqlft_local import Local
from sqlft_local.options import ModelOptions, PredictOptions
from sqlft_local.predict.llama import build_body

from sqlft.data import Prompt, prepare
from sqlft.data.outputs import OutputColumn, Outputs, parse_outputs
from sqlft.handler import Message, ModelSpec, Request
from sqlft.training.rows import fetch_lossless

VALUES = [
    ("VARCHAR", "'a', '', 'ä☃😀', 'a\"b\\c/', chr(10) || chr(9) || chr(1) || chr(127), chr(8232), ' x ', NULL"),
    ("BOOLEAN", "true, false, NULL"),
    ("TINYINT", "(-128)::TINYINT, 0::TINYINT, NULL"),
    ("INTEGER", "0, -1, 2147483647, 1.0, NULL"),
    ("UBIGINT", "18446744073709551615::UBIGINT"),
    ("HUGEINT", "99999999999999999999999999999999999999::HUGEINT"),
    ("DOUBLE", "1::DOUBLE, 1e-7, 1e22, 1e300, -0.0, 0.1, 123456789.123456789"),
    ("DOUBLE", "1, 2"),
    ("FLOAT", "1::FLOAT, 0.1::FLOAT, 1e-7::FLOAT"),
    ("DECIMAL(10, 2)", "1, 1.5, -0.05, 0, 12345678.9"),
    ("DECIMAL(38, 10)", "1234567890123456789012345678.0123456789::DECIMAL(38, 10)"),
    ("DATE", "DATE '2024-02-29', DATE '0001-01-01'"),
    ("DATE", "TIMESTAMP '2024-02-29 10:00:00'"),
    ("TIME", "TIME '10:00:00', TIME '10:00:00.5'"),
    ("TIMESTAMP", "TIMESTAMP '2024-01-01 10:00:00', TIMESTAMP '2024-01-01 10:00:00.123456'"),
    ("TIMESTAMPTZ", "TIMESTAMPTZ '2024-01-01 10:00:00+02'"),
    ("UUID", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID"),
    ("ENUM('a', 'b c', 'ü', 'x\"y')", "'a', 'b c', 'ü', 'x\"y', NULL"),
    ("JSON", """'{"b": [1, 2.50, null, {"a": true}], "a": {}}'::JSON, '[]', '"x"', '1.0', '1e5'"""),
    ("INTEGER[]", "[1, NULL], []"),
    ("VARCHAR[2]", "['a', 'b']"),
    ("STRUCT(a INTEGER, b STRUCT(c VARCHAR[], \"D e\" DATE))",
     "{'a': 1, 'b': {'c': ['x', 'ü'], 'D e': DATE '2024-01-01'}}"),
    ("STRUCT(z INTEGER, a INTEGER)[]", "[{'z': 1, 'a': 2}, {'z': NULL, 'a': NULL}], [NULL]"),
    ("STRUCT(z INTEGER, a INTEGER)", "{'a': 2, 'z': 1}, NULL"),
    ("MAP(VARCHAR, DOUBLE)", "map {'a': 1.0, 'ü b': 2.5}, map {}"),
]  # fmt: skip
POINT = '{"type":"object","properties":{"y":{"type":"number"},"x":{"type":"string"}},"required":["x","y"],"additionalProperties":false}'  # noqa: E501
WRITTEN = [
    # keys in another order, white space, escapes that need not be, a property that may lack and is null
    ('{"type":"object","properties":{"b":{"type":"string"},"a":{"type":["integer","null"]}},"required":["a"]}',
     '{ "a" : 1.0,\n"b" : null }', '{"a": 1}'),
    ('{"type":"object","properties":{"c":{"enum":[1,2.5,"ä",null]}},"required":["c"]}',
     '{"c":"\\u00e4"}', '{"c": "ä"}'),
    ('{"type":"object","properties":{"c":{"enum":[1,2.5]}},"required":["c"]}', '{"c":1.0}', '{"c": 1}'),
    (f'{{"$defs":{{"p":{POINT}}},"type":"object","properties":{{"ps":{{"type":"array","items":{{"$ref":"#/$defs/p"}}}},'
     '"q":{"anyOf":[{"$ref":"#/$defs/p"},{"type":"null"}]}},"required":["ps","q"],"additionalProperties":false}',
     '```json\n{"q":{"x":"t\\/","y":1.50},"ps":[{"x":"é","y":1e5},{"y":2,"x":""}]}\n```',
     '{"ps": [{"y": 1e5, "x": "é"}, {"y": 2, "x": ""}], "q": {"y": 1.50, "x": "t/"}}'),
    ('{"type":"array","items":{"type":"string","enum":["ä","b"]}}', '{"answer":["ä","b"]}', '{"answer": ["ä", "b"]}'),
    ('{"type":"object","properties":{"d":{"type":"string","format":"date"}},"additionalProperties":{"type":"integer"}}',
     '{"z":1,"d":"2024-01-01","k":2}', '{"d": "2024-01-01", "z": 1, "k": 2}'),
]  # fmt: skip


def find_refused(outputs: Outputs, text: str) -> str:
    """What of the text the grammar of asking does not take; nothing if it takes all, and may end there."""
    llguidance = pytest.importorskip("llguidance", reason="pip install --group test")
    tokenizer = llguidance.LLTokenizer("byte")
    schema = build_body(PredictOptions(), outputs.schema)["json_schema"]
    matcher = llguidance.LLMatcher(tokenizer, f"%llguidance {{}}\nstart: %json {json.dumps(schema)}")
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    taken = matcher.try_consume_tokens(tokens)
    return text.encode()[taken:].decode() if taken < len(tokens) else "" if matcher.is_accepting() else "its end"


def make_training_answers(outputs: Outputs, rows: pa.Table) -> list[str]:
    """The answers that training makes of rows, none left out."""
    prepared = prepare(rows, Prompt("{{q}}"), outputs.names, outputs=outputs, validation_split=0.0)
    assert prepared.training_set.train.num_rows == rows.num_rows, prepared.findings
    return [messages[-1]["content"] for messages in prepared.training_set.train["messages"].to_pylist()]


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_every_training_answer_is_accepted(kind: str, values: str) -> None:
    """As columns, and as fields of one struct."""
    given = f"SELECT 'x' AS first, unnest([{values}]) AS a"
    columns = Outputs.from_columns([OutputColumn("first"), OutputColumn("a", kind)])
    rows = fetch_lossless(duckdb.sql(f"SELECT row_number() OVER () AS q, first, a FROM ({given})"))
    for text in make_training_answers(columns, rows):
        assert find_refused(columns, text) == ""
    whole = parse_outputs("answer", f"STRUCT(a {kind}, first VARCHAR)", duckdb.sqltype)
    rows = fetch_lossless(
        duckdb.sql(f"SELECT row_number() OVER () AS q, {{'first': first, 'a': a}} AS answer FROM ({given})")
    )
    for text in make_training_answers(whole, rows):
        assert find_refused(whole, text) == ""


@pytest.mark.parametrize(("schema", "given", "expected"), WRITTEN)
def test_answers_that_come_as_json_are_written_in_that_form(schema: str, given: str, expected: str) -> None:
    """Those of whole conversations too."""
    outputs = parse_outputs("answer", schema, duckdb.sqltype)
    rows = pa.table({"prompt": ["q"], "completion": [given]})
    assert make_training_answers(outputs, rows) == [expected]
    assert find_refused(outputs, expected) == ""


@pytest.fixture(autouse=True)
def _own_bases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted files go below the test's folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


def test_llama_cpp_writes_as_training_does(tiny: Path) -> None:
    """Whatever a model that was taught nothing says, its form is that of a training answer."""
    outputs = Outputs.from_columns(
        [
            OutputColumn("mood", "ENUM('b d', 'ä', 'c')"),
            OutputColumn("yes", "BOOLEAN"),
            OutputColumn("both", "BOOLEAN[2]"),
            OutputColumn("pet", "STRUCT(kind ENUM('x', 'y'), old BOOLEAN)"),
        ]
    )
    options = PredictOptions(backend="llama.cpp", max_tokens=200, temperature=1.0)
    answers = _ask(tiny, outputs, options, [f"q{i}" for i in range(8)])
    assert len(set(answers)) > 1
    for answer in answers:
        assert outputs.canonical(answer) == answer


def _ask(base: Path, outputs: Outputs, options: PredictOptions, prompts: Sequence[str]) -> list[Any]:
    model = ModelSpec(str(base), ModelOptions(), outputs.schema)
    predictor = Local().open(model, None, options)
    try:
        requests = [Request(i, (Message("user", p),)) for i, p in enumerate(prompts)]
        return [c.text for c in predictor.predict(requests)]
    finally:
        predictor.close()
