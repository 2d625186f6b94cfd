-- What compare.sql measured, as tables.
-- right: the share of right answers (execution accuracy, function match), and its 95 % interval.
SELECT task, way, format('{:.0f} %', 100 * right_share) AS "right",
       format('{:.0f}-{:.0f} %', 100 * low, 100 * high) AS "95 %", format('{:.0f} %', 100 * exact_match) AS exact,
       round(seconds, 3) AS s_a_question, round(usd_per_1000, 4) AS usd_per_1000, round(training_s) AS training_s,
       round(training_cost_usd, 4) AS training_usd
FROM comparison ORDER BY place;

-- The fine-tuned version against the others: better or worse on how many questions, how much faster and cheaper.
SELECT t.task, 'fine-tuned against ' || o.way AS compared,
       format('{:+.0f} %', 100 * (t.right_share - o.right_share)) AS "right",
       format('{:.1f} times as fast', o.seconds / t.seconds) AS speed,
       format('{:.1f} times as cheap', o.usd_per_1000 / t.usd_per_1000) AS cost
FROM comparison t JOIN comparison o ON t.task = o.task AND o.way <> t.way
WHERE t.way = 'fine-tuned' ORDER BY t.place, o.place;

-- And whether that can be chance: McNemar's test of the fine-tuned version against the base as it came.
SELECT task, wins, losses, p_value FROM comparison WHERE way = 'fine-tuned' ORDER BY place;
