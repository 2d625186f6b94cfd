CREATE PRICE FOR openai 'gpt-4o-mini' USING input = 0.15, output = 0.6
--> CreatePrice(engine='openai', model='gpt-4o-mini', options={input: 0.15, output: 0.6})

create or replace price for openai gpt-4o-mini using training = 3
--> CreatePrice(engine='openai', model='gpt-4o-mini', options={training: 3}, or_replace=True)

CREATE PRICE IF NOT EXISTS FOR local USING machine_usd_per_hour = ?
--> CreatePrice(engine='local', options={machine_usd_per_hour: Parameter(key=1)}, if_not_exists=True)

CREATE PRICE FOR openai MODEL "gpt-4o" USING input = 2.5
--> CreatePrice(engine='openai', model='gpt-4o', options={input: 2.5})

CREATE PRICE FOR openai
--> error 1:24: Found the end of the statement, expected USING. -> Write: CREATE [OR REPLACE] PRICE [IF NOT EXISTS] FOR engine ['model'] USING input = …, output = …

CREATE TABLE price (a INTEGER)
--> Plain(sql='CREATE TABLE price (a INTEGER)')

DROP PRICE FOR openai 'gpt-4o-mini'
--> DropPrice(engine='openai', model='gpt-4o-mini')

DROP PRICE IF EXISTS FOR local
--> DropPrice(engine='local', if_exists=True)

SHOW PRICES
--> ShowPrices()

SHOW PRICES LIKE 'open%' WHERE input > 1
--> ShowPrices(like='open%', where='input > 1')

SET sqlft_budget_usd = 5
--> SetSetting(options={sqlft_budget_usd: 5})

SET SESSION sqlft_machine_usd_per_hour TO 0.475
--> SetSetting(options={sqlft_machine_usd_per_hour: 0.475})

RESET sqlft_budget_usd
--> ResetSetting(name='sqlft_budget_usd')

SET memory_limit = '1GB'
--> Plain(sql="SET memory_limit = '1GB'")

SET SESSION threads = 2
--> Plain(sql='SET SESSION threads = 2')

RESET threads
--> Plain(sql='RESET threads')

EXPLAIN SELECT 1
--> Plain(sql='EXPLAIN SELECT 1')

REPORT MODEL m
--> ReportModel(name=m)

report model p.m to 'r.html'
--> ReportModel(name=p.m, path='r.html')

REPORT MODEL m TO r
--> error 1:19: Found 'r', expected a file's name such as 'report.html'. -> Write: REPORT MODEL name [TO 'file.html']

REPORT m TO "x.html"
--> ReportModel(name=m, path='x.html')
