FINETUNE m FORM db (SELECT 1)
--> error 1:12: Found 'FORM', expected FROM. Did you mean 'FROM'? -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE m FROM db SELECT 1
--> error 1:20: The query must stand in parentheses. -> Write: FROM db (SELECT …)

FINETUNE m FROM SELECT 1
--> error 1:17: The query must stand in parentheses. -> Write: FROM database (SELECT …)

FINETUNE m FROM db (SELECT 1
--> error 1:20: This parenthesis is never closed. -> Close it behind the query.

FINETUNE m FROM db ()
--> error 1:20: There is no query between these parentheses. -> Write: FROM database (SELECT …)

FINETUNE m USING a = 1
--> error 1:12: Found 'USING', expected FROM. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE FROM db (SELECT 1)
--> error 1:10: Found 'FROM', expected a model's name. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE m.1.2 FROM db (SELECT 1)
--> error 1:13: A model is named [project.]name[.N], N being a version's number. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE a.b.c FROM db (SELECT 1)
--> error 1:14: A model is named [project.]name[.N], N being a version's number. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE m.1e5 FROM db (SELECT 1)
--> error 1:11: A version's number is a whole number such as 2. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE m.99999999999999999999 FROM db (SELECT 1)
--> error 1:11: A version's number is a whole number such as 2. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUNE "" FROM db (SELECT 1)
--> error 1:10: This name is empty. -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

FINETUN m FROM db (SELECT 1)
--> error 1:1: Found 'FINETUN'. Did you mean 'FINETUNE'? -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

CREATE MODLE m PREDICT x
--> error 1:8: Found 'MODLE'. Did you mean 'MODEL'? -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

DROP MODLE m
--> error 1:6: Found 'MODLE'. Did you mean 'MODEL'? -> Write: DROP MODEL|PREDICTOR [IF EXISTS] name[.N]

CREATE MODEL m
--> error 1:15: Found the end of the statement, expected FROM or PREDICT. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL PREDICT x
--> error 1:14: Found 'PREDICT', expected a name for the model or IF NOT EXISTS. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m.2 PREDICT x
--> error 1:15: A version's number does not belong here. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE OR REPLACE MODEL IF NOT EXISTS m PREDICT x
--> error 1:25: OR REPLACE and IF NOT EXISTS contradict each other. -> Leave one of them out.

CREATE MODEL m PREDICT a, b
--> CreateModel(name=m, predict='a', columns=(TypedColumn(name='a', type='VARCHAR', required=False), TypedColumn(name='b', type='VARCHAR', required=False)))

CREATE MODEL m PREDICT (a, b INTEGER)
--> error 1:26: The column 'a' needs a type. -> Write: PREDICT (a VARCHAR, …)

CREATE MODEL m PREDICT ()
--> error 1:25: Found ')', expected an answer's column. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT (a INTEGER, A DATE)
--> error 1:36: The column 'A' is named twice. -> Name it once.

CREATE MODEL m PREDICT (a INTEGER NOT NULL DEFAULT 3)
--> error 1:44: Found 'DEFAULT', expected ',' or ')'. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT (a DECIMAL(10, 2
--> error 1:40: Found the end of the statement, expected NOT NULL, ',' or ')'. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT *
--> error 1:24: PREDICT needs the name of a column. -> Write: PREDICT answer

CREATE MODEL m PREDICT x USNG a = 1
--> error 1:26: Found 'USNG', expected AS, USING or the end of the statement. Did you mean 'USING'? -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m FROM db (SELECT 1)
  PREDICT price
  ORDER BY day DESC
  GROUP BY shop
  WINDOW 100
  HORIZON 7
--> error 3:3: Time series are not supported: a model answers each row from that row alone. -> Leave ORDER BY out, and order or group rows in the query that asks.

CREATE MODEL m PREDICT x GROUP BY y
--> error 1:26: Time series are not supported: a model answers each row from that row alone. -> Leave GROUP BY out, and order or group rows in the query that asks.

CREATE MODEL m PREDICT x WINDOW 10 HORIZON 2
--> error 1:26: Time series are not supported: a model answers each row from that row alone. -> Leave WINDOW out, and order or group rows in the query that asks.

CREATE ANOMALY DETECTION MODEL m FROM db (SELECT 1) USING a = 1
--> error 1:8: Anomaly detection models are not supported: sqlft's models are language models. -> A model that labels rows does it: CREATE MODEL name PREDICT label USING engine = …, prompt_template = '…'

CREATE PROJECT p
--> CreateProject(name='p')

CREATE OR REPLACE ML_ENGINE e FROM local
--> error 1:8: An engine is not replaced. -> DROP ML_ENGINE IF EXISTS name first.

CREATE ML_ENGINE e
--> error 1:19: Found the end of the statement, expected FROM. -> Write: CREATE ML_ENGINE [IF NOT EXISTS] name FROM handler [USING …]

CREATE ML_ENGINE e FROM openai USING api_key 'sk-very-secret'
--> error 1:46: Found '****************', expected '='. -> Write: CREATE ML_ENGINE [IF NOT EXISTS] name FROM handler [USING …]

CREATE ML_ENGINE e FROM openai USING api_key = 'sk-very-secret' b = 2
--> error 1:65: Found 'b', expected ',' or the end of the statement. -> Write: CREATE ML_ENGINE [IF NOT EXISTS] name FROM handler [USING …]

CREATE ML_ENGINE e FROM openai USING api_key = 'sk-never-closed
--> error 1:48: This string is never closed. -> Close it; a quote inside it is written twice.

CREATE MODEL m PREDICT x USING 'not options'
--> error 1:45: Found the end of the statement, expected '='. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING
--> error 1:31: Found the end of the statement, expected an option's name. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING a
--> error 1:33: Found the end of the statement, expected '='. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING a = 1, A = 2
--> error 1:39: 'a' is given twice. -> Give it once.

CREATE MODEL m PREDICT x USING a = 1, a.b = 2
--> error 1:39: 'a' has a value already, so it cannot have parts. -> Give it once.

CREATE MODEL m PREDICT x USING a = 1 b = 2
--> error 1:38: Found 'b', expected ',' or the end of the statement. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING a = {"b": 1, "b": 2}
--> error 1:45: 'b' is given twice. -> Give it once.

CREATE MODEL m PREDICT x USING a = {"b" 1}
--> error 1:41: Found '1', expected ':'. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING a = [1, 2
--> error 1:41: Found the end of the statement, expected ']' or ','. -> Write: CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]

CREATE MODEL m PREDICT x USING a = @variable
--> error 1:36: Variables are not read here. -> Pass the value as a prepared parameter: ? or $name.

CREATE MODEL m PREDICT x USING a = concat('x', 'y')
--> error 1:36: There is no function concat() in options. -> Write a plain value, or env('NAME').

CREATE MODEL m PREDICT x USING a = 1e999
--> error 1:36: This number is too large. -> Write one below 1e308.

CREATE MODEL m PREDICT x USING a = E'\UFFFFFFFF'
--> error 1:36: This E'…' string has an escape that is no character. -> Write the character itself.

CREATE MODEL m PREDICT x USING a = 'never closed
--> error 1:36: This string is never closed. -> Close it; a quote inside it is written twice.

CREATE MODEL m PREDICT x /* never closed
--> error 1:26: This comment is never closed. -> Close it with */.

CREATE DATABASE db WITH ENGINE = 'mysql', PARAMETERS = 'wow'
--> error 1:56: Found ''wow'', expected '{'. -> Write: CREATE [OR REPLACE] DATABASE [IF NOT EXISTS] name [WITH] ENGINE = 'x' [, PARAMETERS = {…}]

CREATE DATABASE db WITH PARAMETERS = {}
--> error 1:40: Found the end of the statement, expected ENGINE = 'name' or ','. -> Write: CREATE [OR REPLACE] DATABASE [IF NOT EXISTS] name [WITH] ENGINE = 'x' [, PARAMETERS = {…}]

CREATE DATABASE db ENGINE = 'a', ENGINE = 'b'
--> error 1:34: ENGINE is given twice. -> Give it once.

CREATE DATABASE db ENGINE = {}
--> error 1:29: ENGINE needs a name. -> Write: ENGINE = 'sqlite'

RETRAIN m PREDICT y
--> error 1:11: RETRAIN keeps the column that CREATE MODEL named. -> Leave PREDICT out, or make the model again with CREATE OR REPLACE MODEL.

SET active ft
--> error 1:14: Which version is to be active? -> Write its number: SET active ft.2

SET active = 3
--> error 1:14: Found '3', expected a model's name. -> Write: SET active name.N, SET MODEL_ACTIVE = name.N

SHOW MODELS LIK 'x'
--> error 1:13: Found 'LIK', expected FROM, IN, LIKE, WHERE or the end of the statement. Did you mean 'LIKE'? -> Write: SHOW MODELS|PREDICTORS [FROM|IN project] [LIKE pattern] [WHERE condition]

SHOW MODELS WHERE
--> error 1:18: Found the end of the statement, expected a condition. -> Write: SHOW MODELS|PREDICTORS [FROM|IN project] [LIKE pattern] [WHERE condition]

SHOW HANDLERS FROM x
--> error 1:15: Found 'FROM', expected LIKE, WHERE or the end of the statement. -> Write: SHOW HANDLERS [LIKE pattern] [WHERE condition]

DESCRIBE MODEL a.1.2
--> error 1:19: There are two version numbers. -> Write: DESCRIBE [MODEL] name[.N][.attribute]

DESCRIBE MODEL a.b.c.d
--> error 1:22: A model is named [project.]name[.N][.attribute]. -> Write: DESCRIBE [MODEL] name[.N][.attribute]

RENAME MODEL a TO b.2
--> error 1:20: A version's number does not belong here. -> Write: ALTER MODEL a RENAME TO b, RENAME MODEL a TO b

DROP MODEL a, b
--> error 1:13: Found ',', expected the end of the statement. -> Write: DROP MODEL|PREDICTOR [IF EXISTS] name[.N]

DROP MODEL a CASCADE
--> error 1:14: Found 'CASCADE', expected the end of the statement. -> Write: DROP MODEL|PREDICTOR [IF EXISTS] name[.N]

EVALUATE FROM (SELECT 1)
--> error 1:10: Found 'FROM', expected a metric's name. -> Write: EVALUATE metric[, …] FROM (query)|table [USING …], EVALUATE MODEL name[.N][, …] ON (query)|table [USING …]

SELECT * FROM m USING cache = false LIMIT 3
--> error 1:37: Found 'LIMIT', expected the end of the statement or ','. -> Write: SELECT … USING key = value, … with USING last

SELECT * FROM (SELECT * FROM m USING cache = false) s LIMIT 3
--> error 1:51: Found ')', expected the end of the statement or ','. -> Write: SELECT … USING key = value, … with USING last

SELECT * FROM m USING cache =
--> error 1:30: Found the end of the statement, expected a value. -> Write: SELECT … USING key = value, … with USING last

SELECT 1;
  -- a second statement
  FINETUNE m FORM db (SELECT 1)
--> error 3:14: Found 'FORM', expected FROM. Did you mean 'FROM'? -> Write: FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]

CREATE MODEL 4sight PREDICT x
--> error 1:14: A name that starts with a digit needs quotes. -> Write: "4…"

CREATE MODEL my-model PREDICT x
--> error 1:16: A name with a '-' needs quotes. -> Write: "my-…", or my_… if it is called so.

CREATE MODEL m PREDICT x USING learning-rate = 1
--> error 1:40: A name with a '-' needs quotes. -> Write: "learning-…", or learning_… if it is called so.

DROP CACH
--> error 1:6: Found 'CACH'. Did you mean 'CACHE'? -> Write: DROP CACHE [FOR name[.N]]

FINETUNE m FROM db (SELECT 1; SELECT 'x
--> error 1:20: This parenthesis is never closed. -> Close it behind the query.

CREATE MODEL m PREDICT a, A
--> error 1:27: The column 'A' is named twice. -> Name it once.

CREATE MODEL m PREDICT a, b AS c
--> error 1:29: Of several columns none is renamed. -> Write: PREDICT a, b

CREATE MODEL q PREDICT answer USING engine='echo', prompt_template='It\'s {{a}}'
--> error 1:72: The string ends here: a backslash does not keep its quote. -> Write the quote twice: 'It''s'.

CREATE MODEL q PREDICT answer USING engine='echo', prompt_template='It\'s {{a}} and it\'s {{b}}'
--> error 1:72: The string ends here: a backslash does not keep its quote. -> Write the quote twice: 'It''s'.

CREATE JOB j AS (SELECT answer FROM m; SELECT 2) EVERY 1 hour
--> error 1:8: sqlft has no jobs: a statement runs when it is sent. -> Let cron or another scheduler send it: sqlft app.duckdb -c 'SELECT …'

DROP JOB IF EXISTS j
--> error 1:6: sqlft has no jobs: a statement runs when it is sent. -> Let cron or another scheduler send it: sqlft app.duckdb -c 'SELECT …'

CREATE OR REPLACE AGENT a USING model = 'm'
--> error 1:19: sqlft has no agents and no skills: a model answers the question of a row, and calls no tools. -> Make a model: CREATE MODEL name PREDICT answer USING engine = …, prompt_template = '… {{question}}'

CREATE SKILL s USING type = 'text2sql'
--> error 1:8: sqlft has no agents and no skills: a model answers the question of a row, and calls no tools. -> Make a model: CREATE MODEL name PREDICT answer USING engine = …, prompt_template = '… {{question}}'

CREATE CHATBOT b USING model = 'm'
--> error 1:8: sqlft has no chatbots: it connects to no chat service. -> Make a model, and let your program ask it: SELECT answer FROM name WHERE question = ?

CREATE TRIGGER shop.t ON db.orders (SELECT 1)
--> error 1:8: sqlft has no triggers that watch a table. -> Let cron or another scheduler send the statement: sqlft app.duckdb -c 'INSERT INTO … SELECT …'

DROP PROJECT shop, other
--> error 1:18: Found ',', expected the end of the statement. -> Write: DROP PROJECT [IF EXISTS] name

DROP TRIGGER shop.t
--> error 1:6: sqlft has no triggers that watch a table. -> Let cron or another scheduler send the statement: sqlft app.duckdb -c 'INSERT INTO … SELECT …'

SET activ m.1
--> error 1:5: Found 'activ'. Did you mean 'ACTIVE'? -> Write: SET active name.N, SET MODEL_ACTIVE = name.N

EXPORT MODEL m
--> error 1:15: Found the end of the statement, expected TO. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]

EXPORT MODEL m TO folder
--> error 1:19: Found 'folder', expected a folder's name such as 'my_model'. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]

EXPORT MODEL m TO ''
--> error 1:19: Found '''', expected a folder's name such as 'my_model'. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]

EXPORT MODEL m TO 'f' (FORMAT peft
--> error 1:35: Found the end of the statement, expected ',' or ')'. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]

EXPORT MODEL m TO 'f' ()
--> error 1:24: Found ')', expected an option such as FORMAT. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]

EXPORT MODEL m TO 'f' (FORMAT peft, format = 'gguf')
--> error 1:37: 'format' is given twice. -> Give it once.

EXPORT MODEL m TO 'f' (FORMAT peft) USING format = 'gguf'
--> error 1:37: 'format' is given twice. -> Give it once.

EXPORT MODEL m TO 'f' (FORMAT peft) VERIFY 3
--> error 1:37: Found 'VERIFY', expected USING or the end of the statement. -> Write: EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]
