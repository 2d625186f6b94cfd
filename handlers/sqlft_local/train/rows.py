"""Training rows -> examples of token ids, none longer than allowed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlft.errors import DataError, NotSupported
from sqlft.handler import Message
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


def render_rows(table: pa.Table, renderer: Renderer, options: TrainOptions, context: int) -> TrainingRows:
    """Render the column `messages`; DataError where a row teaches nothing or is too long and long_rows says error."""
    most = options.limit_row(context)
    rows = TrainingRows([])
    for i, turns in enumerate(table.column("messages").to_pylist()):
        unlearned = [k for k, t in enumerate(turns) if t.get("weight") == 0]
        try:
            messages = [Message(t["role"], renderer.add_reasoning(t["content"], t.get("reasoning"))) for t in turns]
            rendered = renderer.conversation(messages, unlearned)
        except NotSupported as e:
            rows.refused = rows.refused or e
            rows.dropped += 1
            continue
        if not any(rendered.answer[1:]):
            raise DataError(
                f"Row {i + 1} has no answer to learn from.", "Every conversation must end with the assistant's message."
            )
        if len(rendered.ids) > most:
            if options.long_rows == "error":
                what = f"max_length = {most}" if most < context else f"the {context} that the base can read"
                more = ", or a larger max_length" if most < context else ""
                raise DataError(
                    f"Row {i + 1} has {len(rendered.ids)} tokens, more than {what}.",
                    f"Say long_rows = 'cut' or 'drop'{more}.",
                )
            shorter = _cut_middle(rendered, most) if options.long_rows == "cut" else None
            if shorter is None:
                rows.dropped += 1
                continue
            rendered = shorter
            rows.cut += 1
        tokens = zip(rendered.answer, rendered.ignored, strict=True)
        weights = (1.0 if a else 0.0 if ignored else options.prompt_loss_weight for a, ignored in tokens)
        rows.examples.append(Example(array("i", rendered.ids), array("f", weights)))
    if rows.refused and not rows.examples:
        raise rows.refused
    return rows


def sum_weights(batch: Sequence[Example]) -> float:
    """What the losses of a batch's tokens are divided by."""
    return sum(sum(e.weights[1:]) for e in batch)


def _cut_middle(rendered: TokenizedConversation, most: int) -> TokenizedConversation | None:
    """Without the middle of what stands before the last answer; None if the answer leaves no room for any of it."""
    ids, answer, ignored = rendered
    start = max(i for i, is_answer in enumerate(answer) if not is_answer) + 1
    room = most - (len(ids) - start)
    if room < 2:
        return None
    head, tail = room - room // 2, room // 2
    chosen: list[int] = [*range(head), *range(start - tail, len(ids))]
    return TokenizedConversation([ids[i] for i in chosen], [answer[i] for i in chosen], [ignored[i] for i in chosen])
