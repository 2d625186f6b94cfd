"""Each row gets the answer to its own text, whatever the input's type and whatever is done with the query.

The text is what CAST AS VARCHAR gives, and to_json for nested values; that DuckDB takes some values for equal is not
the model's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pytest

import sqlft

VALUES = {
    "INTEGER": "1, -7, NULL, 2147483647, 1",
    "UTINYINT": "0, 255",
    "HUGEINT": "170141183460469231731687303715884105727, -1",
    "UHUGEINT": "340282366920938463463374607431768211455, 0",
    "DOUBLE": "0.0::DOUBLE, '-0'::DOUBLE, 1e300::DOUBLE, 0.1::DOUBLE, 'NaN'::DOUBLE, 'inf'::DOUBLE, NULL",
    "FLOAT": "0.1::FLOAT, '-0'::FLOAT, 16777216::FLOAT",
    "DECIMAL(10, 3)": "1.5, 1.50, -0.001, 1234567.125",
    "DECIMAL(38, 10)": "12345678901234567890.0123456789, 0",
    "BOOLEAN": "true, false, NULL",
    "DATE": "DATE '2024-02-29', DATE '0044-03-15 (BC)', 'infinity'::DATE, NULL",
    "TIME": "TIME '00:00:00', TIME '12:34:56.789012'",
    "TIMETZ": "'12:00:00+02'::TIMETZ, '10:00:00+00'::TIMETZ",
    "TIMESTAMP": "TIMESTAMP '2024-01-01 00:00:00', TIMESTAMP '2024-01-01 12:34:56.123456', 'infinity'::TIMESTAMP",
    "TIMESTAMP_S": "TIMESTAMP_S '2024-01-01 00:00:00'",
    "TIMESTAMP_NS": "TIMESTAMP_NS '2024-01-01 12:34:56.123456789', TIMESTAMP_NS '2024-01-01 12:34:56.123456788'",
    "TIMESTAMPTZ": "'2024-01-01 00:00:00+02'::TIMESTAMPTZ, '2023-12-31 22:00:00+00'::TIMESTAMPTZ",
    "INTERVAL": "INTERVAL '30 days', INTERVAL '1 month', INTERVAL '720 hours', INTERVAL '24 hours', INTERVAL '1 day'",
    "VARCHAR": "'a', 'A', 'a ', ' a', '', 'it''s', 'ü', '{{x}}', 'NULL', NULL, E'two\\nlines'",
    "VARCHAR COLLATE NOCASE": "'Abc', 'ABC', 'abc', 'xyz', NULL",
    "VARCHAR COLLATE NOACCENT": "'cafe', 'café'",
    "BLOB": "'\\x00\\xFF'::BLOB, 'ab'::BLOB",
    "BIT": "'101'::BIT, '1'::BIT, '0101'::BIT",
    "UUID": "'b6a4b1c0-0000-0000-0000-000000000001'::UUID",
    "ENUM ('sad', 'happy')": "'happy', 'sad', 'happy', NULL",
    "JSON": """'{"a": 1}'::JSON, '{"a":1}'::JSON, 'null'::JSON""",
    "VARIANT": "'v1'::VARIANT, 1::VARIANT, NULL",
}
NESTED = {
    "INTEGER[]": "[1, 2], [], [NULL], NULL, [1, 2]",
    "VARCHAR[]": "['a', 'it''s'], ['a\"b'], ['A']",
    "DOUBLE[]": "[0.0], ['-0'::DOUBLE], [1e300]",
    "INTEGER[2]": "[1, 2]::INTEGER[2], [3, NULL]::INTEGER[2]",
    "STRUCT(a INTEGER, b VARCHAR)": "{'a': 1, 'b': 'x'}, {'a': NULL, 'b': NULL}, NULL, {'a': 1, 'b': 'X'}",
    "STRUCT(a INTERVAL)[]": "[{'a': INTERVAL '30 days'}], [{'a': INTERVAL '1 month'}]",
    "MAP(VARCHAR, INTEGER)": "MAP {'a': 1, 'b': 2}, MAP {}",
    "MAP(DATE, UBIGINT)": "MAP {DATE '2024-01-01': 1::UBIGINT}",
    "MAP(INTEGER[], INTEGER)": "MAP {[1]: 2}",
    "TIMESTAMP_NS[]": "[TIMESTAMP_NS '2024-01-01 12:34:56.123456789']",
    "DATE[]": "['infinity'::DATE, DATE '2024-01-01']",
    "UNION(n INTEGER, s VARCHAR)": "union_value(n := 5), 'x'",
}
USES: dict[str, Callable[[Any], Any]] = {
    "SELECT": lambda run: run("SELECT answer FROM v JOIN m ON m.content = v.content"),
    "comma": lambda run: run("SELECT m.answer FROM v, m WHERE m.content = v.content"),
    "input is NULL": lambda run: [
        r[1:] for r in run("SELECT m.content IS NULL, m.answer FROM v JOIN m ON m.content = v.content")
    ],
    "ORDER BY answer": lambda run: run("SELECT answer FROM v JOIN m ON m.content = v.content ORDER BY answer"),
    "LEFT JOIN, ordered": lambda run: run("SELECT m.answer FROM v LEFT JOIN m ON m.content = v.content ORDER BY v.id"),
    "bare JOIN": lambda run: run("SELECT answer FROM v JOIN m"),
    "USING": lambda run: run("SELECT answer FROM v JOIN m USING (content) LIMIT 1000"),
    "CREATE TABLE AS": lambda run: run(
        "CREATE OR REPLACE TABLE o AS SELECT v.id, m.answer FROM v JOIN m ON m.content = v.content",
        "SELECT answer FROM o",
    ),
    "INSERT": lambda run: run(
        "CREATE OR REPLACE TABLE o (answer VARCHAR)",
        "INSERT INTO o SELECT m.answer FROM v JOIN m ON (m.content) = (v.content)",
        "FROM o",
    ),
    "subquery": lambda run: run("SELECT (SELECT answer FROM m WHERE m.content = v.content) FROM v"),
    "window": lambda run: [
        r[:1] for r in run("SELECT m.answer, count(*) OVER () FROM v JOIN m ON m.content = v.content")
    ],
    "grouped": lambda run: [
        (a,)
        for a, n in run("SELECT m.answer, count(*) FROM v JOIN m ON m.content = v.content GROUP BY ALL")
        for _ in range(n)
    ],
    "CTE": lambda run: run(
        "WITH q AS (SELECT v.id, m.answer FROM v JOIN m ON m.content = v.content) SELECT answer FROM q"
    ),
    "LATERAL": lambda run: run("SELECT s.answer FROM v, LATERAL (SELECT answer FROM m WHERE m.content = v.content) s"),
    "view": lambda run: run(
        "CREATE OR REPLACE VIEW w AS SELECT v.id, m.answer FROM v JOIN m ON m.content = v.content",
        "SELECT answer FROM w",
    ),
    "count(*)": lambda run: run("SELECT count(*) FROM v JOIN m ON m.content = v.content"),
    "count(*) of a table": lambda run: run(
        "CREATE OR REPLACE TABLE o AS SELECT m.* FROM v JOIN m ON m.content = v.content", "SELECT count(*) FROM o"
    ),
}
LISTS = {
    "SELECT * FROM m WHERE content IN ('a', NULL)": 2,
    "SELECT content, answer FROM m WHERE content = NULL": 1,
    "SELECT content, answer FROM m WHERE content = NULL::VARCHAR": 1,
    "SELECT answer FROM m WHERE content IS NOT DISTINCT FROM NULL": 1,
    "SELECT answer FROM m WHERE content IN (SELECT a FROM n)": 3,
    "SELECT answer FROM m WHERE content = ANY (SELECT a FROM n)": 3,
    "SELECT answer FROM m WHERE content = ANY (['x', NULL])": 2,
    "SELECT answer FROM m WHERE content IN ('a', 'a', 'A', 'b')": 3,
    "SELECT answer FROM m WHERE content = 'a' OR content = 'A' OR content = NULL": 3,
    "SELECT answer FROM m WHERE (content = 'a') OR (content = 'b')": 2,
    "SELECT n.a, m.answer FROM n JOIN m ON m.content = n.a": 4,
    "SELECT n.a, m.answer FROM n LEFT JOIN m ON (m.content = n.a)": 4,
    "SELECT n.a, s.answer FROM n, LATERAL (SELECT answer FROM m WHERE m.content = n.a) s": 4,
    "SELECT a FROM n WHERE EXISTS (SELECT 1 FROM m WHERE m.content = n.a)": 4,
}


def _runner(con: Any) -> Callable[..., list[tuple[Any, ...]]]:
    con.execute("SELECT 42").fetchall()  # whatever the test before has left open

    def run(*statements: str) -> list[tuple[Any, ...]]:
        for statement in statements:
            con.execute(statement)
        rows: list[tuple[Any, ...]] = con.fetchall()
        return rows

    return run


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlft.Connection]:
    """A connection with a model of one input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLFT_HOME", str(tmp_path_factory.mktemp("values")))
        made = sqlft.connect()
        made.execute("CREATE MODEL m PREDICT answer USING engine = 'echo', prompt_template = 'A: {{content}}'")
        made.execute("CREATE TABLE n(a VARCHAR); INSERT INTO n VALUES ('x'), (NULL), ('y'), ('x')")
        yield made
        made.close()


CORRELATED = ("subquery", "LATERAL")
"""DuckDB computes these once for outer values that compare equal, such as 0.0 and -0.0, whatever stands in them."""


@pytest.mark.parametrize("kind", [*VALUES, *NESTED])
def test_each_row_has_the_answer_to_its_own_text(con: sqlft.Connection, kind: str) -> None:
    values = {**VALUES, **NESTED}[kind]
    listed = f"CREATE OR REPLACE TABLE v (id INTEGER, content {kind})"
    try:
        with duckdb.connect() as raw:
            raw.execute(listed)
            for i, value in enumerate(_split(values)):
                raw.execute(f"INSERT INTO v VALUES ({i}, {value})")
            text = "to_json(content)::VARCHAR" if kind in NESTED else "content::VARCHAR"
            expected = raw.execute(f"SELECT 'A: ' || {text} AS a FROM v ORDER BY id").fetchall()
    except duckdb.Error as e:
        pytest.skip(f"not in this version of DuckDB: {e}")
    con.execute(listed)
    for i, value in enumerate(_split(values)):
        con.execute(f"INSERT INTO v VALUES ({i}, {value})")
    wrong = []
    for use, ask in USES.items():
        wanted: Any = [(len(expected),)] if use.startswith("count") else expected
        try:
            given = ask(_runner(con))
        except duckdb.Error as e:
            wrong.append(f"{use}: {type(e).__name__}: {e}")
            continue
        if use == "LEFT JOIN, ordered" and given != wanted:
            wrong.append(f"{use}: {given} for {wanted}")
        if use in CORRELATED and kind in ("DOUBLE", "INTERVAL"):
            continue
        extra, missing = (Counter(map(repr, rows)) for rows in (given, wanted))
        if extra != missing:
            wrong.append(f"{use}: has {list((extra - missing).elements())}, lacks {list((missing - extra).elements())}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("query", list(LISTS))
def test_the_number_of_rows_is_the_same_in_every_use(con: sqlft.Connection, query: str) -> None:
    run = _runner(con)
    last = len(query.split("FROM")[0].split(","))
    given = {
        "SELECT": len(run(query)),
        "count(*)": run(f"SELECT count(*) FROM ({query})")[0][0],
        "CREATE TABLE AS": len(run(f"CREATE OR REPLACE TABLE o AS {query}", "FROM o")),
        "INSERT": len(run("CREATE OR REPLACE TABLE o AS " + query + " LIMIT 0", f"INSERT INTO o {query}", "FROM o")),
        "ORDER BY": len(run(f"{query} ORDER BY {last}")),
        "CTE": len(run(f"WITH q AS ({query}) SELECT * FROM q")),
        "UNION ALL": len(run(f"{query} UNION ALL {query}")) / 2,
        "LIMIT": len(run(f"{query} LIMIT 100")),
        "DISTINCT of all": run(f"SELECT count(*) FROM (SELECT *, row_number() OVER () FROM ({query}))")[0][0],
    }
    assert given == dict.fromkeys(given, LISTS[query])


def test_a_default_collation_changes_nothing(con: sqlft.Connection) -> None:
    run = _runner(con)
    run("CREATE OR REPLACE TABLE v AS FROM (VALUES (1, 'Q'), (2, 'q')) v(id, content)")
    con.execute("SET default_collation = 'NOCASE'")
    try:
        for query in (
            "SELECT v.id, m.answer FROM v JOIN m",
            "SELECT v.id, m.answer FROM v LEFT JOIN m ORDER BY m.answer",
        ):
            assert sorted(run(query)) == [(1, "A: Q"), (2, "A: q")]
            assert sorted(run(f"CREATE OR REPLACE TABLE o AS {query}", "FROM o")) == [(1, "A: Q"), (2, "A: q")]
        assert run("SELECT count(*) FROM v JOIN m") == [(2,)]
        assert len(run("SELECT answer FROM m WHERE content IN ('Q', 'q')")) == 2
    finally:
        con.execute("RESET default_collation")


def _split(values: str) -> list[str]:
    """A list of SQL expressions at its outermost commas.

    >>> _split("[1, 2], 'a, b'")
    ['[1, 2]', "'a, b'"]
    """
    parts, depth, quoted = [""], 0, False
    for c in values:
        quoted ^= c == "'"
        depth += 0 if quoted else (c in "([{") - (c in ")]}")
        if c == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]
