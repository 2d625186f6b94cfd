"""Knowledge bases as they are made, filled, changed and dropped, through SQL."""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import AlreadyExists, CatalogError, DataError, NotFound, NotSupported, OptionError
from sqlft.session import Tick

HANDLERS = Path(__file__).parent / "handlers"


class Store:
    """A connection with an embedding model `e` of the test handler; what it warns of and how far it says it is."""

    def __init__(self, database: str | Path = ":memory:", read_only: bool = False) -> None:
        import librarian

        self.handler = librarian
        librarian.EMBEDDED.clear()
        librarian.REFUSED.clear()
        self.warnings: list[str] = []
        self.notices: list[str] = []
        self.ticks: list[Tick] = []
        self.on_tick: Callable[[Tick], object] = self.ticks.append
        self.con = sqlft.connect(
            database, read_only, warn=self.warnings.append, progress=lambda tick: self.on_tick(tick) and None
        )
        self.con.session.show_notice = self.notices.append
        if not read_only and self.con.session.find_model("e") is None:
            self.run("CREATE MODEL e PREDICT vector USING engine = 'librarian', mode = 'embedding'")

    def run(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.con.execute(sql, parameters).fetchall()

    def describe(self, name: str = "docs") -> dict[str, Any]:
        """What DESCRIBE shows."""
        result = self.con.execute(f"DESCRIBE KNOWLEDGE_BASE {name}")
        return dict(zip([column[0] for column in result.description], result.fetchall()[0], strict=True))

    def embedded(self) -> list[str]:
        """What was embedded since the last call."""
        texts = sorted(self.handler.EMBEDDED)
        self.handler.EMBEDDED.clear()
        return texts

    def refuse(self, kind: type[Exception], sql: str) -> str:
        """The error of a statement."""
        with pytest.raises(kind) as raised:
            self.run(sql)
        return str(raised.value)


@pytest.fixture
def librarian_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `librarian` is installed."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    yield
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def store(librarian_installed: None) -> Iterator[Store]:
    """A connection in memory with a knowledge base `docs` of texts with metadata, which is empty."""
    made = Store()
    made.run("CREATE KNOWLEDGE_BASE docs USING embedding_model = e, content_columns = ['body'], id_column = 'id'")
    yield made
    made.con.close()


ARTICLES = """
SELECT i AS id, 'text ' || i AS body, 'p' || i % 2 AS product, DATE '2020-01-01' + i::INT AS day FROM range(4) t(i)"""


# -- inserting ---------------------------------------------------------------------------------------------------------


def test_rows_become_documents_with_their_metadata(store: Store) -> None:
    assert store.run(f"INSERT INTO docs {ARTICLES}") == [(4,)]
    assert store.run("SELECT id, chunk_id, chunk_content, product, day FROM docs WHERE id = 1") == [
        (1, "1_body:1of1:0to6", "text 1", "p1", datetime.date(2020, 1, 2))
    ]
    assert store.run("SELECT metadata ->> 'product', distance FROM docs WHERE day = '2020-01-03'") == [("p0", None)]
    known = store.describe()
    assert (known["DOCUMENTS"], known["CHUNKS"], known["WAITING"], known["DIMENSION"]) == (4, 4, 0, 64)
    assert known["PROCESSED_ROWS"] == 4
    assert known["ERROR"] is None
    assert known["INSERT_FINISHED_AT"] is not None
    assert known["METADATA_COLUMNS"] == ["product", "day"]


def test_values_keep_their_types(store: Store) -> None:
    columns = "uuid() AS id, 1.50::DECIMAL(9, 2) AS a, TIMESTAMP_NS '2020-01-01' AS b, [1, 2] AS c, {x: 'y'} AS d"
    store.run(f"INSERT INTO docs SELECT 'text' AS body, {columns}")
    types = [row[1] for row in store.run("DESCRIBE SELECT id, a, b, c, d FROM docs")]
    assert types == ["UUID", "DECIMAL(9,2)", "TIMESTAMP_NS", "INTEGER[]", "STRUCT(x VARCHAR)"]
    assert store.run("SELECT a, c, d FROM docs") == [(Decimal("1.50"), [1, 2], {"x": "y"})]


def test_the_first_value_of_a_column_decides_its_type(store: Store) -> None:
    store.run("INSERT INTO docs SELECT 1 AS id, 'a' AS body, NULL AS day")
    store.run("INSERT INTO docs SELECT 2 AS id, 'b' AS body, DATE '2020-01-01' AS day")
    assert store.run("SELECT day FROM docs ORDER BY id") == [(None,), (datetime.date(2020, 1, 1),)]
    store.run("DELETE FROM docs")
    store.run("INSERT INTO docs SELECT 'one' AS id, 'a' AS body, 7 AS day")
    assert store.run("SELECT id, day FROM docs") == [("one", 7)]


def test_the_same_rows_cost_nothing(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    assert len(store.embedded()) == 4
    assert store.run(f"INSERT INTO docs {ARTICLES}") == [(4,)]
    assert store.embedded() == []
    store.run("INSERT INTO docs SELECT id, body, 'sale' AS product FROM (" + ARTICLES + ") WHERE id < 2")
    assert store.embedded() == []
    assert store.run("SELECT id, product, day IS NULL FROM docs ORDER BY id") == [
        *[(0, "sale", False), (1, "sale", False), (2, "p0", False), (3, "p1", False)]
    ]


def test_a_row_takes_the_place_of_the_one_with_its_id(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.embedded()
    store.run("INSERT INTO docs SELECT 2 AS id, 'changed' AS body, 'new' AS product UNION ALL SELECT 9, 'added', 'new'")
    assert store.embedded() == ["added", "changed"]
    assert store.run("SELECT id, chunk_content FROM docs WHERE product = 'new' ORDER BY id") == [
        *[(2, "changed"), (9, "added")]
    ]
    found = store.run("SELECT id FROM docs WHERE content = 'text 2' AND search = 'words'")
    assert 2 not in [row[0] for row in found]
    assert store.describe()["DOCUMENTS"] == 5


def test_of_repeated_ids_the_first_row_stays(store: Store) -> None:
    assert store.run("INSERT INTO docs (id, body) VALUES (1, 'one'), (2, 'two'), (1, 'another')") == [(2,)]
    assert store.run("SELECT chunk_content FROM docs ORDER BY id") == [("one",), ("two",)]
    assert re.search("earlier row of this INSERT has their id: 1", store.warnings[0])


def test_without_an_id_the_text_is_it(store: Store) -> None:
    store.run("CREATE KNOWLEDGE_BASE notes USING embedding_model = e")
    store.run("INSERT INTO notes (content) VALUES ('hello'), ('hello'), ('world')")
    assert store.run("SELECT id, chunk_content FROM notes ORDER BY chunk_content") == [
        *[("5d41402abc4b2a76", "hello"), ("7d793037a0760186", "world")]
    ]
    assert store.warnings == []


def test_errors_are_in_the_words_of_the_statement(store: Store) -> None:
    assert "INSERT INTO docs (id, body) VALUES" in store.refuse(DataError, "INSERT INTO docs VALUES (1, 'x')")
    store.run(f"INSERT INTO docs {ARTICLES}")
    for sql in ("INSERT INTO docs SELECT nothing FROM nowhere", "DELETE FROM docs WHERE nothing = 1"):
        error = store.refuse(duckdb.Error, sql)
        assert "nothing" in error
        assert "sqlft" not in error
        assert "__" not in error


def test_empty_texts_are_documents_without_chunks(store: Store) -> None:
    store.run("INSERT INTO docs (id, body) VALUES (1, ''), (2, NULL), (3, '  '), (4, 'text')")
    known = store.describe()
    assert (known["DOCUMENTS"], known["CHUNKS"]) == (4, 1)
    assert store.run("DELETE FROM docs WHERE id < 3") == [(2,)]
    assert store.describe()["DOCUMENTS"] == 2


def test_texts_of_several_columns_and_kinds(store: Store) -> None:
    store.run("CREATE KNOWLEDGE_BASE two USING content_columns = ['title', 'body'], id_column = 'id'")
    store.run("INSERT INTO two SELECT 'it''s' AS id, 'Ünï 日本' AS title, {'a': [1]} AS body")
    assert store.run("SELECT chunk_id, chunk_content FROM two ORDER BY chunk_id") == [
        ("it's_body:1of1:0to9", '{"a":[1]}'),
        ("it's_title:1of1:0to6", "Ünï 日本"),
    ]
    store.run("INSERT INTO two SELECT 2 AS id, 'only' AS title")
    assert "title" in store.refuse(DataError, "INSERT INTO two SELECT 3 AS id, 'x' AS text")


def test_ids_of_another_type_are_cast_or_refused(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.run("INSERT INTO docs (id, body) VALUES ('7', 'seven')")
    assert store.run("SELECT chunk_content FROM docs WHERE id = 7") == [("seven",)]
    assert "'seven'" in store.refuse(DataError, "INSERT INTO docs (id, body) VALUES ('seven', 'x'), ('8', 'y')")
    assert store.describe()["DOCUMENTS"] == 5
    assert store.run("INSERT INTO docs (id, body) VALUES ('seven', 'x'), ('8', 'y') USING error = skip") == [(1,)]
    assert "seven" in store.warnings[0]
    assert "without an id" in store.refuse(DataError, "INSERT INTO docs (id, body) VALUES (NULL, 'x')")
    assert "day DATE" in store.refuse(DataError, "INSERT INTO docs (id, body, day) VALUES (1, 'x', 'tomorrow')")


def test_unknown_columns_are_refused_until_they_are_named(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    error = store.refuse(DataError, "INSERT INTO docs SELECT 1 AS id, 'x' AS body, 3 AS stars")
    statement = re.search(r"ALTER KNOWLEDGE_BASE .*\]", error)
    assert statement is not None
    store.run(statement[0])
    assert store.run("SELECT stars FROM docs WHERE id = 1") == [(None,)]
    store.run("INSERT INTO docs SELECT 1 AS id, 'x' AS body, 3 AS stars")
    assert store.run("SELECT id, stars FROM docs WHERE id < 2 ORDER BY id") == [(0, None), (1, 3)]
    store.run("INSERT INTO docs SELECT 1 AS id, 'x' AS body, 4 AS stars, 'more' AS other")
    assert "other" in store.notices[-1]


@pytest.mark.parametrize("name", ["relevance", "Chunk_Content", "content", "k"])
def test_metadata_does_not_hide_what_a_query_means(store: Store, name: str) -> None:
    assert name in store.refuse(OptionError, f"INSERT INTO docs SELECT 1 AS id, 'x' AS body, 2 AS {name}")
    assert name in store.refuse(OptionError, f"CREATE KNOWLEDGE_BASE other USING metadata_columns = ['{name}', 'a']")
    assert store.describe()["DOCUMENTS"] == 0


def test_equal_texts_are_embedded_once(store: Store) -> None:
    """In one batch, in others, and later; without the cache."""
    rows = "SELECT i AS id, 'text ' || i % 3 AS body FROM range({}, {}) t(i)"
    store.run(f"INSERT INTO docs {rows.format(0, 20)} USING batch_size = 4, cache = false")
    assert store.embedded() == ["text 0", "text 1", "text 2"]
    store.run(f"INSERT INTO docs {rows.format(20, 30)} USING cache = false")
    assert store.embedded() == []
    assert store.run("SELECT count(*) FROM docs WHERE content = 'text 1' AND relevance > 0.99 LIMIT 50") == [(10,)]


def test_what_is_decided_once(store: Store) -> None:
    store.run("ALTER KNOWLEDGE_BASE docs USING language = 'german'")
    store.run("INSERT INTO docs SELECT 1 AS id, 'Die Häuser stehen' AS body")
    assert store.run("SELECT id FROM docs WHERE content = 'Haus' AND search = 'words'") == [(1,)]
    assert "german" in store.refuse(NotSupported, "ALTER KNOWLEDGE_BASE docs USING language = 'english'")
    store.refuse(NotSupported, "ALTER KNOWLEDGE_BASE docs USING storage = memory")
    store.run("ALTER KNOWLEDGE_BASE docs USING language = 'german', chunk_size = 5, chunk_overlap = 0")
    store.run("INSERT INTO docs SELECT 2 AS id, 'aaaa bbbb' AS body")
    assert store.describe()["CHUNKS"] == 3


def test_existing_texts_are_left_alone_on_request(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.embedded()
    store.run("INSERT INTO docs SELECT i AS id, 'new' AS body FROM range(3, 5) t(i) USING kb_skip_existing = true")
    assert store.embedded() == ["new"]
    store.run("INSERT INTO docs SELECT 77 AS id, 'b' AS body USING kb_no_upsert = true, threads = 4, track_column = id")
    assert store.describe()["DOCUMENTS"] == 6
    assert "'sise'" in store.refuse(OptionError, "INSERT INTO docs SELECT 1 AS id, 'x' AS body USING sise = 3")


# -- transactions, interruptions ---------------------------------------------------------------------------------------


def test_what_is_rolled_back_is_gone(store: Store) -> None:
    store.run("BEGIN")
    store.run("INSERT INTO docs SELECT 1 AS id, 'x' AS body, 2 AS stars")
    assert store.run("SELECT count(*) FROM docs") == [(1,)]
    store.run("ROLLBACK")
    assert store.run("SELECT count(*) FROM docs") == [(0,)]
    store.run("INSERT INTO docs SELECT 'a' AS id, 'x' AS body, 'red' AS colour")
    assert store.run("SELECT id, colour FROM docs") == [("a", "red")]
    store.run("BEGIN")
    store.run("INSERT INTO docs SELECT 'a' AS id, 'y' AS body; DELETE FROM docs WHERE id = 'none'")
    store.run("UPDATE docs SET colour = 'blue' WHERE id = 'a'")
    store.run("ROLLBACK")
    assert store.run("SELECT chunk_content, colour FROM docs") == [("x", "red")]


def test_an_interrupted_insert_goes_on(store: Store) -> None:
    rows = "SELECT i AS id, 'text ' || i AS body FROM range(20) t(i)"

    def stop(tick: Tick) -> None:
        assert tick.total == 20
        if tick.done > 10:
            raise KeyboardInterrupt

    store.on_tick = stop
    with pytest.raises(KeyboardInterrupt):
        store.run(f"INSERT INTO docs {rows} USING batch_size = 5")
    known = store.describe()
    assert (known["DOCUMENTS"], known["PROCESSED_ROWS"], known["ERROR"]) == (10, 10, "KeyboardInterrupt")
    store.on_tick = store.ticks.append
    assert len(store.embedded()) == 15
    assert store.run(f"INSERT INTO docs {rows} USING batch_size = 5") == [(20,)]
    assert len(store.embedded()) == 5  # the batch that was not written is in the cache
    assert store.describe()["ERROR"] is None


KILLED = """
import os, signal, sys
sys.path.insert(0, {handlers!r})
import sqlft

def stop(tick):
    if tick.label.startswith("inserting") and tick.done > 20:
        os.kill(os.getpid(), signal.SIGKILL)

con = sqlft.connect({database!r}, warn=lambda text: None, progress=stop)
con.execute("CREATE MODEL e PREDICT vector USING engine = 'librarian', mode = 'embedding'")
con.execute("CREATE KNOWLEDGE_BASE docs USING embedding_model = e")
con.execute("INSERT INTO docs SELECT i AS id, 'text ' || i AS content FROM range(50) t(i) USING batch_size = 10")
"""


def test_a_killed_insert_goes_on_where_it_was(librarian_installed: None, tmp_path: Path) -> None:
    database = str(tmp_path / "app.duckdb")
    code = KILLED.format(handlers=str(HANDLERS), database=database)
    child = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    store = Store(database)
    known = store.describe()
    assert (known["DOCUMENTS"], known["CHUNKS"], known["WAITING"]) == (20, 20, 0)
    assert "run the statement again" in known["ERROR"]
    assert len(store.run("SELECT id FROM docs WHERE content = 'text 3' LIMIT 50")) == 20
    store.run("INSERT INTO docs SELECT i AS id, 'text ' || i AS content FROM range(50) t(i) USING batch_size = 10")
    assert len(store.embedded()) == 20  # what the killed batch asked is in the cache
    known = store.describe()
    assert (known["DOCUMENTS"], known["ERROR"]) == (50, None)
    store.con.close()


def test_two_connections_write_and_read(store: Store) -> None:
    """Each text is there once, whoever was first, and what is read is whole."""
    store.run("INSERT INTO docs SELECT -1 AS id, 'first' AS body")
    errors: list[BaseException] = []
    counts: list[int] = []
    done = threading.Event()

    def insert(con: sqlft.Connection, start: int) -> None:
        try:
            rows = f"SELECT i AS id, 'text ' || i || ' of {start}' AS body FROM range({start}, {start} + 30) t(i)"
            con.execute(f"INSERT INTO docs {rows} USING batch_size = 5").fetchall()
        except BaseException as e:
            errors.append(e)

    def read(con: sqlft.Connection) -> None:
        while not done.is_set():
            rows = con.execute("SELECT count(*), count(DISTINCT id) FROM docs").fetchall()
            counts.append(rows[0][0] - rows[0][1])

    writers = [threading.Thread(target=insert, args=(store.con.cursor(), start)) for start in (0, 15)]
    reader = threading.Thread(target=read, args=(store.con.cursor(),))
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert set(counts) == {0}
    assert store.run("SELECT count(*), count(DISTINCT id), max(id) FROM docs") == [(46, 46, 44)]
    different = "count(*) - count(DISTINCT chunk), count(*) - count(DISTINCT doc)"
    numbers = store.con.session.con.sql(f'SELECT {different} FROM sqlft_knowledge."mindsdb.docs.chunks"')
    assert numbers.fetchall() == [(0, 0)]


def test_dropping_is_not_part_of_a_transaction(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.run("BEGIN")
    assert "COMMIT" in store.refuse(CatalogError, "DROP KNOWLEDGE_BASE docs")
    assert "COMMIT" in store.refuse(CatalogError, "CREATE OR REPLACE KNOWLEDGE_BASE docs")
    store.run("CREATE KNOWLEDGE_BASE other; INSERT INTO other (content) VALUES ('x'); ROLLBACK")
    assert store.run("SELECT count(*) FROM docs") == [(4,)]
    assert store.run("SELECT count(*) FROM other") == [(0,)]


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_texts_that_fail_wait(store: Store) -> None:
    store.handler.REFUSED.append("text 2")
    store.run(f"INSERT INTO docs {ARTICLES}")
    assert store.describe()["WAITING"] == 1
    assert any("wait for a vector: 1" in warning for warning in store.warnings)
    assert sorted(store.run("SELECT id FROM docs WHERE content = 'text'")) == [(0,), (1,), (3,)]
    assert (2,) in store.run("SELECT id FROM docs WHERE content = 'text 2' AND search = 'words'")
    store.handler.REFUSED.clear()
    store.embedded()
    store.run("REFRESH KNOWLEDGE_BASE docs")
    assert store.embedded() == ["text 2"]
    assert store.describe()["WAITING"] == 0


def test_an_insert_of_the_same_rows_takes_up_what_waits(store: Store) -> None:
    store.handler.REFUSED.append("text")
    store.run(f"INSERT INTO docs {ARTICLES}")
    assert (store.describe()["WAITING"], store.describe()["DIMENSION"]) == (4, None)
    assert store.run("SELECT id FROM docs WHERE content = 'x'") == []
    store.handler.REFUSED.clear()
    store.run(f"INSERT INTO docs {ARTICLES}")
    assert (store.describe()["WAITING"], store.describe()["DIMENSION"]) == (0, 64)
    assert len(store.run("SELECT id FROM docs WHERE content = 'text 1'")) == 4


def test_another_embedding_model_is_refused_until_all_is_embedded_again(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    making = "PREDICT vector USING engine = 'librarian', mode = 'embedding'"
    store.run(f"CREATE OR REPLACE MODEL e {making}, base = 'prefixed'")
    store.embedded()
    error = store.refuse(CatalogError, "SELECT id FROM docs WHERE content = 'text 1'")
    store.refuse(CatalogError, "INSERT INTO docs SELECT 5 AS id, 'x' AS body")
    statement = re.search(r"REFRESH .* = true", error)
    assert statement is not None
    store.run(statement[0])
    assert store.embedded() == [f"text: text {i}" for i in range(4)]
    assert store.run("SELECT id FROM docs WHERE content = 'text 1' LIMIT 1") == [(1,)]
    error = store.refuse(CatalogError, "ALTER KNOWLEDGE_BASE docs USING embedding_model = other")
    assert "REFRESH KNOWLEDGE_BASE docs USING rebuild = true, embedding_model" in error
    store.run(f"CREATE MODEL other {making}, base = '10'")
    store.run("REFRESH KNOWLEDGE_BASE docs USING rebuild = true, embedding_model = other")
    assert store.describe()["MODEL"] == "other"
    assert store.describe()["WAITING"] == 0
    store.run("DROP MODEL e")


def test_a_model_in_use_is_neither_dropped_nor_renamed(store: Store) -> None:
    assert "'docs' uses it" in store.refuse(CatalogError, "DROP MODEL e")
    assert "'docs' uses it" in store.refuse(CatalogError, "ALTER MODEL e RENAME TO f")
    store.run("DROP KNOWLEDGE_BASE docs; DROP MODEL e")


def test_a_provider_makes_a_model_that_goes_with_its_knowledge_base(store: Store) -> None:
    store.run(
        """CREATE KNOWLEDGE BASE kb USING
           embedding_model = {"provider": "librarian", "model_name": "any"},
           reranking_model = {"provider": "librarian", "model_name": "any", "mode": "pointwise", "method": "binary"}"""
    )
    assert store.run("SELECT name FROM sqlft.models ORDER BY name") == [
        *[("e",), ("kb_embedding_model",), ("kb_reranking_model",)]
    ]
    known = store.describe("kb")
    assert (known["MODEL"], known["RERANKING_MODEL"]) == ("kb_embedding_model", "kb_reranking_model")
    store.run("ALTER KNOWLEDGE_BASE kb USING reranking_model = false")
    assert store.describe("kb")["RERANKING_MODEL"] is None
    store.run("INSERT INTO kb (content) VALUES ('text')")
    store.run(
        "REFRESH KNOWLEDGE_BASE kb USING rebuild = true, embedding_model = {'provider': 'librarian', 'base': '9'}"
    )
    assert (store.describe("kb")["DIMENSION"], store.describe("kb")["WAITING"]) == (9, 0)
    store.refuse(
        OptionError,
        "REFRESH KNOWLEDGE_BASE kb USING rebuild = true, embedding_model = {'provider': 'librarian', 'x': 1}",
    )
    assert store.describe("kb")["MODEL"] == "kb_embedding_model"
    store.run("DROP KNOWLEDGE_BASE kb")
    assert store.run("SELECT name FROM sqlft.models") == [("e",)]


def test_a_key_is_kept_secret_and_can_be_changed(store: Store, provider: Any) -> None:
    making = f"'provider': 'openai_compatible', 'base_url': '{provider.url}', 'model_name': 'm'"
    store.run(f"CREATE KNOWLEDGE_BASE kb USING embedding_model = {{{making}, 'api_key': 'sk-a1b2c3d4e5'}}")
    shown = [store.run(sql) for sql in ("DESCRIBE kb", "FROM sqlft.models", "FROM sqlft.knowledge_bases")]
    assert "sk-a1b2" not in str(shown)
    before = store.con.session.catalog.models()
    store.run("ALTER KNOWLEDGE_BASE kb USING embedding_model = {'api_key': 'sk-f6g7h8i9j0'}")
    assert len(store.con.session.catalog.models()) == len(before)
    store.refuse(CatalogError, "ALTER KNOWLEDGE_BASE kb USING embedding_model = {'model_name': 'other'}")


# -- FROM and REFRESH --------------------------------------------------------------------------------------------------


def test_a_query_keeps_it_up_to_date(store: Store) -> None:
    store.run("CREATE TABLE src AS SELECT i AS id, 'row ' || i AS content, i % 2 = 0 AS even FROM range(6) t(i)")
    store.run("CREATE KNOWLEDGE_BASE kb FROM (SELECT * FROM src) USING embedding_model = e, batch_size = 4")
    assert len(store.embedded()) == 6
    store.run("DELETE FROM src WHERE id = 0; UPDATE src SET content = 'changed' WHERE id = 1")
    store.run("UPDATE src SET even = NULL WHERE id = 2; INSERT INTO src VALUES (9, 'new', false)")
    store.run("REFRESH KNOWLEDGE_BASE kb")
    assert store.embedded() == ["changed", "new"]
    assert store.run("SELECT id, chunk_content, even FROM kb ORDER BY id")[:3] == [
        *[(1, "changed", False), (2, "row 2", None), (3, "row 3", False)]
    ]
    assert store.run("SELECT list(id ORDER BY id) FROM kb") == [([1, 2, 3, 4, 5, 9],)]
    assert store.describe("kb")["QUERY"] == "SELECT * FROM src"
    store.run("DROP TABLE src")
    store.refuse(duckdb.CatalogException, "REFRESH KNOWLEDGE_BASE kb")
    assert store.describe("kb")["DOCUMENTS"] == 6


def test_a_query_that_fails_leaves_no_knowledge_base(store: Store) -> None:
    store.refuse(duckdb.CatalogException, "CREATE KNOWLEDGE_BASE kb FROM (SELECT * FROM nowhere)")
    store.refuse(NotFound, "DESCRIBE KNOWLEDGE_BASE kb")


def test_texts_may_come_from_a_model(store: Store) -> None:
    store.run("CREATE MODEL writer PREDICT answer USING engine = 'echo'")
    query = "SELECT t.i AS id, m.answer AS content FROM range(3) t(i) JOIN writer m ON m.content = 'about ' || t.i"
    store.run(f"CREATE KNOWLEDGE_BASE kb FROM ({query})")
    assert store.run("SELECT id, chunk_content FROM kb ORDER BY id")[1] == (1, "about 1")


# -- DELETE and UPDATE -------------------------------------------------------------------------------------------------


def test_deleting_chunks_and_documents(store: Store) -> None:
    store.run("ALTER KNOWLEDGE_BASE docs USING chunk_size = 10, chunk_overlap = 0")
    rows = "SELECT i AS id, 'aaaa bbbb cccc' || i AS body, i AS n FROM range(3) t(i)"
    store.run(f"INSERT INTO docs {rows}")
    assert store.describe()["CHUNKS"] == 6
    assert store.run("DELETE FROM docs WHERE chunk_id = '1_body:1of2:0to9'") == [(1,)]
    assert store.run("DELETE FROM docs WHERE n = 2") == [(2,)]
    assert store.run("SELECT id, chunk_content FROM docs ORDER BY chunk_id") == [
        *[(0, "aaaa bbbb"), (0, "cccc0"), (1, "cccc1")]
    ]
    assert store.run("SELECT id FROM docs WHERE content = 'aaaa' AND search = 'words'") == [(0,)]
    store.run(f"INSERT INTO docs {rows}")
    assert store.describe()["CHUNKS"] == 6


def test_updating_a_text_and_metadata(store: Store) -> None:
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.embedded()
    assert store.run("UPDATE docs SET content = 'other words' WHERE chunk_id = '1_body:1of1:0to6'") == [(1,)]
    assert store.embedded() == ["other words"]
    assert store.run("SELECT id FROM docs WHERE content = 'other words' LIMIT 1") == [(1,)]
    assert store.run("SELECT id FROM docs WHERE content = 'words' AND search = 'words'") == [(1,)]
    assert store.run("UPDATE docs SET product = product || '!', day = NULL WHERE id > 1") == [(2,)]
    assert store.embedded() == []
    assert store.run("SELECT product, day FROM docs ORDER BY id")[1:] == [
        *[("p1", datetime.date(2020, 1, 2)), ("p0!", None), ("p1!", None)]
    ]
    assert store.run("UPDATE docs SET body = 'more words' WHERE id = 0") == [(1,)]
    assert store.run("SELECT chunk_content FROM docs WHERE id = 0") == [("more words",)]
    assert "chunk_id" in store.refuse(OptionError, "UPDATE docs SET chunk_id = 'x' WHERE id = 1")
    assert "DELETE FROM docs" in store.refuse(DataError, "UPDATE docs SET content = '' WHERE id = 1")


# -- names, places, listings -------------------------------------------------------------------------------------------


def test_a_name_means_one_thing(store: Store) -> None:
    store.run("CREATE TABLE t (a INT)")
    for sql in (
        *("CREATE KNOWLEDGE_BASE docs", "CREATE KNOWLEDGE_BASE t", "CREATE KNOWLEDGE_BASE e"),
        *("CREATE TABLE docs (a INT)", "CREATE VIEW docs AS SELECT 1", "ALTER MODEL e RENAME TO docs"),
        "CREATE MODEL docs PREDICT a USING engine = 'echo'",
    ):
        store.refuse(CatalogError, sql)
    assert "DROP KNOWLEDGE_BASE docs" in store.refuse(CatalogError, "DROP TABLE docs")
    store.run("CREATE KNOWLEDGE_BASE IF NOT EXISTS docs")
    store.run(f"INSERT INTO docs {ARTICLES}")
    store.run("CREATE OR REPLACE KNOWLEDGE_BASE docs USING embedding_model = e")
    assert store.describe()["DOCUMENTS"] == 0
    store.run("DROP KNOWLEDGE_BASE docs; DROP KNOWLEDGE_BASE IF EXISTS docs; CREATE TABLE docs (a INT)")
    store.refuse(NotFound, "DROP KNOWLEDGE_BASE docs")


@pytest.mark.parametrize(
    ("using", "what"),
    [
        ("foo = 1", "has no option 'foo'"),
        ("embedding_model = nothing", "no model 'nothing'"),
        ("embedding_model = 7", "neither a model's name nor an object"),
        ("embedding_model = {'model_name': 'x'}", "no provider"),
        ("embedding_model = {'provider': 'nobody', 'model_name': 'x'}", "nobody"),
        ("embedding_model = greeter", "gives texts"),
        ("embedding_model = e, content_columns = ['a', 'A']", "named twice"),
        ("embedding_model = e, content_columns = ['a'], metadata_columns = ['A']", "content column and a metadata"),
        ("storage = nowhere.x", "no database 'nowhere'"),
        ("chunk_size = 0", "at least 1"),
        ("chunk_size = 10, chunk_overlap = 10", "less than chunk_size"),
        ("chunking = 'pages'", "'text' or 'markdown'"),
        ("preprocessing = 'x'", "object"),
        ("preprocessing = {'type': 'contextual'}", "ontextual"),
        ("preprocessing = {'text_chunking_config': {'size': 3}}", "has no option 'size'"),
        ("language = 'klingon'", "klingon"),
        ("is_sparse = true", "sparse"),
    ],
)
def test_what_does_not_fit_is_refused(store: Store, using: str, what: str) -> None:
    store.run("CREATE MODEL greeter PREDICT answer USING engine = 'echo'")
    with pytest.raises(sqlft.SqlftError, match=what) as raised:
        store.run(f"CREATE KNOWLEDGE_BASE kb USING {using}")
    assert isinstance(raised.value, (OptionError, NotFound, NotSupported, CatalogError))
    assert raised.value.next_step
    assert store.run("SELECT name FROM sqlft.knowledge_bases") == [("docs",)]
    assert len(store.run("FROM sqlft.models")) == 2


def test_vectors_of_another_length_are_refused(store: Store) -> None:
    store.run("CREATE KNOWLEDGE_BASE kb USING embedding_model = e, vector_size = 10")
    assert "64 numbers" in store.refuse(DataError, "INSERT INTO kb (content) VALUES ('text')")


def test_listings(store: Store) -> None:
    store.run("CREATE PROJECT shop; CREATE KNOWLEDGE_BASE shop.other")
    assert "no embedding_model" in store.notices[-1]
    result = store.con.execute("SHOW KNOWLEDGE BASES LIKE 'd%'")
    assert [c[0] for c in result.description] == [
        *("NAME", "PROJECT", "MODEL", "STORAGE", "PARAMS", "INSERT_STARTED_AT", "INSERT_FINISHED_AT", "PROCESSED_ROWS"),
        *("ERROR", "QUERY_ID", "DOCUMENTS", "CHUNKS", "WAITING"),
    ]
    assert [row[:4] for row in result.fetchall()] == [("docs", "mindsdb", "e", "memory.sqlft_knowledge")]
    assert store.run("SELECT name, project FROM sqlft.knowledge_bases ORDER BY name") == [
        *[("docs", "mindsdb"), ("other", "shop")]
    ]
    assert len(store.run("SELECT * FROM information_schema.knowledge_bases")) == 2
    assert store.run("DESCRIBE docs")[0][0] == "docs"
    assert "comes first" in store.refuse(CatalogError, "DROP PROJECT shop")
    store.run("USE shop; INSERT INTO other (content) VALUES ('x'); DROP KNOWLEDGE_BASE other; DROP PROJECT shop")
    store.run("CREATE INDEX ON KNOWLEDGE_BASE docs WITH (type = 'ivf', nlist = 10); DROP INDEX ON KNOWLEDGE_BASE docs")
    assert "is exact" in store.notices[-1]


def test_texts_in_an_attached_database(store: Store, tmp_path: Path) -> None:
    store.run(f"ATTACH '{tmp_path}/texts.duckdb' AS texts")
    store.run("CREATE KNOWLEDGE_BASE kb USING embedding_model = e, storage = texts.kb")
    store.run("INSERT INTO kb (id, content) VALUES (1, 'hello')")
    assert store.run("SELECT count(*) FROM duckdb_tables() WHERE database_name = 'texts'") == [(4,)]
    store.run("DETACH texts")
    assert "ATTACH" in store.refuse(CatalogError, "SELECT id FROM kb WHERE content = 'hello'")
    assert "not attached" in store.run("SHOW KNOWLEDGE_BASES LIKE 'kb'")[0][8]
    store.run(f"ATTACH '{tmp_path}/texts.duckdb' AS texts")
    assert store.run("SELECT id FROM kb WHERE content = 'hello'") == [(1,)]


def test_of_another_database_and_read_only(librarian_installed: None, tmp_path: Path) -> None:
    made = Store(tmp_path / "a.duckdb")
    made.run("CREATE KNOWLEDGE_BASE docs USING embedding_model = e")
    made.run("INSERT INTO docs (id, content) VALUES (1, 'hello'), (2, 'world')")
    made.con.close()
    other = Store(tmp_path / "b.duckdb")
    other.run(f"ATTACH '{tmp_path}/a.duckdb' AS a")
    assert other.run("SELECT id FROM a.docs WHERE content = 'world' LIMIT 1") == [(2,)]
    assert "only read" in other.refuse(CatalogError, "INSERT INTO a.docs (id, content) VALUES (3, 'x')")
    other.con.close()
    readers = Store(tmp_path / "a.duckdb", read_only=True)
    assert readers.run("SELECT id FROM docs WHERE content = 'world' LIMIT 1") == [(2,)]
    for sql in (
        *("INSERT INTO docs (id, content) VALUES (3, 'x')", "DELETE FROM docs WHERE id = 1", "CREATE KNOWLEDGE_BASE k"),
        *("UPDATE docs SET content = 'x' WHERE id = 1", "DROP KNOWLEDGE_BASE docs", "REFRESH KNOWLEDGE_BASE docs"),
    ):
        assert "read-only" in readers.refuse(CatalogError, sql)
    readers.con.close()


def test_names_that_need_quotes(store: Store) -> None:
    name, text = '"My ""docs"" 日"', '"a ""text"""'
    store.run(f"CREATE KNOWLEDGE_BASE {name} USING id_column = 'the id', content_columns = ['a \"text\"']")
    store.run(f'INSERT INTO {name} SELECT 1 AS "the id", \'x\' AS {text}, 2 AS "it\'s"')
    assert store.run(f'SELECT id, "it\'s" FROM {name}') == [(1, 2)]
    store.run(f"DROP KNOWLEDGE_BASE {name}")


def test_already_exists_says_what_to_do(store: Store) -> None:
    assert "CREATE OR REPLACE KNOWLEDGE_BASE" in store.refuse(AlreadyExists, "CREATE KNOWLEDGE_BASE docs")
