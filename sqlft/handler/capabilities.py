"""What a handler can do besides, each a protocol: it has the method, and inherits nothing.

Called by the core, which asks with isinstance.  Here too are the values that only one of them takes or returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from sqlft.handler.handlers import Predictor
from sqlft.handler.values import Artifact, Completion, Message, ModelSpec, Price, TrainingSet


@runtime_checkable
class CountsTokens(Protocol):
    """A handler that knows its tokenizer."""

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """Tokens of each text, or None where that is not known without the provider."""


@runtime_checkable
class CountsPromptTokens(Protocol):
    """A handler that knows how conversations are put to its models."""

    def count_prompt_tokens(self, conversations: Sequence[Sequence[Message]], model: ModelSpec) -> list[int] | None:
        """Tokens of each conversation as the model is given it; None where that is not known without asking."""


@runtime_checkable
class Priced(Protocol):
    """A handler whose provider charges for requests."""

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking and training cost at the provider; None for a machine of one's own or where it is unknown."""


@runtime_checkable
class ScoresAnswers(Protocol):
    """A handler that can tell how probable a given answer is."""

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]] | None:
        """How probable the last message of each is, given those before it; None where that cannot be known.

        The natural logarithm of its probability, end token included, and its number of tokens.
        """


@runtime_checkable
class HasEmbeddingPrefixes(Protocol):
    """An Embedder some of whose models were trained with words before each text."""

    def embedding_prefixes(self, model: ModelSpec) -> tuple[str, str]:
        """What is put before a question, and before a text that is searched; '' for nothing.  Cheap."""


LEARNT_START, LEARNT_END = "⟦", "⟧"
"""Around what is learnt of a row, where it is shown as plain text."""


class RowPiece(NamedTuple):
    """A part of a training row's text; `weight` is what learning it counts, 0 for what is only read."""

    text: str
    weight: float = 0.0
    cut_tokens: int = 0
    """How many tokens before it are left out, for the row was too long."""


class RenderedRow(NamedTuple):
    """A training row as it is trained on, special tokens visible; or, `left_out`, why it is not."""

    pieces: tuple[RowPiece, ...]
    tokens: int | None = None
    left_out: str = ""


@runtime_checkable
class RendersRows(Protocol):
    """A trainer that shows the text of training rows."""

    def render_rows(
        self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any
    ) -> list[RenderedRow] | None:
        """Each row of `data.train`, by the code that `train` uses; None where that needs a base that is not here."""


@runtime_checkable
class TakesWeights(Protocol):
    """A handler that answers with weights that others made: CREATE MODEL … FROM ADAPTER, FROM GGUF, FROM EXPORT."""

    def check_weights(self, model: ModelSpec, path: Path) -> Mapping[str, object]:
        """What is known of `path`, for the version's details; HandlerError where the model cannot answer with it.

        `path` is a folder with a LoRA adapter of `model.base` in PEFT's layout, or the base itself: a folder or a file.
        """


@runtime_checkable
class Drains(Protocol):
    """A predictor that has answers under way which are paid for."""

    def drain(self) -> Iterator[Completion]:
        """Those still under way when reading stopped early; nothing new is begun.  Called before `close`."""


ReportStage = Callable[[str, float | None], None]
"""Called with what is going on, and how much of it is done (0 to 1, None: not known); may raise Cancelled."""


@runtime_checkable
class FetchesBases(Protocol):
    """A handler whose bases are downloaded at their first use."""

    def fetch(self, model: ModelSpec, report: ReportStage) -> None:
        """Get what `open` needs and is not on this machine.  The time-out of an answer does not run meanwhile."""


@runtime_checkable
class SharesWork(Protocol):
    """A handler that spreads requests over processes or machines."""

    def describe_share(self, model: ModelSpec, artifact: Artifact | None) -> list[str]:
        """Where requests go, lines for EXPLAIN; none where there is no choice.  Cheap, without a network."""


class ExportRequest(NamedTuple):
    """What EXPORT MODEL wants: `name` is the version's, as a file may have it; `system` begins every prompt."""

    name: str
    format: str
    quantization: str | None = None
    system: str | None = None


class ExportNotes(NamedTuple):
    """What the card of an export says: the base's id on the Hugging Face hub or its folder, its licence if it is known.

    `library` reads the folder (peft, transformers, gguf), `usage` is in Markdown and says how it is asked.
    """

    base: str
    licence: str | None
    library: str
    usage: str
    remarks: tuple[str, ...] = ()


@runtime_checkable
class Exports(Protocol):
    """A handler that has the weights, and writes versions out for other programs."""

    export_formats: ClassVar[Mapping[str, tuple[str, ...]]]
    """Formats by name, the default first, and for each the kinds of its numbers (QUANTIZATION), the default first."""

    def check_export(self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest) -> None:
        """NotSupported for what cannot be exported so; called before anything is written, cheap."""

    def export(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path, report: ReportStage
    ) -> ExportNotes:
        """Write the files into `folder`, which is empty."""

    def open_to_compare(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path | None, options: Any
    ) -> Predictor:
        """What answers for VERIFY, in numbers as exact as there are: the version, or its export in `folder`.

        The export is opened by the means of those who will use it, and gets texts.
        """
