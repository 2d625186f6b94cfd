-- DuckDB's SELECT, a construct a line; test_syntax.py runs each alone, in a CTE beside a model and in a subquery of one.
-- Some are of one version of DuckDB only: what plain DuckDB refuses is left out, and how many were is limited.

-- clauses
SELECT id, name FROM items
SELECT ALL id FROM items
FROM items
FROM items SELECT id, name WHERE id < 4
SELECT i.id, i.name AS "the name" FROM items AS i WHERE i.price > 2 AND NOT i.flag
SELECT id one, name two FROM items i(id, name)
SELECT DISTINCT grp FROM items
SELECT DISTINCT ON (grp) grp, id FROM items ORDER BY grp, id
SELECT grp, count(*) FROM items GROUP BY grp
SELECT grp, flag, sum(qty) FROM items GROUP BY ALL
SELECT grp AS g, sum(qty) AS s FROM items GROUP BY g HAVING s > 3
SELECT grp, sum(qty) FROM items GROUP BY 1 HAVING count(*) > 1 ORDER BY 2 DESC
SELECT grp, flag, sum(qty), grouping(grp, flag) FROM items GROUP BY GROUPING SETS ((grp, flag), (grp), ())
SELECT grp, flag, sum(qty), grouping_id(grp, flag) FROM items GROUP BY ROLLUP (grp, flag)
SELECT grp, flag, sum(qty) FROM items GROUP BY CUBE (grp, flag)
SELECT sum(qty) FROM items GROUP BY ()
SELECT id FROM items ORDER BY price DESC NULLS LAST, id ASC LIMIT 3
SELECT id, name FROM items ORDER BY ALL
SELECT id, name FROM items ORDER BY ALL DESC LIMIT 2 OFFSET 1
SELECT id FROM items ORDER BY name COLLATE NOCASE, id LIMIT 4
SELECT id FROM items ORDER BY id LIMIT (SELECT 2)
SELECT id FROM items ORDER BY id LIMIT 50%
SELECT id FROM items ORDER BY id LIMIT 40 PERCENT
SELECT id FROM items ORDER BY id OFFSET 3
SELECT id FROM items ORDER BY id OFFSET 1 ROWS FETCH FIRST 2 ROWS ONLY
SELECT id FROM items ORDER BY id FETCH NEXT ROW ONLY
SELECT count(*) FROM items TABLESAMPLE 100%
SELECT count(*) FROM items TABLESAMPLE reservoir(3 ROWS)
SELECT count(*) FROM items TABLESAMPLE system(100 PERCENT)
SELECT count(*) FROM items TABLESAMPLE bernoulli(100%) REPEATABLE (7)
SELECT count(*) FROM (SELECT * FROM items USING SAMPLE 3)
SELECT count(*) FROM (FROM items USING SAMPLE 100% (bernoulli, 3))
SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v(n, s)
VALUES (1, 'a'), (2, NULL)
VALUES (1), (2) ORDER BY 1 DESC LIMIT 1
TABLE items
SELECT 1 WHERE false
SELECT id FROM items WHERE id IN (SELECT item_id FROM sales) OR EXISTS (FROM sales WHERE amount > 100)

-- select list
SELECT * FROM items
SELECT items.* FROM items
SELECT * EXCLUDE (tags, info) FROM items
SELECT * EXCLUDE name FROM items
SELECT * REPLACE (upper(name) AS name) FROM items
SELECT * EXCLUDE (id) REPLACE (qty * 2 AS qty) FROM items
SELECT * RENAME (id AS number) FROM items
SELECT * LIKE '%i%' FROM items
SELECT * NOT LIKE '%i%' FROM items
SELECT * ILIKE 'N%' FROM items
SELECT * SIMILAR TO '(id|qty)' FROM items
SELECT * GLOB 'q*' FROM items
SELECT COLUMNS('i.*') FROM items
SELECT COLUMNS(lambda c: c IN ('id', 'qty')) FROM items
SELECT COLUMNS(['id', 'name']) FROM items
SELECT max(COLUMNS(* EXCLUDE (tags, info, mp))) FROM items
SELECT min(COLUMNS('id|qty')) + 1 FROM items
SELECT COLUMNS('(i)(d)') AS '\2\1' FROM items
SELECT coalesce(*COLUMNS('name|grp')) FROM items
SELECT id FROM items WHERE COLUMNS('id|qty') > 1
SELECT * FROM items WHERE name LIKE 'a%'
SELECT items FROM items
SELECT i FROM items AS i WHERE i.id = 1
SELECT a: id, b: upper(name) FROM items
SELECT x.id FROM x: items
SELECT id AS "select", name AS "from" FROM items
SELECT id AS 'quoted by a string' FROM items
SELECT "id", "Name", NAME FROM "items"
SELECT memory.main.items.id FROM memory.main.items
SELECT main.items.id FROM main.items
SELECT id AS n, n + 1 AS m1, m1 * 2 AS m2 FROM items
SELECT rowid FROM items
SELECT unnest(tags) FROM items
SELECT unnest(info) FROM items
SELECT id, unnest([1, 2]), unnest(['a', 'b', 'c']) FROM items WHERE id = 1
SELECT unnest({'a': {'b': 1, 'c': 2}}, recursive := true)
SELECT id, generate_subscripts(tags, 1) FROM items

-- literals
SELECT 1, -1, +1, 1.5, .5, 5., 1e3, 1.5e-3, 1_000_000, 0xFF, 0b101, 0o17
SELECT 170141183460469231731687303715884105727, 9223372036854775808, 2147483648
SELECT 'a', 'it''s', '', ' ', 'ü€🦆', 'two  blanks'
SELECT E'a\tb\n\\ \' \x41 \u0041', e'c'
SELECT $$dollar 'quoted' $$, $tag$ with $$ inside $tag$
SELECT true, false, NULL, TRUE AND NULL
SELECT 'AB'::BLOB, '\xAB'::BLOB, x'0102', '101'::BIT, b'0101'
SELECT DATE '2024-02-29', TIME '12:34:56.789', TIMESTAMP '2024-02-29 12:34:56', typeof(TIMESTAMPTZ '2024-01-01 00:00:00+00')
SELECT TIMESTAMP_S '2024-01-01 00:00:00', TIMESTAMP_MS '2024-01-01 00:00:00.1', TIMESTAMP_NS '2024-01-01 00:00:00.123456789'
SELECT INTERVAL 1 DAY, INTERVAL '1' MONTH, INTERVAL '1 year 2 months', INTERVAL (id) HOUR FROM items
SELECT INTERVAL 90 MINUTES, INTERVAL 3 WEEKS, INTERVAL 1.5 SECONDS, -INTERVAL 2 QUARTERS, INTERVAL 1 DECADE
SELECT [1, 2, NULL], [], [[1], [2, 3]], ['a']
SELECT {'a': 1, 'b': 'x'}, {a: 1}, {'nested': {'c': [1]}}, struct_pack(k := 1), row(1, 'a')
SELECT MAP {'a': 1, 'b': 2}, MAP {}, MAP([1, 2], ['x', 'y']), MAP {[1]: 'k'}
SELECT array_value(1, 2, 3), [1, 2]::INTEGER[2]
SELECT union_value(num := 1), union_tag(union_value(num := 1))
SELECT 'NaN'::DOUBLE, 'Infinity'::FLOAT, '-inf'::DOUBLE, -0.0::DOUBLE
SELECT 'happy'::ENUM ('sad', 'happy'), 'b6a4b1c0-0000-0000-0000-000000000001'::UUID, '{"a": [1]}'::JSON
SELECT current_date = today(), current_user IS NOT NULL, current_schema

-- operators
SELECT 1 + 2 * 3 - 4 / 5 % 6, 7 // 2, 2 ** 3, 2 ^ 3, -(-1), 5!, ~5, @(-3), 1 << 3, 8 >> 1, 5 & 3, 5 | 3, xor(5, 3)
SELECT 'a' || 'b' || NULL, 'ab' ^@ 'a', [1] || [2], 1 = 1, 1 == 1, 1 <> 2, 1 != 2, 1 <= 2, NOT true
SELECT NULL IS NULL, 1 IS NOT NULL, 1 ISNULL, 1 NOTNULL, true IS TRUE, NULL IS NOT FALSE, NULL IS UNKNOWN
SELECT 1 IS DISTINCT FROM NULL, NULL IS NOT DISTINCT FROM NULL
SELECT id FROM items WHERE qty BETWEEN 1 AND 3 AND qty NOT BETWEEN 2 AND 2
SELECT id FROM items WHERE name IN ('apple', 'Pear') OR id NOT IN (1, 2)
SELECT id FROM items WHERE 'red' IN tags
SELECT id FROM items WHERE (id, name) IN ((1, 'apple'), (2, 'x'))
SELECT id FROM items WHERE (id, qty) IN (SELECT item_id, item_id FROM sales)
SELECT id FROM items WHERE (id, name) = (1, 'apple') OR (id, qty) < (2, 0)
SELECT id FROM items WHERE id = ANY (SELECT item_id FROM sales) AND id <> ALL (SELECT 2)
SELECT id FROM items WHERE id = ANY ([1, 3]) OR id > ALL ([4, 5])
SELECT id FROM items WHERE id >= SOME (SELECT 4)
SELECT id FROM items WHERE name LIKE 'a%' OR name NOT LIKE '%e%' OR name ILIKE 'P%' OR name LIKE 'a$%' ESCAPE '$'
SELECT id FROM items WHERE name ~~ 'a%' OR name !~~ '%e' OR name ~~* 'P%' OR name !~~* 'x' OR name ~~~ 'a*'
SELECT id FROM items WHERE name SIMILAR TO '[a-p].*' AND name NOT SIMILAR TO 'x.*'
SELECT id FROM items WHERE name GLOB '*e' OR name ~ 'a.*' OR name !~ 'p.*'
SELECT id FROM items WHERE name COLLATE NOCASE = 'PEAR'
SELECT name COLLATE NOCASE.NOACCENT < 'z' FROM items
SELECT (ts AT TIME ZONE 'UTC')::VARCHAR, ts AT TIME ZONE 'UTC' AT TIME ZONE 'UTC' FROM items
SELECT ts + INTERVAL 1 DAY, d - DATE '2024-01-01', d + 1, ts - ts FROM items
SELECT CASE id WHEN 1 THEN 'one' WHEN 2 THEN 'two' ELSE 'many' END, CASE WHEN flag THEN 1 END FROM items
SELECT if(flag, 'y', 'n'), ifnull(price, 0), nullif(id, 1), coalesce(price, qty, 0), greatest(1, id), least(1, id) FROM items
SELECT 1::VARCHAR, CAST('1' AS INTEGER), TRY_CAST('x' AS INTEGER), '1'::DECIMAL(5, 2), CAST(1.5 AS INT), id::DOUBLE FROM items
SELECT CAST([1, 2] AS VARCHAR[]), {'a': 1}::STRUCT(a VARCHAR), MAP {'a': 1}::MAP(VARCHAR, DOUBLE), 5::UTINYINT, 1::HUGEINT
SELECT 1::UNION(n INTEGER, s VARCHAR), 'x'::UNION(n INTEGER, s VARCHAR)
SELECT try(1 / 0), try(CAST('x' AS INTEGER))
SELECT extract(year FROM d), date_part('month', d), EXTRACT(epoch FROM ts), d.year() FROM items
SELECT substring(name FROM 2 FOR 2), substring(name, 2), trim(BOTH 'a' FROM name), trim(LEADING FROM name) FROM items
SELECT position('p' IN name), overlay(name PLACING 'zz' FROM 2 FOR 1) FROM items
SELECT name[1], name[2:3], name[-1], name[:2], name[2:] FROM items
SELECT tags[1], tags[-1], tags[1:2], tags[:], [1, 2, 3, 4][1:4:2], [1, 2, 3][:-:-1] FROM items
SELECT info.a, info['b'], info.b.upper(), (info).a, items.info.a FROM items
SELECT mp['x'], mp['none'], map_keys(mp), map_extract(mp, 'x') FROM items
SELECT '{"a": {"b": [1, 2]}}'::JSON -> 'a', '{"a": {"b": [1, 2]}}'::JSON ->> '$.a.b[0]', '{"k": 1}'::JSON -> '$.k'
SELECT name.upper().substring(1, 2), ('a').concat('b'), [3, 1, 2].list_sort() FROM items

-- functions, lambdas, comprehensions
SELECT list_transform([1, 2, 3], lambda x: x + 1), list_filter([1, 2, 3], lambda x: x > 1)
SELECT list_transform([1, 2], lambda x, i: x * i), list_reduce([1, 2, 3], lambda a, b: a + b)
SELECT [x + 1 for x in [1, 2, 3]], [x for x in [1, 2, 3] if x > 1], [upper(x) for x in tags] FROM items
SELECT list_transform(tags, lambda t: t || name) FROM items
SELECT apply([1, 2], lambda x: [y + x for y in [10, 20]])
SELECT list_aggregate([1, 2, 3], 'sum'), list_distinct([1, 1, 2]).list_sort(), flatten([[1], [2]]), list_zip([1], ['a'])
SELECT concat_ws('-', name, grp, NULL), format('{} is {:.1f}', name, 1.5), printf('%05d', id), lpad(name, 8, '*') FROM items
SELECT strftime(d, '%Y/%m'), date_trunc('month', ts), datediff('day', d, DATE '2024-03-01'), make_date(2024, 1, 2) FROM items
SELECT regexp_replace(name, '([a-e])', '<\1>', 'g'), regexp_extract(name, '(\w)(\w)', 2), string_split(name, 'p') FROM items
SELECT struct_extract(info, 'a'), struct_insert(info, c := 3), len(tags), cardinality(mp) FROM items
SELECT abs(-1), round(2.567, 2), ceil(1.2), floor(-1.2), sqrt(4), pi() > 3, mod(5, 3), sign(-2), bit_count(7), even(3.1)
SELECT hash(1) = hash(1), md5('a'), sha256('a'), typeof(price), alias(price) FROM items
SELECT getvariable('nothing'), pg_typeof(1), version() IS NOT NULL

-- aggregates
SELECT count(*), count(), count(price), count(DISTINCT grp), sum(qty), avg(qty), min(name), max(d) FROM items
SELECT sum(qty) FILTER (WHERE flag), count(*) FILTER (flag), sum(DISTINCT qty) FROM items
SELECT string_agg(name, ', ' ORDER BY id DESC), list(name ORDER BY price NULLS FIRST, id), array_agg(id ORDER BY id) FROM items
SELECT group_concat(DISTINCT grp ORDER BY grp), listagg(name, '|' ORDER BY id) FROM items
SELECT first(name ORDER BY id), last(name ORDER BY id), any_value(grp ORDER BY id), arg_max(name, id), min_by(name, id) FROM items
SELECT arg_max(name, id, 2), max(id, 2), min(id, 2) FROM items
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY qty), percentile_disc(0.5) WITHIN GROUP (ORDER BY qty DESC) FROM items
SELECT mode() WITHIN GROUP (ORDER BY grp), quantile_cont(qty, [0.25, 0.75]), median(qty), histogram(grp) FROM items
SELECT bool_and(flag), bool_or(flag), bit_or(id), product(id), stddev_pop(qty), var_samp(qty), corr(id, qty) > 0 FROM items
SELECT map_from_entries(list((name, id) ORDER BY id) FILTER (id < 3)) FROM items
SELECT grp, sum(sum(qty)) OVER (ORDER BY grp) FROM items GROUP BY grp
SELECT count(*) FROM items HAVING count(*) > 2

-- windows
SELECT id, row_number() OVER (ORDER BY id), rank() OVER (PARTITION BY grp ORDER BY qty), ntile(2) OVER (ORDER BY id) FROM items
SELECT id, sum(qty) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM items
SELECT id, sum(qty) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING), avg(qty) OVER (ORDER BY id ROWS 2 PRECEDING) FROM items
SELECT id, count(*) OVER (ORDER BY qty RANGE BETWEEN 1 PRECEDING AND CURRENT ROW) FROM items
SELECT id, count(*) OVER (ORDER BY d RANGE BETWEEN INTERVAL 5 DAYS PRECEDING AND INTERVAL 5 DAYS FOLLOWING) FROM items
SELECT id, sum(qty) OVER (ORDER BY qty GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM items
SELECT id, sum(qty) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING EXCLUDE CURRENT ROW) FROM items
SELECT id, sum(qty) OVER (ORDER BY qty RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES), max(id) OVER (ORDER BY qty RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP) FROM items
SELECT id, lag(name, 1, 'none') OVER w, lead(name) OVER w, nth_value(name, 2) OVER w FROM items WINDOW w AS (ORDER BY id)
SELECT id, sum(qty) OVER (w ROWS 1 PRECEDING) FROM items WINDOW w AS (PARTITION BY grp ORDER BY id), v AS (ORDER BY id)
SELECT id, first_value(price IGNORE NULLS) OVER (ORDER BY id), last_value(price RESPECT NULLS) OVER (ORDER BY id) FROM items
SELECT id, sum(qty) FILTER (WHERE flag) OVER (ORDER BY id), count(DISTINCT grp) OVER (ORDER BY id) FROM items
SELECT id, list(name ORDER BY id DESC) OVER (PARTITION BY grp) FROM items
SELECT id FROM items QUALIFY row_number() OVER (PARTITION BY grp ORDER BY id) = 1
SELECT id, rank() OVER (ORDER BY qty) AS r FROM items QUALIFY r <= 2
SELECT cume_dist() OVER (ORDER BY id), percent_rank() OVER (ORDER BY id), fill(price) OVER (ORDER BY id) FROM items

-- joins
SELECT i.id, s.amount FROM items i JOIN sales s ON s.item_id = i.id
SELECT i.id, s.amount FROM items i LEFT JOIN sales s ON s.item_id = i.id AND s.amount > 10
SELECT i.id, s.amount FROM items i RIGHT OUTER JOIN sales s ON s.item_id = i.id
SELECT i.id, s.amount FROM items i FULL OUTER JOIN sales s ON s.item_id = i.id
SELECT i.id, s.amount FROM items i, sales s WHERE s.item_id = i.id
SELECT count(*) FROM items CROSS JOIN sales
SELECT i.id FROM items i SEMI JOIN sales s ON s.item_id = i.id
SELECT i.id FROM items i ANTI JOIN sales s ON s.item_id = i.id
SELECT * FROM items JOIN stock USING (id)
SELECT id, bin FROM items NATURAL JOIN stock
SELECT * FROM (SELECT id FROM items) POSITIONAL JOIN (SELECT bin FROM stock)
SELECT s.id, q.rate FROM sales s ASOF JOIN rates q ON s.day >= q.since
SELECT s.id, q.rate FROM sales s ASOF LEFT JOIN rates q ON s.item_id = q.item_id AND s.day >= q.since
SELECT s.id, q.rate FROM sales s ASOF JOIN rates q USING (item_id, day)
SELECT i.id, v.n FROM items i, LATERAL (SELECT count(*) AS n FROM sales s WHERE s.item_id = i.id) v
SELECT i.id, v.day FROM items i LEFT JOIN LATERAL (SELECT day FROM sales s WHERE s.item_id = i.id ORDER BY day LIMIT 1) v ON true
SELECT i.id, u.t FROM items i, unnest(i.tags) AS u(t)
SELECT i.id, g.n FROM items i, range(i.id) AS g(n) WHERE i.id < 4
SELECT a.id, b.id FROM (items a JOIN stock b ON a.id = b.id) JOIN sales c ON c.item_id = a.id
SELECT a.id FROM ((items a JOIN (stock b JOIN sales c ON c.item_id = b.id) ON a.id = b.id))
SELECT a.id, b.id FROM items a JOIN items b ON a.id < b.id AND a.grp = b.grp
SELECT * FROM items i INNER JOIN sales s ON (i.id = s.item_id) WHERE (((s.amount > 1)))

-- subqueries and CTEs
SELECT (SELECT max(amount) FROM sales s WHERE s.item_id = i.id) FROM items i
SELECT id, (SELECT (amount, day) FROM sales s WHERE s.item_id = i.id ORDER BY s.id LIMIT 1) FROM items i
SELECT ARRAY(SELECT amount FROM sales s WHERE s.item_id = i.id ORDER BY amount) FROM items i
SELECT id FROM items i WHERE EXISTS (SELECT 1 FROM sales s WHERE s.item_id = i.id) AND NOT EXISTS (SELECT 1 WHERE i.id = 2)
SELECT * FROM (SELECT id, name FROM items) AS q(a, b) WHERE a > 1
SELECT * FROM (FROM items WHERE id = 1)
WITH a AS (SELECT id FROM items), b(n) AS (SELECT id + 1 FROM a) SELECT * FROM a JOIN b ON a.id = b.n
WITH a AS MATERIALIZED (SELECT id FROM items) SELECT * FROM a x JOIN a y USING (id)
WITH a AS NOT MATERIALIZED (FROM items) SELECT count(*) FROM a
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT n FROM r
WITH RECURSIVE r AS (SELECT 1 AS n UNION SELECT (n % 3) + 1 FROM r) FROM r
WITH RECURSIVE r(k, v) USING KEY (k) AS (SELECT 1, 0 UNION SELECT k, v + 1 FROM r WHERE v < 3) FROM r
WITH items AS (SELECT 7 AS id) SELECT id FROM items
SELECT * FROM (WITH a AS (SELECT 1 AS n) SELECT n FROM a)
SELECT id FROM items UNION SELECT item_id FROM sales
SELECT id FROM items UNION ALL SELECT item_id FROM sales ORDER BY 1 LIMIT 4
SELECT id, name FROM items UNION ALL BY NAME SELECT day, id FROM sales
SELECT id FROM items INTERSECT SELECT item_id FROM sales
SELECT id FROM items EXCEPT SELECT item_id FROM sales
SELECT item_id FROM sales EXCEPT ALL SELECT 1
(SELECT id FROM items ORDER BY id LIMIT 1) UNION ALL (SELECT id FROM stock ORDER BY id DESC LIMIT 1)
((SELECT 1 AS n)) UNION (SELECT 2 INTERSECT SELECT 2)

-- PIVOT, UNPIVOT, SUMMARIZE, DESCRIBE, SHOW
PIVOT items ON grp USING sum(qty)
PIVOT items ON grp IN ('fruit', 'veg') USING sum(qty) AS total, count(*) AS n GROUP BY flag
PIVOT (SELECT id, grp, qty FROM items) ON grp USING max(qty) GROUP BY id ORDER BY id LIMIT 3
PIVOT_WIDER items ON flag, grp USING count(*)
SELECT * FROM items PIVOT (sum(qty) FOR grp IN ('fruit', 'veg') GROUP BY flag)
UNPIVOT (SELECT id, qty, price FROM items) ON qty, price INTO NAME what VALUE number
UNPIVOT (SELECT id, qty AS a, id AS b FROM items) ON COLUMNS(* EXCLUDE (id))
SELECT * FROM (SELECT id, qty AS a, id AS b FROM items) UNPIVOT INCLUDE NULLS (v FOR n IN (a, b))
FROM (SUMMARIZE SELECT id, qty FROM items) SELECT column_name, min, max, count
FROM (DESCRIBE items) SELECT column_name, column_type
SELECT name FROM (SHOW TABLES) WHERE name IN ('items', 'sales')
SELECT column_name FROM (DESCRIBE SELECT 1 AS a, 'x' AS b)

-- table functions
SELECT * FROM range(3)
SELECT * FROM generate_series(1, 10, 4) AS g(n)
SELECT * FROM unnest([1, 2, 3]) WITH ORDINALITY AS u(v, o)
SELECT * FROM unnest([{'a': 1, 'b': 2}])
SELECT * FROM repeat(7, 2)
SELECT count(*) > 0 FROM duckdb_functions()
SELECT table_name FROM information_schema.tables WHERE table_name = 'items'
SELECT name FROM pragma_table_info('items')
SELECT * FROM query('SELECT 1 AS one')
SELECT id FROM query_table('items')
SELECT * FROM query_table(['small', 'small'])
SELECT * FROM json_each('{"a": 1, "b": 2}')

-- spelling
select ID from ITEMS where ID<3 and NAME<>'x'
SELECT/* a comment */id/**/FROM/* another */items-- the end
FROM items SELECT id -- it's the end
SELECT id,name,FROM items
SELECT id FROM items WHERE ((((id)) = (1)))
SELECT (id) AS id, ((id) + (1)) AS n FROM (items)
SELECT "i"."id" AS "i.id", "i"."name" FROM "memory"."main"."items" AS "i"
FROM items SELECT id --'not a string
SELECT '-- no comment' AS a, '/* nor this */' AS b, 'm' AS c, '{{content}}' AS d, '?' AS e, '$1' AS f
SELECT 1 AS "a""b", 2 AS "ü", 3 AS "a b", 4 AS "m"
SELECT answer FROM (SELECT 'a table''s' AS answer)
SELECT content FROM (SELECT 'c' AS content) AS m2
SELECT comment, begin, call, update FROM (SELECT 1 AS comment, 2 AS begin, 3 AS call, 4 AS update)
