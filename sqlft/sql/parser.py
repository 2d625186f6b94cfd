"""Text to statements: a table from keywords to methods; what is not in it is DuckDB's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from sqlft.errors import StatementError
from sqlft.sql import statements as s
from sqlft.sql.cursor import Cursor
from sqlft.sql.grammar import knowledge, listings, models, settings, training
from sqlft.sql.grammar.listings import REFUSED_STATEMENTS
from sqlft.sql.lexer import StatementSpan, Token, iterate_tokens, split_statements, tokenize
from sqlft.sql.passthrough import has_using_tail, is_surely_duckdb, may_be_sqlft, parse_plain

__all__ = ["STATEMENTS", "has_using_tail", "may_be_sqlft", "parse"]

GrammarMethod = Callable[[Cursor], s.Statement | None]
"""Reads a statement from its first word on; None if it turns out to be DuckDB's."""

STATEMENTS: dict[tuple[str, str], tuple[GrammarMethod, type[s.Statement]]] = {
    ("CREATE", "MODEL"): (models.create_model, s.CreateModel),
    ("CREATE", "PREDICTOR"): (models.create_model, s.CreateModel),
    ("CREATE", "ANOMALY"): (models.refuse_anomaly_detection, s.CreateModel),
    ("CREATE", "PROJECT"): (models.create_project, s.CreateProject),
    ("DROP", "PROJECT"): (models.drop_project, s.DropProject),
    ("SHOW", "PROJECTS"): (listings.show_list(s.ShowProjects), s.ShowProjects),
    ("USE", ""): (models.use_project, s.UseProject),
    ("CREATE", "ML_ENGINE"): (models.create_engine, s.CreateEngine),
    ("CREATE", "DATABASE"): (models.create_database, s.CreateDatabase),
    ("CREATE", "PRICE"): (settings.create_price, s.CreatePrice),
    ("DROP", "PRICE"): (settings.drop_price, s.DropPrice),
    ("REPORT", ""): (settings.report_model, s.ReportModel),
    ("SHOW", "PRICES"): (listings.show_list(s.ShowPrices), s.ShowPrices),
    ("SET", "SQLFT_"): (settings.set_setting, s.SetSetting),
    ("RESET", "SQLFT_"): (settings.reset_setting, s.ResetSetting),
    ("DROP", "MODEL"): (models.drop_model, s.DropModel),
    ("DROP", "PREDICTOR"): (models.drop_model, s.DropModel),
    ("DROP", "ML_ENGINE"): (models.drop_engine, s.DropEngine),
    ("DROP", "CACHE"): (models.drop_cache, s.DropCache),
    ("ALTER", "MODEL"): (models.rename_model, s.RenameModel),
    ("ALTER", "PREDICTOR"): (models.rename_model, s.RenameModel),
    ("RENAME", ""): (models.rename_model, s.RenameModel),
    ("EXPORT", "MODEL"): (models.export_model, s.ExportModel),
    ("EXPORT", "PREDICTOR"): (models.export_model, s.ExportModel),
    ("FINETUNE", ""): (training.finetune, s.Finetune),
    ("RETRAIN", ""): (training.retrain, s.Retrain),
    ("EXPLAIN", "FINETUNE"): (training.explain_training, s.ExplainTraining),
    ("EXPLAIN", "RETRAIN"): (training.explain_training, s.ExplainTraining),
    ("EXPLAIN", "CREATE"): (training.explain_training, s.ExplainTraining),
    ("EXPLAIN", "ANALYZE"): (training.refuse_explain_analyze, s.ExplainTraining),
    ("ANALYZE", "TRAINING"): (training.analyze_training_data, s.AnalyzeTrainingData),
    ("CANCEL", ""): (training.cancel_model, s.CancelModel),
    ("RESUME", ""): (training.resume_model, s.ResumeModel),
    ("UNLOAD", ""): (training.unload_model, s.UnloadModel),
    ("EVALUATE", ""): (training.evaluate, s.Evaluate),
    ("EVALUATE", "KNOWLEDGE_BASE"): (knowledge.evaluate_knowledge_base, s.EvaluateKnowledgeBase),
    ("EVALUATE", "KNOWLEDGE"): (knowledge.evaluate_knowledge_base, s.EvaluateKnowledgeBase),
    ("SET", "ACTIVE"): (training.set_active, s.SetActive),
    ("SET", "MODEL_ACTIVE"): (training.set_active, s.SetActive),
    ("SHOW", "MODELS"): (listings.show_models, s.ShowModels),
    ("SHOW", "PREDICTORS"): (listings.show_models, s.ShowModels),
    ("SHOW", "ML_ENGINES"): (listings.show_list(s.ShowEngines), s.ShowEngines),
    ("SHOW", "HANDLERS"): (listings.show_list(s.ShowHandlers), s.ShowHandlers),
    ("DESCRIBE", "MODEL"): (listings.describe_model, s.DescribeModel),
    ("DESCRIBE", "PREDICTOR"): (listings.describe_model, s.DescribeModel),
    ("DESCRIBE", "ML_ENGINE"): (listings.describe_engine, s.DescribeEngine),
    ("CREATE", "KNOWLEDGE_BASE"): (knowledge.create_knowledge_base, s.CreateKnowledgeBase),
    ("CREATE", "KNOWLEDGE"): (knowledge.create_knowledge_base, s.CreateKnowledgeBase),
    ("CREATE", "INDEX"): (knowledge.create_index, s.IndexKnowledgeBase),
    ("ALTER", "KNOWLEDGE_BASE"): (knowledge.alter_knowledge_base, s.AlterKnowledgeBase),
    ("ALTER", "KNOWLEDGE"): (knowledge.alter_knowledge_base, s.AlterKnowledgeBase),
    ("DROP", "KNOWLEDGE_BASE"): (knowledge.drop_knowledge_base, s.DropKnowledgeBase),
    ("DROP", "KNOWLEDGE"): (knowledge.drop_knowledge_base, s.DropKnowledgeBase),
    ("DROP", "INDEX"): (knowledge.drop_index, s.IndexKnowledgeBase),
    ("REFRESH", "KNOWLEDGE_BASE"): (knowledge.refresh_knowledge_base, s.RefreshKnowledgeBase),
    ("REFRESH", "KNOWLEDGE"): (knowledge.refresh_knowledge_base, s.RefreshKnowledgeBase),
    ("DESCRIBE", "KNOWLEDGE_BASE"): (knowledge.describe_knowledge_base, s.DescribeKnowledgeBase),
    ("DESCRIBE", "KNOWLEDGE"): (knowledge.describe_knowledge_base, s.DescribeKnowledgeBase),
    ("SHOW", "KNOWLEDGE_BASES"): (knowledge.show_knowledge_bases, s.ShowKnowledgeBases),
    ("SHOW", "KNOWLEDGE"): (knowledge.show_knowledge_bases, s.ShowKnowledgeBases),
    ("DESCRIBE", ""): (listings.describe, s.DescribeModel),
    ("SHOW", "MODEL"): (listings.describe_model, s.DescribeModel),
    ("SHOW", ""): (listings.describe, s.DescribeModel),
    **REFUSED_STATEMENTS,
}
VERB_SYNONYMS = {"DESC": "DESCRIBE"}
SKIPPED_WORDS = {
    "CREATE": ("OR", "REPLACE"),
    "SHOW": ("FULL", "EXTENDED"),
    "SET": settings.SCOPES,
    "RESET": settings.SCOPES,
}
SPELLED_KINDS = {
    "CREATE": ("MODEL", "PREDICTOR", "ML_ENGINE", "KNOWLEDGE_BASE"),
    "DROP": ("MODEL", "PREDICTOR", "ML_ENGINE", "CACHE", "KNOWLEDGE_BASE"),
    "ALTER": ("MODEL", "KNOWLEDGE_BASE"),
    "REFRESH": ("KNOWLEDGE_BASE",),
    "SET": ("ACTIVE", "MODEL_ACTIVE"),
}
SPELLED_VERBS = ("FINETUNE", "RETRAIN", "EVALUATE")
HEADING_TOKENS = 5
SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str) -> list[s.Statement]:
    """Every statement of the text; StatementError where one of ours is wrong, never for DuckDB's."""
    spans = split_statements(text)[::-1]
    statements: list[s.Statement] = []
    while spans:
        span = spans.pop()
        if is_surely_duckdb(text, span.start):
            statements.append(parse_plain(text, *span))
        else:
            statements.append(_parse_statement(text, span, spans))
    return statements


def _parse_statement(text: str, span: StatementSpan, following: list[StatementSpan]) -> s.Statement:
    heading = _read_heading(text, span)
    entry = _find_entry(heading)
    if entry is None:
        _check_spelling(text, heading)
        return parse_plain(text, *span)
    method, kind = entry
    tokens = _extend_over_semicolons(text, tokenize(text, *span), following)
    statement = method(Cursor(text, tokens, usage=_format_usage(kind)))
    if statement is None:
        return parse_plain(text, *span)
    _check_characters(text, tokens)
    start, end = tokens[0].start, tokens[-1].end
    return replace(statement, text=text[start:end], offset=start)


def _read_heading(text: str, span: StatementSpan) -> list[Token]:
    """The first few tokens, also of a text that goes wrong later."""
    tokens: list[Token] = []
    try:
        for token in iterate_tokens(text, *span):
            tokens.append(token)
            if len(tokens) == HEADING_TOKENS:
                break
    except StatementError:
        pass
    return tokens


def _find_entry(heading: list[Token]) -> tuple[GrammarMethod, type[s.Statement]] | None:
    verb, kind = _find_keywords(heading)
    if verb in ("SET", "RESET") and kind.startswith("SQLFT_"):
        kind = "SQLFT_"
    return STATEMENTS.get((verb, kind.upper())) or STATEMENTS.get((verb, ""))


def _find_keywords(heading: list[Token]) -> tuple[str, str]:
    words = [t.word for t in heading] or [""]
    verb = VERB_SYNONYMS.get(words[0], words[0])
    rest = (w for w in words[1:] if w not in SKIPPED_WORDS.get(verb, ()))
    return verb, next(rest, "")


def _extend_over_semicolons(text: str, tokens: list[Token], following: list[StatementSpan]) -> list[Token]:
    """The statement's tokens, with those behind a `;` that stands inside a query's parentheses."""
    more, depth, ahead = list(tokens), _count_open_parentheses(tokens), 0
    try:
        while depth > 0 and ahead < len(following):
            ahead += 1
            further = tokenize(text, more[-1].end, following[-ahead].end)
            more += further
            depth += _count_open_parentheses(further)
    except StatementError:
        return tokens
    if depth > 0:
        return tokens
    del following[len(following) - ahead :]
    return more


def _count_open_parentheses(tokens: list[Token]) -> int:
    return sum((t.text == "(") - (t.text == ")") for t in tokens if t.kind == "op")


def _check_spelling(text: str, heading: list[Token]) -> None:
    """CREATE MODLE, FINETUN: DuckDB's own error would say less."""
    verb, kind = _find_keywords(heading)
    word, known = (kind, SPELLED_KINDS[verb]) if verb in SPELLED_KINDS else (verb, SPELLED_VERBS)
    for near in get_close_matches(word, known, n=1, cutoff=0.8):
        token = next(t for t in heading if t.word == word)
        _, meant = STATEMENTS[(verb, near) if verb in SPELLED_KINDS else (near, "")]
        message = f"Found '{token.text}'. Did you mean '{near}'?"
        raise StatementError(message, text, token.start, f"Write: {_format_usage(meant)}")


def _check_characters(text: str, tokens: list[Token]) -> None:
    for token in tokens:
        if not token.text.isascii() and SURROGATE.search(token.text):
            raise StatementError("This is not valid Unicode text.", text, token.start, "Remove the broken characters.")


def _format_usage(kind: type[s.Statement]) -> str:
    return (kind.__doc__ or "").partition(";")[0]
