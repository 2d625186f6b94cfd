SELECT * FROM (PIVOT (SELECT 'column_' || i AS name, i * 1000 AS value FROM range(10, 40) t(i)) ON name USING sum(value));
SELECT 1 AS id, repeat('a long answer ', 30) AS answer, repeat('z', 70) AS other;
