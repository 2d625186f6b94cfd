"""Each check finds what it is for, in rows that show it, and lets like rows without it pass."""

from __future__ import annotations

import sys
from typing import Any

import pyarrow as pa
import pytest

from sqlft.data import Prompt, prepare
from sqlft.data.checks.report import build_histogram, collect_facts, suggest_batch_size, suggest_epochs
from sqlft.data.conversations import Finding
from sqlft.data.privacy import mask_private

WORDS = ["river", "stone", "cloud", "ember", "maple", "quartz", "lantern", "meadow", "harbour", "thistle"]
N = 40
AWS = "AKIA" + "ABCDEFGH12345678"


def question(i: int) -> str:
    """No two are alike."""
    return f"What does the {WORDS[i % 10]} say to the {WORDS[i // 10 % 10]} and the {WORDS[(i * 7 + i // 10) % 10]}?"


def answer(i: int) -> str:
    return f"The {WORDS[i * 3 % 10]} answers the {WORDS[i // 10 % 10]} about {WORDS[i % 10]} things"


def find_in(changed: dict[int, tuple[str | None, str | None]], n: int = N, **how: Any) -> dict[str, Finding]:
    """Findings of n quiet rows, of which some have another question or answer."""
    rows = [changed.get(i, (None, None)) for i in range(n)]
    table = pa.table(
        {
            "content": [question(i) if q is None else q for i, (q, _) in enumerate(rows)],
            "answer": [answer(i) if a is None else a for i, (_, a) in enumerate(rows)],
        }
    )
    prepared = prepare(table, Prompt("{{content}}"), "answer", validation_split=0, **how)
    return {f.code: f for f in prepared.findings if f.code != "few_rows"}


def test_quiet_rows_have_no_findings() -> None:
    assert find_in({}) == {}


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("near_duplicates", {7: (question(3).upper() + "!!", answer(3))}),
        ("near_duplicates", {7: (question(3) + " " * 3, answer(3).replace("answers", "answer"))}),
        ("secrets", {7: (f"My key is {AWS}.", None)}),
        ("secrets", {7: ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", None)}),
        ("passwords", {7: ("log in with password: hunter2hunter2", None)}),
        ("passwords", {7: ("open postgres://joe:s3cret@db.example.org/x", None)}),
        ("personal_data", {7: (None, "Write to Ann.Smith@example.org about cloud things")}),
        ("personal_data", {7: ("Call +49 30 1234 5678 now", None)}),
        ("personal_data", {7: ("Pay with 4111 1111 1111 1111 now", None)}),
        ("personal_data", {7: ("Send it to DE89 3704 0044 0532 0130 00 now", None)}),
        ("mojibake", {7: ("What does the cafÃ© say to the river?", None)}),
        ("invisible_characters", {7: ("What does the\u200b river say?", None)}),
        ("split_letters", {7: ("What does the cafe\u0301 say?", None)}),
        ("html_entities", {7: ("What do Tom &amp; Jerry say?", None)}),
        ("outer_spaces", {7: (None, " The ember answers ")}),
        ("with_full_stop", {7: (None, "The ember answers the stone.")}),
        ("several_lines", {7: (None, "The ember\nanswers the stone")}),
        ("lower_case", {7: (None, "the ember answers the stone")}),
        ("long_answers", {7: (None, "The ember answers " * 60 + "it")}),
        ("languages", {7: ("Was sagt der Fluss und die Wolke zu dem Stein?", "Der Fluss und die Wolke sagen es")}),
    ],
)  # fmt: skip
def test_one_odd_row_is_found(code: str, changed: dict[int, tuple[str | None, str | None]]) -> None:
    found = find_in(changed)
    assert set(found) == {code}
    assert (found[code].count, found[code].examples) == (1, (8,))
    assert len(found[code].shown) == 1
    assert found[code].what_to_do


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111 1111 1111 1112, room 123-45, score 32,036",
        "SELECT password FROM users WHERE token = 'x'",
        "10.12.2024 12:30, ISBN 978-3-16-148410-0, +1 vote",
        "the user@host, a@b, me @ home",
    ],
)
def test_what_only_looks_so_is_let_pass(text: str) -> None:
    assert not {"secrets", "passwords", "personal_data"} & set(find_in({7: (text, None)}))
    assert mask_private(text) == text


def test_masked_texts_show_no_secret() -> None:
    text = f"a {AWS} b sk-{'x' * 30} c password=abcd1234 d joe@example.org e ftp://u:p4ss@h f 4111 1111 1111 1111"
    shown = mask_private(text)
    for hidden in (AWS, "x" * 30, "abcd1234", "joe", "p4ss", "4111"):
        assert hidden not in shown
    assert "AKIA****" in shown
    assert "j***@***.org" in shown


def test_secrets_are_errors_and_their_examples_masked() -> None:
    found = find_in({7: (None, f"use {AWS} here")})["secrets"]
    assert found.level == "error"
    assert AWS not in str(found.shown)


def test_rows_that_differ_in_a_number_are_no_duplicates() -> None:
    changed = {i: (f"How much is the sum of the long list of numbers up to {i}?", f"It is {i}") for i in range(N)}
    assert "near_duplicates" not in find_in(dict(changed))


def test_a_long_common_prompt_hides_no_difference() -> None:
    start = "You are given a table with the columns id, name, country, city, age and salary of all the employees. " * 4
    changed = {i: (start + question(i), answer(i)) for i in range(N)}
    assert find_in(dict(changed)) == {}


def test_without_rapidfuzz_a_single_difference_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.fuzz", None)
    wide = {7: (question(3) + " " * 3, answer(3).replace("answers", "answer"))}
    assert find_in(dict(wide))["near_duplicates"].examples == (8,)


def test_near_overlap_of_validation() -> None:
    train = pa.table({"content": [question(i) for i in range(N)], "answer": [answer(i) for i in range(N)]})
    valid = pa.table({"content": [question(5).lower(), "Who?"], "answer": ["x", "y"]})
    findings = prepare(train, Prompt("{{content}}"), "answer", valid_rows=valid).findings
    assert [(f.count, f.examples) for f in findings if f.code == "near_overlap"] == [(1, (1,))]


def test_formats() -> None:
    sql = {i: (None, f"SELECT {WORDS[i % 10]} FROM {WORDS[i // 10]}_{i}") for i in range(N)}
    found = find_in({**sql, 7: (None, "I do not know")})
    assert found["odd_formats"].examples == (8,)
    assert "SQL" in found["odd_formats"].message
    broken = {i: (None, f'{{"a": {i}}}' if i != 9 else '{"a": ') for i in range(N)}
    assert find_in(dict(broken))["odd_formats"].examples == (10,)


def test_labels() -> None:
    labels = {i: (None, ["urgent", "calm"][i % 2]) for i in range(N)}
    found = find_in({**labels, 7: (None, "Calm"), 8: (None, "odd one")})
    assert found["label_spellings"].examples == (8,)
    assert "'calm' / 'Calm'" in found["label_spellings"].message
    assert found["rare_labels"].count == 2


def test_stop_sequences() -> None:
    found = find_in({7: ("end END", None), 8: (None, "The END of it")}, stops=["END", ""])
    assert (found["stop_in_prompts"].level, found["stop_in_prompts"].examples) == ("info", (8,))
    assert (found["stop_in_answers"].level, found["stop_in_answers"].examples) == ("warning", (9,))
    assert find_in({}, stops=["The "])["stop_in_answers"].level == "error"
    assert "stop_in_answers" not in find_in({8: (None, "It ends where it should END")}, stops=["END"])
    assert find_in({8: (None, "END END")}, stops=["END"])["stop_in_answers"].count == 1


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("missing_answer", dict.fromkeys(range(25), (None, ""))),
        ("conflicting_answers", dict.fromkeys(range(30), ("the same", None))),
    ],
)
def test_a_fault_of_most_rows_is_an_error(code: str, changed: dict[int, tuple[str | None, str | None]]) -> None:
    assert find_in(changed)[code].level == "error"
    few = dict(list(changed.items())[:5])
    assert find_in(few)[code].level == "warning"


def test_not_thorough_leaves_the_slow_checks_out() -> None:
    assert find_in({7: ("Write to ann@example.org", None)}, thorough=False) == {}


def test_a_hundred_thousand_rows_are_checked_in_one_go() -> None:
    """Candidates are few: the comparison of each with each would take hours."""
    n = 100_000
    table = pa.table(
        {
            "content": [f"{question(i)} Think of {WORDS[i // 100 % 10]} number {i // 2} first" for i in range(n)],
            "answer": [answer(i // 2) for i in range(n)],
        }
    )
    findings = {f.code for f in prepare(table, Prompt("{{content}}"), "answer").findings}
    assert "odd_characters" not in findings


@pytest.mark.parametrize("rows", [1, 7, 100, 400, 2_000, 10_000, 200_000, 1_000_000, 5_000_000])
def test_suited_sizes(rows: int) -> None:
    batch = suggest_batch_size(rows)
    assert batch == 1 or 0.0001 * rows <= batch <= 0.04 * rows
    assert 2 <= suggest_epochs(rows) <= 4


def test_a_batch_of_sixteen_where_it_suits() -> None:
    assert [suggest_batch_size(n) for n in (10, 100, 400, 10_000, 1_000_000)] == [1, 4, 16, 16, 128]


def test_histogram() -> None:
    assert build_histogram([5]) == [(5, 6, 1)]
    buckets = build_histogram([40, 41, 99, 310])
    assert sum(n for *_, n in buckets) == 4
    assert len(buckets) <= 12
    assert all(low < below for low, below, _ in buckets)
    assert (buckets[0][0] <= 40 < buckets[0][1], buckets[-1][0] <= 310 < buckets[-1][1]) == (True, True)


def test_facts() -> None:
    table = pa.table({"content": [question(i) for i in range(N)], "answer": ["yes", "no"] * (N // 2)})
    facts = {f.code: f for f in collect_facts(prepare(table, Prompt("{{content}}"), "answer"), lambda t: [10] * len(t))}
    assert facts["token_lengths"].count == N * 18
    assert facts["answers"].details["balance"] == {"yes": 20, "no": 20}
    assert facts["suggested"].details["n_epochs"] == 4
