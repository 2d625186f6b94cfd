"""What a query does with a handler: cache, retries, errors, the ledger, and handlers that misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import AlreadyExists, Cancelled, NotFound, OptionError, ProviderError, SqlftError, StatementError
from sqlft.session import Tick

HANDLERS = Path(__file__).parents[1] / "handlers"


class CounterConnection:
    """A connection with a table t (id, x) of 20 rows and a model m of the counter's."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append, catalog=os.environ["SQLFT_HOME"])
        self.con.execute("CREATE TABLE t AS SELECT i AS id, 'p' || i AS x FROM range(20) r(i)")
        self.con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter'")

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.con.execute(sql, parameters).fetchall()

    def join_all(self, using: str) -> list[tuple[Any, ...]]:
        """The join of all rows under options."""
        return self.run(f"SELECT t.id, m.answer, m.answer_error FROM t JOIN m ON m.content = t.x USING {using}")


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[CounterConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = CounterConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def take_prompts(connection: CounterConnection) -> Callable[[], list[str]]:
    """What was asked since it was last looked at."""
    import counter

    counter.ASKED.clear()
    counter.CLOSED.clear()

    def since() -> list[str]:
        found = list(counter.ASKED)
        counter.ASKED.clear()
        return found

    return since


def test_answers_are_kept_and_the_cache_can_be_dropped(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    query = "SELECT m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 5"
    connection.run(query)
    assert len(take_prompts()) == 5
    connection.run(query)
    assert take_prompts() == []
    connection.run(query + " USING cache = false")
    assert len(take_prompts()) == 5
    assert connection.run("DROP CACHE") == [(5,)]
    connection.run(query)
    assert len(take_prompts()) == 5


def test_answers_at_a_temperature_are_not_kept(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    for _ in range(2):
        connection.run("SELECT answer FROM m WHERE content = 'a' USING temperature = 0.7")
    assert take_prompts() == ["a", "a"]


def test_other_options_are_other_answers(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    assert connection.run("SELECT answer FROM m WHERE content = 'a' USING suffix = '!'") == [("A:A!",)]
    assert connection.run("SELECT answer FROM m WHERE content = 'a'") == [("A:A",)]
    assert take_prompts() == ["a", "a"]


def test_equal_prompts_of_one_statement_are_asked_once_without_the_cache(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    connection.run(
        "SELECT answer FROM m WHERE content = 'a' UNION ALL"
        " SELECT answer FROM m WHERE content = 'a' USING cache = false"
    )
    assert take_prompts() == ["a"]


def test_null_inputs_are_not_asked(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    rows = connection.run(
        "SELECT v.x, m.answer FROM (VALUES (NULL), ('a')) v(x) JOIN m ON m.content = v.x ORDER BY ALL"
    )
    assert sorted(rows, key=str) == [("a", "A:A"), (None, None)]
    counted = connection.run(
        "SELECT count(*), count(m.answer) FROM (VALUES (NULL), ('b')) v(x) JOIN m ON m.content = v.x"
    )
    assert counted == [(2, 1)]
    assert take_prompts() == ["a", "b"]


def test_what_may_pass_is_asked_again(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    rows = connection.join_all("mode = 'flaky'")
    assert len(rows) == 20
    assert all(answer is not None and error is None for _, answer, error in rows)
    assert len(take_prompts()) == 40
    assert connection.warnings == []


def test_a_failed_row_is_null_and_warned_of(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    rows = connection.join_all("mode = 'bad_rows'")
    assert [i for i, answer, _ in rows if answer is None] == [3, 13]
    assert {error for _, _, error in rows} == {None, "bad: ends in 3"}
    assert "2 of 20 rows failed at m.1" in connection.warnings[0]
    take_prompts()
    connection.join_all("mode = 'bad_rows'")
    assert sorted(take_prompts()) == ["p13", "p3"]


def test_a_failed_row_can_fail_the_statement(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    with pytest.raises(ProviderError, match="ends in 3"):
        connection.join_all("mode = 'bad_rows', on_error = 'fail'")
    take_prompts()
    connection.join_all("mode = 'bad_rows'")
    assert {"p0", "p1", "p2"}.isdisjoint(take_prompts())


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("twice", "answered request 0 twice"),
        ("unknown_id", "that was not asked"),
        ("raises", "ValueError: out of luck"),
        ("nothing", "gave a NoneType"),
        ("no_key", "The key is wrong"),
    ],
)
def test_a_handler_that_misbehaves_is_named(
    connection: CounterConnection, take_prompts: Callable[[], list[str]], mode: str, said: str
) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        connection.join_all(f"mode = '{mode}'")
    assert caught.value.next_step
    assert connection.run("SELECT answer FROM m WHERE content = 'after'") == [("A:AFTER",)]


@pytest.mark.parametrize(("mode", "code"), [("silent", "no_answer"), ("no_text", "no_text")])
def test_a_row_without_an_answer_is_an_error(
    connection: CounterConnection, take_prompts: Callable[[], list[str]], mode: str, code: str
) -> None:
    rows = connection.join_all(f"mode = '{mode}', max_retries = 1")
    assert {(answer, error.split(":")[0]) for _, answer, error in rows} == {(None, code)}


def test_what_came_before_an_error_is_kept(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    with pytest.raises(ProviderError, match="account is empty"):
        connection.join_all("mode = 'raises_later'")
    take_prompts()
    assert len(connection.join_all("mode = 'raises_later', max_retries = 0 ".replace("raises_later", "plain"))) == 20


def test_a_handler_that_never_answers_is_given_up(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    with pytest.raises(ProviderError, match="No answer came") as caught:
        connection.join_all("mode = 'hangs', timeout = 0.2")
    assert "timeout" in caught.value.next_step


def test_a_download_is_no_part_of_the_time_out_and_can_be_interrupted(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    ticks: list[Tick] = []
    connection.con.session.show_progress = ticks.append
    connection.run("CREATE MODEL far PREDICT answer USING engine = 'counter', base = 'far'")
    ask = "SELECT answer FROM far WHERE content = 'x' USING cache = false, timeout = 0.5"
    assert connection.run(ask) == [("A:X",)]
    assert {"downloading far"} < {tick.label for tick in ticks}
    assert any(tick.done >= 0.5 for tick in ticks if tick.label == "downloading far")
    threading.Timer(0.2, connection.con.interrupt).start()
    take_prompts()
    with pytest.raises(Cancelled):
        connection.run(ask)
    assert take_prompts() == []


def test_interrupt_stops_the_statement_and_keeps_the_session(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    import counter

    timer = threading.Timer(0.3, connection.con.interrupt)
    timer.start()
    with pytest.raises(Cancelled):
        connection.join_all("mode = 'gated'")
    timer.join()
    counter.GATE.release(100)
    assert connection.run("SELECT answer FROM m WHERE content = 'after'") == [("A:AFTER",)]
    while counter.GATE.acquire(blocking=False):
        pass


def test_first_rows_come_while_later_ones_are_waited_for(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    import counter

    counter.GATE.release(2)
    connection.con.execute("SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x ORDER BY t.id USING mode = 'gated'")
    timer = threading.Timer(0.2, lambda: counter.GATE.release(1))
    timer.start()
    assert connection.con.fetchone() == (0, "A:P0")
    assert len(take_prompts()) <= 3
    timer.join()
    counter.GATE.release(30)
    assert len(connection.con.fetchall()) == 19
    while counter.GATE.acquire(blocking=False):
        pass


def test_leaving_early_asks_no_more(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    import counter

    connection.run("CREATE TABLE many AS SELECT 'n' || i AS x FROM range(100000) r(i)")
    connection.con.execute("SELECT m.answer FROM many JOIN m ON m.content = many.x")
    connection.con.fetchmany(3)
    connection.run("SELECT 1")
    assert len(take_prompts()) <= 64
    assert counter.CLOSED == ["plain"]


def test_after_a_kill_only_what_was_in_flight_is_asked_again(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    query = "SELECT m.answer FROM (SELECT 'k' || i AS x FROM range(1000) r(i)) v JOIN m ON m.content = v.x"
    deadly = query + " USING mode = 'dies'"
    code = f"import os, sqlft; sqlft.connect(catalog=os.environ['SQLFT_HOME']).execute({deadly!r}).fetchall()"
    env = {**os.environ, "PYTHONPATH": str(HANDLERS), "COUNTER_DIES": "1"}
    died = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert died.returncode == -signal.SIGKILL
    assert take_prompts() == []
    assert len(connection.run(deadly)) == 1000
    again = take_prompts()
    assert 500 <= len(again) <= 564
    assert connection.run("SELECT calls > 0 FROM sqlft.usage ORDER BY created_at LIMIT 1") == [(True,)]


def test_the_ledger_has_a_row_a_statement_and_version(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    connection.run("SELECT answer FROM m WHERE content IN ('a', 'b') ")
    connection.run("SELECT v.x, m.answer FROM (VALUES ('a'), ('c'), ('c')) v(x) JOIN m ON m.content = v.x")
    connection.join_all("mode = 'bad_rows'")
    rows = connection.run(
        "SELECT rows, distinct_prompts, cached, calls, input_tokens, output_tokens, errors FROM sqlft.usage"
        " WHERE model = 'm' ORDER BY created_at"
    )
    assert rows == [(2, 2, 0, 2, 4, 6, 0), (3, 2, 1, 1, 2, 3, 0), (20, 20, 0, 20, 36, 54, 2)]
    statements = connection.run("SELECT statement FROM sqlft.usage ORDER BY created_at LIMIT 1")
    assert "IN ('a', 'b')" in statements[0][0]


def test_usage_is_a_column(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    rows = connection.run("SELECT m.answer_usage FROM m WHERE content = 'u'")
    assert rows[0][0]["input_tokens"] == 2
    assert rows[0][0]["cached"] is False
    assert connection.run("SELECT m.answer_usage.cached FROM m WHERE content = 'u'") == [(True,)]


def test_options_are_checked(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    with pytest.raises(OptionError, match="Did you mean 'suffix'"):
        connection.run("SELECT answer FROM m WHERE content = 'a' USING sufix = 'x'")
    with pytest.raises(StatementError, match="reads none"):
        connection.run("SELECT 1 USING suffix = 'x'")
    rows = connection.run(
        "SELECT a.answer, b.answer FROM t JOIN m a ON a.content = t.x JOIN m b ON b.content = t.x WHERE t.id = 1"
        " USING b.suffix = '!'"
    )
    assert rows == [("A:P1", "A:P1!")]


def test_an_unbound_input_is_named(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    with pytest.raises(StatementError, match="input 'content'") as caught:
        connection.run("SELECT answer FROM m")
    assert (caught.value.line, caught.value.column) == (1, 20)
    with pytest.raises(StatementError, match="no table has a column of that name"):
        connection.run("SELECT answer FROM t JOIN m")


def test_an_input_takes_the_column_of_its_name(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    rows = connection.run("SELECT content, answer FROM (SELECT x AS content FROM t) s JOIN m WHERE content = 'p1'")
    assert rows == [("p1", "A:P1")]


def test_the_open_transaction_temp_tables_variables_and_parameters_are_seen(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    connection.run("BEGIN")
    connection.run("INSERT INTO t VALUES (99, 'mine')")
    connection.run("CREATE TEMP TABLE tt AS SELECT 'temp' AS z")
    connection.run("SET VARIABLE v = 'var'")
    assert connection.run("SELECT m.answer FROM t JOIN m ON m.content = t.x WHERE t.id = 99") == [("A:MINE",)]
    assert connection.run("SELECT m.answer FROM tt JOIN m ON m.content = tt.z") == [("A:TEMP",)]
    assert connection.run("SELECT answer FROM m WHERE content = getvariable('v')") == [("A:VAR",)]
    assert connection.run("SELECT answer FROM m WHERE content = ? AND 1 = ?", ["it's", 1]) == [("A:IT'S",)]
    assert connection.run("SELECT answer FROM m WHERE content = $name", {"name": "ü"}) == [("A:Ü",)]
    with pytest.raises(sqlft.Error):
        connection.run("SELECT nothing_here FROM m WHERE content = 'a'")
    connection.run("ROLLBACK")
    assert connection.run("SELECT count(*) FROM t") == [(20,)]


def test_variables_of_python_are_tables_too(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    import pyarrow as pa

    mine = pa.table({"z": ["here"]})
    assert connection.con.execute("SELECT * FROM mine").fetchall() == [("here",)]
    joined = connection.con.execute("SELECT m.answer FROM mine JOIN m ON m.content = mine.z")
    assert joined.fetchall() == [("A:HERE",)]
    assert mine.num_rows == 1


def test_a_view_over_a_model(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    connection.run("CREATE VIEW v AS SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x")
    assert take_prompts() == []
    assert connection.run("SELECT answer FROM v WHERE id = 7") == [("A:P7",)]
    assert take_prompts() == ["p7"]
    assert len(connection.run("SELECT * FROM v LIMIT 3")) == 3
    assert len(take_prompts()) == 3
    with pytest.raises(SqlftError, match="already"):
        connection.run("CREATE VIEW v AS SELECT answer FROM m WHERE content = 'a'")
    connection.run("CREATE OR REPLACE VIEW v(a) AS SELECT answer FROM m WHERE content = 'a'")
    assert connection.run("SELECT a FROM v") == [("A:A",)]
    connection.run("DROP VIEW v")
    with pytest.raises(sqlft.Error):
        connection.run("SELECT * FROM v")


def test_explain_and_describe_ask_nothing(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    assert connection.run("DESCRIBE SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x")[1][:2] == (
        "answer",
        "VARCHAR",
    )
    assert connection.run("EXPLAIN SELECT m.answer FROM t JOIN m ON m.content = t.x")
    assert take_prompts() == []


def test_a_model_and_a_table_do_not_share_a_name(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    for sql in (
        "CREATE TABLE m (a INTEGER)",
        "CREATE OR REPLACE TEMP TABLE M AS SELECT 1",
        "CREATE VIEW m AS SELECT 1",
    ):
        with pytest.raises(SqlftError, match="may not share a name"):
            connection.run(sql)
    with pytest.raises(SqlftError, match="DROP MODEL m"):
        connection.run("DROP TABLE m")


def test_what_cannot_be_followed_says_so(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    for sql, said in [
        ("INSERT INTO m VALUES (1)", "only a table can"),
        ("SELECT * FROM t RIGHT JOIN m ON m.content = t.x", "RIGHT JOIN"),
        ("SELECT * FROM t FULL JOIN m ON m.content = t.x", "FULL JOIN"),
        (
            "WITH RECURSIVE r AS (SELECT 1 i, 'x' a UNION ALL SELECT i + 1, m.answer FROM r JOIN m ON m.content = r.a"
            " WHERE i < 3) SELECT * FROM r",
            "recursive",
        ),
        ("SELECT answer FROM m.7 WHERE content = 'a'", "no version"),
        ("CREATE MACRO ask(q) AS (SELECT answer FROM m WHERE content = q)", "macro"),
        ("CREATE MACRO ask(q) AS TABLE (SELECT answer FROM m WHERE content = q)", "macro"),
        ("PREPARE p AS SELECT answer FROM m WHERE content = $1", "PREPARE"),
        (
            "SELECT max(answer) FROM (SELECT *, INTERVAL 1 DAY y FROM t ORDER BY random()) s JOIN m ON m.content = s.x",
            "by chance",
        ),
        ("SELECT * FROM sqlft.modles", "Did you mean 'models'"),
    ]:
        with pytest.raises(SqlftError, match=said) as caught:
            connection.run(sql)
        assert caught.value.next_step


def test_relations_arrow_and_frames(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    query = "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 3 ORDER BY t.id"
    wanted = [(0, "A:P0"), (1, "A:P1"), (2, "A:P2")]
    assert connection.con.sql(query).fetchall() == wanted
    assert connection.con.sql(query).filter("id > 0").fetchall() == wanted[1:]
    assert connection.con.sql("SELECT answer, count(*) AS n FROM m WHERE content = 'p0' GROUP BY 1").fetchall() == [
        ("A:P0", 1)
    ]
    assert connection.con.execute(query).arrow().to_pylist() == [{"id": i, "answer": a} for i, a in wanted]
    assert connection.con.execute(query).df()["answer"].to_list() == [a for _, a in wanted]
    assert connection.con.execute(query).pl()["id"].to_list() == [0, 1, 2]
    assert connection.con.execute(query).fetch_record_batch().read_all().num_rows == 3
    assert [d[0] for d in connection.con.execute(query).description] == ["id", "answer"]
    assert list(connection.con.execute(query)) == wanted
    assert connection.con.execute("SELECT 1 AS a").arrow().to_pylist() == [{"a": 1}]
    assert connection.con.sql("SHOW MODELS").columns[0] == "NAME"


def test_explain_asks_only_to_analyze(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    assert connection.run("EXPLAIN SELECT answer FROM m WHERE content = 'a'")
    assert connection.run("EXPLAIN (FORMAT json) SELECT answer FROM m WHERE content = 'a'")
    assert take_prompts() == []
    assert connection.run("EXPLAIN ANALYZE SELECT answer FROM m WHERE content = 'a'")
    assert take_prompts() == ["a"]


def test_views_are_described(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    connection.run(
        "CREATE VIEW v(question, said) AS SELECT t.x, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 2"
    )
    columns = [("question", "VARCHAR"), ("said", "VARCHAR")]
    for sql in ("DESCRIBE v", "DESC v;", "SHOW v", "DESCRIBE SELECT * FROM v"):
        assert [row[:2] for row in connection.run(sql)] == columns
    assert take_prompts() == []
    assert [row[0] for row in connection.run("SUMMARIZE v")] == ["question", "said"]


def test_several_statements_in_one_text(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    text = (
        "CREATE TABLE z (a INT); INSERT INTO z VALUES (1); SELECT answer FROM m WHERE content = 'q'; SELECT a FROM z;"
    )
    assert connection.run(text) == [(1,)]
    assert take_prompts() == []


def test_attach_serves_an_open_connection(
    connection: CounterConnection, take_prompts: Callable[[], list[str]], tmp_path: Path
) -> None:
    import duckdb

    raw = duckdb.connect(str(tmp_path / "a.duckdb"))
    raw.execute("BEGIN")
    raw.execute("CREATE TABLE mine AS SELECT 'a' AS x")
    con = sqlft.attach(raw)
    con.execute("CREATE MODEL am PREDICT answer USING engine = 'counter'")
    assert con.execute("SELECT am.answer FROM mine JOIN am ON am.content = mine.x").fetchall() == [("A:A",)]
    assert (tmp_path / "a.duckdb.sqlft" / "catalog.sqlite").exists()
    con.close()
    assert raw.execute("SELECT count(*) FROM mine").fetchall() == [(1,)]
    raw.close()


def test_another_connections_model_is_found(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    other = sqlft.connect(catalog=os.environ["SQLFT_HOME"])
    connection.run("CREATE MODEL late PREDICT answer USING engine = 'counter'")
    assert other.execute("SELECT answer FROM late WHERE content = 'x'").fetchall() == [("A:X",)]
    other.close()
    with pytest.raises(NotFound):
        connection.run("DROP MODEL later")


def test_odd_texts_are_prompts_like_any_other(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    odd = ["", " ", "'", '"', "{{content}}", "\n\t", "😀", "\u202e", "a" * 1_000_000, "NULL", "%s", "\\"]
    connection.con.execute("CREATE TABLE odd (x VARCHAR)")
    connection.con.executemany("INSERT INTO odd VALUES (?)", [[o] for o in odd])
    rows = connection.run("SELECT odd.x, m.answer FROM odd JOIN m ON m.content = odd.x")
    assert sorted(rows) == sorted((o, f"A:{o.upper()}") for o in odd)
    assert connection.run("SELECT count(*) FROM odd JOIN m ON m.content = odd.x WHERE m.answer = 'A:😀'") == [(1,)]


def test_a_cache_that_cannot_be_kept_is_warned_of(
    connection: CounterConnection, take_prompts: Callable[[], list[str]]
) -> None:
    path = connection.con.session.catalog.folder / "cache.sqlite"
    path.write_bytes(b"this is no database" * 100)
    assert connection.run("SELECT answer FROM m WHERE content = 'x'") == [("A:X",)]
    assert "cannot be kept" in connection.warnings[0]
    assert "cache=false" in connection.warnings[0]


def test_wide_tables(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    columns = ", ".join(f"{i} AS c{i}" for i in range(10_000))
    connection.run(f"CREATE TABLE wide AS SELECT 'w' AS x, {columns}")
    assert connection.run("SELECT m.answer FROM wide JOIN m ON m.content = wide.x") == [("A:W",)]
    rows = connection.run("SELECT * FROM wide JOIN m ON m.content = wide.x WHERE m.answer = 'A:W'")
    assert len(rows[0]) == 10_003


def test_the_ledger_counts_rows_also_where_inputs_are_asked_once(connection: CounterConnection) -> None:
    few = "(SELECT 'p' || (id % 5) AS x FROM t) t"
    connection.run(f"SELECT count(DISTINCT m.answer), count(*) FROM {few} JOIN m ON m.content = t.x")
    connection.run("SELECT (SELECT answer FROM m WHERE m.content = 'p' || t.id % 4) AS a FROM t")
    counted = connection.run('SELECT "rows", distinct_prompts FROM sqlft.usage ORDER BY created_at')
    assert counted == [(20, 5), (20, 4)]


def test_failed_rows_are_counted_as_rows(connection: CounterConnection) -> None:
    connection.run("""SELECT count(m.answer) FROM (SELECT 'p' || (id % 5) AS x FROM t) t JOIN m ON m.content = t.x
        USING mode = 'bad_rows'""")
    assert "4 of 20 rows failed" in connection.warnings[-1]


def test_a_temporary_view_ends_with_its_connection(connection: CounterConnection) -> None:
    connection.run("CREATE TEMP VIEW v AS SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x")
    assert connection.run("SELECT answer FROM v WHERE id = 3") == [("A:P3",)]
    with pytest.raises(AlreadyExists, match="temporary view 'v'"):
        connection.run("CREATE TEMPORARY VIEW v AS SELECT answer FROM m WHERE content = 'x'")
    connection.run("CREATE OR REPLACE TEMP VIEW v AS SELECT answer FROM m WHERE content = 'x'")
    assert connection.run("FROM v") == [("A:X",)]
    assert connection.con.session.catalog.views() == []
    connection.run("DROP VIEW v")
    with pytest.raises(duckdb.CatalogException):
        connection.run("FROM v")


def test_a_query_may_have_another_prompt(connection: CounterConnection, take_prompts: Callable[[], list[str]]) -> None:
    assert connection.run("SELECT answer FROM m WHERE q = 'x' AND c = 'y' USING prompt_template = '{{c}}: {{q}}'")
    assert take_prompts() == ["y: x"]
    connection.run(
        "SELECT m.answer, n.answer FROM t JOIN m ON m.content = t.x JOIN m n ON n.word = t.x "
        "WHERE t.id = 3 USING n.prompt_template = 'Say {{word}}'"
    )
    assert sorted(take_prompts()) == ["Say p3", "p3"]
    with pytest.raises(StatementError, match="input 'q' of the model 'm' has no value"):
        connection.run("SELECT answer FROM m WHERE content = 'x' USING prompt_template = '{{q}}'")
    with pytest.raises(SqlftError, match="has no placeholder"):
        connection.run("SELECT answer FROM m WHERE content = 'x' USING prompt_template = 3")
