"""The catalog of a database in memory: a folder for its owner only, that is gone when the database is."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from sqlft.catalog.files import alive, works
from sqlft.catalog.store import Catalog
from sqlft.errors import SqlftError
from sqlft.log import warn
from sqlft.secrets import references

_attached: weakref.WeakKeyDictionary[Any, Catalog] = weakref.WeakKeyDictionary()
"""Catalogs of DuckDB connections in memory that others have opened, and that may be attached to again."""


class TemporaryCatalog(Catalog):
    """Deleted by `delete`, else when `of` (itself, if nothing is given) is no more, at the latest at Python's end.

    `kill` ends whoever trains in a work folder.
    """

    def __init__(self, kill: Callable[[Path], object], of: object | None = None) -> None:
        import tempfile

        super().__init__(Path(tempfile.mkdtemp(prefix="sqlft-")))
        self.delete = weakref.finalize(self if of is None else of, _delete, self.folder, os.getpid(), kill)


def catalog_of(con: Any, kill: Callable[[Path], object]) -> Catalog:
    """The catalog of a DuckDB connection in memory; the same each time, as long as that is there."""
    if con not in _attached:
        _attached[con] = TemporaryCatalog(kill, con)
    return _attached[con]


def _delete(folder: Path, process: int, kill: Callable[[Path], object]) -> None:
    if os.getpid() != process:  # a fork's, which leaves its parent's alone
        return
    for work in filter(alive, works(folder)):
        warn(f"The training of {work.parent.name}.{work.stem} is ended: its database was in memory and is gone.")
        kill(work)
    if (folder / "catalog.sqlite").exists():
        with suppress(SqlftError):
            _forget_secrets(Catalog(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _forget_secrets(catalog: Catalog) -> None:
    """Keys that statements gave lie elsewhere, in the user's folder."""
    kept = (e.options for e in catalog.engines()), (m.options for m in catalog.models())
    for options in chain(*kept, (v.options for v in catalog.versions())):
        references.forget(options)
    catalog.close()
