"""Warnings at the caller's line, and the logger `sqlft`: what is done, without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import errors, plugins

HANDLERS = Path(__file__).parent / "handlers"
ASK = "SELECT t.x, m.answer FROM t JOIN m ON m.content = t.x USING cache = false"


@pytest.fixture
def con(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    """A model of the scribe's that fails at one of two rows, and nobody who takes warnings."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = sqlft.connect()
    made.execute("CREATE TABLE t AS FROM (VALUES ('a'), ('!broken')) v(x)")
    made.execute("CREATE MODEL m PREDICT answer USING engine = 'scribe'")
    yield made
    made.close()
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The messages of the logger at DEBUG."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, kept = logging.getLogger("sqlft"), Kept()
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.removeHandler(kept)
    logger.setLevel(logging.NOTSET)


def line_of(what: Callable[[], Any]) -> int:
    """The line of a function's body that stands on the line below its head."""
    return what.__code__.co_firstlineno + 1


def executed(con: sqlft.Connection) -> Any:
    return con.execute(ASK).fetchall()


def related(con: sqlft.Connection) -> Any:
    return con.sql(ASK).fetchall()


def framed(con: sqlft.Connection) -> Any:
    return con.execute(ASK).df()


def read_as_arrow(con: sqlft.Connection) -> Any:
    return con.execute(ASK).to_arrow_reader().read_all()


def iterated(con: sqlft.Connection) -> Any:
    return list(con.execute(ASK))


def evaluated(con: sqlft.Connection) -> Any:
    return con.execute("EVALUATE MODEL m ON (SELECT x AS content, 'a' AS answer FROM t) USING metrics = 'exact_match'")


def analysed(con: sqlft.Connection) -> Any:
    return con.execute(f"EXPLAIN ANALYZE {ASK}").fetchall()


def written(con: sqlft.Connection) -> Any:
    return con.execute(f"CREATE OR REPLACE TABLE made AS {ASK}")


def of_a_cursor(con: sqlft.Connection) -> Any:
    return con.cursor().execute(ASK).fetchall()


WAYS = [executed, related, framed, read_as_arrow, iterated, evaluated, analysed, written, of_a_cursor]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_warning_points_at_the_callers_line_each_time(con: sqlft.Connection, way: Any) -> None:
    if way is framed:
        pytest.importorskip("pandas")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(3):
            way(con)
    ours = [w for w in found if w.category is sqlft.SqlftWarning]  # others come with the garbage of other tests
    assert len(ours) == 3
    for warning in ours:
        assert "1 of 2 rows failed at m.1: broken" in str(warning.message)
        assert (warning.filename, warning.lineno) == (__file__, line_of(way))


def test_a_training_warns_at_the_callers_line(connection_with_model: Any) -> None:
    connection_with_model.con.session.show_warning = errors.show_warning
    with pytest.warns(sqlft.SqlftWarning) as found:
        connection_with_model.con.execute(
            f"FINETUNE m FROM (FROM rows LIMIT 3) USING control = '{connection_with_model.training.folder}', steps = 1"
        )
    assert {w.filename for w in found if w.category is sqlft.SqlftWarning} == {__file__}


def test_a_warning_in_a_thread_that_nobody_outside_of_sqlft_runs(con: sqlft.Connection) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        thread = threading.Thread(target=con.sql, args=[ASK])
        thread.start()
        thread.join()
    assert [w.filename for w in found if w.category is sqlft.SqlftWarning] == ["sqlft"]


def test_where_warnings_are_errors_results_come_all_the_same(con: sqlft.Connection, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("error")
        assert con.execute(f"{ASK}, on_error = 'null'").fetchall() == [("a", "a"), ("!broken", None)]
        con.execute(f"COPY ({ASK.partition(' USING')[0]} ORDER BY ALL) TO '{tmp_path / 'out.csv'}'")
    assert (tmp_path / "out.csv").read_text().splitlines() == ["x,answer", "!broken,", "a,a"]
    assert len([w for w in found if w.category is sqlft.SqlftWarning]) == 2


def test_a_filter_of_the_users_holds(con: sqlft.Connection) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=sqlft.SqlftWarning)
        executed(con)
    assert found == []


def test_the_log_tells_plans_and_what_was_asked(con: sqlft.Connection, records: list[str]) -> None:
    with pytest.warns(sqlft.SqlftWarning):
        executed(con)
    plans = [r for r in records if r.startswith("plan of ")]
    assert plans == [f"plan of {ASK}\nask m.1 (content := t.x)\nanswer slice by slice"]
    assert "m.1: 2 rows, 2 prompts, 0 cached, 2 calls, 1 errors, " in records[-1]


def test_the_log_repeats_no_key(provider: Any, records: list[str]) -> None:
    pytest.importorskip("openai")
    with sqlft.connect(warn=lambda text: None) as con:
        at = f"base_url = '{provider.url}', api_key = '{provider.key}'"
        con.execute(f"CREATE ML_ENGINE e FROM openai USING {at}")
        con.execute("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'gpt-4o-mini'")
        con.execute(f"SELECT answer FROM m WHERE content = 'my key is {provider.key}'").fetchall()
    told = "\n".join(records)
    assert provider.key not in told
    assert "m.1: 1 rows, 1 prompts" in told
    [request] = [r for r in records if r.startswith("POST ")]
    assert request.startswith(f"POST {provider.url}/chat/completions: 200, request id ")
    assert request.endswith(" s")


def test_a_request_that_fails_is_logged(records: list[str]) -> None:
    pytest.importorskip("openai")
    with sqlft.connect(warn=lambda text: None) as con:
        con.execute(
            "CREATE MODEL m PREDICT a USING engine = 'openai_compatible', model_name = 'x', api_key = 'sk-secret1',"
            " base_url = 'http://127.0.0.1:9/v1?key=sk-secret1'"
        )
        with pytest.raises(sqlft.ProviderError):
            con.execute("SELECT a FROM m WHERE content = 'x'").fetchall()
    failed = [r for r in records if r.startswith("POST ")]
    assert failed
    assert all(": no answer, " in r and "sk-secret1" not in r for r in failed)


def test_the_log_follows_a_training(connection_with_model: Any, records: list[str]) -> None:
    connection_with_model.train("steps = 2")
    told = [r for r in records if r.startswith("training ")]
    assert "training m.2: process " in told[0]
    assert told[-1] == "training m.2: complete"


def test_nobody_listens_and_logging_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sqlft, sys; con = sqlft.connect(warn=print)\n"
        "con.execute(\"CREATE MODEL m PREDICT a USING engine = 'echo'; SELECT a FROM m WHERE content = 'x'\")\n"
        "import logging; con.fetchall(); print(logging.getLogger('sqlft').handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(tmp_path)
    )
    assert (done.stdout.strip(), done.stderr) == ("[<NullHandler (NOTSET)>]", "")


def test_the_shell_and_its_trainings_show_the_log(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"2": "crash"}))
    model = "CREATE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny', prompt_template = '{{question}}'"
    rows = "SELECT 'q' || i AS question, 'a' || i AS answer FROM range(60) t(i)"
    tune = f"FINETUNE m FROM ({rows}) USING control = '{tmp_path}'"
    done = subprocess.run(
        [sys.executable, "-m", "sqlft.cli", "app.duckdb", "--debug", "-c", model, "-c", tune],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("DEBUG ")]
    assert any(" training m.2: process " in line for line in told)
    [written] = (tmp_path / "app.duckdb.sqlft" / "models").glob("m/*.work/log.txt")
    assert " training m.2: process " in written.read_text()


def environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(HANDLERS), *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)])
    return {**os.environ, "SQLFT_HOME": str(folder), "PYTHONPATH": paths}
