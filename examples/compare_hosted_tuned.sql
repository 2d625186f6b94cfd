-- And fine-tuned at the provider, which costs money: after compare_hosted.sql, `make compare COMPARE_TUNE=1` does it.  The
-- provider and the model must be ones that train (docs/providers.md): COMPARE_BASE_URL and COMPARE_MODEL name them.
CREATE OR REPLACE MODEL hosted_tuned PREDICT sql
USING engine = 'hosted', base = 'gpt-6-luna', max_tokens = 128, prompt_template = '{{context}}
{{question}}';
FINETUNE hosted_tuned FROM compare (
  SELECT context, question, answer AS sql FROM sql_rows WHERE split = 'train' AND i <= getvariable('learned')
) USING n_epochs = 3;
EVALUATE MODEL hosted_tuned.2 ON (SELECT * FROM sql_questions)
USING metrics = ['execution_accuracy', 'exact_match'], schema = 'context', exact_match.normalise = true;
INSERT INTO ways VALUES (7, 'text to SQL', 'hosted_tuned', 2, 'hosted, fine-tuned');
