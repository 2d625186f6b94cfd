"""CREATE, DROP and RENAME of engines and models, as a person types them, and what each refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft.errors import (
    AlreadyExists,
    CatalogError,
    DataError,
    MissingSecret,
    NotFound,
    OptionError,
    ProviderError,
    SqlftError,
)

Con = sqlft.Connection
NEW = "CREATE MODEL n PREDICT answer USING "


@pytest.fixture
def con(tmp_path: Path, training_control: Any) -> Iterator[Con]:
    made = sqlft.connect(str(tmp_path / "app.duckdb"), warn=lambda _: None)
    yield made
    made.close()


def model(con: Con, name: str = "n") -> Any:
    return con.session.catalog.find_model(name)


def secret_files(home: Path) -> list[Path]:
    return list((home / "secrets").glob("*"))


def expect_refusal(con: Con, kind: type[SqlftError], sql: str) -> str:
    """The message of an error that also says what to do next, and leaves nothing behind."""
    before = con.session.catalog.models(), con.session.catalog.engines()
    with pytest.raises(kind) as caught:
        con.execute(sql)
    assert type(caught.value) is kind
    assert caught.value.next_step
    assert (con.session.catalog.models(), con.session.catalog.engines()) == before
    return str(caught.value)


# models


def test_create_model(con: Con) -> None:
    row = con.execute(
        "CREATE MODEL n PREDICT answer USING engine = 'stranger', model_name = 'tiny', "
        "prompt_template = '{{q}} {{c}}', system_prompt = 'Be brief.', prefix = '> ', tag = 'first'"
    ).fetchone()
    made = model(con)
    assert row is not None
    assert row[:6] == ("n", "stranger", "mindsdb", True, 1, "complete")
    assert (made.base, made.prompt_template, made.system, made.active) == ("tiny", "{{q}} {{c}}", "Be brief.", 1)
    assert made.options == {"prefix": "> "}
    [version] = con.session.catalog.versions(made.key)
    assert (version.tag, version.details["handler"]) == ("first", "stranger 1.2")


@pytest.mark.parametrize(
    ("using", "template"),
    [
        ("engine = 'echo'", "{{content}}"),
        ("engine = 'echo', question_column = 'my question'", "{{my question}}"),
        ("engine = 'echo', question_column = 'q', prompt_template = 'Q: {{x}}'", "Q: {{x}}"),
    ],
)
def test_prompt_template_has_a_default(con: Con, using: str, template: str) -> None:
    con.execute(NEW + using)
    assert model(con).prompt_template == template


def test_projects(con: Con) -> None:
    con.execute("CREATE MODEL shop.n PREDICT answer USING engine = 'echo'")
    con.execute("CREATE MODEL mindsdb.n PREDICT answer USING engine = 'echo'")
    assert [m.key for m in con.session.catalog.models()] == [("n", "mindsdb"), ("n", "shop")]


def test_if_not_exists_and_or_replace(con: Con) -> None:
    con.execute(NEW + "engine = 'echo', tag = 'a'")
    assert "CREATE OR REPLACE MODEL" in expect_refusal(con, AlreadyExists, NEW + "engine = 'echo'")
    kept = con.execute("CREATE MODEL IF NOT EXISTS N PREDICT other USING engine = 'nonsense'").fetchone()
    assert kept is not None
    assert kept[0] == "n"
    con.execute("CREATE OR REPLACE MODEL n PREDICT reply USING engine = 'echo'")
    assert model(con).predict == "reply"


@pytest.mark.parametrize(
    ("using", "kind", "words"),
    [
        ("base = 'x'", OptionError, "needs the option 'engine'"),
        ("engine = 'ecko'", NotFound, "Did you mean 'echo'?"),
        ("engine = 'echo', promt_template = '{{x}}'", OptionError, "Did you mean 'prompt_template'?"),
        ("engine = 'stranger', prefx = 'x'", OptionError, "Did you mean 'prefix'?"),
        ("engine = 'stranger', steps = 3", OptionError, "Give it to FINETUNE"),
        ("engine = 'stranger', prefix = {'a': 1}", OptionError, "must be text"),
        ("engine = 'echo', tag = [1]", OptionError, "must be text"),
        ("engine = 'echo', prompt_template = 'nothing'", DataError, "no placeholder"),
        ("engine = 'echo', prompt_template = '{{a}} {{b'", DataError, "without a name"),
        ("engine = 'echo', prompt_template = '{{Answer}}'", OptionError, "PREDICT answer AS answer"),
        ("engine = 'echo', prompt_template = '{{x}} {{answer_error}}'", OptionError, "would both be"),
        ("engine = 'echo', system = 'You know {{x}}.'", OptionError, "the same for every row"),
        ("engine = 'stranger', api_key = env('NOT_SET_ANYWHERE')", MissingSecret, "NOT_SET_ANYWHERE"),
    ],
)
def test_models_that_cannot_be(con: Con, using: str, kind: type[SqlftError], words: str) -> None:
    assert words in expect_refusal(con, kind, NEW + using)


@pytest.mark.parametrize(
    "made", ["TABLE n", "TEMP TABLE n", "TABLE N", "VIEW n", "TEMP VIEW n"], ids=lambda m: m.replace(" ", "_")
)
def test_the_name_of_a_table_is_taken(con: Con, made: str) -> None:
    con.execute(f"CREATE {made} AS SELECT 1 AS x")
    assert "already" in expect_refusal(con, AlreadyExists, NEW + "engine = 'echo'")
    con.execute("CREATE MODEL other PREDICT answer USING engine = 'echo'")
    expect_refusal(con, AlreadyExists, "RENAME MODEL other TO n")


def test_a_table_that_queries_do_not_find_takes_no_name(con: Con) -> None:
    con.execute("CREATE SCHEMA far; CREATE TABLE far.n (x INTEGER)")
    con.execute(NEW + "engine = 'echo'")


def test_an_alias_names_the_answer(con: Con) -> None:
    con.execute("CREATE MODEL n PREDICT content AS answer USING engine = 'echo'")
    assert (model(con).predict, model(con).targets) == ("answer", ("content", "answer"))
    assert con.execute("SELECT answer FROM n WHERE content = 'x'").fetchall() == [("x",)]


def test_training_columns_under_either_name(con: Con) -> None:
    for name, column in (("n1", "answer"), ("n2", "reply")):
        con.execute(
            f"CREATE MODEL {name} FROM (SELECT 'q' AS question, 'a' AS {column}) PREDICT answer AS reply USING "
            "engine = 'stranger', question_column = 'question'"
        )
        assert con.execute(f"SELECT reply FROM {name} WHERE question = 'q'").fetchall() == [("a",)]


def test_create_model_from_trains_at_once(con: Con) -> None:
    row = con.execute(
        "CREATE MODEL n FROM (SELECT 'q' AS question, 'a' AS answer) PREDICT answer USING engine = 'stranger', "
        "question_column = 'question', steps = 2, tag = 'trained', seed = 3"
    ).fetchone()
    assert row is not None
    assert row[:6] == ("n", "stranger", "mindsdb", True, 1, "complete")
    [version] = con.session.catalog.versions(model(con).key)
    assert (version.tag, version.row_count, version.options["steps"], version.options["seed"]) == ("trained", 1, 2, 3)


def test_rows_that_do_not_fit_leave_no_model(con: Con, sqlft_home: Path) -> None:
    text = expect_refusal(
        con,
        DataError,
        "CREATE MODEL n FROM (SELECT 1 AS x) PREDICT answer USING engine = 'stranger', api_key = 'geheim'",
    )
    assert "role, content" in text
    assert secret_files(sqlft_home) == []


def test_a_handler_that_cannot_train(con: Con) -> None:
    with pytest.raises(sqlft.NotSupported, match="stranger"):
        con.execute("CREATE MODEL n FROM (SELECT 'q' AS content, 'a' AS answer) PREDICT answer USING engine = 'echo'")
    assert model(con) is None


def test_drop_model(con: Con) -> None:
    con.execute(NEW + "engine = 'echo'")
    con.execute("DROP MODEL N")
    assert model(con) is None
    assert "There is no model 'n'" in expect_refusal(con, NotFound, "DROP MODEL n")
    con.execute("DROP MODEL IF EXISTS n; DROP MODEL IF EXISTS n.3")


def test_drop_a_version(connection_with_model: Any) -> None:
    connection_with_model.train()
    with pytest.raises(CatalogError, match="is the active one"):
        connection_with_model.run("DROP MODEL m.2")
    connection_with_model.run("DROP MODEL m.1")
    assert [v.key.number for v in connection_with_model.catalog.versions()] == [2]
    with pytest.raises(NotFound, match="no version 1"):
        connection_with_model.run("DROP MODEL m.1")
    connection_with_model.run("DROP MODEL IF EXISTS m.1")


def test_a_version_that_trains_is_neither_dropped_nor_renamed(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "listen"})
    connection_with_model.train("wait = false")
    connection_with_model.training.wait_for("at-2")
    for sql in ("DROP MODEL m.2", "RENAME MODEL m TO m2", "DROP MODEL m.1"):
        with pytest.raises(CatalogError) as caught:
            connection_with_model.run(sql)
        assert "CANCEL MODEL m.2" in str(caught.value) or "active" in str(caught.value)
    connection_with_model.training.go()
    assert connection_with_model.wait_until_ended(2).status == "complete"


def test_rename(con: Con) -> None:
    con.execute(NEW + "engine = 'echo'")
    con.execute("CREATE MODEL taken PREDICT answer USING engine = 'echo'")
    assert con.execute("ALTER MODEL n RENAME TO Better").fetchall()[0][0] == "Better"
    assert con.execute("SELECT answer FROM better WHERE content = 'x'").fetchall() == [("x",)]
    con.execute("RENAME MODEL better TO BETTER")
    expect_refusal(con, AlreadyExists, "RENAME MODEL better TO taken")
    expect_refusal(con, NotFound, "RENAME MODEL n TO other")


def test_set_active(connection_with_model: Any) -> None:
    connection_with_model.train()
    connection_with_model.run("SET active m.1")
    assert connection_with_model.ask("q3") == "tiny does not know"
    connection_with_model.run("SET MODEL_ACTIVE = m.2")
    assert connection_with_model.ask("q3") == "a3"
    with pytest.raises(NotFound, match="no version 9"):
        connection_with_model.run("SET active m.9")


def test_only_complete_versions_become_active(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "exit"})
    with pytest.raises(SqlftError):
        connection_with_model.train()
    with pytest.raises(CatalogError, match="cannot be active"):
        connection_with_model.run("SET active m.2")


# engines and secrets


def test_engines(con: Con) -> None:
    con.execute("CREATE ML_ENGINE mine FROM stranger USING api_key = env('STRANGER_KEY')")
    expect_refusal(con, AlreadyExists, "CREATE ML_ENGINE MINE FROM echo")
    expect_refusal(con, AlreadyExists, "CREATE ML_ENGINE echo FROM stranger")
    con.execute("CREATE ML_ENGINE IF NOT EXISTS mine FROM echo")
    assert con.session.catalog.engine("mine").handler == "stranger"
    con.execute("CREATE ML_ENGINE echo FROM echo; DROP ML_ENGINE mine; DROP ML_ENGINE IF EXISTS mine")
    expect_refusal(con, NotFound, "DROP ML_ENGINE mine")
    assert "is a handler" in expect_refusal(con, NotFound, "DROP ML_ENGINE stranger")


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        ("CREATE ML_ENGINE e FROM strange", sqlft.HandlerNotInstalled, "Did you mean 'stranger'?"),
        ("CREATE ML_ENGINE e FROM huggingface", sqlft.HandlerNotInstalled, "engine = 'local'"),
        ("CREATE ML_ENGINE e FROM litellm", sqlft.HandlerNotInstalled, "FROM openai_compatible USING base_url"),
        ("CREATE ML_ENGINE e FROM langchain", sqlft.HandlerNotInstalled, "openai_compatible"),
        (NEW + "engine = 'Gemini', base = 'x'", NotFound, "FROM openai_compatible USING base_url"),
        (NEW + "engine = 'stranger', model = 'x'", OptionError, "Here it is 'model_name'"),
        (
            NEW + "engine = 'stranger', openai_api_key = 'geheim1', api_key = 'geheim2'",
            OptionError,
            "two names for one",
        ),
        ("CREATE ML_ENGINE e FROM stranger USING apikey = 'geheim'", OptionError, "Did you mean 'api_key'?"),
        ("CREATE ML_ENGINE e FROM stranger USING api_key = {'a': 'geheim'}", OptionError, "is a secret"),
        ("CREATE ML_ENGINE e FROM echo USING a = 1", OptionError, "no option 'a'"),
    ],
)
def test_engines_that_cannot_be(con: Con, sqlft_home: Path, sql: str, kind: type[SqlftError], words: str) -> None:
    text = expect_refusal(con, kind, sql)
    assert words in text
    assert "geheim" not in text
    assert secret_files(sqlft_home) == []


@pytest.mark.parametrize(
    ("using", "url"),
    [
        ("", "http://localhost:11434/v1"),
        (" USING base_url = 'http://10.0.0.1:11434'", "http://10.0.0.1:11434"),
        (" USING api_base = 'http://10.0.0.2:11434'", "http://10.0.0.2:11434"),
        (" USING ollama_serve_url = 'http://10.0.0.3:11434'", "http://10.0.0.3:11434"),
    ],
)
def test_ollama_is_openai_compatible_at_its_own_address(con: Con, using: str, url: str) -> None:
    con.execute(f"CREATE ML_ENGINE ollama FROM ollama{using}")
    [(handler, options)] = con.execute("SELECT handler, options FROM sqlft.engines WHERE name = 'ollama'").fetchall()
    assert handler == "openai_compatible"
    assert json.loads(options) == {"base_url": url}
    con.execute(NEW + "engine = 'ollama', model_name = 'llama3.2'")


def test_ollama_needs_no_engine_of_its_own(con: Con) -> None:
    pytest.importorskip("openai", reason="the package openai is not installed", exc_type=ImportError)
    con.execute(NEW + "engine = 'ollama', model_name = 'llama3.2', ollama_serve_url = 'http://127.0.0.1:9'")
    with pytest.raises(ProviderError, match=r"http://127\.0\.0\.1:9/v1 is not reached"):
        con.execute("SELECT answer FROM n WHERE content = 'x' USING max_retries = 0").fetchall()


def test_an_engine_in_use_stays(con: Con) -> None:
    con.execute("CREATE ML_ENGINE mine FROM echo")
    con.execute(NEW + "engine = 'MINE'")
    assert "'n'" in expect_refusal(con, CatalogError, "DROP ML_ENGINE mine")
    con.execute("DROP MODEL n; DROP ML_ENGINE mine")


def test_secrets_are_seen_nowhere_and_go_with_their_owner(con: Con, tmp_path: Path, sqlft_home: Path) -> None:
    con.execute("CREATE ML_ENGINE mine FROM stranger USING stranger_api_key = 'geheim-1'")
    con.execute(NEW + "engine = 'mine', api_key = 'geheim-2'")
    shown = [
        con.execute(sql).fetchall()
        for sql in (
            "SHOW ML_ENGINES", "SHOW MODELS", "DESCRIBE n", "DESCRIBE n.options", "DESCRIBE ML_ENGINE mine",
            "FROM sqlft.engines", "FROM sqlft.models", "FROM sqlft.versions",
        )
    ]  # fmt: skip
    assert "****" in str(shown)
    assert "geheim" not in str(shown)
    kept = [f for f in tmp_path.rglob("*") if f.is_file() and b"geheim" in f.read_bytes()]
    assert kept == []
    assert len(secret_files(sqlft_home)) == 2
    con.execute("CREATE OR REPLACE MODEL n PREDICT answer USING engine = 'mine', api_key = 'geheim-3'")
    assert len(secret_files(sqlft_home)) == 2
    con.execute("DROP MODEL n; DROP ML_ENGINE mine")
    assert secret_files(sqlft_home) == []


def test_a_key_may_come_into_the_environment_later(training_control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    con = sqlft.connect(warn=told.append)
    con.execute("CREATE ML_ENGINE mine FROM stranger USING api_key = env('LATER_KEY')")
    assert "LATER_KEY" in told[0]
    expect_refusal(con, OptionError, "CREATE ML_ENGINE other FROM stranger USING api_kye = env('LATER_KEY')")
    monkeypatch.setenv("LATER_KEY", "k")
    con.execute(NEW + "engine = 'mine'")
    con.close()


def test_a_key_is_found_in_its_usual_variable(connection_with_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANGER_KEY", "usual")
    connection_with_model.train()
    assert connection_with_model.training.wait_for("begun")["key"] == "usual"
    assert "usual" not in str(
        connection_with_model.run("DESCRIBE m.options") + connection_with_model.run("FROM sqlft.versions")
    )


def test_parameters_are_values_of_options(con: Con) -> None:
    con.execute(NEW + "engine = ?, prompt_template = ?", ["echo", "{{x}}!"])
    assert con.execute("SELECT answer FROM n WHERE x = 'a'").fetchall() == [("a!",)]


def test_a_read_only_database(tmp_path: Path) -> None:
    path = str(tmp_path / "app.duckdb")
    with sqlft.connect(path) as con:
        con.execute(NEW + "engine = 'echo'")
    with sqlft.connect(path, read_only=True) as con:
        assert con.execute("SELECT answer FROM n WHERE content = 'x'").fetchall() == [("x",)]
        for sql in ("CREATE MODEL o PREDICT a USING engine = 'echo'", "DROP MODEL n", "CREATE ML_ENGINE e FROM echo"):
            assert "was opened read-only" in expect_refusal(con, CatalogError, sql)


# names in several projects


@pytest.fixture
def con_with_two_projects(con: Con) -> Con:
    """A connection with p1.same and p2.same."""
    for project in ("p1", "p2"):
        con.execute(f"CREATE MODEL {project}.same PREDICT answer USING engine = 'echo', prompt_template = '{{{{x}}}}'")
    return con


@pytest.mark.parametrize(
    "sql",
    [
        "DROP MODEL same",
        "DROP MODEL IF EXISTS same",
        "DESCRIBE same",
        "DESCRIBE MODEL SAME.inputs",
        "ALTER MODEL same RENAME TO other",
        "SET active same.1",
        "FINETUNE same FROM (SELECT 1 AS x, 2 AS answer)",
        "EVALUATE MODEL same ON (SELECT 1 AS x, 2 AS answer)",
        "SELECT answer FROM same WHERE x = 'a'",
        "DROP CACHE FOR same",
    ],
)
def test_a_name_in_two_projects_means_neither(con_with_two_projects: Con, sql: str) -> None:
    words = expect_refusal(con_with_two_projects, CatalogError, sql)
    assert (
        words
        == "There are two models 'same': p1.same, p2.same.\nSay which: write the project before the name, p1.same."
    )


def test_a_name_in_two_projects_with_one_of_them(con_with_two_projects: Con) -> None:
    assert con_with_two_projects.execute("SELECT answer FROM p2.same WHERE x = 'a'").fetchall() == [("a",)]
    con_with_two_projects.execute("DROP MODEL p1.same")
    assert con_with_two_projects.execute("SELECT answer FROM same WHERE x = 'a'").fetchall() == [("a",)]


def test_the_default_project_comes_first(con_with_two_projects: Con) -> None:
    con_with_two_projects.execute(
        "CREATE MODEL same PREDICT answer USING engine = 'echo', prompt_template = 'Mine: {{x}}'"
    )
    assert con_with_two_projects.execute("SELECT answer FROM same WHERE x = 'a'").fetchall() == [("Mine: a",)]
    con_with_two_projects.execute("DROP MODEL same")
    assert [str(m.key) for m in con_with_two_projects.session.catalog.models()] == ["p1.same", "p2.same"]


def test_answers_of_a_project_are_forgotten_by_its_name(con_with_two_projects: Con) -> None:
    for project in ("p1", "p2"):
        con_with_two_projects.execute(
            f"SELECT answer FROM {project}.same WHERE x = 'of {project}' USING cache = true"
        ).fetchall()
    assert con_with_two_projects.execute("DROP CACHE FOR p2.same").fetchall() == [(1,)]
    assert con_with_two_projects.execute("DROP CACHE").fetchall() == [(1,)]


# words of MindsDB


def projects(con: Con) -> list[tuple[Any, ...]]:
    return con.execute("SHOW PROJECTS").fetchall()


def answers(con: Con, name: str) -> list[tuple[Any, ...]]:
    return con.execute(f"SELECT a FROM {name} WHERE content = 'x'").fetchall()


def named(name: str) -> str:
    """A model that answers with its name before its content."""
    return f"CREATE MODEL {name} PREDICT a USING engine = 'echo', prompt_template = '{name} {{{{content}}}}'"


def test_a_project_is_made_used_and_dropped(con: Con) -> None:
    con.execute("CREATE PROJECT shop; CREATE PROJECT IF NOT EXISTS Shop")
    assert "There is a project 'shop' already" in expect_refusal(con, AlreadyExists, "CREATE PROJECT SHOP")
    con.execute("CREATE ML_ENGINE shop.mine FROM echo; CREATE MODEL shop.n PREDICT a USING engine = 'mine'")
    con.execute("USE SHOP; CREATE MODEL k PREDICT a USING engine = 'echo'")
    assert projects(con) == [("mindsdb", 0, False), ("shop", 2, True)]
    assert con.execute("SHOW PROJECTS WHERE current").fetchall() == [("shop", 2, True)]
    assert [str(m.key) for m in con.session.catalog.models()] == ["shop.k", "shop.n"]
    assert expect_refusal(con, CatalogError, "DROP PROJECT shop").endswith(
        "DROP MODEL shop.k; DROP MODEL shop.n; comes first."
    )
    con.execute("DROP MODEL k; DROP MODEL shop.n; DROP PROJECT shop; DROP PROJECT IF EXISTS shop")
    assert projects(con) == [("mindsdb", 0, True)]
    assert "There is no project 'shop'" in expect_refusal(con, NotFound, "DROP PROJECT shop")
    assert "The default project cannot be dropped" in expect_refusal(con, CatalogError, "DROP PROJECT mindsdb")


def test_models_of_the_project_in_use_come_first(con: Con) -> None:
    for name in ("m", "only_here", "p1.m", "p2.m", "p2.n"):
        con.execute(named(name))
    con.execute("USE p2")
    assert (answers(con, "m"), answers(con, "m.1"), answers(con, "n")) == ([("p2.m x",)], [("p2.m x",)], [("p2.n x",)])
    assert (answers(con, "mindsdb.m"), answers(con, "p1.m")) == ([("m x",)], [("p1.m x",)])
    assert answers(con, "only_here") == [("only_here x",)]
    assert con.execute("DESCRIBE m").fetchone()[2] == "p2"
    con.execute("ALTER MODEL m RENAME TO k; DROP MODEL k; CREATE MODEL IF NOT EXISTS m PREDICT a USING engine = 'echo'")
    assert [str(m.key) for m in con.session.catalog.models()] == ["m", "only_here", "p1.m", "p2.m", "p2.n"]
    con.execute("USE mindsdb")
    assert answers(con, "m") == [("m x",)]


def test_every_statement_means_the_model_of_the_project_in_use(con: Con) -> None:
    con.execute(named("m"))
    con.execute("CREATE PROJECT p; USE p")
    con.execute("CREATE MODEL m PREDICT a USING engine = 'stranger', prompt_template = '{{content}}'")
    con.execute("FINETUNE m FROM (SELECT 'q' || i AS content, 'a' AS a FROM range(8) t(i))").fetchall()
    con.execute("EVALUATE MODEL m.2 ON (SELECT 'q' AS content, 'a' AS a)").fetchall()
    con.execute("SET active m.1; ANALYZE TRAINING DATA FROM (SELECT 'q' AS content, 'a' AS a) FOR m").fetchall()
    known = con.execute("SELECT project, model, version FROM sqlft.versions ORDER BY ALL").fetchall()
    assert known == [("mindsdb", "m", 1), ("p", "m", 1), ("p", "m", 2)]
    assert con.execute("SELECT DISTINCT project FROM sqlft.evaluations").fetchall() == [("p",)]
    answers(con, "m")
    assert con.execute("SELECT DISTINCT project FROM sqlft.usage").fetchall() == [("p",)]


def test_a_view_keeps_to_the_project_in_which_it_was_made(con: Con) -> None:
    for name in ("m", "p.m"):
        con.execute(named(name))
    con.execute("CREATE VIEW at_home AS SELECT a FROM m WHERE content = 'x'; USE p")
    con.execute("CREATE VIEW away AS WITH k AS (SELECT a FROM m.1 AS n WHERE content = 'x') SELECT k.a FROM k")
    con.execute("CREATE TEMP VIEW both_ AS FROM at_home UNION ALL FROM away")
    con.execute("ALTER VIEW away RENAME TO abroad; CREATE VIEW away AS FROM abroad")
    for project in ("p", "mindsdb"):
        con.execute(f"USE {project}")
        assert con.execute("FROM at_home").fetchall() == [("m x",)]
        assert con.execute("FROM abroad").fetchall() == [("p.m x",)]
        assert con.execute("FROM both_").fetchall() == [("m x",), ("p.m x",)]
    found = con.execute("SELECT name, project FROM sqlft.views ORDER BY name").fetchall()
    assert found == [("abroad", "p"), ("at_home", "mindsdb"), ("away", "p")]


def test_a_name_of_a_schema_and_of_a_project_chooses_both(con: Con) -> None:
    told: list[str] = []
    con.session.show_notice = told.append
    for name in ("m", "shop.m"):
        con.execute(named(name))
    con.execute("CREATE SCHEMA shop; CREATE TABLE shop.t AS SELECT 5 AS x; USE shop")
    assert "USE shop chooses both: tables are looked for in the schema, models in the project." in told[-1]
    assert con.execute("FROM t").fetchall() == [(5,)]
    assert answers(con, "m") == [("shop.m x",)]
    assert "is a model, and a model and a table may not share" in expect_refusal(
        con, AlreadyExists, "CREATE TABLE shop.m (i INT)"
    )
    con.execute("USE main")
    assert answers(con, "m") == [("m x",)]
    assert "There is a table 't' already" in expect_refusal(con, AlreadyExists, named("shop.t"))
    with pytest.raises(duckdb.CatalogException, match="t does not exist"):
        con.execute("FROM t")


def test_use_of_a_project_leaves_the_schema(con: Con) -> None:
    con.execute("CREATE SCHEMA s; CREATE TABLE s.t AS SELECT 5 AS x; USE s; CREATE PROJECT p; USE p")
    assert con.execute("FROM t").fetchall() == [(5,)]
    con.execute("USE app.s")
    assert con.session.project == "p"
    assert con.cursor().session.project == "mindsdb"


def test_use_of_nothing_says_what_there_is(con: Con) -> None:
    con.execute("CREATE PROJECT shopping; CREATE SCHEMA office")
    with pytest.raises(duckdb.CatalogException, match=r"Did you mean 'shopping'\? .* CREATE PROJECT shoping one"):
        con.execute("USE shoping")
    with pytest.raises(duckdb.CatalogException, match="Did you mean 'office'"):
        con.execute("USE offic")
    assert con.session.project == "mindsdb"


def test_use_is_duckdbs_where_there_is_such_a_schema(con: Con) -> None:
    con.execute("CREATE SCHEMA mindsdb; CREATE TABLE mindsdb.t AS SELECT 1 AS a; USE mindsdb")
    assert con.execute("FROM t").fetchall() == [(1,)]


def test_several_answers_without_types(con: Con) -> None:
    con.execute("CREATE MODEL n PREDICT city, country USING engine = 'echo', prompt_template = '{{x}}', verbose = true")
    asked = con.execute("""SELECT city, country FROM n WHERE x = '{"city": "Rome", "country": "Italy"}'""")
    assert asked.fetchall() == [("Rome", "Italy")]


def test_json_struct_and_input_text(con: Con) -> None:
    con.execute(
        "CREATE MODEL n PREDICT json USING engine = 'echo', input_text = 'sentence',"
        " json_struct = {'price': 'the rent a month', 'where': {'city': 'the city', 'street': 'the street'}}"
    )
    text = '{"price": "9", "where": {"city": "Rome", "street": null}}'
    found = con.execute("SELECT json FROM n WHERE sentence = ?", [text]).fetchall()
    assert found == [({"price": "9", "where": {"city": "Rome", "street": None}},)]


@pytest.mark.parametrize(
    ("using", "words"),
    [
        ("json_struct = 'x'", "Write: json_struct = {"),
        ("json_struct = {'a': 'b'}, schema = 'STRUCT(a INTEGER)'", "Leave one of them out"),
        ("openai_api_key = 'k-of-openai', api_key = 'k-of-mine'", "Leave 'openai_api_key' out"),
        ("""prompt_template = 'Reply as {{"answer": 1}} for {{task}}'""", 'single ones, {"answer": 1}'),
        ("prompt_template = 'Say {{name | upper}}'", "Write {{name}}, and change the value in the query"),
    ],
)
def test_options_that_say_too_much(con: Con, using: str, words: str) -> None:
    assert words in expect_refusal(con, OptionError, f"CREATE MODEL n PREDICT a USING engine = 'stranger', {using}")


def test_braces_of_python(con: Con) -> None:
    words = expect_refusal(con, DataError, NEW + "engine = 'echo', prompt_template = 'Say {x}'")
    assert "two braces on each side: {{x}}, not {x}" in words
    told: list[str] = []
    con.session.show_warning = told.append
    con.execute(NEW + """engine = 'echo', prompt_template = '{style}: {"a": 1} {{x}}'""")
    con.execute("""CREATE MODEL o PREDICT a USING engine = 'echo', prompt_template = '{"x": {y}} {% if x %}{{x}}'""")
    assert told == [
        "{style} in the prompt_template is plain text. An input is written {{style}}.",
        "{y} in the prompt_template is plain text. An input is written {{y}}.",
        "{% if x %} in the prompt_template is plain text. Make such texts in the query that asks.",
    ]


def test_a_training_may_repeat_what_its_model_is(connection_with_model: Any, sqlft_home: Path) -> None:
    connection_with_model.train("engine = 'stranger', model_name = 'tiny', api_key = 'a-key-of-this-training'")
    assert connection_with_model.catalog.versions()[-1].status == "complete"
    for using in ("engine = 'echo'", "base = 'huge'"):
        with pytest.raises(OptionError, match="training does not change it"):
            connection_with_model.train(using)
    seen = connection_with_model.run("DESCRIBE m") + connection_with_model.run("SELECT * FROM sqlft.versions")
    assert "a-key-of-this-training" not in str(seen)


def test_hints_quote_the_names_that_need_it(con: Con) -> None:
    sql = """CREATE MODEL n PREDICT "My Answer" USING engine = 'echo', prompt_template = '{{My Answer}}'"""
    assert 'PREDICT "My Answer" AS "My Answer_out"' in expect_refusal(con, OptionError, sql)
    con.execute(NEW + "engine = 'echo', prompt_template = '{{Input Column}}'")
    sql = "EVALUATE MODEL n ON (SELECT 1 AS a, 'x' AS answer)"
    assert 'Give it one: … AS "Input Column"' in expect_refusal(con, DataError, sql)
