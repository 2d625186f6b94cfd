"""Shapes recognised, checks that find, splits that hold: each on rows that a query would give."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sqlft.data import Prepared, Prompt, prepare
from sqlft.data.tables import MESSAGES
from sqlft.errors import DataError

BARE = Prompt("{{content}}")


def rows(sql: str) -> pa.Table:
    return duckdb.sql(sql).to_arrow_table()


def pairs(n: int, **more: list[Any]) -> pa.Table:
    return pa.table({"content": [f"q{i}" for i in range(n)], "answer": [f"a{i}" for i in range(n)], **more})


def talks(prepared: Prepared) -> list[list[tuple[str, str]]]:
    """All conversations as (role, content)."""
    valid = prepared.training_set.valid
    column = prepared.training_set.train["messages"].to_pylist() + (valid["messages"].to_pylist() if valid else [])
    return [[(m["role"], m["content"]) for m in c] for c in column]


def codes(prepared: Prepared) -> dict[str, int]:
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
