SELECT 42
--> Plain(sql='SELECT 42')

SELECT answer FROM ft_sql.1 WHERE content = '...' USING max_tokens = 1000
--> Plain(sql="SELECT answer FROM ft_sql.1 WHERE content = '...'", using={max_tokens: 1000})

SELECT * FROM t JOIN a ON a.x = t.x JOIN b USING (y) ORDER BY 1 LIMIT 3 USING a.temperature = 0.5, "B".cache = false;
--> Plain(sql='SELECT * FROM t JOIN a ON a.x = t.x JOIN b USING (y) ORDER BY 1 LIMIT 3', using={a: {temperature: 0.5}, B: {cache: False}})

WITH q AS (SELECT 1) SELECT * FROM q, m -- why
USING n = ?
--> Plain(sql='WITH q AS (SELECT 1) SELECT * FROM q, m', using={n: Parameter(key=1)})

SELECT ? FROM m USING k = $1, s = 'USING x = 1'
--> Plain(sql='SELECT ? FROM m', using={k: Parameter(key=1), s: 'USING x = 1'})

COPY (SELECT * FROM m USING cache = false) TO 'x.csv' (HEADER)
--> Plain(sql="COPY (SELECT * FROM m                    ) TO 'x.csv' (HEADER)", using={cache: False})

CREATE TABLE x AS (SELECT * FROM m USING cache = false)
--> Plain(sql='CREATE TABLE x AS (SELECT * FROM m                    )', using={cache: False})

INSERT INTO t SELECT * FROM m USING on_error = 'fail'
--> Plain(sql='INSERT INTO t SELECT * FROM m', using={on_error: 'fail'})

(SELECT * FROM m) USING cache = false
--> Plain(sql='(SELECT * FROM m)', using={cache: False})

SELECT * FROM t USING SAMPLE 10%
--> Plain(sql='SELECT * FROM t USING SAMPLE 10%')

ALTER TABLE t ALTER c TYPE INT USING c = 1
--> Plain(sql='ALTER TABLE t ALTER c TYPE INT USING c = 1')

DELETE FROM t USING u WHERE t.id = u.id
--> Plain(sql='DELETE FROM t USING u WHERE t.id = u.id')

MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE
--> Plain(sql='MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE')

PIVOT t ON a USING x = sum(b)
--> Plain(sql='PIVOT t ON a USING x = sum(b)')

SELECT 'USING a = 1' -- USING b = 2
--> Plain(sql="SELECT 'USING a = 1'")

CREATE DATABASE db
--> Plain(sql='CREATE DATABASE db')

CREATE DATABASE db FROM 'md:share'
--> Plain(sql="CREATE DATABASE db FROM 'md:share'")

CREATE MODEL('name', 'gpt-4o', 'openai')
--> Plain(sql="CREATE MODEL('name', 'gpt-4o', 'openai')")

CREATE MATERIALIZED VIEW v AS SELECT 1
--> Plain(sql='CREATE MATERIALIZED VIEW v AS SELECT 1')

SHOW TABLES
--> Plain(sql='SHOW TABLES')

SHOW models.x
--> Plain(sql='SHOW models.x')

SHOW "models"
--> DescribeModel(name=models, explicit=False)

DESCRIBE SELECT 1
--> Plain(sql='DESCRIBE SELECT 1')

DESCRIBE TABLE x
--> Plain(sql='DESCRIBE TABLE x')

DESCRIBE
--> Plain(sql='DESCRIBE')

SET threads = 4
--> Plain(sql='SET threads = 4')

SET "active" = 1
--> Plain(sql='SET "active" = 1')

SET VARIABLE active = 1
--> Plain(sql='SET VARIABLE active = 1')

DROP TABLE model
--> Plain(sql='DROP TABLE model')

ALTER TABLE model RENAME TO b
--> Plain(sql='ALTER TABLE model RENAME TO b')

PREPARE p AS SELECT * FROM t USING SAMPLE 3
--> Plain(sql='PREPARE p AS SELECT * FROM t USING SAMPLE 3')

SELECT 'never closed
--> Plain(sql="SELECT 'never closed")

SELECT 1 /* never closed
--> Plain(sql='SELECT 1 /* never closed')

select $$ never closed
--> Plain(sql='select $$ never closed')

SELECT 1;; SELECT 2; -- three
SELECT 3 /* ; */ ; SELECT ';', $$;$$, E'\';', "a;b", `c;d`;
--> Plain(sql='SELECT 1')
--> Plain(sql='SELECT 2')
--> Plain(sql='SELECT 3')
--> Plain(sql='SELECT \';\', $$;$$, E\'\\\';\', "a;b", `c;d`')

DESCRIBE SELECT 1
--> Plain(sql='DESCRIBE SELECT 1')

DESC from t
--> Plain(sql='DESC from t')

USE a.b
--> Plain(sql='USE a.b')

CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW SELECT 1
--> Plain(sql='CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW SELECT 1')

SHOW TABLES FROM main
--> Plain(sql='SHOW TABLES FROM main')

DROP TRIGGER t ON orders
--> Plain(sql='DROP TRIGGER t ON orders')
