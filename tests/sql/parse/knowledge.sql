CREATE KNOWLEDGE_BASE docs USING embedding_model = minilm, content_columns = ['body'], id_column = 'id'
--> CreateKnowledgeBase(name=docs, options={embedding_model: 'minilm', content_columns: ['body'], id_column: 'id'})

create or replace knowledge base shop.docs from db (select * from t) using batch_size = 10;
--> CreateKnowledgeBase(name=shop.docs, source=<db('select * from t')>, options={batch_size: 10}, or_replace=True)

CREATE KNOWLEDGE_BASE IF NOT EXISTS kb USING embedding_model = {"provider": "openai", "api_key": env('K')}, reranking_model = false
--> CreateKnowledgeBase(name=kb, options={embedding_model: {provider: 'openai', api_key: Env(name='K')}, reranking_model: False}, if_not_exists=True)

CREATE KNOWLEDGE_BASE kb USING embedding_model = {"provider": "openai", "model_name": "m",}, id_column = 'id'
--> CreateKnowledgeBase(name=kb, options={embedding_model: {provider: 'openai', model_name: 'm'}, id_column: 'id'})

CREATE KNOWLEDGE_BASE kb FROM articles
--> CreateKnowledgeBase(name=kb, source=<('SELECT * FROM articles')>)

ALTER KNOWLEDGE_BASE docs USING preprocessing = {'text_chunking_config': {'chunk_size': 500}}
--> AlterKnowledgeBase(name=docs, options={preprocessing: {text_chunking_config: {chunk_size: 500}}})

DROP KNOWLEDGE_BASE docs
--> DropKnowledgeBase(name=docs)

DROP KNOWLEDGE BASE IF EXISTS p.docs;
--> DropKnowledgeBase(name=p.docs, if_exists=True)

DESCRIBE KNOWLEDGE_BASE docs
--> DescribeKnowledgeBase(name=docs)

DESC KNOWLEDGE BASE p.docs
--> DescribeKnowledgeBase(name=p.docs)

DESCRIBE knowledge
--> DescribeModel(name=knowledge, explicit=False)

SHOW KNOWLEDGE_BASES
--> ShowKnowledgeBases()

SHOW KNOWLEDGE BASES LIKE 'd%' WHERE chunks > 3
--> ShowKnowledgeBases(like='d%', where='chunks > 3')

SHOW knowledge
--> DescribeModel(name=knowledge, explicit=False)

REFRESH KNOWLEDGE_BASE docs
--> RefreshKnowledgeBase(name=docs)

REFRESH KNOWLEDGE BASE docs USING rebuild = true
--> RefreshKnowledgeBase(name=docs, options={rebuild: True})

CREATE INDEX ON KNOWLEDGE_BASE docs WITH (type = 'ivf', nlist = 1000)
--> IndexKnowledgeBase(name=docs, options={type: 'ivf', nlist: 1000})

DROP INDEX ON KNOWLEDGE BASE docs
--> IndexKnowledgeBase(name=docs, drops=True)

CREATE KNOWLEDGE_BASE docs.1
--> error 1:27: A version's number does not belong here. -> Write: CREATE [OR REPLACE] KNOWLEDGE_BASE [IF NOT EXISTS] name [FROM [db] (query)|table] [USING …]

CREATE KNOWLEDGE docs
--> error 1:8: Expected KNOWLEDGE_BASE, or KNOWLEDGE BASE. -> Write: CREATE [OR REPLACE] KNOWLEDGE_BASE [IF NOT EXISTS] name [FROM [db] (query)|table] [USING …]

ALTER KNOWLEDGE_BASE docs
--> error 1:26: Found the end of the statement, expected USING. -> Write: ALTER KNOWLEDGE_BASE name USING key = value, …

DROP KNOWLEDGE_BSE docs
--> error 1:6: Found 'KNOWLEDGE_BSE'. Did you mean 'KNOWLEDGE_BASE'? -> Write: DROP KNOWLEDGE_BASE [IF EXISTS] name

REFRESH KNOWLEDGE_BASE
--> error 1:23: Found the end of the statement, expected a knowledge base's name. -> Write: REFRESH KNOWLEDGE_BASE name [USING …]
