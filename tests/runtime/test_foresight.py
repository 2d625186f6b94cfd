"""What EXPLAIN FINETUNE and ANALYZE TRAINING DATA tell, and what FINETUNE does about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sqlft.errors import DataError, NotFound, NotSupported, OptionError, StatementError
from sqlft.training.estimate import format_duration

KEY = "sk-" + "a1B2" * 8


def explain(connection_with_model: Any, statement: str) -> dict[str, str | None]:
    return dict(connection_with_model.run(f"EXPLAIN {statement}"))


def analyse(connection_with_model: Any, statement: str) -> dict[str, dict[str, Any]]:
    cursor = connection_with_model.con.execute(f"ANALYZE TRAINING DATA {statement}")
    names = [d[0] for d in cursor.description]
    return {row[1]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}


def test_explain_tells_all_and_makes_nothing(connection_with_model: Any) -> None:
    found = explain(connection_with_model, "FINETUNE m FROM (SELECT * FROM rows) USING steps = 3")
    assert found["model"] == "m"
    assert (found["rows"], found["training_rows"], found["validation_rows"]) == ("8", "8", "0")
    assert (found["tokens"], found["steps"], found["expected_minutes"]) == ("1200", "3", "1.5")
    assert (found["memory_gb"], found["memory_available_gb"], found["fits"]) == ("2.1", "4.0", "true")
    assert found["cost_usd"] == "0.6"
    assert found["remark"] == "by heart"
    assert "Only 8 conversations" in str(found["warning: few_rows"])
    assert [str(v.key) for v in connection_with_model.catalog.versions()] == ["m.1"]
    assert not (connection_with_model.catalog.folder / "models").exists()
    assert connection_with_model.warnings == []


def test_explain_of_each_training(connection_with_model: Any) -> None:
    connection_with_model.train()
    assert explain(connection_with_model, "FINETUNE m FROM (SELECT * FROM rows)")["starts_from"] == "version 2"
    assert explain(connection_with_model, "RETRAIN m")["starts_from"] == "base"
    made = "MODEL n FROM (SELECT * FROM rows) PREDICT answer USING engine = 'stranger', base = 'tiny', steps = 2"
    found = explain(connection_with_model, f"CREATE {made}, prompt_template = '{{{{question}}}}'")
    assert (found["model"], found["steps"]) == ("n", "2")
    assert [m.key.name for m in connection_with_model.catalog.models()] == ["m"]


def test_explain_takes_parameters_and_finds_mistakes(connection_with_model: Any) -> None:
    found = connection_with_model.con.execute(
        "EXPLAIN FINETUNE m FROM (SELECT * FROM rows LIMIT ?) USING steps = ?", [3, 2]
    ).fetchall()
    assert {("rows", "3"), ("steps", "2")} <= set(found)
    with pytest.raises(OptionError, match="Did you mean 'steps'"):
        explain(connection_with_model, "FINETUNE m FROM (SELECT * FROM rows) USING step = 1")
    with pytest.raises(NotFound):
        explain(connection_with_model, "FINETUNE nobody FROM (SELECT * FROM rows)")
    with pytest.raises(StatementError, match="nothing to explain"):
        explain(connection_with_model, "CREATE MODEL n PREDICT answer USING engine = 'stranger'")


def test_plain_explain_and_analyze_stay_duckdbs(connection_with_model: Any) -> None:
    assert "explain_value" in [
        d[0] for d in connection_with_model.con.execute("EXPLAIN SELECT * FROM rows").description
    ]
    connection_with_model.run("CREATE TABLE training (data INTEGER)")
    connection_with_model.run("ANALYZE training")
    connection_with_model.run("ANALYZE")


def test_what_does_not_fit_is_refused_before_it_starts(connection_with_model: Any) -> None:
    connection_with_model.run(
        "CREATE MODEL h PREDICT answer USING engine = 'stranger', base = 'huge', prompt_template = '{{question}}'"
    )
    found = explain(connection_with_model, "FINETUNE h FROM (SELECT * FROM rows)")
    assert found["fits"] == "false"
    assert "80.0 GB" in str(found["refused_because"])
    with pytest.raises(NotSupported, match=r"80\.0 GB") as caught:
        connection_with_model.train(what="FINETUNE h")
    assert "base 'tiny'" in caught.value.next_step
    assert [str(v.key) for v in connection_with_model.catalog.versions()] == ["h.1", "m.1"]
    connection_with_model.train("check = 'warn'", what="FINETUNE h")
    assert any("80.0 GB" in w for w in connection_with_model.warnings)
    assert connection_with_model.version(2, "h").status == "complete"


def test_an_estimate_that_fails_stops_nothing(connection_with_model: Any) -> None:
    connection_with_model.run(
        "CREATE MODEL b PREDICT answer USING engine = 'stranger', base = 'broken', prompt_template = '{{question}}'"
    )
    assert explain(connection_with_model, "FINETUNE b FROM (SELECT * FROM rows)")["expected_minutes"] is None
    connection_with_model.train(what="FINETUNE b")
    assert connection_with_model.version(2, "b").status == "complete"


def test_the_estimate_is_told_and_kept_beside_what_was_taken(connection_with_model: Any) -> None:
    told: list[str] = []
    connection_with_model.con.session.show_notice = told.append
    connection_with_model.train("steps = 3")
    assert told[:1] == ["m: 8 rows, 1,200 tokens, 3 steps, about 1.5 minutes, 2.1 GB of 4.0 GB free, $0.60, by heart"]
    facts = {row[0]: row[1:] for row in connection_with_model.run("DESCRIBE m.2.estimate")}
    assert facts["tokens"] == (1200.0, 123.0)
    assert facts["steps"] == (3.0, 3.0)
    assert facts["minutes"][0] == 1.5
    assert facts["minutes"][1] > 0
    assert facts["memory_gb"][0] == 2.1
    assert 0.005 < facts["memory_gb"][1] < 10


def test_the_speed_of_the_first_steps_takes_the_place_of_the_estimate(connection_with_model: Any) -> None:
    """The stranger says 1.5 minutes before, and 100 when it trains."""
    told: list[str] = []
    connection_with_model.con.session.show_notice = told.append
    described: list[Any] = []
    connection_with_model.training.script({4: "listen"})

    def look(tick: Any) -> None:
        if tick.done == 4 and not described:
            described.extend(connection_with_model.con.cursor().execute("DESCRIBE m.2.estimate").fetchall())
            connection_with_model.training.go()

    connection_with_model.on_tick = look
    connection_with_model.train("steps = 6, seconds_left = 6000")
    minutes = next(row for row in described if row[0] == "minutes")
    assert minutes[1] == pytest.approx(100, abs=5)
    assert minutes[2] is None
    assert [line for line in told if "first steps" in line] == [
        "m.2: at the speed of its first steps it takes about 1.67 hours, and not 1.5 minutes."
    ]
    facts = {row[0]: row[1:] for row in connection_with_model.run("DESCRIBE m.2.estimate")}
    assert facts["minutes"][0] == 1.5


def test_errors_in_the_data_stop_a_training(connection_with_model: Any) -> None:
    rows = f"SELECT 'key {KEY} ' || i AS question, 'a' || i AS answer FROM range(8) t(i)"
    with pytest.raises(DataError, match="provider's key") as caught:
        connection_with_model.train(rows=rows)
    assert KEY not in str(caught.value)
    assert "check = 'warn'" in caught.value.next_step
    assert [str(v.key) for v in connection_with_model.catalog.versions()] == ["m.1"]
    connection_with_model.train("check = 'warn'", rows=rows)
    assert any("provider's key" in w for w in connection_with_model.warnings)
    listed = connection_with_model.run("DESCRIBE m.2.findings")
    assert KEY not in str(listed)
    assert listed[0][0] == "warning" or any(row[0] == "error" for row in listed)


def test_check_off_leaves_the_slow_checks_out(connection_with_model: Any) -> None:
    rows = "SELECT 'mail to ann@example.org ' || i AS question, 'a' || i AS answer FROM range(8) t(i)"
    connection_with_model.train("check = 'off'", rows=rows)
    assert "personal_data" not in str(connection_with_model.version(2).findings)
    connection_with_model.train(rows=rows)
    assert "personal_data" in str(connection_with_model.version(3).findings)


def test_analyze_without_a_model(connection_with_model: Any) -> None:
    found = analyse(
        connection_with_model,
        "FROM (SELECT question, answer FROM rows UNION ALL SELECT 'q1', 'other') USING stop = 'oth'",
    )
    conflict = found["conflicting_answers"]
    assert (conflict["severity"], conflict["count"], conflict["rows"]) == ("warning", 1, [9])
    assert conflict["examples"] == ["q1 → other"]
    assert conflict["what_to_do"] == "Keep one of them."
    assert found["stop_in_answers"]["count"] == 1
    assert json.loads(found["rows"]["details"]) == {"rows": 9, "train": 9, "validation": 0}
    lengths = json.loads(found["token_lengths"]["details"])
    assert sum(bucket["count"] for bucket in lengths["histogram"]) == 9
    assert json.loads(found["suggested"]["details"]) == {"batch_size": 1, "n_epochs": 4}


def test_analyze_for_a_model_reads_its_columns(connection_with_model: Any) -> None:
    found = analyse(connection_with_model, "FROM (SELECT * FROM rows) FOR m USING max_length = 3, stop = ['a1']")
    assert found["over_long"]["count"] == 8
    assert found["stop_in_answers"]["count"] == 1
    with pytest.raises(DataError, match="lacks question"):
        analyse(connection_with_model, "FROM (SELECT 1 AS x) FOR MODEL m")
    connection_with_model.run("CREATE MODEL e PREDICT answer USING engine = 'echo', prompt_template = '{{question}}'")
    assert analyse(connection_with_model, "FOR e FROM (SELECT * FROM rows)")["rows"]["count"] == 8


@pytest.mark.parametrize(
    "query",
    [
        "SELECT unnest(['system', 'user', 'assistant']) AS role, unnest(['s', 'u', 'a']) AS content",
        "SELECT [{'role': 'user', 'content': 'u'}, {'role': 'assistant', 'content': 'a'}] AS messages",
        "SELECT 'u' AS prompt, 'a' AS completion",
        "SELECT 'a' AS answer, 'u' AS question, 'c' AS context",
    ],
)
def test_analyze_knows_the_shapes(connection_with_model: Any, query: str) -> None:
    assert analyse(connection_with_model, f"FROM ({query})")["answers"]["examples"] == ["a"]


def test_analyze_of_one_column_says_what_is_missing(connection_with_model: Any) -> None:
    with pytest.raises(DataError, match="one column, x"):
        analyse(connection_with_model, "FROM (SELECT 1 AS x)")


def test_durations() -> None:
    assert [format_duration(s) for s in (0.2, 40, 300, 9_000, 400_000)] == [
        "1 seconds",
        "40 seconds",
        "5 minutes",
        "2.5 hours",
        "4.63 days",
    ]
