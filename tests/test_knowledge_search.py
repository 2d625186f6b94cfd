"""Searching a knowledge base: by meaning, words and both, against a search in Python; reranking; EVALUATE."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pytest

import sqlft
from sqlft import plugins
from sqlft.catalog.records import KnowledgeBase, ModelKey
from sqlft.errors import Cancelled, CatalogError, DataError, NotFound, NotSupported, OptionError, ProviderError
from sqlft.inference.statement_runs import open_statement_runs
from sqlft.knowledge import evaluate, index, words
from sqlft.knowledge.search import MARGIN, MIN_MATRIX_QUESTIONS, SearchOptions, search_chunks
from sqlft.knowledge.tables import table_name

HANDLERS = Path(__file__).parent / "handlers"
VOCABULARY = [f"{a}{b}{c}" for a in "bdk" for b in "aiou" for c in "lmrst"]
K1, B = 1.5, 0.75


class Library:
    """A connection with models of the test handler, and what it warns of."""

    def __init__(self) -> None:
        import librarian

        self.handler = librarian
        librarian.EMBEDDED.clear()
        librarian.RERANKED.clear()
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append)
        for name, options in (("e", "mode = 'embedding'"), ("yesno", "mode = 'text'"), ("scorer", "mode = 'rerank'")):
            self.run(f"CREATE MODEL {name} PREDICT answer USING engine = 'librarian', {options}")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.con.execute(sql).fetchall()

    def fill(self, texts: list[str | None], using: str = "embedding_model = e", metadata: str = "") -> KnowledgeBase:
        """A knowledge base `docs` of texts with ids 0, 1 …; `metadata` are expressions of `id`."""
        self.run(f"CREATE OR REPLACE KNOWLEDGE_BASE docs USING {using}")
        self.con.register("texts", pa.table({"id": range(len(texts)), "content": pa.array(texts, pa.string())}))
        self.run(f"INSERT INTO docs SELECT id, content{metadata} FROM texts ORDER BY id")
        return self.base()

    def base(self) -> KnowledgeBase:
        """The record of `docs`."""
        base = self.con.session.find_knowledge_base("docs")
        assert base is not None
        return base

    def search(self, questions: list[str | None], **given: Any) -> list[list[tuple[int, float | None, float]]]:
        """For each question what was found: id, distance and relevance, best first; `values` are columns beside it."""
        values = given.pop("values", {})
        asked = pa.table({"text": pa.array(questions, pa.string()), **values})
        with open_statement_runs(self.con.session, given.pop("using", {}), "a search") as runs:
            found = search_chunks(self.con.session, runs, self.base(), asked, SearchOptions(**given))
        ids = dict(self.run_raw(f"SELECT chunk, doc FROM {table_name(self.base(), 'chunks')}"))
        names = dict(self.run_raw(f"SELECT doc, id FROM {table_name(self.base(), 'documents')}"))
        results: list[list[tuple[int, float | None, float]]] = [[] for _ in questions]
        for row in found.to_pylist():
            one = results[row["question"]]
            one.append((names[ids[row["chunk"]]], row["distance"], row["relevance"]))
            assert row["rank"] == len(one)
        return results

    def run_raw(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query that DuckDB alone runs."""
        return self.con.session.con.sql(sql).fetchall()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A connection on which the package `librarian` is installed."""
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = Library()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def make_texts(n: int, seed: int = 0) -> list[str]:
    """Random texts of three to twelve words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(VOCABULARY, k=chance.randint(3, 12))) for _ in range(n)]


def nearest(library: Library, texts: list[str | None], question: str, allowed: Callable[[int], bool]) -> list[Any]:
    """The ids and distances of all texts that are allowed, nearest first, in double precision."""
    places = [i for i, text in enumerate(texts) if text and allowed(i)]
    matrix = embed_all(library, tuple(texts))[places]
    asked = numpy.array(library.handler.embed_text(question))
    similarity = matrix @ asked / numpy.linalg.norm(matrix, axis=1) / numpy.linalg.norm(asked)
    return sorted(zip((1 - similarity).round(6), places, strict=True))


@cache
def embed_all(library: Library, texts: tuple[str | None, ...]) -> Any:
    """A row for each text."""
    return numpy.array([library.handler.embed_text(text or "") for text in texts])


def assert_nearest(found: list[Any], expected: list[Any], k: int) -> None:
    """The distances are those, and so are the ids but for ties of single precision."""
    assert [distance for _, distance, _ in found] == pytest.approx([d for d, _ in expected[:k]], abs=2e-6)
    assert [relevance for *_, relevance in found] == pytest.approx([1 / (1 + d) for _, d, _ in found])
    for (d, place), (i, *_) in zip(expected, found, strict=False):
        assert i == place or [e for e, j in expected if j == i] == pytest.approx([d], abs=2e-6)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats' running, CATS!", ["cat", "cat", "run", "the"]),
        ("naïve cafe\u0301 ﬁne", ["café", "fine", "naïv"]),
        ("İstanbul STRASSE Straße", ["istanbul", "strass", "strass"]),
        ("हिन्दी में", ["में", "हिन्दी"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("図書館 a", ["a", "図書", "書館"]),
        ("図", ["図"]),
        ("第3章 ｱｲｳ", ["3", "アイ", "イウ", "章", "第"]),
        ("ภาษา", ["าษ", "ภา", "ษา"]),
        ("❤️ -- … ''", []),
        ("foo_bar x=3.14", ["14", "3", "bar", "foo", "x"]),
    ],
)
def test_words_of_all_scripts(text: str, expected: list[str]) -> None:
    """Letters, marks and digits, small, in one form, stemmed; pairs of characters where no spaces are written."""
    assert split(text) == sorted(expected)


def split(text: str, language: str = "english") -> list[str]:
    """The words of a question, repeated ones again."""
    import duckdb

    base = KnowledgeBase(ModelKey("docs"), options={"language": language})
    with duckdb.connect() as con:
        found = words.split_questions(con, base, pa.table({"question": [0], "text": [text]}))
    return sorted(row["word"] for row in found.to_pylist() for _ in range(row["count"]))


def test_stemming_is_of_the_language() -> None:
    """And can be left out."""
    assert split("Häuser laufen", "German") == ["haus", "lauf"]
    assert split("running dogs", "none") == ["dogs", "running"]
    with pytest.raises(OptionError, match="Did you mean 'english'"):
        split("x", "englich")


def test_a_single_character_finds_longer_words(library: Library) -> None:
    """A question of one character has no pair."""
    library.fill(["東京図書館", "大阪城"], "language = 'none'")
    assert [i for i, *_ in library.search(["図"], search="words")[0]] == [0]
    assert [i for i, *_ in library.search(["図書"], search="words")[0]] == [0]
    assert library.search(["書図"], search="words") == [[]]


def test_long_words_and_texts_are_read(library: Library) -> None:
    """In time that grows with the text."""
    library.fill(["x" * 5000 + " needle", "漢" * 20_000], "chunk_size = 50000, chunking = 'text'")
    assert [i for i, *_ in library.search(["needle"], search="words")[0]] == [0]
    assert [i for i, *_ in library.search(["漢漢"], search="words")[0]] == [1]


def test_scores_are_those_of_bm25s(library: Library) -> None:
    """Lucene's variant, its default, on the same words, to 1e-5."""
    bm25s = pytest.importorskip("bm25s", reason="bm25s is not installed")
    texts = [*make_texts(300), ""]
    base = library.fill(texts, "language = 'none'")
    oracle = bm25s.BM25(method="lucene", k1=K1, b=B)
    oracle.index([text.split() for text in texts if text], show_progress=False)
    questions = ["bal", "bal bal dit", "kus dim zzz dar bir"]
    asked = pa.table({"question": range(len(questions)), "text": questions})
    con = library.con.session.con
    with words.registered(con, asked=words.split_questions(con, base, asked)) as names:
        scores = words.read_arrow(con.sql(words.scores_sql(base, names["asked"]))).to_pylist()
    places = [i for i, text in enumerate(texts) if text]
    for number, question in enumerate(questions):
        expected = oracle.get_scores([word for word in question.split() if word != "zzz"])
        found = {row["chunk"]: row["score"] for row in scores if row["question"] == number}
        assert [found.get(i, 0.0) for i in places] == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(row["score"] < row["most"] for row in scores)


def test_relevance_of_words_is_a_share(library: Library) -> None:
    """Of the highest score that there is: 0.4 for each word once in a text of average length."""
    library.fill(["one two three", "one two four", "five six seven"], "language = 'none'")
    (first, *_), repeated = library.search(["five six seven", "one"], search="words")
    assert first == (2, None, pytest.approx(0.4))
    assert [i for i, *_ in repeated] == [0, 1]
    assert library.search(["eight", "", None], search="words") == [[], [], []]


# -- meaning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, MIN_MATRIX_QUESTIONS - 1, MIN_MATRIX_QUESTIONS, 40])
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_the_nearest_are_those_of_a_search_in_python(library: Library, n: int, k: int) -> None:
    """By a query for each question, and by products of matrices; texts without a vector or content are left out."""
    texts: list[str | None] = [*make_texts(300), "", None, *make_texts(20), "!nan here"]
    library.fill(texts)
    texts[-1] = None
    questions = make_texts(n, seed=1)
    for question, found in zip(questions, library.search(questions, k=k), strict=True):
        assert_nearest(found, nearest(library, texts, question, lambda i: True), k)


def test_equal_texts_are_in_order(library: Library) -> None:
    """However many more there are than are wanted."""
    library.fill(["bal dit"] * (3 * MARGIN) + make_texts(50))
    for n in (1, MIN_MATRIX_QUESTIONS):
        for found in library.search(["bal dit"] * n, k=5):
            assert [(i, d) for i, d, _ in found] == [(i, 0.0) for i in range(5)]


def test_conditions_hold_before_the_best_are_chosen(library: Library) -> None:
    """Those that are the same for all, and those that differ by question: in groups, or pair by pair."""
    texts = make_texts(200)
    library.fill(texts, metadata=", 'p' || id % 7 AS product, id AS text, id % 3 = 0 AS q")
    for n in (1, 3, 40):
        questions = make_texts(n, seed=2)
        for question, found in zip(questions, library.search(questions, condition="product = 'p3' AND q"), strict=True):
            assert_nearest(found, nearest(library, texts, question, lambda i: i % 7 == 3 and i % 3 == 0), 10)
        for products in (1, 3, 7):
            values = {"f0": [f"p{j % products}" for j in range(n)], "f1": list(range(n))[:n] if n < 5 else [100] * n}
            found = library.search(questions, condition="product = q.f0 AND text >= q.f1", values=values)
            for j, question in enumerate(questions):
                wanted, least = j % products, values["f1"][j]
                expected = nearest(library, texts, question, lambda i, w=wanted, m=least: i % 7 == w and i >= m)
                assert_nearest(found[j], expected, 10)


def test_conditions_on_words(library: Library) -> None:
    """The same, with scores as if all were allowed."""
    texts = make_texts(100)
    library.fill(texts, metadata=", id % 2 AS half")
    questions = make_texts(8, seed=3)
    everything = library.search(questions, k=1000, search="words")
    for question, found in zip(questions, everything, strict=True):
        alone = library.search([question], k=1000, search="words")[0]
        assert [i for i, *_ in alone] == [i for i, *_ in found]
        assert [relevance for *_, relevance in alone] == pytest.approx([relevance for *_, relevance in found])
    halves = library.search(
        questions, k=4, search="words", condition="half = q.f0", values={"f0": [j % 2 for j in range(8)]}
    )
    for j, found in enumerate(halves):
        assert found == [one for one in everything[j] if one[0] % 2 == j % 2][:4]


def test_metadata_may_be_called_like_columns_of_the_search(library: Library) -> None:
    """Conditions see the base's columns only."""
    library.fill(make_texts(20), metadata=", id AS score, id AS word, id AS doc, id AS vector, id AS rank, id AS most")
    condition = "score > 3 AND word < 9 AND rank <> 5 AND vector <> 6 AND most <> 7 AND id <> 8"
    for kind in ("meaning", "words", "both"):
        found = library.search([" ".join(VOCABULARY)], k=100, search=kind, condition=condition)
        assert {i for i, *_ in found[0]} == {4}


def test_prefixes_of_the_model(library: Library) -> None:
    """One for questions, one for texts."""
    library.run("CREATE MODEL p PREDICT v USING engine = 'librarian', base = 'prefixed', mode = 'embedding'")
    library.fill(["bal dit"], "embedding_model = p")
    library.search(["kus"])
    assert library.handler.EMBEDDED == ["text: bal dit", "question: kus"]


def test_questions_are_embedded_once(library: Library) -> None:
    """Equal ones, and those that were asked before."""
    library.fill(["bal dit"])
    library.search(["kus", "kus"])
    library.search(["kus"])
    assert library.handler.EMBEDDED == ["bal dit", "kus"]


def test_a_question_without_a_vector(library: Library) -> None:
    """Finds nothing beside others; alone it is an error and no empty result."""
    library.fill(["bal dit"])
    assert [len(found) for found in library.search(["kus", "!nan", None])] == [1, 0, 0]
    with pytest.raises(ProviderError, match="No question could be embedded by e"):
        library.search(["!nan"])


def test_nothing_was_inserted(library: Library) -> None:
    """Nothing is found, and what cannot be searched is an error all the same."""
    library.run("CREATE KNOWLEDGE_BASE docs USING embedding_model = e")
    asked = pa.table({"text": ["kus"]})
    with open_statement_runs(library.con.session, {}, "a search") as runs:
        for kind in ("meaning", "words", "both"):
            found = search_chunks(library.con.session, runs, library.base(), asked, SearchOptions(search=kind))
            assert found.num_rows == 0
    library.run("CREATE OR REPLACE KNOWLEDGE_BASE docs")
    with (
        open_statement_runs(library.con.session, {}, "a search") as runs,
        pytest.raises(NotSupported, match="words"),
    ):
        search_chunks(library.con.session, runs, library.base(), asked, SearchOptions())


@pytest.mark.parametrize(
    "given", [{"k": 0}, {"alpha": 1.5, "search": "both"}, {"min_relevance": -0.1}, {"min_relevance": 1.1}]
)
def test_options_out_of_range(library: Library, given: dict[str, Any]) -> None:
    """Are errors that say the range."""
    library.fill(["bal"])
    with pytest.raises(OptionError):
        library.search(["bal"], **given)


def test_an_interrupt_stops_the_search(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two blocks of vectors."""
    library.fill(make_texts(20))
    questions = make_texts(10, seed=4)
    library.search(questions)
    monkeypatch.setattr(library.con.session, "interrupted", True)
    for given in ({}, {"condition": "id > q.f0", "values": {"f0": [3] * 10}}):
        with pytest.raises(Cancelled):
            library.search(questions, **given)
        assert library.run_raw("SELECT 42") == [(42,)]


def test_a_transaction_sees_its_own_texts(library: Library) -> None:
    """And once it is rolled back they are gone."""
    library.fill(["bal dit"])
    library.run("BEGIN")
    library.run("INSERT INTO docs SELECT 7 AS id, 'bal dit kus' AS content")
    assert sorted(i for i, *_ in library.search(["kus"])[0]) == [0, 7]
    library.run("ROLLBACK")
    for kind in ("meaning", "words", "both"):
        assert 7 not in {i for i, *_ in library.search(["kus bal"], search=kind)[0]}


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_fused_ranks(library: Library, alpha: float) -> None:
    """Are what their formula says, of the two rankings by themselves."""
    library.fill(make_texts(60))
    questions = make_texts(7, seed=5)
    by_meaning, by_words = (library.search(questions, k=1000, search=kind) for kind in ("meaning", "words"))
    for j, found in enumerate(library.search(questions, k=20, search="both", alpha=alpha)):
        expected: dict[int, float] = {}
        for weight, ranking in ((alpha, by_meaning[j]), (1 - alpha, by_words[j])):
            for rank, (i, *_) in enumerate(ranking if weight else (), 1):
                expected[i] = expected.get(i, 0.0) + weight * 61 / (60 + rank)
        order = sorted(expected, key=lambda i: (-round(expected[i], 12), i))
        assert [i for i, *_ in found] == order[:20]
        assert [relevance for *_, relevance in found] == pytest.approx([expected[i] for i in order[:20]])


def test_the_first_of_both_has_relevance_1(library: Library) -> None:
    """And of one alone half of it."""
    library.fill(["bal dit", "kus dar", "dim"])
    found = library.search(["kus dar"], search="both")[0]
    assert found[0] == (1, 0.0, 1.0)
    assert all(0 < relevance < 0.5 for *_, relevance in found[1:])


@pytest.mark.parametrize("kind", ["meaning", "words", "both"])
def test_the_least_relevance_counts_before_k(library: Library, kind: str) -> None:
    """Reached, or to be passed."""
    library.fill(make_texts(50))
    question = make_texts(1, seed=6)
    everything = library.search(question, k=1000, search=kind)[0]
    least = everything[3][2]
    at_least = library.search(question, k=1000, search=kind, min_relevance=least)[0]
    above = library.search(question, k=1000, search=kind, min_relevance=least, above=True)[0]
    assert at_least == [one for one in everything if one[2] >= least]
    assert above == [one for one in everything if one[2] > least]
    assert library.search(question, k=2, search=kind, min_relevance=least)[0] == everything[:2]


# -- reranking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["yesno", "scorer"])
def test_a_model_reads_what_was_found_again(library: Library, model: str) -> None:
    """The best of twice as many by its score; kept answers are not asked for again."""
    texts = make_texts(40)
    library.fill(texts, f"embedding_model = e, reranking_model = {model}")
    question = make_texts(1, seed=7)[0]
    first = [i for i, *_ in library.search([question], k=20, reranking=False)[0]]
    assert not library.handler.RERANKED
    found = library.search([question], k=10)[0]
    assert {text for _, text in library.handler.RERANKED} == {texts[i] for i in first}
    shares = {i: library.handler.count_shared(question, texts[i]) for i in first}
    expected = sorted(first, key=lambda i: (-round(shares[i], 9), first.index(i)))[:10]
    assert [i for i, *_ in found] == expected
    assert [relevance for *_, relevance in found] == pytest.approx([shares[i] for i in expected])
    asked = len(library.handler.RERANKED)
    least = sorted(shares.values())[-3]
    assert len(library.search([question], k=10, min_relevance=least)[0]) == sum(s >= least for s in shares.values())
    assert len(library.handler.RERANKED) == asked


def test_pairs_that_fail_keep_their_place(library: Library) -> None:
    """With a warning of each kind."""
    library.fill(["bal !error", "bal !maybe", "bal dit"], "embedding_model = e, reranking_model = yesno")
    before = {i: relevance for i, _, relevance in library.search(["bal dit"], reranking=False)[0]}
    found = {i: relevance for i, _, relevance in library.search(["bal dit"])[0]}
    assert found == {0: before[0], 1: before[1], 2: 1.0}
    assert any("1 of 3 rows failed at yesno.1" in text for text in library.warnings)
    assert any("neither yes nor no ('perhaps')" in text for text in library.warnings)


def test_a_reranking_model_with_a_prompt_of_its_own(library: Library) -> None:
    """Is asked with it, where its inputs are question and context."""
    template = "Judge. Text: {{context}} Question: {{question}}"
    library.run(f"CREATE MODEL own PREDICT answer USING engine = 'librarian', prompt_template = '{template}'")
    library.fill(["bal"], "embedding_model = e, reranking_model = own")
    library.search(["kus"])
    assert "'Judge. Text: bal Question: kus'" in "".join(library.warnings)


def test_reranking_in_a_query_that_asks_the_same_model(library: Library) -> None:
    """Two prompts of one model in one statement do not mix."""
    library.fill(["bal dit", "kus"], "embedding_model = e, reranking_model = yesno")
    rows = library.run("SELECT d.id, y.answer FROM docs d JOIN yesno y ON y.content = 'x' WHERE d.content = 'bal dit'")
    assert rows == [(0, "x"), (1, "x")]


def test_a_model_with_mode_rerank_by_itself(library: Library) -> None:
    """Is asked like any other, for a DOUBLE of its inputs question and text."""
    rows = library.run("SELECT answer, typeof(answer) FROM scorer WHERE question = 'bal dit' AND text = 'dit'")
    assert rows == [(0.5, "DOUBLE")]
    with pytest.raises(OptionError, match="prompt_template"):
        library.run(
            "CREATE MODEL c PREDICT s USING engine = 'librarian', mode = 'rerank', prompt_template = '{{content}}'"
        )
    with pytest.raises(OptionError, match="DOUBLE"):
        library.run("CREATE MODEL c PREDICT (s INTEGER) USING engine = 'librarian', mode = 'rerank'")


def test_models_that_cannot_rerank(library: Library) -> None:
    """Vectors and typed answers are refused by name."""
    library.fill(["bal"], "embedding_model = e, reranking_model = yesno")
    library.run("CREATE OR REPLACE MODEL yesno PREDICT (a INTEGER) USING engine = 'librarian'")
    with pytest.raises(OptionError, match="yes or a no"):
        library.search(["bal"])


# -- EVALUATE ----------------------------------------------------------------------------------------------------------


JUDGED = (
    "(FROM (VALUES ('bal dit', 0), ('bal dit', 3), ('kus', 2), ('dar', 9), (NULL, 1), ('x', NULL)) t(question, id))"
)


def test_metrics_of_rankings(library: Library) -> None:
    """Of questions that are judged, each with all its ids; an id that is not there is warned of."""
    library.fill(["bal dit", "bal", "dit kus kus", "dit bal bal", "dim"], "language = 'none'")
    names = ["recall@10", "recall@1", "precision@2", "hit@2", "mrr", "ndcg@10"]
    rows = library.run(f"EVALUATE KNOWLEDGE_BASE docs ON {JUDGED} USING metrics = {names}")
    values = {row[2]: row[3] for row in rows}
    assert all(row[:2] == ("docs", "words") and row[4] == 3 for row in rows)
    rankings = [[i for i, *_ in found] for found in library.search(["bal dit", "kus"], search="words")]
    assert set(rankings[0]) >= {0, 3}
    assert rankings[1] == [2]
    places = [rankings[0].index(0) + 1, rankings[0].index(3) + 1]
    assert values["recall@10"] == pytest.approx(2 / 3)
    assert values["recall@1"] == pytest.approx((0.5 * (1 in places) + 1) / 3)
    assert values["precision@2"] == pytest.approx((sum(p <= 2 for p in places) / 2 + 0.5) / 3)
    assert values["mrr@10"] == pytest.approx((1 / min(places) + 1) / 3)
    gained = sum(1 / math.log2(p + 1) for p in places) / (1 + 1 / math.log2(3))
    assert values["ndcg@10"] == pytest.approx((gained + 1) / 3)
    assert any("1 of 4 ids are not in the knowledge base docs" in text and "9" in text for text in library.warnings)


def test_grades_count_for_ndcg() -> None:
    """As trec_eval has it: the grade itself, discounted by the logarithm of its place."""
    score = evaluate.score_ranking("ndcg", ["a", "x", "b"], {"a": 1.0, "b": 3.0}, 3)
    assert score == pytest.approx((1 + 3 / 2) / (3 + 1 / math.log2(3)))


def test_settings_are_compared_in_pairs(library: Library) -> None:
    """The first is what the others are held against, question by question."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    texts = make_texts(60)
    library.fill(texts)
    chance = random.Random(0)
    library.con.register(
        "judged",
        pa.table({"ask": [" ".join(chance.sample(t.split(), 3)) for t in texts[:30]], "wanted": list(range(30))}),
    )
    rows = library.run(
        "EVALUATE KNOWLEDGE_BASE docs ON judged USING question = 'ask', id = 'wanted', metrics = 'recall@1', "
        "search = ['meaning', 'words', 'both'], hybrid_search_alpha = 0.25"
    )
    assert [row[1] for row in rows] == ["meaning", "words", "both 0.25"]
    first, second, _ = (dict(zip(evaluate.SCORES_SCHEMA.names, row, strict=True)) for row in rows)
    assert first["baseline"] is None
    assert second["baseline"] == "docs: meaning"
    assert second["difference"] == pytest.approx(second["value"] - first["value"])
    assert second["wins"] + second["ties"] + second["losses"] == second["n"] == 30
    assert second["test"] == "mcnemar"
    assert first["low"] <= first["value"] <= first["high"]


def test_two_knowledge_bases_are_compared(library: Library) -> None:
    """By their names."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    library.fill(["bal", "dit"])
    library.run("CREATE KNOWLEDGE_BASE other USING embedding_model = e")
    library.run("INSERT INTO other SELECT 0 AS id, 'dit' AS content")
    rows = library.run(
        "EVALUATE KNOWLEDGE_BASE docs, other ON (SELECT 'bal' AS question, 0 AS id) USING metrics = 'hit@1'"
    )
    assert [(row[0], row[3]) for row in rows] == [("docs", 1.0), ("other", 1.0)]


def test_evaluate_as_mindsdb_has_it(library: Library) -> None:
    """With doc_id: its columns."""
    library.fill(["bal dit", "bal", "kus"])
    library.run("CREATE TABLE test AS FROM (VALUES ('kus', 2), ('bal', 1), ('bal', 7)) t(question, doc_id)")
    result = library.con.execute("EVALUATE KNOWLEDGE_BASE docs USING test_table = memory.main.test, version = 'doc_id'")
    names = [column[0] for column in result.description]
    (row,) = (dict(zip(names, values, strict=True)) for values in result.fetchall())
    assert names == [
        *("total", "total_found", "retrieved_in_top_10", "cumulative_recall", "avg_query_time", "name", "created_at")
    ]
    assert (row["total"], row["total_found"], row["retrieved_in_top_10"], row["name"]) == (3, 2, 2, "docs")
    assert json.loads(row["cumulative_recall"])["0"] == pytest.approx(2 / 3)


def test_a_model_writes_the_questions(library: Library) -> None:
    """MindsDB's generate_data: a table with a question for each text that it makes one of; else an error."""
    library.run("CREATE MODEL asks PREDICT answer USING engine = 'librarian'")
    library.fill(['{"question": "bal", "answer": "dit"}', "no question in here"])
    statement = "EVALUATE KNOWLEDGE_BASE docs USING test_table = made, generate_data = true, llm = asks"
    assert library.run(f"{statement}, evaluate = false") == []
    assert library.run("SELECT question, answer, doc_id FROM made") == [("bal", "dit", 0)]
    assert library.con.execute(statement).to_arrow_table().to_pylist()[0]["total_found"] == 1
    source = "{'from_sql': 'SELECT id, content FROM texts WHERE id = 1', 'count': 5}"
    with pytest.raises(DataError, match="wrote no question"):
        library.run(statement.replace("true", source))


def test_evaluate_by_a_models_judgement(library: Library) -> None:
    """MindsDB's llm_relevancy; the scores are added to a table."""
    library.fill(["bal dit", "dim"], "embedding_model = e, reranking_model = scorer")
    library.run("CREATE TABLE made AS SELECT 'bal' AS question UNION ALL SELECT 'nothing at all'")
    statement = "EVALUATE KNOWLEDGE_BASE docs USING test_table = made, version = 'llm_relevancy', save_to = scores"
    (row,) = library.con.execute(statement).to_arrow_table().to_pylist()
    assert row["avg_relevancy"] == pytest.approx(0.25)
    assert (row["hit_at_k"], row["bin_precision_at_k"]) == ([0.5, 0.5], [0.5, 0.25])
    assert row["avg_first_relevant_position"] == 0
    library.run(statement)
    assert library.run("SELECT count(*), min(mean_mrr) FROM scores") == [(2, 0.5)]


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        ("docs USING metrics = 'recall'", OptionError, "judged questions"),
        ("docs ON judged USING metrics = 'recal@5'", OptionError, "Did you mean 'recall'"),
        ("docs ON judged USING metrics = []", OptionError, "no metric"),
        ("docs ON judged USING search = 'sense'", OptionError, "'meaning', 'words' or 'both'"),
        ("docs ON judged USING hybrid_search_alpha = 2", OptionError, "alpha"),
        ("docs ON judged USING reranking = 'no'", OptionError, "reranking"),
        ("docs ON judged USING id = 'ids'", DataError, "Did you mean 'id'"),
        ("docs ON judged USING grade = 'question'", DataError, "no number"),
        ("docs ON judged USING wrong = 1", OptionError, "wrong"),
        ("docs ON (SELECT 'a' AS question, NULL AS id) USING seed = 1", DataError, "No row"),
        ("dogs ON judged", NotFound, "Did you mean 'docs'"),
        ("docs USING test_table = judged, version = 'x'", OptionError, "doc_id"),
        ("docs USING test_table = judged, version = 'llm_relevancy'", OptionError, "llm = "),
        ("docs USING test_table = judged, generate_data = {'count': 0}", OptionError, "count"),
    ],
)
def test_mistakes_in_evaluate(library: Library, statement: str, error: type[Exception], says: str) -> None:
    """Are errors that say what to write."""
    library.fill(["bal"])
    library.run("CREATE TABLE judged AS SELECT 'bal' AS question, 0 AS id")
    with pytest.raises(error, match=says):
        library.run(f"EVALUATE KNOWLEDGE_BASE {statement}")


def test_without_numpy_questions_are_searched_one_by_one(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """And find the same."""
    library.fill(make_texts(50))
    questions = make_texts(8, seed=8)
    expected = library.search(questions)
    with without("numpy", monkeypatch):
        assert library.search(questions) == expected


@contextmanager
def without(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the package were not installed, for those who look."""
    with monkeypatch.context() as patch:
        patch.setattr("sqlft.knowledge.search.find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
        yield


# -- an index ----------------------------------------------------------------------------------------------------------


def test_an_index_finds_what_comparing_all_finds(library: Library) -> None:
    """Chunks that came later too, none that are gone; conditions and a base that changed do without it."""
    pytest.importorskip("usearch", reason="usearch is not installed")
    texts = make_texts(400)
    library.fill(texts)
    questions = make_texts(30, seed=9)
    exact = library.search(questions)
    library.run("CREATE INDEX ON KNOWLEDGE_BASE docs")
    assert index.find_index(library.con.session, library.base()) is not None
    found = library.search(questions)
    recall = sum(len({i for i, *_ in a} & {i for i, *_ in b}) for a, b in zip(exact, found, strict=True)) / 300
    assert recall >= 0.95
    library.run(f"INSERT INTO docs SELECT 900 AS id, '{questions[0]}' AS content")
    gone = found[1][0][0]
    library.run(f"DELETE FROM docs WHERE id = {gone}")
    again = library.search(questions)
    assert again[0][0][:2] == (900, 0.0)
    assert all(gone not in {i for i, *_ in one} and len(one) == 10 for one in again)
    assert len(library.search(questions, k=1000)[0]) == 400
    assert {i for i, *_ in library.search(questions, condition="id < 3")[0]} == {0, 1, 2}


def test_an_index_that_does_not_fit_is_left_alone(library: Library) -> None:
    """One of other vectors, or whose file was changed; DROP INDEX removes it."""
    pytest.importorskip("usearch", reason="usearch is not installed")
    library.fill(make_texts(50))
    session, statement = library.con.session, "CREATE INDEX ON KNOWLEDGE_BASE docs"
    library.run(statement)
    (file,) = (session.catalog.folder / "knowledge").glob("*.usearch")
    library.fill(make_texts(50, seed=1))
    assert index.find_index(session, library.base()) is None
    library.run(statement)
    assert index.find_index(session, library.base()) is not None
    file.write_bytes(file.read_bytes()[:-1])
    assert index.find_index(session, library.base()) is None
    assert len(library.search(["bal"])[0]) == 10
    library.run(statement)
    library.run("BEGIN")
    with pytest.raises(CatalogError, match="COMMIT"):
        library.run(statement)
    library.run("ROLLBACK")
    library.run("DROP INDEX ON KNOWLEDGE_BASE docs")
    assert not list(file.parent.iterdir())


def test_without_vectors_an_index_is_a_notice(library: Library) -> None:
    """Scripts of MindsDB's that make one run on."""
    library.run("CREATE KNOWLEDGE_BASE docs")
    assert library.run("CREATE INDEX ON KNOWLEDGE_BASE docs WITH (type = 'ivf')") == []
    library.run("DROP INDEX ON KNOWLEDGE_BASE docs")
