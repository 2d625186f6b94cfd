"""What DuckDB understands reaches it byte for byte."""

from __future__ import annotations

import duckdb
import pytest

from sqlft.sql.parser import has_using_tail, may_be_sqlft, parse
from sqlft.sql.statements import Plain

STATEMENTS = [
    "SELECT 42",
    "  select\n1 -- one",
    "(SELECT 1) UNION ALL (SELECT 2)",
    '/* lead /* nested */ */ SELECT \'a;b\', "c;d" FROM (SELECT 1 AS "c;d")',
    "FROM range(3) t(i) SELECT i, i % 2 AS odd QUALIFY row_number() OVER (PARTITION BY odd) = 1",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "SELECT {'a': 1, 'b': [1, 2]}.b[1:2], MAP {'k': 1}['k'], x'AB', 1_000, .5, 5., 1e3",
    "SELECT list_transform([1, 2], lambda x: x + 1), [x * 2 FOR x IN [1, 2] IF x > 1]",
    "SELECT * EXCLUDE (a) REPLACE (b + 1 AS b) RENAME (b AS c) FROM (SELECT 1 AS a, 2 AS b)",
    "SELECT COLUMNS(c -> c LIKE 'x%') FROM (SELECT 1 AS x1)",
    "SELECT $$it's$$, $t$ $$ $t$, E'\\'', 'it''s', ?::INT, $2",
    "VALUES (1, 'a'), (2, 'b;')",
    "CREATE OR REPLACE TEMP TABLE t AS SELECT 1 AS model, 2 AS active",
    "CREATE TABLE IF NOT EXISTS model (predict INT, \"using\" VARCHAR DEFAULT 'x = y')",
    "CREATE MACRO f(a, b := 2) AS a + b",
    "CREATE TYPE mood AS ENUM ('sad', 'ok')",
    "CREATE SEQUENCE s START 3",
    "CREATE SECRET x (TYPE s3, KEY_ID 'k', SECRET 's')",
    "INSERT INTO t BY NAME SELECT 1 AS a ON CONFLICT DO NOTHING RETURNING *",
    "UPDATE t SET a = b.a FROM b WHERE t.id = b.id",
    "DELETE FROM t USING u WHERE t.id = u.id",
    "MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT VALUES (1)",
    "SELECT * FROM a JOIN b USING (x) LEFT JOIN c USING (y, z)",
    "SELECT * FROM range(10) USING SAMPLE 3 ROWS",
    "SELECT * FROM range(10) TABLESAMPLE reservoir(2) REPEATABLE (1)",
    "PIVOT t ON a USING sum(b) AS x GROUP BY c",
    "UNPIVOT t ON COLUMNS(* EXCLUDE a) INTO NAME n VALUE v",
    "ALTER TABLE t ALTER a TYPE INT USING a = '1'",
    "ALTER TABLE t ALTER a SET DATA TYPE INT USING CAST(a AS INT)",
    "COPY t TO 'x.parquet' (FORMAT parquet, KV_METADATA {a: 'b;c'})",
    "COPY (SELECT 1) TO 'x.csv' (HEADER)",
    "ATTACH 'a.db' AS a (READ_ONLY)",
    "DETACH a",
    "USE memory.main",
    "SET threads = 4",
    "SET VARIABLE active = 5",
    "RESET threads",
    "PRAGMA table_info('t')",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SUMMARIZE t",
    "DESCRIBE SELECT 1",
    "DESCRIBE",
    "DESC TABLE t",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE p AS SELECT ? + $1",
    "EXECUTE p(1)",
    "DEALLOCATE p",
    "BEGIN TRANSACTION",
    "COMMIT",
    "CHECKPOINT",
    "CALL pragma_version()",
    "EXPORT DATABASE 'd' (FORMAT parquet)",
    "INSTALL httpfs",
    "LOAD httpfs",
    "COMMENT ON TABLE t IS 'a; b'",
    "TRUNCATE t",
    "DROP TABLE IF EXISTS model CASCADE",
    "DROP VIEW active",
    "VACUUM ANALYZE t",
    "SELEC 1",
    "SELECT 'never closed; SELECT 1",
    "select \U0001f986 from \u201cnothing\u201d",
]


@pytest.mark.parametrize("text", STATEMENTS)
def test_a_statement_stays_as_typed(text: str) -> None:
    (statement,) = parse(text)
    assert isinstance(statement, Plain)
    assert statement.text in text
    assert statement.sql == statement.text
    assert statement.text == text[statement.offset : statement.offset + len(statement.text)]
    assert not statement.using


def test_a_script_is_split_where_duckdb_splits_it() -> None:
    readable = [s for s in STATEMENTS if _readable(s)]
    script = "\n;\n-- next; \n".join(readable) + "\n;"
    assert len(readable) > 50
    assert [s.text for s in parse(script)] == [parse(s)[0].text for s in readable]


@pytest.mark.parametrize("text", STATEMENTS)
def test_the_quick_look_agrees(text: str) -> None:
    if not may_be_sqlft(text) and not has_using_tail(text):
        assert [type(s) for s in parse(text)] == [Plain]


@pytest.mark.parametrize(
    "text",
    ["SELECT 1", "\n-- c\n /* c */ (select 1);", "insert into t values (1)", 
     "create or replace temp view v as select 1", "drop table model", "describe select 1", "set threads = 1", "from t"],
)  # fmt: skip
def test_the_quick_look_lets_plain_statements_pass(text: str) -> None:
    assert not may_be_sqlft(text)
    assert not may_be_sqlft(text + " ; \n;")
    assert may_be_sqlft(text + "; drop model m")


@pytest.mark.parametrize("text", ["select * from t join u using (a)", "select 'x'", "delete from t using(a)"])
def test_no_using_tail(text: str) -> None:
    assert not has_using_tail(text)


@pytest.mark.parametrize(
    "text", ["select * from m using a=1", "from m USING\n a . b = 1", f"{'x' * 9000} uSiNg/**/a=1"]
)
def test_a_using_tail_is_seen(text: str) -> None:
    assert has_using_tail(text)


def _readable(text: str) -> bool:
    try:
        return len(duckdb.extract_statements(text)) == 1
    except duckdb.Error:
        return False
