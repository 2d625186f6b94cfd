"""The connection's Python surface gives over models what DuckDB's gives over tables."""

from __future__ import annotations

import datetime
import decimal
import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sqlft
from query.world import OLD

MODEL = "CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'A: {{content}}'"
ROWS = "CREATE TABLE t AS SELECT i AS id, 'v' || i AS content, i / 2 AS half FROM range(5) r(i);"
OVER_MODEL = "SELECT t.id, m.answer FROM t JOIN m ON m.content = t.content ORDER BY t.id"
OVER_TABLE = "SELECT id, 'A: ' || content AS answer FROM t ORDER BY id"
Step = Callable[[Any], Any]


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlft.Connection]:
    """A connection with a model and a table, for tests that change neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("surface")))
        made = sqlft.connect()
        made.execute(ROWS + MODEL)
        yield made
        made.close()


@pytest.fixture
def fresh() -> Iterator[sqlft.Connection]:
    """The same for one test alone."""
    made = sqlft.connect()
    made.execute(ROWS + MODEL)
    yield made
    made.close()


@pytest.fixture
def raw() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB's own, with the table."""
    made = duckdb.connect()
    made.execute(ROWS)
    yield made
    made.close()


def plain(value: Any) -> Any:
    """A result of any kind as something that can be compared."""
    if isinstance(value, pa.RecordBatchReader):
        value = value.read_all()
    if isinstance(value, pa.Table):
        return "arrow", value.schema.names, value.to_pylist()
    if isinstance(value, dict):
        return {k: list(v.tolist()) for k, v in value.items()}
    if type(value).__name__ == "DataFrame":
        rows = value.rows() if hasattr(value, "rows") else list(value.itertuples(index=False, name=None))
        return "frame", list(value.columns), rows
    return value


def outcome(step: Callable[[], Any]) -> Any:
    """What a step gives, or the kind of its error."""
    try:
        return plain(step())
    except duckdb.Error as e:
        return f"an error: {type(e).__name__}"


# -- fetching ----------------------------------------------------------------------------------------------------

FETCHES: dict[str, list[Step]] = {
    "fetchall": [lambda c: c.fetchall()],
    "fetchall twice": [lambda c: c.fetchall(), lambda c: c.fetchall()],
    "fetchall, fetchone": [lambda c: c.fetchall(), lambda c: c.fetchone()],
    "fetchone, fetchall": [lambda c: c.fetchone(), lambda c: c.fetchall()],
    "fetchone, fetchmany, fetchall": [lambda c: c.fetchone(), lambda c: c.fetchmany(2), lambda c: c.fetchall()],
    "fetchmany": [
        lambda c: c.fetchmany(),
        lambda c: c.fetchmany(0),
        lambda c: c.fetchmany(9),
        lambda c: c.fetchmany(1),
    ],
    "fetchone to the end": [lambda c: [c.fetchone() for _ in range(7)]],
    "fetchone, df": [lambda c: c.fetchone(), lambda c: c.df()],
    "fetchmany, df": [lambda c: c.fetchmany(2), lambda c: c.df()],
    "fetchone, fetchdf": [lambda c: c.fetchone(), lambda c: c.fetchdf()],
    "fetchone, fetch_df": [lambda c: c.fetchone(), lambda c: c.fetch_df()],
    "fetchmany, to_arrow_table": [lambda c: c.fetchmany(2), lambda c: c.to_arrow_table()],
    "fetchmany, arrow": [lambda c: c.fetchmany(2), lambda c: c.arrow()],
    "fetchone, fetch_arrow_table": [lambda c: c.fetchone(), lambda c: c.fetch_arrow_table()],
    "fetchmany, fetchnumpy": [lambda c: c.fetchmany(2), lambda c: c.fetchnumpy()],
    "fetchone, pl": [lambda c: c.fetchone(), lambda c: c.pl()],
    "fetchone, fetch_record_batch": [lambda c: c.fetchone(), lambda c: c.fetch_record_batch(2)],
    "fetchone, to_arrow_reader": [lambda c: c.fetchone(), lambda c: c.to_arrow_reader(2)],
    "df, fetchall": [lambda c: c.df(), lambda c: c.fetchall()],
    "df, fetchone": [lambda c: c.df(), lambda c: c.fetchone()],
    "df twice": [lambda c: c.df(), lambda c: c.df()],
    "to_arrow_table, fetchall": [lambda c: c.to_arrow_table(), lambda c: c.fetchall()],
    "fetchnumpy, fetchall": [lambda c: c.fetchnumpy(), lambda c: c.fetchall()],
    "fetch_df_chunk": [lambda c: c.fetch_df_chunk(), lambda c: c.fetch_df_chunk()],
    "fetchone, fetch_df_chunk": [lambda c: c.fetchone(), lambda c: c.fetch_df_chunk(1)],
    "description, rowcount": [lambda c: [(d[0], str(d[1])) for d in c.description], lambda c: c.rowcount],
    "fetchone, description": [lambda c: c.fetchone(), lambda c: [d[0] for d in c.description]],
    "fetchall, description": [lambda c: c.fetchall(), lambda c: [d[0] for d in c.description]],
}


@pytest.mark.parametrize("where", ["", "WHERE t.id < 0 "])
@pytest.mark.parametrize("name", list(FETCHES))
def test_fetches_can_be_mixed(con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, name: str, where: str) -> None:
    if "pl" in name.split(", "):
        pytest.importorskip("polars")
    if OLD and len(FETCHES[name]) > 1 and "fetch" in name.split(",")[0] and "all" not in name.split(",")[-1]:
        pytest.skip("DuckDB 1.5 loses the rows that are left")
    con.execute(OVER_MODEL.replace("ORDER", f"{where}ORDER"))
    raw.execute(OVER_TABLE.replace("ORDER", f"{where}ORDER"))
    for step in FETCHES[name]:
        try:
            wanted = outcome(lambda step=step: step(raw))  # type: ignore[misc]
        except AttributeError:
            pytest.skip("not in this version of DuckDB")
        assert outcome(lambda step=step: step(con)) == wanted  # type: ignore[misc]


def test_torch(con: sqlft.Connection, raw: duckdb.DuckDBPyConnection) -> None:
    pytest.importorskip("torch")
    given = con.execute("SELECT length(m.answer) AS n FROM t JOIN m ON m.content = t.content").torch()
    wanted = raw.execute("SELECT length('A: ' || content) AS n FROM t").torch()
    assert {k: v.tolist() for k, v in given.items()} == {k: v.tolist() for k, v in wanted.items()}


def test_a_result_that_is_not_read_to_its_end_is_forgotten(fresh: sqlft.Connection) -> None:
    fresh.execute(OVER_MODEL)
    assert fresh.fetchone() == (0, "A: v0")
    assert fresh.execute("SELECT 42").fetchall() == [(42,)]
    fresh.execute(OVER_MODEL).fetchmany(2)
    assert fresh.execute(OVER_MODEL).fetchone() == (0, "A: v0")
    fresh.execute(OVER_MODEL)
    fresh.execute("CREATE TABLE made AS SELECT 1 AS one")
    assert fresh.execute("FROM made").fetchall() == [(1,)]


def test_cursors_have_results_of_their_own(con: sqlft.Connection) -> None:
    one, two = con.cursor(), con.cursor()
    one.execute(OVER_MODEL)
    two.execute(OVER_MODEL)
    assert [one.fetchone(), two.fetchone(), one.fetchone()] == [(0, "A: v0"), (0, "A: v0"), (1, "A: v1")]
    one.close()
    assert two.fetchall() == [(i, f"A: v{i}") for i in range(1, 5)]
    two.close()


# -- statements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("SELECT 1; SELECT answer FROM m WHERE content = 'x'", [("A: x",)]),
        ("SELECT answer FROM m WHERE content = 'x'; SELECT 1", [(1,)]),
        ("FROM range(3); CREATE TABLE o AS SELECT answer FROM m WHERE content = 'x'; FROM o", [("A: x",)]),
        (
            "SHOW TABLES; SELECT answer FROM m WHERE content = 'x'; SELECT answer FROM m WHERE content = 'y'",
            [("A: y",)],
        ),
        ("SHOW MODELS; SELECT count(*) FROM t", [(5,)]),
        ("SELECT 1; SELECT count(*) > 0 FROM sqlft.models", [(True,)]),
        ("SELECT 1; CREATE MODEL m9 PREDICT a USING engine = 'echo'; SELECT a FROM m9 WHERE content = 'z'", [("z",)]),
        (
            "DESCRIBE t; INSERT INTO t SELECT 9, answer, 0 FROM m WHERE content = 'i'; SELECT max(content) FROM t",
            [("v4",)],
        ),
        ("BEGIN; SELECT answer FROM m WHERE content = 'x'; ROLLBACK; SELECT 7", [(7,)]),
        ("SET VARIABLE v = 'q'; SELECT answer FROM m WHERE content = getvariable('v')", [("A: q",)]),
        ("SELECT answer FROM m WHERE content = 'x';;; -- the end", [("A: x",)]),
    ],
)
def test_the_last_of_several_statements_is_fetched(fresh: sqlft.Connection, text: str, rows: list[Any]) -> None:
    assert fresh.execute(text).fetchall() == rows
    assert fresh.execute("SELECT 42").fetchall() == [(42,)]
    assert fresh.sql("SELECT 43").fetchall() == [(43,)]


@pytest.mark.parametrize("first", ["SHOW DATABASES", "SELECT 1", "FROM range(3)", "PRAGMA version"])
@pytest.mark.parametrize(
    "last", ["SHOW MODELS", "DESCRIBE m", "SELECT answer FROM m WHERE content = 'x'", "DROP CACHE"]
)
def test_a_plain_statement_may_stand_before_one_of_ours(con: sqlft.Connection, first: str, last: str) -> None:
    con.execute("DROP CACHE")
    alone = con.execute(last).fetchall()
    con.execute("DROP CACHE")
    assert con.execute(f"{first}; {last}").fetchall() == alone
    relation = con.sql(f"{first}; {last}")
    assert relation is None or relation.fetchall() == alone


@pytest.mark.parametrize(
    "statement",
    [MODEL.replace(" m ", " m5 "), "SHOW MODELS", "DESCRIBE m", "DROP CACHE", OVER_MODEL, f"EXPLAIN {OVER_MODEL}"],
)
def test_statements_leave_no_open_result_behind(fresh: sqlft.Connection, statement: str) -> None:
    fresh.execute(statement)
    fresh.register("registered", pa.table({"content": ["r"]}))
    assert fresh.execute("SELECT answer FROM registered JOIN m USING (content)").fetchall() == [("A: r",)]
    fresh.execute(statement.replace("m5", "m6"))
    fresh.unregister("registered")
    with pytest.raises(duckdb.Error):
        fresh.execute("FROM registered")


def test_nothing_is_left_registered(fresh: sqlft.Connection) -> None:
    for statement in (OVER_MODEL, f"CREATE TABLE o AS {OVER_MODEL}", f"SELECT count(*) FROM ({OVER_MODEL})"):
        fresh.execute(statement)
        assert [r for r in fresh.execute("SELECT view_name FROM duckdb_views()").fetchall() if "sqlft" in r[0]] == []
        assert [r for r in fresh.execute("SELECT table_name FROM duckdb_tables()").fetchall() if "sqlft" in r[0]] == []


def test_tables_are_shown_as_they_are_beside_a_model(con: sqlft.Connection) -> None:
    query = "SELECT name, (SELECT answer FROM m WHERE content = 'x') AS a FROM (SHOW TABLES)"
    assert con.execute(query).fetchall() == [("t", "A: x")]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT nothing FROM t JOIN m ON m.content = t.content",
        "SELECT t.id FROM nowhere t JOIN m ON m.content = t.content",
        "SELECT nofunction(m.answer) FROM t JOIN m ON m.content = t.content",
        "SELECT CAST(m.answer AS INTEGER) FROM t JOIN m ON m.content = t.content",
        "SELECT m.nothing FROM t JOIN m ON m.content = t.content",
    ],
)
def test_errors_are_of_duckdbs_kind(con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, query: str) -> None:
    raw.execute("CREATE TABLE m AS SELECT content, 'A: ' || content AS answer FROM t")
    with pytest.raises(duckdb.Error) as wanted:
        raw.execute(query).fetchall()
    with pytest.raises(type(wanted.value)) as given:
        con.execute(query).fetchall()
    assert "__sqlft" not in str(given.value)
    assert con.execute("SELECT 42").fetchall() == [(42,)]


# -- frames ------------------------------------------------------------------------------------------------------

RUNS: dict[str, str] = {
    "join": "SELECT answer FROM frame JOIN m ON m.content = frame.word ORDER BY answer",
    "subquery": "SELECT answer FROM m WHERE content IN (SELECT word FROM frame) ORDER BY answer",
    "made": "CREATE TABLE made AS SELECT answer FROM frame JOIN m ON m.content = frame.word",
}


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("method", ["execute", "sql", "query"])
def test_frames_of_the_caller_are_tables(name: str, method: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"word": ["b", "a"]})
    with sqlft.connect() as fresh:
        fresh.execute(MODEL)
        given = getattr(fresh, method)(RUNS[name])
        if name == "made":
            given = fresh.execute("FROM made ORDER BY answer")
        assert given.fetchall() == [("A: a",), ("A: b",)]
    assert len(frame) == 2


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("EVALUATE MODEL m ON (SELECT * FROM frame) USING metrics = ['exact_match']", 1),
        ("EVALUATE exact_match FROM (SELECT f.answer AS actual, m.answer AS prediction FROM frame f JOIN m)", 1),
        ("ANALYZE TRAINING DATA FROM (SELECT * FROM frame) FOR m", None),
    ],
)
def test_frames_are_read_by_our_statements(statement: str, rows: int | None) -> None:
    frame = pa.table({"content": ["a", "b"], "answer": ["A: a", "other"]})
    with sqlft.connect() as fresh:
        fresh.execute(MODEL)
        given = fresh.execute(statement).fetchall()
    assert frame.num_rows == 2
    assert len(given) == rows if rows else given


def test_frames_are_read_by_finetune(connection_with_model: Any) -> None:
    frame = pa.table({"question": [f"q{i}" for i in range(8)], "answer": [f"a{i}" for i in range(8)]})
    with sqlft.connect(warn=lambda text: None, catalog=connection_with_model.folder) as fresh:
        fresh.execute(
            f"FINETUNE m FROM (SELECT * FROM frame) USING control = '{connection_with_model.training.folder}'"
        )
    assert connection_with_model.wait_until_ended(2).status == "complete"
    assert frame.num_rows == 8


def test_relations_are_tables_and_stay_readable(con: sqlft.Connection) -> None:
    answers = con.sql(OVER_MODEL)
    con.execute("SELECT 1").fetchall()
    assert answers.filter("id = 2").fetchall() == [(2, "A: v2")]
    again = con.sql("SELECT m.answer FROM answers JOIN m ON m.content = answers.answer WHERE id = 1")
    assert again.fetchall() == [("A: A: v1",)]
    assert [answers.columns, [str(t) for t in answers.types]] == [["id", "answer"], ["BIGINT", "VARCHAR"]]


# -- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "like", "given"),
    [
        ("SELECT answer FROM m WHERE content = ?", "SELECT ?", ["x", "y"]),
        ("SELECT answer FROM m WHERE content = ?", "SELECT ?", []),
        ("SELECT answer FROM m WHERE content = ? OR content = ?", "SELECT ?, ?", ["x"]),
        ("SELECT answer FROM m WHERE content = $1", "SELECT $1", ["x", "y"]),
        ("SELECT answer FROM m WHERE content = $2", "SELECT $2", ["x"]),
        ("SELECT answer FROM m WHERE content = $a", "SELECT $a", {"a": "x", "b": "y"}),
        ("SELECT answer FROM m WHERE content = $a", "SELECT $a", {"b": "y"}),
        ("SELECT answer FROM m WHERE content = $a", "SELECT $a", ["x", "y"]),
        ("SELECT answer FROM m WHERE content = 'x'", "SELECT 'x'", ["x"]),
    ],
)
def test_wrong_parameters_are_refused(
    con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, query: str, like: str, given: Any
) -> None:
    with pytest.raises(duckdb.Error) as wanted:
        raw.execute(like, given)
    assert not isinstance(wanted.value, sqlft.SqlftError)
    with pytest.raises(duckdb.Error):
        con.execute(query, given)
    assert con.execute("SELECT 42").fetchall() == [(42,)]


VALUES: list[Any] = [
    "text", "it's", "", "$1 ?", "{{x}}", 7, -7, 2**40, 2**100, True, False, 0.5, -0.0, 1e300, float("inf"),
    float("nan"),
    decimal.Decimal("1.50"), decimal.Decimal("-0.001"), datetime.date(2024, 2, 29), datetime.time(12, 34, 56, 7),
    datetime.datetime(2024, 1, 2, 3, 4, 5), datetime.datetime(2024, 1, 2, 3, 4, 5, 678),
    datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), datetime.timedelta(days=1, seconds=5),
    datetime.timedelta(days=-1, microseconds=1), datetime.timedelta(0), datetime.timedelta(days=400, hours=30),
    uuid.UUID(int=5), b"\x00ab\xff", bytearray(b"xy"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_parameter_has_duckdbs_text(con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, value: Any) -> None:
    (text,) = raw.execute("SELECT 'A: ' || CAST(? AS VARCHAR)", [value]).fetchone() or ()
    assert con.execute("SELECT answer FROM m WHERE content = ?", [value]).fetchall() == [(text,)]
    assert con.execute("SELECT answer FROM m WHERE content = $v", {"v": value}).fetchall() == [(text,)]
    asked = con.execute("SELECT m.answer FROM t JOIN m ON m.content = ? WHERE t.id = ?", [value, 1])
    assert asked.fetchall() == [(text,)]
    assert con.execute("SELECT count(*) FROM m WHERE content = ?", [value]).fetchall() == [(1,)]
    assert con.execute("SELECT upper(answer) FROM (FROM m WHERE content = ?)", [value]).fetchall() == [(text.upper(),)]


@pytest.mark.parametrize("value", [[1, 2], ["a", "it's"], [], {"a": 1, "b": "x"}, [[1], [2]]], ids=repr)
def test_a_nested_parameter_is_json(con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, value: Any) -> None:
    (text,) = raw.execute("SELECT 'A: ' || CAST(to_json(?) AS VARCHAR)", [value]).fetchone() or ()
    assert con.execute("SELECT answer FROM m WHERE content = ?", [value]).fetchall() == [(text,)]


def test_null_is_a_value(con: sqlft.Connection) -> None:
    assert con.execute("SELECT answer FROM m WHERE content = ?", [None]).fetchall() == [(None,)]
    assert con.execute("SELECT count(*) FROM m WHERE content = ?", [None]).fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("SELECT t.id, {a} FROM {f} WHERE t.id < ? AND {a} <> ? ORDER BY t.id LIMIT ?", [4, "A: v1", 2]),
        ("SELECT t.id, {a} || $s FROM {f} WHERE t.id < $n AND t.id <> $n - 1 ORDER BY t.id", {"n": 4, "s": "!"}),
        ("SELECT ? AS p, t.id, ? AS q FROM {f} ORDER BY t.id", ["x", 1.5]),
        ("WITH q AS (SELECT t.id, {a} AS a FROM {f} WHERE t.id > $1) SELECT $2, q.* FROM q ORDER BY id", [2, "z"]),
        ("SELECT count(*) FILTER (WHERE {a} LIKE ?) FROM {f} WHERE t.id IN (?, ?)", ["%1", 1, 2]),
    ],
)
def test_parameters_go_where_they_stand(
    con: sqlft.Connection, raw: duckdb.DuckDBPyConnection, text: str, given: Any
) -> None:
    raw.execute("CREATE TABLE m AS SELECT content, 'A: ' || content AS answer FROM t")
    query = text.format(a="m.answer", f="t JOIN m ON m.content = t.content")
    con.execute(query, given)
    raw.execute(query, given)
    assert [d[0] for d in con.description] == [d[0] for d in raw.description or ()]
    assert con.fetchall() == raw.fetchall()


def test_executemany(fresh: sqlft.Connection) -> None:
    fresh.execute("CREATE TABLE sink (id INTEGER, answer VARCHAR)")
    fresh.executemany("INSERT INTO sink SELECT ?, answer FROM m WHERE content = ?", [[1, "a"], [2, "b"]])
    fresh.executemany("INSERT INTO sink VALUES (?, ?)", [[3, "c"]])
    assert fresh.execute("FROM sink ORDER BY id").fetchall() == [(1, "A: a"), (2, "A: b"), (3, "c")]


# -- attaching and closing ---------------------------------------------------------------------------------------


def test_an_attached_connection_keeps_its_transaction() -> None:
    with duckdb.connect() as own:
        own.execute(ROWS)
        own.execute("BEGIN; INSERT INTO t VALUES (9, 'late', 0)")
        models = sqlft.attach(own)
        models.execute(MODEL)
        found = models.execute("SELECT m.answer FROM t JOIN m ON m.content = t.content WHERE t.id = 9").fetchall()
        assert found == [("A: late",)]
        own.execute("ROLLBACK")
        assert own.execute("SELECT count(*) FROM t").fetchall() == [(5,)]
        models.close()
        assert own.execute("SELECT view_name FROM duckdb_views() WHERE view_name LIKE '%sqlft%'").fetchall() == []


@pytest.mark.skipif(sys.platform != "linux", reason="lists the open files of a process as Linux does")
def test_closing_closes_all_files(tmp_path: Any) -> None:
    con = sqlft.connect(str(tmp_path / "app.duckdb"))
    con.execute(ROWS + MODEL)
    cursor = con.cursor()
    cursor.execute(OVER_MODEL).fetchone()
    con.execute(OVER_MODEL).fetchone()
    con.close()
    gc.collect()
    assert [name for name in _open_files() if str(tmp_path) in name] == []
    with pytest.raises(duckdb.Error):
        cursor.execute("SELECT 1")
    with pytest.raises(duckdb.Error):
        con.execute("SELECT 1")


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return found
