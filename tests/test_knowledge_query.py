"""Queries over knowledge bases: each shape against a search written out in Python, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sqlft
from sqlft import plugins

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
    ("metadata->>'product' = 'cloud'", lambda d: d.product == "cloud"),
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


@pytest.fixture(scope="module", params=[1, 2, 3])
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
    *(alone, by_pattern, skipping, counted, joined, joined_with_comma, filtered_by_row, lateral, in_cte, in_from),
    *(in_view, scalar, existing, semi, without_hits, united, with_source, from_several, from_all, from_branches),
    *(leaving_out, contexts, contexts_by_row, chunks_and_context, before_model, model_of_chunks, after_model),
    *(two_bases, all_chunks),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_query_gives_what_a_search_in_python_gives(world: World, shape: Shape) -> None:
    for seed in range(8):
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
