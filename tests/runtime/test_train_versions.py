from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlft.errors import CatalogError, DataError, HandlerError, MissingSecret, NotFound, NotSupported, OptionError


def test_finetune_makes_the_next_version(connection_with_model: Any) -> None:
    connection_with_model.train("tag = 'mine'")
    second = connection_with_model.version(2)
    assert (second.status, second.parent, second.tag, second.row_count) == ("complete", 1, "mine", 8)
    assert connection_with_model.catalog.model(second.key.model).active == 2
    assert connection_with_model.ask("q3") == "a3"
    assert connection_with_model.ask("q3", "m.1") == "tiny does not know"


def test_what_a_version_was_made_of_is_kept(connection_with_model: Any) -> None:
    connection_with_model.train("seed = 7")
    second = connection_with_model.version(2)
    assert second.query == "SELECT * FROM rows"
    assert second.data_digest
    assert second.artifact_digest
    own = {
        "steps": 4,
        "control": str(connection_with_model.training.folder),
        "returns": "folder",
        "max_length": None,
        "long_rows": "cut",
        "hub_token": None,
        "seconds_left": None,
    }
    assert second.options == {"seed": 7, "validation_split": None, "validation": None, **own}
    details = second.details
    assert (details["handler"], details["base"], details["tokens"], details["steps"]) == (
        "stranger 1.2",
        "tiny",
        123,
        4,
    )
    assert {"python", "sqlft", "duckdb"} <= set(details["packages"])
    assert details["metrics"]["loss"] == 0.25
    assert second.started_at is not None
    assert second.finished_at is not None
    assert second.seconds is not None
    assert second.findings
    assert second.findings[0]["code"]


def test_the_files_of_a_version(connection_with_model: Any) -> None:
    connection_with_model.train()
    second = connection_with_model.version(2)
    assert second.artifact_path == connection_with_model.catalog.folder / "models" / "m" / "2"
    assert json.loads((second.artifact_path / "learned.json").read_text())["answers"]["q0"] == "a0"
    assert sorted(p.name for p in second.artifact_path.parent.iterdir()) == ["2"]


def test_the_loss_history(connection_with_model: Any) -> None:
    connection_with_model.train()
    found = connection_with_model.run(
        "SELECT version, step, split, name, value, epoch FROM sqlft.metrics ORDER BY step, split"
    )
    assert found[:2] == [(2, 1, "train", "loss", 1.0, 0.25), (2, 1, "valid", "loss", 2.0, 0.25)]
    assert len(found) == 8


def test_progress_is_shown(connection_with_model: Any) -> None:
    connection_with_model.training.script({2: "listen"})

    def on_tick(tick: Any) -> None:
        connection_with_model.ticks.append(tick)
        if tick.done == 2:
            connection_with_model.training.go()

    connection_with_model.on_tick = on_tick
    connection_with_model.train()
    tick = next(t for t in connection_with_model.ticks if t.done == 2)
    assert (tick.label, tick.total, tick.metrics["loss"]) == ("m.2 training", 4, 0.5)


def test_finetune_goes_on_from_the_active_version(connection_with_model: Any) -> None:
    connection_with_model.train()
    connection_with_model.train(rows="SELECT 'new' AS question, 'answer' AS answer")
    assert connection_with_model.version(3).parent == 2
    assert connection_with_model.training.wait_for("begun")["start"] == str(
        connection_with_model.version(2).artifact_path
    )
    assert (connection_with_model.ask("q1"), connection_with_model.ask("new")) == ("a1", "answer")


def test_finetune_of_another_version(connection_with_model: Any) -> None:
    connection_with_model.train()
    connection_with_model.train("active = false", "FINETUNE m.1", "SELECT 'new' AS question, 'answer' AS answer")
    third = connection_with_model.version(3)
    assert (third.parent, connection_with_model.catalog.model(third.key.model).active) == (1, 2)
    assert connection_with_model.ask("q1", "m.3") == "tiny does not know"
    assert connection_with_model.ask("new") == "tiny does not know"


def test_retrain_starts_from_the_base(connection_with_model: Any) -> None:
    connection_with_model.train("steps = 3")
    connection_with_model.run("INSERT INTO rows VALUES ('late', 'yes')")
    connection_with_model.run("RETRAIN m")
    third = connection_with_model.version(3)
    assert (third.parent, third.row_count, third.options["steps"]) == (None, 9, 3)
    assert connection_with_model.training.wait_for("begun")["start"] is None
    assert connection_with_model.ask("late") == "yes"
    connection_with_model.train("steps = 2", "RETRAIN m", "SELECT 'only' AS question, 'this' AS answer")
    assert (connection_with_model.ask("only"), connection_with_model.ask("q1")) == ("this", "tiny does not know")


def test_retrain_of_what_was_never_trained(connection_with_model: Any) -> None:
    with pytest.raises(CatalogError, match=r"RETRAIN m FROM"):
        connection_with_model.run("RETRAIN m")


def test_create_model_from(connection_with_model: Any) -> None:
    connection_with_model.run(
        "CREATE MODEL n FROM (SELECT * FROM rows) PREDICT answer USING engine = 'stranger', base = 'tiny',"
        " prompt_template = '{{question}}', steps = 2, tag = 'first'"
    )
    first = connection_with_model.version(1, "n")
    assert (first.status, first.tag, first.row_count, first.options["steps"]) == ("complete", "first", 8, 2)
    assert connection_with_model.ask("q5", "n") == "a5"
    assert [v.key.number for v in connection_with_model.catalog.versions(first.key.model)] == [1]


@pytest.mark.parametrize("returns", ["folder", "file", "workdir", "relative", "elsewhere", "remote"])
def test_what_a_handler_may_return(connection_with_model: Any, returns: str) -> None:
    connection_with_model.train(f"returns = '{returns}'")
    second = connection_with_model.version(2)
    assert second.status == "complete"
    assert second.remote_id == ("ft:stranger:1" if returns == "remote" else None)
    assert not connection_with_model.catalog.work_folder(second.key).exists()
    if returns == "remote":
        assert second.artifact_path is None
    else:
        assert second.artifact_path is not None
        assert second.artifact_path.is_relative_to(connection_with_model.catalog.artifact_folder(second.key))
        assert second.artifact_path.is_file() == (returns == "file")


@pytest.mark.parametrize(("returns", "said"), [("nothing", "returned no artifact: None"), ("missing", "is not there")])
def test_what_a_handler_may_not_return(connection_with_model: Any, returns: str, said: str) -> None:
    with pytest.raises(HandlerError, match=said):
        connection_with_model.train(f"returns = '{returns}'")
    assert connection_with_model.version(2).status == "failed"


def test_files_that_may_run_code_are_refused(connection_with_model: Any) -> None:
    connection_with_model.training.script({"end": "pickle"})
    with pytest.raises(HandlerError, match=r"weights\.bin"):
        connection_with_model.train()
    assert connection_with_model.version(2).status == "failed"
    assert connection_with_model.catalog.model(connection_with_model.version(2).key.model).active == 1


def test_what_cannot_be_trained_makes_no_version(connection_with_model: Any) -> None:
    connection_with_model.run("CREATE MODEL e PREDICT answer USING engine = 'echo', prompt_template = '{{question}}'")
    with pytest.raises(NotSupported, match=r"'echo' cannot train[^$]*stranger"):
        connection_with_model.train(what="FINETUNE e")
    with pytest.raises(OptionError, match="Did you mean 'steps'"):
        connection_with_model.train("step = 3")
    with pytest.raises(OptionError, match="at least 1"):
        connection_with_model.train("steps = 0")
    with pytest.raises(NotFound, match="no version 9"):
        connection_with_model.train(what="FINETUNE m.9")
    with pytest.raises(NotFound, match="Did you mean"):
        connection_with_model.train(what="FINETUNE mm")
    with pytest.raises(DataError, match="no rows"):
        connection_with_model.train(rows="SELECT * FROM rows WHERE false")
    with pytest.raises(DataError):
        connection_with_model.train(rows="SELECT * FROM nowhere")
    with pytest.raises(DataError):
        connection_with_model.train(rows="SELECT 1 AS x")
    assert [str(v.key) for v in connection_with_model.catalog.versions()] == ["e.1", "m.1"]
    assert not (connection_with_model.catalog.folder / "models").exists()


def test_a_validation_query(connection_with_model: Any) -> None:
    connection_with_model.train("validation = 'SELECT * FROM rows LIMIT 2'")
    assert connection_with_model.version(2).options["validation"] == "SELECT * FROM rows LIMIT 2"
    assert any("alidation" in w for w in connection_with_model.warnings)


def test_long_rows_are_counted_by_the_handler(connection_with_model: Any) -> None:
    connection_with_model.train("max_length = 5")
    assert connection_with_model.version(2).options["max_length"] == 5


def test_a_secret_of_the_engine_reaches_the_worker_only(connection_with_model: Any) -> None:
    connection_with_model.run("CREATE ML_ENGINE mine FROM stranger USING api_key = 'sk-hush'")
    connection_with_model.run(
        "CREATE MODEL k PREDICT answer USING engine = 'mine', base = 'tiny', prompt_template = '{{question}}'"
    )
    connection_with_model.training.script({2: "crash"})
    with pytest.raises(HandlerError, match=r"boom with \*\*\*\*"):
        connection_with_model.train(what="FINETUNE k")
    assert connection_with_model.training.wait_for("begun")["key"] == "sk-hush"
    connection_with_model.con.close()
    connection_with_model.catalog.close()
    for path in connection_with_model.catalog.folder.rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            assert b"sk-hush" not in path.read_bytes(), path


def test_a_secret_of_the_training(connection_with_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection_with_model.train("hub_token = 'hf-hush'")
    assert connection_with_model.training.wait_for("begun")["token"] == "hf-hush"
    assert connection_with_model.run("SELECT options->>'hub_token' FROM sqlft.versions WHERE version = 2") == [
        ("****",)
    ]
    connection_with_model.run(f"RETRAIN m USING control = '{connection_with_model.training.folder}'")
    assert connection_with_model.training.wait_for("begun")["token"] == "hf-hush"
    with pytest.raises(MissingSecret, match="export NO_TOKEN"):
        connection_with_model.train("hub_token = env('NO_TOKEN')")
    monkeypatch.setenv("NO_TOKEN", "hf-other")
    connection_with_model.train("hub_token = env('NO_TOKEN')")
    assert connection_with_model.training.wait_for("begun")["token"] == "hf-other"
    assert connection_with_model.version(4).options["hub_token"] == {"$env": "NO_TOKEN"}


def test_many_steps(connection_with_model: Any) -> None:
    connection_with_model.train("steps = 10000")
    assert connection_with_model.run("SELECT count(*), max(step) FROM sqlft.metrics") == [(20000, 10000)]
    assert connection_with_model.version(2).progress["step"] == 10000


def test_a_read_only_catalog(connection_with_model: Any, tmp_path: Path) -> None:
    import sqlft
    from sqlft.catalog.store import Catalog

    connection_with_model.con.session.catalog.close()
    reader = sqlft.Connection(
        connection_with_model.con._con,
        Catalog(connection_with_model.catalog.folder, read_only=True),
        warn=connection_with_model.warnings.append,
    )
    with pytest.raises(CatalogError, match="read-only"):
        reader.execute("FINETUNE m FROM (SELECT * FROM rows)")
    assert not (connection_with_model.catalog.folder / "models").exists()


def test_a_changed_start_is_noticed(connection_with_model: Any) -> None:
    connection_with_model.train()
    (connection_with_model.version(2).artifact_path / "learned.json").write_text("{}")
    with pytest.raises(CatalogError, match="were changed"):
        connection_with_model.train()
    assert [v.key.number for v in connection_with_model.catalog.versions()] == [1, 2]
