"""Texts that are nearly the same: candidates by shared word pairs, judged by edit distance.

Every text is put into a few blocks, each named by the least hash of its rarer word pairs under one permutation
(MinHash, Broder 1997); only neighbours within a block are compared, so the cost grows with the texts, not their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.conversations import Conversation, Corpus, Finding, Level, finding

ALIKE = 95.0
"""Per cent of the letters that must agree: rapidfuzz's ratio of the normalised texts."""
PERMUTATIONS = (0x2545F491, 0x5BD1E995, 0x1E3779B9)
PRIME = 2_147_483_647
NEIGHBOURS = 3
COMMON = 0.05
"""Word pairs that more of the texts have are the template's, and tell nothing."""
WORDS = 4
"""Shorter texts are alike only if they are equal but for case and punctuation."""


def normal_column(texts: Sequence[str]) -> pa.Array:
    """In lower case, words one space apart, no punctuation."""
    lower = pc.utf8_lower(pa.array(texts, pa.large_string()))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"[^\pL\pN]+", " "))


def normal(text: str) -> str:
    """One text as `normal_column` has it."""
    return str(normal_column([text])[0])


def alike(column: pa.Array) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of places in a `normal_column`; each later one once, numbers being equal."""
    texts: list[str] = column.to_pylist()
    found: set[int] = set()
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if text and (earlier := first.setdefault(text, i)) != i:
            found.add(i)
            yield earlier, i
    ratio = _ratio()
    for block in _blocks(column, [i for i in first.values() if texts[i].count(" ") >= WORDS - 1]):
        block.sort(key=texts.__getitem__)
        for here, i in enumerate(block):
            for j in block[here + 1 : here + 1 + NEIGHBOURS]:
                later = max(i, j)
                if later not in found and ratio(texts[i], texts[j]) >= ALIKE:
                    found.add(later)
                    yield min(i, j), later


def close(one: str, other: str) -> bool:
    """Whether two normal texts are the same, or long ones that differ in few letters."""
    return one == other or _ratio()(one, other) >= ALIKE


def _blocks(column: pa.Array, places: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that share a hash and have the same numbers."""
    if len(places) < 2:
        return
    chosen = pa.array(places, pa.int64())
    texts = column.take(chosen)
    pairs = _rarer(_pairs(texts), len(places))
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


def _pairs(texts: pa.Array) -> pa.Table:
    """(text, pair): hashes of neighbouring words, by the place of their text."""
    split = pc.split_pattern(texts, " ")
    words = split.flatten().dictionary_encode().indices.cast(pa.int64())
    owners = pc.list_parent_indices(split)
    same = pc.equal(owners.slice(1), owners.slice(0, len(owners) - 1))
    mixed = pc.add(pc.multiply(words.slice(0, len(words) - 1), 1_000_003), pc.multiply(words.slice(1), 7_368_787))
    hashes = _remainder(pc.multiply(_remainder(mixed), 48_271))
    return pa.table({"text": owners.slice(1).filter(same), "pair": hashes.filter(same)})


def _remainder(values: Any) -> Any:
    return pc.subtract(values, pc.multiply(pc.divide(values, PRIME), PRIME))


def _rarer(pairs: pa.Table, texts: int) -> pa.Table:
    """Without the pairs that many texts have."""
    counts = pc.value_counts(pairs.column("pair"))
    most = max(COMMON * texts, 2 * NEIGHBOURS)
    common = counts.field("values").filter(pc.greater(counts.field("counts"), most))
    return pairs.filter(pc.invert(pc.is_in(pairs.column("pair"), value_set=common)))


def _ends_alike(one: str, other: str) -> float:
    """Per cent of the letters that both begin and end with: at most rapidfuzz's ratio."""
    start = _same(one, other)
    end = _same(one[start:][::-1], other[start:][::-1])
    return 200 * (start + end) / max(1, len(one) + len(other))


def _same(one: str, other: str) -> int:
    """Letters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _ratio() -> Callable[[str, str], float]:
    """rapidfuzz's, which every extra that trains brings; without it one that sees a single place of difference."""
    try:
        from rapidfuzz.fuzz import ratio

        return lambda a, b: float(ratio(a, b, score_cutoff=ALIKE))
    except ImportError:
        return _ends_alike


MANY = 0.02
"""Above this share of near-duplicates it is a warning."""


def near_duplicates(corpus: Corpus) -> list[Finding]:
    """Rows whose prompt and answer both differ from an earlier row's by a few letters, but not in a number."""
    conversations = corpus.conversations
    answers = normal_column([c.answer for c in conversations])
    whole = pc.binary_join_element_wise(_prompts(conversations), answers, pa.scalar(" ", pa.large_string()))
    rows = []
    for earlier, later in alike(whole):
        one, other = conversations[earlier], conversations[later]
        if one.turns != other.turns and close(answers[earlier].as_py(), answers[later].as_py()):
            rows.append(other.row)
    if not rows:
        return []
    level: Level = "warning" if len(rows) > MANY * len(conversations) else "info"
    text = "{n} nearly the same as an earlier one: case, punctuation or a few letters differ."
    what_to_do = "Keep one of each kind, if the difference teaches nothing."
    return [finding("near_duplicates", level, sorted(rows), text, what_to_do)]


def near_overlap(train: Sequence[Conversation], valid: Sequence[Conversation]) -> list[Finding]:
    """Validation prompts that are nearly trained on; those that are equal `overlap` tells."""
    known = {c.prompt for c in train}
    asked = [c for c in valid if c.prompt not in known]
    if not asked:
        return []
    pairs = alike(_prompts([*train, *asked]))
    found = sorted({later - len(train) for earlier, later in pairs if earlier < len(train) <= later})
    text = "{n} for validation with a prompt nearly the same as one that is trained on: the validation loss flatters."
    what_to_do = "Take one of each pair out, or give rows of another kind: validation = (SELECT …)."
    rows = [asked[i].row for i in found]
    return [finding("near_overlap", "warning", rows, text, what_to_do)] if rows else []


def _prompts(conversations: Sequence[Conversation]) -> pa.Array:
    return normal_column([" ".join(t.content for t in c.prompt if t.role != "system") for c in conversations])
