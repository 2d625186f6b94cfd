"""Statements of MindsDB that sqlft does not have: each is refused in a sentence, with what there is instead."""

from __future__ import annotations

from collections.abc import Callable

from sqlft.sql import statements as s
from sqlft.sql.cursor import Cursor

Method = Callable[[Cursor], s.Statement | None]

_JOBS = (
    "sqlft has no jobs: a statement runs when it is sent.",
    "Let cron or another scheduler send it: sqlft app.duckdb -c 'SELECT …'",
)
_TRIGGERS = (
    "sqlft has no triggers that watch a table.",
    "Let cron or another scheduler send the statement: sqlft app.duckdb -c 'INSERT INTO … SELECT …'",
)
_AGENTS = (
    "sqlft has no agents and no skills: a model answers the question of a row, and calls no tools.",
    "Make a model: CREATE MODEL name PREDICT answer USING engine = …, prompt_template = '… {{question}}'",
)
_CHATBOTS = (
    "sqlft has no chatbots: it connects to no chat service.",
    "Make a model, and let your program ask it: SELECT answer FROM name WHERE question = ?",
)
_KNOWLEDGE = (
    "sqlft has no knowledge bases.",
    "Keep embeddings in a table: CREATE MODEL e PREDICT vector USING …, mode = 'embedding'; "
    "CREATE TABLE kb AS SELECT t.*, e.vector FROM t JOIN e ON e.content = t.text",
)
_EXPORT = (
    "A model is not exported by a statement: its files lie beside the database.",
    "DESCRIBE name shows the folder of its adapter (ARTIFACT), which transformers and peft read.",
)
_NOT_HERE = {
    "JOB": _JOBS,
    "AGENT": _AGENTS,
    "SKILL": _AGENTS,
    "CHATBOT": _CHATBOTS,
    "KNOWLEDGE_BASE": _KNOWLEDGE,
    "KNOWLEDGE": _KNOWLEDGE,
}


def refuse(message: str, next_step: str) -> Method:
    """A method that refuses a statement at its second word."""

    def method(c: Cursor) -> s.Statement | None:
        c.next()
        while c.at("OR") or c.at("REPLACE"):
            c.next()
        raise c.error(message, next_step)

    return method


def create_trigger(c: Cursor) -> s.Statement | None:
    """CREATE TRIGGER name ON table (…) is MindsDB's; DuckDB writes BEFORE or AFTER behind the name."""
    ahead = 5 if [c.peek(i).word for i in (2, 3, 4)] == ["IF", "NOT", "EXISTS"] else 2
    while c.peek(ahead + 1).text == ".":
        ahead += 2
    return refuse(*_TRIGGERS)(c) if c.peek(ahead + 1).word == "ON" else None


def drop_trigger(c: Cursor) -> s.Statement | None:
    """DROP TRIGGER name; where ON follows it is DuckDB's."""
    return None if any(token.word == "ON" for token in c.tokens) else refuse(*_TRIGGERS)(c)


ELSEWHERE: dict[tuple[str, str], tuple[Method, type[s.Statement]]] = {
    ("CREATE", "TRIGGER"): (create_trigger, s.Plain),
    ("DROP", "TRIGGER"): (drop_trigger, s.Plain),
    ("EVALUATE", "KNOWLEDGE_BASE"): (refuse(*_KNOWLEDGE), s.Plain),
    ("EXPORT", "MODEL"): (refuse(*_EXPORT), s.Plain),
    **{
        (verb, kind): (refuse(*text), s.Plain)
        for kind, text in _NOT_HERE.items()
        for verb in ("CREATE", "DROP", "ALTER")
    },
}
"""By the first two words, as in `parser.STATEMENTS`."""
