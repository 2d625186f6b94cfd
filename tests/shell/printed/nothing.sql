-- what gives no rows says nothing
CREATE TABLE t (i INTEGER, s VARCHAR);
INSERT INTO t VALUES (1, 'a'), (2, 'b');
UPDATE t SET i = i + 1;
SET VARIABLE x = 1;
SELECT * FROM t WHERE false;
INSERT INTO t VALUES (5, 'c') RETURNING i, s;
SELECT count(*) AS "Count" FROM t;
DROP TABLE t;
