"""Knowledge bases as the catalog keeps them: one row each; their texts are in tables of the user's database.

Called by the store, as `Catalog.knowledge_bases`.  Here too is which names are taken, since a query could not tell a
knowledge base from a model or a view of its name.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlft.catalog import records
from sqlft.catalog.database import CatalogDatabase, insert_row
from sqlft.catalog.records import DEFAULT_PROJECT, KnowledgeBase, ModelKey
from sqlft.errors import AlreadyExists, CatalogError, NotFound, did_you_mean

if TYPE_CHECKING:
    import sqlite3

NAMED_TABLES = {"model": "models", "view": "views", "knowledge base": "knowledge_bases"}
"""What a query names, and the tables of the catalog that hold it."""
PROCESS = uuid.uuid4().hex
"""This process, as a record's state names who inserts."""
SELECT_NAMES = " UNION ".join(f"SELECT folded FROM {table}" for table in NAMED_TABLES.values())
SELECT_PROJECTS = (
    "SELECT folded_project AS folded, project AS name FROM models"
    " UNION SELECT folded_project, project FROM knowledge_bases"
)
SELECT_USERS = (
    "SELECT * FROM (SELECT 'MODEL' AS kind, name, folded_project FROM models"
    " UNION ALL SELECT 'KNOWLEDGE_BASE', name, folded_project FROM knowledge_bases)"
)
"""What keeps a project from being dropped."""
_WHERE = " WHERE folded = ? AND folded_project = ?"


def find_taken(con: sqlite3.Connection, name: str, *kinds: str) -> str | None:
    """The first of these kinds that has something of that name, in any case and project."""
    for kind in kinds:
        if con.execute(f"SELECT 1 FROM {NAMED_TABLES[kind]} WHERE folded = ?", [name.lower()]).fetchone():
            return kind
    return None


def is_abandoned(base: KnowledgeBase) -> bool:
    """Whether its last insert was ended from outside: another process began it, and only one writes a DuckDB file."""
    state = base.state
    return "started_at" in state and "finished_at" not in state and state.get("process") != PROCESS


class KnowledgeBases:
    """The catalog's table of them; `changed` is called when a name comes or goes."""

    def __init__(self, db: CatalogDatabase, changed: Callable[[], None]) -> None:
        self._db, self._changed = db, changed

    def list(self) -> list[KnowledgeBase]:
        """All of them, by project and name."""
        rows = self._db.fetch_rows("SELECT * FROM knowledge_bases ORDER BY folded_project, folded")
        return [_from_row(row) for row in rows]

    def find(self, name: str, project: str | None = None) -> KnowledgeBase | None:
        """That of this name in any case; without a project that of the default one comes first.

        CatalogError if it is in several others, and the project was not written.
        """
        rows = self._db.fetch_rows("SELECT * FROM knowledge_bases WHERE folded = ?", [name.lower()])
        fitting = [base for base in map(_from_row, rows) if project is None or _has_project(base, project)]
        fitting.sort(key=lambda base: (not _has_project(base, DEFAULT_PROJECT), base.key.project))
        if len(fitting) > 1 and not _has_project(fitting[0], DEFAULT_PROJECT):
            raise CatalogError(
                f"There are {len(fitting)} knowledge bases '{name}': {', '.join(str(base.key) for base in fitting)}.",
                f"Say which: write the project before the name, {fitting[0].key}.",
            )
        return fitting[0] if fitting else None

    def add(self, base: KnowledgeBase) -> None:
        """Keep a new one; AlreadyExists if a model, a view or another one has its name."""
        with self._db.write() as con:
            taken = find_taken(con, base.key.name, "model", "view")
            if taken is None and con.execute(f"SELECT 1 FROM knowledge_bases{_WHERE}", _fold(base.key)).fetchone():
                taken = "knowledge base"
            if taken is not None:
                raise AlreadyExists(
                    f"There is a {taken} '{base.key.name}' already.",
                    "Choose another name."
                    if taken != "knowledge base"
                    else f"INSERT INTO {base.key} adds to it; CREATE OR REPLACE KNOWLEDGE_BASE empties it.",
                )
            insert_row(con, "knowledge_bases", _to_columns(base))
        self._changed()

    def update(self, base: KnowledgeBase, *, durable: bool = True) -> None:
        """Keep a changed record; NotFound where somebody dropped it meanwhile."""
        with self._db.write(durable) as con:
            self.get(base.key)
            insert_row(con, "knowledge_bases", _to_columns(base), or_replace=True)

    def get(self, key: ModelKey) -> KnowledgeBase:
        """That of this key; NotFound."""
        base = self.find(*key)
        if base is None:
            near = did_you_mean(key.name, [other.key.name for other in self.list()])
            raise NotFound(f"There is no knowledge base '{key}'.{near}", "SHOW KNOWLEDGE_BASES lists them.")
        return base

    def require_unused(self, model: ModelKey, what: str) -> None:
        """CatalogError if one of them embeds or reranks with this model, which is to be dropped or renamed."""
        for base in self.list():
            names = [name for name in (base.embedding_model, base.reranking_model) if name is not None]
            if any(re.sub(r"\.\d+\Z", "", name).lower() == str(model).lower() for name in names):
                raise CatalogError(
                    f"The model '{model}' cannot be {what}: the knowledge base '{base.key}' uses it.",
                    f"Give it another one first: ALTER KNOWLEDGE_BASE {base.key} USING reranking_model = …, or "
                    f"REFRESH KNOWLEDGE_BASE {base.key} USING rebuild = true, embedding_model = …; or drop it.",
                )

    def drop(self, key: ModelKey) -> None:
        """Forget it; NotFound."""
        with self._db.write() as con:
            self.get(key)
            con.execute(f"DELETE FROM knowledge_bases{_WHERE}", _fold(key))
        self._changed()


def _to_columns(base: KnowledgeBase) -> dict[str, object]:
    folded, folded_project = _fold(base.key)
    names = {"folded": folded, "folded_project": folded_project, "name": base.key.name, "project": base.key.project}
    return names | records.record_to_columns(base)


def _from_row(row: sqlite3.Row) -> KnowledgeBase:
    return records.record_from_row(KnowledgeBase, row, key=ModelKey(row["name"], row["project"]))


def _fold(key: ModelKey) -> tuple[str, str]:
    return key.name.lower(), key.project.lower()


def _has_project(base: KnowledgeBase, project: str) -> bool:
    return base.key.project.lower() == project.lower()
