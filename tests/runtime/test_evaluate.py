"""EVALUATE: rows and versions scored, compared and kept; what is wrong is said before anything is asked."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import Cancelled, DataError, NotFound, NotSupported, OptionError, ProviderError

HANDLERS = Path(__file__).parents[1] / "handlers"
pytest.importorskip("scipy")


class CounterConnection:
    """A connection with questions, and two models of the counter's: m is right in 10 of 30 rows, loud in 20."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append, catalog=os.environ["SQLFT_HOME"])
        self.con.execute("""
            CREATE TABLE rows AS SELECT 'r' || i AS content, 'A:R' || i || CASE WHEN i % 3 = 0 THEN '' ELSE '!' END
            AS answer FROM range(30) t(i);
            CREATE MODEL m PREDICT answer USING engine = 'counter';
            CREATE MODEL loud PREDICT answer USING engine = 'counter', prompt_template = '{{content}}!'""")

    def dicts(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
        """Rows by column name."""
        done = self.con.execute(sql, parameters)
        names = [d[0] for d in done.description]
        return [dict(zip(names, row, strict=True)) for row in done.fetchall()]

    def count_new_requests(self) -> int:
        """Requests since this was last called."""
        import counter

        count = len(counter.ASKED)
        counter.ASKED.clear()
        return count


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[CounterConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = CounterConnection()
    made.count_new_requests()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def test_rows(connection: CounterConnection) -> None:
    query = "SELECT i AS actual, i + CASE WHEN i = 3 THEN 2 ELSE 0 END AS prediction FROM range(4) t(i)"
    found = connection.dicts(f"EVALUATE exact_match, mean_absolute_error, rmse FROM ({query})")
    assert [row["metric"] for row in found] == ["exact_match", "mean_absolute_error", "rmse"]
    assert [row["value"] for row in found] == [0.75, 0.5, 1.0]
    assert [row["n"] for row in found] == [4, 4, 4]
    assert [row["interval"] for row in found] == ["wilson", "bootstrap", "bootstrap"]
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert connection.dicts("FROM sqlft.evaluations") == []


def test_as_mindsdb_writes_it(connection: CounterConnection) -> None:
    [row] = connection.dicts(
        "EVALUATE accuracy_score FROM memory (SELECT t.answer AS a, p.answer AS b FROM rows t JOIN m p) "
        "USING actual = 'a', prediction = 'b'"
    )
    assert row["value"] == pytest.approx(1 / 3)
    [row] = connection.dicts(
        "EVALUATE balanced_accuracy_score FROM (SELECT 'x' AS actual, 'x' AS prediction UNION ALL SELECT 'y', 'x') "
        "USING adjusted = 1"
    )
    assert row["value"] == 0


def test_nulls_one_row_and_all_the_same(connection: CounterConnection) -> None:
    query = "FROM (VALUES ('a', 'a'), (NULL, 'a'), ('b', NULL)) t(actual, prediction)"
    [row] = connection.dicts(f"EVALUATE exact_match FROM ({query})")
    assert (row["value"], row["n"]) == (0.5, 2)
    [row] = connection.dicts("EVALUATE token_f1 FROM (SELECT 'a b' AS actual, 'a' AS prediction)")
    assert (row["n"], row["low"], row["high"]) == (1, None, None)
    [row] = connection.dicts("EVALUATE f1 FROM (SELECT 'a' AS actual, 'a' AS prediction FROM range(5))")
    assert (row["value"], row["low"], row["high"]) == (1, 1, 1)
    [row] = connection.dicts("EVALUATE f1 FROM (SELECT NULL::VARCHAR AS actual, 'a' AS prediction FROM range(5))")
    assert (row["value"], row["n"], row["low"]) == (None, 0, None)


def test_options_reach_their_metrics(connection: CounterConnection, tmp_path: Path) -> None:
    rows = "SELECT 'A' AS actual, 'a ;' AS prediction"
    assert [r["value"] for r in connection.dicts(f"EVALUATE exact_match FROM ({rows}) USING normalise = true")] == [1]
    both = f"EVALUATE exact_match, json_match FROM ({rows}) USING exact_match.normalise = ?, json_match.partial = true"
    assert connection.dicts(both, [True])[0]["value"] == 1
    queries = "SELECT 'SELECT 1' AS actual, 'SELECT 1.0' AS prediction, 'CREATE TABLE t (a INT)' AS context"
    for given in ("USING schema = 'CREATE TABLE t (a INT)'", "USING execution_accuracy.schema = context, timeout = 5"):
        assert connection.dicts(f"EVALUATE execution_accuracy FROM ({queries}) {given}")[0]["value"] == 1
    sqlite = tmp_path / "d.sqlite"
    sqlite.touch()
    column = f"SELECT *, '{sqlite}' AS database FROM ({queries})"
    assert connection.dicts(f"EVALUATE execution_accuracy FROM ({column})")[0]["value"] == 1
    broken = f"SELECT 'SELECT x' AS actual, 'SELECT 1' AS prediction, '{sqlite}' AS database"
    [row] = connection.dicts(f"EVALUATE execution_accuracy FROM ({column} UNION ALL BY NAME {broken})")
    assert (row["value"], row["n"]) == (1, 1)
    assert "1 of 2 actual queries cannot be run" in connection.warnings[-1]


@pytest.mark.parametrize(
    ("sql", "error", "said"),
    [
        ("EVALUATE exact_mach FROM (SELECT 1 AS actual, 1 AS prediction)", NotFound, "Did you mean 'exact_match'"),
        ("EVALUATE exact_match FROM (SELECT 1 AS actual, 1 AS predicted)", DataError, "Did you mean 'predicted'"),
        ("EVALUATE exact_match FROM (SELECT 1 AS actual, 1 AS prediction WHERE false)", DataError, "no rows"),
        ("EVALUATE exact_match FROM (SELECT 1 AS actual, 1 AS prediction) USING norm = 1", OptionError, "norm"),
        ("EVALUATE f1 FROM (SELECT 1 AS actual, 1 AS prediction) USING f1.averge = 1", OptionError, "'average'"),
        ("EVALUATE exact_match FROM (SELECT 1 AS actual, [1] AS prediction)", DataError, "CAST"),
        ("EVALUATE rmse FROM (SELECT 'x' AS actual, 1 AS prediction)", DataError, "no number"),
        ("EVALUATE execution_accuracy FROM (SELECT 'a' AS actual, 'a' AS prediction)", OptionError, "needs a database"),
        ("EVALUATE llm_judge FROM (SELECT 'a' AS actual, 'a' AS prediction)", OptionError, "judge"),
        ("EVALUATE exact_match FROM (SELECT 1 AS actual, 1 AS prediction) USING seed = 'x'", OptionError, "seed"),
        ("EVALUATE MODEL nobody ON (SELECT * FROM rows)", NotFound, "nobody"),
        ("EVALUATE MODEL m, m.1 ON (SELECT * FROM rows)", OptionError, "twice"),
        ("EVALUATE MODEL m ON (SELECT content FROM rows)", DataError, "right answers"),
        ("EVALUATE MODEL m ON (SELECT answer FROM rows)", DataError, "input 'content'"),
        ("EVALUATE MODEL m ON (SELECT * FROM rows) USING metrics = 'exact'", NotFound, "exact_match"),
        ("EVALUATE MODEL m ON (SELECT * FROM rows) USING metrics = []", OptionError, "no metric"),
        ("EVALUATE MODEL m ON (SELECT * FROM rows) USING sufix = 'x'", OptionError, "Did you mean 'suffix'"),
        ("EVALUATE MODEL m ON (SELECT * FROM rows) USING metrics = ['perplexity']", NotSupported, "how probable"),
        ("EVALUATE MODEL m ON (SELECT * FROM rows) USING metrics = ['llm_judge']", OptionError, "judge"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    connection: CounterConnection, sql: str, error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        connection.con.execute(sql)
    assert connection.count_new_requests() == 0
    assert connection.dicts("FROM sqlft.evaluations") == []


def test_a_version_is_asked_and_its_scores_are_kept(connection: CounterConnection) -> None:
    sql = "EVALUATE MODEL m ON (SELECT * FROM rows) USING metrics = ['exact_match', 'token_f1']"
    [exact, f1] = connection.dicts(sql)
    assert connection.count_new_requests() == 30
    assert (exact["model"], exact["version"], exact["metric"]) == ("m", 1, "exact_match")
    assert (exact["value"], exact["n"], exact["failed"]) == (pytest.approx(1 / 3), 30, 0)
    assert exact["seconds"] > 0
    assert exact["baseline"] is None
    assert f1["value"] > exact["value"]
    kept = connection.dicts("FROM sqlft.evaluations")
    assert [{k: row[k] for k in exact} for row in kept] == [exact, f1]
    [row] = connection.dicts("FROM sqlft.evaluation_rows WHERE metric = 'exact_match' AND row_number = 2")
    assert row["input"] == '{"content": "r1"}'
    assert (row["actual"], row["prediction"], row["score"]) == ("A:R1!", "A:R1", 0)
    assert connection.dicts("SHOW MODELS LIKE 'm'")[0]["ACCURACY"] == exact["value"]
    assert connection.dicts("DESCRIBE m")[0]["ACCURACY"] == exact["value"]
    assert connection.dicts("SHOW MODELS LIKE 'loud'")[0]["ACCURACY"] is None


def test_again_it_takes_the_old_ones_place_and_asks_nothing(connection: CounterConnection) -> None:
    sql = "EVALUATE MODEL m ON (SELECT * FROM rows ORDER BY content) USING metric = 'exact_match'"
    first = connection.dicts(sql)
    connection.count_new_requests()
    assert connection.dicts(sql) == first
    assert connection.count_new_requests() == 0
    assert len(connection.dicts("FROM sqlft.evaluations")) == 1
    assert len(connection.dicts("FROM sqlft.evaluation_rows")) == 30
    connection.dicts(f"{sql}, normalise = true")
    connection.con.execute("UPDATE rows SET answer = 'x' WHERE content = 'r7'")
    assert connection.dicts(sql)[0]["value"] == first[0]["value"]
    assert len(connection.dicts("FROM sqlft.evaluations")) == 3


def test_versions_are_compared_on_the_same_rows(connection: CounterConnection) -> None:
    names = ["exact_match", "token_f1", "bleu"]
    found = connection.dicts("EVALUATE MODEL m, loud ON (SELECT * FROM rows) USING metrics = $names", {"names": names})
    assert [(row["model"], row["metric"]) for row in found] == [(m, n) for m in ("m", "loud") for n in names]
    exact, f1, bleu = found[3:]
    assert (exact["baseline"], exact["difference"]) == ("m.1", pytest.approx(1 / 3))
    assert (exact["wins"], exact["ties"], exact["losses"]) == (20, 0, 10)
    assert exact["test"] == "mcnemar"
    assert exact["p_value"] == pytest.approx(2 * sum(math.comb(30, k) for k in range(11)) / 2**30)
    assert exact["difference_low"] < exact["difference"] < exact["difference_high"]
    assert (f1["test"], f1["wins"]) == ("permutation", 20)
    assert (bleu["test"], bleu["wins"]) == ("permutation", None)
    assert [row["baseline"] for row in found[:3]] == [None] * 3
    apart = connection.dicts("""
        SELECT count(*) AS n FROM sqlft.evaluation_rows a JOIN sqlft.evaluation_rows b
        USING (data_digest, metric, row_number)
        WHERE a.model = 'm' AND b.model = 'loud' AND metric = 'exact_match' AND a.score < b.score""")
    assert apart[0]["n"] == 20
    connection.con.execute("DROP MODEL loud")
    assert {row["model"] for row in connection.dicts("FROM sqlft.evaluation_rows")} == {"m"}


TYPED = """SELECT {'mood': if(i % 2 = 0, 'good', 'bad'), 'stars': i, 'tags': ['a', i::VARCHAR]}::JSON::VARCHAR
    AS content, if(i % 4 = 0, 'good', 'bad') AS mood, i + (i % 5 = 0)::INT AS stars, ['a', i::VARCHAR] AS tags
    FROM range(20) t(i)"""


def test_each_typed_column_is_scored(connection: CounterConnection) -> None:
    connection.con.execute(
        "CREATE MODEL typed PREDICT (mood VARCHAR, stars INTEGER, tags VARCHAR[]) USING engine = 'scribe'"
    )
    sql = f"EVALUATE MODEL typed ON ({TYPED}) USING metrics = ['exact_match', 'mean_absolute_error']"
    found = connection.dicts(sql)
    assert [(row["answer"], row["metric"], row["value"]) for row in found] == [
        ("mood", "exact_match", 0.75),
        ("stars", "exact_match", 0.8),
        ("stars", "mean_absolute_error", 0.2),
        ("tags", "exact_match", 1),
    ]
    assert "mean_absolute_error cannot score the column 'mood'" in connection.warnings[0]
    kept = connection.dicts("SELECT answer, metric, value FROM sqlft.evaluations")
    assert kept == [{k: row[k] for k in ("answer", "metric", "value")} for row in found]
    rows = "FROM sqlft.evaluation_rows WHERE answer = 'stars' AND metric = 'exact_match' AND score = 0"
    assert [(r["actual"], r["prediction"]) for r in connection.dicts(rows)] == [
        ("1", "0"),
        ("6", "5"),
        ("11", "10"),
        ("16", "15"),
    ]
    assert "stars" not in connection.dicts(rows)[0]["input"].partition("}")[2]
    [row] = connection.dicts(f"{sql}, answer = 'stars'".replace(", 'mean_absolute_error'", ""))
    assert (row["answer"], row["value"]) == ("stars", 0.8)
    assert len(connection.dicts("FROM sqlft.evaluations")) == 4
    two = connection.dicts(f"EVALUATE MODEL typed ON ({TYPED}) USING answer = ['tags', 'mood']")
    assert [row["answer"] for row in two] == ["tags", "mood"]
    with pytest.raises(DataError, match="starz"):
        connection.dicts(f"{sql}, answer = 'starz'")
    with pytest.raises(OptionError, match=r"m.1 has no output 'mood'.*\n.*answer ="):
        connection.dicts(sql.replace("typed ON", "typed, m ON"))
    with pytest.raises(DataError, match="no number"):
        connection.dicts(f"EVALUATE MODEL typed ON ({TYPED}) USING metric = 'rmse', answer = ['mood', 'tags']")


def test_interrupt_ends_the_scoring(connection: CounterConnection, tmp_path: Path) -> None:
    (tmp_path / "d.sqlite").touch()
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
    rows = f"SELECT 'SELECT ' || i AS actual, '{endless}' AS prediction FROM range(8) t(i)"
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.2):  # one that comes before the statement has begun is not heard
            connection.con.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises((Cancelled, duckdb.Error)):
            connection.con.execute(
                f"EVALUATE execution_accuracy FROM ({rows}) USING database = '{tmp_path / 'd.sqlite'}', timeout = 3600"
            )
    finally:
        ended.set()
        thread.join()


def test_rows_that_fail_score_0(connection: CounterConnection) -> None:
    [row] = connection.dicts("EVALUATE MODEL m ON (SELECT * FROM rows) USING mode = 'bad_rows', m.suffix = '!'")
    assert row["failed"] == 3
    assert row["value"] == pytest.approx(18 / 30)
    assert "3 of 30 rows failed" in connection.warnings[0]
    [bad] = connection.dicts("FROM sqlft.evaluation_rows WHERE input LIKE '%r23%'")
    assert (bad["prediction"], bad["score"], bad["error"]) == (None, 0, "bad: ends in 3")


def test_a_budget_stops_it_and_what_was_answered_is_kept(connection: CounterConnection) -> None:
    sql = "EVALUATE MODEL m, loud ON (SELECT * FROM rows)"
    with pytest.raises(sqlft.BudgetExceeded):
        connection.con.execute(f"{sql} USING max_rows = 40")
    assert connection.count_new_requests() == 40
    connection.con.execute(sql)
    assert connection.count_new_requests() == 20


def test_an_evaluation_that_fails_keeps_no_scores(connection: CounterConnection) -> None:
    with pytest.raises(ProviderError, match="empty"):
        connection.con.execute("EVALUATE MODEL m ON (SELECT * FROM rows) USING mode = 'raises_later'")
    assert connection.dicts("FROM sqlft.evaluations") == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_killed_half_way_it_goes_on_from_the_cache(connection: CounterConnection) -> None:
    connection.con.execute("CREATE TABLE many AS SELECT 'q' || i AS content, 'A:Q' || i AS answer FROM range(600) t(i)")
    sql = "EVALUATE MODEL m ON (FROM many) USING mode = 'dies'"
    code = f"""
import sys; sys.path.insert(0, {str(HANDLERS)!r})
import os, sqlft
con = sqlft.connect(catalog=os.environ["SQLFT_HOME"])
con.execute("CREATE TABLE many AS SELECT 'q' || i AS content, 'A:Q' || i AS answer FROM range(600) t(i)")
con.execute({sql!r})
"""
    died = subprocess.run([sys.executable, "-c", code], env={**os.environ, "COUNTER_DIES": "1"})
    assert died.returncode == -signal.SIGKILL
    [row] = connection.dicts(sql)
    assert (row["value"], row["n"]) == (1, 600)
    assert 100 <= connection.count_new_requests() < 300
    assert row["seconds"] > 0


def test_a_model_judges(connection: CounterConnection) -> None:
    connection.con.execute("CREATE MODEL judge PREDICT verdict USING engine = 'echo', prompt_template = '{{it}} A'")
    [row] = connection.dicts(
        "EVALUATE llm_judge FROM (SELECT 'x' AS actual, 'y' AS prediction, 'q?' AS question) USING judge = 'judge'"
    )
    assert (row["value"], row["n"]) == (0.5, 1)  # echo's first verdict is A, both ways round
    found = connection.dicts("EVALUATE MODEL m ON (FROM rows) USING metrics = ['llm_judge'], judge = 'judge.1'")
    assert found[0]["value"] == 0.5
    with pytest.raises(NotFound, match="nobody"):
        connection.con.execute("EVALUATE MODEL m ON (FROM rows) USING metrics = ['llm_judge'], judge = 'nobody'")


def install_metric(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str) -> None:
    """A package `lengths` with one metric."""
    (folder / "lengths-1.0.dist-info").mkdir()
    (folder / "lengths-1.0.dist-info" / "METADATA").write_text("Name: lengths\nVersion: 1.0\n")
    (folder / "lengths-1.0.dist-info" / "entry_points.txt").write_text(f"[sqlft.metrics]\n{name} = lengths:{name}\n")
    (folder / "lengths.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "lengths", raising=False)
    plugins.find_entry_points.cache_clear()


def test_a_metric_of_another_package(
    connection: CounterConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = (
        "import pyarrow as pa, pyarrow.compute as pc\n"
        "def same_length(*, actual, prediction, slack=0):\n"
        "    apart = pc.abs(pc.subtract(pc.utf8_length(actual), pc.utf8_length(prediction)))\n"
        "    return pc.less_equal(apart, slack).cast(pa.float64())\n"
    )
    install_metric(monkeypatch, tmp_path, "same_length", source)
    [row] = connection.dicts("EVALUATE same_length FROM (SELECT 'abc' AS actual, 'abcd' AS prediction) USING slack = 1")
    assert (row["metric"], row["value"]) == ("same_length", 1)


def test_a_metric_of_another_package_may_ask_the_judge(
    connection: CounterConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = (
        "import pyarrow as pa\n"
        "from sqlft.metrics import metric\n"
        "@metric(needs=('judge',))\n"
        "def polite(actual, prediction, *, judge):\n"
        "    return pa.array([float('yes' in said) for said in judge(prediction.to_pylist())])\n"
    )
    install_metric(monkeypatch, tmp_path, "polite", source)
    connection.con.execute("CREATE MODEL judge PREDICT verdict USING engine = 'echo', prompt_template = '{{it}} yes'")
    [row] = connection.dicts("EVALUATE polite FROM (SELECT 'x' AS actual, 'y' AS prediction) USING judge = 'judge'")
    assert row["value"] == 1
    with pytest.raises(OptionError, match="polite needs a model that judges"):
        connection.con.execute("EVALUATE MODEL m ON (FROM rows) USING metrics = ['polite']")


def test_a_metric_that_cannot_be_imported_says_what_to_do(
    connection: CounterConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_metric(monkeypatch, tmp_path, "same_length", "import no_such_package\n")
    with pytest.raises(NotSupported, match="no_such_package") as failed:
        connection.con.execute("EVALUATE same_length FROM (SELECT 'a' AS actual, 'b' AS prediction)")
    assert "the package lengths needs" in str(failed.value.next_step)
