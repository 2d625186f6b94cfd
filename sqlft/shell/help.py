"""`.help STATEMENT`: what a statement does, its syntax, its options and an example."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlft.errors import NotFound, did_you_mean
from sqlft.exporting import ExportSettings
from sqlft.knowledge.definition import KnowledgeSettings
from sqlft.knowledge.evaluate import KnowledgeEvaluateSettings
from sqlft.options import options_of
from sqlft.session import (
    EngineSettings,
    EvaluateSettings,
    ModelSettings,
    PriceSettings,
    QuerySettings,
    SessionSettings,
    TrainSettings,
)
from sqlft.shell.output.table import fold_text
from sqlft.sql import statements as s
from sqlft.sql.parser import STATEMENTS
from sqlft.statements.knowledge import RefreshSettings
from sqlft.statements.run import RUNNERS
from sqlft.statements.training_data import DataSettings

Kind = type[s.Statement]

EXAMPLES: dict[Kind, str] = {
    s.Plain: "SELECT t.id, m.answer FROM t JOIN my_model m ON m.question = t.text LIMIT 10 USING max_tokens = 50",
    s.CreateModel: """CREATE MODEL my_model PREDICT answer
USING engine = 'local', base = 'smollm2-135m',
      prompt_template = 'Answer briefly. {{question}}'""",
    s.CreateEngine: "CREATE ML_ENGINE my_openai FROM openai USING api_key = env('OPENAI_API_KEY')",
    s.CreateProject: "CREATE PROJECT shop",
    s.DropProject: "DROP PROJECT IF EXISTS shop",
    s.ShowProjects: "SHOW PROJECTS",
    s.UseProject: "USE shop",
    s.DropEngine: "DROP ML_ENGINE IF EXISTS my_openai",
    s.ShowEngines: "SHOW ML_ENGINES",
    s.ShowHandlers: "SHOW HANDLERS WHERE trains",
    s.DescribeEngine: "DESCRIBE ML_ENGINE local",
    s.Finetune: "FINETUNE my_model FROM (SELECT question, answer FROM train) USING tag = 'first'",
    s.Retrain: "RETRAIN my_model FROM (SELECT question, answer FROM train)",
    s.ExplainTraining: "EXPLAIN FINETUNE my_model FROM (SELECT question, answer FROM train)",
    s.AnalyzeTrainingData: "ANALYZE TRAINING DATA FROM (SELECT question, answer FROM train) FOR my_model",
    s.UnloadModel: "UNLOAD ALL MODELS",
    s.CancelModel: "CANCEL MODEL my_model.2",
    s.ResumeModel: "RESUME MODEL my_model.2",
    s.SetActive: "SET active my_model.1",
    s.DropModel: "DROP MODEL my_model.2",
    s.RenameModel: "ALTER MODEL my_model RENAME TO better_name",
    s.ShowModels: "SHOW MODELS WHERE status = 'complete'",
    s.DescribeModel: "DESCRIBE my_model.versions",
    s.Evaluate: "EVALUATE MODEL my_model.1, my_model.2 ON (SELECT question, answer FROM held_out)",
    s.CreateKnowledgeBase: """CREATE KNOWLEDGE_BASE docs
USING embedding_model = minilm, content_columns = ['body'],
      metadata_columns = ['product', 'day'], id_column = 'id'""",
    s.AlterKnowledgeBase: "ALTER KNOWLEDGE_BASE docs USING chunk_size = 500",
    s.DropKnowledgeBase: "DROP KNOWLEDGE_BASE IF EXISTS docs",
    s.DescribeKnowledgeBase: "DESCRIBE KNOWLEDGE_BASE docs",
    s.ShowKnowledgeBases: "SHOW KNOWLEDGE_BASES",
    s.RefreshKnowledgeBase: "REFRESH KNOWLEDGE_BASE docs",
    s.IndexKnowledgeBase: "CREATE INDEX ON KNOWLEDGE_BASE docs",
    s.EvaluateKnowledgeBase: "EVALUATE KNOWLEDGE_BASE docs ON (SELECT question, id FROM judged)",
    s.CreateDatabase: """CREATE DATABASE shop WITH ENGINE = 'sqlite', PARAMETERS = {"path": "shop.db"}""",
    s.DropCache: "DROP CACHE FOR my_model",
    s.CreatePrice: "CREATE PRICE FOR openai 'gpt-4o-mini' USING input = 0.15, output = 0.6",
    s.DropPrice: "DROP PRICE FOR openai 'gpt-4o-mini'",
    s.ShowPrices: "SHOW PRICES",
    s.SetSetting: "SET sqlft_budget_usd = 5",
    s.ResetSetting: "RESET sqlft_budget_usd",
    s.ExportModel: "EXPORT MODEL my_model TO 'my_model_gguf' (FORMAT gguf, VERIFY 5)",
    s.ReportModel: "REPORT MODEL my_model TO 'report.html'",
}
SETTINGS: dict[Kind, type] = {
    s.Plain: QuerySettings,
    s.CreateModel: ModelSettings,
    s.CreateEngine: EngineSettings,
    s.Finetune: TrainSettings,
    s.Retrain: TrainSettings,
    s.AnalyzeTrainingData: DataSettings,
    s.Evaluate: EvaluateSettings,
    s.EvaluateKnowledgeBase: KnowledgeEvaluateSettings,
    s.CreatePrice: PriceSettings,
    s.CreateKnowledgeBase: KnowledgeSettings,
    s.AlterKnowledgeBase: KnowledgeSettings,
    s.RefreshKnowledgeBase: RefreshSettings,
    s.SetSetting: SessionSettings,
    s.ExportModel: ExportSettings,
}
_OF_ENGINES = (s.Plain, s.CreateModel, s.CreateEngine, s.Finetune, s.Retrain)
_EXCEPTIONS = re.compile(r"[;,] (?:NotFound|AlreadyExists|\w+Error)\b[^.]*\.|; its row\.")
"""What a function's docstring says about errors is for its callers."""
QUERY = "SELECT … FROM model [WHERE input = …] [USING …]"
HEADINGS: dict[str, Kind] = {
    **{" ".join(filter(None, key)): kind for key, (_, kind) in STATEMENTS.items() if kind is not s.Plain},
    "DROP CACHE": s.DropCache,
    "SET SQLFT_": s.SetSetting,
    "SELECT": s.Plain,
    "FROM": s.Plain,
    "JOIN": s.Plain,
}
"""Statements by what they begin with."""


def explain_topic(words: str, width: int) -> Iterator[str]:
    """The lines of help on a statement; NotFound with the nearest one there is."""
    heading = re.sub(r"SQLFT_\w+", "SQLFT_", re.sub(r"[^\w ]", " ", words).upper()).split()
    kind = _find_statement(heading)
    of_verb = {k for h, k in HEADINGS.items() if heading and h.split()[0] == heading[0]}
    is_verb_alone = not any(" ".join(heading[:length]) in HEADINGS for length in range(2, len(heading) + 1))
    if kind is None or (is_verb_alone and len(of_verb) > 2):
        near = sorted(h for h in list_topics() if heading and h.split()[0] == heading[0] and h != heading[0])
        if len({HEADINGS[h] for h in near}) == 1:
            yield from _explain_statement(HEADINGS[near[0]], width)
            return
        if near:
            yield f"{heading[0]} what? Type one of:"
            yield from (f"  .help {h}" for h in near)
            return
        guess = did_you_mean(" ".join(heading), [*HEADINGS, *(h.split()[-1] for h in HEADINGS)])
        raise NotFound(f"There is no help on '{words}'.{guess}", f"There is on: {', '.join(list_topics())}.")
    yield from _explain_statement(kind, width)


def list_topics() -> list[str]:
    """One heading for each statement."""
    return list({kind: heading for heading, kind in reversed(HEADINGS.items())}.values())[::-1]


def _find_statement(words: list[str]) -> Kind | None:
    """The statement with the longest heading that the words begin with, or that ends with the only word."""
    for length in range(len(words), 0, -1):
        if (kind := HEADINGS.get(" ".join(words[:length]))) is not None:
            return kind
    if words[:1] == ["DESC"]:
        return _find_statement(["DESCRIBE", *words[1:]])
    ends = {kind for h, kind in HEADINGS.items() if words == h.split()[1:] and not h.startswith("EXPLAIN")}
    for kind in (s.CreateModel, s.CreateKnowledgeBase):
        if kind in ends:
            return kind
    return ends.pop() if len(ends) == 1 else None


def _explain_statement(kind: Kind, width: int) -> Iterator[str]:
    yield from fold_text(_describe_effect(kind), width)
    yield ""
    usage = QUERY if kind is s.Plain else (kind.__doc__ or "").partition(";")[0]
    yield from (f"  {line}" for line in fold_text(usage, width - 2))
    settings = options_of(SETTINGS[kind]) if kind in SETTINGS else {}
    if settings:
        yield ""
        yield "Options, after USING as name = value, …:" if kind is not s.SetSetting else "Settings:"
        space = max(map(len, settings)) + 4
        for name, option in settings.items():
            lines = fold_text(option.doc, max(width - space, 20))
            yield f"  {name.ljust(space - 2)}{lines[0]}"
            yield from (" " * space + line for line in lines[1:])
    if kind in _OF_ENGINES:
        yield "  and those of the engine: DESCRIBE ML_ENGINE local"
    yield ""
    yield "Example:"
    for line in f"{EXAMPLES[kind]};".split("\n"):
        split = line if len(line) <= width - 2 else re.sub(r" (?=USING |FOR |ON \(|PARAMETERS )", "\n", line)
        yield from (f"  {part}" for part in split.split("\n"))


def _describe_effect(kind: Kind) -> str:
    if kind is s.Plain:
        return "Ask a model: it is read like a table with a row for each of its inputs."
    run = RUNNERS[kind]
    text = " ".join((run.__doc__ or "").split("\n\n")[0].split())
    return _EXCEPTIONS.sub(".", text)
