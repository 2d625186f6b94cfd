"""Which function runs which statement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pyarrow as pa

from sqlft import exporting, report
from sqlft.errors import StatementError
from sqlft.session import Parameters, Session
from sqlft.sql import statements as s
from sqlft.statements import databases, describe, evaluation, knowledge, models, prices, show, training, training_data

StatementRunner = Callable[[Session, Any, Parameters], pa.Table | None]
S = TypeVar("S", bound=s.Statement)

RUNNERS: Mapping[type[s.Statement], StatementRunner] = {
    s.CreateEngine: models.run_create_engine,
    s.DropEngine: models.run_drop_engine,
    s.CreateProject: databases.run_create_project,
    s.DropProject: databases.run_drop_project,
    s.ShowProjects: show.run_show_projects,
    s.UseProject: databases.run_use_project,
    s.ShowEngines: show.run_show_engines,
    s.ShowHandlers: show.run_show_handlers,
    s.DescribeEngine: describe.run_describe_engine,
    s.CreateModel: models.run_create_model,
    s.Finetune: training.run_finetune,
    s.Retrain: training.run_retrain,
    s.ExplainTraining: training.run_explain_training,
    s.AnalyzeTrainingData: training_data.run_analyze_training_data,
    s.CancelModel: training.run_cancel,
    s.ResumeModel: training.run_resume,
    s.UnloadModel: models.run_unload,
    s.SetActive: models.run_set_active,
    s.DropModel: models.run_drop_model,
    s.DropCache: models.run_drop_cache,
    s.RenameModel: models.run_rename_model,
    s.ShowModels: show.run_show_models,
    s.DescribeModel: describe.run_describe_model,
    s.CreateDatabase: databases.run_create_database,
    s.Evaluate: evaluation.run_evaluate,
    s.EvaluateKnowledgeBase: evaluation.run_evaluate_knowledge_base,
    s.ReportModel: report.run_report_model,
    s.ExportModel: exporting.run_export_model,
    s.CreateKnowledgeBase: knowledge.run_create_knowledge_base,
    s.AlterKnowledgeBase: knowledge.run_alter_knowledge_base,
    s.DropKnowledgeBase: knowledge.run_drop_knowledge_base,
    s.DescribeKnowledgeBase: describe.run_describe_knowledge_base,
    s.ShowKnowledgeBases: show.run_show_knowledge_bases,
    s.RefreshKnowledgeBase: knowledge.run_refresh_knowledge_base,
    s.IndexKnowledgeBase: knowledge.run_index_knowledge_base,
    s.CreatePrice: prices.run_create_price,
    s.DropPrice: prices.run_drop_price,
    s.ShowPrices: prices.run_show_prices,
    s.SetSetting: prices.run_set_setting,
    s.ResetSetting: prices.run_reset_setting,
}


def run_statement(session: Session, statement: s.Statement, parameters: Parameters) -> pa.Table | None:
    """Run one of our own statements; its result, if it has one."""
    return RUNNERS[type(statement)](session, bind_parameters(statement, parameters), parameters)


def bind_parameters(statement: S, parameters: Parameters) -> S:
    """The statement with the values of its options' parameters in place."""
    changed: dict[str, Any] = {
        f.name: _bind_value(getattr(statement, f.name), parameters, statement)
        for f in dataclasses.fields(statement)
        if f.name in ("options", "parameters", "training", "path")
    }
    return dataclasses.replace(statement, **changed) if changed else statement


def _bind_value(value: object, parameters: Parameters, statement: s.Statement) -> object:
    if isinstance(value, s.Statement):
        return bind_parameters(value, parameters)
    if isinstance(value, s.Parameter):
        try:
            if isinstance(parameters, Mapping):
                return parameters[str(value.key)]
            return (parameters or [])[int(value.key) - 1]
        except (KeyError, IndexError, ValueError):
            raise StatementError(
                f"The parameter {value.key} has no value.", statement.text, 0, "Give one value for each parameter."
            ) from None
    if isinstance(value, Mapping):
        return {k: _bind_value(v, parameters, statement) for k, v in value.items()}
    if isinstance(value, list):
        return [_bind_value(v, parameters, statement) for v in value]
    return value
