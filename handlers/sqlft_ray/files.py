"""Folders and files of the driver's machine, on the nodes: an adapter, a base that is given as a folder, checkpoints.

`list_files` says what is in one, on the machine that has it.  `Depot` is an actor there, of whom nodes fetch it;
`find_here` gives its path on the node, and fetches it once per node.  A node that sees the same files under the same
path (the driver's machine, a shared disk) uses that path.  `Changes` bring the files of a node's folder home.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from sqlft.errors import HandlerError

if TYPE_CHECKING:
    from sqlft_ray.cluster import ActorHandle, ObjectRef

CHUNK_BYTES = 32 << 20
KEPT_DAYS = 30
"""Days after which a node forgets what nobody used."""


class FileState(NamedTuple):
    """A file as it lies on a disk."""

    name: str
    """Relative to its folder; "." is the folder itself, which is a file."""
    size: int
    modified: int


class FileTree(NamedTuple):
    """A folder or a file of the driver's machine."""

    path: str
    files: tuple[FileState, ...]

    @property
    def digest(self) -> str:
        """Of the names, sizes and times of all files: what nodes keep it under."""
        return sha256(repr(self.files).encode()).hexdigest()[:32]


def list_files(path: Path) -> FileTree:
    """All files of a folder, or the one file.

    >>> [file.name for file in list_files(Path(__file__)).files]
    ['.']
    """
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    states = ((p.relative_to(path).as_posix(), p.stat()) for p in found)
    return FileTree(str(path.absolute()), tuple(FileState(name, s.st_size, s.st_mtime_ns) for name, s in states))


class Depot:
    """An actor on the driver's machine that reads files for the nodes."""

    def read(self, path: str, offset: int) -> bytes:
        """The next bytes of a file."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)


def find_here(tree: FileTree, depot: ActorHandle | None) -> Path:
    """The tree on this node, fetched where it is not here yet."""
    from filelock import FileLock

    given = Path(tree.path)
    if _has_same_files(given, tree):
        return given
    cache = _cache_folder()
    kept = cache / tree.digest / given.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{tree.digest}.lock"):
            if not kept.exists():
                _forget_old(cache)
                unfinished = cache / f"{tree.digest}.{uuid4().hex}"
                fetch_files(tree, unfinished / given.name, depot)
                unfinished.rename(kept.parent)
        os.utime(kept.parent)
    except OSError as e:
        raise HandlerError(
            f"{os.uname().nodename} cannot keep {given.name}: {e.strerror or e} ({cache}).",
            "Make room there, or let XDG_CACHE_HOME name another disk before Ray starts.",
        ) from e
    return kept


def fetch_files(tree: FileTree, target: Path, depot: ActorHandle | None) -> None:
    """Copy the tree to `target`, times included; nothing is left of it after an error."""
    import ray

    try:
        target.mkdir(parents=True)
        for state in tree.files:
            file = target / state.name
            if state.name == ".":
                target.rmdir()
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as opened:
                while opened.tell() < state.size and depot is not None:
                    piece = ray.get(depot.read.remote(os.path.join(tree.path, state.name), opened.tell()))
                    if not piece:
                        raise HandlerError(f"{tree.path} changed while it was copied.", "Run it again.")
                    opened.write(piece)
            os.utime(file, ns=(state.modified, state.modified))
    except BaseException:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise


def _has_same_files(path: Path, tree: FileTree) -> bool:
    try:
        return path.exists() and list_files(path).files == tree.files
    except OSError:
        return False


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("sqlft", appauthor=False) / "ray"


def _forget_old(cache: Path) -> None:
    for folder in cache.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > KEPT_DAYS * 86_400:
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


class Changes(NamedTuple):
    """What became different in a folder: files with their contents in Ray's object store, and names that are gone."""

    written: Mapping[str, ObjectRef]
    removed: tuple[str, ...]


def collect_changes(folder: Path, known: dict[str, FileState]) -> Changes:
    """What is new against `known`, which is brought up to date; on the node."""
    import ray

    now = {state.name: state for state in list_files(folder).files}
    written = {name: ray.put((folder / name).read_bytes()) for name, state in now.items() if known.get(name) != state}
    removed = tuple(known.keys() - now.keys())
    known.clear()
    known.update(now)
    return Changes(written, removed)


def apply_changes(folder: Path, changes: Changes) -> None:
    """Let a folder have them, all or, where the disk is full, none; whole folders appear by one rename."""
    import ray

    if not changes.written and not changes.removed:
        return
    arriving = folder / f".arriving-{uuid4().hex}"
    try:
        for name, content in changes.written.items():
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            (arriving / name).write_bytes(ray.get(content))
        if arriving.exists():
            _merge(arriving, folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    for name in changes.removed:
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    for empty in _list_parents(changes.removed):
        with suppress(OSError):
            (folder / empty).rmdir()


def _merge(new: Path, old: Path) -> None:
    for entry in sorted(new.iterdir()):
        target = old / entry.name
        if entry.is_dir() and target.is_dir():
            _merge(entry, target)
        else:
            entry.replace(target)


def _list_parents(names: tuple[str, ...]) -> Iterator[Path]:
    """Folders that may be empty now, the deepest first."""
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    yield from sorted(parents, key=lambda p: -len(p.parts))
