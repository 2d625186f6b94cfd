"""VERIFY: the same prompts answered by a version and by its export, greedy.

Prompts are those of a query, or of the newest training or evaluation of the model whose rows can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sqlft.data import prepare
from sqlft.errors import Cancelled, DataError, HandlerError, OptionError, SqlftError, did_you_mean
from sqlft.handler import Completion, ExportRequest, Exports, Message, Predictor, Request
from sqlft.inference.resolve import ResolvedVersion
from sqlft.metrics.general import GENERAL_METRICS
from sqlft.session import Parameters, Session, Tick
from sqlft.sql.names import format_name
from sqlft.sql.statements import RowSource
from sqlft.training.rows import read_rows

Prompt = tuple[Message, ...]
SHOWN, SHOWN_LETTERS = 3, 200
"""Differences that are shown, and letters of each text."""


class Difference(NamedTuple):
    """A prompt that the two answered in different ways."""

    prompt: str
    version: str
    export: str


@dataclass(frozen=True)
class Comparison:
    """What the two said."""

    count: int
    """Prompts that the version answered."""
    differences: Sequence[Difference]

    @property
    def same(self) -> int:
        """Prompts with one answer."""
        return self.count - len(self.differences)

    def describe_differences(self, key: str, request: ExportRequest) -> Iterator[str]:
        """A line for each of the first ones."""
        rounded = (
            f" The numbers of a {request.quantization} file are rounded." if request.quantization == "q8_0" else ""
        )
        for i, found in enumerate(self.differences[:SHOWN]):
            prompt, version, export = (_shorten(text) for text in found)
            more = f"{len(self.differences)} of {self.count} answers differ.{rounded} " if i == 0 else ""
            yield f"{more}To {prompt!r} {key} says {version!r}, its export {export!r}."


def read_prompts(session: Session, resolved: ResolvedVersion, verify: object, parameters: Parameters) -> list[Prompt]:
    """The prompts that VERIFY means, each once; OptionError, DataError."""
    if isinstance(verify, RowSource):
        found = _render(resolved, read_rows(session, verify, parameters))
        if not found:
            raise DataError("The query of VERIFY gives no rows.", "Try it alone first.")
        return found
    if not isinstance(verify, int) or isinstance(verify, bool) or verify < 0:
        raise OptionError(
            f"VERIFY is a number of prompts or a query, not {verify!r}.", "Write: VERIFY 5, or VERIFY (SELECT …)."
        )
    if verify == 0:
        return []
    for prompts in _list_known_prompts(session, resolved):
        with suppress(SqlftError):  # its tables may be gone
            if found := list(dict.fromkeys(prompts()))[:verify]:
                return found
    key, inputs = resolved.version.key, ", ".join(map(format_name, resolved.prompt.inputs))
    raise DataError(
        f"There are no prompts to verify {key} with: no training or evaluation of it has rows that can still be read.",
        f"Give a query: VERIFY (SELECT {inputs} FROM … LIMIT {verify}).",
    )


def _list_known_prompts(session: Session, resolved: ResolvedVersion) -> Iterator[Any]:
    """Functions that read prompts: of the version's training, of others' from the newest on, of evaluations."""
    model = resolved.model
    versions = sorted(
        session.catalog.versions(model.key), key=lambda v: (v.key == resolved.version.key, v.key.number), reverse=True
    )
    for version in versions:
        if version.query is not None:
            source = RowSource(version.query, version.database)
            yield lambda source=source: _read_training_prompts(session, resolved, source)
    yield lambda: _read_evaluated_prompts(session, resolved)


def _read_training_prompts(session: Session, resolved: ResolvedVersion, source: RowSource) -> list[Prompt]:
    """What comes before the last answer of each conversation."""
    rows = read_rows(session, source, None, to_train=True)
    prepared = prepare(
        rows, resolved.prompt, resolved.model.targets, outputs=resolved.outputs, validation_split=0.0, thorough=False
    )
    conversations = prepared.training_set.train.column("messages").to_pylist()
    return [tuple(Message(m["role"], m["content"]) for m in turns[:-1]) for turns in conversations]


def _read_evaluated_prompts(session: Session, resolved: ResolvedVersion) -> list[Prompt]:
    name, project = resolved.model.key
    rows = session.catalog.table("evaluation_rows").to_pylist()
    own = [row for row in rows if (row["model"], row["project"]) == (name, project)]
    inputs = [json.loads(row["input"]) for row in own if row["metric"] not in GENERAL_METRICS]
    return _render(resolved, pa.Table.from_pylist(inputs))


def _render(resolved: ResolvedVersion, rows: pa.Table) -> list[Prompt]:
    known = {name.lower(): rows.column(i) for i, name in enumerate(rows.column_names)}
    columns: dict[str, pa.ChunkedArray] = {}
    for name in resolved.prompt.inputs:
        if name.lower() not in known:
            raise DataError(
                f"The query of VERIFY has no column for the input '{name}'.{did_you_mean(name, known)}",
                f"Give it one: … AS {format_name(name)}; it has: {', '.join(rows.column_names)}.",
            )
        columns[name] = known[name.lower()]
    texts = resolved.prompt.render_column(columns).to_pylist()
    return [resolved.prompt.conversation(text) for text in dict.fromkeys(texts)]


def compare_answers(
    session: Session,
    resolved: ResolvedVersion,
    handler: Exports,
    request: ExportRequest,
    folder: Path,
    prompts: Sequence[Prompt],
) -> Comparison:
    """Ask both; HandlerError where no answer is the same."""
    options = resolved.predict_options({"temperature": 0.0})
    answers: list[Mapping[int, Completion]] = []
    for what, exported in ((f"asking {resolved.version.key}", None), ("asking its export", folder)):
        predictor = handler.open_to_compare(resolved.spec, resolved.artifact, request, exported, options)
        answers.append(_ask(session, predictor, prompts, what))
    ours, theirs = answers
    right = {i: _get_text(found) for i, found in ours.items() if found.text is not None}
    if not right:
        error = next(iter(ours.values())).error
        raise HandlerError(
            f"{resolved.version.key} answers none of the prompts of VERIFY: {error and error.message}.",
            "Give others: VERIFY (SELECT …).",
        )
    differences = [
        Difference(prompts[i][-1].content, text, _get_text(theirs[i]))
        for i, text in right.items()
        if _get_text(theirs[i]) != text
    ]
    compared = Comparison(len(right), differences)
    if not compared.same:
        shown = next(compared.describe_differences(str(resolved.version.key), request))
        raise HandlerError(
            f"The export answers otherwise than {resolved.version.key}, so it was not written. {shown}",
            "Export without VERIFY to look into it, or give other prompts: VERIFY (SELECT …).",
        )
    return compared


def _ask(session: Session, predictor: Predictor, prompts: Sequence[Prompt], what: str) -> dict[int, Completion]:
    found: dict[int, Completion] = {}
    try:
        for event in predictor.predict([Request(i, prompt) for i, prompt in enumerate(prompts)]):
            if isinstance(event, Completion):
                found[event.id] = event
            if session.interrupted:
                raise Cancelled("VERIFY was stopped, and nothing was written.", "Run it again.")
            session.show_progress(Tick(what, len(found), len(prompts)))
    finally:
        predictor.close()
    return found


def _get_text(found: Completion) -> str:
    """Without white space around it, and without a letter that the limit of tokens has cut in two."""
    return f"(error: {found.error.message})" if found.error is not None else (found.text or "").strip().rstrip("\ufffd")


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"
