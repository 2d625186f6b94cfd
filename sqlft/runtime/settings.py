"""The options that the core itself takes, whatever the handler."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import pyarrow as pa

from sqlft.errors import OptionError, did_you_mean
from sqlft.handler import Alias, Range
from sqlft.runtime.session import Session


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


BUDGET = "sqlft_budget_usd"


CURRENT = re.compile(r"\bcurrent_setting\s*\(\s*'(sqlft_\w*)'\s*\)", re.IGNORECASE)


def settings(session: Session) -> pa.Table:
    """`sqlft.settings`: what SET sqlft_… said, NULL where it said nothing."""
    names = [f"sqlft_{f.name}" for f in fields(SessionSettings)]
    spent = session.purse.spent if session.purse.bounds_cost else None
    return pa.table(
        {
            "name": names,
            "value": pa.array([setting(session, name) for name in names], pa.float64()),
            "spent_usd": pa.array([spent if name == BUDGET else None for name in names], pa.float64()),
        }
    )


def setting(session: Session, name: str) -> float | None:
    """One of sqlft's own settings; OptionError for an unknown name."""
    known: dict[str, float | None] = {
        BUDGET: session.purse.usd,
        "sqlft_machine_usd_per_hour": session.purse.machine_usd_per_hour,
    }
    _check_setting(name, set(known))
    return known[name]


def with_settings(session: Session, query: str) -> str:
    """A query in which current_setting('sqlft_…') has its value."""

    def found(match: re.Match[str]) -> str:
        value = setting(session, match[1].lower())
        return "NULL::DOUBLE" if value is None else f"{value!r}::DOUBLE"

    return CURRENT.sub(found, query)


def _check_setting(name: str, known: set[str]) -> None:
    if name not in known:
        raise OptionError(
            f"There is no setting '{name}'.{did_you_mean(name, known)}", f"There are: {', '.join(sorted(known))}."
        )
