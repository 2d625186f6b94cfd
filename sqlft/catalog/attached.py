"""The catalog beside a database that is attached: its models are read in place, and nothing is ever written there.

Called by the session, for names such as `db.m`.  Out: records whose project is the attached database's name.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sqlft.catalog.records import Engine, KnowledgeBase, Model, ModelKey, Version, VersionKey
from sqlft.catalog.store import Catalog


class AttachedCatalog:
    """What is known of another database's models; CatalogError where a newer or an older sqlft made it."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        self._catalog = Catalog(folder, read_only=True, untouched=True)
        self._stamp = self._read_stamp()

    def names(self) -> frozenset[str]:
        """Its models and views in lower case, as they are now."""
        return self._open().refresh()

    def models(self) -> list[Model]:
        """All of them, whatever project they are in there."""
        return [self._rename(model) for model in self._open().models()]

    def find_model(self, name: str) -> Model | None:
        """The model of that name in any case; that of the default project comes first."""
        found = self._open().find_model(name)
        return None if found is None else self._rename(found)

    def find_knowledge_base(self, name: str) -> KnowledgeBase | None:
        """The knowledge base of that name in any case; its texts are in that database, its models are `db.m`."""
        found = self._open().knowledge_bases.find(name)
        if found is None:
            return None
        embedding, reranking = self._name_model(found.embedding_model), self._name_model(found.reranking_model)
        return replace(found, storage=self.database, embedding_model=embedding, reranking_model=reranking)

    def _name_model(self, name: str | None) -> str | None:
        """A model of a record as it is named here: versions follow, projects of that catalog do not count."""
        match = re.search(r"([^.]+(?:\.\d+)?)\Z", name or "")
        return f"{self.database}.{match[1]}" if match else None

    def versions(self, name: str) -> list[Version]:
        """A model's versions, oldest first."""
        return [self._rename_version(version) for version in self._open().versions(self._find_key(name))]

    def resolve_version(self, name: str, number: int | None) -> Version:
        """Version `number`, without one the active one; NotFound."""
        return self._rename_version(self._open().resolve_version(self._find_key(name), number))

    def engines(self) -> list[Engine]:
        """Its engines, whose options refer to secrets of this machine's user."""
        return self._open().engines()

    def close(self) -> None:
        """Close the file."""
        self._catalog.close()

    def _open(self) -> Catalog:
        """The catalog; opened anew where somebody has written since, who is not seen in a file that is untouched."""
        if (stamp := self._read_stamp()) != self._stamp:
            self._stamp = stamp
            self._catalog.close()
        return self._catalog

    def _read_stamp(self) -> tuple[int, ...]:
        """When the files were written, 0 for one that is not there."""
        files = (self.folder / name for name in ("catalog.sqlite", "catalog.sqlite-wal"))
        return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

    def _find_key(self, name: str) -> ModelKey:
        found = self._catalog.find_model(name)
        return ModelKey(name) if found is None else found.key

    def _rename(self, model: Model) -> Model:
        return replace(model, key=ModelKey(model.key.name, self.database))

    def _rename_version(self, version: Version) -> Version:
        return replace(version, key=VersionKey(ModelKey(version.key.model.name, self.database), version.key.number))
