"""What Tab offers, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlft
from sqlft.catalog.records import Engine
from sqlft.connection import Connection
from sqlft.shell.completion.complete import suggest
from sqlft.shell.completion.vocabulary import OWN_KEYWORDS, Vocabulary, read_language, read_vocabulary

TABLES = (
    'CREATE TABLE people (id INTEGER, "full name" VARCHAR, country VARCHAR)',
    "CREATE SCHEMA s",
    "CREATE TABLE s.hidden_table (z INTEGER)",
    "CREATE VIEW adults AS SELECT id FROM people",
    "CREATE ML_ENGINE guest FROM stranger",
    "CREATE MODEL capital PREDICT answer USING engine = 'guest', prompt_template = '{{country}} in {{year}}'",
    "CREATE MODEL shop.greeter PREDICT greeting USING engine = 'echo', base = 'loud', prompt_template = '{{guest}}'",
    "CREATE MODEL shop.capital PREDICT other USING engine = 'echo'",
)


@pytest.fixture
def connection_with_models(training_control: object) -> Iterator[Connection]:
    """A database with tables, two versions of a model and an engine."""
    made = sqlft.connect()
    for text in TABLES:
        made.execute(text).fetchall()
    yield made
    made.close()


@pytest.fixture
def vocabulary(connection_with_models: Connection) -> Vocabulary:
    return read_vocabulary(connection_with_models, read_language(connection_with_models))


def complete(before: str, vocabulary: Vocabulary, after: str = "") -> list[str]:
    return [s.text for s in suggest(before, lambda: vocabulary, after)]


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
        ('SELECT * FROM people WHERE "fu', ['full name"']),
        ("SELECT * FROM capital.", ["1", "country", "year", "answer", "answer_error", "answer_usage"]),
        ("SELECT * FROM capital.1 c WHERE c.ye", ["year"]),
        ("FINETUNE ", ["capital"]),
        ("DROP MODEL IF EXISTS c", ["capital"]),
        ("FINETUNE capital ", ["FROM"]),
        ("CREATE MODEL n ", ["PREDICT", "FROM"]),
        ("EVALUATE MODEL capital.1, capital ", ["ON"]),
        ("ANALYZE TR", ["TRAINING DATA FROM"]),
        ("SHOW MOD", ["MODELS"]),
        ("EVALUATE tok", ["token_f1"]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING metrics = 'exact", ["exact_match'"]),
        ("DESCRIBE capital.opt", ["options"]),
        (".plot lo", ["loss"]),
        (".help FINE", ["FINETUNE"]),
        (".mode mark", ["markdown"]),
        ("SET active ", ["capital"]),
        ("CREATE ML_ENGINE e FROM str", ["stranger"]),
        ("DROP ML_ENGINE gu", ["guest"]),
        ("CREATE MODEL m PREDICT a USING eng", ["engine = "]),
        ("CREATE MODEL m PREDICT a USING engine = gu", ["'guest'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'gu", ["guest'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'guest', pref", ["prefix = "]),
        ("CREATE ML_ENGINE e FROM stranger USING ", ["api_key = "]),
        ("FINETUNE capital FROM (SELECT 1) USING st", ["steps = "]),
        ("FINETUNE capital FROM (SELECT 1) USING steps = 3, wa", ["wait = "]),
        ("FINETUNE capital FROM (SELECT 1) USING wait = ", ["true", "false"]),
        ("RESUME MODEL capital.2 USING ", ["wait = "]),
        ("SELECT * FROM capital USING pre", ["prefix = "]),
        ("SELECT * FROM capital USING on_error = ", ["'null'", "'fail'"]),
        ("SELECT * FROM capital USING on_error = 'f", ["fail'"]),
        ("SELECT * FROM people JOIN adults USING (i", ["id"]),
        ("", ["SELECT", "FROM", "WITH", "CREATE"]),
        ("SHOW ", ["MODELS", "PROJECTS", "ML_ENGINES"]),
        ("CREATE OR REPLACE ", ["MODEL"]),
        ("CREATE MODEL n PREDICT a ", ["AS", "USING"]),
        ("FINETUNE capital FROM (SELECT 1) ", ["USING"]),
        ("EVALUATE MODEL ", ["capital", "shop.capital", "greeter"]),
        ("EVALUATE MODEL capital.1, ", ["capital"]),
        ("EVALUATE exact_match ", ["FROM"]),
        ("EVALUATE exact_match, tok", ["token_f1"]),
        ("REPORT ", ["MODEL"]),
        ("REPORT MODEL capital ", ["TO"]),
        ("RESUME MODEL capital.2 ", ["USING"]),
        ("DESCRIBE ", ["people"]),
        ("DROP MODEL ", ["capital"]),
        ("DROP PROJECT ", ["mindsdb", "shop"]),
        ("USE sh", ["shop"]),
        ("SHOW MODELS FROM sh", ["shop"]),
        ("SHOW MODELS FROM shop ", ["LIKE", "WHERE"]),
        ("INSERT OR ", ["REPLACE", "IGNORE"]),
        ("SELECT 1 UNION ", ["ALL SELECT", "ALL BY NAME SELECT", "SELECT"]),
        ("SELECT 1 UNION ALL SELECT * ", ["FROM"]),
        ("SELECT * FROM shop.", ["capital", "greeter"]),
        ("SELECT * FROM gree", ["greeter"]),
        ("SELECT * FROM shop.greeter g WHERE g.", ["1", "guest", "greeting"]),
        ("SELECT * FROM shop.capital c WHERE c.", ["1", "content", "other"]),
        ("SELECT count(*) ", ["FROM"]),
        ("SELECT * FROM people ", ["JOIN", "LEFT JOIN"]),
        ("SELECT * FROM people wh", ["where"]),
        ("SELECT * FROM people LEFT ", ["JOIN"]),
        ("SELECT * FROM people GR", ["GROUP BY"]),
        ("SELECT * FROM people WHERE id = 3 AN", ["AND"]),
        ("SELECT * FROM people WHERE ", ["id", '"full name"', "country"]),
        ("SELECT * FROM people ORDER BY id ", ["ASC", "DESC", "LIMIT"]),
        ("SELECT * FROM (SELECT * FROM people ", ["JOIN"]),
        ("CREATE TABLE t AS ", ["SELECT", "FROM", "WITH"]),
        ("WITH a ", ["AS"]),
        ("WITH a AS (SELECT 1) ", ["SELECT", "FROM"]),
        ("WITH a AS (SELECT 1), b ", ["AS"]),
        ("WITH a AS (SELECT 1), b AS (SELECT 2) ", ["SELECT", "FROM"]),
        ("WITH RECURSIVE a(x, y) AS (SELECT 1), b ", ["AS"]),
        ("WITH a AS (SELECT 1) SELECT x, y ", ["FROM"]),
        ("INSERT INTO people ", ["SELECT", "FROM", "VALUES", "BY NAME"]),
        ("COPY people ", ["TO", "FROM"]),
        ("EXPLAIN FINETUNE capital ", ["FROM"]),
        ("SELECT su", ["substr(", "substring("]),
        ("SELECT 1 FROM people summ", ["summarize"]),
        ("SELECT list_co", ["list_concat(", "list_contains("]),
        ("SELECT * FROM people WHERE regexp_m", ["regexp_matches("]),
        ("SELECT * FROM read_c", ["read_csv("]),
        ("SET sqlft_b", ["sqlft_budget_usd"]),
        ("SET memory_l", ["memory_limit"]),
        ("DESCRIBE capital.1.opt", ["options"]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING metrics = ['exact_match', 'tok", ["token_f1'"]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING metrics = ['exact_match', ", ["'exact_match'", "'token_f1'"]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING ju", ["judge = "]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING pre", ["prediction = ", "prefix = "]),
        ("EVALUATE MODEL capital ON (SELECT 1) USING judge = ", ["'capital'"]),
        ("FINETUNE capital FROM (", ["SELECT", "FROM"]),
        ("FINETUNE capital FROM db (", ["SELECT", "FROM"]),
        ("EVALUATE MODEL capital ON (", ["SELECT", "FROM"]),
        ("SELECT * FROM people WHERE id IN (", ["SELECT", "FROM"]),
        ("FINETUNE capital FROM (SELECT * FROM people) USING tes", []),
        ("EVALUATE MODEL capital ON peo", ["people"]),
        ("DROP TABLE ", ["people", "adults", "main", "s"]),
        ("SELECT * FROM sqlft.usage WHERE cost", ["cost_usd"]),
        ("SELECT * FROM sqlft.versions v WHERE v.arti", ["artifact", "artifact_digest"]),
        ("SELECT id::VARC", ["VARCHAR"]),
        ("CREATE MODEL m PREDICT a USING engine = 'openai', api_key = ", ["env('OPENAI_API_KEY')"]),
        ("CREATE ML_ENGINE e FROM openai USING api_key = ", ["env('OPENAI_API_KEY')"]),
        ("CREATE PRICE FOR gu", ["guest"]),
        ("CREATE PRICE FOR guest USING in", ["input = "]),
        ("CREATE DATABASE d ENGINE = 'sq", ["sqlite'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'local', base = ", ["'smollm2-135m'", "'smollm2-360m'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'local', base = 'smollm2-1", ["smollm2-135m'", "smollm2-1.7b'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'local', model_name = 'qwen2.5-coder-0", ["qwen2.5-coder-0.5b'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'openai', base = ", ["'gpt-6-luna'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'echo', base = ", ["'loud'"]),
        ("CREATE MODEL m PREDICT a USING base = 'smollm2-3", ["smollm2-360m'"]),
        ("SELECT 'sel", []),
        ("SELECT $$sel", []),
        ("SELECT 1 /* sel", []),
        (".mod", [".mode", ".models"]),
        (".mode j", ["json"]),
        (".timer o", ["on", "off"]),
        (".schema peo", ["people"]),
        (".models ", ["capital"]),
        (".nothing x", []),
        (".plot ", ["loss", "metrics", "cost", "speed"]),
        (".plot loss ca", ["capital"]),
        (".plot loss capital ", []),
        (".help .mod", [".mode", ".models"]),
        (".help CREATE ML", ["CREATE ML_ENGINE"]),
        (".tables ad", ["adults"]),
        ("\\dt ad", ["adults"]),
        ("\\tim", ["\\timing"]),
    ],
)
def test_offers(before: str, expected: list[str], vocabulary: Vocabulary) -> None:
    found = complete(before, vocabulary)
    assert found[: len(expected)] == expected
    assert expected or not found


def test_columns_of_a_table_that_is_named_behind_the_cursor(vocabulary: Vocabulary) -> None:
    assert complete("SELECT coun", vocabulary, " FROM people")[0] == "country"
    assert complete("SELECT p.", vocabulary, " FROM people p;") == ["id", '"full name"', "country"]


def test_options_given_are_not_offered_again(vocabulary: Vocabulary) -> None:
    assert "steps = " not in complete("FINETUNE capital FROM (SELECT 1) USING steps = 3, ", vocabulary)


def test_options_tell_what_they_are_for(vocabulary: Vocabulary) -> None:
    found = suggest("FINETUNE capital FROM (SELECT 1) USING step", lambda: vocabulary)
    assert found[0].about == "how many steps (integer)"
    assert found[0].length == 4


@pytest.fixture
def folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data.csv", "data.parquet", "days.sql", "my data.csv", "it's.csv", ".hidden.csv"):
        (tmp_path / name).touch()
    (tmp_path / "dates").mkdir()
    (tmp_path / "dates" / "may.csv").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("FROM 'da", ["data.csv'", "data.parquet'", "dates/", "days.sql'"]),
        ("FROM 'dates/", ["dates/may.csv'"]),
        ("SELECT * FROM people JOIN 'data.p", ["data.parquet'"]),
        ("SELECT * FROM 'data.csv', 'data.p", ["data.parquet'"]),
        ("FROM '~/dates/m", ["~/dates/may.csv'"]),
        ("FROM 'it", ["it''s.csv'"]),
        ("FROM 'it''", ["it''s.csv'"]),
        ("FROM 'my d", ["my data.csv'"]),
        ("FROM '.h", [".hidden.csv'"]),
        ("COPY people TO 'dat", ["data.csv'", "data.parquet'", "dates/"]),
        ("COPY people FROM 'data.c", ["data.csv'"]),
        ("COPY (SELECT 1) TO 'data.c", ["data.csv'"]),
        ("FROM read_csv('data.c", ["data.csv'"]),
        ("FROM read_csv(['data.csv', 'data.p", ["data.parquet'"]),
        ("SELECT * FROM read_parquet('data.p", ["data.parquet'"]),
        ("ATTACH 'days", ["days.sql'"]),
        ("SUMMARIZE 'data.c", ["data.csv'"]),
        ("REPORT MODEL capital TO 'day", ["days.sql'"]),
        (
            "CREATE MODEL m PREDICT a USING engine = 'local', base = './dat",
            ["./data.csv'", "./data.parquet'", "./dates/"],
        ),
        ("SELECT 'da", []),
        ("SELECT * FROM people WHERE country = 'da", []),
        ("FROM read_csv('data.csv', delim = 'da", []),
        (".read da", ["data.csv", "data.parquet", "dates/", "days.sql"]),
        (".open 'my", ["'my data.csv'"]),
        (".open my", ["'my data.csv'"]),
        (".read it", ['"it\'s.csv"']),
        (".import data.c", ["data.csv"]),
        (".import data.csv peo", ["people"]),
        (".once dates/", ["dates/may.csv"]),
        (".shell cat day", ["days.sql"]),
        ("\\i day", ["days.sql"]),
    ],
)
def test_files(before: str, expected: list[str], vocabulary: Vocabulary, folder_of_files: Path) -> None:
    assert complete(before, vocabulary) == expected


def test_a_quote_that_is_closed_already_is_not_closed_again(vocabulary: Vocabulary, folder_of_files: Path) -> None:
    assert complete("FROM 'data.c", vocabulary, "' WHERE a = 1") == ["data.csv"]


def test_a_word_that_is_complete_is_not_offered_again(vocabulary: Vocabulary) -> None:
    assert complete("SELECT * FROM people JOI", vocabulary)[0] == "JOIN"
    assert "people" not in complete("SELECT * FROM people", vocabulary)


def test_bases_say_what_they_are(vocabulary: Vocabulary) -> None:
    found = suggest("CREATE MODEL m PREDICT a USING engine = 'local', base = 'smollm2-135", lambda: vocabulary)
    assert found[0].about.startswith("0.13 B parameters, ")
    assert found[0].length == len("smollm2-135")


def test_the_project_in_use_has_its_models_by_their_names(connection_with_models: Connection) -> None:
    connection_with_models.execute("USE shop")
    found = complete("FINETUNE ", read_vocabulary(connection_with_models))
    assert found[:3] == ["mindsdb.capital", "capital", "greeter"]


def test_options_of_training_are_those_of_the_models_engine(vocabulary: Vocabulary) -> None:
    of_guest = complete("FINETUNE capital FROM (SELECT 1) USING ", vocabulary)
    of_echo = complete("FINETUNE shop.greeter FROM (SELECT 1) USING ", vocabulary)
    assert ("steps = " in of_guest, "steps = " in of_echo) == (True, False)
    local = "CREATE MODEL m FROM (SELECT 1) PREDICT a USING engine = 'local', "
    assert {"n_epochs = ", "learning_rate = ", "base = "} <= set(complete(local, vocabulary))


def test_every_word_of_a_statement_of_ours_is_a_keyword(vocabulary: Vocabulary) -> None:
    assert {"MODEL", "FINETUNE", "ML_ENGINE", "PREDICT", "USING", "RETRAIN"} <= set(OWN_KEYWORDS)
    assert set(OWN_KEYWORDS) | {"SELECT", "SUMMARIZE", "QUALIFY"} <= set(vocabulary.language.keywords)


def test_in_a_failed_transaction_models_are_still_known(connection_with_models: Connection) -> None:
    connection_with_models.execute("BEGIN").fetchall()
    with pytest.raises(Exception, match="Conversion"):
        connection_with_models.execute("SELECT 'x'::INTEGER")
    assert complete("FINETUNE ", read_vocabulary(connection_with_models)) == [
        "capital",
        "shop.capital",
        "greeter",
        "MODEL",
    ]


def test_a_handler_that_cannot_be_loaded_has_no_options(connection_with_models: Connection) -> None:
    connection_with_models.session.catalog.add_engine(Engine("broken", "nowhere"))
    found = complete("CREATE MODEL m PREDICT a USING engine = 'broken', ", read_vocabulary(connection_with_models))
    assert "base = " in found


def test_knowledge_bases_are_completed(connection_with_models: Connection) -> None:
    connection_with_models.execute("CREATE KNOWLEDGE_BASE notes USING metadata_columns = ['colour']")
    words = read_vocabulary(connection_with_models, read_language(connection_with_models))
    expected = {
        "CREATE KNOW": "KNOWLEDGE_BASE",
        "CREATE KNOWLEDGE_BASE n USING emb": "embedding_model = ",
        "CREATE KNOWLEDGE_BASE n USING embedding_model = ": "'capital'",
        "DROP KNOWLEDGE_BASE ": "notes",
        "REFRESH KNOWLEDGE_BASE ": "notes",
        "CREATE INDEX ON KNOWLEDGE_BASE ": "notes",
        "INSERT INTO no": "notes",
        "INSERT INTO notes SELECT 1 USING bat": "batch_size = ",
        "SELECT notes.col": "colour",
        "SELECT * FROM notes n WHERE n.con": "content",
    }
    for before, word in expected.items():
        assert word in complete(before, words)[:3], before
    assert "documents" not in str(complete("SELECT * FROM ", words))
