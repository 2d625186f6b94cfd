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

-- One of the 40 questions to judge by.  Version 1 is the base as it came: it talks, but nobody told it what about.
SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE table_name_30 (player VARCHAR, position VARCHAR)' AND question = 'Who plays linebacker?';

-- Version 2 learns from the 160 others.  `demo` is the database that the rows are in.
FINETUNE text_to_sql FROM demo (
  SELECT context, question, answer AS sql FROM questions WHERE split = 'train'
) USING max_minutes = 3;

-- The same question again; the new version is the active one.
SELECT sql FROM text_to_sql
WHERE context = 'CREATE TABLE table_name_30 (player VARCHAR, position VARCHAR)' AND question = 'Who plays linebacker?';

-- Is it better?  Both versions answer the 40 questions that neither has learnt from.  exact_match: it is the expected SQL;
-- execution_accuracy: it finds the same rows, on tables made from the context.
EVALUATE MODEL text_to_sql.1, text_to_sql.2 ON demo (
  SELECT context, question, answer AS sql FROM questions WHERE split = 'dev'
) USING metrics = ['exact_match', 'execution_accuracy'], schema = 'context';

-- Some that it has right now, and some that it has not.
SELECT unnest(['asked', 'expected', if(score = 1, 'right', 'wrong')]) AS what,
       unnest([input ->> 'question', actual, prediction]) AS text
FROM (
  FROM sqlft.evaluation_rows
  WHERE model = 'text_to_sql' AND version = 2 AND metric = 'exact_match'
  QUALIFY row_number() OVER (PARTITION BY score ORDER BY length(actual), row_number) <= 2
  ORDER BY score DESC, length(actual)
);

-- All that is known of the model, in one HTML file to look at.
REPORT MODEL text_to_sql;

-- What to type next, in the shell on the same file.
SELECT unnest([
  '.plot loss',
  'DESCRIBE text_to_sql.2;',
  'SELECT sql FROM text_to_sql WHERE question = ''How many rows?''',
  '  AND context = ''CREATE TABLE t (a INTEGER)'';',
  'FINETUNE text_to_sql FROM (SELECT context, question, answer AS sql',
  '  FROM questions WHERE split = ''train'') USING n_epochs = 1;',
  'EVALUATE MODEL text_to_sql.2, text_to_sql.3 ON (SELECT context, question,',
  '  answer AS sql FROM questions WHERE split = ''dev'');'
]) AS what_to_type_next;
