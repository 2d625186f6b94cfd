from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sqlft.catalog import files
from sqlft.catalog.records import Engine, KnowledgeBase, Model, ModelKey, Usage, UserPrice, VersionKey, View
from sqlft.catalog.store import Catalog
from sqlft.catalog.tables import TABLE_DEFINITIONS
from sqlft.errors import AlreadyExists, CatalogError, NotFound
from sqlft.handler import Progress
from sqlft.secrets.home import home


def model(name: str = "ft", project: str = "mindsdb") -> Model:
    return Model(ModelKey(name, project), "echo", "tiny", "answer", "{{question}}", options={"x": {"y": [1, None]}})


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "db.sqlft")


def elsewhere(catalog: Catalog, code: str) -> str:
    """Run code in another process that has the same catalog as `c`."""
    text = (
        "from pathlib import Path; from sqlft.catalog.store import *; from sqlft.catalog.records import *\n"
        f"c = Catalog(Path({str(catalog.folder)!r}))\n{code}"
    )
    return subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout


def test_reading_makes_nothing(catalog: Catalog) -> None:
    assert catalog.names() == frozenset()
    assert catalog.refresh() == frozenset()
    assert (catalog.engines(), catalog.models(), catalog.versions(), catalog.views(), catalog.usage()) == ([],) * 5
    assert catalog.find_model("ft") is None
    assert not catalog.folder.exists()


def test_a_model_and_its_first_version(catalog: Catalog) -> None:
    made = catalog.add_model(model("Ft"), tag="first")
    assert str(made.key) == "Ft.1"
    assert (made.status, made.tag) == ("complete", "first")
    found = catalog.find_model("fT")
    assert found is not None
    assert (found.key, found.active, found.options) == (ModelKey("Ft"), 1, {"x": {"y": [1, None]}})
    assert catalog.resolve_version(ModelKey("FT")) == made
    assert catalog.names() == {"ft"}
    with pytest.raises(AlreadyExists, match="DROP MODEL"):
        catalog.add_model(model("FT"))


def test_the_default_project_comes_first(catalog: Catalog) -> None:
    catalog.add_model(model("ft", "other"))
    assert catalog.find_model("ft") is not None
    catalog.add_model(model("ft"))
    found = catalog.find_model("ft")
    assert found is not None
    assert found.key.project == "mindsdb"
    assert catalog.find_model("ft", "none") is None


def test_numbers_are_not_reused(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    second = catalog.new_version(key, status="failed", error="no")
    assert second.key.number == 2
    catalog.drop_version(second.key)
    assert catalog.new_version(key, status="failed").key.number == 3
    with pytest.raises(NotFound, match="has no version 2"):
        catalog.version(VersionKey(key, 2))


def test_what_is_not_there_suggests_what_is(catalog: Catalog) -> None:
    catalog.add_model(model("sentiment"))
    with pytest.raises(NotFound, match="Did you mean 'sentiment'"):
        catalog.model(ModelKey("sentimnt"))
    catalog.add_engine(Engine("my_openai", "openai"))
    with pytest.raises(NotFound, match="Did you mean 'my_openai'"):
        catalog.engine("my_opena")


def test_publishing_is_one_step(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    second = catalog.new_version(key, status="interrupted")
    with pytest.raises(CatalogError, match="was stopped"):
        catalog.publish(second.key, artifact_path=catalog.artifact_folder(second.key))
    assert catalog.version(second.key).artifact_path is None
    catalog.work_folder(second.key).mkdir(parents=True)
    with files.hold_lock(catalog.work_folder(second.key)):
        catalog.update_version(second.key, status="training")
        made = catalog.publish(
            second.key, artifact_path=catalog.artifact_folder(second.key), artifact_digest="d", seconds=1.5
        )
    assert (made.status, made.artifact_path, made.seconds) == ("complete", catalog.artifact_folder(second.key), 1.5)
    assert catalog.model(key).active == 2


def test_a_version_may_stay_inactive(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    catalog.new_version(key, status="complete", activate=False)
    assert catalog.model(key).active == 1
    catalog.set_active(VersionKey(key, 2))
    assert catalog.resolve_version(key).key.number == 2
    failed = catalog.new_version(key, status="failed")
    with pytest.raises(CatalogError, match="it is failed"):
        catalog.set_active(failed.key)
    with pytest.raises(CatalogError, match="is the active one"):
        catalog.drop_version(VersionKey(key, 2))


def test_a_model_of_which_nothing_is_complete(catalog: Catalog) -> None:
    first = catalog.add_model(model(), status="failed", error="no rows")
    assert catalog.model(first.key.model).active is None
    assert catalog.resolve_version(first.key.model).error == "no rows"


def test_a_version_whose_worker_is_dead_is_interrupted(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    second = catalog.new_version(key, status="interrupted").key
    work = catalog.work_folder(second)
    work.mkdir(parents=True)
    (work / files.LOG_FILE).write_text("Traceback\nKilled by a meteor\n\n")
    with files.hold_lock(work):
        catalog.update_version(second, status="training")
        assert catalog.version(second).status == "training"
        for refused in (lambda: catalog.drop_model(key), lambda: catalog.rename_model(key, ModelKey("b"))):
            with pytest.raises(CatalogError, match=r"while ft\.2 is training"):
                refused()
    found = catalog.version(second)
    assert found.status == "interrupted"
    assert found.error is not None
    assert "Killed by a meteor" in found.error
    assert "RESUME MODEL ft.2" in found.error
    assert catalog.table("versions").column("status").to_pylist() == ["complete", "interrupted"]


def test_a_reader_tells_a_dead_worker_too(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    second = catalog.new_version(key).key
    with sqlite3.connect(catalog.folder / "catalog.sqlite") as con:
        con.execute("UPDATE versions SET status = 'training'")
    con.close()
    reader = Catalog(catalog.folder, read_only=True)
    assert reader.version(second).status == "interrupted"
    assert reader.table("versions").column("status").to_pylist() == ["interrupted", "interrupted"]


def test_the_model_of_a_running_training_keeps_its_start(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    catalog.new_version(key, status="complete", activate=False)

    def settle(_: VersionKey, work: Path) -> None:
        work.mkdir(parents=True)
        locks.append(files.acquire_lock(work))

    locks: list[int | None] = []
    third = catalog.new_version(key, parent=2, before_commit=settle)
    assert third.status == "queued"
    with pytest.raises(CatalogError, match=r"ft\.3 is queued"):
        catalog.drop_version(VersionKey(key, 2))
    assert locks[0] is not None
    os.close(locks[0])
    catalog.drop_version(VersionKey(key, 2))


def test_what_fails_before_the_commit_takes_no_number(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CatalogError, match="Free some disk space"):
        catalog.new_version(key, before_commit=fail)
    assert catalog.new_version(key, status="failed").key.number == 2


def test_a_new_name_keeps_everything(catalog: Catalog) -> None:
    first = catalog.add_model(model("a"))
    catalog.add_progress(first.key, [Progress(1, None, {"epoch": 0.5, "loss": 2.0})])
    catalog.put_usage(Usage("s1", first.key, rows=3))
    catalog.rename_model(first.key.model, ModelKey("B"))
    assert catalog.names() == {"b"}
    assert [str(v.key) for v in catalog.versions()] == ["B.1"]
    assert [m.version.model.name for m in catalog.metrics()] == ["B"]
    assert [u.version.model.name for u in catalog.usage()] == ["B"]
    catalog.add_model(model("a"))
    with pytest.raises(AlreadyExists):
        catalog.rename_model(ModelKey("a"), ModelKey("b"))
    catalog.rename_model(ModelKey("a"), ModelKey("A"))
    assert [m.key.name for m in catalog.models()] == ["A", "B"]


def test_a_renamed_model_and_a_new_one_do_not_share_files(catalog: Catalog) -> None:
    old = catalog.add_model(model("a"))
    place = catalog.artifact_folder(old.key)
    place.mkdir(parents=True)
    catalog.rename_model(old.key.model, ModelKey("b"))
    assert catalog.artifact_folder(VersionKey(ModelKey("b"), 1)) == place
    assert catalog.artifact_folder(catalog.add_model(model("a")).key) != place


def test_dropping_leaves_the_ledger(catalog: Catalog) -> None:
    first = catalog.add_model(model())
    catalog.add_progress(first.key, [Progress(1, None, {"loss": 2.0})])
    catalog.put_usage(Usage("s1", first.key, cost_usd=0.5))
    place = catalog.artifact_folder(first.key)
    place.mkdir(parents=True)
    catalog.drop_model(first.key.model)
    assert (catalog.models(), catalog.versions(), catalog.metrics()) == ([], [], [])
    assert [u.cost_usd for u in catalog.usage()] == [0.5]
    assert not place.exists()
    assert catalog.add_model(model()).key.number == 1
    assert catalog.metrics() == []


def test_replacing_starts_anew(catalog: Catalog) -> None:
    first = catalog.add_model(model())
    catalog.new_version(first.key.model, status="complete")
    old = catalog.artifact_folder(first.key)
    old.mkdir(parents=True)
    made = catalog.add_model(model("FT"), or_replace=True)
    assert [str(v.key) for v in catalog.versions()] == ["FT.1"]
    assert not old.exists()
    assert not catalog.artifact_folder(made.key).exists()


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "../../etc",
        ".",
        "..",
        "…",
        "模型",
        "a.b",
        "a b",
        "x" * 300,
        "CON",
        "a\n",
        "'; DROP TABLE models",
        "-",
        "é",
    ],
)
def test_odd_names_stay_in_their_folder(catalog: Catalog, name: str) -> None:
    places = {
        catalog.artifact_folder(catalog.add_model(model(n, p)).key)
        for n, p in ((name, "mindsdb"), (f"{name}2", "mindsdb"), (name, "b"))
    }
    assert len(places) == 3
    for place in places:
        place.mkdir(parents=True)
        assert place.resolve().parent.parent == (catalog.folder / "models").resolve()
    found = catalog.find_model(name, "mindsdb")
    assert found is not None
    assert found.key.name == name
    assert name.lower() in catalog.names()


def test_names_that_differ_in_case_only_on_disk(catalog: Catalog) -> None:
    one = catalog.artifact_folder(catalog.add_model(model("é")).key)
    with pytest.raises(AlreadyExists):
        catalog.add_model(model("É"))
    two = catalog.artifact_folder(catalog.add_model(model("_")).key)
    assert one != two


def test_engines(catalog: Catalog) -> None:
    catalog.add_engine(Engine("Mine", "openai", {"api_key": {"$env": "KEY"}}))
    assert catalog.engine("mINE").options == {"api_key": {"$env": "KEY"}}
    with pytest.raises(AlreadyExists):
        catalog.add_engine(Engine("mine", "x"))
    catalog.add_model(Model(ModelKey("m"), "MINE", "b", "a", "{{q}}"))
    with pytest.raises(CatalogError, match="DROP MODEL m"):
        catalog.drop_engine("mine")
    catalog.drop_model(ModelKey("m"))
    catalog.drop_engine("mine")
    assert catalog.engines() == []


def test_views_and_models_share_names(catalog: Catalog) -> None:
    catalog.add_view(View("V", "SELECT 1", ("a", "b"), "main"))
    assert catalog.view("v") == View("V", "SELECT 1", ("a", "b"), "main")
    with pytest.raises(AlreadyExists):
        catalog.add_view(View("v", "SELECT 2"))
    catalog.add_view(View("v", "SELECT 2"), or_replace=True)
    with pytest.raises(AlreadyExists, match="a view 'v'"):
        catalog.add_model(model("v"))
    catalog.add_model(model())
    with pytest.raises(AlreadyExists, match="a model 'ft'"):
        catalog.add_view(View("ft", "SELECT 1"), or_replace=True)
    assert catalog.names() == {"v", "ft"}
    catalog.drop_view("V")
    with pytest.raises(NotFound):
        catalog.drop_view("v")
    assert catalog.names() == {"ft"}


def test_metrics_of_a_step_that_is_done_again(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key
    catalog.add_progress(
        key, [Progress(1, 2, {"loss": 3.0, "epoch": 0.5}), Progress(2, 2, {"loss": math.nan, "val_loss": 4})]
    )
    catalog.add_progress(key, [Progress(1, 2, {"loss": 5.0})])
    found = catalog.metrics(key)
    assert [(m.step, m.split, m.name) for m in found] == [
        (1, "train", "loss"),
        (2, "train", "loss"),
        (2, "valid", "loss"),
    ]
    assert found[0].value == 5.0
    assert math.isnan(found[1].value)
    assert catalog.version(key).progress == {
        "step": 1,
        "total_steps": 2,
        "metrics": {"loss": 5.0},
        "seconds_left": None,
    }
    assert math.isnan(catalog.table("metrics").column("value")[1].as_py())


def test_usage_of_one_statement_is_one_row(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key
    for rows in (1, 2):
        catalog.put_usage(Usage("s", key, "SELECT", rows=rows, seconds=0.1))
    catalog.put_usage(Usage("s", VersionKey(ModelKey("gone"), 1)))
    assert [u.rows for u in catalog.usage()] == [2, 0]
    assert catalog.table("usage").column("model").to_pylist() == ["ft", "gone"]


def test_cancel_requests(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key
    assert not catalog.cancel_requested(key)
    catalog.request_cancel(key)
    assert catalog.cancel_requested(key)
    catalog.request_cancel(key, False)
    assert not catalog.cancel_requested(key)
    catalog.drop_model(key.model)
    assert catalog.cancel_requested(key)


@pytest.mark.parametrize("name", TABLE_DEFINITIONS)
def test_tables_keep_their_types_when_empty(catalog: Catalog, name: str) -> None:
    empty = catalog.table(name)
    assert empty.num_rows == 0
    key = catalog.add_model(model()).key
    catalog.add_engine(Engine("e", "echo"))
    catalog.add_progress(key, [Progress(1, None, {"loss": 1.0})])
    catalog.put_usage(Usage("s", key))
    catalog.add_view(View("v", "SELECT 1"))
    catalog.add_price(UserPrice("e", None, 1.0))
    catalog.knowledge_bases.add(KnowledgeBase(ModelKey("docs")))
    full = catalog.table(name)
    assert full.schema == empty.schema
    assert full.num_rows == (0 if name.startswith("evaluation") else 1)
    assert not any(pa.types.is_null(t) for t in full.schema.types)


def test_the_columns_of_versions(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    catalog.new_version(
        key, status="failed", query="SELECT 1", row_count=2, findings=({"code": "few"},), options={"n": 1}
    )
    row = catalog.table("versions").to_pylist()[1]
    assert (row["model"], row["version"], row["status"], row["active"], row["base"]) == (
        "ft",
        2,
        "failed",
        False,
        "tiny",
    )
    assert (row["query"], row["row_count"], row["findings"], row["options"]) == (
        "SELECT 1",
        2,
        '[{"code": "few"}]',
        '{"n": 1}',
    )
    with pytest.raises(NotFound, match="Did you mean 'versions'"):
        catalog.table("version")


def test_no_table_shows_a_secret(catalog: Catalog) -> None:
    options = {"api_key": {"$secret": "0" * 32, "of": "x"}, "other": {"$env": "KEY"}, "n": 1}
    catalog.add_engine(Engine("e", "openai", options))
    assert (
        catalog.table("engines").column("options")[0].as_py() == '{"api_key": "****", "other": "env(\'KEY\')", "n": 1}'
    )


def test_another_process_is_seen(catalog: Catalog) -> None:
    catalog.add_model(model("a"))
    assert catalog.names() == {"a"}
    elsewhere(catalog, "c.add_model(Model(ModelKey('b'), 'echo', 'x', 'y', '{{z}}'))")
    assert catalog.names() == {"a"}
    assert catalog.refresh() == {"a", "b"}
    assert catalog.names() == {"a", "b"}


def test_a_file_that_another_process_makes_is_seen(catalog: Catalog) -> None:
    assert catalog.names() == frozenset()
    elsewhere(catalog, "c.add_model(Model(ModelKey('b'), 'echo', 'x', 'y', '{{z}}'))")
    assert catalog.refresh() == {"b"}


def test_processes_and_threads_never_share_a_number(catalog: Catalog) -> None:
    key = catalog.add_model(model()).key.model
    code = "k = ModelKey('ft')\nprint(*[c.new_version(k, status='failed').key.number for _ in range(30)])"
    with_code = (
        f"from pathlib import Path; from sqlft.catalog.store import *; from sqlft.catalog.records import *\n"
        f"c = Catalog(Path({str(catalog.folder)!r}))\n{code}"
    )
    others = [subprocess.Popen([sys.executable, "-c", with_code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    mine: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: mine.extend(catalog.new_version(key, status="failed").key.number for _ in range(30))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    theirs = [int(n) for other in others for n in other.communicate()[0].split()]
    assert sorted(mine + theirs) == list(range(2, 152))


def test_two_processes_make_the_file_at_once(catalog: Catalog) -> None:
    text = (
        "import sys; from pathlib import Path; from sqlft.catalog.store import *; from sqlft.catalog.records import *\n"
        f"sys.stdin.read(); Catalog(Path({str(catalog.folder)!r})).add_engine(Engine(sys.argv[1], 'echo'))"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", text, f"e{i}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    for other in others:
        assert other.stdin is not None
        other.stdin.close()
    assert [other.wait() for other in others] == [0] * 4
    for other in others:
        assert other.stderr is not None
        other.stderr.close()
    assert len(catalog.engines()) == 4


def test_a_fork_has_a_connection_of_its_own(catalog: Catalog) -> None:
    catalog.add_model(model())
    pid = os.fork()
    if pid == 0:
        try:
            catalog.add_engine(Engine("child", "echo"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [e.name for e in catalog.engines()] == ["child"]
    catalog.add_engine(Engine("parent", "echo"))


def test_a_newer_catalog_is_left_alone(catalog: Catalog) -> None:
    catalog.add_model(model())
    catalog.close()
    with sqlite3.connect(catalog.folder / "catalog.sqlite") as con:
        con.execute("PRAGMA user_version = 99")
    con.close()
    for read_only in (False, True):
        with pytest.raises(CatalogError, match=r"newer sqlft[^$]*pip install -U sqlft"):
            Catalog(catalog.folder, read_only).models()


def test_a_damaged_catalog_says_so(catalog: Catalog) -> None:
    catalog.folder.mkdir()
    (catalog.folder / "catalog.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CatalogError, match="is damaged"):
        catalog.models()
    with pytest.raises(CatalogError, match="is damaged"):
        catalog.add_model(model())


def test_read_only_reads(catalog: Catalog) -> None:
    nothing = Catalog(catalog.folder, read_only=True)
    assert nothing.models() == []
    catalog.add_model(model())
    catalog.close()
    reader = Catalog(catalog.folder, read_only=True)
    assert reader.names() == {"ft"}
    for write in (
        lambda: reader.add_model(model("x")),
        lambda: reader.put_usage(Usage("s", VersionKey(ModelKey("ft"), 1))),
    ):
        with pytest.raises(CatalogError, match="opened read-only"):
            write()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CatalogError, match="cannot be written"):
        Catalog(tmp_path / "file" / "db.sqlft").add_model(model())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_of_somebody_else_can_be_read(open_folder: Path, read_only: bool) -> None:
    catalog = Catalog(open_folder / "db.sqlft")
    catalog.add_model(model())
    catalog.close()
    catalog.folder.chmod(0o555)
    (catalog.folder / "catalog.sqlite").chmod(0o444)
    code = (
        "import os, sys, sqlite3\n"
        "from pathlib import Path; from sqlft.catalog.store import *; from sqlft.catalog.records import *\n"
        "from sqlft.errors import CatalogError\n"
        "if os.getuid() == 0:\n    os.setresuid(65534, 65534, 65534)\n"
        f"c = Catalog(Path(sys.argv[1]), {read_only})\n"
        "print([m.key.name for m in c.models()])\n"
        "try:\n    c.put_usage(Usage('s', VersionKey(ModelKey('ft'), 1)))\nexcept CatalogError as e:\n    print(e)"
    )
    said = subprocess.run([sys.executable, "-c", code, catalog.folder], capture_output=True, text=True)
    assert said.stdout.startswith("['ft']"), said.stderr
    assert ("without read_only = True" if read_only else "Give yourself the right to write") in said.stdout


def test_the_home_of_a_user(monkeypatch: pytest.MonkeyPatch, sqlft_home: Path) -> None:
    assert home() == sqlft_home
    monkeypatch.setenv("SQLFT_HOME", "~/models")
    assert home() == Path.home() / "models"
    monkeypatch.delenv("SQLFT_HOME")
    assert home().name == "sqlft"
    assert home().is_absolute()
