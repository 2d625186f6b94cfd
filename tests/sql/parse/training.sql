FINETUNE ft_sql FROM example_db (SELECT * FROM demo_data.chats LIMIT 300)
--> Finetune(name=ft_sql, source=<example_db('SELECT * FROM demo_data.chats LIMIT 300')>)

FINETUNE MODEL ft_sql.2 FROM (SELECT 1) USING n_epochs = 3, tag = 'b'
--> Finetune(name=ft_sql.2, source=<('SELECT 1')>, options={n_epochs: 3, tag: 'b'})

FINETUNE mindsdb.ft_sql FROM db (SELECT 1) USING a = 1, b = null
--> Finetune(name=mindsdb.ft_sql, source=<db('SELECT 1')>, options={a: 1, b: None})

FINETUNE p . ft . 10 FROM db (SELECT 1)
--> Finetune(name=p.ft.10, source=<db('SELECT 1')>)

FINETUNE 'ft'.3 FROM "db" (SELECT 1)
--> Finetune(name=ft.3, source=<db('SELECT 1')>)

FINETUNE model FROM db (SELECT 1)
--> Finetune(name=model, source=<db('SELECT 1')>)

FINETUNE MODEL model.1 FROM db (SELECT 1)
--> Finetune(name=model.1, source=<db('SELECT 1')>)

FINETUNE ft FROM db (SELECT ';' AS x; SELECT 2;) USING a = 1; SELECT 3
--> Finetune(name=ft, source=<db("SELECT ';' AS x; SELECT 2")>, options={a: 1})
--> Plain(sql='SELECT 3')

RETRAIN ft
--> Retrain(name=ft)

RETRAIN MODEL p.ft FROM db (SELECT 1) USING wait = false
--> Retrain(name=p.ft, source=<db('SELECT 1')>, options={wait: False})

RETRAIN model USING a = 1
--> Retrain(name=model, options={a: 1})

CANCEL MODEL ft.2; RESUME MODEL ft.2; cancel model.2; resume model ft.2 using wait = true
--> CancelModel(name=ft.2)
--> ResumeModel(name=ft.2)
--> CancelModel(name=model.2)
--> ResumeModel(name=ft.2, options={wait: True})

SET active ft.2
--> SetActive(name=ft.2)

SET ACTIVE = p.ft.2;
--> SetActive(name=p.ft.2)

SET MODEL_ACTIVE = ft.2
--> SetActive(name=ft.2)

set model_active to "ft".2
--> SetActive(name=ft.2)

SET active model.1
--> SetActive(name=model.1)

EVALUATE accuracy FROM (SELECT a AS actual, b AS prediction FROM t)
--> Evaluate(metrics=('accuracy'), source=<('SELECT a AS actual, b AS prediction FROM t')>)

EVALUATE accuracy, rouge_l FROM db (SELECT 1) USING adjusted = 1
--> Evaluate(metrics=('accuracy', 'rouge_l'), source=<db('SELECT 1')>, options={adjusted: 1})

EVALUATE MODEL ft.1, ft.2 ON (SELECT * FROM t) USING metric = 'f1'
--> Evaluate(metrics=(), source=<('SELECT * FROM t')>, models=(ft.1, ft.2), options={metric: 'f1'})

EVALUATE KNOWLEDGE_BASE docs, p.other ON judged USING metrics = ['recall@10'], search = ['meaning', 'both']
--> EvaluateKnowledgeBase(names=(docs, p.other), source=<('SELECT * FROM judged')>, options={metrics: ['recall@10'], search: ['meaning', 'both']})

EVALUATE KNOWLEDGE BASE docs USING test_table = files.test, version = 'doc_id'
--> EvaluateKnowledgeBase(names=(docs), options={test_table: 'files.test', version: 'doc_id'})

EVALUATE knowledge FROM (SELECT 1)
--> Evaluate(metrics=('knowledge'), source=<('SELECT 1')>)

EVALUATE model FROM (SELECT 1)
--> Evaluate(metrics=('model'), source=<('SELECT 1')>)

UNLOAD MODEL ft.2
--> UnloadModel(name=ft.2)

unload ft
--> UnloadModel(name=ft)

UNLOAD ALL MODELS
--> UnloadModel()

UNLOAD ALL
--> UnloadModel()

unload model model.2
--> UnloadModel(name=model.2)

FINETUNE m FROM questions
--> Finetune(name=m, source=<('SELECT * FROM questions')>)

FINETUNE m FROM files.tbl USING wait = false
--> Finetune(name=m, source=<('SELECT * FROM files.tbl')>, options={wait: False})

FINETUNE m FROM 'rows.csv'
--> Finetune(name=m, source=<("SELECT * FROM 'rows.csv'")>)

FINETUNE m FROM read_csv('rows.csv', header = true) USING seed = ?
--> Finetune(name=m, source=<("SELECT * FROM read_csv('rows.csv', header = true)")>, options={seed: Parameter(key=1)})

ANALYZE TRAINING DATA FROM questions FOR m
--> AnalyzeTrainingData(source=<('SELECT * FROM questions')>, model=m)

EVALUATE accuracy FROM answers
--> Evaluate(metrics=('accuracy'), source=<('SELECT * FROM answers')>)

EVALUATE MODEL m.1, m.2 ON held_out USING metrics = 'f1'
--> Evaluate(metrics=(), source=<('SELECT * FROM held_out')>, models=(m.1, m.2), options={metrics: 'f1'})

EXPORT MODEL m TO 'folder'
--> ExportModel(name=m, path='folder')

export model p.m.2 to "my folder" (format GGUF, quantization 'q8_0', VERIFY 5, overwrite)
--> ExportModel(name=p.m.2, path='my folder', options={format: 'GGUF', quantization: 'q8_0', verify: 5, overwrite: True})

EXPORT MODEL m TO '~/é' (FORMAT = peft, VERIFY (SELECT q FROM t), OVERWRITE true, PUSH_TO 'owner/name')
--> ExportModel(name=m, path='~/é', options={format: 'peft', verify: <('SELECT q FROM t')>, overwrite: True, push_to: 'owner/name'})

EXPORT PREDICTOR m TO ? USING format = 'ollama', verify = 3
--> ExportModel(name=m, path=Parameter(key=1), options={format: 'ollama', verify: 3})

EXPORT DATABASE 'folder' (FORMAT parquet)
--> Plain(sql="EXPORT DATABASE 'folder' (FORMAT parquet)")

EXPORT MODEL m TO $place (FORMAT merged) USING overwrite = true
--> ExportModel(name=m, path=Parameter(key='place'), options={format: 'merged', overwrite: True})
