"""ANALYZE TRAINING DATA: the checks of FINETUNE, and what else is to know of the rows, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa

from sqlft.data import Outputs, Prepared, Prompt, prepare
from sqlft.data.checks.report import Fact, facts_of, guessed_tokens
from sqlft.data.checks.structure import CountTokens
from sqlft.data.formats import PAIRS, is_known
from sqlft.errors import DataError
from sqlft.handler import Range, Trainer
from sqlft.inference.resolve import engine_of, handler_of, model_of, outputs_of, prompt_of, spec_of
from sqlft.options import build, names_of
from sqlft.session import Parameters, Session, TrainSettings
from sqlft.sql.statements import AnalyzeTrainingData
from sqlft.training import start
from sqlft.training.plan import plan_of, validation_source
from sqlft.training.rows import read_rows

WHAT = "ANALYZE TRAINING DATA"
ANSWERS = ("answer", "completion", "output", "response", "label", "target", *(better for better, _ in PAIRS))
ASIDE = {*(worse for _, worse in PAIRS), "tools", "weight"}
"""Columns that are neither the answer nor a part of the prompt."""
Look = tuple[Prepared, CountTokens | None]

SCHEMA = pa.schema(
    [
        ("severity", pa.string()),
        ("code", pa.string()),
        ("count", pa.int64()),
        ("finding", pa.string()),
        ("examples", pa.list_(pa.string())),
        ("rows", pa.list_(pa.int64())),
        ("what_to_do", pa.string()),
        ("details", pa.string()),
    ]
)
ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass
class DataSettings:
    """ANALYZE TRAINING DATA … USING, where no model says it"""

    predict: Annotated[
        str | None, "the column of the answers; without it answer, completion, output, label …, or the last one"
    ] = None
    prompt_template: Annotated[str | None, "the prompt; without it the other columns, a line each"] = None
    max_length: Annotated[int | None, "tokens above which a row is too long", Range(1)] = None
    stop: Annotated[list[str] | None, "stop sequences to look for"] = None
    validation: Annotated[Any, "a query, as text or in parentheses, whose rows are the validation set"] = None
    validation_split: Annotated[float | None, "share of the rows kept for validation", Range(0, 0.9)] = None
    seed: Annotated[int, "for the split"] = 0


def run_analyze_training_data(session: Session, statement: AnalyzeTrainingData, parameters: Parameters) -> pa.Table:
    """A row a finding, errors first; then what the rows are like and which batch size and epochs suit them."""
    look = _without_model if statement.model is None else _for_model
    prepared, count_tokens = look(session, statement, parameters)
    found = sorted(prepared.findings, key=lambda f: ORDER[f.level])
    rows = [
        {
            "severity": f.level,
            "code": f.code,
            "count": f.count,
            "finding": f.message,
            "examples": list(f.shown),
            "rows": list(f.examples),
            "what_to_do": f.what_to_do or None,
        }
        for f in found
    ]
    return pa.Table.from_pylist([*rows, *map(_row, facts_of(prepared, count_tokens))], SCHEMA)


def _row(fact: Fact) -> dict[str, Any]:
    details = json.dumps(fact.details, ensure_ascii=False) if fact.details else None
    return {
        "severity": "info",
        "code": fact.code,
        "count": fact.count,
        "finding": fact.message,
        "examples": list(fact.shown),
        "rows": [],
        "details": details,
    }


def _for_model(session: Session, statement: AnalyzeTrainingData, parameters: Parameters) -> Look:
    """As FINETUNE of the model would see the rows; a model that cannot be trained still has its columns."""
    assert statement.model is not None
    model = model_of(session, statement.model.key)
    handler = handler_of(session, engine_of(session, model.engine), model.options)
    spec = spec_of(type(handler), model.base, model.options, f"Model '{model.key.name}'")

    def count_tokens(texts: Sequence[str]) -> list[int] | None:
        return handler.count_tokens(texts, spec)

    if not isinstance(handler, Trainer):
        prompt = prompt_of(model)
        outputs = outputs_of(model)
        return _read(session, statement, parameters, prompt, model.targets, count_tokens, outputs), count_tokens
    own = names_of(type(handler).train_options, TrainSettings)
    stops, options = [], dict(statement.options)
    if "stop" in options and "stop" not in own:
        stops = build(DataSettings, {"stop": options.pop("stop")}, WHAT).stop
    plan = plan_of(session, model, statement.source, options, WHAT)
    its_own = session.catalog.version_of(model.key, statement.model.version).details.get("stop")
    return start.prepared_for(session, plan, parameters, [*(stops or ()), *(its_own or ())]), count_tokens


def _without_model(session: Session, statement: AnalyzeTrainingData, parameters: Parameters) -> Look:
    """By the columns alone: one of the shapes, or the last column as the answer to the others."""
    return _read(session, statement, parameters, None, (), None), None


def _read(
    session: Session,
    statement: AnalyzeTrainingData,
    parameters: Parameters,
    prompt: Prompt | None,
    targets: tuple[str, ...],
    count_tokens: CountTokens | None,
    outputs: Outputs | None = None,
) -> Prepared:
    settings: DataSettings = build(DataSettings, statement.options, WHAT)
    rows = read_rows(session, statement.source, parameters, to_train=True)
    valid = validation_source(settings.validation, statement.source)
    if prompt is None:
        prompt, targets = _guessed(rows, settings)
    return prepare(
        rows,
        prompt,
        targets,
        outputs=outputs,
        valid_rows=None if valid is None else read_rows(session, valid, parameters, to_train=True),
        validation_split=settings.validation_split,
        seed=settings.seed,
        max_length=settings.max_length,
        count_tokens=count_tokens or guessed_tokens,
        stops=settings.stop or (),
    )


def _guessed(rows: pa.Table, settings: DataSettings) -> tuple[Prompt, tuple[str, ...]]:
    columns = rows.column_names
    given = settings.predict is not None or settings.prompt_template is not None
    if not given and is_known(rows):
        return Prompt("{{content}}"), ("answer",)
    left = [name for name in columns if name.lower() not in ASIDE]
    answer = settings.predict or next((n for n in left if n.lower() in ANSWERS), (left or columns)[-1])
    inputs = [name for name in left if name.lower() != answer.lower()]
    if not inputs and settings.prompt_template is None:
        raise DataError(
            f"The training query gives one column, {answer}, to learn from: a prompt and its answer are two.",
            "SELECT both, or role and content, or messages.",
        )
    return Prompt(settings.prompt_template or "\n".join(f"{{{{{name}}}}}" for name in inputs)), (answer,)
