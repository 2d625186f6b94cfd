EXPLAIN FINETUNE ft FROM db (SELECT * FROM t) USING n_epochs = 2
--> ExplainTraining(training=Finetune(name=ft, source=<db('SELECT * FROM t')>, options={n_epochs: 2}))

explain finetune model p.ft.3 from (SELECT ? AS a) using x = ?;
--> ExplainTraining(training=Finetune(name=p.ft.3, source=<('SELECT ? AS a') ? [1]>, options={x: Parameter(key=2)}))

EXPLAIN /* what */ RETRAIN ft
--> ExplainTraining(training=Retrain(name=ft))

EXPLAIN CREATE OR REPLACE MODEL m FROM (SELECT 1) PREDICT a USING engine = 'local'
--> ExplainTraining(training=CreateModel(name=m, predict='a', source=<('SELECT 1')>, options={engine: 'local'}, or_replace=True))

EXPLAIN CREATE MODEL m PREDICT a
--> error 1:33: This model is not trained by CREATE MODEL: there is nothing to explain. -> Write: EXPLAIN CREATE MODEL name FROM (SELECT …) PREDICT …, or EXPLAIN FINETUNE name FROM (SELECT …)

EXPLAIN ANALYZE FINETUNE ft FROM (SELECT 1)
--> error 1:9: A training cannot be run to be explained. -> EXPLAIN FINETUNE … shows what it would take, without ANALYZE.

EXPLAIN SELECT 42
--> Plain(sql='EXPLAIN SELECT 42')

EXPLAIN ANALYZE SELECT 42
--> Plain(sql='EXPLAIN ANALYZE SELECT 42')

EXPLAIN CREATE TABLE model AS SELECT 1
--> Plain(sql='EXPLAIN CREATE TABLE model AS SELECT 1')

ANALYZE TRAINING DATA FROM (SELECT * FROM t)
--> AnalyzeTrainingData(source=<('SELECT * FROM t')>)

analyze training data from db (SELECT 1) for model p.ft.2 using stop = ['END']
--> AnalyzeTrainingData(source=<db('SELECT 1')>, model=p.ft.2, options={stop: ['END']})

ANALYZE TRAINING DATA FOR ft FROM (SELECT 1)
--> AnalyzeTrainingData(source=<('SELECT 1')>, model=ft)

ANALYZE TRAINING DATA
--> error 1:22: Found the end of the statement, expected FOR or FROM. -> Write: ANALYZE TRAINING DATA FROM [db] (query)|table [FOR [MODEL] name[.N]] [USING …]

ANALYZE training
--> Plain(sql='ANALYZE training')

ANALYZE
--> Plain(sql='ANALYZE')
