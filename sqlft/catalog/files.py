"""The catalog's files: artifacts published by rename and verified by digest, work folders and who holds them.

No code is taken among an artifact's files.  Whether a training lives is whether the lock of its folder is held: the
kernel gives it back when the process ends, however that ends.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from itertools import chain, count
from pathlib import Path

from sqlft.errors import LOG_LINE_PREFIX, CatalogError, HandlerError
from sqlft.secrets.home import home

UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".so", ".py", ".pyc"}
)
"""Loading one of these can run code, whoever wrote it."""

Fingerprint = tuple[tuple[str, int, int, int], ...]
_verified_digests: dict[Path, tuple[Fingerprint, str]] = {}


def catalog_folder(database: str) -> Path | None:
    """Where the catalog of a database lies; None: nowhere that lasts."""
    if database == "" or database.startswith(":memory:"):
        return None
    if database.startswith("md:"):
        return home()
    path = Path(database).absolute()
    return path.with_name(path.name + ".sqlft")


def publish_artifact(source: Path, place: Path) -> tuple[Path, str]:
    """Move a finished file or folder to `place`, a folder: (what to open, its digest).

    On the same disk this is one rename, so `place` is never half there.  HandlerError if it holds pickles or code.
    """
    refuse_unsafe_files(source)
    staging = place.with_name(f"{place.name}.staging")
    _remove_folder(staging)
    if source.is_file():
        staging.mkdir(parents=True)
        shutil.move(source, staging / source.name)
        opened = place / source.name
    else:
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, staging)
        opened = place
    _sync_to_disk(staging)
    _remove_folder(place)
    os.rename(staging, place)
    return opened, compute_digest(opened)


def refuse_unsafe_files(source: Path) -> None:
    """HandlerError if a file there is of a kind that runs code when it is loaded."""
    for name, path in _list_files(source):
        if path.suffix.lower() in UNSAFE_SUFFIXES:
            raise HandlerError(
                f"The handler made the file '{name}', which may run code when it is loaded.",
                "Let it write safetensors (and JSON, text), or keep such files out of its artifact.",
            )


def compute_digest(path: Path) -> str:
    """SHA-256, in hex, over the names and contents of all files there, in order of name."""
    whole = sha256()
    for name, file in _list_files(path):
        with open(file, "rb") as opened:
            whole.update(f"{len(name)}:{name}:".encode("utf-8", "surrogatepass"))
            whole.update(file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def verify_artifact(path: Path, expected: str | None) -> None:
    """CatalogError if the files are gone or changed; read once per process as long as their sizes and times stay."""
    try:
        if not path.exists():
            raise CatalogError(f"The files of this version are missing: {path}.", _RESTORE_HINT)
        seen = _compute_fingerprint(path)
        known = _verified_digests.get(path)
        if known is None or known[0] != seen:
            known = _verified_digests[path] = (seen, compute_digest(path))
    except OSError as e:
        raise CatalogError(f"The files of this version cannot be read: {e}.", _RESTORE_HINT) from e
    if expected is not None and known[1] != expected:
        raise CatalogError(f"The files of this version were changed: {path}.", _RESTORE_HINT)


_RESTORE_HINT = (
    "Put them back from a copy, or drop this version and train it again; SET active chooses another until then."
)


def _list_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    paths = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    yield from sorted((file.relative_to(path).as_posix(), file) for file in paths)


def _compute_fingerprint(path: Path) -> Fingerprint:
    stats = ((name, os.stat(file)) for name, file in _list_files(path))
    return tuple((name, at.st_size, at.st_mtime_ns, at.st_ino) for name, at in stats)


def _sync_to_disk(folder: Path) -> None:
    for path in [*(file for _, file in _list_files(folder)), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _remove_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


LOCK_FILE, LOG_FILE, JOB_FILE, FILES_FOLDER = "lock", "log.txt", "job.json", "files"


def build_folder_name(name: str) -> str:
    """A folder name for any model name: itself where that is safe, else made safe and unique by a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name):
        return name
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("_-") or "model"
    return f"{safe}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def choose_folder_name(parent: Path, name: str, taken: Collection[str]) -> str:
    """A folder name for a new model: none of `taken` in any case, and nothing that lies there already."""
    base, used = build_folder_name(name), {folder.lower() for folder in taken}
    names = chain([base], (f"{base}-{number}" for number in count(2)))
    return next(folder for folder in names if folder.lower() not in used and not (parent / folder).exists())


def list_work_folders(folder: Path) -> list[Path]:
    """The work folders below a catalog's folder."""
    return [lock_file.parent for lock_file in folder.glob(f"models/*/*.work/{LOCK_FILE}")]


def acquire_lock(work: Path) -> int | None:
    """The open, locked lock file of a work folder; None while another process has it."""
    import fcntl

    return _try_lock(work, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)


@contextmanager
def hold_lock(work: Path) -> Iterator[int | None]:
    """The lock of a work folder while the block runs; None if somebody trains there, or there is no such folder."""
    lock = acquire_lock(work) if work.exists() else None
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def is_locked(work: Path) -> bool:
    """Whether somebody trains in this work folder."""
    import fcntl

    try:
        opened = _try_lock(work, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if opened is None:
        return True
    os.close(opened)
    return False


def _try_lock(work: Path, how: int, lock: int) -> int | None:
    import fcntl

    opened = os.open(work / LOCK_FILE, how | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(opened, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def summarize_exit(work: Path, how: str = "died") -> str:
    """What is known of a worker that ended without a word: how, its last line, where its log is."""
    log = work / LOG_FILE
    last = _read_last_line(log)
    return f"The process that trained it {how}{f': {last} (log: {log})' if last else '.'}"


def _read_last_line(log: Path) -> str:
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").split("\n")]
        return next((line for line in reversed(lines) if line and not line.startswith(LOG_LINE_PREFIX)), "")[:500]
    return ""
