"""Queries over knowledge bases: each shape against a search written out in Python, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import Cancelled, NotSupported, OptionError, StatementError

HANDLERS = Path(__file__).parent / "handlers"
WORDS = [f"{a}{b}{c}" for a in "bdkt" for b in "aiou" for c in "lmr"]
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Document:
    """A text with its metadata."""

    id: int
    body: str
    product: str | None
    size: int


Condition = tuple[str, Callable[[Document], bool]]
"""A filter in SQL and in Python."""
FILTERS: list[Condition] = [
    ("true", lambda d: True),
    ("product = 'shop'", lambda d: d.product == "shop"),
    ("product IN ('shop', 'bank') AND size < 20", lambda d: d.product in ("shop", "bank") and d.size < 20),
    ("product IS NULL", lambda d: d.product is None),
    ("size BETWEEN 5 AND 25", lambda d: 5 <= d.size <= 25),
    ("(metadata->>'product') = 'cloud'", lambda d: d.product == "cloud"),
    ("docs.id % 3 = 1", lambda d: d.id % 3 == 1),
    ("docs.id IN (SELECT id FROM articles WHERE size > 9)", lambda d: d.size > 9),
    ("EXISTS (SELECT 1 FROM articles a WHERE a.id = docs.id AND a.size > 9)", lambda d: d.size > 9),
    ("(product = 'shop' OR size > 20)", lambda d: d.product == "shop" or d.size > 20),
    ("chunk_id LIKE '1%'", lambda d: str(d.id).startswith("1")),
    ("list_contains(['shop', 'cloud'], product)", lambda d: d.product in ("shop", "cloud")),
    ("size = 1000", lambda d: False),
]


class World:
    """A connection with a knowledge base, models, questions, and the search in Python."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        texts = {" ".join(sorted(chance.sample(WORDS, chance.randint(2, 7)))) for _ in range(40)}
        self.documents = [
            Document(i, text, chance.choice(["shop", "cloud", "bank", None]), chance.randrange(30))
            for i, text in enumerate(sorted(texts))
        ]
        asked = [" ".join(chance.sample(WORDS, chance.randint(1, 4))) for _ in range(9)]
        self.questions: list[tuple[int, str | None, str | None]] = [
            (i, text, chance.choice(["shop", "cloud", None])) for i, text in enumerate([*asked, None, asked[0], ""])
        ]
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append)
        self.con.register("documents", pa.Table.from_pylist([d.__dict__ for d in self.documents]))
        self.con.execute("CREATE TABLE articles AS FROM documents")
        self.con.execute("CREATE TABLE q (id INTEGER, question VARCHAR, wanted VARCHAR)")
        self.con.executemany("INSERT INTO q VALUES (?, ?, ?)", self.questions)
        self.con.execute("CREATE MODEL e PREDICT vector USING engine = 'librarian', mode = 'embedding'")
        self.con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter'")
        self.con.execute(
            "CREATE MODEL rag PREDICT answer USING engine = 'counter', prompt_template = '{{q}}|{{context}}'"
        )
        self.con.execute(
            "CREATE KNOWLEDGE_BASE docs USING embedding_model = e, content_columns = ['body'], id_column = 'id', "
            "metadata_columns = ['product', 'size'], language = 'none'"
        )
        self.con.execute("INSERT INTO docs FROM articles ORDER BY id")

    def run(self, sql: str) -> list[Row]:
        """The rows of a statement."""
        return self.con.execute(sql).fetchall()

    def find(
        self, question: str | None, fits: Callable[[Document], bool] = lambda d: True, k: int = 10, least: float = 0.0
    ) -> list[tuple[int, float]]:
        """Ids and relevance of the best texts."""
        if question is None:
            return []
        ranked = [(relevance(question, d.body), d.id) for d in self.documents if fits(d)]
        return [(i, r) for r, i in sorted(ranked, key=lambda p: (-p[0], p[1])) if r >= least][:k]

    def context(self, found: list[tuple[int, float]]) -> str:
        """The texts found as one."""
        return "\n\n".join(self.documents[i].body for i, _ in found)


@cache
def unit_vector(text: str) -> list[float]:
    """The test handler's vector, of length 1."""
    import librarian

    vector = librarian.embed_text(text)
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector


def relevance(question: str, text: str) -> float:
    """1 / (1 + cosine distance), to six digits: what is nearer to each other is equal."""
    distance = 1 - sum(a * b for a, b in zip(unit_vector(question), unit_vector(text), strict=True))
    return round(1 / (1 + distance), 6)


@pytest.fixture(scope="module", params=[1, 2])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A small random knowledge base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HANDLERS))
        plugins.find_entry_points.cache_clear()
        made = World(request.param)
        yield made
        made.con.close()
    plugins.find_entry_points.cache_clear()


# -- shapes ------------------------------------------------------------------------------------------------------------

Shape = Callable[[World, random.Random], tuple[str, list[Row]]]
"""A query and its rows; in this order where the query has an ORDER BY, or reads a knowledge base alone."""


def _pick_question(world: World, chance: random.Random) -> str:
    return str(chance.choice([text for _, text, _ in world.questions if text]))


def alone(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question, k = _pick_question(world, chance), chance.randint(1, 12)
    (sql, fits), least = chance.choice(FILTERS), chance.choice([0, 0.5, 0.55, 0.6])
    query = f"SELECT id, relevance FROM docs WHERE content = '{question}' AND {sql} AND relevance >= {least} LIMIT {k}"
    return query, list(world.find(question, fits, k, least))


def by_pattern(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    query = f"SELECT id, relevance, content FROM docs WHERE content LIKE '%{question}%' AND k = 4"
    return query, [(*found, question) for found in world.find(question, k=4)]


def skipping(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    query = f"SELECT id FROM docs WHERE '{question}' = content ORDER BY id LIMIT 3 OFFSET 2"
    return query, [(i,) for i in sorted(i for i, _ in world.find(question, k=5))[2:]]


def counted(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question, (sql, fits) = _pick_question(world, chance), chance.choice(FILTERS)
    found = world.find(question, fits, least=0.5)
    query = f"SELECT count(*), count(DISTINCT id) FROM docs WHERE content = '{question}' AND {sql} AND relevance > 0.5"
    return query, [(len(found), len(found))]


def joined(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    (sql, fits), least, k = chance.choice(FILTERS), chance.choice([0, 0.52, 0.6]), chance.randint(1, 5)
    kind = chance.choice(["JOIN", "LEFT JOIN"])
    query = (
        f"SELECT q.id, docs.id, docs.relevance FROM q {kind} docs ON docs.content = q.question AND {sql} "
        f"AND docs.relevance >= {least} USING docs.k = {k}"
    )
    rows: list[Row] = []
    for i, text, _ in world.questions:
        found = world.find(text, fits, k, least)
        rows += [(i, *one) for one in found] or ([(i, None, None)] if kind == "LEFT JOIN" else [])
    return query, rows


def limited(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    (sql, fits), least = chance.choice(FILTERS), chance.choice([0, 0.55])
    skipped, count = chance.randint(0, 3), chance.randint(1, 30)
    query = (
        f"SELECT q.id, docs.id FROM q JOIN docs ON docs.content = q.question AND {sql} AND docs.relevance >= {least} "
        f"AND docs.k = 4 WHERE q.id < 9 LIMIT {count} OFFSET {skipped}"
    )
    rows = [(i, d) for i, text, _ in world.questions[:9] for d, _ in world.find(text, fits, 4, least)]
    return query, rows[skipped : skipped + count]


def joined_with_comma(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = "SELECT q.id, docs.id FROM q, docs WHERE docs.content = q.question AND docs.product = q.wanted AND k = 2"
    rows: list[Row] = []
    for i, text, wanted in world.questions:
        rows += [(i, d) for d, _ in world.find(text, lambda d, w=wanted: w is not None and d.product == w, 2)]
    return query, rows


def filtered_by_row(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = (
        "SELECT q.id, docs.id FROM q JOIN docs ON docs.content = q.question AND docs.product = q.wanted "
        "AND docs.size >= q.id + 1 USING docs.k = 3"
    )
    rows: list[Row] = []
    for i, text, wanted in world.questions:
        fits = lambda d, w=wanted, n=i: w is not None and d.product == w and d.size >= n + 1  # noqa: E731
        rows += [(i, d) for d, _ in world.find(text, fits, 3)]
    return query, rows


def lateral(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    (sql, fits), k = chance.choice(FILTERS), chance.randint(1, 4)
    query = (
        f"SELECT q.id, d.id, d.relevance FROM q, LATERAL (SELECT id, relevance FROM docs WHERE content = q.question "
        f"AND {sql} AND size >= q.id LIMIT {k}) AS d"
    )
    rows: list[Row] = []
    for i, text, _ in world.questions:
        rows += [(i, *one) for one in world.find(text, lambda d, n=i: fits(d) and d.size >= n, k)]
    return query, rows


def in_cte(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question, (sql, fits) = _pick_question(world, chance), chance.choice(FILTERS)
    query = (
        f"WITH hits AS (SELECT id, relevance AS r FROM docs WHERE content = '{question}' AND {sql}) "
        "SELECT a.id, a.r FROM hits a JOIN hits b ON a.id = b.id WHERE a.r > 0.5 ORDER BY a.r DESC, a.id"
    )
    return query, [r for r in world.find(question, fits) if r[1] > 0.5]


def in_from(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    query = f"SELECT id FROM (SELECT * FROM docs WHERE content = '{question}' LIMIT 4) AS d WHERE relevance < 0.6"
    return query, [(i,) for i, r in world.find(question, k=4) if r < 0.6]


def in_view(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question, (sql, fits) = _pick_question(world, chance), chance.choice(FILTERS)
    world.run(f"CREATE OR REPLACE VIEW v AS SELECT id, product FROM docs WHERE content = '{question}' AND {sql}")
    found = [i for i, _ in world.find(question, fits)]
    return "SELECT count(*) FROM v WHERE product IS NOT NULL", [
        (sum(world.documents[i].product is not None for i in found),)
    ]


def scalar(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = "SELECT id, (SELECT docs.id FROM docs WHERE content = q.question LIMIT 1) FROM q ORDER BY id"
    return query, [(i, next((d for d, _ in world.find(text, k=1)), None)) for i, text, _ in world.questions]


def existing(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    negated = chance.choice([True, False])
    query = (
        f"SELECT id FROM q WHERE {'NOT ' * negated}EXISTS (SELECT 1 FROM docs WHERE content = q.question "
        "AND relevance >= 0.6) ORDER BY id"
    )
    return query, [(i,) for i, text, _ in world.questions if bool(world.find(text, least=0.6)) != negated]


def semi(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    kind = chance.choice(["SEMI", "ANTI"])
    query = (
        f"SELECT q.id FROM q {kind} JOIN docs ON docs.content = q.question AND docs.relevance >= 0.6 "
        "AND docs.product = 'shop' ORDER BY q.id"
    )
    fits = lambda d: d.product == "shop"  # noqa: E731
    return query, [
        (i,) for i, text, _ in world.questions if bool(world.find(text, fits, least=0.6)) == (kind == "SEMI")
    ]


def without_hits(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = (
        "SELECT q.id FROM q LEFT JOIN docs ON docs.content = q.question AND docs.relevance > 0.62 "
        "WHERE docs.id IS NULL ORDER BY q.id"
    )
    return query, [(i,) for i, text, _ in world.questions if not [r for r in world.find(text) if r[1] > 0.62]]


def united(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    one, other = _pick_question(world, chance), _pick_question(world, chance)
    query = (
        f"SELECT id FROM docs WHERE content = '{one}' UNION ALL SELECT id FROM docs WHERE content = '{other}' "
        "AND product = 'bank' UNION ALL SELECT 1000"
    )
    found = [*world.find(one), *world.find(other, lambda d: d.product == "bank")]
    return query, [*((i,) for i, _ in found), (1000,)]


def with_source(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    order = chance.choice(["docs JOIN articles a ON a.id = docs.id", "articles a JOIN docs ON docs.id = a.id"])
    query = f"SELECT a.body, docs.relevance FROM {order} WHERE docs.content = '{question}' AND a.size > 4"
    found = world.find(question)
    return query, [(world.documents[i].body, r) for i, r in found if world.documents[i].size > 4]


def from_several(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    one, other = (_pick_question(world, chance) for _ in range(2))
    form = chance.choice([f"content IN ('{one}', '{other}')", f"(content = '{one}' OR content LIKE '%{other}%')"])
    best: dict[int, float] = {}
    for i, r in [*world.find(one, k=3), *world.find(other, k=3)]:
        best[i] = max(r, best.get(i, 0))
    query = f"SELECT id, relevance FROM docs WHERE {form} USING docs.k = 3"
    return query, sorted(best.items(), key=lambda item: (-item[1], item[0]))


def from_query(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    best: dict[int, float] = {}
    for _, text, _ in world.questions[:4]:
        for i, r in world.find(text, lambda d: d.size > 3, 3):
            best[i] = max(r, best.get(i, 0))
    query = "SELECT id FROM docs WHERE content IN (SELECT question FROM q WHERE id < 4) AND size > 3 USING docs.k = 3"
    return query, [(i,) for i, _ in sorted(best.items(), key=lambda item: (-item[1], item[0]))]


def from_all(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    one, other = (_pick_question(world, chance) for _ in range(2))
    first, second = dict(world.find(one, k=100)), dict(world.find(other, k=100))
    least = {i: min(first[i], second[i]) for i in first}
    query = f"SELECT id, relevance FROM docs WHERE content = '{one}' AND content = '{other}' LIMIT 4"
    return query, sorted(least.items(), key=lambda item: (-item[1], item[0]))[:4]


def from_branches(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    one, other = (_pick_question(world, chance) for _ in range(2))
    best: dict[int, float] = {}
    found = [*world.find(one, lambda d: d.product == "shop", 2), *world.find(other, lambda d: d.size < 9, 2)]
    for i, r in found:
        best[i] = max(r, best.get(i, 0))
    query = (
        f"SELECT id FROM docs WHERE (content = '{one}' AND product = 'shop') OR (content = '{other}' AND size < 9) "
        "USING docs.k = 2"
    )
    return query, [(i,) for i, _ in sorted(best.items(), key=lambda item: (-item[1], item[0]))]


def leaving_out(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    one, other = (_pick_question(world, chance) for _ in range(2))
    form = chance.choice([f"content <> '{other}'", f"content NOT LIKE '{other}'", f"content NOT IN ('{other}')"])
    out = {i for i, _ in world.find(other, k=100, least=0.5)}
    query = f"SELECT id FROM docs WHERE content = '{one}' AND {form} LIMIT 5"
    return query, [(i,) for i, _ in world.find(one, lambda d: d.id not in out, 5)]


def contexts(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    (sql, fits), kind = chance.choice(FILTERS), chance.choice(["JOIN", "LEFT JOIN"])
    query = f"SELECT q.id, docs.context FROM q {kind} docs ON docs.content = q.question AND {sql} AND docs.k = 2"
    return query, [(i, world.context(world.find(text, fits, 2))) for i, text, _ in world.questions]


def contexts_by_row(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = (
        "SELECT q.id, docs.context, docs.content FROM q JOIN docs ON docs.content = q.question "
        "AND docs.product = q.wanted WHERE docs.relevance > 0.5 ORDER BY q.id DESC USING docs.k = 3"
    )
    rows: list[Row] = []
    for i, text, wanted in reversed(world.questions):
        found = world.find(text, lambda d, w=wanted: w is not None and d.product == w, 3)
        rows.append((i, world.context([f for f in found if f[1] > 0.5]), text))
    return query, rows


def chunks_and_context(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    found = world.find(question, k=3)
    return (
        f"SELECT id, context FROM docs WHERE content = '{question}' LIMIT 3",
        [(i, world.context(found)) for i, _ in found],
    )


def before_model(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    (sql, fits), least = chance.choice(FILTERS), chance.choice(["", " WHERE m.answer LIKE 'A:%BAL%'"])
    query = (
        f"SELECT q.id, m.answer FROM q JOIN docs ON docs.content = q.question AND {sql} AND docs.k = 2 "
        f"JOIN rag m ON m.q = q.question AND m.context = docs.context{least}"
    )
    rows: list[Row] = []
    for i, text, _ in world.questions:
        answer = f"A:{'' if text is None else text}|{world.context(world.find(text, fits, 2))}".upper()
        rows += [(i, answer)] if not least or "BAL" in answer else []
    return query, rows


def model_of_chunks(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question, k = _pick_question(world, chance), chance.randint(1, 5)
    query = (
        "SELECT docs.id, m.answer FROM docs JOIN m ON m.content = docs.chunk_content "
        f"WHERE docs.content = '{question}' LIMIT {k}"
    )
    return query, [(i, f"A:{world.documents[i].body.upper()}") for i, _ in world.find(question, k=k)]


def after_model(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    query = (
        "SELECT q.id, docs.id FROM q JOIN m ON m.content = q.question JOIN docs ON docs.content = lower(m.answer[3:])"
    )
    return f"{query} USING docs.k = 2", [(i, d) for i, text, _ in world.questions for d, _ in world.find(text, k=2)]


def two_bases(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    question = _pick_question(world, chance)
    query = (
        f"SELECT a.id, b.id FROM docs a JOIN docs b ON b.content = a.chunk_content AND b.id <> a.id "
        f"WHERE a.content = '{question}' USING a.k = 2, b.k = 3"
    )
    rows: list[Row] = []
    for i, _ in world.find(question, k=2):
        rows += [(i, d) for d, _ in world.find(world.documents[i].body, lambda d, n=i: d.id != n, 3)]
    return query, rows


def all_chunks(world: World, chance: random.Random) -> tuple[str, list[Row]]:
    sql, fits = chance.choice(FILTERS)
    query = f"SELECT id, chunk_content, product, size, relevance, distance FROM docs WHERE {sql} ORDER BY id"
    return query, [(d.id, d.body, d.product, d.size, None, None) for d in world.documents if fits(d)]


SHAPES: list[Shape] = [
    *(
        alone,
        by_pattern,
        skipping,
        counted,
        joined,
        limited,
        joined_with_comma,
        filtered_by_row,
        lateral,
        in_cte,
        in_from,
    ),
    *(
        in_view,
        scalar,
        existing,
        semi,
        without_hits,
        united,
        with_source,
        from_several,
        from_query,
        from_all,
        from_branches,
    ),
    *(leaving_out, contexts, contexts_by_row, chunks_and_context, before_model, model_of_chunks, after_model),
    *(two_bases, all_chunks),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_query_gives_what_a_search_in_python_gives(world: World, shape: Shape) -> None:
    for seed in range(5):
        query, expected = shape(world, random.Random(seed))
        rows = world.run(query)
        is_ordered = " ORDER BY " in query or query.startswith("SELECT id")
        if not is_ordered:
            rows, expected = sorted(rows, key=_exact_part), sorted(expected, key=_exact_part)
        assert len(rows) == len(expected), query
        for row, right in zip(rows, expected, strict=True):
            assert row == pytest.approx(right, abs=1e-5), query
    assert not world.warnings


def _exact_part(row: Row) -> str:
    return repr([value for value in row if not isinstance(value, float)])


# -- one knowledge base, its statements and its errors ----------------------------------------------------------------


def _fill(con: sqlft.Connection) -> sqlft.Connection:
    """Five texts in a knowledge base, their source, three questions and models."""
    con.execute("CREATE MODEL e PREDICT vector USING engine = 'librarian', mode = 'embedding'")
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'counter'")
    con.execute("CREATE MODEL rag PREDICT answer USING engine = 'counter', prompt_template = '{{q}}|{{context}}'")
    con.execute(
        "CREATE TABLE articles AS FROM (VALUES (1, 'money back', 'shop', DATE '2026-01-01'), "
        "(2, 'money back in the cloud', 'cloud', DATE '2026-02-01'), (3, 'lost password', 'cloud', '2026-03-01'), "
        "(4, 'price of shipping', 'shop', '2026-04-01'), (5, 'naïve “quotes” '' and 検索', NULL, NULL)) "
        "AS a(id, body, product, day)"
    )
    con.execute("CREATE TABLE q AS FROM (VALUES (1, 'money back'), (2, 'password'), (3, NULL)) AS q(id, question)")
    con.execute(
        "CREATE KNOWLEDGE_BASE docs USING embedding_model = e, content_columns = ['body'], id_column = 'id', "
        "language = 'none'"
    )
    con.execute("INSERT INTO docs FROM articles")
    return con


@pytest.fixture(scope="module")
def read_only() -> Iterator[sqlft.Connection]:
    """A connection that tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HANDLERS))
        plugins.find_entry_points.cache_clear()
        with sqlft.connect(warn=lambda text: None) as made:
            yield _fill(made)
    plugins.find_entry_points.cache_clear()


@pytest.fixture
def con(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    """A connection of the test's own."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    with sqlft.connect(warn=lambda text: None) as made:
        yield _fill(made)
    plugins.find_entry_points.cache_clear()


def test_a_star_shows_chunks_and_nothing_of_the_search(read_only: sqlft.Connection) -> None:
    columns = ["id", "chunk_id", "chunk_content", "metadata", "product", "day", "distance", "relevance"]
    for query in ("SELECT * FROM docs", "SELECT * FROM docs WHERE content = 'money'", "SELECT docs.* FROM docs"):
        assert [d[0] for d in read_only.execute(query).description or []] == columns
    both = read_only.execute("SELECT *, content, context FROM docs WHERE content = 'password' LIMIT 1")
    assert [d[0] for d in both.description or []] == [*columns, "content", "context"]
    assert both.fetchall()[0][-2:] == ("password", "lost password")
    row = read_only.execute("SELECT docs FROM docs WHERE content = 'password' LIMIT 1").fetchall()[0][0]
    assert list(row) == columns
    described = read_only.execute("DESCRIBE SELECT * FROM docs WHERE content = 'x'").fetchall()
    assert [(r[0], r[1]) for r in described][:6] == [
        *(("id", "INTEGER"), ("chunk_id", "VARCHAR"), ("chunk_content", "VARCHAR"), ("metadata", "JSON")),
        *(("product", "VARCHAR"), ("day", "DATE")),
    ]


def test_the_best_chunk_of_each_question_comes_first(read_only: sqlft.Connection) -> None:
    rows = read_only.execute("SELECT q.id, docs.id, relevance FROM q JOIN docs ON docs.content = q.question").fetchall()
    assert [r[0] for r in rows] == [1] * 5 + [2] * 5
    for question in (1, 2):
        found = [r[2] for r in rows if r[0] == question]
        assert found == sorted(found, reverse=True)


def test_texts_are_embedded_once(con: sqlft.Connection) -> None:
    import librarian

    con.execute("DROP CACHE FOR e")
    librarian.EMBEDDED.clear()
    query = "SELECT q.id, docs.id FROM q, range(20) JOIN docs ON docs.content = q.question"
    assert len(con.execute(query).fetchall()) == 200
    assert sorted(librarian.EMBEDDED) == ["money back", "password"]
    con.execute(query)
    con.execute("EXPLAIN SELECT id FROM docs WHERE content = 'never seen'").fetchall()
    con.execute("DESCRIBE SELECT id FROM docs WHERE content = 'never seen'").fetchall()
    con.execute("CREATE VIEW seen AS SELECT id FROM docs WHERE content = 'never seen'")
    assert len(librarian.EMBEDDED) == 2


def test_a_limit_ends_the_search_for_contexts(con: sqlft.Connection) -> None:
    import counter
    import librarian

    con.execute("CREATE TABLE many AS SELECT i AS id, 'money ' || i AS question FROM range(3000) r(i)")
    librarian.EMBEDDED.clear()
    query = (
        "SELECT id, m.answer FROM many JOIN docs ON docs.content = question "
        "JOIN rag m ON m.q = question AND m.context = docs.context"
    )
    before = len(counter.ASKED)
    assert len(con.execute(f"{query} LIMIT 5").fetchall()) == 5
    assert (len(librarian.EMBEDDED), len(counter.ASKED) - before) == (5, 5)
    assert len(con.execute(f"{query} WHERE m.answer LIKE '%7|%' LIMIT 2").fetchall()) == 2
    assert len(librarian.EMBEDDED) < 100
    rows = con.execute(f"{query} USING docs.k = 1").fetchall()
    best = "SELECT many.id, 'A:' || upper(question || '|' || chunk_content) FROM many JOIN docs ON content = question"
    assert len(rows) == 3000
    assert sorted(rows) == sorted(con.execute(f"{best} USING docs.k = 1").fetchall())


def test_a_limit_ends_the_search_for_chunks(con: sqlft.Connection) -> None:
    import librarian

    con.execute("CREATE TABLE many AS SELECT i AS id, 'money ' || i AS question FROM range(300) r(i)")
    chunks = "SELECT many.id, docs.id FROM many LEFT JOIN docs ON docs.content = question AND docs.product = 'shop'"
    everything = con.execute(chunks).fetchall()
    con.execute("DROP CACHE FOR e")
    for more, count in (
        ("", 16),
        (" JOIN m ON m.content = question", 16),
        (" WHERE docs.id = 1", 16),
        (" WHERE docs.distance < 2", 300),  # which may leave out any of the rows
        (" JOIN m ON m.content = question WHERE m.answer LIKE '%1'", 300),
    ):
        librarian.EMBEDDED.clear()
        rows = con.execute(f"{chunks}{more} LIMIT 5 OFFSET 1 USING cache = false").fetchall()
        assert len(librarian.EMBEDDED) == count, more
        assert rows == everything[1:6] or more
    assert con.execute(f"{chunks} WHERE docs.id = 1 LIMIT 300").fetchall() == [(i, 1) for i in range(300)]


@pytest.mark.parametrize(
    ("conditions", "using", "ids"),
    [
        ("k = 1", "", [1]),
        ("", "docs.k = 2", [1, 2]),
        ("k = 3", "docs.k = 1", [1]),
        ("", "k = 1, docs.search = 'words'", [1]),
        ("search = 'words'", "", [1, 2]),
        ("hybrid_search = true AND k = 2", "", [1, 2]),
        ("hybrid_search_alpha = 0.0 AND k = 2", "", [1, 2]),
        ("hybrid_search = false AND reranking = false AND k = 1 + 1", "", [1, 2]),
        ("day > DATE '2026-01-15' AND k = 1", "", [2]),
        ("(metadata->>'product') = 'cloud' AND k = 1", "", [2]),
        ("length(chunk_content) > 10 AND relevance > 0.6", "", [2]),
    ],
)
def test_options_stand_among_the_conditions_or_behind_using(
    read_only: sqlft.Connection, conditions: str, using: str, ids: list[int]
) -> None:
    where = f" AND {conditions}" if conditions else ""
    query = f"SELECT id FROM docs WHERE content = 'money back'{where}{f' USING {using}' if using else ''}"
    assert [i for (i,) in read_only.execute(query).fetchall()] == ids


def test_a_context_keeps_to_its_tokens(read_only: sqlft.Connection) -> None:
    query = "SELECT context FROM docs WHERE content = 'money back' USING docs.separator = ' / ', docs.max_tokens = "
    assert read_only.execute(f"{query}9").fetchall() == [("money back",)]
    assert read_only.execute(f"{query}10").fetchall() == [("money back / money back in the cloud",)]
    assert read_only.execute(f"{query}1").fetchall() == [("",)]
    several = "SELECT context FROM docs WHERE content IN ('money back', 'lost password') AND k = 2"
    assert sorted(read_only.execute(several).fetchall()[0][0].split("\n\n")) == ["lost password", "money back"]


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ("SELECT id FROM docs WHERE content = 'x' AND relevance < 0.5", StatementError, "that are not the best"),
        ("SELECT id FROM docs WHERE content = 'x' AND relevance BETWEEN 0.1 AND 0.2", StatementError, "not the best"),
        ("SELECT id FROM docs WHERE content = 'x' AND relevance >= 1.5", StatementError, "between 0 and 1"),
        ("SELECT id FROM docs WHERE content = 'x' AND relevance > 'much'", StatementError, "between 0 and 1"),
        ("SELECT id FROM docs WHERE relevance >= 0.5", StatementError, "'relevance' needs something"),
        ("SELECT id FROM docs WHERE id < 3 AND k = 2", StatementError, "'k' needs something"),
        ("SELECT id FROM docs USING docs.k = 2", OptionError, "docs"),
        ("SELECT context FROM docs", StatementError, "'context' needs something"),
        ("SELECT content FROM docs", StatementError, "'content' needs something"),
        ("SELECT id FROM docs WHERE content = 'x' OR id = 3", StatementError, "does not say what is searched for"),
        ("SELECT id FROM docs WHERE length(content) = 3", StatementError, "does not say what is searched for"),
        ("SELECT id FROM docs WHERE content <> 'x'", StatementError, "only leaves out"),
        (
            "SELECT id FROM docs WHERE content > ANY (SELECT question FROM q)",
            StatementError,
            "not say what is searched",
        ),
        ("SELECT id FROM docs WHERE content = 'x' AND k = id", StatementError, "on an option of the search"),
        ("SELECT id FROM docs WHERE content = 'x' AND (k = 3 OR id = 4)", StatementError, "on an option of the search"),
        ("SELECT id FROM docs WHERE content = 'x' AND k = 0", OptionError, "'k' is 0"),
        ("SELECT id FROM docs WHERE content = 'x' AND hybrid_search_alpha = 2", OptionError, "between 0 and 1"),
        ("SELECT id FROM docs WHERE content = 'x' AND search = 'vibes'", OptionError, "'meaning' or 'words' or 'both'"),
        ("SELECT id FROM docs WHERE content = 'x' USING docs.seperator = ''", OptionError, "Did you mean 'separator'"),
        ("SELECT id FROM docs WHERE content = 'x' USING separater = ''", OptionError, "Did you mean 'separator'"),
        ("SELECT id FROM docs.1 WHERE content = 'x'", NotSupported, "has no versions"),
        ("SELECT * FROM docs NATURAL JOIN q", NotSupported, "NATURAL JOIN"),
        ("SELECT * FROM docs AS d(a, b) WHERE content = 'x'", NotSupported, "cannot be renamed"),
        ("SELECT * FROM q RIGHT JOIN docs ON docs.content = q.question", NotSupported, "RIGHT JOIN"),
        ("SELECT id FROM docs TABLESAMPLE 3 ROWS WHERE content = 'x'", NotSupported, "cannot be sampled"),
        ("INSERT INTO docs DEFAULT VALUES", NotSupported, "takes a query or VALUES"),
        ("INSERT INTO docs SELECT 1 AS id, 'x' AS body RETURNING id", NotSupported, "takes a query or VALUES"),
        ("MERGE INTO docs USING q ON q.id = docs.id WHEN MATCHED THEN DELETE", NotSupported, "MERGE cannot write"),
        ("TRUNCATE docs", NotSupported, "TRUNCATE cannot write"),
        ("COPY docs FROM 'x.csv'", NotSupported, "COPY cannot write"),
        ("DELETE FROM docs USING q WHERE q.id = docs.id", NotSupported, "no other clauses"),
        ("DELETE FROM docs WHERE content = 'x'", StatementError, "does not search"),
        ("UPDATE docs SET product = 'x' WHERE docs.content LIKE 'x'", StatementError, "does not search"),
        ("UPDATE docs SET content = 'x' FROM q WHERE q.id = docs.id", NotSupported, "no other clauses"),
        ("PREPARE p AS SELECT * FROM docs", NotSupported, "PREPARE cannot keep"),
        ("CREATE TABLE docs (id INTEGER)", sqlft.SqlftError, "docs"),
        ("CREATE VIEW docs AS SELECT 1", sqlft.SqlftError, "docs"),
    ],
)
def test_what_cannot_be_is_an_error_with_a_next_step(
    read_only: sqlft.Connection, query: str, kind: type[sqlft.SqlftError], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        read_only.execute(query)
    assert raised.value.next_step
    assert read_only.execute("SELECT count(*) FROM docs").fetchall() == [(5,)]


def test_duckdb_says_what_no_column_is(read_only: sqlft.Connection) -> None:
    with pytest.raises(duckdb.BinderException, match="colour"):
        read_only.execute("SELECT colour FROM docs WHERE content = 'x'")
    with pytest.raises(duckdb.BinderException, match="colour"):
        read_only.execute("SELECT id FROM docs WHERE content = 'x' AND docs.colour = 'red'")


def test_any_text_is_searched_for(con: sqlft.Connection) -> None:
    texts = ["naïve “quotes” ' and 検索", "'; DROP TABLE articles; --", "%", "a\nb", "😀", "\\", "{{q}}", " "]
    for text in texts:
        found = con.execute("SELECT id, content FROM docs WHERE content = ? LIMIT 1", [text]).fetchall()
        assert [c for _, c in found] == [text]
    con.execute("CREATE TABLE hostile AS SELECT unnest(?) AS t", [texts])
    rows = con.execute("SELECT DISTINCT t FROM hostile JOIN docs ON docs.content = t").fetchall()
    assert sorted(t for (t,) in rows) == sorted(texts)
    assert con.execute("SELECT id FROM docs WHERE content = ? LIMIT 1", [texts[0]]).fetchall() == [(5,)]


def test_results_go_wherever_a_query_goes(con: sqlft.Connection, tmp_path: Path) -> None:
    best = "SELECT q.id AS q, docs.id AS doc FROM q JOIN docs ON docs.content = q.question AND k = 1"
    con.execute(f"CREATE TABLE hits AS {best}")
    con.execute(f"INSERT INTO hits {best}")
    assert con.execute("SELECT * FROM hits ORDER BY ALL").fetchall() == [(1, 1), (1, 1), (2, 3), (2, 3)]
    con.execute(f"COPY ({best}) TO '{tmp_path}/hits.csv'")
    assert (tmp_path / "hits.csv").read_text() == "q,doc\n1,1\n2,3\n"
    con.execute(f"COPY docs TO '{tmp_path}/docs.parquet'")
    assert con.execute(f"SELECT count(*) FROM '{tmp_path}/docs.parquet'").fetchall() == [(5,)]
    con.execute("ALTER TABLE q ADD COLUMN best INTEGER")
    con.execute("UPDATE q SET best = (SELECT docs.id FROM docs WHERE content = q.question LIMIT 1)")
    assert con.execute("SELECT best FROM q ORDER BY id").fetchall() == [(1,), (3,), (None,)]
    con.execute("DELETE FROM q WHERE EXISTS (SELECT 1 FROM docs WHERE content = q.question AND relevance > 0.7)")
    assert con.execute("SELECT count(*) FROM q").fetchall() == [(1,)]
    con.execute("UPDATE q SET best = docs.id FROM docs WHERE docs.id = q.id")
    assert con.execute("SELECT best FROM q").fetchall() == [(3,)]
    assert con.sql("SELECT id FROM docs WHERE content = 'password' LIMIT 1").fetchall() == [(3,)]
    assert con.execute("SELECT id FROM docs WHERE content = 'password'").to_arrow_table().num_rows == 5
    assert len(con.execute("SUMMARIZE docs").fetchall()) == 8


def test_texts_are_written_in_the_users_transaction(con: sqlft.Connection) -> None:
    con.execute("BEGIN")
    assert con.execute("INSERT INTO docs (id, body) VALUES (6, 'a zebra'), (7, 'two zebras')").fetchall() == [(2,)]
    assert con.execute("SELECT id FROM docs WHERE content = 'zebra' LIMIT 1").fetchall() == [(6,)]
    con.execute("ROLLBACK")
    assert con.execute("SELECT count(*) FROM docs WHERE id > 5").fetchall() == [(0,)]


def test_what_is_inserted_may_come_from_models(con: sqlft.Connection) -> None:
    con.execute("CREATE TABLE drafts AS SELECT 10 + i AS id, 'draft ' || i AS t FROM range(3) r(i)")
    inserted = con.execute(
        "WITH d AS (SELECT * FROM drafts) INSERT INTO docs SELECT d.id, m.answer AS body FROM d "
        "JOIN m ON m.content = d.t USING batch_size = 2, m.suffix = '!'"
    )
    assert inserted.fetchall() == [(3,)]
    found = con.execute("SELECT chunk_content FROM docs WHERE id >= 10 ORDER BY id").fetchall()
    assert found == [("A:DRAFT 0!",), ("A:DRAFT 1!",), ("A:DRAFT 2!",)]
    deleted = con.execute("DELETE FROM docs WHERE id IN (SELECT id FROM docs WHERE content = 'draft' LIMIT 2)")
    assert deleted.fetchall() == [(2,)]
    assert con.execute("DELETE FROM docs AS d WHERE d.id >= 10").fetchall() == [(1,)]
    assert con.execute("UPDATE docs SET content = 'pass phrase' WHERE id = 3").fetchall() == [(1,)]
    assert con.execute("SELECT id FROM docs WHERE content = 'phrase' LIMIT 1").fetchall() == [(3,)]


def test_explain_shows_the_search_and_asks_nothing(con: sqlft.Connection) -> None:
    import librarian

    librarian.EMBEDDED.clear()  # a text that was inserted is embedded already
    query = (
        "SELECT q.id, m.answer FROM q JOIN docs ON docs.content = q.question AND docs.product = 'shop' "
        "AND docs.relevance >= 0.5 JOIN rag m ON m.q = q.question AND m.context = docs.context USING docs.k = 3"
    )
    plan = con.execute(f"EXPLAIN {query}").fetchall()[0][1]
    for line in (
        *("Knowledge Base docs", "Search: by meaning", "Best: 3 as context", "Relevance: >= 0.5", "Rows: 3"),
        *("Distinct Texts: 2", "Embedding Model: e.1", "Embedded Already: 1", "To Embed: 1", "Requests: 4"),
    ):
        assert line in plan
    assert not librarian.EMBEDDED
    ran = con.execute(f"EXPLAIN ANALYZE {query}").fetchall()[0][1]
    assert "Asked: 1, Cached: 1" in ran
    assert "Found: " in ran
    assert librarian.EMBEDDED == ["password"]
    as_json = con.execute("EXPLAIN (FORMAT JSON) SELECT id FROM docs WHERE content = 'x'").fetchall()[0][1]
    assert '"Knowledge Base": "docs"' in as_json
    listing = con.execute("EXPLAIN SELECT id FROM docs WHERE product = 'shop'").fetchall()[0][1]
    assert "documents" in listing
    inserting = con.execute("EXPLAIN INSERT INTO docs FROM articles").fetchall()[0][1]
    assert "articles" in inserting


def test_an_interrupt_ends_a_search(con: sqlft.Connection) -> None:
    con.execute("CREATE TABLE many AS SELECT i AS id, 'money ' || i AS question FROM range(3000) r(i)")
    con.session.show_progress = lambda tick: con.interrupt()
    for columns in ("docs.id", "docs.context"):
        with pytest.raises(Cancelled):
            con.execute(f"SELECT count({columns}) FROM many JOIN docs ON docs.content = question USING cache = false")
    con.session.show_progress = lambda tick: None
    assert con.execute("SELECT count(*) FROM docs").fetchall() == [(5,)]


def test_all_chunks_stand_beside_a_search(read_only: sqlft.Connection) -> None:
    for query in (
        "SELECT id FROM docs WHERE id IN (SELECT id FROM docs WHERE content = 'password' LIMIT 1)",
        "SELECT docs.id FROM docs JOIN docs d ON d.id = docs.id WHERE d.content = 'password' USING d.k = 1",
        "WITH h AS (SELECT id FROM docs WHERE content = 'password' LIMIT 1) SELECT id FROM docs JOIN h USING (id)",
        "SELECT docs.id FROM q JOIN docs USING (id) WHERE docs.content = 'password' AND q.id = 3",
        "SELECT id FROM docs JOIN articles USING (id, product) WHERE body LIKE '%password'",
        "SELECT id FROM docs WHERE EXISTS (FROM docs d WHERE d.content = 'money' AND d.id = docs.id) AND id = 3",
    ):
        assert read_only.execute(query).fetchall() == [(3,)]


def test_names_of_others_go_before(con: sqlft.Connection) -> None:
    assert con.execute("WITH docs AS (SELECT 42 AS id) SELECT * FROM docs").fetchall() == [(42,)]
    con.execute("CREATE TABLE t AS SELECT 1 AS k, 'money' AS content, 'words' AS search")
    query = "SELECT k, search, count(*) FROM t JOIN docs ON docs.content = t.content WHERE k = 1 AND search = 'words'"
    assert con.execute(f"{query} GROUP BY ALL").fetchall() == [(1, "words", 5)]


def test_an_empty_knowledge_base_has_no_rows(con: sqlft.Connection) -> None:
    con.execute("CREATE KNOWLEDGE_BASE empty_one USING embedding_model = e, language = 'none'")
    assert con.execute("SELECT * FROM empty_one").fetchall() == []
    assert con.execute("SELECT id FROM empty_one WHERE content = 'x'").fetchall() == []
    assert con.execute("SELECT context FROM empty_one WHERE content = 'x'").fetchall() == [("",)]
    rows = con.execute("SELECT q.id, d.id FROM q LEFT JOIN empty_one d ON d.content = q.question ORDER BY 1").fetchall()
    assert rows == [(1, None), (2, None), (3, None)]
    assert con.execute("DELETE FROM empty_one WHERE id = '1'").fetchall() == [(0,)]


def test_a_base_of_words_is_searched_by_words(con: sqlft.Connection) -> None:
    con.execute("CREATE KNOWLEDGE_BASE plain USING content_columns = ['body'], id_column = 'id', language = 'none'")
    con.execute("INSERT INTO plain SELECT id, body FROM articles")
    assert con.execute("SELECT id FROM plain WHERE content = 'password' LIMIT 1").fetchall() == [(3,)]
    with pytest.raises(NotSupported, match="no embedding model"):
        con.execute("SELECT id FROM plain WHERE content = 'password' AND search = 'meaning'")


MINDSDB_SCRIPT = """
CREATE KNOWLEDGE_BASE my_kb
USING
    embedding_model = {"provider": "librarian", "model_name": "any"},
    reranking_model = false,
    metadata_columns = ['product'],
    content_columns = ['notes'],
    id_column = 'order_id';
DESCRIBE KNOWLEDGE_BASE my_kb;
INSERT INTO my_kb SELECT order_id, product, notes FROM sample_orders USING batch_size = 2, track_column = order_id;
SELECT * FROM my_kb;
SELECT * FROM my_kb WHERE content = 'color';
SELECT id, metadata, chunk_id, chunk_content, distance, relevance FROM my_kb WHERE content LIKE '%black color%'
    AND product = 'Wireless Mouse' AND relevance >= 0.25 LIMIT 10;
SELECT * FROM my_kb WHERE product IN ('Gaming Chair', 'Desk') AND content = 'broken' AND hybrid_search = true;
SELECT * FROM my_kb WHERE content = 'broken' AND hybrid_search_alpha = 0.8 AND reranking = false LIMIT 5;
SELECT * FROM my_kb WHERE content = 'color' AND content NOT LIKE '%green%' AND product LIKE '%Mouse%';
SELECT * FROM my_kb WHERE content IN ('color', 'battery') OR content = 'broken';
SELECT my_kb.chunk_content, my_kb.relevance, sample_orders.buyer FROM my_kb JOIN sample_orders
    ON my_kb.id = sample_orders.order_id WHERE my_kb.content = 'color';
SELECT product, count(*) FROM my_kb WHERE content = 'color' GROUP BY product ORDER BY product;
INSERT INTO my_kb (order_id, product, notes) VALUES ('A9Z', 'Desk', 'Wobbly legs');
DELETE FROM my_kb WHERE id = 'A1B';
DELETE FROM my_kb WHERE product = 'Gaming Chair';
UPDATE my_kb SET content = 'The legs do not wobble' WHERE id = 'A9Z';
ALTER KNOWLEDGE_BASE my_kb USING reranking_model = false;
CREATE INDEX ON KNOWLEDGE_BASE my_kb;
DROP INDEX ON KNOWLEDGE_BASE my_kb;
SHOW KNOWLEDGE_BASES;
DROP KNOWLEDGE_BASE IF EXISTS my_kb
"""


def test_mindsdbs_statements_run_as_they_are(con: sqlft.Connection) -> None:
    con.execute(
        "CREATE TABLE sample_orders AS FROM (VALUES "
        "('A1B', 'Wireless Mouse', 'Request color: black', 'Ann'), "
        "('3XZ', 'Bluetooth Speaker', 'Gift wrap, battery', 'Bo'), "
        "('Q7P', 'Gaming Chair', 'Arm rest broken', 'Cy'), ('9WM', 'Wireless Mouse', 'color green', 'Di')) "
        "AS o(order_id, product, notes, buyer)"
    )
    results = [con.execute(statement).fetchall() for statement in MINDSDB_SCRIPT.split(";")]
    described, inserted, everything, by_color, filtered, hybrid, weighted, without, either, joined, grouped = results[
        1:12
    ]
    assert len(described) == 1
    assert inserted == [(4,)]
    assert len(everything) == len(by_color) == 4
    assert [row[0] for row in filtered] == ["A1B", "9WM"]
    assert [row[0] for row in hybrid] == ["Q7P"]
    assert weighted[0][0] == "Q7P"
    assert [row[0] for row in without] == ["A1B"]
    assert {row[0] for row in either} == {"A1B", "3XZ", "Q7P", "9WM"}
    assert joined[0][0] in ("color green", "Request color: black")
    assert len(joined) == 4
    assert grouped == [("Bluetooth Speaker", 1), ("Gaming Chair", 1), ("Wireless Mouse", 2)]
    assert results[12:16] == [[(1,)], [(1,)], [(1,)], [(1,)]]
    assert con.execute("SELECT count(*) FROM sqlft.models WHERE name LIKE 'my_kb%'").fetchall() == [(0,)]
