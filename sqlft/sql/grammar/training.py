"""FINETUNE, RETRAIN, CANCEL, RESUME, UNLOAD, SET active and EVALUATE."""

from __future__ import annotations

from sqlft.sql import statements as s
from sqlft.sql.cursor import Cursor
from sqlft.sql.grammar.models import MODEL_WORDS, create_model, parse_using


def finetune(c: Cursor) -> s.Statement:
    """FINETUNE [MODEL] name[.N] FROM [db] (query) [USING …]"""
    name = _parse_name(c)
    c.expect("FROM")
    source = c.source()
    return s.Finetune(name, source, parse_using(c))


def retrain(c: Cursor) -> s.Statement:
    """RETRAIN [MODEL] name [FROM [db] (query)] [USING …]"""
    name = _parse_name(c)
    source = c.source() if c.skip("FROM") else None
    if c.at("PREDICT"):
        raise c.error(
            "RETRAIN keeps the column that CREATE MODEL named.",
            "Leave PREDICT out, or make the model again with CREATE OR REPLACE MODEL.",
        )
    return s.Retrain(name, source, parse_using(c))


def explain_training(c: Cursor) -> s.Statement | None:
    """EXPLAIN FINETUNE|RETRAIN|CREATE MODEL …; CREATE of anything else is DuckDB's to explain."""
    c.next()
    method = {"FINETUNE": finetune, "RETRAIN": retrain, "CREATE": create_model}[c.token.word]
    statement = method(c)
    if isinstance(statement, s.CreateModel) and statement.source is None:
        raise c.error(
            "This model is not trained by CREATE MODEL: there is nothing to explain.",
            "Write: EXPLAIN CREATE MODEL name FROM (SELECT …) PREDICT …, or EXPLAIN FINETUNE name FROM (SELECT …)",
        )
    return s.ExplainTraining(statement) if isinstance(statement, s.Finetune | s.Retrain | s.CreateModel) else None


def refuse_explain_analyze(c: Cursor) -> s.Statement | None:
    """EXPLAIN ANALYZE of a training; of a query it is DuckDB's."""
    if c.peek(2).word not in ("FINETUNE", "RETRAIN", "CREATE"):
        return None
    c.next()
    raise c.error(
        "A training cannot be run to be explained.", "EXPLAIN FINETUNE … shows what it would take, without ANALYZE."
    )


def analyze_training_data(c: Cursor) -> s.Statement | None:
    """ANALYZE TRAINING DATA FROM [db] (query) [FOR [MODEL] name[.N]] [USING …]; a table may be called training."""
    if c.peek(2).word != "DATA":
        return None
    c.next(3)
    model = _parse_model_for(c)
    c.expect("FROM")
    source = c.source()
    return s.AnalyzeTrainingData(source, model or _parse_model_for(c), parse_using(c))


def _parse_model_for(c: Cursor) -> s.ModelName | None:
    if not c.skip("FOR"):
        return None
    c.skip_keyword_before_name(*MODEL_WORDS)
    return c.name()


def cancel_model(c: Cursor) -> s.Statement:
    """CANCEL [MODEL] name[.N]"""
    name = _parse_name(c)
    c.expect_end()
    return s.CancelModel(name)


def resume_model(c: Cursor) -> s.Statement:
    """RESUME [MODEL] name[.N] [USING …]"""
    return s.ResumeModel(_parse_name(c), parse_using(c))


def unload_model(c: Cursor) -> s.Statement:
    """UNLOAD [MODEL] name[.N], UNLOAD ALL [MODELS]"""
    ahead = [c.peek(1).word, c.peek(2).word]
    if ahead[0] == "ALL" and ahead[1] in ("", "MODELS", "PREDICTORS"):
        c.next(2)
        if ahead[1]:
            c.next()
        c.expect_end()
        return s.UnloadModel()
    name = _parse_name(c)
    c.expect_end()
    return s.UnloadModel(name)


def set_active(c: Cursor) -> s.Statement:
    """SET active [=] name.N"""
    c.next(2)
    if not c.skip_op("="):
        c.skip("TO")
    c.skip_keyword_before_name(*MODEL_WORDS)
    name = c.name()
    if name.version is None:
        raise c.error("Which version is to be active?", f"Write its number: SET active {name}.2")
    c.expect_end()
    return s.SetActive(name)


def evaluate(c: Cursor) -> s.Statement:
    """EVALUATE metric, … FROM (query), or EVALUATE MODEL name, … ON (query)"""
    c.next()
    if c.skip_keyword_before_name("MODEL", "MODELS"):
        models = [c.name()]
        while c.skip_op(","):
            models.append(c.name())
        if not c.skip("ON"):
            c.expect("FROM")
        source = c.source()
        return s.Evaluate((), source, tuple(models), parse_using(c))
    metrics = [c.identifier("a metric's name")]
    while c.skip_op(","):
        metrics.append(c.identifier("a metric's name"))
    c.expect("FROM")
    source = c.source()
    return s.Evaluate(tuple(metrics), source, (), parse_using(c))


def _parse_name(c: Cursor) -> s.ModelName:
    c.next()
    c.skip_keyword_before_name(*MODEL_WORDS)
    return c.name()
