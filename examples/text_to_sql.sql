-- Teach a small language model to write SQL, on this machine, and see what it learnt.  From the repository's folder:
--
--     sqlft shell demo.duckdb -f examples/text_to_sql.sql

-- 200 questions about tables, each with its SQL (examples/data/LICENSE): 160 to learn from, 40 about other tables to judge by.
CREATE OR REPLACE TABLE questions AS FROM read_csv('examples/data/text_to_sql.csv');
SELECT split, count(*) AS questions, any_value(question) AS for_example FROM questions GROUP BY split;

-- A model is a base and a prompt: {{context}} and {{question}} are its inputs, sql is its output.
CREATE OR REPLACE MODEL text_to_sql PREDICT sql
USING engine = 'local', base = 'smollm2-135m', max_tokens = 64, prompt_template = '{{context}}
{{question}}';

-- Version 1 is the base as it came: it talks, but nobody told it what about.
SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE singers (name VARCHAR, country VARCHAR, age INTEGER)'
  AND question = 'Which singers are from France?';

-- Version 2 learns from the answers.  `demo` is the database that the rows are in.
FINETUNE text_to_sql FROM demo (
  SELECT context, question, answer AS sql FROM questions WHERE split = 'train'
) USING max_minutes = 3;

-- The same question again; the new version is the active one.
SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE singers (name VARCHAR, country VARCHAR, age INTEGER)'
  AND question = 'Which singers are from France?';

-- Now both versions answer the 40 questions that neither has seen.
CREATE OR REPLACE TABLE answers AS
SELECT q.question, q.answer AS expected, before.sql AS version_1, after.sql AS version_2
FROM questions q
JOIN text_to_sql.1 before ON before.context = q.context AND before.question = q.question
JOIN text_to_sql.2 after ON after.context = q.context AND after.question = q.question
WHERE q.split = 'dev';

SELECT unnest(['asked', 'expected', 'version 1', 'version 2']) AS who,
       unnest([question, expected, version_1, version_2]) AS said
FROM (FROM answers ORDER BY length(expected) LIMIT 3);

-- Exact match: the answer is the expected SQL, letter for letter.
-- Token similarity: how many of their words and signs two texts share, 1 if all.
CREATE OR REPLACE MACRO tokens(text) AS list_distinct(regexp_extract_all(lower(text), '\w+|[^\w\s]'));
CREATE OR REPLACE MACRO similarity(a, b) AS
  2 * len(list_intersect(tokens(a), tokens(b))) / (len(tokens(a)) + len(tokens(b)));

WITH judged AS (
  UNPIVOT (SELECT expected, version_1 AS "1", version_2 AS "2" FROM answers) ON "1", "2" INTO NAME version VALUE answer
), asked AS (
  SELECT version::VARCHAR AS version, sum(seconds) AS seconds, sum(input_tokens + output_tokens) AS tokens
  FROM sqlft.usage WHERE model = 'text_to_sql' GROUP BY ALL
)
SELECT 'text_to_sql.' || version AS model,
       format('{:.0f} %', 100 * avg((trim(answer) = expected)::INTEGER)) AS exact_match,
       round(avg(similarity(answer, expected)), 2) AS similarity,
       round(any_value(v.seconds)) AS training_s,
       round(any_value(a.seconds)) AS asking_s,
       any_value(a.tokens)::BIGINT AS tokens
FROM judged JOIN asked a USING (version) JOIN sqlft.versions v ON v.model = 'text_to_sql' AND v.version::VARCHAR = a.version
GROUP BY version ORDER BY version;

-- What to type next, in the shell on the same file.
SELECT unnest([
  'DESCRIBE text_to_sql.2;',
  'SELECT step, name, value FROM sqlft.metrics WHERE name LIKE ''%loss'';',
  'FINETUNE text_to_sql FROM (SELECT context, question, answer AS sql',
  '  FROM questions) USING n_epochs = 1, learning_rate = 0.001;',
  'SELECT sql FROM text_to_sql WHERE question = ''How many rows?''',
  '  AND context = ''CREATE TABLE t (a INTEGER)'';'
]) AS what_to_type_next;
