"""Two queries are the same where their rows are, and what predictions do stays in their own process."""

from __future__ import annotations

import json
import sqlite3
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sqlft.errors import Cancelled, DataError, OptionError
from sqlft.metrics import METRICS
from sqlft.metrics.execution import pool

SHARED = next((p for up in Path(__file__).parents if (p := up / "shared" / "data").is_dir()), Path("nowhere"))
GOLD = "SELECT count(*) FROM t"
SCHEMA = """CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR, age INTEGER, city VARCHAR);
CREATE TABLE visits (person_id INTEGER, day DATE, cost REAL)"""


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The same table t in a SQLite and in a DuckDB file."""
    rows = [(i, str(i), None if i % 3 else i / 2) for i in range(600)]
    with sqlite3.connect(tmp_path / "a.sqlite") as con:
        con.execute("CREATE TABLE t (a INTEGER, b VARCHAR, c REAL)")
        con.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    con.close()
    with duckdb.connect(tmp_path / "a.duckdb") as duck:
        duck.execute("CREATE TABLE t (a INTEGER, b VARCHAR, c DOUBLE)")
        duck.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    return tmp_path


def same(database: Any, *pairs: tuple[str | None, str | None], **options: Any) -> list[float | None]:
    """The scores of (gold, prediction) pairs."""
    gold, prediction = (pa.array([pair[k] for pair in pairs], pa.string()) for k in (0, 1))
    scores = METRICS["execution_accuracy"](gold, prediction, database=database, **options)
    assert scores.type == pa.float64()
    return scores.to_pylist()  # type: ignore[no-any-return]


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
@pytest.mark.parametrize("keep_distinct", [False, True])
def test_judges_as_spiders_evaluator(keep_distinct: bool) -> None:
    lines = (SHARED / "exec_accuracy_crosscheck.jsonl").read_text(encoding="utf-8").splitlines()
    judged = [json.loads(line) for line in lines]
    database = pa.array([str(SHARED / row["db"]) for row in judged])
    scores = same(database, *((row["gold"], row["pred"]) for row in judged), keep_distinct=keep_distinct)
    verdict = "official_exec_keep_distinct" if keep_distinct else "official_exec"
    assert len(scores) == 223
    wrong = [row["id"] for row, score in zip(judged, scores, strict=True) if not row["quirk"] and score != row[verdict]]
    assert wrong == []
    assert not any(score for row, score in zip(judged, scores, strict=True) if row["quirk"])


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_rules(shelf: Path, kind: str) -> None:
    few = "(SELECT a, b, c FROM t WHERE a < 4)"
    right = [
        (f"SELECT a, b FROM {few} x", f"SELECT b, a FROM {few} x ORDER BY a DESC"),
        (f"SELECT a FROM {few} x ORDER BY a", f"SELECT a * 1.0 FROM {few} x ORDER BY a;"),
        (f"SELECT DISTINCT a % 2 FROM {few} x", f"SELECT a % 2 FROM {few} x"),
        ("SELECT a FROM t WHERE a < 0", "SELECT a, b FROM t WHERE a > 9999"),
        (f"SELECT a FROM {few} x WHERE a > = 2", f"SELECT a FROM {few} x WHERE a ! = 0 AND a <> 1 -- so"),
        ("SELECT a, a, b FROM t WHERE a < 9", "SELECT b, a, a FROM t WHERE a < 9"),
        (f"SELECT c FROM {few} x", f"SELECT CASE WHEN a % 3 = 0 THEN a * 0.5 END FROM {few} x"),
    ]
    none = "SELECT a FROM t WHERE a < 0"
    wrong: list[tuple[str, str | None]] = [
        *((none, text) for text in ("", ";", "-- nothing", "/* nothing */", "BEGIN", "ANALYZE", "VACUUM", "REINDEX")),
        *((none, text) for text in ("DELETE FROM t WHERE a < 0", "CREATE TEMP TABLE x (a INT)", "EXPLAIN SELECT 1")),
        (none, f"{none}; {none}"),
        (GOLD, f"{GOLD} \0"),
        (f"SELECT a FROM {few} x ORDER BY a", f"SELECT a FROM {few} x ORDER BY a DESC"),
        (f"SELECT a FROM {few} x", f"SELECT b FROM {few} x"),
        (f"SELECT a, 3 - a FROM {few} x", f"SELECT a, a FROM {few} x"),
        (f"SELECT a % 2 FROM {few} x", f"SELECT a % 2 FROM {few} x GROUP BY a % 2"),
        ("SELECT 0.1 + 0.2", "SELECT 0.3000001"),
        ("SELECT a FROM t WHERE a < 0", "SELECT a FROM t WHERE a = 1"),
        (GOLD, ""),
        (GOLD, " ;"),
        (GOLD, "-- nothing"),
        (GOLD, None),
        (GOLD, "SELECT nothing"),
        (GOLD, f"{GOLD}; {GOLD}"),
    ]
    path = shelf / f"a.{kind}"
    assert same(path, *right) == [1] * len(right)
    assert same(path, *wrong) == [0] * len(wrong)
    assert same(path, right[2], (GOLD, "SELECT count(DISTINCT b) FROM t"), keep_distinct=True) == [0, 1]


def test_duckdbs_own_values(shelf: Path) -> None:
    right = [
        ("SELECT 'nan'::DOUBLE, 1", "SELECT 1, 'nan'::FLOAT"),
        ("SELECT 1.50::DECIMAL(9, 2), 2::HUGEINT", "SELECT 1.5, 2"),
        ("SELECT '2020-01-01 00:00:00+00'::TIMESTAMPTZ", "SELECT '2020-01-01 01:00:00+01'::TIMESTAMPTZ"),
        (
            "SELECT [1, 2], {'a': 1}, MAP {'k': 2}, INTERVAL 1 DAY",
            "SELECT [1, 2], {'a': 1}, MAP {'k': 2}, INTERVAL 1 DAY",
        ),
        ("SELECT DISTINCT ON (a) a FROM t", "FROM t SELECT a"),
        ("SELECT count(*) FROM t WHERE a IS DISTINCT FROM 3", "SELECT 599"),
    ]
    wrong = [("SELECT [1, 2]", "SELECT [2, 1]"), ("SELECT DATE '2020-01-01'", "SELECT '2020-01-01'")]
    assert same(shelf / "a.duckdb", *right) == [1] * len(right)
    assert same(shelf / "a.duckdb", *wrong) == [0] * len(wrong)


def test_one_order_of_columns_serves_all_rows(shelf: Path) -> None:
    gold = "SELECT 1, 2 UNION ALL SELECT 3, 4"
    many = "SELECT " + ", ".join(f"a % {n}" for n in range(2, 40)) + " FROM t WHERE a < 50"
    turned = "SELECT " + ", ".join(f"a % {n}" for n in range(39, 1, -1)) + " FROM t WHERE a < 50"
    assert same(shelf / "a.sqlite", (gold, "SELECT 2, 1 UNION ALL SELECT 3, 4"), (many, turned)) == [0, 1]


def test_a_gold_that_fails_has_no_score(shelf: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"2 of 4 .* row 2: .*no such table"):
        scores = same(
            shelf / "a.sqlite", (GOLD, GOLD), ("SELECT 1 FROM u", GOLD), (None, GOLD), ("SELECT 1 FROM u", "")
        )
    assert scores == [1, None, None, None]


HOSTILE = [
    "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
    "SELECT count(*) FROM t a, t b, t c, t d",
    "SELECT * FROM t a, t b, t c",
    "SELECT group_concat(a.b || b.b || c.b) FROM t a, t b, t c",
    "SELECT randomblob(1000000000)",
    "SELECT hex(zeroblob(900000000))",
    "SELECT repeat('x', 10000000000)",
    "SELECT replace(hex(zeroblob(10000000)), '0', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')",
    f"SELECT '{'a' * 60}' LIKE '{'%a' * 20}b'",
    f"SELECT {'(' * 50000}1{')' * 50000}",
    "ATTACH '{}/attached' AS x",
    "VACUUM INTO '{}/vacuumed'",
    "SELECT writefile('{}/written', 'x')",
    "SELECT load_extension('{}/x')",
    "PRAGMA journal_mode = WAL",
    "DELETE FROM t",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT 1, 2, 3 FROM x",
    "DROP TABLE t",
    "CREATE TEMP TABLE u (a)",
    "COPY t TO '{}/copied'",
    "EXPORT DATABASE '{}/exported'",
    "SELECT count(*) FROM read_text('/etc/*')",
    "SELECT count(*) FROM glob('/*')",
    "INSTALL httpfs",
    "SET memory_limit = '100GB'",
    "SELECT list(range) FROM range(10000000000)",
    "SELECT 1; DELETE FROM t",
    "\0",
    f"SELECT '{'x' * 3_000_000}'",
    "(" * 3_000_000,
    f"SELECT {'NOT ' * 100_000} 1",
    f"SELECT {'(' * 100_000}1{')' * 100_000}",
    "SELECT printf('%.*c', 1000000000, 'x')",
    "SELECT * FROM dbstat",
    "CREATE VIRTUAL TABLE u USING fts5(a)",
    "CREATE TEMP TRIGGER u AFTER INSERT ON t BEGIN SELECT 1; END",
    "PRAGMA writable_schema = 1",
    "FROM '/etc/passwd'",
    "SELECT * FROM read_csv('{}/a.sqlite')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "LOAD httpfs",
    "CALL pragma_version()",
    "PIVOT t ON b",
    "CREATE SECRET (TYPE s3)",
    "SELECT getenv('HOME')",
    "SELECT list(a.b || b.b || c.b) FROM t a, t b, t c ORDER BY 1",
    "SELECT a.b FROM t a, t b, t c, t d ORDER BY a.a + b.a + c.a + d.a",
    "SELECT * FROM query($$COPY t TO '{}/copied'$$)",
]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may let a child wait for long; what it runs still has its own time only."""
    monkeypatch.setattr(pool, "GRACE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_hostile_predictions(shelf: Path, kind: str) -> None:
    path = shelf / f"a.{kind}"
    before, files = path.read_bytes(), sorted(shelf.iterdir())
    hostile = [text.replace("{}", str(shelf)) for text in HOSTILE]
    pairs = [(GOLD, text) for bad in hostile for text in (bad, "SELECT 600")]
    assert same(path, *pairs, timeout=2) == [0, 1] * len(hostile)
    assert path.read_bytes() == before
    assert sorted(shelf.iterdir()) == files


@pytest.mark.usefixtures("patient")
def test_a_child_that_is_killed_costs_one_row(shelf: Path) -> None:
    within_one_function = f"SELECT '{'a' * 60}' LIKE '{'%a' * 20}b'"  # SQLite does not look at the clock there
    pairs = [(GOLD, GOLD), (GOLD, within_one_function), (GOLD, GOLD)]
    assert same(shelf / "a.sqlite", *pairs, timeout=2) == [1, 0, 1]


@pytest.mark.usefixtures("patient")
def test_what_a_child_suffered_is_not_the_next_golds_fault(shelf: Path) -> None:
    slow = f"SELECT '{'a' * 60}' LIKE '{'%a' * 20}b'"
    golds = [f"SELECT {i} + count(*) FROM t" for i in range(2)]
    pairs = [(gold, text) for gold in golds for text in (slow, gold, "SELECT zeroblob(1000000000)", gold)]
    assert same(shelf / "a.sqlite", *pairs, timeout=1, processes=1) == [0, 1, 0, 1] * 2


def test_a_database_with_a_log_is_read_and_left_as_it_is(shelf: Path) -> None:
    path = shelf / "a.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO t VALUES (9, 'only in the log', NULL)")
    writer.commit()
    left = {end: (shelf / f"a.sqlite{end}").read_bytes() for end in ("", "-wal")}
    for end, raw in left.items():
        (shelf / f"b.sqlite{end}").write_bytes(raw)
    writer.close()
    before = sorted(shelf.iterdir())
    assert same(shelf / "b.sqlite", (GOLD, "SELECT 601"), (GOLD, "SELECT 600")) == [1, 0]
    assert {end: (shelf / f"b.sqlite{end}").read_bytes() for end in left} == left
    assert sorted(shelf.iterdir()) == before


def test_it_ends_when_it_is_told_to(shelf: Path) -> None:
    endless = HOSTILE[0]
    asked: list[bool] = []

    def interrupted() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(Cancelled, match="not all judged"):
        same(shelf / "a.sqlite", *[(GOLD, endless)] * 4, timeout=3600, interrupted=interrupted)
    assert same(shelf / "a.sqlite", (GOLD, GOLD)) == [1]


def test_from_several_threads(shelf: Path) -> None:
    pairs = [(GOLD, GOLD), (GOLD, "SELECT 1"), (GOLD, "SELECT zeroblob(1000000000)")]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda end: same(shelf / f"a.{end}", *pairs), ["sqlite", "duckdb", "sqlite"]))
    assert found == [[1, 0, 0]] * 3


def test_columns_of_every_kind_of_text(shelf: Path) -> None:
    path = str(shelf / "a.sqlite")
    metric = METRICS["execution_accuracy"]
    two = pa.array([GOLD, "SELECT 1"])
    chunked = pa.chunked_array([[GOLD], [GOLD]])
    assert metric(two.dictionary_encode(), chunked, database=[path, Path(path)]).to_pylist() == [1, 0]
    assert metric(two.cast(pa.large_string()), pa.nulls(2), database=path).to_pylist() == [0, 0]
    for bad in ([GOLD, 1], [[GOLD]], ["\ud800"], [b"\xff"]):
        with pytest.raises(DataError, match="cannot be compared as text"):
            metric(bad, bad, database=path)


def test_schema_alone() -> None:
    right = [
        ("SELECT name FROM people WHERE age > 30", "SELECT p.name FROM people AS p WHERE NOT p.age <= 30"),
        ("SELECT count(*) FROM people WHERE city = 'Rome'", "SELECT sum(city = 'Rome') FROM people"),
        (
            "SELECT name FROM people WHERE id IN (SELECT person_id FROM visits WHERE cost > 100)",
            "SELECT DISTINCT p.name FROM people p JOIN visits v ON v.person_id = p.id WHERE v.cost > 100 GROUP BY p.id",
        ),
    ]
    wrong = [
        ("SELECT name FROM people WHERE age > 30", "SELECT name FROM people WHERE age >= 30"),
        ("SELECT name FROM people WHERE city = 'Rome'", "SELECT name FROM people WHERE city = 'rome'"),
        ("SELECT name FROM people WHERE city = 'Rome' AND age = 7", "SELECT name FROM people WHERE city = 'Rome'"),
        ("SELECT max(age) FROM people", "SELECT min(age) FROM people"),
        ("SELECT city FROM people GROUP BY city HAVING count(*) > 2", "SELECT city FROM people GROUP BY city"),
        ("SELECT name FROM people WHERE city LIKE '%am%'", "SELECT name FROM people WHERE city LIKE 'am%'"),
        ("SELECT name FROM people", "DROP TABLE people"),
        ("SELECT name FROM people", ""),
    ]
    assert same(None, *right, schema=SCHEMA) == [1] * len(right)
    assert same(None, *wrong, schema=pa.array([SCHEMA] * len(wrong))) == [0] * len(wrong)
    with pytest.warns(RuntimeWarning, match="syntax error"):
        assert same(None, *right, schema="CREATE TABEL x") == [None] * 3
    with pytest.warns(RuntimeWarning, match="not authorized"):
        assert same(None, right[0], schema="ATTACH 'x' AS y") == [None]


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_schema_alone_is_as_strict_as_the_databases() -> None:
    """A pair that the real database tells apart is told apart by generated rows too."""
    import pyarrow.parquet as pq

    schemas = {
        row["db_id"]: row["ddl"]
        for split in ("train", "dev")
        for row in pq.read_table(SHARED / f"spider_exec/schemas_{split}.parquet").to_pylist()
    }
    lines = (SHARED / "exec_accuracy_crosscheck.jsonl").read_text(encoding="utf-8").splitlines()
    judged = [row for line in lines if (row := json.loads(line))["db_id"] in schemas and not row["quirk"]]
    scores = same(
        None, *((r["gold"], r["pred"]) for r in judged), schema=pa.array([schemas[r["db_id"]] for r in judged])
    )
    passed = [row["id"] for row, score in zip(judged, scores, strict=True) if score and not row["official_exec"]]
    assert len(passed) <= 1  # LIMIT 99 on less than 99 rows
    kept = [r["kind"] for r, s in zip(judged, scores, strict=True) if r["official_exec"] and not s]
    assert not {"identical", "formatting_only", "cte_wrapped", "quote_style_changed", "column_order_reversed"} & {*kept}


def test_bad_input(shelf: Path) -> None:
    path = shelf / "a.sqlite"
    (shelf / "a.txt").write_text("no database at all")
    with pytest.raises(OptionError, match="needs a database"):
        same(None, (GOLD, GOLD))
    with pytest.raises(OptionError, match="needs a database"):
        same(path, (GOLD, GOLD), schema=SCHEMA)
    with pytest.raises(DataError, match="cannot be read"):
        same(shelf / "none.sqlite", (GOLD, GOLD))
    with pytest.raises(DataError, match="neither a SQLite nor a DuckDB"):
        same(shelf / "a.txt", (GOLD, GOLD))
    with pytest.raises(DataError, match="Row 2 has no database"):
        same(pa.array([str(path), None]), (GOLD, GOLD), (GOLD, GOLD))
    with pytest.raises(DataError, match="2 values for 1 rows"):
        same(pa.array([str(path)] * 2), (GOLD, GOLD))
    for name, value in (("timeout", 0), ("timeout", "5"), ("timeout", float("nan")), ("processes", 0)):
        with pytest.raises(OptionError, match=name):
            same(path, (GOLD, GOLD), **{name: value})
    for place in (shelf, "\0"):
        with pytest.raises(DataError, match="cannot be read"):
            same(place, (GOLD, GOLD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(path) == []
        assert same(path, (None, None)) == [None]
