"""Models whose answers have types: how they are made, what is asked, mended and kept, and how they are trained."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import DataError, NotSupported, OptionError, ProviderError, StatementError
from sqlft.inference.resolve import find_number_type

HANDLERS = Path(__file__).parents[1] / "handlers"
PERSON = "name VARCHAR NOT NULL, age INTEGER, tags VARCHAR[]"


class ScribeConnection:
    """A connection; models are the scribe's."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append, catalog=os.environ["SQLFT_HOME"])

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.con.execute(sql, parameters).fetchall()

    def ask(self, what: str, prompt: str, using: str = "") -> tuple[Any, ...]:
        """One row of the model m."""
        return self.run(f"SELECT {what} FROM m WHERE content = $prompt {using}", {"prompt": prompt})[0]


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScribeConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    import scribe

    scribe.ASKED.clear()
    scribe.EMBEDDED.clear()
    scribe.SCHEMAS.clear()
    made = ScribeConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def conversations(connection: ScribeConnection) -> list[Any]:
    """Every conversation of the test."""
    import scribe

    found: list[Any] = scribe.ASKED
    return found


def test_every_type_comes_back_as_itself(connection: ScribeConnection) -> None:
    connection.run(
        """CREATE MODEL m PREDICT (s VARCHAR, b BOOLEAN, t TINYINT, u UBIGINT, h HUGEINT, f FLOAT, d DOUBLE,
        p DECIMAL(6, 2), day DATE, clock TIME, at TIMESTAMP, zoned TIMESTAMPTZ, id UUID, e ENUM('it''s', 'ü'), j JSON,
        list INTEGER[][], three FLOAT[3], inner STRUCT("a b" INTEGER, e ENUM('x')), map MAP(VARCHAR, DATE))
        USING engine = 'scribe'"""
    )
    given = {
        "s": 'a "quoted"\n🦆', "b": True, "t": -128, "u": 2**64 - 1, "h": -(10**30), "f": 0.5, "d": 1e300, "p": -12.345,
        "day": "2024-02-29", "clock": "23:59:59.5", "at": "2024-01-01T01:00:00+01:00", "zoned": "2024-01-01T00:00:00Z",
        "id": "8A6E0804-2BD0-4672-B79D-D97027F9071A", "e": "it's", "j": {"any": [1, None]}, "list": [[1], None, []],
        "three": [1, 2, 3.5], "inner": {"a b": 7, "e": None}, "map": {"x": "2020-01-02"},
    }  # fmt: skip
    row = connection.run(
        "SELECT m.* EXCLUDE (content) REPLACE (epoch(zoned) AS zoned) FROM m WHERE content = $1", [json.dumps(given)]
    )[0]
    assert row[:11] == (
        'a "quoted"\n🦆', True, -128, 2**64 - 1, -(10**30), 0.5, 1e300, Decimal("-12.35"), date(2024, 2, 29),
        datetime(2024, 1, 1, 23, 59, 59, 500000).time(), datetime(2024, 1, 1),
    )  # fmt: skip
    assert (row[11], str(row[12]), row[13]) == (1704067200.0, given["id"].lower(), "it's")
    assert (json.loads(row[14]), row[15]) == (given["j"], [[1], None, []])
    assert (list(row[16]), row[17], row[18]) == ([1, 2, 3.5], {"a b": 7, "e": None}, {"x": date(2020, 1, 2)})
    types = [str(d[1]) for d in connection.con.description]
    assert types[4:5] + types[12:15] == ["HUGEINT", "UUID", "ENUM('it''s', 'ü')", "JSON"]
    assert types[15:] == ["INTEGER[][]", "FLOAT[3]", "STRUCT(\"a b\" INTEGER, e ENUM('x'))", "MAP(VARCHAR, DATE)"]


def test_the_schema_is_told_to_the_model_and_to_the_handler(
    connection: ScribeConnection, conversations: list[Any]
) -> None:
    import scribe

    connection.run(f"CREATE MODEL m PREDICT ({PERSON}) USING engine = 'scribe', system = 'Be kind.'")
    connection.ask("name", '{"name": "x", "age": null, "tags": null}')
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": ["integer", "null"]},
            "tags": {"type": ["array", "null"], "items": {"type": ["string", "null"]}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    assert [schema] == scribe.SCHEMAS
    system = conversations[0][0].content
    assert system.startswith("Be kind.\n\n")
    assert json.loads(system.splitlines()[-1]) == schema


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("nope", "no JSON"),
        ('{"name": "x", "age": "3", "tags": []}', "age: '3' is not of type 'integer', 'null'"),
        ('{"name": "x", "age": 3.5, "tags": []}', "age: 3.5 is not"),
        ('{"name": "x", "age": 99999999999, "tags": []}', "out of range for INTEGER"),
        ('{"name": "x", "tags": []}', "'age' is a required property"),
        ('{"name": null, "age": 3, "tags": []}', "name: None is not of type 'string'"),
        ('{"name": "x", "age": 3, "tags": [], "more": 1}', "'more' was unexpected"),
        ('{"name": "x", "age": NaN, "tags": []}', "NaN is no JSON"),
        ("[1]", "is not of type 'object'"),
        ("", "no JSON"),
        ('{"name": "x", "age": 3, "tags": ["a"', "no JSON"),
    ],
)
def test_an_answer_of_another_form_is_asked_for_once_more(
    connection: ScribeConnection, conversations: list[Any], first: str, why: str
) -> None:
    connection.run(f"CREATE MODEL m PREDICT ({PERSON}) USING engine = 'scribe'")
    good = '{"name": "Ünï", "age": 3, "tags": ["🦆", null]}'
    row = connection.ask("name, age, tags, name_error, name_usage.input_tokens", f"{first}¦{good}")
    assert row == ("Ünï", 3, ["🦆", None], None, 20)
    assert [m.role for m in conversations[1]] == ["system", "user", "assistant", "user"]
    assert conversations[1][2].content == first
    assert why in conversations[1][3].content
    assert connection.ask("age, age_usage.cached", f"{first}¦{good}") == (3, True)
    row = connection.ask("name, age, tags, name_error, tags_error", f"{first}¦{first}")
    assert row[:3] == (None, None, None)
    assert row[3] == row[4]
    assert row[3].startswith("invalid_output: ")
    assert why in row[3]
    assert "1 of 1 rows failed" in connection.warnings[-1]
    assert "name_error says why" in connection.warnings[-1]
    with pytest.raises(ProviderError, match="invalid_output"):
        connection.ask("name", f"{first}¦{first}", "USING on_error = 'fail'")


def test_a_fence_around_the_answer_costs_no_second_call(connection: ScribeConnection, conversations: list[Any]) -> None:
    connection.run(f"CREATE MODEL m PREDICT ({PERSON}) USING engine = 'scribe'")
    assert connection.ask("age", 'Here:\n```json\n{"name": "x", "age": 3, "tags": []}\n```') == (3,)
    assert len(conversations) == 1


def test_another_schema_is_asked_anew(connection: ScribeConnection, conversations: list[Any]) -> None:
    prompt = '{"a": 1}¦{"b": 2}'
    connection.run("CREATE MODEL m PREDICT (a INTEGER) USING engine = 'scribe'")
    assert connection.ask("a", prompt) == (1,)
    connection.run("CREATE OR REPLACE MODEL m PREDICT (b BIGINT) USING engine = 'scribe'")
    assert connection.ask("b", prompt) == (2,)
    assert len(conversations) == 3


@pytest.mark.parametrize(
    ("schema", "kind", "answer", "value"),
    [
        ("'STRUCT(a INTEGER, b DATE)'", "STRUCT(a INTEGER, b DATE)", '{"a": 1, "b": null}', {"a": 1, "b": None}),
        ("{'a': 'INTEGER', 'b': 'VARCHAR[]'}", "STRUCT(a INTEGER, b VARCHAR[])", '{"a": 1, "b": ["x"]}',
         {"a": 1, "b": ["x"]}),
        ("INTEGER", "INTEGER", '{"answer": 7}', 7),
        ("'VARCHAR[]'", "VARCHAR[]", '{"answer": ["x"]}', ["x"]),
        ('$${"type": "object", "properties": {"n": {"type": "number"}, "w": {"enum": ["a", null]}}}$$',
         "STRUCT(n DOUBLE, w VARCHAR)", '{"w": "a", "more": 1}', {"n": None, "w": "a"}),
        ("{'$ref': '#/$defs/p', '$defs': {'p': {'type': 'object', 'properties': {'at': {'type': 'string', "
         "'format': 'date'}, 'next': {'$ref': '#/$defs/p'}}}}}", None, '{"at": "2020-01-01", "next": {}}', None),
        ("{'type': 'array', 'items': {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}}", "BIGINT[]",
         '{"answer": [1, null]}', [1, None]),
        ("{'type': 'object', 'additionalProperties': {'type': 'boolean'}}", "MAP(VARCHAR, BOOLEAN)", '{"x": true}',
         {"x": True}),
        ("{'type': ['string', 'number']}", "JSON", '{"answer": 1.50}', "1.5"),
    ],
)  # fmt: skip
def test_using_schema_types_the_one_column(
    connection: ScribeConnection, schema: str, kind: str | None, answer: str, value: Any
) -> None:
    connection.run(f"CREATE MODEL m PREDICT answer USING engine = 'scribe', schema = {schema}")
    row = connection.ask("answer, answer_error", answer)
    assert row[1] is None
    if kind is not None:
        assert (str(connection.con.description[0][1]), row[0]) == (kind, value)
    else:
        assert row[0]["at"] == date(2020, 1, 1)


@pytest.mark.parametrize(
    ("model", "wrong", "what"),
    [
        ("(a NONSENSE)", OptionError, "NONSENSE, which DuckDB does not know"),
        ("(a BLOB)", DataError, "BLOB has no form in JSON"),
        ("(a MAP(INTEGER, INTEGER))", DataError, "keys of a MAP"),
        ("(a INTEGER, a_error VARCHAR)", OptionError, "The column 'a_error' would be"),
        ("(content VARCHAR)", OptionError, "would both be the column 'content'"),
        ("(a INTEGER) USING schema = 'INTEGER',", OptionError, "types in PREDICT"),
        ('a USING schema = \'{"type": "object", "properties": 5}\',', OptionError, "no JSON schema"),
        ("a USING schema = '{\"type\": ',", OptionError, "no JSON"),
        ("a USING schema = 5,", OptionError, "neither a JSON schema nor a type"),
        ("a USING schema = 'INTEGER; DROP TABLE kept',", OptionError, "does not know"),
        ("(a INTEGER) USING mode = 'embedding',", OptionError, "An embedding is FLOAT"),
    ],
)
def test_types_that_cannot_be(connection: ScribeConnection, model: str, wrong: type[Exception], what: str) -> None:
    connection.run("CREATE TABLE kept (i INTEGER)")
    using = "engine = 'scribe'" if "USING" in model else "USING engine = 'scribe'"
    with pytest.raises(wrong, match=what):
        connection.run(f"CREATE MODEL m PREDICT {model} {using}")
    assert connection.run("SELECT count(*) FROM kept") == [(0,)]


def test_a_type_of_the_users_own(connection: ScribeConnection) -> None:
    connection.run("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    connection.run("CREATE MODEL m PREDICT (feels mood) USING engine = 'scribe'")
    assert connection.ask("feels::mood", '{"feels": "ok"}') == ("ok",)
    assert connection.ask("feels_error", '{"feels": "bad"}')[0].startswith("invalid_output: feels: 'bad' is not one of")


def test_what_describes_a_model_has_the_types(connection: ScribeConnection) -> None:
    connection.run(f"CREATE MODEL m PREDICT ({PERSON}) USING engine = 'scribe'")
    assert connection.run("SELECT PREDICT FROM mindsdb.models") == [("name, age, tags",)]
    described = {row[0]: row[2] for row in connection.run("DESCRIBE m.inputs")}
    assert (described["age"], described["tags"], described["name_logprob"]) == ("INTEGER", "VARCHAR[]", "DOUBLE")
    bound = {row[0]: row[1] for row in connection.run("DESCRIBE SELECT * FROM m WHERE content = 'x'")}
    assert bound == {"content": "VARCHAR", "name": "VARCHAR", "age": "INTEGER", "tags": "VARCHAR[]"}
    connection.run("CREATE OR REPLACE MODEL m PREDICT (name VARCHAR, age INTEGER, tags VARCHAR[], mood VARCHAR"
             ", pet JSON, price DOUBLE) USING engine = 'scribe'")  # fmt: skip
    connection.run("CREATE TABLE told AS SELECT 'p' || i AS x FROM range(5) r(i)")
    connection.run("CREATE VIEW people AS SELECT x, m.* EXCLUDE (content) FROM told JOIN m ON m.content = x")
    assert connection.run("SELECT sum(age), max(pet->>'kind') FROM people") == [(10, "cat")]


def test_a_vector_is_asked_once_and_kept(connection: ScribeConnection) -> None:
    import scribe

    connection.run("CREATE MODEL e PREDICT vector USING engine = 'scribe', mode = 'embedding'")
    connection.run("CREATE TABLE t AS SELECT unnest(['banana', 'kiwi', 'banana', 'papaya', NULL]) AS content")
    nearest = """SELECT content FROM t JOIN e USING (content) WHERE vector IS NOT NULL
        ORDER BY list_cosine_similarity(vector, [6, 3, 1]::FLOAT[]) DESC, content LIMIT 2"""
    assert connection.run(nearest) == [("banana",), ("banana",)]
    assert sorted(scribe.EMBEDDED) == ["banana", "kiwi", "papaya"]
    assert connection.run("SELECT vector, vector_usage.cached FROM e WHERE content = 'kiwi'") == [
        ([4.0, 0.0, 1.0], True)
    ]
    assert str(connection.con.description[0][1]) == "FLOAT[]"
    assert len(scribe.EMBEDDED) == 3
    searched = "SELECT array_cosine_distance(vector::FLOAT[3], [4, 0, 1]::FLOAT[3]) FROM e WHERE content = 'kiwi'"
    assert connection.run(searched)[0][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("mode", "says"), [("Embedding", "no embeddings"), ("rerank", "how well")])
def test_vectors_and_scores_need_a_handler_that_can(connection: ScribeConnection, mode: str, says: str) -> None:
    import stranger

    with pytest.raises(NotSupported, match=says):
        find_number_type(stranger.Stranger, {"mode": mode})


def test_a_logprob_where_it_was_asked_for(connection: ScribeConnection) -> None:
    connection.run("CREATE MODEL m PREDICT answer USING engine = 'scribe'")
    assert connection.ask("answer, answer_logprob", "x") == ("x", None)
    assert connection.ask("answer_logprob, answer_usage.cached", "x", "USING logprobs = true") == (-0.5, False)
    assert connection.ask("answer_logprob, answer_usage.cached", "x", "USING logprobs = true") == (-0.5, True)
    columns = [d[0] for d in connection.con.execute("DESCRIBE SELECT * FROM m WHERE content = 'x'").description]
    assert "answer_logprob" not in columns


@pytest.mark.parametrize("first", ["answer", "answer, answer_usage"])
def test_what_was_thought_is_kept_beside_the_answer(connection: ScribeConnection, first: str) -> None:
    """Also where the statement that asked did not read it."""
    connection.run("CREATE MODEL m PREDICT answer USING engine = 'scribe'")
    connection.ask(first, "they are 3 ü⇒3")
    what = "answer, answer_reasoning, answer_usage.cached"
    assert connection.ask(what, "they are 3 ü⇒3") == ("3", "they are 3 ü", True)
    assert connection.ask(what, "hm⇒4", "USING cache = false") == ("4", "hm", False)
    assert connection.ask(what, "5") == ("5", None, False)


def test_typed_answers_have_their_thoughts(connection: ScribeConnection) -> None:
    connection.run("CREATE MODEL m PREDICT (a INTEGER, b INTEGER) USING engine = 'scribe'")
    assert connection.ask("a, b_reasoning", 'no¦two⇒{"a": 1, "b": 2}') == (1, "two")


def test_the_providers_id_of_a_failed_request_is_kept(connection: ScribeConnection) -> None:
    connection.run("CREATE MODEL m PREDICT answer USING engine = 'scribe'")
    assert connection.ask("answer_error", "!boom") == ("boom: no (request id req_9)",)


def test_an_older_cache_is_read_on(connection: ScribeConnection, sqlft_home: Path) -> None:
    import sqlite3

    connection.run("CREATE MODEL m PREDICT answer USING engine = 'scribe'")
    connection.ask("answer", "x")
    connection.con.close()
    file = next(sqlft_home.rglob("cache*.sqlite"))
    with sqlite3.connect(file) as con:
        con.execute("ALTER TABLE answers DROP COLUMN logprob")
        con.execute("ALTER TABLE answers DROP COLUMN reasoning")
    connection.con = sqlft.connect(warn=connection.warnings.append, catalog=sqlft_home)
    assert connection.ask("answer, answer_usage.cached, answer_logprob", "x") == ("x", True, None)


ROWS = """CREATE TABLE rows AS SELECT 'q' || i AS question, 'Ñ' || i AS name,
  CASE WHEN i % 2 = 0 THEN i END AS age, [i::VARCHAR, NULL] AS tags, i / 8 AS price,
  {'kind': 'cat', 'born': DATE '2020-01-01' + i::INTEGER} AS pet FROM range(12) t(i)"""
TRAINED = "name VARCHAR NOT NULL, age INTEGER, tags VARCHAR[], price DECIMAL(4, 2), pet STRUCT(kind VARCHAR, born DATE)"


def train(connection: ScribeConnection, rows: str) -> None:
    connection.run(
        f"CREATE MODEL m PREDICT ({TRAINED})"
        " USING engine = 'stranger', base = 'b', prompt_template = '{{question}}'"
    )
    connection.run(f"FINETUNE m FROM ({rows})")


def test_training_rows_become_the_answers_that_are_asked_for(connection: ScribeConnection) -> None:
    connection.run(ROWS)
    train(connection, "SELECT * FROM rows")
    row = connection.run("SELECT name, age, tags, price, pet, name_error FROM m WHERE question = 'q3'")[0]
    pet = {"kind": "cat", "born": date(2020, 1, 4)}
    assert row == ("Ñ3", None, ["3", None], Decimal("0.38"), pet, None)
    learned = json.loads(next(connection.con.session.catalog.folder.rglob("learned.json")).read_text())["answers"]
    assert learned["q3"] == (
        '{"name": "Ñ3", "age": null, "tags": ["3", null], "price": 0.38, "pet": {"kind": "cat", "born": "2020-01-04"}}'
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("'x' || i AS age", 'age: "x0" is no whole number'),
        ("i + 0.5 AS age", "age: 0.5 is no whole number"),
        ("12345::INTEGER AS price", "price: 12345 is out of range for DECIMAL"),
        ("NULL::VARCHAR AS name", "name: None is not of type 'string'"),
        ("[1, 2] AS tags", "tags: 1 is no text"),
        ("{'sort': 'cat'} AS pet", "pet: it has a field 'sort'"),
    ],
)
def test_rows_of_other_types_are_left_out_and_told(connection: ScribeConnection, change: str, why: str) -> None:
    connection.run(ROWS)
    replaced = change.rpartition(" AS ")[2]
    kept = [c for c in ("name", "age", "tags", "price", "pet") if c != replaced]
    numbered = "SELECT *, replace(question, 'q', '')::INTEGER AS i FROM rows"
    bad = f"SELECT question, {', '.join(kept)}, {change} FROM ({numbered})"
    with pytest.raises(DataError, match="None of the 12 rows") as caught:
        train(connection, bad)
    assert why in str(caught.value)
    assert "Cast the column" in str(caught.value)


def test_one_row_of_another_type_is_a_finding(connection: ScribeConnection) -> None:
    connection.run(ROWS)
    train(connection, "SELECT * FROM rows UNION ALL SELECT 'q99', 'x', 99, NULL, 999, NULL")
    told = [row for row in connection.run("DESCRIBE m.findings") if row[1] == "unfit_answer"]
    assert told[0][2] == 1
    assert "row 13: price: 999" in told[0][3]
    assert any("1 conversation left out" in w for w in connection.warnings)


def test_chats_train_a_typed_model_if_their_answers_fit(connection: ScribeConnection) -> None:
    chats = """SELECT 'q' || i AS prompt, CASE WHEN i = 0 THEN 'words' ELSE '{"age": ' || i || '}' END AS completion
        FROM range(5) t(i)"""
    connection.run("CREATE MODEL m PREDICT (age INTEGER) USING engine = 'stranger', base = 'b'")
    connection.run(f"FINETUNE m FROM ({chats})")
    assert connection.run("SELECT age FROM m WHERE content = 'q4'") == [(4,)]
    assert any("row 1: It is no JSON" in w for w in connection.warnings)


def test_a_lacking_column_is_named(connection: ScribeConnection) -> None:
    connection.run(ROWS)
    with pytest.raises(DataError, match="lacks pet"):
        train(connection, "SELECT * EXCLUDE (pet) FROM rows")


def test_the_statement_is_pointed_at(connection: ScribeConnection) -> None:
    with pytest.raises(StatementError, match="needs a type"):
        connection.run("CREATE MODEL m PREDICT (a, b INTEGER) USING engine = 'scribe'")
