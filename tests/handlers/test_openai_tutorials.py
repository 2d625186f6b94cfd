"""What the public tutorials of MindsDB's hosted engines say, unchanged but for the URL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import sqlft

CHATS = """
ATTACH ':memory:' AS example_db;
CREATE SCHEMA example_db.demo_data;
CREATE TABLE example_db.demo_data.chats AS
SELECT i // 3 AS chat_id, i AS message_id, ['system', 'user', 'assistant'][i % 3 + 1] AS role,
       ['You are a helpful assistant.', 'question ' || i // 3, 'answer ' || i // 3][i % 3 + 1] AS content
FROM range(360) t(i);
"""
ANYSCALE = """
CREATE ML_ENGINE anyscale_endpoints FROM anyscale_endpoints;

CREATE MODEL mindsdb.ft_sql
PREDICT answer
USING
    engine = 'anyscale_endpoints',
    model_name = 'mistralai/Mistral-7B-Instruct-v0.1',
    prompt_template = '{{content}}',
    api_base = '%(url)s',
    api_key = '%(key)s';

DESCRIBE mindsdb.ft_sql;

SELECT answer FROM mindsdb.ft_sql WHERE content = 'hi';

FINETUNE mindsdb.ft_sql FROM example_db (SELECT * FROM demo_data.chats LIMIT 300);

SELECT answer FROM ft_sql WHERE content = 'question 7' USING max_tokens = 1000;

SELECT answer FROM ft_sql.1 WHERE content = 'question 7' USING max_tokens = 1000;
"""
OPENAI = """
CREATE ML_ENGINE openai_engine
FROM openai
USING
      openai_api_key = '%(key)s',
      openai_api_base = '%(root)s';

CREATE MODEL openai_model
PREDICT answer
USING
    engine = 'openai_engine',
    question_column = 'question';

SELECT question, answer
FROM openai_model
WHERE question = 'Where is Stockholm located?';

CREATE MODEL with_context
PREDICT answer
USING
    engine = 'openai_engine',
    mode = 'default',
    model_name = 'gpt-3.5-turbo',
    question_column = 'question',
    context_column = 'context',
    max_tokens = 100,
    temperature = 0.3;

SELECT context, question, answer
FROM with_context
WHERE context = 'Answer accurately'
AND question = 'How many planets exist in the solar system?';

CREATE MODEL chat
PREDICT answer
USING
    engine = 'openai_engine',
    mode = 'conversational',
    user_column = 'question',
    assistant_column = 'answer',
    prompt = 'answer in a helpful way';

SELECT answer FROM chat WHERE question = 'hello?' USING temperature = 0.5;
"""


@pytest.fixture
def con() -> Iterator[sqlft.Connection]:
    made = sqlft.connect(warn=lambda text: None)
    yield made
    made.close()


def run_script(con: sqlft.Connection, provider: Any, script: str) -> list[list[tuple[Any, ...]]]:
    """The rows of each statement."""
    given = {"url": provider.url, "root": provider.root, "key": provider.key}
    return [con.execute(s.text).fetchall() for s in sqlft.parse(script % given)]


def test_a_fine_tuning_tutorial(con: sqlft.Connection, provider: Any) -> None:
    for statement in sqlft.parse(CHATS):
        con.execute(statement.text)
    provider.file_polls, provider.statuses = 0, ["running", "succeeded"]
    *_, first, tuned, after, before = run_script(
        con,
        provider,
        ANYSCALE.replace("FROM anyscale_endpoints;", "FROM anyscale_endpoints USING poll_seconds = 0.01;"),
    )
    assert first == [("A:hi",)]
    assert len(tuned) == 1
    assert after == [("answer 7",)]
    assert before == [("A:question 7",)]
    assert provider.calls[-1].json()["max_tokens"] == 1000
    assert not provider.problems


def test_asking_tutorials(con: sqlft.Connection, provider: Any) -> None:
    results = run_script(con, provider, OPENAI)
    assert results[2] == [("Where is Stockholm located?", "A:Where is Stockholm located?")]
    assert "Context: Answer accurately" in results[4][0][2]
    assert results[6] == [("A:hello?",)]
    last = provider.calls[-1].json()
    assert last["messages"][0] == {"role": "system", "content": "answer in a helpful way"}
    assert "temperature" not in last, "the model that answers by default reasons, and takes none"
    assert next(c.json() for c in provider.calls if c.json().get("max_tokens") == 100)["temperature"] == 0.3
    assert not provider.problems


def test_an_answer_column_that_is_not_the_output(con: sqlft.Connection) -> None:
    with pytest.raises(sqlft.OptionError, match="'answer'"):
        con.execute(
            "CREATE MODEL c PREDICT answer USING engine = 'echo', user_column = 'q', assistant_column = 'reply'"
        )
