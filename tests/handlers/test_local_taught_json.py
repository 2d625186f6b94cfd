"""What typed models are taught is what asking lets them write: every training answer is accepted by asking's grammar.

llguidance is what llama.cpp, and vLLM by one of its backends, make a grammar of a JSON schema with; here it reads the
grammar that OpenVINO gets, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from sqlft_local import Local
from sqlft_local.options import ModelOptions, PredictOptions
from sqlft_local.predict.grammar import find_unbound_part, write_grammar
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
    """What of the text the grammars of asking do not take; nothing if both take all, and may end there."""
    pytest.importorskip("llguidance", reason="pip install --group test")
    schema = build_body(PredictOptions(), outputs.schema)["json_schema"]
    with_llama = find_refused_by(f"%llguidance {{}}\nstart: %json {json.dumps(schema)}", text)
    return with_llama or find_refused_by_openvino(outputs.schema, text)


def find_refused_by_openvino(schema: Any, text: str) -> str:
    """What of the text the grammar that OpenVINO gets does not take."""
    gbnf = pytest.importorskip("llguidance.gbnf_to_lark", reason="pip install --group test")
    return find_refused_by(gbnf.gbnf_to_lark(write_grammar(schema)), text)


def find_refused_by(grammar: str, text: str) -> str:
    """What of the text one grammar does not take."""
    import llguidance

    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar)
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


CLOSED = {"additionalProperties": False}
REFUSED = [
    ({"type": "object", "properties": {"a": {}}, "required": ["a"], **CLOSED},
     ['{"a":1}', '{ "a": 1}', '{"a": 1 }', '{"a": [1,2]}', '{"a": "\\/"}', '{"a": "\\u00e4"}', '{"a": 01}',
      '{"a": 1.}', '{"a": -}',
      '{"a": {"b":1}}', '{"a": "\x7f"}', '{"a": "\n"}', '{}', '{"a": 1}x']),
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, **CLOSED},
     ['{"b": null, "a": null}', '{"a": null, }', '{, "b": null}', '{"a": null, "c": null}', '{"a": null, "a": null}']),
    ({"type": "object", "properties": {"ab": {"type": "null"}, "a]": {"type": "null"}}},
     ['{"ab": 1}', '{"a]": 1}', '{"x": 1, "ab": null}']),
    ({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 3},
     ["[]", "[1, 2, 3, 4]", "[-1]", "[1.0]"]),
    ({"type": "string", "format": "date"}, ['"2024-13-01"', '"2024-01-32"', '"24-01-01"']),
    ({"enum": ["a", 1, None], "type": ["string", "null"]}, ["1", '"b"', "a"]),
    ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}(x)?$"}, ['"A-1"', '"AB-1234"', '"AB-1y"']),
]  # fmt: skip
TAKEN = [
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, **CLOSED},
     ["{}", '{"a": null}', '{"b": null}', '{"a": null, "b": null}']),
    ({"type": "object", "properties": {"ab": {"type": "null"}, "a]": {"type": "null"}}},
     ["{}", '{"b": []}', '{"": 0}', '{"ab": null, "a]": null, "": 1, "b\\n": {}}', '{"a]": null}', '{"ä": 1}']),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, ['{"a": null, "b": {"a": 1}}']),
    ({"type": "array", "minItems": 2}, ["[1, []]", '[{}, {"a": {"b": [true, false]}}, "x"]']),
    ({"type": "array", "maxItems": 2}, ["[]", "[1]", "[1, 2]"]),
    ({"type": "string"}, [json.dumps("".join(map(chr, range(32)))), '"\\u007f"', '"ä\u2028\U0001f600"']),
    ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}(x)?$"}, ['"AB-1"', '"AB-123x"']),
    ({"$defs": {"t": {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
                      "required": ["c"], **CLOSED}}, "$ref": "#/$defs/t"},
     ['{"c": []}', '{"c": [{"c": []}, {"c": [{"c": []}]}]}']),
    ({"type": "number"}, ["0", "-0.5", "1e-07", "1E+22", "12.50"]),
    ({}, ["null", "[]", "{}", '"x"', "1"]),
]  # fmt: skip


def test_a_deep_schema_makes_no_long_grammar() -> None:
    """Each part of it is written once, though it may come behind another property or be the first."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(12):
        schema = {"type": "object", "properties": {"a": schema, "b": {"type": "null"}}, **CLOSED}
    assert len(write_grammar(schema)) < 3000


@pytest.mark.parametrize(("schema", "texts"), REFUSED)
def test_openvinos_grammar_takes_no_other_text(schema: dict[str, Any], texts: list[str]) -> None:
    """No other white space, escape or order, and nothing that the schema does not allow."""
    assert [text for text in texts if find_refused_by_openvino(schema, text) == ""] == []


@pytest.mark.parametrize(("schema", "texts"), TAKEN)
def test_openvinos_grammar_takes_all_that_a_schema_allows(schema: dict[str, Any], texts: list[str]) -> None:
    """In the form that training teaches."""
    assert {text: found for text in texts if (found := find_refused_by_openvino(schema, text))} == {}


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"type": "string", "maxLength": 3}, "'maxLength'"),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}}, "'minimum'"),
        ({"minimum": 0}, "'minimum'"),
        ({"type": "array", "prefixItems": [{}]}, "'prefixItems'"),
        ({"type": "array", "maxItems": 0}, "arrays of 0 to 0 items"),
        ({"type": "string", "pattern": "a+b"}, r"the pattern 'a\+b'"),
        ({"type": "string", "pattern": "^([a-z]$"}, r"the pattern '\^\(\[a-z\]\$'"),
        ({"type": "string", "format": "email"}, "the format 'email'"),
        ({"enum": [1], "minimum": 0}, "'enum' beside 'minimum'"),
        ({"enum": []}, "an enum without values"),
        ({"allOf": [{"type": "string"}]}, "'allOf'"),
        ({"anyOf": [{"type": "string"}], "type": "string"}, "anyOf beside type"),
        ({"$ref": "#/$defs/nowhere"}, r"'\$ref' to #/\$defs/nowhere"),
        ({"type": "object", "properties": {"ü": {}}}, "other properties beside ones with 'ü' in their names"),
        (
            {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"},
            r"'\$ref' to #/\$defs/a in itself",
        ),
        ({"type": "object", "properties": {"a" * 2000: {}}}, "a schema so deep, or with names so long"),
        ({"type": "object", "required": ["a"]}, "'required' properties without a schema"),
        ({"type": "object", "properties": {"a": False}}, "the schema False"),
    ],
)
def test_what_openvinos_grammar_leaves_to_llama_cpp_is_named(schema: dict[str, Any], part: str) -> None:
    """So that the user knows why the other one answers."""
    found = find_unbound_part(schema)
    assert found is not None
    assert re.fullmatch(part, found), found


@pytest.fixture(autouse=True)
def _own_bases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted files go below the test's folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


@pytest.mark.parametrize("backend", ["llama.cpp", "openvino"])
def test_answers_are_written_as_training_does(tiny: Path, backend: str) -> None:
    """Whatever a model that was taught nothing says, its form is that of a training answer."""
    pytest.importorskip({"llama.cpp": "xllamacpp", "openvino": "openvino_genai"}[backend], reason="is not installed")
    outputs = Outputs.from_columns(
        [
            OutputColumn("mood", "ENUM('b d', 'ä', 'c')"),
            OutputColumn("yes", "BOOLEAN"),
            OutputColumn("both", "BOOLEAN[2]"),
            OutputColumn("pet", "STRUCT(kind ENUM('x', 'y'), old BOOLEAN)"),
        ]
    )
    by_chance = 1.0 if backend == "llama.cpp" else 0.0
    options = PredictOptions(backend=backend, max_tokens=200, temperature=by_chance)  # type: ignore[arg-type]
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
