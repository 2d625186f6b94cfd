-- Each query runs over models with typed answers and over plain tables that hold all the answers: rows, names and
-- types are equal.  Behind `-- calls` stands what the number of requests must be; order counts where there is an
-- ORDER BY.

-- calls ==3
SELECT * FROM m WHERE content IN ('p1', 'p2', 'p3');

-- calls ==1
SELECT age FROM m WHERE content = 'p1';

-- calls ==50
SELECT t.id, m.mood FROM t JOIN m ON m.content = t.x WHERE t.id < 50;

-- calls ==10
SELECT t.id, m.name, m.mood FROM t JOIN m USING (content) ORDER BY t.id LIMIT 10;

-- calls <=128
SELECT t.id, m.name FROM t JOIN m ON m.content = t.x WHERE t.id < 300 AND m.age > 20 ORDER BY t.id LIMIT 10;

-- calls ==40
SELECT t.id, m.pet.kind, m.pet.born + 1 AS next FROM t JOIN m ON m.content = t.x WHERE t.id < 40;

-- calls ==40
SELECT t.id, unnest(m.tags) tag FROM t JOIN m ON m.content = t.x WHERE t.id < 40;

-- calls ==300
SELECT mood, count(*) c, sum(age) a, avg(price) p FROM t JOIN m ON m.content = t.x WHERE t.id < 300 GROUP BY mood ORDER BY ALL;

-- calls ==40
SELECT m.tags, list(m.name ORDER BY t.id) FROM t JOIN m ON m.content = t.x WHERE t.id < 40 GROUP BY ALL ORDER BY ALL;

-- calls ==40
SELECT t.id, m.price * 2 AS twice, typeof(m.price), typeof(m.mood) FROM t JOIN m ON m.content = t.x WHERE t.id < 40;

-- calls ==40
SELECT t.id, whole.answer.name, whole.answer FROM t JOIN whole ON whole.content = t.x WHERE t.id < 40;

-- calls ==20
SELECT a.id, b.name FROM (SELECT t.id, m.age FROM t JOIN m ON m.content = t.x WHERE t.id < 10) a JOIN (SELECT t.id, m.name FROM t JOIN m ON m.content = t.x WHERE t.id >= 10 AND t.id < 20) b ON a.id + 10 = b.id WHERE a.age > 3;

-- calls ==1
SELECT (SELECT pet FROM m WHERE content = 'p2') AS pet;

-- calls ==15
CREATE TABLE made AS SELECT t.id, m.* FROM t JOIN m USING (content) WHERE t.id < 15;

-- calls ==0
DESCRIBE made;

-- calls ==0
SELECT * FROM made WHERE mood = 'good' AND pet.kind = 'cat' ORDER BY id;

-- calls ==5
INSERT INTO made (id, name, pet) SELECT t.id, m.name, m.pet FROM t JOIN m ON m.content = t.x WHERE t.id < 5;

-- calls ==0
SELECT count(*), count(pet) FROM made;

-- calls ==20
SELECT t.id, m.age, last.name FROM t JOIN m ON m.content = t.x JOIN m AS last ON last.content = 'p' || m.age WHERE t.id < 20;

-- calls ==30
SELECT t.id FROM t WHERE t.id < 30 AND EXISTS (SELECT 1 FROM m WHERE m.content = t.x AND list_contains(m.tags, 't1'));

-- calls ==8
SELECT DISTINCT ON (m.mood) m.mood, m.name FROM t JOIN m ON m.content = t.x WHERE t.id < 8 ORDER BY m.mood, t.id;

-- calls ==0
SELECT count(*) FROM t JOIN m ON m.content = t.x WHERE t.id < 9;

-- calls ==6
WITH a AS (SELECT t.id, m.name, m.mood FROM t JOIN m ON m.content = t.x WHERE t.id < 6) SELECT name FROM a WHERE mood IS NOT NULL ORDER BY id;
