"""The text of training rows as the handler trains on it, with what is learnt marked.

ANALYZE TRAINING DATA and EXPLAIN FINETUNE call `list_row_texts` for USING show_rows = n; the worker keeps the first
rows for the report with `keep_first_rows`.  The text comes from the handler: `sqlft.handler.RendersRows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from sqlft.data import PreparedData
from sqlft.data.privacy import mask_private
from sqlft.errors import NotSupported
from sqlft.handler import (
    LEARNT_END,
    LEARNT_START,
    Artifact,
    ModelSpec,
    Range,
    RenderedRow,
    RendersRows,
    RowPiece,
    Trainer,
    TrainingSet,
)

if TYPE_CHECKING:
    from sqlft.training.plan import TrainingPlan

MAX_SHOWN_ROWS = 100
KEPT_ROWS, KEPT_LETTERS = 3, 4_000
"""Rows that a version keeps for its report, and how much of each."""


@dataclass
class RowTextSettings:
    """ANALYZE TRAINING DATA … FOR model and EXPLAIN FINETUNE … USING"""

    show_rows: Annotated[
        int,
        f"show the text of so many training rows as the base reads it, what is learnt between {LEARNT_START} and "
        f"{LEARNT_END}",
        Range(0, MAX_SHOWN_ROWS),
    ] = 0


class RowText(NamedTuple):
    """A training row: where it starts in the query, from 1, its tokens and its text."""

    row: int
    tokens: int | None
    text: str


def list_row_texts(plan: TrainingPlan, prepared: PreparedData, count: int) -> list[RowText]:
    """The first `count` training rows; NotSupported where the handler cannot tell their text."""
    if count == 0:
        return []
    base, engine = plan.spec.base, plan.engine.handler
    if not isinstance(plan.handler, RendersRows):
        raise NotSupported(
            f"The handler '{engine}' does not tell the text of training rows.", "Leave show_rows out of USING."
        )
    rendered = _render_rows(plan.handler, plan.spec, plan.start, prepared.training_set, plan.options, count)
    if rendered is None:
        raise NotSupported(
            f"The text of training rows needs the base's chat template, and {base} is not on this machine.",
            f"Get it with: sqlft pull {base}",
        )
    return [
        RowText(number, row.tokens, format_row(row)) for number, row in zip(prepared.train_rows, rendered, strict=False)
    ]


def keep_first_rows(
    handler: Trainer, spec: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any
) -> list[Mapping[str, object]]:
    """The first training rows for the report, as JSON can hold them: keys and addresses masked, long ones cut."""
    if not isinstance(handler, RendersRows):
        return []
    rendered = _render_rows(handler, spec, start, data, options, KEPT_ROWS) or ()
    return [
        {"tokens": row.tokens, "left_out": row.left_out, "pieces": [piece._asdict() for piece in _shorten(row.pieces)]}
        for row in rendered
    ]


def format_row(row: RenderedRow) -> str:
    """Its text, what is learnt between the marks.

    >>> format_row(RenderedRow((RowPiece("1 + 1 = "), RowPiece("2</s>", 1.0))))
    '1 + 1 = ⟦2</s>⟧'
    >>> format_row(RenderedRow((RowPiece("Once", 0.1), RowPiece("was", 1.0, cut_tokens=12))))
    '⟦×0.1 Once⟧[… 12 tokens are cut here …]⟦was⟧'
    """
    text = "".join(map(_format_piece, row.pieces))
    return f"[not trained on: {row.left_out}] {text}".strip() if row.left_out else text


def _format_piece(piece: RowPiece) -> str:
    cut = f"[… {piece.cut_tokens:,} tokens are cut here …]" if piece.cut_tokens else ""
    if piece.weight == 0:
        return cut + piece.text
    share = "" if piece.weight == 1 else f"×{piece.weight:g} "
    return f"{cut}{LEARNT_START}{share}{piece.text}{LEARNT_END}"


def _render_rows(
    handler: RendersRows, spec: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any, count: int
) -> list[RenderedRow] | None:
    return handler.render_rows(spec, start, replace(data, train=data.train.slice(0, count), valid=None), options)


def _shorten(pieces: Sequence[RowPiece]) -> Iterator[RowPiece]:
    """All answers that fit, prompts from both ends."""
    room = KEPT_LETTERS
    for piece in pieces:
        text = mask_private(piece.text)
        if len(text) > room:
            text = f"{text[: room // 2]} … {text[len(text) - room // 2 :]}"
        room = max(room - len(text), 0)
        yield piece._replace(text=text)
