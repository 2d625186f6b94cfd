"""Rows that say nearly the same: among each other, and across training and validation."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sqlft.data.corpus import Corpus
from sqlft.data.findings import Conversation, Finding, Level, finding
from sqlft.data.likeness import alike, close, normal_column

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
