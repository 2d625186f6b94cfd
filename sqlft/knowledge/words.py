"""Words of texts, and which texts have the words of a question: BM25 as SQL over the tables `words` and `chunks`.

Called by `insert` for new chunks and by `search` for questions.  A word is a run of letters, marks and digits of any
script, without its case, in one of its Unicode forms (NFKC), stemmed by the base's `language`.  Scripts without spaces
(Chinese, Japanese, Korean, Thai …) are indexed by each character and each pair of neighbours; a question asks for the
pairs.  There is no list of stop words: their inverse document frequency leaves them next to no weight, and "to be or
not to be" has no other words.

The score is Lucene's BM25 (Kamphuis et al. 2020), which is bm25s' default, with k1 = 1.5 and b = 0.75:
idf · tf / (tf + k1 · (1 - b + b · length / mean length)), summed over the words of the question, repeated ones again,
where idf = ln(1 + (N - df + 0.5) / (df + 0.5)).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from typing import TYPE_CHECKING, NamedTuple

import duckdb
import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import OptionError, did_you_mean
from sqlft.knowledge.tables import table_name

if TYPE_CHECKING:
    from numpy import float64, int64
    from numpy.typing import NDArray

DEFAULT_LANGUAGE = "english"
NO_STEMMING = "none"
WORD_PATTERN = r"[\p{L}\p{M}\p{N}\x{200C}\x{200D}]+"
"""In DuckDB's regular expressions, whose letters and marks are Unicode's; joiners stand inside Persian words."""
UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)
JOINERS = str.maketrans("", "", "\u200c\u200d\u0307")
"""Left out of words: joiners, and the dot that the small letter of a Turkish I keeps."""
MAX_WORD_LENGTH, MAX_STEMMED_LENGTH = 255, 40
K1, B = 1.5, 0.75
MAX_KNOWN_STEMS = 200_000
MAX_POSTINGS = 4_000_000
"""Pairs of a word and a chunk that are in memory at once."""
_known_stems: dict[tuple[str, str], str] = {}
_names = count()


def check_language(language: str) -> str:
    """The name of a language as snowballstemmer has it, or 'none'; OptionError.

    >>> check_language("English"), check_language("none")
    ('english', 'none')
    """
    from snowballstemmer import algorithms

    known = sorted([*algorithms(), NO_STEMMING])
    if language.lower() not in known:
        raise OptionError(
            f"There is no language '{language}' whose words can be stemmed.{did_you_mean(language, known)}",
            f"There are: {', '.join(known)}.",
        )
    return language.lower()


def index_chunks(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, chunks: pa.Table
) -> tuple[pa.Table, pa.Int32Array]:
    """The rows of `words` for new chunks, ordered by word, and the chunks' lengths in their order.

    `chunks` has `chunk` and `content`; what comes out is inserted by the caller, the lengths into `chunks.length`.
    Batches of some thousand chunks suit: each word is stemmed once.
    """
    found = _count_words(con, base, chunks.select(["chunk", "content"]), is_question=False)
    with registered(con, chunks=chunks.select(["chunk"]), found=found) as names:
        lengths = con.sql(
            f"SELECT coalesce(n, 0)::INTEGER AS length FROM (SELECT chunk, row_number() OVER () AS place "
            f"FROM {names['chunks']}) LEFT JOIN (SELECT chunk, sum(count) AS n FROM {names['found']} GROUP BY chunk) "
            "USING (chunk) ORDER BY place"
        )
        column = read_arrow(lengths).column(0).combine_chunks()
    return found, column


def split_questions(con: duckdb.DuckDBPyConnection, base: KnowledgeBase, questions: pa.Table) -> pa.Table:
    """`question`, `word` and `count` of each word of texts; `questions` has `question` and `text`, NULL for none."""
    texts = questions.select(["question", "text"]).rename_columns(["chunk", "content"])
    found = _count_words(con, base, texts, is_question=True)
    return found.select(["chunk", "word", "count"]).rename_columns(["question", "word", "count"])


def _count_words(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, texts: pa.Table, *, is_question: bool
) -> pa.Table:
    """`word`, `chunk` and `count`, ordered by word and chunk."""
    language = check_language(str(base.options.get("language") or DEFAULT_LANGUAGE))
    with registered(con, texts=texts) as names:
        written = read_arrow(
            con.sql(
                f"SELECT chunk, unnest(regexp_extract_all(content, '{WORD_PATTERN}')) AS written FROM {names['texts']}"
            )
        )
    with registered(con, written=written) as names:
        runs = read_arrow(con.sql(f"SELECT DISTINCT written FROM {names['written']}"))
        pairs = list(_split_words(runs.column("written").to_pylist(), language, is_question))
        found = pa.array([word for _, word in pairs], pa.string()).dictionary_encode()
        runs = runs.append_column("run", pa.array(range(runs.num_rows), pa.int32()))
        codes = pa.table({"run": pa.array([run for run, _ in pairs], pa.int32()), "code": found.indices})
        different = pa.table({"code": pa.array(range(len(found.dictionary)), pa.int32()), "word": found.dictionary})
        with registered(con, runs=runs, codes=codes, different=different) as more:
            counted = (
                f"SELECT code, chunk, count(*)::INTEGER AS count FROM {names['written']} JOIN {more['runs']} "
                f"USING (written) JOIN {more['codes']} USING (run) GROUP BY code, chunk"
            )
            query = f"SELECT word, chunk, count FROM ({counted}) JOIN {more['different']} USING (code)"
            return read_arrow(con.sql(f"{query} ORDER BY word, chunk"))


def _split_words(runs: Iterable[str], language: str, is_question: bool) -> Iterator[tuple[int, str]]:
    """The place of each run of letters, with each of the words that it is."""
    stem = _make_stemmer(language)
    for run, written in enumerate(runs):
        plain = unicodedata.normalize("NFKC", written).casefold().translate(JOINERS)
        if plain.isascii():
            yield run, stem(plain)
            continue
        for place, piece in enumerate(UNSPACED.split(plain)):
            if place % 2:
                for word in _split_unspaced(piece, is_question):
                    yield run, word
            elif any(map(str.isalnum, piece)):
                yield run, stem(piece)


def _split_unspaced(text: str, is_question: bool) -> Iterator[str]:
    """Characters and pairs of neighbours; of a question the pairs, where there is one.

    >>> list(_split_unspaced("図書館", True)), list(_split_unspaced("図書", False)), list(_split_unspaced("図", True))
    (['図書', '書館'], ['図', '書', '図書'], ['図'])
    """
    if not is_question or len(text) == 1:
        yield from text
    yield from map("".join, pairwise(text))


def _make_stemmer(language: str) -> Callable[[str], str]:
    if language == NO_STEMMING:
        return lambda word: word[:MAX_WORD_LENGTH]
    import snowballstemmer

    own = snowballstemmer.stemmer(language)  # it keeps state while it works: one for each caller

    def stem(word: str) -> str:
        if len(word) > MAX_STEMMED_LENGTH or any(map(str.isdigit, word)):
            return word[:MAX_WORD_LENGTH]
        known = _known_stems.get((language, word))
        if known is None:
            if len(_known_stems) >= MAX_KNOWN_STEMS:
                _known_stems.clear()
            known = _known_stems[language, word] = str(own.stemWord(word))
        return known

    return stem


def _found_sql(base: KnowledgeBase, questions: str) -> str:
    """A query for the rows of `words` with a word of the questions, which a relation of `split_questions` has."""
    return (
        f"""SELECT word, chunk, "count" FROM {table_name(base, "words")} WHERE word IN (SELECT word FROM {questions})"""
    )


def _rarity_sql(base: KnowledgeBase, questions: str, found: str) -> str:
    """A query for `word`, `df` and `idf` of the questions' words, which `found` has the rows of."""
    return f"""
        SELECT word, coalesce(df, 0) AS df, ln(1 + (n - coalesce(df, 0) + 0.5) / (coalesce(df, 0) + 0.5)) AS idf
        FROM (SELECT DISTINCT word FROM {questions})
        LEFT JOIN (SELECT word, count(*) AS df FROM {found} GROUP BY word) USING (word),
            (SELECT count(*) AS n FROM {table_name(base, "chunks")})
    """


IMPACT = f"""idf * w."count" / (w."count" + {K1} * ({1 - B} + {B} * length / mean))"""
"""What one word adds to a chunk's score."""


def scores_sql(base: KnowledgeBase, questions: str) -> str:
    """A query for `question`, `chunk`, `score` and `most`, which no text's score can reach.

    `questions` names a relation of `split_questions`.
    """
    chunks = table_name(base, "chunks")
    return f"""
        WITH found AS MATERIALIZED ({_found_sql(base, questions)}),
        rarity AS ({_rarity_sql(base, questions, "found")}),
        bounds AS (
            SELECT question, sum("count" * idf) AS most FROM {questions} JOIN rarity USING (word) GROUP BY question
        ),
        scored AS (
            SELECT q.question, w.chunk, round(sum(q."count" * {IMPACT}), 9) AS score
            FROM found AS w JOIN rarity USING (word) JOIN {questions} AS q USING (word)
            JOIN {chunks} AS c ON c.chunk = w.chunk, (SELECT avg(length) AS mean FROM {chunks})
            GROUP BY q.question, w.chunk
        )
        SELECT question, chunk, score, most FROM scored JOIN bounds USING (question)
    """


SCORES = pa.schema([("question", pa.int64()), ("chunk", pa.int64()), ("score", pa.float64()), ("most", pa.float64())])
"""What `scores_sql` gives."""


def find_best(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, questions: pa.Table, n: int, allowed: str | None
) -> pa.Table:
    """The n best of `scores_sql` for each of many questions; each word's chunks are read once, whoever asks for it.

    `questions` is of `split_questions`; `allowed` is SQL over the chunk `c` that it must fulfil.
    """
    import numpy

    with registered(con, questions=questions) as names:
        rows = f"({_found_sql(base, names['questions'])})"
        rarity = read_arrow(con.sql(f"{_rarity_sql(base, names['questions'], rows)} ORDER BY word"))
    codes = dict(zip(rarity.column("word").to_pylist(), range(rarity.num_rows), strict=True))
    idf = rarity.column("idf").to_numpy()
    asked: dict[int, list[tuple[int, int]]] = {}
    for row in questions.to_pylist():
        asked.setdefault(row["question"], []).append((codes[row["word"]], row["count"]))
    best: dict[int, list[tuple[NDArray[int64], NDArray[float64]]]] = {question: [] for question in asked}
    for block in _read_postings(con, base, rarity, allowed):
        scores = numpy.zeros(block.span)
        for question, counted in asked.items():
            scores[:] = 0
            for code, times in counted:
                part = slice(block.starts[code], block.starts[code + 1])
                scores[block.places[part]] += times * block.impacts[part]
            places = _find_greatest(scores.round(9), n)
            best[question].append((places + block.first, scores[places].round(9)))
    parts = [SCORES.empty_table()]
    for question, found in best.items():
        if not found:
            continue
        most = sum(times * float(idf[code]) for code, times in asked[question])
        chunks, kept = _merge_best(found, n)
        same = [pa.repeat(pa.scalar(question, pa.int64()), len(chunks)), pa.repeat(most, len(chunks))]
        parts.append(pa.table([same[0], pa.array(chunks, pa.int64()), pa.array(kept, pa.float64()), same[1]], SCORES))
    return pa.concat_tables(parts)


class Postings(NamedTuple):
    """Which words the chunks from `first` on have, by word: those of code i are at `starts[i]` to `starts[i + 1]`."""

    first: int
    span: int
    starts: NDArray[int64]
    places: NDArray[int64]
    """Of the chunks, from `first`."""
    impacts: NDArray[float64]


def _read_postings(
    con: duckdb.DuckDBPyConnection, base: KnowledgeBase, rarity: pa.Table, allowed: str | None
) -> Iterator[Postings]:
    """Blocks of chunks with the words of `rarity`, none with much more than MAX_POSTINGS of them."""
    import numpy
    import pyarrow.compute as pc

    chunks = table_name(base, "chunks")
    low, high, mean = con.sql(f"SELECT min(chunk), max(chunk), avg(length) FROM {chunks}").fetchall()[0]
    if low is None:
        return
    blocks = -(-(pc.sum(rarity.column("df")).as_py() or 0) // MAX_POSTINGS) or 1
    span = -(-(high - low + 1) // blocks)
    codes = pa.array(range(rarity.num_rows), pa.int32())
    for first in range(low, high + 1, span):
        with registered(con, rarity=rarity.append_column("code", codes)) as names:
            found = read_arrow(
                con.sql(
                    f"SELECT code, c.chunk - {first} AS place, {IMPACT} AS impact FROM {names['rarity']} "
                    f"JOIN {table_name(base, 'words')} AS w USING (word) JOIN {chunks} AS c ON c.chunk = w.chunk, "
                    f"(SELECT {mean!r}::DOUBLE AS mean) WHERE w.chunk BETWEEN {first} AND {first + span - 1}"
                    f"{f' AND {allowed}' if allowed else ''}"
                )
            )
        code = found.column("code").to_numpy()
        order = numpy.argsort(code.astype(numpy.uint16) if rarity.num_rows < 1 << 16 else code, kind="stable")
        starts = numpy.searchsorted(code[order], numpy.arange(rarity.num_rows + 1))
        places, impacts = found.column("place").to_numpy()[order], found.column("impact").to_numpy()[order]
        yield Postings(first, span, starts, places, impacts)


def _find_greatest(scores: NDArray[float64], n: int) -> NDArray[int64]:
    """The places of the n greatest scores above 0; of equal ones the first.

    >>> import numpy
    >>> sorted(_find_greatest(numpy.array([0.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist())
    [1, 2, 3]
    """
    import numpy

    places = numpy.flatnonzero(scores)
    if len(places) <= n:
        return places
    known = scores[places]
    least = numpy.partition(known, len(known) - n)[len(known) - n]
    above = places[known > least]
    return numpy.concatenate([above, places[known == least][: n - len(above)]])


def _merge_best(
    found: Sequence[tuple[NDArray[int64], NDArray[float64]]], n: int
) -> tuple[NDArray[int64], NDArray[float64]]:
    """The n best of the best of several blocks."""
    import numpy

    chunks, scores = (numpy.concatenate(column) for column in zip(*found, strict=True))
    order = numpy.lexsort((chunks, -scores))[:n]
    return chunks[order], scores[order]


def read_arrow(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """All rows of a relation."""
    return relation.to_arrow_reader(100_000).read_all()


@contextmanager
def registered(con: duckdb.DuckDBPyConnection, **tables: pa.Table) -> Iterator[dict[str, str]]:
    """Names under which queries find the tables, as long as the block runs."""
    names = {key: f"__sqlft_knowledge_{key}_{next(_names)}" for key in tables}
    try:
        for key, table in tables.items():
            con.register(names[key], table)
        yield names
    finally:
        for name in names.values():
            con.unregister(name)
