-- What tests/query/hostile.py mutates: a statement a line.

-- valid statements
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 5 ORDER BY t.id LIMIT 3
SELECT t.id, m.answer FROM t JOIN m USING (content) WHERE t.id < 20
SELECT answer FROM m WHERE content = 'x' USING cache = false
SELECT answer FROM m.1 WHERE content IN ('a', 'b') OR content = 'c'
SELECT u.id, (SELECT answer FROM m WHERE m.content = u.nm) AS a FROM u
WITH q AS (SELECT t.id, m.answer FROM t JOIN m) SELECT * FROM q a JOIN q b USING (id)
CREATE OR REPLACE TABLE made AS SELECT 'The capital of ' || country FROM (VALUES ('France')) v(country)
CREATE OR REPLACE TABLE made AS SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x
INSERT INTO sink SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x
UPDATE sink SET x = (SELECT answer FROM m WHERE m.content = sink.x)
DELETE FROM sink WHERE x IN (SELECT m.answer FROM t JOIN m ON m.content = t.x)
MERGE INTO sink USING (SELECT t.id, m.answer FROM t JOIN m) s ON s.id = sink.id WHEN MATCHED THEN UPDATE SET x = s.answer
COPY (SELECT t.id, m.answer FROM t JOIN m) TO 'out.csv' (HEADER, DELIMITER ';')
CREATE OR REPLACE VIEW seen AS SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x
EXPLAIN SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x
EXPLAIN ANALYZE SELECT answer FROM m WHERE content = 'x'
DESCRIBE SELECT m.answer FROM t JOIN m
SUMMARIZE SELECT m.answer FROM t JOIN m
PIVOT (SELECT t.k, m.answer FROM t JOIN m ON m.content = t.x) ON k USING count(*) GROUP BY answer
SELECT model, version FROM sqlft.versions WHERE model = 'm'
SELECT * FROM sqlft.usage ORDER BY created_at DESC LIMIT 1
DESCRIBE m
DESCRIBE m.inputs
SHOW MODELS LIKE 'm%'
SHOW MODELS WHERE name = 'm'
CREATE MODEL IF NOT EXISTS m3 PREDICT answer USING engine = 'echo', prompt_template = '{{a}} and {{b}}'
CREATE OR REPLACE MODEL m3 FROM t (SELECT * FROM t) PREDICT answer USING engine = 'echo'
EVALUATE exact_match FROM (SELECT t.x AS actual, m.answer AS prediction FROM t JOIN m ON m.content = t.x)
EVALUATE MODEL m ON (SELECT x AS content, x AS answer FROM t) USING metrics = ['exact_match']
ANALYZE TRAINING DATA FROM (SELECT x AS content, x AS answer FROM t) FOR m
FINETUNE m FROM (SELECT x AS content, x AS answer FROM t) USING learning_rate = 1e-4
SELECT unnest(['a', 'b']) AS v, $$a $ b$$ AS w, E'a\n' AS e, x'AB' AS h, 1_000.5e-3 AS n, [y + 1 for y in [1, 2]] AS l
FROM t, LATERAL (SELECT answer FROM m WHERE m.content = t.x) s SELECT t.id, s.answer
SELECT id, CASE WHEN answer LIKE '%1' THEN 'one' ELSE answer END FROM t LEFT JOIN m ON m.content = t.x AND t.id < 3
SELECT rank() OVER (PARTITION BY m.answer ORDER BY t.id) FROM t JOIN m ON m.content = t.x WINDOW w AS (ORDER BY t.id) QUALIFY count(*) OVER w > 1
SELECT * EXCLUDE (k) REPLACE (id + 1 AS id) FROM t JOIN m ON m.content = t.x -- a comment
SELECT 1; SELECT answer FROM m WHERE content = 'x'; SELECT /* in between */ 2

-- what a statement is put into, at {0}; and statements in which a model's name stands where none belongs
SELECT m({0})
CALL m()
PRAGMA table_info('m')
SHOW m
SHOW TABLES FROM m
VACUUM m
VACUUM ANALYZE m
SELECT * FROM query_table('m')
SELECT * FROM query('{0}')
FROM m()
FROM m(content := 'x')
FROM main.m
FROM memory.m
FROM other.m
FROM memory.main.m WHERE content = 'x'
SELECT 'x'::m
SELECT CAST('x' AS m)
DROP SCHEMA m
CREATE SCHEMA m
DROP TABLE m
DROP VIEW m
ALTER TABLE m ADD COLUMN z INT
TRUNCATE m
INSERT INTO m VALUES ('x')
DELETE FROM m
UPDATE m SET content = 'x'
COMMENT ON TABLE m IS 'x'
CREATE INDEX i ON m (content)
EXPORT DATABASE m
ANALYZE m
DESCRIBE TABLE m
SUMMARIZE m
TABLE m
PREPARE p AS {0}
EXECUTE p
CREATE MACRO f(a) AS TABLE {0}
CREATE MACRO g(a) AS ({0})
({0})
(({0}))
FROM ({0})
SELECT * FROM ({0}) m
SELECT ({0})
SELECT EXISTS ({0})
WITH m AS ({0}) FROM m
EXPLAIN {0}
WITH RECURSIVE r AS ({0} UNION ALL FROM r) FROM r LIMIT 3
{0} UNION ALL {0}
{0};{0}
;;{0};;
{0} --
{0} /*
{0} USING
{0} USING k
{0} USING k =
{0} USING temperature = 0
DESCRIBE {0}
SUMMARIZE {0}
COPY m TO 'm.csv'
COPY ({0}) TO 'o.parquet'
CREATE TEMP VIEW w AS {0}
CREATE TABLE x9 AS {0} WITH NO DATA
PIVOT ({0}) ON id USING count(*)
UNPIVOT ({0}) ON COLUMNS(*)
SELECT * FROM m, m, m
FROM m m m
m
m m
SELECT m
SELECT m.*
SELECT m FROM t JOIN m
SELECT content FROM m ORDER BY
FROM t JOIN m ON
FROM t JOIN

-- what is put between tokens, a line of them at a time
m m2 two m. .m m.1 m.2 m.99 m..x .. m.content m() m(1) m('x') m(content := 'a') main.m memory.m mindsdb.m other.m
mindsdb.main.m sqlft.m x::m "m" `m` 'm' M m.m.m sqlft sqlft..versions sqlft. ( ) (( )) [ ] { } ' " ` '' $$ $1 ? $x :
:: ; , , ,, . = == <> IN ANY ALL IS NOT NULL AND OR ON USING USING( JOIN LEFT SEMI ANTI NATURAL ASOF POSITIONAL CROSS
FULL LATERAL FROM FROM( SELECT WITH AS WHERE GROUP BY ORDER LIMIT OFFSET HAVING QUALIFY WINDOW UNION EXCEPT VALUES
VALUES( DISTINCT CASE WHEN END EXISTS EXISTS( RECURSIVE MATERIALIZED PIVOT UNPIVOT SAMPLE TABLESAMPLE UNNEST unnest(
TABLE query_table('m') table_info('m') DESCRIBE SHOW SUMMARIZE EXPLAIN ANALYZE VACUUM PREPARE EXECUTE CREATE TEMP VIEW
MODEL MACRO TYPE INTO SET RETURNING * * EXCLUDE COLUMNS( -- /* */ /**/ --x 0 -1 1e999 0x1F 1_0 99999999999999999999 \
\x00 @ # % ^ & | ~ ! !~ -> ->> => := é 🦆 ﬀ Ⅷ comment begin end_at model engine answer content id x k
