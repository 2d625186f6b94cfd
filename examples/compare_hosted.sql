-- The same questions to a hosted model: with a good prompt, and step by step in the way of DIN-SQL (Pourreza and Rafiei
-- 2023): which columns, how hard, a draft, a second look; a chain of models in one query.  After compare.sql, in the same
-- session, with an engine of the name `hosted`; `make compare COMPARE_MODEL=gpt-6-luna` does all that.
CREATE OR REPLACE MODEL hosted_prompted PREDICT sql
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 128,
  system = 'You translate questions to SQL. Use only the table and columns that are given. Write one SELECT statement on one line, and nothing else: no explanation, no Markdown.',
  prompt_template = 'Table: {{context}}
Question: {{question}}
SQL:';
CREATE OR REPLACE MODEL hosted_game PREDICT meaning
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 128,
  system = 'You write the meaning of sentences about video games, as in these examples, and nothing else.',
  prompt_template = '{{examples}}

{{target}}';
CREATE OR REPLACE MODEL din_links PREDICT links
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 128,
  system = 'Find the schema links of a question: the columns that it needs, and the values that it names, as a list [table.column, …, value, …]. Write the list and nothing else.',
  prompt_template = 'Tables: {{context}}
Question: {{question}}
Schema links:';
CREATE OR REPLACE MODEL din_class PREDICT class
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 8,
  system = 'Classify the SQL that a question needs. EASY: neither JOIN nor nested query. NON-NESTED: JOIN, but no nested query. NESTED: a nested query, INTERSECT, UNION or EXCEPT. Write one of these words and nothing else.',
  prompt_template = 'Tables: {{context}}
Question: {{question}}
Schema links: {{links}}
Class:';
CREATE OR REPLACE MODEL din_draft PREDICT draft
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 128,
  system = 'You translate questions to SQL with the help of schema links and a class: EASY needs no JOIN, NON-NESTED needs JOINs, NESTED needs a query within. Write the SQL on one line, and nothing else.',
  prompt_template = 'Tables: {{context}}
Question: {{question}}
Schema links: {{links}}
Class: {{class}}
SQL:';
CREATE OR REPLACE MODEL din_sql PREDICT sql
USING engine = 'hosted', base = 'gpt-6-luna', reasoning_effort = 'none', max_tokens = 128,
  system = 'Look for mistakes in a SQL query and mend them: wrong columns, missing conditions, needless columns, wrong grouping or order. If there are none, repeat it. Write the SQL on one line, and nothing else.',
  prompt_template = 'Tables: {{context}}
Question: {{question}}
SQL: {{draft}}
Mended SQL:';

EVALUATE MODEL hosted_prompted ON (SELECT * FROM sql_questions)
USING metrics = ['execution_accuracy', 'exact_match'], schema = 'context', exact_match.normalise = true;
EVALUATE MODEL din_sql ON (
  SELECT q.context, q.question, q.sql, d.draft
  FROM sql_questions q
  JOIN din_links l ON l.context = q.context AND l.question = q.question
  JOIN din_class c ON c.context = q.context AND c.question = q.question AND c.links = l.links
  JOIN din_draft d ON d.context = q.context AND d.question = q.question AND d.links = l.links AND d.class = c.class
) USING metrics = ['execution_accuracy', 'exact_match'], schema = 'context', exact_match.normalise = true;
EVALUATE MODEL hosted_game ON (SELECT * FROM game_questions)
USING metrics = ['function_match', 'exact_match'], exact_match.normalise = true;

INSERT INTO ways VALUES
  (5, 'text to SQL', 'hosted_prompted', 1, 'hosted, good prompt'), (6, 'text to SQL', 'din_sql', 1, 'hosted, DIN-SQL'),
  (15, 'ViGGO', 'hosted_game', 1, 'hosted, three examples');
