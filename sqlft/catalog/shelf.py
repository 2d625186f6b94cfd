"""The part of the catalog that has names and no versions: engines, projects, prices, views; and the names taken."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.catalog import rows
from sqlft.catalog.database import Database
from sqlft.catalog.records import DEFAULT_PROJECT, Engine, OwnPrice, View
from sqlft.errors import AlreadyExists, CatalogError, NotFound, did_you_mean

if TYPE_CHECKING:
    import sqlite3

_OF_PRICE = " WHERE folded_engine = ? AND folded_model = ?"


class Shelf:
    """`<folder>/catalog.sqlite`; read_only refuses every write."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder = folder.absolute()
        self._db = Database(self.folder / "catalog.sqlite", read_only)
        self._names: frozenset[str] | None = None

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""
        return self._db.read_only

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        self._db.close()

    def require_writing(self) -> None:
        """CatalogError if this catalog was opened read-only."""
        self._db.require_writing()

    def names(self) -> frozenset[str]:
        """Models and views in lower case, as of the last `refresh` or own change."""
        known = self._names
        return self.refresh() if known is None else known

    def refresh(self) -> frozenset[str]:
        """`names` anew, if another connection or process has changed the catalog."""
        if self._db.changed() or self._names is None:
            found = self._db.rows("SELECT folded FROM models UNION SELECT folded FROM views")
            self._names = frozenset(row[0] for row in found)
        return self._names

    # engines

    def engines(self) -> list[Engine]:
        """All engines, by name."""
        return [rows.engine(row) for row in self._db.rows("SELECT * FROM engines ORDER BY folded")]

    def engine(self, name: str) -> Engine:
        """The engine of that name; NotFound."""
        for row in self._db.rows("SELECT * FROM engines WHERE folded = ?", [name.lower()]):
            return rows.engine(row)
        near = did_you_mean(name, [e.name for e in self.engines()])
        raise NotFound(f"There is no engine '{name}'.{near}", "SHOW ML_ENGINES lists them.")

    def add_engine(self, engine: Engine) -> None:
        """Keep a new engine; AlreadyExists."""
        created_at = rows.micros(engine.created_at or rows.now())
        values = (engine.name.lower(), engine.name, engine.handler, rows.text(engine.options), created_at)
        with self._db.write() as con:
            if con.execute("SELECT 1 FROM engines WHERE folded = ?", values[:1]).fetchone():
                raise AlreadyExists(
                    f"There is an engine '{engine.name}' already.",
                    f"Choose another name, or DROP ML_ENGINE {engine.name} first.",
                )
            con.execute("INSERT INTO engines VALUES (?, ?, ?, ?, ?)", values)

    def drop_engine(self, name: str) -> None:
        """Forget an engine; NotFound, CatalogError while a model uses it."""
        engine = self.engine(name)
        with self._db.write() as con:
            for model, used in con.execute("SELECT name, engine FROM models"):
                if used.lower() == name.lower():
                    raise CatalogError(
                        f"The model '{model}' uses the engine '{engine.name}'.", f"DROP MODEL {model} first."
                    )
            con.execute("DELETE FROM engines WHERE folded = ?", [name.lower()])

    # projects

    def projects(self) -> list[str]:
        """All projects by name: the default one, those that were made, and those that have models."""
        found = self._db.rows("SELECT folded_project AS folded, project AS name FROM models")
        made = self._db.rows("SELECT folded, name FROM projects")
        known = {DEFAULT_PROJECT: DEFAULT_PROJECT} | {row["folded"]: row["name"] for row in (*found, *made)}
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
            con.execute("INSERT INTO projects VALUES (?, ?, ?)", [name.lower(), name, rows.micros(rows.now())])

    def drop_project(self, name: str) -> None:
        """Forget a project; NotFound, CatalogError for the default one and while it has models."""
        with self._db.write() as con:
            known = self.find_project(name)
            if known is None:
                near = did_you_mean(name, self.projects())
                raise NotFound(f"There is no project '{name}'.{near}", "SHOW PROJECTS lists them.")
            if known == DEFAULT_PROJECT:
                raise CatalogError("The default project cannot be dropped.", "DROP MODEL removes its models.")
            models = con.execute("SELECT name FROM models WHERE folded_project = ?", [name.lower()]).fetchall()
            if models:
                listed = " ".join(f"DROP MODEL {known}.{row['name']};" for row in models[:3])
                more = f" (and {len(models) - 3} more)" if len(models) > 3 else ""
                raise CatalogError(f"The project '{known}' has models.", f"{listed}{more} comes first.")
            con.execute("DELETE FROM projects WHERE folded = ?", [name.lower()])

    # prices

    def prices(self) -> list[OwnPrice]:
        """All prices that CREATE PRICE gave, by engine and model."""
        found = self._db.rows("SELECT * FROM prices ORDER BY folded_engine, folded_model")
        return [rows.own_price(row) for row in found]

    def add_price(self, price: OwnPrice, or_replace: bool = False) -> None:
        """Keep a price; AlreadyExists unless `or_replace`."""
        key = [price.engine.lower(), (price.model or "").lower()]
        values = [getattr(price, f.name) for f in fields(price) if f.name != "created_at"]
        with self._db.write() as con:
            if not or_replace and con.execute(f"SELECT 1 FROM prices{_OF_PRICE}", key).fetchone():
                raise AlreadyExists(
                    f"There is a price for {_priced(price.engine, price.model)} already.",
                    "CREATE OR REPLACE PRICE changes it.",
                )
            created_at = rows.micros(price.created_at or rows.now())
            con.execute(f"INSERT OR REPLACE INTO prices VALUES ({', '.join('?' * 10)})", [*key, *values, created_at])

    def drop_price(self, engine: str, model: str | None = None) -> None:
        """Forget a price; NotFound."""
        with self._db.write() as con:
            if con.execute(f"DELETE FROM prices{_OF_PRICE}", [engine.lower(), (model or "").lower()]).rowcount == 0:
                near = did_you_mean(_priced(engine, model), [_priced(p.engine, p.model) for p in self.prices()])
                raise NotFound(f"There is no price for {_priced(engine, model)}.{near}", "SHOW PRICES lists them.")

    # views

    def views(self) -> list[View]:
        """All views over models, by name."""
        return [rows.view(row) for row in self._db.rows("SELECT * FROM views ORDER BY folded")]

    def view(self, name: str) -> View | None:
        """The view of that name in any case."""
        found = self._db.rows("SELECT * FROM views WHERE folded = ?", [name.lower()])
        return rows.view(found[0]) if found else None

    def add_view(self, view: View, or_replace: bool = False) -> None:
        """Keep a view; AlreadyExists if a model, or unless `or_replace` a view, has its name."""
        folded = view.name.lower()
        with self._db.write() as con:
            model = con.execute("SELECT 1 FROM models WHERE folded = ?", [folded]).fetchone()
            if model or (not or_replace and self._taken_by_view(con, view.name)):
                what = "model" if model else "view"
                raise AlreadyExists(f"There is a {what} '{view.name}' already.", "Choose another name.")
            con.execute(
                'INSERT OR REPLACE INTO views (folded, name, sql, columns, "schema", project)'
                " VALUES (?, ?, ?, ?, ?, ?)",
                [folded, view.name, view.sql, rows.text(list(view.columns)), view.schema, view.project],
            )
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

    def _taken_by_view(self, con: sqlite3.Connection, name: str) -> bool:
        return con.execute("SELECT 1 FROM views WHERE folded = ?", [name.lower()]).fetchone() is not None


def _priced(engine: str, model: str | None) -> str:
    return engine if model is None else f"{engine} '{model}'"
