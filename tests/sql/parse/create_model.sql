-- CREATE MODEL and its old spelling; `-->` is what the statement above it becomes.

CREATE MODEL ft_sql PREDICT answer USING engine = 'local', base = 'smollm2-135m', prompt_template = '{{content}}';
--> CreateModel(name=ft_sql, predict='answer', options={engine: 'local', base: 'smollm2-135m', prompt_template: '{{content}}'})

create model if not exists p.ft predict answer
--> CreateModel(name=p.ft, predict='answer', if_not_exists=True)

CREATE OR REPLACE MODEL ft PREDICT answer
--> CreateModel(name=ft, predict='answer', or_replace=True)

CREATE PREDICTOR ft FROM example_db (SELECT * FROM chats WHERE id = (SELECT max(id) FROM chats)) PREDICT answer AS reply USING a = 1
--> CreateModel(name=ft, predict='answer', alias='reply', source=<example_db('SELECT * FROM chats WHERE id = (SELECT max(id) FROM chats)')>, options={a: 1})

CREATE MODEL ft FROM (SELECT question, answer FROM rows -- the good ones
  ) PREDICT answer
--> CreateModel(name=ft, predict='answer', source=<('SELECT question, answer FROM rows')>)

CREATE MODEL ft FROM `my files` ( /* first */ not even sql, {'x': [1, ')']} ((deep)) ; ) PREDICT answer
--> CreateModel(name=ft, predict='answer', source=<my files("not even sql, {'x': [1, ')']} ((deep))")>)

CREATE MODEL ft FROM db (SELECT 1) AS data PREDICT answer
--> CreateModel(name=ft, predict='answer', source=<db('SELECT 1')>)

CREATE MODEL "my model" PREDICT 'the answer'
--> CreateModel(name=my model, predict='the answer')

CREATE MODEL model PREDICT active
--> CreateModel(name=model, predict='active')

CREATE MODEL größe.模型 PREDICT antwort🦆 USING größe = 'ß'
--> CreateModel(name=größe.模型, predict='antwort🦆', options={größe: 'ß'})

CREATE/**/MODEL/* a /* nested */ comment */ft -- to the end
PREDICT answer;
--> CreateModel(name=ft, predict='answer')

CREATE MODEL ft PREDICT answer USING
  a = null, b = TRUE, c = False,
  n = 1, m = -2, f = 0.5, g = -1e-4, h = .5, big = 1_000_000, hex = 0x1F,
  s = 'it''s', d = "double ""quoted""", e = E'line\nbreak\t\u00e9', raw = $$any 'thing'$$, tag = $x$ $$ $x$,
  w = openai, w2 = gpt-4o-mini, w3 = Qwen/Qwen2.5-0.5B, w4 = ft:gpt-3.5-turbo:org::id, w5 = true_story
--> CreateModel(name=ft, predict='answer', options={a: None, b: True, c: False, n: 1, m: -2, f: 0.5, g: -0.0001, h: 0.5, big: 1000000, hex: 31, s: "it's", d: 'double "quoted"', e: 'line\nbreak\té', raw: "any 'thing'", tag: ' $$ ', w: 'openai', w2: 'gpt-4o-mini', w3: 'Qwen/Qwen2.5-0.5B', w4: 'ft:gpt-3.5-turbo:org::id', w5: 'true_story'})

CREATE MODEL ft PREDICT answer USING list = [1, 'a', [true, null], []], tuple = (1, 2), empty = (), o = {}
--> CreateModel(name=ft, predict='answer', options={list: [1, 'a', [True, None], []], tuple: [1, 2], empty: [], o: {}})

CREATE MODEL ft PREDICT answer USING o = {"a": [1, 2.5, {"b": null}], 'c': 'd', e: false}
--> CreateModel(name=ft, predict='answer', options={o: {a: [1, 2.5, {'b': None}], c: 'd', e: False}})

CREATE MODEL ft PREDICT answer USING x.y = 1, x.`part 2`.z = 2, "Mixed".Case = 3, UPPER = 4
--> CreateModel(name=ft, predict='answer', options={x: {y: 1, part 2: {z: 2}}, Mixed: {case: 3}, upper: 4})

CREATE MODEL ft PREDICT answer USING args = Filter(x = null, y = 'a', z = {"k": [1]})
--> CreateModel(name=ft, predict='answer', options={args: {type: 'Filter', x: None, y: 'a', z: {k: [1]}}})

CREATE MODEL ft PREDICT answer USING api_key = env('MY_KEY'), other = env("B")
--> CreateModel(name=ft, predict='answer', options={api_key: Env(name='MY_KEY'), other: Env(name='B')})

CREATE MODEL ft FROM (SELECT * FROM t WHERE a = ? AND b = '?') PREDICT answer USING n = ?, m = $name, k = $2
--> CreateModel(name=ft, predict='answer', source=<("SELECT * FROM t WHERE a = ? AND b = '?'") ? [1]>, options={n: Parameter(key=2), m: Parameter(key='name'), k: Parameter(key=2)})

CREATE MODEL ft PREDICT answer USING validation = (SELECT * FROM t WHERE x = ?), test = db (FROM t), n = ?
--> CreateModel(name=ft, predict='answer', options={validation: <('SELECT * FROM t WHERE x = ?') ? [1]>, test: <db('FROM t')>, n: Parameter(key=2)})

CREATE MODEL m PREDICT (name VARCHAR NOT NULL, "the age" integer, tags VARCHAR[], price DECIMAL(10, 2),
  mood ENUM('good, so', 'bad)'), inner STRUCT(a INTEGER, b VARCHAR[3])[] not null) USING engine = 'echo'
--> CreateModel(name=m, predict='name', options={engine: 'echo'}, columns=(TypedColumn(name='name', type='VARCHAR', required=True), TypedColumn(name='the age', type='integer', required=False), TypedColumn(name='tags', type='VARCHAR[]', required=False), TypedColumn(name='price', type='DECIMAL(10, 2)', required=False), TypedColumn(name='mood', type="ENUM('good, so', 'bad)')", required=False), TypedColumn(name='inner', type='STRUCT(a INTEGER, b VARCHAR[3])[]', required=True)))

CREATE MODEL m PREDICT a, b USING engine = 'echo'
--> CreateModel(name=m, predict='a', options={engine: 'echo'}, columns=(TypedColumn(name='a', type='VARCHAR', required=False), TypedColumn(name='b', type='VARCHAR', required=False)))

CREATE MODEL m FROM questions PREDICT answer
--> CreateModel(name=m, predict='answer', source=<('SELECT * FROM questions')>)

CREATE MODEL m FROM ADAPTER '/their folder/it''s'
--> CreateModel(name=m, predict='', origin=ModelOrigin(kind='ADAPTER', path="/their folder/it's"))

CREATE OR REPLACE MODEL m FROM gguf $$x.gguf$$ PREDICT (n INTEGER) USING base = 'b'
--> CreateModel(name=m, predict='n', options={base: 'b'}, or_replace=True, columns=(TypedColumn(name='n', type='INTEGER', required=False)), origin=ModelOrigin(kind='GGUF', path='x.gguf'))

CREATE MODEL IF NOT EXISTS p.m FROM EXPORT 'x' USING tag = 'theirs'
--> CreateModel(name=p.m, predict='', options={tag: 'theirs'}, if_not_exists=True, origin=ModelOrigin(kind='EXPORT', path='x'))

CREATE MODEL m FROM adapter (SELECT 1) PREDICT a
--> CreateModel(name=m, predict='a', source=<adapter('SELECT 1')>)

CREATE MODEL m FROM export.t PREDICT a
--> CreateModel(name=m, predict='a', source=<('SELECT * FROM export.t')>)

CREATE MODEL m FROM gguf PREDICT a
--> CreateModel(name=m, predict='a', source=<('SELECT * FROM gguf')>)

CREATE MODEL m FROM ADAPTER /tmp/x
--> error 1:29: FROM ADAPTER takes a path in single quotes. -> Write: FROM ADAPTER '/path/to/it'

CREATE MODEL m FROM GGUF ''
--> error 1:26: This path is empty. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

EXPLAIN CREATE MODEL m FROM ADAPTER 'x'
--> error 1:40: This model is not trained by CREATE MODEL: there is nothing to explain. -> Write: EXPLAIN CREATE MODEL name FROM (SELECT …) PREDICT …, or EXPLAIN FINETUNE name FROM (SELECT …)
