"""ANALYZE TRAINING DATA: the checks of FINETUNE, and what else is to know of the rows, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import pyarrow as pa

from sqlft.catalog.tables import make_schema
from sqlft.data import Outputs, PreparedData, Prompt, prepare
from sqlft.data.checks.report import DatasetFact, collect_facts
from sqlft.data.checks.structure import CountTokens
from sqlft.data.conversations import Finding
from sqlft.data.formats import PREFERENCE_COLUMNS, is_known_shape
from sqlft.errors import DataError, NotSupported, OptionError
from sqlft.handler import Range, Trainer, estimate_tokens
from sqlft.inference.resolve import (
    build_model_spec,
    build_prompt,
    count_tokens,
    create_handler,
    find_engine,
    find_model,
    read_outputs,
    resolve,
)
from sqlft.options import build_options, drop_options, option_names, pick_options
from sqlft.session import Parameters, Session, TrainSettings
from sqlft.sql.statements import AnalyzeTrainingData, ModelName
from sqlft.training import start
from sqlft.training.plan import parse_validation_source, plan_training
from sqlft.training.row_text import RowText, RowTextSettings, list_row_texts
from sqlft.training.rows import read_rows

STATEMENT = "ANALYZE TRAINING DATA"
ANSWER_COLUMNS = {"answer", "completion", "output", "response", "label", "target"} | {b for b, _ in PREFERENCE_COLUMNS}
OTHER_COLUMNS = {*(worse for _, worse in PREFERENCE_COLUMNS), "tools", "weight", "reasoning"}
"""Columns that are neither the answer nor a part of the prompt."""
CountedRows = tuple[PreparedData, CountTokens | None, Sequence[RowText]]

FINDINGS_SCHEMA = make_schema(
    """severity text, code text, count integer, finding text, examples text[], rows integer[], what_to_do text,
       details text"""
)
SEVERITY_ORDER = {"error": 0, "warning": 1, "info": 2}


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
    """One row per finding, errors first; then what the rows are like and which batch size and epochs suit them."""
    own = pick_options(statement.options, RowTextSettings)
    shown = build_options(RowTextSettings, own, STATEMENT).show_rows
    statement = replace(statement, options=drop_options(statement.options, RowTextSettings))
    texts: Sequence[RowText] = ()
    if statement.model is not None:
        prepared, count_tokens, texts = _prepare_for_model(session, statement, statement.model, parameters, shown)
    elif shown:
        raise OptionError(
            "The text of a row depends on the model's base, and no model is named.",
            f"Name it: {STATEMENT} FROM (…) FOR my_model USING show_rows = {shown}.",
        )
    else:
        prepared, count_tokens = _prepare_rows(session, statement, parameters, None, (), None), None
    findings = sorted(prepared.findings, key=lambda f: SEVERITY_ORDER[f.level])
    rows = [_build_row(f, severity=f.level, rows=list(f.examples), what_to_do=f.what_to_do or None) for f in findings]
    for fact in collect_facts(prepared, count_tokens):
        details = json.dumps(fact.details, ensure_ascii=False) if fact.details else None
        rows.append(_build_row(fact, severity="info", rows=[], details=details))
    rows += [
        {"severity": "info", "code": "row_text", "count": t.tokens, "finding": t.text, "examples": [], "rows": [t.row]}
        for t in texts
    ]
    return pa.Table.from_pylist(rows, FINDINGS_SCHEMA)


def _build_row(item: Finding | DatasetFact, **values: object) -> dict[str, object]:
    shown = {"code": item.code, "count": item.count, "finding": item.message, "examples": list(item.shown)}
    return {**shown, **values}


def _prepare_for_model(
    session: Session, statement: AnalyzeTrainingData, name: ModelName, parameters: Parameters, shown: int
) -> CountedRows:
    """As FINETUNE of the model would see the rows; a model that cannot be trained still has its columns."""
    model = find_model(session, name.key)
    handler = create_handler(session, find_engine(session, model.engine), model.options)
    spec = build_model_spec(type(handler), model.base, model.options, f"Model '{model.key.name}'")

    count = partial(count_tokens, handler, model=spec)
    if not isinstance(handler, Trainer):
        if shown:
            raise NotSupported(
                f"The handler '{model.engine}' cannot train: no row is trained on.", "Leave show_rows out of USING."
            )
        prompt = build_prompt(model)
        outputs = read_outputs(model)
        return _prepare_rows(session, statement, parameters, prompt, model.targets, count, outputs), count, ()
    own = option_names(type(handler).train_options, TrainSettings)
    stops: list[str] | None = None
    options = dict(statement.options)
    if "stop" in options and "stop" not in own:
        stops = build_options(DataSettings, {"stop": options.pop("stop")}, STATEMENT).stop
    plan = plan_training(session, model, statement.source, options, STATEMENT)
    its_own = session.catalog.resolve_version(model.key, name.version).details.get("stop")
    prepared = start.prepare_training_rows(session, plan, parameters, [*(stops or ()), *(its_own or ())])
    if shown:
        plan = replace(plan, start=resolve(session, name.key, name.version).artifact)
    return prepared, count, list_row_texts(plan, prepared, shown)


def _prepare_rows(
    session: Session,
    statement: AnalyzeTrainingData,
    parameters: Parameters,
    prompt: Prompt | None,
    targets: tuple[str, ...],
    count_tokens: CountTokens | None,
    outputs: Outputs | None = None,
) -> PreparedData:
    """Checked by their columns alone where no prompt is given: one of the shapes, or the last column as the answer."""
    settings: DataSettings = build_options(DataSettings, statement.options, STATEMENT)
    rows = read_rows(session, statement.source, parameters, to_train=True)
    valid = parse_validation_source(settings.validation, statement.source)
    if prompt is None:
        prompt, targets = _guess_prompt(rows, settings)
    return prepare(
        rows,
        prompt,
        targets,
        outputs=outputs,
        valid_rows=None if valid is None else read_rows(session, valid, parameters, to_train=True),
        validation_split=settings.validation_split,
        seed=settings.seed,
        max_length=settings.max_length,
        count_tokens=count_tokens or _estimate_tokens,
        stops=settings.stop or (),
    )


def _estimate_tokens(texts: Sequence[str]) -> list[int]:
    return [estimate_tokens(text) for text in texts]


def _guess_prompt(rows: pa.Table, settings: DataSettings) -> tuple[Prompt, tuple[str, ...]]:
    columns = rows.column_names
    is_described = settings.predict is not None or settings.prompt_template is not None
    if not is_described and is_known_shape(rows):
        return Prompt("{{content}}"), ("answer",)
    left = [name for name in columns if name.lower() not in OTHER_COLUMNS]
    answer = settings.predict or next((n for n in left if n.lower() in ANSWER_COLUMNS), (left or columns)[-1])
    inputs = [name for name in left if name.lower() != answer.lower()]
    if not inputs and settings.prompt_template is None:
        raise DataError(
            f"The training query gives one column, {answer}, to learn from: a prompt and its answer are two.",
            "SELECT both, or role and content, or messages.",
        )
    return Prompt(settings.prompt_template or "\n".join(f"{{{{{name}}}}}" for name in inputs)), (answer,)
