"""From the rows of a training query to what a trainer gets: recognised, checked, split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import pyarrow as pa

from sqlft.data.checks import near_duplicates
from sqlft.data.checks.structure import CountTokens, check_overlap, check_token_lengths, drop_unusable, run_checks
from sqlft.data.conversations import Conversation, Finding, add_examples, build_table, split_validation
from sqlft.data.formats import recognise
from sqlft.data.outputs import Outputs
from sqlft.data.prompts import Prompt
from sqlft.errors import DataError
from sqlft.handler import TrainingSet


@dataclass(frozen=True)
class PreparedData:
    """What to train on, what the checks found, how many rows the query had, and a digest of the conversations.

    `train_rows` are the query's rows, from 1, at which the training rows start.
    """

    training_set: TrainingSet
    findings: tuple[Finding, ...]
    row_count: int
    digest: str
    train_rows: tuple[int, ...]


def prepare(
    rows: pa.Table,
    prompt: Prompt,
    predict: str | Sequence[str],
    *,
    valid_rows: pa.Table | None = None,
    validation_split: float | None = None,
    seed: int = 0,
    max_length: int | None = None,
    long_rows: str = "cut",
    count_tokens: CountTokens | None = None,
    outputs: Outputs | None = None,
    stops: Sequence[str] = (),
    thorough: bool = True,
) -> PreparedData:
    """Conversations from `rows`, checked, and split unless `valid_rows` are given.

    `predict` is the answer's column, or the names it may have; `max_length` is in tokens as `count_tokens`
    has them; `outputs` are the model's if they are typed; `stops` are the model's stop sequences, `thorough` runs the
    slow checks too.  DataError if no shape fits, no usable row is left, or rows are over-long and `long_rows` is
    'error'.
    """

    targets = (predict,) if isinstance(predict, str) else tuple(predict)

    def read(table: pa.Table, what: str) -> tuple[list[Conversation], list[Finding]]:
        conversations, findings = _read_conversations(table, prompt, targets, what, outputs)
        kept, more = check_token_lengths(conversations, count_tokens, max_length, long_rows)
        if not kept:
            raise DataError(
                f"All {len(conversations):,} conversations of the {what} query are longer than max_length.",
                "Raise max_length.",
            )
        return kept, [*findings, *add_examples(more, conversations)]

    train, findings = read(rows, "training")
    findings += add_examples(run_checks(train, stops, thorough), train)
    everything = train
    if valid_rows is not None:
        valid, about_valid = read(valid_rows, "validation")
        findings += [replace(f, message=f"Validation: {f.message}") for f in about_valid]
        findings += add_examples(check_overlap(train, valid), valid)
        everything = [*train, *valid]
    else:
        train, valid = split_validation(train, validation_split, seed)
    if thorough:
        findings += near_duplicates.check_near_overlap(train, valid)
    training_set = TrainingSet(build_table(train), build_table(valid) if valid else None)
    digest = digest_conversations(everything)
    return PreparedData(training_set, tuple(findings), rows.num_rows, digest, tuple(c.row for c in train))


def digest_conversations(conversations: Iterable[Conversation]) -> str:
    """SHA-256 over roles, contents, thoughts and tools in order, each with its length before it."""
    sha = sha256()
    for c in conversations:
        sha.update(b"%d;" % len(c.turns))
        rejected = () if c.rejected is None else (c.rejected,)
        unusual = [t for turn in c.turns if turn[2:4] != (1, None) for t in (str(turn.weight), turn.name or "")]
        later = [text for turn in c.turns for text in turn[4:] if text is not None]
        tools = () if c.tools is None else (c.tools,)
        for text in (*(t for turn in c.turns for t in turn[:2]), *rejected, *unusual, *later, *tools):
            data = text.encode()
            sha.update(b"%d:" % len(data))
            sha.update(data)
    return sha.hexdigest()


def _read_conversations(
    rows: pa.Table, prompt: Prompt, targets: Sequence[str], what: str, outputs: Outputs | None
) -> tuple[list[Conversation], list[Finding]]:
    if rows.num_rows == 0:
        raise DataError(f"The {what} query gives no rows.", "Run the query by itself, and loosen its WHERE or LIMIT.")
    _, conversations, findings = recognise(rows, prompt, targets, outputs)
    kept, more = drop_unusable(conversations)
    findings = add_examples([*findings, *more], conversations)
    if not kept:
        faults = "".join(f" {f}" for f in findings if f.level != "info")
        raise DataError(
            f"None of the {rows.num_rows:,} rows of the {what} query can be used.{faults}",
            "Look at those rows, and let the query give prompts with their answers.",
        )
    return kept, findings
