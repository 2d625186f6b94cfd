CREATE ML_ENGINE my_openai FROM openai USING api_key = env('K'), base_url = 'http://localhost'
--> CreateEngine(name='my_openai', handler='openai', options={api_key: Env(name='K'), base_url: 'http://localhost'})

create ml_engine if not exists e from local
--> CreateEngine(name='e', handler='local', if_not_exists=True)

DROP ML_ENGINE e
--> DropEngine(name='e')

DROP ML_ENGINE IF EXISTS e;
--> DropEngine(name='e', if_exists=True)

DROP MODEL ft
--> DropModel(name=ft)

DROP PREDICTOR IF EXISTS mindsdb.ft
--> DropModel(name=mindsdb.ft, if_exists=True)

DROP MODEL ft.2
--> DropModel(name=ft.2)

DROP MODEL if
--> DropModel(name=if)

DROP CACHE
--> DropCache()

DROP CACHE FOR ft.2
--> DropCache(name=ft.2)

ALTER MODEL a RENAME TO b
--> RenameModel(name=a, to=b)

RENAME MODEL p.a TO p.b
--> RenameModel(name=p.a, to=p.b)

RENAME model TO b
--> RenameModel(name=model, to=b)

SHOW MODELS
--> ShowModels()

SHOW FULL MODELS
--> ShowModels()

SHOW predictors FROM p LIKE 'ft%' WHERE status = 'complete' AND name <> ';'
--> ShowModels(like='ft%', where="status = 'complete' AND name <> ';'", project='p')

SHOW MODELS IN p
--> ShowModels(project='p')

SHOW ML_ENGINES
--> ShowEngines()

SHOW ML_ENGINES LIKE '%ai%' WHERE a = 1
--> ShowEngines(like='%ai%', where='a = 1')

SHOW HANDLERS
--> ShowHandlers()

DESCRIBE ML_ENGINE e
--> DescribeEngine(name='e')

DESCRIBE ft
--> DescribeModel(name=ft, explicit=False)

DESC ft.2
--> DescribeModel(name=ft.2, explicit=False)

DESCRIBE ft.2.options
--> DescribeModel(name=ft.2, attribute='options', explicit=False)

DESCRIBE MODEL ft
--> DescribeModel(name=ft)

DESCRIBE PREDICTOR ft.11
--> DescribeModel(name=ft.11)

DESCRIBE MODEL p.ft.11.options
--> DescribeModel(name=p.ft.11, attribute='options')

DESCRIBE MODEL ft.options
--> DescribeModel(name=ft, attribute='options', or_name=ft.options)

DESCRIBE p.ft.options
--> DescribeModel(name=p.ft, attribute='options', explicit=False)

DESCRIBE mindsdb.ft
--> DescribeModel(name=mindsdb.ft, explicit=False)

DESCRIBE model
--> DescribeModel(name=model, explicit=False)

DESCRIBE model.1
--> DescribeModel(name=model.1, explicit=False)

DESCRIBE ml_engine
--> DescribeModel(name=ml_engine, explicit=False)

DESCRIBE 'file.csv'
--> DescribeModel(name=file.csv, explicit=False)

CREATE DATABASE db WITH ENGINE = 'sqlite', PARAMETERS = {"path": "x.db", 'Mixed': 1}
--> CreateDatabase(name='db', engine='sqlite', parameters={path: 'x.db', Mixed: 1})

CREATE DATABASE IF NOT EXISTS db ENGINE 'postgres' PARAMETERS {"user": "u", "password": "p,';:!@#$%^&*(){}[]"}
--> CreateDatabase(name='db', engine='postgres', parameters={user: 'u', password: "p,';:!@#$%^&*(){}[]"}, if_not_exists=True)

CREATE OR REPLACE DATABASE db USING ENGINE = files
--> CreateDatabase(name='db', engine='files', or_replace=True)

CREATE DATABASE db PARAMETERS = {}, ENGINE = 'duckdb'
--> CreateDatabase(name='db', engine='duckdb')

create database `my db` with engine 'duckdb', parameters {'secret': env('S')}
--> CreateDatabase(name='my db', engine='duckdb', parameters={secret: Env(name='S')})

SHOW m
--> DescribeModel(name=m, explicit=False)

SHOW m.2.options
--> DescribeModel(name=m.2, attribute='options', explicit=False)

SHOW MODEL m
--> DescribeModel(name=m)

DESCRIBE with_context
--> DescribeModel(name=with_context, explicit=False)

DESCRIBE from_email.inputs
--> DescribeModel(name=from_email, attribute='inputs', explicit=False, or_name=from_email.inputs)

DESC values_of.1
--> DescribeModel(name=values_of.1, explicit=False)

DESCRIBE table.options
--> DescribeModel(name=table, attribute='options', explicit=False, or_name=table.options)

DESCRIBE mindsdb.models.m
--> DescribeModel(name=mindsdb.m, explicit=False)

DESCRIBE mindsdb.models.m.2
--> DescribeModel(name=mindsdb.m.2, explicit=False)

DESCRIBE mindsdb.models.m.args
--> DescribeModel(name=mindsdb.m, attribute='args', explicit=False)

CREATE PROJECT IF NOT EXISTS shop
--> CreateProject(name='shop', if_not_exists=True)

DROP PROJECT shop
--> DropProject(name='shop')

DROP PROJECT IF EXISTS shop;
--> DropProject(name='shop', if_exists=True)

SHOW PROJECTS LIKE 's%' WHERE models > 0
--> ShowProjects(like='s%', where='models > 0')

USE mindsdb
--> UseProject(name='mindsdb')

CREATE ML_ENGINE shop.e FROM openai
--> CreateEngine(name='e', handler='openai')

DROP ML_ENGINE shop.e
--> DropEngine(name='e')
