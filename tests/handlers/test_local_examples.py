"""The statements of examples/ run as they are; a tiny random model stands where the real base would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft.sql.statements import Finetune

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def con(
    request: pytest.FixtureRequest, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sqlft.Connection]:
    """A connection to a database of the given name, for scripts that are run in a folder with the examples."""
    shutil.copytree(tiny, tmp_path / "bases" / "smollm2-135m")
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    made = sqlft.connect(str(tmp_path / f"{request.param}.duckdb"))
    yield made
    made.close()


def run(con: sqlft.Connection, name: str) -> list[list[Any]]:
    """The results of an example's statements."""
    found = []
    for statement in con.statements((EXAMPLES / name).read_text(encoding="utf-8")):
        con.execute(statement.text)
        found.append(con.fetchall())
    return found


@pytest.mark.parametrize("con", ["demo"], indirect=True)
@pytest.mark.parametrize("processor", ["with OpenVINO", "bfloat16"], indirect=True)
def test_text_to_sql(processor: str, con: sqlft.Connection, tmp_path: Path) -> None:
    """What `make demo` runs, on each kind of processor."""
    results = run(con, "text_to_sql.sql")
    assert [row[:2] for row in results[6]] == [("text_to_sql", n) for n in (1, 1, 2, 2)]
    assert (tmp_path / "text_to_sql_report.html").exists()


@pytest.mark.parametrize("con", ["demo"], indirect=True)
def test_text_to_sql_trains_on_no_question_that_judges(con: sqlft.Connection) -> None:
    text = (EXAMPLES / "text_to_sql.sql").read_text(encoding="utf-8")
    statements = con.statements(text)
    con.execute(statements[0].text)
    following = "\n".join(line for (line,) in con.execute(statements[-1].text).fetchall() if line[0] != ".")
    trainings = [s for s in [*statements, *con.statements(following)] if isinstance(s, Finetune)]
    assert len(trainings) == 2
    for training in trainings:
        learnt = con.execute(
            f"SELECT DISTINCT q.split FROM ({training.source.query}) t JOIN questions q USING (question)"
        )
        assert learnt.fetchall() == [("train",)]


@pytest.mark.parametrize("con", ["compare"], indirect=True)
def test_compare(con: sqlft.Connection, provider: Any) -> None:
    con.execute("SET VARIABLE size = 'small'")
    run(con, "compare.sql")
    con.execute(f"CREATE ML_ENGINE hosted FROM openai USING base_url = '{provider.url}', api_key = '{provider.key}'")
    run(con, "compare_hosted.sql")
    run(con, "compare_hosted_tuned.sql")
    table, ratios, tests = run(con, "compare_tables.sql")
    assert [row[:2] for row in table] == [
        *(("text to SQL", way) for way in ("as it came", "good prompt", "three examples", "fine-tuned")),
        *(("text to SQL", f"hosted, {way}") for way in ("good prompt", "DIN-SQL", "fine-tuned")),
        *(("ViGGO", way) for way in ("as it came", "good prompt", "three examples", "fine-tuned")),
        ("ViGGO", "hosted, three examples"),
    ]
    assert all(seconds > 0 for *_, seconds, _, _, _ in table)
    assert [row[-2] is not None for row in table] == ["fine-tuned" in row[1] for row in table]
    assert len(ratios) == 6 + 4
    assert len(tests) == 2
