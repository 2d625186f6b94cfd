"""Examples -> the passes of a model, in the layout that it takes: packed, padded, or one row a pass.

Called by whoever computes a loss or a score.  Packing is the fastest (`kernels.packing`).  Bases whose layers do not
take packed rows get rows of one length, with a mask: padding stands behind the tokens, where no layer that reads from
left to right (attention, convolutions, state spaces) sees it, so losses and gradients equal those of the examples
computed one by one.  Where a trial on the model itself shows otherwise, each row has a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakKeyDictionary

from sqlft_local.kernels import is_on
from sqlft_local.kernels.packing import ATTENTION_NAME, Example, PackedExamples, common_prefix_length, pack

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Device, Model


@dataclass(frozen=True)
class PaddedExamples:
    """Examples as rows: `ids` and `mask` (rows, tokens), longest first.

    `source[j]` is the place, of all rows one behind the other, whose state predicts `target[j]`, with `weight[j]` in
    the loss.
    """

    ids: Tensor
    mask: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor
    prefix: int = 0

    @property
    def inputs(self) -> dict[str, object]:
        """The arguments of the model's forward."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}

    def select(self, states: Tensor) -> Tensor:
        """Of states (rows, tokens, …) those at `source`."""
        return states.flatten(0, 1).index_select(0, self.source)


ExampleBatch: TypeAlias = PackedExamples | PaddedExamples
"""Examples of one pass; the sources are in their order, longest first, behind those of a `prefix` that all share."""


def pad(examples: Sequence[Example], device: Device | str = "cpu") -> PaddedExamples:
    """Examples of at least one token each, as rows of the longest's length.

    >>> rows = pad([Example([7, 1], [0, 1]), Example([7, 3, 4], [0, 0, 1])])
    >>> rows.ids.tolist(), rows.mask.tolist(), rows.source.tolist(), rows.target.tolist()
    ([[7, 3, 4], [7, 1, 1]], [[1, 1, 1], [1, 1, 0]], [1, 3], [4, 1])
    """
    import torch

    examples = sorted(examples, key=lambda e: -len(e.ids))
    longest = len(examples[0].ids)
    fillers = [longest - len(e.ids) for e in examples]
    learned = [(i, j) for i, e in enumerate(examples) for j in range(1, len(e.ids)) if e.weights[j]]
    whole = {"dtype": torch.long, "device": device}
    return PaddedExamples(
        torch.tensor([[*e.ids, *[e.ids[-1]] * n] for e, n in zip(examples, fillers, strict=True)], **whole),
        torch.tensor([[1] * len(e.ids) + [0] * n for e, n in zip(examples, fillers, strict=True)], **whole),
        torch.tensor([i * longest + j - 1 for i, j in learned], **whole),
        torch.tensor([examples[i].ids[j] for i, j in learned], **whole),
        torch.tensor([examples[i].weights[j] for i, j in learned], dtype=torch.float32, device=device),
    )


RowLayout = Literal["packed", "padded", "alone"]
"""How rows are put into a pass: one behind the other, padded to the longest, or one row a pass."""
TRIAL_LENGTHS = (11, 5)
"""Tokens of the two rows of a trial."""
TOLERANCES = {4: 2e-5, 2: 2e-2}
"""Largest difference of a logit in a trial, relative to the largest logit, by the bytes of a number."""


def is_packed(model: Model) -> bool:
    """Whether the model's attention is the one that takes packed rows."""
    config = getattr(model, "config", None)  # base.torch_llama has none, and takes nothing else
    return config is None or config._attn_implementation == ATTENTION_NAME


_layouts: WeakKeyDictionary[Model, RowLayout] = WeakKeyDictionary()


def find_layout(model: Model) -> RowLayout:
    """How rows are put into a pass of the model; whether padding changes nothing is tried once."""
    if model not in _layouts:
        _layouts[model] = "packed" if is_packed(model) else "padded" if _ignores_padding(model) else "alone"
    return _layouts[model]


def make_trial_rows(model: Model) -> list[list[int]]:
    """A long and a short row of tokens that the model has."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return [[(7 * i + n) % vocabulary for i in range(n)] for n in TRIAL_LENGTHS]


def logits_agree(found: Tensor, expected: Tensor) -> bool:
    """Whether a trial gave the same logits."""
    return bool((found - expected).abs().max() <= TOLERANCES[found.element_size()] * expected.abs().max())


def _ignores_padding(model: Model) -> bool:
    """Whether a row with padding behind it gets the logits that it gets alone."""
    import torch

    rows = [Example(ids, [1.0] * len(ids)) for ids in make_trial_rows(model)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            both = model(**pad(rows, model.device).inputs).logits[1, : len(rows[1].ids)]
            alone = model(**pad(rows[1:], model.device).inputs).logits[0]
        return logits_agree(both, alone)
    finally:
        model.train(training)


def prepare_batch(model: Model, examples: Sequence[Example]) -> ExampleBatch:
    """The examples as the model takes them."""
    return pack(examples, model.device) if is_packed(model) else pad(examples, model.device)


def split_passes(batch: Sequence[Example], most: int, layout: RowLayout = "packed") -> Iterator[list[Example]]:
    """The batch in few parts of about one size, each of at most `most` tokens or one example; like lengths together.

    Packed rows share their common start; of padded ones the padding counts.
    """
    if layout == "alone" or (layout == "packed" and not is_on("packing")):
        yield from ([e] for e in batch)
        return
    batch = sorted(batch, key=lambda e: -len(e.ids))
    prefix = _common_start(batch) if layout == "packed" else 0
    room = max(most - prefix, 1)
    left = sum(len(e.ids) - prefix for e in batch)
    share = left / -(-left // room)
    part: list[Example] = []
    tokens = 0
    for e in batch:
        size = len((part[0] if part and layout == "padded" else e).ids) - prefix
        if part and (tokens + size > room or tokens + size / 2 > share):
            yield part
            part, tokens, size = [], 0, len(e.ids) - prefix
        part.append(e)
        tokens += size
    yield part


def count_pass_tokens(batch: Sequence[Example], most: int, layout: RowLayout = "packed") -> list[tuple[int, int]]:
    """(tokens computed, tokens learned) of each pass of a batch; a common start is computed once a pass, or padding."""
    found = []
    for part in split_passes(batch, most, layout):
        if layout == "packed":
            tokens = sum(len(e.ids) for e in part) - _common_start(part) * (len(part) - 1)
        else:
            tokens = len(part) * len(part[0].ids)
        found.append((tokens, sum(1 for e in part for w in e.weights if w)))
    return found


def _common_start(batch: Sequence[Example]) -> int:
    return common_prefix_length([e.ids for e in batch]) if len(batch) > 1 else 0
