"""The catalog of a database in memory: a folder for its owner only, that is gone when the database is.

Whoever has such a folder holds the lock (flock) on a file in it.  A process that was killed left its folder behind and
holds no lock any more: the next database in memory removes it, unless a training that was started there still runs.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.catalog.files import is_locked, list_work_folders
from sqlft.catalog.store import Catalog
from sqlft.errors import SqlftError, debug, show_warning
from sqlft.secrets import references

if TYPE_CHECKING:
    import duckdb

PREFIX, OWNER = "sqlft-", "owner.lock"
_catalogs: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, Catalog] = weakref.WeakKeyDictionary()
"""Catalogs of DuckDB connections in memory that others have opened, and that may be attached to again."""


class TemporaryCatalog(Catalog):
    """Deleted by `delete`, else when `of` (itself, if nothing is given) is no more, at the latest at Python's end.

    `kill` ends whoever trains in a work folder.
    """

    def __init__(self, kill: Callable[[Path], object], of: object | None = None) -> None:
        import tempfile

        remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        super().__init__(folder)
        owner = self if of is None else of
        self.delete = weakref.finalize(owner, _delete_catalog, folder, _acquire_owner_lock(folder), os.getpid(), kill)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders that databases in memory of killed processes left in `parent`; a living one's is not touched.

    A folder without the owner's file is left alone: it may be one that is being made.
    """
    for owner_file in parent.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError), _is_abandoned(owner_file) as abandoned:
            if abandoned and not any(map(is_locked, list_work_folders(owner_file.parent))):
                debug("catalog: %s is removed, the process that made it was killed", owner_file.parent)
                _remove(owner_file.parent)


def _acquire_owner_lock(folder: Path) -> int | None:
    """Hold the lock that says that the folder has an owner; None where the file system has no locks.

    The file is locked before it gets its name, so nobody sees it without its lock.
    """
    new_file = folder / f"{OWNER}.new"
    with suppress(OSError, ImportError):
        lock = os.open(new_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new_file.rename(folder / OWNER)
        except BaseException:
            os.close(lock)
            raise
        return lock
    return None


@contextmanager
def _is_abandoned(owner_file: Path) -> Iterator[bool]:
    """Whether nobody owns this user's folder with the owner's file, and nobody else removes it meanwhile."""
    import fcntl

    if owner_file.parent.lstat().st_uid != os.getuid() or owner_file.parent.is_symlink():
        yield False
        return
    lock = os.open(owner_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    finally:
        os.close(lock)


def get_temporary_catalog(con: duckdb.DuckDBPyConnection, kill: Callable[[Path], object]) -> Catalog:
    """The catalog of a DuckDB connection in memory; the same each time, as long as that is there."""
    if con not in _catalogs:
        _catalogs[con] = TemporaryCatalog(kill, con)
    return _catalogs[con]


def _delete_catalog(folder: Path, lock: int | None, process: int, kill: Callable[[Path], object]) -> None:
    if os.getpid() != process:  # a fork's, which leaves its parent's alone
        return
    for work in filter(is_locked, list_work_folders(folder)):
        show_warning(
            f"The training of {work.parent.name}.{work.stem} is ended: its database was in memory and is gone."
        )
        kill(work)
    _remove(folder)
    if lock is not None:
        os.close(lock)


def _remove(folder: Path) -> None:
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
