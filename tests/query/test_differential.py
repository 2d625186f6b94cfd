"""Random queries over models give what they give over tables that hold all the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from query.differential import differences
from query.generator import generate
from query.world import Case, World, twin

SEED, QUERIES = 1, 400
SHAPES = [
    *("LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN", "CROSS JOIN", "NATURAL JOIN", "ASOF JOIN"),
    *("USING (", "LATERAL", "EXISTS", "PIVOT", "UNPIVOT", "GROUPING SETS", "ROLLUP", "CUBE", "HAVING", "QUALIFY"),
    *("WINDOW", "OVER", "DISTINCT ON", "UNION ALL", "INTERSECT", "EXCEPT", "WITH", "MATERIALIZED", "ORDER BY ALL"),
    *(
        "OFFSET",
        "CREATE OR REPLACE TABLE",
        "INSERT INTO",
        "UPDATE",
        "DELETE",
        "MERGE",
        "CREATE VIEW",
        "NOT IN",
        "= ANY",
    ),
    *("`", '"m"', "IN (SELECT"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Models, and tables in their place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("differential")))
        made = World()
        yield made
        made.close()


@pytest.mark.parametrize("number", range(QUERIES))
def test_query(world: World, number: int) -> None:
    for difference in differences(world, SEED, range(number, number + 1)):
        pytest.fail(str(difference), pytrace=False)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(a) FROM (SELECT m.answer AS a FROM t JOIN m ON m.content = t.id::VARCHAR"
        " ORDER BY t.id OFFSET 6) s",
        "SELECT min(a), count(a) FROM (SELECT m.answer AS a FROM t JOIN m ON m.content = t.id::VARCHAR"
        " ORDER BY t.id LIMIT 3 OFFSET 4) s",
        "SELECT s.label, t.id FROM t, LATERAL (SELECT n.label FROM m2 n WHERE n.q "
        + twin("=", "IS NOT DISTINCT FROM")
        + " t.content) s JOIN m2 o ON true WHERE o.q "
        + twin("=", "IS NOT DISTINCT FROM")
        + " t.content",
        "SELECT a3.answer, t.id FROM pq a2 JOIN m AS a3 ON a3.content = a2.p JOIN m2 ON m2.q = upper(a3.answer)"
        " FULL JOIN t ON t.id = a2.id WHERE a2.p <> 'p0' OR a3.answer IS NULL",
    ],
    ids=["offset", "limit and offset", "a row of NULL beside another model", "a condition above a full join"],
)
def test_a_query_that_differed_once(world: World, query: str) -> None:
    assert world.compare(Case([query], False)).kind == "equal"


def test_every_shape_is_among_them() -> None:
    texts = [generate(SEED, number).text("model") for number in range(QUERIES)]
    missing = [shape for shape in SHAPES if not any(shape in text for text in texts)]
    assert not missing


def test_few_are_left_out(world: World) -> None:
    cases = [generate(SEED, number) for number in range(QUERIES)]
    unknown = [case for case in cases if "NotImplemented" in world.run("table", case).error]
    assert len(unknown) <= QUERIES // 20


def test_a_case_is_always_the_same() -> None:
    assert generate(SEED, 7) == generate(SEED, 7)
    assert generate(SEED, 7) != generate(SEED + 1, 7)


@pytest.mark.parametrize(
    ("query", "ordered", "kind"),
    [
        (twin("SELECT 1 AS a", "SELECT 2 AS a"), False, "other rows"),
        (twin("SELECT 1 AS a", "SELECT 1 AS b"), False, "other names"),
        (twin("SELECT 1 AS a", "SELECT 1::BIGINT AS a"), False, "other types"),
        (twin("FROM range(2)", "FROM range(2) ORDER BY 1 DESC"), True, "another order"),
        (twin("FROM range(2)", "FROM range(2) ORDER BY 1 DESC"), False, "equal"),
        (twin("SELECT 0.0::DOUBLE", "SELECT -0.0::DOUBLE"), False, "other names"),
        (twin("SELECT 0.0::DOUBLE AS a", "SELECT '-0'::DOUBLE AS a"), False, "other rows"),
        (twin("SELECT nothing", "SELECT 1"), False, "an error of DuckDB"),
        ("SELECT nothing", False, "the case is wrong"),
    ],
)
def test_differences_are_found(world: World, query: str, ordered: bool, kind: str) -> None:
    assert world.compare(Case([query], ordered)).kind == kind


def test_answers_are_those_of_the_models(world: World) -> None:
    for name in ("m", "m2", "two"):
        texts = "SELECT * FROM m ORDER BY content LIMIT 12"
        known = world.table.execute(texts).fetchall()
        for (text, _), inputs in ((k, {"m": ["content"], "m2": ["q"], "two": ["p", "q"]}[name]) for k in known):
            where = " AND ".join(f"{i} IS NOT DISTINCT FROM $1" for i in inputs)
            asked = " AND ".join(f"{i} = $1" for i in inputs)
            expected = world.table.execute(f"SELECT * FROM {name} WHERE {where}", [text]).fetchall()
            assert world.model.execute(f"SELECT * FROM {name} WHERE {asked}", [text]).fetchall() == expected
            assert len(expected) == 1


def test_the_command_runs_one_query(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from query import differential

    monkeypatch.setattr("sys.argv", ["differential", "--queries", "2", "--seed", "3"])
    assert differential.main() in (0, 1)
    assert "of 2 equal" in capsys.readouterr().out
