-- Each query runs over models and over plain tables that hold all the answers: rows, names and types are equal.
-- Behind `-- calls` stands what the number of requests must be; order counts where there is an ORDER BY.

-- calls ==1
SELECT answer FROM m WHERE content = 'p1';

-- calls ==3
SELECT * FROM m WHERE content IN ('p1','p2','p3');

-- calls ==50
SELECT * FROM m WHERE content IN (select x from t where id < 50);

-- calls ==100
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 100;

-- calls ==10
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x ORDER BY t.id LIMIT 10;

-- calls <=128
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.k = 3 AND m.answer LIKE '%7' ORDER BY t.id LIMIT 10;

-- calls <=64 (any rows)
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x LIMIT 10;

-- calls ==2000
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x;

-- calls ==0
SELECT t.id FROM t JOIN m ON m.content = t.x;

-- calls ==0
SELECT count(*) FROM t JOIN m ON m.content = t.x WHERE t.id < 9;

-- calls ==500
WITH a AS (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 500) SELECT a.id, b.answer FROM a JOIN a b ON a.id = b.id + 1;

-- calls ==20
SELECT t.id, m.answer FROM t LEFT JOIN m ON m.content = t.x WHERE t.id < 20;

-- calls ==20
SELECT t.id, m.answer FROM t, m WHERE m.content = t.x AND t.id < 20;

-- calls ==20
SELECT t.id, m.answer FROM t JOIN m USING (content) WHERE t.id < 20;

-- calls ==20
SELECT * FROM t JOIN m USING (content) WHERE t.id < 20;

-- calls ==20
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x || '!' WHERE t.id < 20;

-- calls ==40
SELECT t.id, m.answer, m2.label FROM t JOIN m ON m.content = t.x JOIN m2 ON m2.q = m.answer WHERE t.id < 20;

-- calls ==40
SELECT t.id, m2.label FROM t JOIN m ON m.content = t.x JOIN m2 ON m2.q = upper(m.answer) || 'z' WHERE t.id < 20;

-- calls ==20
SELECT t.id, a.answer, b.answer FROM t JOIN m a ON a.content = t.x JOIN m.1 b ON b.content = t.x WHERE t.id < 20;

-- calls ==2
SELECT id FROM t WHERE x IN (SELECT content FROM m WHERE content IN ('p1','p2') AND answer = 'A:P1');

-- calls ==30
SELECT t.id FROM t WHERE t.id < 30 AND EXISTS (SELECT 1 FROM m WHERE m.content = t.x AND m.answer LIKE '%5');

-- calls ==30
SELECT q.answer, count(*) FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 30) q GROUP BY ALL ORDER BY 1;

-- calls ==2
SELECT answer FROM m WHERE content='p1' UNION ALL SELECT answer FROM m WHERE content = 'p2';

-- calls ==59
SELECT t.id, m.answer, row_number() OVER (PARTITION BY m.answer ORDER BY t.id) rn FROM t JOIN m ON m.content = t.x WHERE t.id < 50 or t.id > 19990 ORDER BY t.id;

-- calls ==2000
SELECT m.answer, count(*) c FROM t JOIN m ON m.content = t.x WHERE t.id < 3000 GROUP BY m.answer ORDER BY c DESC, m.answer LIMIT 5;

-- calls ==40
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 40 ORDER BY m.answer, t.id;

-- calls ==40
SELECT CASE WHEN m.answer LIKE '%1' THEN 'one' ELSE m.answer END z FROM t JOIN m ON m.content = t.x WHERE t.id < 40;

-- calls ==4
SELECT * EXCLUDE (k) FROM t JOIN m ON m.content = t.x WHERE t.id < 4;

-- calls ==5
SELECT t.*, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id BETWEEN 3 AND 7 AND m.answer IS NOT NULL;

-- calls ==10
SELECT t.id, u.y, m.answer FROM t JOIN u ON u.id = t.id JOIN m ON m.content = t.x WHERE u.y < 20;

-- calls ==5
SELECT u.id, (SELECT answer FROM m WHERE m.content = u.nm) a FROM u;

-- calls ==5
SELECT t.id, m.answer FROM t JOIN m ON (m.content = t.x) AND t.id < 5;

-- calls ==10
SELECT t.id, m.answer FROM t JOIN m ON t.x = m.content AND m.answer > 'A:P5' WHERE t.id < 10;

-- calls ==10
SELECT t.id, m.answer FROM t LEFT JOIN m ON t.x = m.content AND m.answer > 'A:P5' WHERE t.id < 10;

-- calls ==5
SELECT DISTINCT m.answer FROM t JOIN m ON m.content = t.x WHERE t.id % 2000 < 5;

-- calls ==5
SELECT t.id, m.answer FROM m JOIN t ON m.content = t.x WHERE t.id < 5;

-- calls ==5
FROM t JOIN m ON m.content = t.x SELECT t.id, m.answer WHERE t.id < 5;

-- calls ==5
SELECT t.id + 1, upper(m.answer), t.id FROM t JOIN m ON m.content = t.x WHERE t.id < 5;

-- calls ==3
SELECT t.id i, m.answer FROM t JOIN m ON m.content = t.x ORDER BY i DESC LIMIT 3 OFFSET 2;

-- calls ==3
SELECT t.id i, m.answer FROM t JOIN m ON m.content = t.x ORDER BY 1 LIMIT 3;

-- calls ==7
SELECT * FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x ORDER BY t.id LIMIT 7) ORDER BY id;

-- calls ==5
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.id::varchar WHERE t.id < 5;

-- calls >0
SELECT id, x FROM t WHERE id IN (SELECT t.id FROM t JOIN m ON m.content = t.x WHERE m.answer = 'A:P7' AND t.k = 0);

-- calls ==111
SELECT m.answer FROM t JOIN m ON m.content = t.x WHERE m.content LIKE 'p19%' AND t.id < 2000;

-- calls ==5
SELECT max(m.answer) OVER () FROM t JOIN m ON m.content = t.x WHERE t.id < 5;

-- calls ==2000
SELECT t.id FROM t JOIN m ON m.content = t.x GROUP BY t.id, m.answer HAVING m.answer = 'A:P3';

-- calls ==4
SELECT t.id, s.answer FROM t, LATERAL (SELECT answer FROM m WHERE m.content = t.x) s WHERE t.id < 4;

-- calls ==15
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 10 UNION SELECT u.id, m.answer FROM u JOIN m ON m.content = u.nm ORDER BY 1, 2 LIMIT 8;

-- calls ==3
SELECT "t"."id", M.Answer FROM main.t AS "t" JOIN M ON M.content = "t".x WHERE "t".id < 3;

-- calls ==0
SELECT count(*) FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x);

-- calls ==1
SELECT m.content, m.answer FROM t JOIN m ON m.content = t.x WHERE m.content = 'p3';

-- calls ==6
SELECT t.id, m.answer FROM (SELECT * FROM t WHERE id < 6) t JOIN m ON m.content = t.x;

-- calls ==6
SELECT t.k, string_agg(m.answer, ',' ORDER BY t.id) FROM t JOIN m ON m.content = t.x WHERE t.id < 6 GROUP BY 1 ORDER BY 1;

-- calls ==6
WITH a AS (SELECT * FROM t WHERE id < 6) SELECT a.id, m.answer FROM a JOIN m ON m.content = a.x;

-- calls ==6
SELECT m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 6 AND (SELECT max(y) FROM u) > 3;

-- calls ==6
SELECT t.id, m.answer FROM t SEMI JOIN u ON u.id = t.id JOIN m ON m.content = t.x WHERE t.id < 6;

-- calls ==3
SELECT t FROM t JOIN m ON m.content = t.x WHERE t.id < 3 AND m.answer = 'A:P1';

-- calls ==2
SELECT answer FROM m WHERE content = 'p1' OR content = 'p2';

-- calls ==7
INSERT INTO sink SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x ORDER BY t.id LIMIT 7;

-- calls ==10
CREATE TABLE made AS SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 10;

-- calls ==0
SELECT * FROM made WHERE answer <> 'A:P3' ORDER BY id;

-- calls ==5
UPDATE u SET nm = (SELECT answer FROM m WHERE m.content = u.nm);

-- calls ==9
DELETE FROM sink WHERE answer IN (SELECT m.answer FROM t JOIN m ON m.content = t.x WHERE t.id BETWEEN 2 AND 10);

-- calls ==0
SELECT * FROM sink ORDER BY ALL;

-- calls ==1
SELECT * FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x) v WHERE v.id = 7;

-- calls ==10
SELECT * FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x) v ORDER BY id DESC LIMIT 10;

-- calls ==10 (any rows)
SELECT * FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x) LIMIT 10;

-- calls <=128
SELECT id + 1 AS next, answer FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.k = 3) WHERE answer LIKE '%7' ORDER BY id LIMIT 10;

-- calls ==5
WITH c AS (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x) SELECT answer FROM c WHERE id BETWEEN 3 AND 7 ORDER BY id;

-- calls ==20
SELECT * FROM (SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x ORDER BY t.id LIMIT 20) WHERE id > 10 LIMIT 5;

-- calls ==3
SELECT * FROM (SELECT * FROM t JOIN m ON m.content = t.x) WHERE id < 3;

-- calls ==10
SELECT answer FROM (SELECT t.id AS n, m.answer FROM t JOIN m ON m.content = t.x) q WHERE q.n < 10 AND q.answer > 'A:P4';

-- calls ==10
SELECT t.id, m.answer FROM t JOIN m USING (content) ORDER BY t.id LIMIT 10;

-- calls <=64 (any rows)
SELECT * FROM t JOIN m USING (content) LIMIT 10;

-- calls <=128
SELECT * FROM t JOIN m USING (content) WHERE t.k = 3 AND m.answer LIKE '%7' ORDER BY t.id LIMIT 10;

-- calls ==3
SELECT content, m.answer, t.content AS tc FROM t LEFT JOIN m USING (content) WHERE content < 'p2' ORDER BY t.id LIMIT 3;

-- calls ==4
SELECT m.*, t.id FROM t JOIN m USING (content) WHERE t.id < 4;

-- calls ==4
SELECT m.content, t.id, answer FROM t JOIN m USING (content) WHERE t.id < 4;

-- calls ==4
SELECT content, answer FROM m WHERE content IN (SELECT content FROM t WHERE id < 4);

-- calls ==4
SELECT content, answer FROM m WHERE content IN (SELECT content || '!' FROM t WHERE id < 4 AND content > '');

-- calls ==1
SELECT answer FROM m WHERE content = (SELECT min(content) FROM t);

-- calls ==3
SELECT content, answer FROM m WHERE content = ANY (['p1', 'p2', 'p3']);

-- calls ==4
SELECT content, answer FROM m WHERE content = ANY (SELECT x FROM t WHERE id < 4);

-- calls ==3
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x WHERE t.id < 3 AND (SELECT max(answer) FROM (SELECT 'z' AS answer)) = 'z';

-- calls ==2
INSERT INTO sink SELECT 7, answer FROM m WHERE content IN ('p1', 'p2') RETURNING id;

-- calls ==0
CREATE TABLE empty AS SELECT m.answer FROM t JOIN m USING (content) WITH NO DATA;

-- calls ==2
CREATE TABLE two AS SELECT t.id, m.answer FROM t JOIN m USING (content) ORDER BY t.id LIMIT 2;

-- calls ==2
SELECT t.id, m.answer FROM t JOIN m USING (content) QUALIFY row_number() OVER (ORDER BY t.id) <= 2;

-- calls <=3 (any rows)
SELECT t.id, m.answer FROM t JOIN m ON m.content = t.x USING SAMPLE 3 ROWS;

-- calls <=3 (any rows)
SELECT t.id, m.answer FROM t TABLESAMPLE reservoir(3 ROWS) JOIN m ON m.content = t.x;

-- calls ==3
SELECT t.id, m.answer FROM t JOIN m ON ((m.content) = (t.x)) AND ((t.id < 3));

-- calls ==3
SELECT t.id, m.answer FROM t, m WHERE (t.id < 3) AND NOT (m.content <> t.x);

-- calls ==3
SELECT t.id FROM t SEMI JOIN m ON m.content = t.x AND m.answer LIKE 'A:%' WHERE t.id < 3;

-- calls ==3
SELECT t.id, m.answer FROM m RIGHT JOIN t ON m.content = t.x WHERE t.id < 3;

-- calls ==3
SELECT * FROM m JOIN t USING (content) WHERE t.id < 3;

-- calls ==2
UPDATE u SET nm = m.answer FROM t JOIN m ON m.content = t.x WHERE u.id = t.id AND t.id < 2;

-- calls ==0
DELETE FROM sink USING t JOIN m ON m.content = t.x WHERE sink.id = t.id AND t.id < 2;
