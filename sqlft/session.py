"""What the statements of one connection share: the catalog, callbacks, options of the core, and what may be spent.

Made by the connection, handed to everything that runs a statement.  A request is let through a limit only if its worst
case fits: what was spent, plus what requests in flight may cost, plus the request itself.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from sqlft.catalog.attached import AttachedCatalog
from sqlft.catalog.files import catalog_folder
from sqlft.catalog.records import DEFAULT_PROJECT, Engine, KnowledgeBase, Model, Version, View
from sqlft.catalog.store import Catalog
from sqlft.errors import BudgetExceeded, CatalogError, NotFound, OptionError, did_you_mean
from sqlft.handler import Alias, Range
from sqlft.sql.statements import Parameters as Parameters


class Exceeded(NamedTuple):
    """Which limit a request would pass, in words."""

    what: str
    next_step: str


@dataclass
class Budget:
    """USD, rows and seconds, None for no limit; shared by all that asks under it, in several threads."""

    usd: float | None = None
    rows: int | None = None
    seconds: float | None = None
    name: str = "max_cost_usd"
    spent: float = 0.0
    reserved: float = 0.0
    asked_rows: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_cost_limit(self) -> bool:
        """Whether there is a limit in USD."""
        return self.usd is not None

    @property
    def is_set(self) -> bool:
        """Whether there is a limit at all."""
        return self.usd is not None or self.rows is not None or self.seconds is not None

    def find_exceeded(self, worst: float | None, rows: int = 1) -> Exceeded | None:
        """What keeps a request from being asked that may cost `worst` USD; None if nothing does."""
        advice = "What was answered is kept: run it again with more"
        if self.rows is not None and self.asked_rows + rows > self.rows:
            return Exceeded(
                f"{self.asked_rows} rows were asked, and max_rows is {self.rows}", f"{advice}, or with fewer rows."
            )
        if (time_exceeded := self.find_time_exceeded()) is not None:
            return time_exceeded
        if self.usd is None or (worst is not None and self.spent + self.reserved + worst <= self.usd):
            return None
        worst_text = "its price is not known" if worst is None else f"it may cost up to {format_dollars(worst)}"
        spent_text = f"{format_dollars(self.spent)} of {self.name} = {format_dollars(self.usd)} are spent"
        reserved_text = f", {format_dollars(self.reserved)} held for requests under way" if self.reserved > 0 else ""
        return Exceeded(
            f"{spent_text}{reserved_text}, and {worst_text}",
            f"{advice}, with a smaller max_tokens, or with fewer rows.",
        )

    def find_time_exceeded(self) -> Exceeded | None:
        """Whether the time is up."""
        if self.seconds is None or time.monotonic() - self.began < self.seconds:
            return None
        advice = "What was answered is kept: run it again with more, or with fewer rows."
        return Exceeded(f"max_seconds = {self.seconds:g} have passed", advice)

    def reserve(self, worst: float | None, rows: int = 1) -> Exceeded | None:
        """Hold `worst` USD back for a request that is about to be asked, or say why not."""
        with self._lock:
            exceeded = self.find_exceeded(worst, rows)
            if exceeded is None:
                self.reserved += worst or 0.0
                self.asked_rows += rows
            return exceeded

    def settle(self, worst: float | None, spent: float | None, rows: int = 0) -> None:
        """What a request cost in place of what was held back for it; `rows` if it was not asked after all."""
        with self._lock:
            self.reserved = max(0.0, self.reserved - (worst or 0.0))
            self.spent += spent or 0.0
            self.asked_rows -= rows


@dataclass
class SessionBudget(Budget):
    """What SET says for a session and its cursors."""

    name: str = "sqlft_budget_usd"
    machine_usd_per_hour: float | None = None

    def set(self, usd: float | None) -> None:
        """Start over with a limit, or with none."""
        with self._lock:
            self.usd, self.spent = usd, 0.0


def reserve_all(limits: Sequence[Budget], worst: float | None, rows: int = 1) -> Exceeded | None:
    """Hold back for a request under every limit, or under none and say which one it would pass."""
    for i, limit in enumerate(limits):
        exceeded = limit.reserve(worst, rows)
        if exceeded is not None:
            for earlier in limits[:i]:
                earlier.settle(worst, None, rows)
            return exceeded
    return None


def budget_exceeded_error(exceeded: Exceeded, asked: str) -> BudgetExceeded:
    """The error for a limit that the next request to `asked` would pass."""
    return BudgetExceeded(f"The next request to {asked} would pass the budget: {exceeded.what}.", exceeded.next_step)


def format_dollars(amount: float) -> str:
    """$1,234.50, $0.0123, $0.0000123: cents, or three digits that tell something."""
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    digits = 2 - math.floor(math.log10(abs(amount)))
    return f"${amount:.{max(2, digits)}f}".rstrip("0").ljust(5, "0")


@dataclass(frozen=True)
class Tick:
    """How far a long statement is: for a progress bar."""

    label: str
    done: float
    total: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None
    """Seconds to go, where whoever works knows them better than done and total do."""


CHOICE_SECONDS = 15.0
"""How long the question that Session.ask_user asks waits for its answer."""
STOP_LETTERS = ("s", "y")
"""First letters of answers that stop a training; '' is no answer, which stops it too."""


MINDSDB_TABLES = ("models", "models_versions", "ml_engines", "handlers", "knowledge_bases")
"""Tables that scripts of MindsDB read, in `mindsdb` or `information_schema`."""


def _ignore(_: object) -> None:
    return None


def _raise_no_table(_: Session, name: str) -> pa.Table:
    raise NotFound(f"There is no table '{name}'.", "SHOW MODELS lists the models.")


@dataclass
class Session:
    """The user's DuckDB connection, the catalog, and where to tell things."""

    con: duckdb.DuckDBPyConnection
    catalog: Catalog
    show_warning: Callable[[str], None] = _ignore
    """Called with one line for the person at the screen: "3 of 20 rows failed …"."""
    show_progress: Callable[[Tick], None] = _ignore
    """Called some times a second while something long runs; may raise KeyboardInterrupt."""
    show_answer_part: Callable[[str], None] | None = None
    """Called with each part of an answer as it is written, where a statement asks for one answer only."""
    show_notice: Callable[[str], None] = _ignore
    """Called with one line of what is good to know: what a training will take."""
    ask_user: Callable[[str, Callable[[], bool]], str] | None = None
    """Asks the person who pressed Ctrl-C while the function given says that there is still something to ask of; the
    first letter of the answer, '' for none.  None where nobody sits at a screen."""
    interrupted: bool = False
    """Set by Connection.interrupt() from another thread; long work looks at it and raises Cancelled."""
    budget: SessionBudget = field(default_factory=SessionBudget)
    """What SET sqlft_… set; cursors share it."""
    unloaders: dict[str, Callable[[], bool]] = field(default_factory=dict)
    """By version digest: how to free what its handler keeps in memory; cursors share it."""
    cleanup: list[Callable[[], object]] = field(default_factory=list)
    """Run before the next statement: what the last one registered."""

    @property
    def machine_usd_per_hour(self) -> float | None:
        """What an hour of this machine costs, as SET sqlft_machine_usd_per_hour set it."""
        return self.budget.machine_usd_per_hour

    temporary_views: dict[str, View] = field(default_factory=dict)
    """Views over models that end with the connection, by lower-case name."""

    mindsdb_tables: set[str] = field(default_factory=set)
    """Tables such as MindsDB's `models` that queries name and DuckDB does not know."""
    system_table: Callable[[Session, str], pa.Table] = _raise_no_table
    """One of MINDSDB_TABLES."""

    attached: dict[str, AttachedCatalog] = field(default_factory=dict)
    """By lower-case name the attached databases with models, as of the last look; cursors share it."""
    told: set[str] = field(default_factory=set)
    """Warnings that are given once."""

    project: str = DEFAULT_PROJECT
    """What USE chose: models without a project in their name are looked up here first, and created here."""

    def find_model(self, name: str, project: str | None = None) -> Model | None:
        """The model that a statement means: without a project that of the one in use, else as the catalog finds it."""
        if project is None and self.project.lower() != DEFAULT_PROJECT:
            return self.catalog.find_model(name, self.project) or self.catalog.find_model(name)
        own = self.catalog.find_model(name, project)
        if own is not None or project is None:
            return own
        other = self.find_attached(project)
        return None if other is None else other.find_model(name)

    def find_knowledge_base(self, name: str, project: str | None = None) -> KnowledgeBase | None:
        """The knowledge base that a statement means, as `find_model` finds models; its `storage` is filled in."""
        known = self.catalog.knowledge_bases
        own = known.find(name, self.project) if project is None and self.project.lower() != DEFAULT_PROJECT else None
        base = own or known.find(name, project)
        if base is None and project is not None:
            other = self.find_attached(project)
            return None if other is None else other.find_knowledge_base(name)
        return base if base is None or base.storage is not None else replace(base, storage=self.home_database)

    def require_own_knowledge_base(self, base: KnowledgeBase) -> None:
        """CatalogError for one of an attached database, which is only read here, and where nothing may be written."""
        self.catalog.require_writing()
        own = self.catalog.knowledge_bases.find(*base.key)
        if own is None or (own.storage or self.home_database) != base.storage:
            raise CatalogError(
                f"The knowledge base '{base.storage}.{base.key.name}' is another database's, and only read here.",
                "Open that database to change it.",
            )

    @cached_property
    def home_database(self) -> str:
        """The name of the database that the catalog lies beside: the one that was opened first."""
        with self.con.cursor() as other_con:  # whose results are nobody's
            row = other_con.execute(
                "SELECT database_name FROM duckdb_databases() WHERE NOT internal ORDER BY database_oid LIMIT 1"
            ).fetchone()
        return str(row[0]) if row else "memory"

    def find_attached(self, database: str) -> AttachedCatalog | None:
        """The catalog beside an attached database; a project of this catalog goes before one of its name."""
        self.refresh_attached()
        other = self.attached.get(database.lower())
        if other is None or self.catalog.find_project(database) is None:
            return other
        self._warn_once(
            f"The project '{database}' goes before the attached database of that name, whose models are not read. "
            "ATTACH it under another name."
        )
        return None

    def refresh_attached(self) -> None:
        """See which databases are attached now, and have models."""
        with self.con.cursor() as other_con:  # whose results are nobody's
            rows = other_con.execute(
                "SELECT database_name, path FROM duckdb_databases() WHERE NOT internal AND path IS NOT NULL"
            ).fetchall()
        there = {name.lower(): (name, catalog_folder(path)) for name, path in rows}
        for name, other in list(self.attached.items()):
            if name not in there or there[name][1] != other.folder:
                self.attached.pop(name).close()
        for lowered, (name, folder) in there.items():
            is_new = folder is not None and folder != self.catalog.folder and lowered not in self.attached
            if is_new and folder is not None and (opened := self._open_attached(name, folder)) is not None:
                self.attached[lowered] = opened

    def _open_attached(self, name: str, folder: Path) -> AttachedCatalog | None:
        if not (folder / "catalog.sqlite").exists():
            return None
        opened = AttachedCatalog(name, folder)
        try:
            opened.names()
        except CatalogError as e:
            opened.close()
            self._warn_once(f"The models of the attached database '{name}' are not read: {e.message} {e.next_step}")
            return None
        return opened

    def _warn_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.show_warning(text)

    def require_own_project(self, name: str) -> None:
        """CatalogError for a project that would have the name of an attached database with models."""
        other = self.find_attached(name)
        if other is not None:
            raise CatalogError(
                f"'{name}' is an attached database with models of its own, which are only read here.",
                f"Choose another project, or open that database: its catalog is {other.folder}.",
            )

    def require_own(self, model: Model) -> None:
        """CatalogError for a model of an attached database, which is only read here."""
        if (other := self._attached_of(model)) is not None:
            raise CatalogError(
                f"{model.key} is a model of the attached database '{other.database}', which is only read here.",
                f"Open that database for it (its catalog is {other.folder}), or take the model over: "
                f"EXPORT MODEL {model.key} TO 'folder', then CREATE MODEL … FROM EXPORT 'folder'.",
            )

    def _attached_of(self, model: Model) -> AttachedCatalog | None:
        """The catalog that a model is in, if it is not the session's own."""
        other = self.attached.get(model.key.project.lower())
        return None if other is None or self.catalog.find_model(*model.key) is not None else other

    def engines(self, model: Model | None = None) -> list[Engine]:
        """The engines that there are, or for a model of an attached database those of its catalog."""
        other = None if model is None else self._attached_of(model)
        return self.catalog.engines() if other is None else other.engines()

    def versions(self, model: Model) -> list[Version]:
        """A model's versions, oldest first."""
        other = self._attached_of(model)
        return self.catalog.versions(model.key) if other is None else other.versions(model.key.name)

    def resolve_version(self, model: Model, number: int | None) -> Version:
        """Version `number` of a model, without one the active one, or if there is none the newest; NotFound."""
        other = self._attached_of(model)
        if other is not None:
            return other.resolve_version(model.key.name, number)
        return self.catalog.resolve_version(model.key, number)

    def names(self) -> frozenset[str]:
        """Models, views and what else of ours is named in queries, in lower case."""
        known = self.catalog.names()
        if self.temporary_views or self.mindsdb_tables:
            known = known | self.temporary_views.keys() | self.mindsdb_tables
        for other in self.attached.values() if self.attached else ():
            known = known | other.names()
        return known

    def view(self, name: str) -> View | None:
        """The view over models of that name; a temporary one goes before."""
        return self.temporary_views.get(name.lower()) or self.catalog.view(name)

    def drop_view(self, name: str) -> None:
        """Forget a view over models."""
        if self.temporary_views.pop(name.lower(), None) is None:
            self.catalog.drop_view(name)

    def unregister_later(self, name: str) -> None:
        """Let go of a registered relation before the next statement."""
        self.cleanup.append(lambda: self.con.unregister(name))


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
        float | None, "no training is started whose estimated cost is more USD; EXPLAIN FINETUNE shows it", Range(0)
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
        "no request is made that could take the statement over this many USD; 0: only cached answers",
        Range(0),
    ] = None
    max_rows: Annotated[int | None, "at most this many prompts are asked; cached answers are free", Range(0)] = None
    max_seconds: Annotated[float | None, "no longer than this many seconds; 0: only cached answers", Range(0)] = None


@dataclass
class EvaluateSettings:
    """EVALUATE … USING, beside the options of its metrics and, with MODEL, those of a query"""

    metrics: Annotated[Any, "with MODEL: the metrics, ['exact_match', 'token_f1']", Alias("metric")] = None
    answer: Annotated[Any, "with MODEL: the column, or columns, of right answers", Alias("actual")] = None
    prediction: Annotated[str | None, "without MODEL: the column of answers to be scored"] = None
    judge: Annotated[str | None, "the model that llm_judge asks"] = None
    forgetting: Annotated[bool, "with MODEL: also score general texts and questions, against the base"] = False
    seed: Annotated[int, "for the intervals, which are drawn by chance"] = 0


LIMIT_OPTIONS = ("max_cost_usd", "max_rows", "max_seconds")


@dataclass
class SessionSettings:
    """SET sqlft_…"""

    budget_usd: Annotated[
        float | None, "no request and no training that could take this session over this many USD", Range(0)
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


BUDGET_SETTING = "sqlft_budget_usd"


CURRENT_SETTING = re.compile(r"\bcurrent_setting\s*\(\s*'(sqlft_\w*)'\s*\)", re.IGNORECASE)


def settings_table(session: Session) -> pa.Table:
    """`sqlft.settings`: what SET sqlft_… set, NULL where it set nothing."""
    names = [f"sqlft_{f.name}" for f in fields(SessionSettings)]
    spent = session.budget.spent if session.budget.has_cost_limit else None
    return pa.table(
        {
            "name": names,
            "value": pa.array([read_setting(session, name) for name in names], pa.float64()),
            "spent_usd": pa.array([spent if name == BUDGET_SETTING else None for name in names], pa.float64()),
        }
    )


def read_setting(session: Session, name: str) -> float | None:
    """One of sqlft's own settings; OptionError for an unknown name."""
    values: dict[str, float | None] = {
        BUDGET_SETTING: session.budget.usd,
        "sqlft_machine_usd_per_hour": session.budget.machine_usd_per_hour,
    }
    check_setting_name(name, set(values))
    return values[name]


def inline_settings(session: Session, query: str) -> str:
    """A query in which current_setting('sqlft_…') has its value."""

    def found(match: re.Match[str]) -> str:
        value = read_setting(session, match[1].lower())
        return "NULL::DOUBLE" if value is None else f"{value!r}::DOUBLE"

    return CURRENT_SETTING.sub(found, query)


def check_setting_name(name: str, known: set[str]) -> None:
    if name not in known:
        raise OptionError(
            f"There is no setting '{name}'.{did_you_mean(name, known)}", f"There are: {', '.join(sorted(known))}."
        )
