"""Texts that are nearly the same: candidates by shared word pairs, judged by edit distance.

Every text is put into a few blocks, each named by the least hash of its rarer word pairs under one permutation
(MinHash, Broder 1997); only neighbours within a block are compared, so the cost grows with the texts, not their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.conversations import Conversation, Corpus, Finding, Level, build_finding

MIN_SIMILARITY = 95.0
"""Per cent of the letters that must agree: rapidfuzz's ratio of the normalised texts."""
PERMUTATIONS = (0x2545F491, 0x5BD1E995, 0x1E3779B9)
PRIME = 2_147_483_647
NEIGHBOURS = 3
MAX_PAIR_SHARE = 0.05
"""Word pairs that more of the texts have are the template's, and tell nothing."""
MIN_WORDS = 4
"""Shorter texts are alike only if they are equal but for case and punctuation."""


def normalise_column(texts: Sequence[str]) -> pa.Array:
    """In lower case, words one space apart, no punctuation."""
    lower = pc.utf8_lower(pa.array(texts, pa.large_string()))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"[^\pL\pN]+", " "))


def normalise_text(text: str) -> str:
    """One text as `normalise_column` has it."""
    return str(normalise_column([text])[0])


def find_similar_pairs(column: pa.Array) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of places in a `normalise_column`; each later one once, numbers being equal."""
    texts: list[str] = column.to_pylist()
    found: set[int] = set()
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if text and (earlier := first.setdefault(text, i)) != i:
            found.add(i)
            yield earlier, i
    ratio = _load_ratio()
    for block in _build_blocks(column, [i for i in first.values() if texts[i].count(" ") >= MIN_WORDS - 1]):
        block.sort(key=texts.__getitem__)
        for here, i in enumerate(block):
            for j in block[here + 1 : here + 1 + NEIGHBOURS]:
                later = max(i, j)
                if later not in found and ratio(texts[i], texts[j]) >= MIN_SIMILARITY:
                    found.add(later)
                    yield min(i, j), later


def is_near_duplicate(one: str, other: str) -> bool:
    """Whether two normal texts are the same, or long ones that differ in few letters."""
    return one == other or _load_ratio()(one, other) >= MIN_SIMILARITY


def _build_blocks(column: pa.Array, places: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that share a hash and have the same numbers."""
    if len(places) < 2:
        return
    chosen = pa.array(places, pa.int64())
    texts = column.take(chosen)
    pairs = _drop_common_pairs(_hash_word_pairs(texts), len(places))
    numbers = pc.replace_substring_regex(texts, r"[^0-9]+", " ").dictionary_encode().indices
    for permutation in PERMUTATIONS:
        hashes = pc.bit_wise_xor(pairs.column("pair"), permutation)
        least = pairs.set_column(1, "pair", hashes).group_by("text").aggregate([("pair", "min")])
        named = pa.table(
            {
                "hash": least.column("pair_min"),
                "numbers": numbers.take(least.column("text")),
                "place": chosen.take(least.column("text")),
            }
        )
        groups = named.group_by(["hash", "numbers"]).aggregate([("place", "list")]).column("place_list")
        yield from groups.filter(pc.greater(pc.list_value_length(groups), 1)).to_pylist()


def _hash_word_pairs(texts: pa.Array) -> pa.Table:
    """(text, pair): hashes of neighbouring words, by the place of their text."""
    split = pc.split_pattern(texts, " ")
    words = split.flatten().dictionary_encode().indices.cast(pa.int64())
    owners = pc.list_parent_indices(split)
    same = pc.equal(owners.slice(1), owners.slice(0, len(owners) - 1))
    mixed = pc.add(pc.multiply(words.slice(0, len(words) - 1), 1_000_003), pc.multiply(words.slice(1), 7_368_787))
    hashes = _modulo(pc.multiply(_modulo(mixed), 48_271))
    return pa.table({"text": owners.slice(1).filter(same), "pair": hashes.filter(same)})


def _modulo(values: Any) -> Any:
    return pc.subtract(values, pc.multiply(pc.divide(values, PRIME), PRIME))


def _drop_common_pairs(pairs: pa.Table, texts: int) -> pa.Table:
    """Without the pairs that many texts have."""
    counts = pc.value_counts(pairs.column("pair"))
    most = max(MAX_PAIR_SHARE * texts, 2 * NEIGHBOURS)
    common = counts.field("values").filter(pc.greater(counts.field("counts"), most))
    return pairs.filter(pc.invert(pc.is_in(pairs.column("pair"), value_set=common)))


def _compare_ends(one: str, other: str) -> float:
    """Per cent of the letters that both begin and end with: at most rapidfuzz's ratio."""
    start = _count_common_prefix(one, other)
    end = _count_common_prefix(one[start:][::-1], other[start:][::-1])
    return 200 * (start + end) / max(1, len(one) + len(other))


def _count_common_prefix(one: str, other: str) -> int:
    """Letters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _load_ratio() -> Callable[[str, str], float]:
    """rapidfuzz's, which every extra that trains brings; without it one that sees a single place of difference."""
    try:
        from rapidfuzz.fuzz import ratio

        return lambda a, b: float(ratio(a, b, score_cutoff=MIN_SIMILARITY))
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
    if not rows:
        return []
    level: Level = "warning" if len(rows) > WARNING_SHARE * len(conversations) else "info"
    text = "{n} nearly the same as an earlier one: case, punctuation or a few letters differ."
    what_to_do = "Keep one of each kind, if the difference teaches nothing."
    return [build_finding("near_duplicates", level, sorted(rows), text, what_to_do)]


def check_near_overlap(train: Sequence[Conversation], valid: Sequence[Conversation]) -> list[Finding]:
    """Validation prompts that are nearly trained on; those that are equal `check_overlap` finds."""
    known = {c.prompt for c in train}
    asked = [c for c in valid if c.prompt not in known]
    if not asked:
        return []
    pairs = find_similar_pairs(_normalise_prompts([*train, *asked]))
    found = sorted({later - len(train) for earlier, later in pairs if earlier < len(train) <= later})
    text = "{n} for validation with a prompt nearly the same as one that is trained on: the validation loss flatters."
    what_to_do = "Take one of each pair out, or give rows of another kind: validation = (SELECT …)."
    rows = [asked[i].row for i in found]
    return [build_finding("near_overlap", "warning", rows, text, what_to_do)] if rows else []


def _normalise_prompts(conversations: Sequence[Conversation]) -> pa.Array:
    return normalise_column([" ".join(t.content for t in c.prompt if t.role != "system") for c in conversations])
