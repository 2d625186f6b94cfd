"""Texts that are nearly the same: candidates by shared word pairs, judged by edit distance.

Every text is put into a few blocks, each named by the least hash of its rarer word pairs under one permutation
(MinHash, Broder 1997); only neighbours within a block are compared, so the cost grows with the texts, not their pairs.
DuckDB hashes and groups.  Why no library of MinHash: docs/decisions/009-typed-answers-and-near-duplicates.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.conversations import Conversation, Corpus, Finding, Level, report_finding

MIN_SIMILARITY = 95.0
"""Per cent of the letters that must agree: rapidfuzz's ratio of the normalised texts."""
PERMUTATIONS = 3
NEIGHBOURS = 3
MAX_PAIR_SHARE = 0.05
"""Word pairs that more of the texts have come from a template, and are ignored."""
MIN_WORDS = 4
"""Shorter texts are alike only if they are equal but for case and punctuation."""
_BLOCKS = f"""
WITH words AS (
    SELECT place, text, string_split(text, ' ') AS words, regexp_replace(text, '[^0-9]+', ' ', 'g') AS numbers
    FROM texts WHERE len(string_split(text, ' ')) >= {MIN_WORDS}
), pairs AS (
    SELECT place, hash(pair) AS pair FROM (SELECT place, unnest(list_zip(words[:-2], words[2:])) AS pair FROM words)
), common AS (
    SELECT pair FROM pairs GROUP BY pair
    HAVING count(*) > greatest({MAX_PAIR_SHARE} * (SELECT count(*) FROM words), {2 * NEIGHBOURS})
), least AS (
    SELECT place, seed, min(hash(pair, seed)) AS hash
    FROM pairs ANTI JOIN common USING (pair), range({PERMUTATIONS}) seeds(seed) GROUP BY place, seed
)
SELECT list(place ORDER BY text, place) AS block FROM least JOIN words USING (place)
GROUP BY seed, numbers, hash HAVING count(*) > 1 ORDER BY seed, block
"""
"""Places of texts that share a hash and have the same numbers, sorted by text."""


def normalise_column(texts: Sequence[str]) -> pa.LargeStringArray:
    """In lower case, words one space apart, no punctuation."""
    lower = pc.utf8_lower(pa.array(texts, pa.large_string()))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"[^\pL\pN]+", " "))


def normalise_text(text: str) -> str:
    """One text as `normalise_column` has it.

    >>> normalise_text("Hello,  WORLD!")
    'hello world'
    """
    return str(normalise_column([text])[0])


def find_similar_pairs(column: pa.LargeStringArray) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of places in a `normalise_column`; each later one once, numbers being equal."""
    texts: list[str] = column.to_pylist()
    known: set[int] = set()
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if text and (earlier := first.setdefault(text, i)) != i:
            known.add(i)
            yield earlier, i
    ratio = _load_ratio()
    for block in _build_blocks(first):
        for start, i in enumerate(block):
            for j in block[start + 1 : start + 1 + NEIGHBOURS]:
                later = max(i, j)
                if later not in known and ratio(texts[i], texts[j]) >= MIN_SIMILARITY:
                    known.add(later)
                    yield min(i, j), later


def is_near_duplicate(one: str, other: str) -> bool:
    """Whether two normal texts are the same, or long ones that differ in few letters."""
    return one == other or _load_ratio()(one, other) >= MIN_SIMILARITY


def _build_blocks(places: dict[str, int]) -> Iterator[list[int]]:
    with duckdb.connect() as con:
        table = pa.table({"text": pa.array(places, pa.large_string()), "place": pa.array(places.values(), pa.int64())})
        con.register("texts", table)
        result = con.execute(_BLOCKS)
        while row := result.fetchone():
            yield row[0]


def _compare_ends(one: str, other: str) -> float:
    """Per cent of the letters that both begin and end with: at most rapidfuzz's ratio."""
    start = _count_common_letters(one, other)
    end = _count_common_letters(one[start:][::-1], other[start:][::-1])
    return 200 * (start + end) / max(1, len(one) + len(other))


def _count_common_letters(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _load_ratio() -> Callable[[str, str], float]:
    """rapidfuzz's, which every extra that trains brings; without it one that sees a single place of difference."""
    try:
        from rapidfuzz.fuzz import ratio

        return lambda a, b: ratio(a, b, score_cutoff=MIN_SIMILARITY)
    except ImportError:
        return _compare_ends


WARNING_SHARE = 0.02
"""Above this share of near-duplicates it is a warning."""


def check_near_duplicates(corpus: Corpus) -> list[Finding]:
    """Rows whose prompt and answer both differ from an earlier row's by a few letters, but not in a number."""
    conversations = corpus.conversations
    answers = normalise_column([c.answer for c in conversations])
    whole = pc.binary_join_element_wise(_normalise_prompts(conversations), answers, pa.scalar(" ", pa.large_string()))
    rows = []
    for earlier, later in find_similar_pairs(whole):
        one, other = conversations[earlier], conversations[later]
        if one.turns != other.turns and is_near_duplicate(answers[earlier].as_py(), answers[later].as_py()):
            rows.append(other.row)
    level: Level = "warning" if len(rows) > WARNING_SHARE * len(conversations) else "info"
    text = "{n} nearly the same as an earlier one: case, punctuation or a few letters differ."
    what_to_do = "Keep one of each kind, if the difference teaches nothing."
    return report_finding("near_duplicates", level, sorted(rows), text, what_to_do)


def check_near_overlap(train: Sequence[Conversation], valid: Sequence[Conversation]) -> list[Finding]:
    """Validation prompts that are nearly trained on; those that are equal `check_overlap` finds."""
    known = {c.prompt for c in train}
    unknown = [c for c in valid if c.prompt not in known]
    if not unknown:
        return []
    pairs = find_similar_pairs(_normalise_prompts([*train, *unknown]))
    places = sorted({later - len(train) for earlier, later in pairs if earlier < len(train) <= later})
    text = "{n} for validation with a prompt nearly the same as one that is trained on: the validation loss flatters."
    what_to_do = "Take one of each pair out, or give rows of another kind: validation = (SELECT …)."
    return report_finding("near_overlap", "warning", [unknown[i].row for i in places], text, what_to_do)


def _normalise_prompts(conversations: Sequence[Conversation]) -> pa.Array:
    return normalise_column([" ".join(t.content for t in c.prompt if t.role != "system") for c in conversations])
