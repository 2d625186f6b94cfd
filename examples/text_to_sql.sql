-- Teach a small language model to write SQL, on this machine, and see what it learned.
-- From the repository's folder: sqlft shell -f examples/text_to_sql.sql

-- 200 questions about tables, each with its SQL (data/LICENSE): 160 to learn from, 40 about other tables to judge by.
ATTACH IF NOT EXISTS ':memory:' AS example_db;
CREATE OR REPLACE TABLE example_db.questions AS FROM read_csv('examples/data/text_to_sql.csv');
SELECT split, count(*) AS questions, any_value(question) AS for_example FROM example_db.questions GROUP BY split;

-- A model is a name for a base and a prompt; {{context}} and {{question}} are its inputs, sql is its output.
CREATE OR REPLACE MODEL text_to_sql PREDICT sql
USING engine = 'local', base = 'smollm2-135m', prompt_template = '{{context}}
{{question}}';

-- Version 1 is the base as it came. It talks, but it has not been told what about.
SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE singers (name VARCHAR, country VARCHAR, age INTEGER)'
  AND question = 'Which singers are from France?'
USING max_tokens = 64;

-- Version 2 learns from the answers.
FINETUNE text_to_sql FROM example_db (
  SELECT context, question, answer AS sql FROM questions WHERE split = 'train'
) USING n_epochs = 3, batch_size = 8, learning_rate = 0.004;

SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE singers (name VARCHAR, country VARCHAR, age INTEGER)'
  AND question = 'Which singers are from France?'
USING max_tokens = 64;

-- Both versions answer the questions that neither has seen.
CREATE OR REPLACE TEMP TABLE answers AS
SELECT q.question, q.answer AS expected, before.sql AS version_1, after.sql AS version_2
FROM example_db.questions q
JOIN text_to_sql.1 before ON before.context = q.context AND before.question = q.question
JOIN text_to_sql.2 after ON after.context = q.context AND after.question = q.question
WHERE q.split = 'dev'
USING max_tokens = 64;

SELECT expected, version_1, version_2 FROM answers LIMIT 5;

-- Exact match: the answer is the expected SQL, letter for letter. Token similarity: the share of words and signs in common.
CREATE OR REPLACE TEMP MACRO words(t) AS regexp_extract_all(lower(t), '\w+|[^\w\s]');
CREATE OR REPLACE TEMP MACRO similarity(a, b) AS
  2 * len(list_intersect(words(a), words(b))) / (len(list_distinct(words(a))) + len(list_distinct(words(b))));

WITH judged AS (
  UNPIVOT (SELECT expected, version_1 AS "1", version_2 AS "2" FROM answers) ON "1", "2" INTO NAME version VALUE answer
), asked AS (
  SELECT version::VARCHAR AS version, sum(input_tokens + output_tokens)::BIGINT AS tokens, sum(seconds) AS seconds
  FROM sqlft.usage WHERE model = 'text_to_sql' GROUP BY version
)
SELECT 'text_to_sql.' || version AS model,
       round(100 * avg((trim(answer) = expected)::INTEGER), 1) AS exact_match_percent,
       round(avg(similarity(answer, expected)), 3) AS token_similarity,
       any_value(round(seconds, 1)) AS seconds_of_asking,
       any_value(tokens) AS tokens_of_asking
FROM judged JOIN asked USING (version) GROUP BY version ORDER BY version;

SELECT unnest([
  'DESCRIBE text_to_sql.2                                       -- what the version was made of',
  'SELECT * FROM sqlft.metrics WHERE model = ''text_to_sql''      -- how its loss fell',
  'FINETUNE text_to_sql FROM example_db (SELECT …) USING …      -- version 3, with more rows or epochs',
  'SELECT sql FROM text_to_sql WHERE context = … AND question = …'
]) AS "what to type next, in: sqlft shell";
