-- Is fine-tuning worth it?  The base model as it came, with a good prompt, with examples in the prompt, and fine-tuned,
-- on two tasks: questions to SQL, and sentences to meaning representations.  Every number is measured here.
--
--     make compare                 or: sqlft shell compare.duckdb -f examples/compare.sql -f examples/compare_tables.sql
--     make compare SIZE=small      a few rows of each, in a minute or two
SET VARIABLE learned = CASE WHEN getvariable('size') = 'small' THEN 24 ELSE 160 END;
SET VARIABLE judged = CASE WHEN getvariable('size') = 'small' THEN 6 ELSE 40 END;

-- What an hour of the machine costs, for the costs below.  0.475 USD was the GPU of the articles: put your own.
SET sqlft_machine_usd_per_hour = 0.475;

-- The data, 200 rows each (examples/data/LICENSE); dev rows are about other tables than train rows.
CREATE OR REPLACE TABLE sql_rows AS
SELECT *, row_number() OVER (PARTITION BY split) AS i FROM read_csv('examples/data/text_to_sql.csv');
CREATE OR REPLACE TABLE game_rows AS
SELECT *, row_number() OVER (PARTITION BY split) AS i FROM read_csv('examples/data/viggo.csv');

-- The questions, each with the same three examples from the train rows for those who look at them.
CREATE OR REPLACE TABLE sql_questions AS
SELECT context, question, answer AS sql, (
  SELECT string_agg(concat_ws(chr(10), context, question, answer), chr(10) || chr(10) ORDER BY i)
  FROM sql_rows WHERE split = 'train' AND i <= 3
) AS examples
FROM sql_rows WHERE split = 'dev' AND i <= getvariable('judged');
CREATE OR REPLACE TABLE game_questions AS
SELECT target, meaning_representation AS meaning, (
  SELECT string_agg(concat_ws(chr(10), target, meaning_representation), chr(10) || chr(10) ORDER BY i)
  FROM game_rows WHERE split = 'train' AND i <= 3
) AS examples
FROM game_rows WHERE split = 'dev' AND i <= getvariable('judged');

-- The ways to ask.  Version 1 of sql_model is the base as it came, version 2 will be the fine-tuned one.
CREATE OR REPLACE MODEL sql_model PREDICT sql
USING engine = 'local', base = 'smollm2-135m', max_tokens = 64, prompt_template = '{{context}}
{{question}}';
CREATE OR REPLACE MODEL sql_prompted PREDICT sql
USING engine = 'local', base = 'smollm2-135m', max_tokens = 64,
  system = 'You translate questions to SQL. Use only the table and columns that are given. Write one SELECT statement on one line, and nothing else: no explanation, no Markdown.',
  prompt_template = 'Table: {{context}}
Question: {{question}}
SQL:';
CREATE OR REPLACE MODEL sql_few_shot PREDICT sql
USING engine = 'local', base = 'smollm2-135m', max_tokens = 64,
  system = 'You translate questions to SQL, as in these examples. Write the SQL and nothing else.',
  prompt_template = '{{examples}}

{{context}}
{{question}}';
CREATE OR REPLACE MODEL game_model PREDICT meaning
USING engine = 'local', base = 'smollm2-135m', max_tokens = 96, prompt_template = '{{target}}';
CREATE OR REPLACE MODEL game_prompted PREDICT meaning
USING engine = 'local', base = 'smollm2-135m', max_tokens = 96,
  system = 'You write the meaning of a sentence about a video game as function(attribute[value, value], attribute[value]) and nothing else. Functions: inform, request, give_opinion, confirm, verify_attribute, suggest, request_explanation, recommend, request_attribute. Attributes: name, exp_release_date, release_year, developer, esrb, rating, genres, player_perspective, has_multiplayer, platforms, available_on_steam, has_linux_release, has_mac_release, specifier.',
  prompt_template = 'Sentence: {{target}}
Meaning:';
CREATE OR REPLACE MODEL game_few_shot PREDICT meaning
USING engine = 'local', base = 'smollm2-135m', max_tokens = 96,
  system = 'You write the meaning of sentences about video games, as in these examples, and nothing else.',
  prompt_template = '{{examples}}

{{target}}';

FINETUNE sql_model FROM compare (
  SELECT context, question, answer AS sql FROM sql_rows WHERE split = 'train' AND i <= getvariable('learned')
) USING max_minutes = 10;
FINETUNE game_model FROM compare (
  SELECT target, meaning_representation AS meaning FROM game_rows WHERE split = 'train' AND i <= getvariable('learned')
) USING max_minutes = 10;

-- Loaded beforehand, so that loading counts for nobody's seconds.
SELECT sql FROM sql_model.1 WHERE context = 'a' AND question = 'a' USING cache = false, max_tokens = 1;
SELECT sql FROM sql_model.2 WHERE context = 'a' AND question = 'a' USING cache = false, max_tokens = 1;
SELECT meaning FROM game_model.2 WHERE target = 'a' USING cache = false, max_tokens = 1;

-- Everyone answers the same questions.  execution_accuracy: the SQL gives the expected rows on databases made from the
-- schema; function_match: the same function, attributes and values, in any order.
EVALUATE MODEL sql_model.1, sql_prompted, sql_few_shot, sql_model.2 ON (SELECT * FROM sql_questions)
USING metrics = ['execution_accuracy', 'exact_match'], schema = 'context', exact_match.normalise = true;
EVALUATE MODEL game_model.1, game_prompted, game_few_shot, game_model.2 ON (SELECT * FROM game_questions)
USING metrics = ['function_match', 'exact_match'], exact_match.normalise = true;

CREATE OR REPLACE TABLE ways AS FROM (VALUES
  (1, 'text to SQL', 'sql_model', 1, 'as it came'), (2, 'text to SQL', 'sql_prompted', 1, 'good prompt'),
  (3, 'text to SQL', 'sql_few_shot', 1, 'three examples'), (4, 'text to SQL', 'sql_model', 2, 'fine-tuned'),
  (11, 'ViGGO', 'game_model', 1, 'as it came'), (12, 'ViGGO', 'game_prompted', 1, 'good prompt'),
  (13, 'ViGGO', 'game_few_shot', 1, 'three examples'), (14, 'ViGGO', 'game_model', 2, 'fine-tuned')
) t(place, task, model, version, way);

CREATE OR REPLACE VIEW comparison AS
SELECT w.place, w.task, w.way, m.value AS right_share, m.low, m.high, e.value AS exact_match,
       m.difference, m.p_value, m.wins, m.losses,
       m.seconds + coalesce(s.seconds, 0) AS seconds,
       1000 * (m.cost_usd + if(s.model IS NULL, 0, s.cost_usd)) AS usd_per_1000, v.seconds AS training_s, c.training_cost_usd
FROM ways w
JOIN sqlft.evaluations m ON m.model = w.model AND m.version = w.version AND m.metric <> 'exact_match'
JOIN sqlft.evaluations e ON e.model = w.model AND e.version = w.version AND e.metric = 'exact_match'
JOIN sqlft.versions v ON v.model = w.model AND v.version = w.version
LEFT JOIN (
  SELECT model, version, sum(training_cost_usd) AS training_cost_usd FROM sqlft.costs GROUP BY ALL
) c ON c.model = w.model AND c.version = w.version
LEFT JOIN (  -- the steps before the last of a chain of hosted models: examples/compare_hosted.sql
  SELECT 'din_sql' AS model, sum(seconds) / getvariable('judged') AS seconds,
         CASE WHEN count(*) = count(cost_usd) THEN sum(cost_usd) / getvariable('judged') END AS cost_usd
  FROM sqlft.usage WHERE model IN ('din_links', 'din_class', 'din_draft') HAVING count(*) > 0
) s ON s.model = w.model;
