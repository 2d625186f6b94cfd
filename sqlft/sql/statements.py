"""The statements, a frozen dataclass each; `parser` makes them and `sqlft.statements` runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlft.catalog.records import ModelKey
from sqlft.options import Env as Env

DEFAULT_PROJECT = "mindsdb"


class Parameter(NamedTuple):
    """A prepared parameter as a value: its position from 1 (`?`, `$1`) or its name (`$name`)."""

    key: int | str


class ModelName(NamedTuple):
    """[project.]name[.version]; project None means it was not written."""

    name: str
    version: int | None = None
    project: str | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.project, self.name, self.version) if part is not None)

    @property
    def key(self) -> ModelKey | str:
        """The model, as `resolve` takes it: a bare name where no project was written."""
        return self.name if self.project is None else ModelKey(self.name, self.project)


class TypedColumn(NamedTuple):
    """A column of PREDICT (…): its type is the text as typed."""

    name: str
    type: str
    required: bool = False


class RowSource(NamedTuple):
    """FROM [database] (query): where training rows come from.  The query is the user's text, untouched."""

    query: str
    database: str | None = None
    offset: int = 0
    """Where the query's text starts in the whole text."""
    parameters: tuple[Parameter, ...] = ()
    """The prepared parameters in it, in order; a `?` by its position in the whole statement."""


class ModelOrigin(NamedTuple):
    """FROM ADAPTER|GGUF|EXPORT 'path': files that others made, or another catalog's EXPORT MODEL."""

    kind: str
    path: str


Options = Mapping[str, object]
"""USING's keys, nested ones as mappings; values are None, bool, int, float, str, list, dict, Parameter, Env, Source."""


Parameters = Sequence[object] | Mapping[str, object] | None
"""Values of a statement's prepared parameters."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement: its own text, and where that starts in the whole text."""

    text: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Plain(Statement):
    """DuckDB's own SQL, or a query that may read models; `using` is the options of a trailing USING k = v.

    `sql` is `text` without that tail.
    """

    sql: str
    using: Options = field(default_factory=dict)


@dataclass(frozen=True)
class ShowList(Statement):
    """A statement that lists things, some of them where LIKE or WHERE says so."""

    like: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class CreateEngine(Statement):
    """CREATE ML_ENGINE [IF NOT EXISTS] name FROM handler [USING …]"""

    name: str
    handler: str
    options: Options = field(default_factory=dict)
    if_not_exists: bool = False


@dataclass(frozen=True)
class CreateProject(Statement):
    """CREATE PROJECT [IF NOT EXISTS] name"""

    name: str
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropProject(Statement):
    """DROP PROJECT [IF EXISTS] name"""

    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class ShowProjects(ShowList):
    """SHOW PROJECTS [LIKE pattern] [WHERE condition]"""


@dataclass(frozen=True)
class UseProject(Statement):
    """USE name"""

    name: str


@dataclass(frozen=True)
class DropEngine(Statement):
    """DROP ML_ENGINE [IF EXISTS] name"""

    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class ShowEngines(ShowList):
    """SHOW ML_ENGINES [LIKE pattern] [WHERE condition]"""


@dataclass(frozen=True)
class ShowHandlers(ShowList):
    """SHOW HANDLERS [LIKE pattern] [WHERE condition]"""


@dataclass(frozen=True)
class DescribeEngine(Statement):
    """DESCRIBE ML_ENGINE name"""

    name: str


@dataclass(frozen=True)
class CreateModel(Statement):
    """CREATE [OR REPLACE] MODEL [IF NOT EXISTS] name [FROM [db] (query)] PREDICT a [AS b]|a, b|(a type, …) [USING …], \
CREATE MODEL name FROM ADAPTER|GGUF|EXPORT 'path' [PREDICT a] [USING …]"""

    name: ModelName
    predict: str
    alias: str | None = None
    source: RowSource | None = None
    options: Options = field(default_factory=dict)
    or_replace: bool = False
    if_not_exists: bool = False
    columns: tuple[TypedColumn, ...] = ()
    """Of PREDICT (…); `predict` is the first one's name."""
    origin: ModelOrigin | None = None
    """With it `predict` may be empty: the files say it, or it is `answer`."""


@dataclass(frozen=True)
class Finetune(Statement):
    """FINETUNE [MODEL] name[.N] FROM [db] (query)|table [USING …]"""

    name: ModelName
    source: RowSource
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Retrain(Statement):
    """RETRAIN [MODEL] name [FROM [db] (query)|table] [USING …]"""

    name: ModelName
    source: RowSource | None = None
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class ExplainTraining(Statement):
    """EXPLAIN FINETUNE …, EXPLAIN RETRAIN …, EXPLAIN CREATE MODEL name FROM …"""

    training: Finetune | Retrain | CreateModel


@dataclass(frozen=True)
class AnalyzeTrainingData(Statement):
    """ANALYZE TRAINING DATA FROM [db] (query)|table [FOR [MODEL] name[.N]] [USING …]"""

    source: RowSource
    model: ModelName | None = None
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class UnloadModel(Statement):
    """UNLOAD MODEL name[.N], UNLOAD ALL MODELS; name None is all of them"""

    name: ModelName | None = None


@dataclass(frozen=True)
class CancelModel(Statement):
    """CANCEL MODEL name.N"""

    name: ModelName


@dataclass(frozen=True)
class ResumeModel(Statement):
    """RESUME MODEL name.N [USING wait = …]"""

    name: ModelName
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class SetActive(Statement):
    """SET active name.N, SET MODEL_ACTIVE = name.N"""

    name: ModelName


@dataclass(frozen=True)
class DropModel(Statement):
    """DROP MODEL|PREDICTOR [IF EXISTS] name[.N]"""

    name: ModelName
    if_exists: bool = False


@dataclass(frozen=True)
class RenameModel(Statement):
    """ALTER MODEL a RENAME TO b, RENAME MODEL a TO b"""

    name: ModelName
    to: ModelName


@dataclass(frozen=True)
class ShowModels(ShowList):
    """SHOW MODELS|PREDICTORS [FROM|IN project] [LIKE pattern] [WHERE condition]"""

    project: str | None = None


@dataclass(frozen=True)
class DescribeModel(Statement):
    """DESCRIBE [MODEL] name[.N][.attribute]; without MODEL it is DuckDB's unless a model has that name."""

    name: ModelName
    attribute: str | None = None
    explicit: bool = True
    """Whether the word MODEL was written."""
    or_name: ModelName | None = None
    """For `a.b`, read above as model a's attribute b: what it means if there is a project a instead."""


@dataclass(frozen=True)
class Evaluate(Statement):
    """EVALUATE metric[, …] FROM (query)|table [USING …], EVALUATE MODEL name[.N][, …] ON (query)|table [USING …]"""

    metrics: tuple[str, ...]
    source: RowSource
    models: tuple[ModelName, ...] = ()
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateKnowledgeBase(Statement):
    """EVALUATE KNOWLEDGE_BASE name[, …] [ON (query)|table] [USING …]"""

    names: tuple[ModelName, ...]
    source: RowSource | None = None
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class CreateDatabase(Statement):
    """CREATE [OR REPLACE] DATABASE [IF NOT EXISTS] name [WITH] ENGINE = 'x' [, PARAMETERS = {…}]"""

    name: str
    engine: str
    parameters: Options = field(default_factory=dict)
    if_not_exists: bool = False
    or_replace: bool = False


@dataclass(frozen=True)
class DropCache(Statement):
    """DROP CACHE [FOR name[.N]]"""

    name: ModelName | None = None


@dataclass(frozen=True)
class CreatePrice(Statement):
    """CREATE [OR REPLACE] PRICE [IF NOT EXISTS] FOR engine ['model'] USING input = …, output = …"""

    engine: str
    model: str | None = None
    options: Options = field(default_factory=dict)
    or_replace: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropPrice(Statement):
    """DROP PRICE [IF EXISTS] FOR engine ['model']"""

    engine: str
    model: str | None = None
    if_exists: bool = False


@dataclass(frozen=True)
class ShowPrices(ShowList):
    """SHOW PRICES [LIKE pattern] [WHERE condition]"""


@dataclass(frozen=True)
class SetSetting(Statement):
    """SET sqlft_budget_usd = 5, SET sqlft_machine_usd_per_hour = 0.475"""

    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class ResetSetting(Statement):
    """RESET sqlft_budget_usd"""

    name: str


@dataclass(frozen=True)
class ReportModel(Statement):
    """REPORT MODEL name [TO 'file.html']"""

    name: ModelName
    path: str | None = None


@dataclass(frozen=True)
class ExportModel(Statement):
    """EXPORT MODEL name[.N] TO 'folder' [(FORMAT format, VERIFY n, …)] [USING …]"""

    name: ModelName
    path: str | Parameter
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class CreateKnowledgeBase(Statement):
    """CREATE [OR REPLACE] KNOWLEDGE_BASE [IF NOT EXISTS] name [FROM [db] (query)|table] [USING …]"""

    name: ModelName
    source: RowSource | None = None
    options: Options = field(default_factory=dict)
    or_replace: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True)
class AlterKnowledgeBase(Statement):
    """ALTER KNOWLEDGE_BASE name USING key = value, …"""

    name: ModelName
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class DropKnowledgeBase(Statement):
    """DROP KNOWLEDGE_BASE [IF EXISTS] name"""

    name: ModelName
    if_exists: bool = False


@dataclass(frozen=True)
class DescribeKnowledgeBase(Statement):
    """DESCRIBE KNOWLEDGE_BASE name"""

    name: ModelName


@dataclass(frozen=True)
class ShowKnowledgeBases(ShowList):
    """SHOW KNOWLEDGE_BASES [LIKE pattern] [WHERE condition]"""


@dataclass(frozen=True)
class RefreshKnowledgeBase(Statement):
    """REFRESH KNOWLEDGE_BASE name [USING …]"""

    name: ModelName
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class IndexKnowledgeBase(Statement):
    """CREATE INDEX ON KNOWLEDGE_BASE name [WITH (key = value, …)], DROP INDEX ON KNOWLEDGE_BASE name"""

    name: ModelName
    options: Options = field(default_factory=dict)
    drops: bool = False
