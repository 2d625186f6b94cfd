SET TimeZone = 'UTC';
CREATE TABLE kinds AS SELECT * FROM (VALUES
  (1, true, 1.50::DECIMAL(9,2), 0.1::DOUBLE, 'plain', DATE '2024-02-29', TIMESTAMPTZ '2024-02-29 12:00:00+00', [1, NULL], {'a': 1, 'b': 'x'}, 170141183460469231731687303715884105727::HUGEINT),
  (NULL, NULL, NULL, 'NaN', 'NULL', 'infinity', NULL, [], NULL, -1),
  (-7, false, -0.01, '-inf', '', '0044-03-15 (BC)', '1970-01-01 00:00:00.000001+00', NULL, {'a': NULL, 'b': 'it''s'}, 0)
) t(i, b, d, f, s, day, moment, list, pair, big);
SELECT i, b, d, f, s FROM kinds;
SELECT day, moment, list, pair, big FROM kinds;
SELECT MAP {'k': 1} AS m, INTERVAL 1 DAY AS i, '\x00\xFF'::BLOB AS blob, '{"a": [1, 2]}'::JSON AS j, [0.5, 'NaN'::DOUBLE] AS floats;
