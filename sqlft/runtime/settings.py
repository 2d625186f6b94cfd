"""The options that the core itself takes, whatever the handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sqlft.handler import Alias, Range


@dataclass
class ModelSettings:
    """CREATE MODEL … USING"""

    engine: Annotated[str, "the engine or handler that answers, for example 'local' or 'openai'"]
    base: Annotated[
        str | None, "the base: a preset, a hub id, a folder, or the provider's model", Alias("model_name")
    ] = None
    prompt_template: Annotated[
        str | None, "the prompt; each {{name}} is an input of the model; without it '{{content}}'"
    ] = None
    system: Annotated[str | None, "a system message put before every prompt", Alias("system_prompt")] = None
    question_column: Annotated[str | None, "the one input, in place of a prompt_template"] = None
    tag: Annotated[str | None, "a word of your own on the version"] = None


@dataclass
class TrainSettings:
    """FINETUNE and RETRAIN … USING, and CREATE MODEL … FROM … USING"""

    tag: Annotated[str | None, "a word of your own on the version"] = None
    active: Annotated[bool, "make the new version the active one when it completes"] = True
    wait: Annotated[bool, "wait for the end; false returns at once and trains in the background"] = True
    seed: Annotated[int, "for the split and, where the handler can, the training"] = 0
    validation_split: Annotated[
        float | None,
        "share of the rows kept for validation; without it a tenth of 50 rows or more, at most 200",
        Range(0, 0.9),
    ] = None
    validation: Annotated[Any, "a query, as text or in parentheses, whose rows are the validation set"] = None


@dataclass
class QuerySettings:
    """SELECT … USING"""

    on_error: Annotated[Literal["null", "fail"], "a row that fails is NULL with a warning, or fails the statement"] = (
        "null"
    )
    cache: Annotated[bool | None, "keep and reuse answers; without it where the answer is deterministic"] = None
    max_retries: Annotated[int, "how often a row is asked again after an error that may pass", Range(0, 100)] = 3
    timeout: Annotated[float, "seconds without any answer after which the statement gives up", Range(0.001)] = 900.0
