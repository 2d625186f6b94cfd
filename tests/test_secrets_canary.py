"""A key is given in every way there is, and then looked for in everything that was written.

One place may have it: the file for its owner only, outside the database's folder.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins

HANDLERS = Path(__file__).parent / "handlers"
CANARY = "canary-7f3a9c"
ROWS = "SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)"


class WatchedDatabase:
    """A database in a folder of its own; `shown` is all that a person was shown."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.shown: list[str] = []
        self.con = self.open()

    def open(self) -> sqlft.Connection:
        return sqlft.connect(
            self.folder / "app.duckdb",
            warn=self.shown.append,
            progress=lambda tick: self.shown.append(repr(tick)),
        )

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """The rows; an error is told, as Python tells it."""
        try:
            rows = self.con.execute(sql, parameters).fetchall()
        except Exception as e:
            self.shown.append("".join(traceback.format_exception(e)) + repr(e) + repr(vars(e)))
            return []
        self.shown.append(repr(rows))
        return rows

    def list_all(self) -> None:
        """All listings there are."""
        for name in ("engines", "models", "versions", "metrics", "usage", "evaluations", "costs"):
            self.run(f"SELECT * FROM sqlft.{name}")
        for what in ("SHOW ML_ENGINES", "SHOW MODELS", "SHOW HANDLERS", "DESCRIBE ML_ENGINE e"):
            self.run(what)
        for attribute in ("", ".options", ".data", ".findings", ".versions", ".inputs"):
            self.run(f"DESCRIBE MODEL m{attribute}")

    def find_canary(self) -> list[str]:
        """Where the canary is, beside the one file."""
        self.con.execute("CHECKPOINT")
        places = [f"told: {text[:400]}" for text in self.shown if CANARY in text]
        for root in (self.folder, self.home):
            for file in sorted(p for p in root.rglob("*") if p.is_file()):
                if file.parent == self.home / "secrets":
                    assert stat.S_IMODE(file.stat().st_mode) == 0o600
                    continue
                if CANARY.encode() in file.read_bytes():
                    places.append(str(file.relative_to(root.parent)))
        return places


@pytest.fixture
def watched_database(tmp_path: Path, sqlft_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedDatabase]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    folder = tmp_path / "db"
    folder.mkdir()
    made = WatchedDatabase(folder, sqlft_home)
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def kept(watched_database: WatchedDatabase) -> list[str]:
    """Values in the one place."""
    return [str(json.loads(f.read_text())["value"]) for f in (watched_database.home / "secrets").glob("*")]


WRITTEN = {
    "plain": f"'{CANARY}'",
    "double": f'"{CANARY}"',
    "quoted": f"'it''s {CANARY} \"x\"'",
    "newline": f"'{CANARY}\nsecond {CANARY}'",
    "escaped": f"E'{CANARY}\\n\\'{CANARY}'",
    "dollars": f"$k$a;b'{CANARY}$k$",
    "bare": CANARY,
    "parameter": "$key",
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=list(WRITTEN))
def test_a_key_in_every_spelling(watched_database: WatchedDatabase, written: str) -> None:
    given = {"key": CANARY} if written == "$key" else None
    watched_database.run(f"CREATE ML_ENGINE e FROM stranger USING api_key = {written}", given)
    watched_database.run(
        "CREATE MODEL m PREDICT answer USING engine = 'e', base = 'b', prompt_template = '{{question}}'"
    )
    watched_database.run(
        f"CREATE MODEL own PREDICT answer USING engine = 'stranger', base = 'b', api_key = {written}", given
    )
    assert len(kept(watched_database)) == 2
    assert all(CANARY in value for value in kept(watched_database))
    if written in (WRITTEN["newline"], WRITTEN["parameter"]):
        watched_database.run(f"FINETUNE m FROM ({ROWS}) USING hub_token = {written}, steps = 2", given)
    watched_database.run("SELECT * FROM m WHERE question IN ('q1', 'q2')")
    watched_database.run("SELECT * FROM own WHERE content = 'q1'")
    watched_database.list_all()
    assert watched_database.find_canary() == []


@pytest.mark.parametrize("written", [v for k, v in WRITTEN.items() if k != "parameter"])
def test_statements_that_fail(watched_database: WatchedDatabase, written: str) -> None:
    watched_database.run("CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'b'")
    for statement in (
        "CREATE ML_ENGINE e FROM stranger USING api_key = {} nonsense",
        "CREATE ML_ENGINE e FROM nobody USING api_key = {}",
        "CREATE ML_ENGINE e FROM stranger USING api_key = {}, colour = 'red'",
        "CREATE ML_ENGINE FROM stranger USING api_key = {}",
        "CREATE ML_ENGIN e FROM stranger USING api_key = {}",
        "CREATE MODEL x PREDICT answer USING engine = 'nobody', api_key = {}",
        "CREATE MODEL x PREDICT (a NONSENSE) USING engine = 'stranger', api_key = {}",
        "CREATE MODEL m PREDICT answer USING engine = 'stranger', openai_api_key = {}",
        "FINETUNE m FROM (SELECT 1 AS x) USING hub_token = {}",
        "FINETUNE m FROM (SELECT nonsense) USING hub_token = {}",
        "FINETUNE m FROM (SELECT 1 USING hub_token = {}",
        "SELECT answer FROM m USING api_key = {}",
        "SELECT answer FROM m WHERE content = 'x' USING api_key = {}",
        "SELECT nonsense FROM m WHERE content = 'x' USING prefix = 'p', api_key = {}",
        "SELECT 1 AS one USING api_key = {}",
        "SELECT * FROM m WHERE content = (SELECT nonsense) AND api_key = {}",
        "CREATE VIEW v AS SELECT answer FROM m WHERE content = 'x' USING api_key = {}",
        "SELEC 1 AS api_key, api_key = {}",
        "SELECT nonsense FROM (SELECT 1) WHERE api_key = {}",
        "CREATE SECRET s (TYPE nonsense, SECRET {})",
        "CREATE DATABASE d WITH ENGINE = 'nobody', PARAMETERS = {{'password': {}}}",
        "CREATE DATABASE d WITH ENGINE = 'postgres', PARAMETERS = {{'host': '127.0.0.1', 'port': 1, 'password': {}}}",
        "RETRAIN m FROM (SELECT 1) USING hub_token = {}",
        "EVALUATE nonsense FROM (SELECT 1) USING api_key = {}",
    ):  # fmt: skip
        watched_database.run(statement.format(written))
    watched_database.list_all()
    assert watched_database.find_canary() == []


def test_a_key_of_the_environment(watched_database: WatchedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIRD", CANARY)
    monkeypatch.setenv("STRANGER_KEY", CANARY)
    watched_database.run("CREATE ML_ENGINE e FROM stranger USING api_key = env('BIRD')")
    watched_database.run(
        "CREATE MODEL m PREDICT answer USING engine = 'e', base = 'b', prompt_template = '{{question}}'"
    )
    watched_database.run(f"FINETUNE m FROM ({ROWS}) USING hub_token = env('BIRD'), steps = 2")
    watched_database.run("SELECT * FROM m WHERE question = 'q1'")
    watched_database.list_all()
    assert kept(watched_database) == []
    assert watched_database.find_canary() == []


@pytest.mark.parametrize("engine", ["e", "stranger"])
def test_a_training_that_breaks_with_the_key_in_its_error(
    watched_database: WatchedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("STRANGER_KEY", CANARY)
    watched_database.run(f"CREATE ML_ENGINE e FROM stranger USING api_key = '{CANARY}'")
    watched_database.run(
        f"CREATE MODEL m PREDICT answer USING engine = '{engine}', base = 'b', prompt_template = '{{{{question}}}}'"
    )
    control = tmp_path / "control"
    control.mkdir()
    (control / "script.json").write_text(json.dumps({"2": "crash"}))
    watched_database.run(f"FINETUNE m FROM ({ROWS}) USING control = '{control}'")
    assert any("boom with" in text for text in watched_database.shown)
    watched_database.list_all()
    assert watched_database.find_canary() == []


@pytest.mark.parametrize("how", ["row", "raises", "breaks"])
def test_a_provider_that_repeats_the_key(watched_database: WatchedDatabase, how: str) -> None:
    watched_database.run(f"CREATE ML_ENGINE e FROM parrot USING api_key = $${CANARY}\n'x$$")
    watched_database.run(f"CREATE MODEL m PREDICT answer USING engine = 'e', how = '{how}'")
    watched_database.run("SELECT answer, answer_error FROM m WHERE content = 'x'")
    watched_database.run("SELECT answer FROM m WHERE content = 'x' USING on_error = 'fail'")
    watched_database.run("CREATE TABLE t AS SELECT answer, answer_error FROM m WHERE content = 'x'")
    assert any("you said" in text for text in watched_database.shown)
    watched_database.list_all()
    assert watched_database.find_canary() == []


def test_the_shell(watched_database: WatchedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched_database.con.close()
    statements = f"""CREATE ML_ENGINE e FROM stranger USING api_key = '{CANARY}';
        CREATE MODEL m PREDICT answer USING engine = 'e', base = 'b', prompt_template = '{{{{question}}}}';
        FINETUNE m FROM ({ROWS}) USING hub_token = '{CANARY}', steps = 2;
        SELECT answer FROM m WHERE question = 'q1';
        CREATE ML_ENGINE f FROM stranger USING api_key = '{CANARY}' oops;
        SELECT 1 USING api_key = '{CANARY}';"""
    script = tmp_path / "script.sql"
    script.write_text(statements)
    path = os.pathsep.join(filter(None, [str(HANDLERS), os.environ.get("PYTHONPATH")]))
    for arguments, text in (
        (["-f", str(script)], ""),
        ([], statements.replace(" e ", " g ").replace("MODEL m", "MODEL n")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sqlft", "shell", str(watched_database.folder / "app.duckdb"), *arguments],
            input=text, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60,
        )  # fmt: skip
        assert "oops" in done.stderr
        watched_database.shown += [done.stdout, done.stderr]
    watched_database.con = watched_database.open()
    assert len(kept(watched_database)) == 4
    assert watched_database.find_canary() == []


def test_what_is_typed_at_a_terminal(watched_database: WatchedDatabase) -> None:
    import pexpect

    watched_database.con.close()
    path = os.pathsep.join(filter(None, [str(HANDLERS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm-256color"}
    shell: Any = pexpect.spawn(
        sys.executable,
        ["-m", "sqlft", "shell", str(watched_database.folder / "app.duckdb")],
        env=env,
        encoding="utf-8",
        timeout=60,
    )
    for line in (
        f"CREATE ML_ENGINE e FROM stranger USING api_key = '{CANARY}';",
        f"CREATE ML_ENGINE f FROM stranger USING api_key = '{CANARY}' oops;",
        f"CREATE MODEL m PREDICT answer USING engine = 'e', access_token = '{CANARY}';",
        f"FINETUNE m FROM (SELECT 1) USING hub_token = '{CANARY}';",
        f"SELECT 1 AS api_key WHERE api_key = '{CANARY}';",
        f"CREATE SECRET s (TYPE s3, KEY_ID 'x', SECRET '{CANARY}');",
    ):
        shell.expect("sqlft> ")
        shell.send(f"{line}\r")
        shell.expect(r"\x1b\[\?2004l")
    shell.expect("sqlft> ")
    shell.send("\x04")
    shell.expect(pexpect.EOF)
    watched_database.con = watched_database.open()
    assert (watched_database.home / "history").read_text().count("+") >= 6
    assert len(kept(watched_database)) == 1
    assert watched_database.find_canary() == []


@pytest.fixture(autouse=True)
def _parrot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that says its key in every error, installed for these tests alone."""
    folder = tmp_path / "site"
    (folder / "parrot-1.0.dist-info").mkdir(parents=True)
    (folder / "parrot-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: parrot\nVersion: 1.0\n")
    (folder / "parrot-1.0.dist-info" / "entry_points.txt").write_text("[sqlft.handlers]\nparrot = parrot:Parrot\n")
    (folder / "parrot.py").write_text(PARROT)
    monkeypatch.syspath_prepend(str(folder))


PARROT = """
from dataclasses import dataclass
from typing import Annotated
from sqlft.errors import ProviderError
from sqlft.handler import Completion, Handler, Predictor, RowError, Secret

@dataclass
class EngineOptions:
    api_key: Annotated[str | None, "the key", Secret()] = None

@dataclass
class ModelOptions:
    how: Annotated[str, "row, raises, breaks"] = "row"

class Parrot(Handler):
    engine_options = EngineOptions
    model_options = ModelOptions

    def open(self, model, artifact, options):
        return Talking(self.options.api_key, model.options.how)

class Talking(Predictor):
    def __init__(self, key, how):
        self.key, self.how = key, how

    def predict(self, requests):
        for request in requests:
            if self.how == "raises":
                raise ProviderError(f"401: you said {self.key}", f"Not {self.key!r}.")
            if self.how == "breaks":
                raise ValueError(f"you said {self.key}")
            yield Completion(request.id, error=RowError("denied", f"you said {self.key} {self.key!r}"))
"""
