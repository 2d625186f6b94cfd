"""The options that the core itself takes, whatever the handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sqlft.handler import Alias, Range


@dataclass
class EngineSettings:
    """CREATE ML_ENGINE … USING, whatever the handler; a model may have its own"""

    machine_usd_per_hour: Annotated[
        float | None, "what an hour of the machine costs, for engines whose tokens have no price", Range(0)
    ] = None


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
    system: Annotated[
        str | None, "a system message put before every prompt", Alias("system_prompt"), Alias("prompt")
    ] = None
    schema: Annotated[
        Any, "the answer's form: a JSON schema as text or object, a type such as 'STRUCT(a INTEGER)', names with types"
    ] = None
    json_struct: Annotated[
        Any, "MindsDB's words for schema: names with what each value is, as in {'city': 'where the sender lives'}"
    ] = None
    question_column: Annotated[
        str | None,
        "the one input, in place of a prompt_template",
        Alias("user_column"),
        Alias("input_column"),
        Alias("input_text"),
    ] = None
    context_column: Annotated[str | None, "an input put before the question, in place of a prompt_template"] = None
    answer_column: Annotated[
        str | None, "MindsDB's word for what PREDICT names; anything else is refused", Alias("assistant_column")
    ] = None
    tag: Annotated[str | None, "a word of your own on the version"] = None
    verbose: Annotated[bool | None, "MindsDB's; taken, and without effect"] = None


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
    check: Annotated[
        Literal["error", "warn", "off"],
        "what an error that the checks of data and memory find does: stop, or only warn; off skips the slow checks",
    ] = "error"
    max_cost_usd: Annotated[
        float | None, "nothing is trained whose estimated cost is more USD; EXPLAIN FINETUNE tells it", Range(0)
    ] = None
    validation: Annotated[Any, "a query, as text or in parentheses, whose rows are the validation set"] = None


@dataclass
class QuerySettings:
    """SELECT … USING"""

    prompt_template: Annotated[
        str | None, "the prompt in place of the model's for this query; its {{names}} are the inputs then"
    ] = None
    on_error: Annotated[Literal["null", "fail"], "a row that fails is NULL with a warning, or fails the statement"] = (
        "null"
    )
    cache: Annotated[bool | None, "keep and reuse answers; without it where the answer is deterministic"] = None
    max_retries: Annotated[int, "how often a row is asked again after an error that may pass", Range(0, 100)] = 3
    timeout: Annotated[float, "seconds without any answer after which the statement gives up", Range(0.001)] = 900.0
    serve: Annotated[
        str | None, "an engine whose running server loads this version's adapter and answers in place of its handler"
    ] = None
    max_cost_usd: Annotated[
        float | None,
        "no request is made that could take the statement over so many USD; 0: only kept answers",
        Range(0),
    ] = None
    max_rows: Annotated[int | None, "at most so many prompts are asked; kept answers are free", Range(0)] = None
    max_seconds: Annotated[float | None, "no longer than so many seconds; 0: only kept answers", Range(0)] = None


@dataclass
class EvaluateSettings:
    """EVALUATE … USING, beside the options of its metrics and, with MODEL, those of a query"""

    metrics: Annotated[Any, "with MODEL: the metrics, ['exact_match', 'token_f1']", Alias("metric")] = None
    answer: Annotated[Any, "with MODEL: the column, or columns, of right answers", Alias("actual")] = None
    prediction: Annotated[str | None, "without MODEL: the column of answers to be scored"] = None
    judge: Annotated[str | None, "the model that llm_judge asks"] = None
    seed: Annotated[int, "for the intervals, which are drawn by chance"] = 0


LIMITS = ("max_cost_usd", "max_rows", "max_seconds")


@dataclass
class SessionSettings:
    """SET sqlft_…"""

    budget_usd: Annotated[
        float | None, "no request and no training that could take this session over so many USD", Range(0)
    ] = None
    machine_usd_per_hour: Annotated[
        float | None, "what an hour of this machine costs, for engines whose tokens have no price", Range(0)
    ] = None


@dataclass
class PriceSettings:
    """CREATE PRICE … USING"""

    input: Annotated[float | None, "USD per million tokens of prompts", Range(0)] = None
    output: Annotated[float | None, "USD per million tokens of answers", Range(0)] = None
    cached_input: Annotated[
        float | None, "USD per million tokens of prompts that the provider had kept; without it as input", Range(0)
    ] = None
    training: Annotated[float | None, "USD per million tokens trained on, epochs included", Range(0)] = None
    machine_usd_per_hour: Annotated[float | None, "USD per hour of the machine, where tokens are free", Range(0)] = None
