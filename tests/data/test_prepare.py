"""Shapes recognised, checks that find, splits that hold: each on rows that a query would give."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sqlft.data import PreparedData, Prompt, prepare
from sqlft.errors import DataError

BARE = Prompt("{{content}}")
MESSAGES = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])


def rows(sql: str) -> pa.Table:
    return duckdb.sql(sql).to_arrow_table()


def pairs(n: int, **more: list[Any]) -> pa.Table:
    return pa.table({"content": [f"q{i}" for i in range(n)], "answer": [f"a{i}" for i in range(n)], **more})


def talks(prepared: PreparedData) -> list[list[tuple[str, str]]]:
    """All conversations as (role, content)."""
    valid = prepared.training_set.valid
    column = prepared.training_set.train["messages"].to_pylist() + (valid["messages"].to_pylist() if valid else [])
    return [[(m["role"], m["content"]) for m in c] for c in column]


def codes(prepared: PreparedData) -> dict[str, int]:
    return {f.code: f.count for f in prepared.findings if f.code != "few_rows"}


PAIR = [("user", "a"), ("assistant", "b")]
TALK = [("system", "s"), ("user", "u1"), ("assistant", "a1")]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 'a' AS Content, 'b' AS ANSWER, 1 AS other", [PAIR]),
        ("SELECT 'a' AS prompt, 'b' AS completion", [PAIR]),
        ("SELECT * FROM (VALUES ('system', 's'), ('user', 'u1'), ('assistant', 'a1'), ('system', 's'), "
         "('USER ', 'u1'), ('Assistant', 'a1')) t(role, content)", [TALK, TALK]),
        ("SELECT * FROM (VALUES ('user', 'a'), ('assistant', 'b'), ('user', 'a'), ('assistant', 'b')) t(role, content)",
         [PAIR, PAIR]),
        ("SELECT * FROM (VALUES (2, 'user', 'a', 1), (1, 'user', 'a', 10), (1, 'assistant', 'b', 11), "
         "(2, 'assistant', 'b', 2)) t(chat_id, role, content, message_id)", [PAIR, PAIR]),
        ("SELECT * FROM (VALUES (1, 'assistant', 'b', '10'), (1, 'user', 'a', '9')) t(conversation_id, role, content, "
         "message_id)", [PAIR]),
        ("SELECT [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}] AS messages", [PAIR]),
        ("SELECT [map {'role': 'user', 'content': 'a'}, "
         "map {'role': 'assistant', 'content': 'b'}] AS messages", [PAIR]),
        ("""SELECT '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]' AS messages""", [PAIR]),
        ("""SELECT '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b"}]}'::JSON AS messages""", [PAIR]),
    ],
)  # fmt: skip
def test_shapes(sql: str, expected: list[Any]) -> None:
    prepared = prepare(rows(sql), BARE, "answer")
    assert talks(prepared) == expected
    assert prepared.training_set.train.schema == MESSAGES


def read(sql: str) -> PreparedData:
    return prepare(rows(sql), BARE, "answer")


PLAIN_PAIR = "{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}"


@pytest.mark.parametrize(
    "columns",
    [
        "[{'role': 'user', 'content': 'a'}] AS prompt, [{'role': 'assistant', 'content': 'b'}] AS completion",
        "'a' AS prompt, [{'role': 'assistant', 'content': 'b'}] AS completion",
        """'[{"role": "user", "content": "a"}]' AS prompt, 'b' AS completion""",
        f"'a' AS prompt, [{PLAIN_PAIR}] AS chosen, [{PLAIN_PAIR.replace('b', 'c')}] AS rejected",
        f"[{PLAIN_PAIR}] AS chosen, [{PLAIN_PAIR.replace('b', 'c')}] AS rejected",
        "chr(10) || chr(10) || 'Human: a' || chr(10) || chr(10) || 'Assistant: b' AS chosen, "
        "chr(10) || chr(10) || 'Human: a' || chr(10) || chr(10) || 'Assistant: c' AS rejected",
        "[{'from': 'human', 'value': 'a'}] AS conversations, {'from': 'gpt', 'value': 'b'} AS chosen, "
        "{'from': 'gpt', 'value': 'c'} AS rejected",
        "[{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}] AS conversations, '[]' AS tools",
        f"[{PLAIN_PAIR}] AS conversation",
        "'a' AS instruction, '' AS input, 'b' AS output",
        "'a' AS instruction, 'b' AS output",
        "'### Human: a' || chr(10) || '### Assistant: b' AS text",
        "'<s>[INST] a [/INST] b </s>' AS text",
        "replace('<|im_start|>user~a<|im_end|>~<|im_start|>assistant~b<|im_end|>', '~', chr(10)) AS text",
        "'a' AS content, [{'role': 'assistant', 'content': 'b'}] AS answer",
        "[{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}], 'tool_calls': NULL}, "
        "{'role': 'assistant', 'content': [{'type': 'text', 'text': 'b'}], 'tool_calls': NULL}] AS messages",
    ],
)
def test_forms_of_other_tools_make_the_same_conversation(columns: str) -> None:
    made = read(f"SELECT {columns}")
    assert talks(made) == [PAIR]
    worse = made.training_set.train
    assert "rejected" not in columns or worse["rejected"].to_pylist() == ["c"]


@pytest.mark.parametrize(
    "answer", ['{"role": "admin", "content": "x"}', '[{"role": "admin", "content": "x"}]', "[1]", "{}"]
)
def test_json_that_is_no_message_is_a_text(answer: str) -> None:
    for columns in (["content", "answer"], ["prompt", "completion"]):
        made = prepare(pa.table({columns[0]: ["a"], columns[1]: [answer]}), BARE, "answer")
        assert talks(made) == [[("user", "a"), ("assistant", answer)]]


def test_a_worse_answer_may_look_like_a_conversation() -> None:
    made = prepare(pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["Human: x\nAssistant: y"]}), BARE, "answer")
    assert made.training_set.train["rejected"].to_pylist() == ["Human: x\nAssistant: y"]


@pytest.mark.parametrize("name", ["text", "conversation", "conversations"])
def test_a_text_beside_labels_is_no_conversation(name: str) -> None:
    with pytest.raises(DataError, match="lacks content, answer"):
        prepare(pa.table({name: ["It was great."], "label": ["good"]}), BARE, "answer")


def test_alpaca_s_input_and_a_system_column() -> None:
    made = read("SELECT 'Add' AS instruction, '1 and 2' AS input, '3' AS output, 'Be brief.' AS system")
    assert talks(made) == [[("system", "Be brief."), ("user", "Add\n\n1 and 2"), ("assistant", "3")]]
    made = read("SELECT 'Below is a task.' || chr(10) || '### Instruction:' || chr(10) || 'Add' || chr(10) || "
                "'### Input:' || chr(10) || '1' || chr(10) || '### Response: 3</s>' AS text")  # fmt: skip
    assert talks(made) == [[("system", "Below is a task."), ("user", "Add\n\n1"), ("assistant", "3")]]


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("code", "said", "bad"),
    [
        ("bad_tools", '{"id":"1"}', [GOOD[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
        ("bad_tools", "'hammer'", [GOOD[0], {"role": "assistant", "content": None, "tool_calls": "hammer"}]),
        ("bad_tools", "'x'", [GOOD[0], {"role": "assistant", "function_call": {"name": "f", "arguments": "x"}}]),
        ("bad_tools", "'add 1'", [{"from": "human", "value": "q"}, {"from": "function_call", "value": "add 1"}]),
        ("other_parts", "image_url", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, GOOD[1]]),
        ("other_parts", "images", [{"role": "user", "content": "q", "images": ["x"]}, GOOD[1]]),
        ("unknown_role", "'asistant' (Did you mean 'assistant'?)", [GOOD[0], {"role": "asistant", "content": "b"}]),
        ("bad_weight", "0.5", [GOOD[0], {"role": "assistant", "content": "b", "weight": 0.5}]),
        ("bad_messages", "role", {"x": 1}),
    ],
)
def test_a_bad_row_costs_that_row(code: str, said: str, bad: Any) -> None:
    made = prepare(pa.table({"messages": [json.dumps(bad), json.dumps(GOOD)]}), BARE, "answer")
    assert talks(made) == [PAIR]
    assert codes(made) == {code: 1}
    found = next(f for f in made.findings if f.code == code)
    assert said in found.message
    assert found.examples == (1,)


def test_a_misspelt_role_in_a_completion_is_no_text() -> None:
    made = read("SELECT 'a' AS prompt, unnest([[{'role': 'asistant', 'content': 'x'}], [{'role': 'assistant', "
                "'content': 'b'}]]) AS completion")  # fmt: skip
    assert talks(made) == [PAIR]
    assert codes(made) == {"unknown_role": 1}


def test_a_bad_message_costs_its_conversation() -> None:
    made = read("SELECT * FROM (VALUES (1, 'user', 'q'), (1, 'tol', '42'), (1, 'assistant', 'x'), (2, 'user', 'a'), "
                "(2, 'assistant', 'b')) t(chat_id, role, content)")  # fmt: skip
    assert talks(made) == [PAIR]
    assert codes(made) == {"unknown_role": 1}


CALL = '[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]'
UNNAMED_CALL = CALL.replace('"id": "c1", ', "")
TOOL = '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]'
ASKED = {"role": "user", "content": "q"}
ENDS = [{"role": "tool", "content": "3", "tool_call_id": "c1"}, {"role": "assistant", "content": "3."}]


@pytest.mark.parametrize(
    ("messages", "call"),
    [
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": json.loads(CALL)}, *ENDS], CALL),
        ([ASKED, {"role": "assistant", "content": "", "tool_calls": CALL}, *ENDS], CALL),
        ([ASKED, {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}, *ENDS], UNNAMED_CALL),
        ([ASKED, {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
          {"role": "function", "name": "add", "content": "3"}, ENDS[1]], UNNAMED_CALL),
        ([{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
          {"from": "observation", "value": "3"}, {"from": "gpt", "value": "3."}], UNNAMED_CALL),
    ],
)  # fmt: skip
def test_calls_of_tools_and_their_answers_are_kept_as_json(messages: list[Any], call: str) -> None:
    rows = pa.table({"messages": [json.dumps(messages)] * 2, "tools": [TOOL, None]})
    made = prepare(rows, BARE, "answer")
    assert codes(made) == {}
    table = made.training_set.train
    assert table["tools"].to_pylist() == [TOOL, None]
    asked, called, answered, ended = table["messages"].to_pylist()[0]
    assert [m["role"] for m in (asked, called, answered, ended)] == ["user", "assistant", "tool", "assistant"]
    assert (called["content"], called["tool_calls"], answered["content"]) == ("", call, "3")
    assert answered.get("tool_call_id") == (messages[2].get("tool_call_id"))


def test_tools_that_duckdb_reads_as_structs_have_no_nulls_of_other_rows() -> None:
    chat = "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]"
    made = read(
        f"SELECT {chat} AS messages, [{{'type': 'function', 'function': {{'name': 'add', 'description': NULL, "
        "'parameters': {'type': 'object', 'required': NULL}}}] AS tools"
    )
    assert made.training_set.train["tools"].to_pylist() == [TOOL]


def test_roles_in_rows_may_call_tools_and_a_call_may_be_the_answer() -> None:
    made = read("SELECT * FROM (VALUES (1, 'user', 'q', NULL), (1, 'assistant', NULL, '[{\"name\": \"add\"}]')) "
                "t(chat_id, role, content, tool_calls)")  # fmt: skip
    ((_, called),) = made.training_set.train["messages"].to_pylist()
    assert called["tool_calls"] == '[{"type": "function", "function": {"name": "add", "arguments": "{}"}}]'


def test_the_same_question_with_other_tools_is_no_conflict_and_another_digest() -> None:
    rows = [json.dumps([*GOOD[:1], {"role": "assistant", "content": str(i)}]) for i in range(2)]
    other = TOOL.replace("add", "subtract")
    made = prepare(pa.table({"messages": rows, "tools": [TOOL, other]}), BARE, "answer")
    assert "conflicting_answers" not in {f.code for f in made.findings}
    assert made.digest != prepare(pa.table({"messages": rows, "tools": [TOOL, TOOL]}), BARE, "answer").digest


def test_tools_that_are_none_cost_their_row() -> None:
    made = prepare(pa.table({"messages": [json.dumps(GOOD)] * 3, "tools": ["hammer", "", '{"n": 1}']}), BARE, "answer")
    assert talks(made) == [PAIR]
    assert codes(made) == {"bad_tools": 2}


def test_pictures_beside_messages_are_named() -> None:
    made = read(f"SELECT [{PLAIN_PAIR}] AS messages, unnest([['a.png'], []]) AS images")
    assert talks(made) == [PAIR]
    assert codes(made) == {"other_parts": 1}


def test_an_answer_of_weight_0_is_context() -> None:
    turns = [
        {"role": "user", "content": "a", "name": "bob"},
        {"role": "assistant", "content": "WRONG", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "b", "weight": 1},
    ]
    made = prepare(pa.table({"messages": [json.dumps(turns), json.dumps(GOOD)]}), BARE, "answer")
    first, second = made.training_set.train["messages"].to_pylist()
    assert [(m["weight"], m["name"]) for m in first] == [(1, "bob"), (0, None), (1, None), (1, None)]
    assert [m["weight"] for m in second] == [1, 1]
    taught = [{**t, "weight": 1} for t in turns]
    assert made.digest != prepare(pa.table({"messages": [json.dumps(taught), json.dumps(GOOD)]}), BARE, "answer").digest


THINKING_ROWS = [
    "SELECT 'a' AS content, 'b' AS answer, 'why' AS reasoning",
    "SELECT 'a' AS prompt, 'b' AS completion, 'why' AS reasoning",
    "SELECT 'a' AS instruction, 'b' AS output, ' why\n' AS Reasoning",
    "SELECT [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}] AS messages, 'why' AS reasoning",
    """SELECT '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "why"}]'
       AS messages""",
    "SELECT * FROM (VALUES ('user', 'a', NULL), ('assistant', 'b', 'why')) t(role, content, reasoning)",
]


@pytest.mark.parametrize("sql", THINKING_ROWS)
def test_thoughts_go_with_their_answer(sql: str) -> None:
    prepared = prepare(rows(sql), BARE, "answer")
    assert talks(prepared) == [PAIR]
    assert [m["reasoning"] for m in prepared.training_set.train["messages"].to_pylist()[0]] == [None, "why"]
    plain = prepare(rows("SELECT 'a' AS content, 'b' AS answer"), BARE, "answer")
    assert prepared.digest != plain.digest
    assert "reasoning" not in plain.training_set.train["messages"].to_pylist()[0][1]


def test_an_input_of_the_name_is_no_thought() -> None:
    sql = "SELECT 'a' AS reasoning, 'b' AS answer"
    prepared = prepare(rows(sql), Prompt("{{reasoning}}"), "answer")
    assert prepared.training_set.train["messages"].to_pylist() == [
        [dict(zip(("role", "content"), t, strict=True)) for t in PAIR]
    ]


def test_a_last_answer_of_weight_0_is_cut_off() -> None:
    turns = [*GOOD, {"role": "user", "content": "c"}, {"role": "assistant", "content": "WRONG", "weight": 0}]
    made = prepare(pa.table({"messages": [json.dumps(turns)]}), BARE, "answer")
    assert talks(made) == [PAIR]
    assert codes(made) == {"no_last_answer": 1}
    with pytest.raises(DataError, match="to learn from"):
        prepare(pa.table({"messages": [json.dumps([GOOD[0], {**GOOD[1], "weight": 0}])]}), BARE, "answer")


def test_a_greeting_is_context() -> None:
    made = read(f"SELECT [{{'role': 'assistant', 'content': 'Hello!'}}, {PLAIN_PAIR}] AS messages")
    assert talks(made) == [[("assistant", "Hello!"), *PAIR]]
    assert [m["weight"] for m in made.training_set.train["messages"].to_pylist()[0]] == [0, 1, 1]
    assert codes(made) == {"opening_answers": 1}


TUTORIAL = (
    "SELECT * FROM (VALUES (0, 'system', 's'), (1, 'user', 'q1'), (5, 'assistant', 'a5'), (3, 'system', 's'), "
    "(4, 'user', 'q4'), (2, 'assistant', 'a2')) v({}, role, content)"
)


@pytest.mark.parametrize("column", ["message_id", "message_index", "turn"])
def test_numbered_messages_are_put_in_order(column: str) -> None:
    assert talks(read(TUTORIAL.format(column))) == [
        [("system", "s"), ("user", "q1"), ("assistant", "a2")],
        [("system", "s"), ("user", "q4"), ("assistant", "a5")],
    ]


@pytest.mark.parametrize("again", ["1", "NULL"])
def test_numbers_that_tell_no_order_are_refused(again: str) -> None:
    sql = f"SELECT * FROM (VALUES ({again}, 'user', 'a'), ({again}, 'assistant', 'b')) t(message_id, role, content)"
    with pytest.raises(DataError, match="which conversation") as caught:
        read(sql)
    assert "chat_id" in caught.value.next_step


def test_several_inputs_and_a_system_message() -> None:
    prepared = prepare(
        rows("SELECT 1.50::DECIMAL(4,2) AS x, NULL::DATE AS y, true AS z"), Prompt("{{x}}|{{y}}", "Be brief."), "z"
    )
    assert talks(prepared) == [[("system", "Be brief."), ("user", "1.50|"), ("assistant", "true")]]


def test_own_system_message_stays() -> None:
    table = rows("SELECT * FROM (VALUES ('system', 's'), ('user', 'u1'), ('assistant', 'a1')) t(role, content)")
    assert talks(prepare(table, Prompt("{{content}}", "Be brief."), "answer")) == [TALK]


def test_user_rows_are_rendered_as_they_will_be_asked() -> None:
    table = rows("SELECT * FROM (VALUES ('user', 'a'), ('assistant', 'b')) t(role, content)")
    assert talks(prepare(table, Prompt("Q: {{content}}"), "answer")) == [[("user", "Q: a"), ("assistant", "b")]]


@pytest.mark.parametrize(
    "columns",
    [
        "'a' AS content, 'b' AS answer, 'c' AS rejected",
        "'a' AS content, 'b' AS chosen, 'c' AS rejected",
        "'a' AS prompt, 'b' AS preferred, 'c' AS non_preferred",
        "'a' AS prompt, 'b' AS completion, 'c' AS rejected",
        """[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}] AS messages, 'c' AS rejected""",
    ],
)
def test_worse_answers_stay_with_their_rows(columns: str) -> None:
    prepared = prepare(rows(f"SELECT {columns}"), BARE, "answer")
    assert talks(prepared) == [PAIR]
    assert prepared.training_set.train["rejected"].to_pylist() == ["c"]
    assert prepared.digest != prepare(rows("SELECT 'a' AS content, 'b' AS answer"), BARE, "answer").digest


def test_worse_answers_go_with_the_split() -> None:
    table = pairs(100, rejected=[f"r{i}" for i in range(100)])
    made = prepare(table, BARE, "answer").training_set
    assert made.valid is not None
    for part in (made.train, made.valid):
        for messages, worse in zip(part["messages"].to_pylist(), part["rejected"].to_pylist(), strict=True):
            assert messages[0]["content"][1:] == worse[1:]


def test_whole_prompts_under_a_template_are_told() -> None:
    table = rows("SELECT 'a' AS prompt, 'b' AS completion")
    assert codes(prepare(table, Prompt("Q: {{content}}"), "answer")) == {"template_unused": 1}


def test_no_shape_shows_those_that_fit() -> None:
    with pytest.raises(DataError) as caught:
        prepare(rows("SELECT 1 AS contents, 2 AS answer, 3 AS id"), BARE, "answer")
    text = str(caught.value)
    assert "contents, answer, id" in text
    assert "Did you mean 'contents'" in text
    for shape in ("content, answer", "role, content", "messages", "prompt, completion"):
        assert shape in caught.value.next_step


def test_ten_thousand_columns_are_not_listed() -> None:
    with pytest.raises(DataError) as caught:
        prepare(pa.table({f"c{i}": [1] for i in range(10_000)}), BARE, "answer")
    assert len(str(caught.value)) < 2_000


def test_unknown_role() -> None:
    with pytest.raises(DataError, match=r"1 conversation .*'asistant' \(Did you mean 'assistant'\?\)"):
        prepare(rows("SELECT * FROM (VALUES ('user', 'a'), ('asistant', 'b')) t(role, content)"), BARE, "answer")


@pytest.mark.parametrize(
    ("content", "answer", "code", "count"),
    [
        (["a", "b", "c"], ["x", None, "  "], "missing_answer", 2),
        (["a", None, ""], ["x", "y", "z"], "empty_prompt", 2),
        (["a", "a", "a"], ["x", "x", "x"], "duplicates", 2),
        (["a", "a", "b"], ["x", "y", "y"], "conflicting_answers", 1),
        (["a<|im_start|>", "[INST] b", "c {{name}}"], ["x", "y", "z"], "stray_separators", 3),
        (["### a", "b"], ["x", "y ### z"], "separators_in_answers", 1),
        (["a\x00", "b\ufffd", "c\t\n"], ["x", "y", "z"], "odd_characters", 2),
    ],
)
def test_checks(content: list[Any], answer: list[Any], code: str, count: int) -> None:
    prepared = prepare(pa.table({"content": content, "answer": answer}), BARE, "answer")
    assert codes(prepared) == {code: count}
    found = next(f for f in prepared.findings if f.code == code)
    assert f"{count} conversation" in found.message
    assert 0 < len(found.examples) <= 3
    assert prepared.row_count == len(content)


def test_examples_are_rows_of_the_query() -> None:
    table = rows(
        "SELECT * FROM (VALUES ('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', '')) t(role, content)"
    )
    missing = next(f for f in prepare(table, BARE, "answer").findings if f.code == "missing_answer")
    assert missing.examples == (3,)


def test_few_rows_and_enough() -> None:
    assert [f.code for f in prepare(pairs(49), BARE, "answer").findings] == ["few_rows"]
    assert prepare(pairs(50), BARE, "answer").findings == ()


def test_lopsided() -> None:
    table = pa.table({"content": [f"q{i}" for i in range(60)], "answer": ["no"] * 55 + ["yes"] * 5})
    assert codes(prepare(table, BARE, "answer")) == {"lopsided_answers": 55}
    even = pa.table({"content": [f"q{i}" for i in range(60)], "answer": ["no", "yes"] * 30})
    assert codes(prepare(even, BARE, "answer")) == {}


def test_conversations_without_a_last_answer() -> None:
    table = rows(
        "SELECT * FROM (VALUES ('system', 's'), ('user', 'u1'), ('assistant', 'a1'), ('user', 'u2'), "
        "('system', 's'), ('user', 'u3')) t(role, content)"
    )
    prepared = prepare(table, BARE, "answer")
    assert talks(prepared) == [TALK]
    assert codes(prepared) == {"no_last_answer": 1, "no_answer": 1}


def test_bad_messages_are_counted() -> None:
    good = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    bad = ["", None, "[", "[]", '["x"]', '[{"role": "user"}]', "[" * 100_000]
    assert codes(prepare(pa.table({"messages": [good, *bad]}), BARE, "answer")) == {"bad_messages": len(bad)}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'a' AS content, 'b' AS answer WHERE false",
        "SELECT 'a' AS content, NULL AS answer",
        "SELECT 1 AS messages",
    ],
)
def test_nothing_usable(sql: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(rows(sql), BARE, "answer")
    assert caught.value.next_step


def words(texts: Any) -> list[int]:
    return [len(t.split()) for t in texts]


def test_long_rows() -> None:
    table = pa.table({"content": ["a " * 100, "b", "c " * 50], "answer": ["x", "y", "z"]})
    given: dict[str, Any] = {"max_length": 40, "count_tokens": words}
    cut = prepare(table, BARE, "answer", **given)
    assert (cut.training_set.train.num_rows, codes(cut)) == (3, {"over_long": 2})
    assert "has about 109" in cut.findings[0].message
    drop = prepare(table, BARE, "answer", long_rows="drop", **given)
    assert (drop.training_set.train.num_rows, codes(drop)) == (1, {"over_long": 2})
    with pytest.raises(DataError, match=r"2 of 3 conversations .* rows 1, 3\."):
        prepare(table, BARE, "answer", long_rows="error", **given)
    with pytest.raises(DataError, match="All 3"):
        prepare(table, BARE, "answer", long_rows="drop", max_length=1, count_tokens=words)
    assert prepare(table, BARE, "answer", max_length=5, count_tokens=lambda _: None).findings[0].code == "few_rows"


def test_split_is_seeded_and_by_prompt() -> None:
    table = pa.table({"content": [f"q{i % 40}" for i in range(120)], "answer": [f"a{i}" for i in range(120)]})

    def sides(seed: int) -> tuple[Counter[str], Counter[str]]:
        made = prepare(table, BARE, "answer", seed=seed).training_set
        assert made.valid is not None
        return tuple(Counter(c[0]["content"] for c in t["messages"].to_pylist()) for t in (made.train, made.valid))  # type: ignore[return-value]

    train, valid = sides(1)
    assert not set(train) & set(valid)
    assert (train.total(), valid.total()) == (108, 12)
    assert sides(1) == (train, valid)
    assert sides(2) != (train, valid)


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (49, None, 0),
        (50, None, 5),
        (3000, None, 200),
        (10, 0.0, 0),
        (10, 0.2, 2),
        (3, 0.1, 1),
        (1, 0.5, 0),
        (2, 0.9, 1),
    ],
)
def test_split_sizes(n: int, share: float | None, expected: int) -> None:
    made = prepare(pairs(n), BARE, "answer", validation_split=share).training_set
    assert (made.valid.num_rows if made.valid else 0) == expected
    assert made.train.num_rows == n - expected


def test_validation_rows_and_their_overlap() -> None:
    prepared = prepare(pairs(100), BARE, "answer", valid_rows=pairs(3))
    assert prepared.training_set.train.num_rows == 100
    assert prepared.training_set.valid is not None
    assert prepared.training_set.valid.num_rows == 3
    assert codes(prepared) == {"overlap": 3}
    with pytest.raises(DataError, match="validation query gives no rows"):
        prepare(pairs(100), BARE, "answer", valid_rows=pairs(0))


def test_digest_depends_on_the_conversations_alone() -> None:
    table = pairs(200)
    digest = prepare(table, BARE, "answer").digest
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert prepare(chunked, BARE, "answer", seed=5, validation_split=0.5).digest == digest
    assert prepare(table.slice(1), BARE, "answer").digest != digest
    assert prepare(table.rename_columns(["answer", "content"]), BARE, "answer").digest != digest


def test_the_answer_may_go_by_two_names() -> None:
    for column in ("answer", "reply"):
        table = pa.table({"content": ["a"], column: ["b"]})
        assert talks(prepare(table, BARE, ("answer", "reply"))) == [PAIR]
    with pytest.raises(DataError, match="lacks content, answer"):
        prepare(pa.table({"x": [1]}), BARE, ("answer", "reply"))
