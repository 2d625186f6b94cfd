"""Training rows -> examples of token ids, none longer than allowed; and what they look like to people."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sqlft.errors import DataError, NotSupported
from sqlft.handler import Message, RenderedRow, RowPiece
from sqlft_local.base.chat_template import ToolUse
from sqlft_local.base.tokenization import Renderer, TokenizedConversation
from sqlft_local.kernels.packing import Example
from sqlft_local.options import TrainOptions

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class TrainingRows:
    """Examples, and what was done to rows that were too long."""

    examples: list[Example]
    cut: int = 0
    dropped: int = 0
    refused: NotSupported | None = None
    """Why the first of those dropped that the base's chat template does not take was."""


class TokenizedRow(NamedTuple):
    """A row's tokens, None where it is left out; tokens were cut out before the one at `cut_at`."""

    tokens: TokenizedConversation | None
    cut_at: int = 0
    cut_tokens: int = 0
    refused: NotSupported | None = None


def render_rows(table: pa.Table, renderer: Renderer, options: TrainOptions, context: int) -> TrainingRows:
    """Render the column `messages`; DataError where a row teaches nothing or is too long and long_rows says error."""
    rows = TrainingRows([])
    for row in tokenize_rows(table, renderer, options, context):
        rows.refused = rows.refused or row.refused
        if row.tokens is None:
            rows.dropped += 1
            continue
        rows.cut += row.cut_tokens > 0
        rows.examples.append(Example(array("i", row.tokens.ids), array("f", weigh_tokens(row.tokens, options))))
    if rows.refused and not rows.examples:
        raise rows.refused
    return rows


def tokenize_rows(table: pa.Table, renderer: Renderer, options: TrainOptions, context: int) -> Iterator[TokenizedRow]:
    """Each row as it is trained on."""
    most = options.limit_row(context)
    tools = table.column("tools").to_pylist() if "tools" in table.column_names else [None] * table.num_rows
    for i, turns in enumerate(table.column("messages").to_pylist()):
        tool_use = ToolUse.read(turns, tools[i])
        unlearned = [k for k, t in enumerate(turns) if t.get("weight") == 0]
        try:
            messages = [Message(t["role"], renderer.add_reasoning(t["content"], t.get("reasoning"))) for t in turns]
            rendered = (renderer.with_tools(tool_use) if any(tool_use) else renderer).conversation(messages, unlearned)
        except NotSupported as e:
            yield TokenizedRow(None, refused=e)
            continue
        if not any(rendered.answer[1:]):
            raise DataError(
                f"Row {i + 1} has no answer to learn from.", "Every conversation must end with the assistant's message."
            )
        if len(rendered.ids) <= most:
            yield TokenizedRow(rendered)
            continue
        if options.long_rows == "error":
            what = f"max_length = {most}" if most < context else f"the {context} that the base can read"
            more = ", or a larger max_length" if most < context else ""
            raise DataError(
                f"Row {i + 1} has {len(rendered.ids)} tokens, more than {what}.",
                f"Say long_rows = 'cut' or 'drop'{more}.",
            )
        yield _cut_middle(rendered, most) if options.long_rows == "cut" else TokenizedRow(None)


def weigh_tokens(tokens: TokenizedConversation, options: TrainOptions) -> Iterator[float]:
    """What each token counts in the loss."""
    for is_answer, is_ignored in zip(tokens.answer, tokens.ignored, strict=True):
        yield 1.0 if is_answer else 0.0 if is_ignored else options.prompt_loss_weight


def show_row(row: TokenizedRow, renderer: Renderer, options: TrainOptions) -> RenderedRow:
    """Its tokens as text again, special ones visible, in pieces that weigh the same."""
    if row.tokens is None:
        why = f"{row.refused.message} {row.refused.next_step}" if row.refused else "it is longer than max_length"
        return RenderedRow((), left_out=why)
    ids, weights = row.tokens.ids, list(weigh_tokens(row.tokens, options))
    pieces: list[RowPiece] = []
    for (weight, is_behind_cut), places in groupby(range(len(ids)), lambda i: (weights[i], i >= row.cut_at)):
        first, *rest = places
        is_cut = is_behind_cut and first == row.cut_at
        begin = row.cut_at if is_behind_cut else 0
        before = _decode(renderer, ids[begin:first])  # some tokenizers take a space off what they decode first
        text = _decode(renderer, ids[begin : (rest or [first])[-1] + 1])[len(before) :]
        pieces.append(RowPiece(text, weight, row.cut_tokens if is_cut else 0))
    return RenderedRow(tuple(pieces), len(ids))


def _decode(renderer: Renderer, ids: Sequence[int]) -> str:
    text: str = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def sum_weights(batch: Sequence[Example]) -> float:
    """What the losses of a batch's tokens are divided by."""
    return sum(sum(e.weights[1:]) for e in batch)


def _cut_middle(rendered: TokenizedConversation, most: int) -> TokenizedRow:
    """Without the middle of what stands before the last answer; left out if the answer has no room for any of it."""
    ids, answer, ignored = rendered
    start = max(i for i, is_answer in enumerate(answer) if not is_answer) + 1
    room = most - (len(ids) - start)
    if room < 2:
        return TokenizedRow(None)
    head, tail = room - room // 2, room // 2
    chosen: list[int] = [*range(head), *range(start - tail, len(ids))]
    shorter = TokenizedConversation([ids[i] for i in chosen], [answer[i] for i in chosen], [ignored[i] for i in chosen])
    return TokenizedRow(shorter, head, len(ids) - len(chosen))
