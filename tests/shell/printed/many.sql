SELECT i AS id, 'row ' || i AS name FROM range(100) t(i);
SELECT i AS id FROM range(40) t(i);
