"""Results of our own statements: what matters of them at 60, 80 and 120 columns, and in a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from sqlft.evaluation.compare import MODEL_SCORES_SCHEMA
from sqlft.shell.output.modes import PIPED_WIDTH, draw_own_result
from sqlft.shell.output.table import Column, Row, Rows, TableStyle
from sqlft.statements.show import MODELS_SCHEMA
from sqlft.statements.training_data import FINDINGS_SCHEMA as FINDINGS

Run = Callable[..., Any]
LONG = "Only 30 conversations to learn from; below 50 a model seldom learns more than a form."
TYPES = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN", "timestamp[us]": "TIMESTAMP"}


def draw(schema: Any, rows: list[dict[str, str]], width: int | None, **how: bool) -> list[str]:
    columns = [Column(f.name, TYPES.get(str(f.type), "VARCHAR[]")) for f in schema]
    cells: list[Row] = [[row.get(c.name) for c in columns] for row in rows]
    return list(draw_own_result(columns, Rows(cells, (), len(cells)), TableStyle(width), **how))


def titles(found: list[str]) -> list[str]:
    return found[1].strip("│ ").replace("│", " ").split()


def models(count: int) -> list[dict[str, str]]:
    common = {"ENGINE": "stranger", "PROJECT": "mindsdb", "ACTIVE": "true", "VERSION": "2", "STATUS": "complete"}
    kept = {"PREDICT": "answer", "UPDATE_STATUS": "up_to_date", "TRAINING_OPTIONS": '{"using": {}}' * 9}
    when = {"CREATED_AT": "2026-11-28 17:34:59.441042", "TRAINING_TIME": "174.275427383"}
    return [{"NAME": f"m{i}", **common, **kept, **when} for i in range(count)]


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_show_models_fits_and_shows_what_matters(width: int | None) -> None:
    found = draw(MODELS_SCHEMA, [*models(2), {"NAME": "bad", "ERROR": "It has no disk.", "STATUS": "failed"}], width)
    assert max(map(cell_len, found)) <= (width or PIPED_WIDTH)
    assert {"NAME", "VERSION", "STATUS", "ERROR"} <= set(titles(found))
    assert "TAG" not in "".join(found)  # it is NULL throughout


def test_what_is_left_out_is_named() -> None:
    found = draw(MODELS_SCHEMA, models(2), 80)
    assert "TRAINING_OPTIONS" not in titles(found)
    assert "not shown: " in "".join(found)
    assert "TRAINING_OPTIONS" in "".join(found)


def test_evaluate_keeps_the_verdict() -> None:
    row = {"model": "m", "version": "2", "answer": "answer", "metric": "exact_match", "value": "0.23393448656606552"}
    row |= {
        "n": "60",
        "low": "0.1",
        "high": "0.3",
        "interval": "wilson",
        "difference": "0.2166666666",
        "baseline": "m.1",
    }
    row |= {"p_value": "0.00024414", "seconds": "3.51231", "wins": "13", "ties": "46", "losses": "1", "test": "sign"}
    found = draw(MODEL_SCORES_SCHEMA, [row, row], 80)
    assert {"metric", "value", "n", "difference", "p_value"} <= set(titles(found))
    assert " 0.2339 " in found[4]
    assert "0.2339344" not in "".join(found)


def test_findings_are_cards_where_the_screen_is_narrow_and_wrapped_where_it_is_wide() -> None:
    rows = [
        {"severity": s, "code": "few_rows", "finding": LONG, "what_to_do": "Add rows if you can.", "rows": "[]"}
        for s in ("warning", "info")
    ]
    narrow = draw(FINDINGS, rows, 50)
    assert narrow[:3] == [
        "  severity = warning",
        "      code = few_rows",
        "   finding = Only 30 conversations to learn from;",
    ]
    assert "" in narrow
    wide = draw(FINDINGS, rows, 90)
    assert titles(wide) == ["severity", "finding", "what_to_do"]
    for found in (narrow, wide):
        words = " ".join("".join(found).replace("│", " ").split())
        assert all(word in words for word in LONG.split())


def test_one_row_is_a_card_and_describe_shows_all_of_it() -> None:
    [brief, whole] = [draw(MODELS_SCHEMA, models(1), 80, is_whole=w) for w in (False, True)]
    assert "TRAINING_OPTIONS = " not in "\n".join(brief)
    assert "TRAINING_TIME = 174.3" in "\n".join(brief)
    assert "CREATED_AT = 2026-11-28 17:34:59" in map(str.strip, brief)
    assert "TRAINING_OPTIONS = " in "\n".join(whole)


def test_a_narrow_result_is_a_table_as_it_is() -> None:
    assert titles(draw(MODELS_SCHEMA, [{"NAME": "m"}], 400))[:3] == ["NAME", "ENGINE", "PROJECT"]


def test_piped_results_are_not_wider_than_a_mail(run_sqlft: Run) -> None:
    made = [f"CREATE MODEL m{i} PREDICT a USING engine = 'echo', tag = 'x'" for i in range(3)]
    done = run_sqlft("shell", "-c", "; ".join([*made, "SHOW MODELS", "SHOW HANDLERS"]), "-c", ".models")
    assert done.returncode == 0, done.stderr
    assert max(cell_len(line) for line in done.stdout.splitlines()) <= PIPED_WIDTH
    assert done.stdout.count("complete") == 9


def test_rows_of_queries_are_duckdbs_also_in_a_pipe(run_sqlft: Run) -> None:
    done = run_sqlft("shell", "-c", "SELECT 0.12345678::DOUBLE AS a, repeat('x', 200) AS b, NULL AS c")
    assert "0.12345678" in done.stdout
    assert "x" * 200 in done.stdout
