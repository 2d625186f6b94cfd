from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlft.errors import CatalogError, DataError, HandlerError, MissingSecret, NotFound, NotSupported, OptionError


def test_finetune_makes_the_next_version(shop: Any) -> None:
    shop.train("tag = 'mine'")
    second = shop.version(2)
    assert (second.status, second.parent, second.tag, second.row_count) == ("complete", 1, "mine", 8)
    assert shop.catalog.model(second.key.model).active == 2
    assert shop.ask("q3") == "a3"
    assert shop.ask("q3", "m.1") == "tiny does not know"


def test_what_a_version_was_made_of_is_kept(shop: Any) -> None:
    shop.train("seed = 7")
    second = shop.version(2)
    assert second.query == "SELECT * FROM rows"
    assert second.data_digest
    assert second.artifact_digest
    own = {
        "steps": 4,
        "control": str(shop.stranger.control),
        "returns": "folder",
        "max_length": None,
        "hub_token": None,
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


def test_the_files_of_a_version(shop: Any) -> None:
    shop.train()
    second = shop.version(2)
    assert second.artifact_path == shop.catalog.folder / "models" / "m" / "2"
    assert json.loads((second.artifact_path / "learned.json").read_text())["answers"]["q0"] == "a0"
    assert sorted(p.name for p in second.artifact_path.parent.iterdir()) == ["2"]


def test_the_loss_history(shop: Any) -> None:
    shop.train()
    found = shop.run("SELECT version, step, split, name, value, epoch FROM sqlft.metrics ORDER BY step, split")
    assert found[:2] == [(2, 1, "train", "loss", 1.0, 0.25), (2, 1, "valid", "loss", 2.0, 0.25)]
    assert len(found) == 8


def test_progress_is_shown(shop: Any) -> None:
    shop.stranger.script({2: "listen"})

    def on_tick(tick: Any) -> None:
        shop.ticks.append(tick)
        if tick.done == 2:
            shop.stranger.go()

    shop.on_tick = on_tick
    shop.train()
    tick = next(t for t in shop.ticks if t.done == 2)
    assert (tick.label, tick.total, tick.metrics["loss"]) == ("m.2 training", 4, 0.5)


def test_finetune_goes_on_from_the_active_version(shop: Any) -> None:
    shop.train()
    shop.train(rows="SELECT 'new' AS question, 'answer' AS answer")
    assert shop.version(3).parent == 2
    assert shop.stranger.wait_for("begun")["start"] == str(shop.version(2).artifact_path)
    assert (shop.ask("q1"), shop.ask("new")) == ("a1", "answer")


def test_finetune_of_another_version(shop: Any) -> None:
    shop.train()
    shop.train("active = false", "FINETUNE m.1", "SELECT 'new' AS question, 'answer' AS answer")
    third = shop.version(3)
    assert (third.parent, shop.catalog.model(third.key.model).active) == (1, 2)
    assert shop.ask("q1", "m.3") == "tiny does not know"
    assert shop.ask("new") == "tiny does not know"


def test_retrain_starts_from_the_base(shop: Any) -> None:
    shop.train("steps = 3")
    shop.run("INSERT INTO rows VALUES ('late', 'yes')")
    shop.run("RETRAIN m")
    third = shop.version(3)
    assert (third.parent, third.row_count, third.options["steps"]) == (None, 9, 3)
    assert shop.stranger.wait_for("begun")["start"] is None
    assert shop.ask("late") == "yes"
    shop.train("steps = 2", "RETRAIN m", "SELECT 'only' AS question, 'this' AS answer")
    assert (shop.ask("only"), shop.ask("q1")) == ("this", "tiny does not know")


def test_retrain_of_what_was_never_trained(shop: Any) -> None:
    with pytest.raises(CatalogError, match=r"RETRAIN m FROM"):
        shop.run("RETRAIN m")


def test_create_model_from(shop: Any) -> None:
    shop.run(
        "CREATE MODEL n FROM (SELECT * FROM rows) PREDICT answer USING engine = 'stranger', base = 'tiny',"
        " prompt_template = '{{question}}', steps = 2, tag = 'first'"
    )
    first = shop.version(1, "n")
    assert (first.status, first.tag, first.row_count, first.options["steps"]) == ("complete", "first", 8, 2)
    assert shop.ask("q5", "n") == "a5"
    assert [v.key.number for v in shop.catalog.versions(first.key.model)] == [1]


@pytest.mark.parametrize("returns", ["folder", "file", "workdir", "relative", "elsewhere", "remote"])
def test_what_a_handler_may_return(shop: Any, returns: str) -> None:
    shop.train(f"returns = '{returns}'")
    second = shop.version(2)
    assert second.status == "complete"
    assert second.remote_id == ("ft:stranger:1" if returns == "remote" else None)
    assert not shop.catalog.work_folder(second.key).exists()
    if returns == "remote":
        assert second.artifact_path is None
    else:
        assert second.artifact_path is not None
        assert second.artifact_path.is_relative_to(shop.catalog.artifact_folder(second.key))
        assert second.artifact_path.is_file() == (returns == "file")


@pytest.mark.parametrize(("returns", "said"), [("nothing", "returned no artifact: None"), ("missing", "is not there")])
def test_what_a_handler_may_not_return(shop: Any, returns: str, said: str) -> None:
    with pytest.raises(HandlerError, match=said):
        shop.train(f"returns = '{returns}'")
    assert shop.version(2).status == "failed"


def test_files_that_may_run_code_are_refused(shop: Any) -> None:
    shop.stranger.script({"end": "pickle"})
    with pytest.raises(HandlerError, match=r"weights\.bin"):
        shop.train()
    assert shop.version(2).status == "failed"
    assert shop.catalog.model(shop.version(2).key.model).active == 1


def test_what_cannot_be_trained_makes_no_version(shop: Any) -> None:
    shop.run("CREATE MODEL e PREDICT answer USING engine = 'echo', prompt_template = '{{question}}'")
    with pytest.raises(NotSupported, match=r"'echo' cannot train[^$]*stranger"):
        shop.train(what="FINETUNE e")
    with pytest.raises(OptionError, match="Did you mean 'steps'"):
        shop.train("step = 3")
    with pytest.raises(OptionError, match="at least 1"):
        shop.train("steps = 0")
    with pytest.raises(NotFound, match="no version 9"):
        shop.train(what="FINETUNE m.9")
    with pytest.raises(NotFound, match="Did you mean"):
        shop.train(what="FINETUNE mm")
    with pytest.raises(DataError, match="no rows"):
        shop.train(rows="SELECT * FROM rows WHERE false")
    with pytest.raises(DataError):
        shop.train(rows="SELECT * FROM nowhere")
    with pytest.raises(DataError):
        shop.train(rows="SELECT 1 AS x")
    assert [str(v.key) for v in shop.catalog.versions()] == ["e.1", "m.1"]
    assert not (shop.catalog.folder / "models").exists()


def test_a_validation_query(shop: Any) -> None:
    shop.train("validation = 'SELECT * FROM rows LIMIT 2'")
    assert shop.version(2).options["validation"] == "SELECT * FROM rows LIMIT 2"
    assert any("alidation" in w for w in shop.warnings)


def test_long_rows_are_counted_by_the_handler(shop: Any) -> None:
    shop.train("max_length = 5")
    assert shop.version(2).options["max_length"] == 5


def test_a_secret_of_the_engine_reaches_the_worker_only(shop: Any) -> None:
    shop.run("CREATE ML_ENGINE mine FROM stranger USING api_key = 'sk-hush'")
    shop.run("CREATE MODEL k PREDICT answer USING engine = 'mine', base = 'tiny', prompt_template = '{{question}}'")
    shop.stranger.script({2: "crash"})
    with pytest.raises(HandlerError, match=r"boom with \*\*\*\*"):
        shop.train(what="FINETUNE k")
    assert shop.stranger.wait_for("begun")["key"] == "sk-hush"
    shop.con.close()
    shop.catalog.close()
    for path in shop.catalog.folder.rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            assert b"sk-hush" not in path.read_bytes(), path


def test_a_secret_of_the_training(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.train("hub_token = 'hf-hush'")
    assert shop.stranger.wait_for("begun")["token"] == "hf-hush"
    assert shop.run("SELECT options->>'hub_token' FROM sqlft.versions WHERE version = 2") == [("****",)]
    shop.run(f"RETRAIN m USING control = '{shop.stranger.control}'")
    assert shop.stranger.wait_for("begun")["token"] == "hf-hush"
    with pytest.raises(MissingSecret, match="export NO_TOKEN"):
        shop.train("hub_token = env('NO_TOKEN')")
    monkeypatch.setenv("NO_TOKEN", "hf-other")
    shop.train("hub_token = env('NO_TOKEN')")
    assert shop.stranger.wait_for("begun")["token"] == "hf-other"
    assert shop.version(4).options["hub_token"] == {"$env": "NO_TOKEN"}


def test_many_steps(shop: Any) -> None:
    shop.train("steps = 10000")
    assert shop.run("SELECT count(*), max(step) FROM sqlft.metrics") == [(20000, 10000)]
    assert shop.version(2).progress["step"] == 10000


def test_a_read_only_catalog(shop: Any, tmp_path: Path) -> None:
    import sqlft
    from sqlft.catalog.store import Catalog

    shop.con.session.catalog.close()
    reader = sqlft.Connection(shop.con._con, Catalog(shop.catalog.folder, read_only=True), warn=shop.warnings.append)
    with pytest.raises(CatalogError, match="read-only"):
        reader.execute("FINETUNE m FROM (SELECT * FROM rows)")
    assert not (shop.catalog.folder / "models").exists()


def test_a_changed_start_is_noticed(shop: Any) -> None:
    shop.train()
    (shop.version(2).artifact_path / "learned.json").write_text("{}")
    with pytest.raises(CatalogError, match="were changed"):
        shop.train()
    assert [v.key.number for v in shop.catalog.versions()] == [1, 2]
