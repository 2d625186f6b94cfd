"""The catalog: engines, models, their versions, views and the ledger, in one SQLite file.

Nothing is made on disk before the first write.  Threads may share a Catalog, processes may share its folder.
A version that trains and whose worker has died reads as interrupted, whoever asks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.catalog import files, records
from sqlft.catalog.database import CatalogDatabase, format_placeholders, insert_row
from sqlft.catalog.knowledge_bases import SELECT_NAMES, SELECT_PROJECTS, SELECT_USERS, KnowledgeBases, find_taken
from sqlft.catalog.records import (
    DEFAULT_PROJECT,
    RUNNING,
    Engine,
    Evaluation,
    EvaluationRow,
    Model,
    ModelKey,
    TrainingMetric,
    Usage,
    UserPrice,
    Version,
    VersionKey,
    View,
)
from sqlft.errors import AlreadyExists, CatalogError, NotFound, debug, did_you_mean

if TYPE_CHECKING:
    import sqlite3

    import pyarrow as pa

    from sqlft.handler import Progress

BeforeCommit = Callable[[VersionKey, Path], None]
"""Called with a new version's key and its work folder while nobody can see the version yet."""

_SELECT_VERSIONS = "SELECT m.name, m.project, m.folder, v.* FROM versions v JOIN models m ON m.id = v.model_id"
_SELECT_METRICS = "SELECT m.name, m.project, t.*, t.name AS metric FROM metrics t JOIN models m ON m.id = t.model_id"
_VALIDATION_METRIC = re.compile("(?:valid|val|validation|eval)_(.+)")
"""Names under which trainers report what they measured on the validation set."""
_WHERE_MODEL = " WHERE m.folded = ? AND m.folded_project = ?"
_WHERE_PRICE = " WHERE folded_engine = ? AND folded_model = ?"
_VERSION_DEFAULTS: Mapping[str, object] = {
    "status": "queued",
    "activate": True,
    "options": {},
    "findings": (),
    "details": {},
    "progress": {},
}
_EVALUATION_KEY = ("model_id", "number", "metric", "data_digest", "options")


class Catalog:
    """`<folder>/catalog.sqlite` and `<folder>/models/`; read_only refuses writes, untouched leaves no file there."""

    def __init__(self, folder: Path, read_only: bool = False, untouched: bool = False) -> None:
        self.folder = folder.absolute()
        self._db = CatalogDatabase(self.folder / "catalog.sqlite", read_only, untouched)
        self._names: frozenset[str] | None = None
        self.knowledge_bases = KnowledgeBases(self._db, self._forget_names)

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""
        return self._db.read_only

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        self._db.close()

    def require_writing(self) -> None:
        """CatalogError if this catalog was opened read-only."""
        self._db.require_writing()

    def names(self) -> frozenset[str]:
        """Models, views and knowledge bases in lower case, as of the last `refresh` or own change."""
        known = self._names
        return self.refresh() if known is None else known

    def refresh(self) -> frozenset[str]:
        """`names`, read again if another connection or process has changed the catalog."""
        if self._db.has_changed() or self._names is None:
            rows = self._db.fetch_rows(SELECT_NAMES)
            self._names = frozenset(row[0] for row in rows)
        return self._names

    # engines

    def engines(self) -> list[Engine]:
        """All engines, by name."""
        rows = self._db.fetch_rows("SELECT * FROM engines ORDER BY folded")
        return [records.record_from_row(Engine, row) for row in rows]

    def engine(self, name: str) -> Engine:
        """The engine of that name; NotFound."""
        for row in self._db.fetch_rows("SELECT * FROM engines WHERE folded = ?", [name.lower()]):
            return records.record_from_row(Engine, row)
        near = did_you_mean(name, [e.name for e in self.engines()])
        raise NotFound(f"There is no engine '{name}'.{near}", "SHOW ML_ENGINES lists them.")

    def add_engine(self, engine: Engine) -> None:
        """Keep a new engine; AlreadyExists."""
        folded = engine.name.lower()
        with self._db.write() as con:
            if con.execute("SELECT 1 FROM engines WHERE folded = ?", [folded]).fetchone():
                raise AlreadyExists(
                    f"There is an engine '{engine.name}' already.",
                    f"Choose another name, or DROP ML_ENGINE {engine.name} first.",
                )
            insert_row(con, "engines", {"folded": folded, **records.record_to_columns(engine)})

    def drop_engine(self, name: str) -> None:
        """Forget an engine; NotFound, CatalogError while a model uses it."""
        engine = self.engine(name)
        with self._db.write() as con:
            users = [str(model.key) for model in self.models() if model.engine.lower() == name.lower()]
            if users:
                listed = ", ".join(f"'{user}'" for user in users[:5])
                more = f" and {len(users) - 5} more" if len(users) > 5 else ""
                raise CatalogError(
                    f"The engine '{engine.name}' is used by the model{'s'[: len(users) != 1]} {listed}{more}.",
                    " ".join(f"DROP MODEL {user};" for user in users[:3]) + " comes first.",
                )
            con.execute("DELETE FROM engines WHERE folded = ?", [name.lower()])

    # projects

    def projects(self) -> list[str]:
        """All projects by name: the default one, those that were made, and those that have models."""
        used = self._db.fetch_rows(SELECT_PROJECTS)
        created = self._db.fetch_rows("SELECT folded, name FROM projects")
        known = {DEFAULT_PROJECT: DEFAULT_PROJECT} | {row["folded"]: row["name"] for row in (*used, *created)}
        return [known[folded] for folded in sorted(known)]

    def find_project(self, name: str) -> str | None:
        """The project of that name in any case, as it was first written."""
        return next((known for known in self.projects() if known.lower() == name.lower()), None)

    def add_project(self, name: str) -> None:
        """Keep a project without models; AlreadyExists."""
        with self._db.write() as con:
            if (known := self.find_project(name)) is not None:
                raise AlreadyExists(
                    f"There is a project '{known}' already.",
                    f"USE {known} chooses it; CREATE PROJECT IF NOT EXISTS {known} takes it as it is.",
                )
            now = records.to_micros(records.utc_now())
            insert_row(con, "projects", {"folded": name.lower(), "name": name, "created_at": now})

    def drop_project(self, name: str) -> None:
        """Forget a project; NotFound, CatalogError for the default one and while it has models or knowledge bases."""
        with self._db.write() as con:
            known = self.find_project(name)
            if known is None:
                near = did_you_mean(name, self.projects())
                raise NotFound(f"There is no project '{name}'.{near}", "SHOW PROJECTS lists them.")
            if known == DEFAULT_PROJECT:
                raise CatalogError("The default project cannot be dropped.", "DROP MODEL removes its models.")
            used = con.execute(f"{SELECT_USERS} WHERE folded_project = ?", [name.lower()]).fetchall()
            if used:
                listed = " ".join(f"DROP {row['kind']} {known}.{row['name']};" for row in used[:3])
                more = f" (and {len(used) - 3} more)" if len(used) > 3 else ""
                raise CatalogError(
                    f"The project '{known}' has models or knowledge bases.", f"{listed}{more} comes first."
                )
            con.execute("DELETE FROM projects WHERE folded = ?", [name.lower()])

    # prices

    def prices(self) -> list[UserPrice]:
        """All prices that CREATE PRICE gave, by engine and model."""
        rows = self._db.fetch_rows("SELECT * FROM prices ORDER BY folded_engine, folded_model")
        return [records.record_from_row(UserPrice, row) for row in rows]

    def add_price(self, price: UserPrice, or_replace: bool = False) -> None:
        """Keep a price; AlreadyExists unless `or_replace`."""
        key = {"folded_engine": price.engine.lower(), "folded_model": (price.model or "").lower()}
        with self._db.write() as con:
            if not or_replace and con.execute(f"SELECT 1 FROM prices{_WHERE_PRICE}", [*key.values()]).fetchone():
                raise AlreadyExists(
                    f"There is a price for {_format_priced(price.engine, price.model)} already.",
                    "CREATE OR REPLACE PRICE changes it.",
                )
            insert_row(con, "prices", {**key, **records.record_to_columns(price)}, or_replace=True)

    def drop_price(self, engine: str, model: str | None = None) -> None:
        """Forget a price; NotFound."""
        with self._db.write() as con:
            if con.execute(f"DELETE FROM prices{_WHERE_PRICE}", [engine.lower(), (model or "").lower()]).rowcount == 0:
                name = _format_priced(engine, model)
                near = did_you_mean(name, [_format_priced(p.engine, p.model) for p in self.prices()])
                raise NotFound(f"There is no price for {name}.{near}", "SHOW PRICES lists them.")

    # views

    def views(self) -> list[View]:
        """All views over models, by name."""
        rows = self._db.fetch_rows("SELECT * FROM views ORDER BY folded")
        return [records.record_from_row(View, row) for row in rows]

    def view(self, name: str) -> View | None:
        """The view of that name in any case."""
        rows = self._db.fetch_rows("SELECT * FROM views WHERE folded = ?", [name.lower()])
        return records.record_from_row(View, rows[0]) if rows else None

    def add_view(self, view: View, or_replace: bool = False) -> None:
        """Keep a view; AlreadyExists if a model, or unless `or_replace` a view, has its name."""
        folded = view.name.lower()
        with self._db.write() as con:
            if taken := find_taken(con, view.name, "model", "knowledge base", *([] if or_replace else ["view"])):
                raise AlreadyExists(f"There is a {taken} '{view.name}' already.", "Choose another name.")
            insert_row(con, "views", {"folded": folded, **records.record_to_columns(view)}, or_replace=True)
            self._names = None

    def drop_view(self, name: str) -> None:
        """Forget a view; NotFound."""
        with self._db.write() as con:
            if con.execute("DELETE FROM views WHERE folded = ?", [name.lower()]).rowcount == 0:
                near = did_you_mean(name, [v.name for v in self.views()])
                raise NotFound(
                    f"There is no view '{name}' over a model.{near}", "SELECT name FROM sqlft.views lists them."
                )
            self._names = None

    def _forget_names(self) -> None:
        self._names = None

    def table(self, name: str) -> pa.Table:
        """`sqlft.<name>` as it is shown, secrets hidden; NotFound."""
        from sqlft.catalog.tables import read_table

        dead = {v.key: v for v in self.versions() if v.status == "interrupted"} if name == "versions" else {}
        return read_table(self._db, self.folder, name, dead)

    # models

    def models(self) -> list[Model]:
        """All models, by project and name."""
        rows = self._db.fetch_rows("SELECT * FROM models ORDER BY folded_project, folded")
        return [records.model_from_row(row) for row in rows]

    def model(self, key: ModelKey) -> Model:
        """The model of that key; NotFound."""
        return records.model_from_row(self._model_row(key))

    def find_model(self, name: str, project: str | None = None) -> Model | None:
        """The model of that name in any case; without a project that of the default one comes first.

        CatalogError if it is in several others, and the project was not written.
        """
        rows = self._db.fetch_rows(
            "SELECT * FROM models WHERE folded = ? ORDER BY folded_project <> 'mindsdb', folded_project", [name.lower()]
        )
        fitting = [row for row in rows if project is None or row["folded_project"] == project.lower()]
        if len(fitting) > 1 and fitting[0]["folded_project"] != "mindsdb":
            listed = [f"{row['project']}.{row['name']}" for row in fitting]
            many = "two" if len(listed) == 2 else str(len(listed))
            raise CatalogError(
                f"There are {many} models '{fitting[0]['name']}': {', '.join(listed)}.",
                f"Say which: write the project before the name, {listed[0]}.",
            )
        return records.model_from_row(fitting[0]) if fitting else None

    def add_model(
        self, model: Model, *, or_replace: bool = False, before_commit: BeforeCommit | None = None, **first: object
    ) -> Version:
        """Keep a new model and its version 1, whose fields are `first` (status complete by default); AlreadyExists."""
        with self._db.write() as con:
            old = self._find_model_row(model.key)
            if old and or_replace:
                self._delete_model(con, old)
            taken = "model" if old and not or_replace else find_taken(con, model.key.name, "view", "knowledge base")
            if taken:
                advice = f"Choose another name, or DROP {taken.upper()} {model.key.name} first."
                raise AlreadyExists(f"There is a {taken} '{model.key.name}' already.", advice)
            columns = records.record_to_columns(model) | _model_columns(model.key)
            del columns["active"]
            folders = {row[0] for row in con.execute("SELECT folder FROM models")}
            folder = files.choose_folder_name(self.folder / "models", str(model.key), folders)
            insert_row(con, "models", {**columns, "folder": folder, "last_number": 0})
            version = self.new_version(model.key, before_commit=before_commit, **{"status": "complete", **first})
            self._names = None
        if old:
            self._delete_files(old["folder"])
        return version

    def drop_model(self, key: ModelKey) -> None:
        """Forget a model and delete its files; CatalogError while it trains.  What it cost stays in the ledger."""
        self.versions(key)
        with self._db.write() as con:
            row = self._model_row(key)
            self._delete_model(con, row)
            self._names = None
        self._delete_files(row["folder"])

    def rename_model(self, key: ModelKey, to: ModelKey) -> None:
        """Give a model another name; versions, metrics and the ledger follow.  CatalogError while it trains."""
        self.versions(key)
        with self._db.write() as con:
            row = self._model_row(key)
            self._refuse_running(con, row, "renamed")
            other = self._find_model_row(to)
            if (other and other["id"] != row["id"]) or find_taken(con, to.name, "view", "knowledge base"):
                raise AlreadyExists(f"The name '{to.name}' is taken.", "Choose another name.")
            con.execute(
                "UPDATE models SET folded = ?, folded_project = ?, name = ?, project = ? WHERE id = ?",
                [*_model_columns(to).values(), row["id"]],
            )
            con.execute("UPDATE OR REPLACE usage SET name = ?, project = ? WHERE model_id = ?", [*to, row["id"]])
            self._names = None

    # versions

    def versions(self, key: ModelKey | None = None) -> list[Version]:
        """All versions, or a model's, oldest first within a model."""
        where, values = (_WHERE_MODEL, _fold_key(key)) if key else ("", ())
        rows = self._db.fetch_rows(f"{_SELECT_VERSIONS}{where} ORDER BY m.folded_project, m.folded, v.number", values)
        return [self._read_version(row) for row in rows]

    def version(self, key: VersionKey) -> Version:
        """The version of that key; NotFound."""
        for row in self._version_rows(key):
            return self._read_version(row)
        numbers = ", ".join(str(v.key.number) for v in self.versions(self.model(key.model).key))
        raise NotFound(
            f"The model '{key.model.name}' has no version {key.number}.",
            f"It has: {numbers}." if numbers else f"FINETUNE or RETRAIN {key.model.name} makes one.",
        )

    def resolve_version(self, key: ModelKey, number: int | None = None) -> Version:
        """Version `number`; without one the active version, and if there is none the newest; NotFound."""
        model = self.model(key)
        number = model.active if number is None else number
        if number is not None:
            return self.version(VersionKey(model.key, number))
        known = self.versions(model.key)
        if not known:
            raise NotFound(f"The model '{key.name}' has no version.", f"RETRAIN {key.name} FROM … makes one.")
        return known[-1]

    def new_version(self, key: ModelKey, *, before_commit: BeforeCommit | None = None, **values: object) -> Version:
        """Allocate the next number and keep a version with these fields (status queued by default)."""
        with self._db.write() as con:
            row = self._model_row(key)
            new = VersionKey(ModelKey(row["name"], row["project"]), row["last_number"] + 1)
            fields = {**_VERSION_DEFAULTS, "created_at": records.utc_now(), **values}
            columns = records.version_to_columns(self.folder, fields)
            con.execute("UPDATE models SET last_number = ? WHERE id = ?", [new.number, row["id"]])
            insert_row(con, "versions", {"model_id": row["id"], "number": new.number, **columns})
            if fields["status"] == "complete" and fields["activate"]:
                con.execute("UPDATE models SET active = ? WHERE id = ?", [new.number, row["id"]])
            if before_commit:
                before_commit(new, self._work_path(row["folder"], new.number))
        return self.version(new)

    def update_version(self, key: VersionKey, *, when: tuple[str, ...] | None = None, **values: object) -> bool:
        """Set fields of a version, with `when` only in one of these statuses; whether it was so."""
        columns = records.version_to_columns(self.folder, values)
        setting = ", ".join(f'"{name}" = ?' for name in columns)
        guard = f" AND status IN ({format_placeholders(when)})" if when else ""
        with self._db.write(durable=not set(values) <= {"progress", "seconds"}) as con:
            done = con.execute(
                f"UPDATE versions SET {setting} WHERE model_id = ? AND number = ?{guard}",
                [*columns.values(), self._model_row(key.model)["id"], key.number, *(when or ())],
            )
            return done.rowcount == 1

    def publish(self, key: VersionKey, **values: object) -> Version:
        """Make a trained version complete, and active if it asks to be, in one step; CatalogError if it was stopped."""
        with self._db.write() as con:
            fields = {"error": None, "finished_at": records.utc_now(), **values, "status": "complete"}
            if not self.update_version(key, when=RUNNING, **fields):
                raise CatalogError(
                    f"Version {key} was stopped while it was being finished.", f"RESUME MODEL {key} goes on with it."
                )
            con.execute(
                "UPDATE models SET active = ?2 WHERE id = ?1"
                " AND (SELECT activate FROM versions WHERE model_id = ?1 AND number = ?2)",
                [self._model_row(key.model)["id"], key.number],
            )
        return self.version(key)

    def set_active(self, key: VersionKey) -> None:
        """Let a complete version answer for its model."""
        with self._db.write() as con:
            version = self.version(key)
            if version.status != "complete":
                raise CatalogError(
                    f"Version {key} cannot be active, it is {version.status}.", "SHOW MODELS shows which are complete."
                )
            con.execute("UPDATE models SET active = ? WHERE id = ?", [key.number, self._model_row(key.model)["id"]])

    def drop_version(self, key: VersionKey) -> None:
        """Forget a version and delete its files; not the active one, and none that is in use by a training."""
        with self._db.write() as con:
            key = self.version(key).key
            row = self._model_row(key.model)
            if row["active"] == key.number:
                raise CatalogError(
                    f"Version {key} is the active one.",
                    f"SET active to another version first, or DROP MODEL {key.model.name}.",
                )
            for other in self.versions(key.model):
                if other.status in RUNNING and key.number in (other.key.number, other.parent):
                    raise CatalogError(
                        f"Version {other.key} is {other.status}.", f"Wait for it, or CANCEL MODEL {other.key} first."
                    )
            con.execute("DELETE FROM versions WHERE model_id = ? AND number = ?", [row["id"], key.number])
        self._delete_files(f"{row['folder']}/{key.number}")
        self._delete_files(f"{row['folder']}/{key.number}.work")

    # training

    def artifact_folder(self, key: VersionKey) -> Path:
        """Where a version's artifact belongs."""
        return self.folder.joinpath("models", self._model_row(key.model)["folder"], str(key.number))

    def work_folder(self, key: VersionKey) -> Path:
        """Where a version is trained."""
        return self._work_path(self._model_row(key.model)["folder"], key.number)

    def request_cancel(self, key: VersionKey, wanted: bool = True) -> None:
        """Ask the worker of a version to stop."""
        with self._db.write() as con:
            con.execute(
                "UPDATE versions SET cancel_requested = ? WHERE model_id = ? AND number = ?",
                [wanted, self._model_row(key.model)["id"], key.number],
            )

    def cancel_requested(self, key: VersionKey) -> bool:
        """Whether a version is to stop; so is one that is gone."""
        rows = self._version_rows(key)
        return not rows or bool(rows[0]["cancel_requested"])

    def add_progress(self, key: VersionKey, reports: Sequence[Progress], seconds: float | None = None) -> None:
        """Keep what a handler reported, the last of it as how far the version is, and the seconds that it took.

        Numbers of a step that is done again take the place of the old ones.
        """
        now = records.to_micros(records.utc_now())
        with self._db.write(durable=False) as con:
            version = {"model_id": self._model_row(key.model)["id"], "number": key.number}
            for report in reports:
                step = {"step": report.step, "epoch": report.metrics.get("epoch")}
                for name, value in report.metrics.items():
                    valid = _VALIDATION_METRIC.fullmatch(name)
                    kind = {"split": "valid", "name": valid[1]} if valid else {"split": "train", "name": name}
                    if name != "epoch":
                        row = {**version, **step, **kind, "value": value, "created_at": now}
                        insert_row(con, "metrics", row, or_replace=True)
            progress = {**vars(reports[-1]), "metrics": dict(reports[-1].metrics)}
            self.update_version(key, progress=progress)
            if seconds is not None:
                self.update_version(key, seconds=seconds)

    def metrics(self, key: VersionKey | None = None) -> list[TrainingMetric]:
        """What training reported, by model, version and step."""
        where, values = (f"{_WHERE_MODEL} AND t.number = ?", [*_fold_key(key.model), key.number]) if key else ("", [])
        rows = self._db.fetch_rows(
            f"{_SELECT_METRICS}{where} ORDER BY m.folded_project, m.folded, t.number, t.step, t.split, t.name", values
        )
        return [records.metric_from_row(row) for row in rows]

    # the ledger

    def put_usage(self, usage: Usage) -> None:
        """Keep what a statement asked of a version so far; a later call for the same two takes its place."""
        debug(
            "%s: %d rows, %d prompts, %d cached, %d calls, %d errors, %s + %s tokens, cost %s, %.3f s, for %s",
            *(usage.version, usage.rows, usage.distinct_prompts, usage.cached, usage.calls, usage.errors),
            *(usage.input_tokens, usage.output_tokens, usage.cost_usd, usage.seconds, usage.statement),
        )
        model = self._find_model_row(usage.version.model)
        name, project = usage.version.model
        key = {"name": name, "project": project, "number": usage.version.number}
        columns = {**key, "model_id": model and model["id"], **records.record_to_columns(usage)}
        with self._db.write(durable=False) as con:
            insert_row(con, "usage", columns, or_replace=True)

    def usage(self) -> list[Usage]:
        """The ledger, oldest first."""
        rows = self._db.fetch_rows("SELECT * FROM usage ORDER BY created_at, rowid")
        return [records.record_from_row(Usage, row, version=records.version_key_from_row(row)) for row in rows]

    # evaluations

    def put_evaluations(self, evaluations: Sequence[tuple[Evaluation, Sequence[EvaluationRow]]]) -> None:
        """Keep these with their rows, in place of the same metric of the same version on the same data."""
        with self._db.write() as con:
            for evaluation, rows in evaluations:
                model = self._find_model_row(evaluation.version.model)
                if model is None:
                    continue
                key = {"model_id": model["id"], "number": evaluation.version.number}
                columns = {**key, **records.record_to_columns(evaluation)}
                insert_row(con, "evaluations", columns, or_replace=True)
                names = (*_EVALUATION_KEY, *EvaluationRow._fields)
                con.executemany(
                    f"INSERT INTO evaluation_rows ({', '.join(names)}) VALUES ({format_placeholders(names)})",
                    ([*(columns[name] for name in _EVALUATION_KEY), *row] for row in rows),
                )

    def last_question_pace(self, version: VersionKey, data_digest: str) -> tuple[float | None, float | None] | None:
        """Seconds and USD per question of the last evaluation of this version on this data that asked any."""
        rows = self._db.fetch_rows(
            "SELECT e.seconds, e.cost_usd FROM evaluations e JOIN models m ON m.id = e.model_id"
            f"{_WHERE_MODEL} AND e.number = ? AND e.data_digest = ?"
            " AND e.seconds IS NOT NULL ORDER BY e.created_at DESC LIMIT 1",
            [*_fold_key(version.model), version.number, data_digest],
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def accuracies(self) -> dict[VersionKey, float]:
        """Of each version the value of the first metric, of those that are shares, in its latest evaluation."""
        rows = self._db.fetch_rows(
            "SELECT m.name, m.project, e.number, e.value FROM evaluations e JOIN models m ON m.id = e.model_id"
            " WHERE e.is_share AND e.value IS NOT NULL ORDER BY e.created_at, e.place DESC"
        )
        return {records.version_key_from_row(row): row["value"] for row in rows}

    def _find_model_row(self, key: ModelKey) -> sqlite3.Row | None:
        rows = self._db.fetch_rows("SELECT * FROM models WHERE folded = ? AND folded_project = ?", _fold_key(key))
        return rows[0] if rows else None

    def _model_row(self, key: ModelKey) -> sqlite3.Row:
        row = self._find_model_row(key)
        if row is not None:
            return row
        near = did_you_mean(key.name, [m.key.name for m in self.models()])
        raise NotFound(f"There is no model '{key.name}'.{near}", "SHOW MODELS lists them.")

    def _work_path(self, folder: str, number: int) -> Path:
        return self.folder / "models" / folder / f"{number}.work"

    def _read_version(self, row: sqlite3.Row) -> Version:
        version = records.version_from_row(row, self.folder)
        work = self._work_path(row["folder"], version.key.number)
        if version.status not in RUNNING or files.is_locked(work):
            return version
        error = f"{files.summarize_exit(work)}\nRESUME MODEL {version.key} goes on with it."
        finished_at = records.utc_now()
        with suppress(CatalogError, OSError), files.hold_lock(work) as lock:
            if lock is not None or not work.exists():  # else somebody resumes it right now
                self.update_version(
                    version.key, when=RUNNING, status="interrupted", error=error, finished_at=finished_at
                )
            return records.version_from_row(self._version_rows(version.key)[0], self.folder)
        return replace(version, status="interrupted", error=error, finished_at=finished_at)

    def _version_rows(self, key: VersionKey) -> list[sqlite3.Row]:
        """The row of a version, if there is one."""
        where = f"{_WHERE_MODEL} AND v.number = ?"
        return self._db.fetch_rows(f"{_SELECT_VERSIONS}{where}", [*_fold_key(key.model), key.number])

    def _delete_files(self, folder: str) -> None:
        shutil.rmtree(self.folder / "models" / folder, ignore_errors=True)

    def _delete_model(self, con: sqlite3.Connection, row: sqlite3.Row) -> None:
        self._refuse_running(con, row, "dropped")
        con.execute("UPDATE usage SET model_id = NULL WHERE model_id = ?", [row["id"]])
        con.execute("DELETE FROM models WHERE id = ?", [row["id"]])

    def _refuse_running(self, con: sqlite3.Connection, row: sqlite3.Row, what: str) -> None:
        running = con.execute(
            f"SELECT number, status FROM versions WHERE model_id = ? AND status IN ({format_placeholders(RUNNING)})",
            [row["id"], *RUNNING],
        ).fetchone()
        if running:
            name = f"{row['name']}.{running['number']}"
            raise CatalogError(
                f"The model '{row['name']}' cannot be {what} while {name} is {running['status']}.",
                f"Wait for it, or CANCEL MODEL {name} first.",
            )


def _fold_key(key: ModelKey) -> tuple[str, str]:
    return key.name.lower(), key.project.lower()


def _model_columns(key: ModelKey) -> dict[str, object]:
    folded, folded_project = _fold_key(key)
    return {"folded": folded, "folded_project": folded_project, "name": key.name, "project": key.project}


def _format_priced(engine: str, model: str | None) -> str:
    return engine if model is None else f"{engine} '{model}'"
