"""What a search of a knowledge base costs: by meaning, by words and by both, beside numpy, usearch and bm25s.

    python benchmarks/knowledge.py [--chunks 100000] [--dimension 384] [--words 40] [--questions 100] [--repeat 5]

All in one run, in turns; peers that are not installed are left out.  The vectors are random directions, the words drawn
by Zipf's law.  Prints a table, ends with one line of JSON, and adds that line to benchmarks/results/knowledge.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy
import pyarrow as pa
from figures import describe_machine

import sqlft
from sqlft.catalog.records import KnowledgeBase
from sqlft.inference.statement_runs import open_statement_runs
from sqlft.knowledge import words
from sqlft.knowledge.embedding import require_same_model
from sqlft.knowledge.search import SearchKind, SearchOptions, search_chunks
from sqlft.knowledge.tables import table_name

HANDLERS = Path(__file__).resolve().parent.parent / "tests" / "handlers"
"""Holds `librarian`, a handler that makes vectors in microseconds."""
RESULTS = Path(__file__).parent / "results" / "knowledge.jsonl"
VOCABULARY = 30_000
BATCH = 1000
"""Texts that an INSERT writes at once: their words lie together, in order."""


class Texts(NamedTuple):
    """What is searched, and what for."""

    contents: list[str]
    vectors: numpy.ndarray[Any, Any]
    questions: list[str]


def make_texts(given: argparse.Namespace) -> Texts:
    """Random texts, as long as was asked for, and questions of five of their words."""
    rng = numpy.random.default_rng(0)
    letters = numpy.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, n)) for n in rng.integers(3, 11, VOCABULARY)]
    drawn = numpy.minimum(rng.zipf(1.1, (given.chunks, given.words)), VOCABULARY) - 1
    contents = [" ".join(vocabulary[i] for i in row) for row in drawn]
    vectors = rng.standard_normal((given.chunks, given.dimension), dtype=numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    rows = rng.integers(0, given.chunks, given.questions)
    questions = [" ".join(vocabulary[i] for i in rng.choice(drawn[row], 5)) for row in rows]
    return Texts(contents, vectors, questions)


@contextmanager
def filled(texts: Texts, found: dict[str, Any]) -> Iterator[tuple[sqlft.Connection, KnowledgeBase]]:
    """A connection, and a knowledge base written in bulk; `found` gets the seconds that its words took."""
    sys.path.insert(0, str(HANDLERS))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQLFT_HOME"] = folder
        with sqlft.connect(str(Path(folder) / "texts.duckdb"), warn=print) as con:
            dimension = texts.vectors.shape[1]
            con.execute(
                f"CREATE MODEL e PREDICT v USING engine = 'librarian', base = '{dimension}', mode = 'embedding'"
            )
            con.execute("CREATE KNOWLEDGE_BASE docs USING embedding_model = e")
            con.execute("INSERT INTO docs SELECT 'first' AS id, 'the first text' AS content")
            base = con.session.find_knowledge_base("docs")
            assert base is not None
            write_tables(con, base, texts, found)
            yield con, base


def write_tables(con: sqlft.Connection, base: KnowledgeBase, texts: Texts, found: dict[str, Any]) -> None:
    """Documents, chunks and words, as an INSERT would leave them."""
    raw, n = con.session.con, len(texts.contents)
    for table in ("documents", "chunks", "words"):
        raw.execute(f"DELETE FROM {table_name(base, table)}").fetchall()
    numbers = pa.array(range(n), pa.int64())
    chunks = pa.table({"chunk": numbers, "content": pa.array(texts.contents)})
    started = time.perf_counter()
    index, lengths = words.index_chunks(raw, base, chunks)
    with words.registered(raw, index=index) as names:
        insert = f"INSERT INTO {table_name(base, 'words')} FROM {names['index']}"
        raw.execute(insert).fetchall()
        found["index_words"] = time.perf_counter() - started
        raw.execute(f"DELETE FROM {table_name(base, 'words')}").fetchall()
        raw.execute(f"{insert} ORDER BY chunk // {BATCH}, word").fetchall()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(texts.vectors.ravel()), texts.vectors.shape[1])
    chunks = chunks.append_column("vector", vectors).append_column("length", lengths)
    with words.registered(raw, chunks=chunks) as names:
        raw.execute(
            f"INSERT INTO {table_name(base, 'documents')} BY NAME "
            f"SELECT chunk AS doc, chunk::VARCHAR AS id, '' AS digest FROM {names['chunks']}"
        ).fetchall()
        raw.execute(
            f"INSERT INTO {table_name(base, 'chunks')} BY NAME "
            f"SELECT *, chunk AS doc, chunk::VARCHAR AS chunk_id FROM {names['chunks']}"
        ).fetchall()


def measure(action: Callable[[], object], repeat: int) -> float:
    """The median of some runs in seconds, after one that warms up."""
    action()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_searches(
    con: sqlft.Connection, base: KnowledgeBase, texts: Texts, repeat: int, found: dict[str, Any]
) -> None:
    """Seconds of one question, and of one of many at once; the questions' vectors are in the cache."""
    several = {"one": texts.questions[:1], "many": texts.questions}
    with open_statement_runs(con.session, {}, "benchmark") as runs:
        require_same_model(con.session, base)
        for kind in get_args(SearchKind):
            for name, questions in several.items():
                asked = pa.table({"text": questions})
                action = partial(search_chunks, con.session, runs, base, asked, SearchOptions(search=kind))
                seconds = measure(action, repeat)
                found[f"{kind}_{name}"] = seconds / len(questions)


def measure_numpy(texts: Texts, repeat: int, found: dict[str, Any]) -> None:
    """The same by one product of matrices in memory."""
    questions = texts.vectors[: len(texts.questions)]

    def search(some: numpy.ndarray[Any, Any]) -> None:
        products = some @ texts.vectors.T
        best = numpy.argpartition(products, -10, axis=1)[:, -10:]
        numpy.take_along_axis(products, best, axis=1).argsort(axis=1)

    found["numpy_one"] = measure(lambda: search(questions[:1]), repeat)
    found["numpy_many"] = measure(lambda: search(questions), repeat) / len(questions)


def measure_usearch(texts: Texts, repeat: int, found: dict[str, Any]) -> None:
    """An approximate index, if it is installed: its making, a question, and how many of the best ten it finds."""
    if find_spec("usearch") is None:
        return
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=texts.vectors.shape[1], metric="cos")
    index.add(numpy.arange(len(texts.vectors)), texts.vectors)
    found["usearch_index"] = time.perf_counter() - started
    found["usearch_one"] = measure(lambda: index.search(texts.vectors[0], 10), repeat)


def measure_bm25s(texts: Texts, repeat: int, found: dict[str, Any]) -> None:
    """The same index and questions, if it is installed; with a stemmer and without stop words, as here."""
    if find_spec("bm25s") is None:
        return
    import bm25s
    import snowballstemmer

    stemmer = snowballstemmer.stemmer("english")
    started = time.perf_counter()
    tokens = bm25s.tokenize(texts.contents, stopwords=None, stemmer=stemmer.stemWords, show_progress=False)
    model = bm25s.BM25()
    model.index(tokens, show_progress=False)
    found["bm25s_index"] = time.perf_counter() - started

    def search(questions: list[str]) -> None:
        asked = bm25s.tokenize(questions, stopwords=None, stemmer=stemmer.stemWords, show_progress=False)
        model.retrieve(asked, k=10, show_progress=False)

    found["bm25s_one"] = measure(lambda: search(texts.questions[:1]), repeat)
    found["bm25s_many"] = measure(lambda: search(texts.questions), repeat) / len(texts.questions)


PEERS = {
    "index_words": "bm25s_index",
    "meaning_one": "numpy_one",
    "meaning_many": "numpy_many",
    "words_one": "bm25s_one",
    "words_many": "bm25s_many",
    "both_one": "meaning_one",
    "both_many": "meaning_many",
}
"""What each figure is divided by."""


def print_table(found: dict[str, Any]) -> None:
    """Milliseconds of ours and of its peer."""
    print(f"{'':14}{'ms':>12}{'peer':>16}{'ms':>12}{'ratio':>8}")
    for name, peer in PEERS.items():
        beside = f"{found[peer] * 1000:12.2f}{found[name] / found[peer]:8.2f}" if peer in found else ""
        print(f"{name:14}{found[name] * 1000:12.2f}{peer:>16}{beside}")


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000, help="texts that are searched")
    parser.add_argument("--dimension", type=int, default=384, help="numbers of a vector")
    parser.add_argument("--words", type=int, default=40, help="words of a text")
    parser.add_argument("--questions", type=int, default=100, help="questions that are asked at once")
    parser.add_argument("--repeat", type=int, default=5, help="how often each runs; the medians count")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    texts = make_texts(given)
    with filled(texts, found) as (con, base):
        measure_searches(con, base, texts, given.repeat, found)
        duckdb = con.execute("SELECT version()").fetchall()[0][0]
    measure_numpy(texts, given.repeat, found)
    measure_bm25s(texts, given.repeat, found)
    measure_usearch(texts, given.repeat, found)
    print_table(found)
    line = json.dumps(
        {"benchmark": "knowledge", **vars(given), "duckdb": duckdb}
        | describe_machine("numpy", "bm25s", "usearch")
        | {"date": time.strftime("%Y-%m-%d")}
        | {name: float(f"{seconds:.4g}") for name, seconds in found.items()}
    )
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
