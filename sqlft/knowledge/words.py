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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise

import duckdb
import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import OptionError, did_you_mean
from sqlft.knowledge.tables import table_name

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


def scores_sql(base: KnowledgeBase, questions: str, *, condition: str = "") -> str:
    """A query for `question`, `chunk`, `score` and `most`, which no text's score can reach.

    `questions` names a relation of `split_questions`; `condition` is SQL behind WHERE over `question` and `chunk`.
    """
    words, chunks = table_name(base, "words"), table_name(base, "chunks")
    return f"""
        WITH asked AS (SELECT question, word, "count" AS times FROM {questions}),
        known AS (SELECT count(*) AS n, avg(length) AS mean FROM {chunks}),
        found AS (SELECT * FROM {words} WHERE word IN (SELECT DISTINCT word FROM asked)),
        frequency AS (SELECT word, count(*) AS df FROM found GROUP BY word),
        rarity AS (
            SELECT word, ln(1 + (n - coalesce(df, 0) + 0.5) / (coalesce(df, 0) + 0.5)) AS idf
            FROM (SELECT DISTINCT word FROM asked) LEFT JOIN frequency USING (word), known
        ),
        bounds AS (SELECT question, sum(times * idf) AS most FROM asked JOIN rarity USING (word) GROUP BY question),
        scored AS (
            SELECT asked.question, found.chunk, round(sum(
                times * idf * found."count" / (found."count" + {K1} * ({1 - B} + {B} * length / mean))
            ), 9) AS score
            FROM found JOIN asked USING (word) JOIN rarity USING (word) JOIN {chunks} USING (chunk), known
            GROUP BY asked.question, found.chunk
        )
        SELECT question, chunk, score, most FROM scored JOIN bounds USING (question)
        {f"WHERE {condition}" if condition else ""}
    """


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
