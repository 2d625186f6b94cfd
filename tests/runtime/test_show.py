"""SHOW and DESCRIBE: MindsDB's columns, what they hold, and DuckDB's own DESCRIBE left alone."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.errors import NotFound
from sqlft.statements.describe import ATTRIBUTES
from sqlft.statements.show import TABLE_BUILDERS

MINDSDB = [
    "NAME",
    "ENGINE",
    "PROJECT",
    "ACTIVE",
    "VERSION",
    "STATUS",
    "ACCURACY",
    "PREDICT",
    "UPDATE_STATUS",
    "MINDSDB_VERSION",
    "ERROR",
    "SELECT_DATA_QUERY",
    "TRAINING_OPTIONS",
    "CURRENT_TRAINING_PHASE",
    "TOTAL_TRAINING_PHASES",
    "TRAINING_PHASE_NAME",
    "TAG",
    "CREATED_AT",
    "TRAINING_TIME",
]


def dicts(connection_with_model: Any, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
    """Rows by column name."""
    done = connection_with_model.con.execute(sql, parameters)
    names = [d[0] for d in done.description]
    return [dict(zip(names, row, strict=True)) for row in done.fetchall()]


def names(connection_with_model: Any, sql: str, parameters: Any = None) -> list[str]:
    return [row["NAME"] for row in dicts(connection_with_model, sql, parameters)]


@pytest.fixture
def models(connection_with_model: Any) -> Any:
    """m with a trained version 2, and two of echo's."""
    connection_with_model.train("tag = 'mine', seed = 7")
    connection_with_model.run(
        "CREATE MODEL ft_one PREDICT a USING engine = 'echo'; CREATE MODEL other.ft_two PREDICT a USING engine = 'echo'"
    )
    return connection_with_model


def test_show_models(models: Any) -> None:
    [first, *_] = [row for row in dicts(models, "SHOW MODELS") if row["NAME"] == "m"]
    assert list(first) == MINDSDB
    assert (first["VERSION"], first["ACTIVE"], first["STATUS"], first["TAG"]) == (2, True, "complete", "mine")
    assert (first["ENGINE"], first["PROJECT"], first["PREDICT"]) == ("stranger", "mindsdb", "answer")
    assert first["SELECT_DATA_QUERY"] == "SELECT * FROM rows"
    options = json.loads(first["TRAINING_OPTIONS"])
    assert options["target"] == "answer"
    assert (options["using"]["base"], options["using"]["seed"]) == ("tiny", 7)
    assert first["TRAINING_TIME"] > 0


def test_show_models_chosen(models: Any) -> None:
    assert names(models, "SHOW MODELS FROM other") == ["ft_two"]
    assert names(models, "SHOW MODELS LIKE 'FT%'") == ["ft_one", "ft_two"]
    assert names(models, "SHOW PREDICTORS WHERE engine = 'echo' AND project <> 'other' -- a remark") == ["ft_one"]
    assert names(models, "SHOW MODELS WHERE version = ?", [2]) == ["m"]
    assert names(models, "SHOW MODELS FROM mindsdb LIKE '%o%' WHERE name LIKE 'ft%'") == ["ft_one"]
    recent = "created_at > now()::TIMESTAMP - INTERVAL 1 HOUR"
    assert names(models, f"SHOW MODELS WHERE {recent} ORDER BY name DESC LIMIT 2") == ["m", "ft_two"]


def test_a_condition_that_is_wrong(models: Any) -> None:
    with pytest.raises(duckdb.BinderException, match="nmae"):
        models.run("SHOW MODELS WHERE nmae = 'm'")
    assert models.run("SELECT count(*) FROM duckdb_views() WHERE view_name LIKE '__sqlft%'") == [(0,)]


def test_show_models_of_an_empty_catalog() -> None:
    with sqlft.connect() as con:
        done = con.execute("SHOW MODELS WHERE name = 'x'")
        assert [d[0] for d in done.description] == MINDSDB
        assert done.fetchall() == []


def test_show_models_while_training_and_after_a_failure(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-2")
    [row] = dicts(connection_with_model, "DESCRIBE m.2")
    assert (row["STATUS"], row["ACTIVE"], row["UPDATE_STATUS"]) == ("training", False, "updating")
    assert row["TRAINING_PHASE_NAME"] == "training"
    assert names(connection_with_model, "SHOW MODELS WHERE version = 1 AND active") == ["m"]
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"
    connection_with_model.training.script({1: "exit"})
    with pytest.raises(sqlft.SqlftError):
        connection_with_model.train()
    [row] = dicts(connection_with_model, "DESCRIBE m.3")
    assert row["STATUS"] in ("failed", "interrupted")
    assert row["ERROR"]


def test_show_engines(connection_with_model: Any) -> None:
    assert dicts(connection_with_model, "SHOW ML_ENGINES") == []
    connection_with_model.run("CREATE ML_ENGINE mine FROM stranger USING api_key = 'geheim'")
    [row] = dicts(connection_with_model, "SHOW ML_ENGINES LIKE 'M%'")
    assert (row["NAME"], row["HANDLER"], json.loads(row["CONNECTION_DATA"])) == (
        "mine",
        "stranger",
        {"api_key": "****"},
    )
    assert dicts(connection_with_model, "SHOW ML_ENGINES WHERE handler = 'echo'") == []


def test_show_handlers(connection_with_model: Any) -> None:
    rows = {row["NAME"]: row for row in dicts(connection_with_model, "SHOW HANDLERS")}
    assert {"echo", "local", "stranger"} <= set(rows)
    stranger = rows["stranger"]
    assert (stranger["PACKAGE"], stranger["VERSION"], stranger["TRAINS"]) == ("stranger", "1.2", True)
    assert (stranger["DESCRIPTION"], stranger["IMPORT_SUCCESS"]) == ("Learns by heart.", True)
    assert rows["echo"]["TRAINS"] is False


def test_describe_engine(connection_with_model: Any) -> None:
    [row] = dicts(connection_with_model, "DESCRIBE ML_ENGINE stranger")
    assert (row["HANDLER"], row["MODELS"], row["TRAINS"], row["IMPORT_ERROR"]) == ("stranger", ["m"], True, None)
    assert "training option steps (integer): how many steps" in row["OPTIONS"]
    with pytest.raises(NotFound, match="Did you mean 'stranger'"):
        connection_with_model.run("DESCRIBE ML_ENGINE strangr")


def test_describe_tells_what_a_version_was_made_of(models: Any) -> None:
    [row] = dicts(models, "DESCRIBE m")
    assert list(row)[: len(MINDSDB)] == MINDSDB
    assert (row["VERSION"], row["PARENT"], row["ROWS"], row["BASE"]) == (2, 1, 8, "tiny")
    assert (row["INPUTS"], row["HANDLER"]) == (["question"], "stranger 1.2")
    assert len(row["DATA_DIGEST"]) == 64
    assert any("conversations" in text for text in row["FINDINGS"])
    assert json.loads(row["DETAILS"])["tokens"] == 123
    [first] = dicts(models, "DESCRIBE MODEL mindsdb.m.1")
    assert (first["VERSION"], first["ROWS"], first["ACTIVE"]) == (1, None, False)


def test_attributes(models: Any) -> None:
    assert [r["COLUMN"] for r in dicts(models, "DESCRIBE m.inputs")][:2] == ["question", "answer"]
    options = {r["OPTION"]: (r["VALUE"], r["SET_BY"]) for r in dicts(models, "DESCRIBE m.2.options")}
    assert options["base"] == ("tiny", "CREATE MODEL")
    assert options["seed"] == ("7", "training")
    assert options["prefix"] == ("", "default")
    [data] = dicts(models, "DESCRIBE MODEL m.data")
    assert (data["ROWS"], data["QUERY"]) == (8, "SELECT * FROM rows")
    assert data["FINDINGS"][0]["code"] == "few_rows"
    assert dicts(models, "DESCRIBE m.findings")[0]["LEVEL"] == "warning"
    assert {(r["STEP"], r["SPLIT"]) for r in dicts(models, "DESCRIBE m.metrics")} >= {(1, "train"), (4, "valid")}
    assert [(r["VERSION"], r["PARENT"]) for r in dicts(models, "DESCRIBE m.versions")] == [(1, None), (2, 1)]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_of_every_model(models: Any, attribute: str) -> None:
    for name in ("m", "m.1", "m.2", "ft_one", "other.ft_two"):
        assert models.con.execute(f"DESCRIBE MODEL {name}.{attribute}").description


def test_a_project_in_front(models: Any) -> None:
    assert dicts(models, "DESCRIBE other.ft_two")[0]["PROJECT"] == "other"
    assert dicts(models, "DESCRIBE MODEL other.ft_two.versions")[0]["VERSION"] == 1


def test_what_is_not_there(models: Any) -> None:
    with pytest.raises(NotFound, match="Did you mean 'options'"):
        models.run("DESCRIBE m.optoins")
    with pytest.raises(NotFound, match="There is no model"):
        models.run("DESCRIBE MODEL nothing")
    with pytest.raises(NotFound, match="no version 9"):
        models.run("DESCRIBE m.9")


def test_duckdbs_own_describe(models: Any) -> None:
    assert [row[0] for row in models.run("DESCRIBE rows")] == ["question", "answer"]
    with pytest.raises(duckdb.CatalogException):
        models.run("DESCRIBE nothing")


def test_models_whose_names_begin_with_words_of_sql(models: Any) -> None:
    for name in ("with_context", "from_email", "values_of", "tables"):
        models.run(f"CREATE MODEL {name} PREDICT a USING engine = 'echo'")
        assert [r["NAME"] for r in dicts(models, f"DESCRIBE {name}")] == [name]
        assert [r["COLUMN"] for r in dicts(models, f"DESC {name}.inputs")][:2] == ["content", "a"]


def test_show_of_one_name_is_describe(models: Any) -> None:
    assert dicts(models, "SHOW m") == dicts(models, "DESCRIBE m")
    assert dicts(models, "SHOW MODEL m.1") == dicts(models, "DESCRIBE m.1")
    assert [row[0] for row in models.run("SHOW rows")] == ["question", "answer"]


def test_describe_as_mindsdb_writes_it(models: Any) -> None:
    assert dicts(models, "DESCRIBE mindsdb.models.m") == dicts(models, "DESCRIBE m")
    assert dicts(models, "DESCRIBE mindsdb.models.m.1") == dicts(models, "DESCRIBE m.1")
    assert dicts(models, "DESCRIBE m.args") == dicts(models, "DESCRIBE m.options")
    assert dicts(models, "DESCRIBE other.models.ft_two.inputs") == dicts(models, "DESCRIBE other.ft_two.inputs")


def test_what_training_was_given_and_what_is_usual(models: Any) -> None:
    set_by = {r["OPTION"]: r["SET_BY"] for r in dicts(models, "DESCRIBE m.2.options")}
    assert (set_by["seed"], set_by["steps"]) == ("training", "default")


def test_tables_that_scripts_of_mindsdb_read(models: Any) -> None:
    session = models.con.session
    assert TABLE_BUILDERS["models"](session).equals(models.con.execute("SHOW MODELS").arrow())
    assert TABLE_BUILDERS["ml_engines"](session).column_names == ["NAME", "HANDLER", "CONNECTION_DATA", "CREATED_AT"]
    assert {r["TYPE"] for r in TABLE_BUILDERS["handlers"](session).to_pylist()} == {"ml"}
    versions = [(r["NAME"], r["VERSION"], r["ACTIVE"]) for r in TABLE_BUILDERS["models_versions"](session).to_pylist()]
    assert versions == [("ft_one", 1, True), ("m", 1, False), ("m", 2, True), ("ft_two", 1, True)]
    assert names(models, "SHOW HANDLERS WHERE type = 'ml' AND name = 'echo'") == ["echo"]
