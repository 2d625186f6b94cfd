"""The contract between sqlft and a handler: with `sqlft.errors`, all that a handler imports.

Requests go in, completions come out, in any order, each as soon as it is known.  The core renders
prompts, splits, deduplicates, caches, retries, publishes artifacts and resolves secrets; a handler
never sees SQL or the catalog.

Options are declared as dataclasses whose fields say what they are for.  Those that the core reads too are inherited,
and may be declared again with another default, range or type::

    @dataclass
    class PredictOptions(SamplingOptions):
        temperature: Annotated[float, "0 is greedy", Range(0, 2)] = 0.0
        style: Annotated[str, "how answers look"] = "plain"

Everybody imports from here; the files inside are for reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from sqlft.errors import NotSupported
from sqlft.handler.capabilities import (
    LEARNT_END,
    LEARNT_START,
    CountsPromptTokens,
    CountsTokens,
    Drains,
    ExportNotes,
    ExportRequest,
    Exports,
    FetchesBases,
    HasEmbeddingPrefixes,
    Priced,
    RenderedRow,
    RendersRows,
    ReportStage,
    RowPiece,
    ScoresAnswers,
    SharesWork,
    TakesWeights,
)
from sqlft.handler.handlers import (
    Embedder,
    Handler,
    LoadsAdapters,
    Predictor,
    Reranker,
    Trainer,
    Vector,
    WrapsHandler,
)
from sqlft.handler.options import (
    Alias,
    Delivery,
    EmbeddingOptions,
    LengthOptions,
    NoOptions,
    Options,
    Range,
    SamplingOptions,
    Secret,
    TrainingOptions,
    Unordered,
    WrapperOptions,
    join_options,
    read_options,
)
from sqlft.handler.values import (
    CHARS_PER_TOKEN,
    ITEM_SEPARATOR,
    KEY_SEPARATOR,
    MAX_TOKENS_PER_MESSAGE,
    TOKENS_PER_MESSAGE,
    Artifact,
    Completion,
    Delta,
    Estimate,
    Message,
    ModelSpec,
    Notice,
    Price,
    Progress,
    Request,
    RowError,
    TrainingDetails,
    TrainingSet,
    count_bytes,
    estimate_tokens,
    max_prompt_tokens,
)

__all__ = [
    "CHARS_PER_TOKEN",
    "ITEM_SEPARATOR",
    "KEY_SEPARATOR",
    "LEARNT_END",
    "LEARNT_START",
    "MAX_TOKENS_PER_MESSAGE",
    "TOKENS_PER_MESSAGE",
    "Alias",
    "Artifact",
    "Completion",
    "CountsPromptTokens",
    "CountsTokens",
    "Delivery",
    "Delta",
    "Drains",
    "Embedder",
    "EmbeddingOptions",
    "Estimate",
    "ExportNotes",
    "ExportRequest",
    "Exports",
    "FetchesBases",
    "Handler",
    "HasEmbeddingPrefixes",
    "LengthOptions",
    "LoadsAdapters",
    "Message",
    "ModelSpec",
    "NoOptions",
    "Notice",
    "Options",
    "Predictor",
    "Price",
    "Priced",
    "Progress",
    "Range",
    "RenderedRow",
    "RendersRows",
    "ReportStage",
    "Request",
    "Reranker",
    "RowError",
    "RowPiece",
    "SamplingOptions",
    "ScoresAnswers",
    "Secret",
    "SharesWork",
    "TakesWeights",
    "Trainer",
    "TrainingDetails",
    "TrainingOptions",
    "TrainingSet",
    "Unordered",
    "Vector",
    "WrapperOptions",
    "WrapsHandler",
    "count_bytes",
    "estimate_tokens",
    "join_options",
    "max_prompt_tokens",
    "read_options",
]


if not TYPE_CHECKING:  # a type checker would take any name for defined

    def __getattr__(name: str) -> NoReturn:
        """The error for a name that the contract had before."""
        if name == "Piece":
            raise NotSupported("sqlft.handler has no Piece any more.", "It is called Delta: change its import.")
        raise AttributeError(f"module 'sqlft.handler' has no attribute {name!r}")
