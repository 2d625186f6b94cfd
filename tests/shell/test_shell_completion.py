"""What Tab offers, place by place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sqlft
from sqlft.catalog.records import Engine
from sqlft.connection import Connection
from sqlft.shell.completion import suggestions
from sqlft.shell.vocabulary import OURS, Vocabulary, keywords_of, vocabulary_of

TABLES = (
    'CREATE TABLE people (id INTEGER, "full name" VARCHAR, country VARCHAR)',
    "CREATE SCHEMA s",
    "CREATE TABLE s.hidden_table (z INTEGER)",
    "CREATE VIEW adults AS SELECT id FROM people",
    "CREATE ML_ENGINE guest FROM stranger",
    "CREATE MODEL capital PREDICT answer USING engine = 'guest', prompt_template = '{{country}} in {{year}}'",
)


@pytest.fixture
def con(stranger: object) -> Iterator[Connection]:
    """A database with tables, two versions of a model and an engine."""
    made = sqlft.connect()
    for text in TABLES:
        made.execute(text).fetchall()
    yield made
    made.close()


@pytest.fixture
def vocabulary(con: Connection) -> Vocabulary:
    return vocabulary_of(con, keywords_of(con))


def offered(before: str, vocabulary: Vocabulary, after: str = "") -> list[str]:
    return [s.text for s in suggestions(before, lambda: vocabulary, after)]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("FINET", ["FINETUNE"]),
        ("sel", ["select"]),
        ("SELECT 1; sel", ["select"]),
        ("SELECT * FROM peo", ["people"]),
        ("SELECT * FROM people, cap", ["capital"]),
        ("SELECT * FROM ad", ["adults"]),
        ("SELECT * FROM s.", ["hidden_table"]),
        ("SELECT * FROM sqlft.ver", ["versions"]),
        ("SELECT * FROM people AS p WHERE p.", ["id", '"full name"', "country"]),
        ('SELECT * FROM people WHERE "fu', ["full name"]),
        ("SELECT * FROM capital.", ["1", "country", "year", "answer", "answer_error", "answer_usage"]),
        ("SELECT * FROM capital.1 c WHERE c.ye", ["year"]),
        ("FINETUNE ", ["capital"]),
        ("DROP MODEL IF EXISTS c", ["capital"]),
        ("FINETUNE capital ", ["FROM"]),
        ("CREATE MODEL n ", ["PREDICT", "FROM"]),
        ("EVALUATE MODEL capital.1, capital ", ["ON"]),
        ("ANALYZE TR", ["TRAINING"]),
        ("SHOW MOD", ["MODELS"]),
        ("EVALUATE tok", ["token_f1"]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING metrics = 'exact", ["exact_match"]),
        ("DESCRIBE capital.opt", ["options"]),
        (".plot lo", ["loss"]),
        (".help FINE", ["FINETUNE"]),
        (".mode mark", ["markdown"]),
        ("SET active ", ["capital"]),
        ("CREATE ML_ENGINE e FROM str", ["stranger"]),
        ("DROP ML_ENGINE gu", ["guest"]),
        ("CREATE MODEL m PREDICT a USING eng", ["engine = "]),
        ("CREATE MODEL m PREDICT a USING engine = gu", ["'guest'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'gu", ["guest"]),
        ("CREATE MODEL m PREDICT a USING engine = 'guest', pref", ["prefix = "]),
        ("CREATE ML_ENGINE e FROM stranger USING ", ["api_key = "]),
        ("FINETUNE capital FROM (SELECT 1) USING st", ["steps = "]),
        ("FINETUNE capital FROM (SELECT 1) USING steps = 3, wa", ["wait = "]),
        ("FINETUNE capital FROM (SELECT 1) USING wait = ", ["true", "false"]),
        ("RESUME MODEL capital.2 USING ", ["wait = "]),
        ("SELECT * FROM capital USING pre", ["prefix = "]),
        ("SELECT * FROM capital USING on_error = ", ["'null'", "'fail'"]),
        ("SELECT * FROM capital USING on_error = 'f", ["fail"]),
        ("SELECT * FROM people JOIN adults USING (i", ["id"]),
        ("SELECT 'sel", []),
        ("SELECT $$sel", []),
        ("SELECT 1 /* sel", []),
        (".mod", [".mode", ".models"]),
        (".mode j", ["json"]),
        (".timer o", ["on", "off"]),
        (".schema peo", ["people"]),
        (".models ", ["capital"]),
        (".nothing x", []),
    ],
)
def test_offers(before: str, expected: list[str], vocabulary: Vocabulary) -> None:
    found = offered(before, vocabulary)
    assert found[: len(expected)] == expected
    assert expected or not found


def test_columns_of_a_table_that_is_named_behind_the_cursor(vocabulary: Vocabulary) -> None:
    assert offered("SELECT coun", vocabulary, " FROM people")[0] == "country"
    assert offered("SELECT p.", vocabulary, " FROM people p;") == ["id", '"full name"', "country"]


def test_options_given_are_not_offered_again(vocabulary: Vocabulary) -> None:
    assert "steps = " not in offered("FINETUNE capital FROM (SELECT 1) USING steps = 3, ", vocabulary)


def test_options_tell_what_they_are_for(vocabulary: Vocabulary) -> None:
    found = suggestions("FINETUNE capital FROM (SELECT 1) USING step", lambda: vocabulary)
    assert found[0].about == "how many steps (integer)"
    assert found[0].length == 4


def test_files(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("f")
    (folder / "b.sql").touch()
    (folder / "a").mkdir()
    assert offered(f".read {folder}/", vocabulary) == [f"{folder}/a/", f"{folder}/b.sql"]


def test_every_word_of_a_statement_of_ours_is_a_keyword(vocabulary: Vocabulary) -> None:
    assert {"MODEL", "FINETUNE", "ML_ENGINE", "PREDICT", "USING", "RETRAIN"} <= set(OURS)
    assert set(OURS) | {"SELECT", "SUMMARIZE", "QUALIFY"} <= set(vocabulary.keywords)


def test_in_a_failed_transaction_models_are_still_known(con: Connection) -> None:
    con.execute("BEGIN").fetchall()
    with pytest.raises(Exception, match="Conversion"):
        con.execute("SELECT 'x'::INTEGER")
    assert offered("FINETUNE ", vocabulary_of(con)) == ["capital"]


def test_a_handler_that_cannot_be_loaded_has_no_options(con: Connection) -> None:
    con.session.catalog.add_engine(Engine("broken", "nowhere"))
    found = offered("CREATE MODEL m PREDICT a USING engine = 'broken', ", vocabulary_of(con))
    assert "base = " in found
