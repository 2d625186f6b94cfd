"""The folder of an export: written beside its place, and there whole or not at all.

`.name.unfinished/` beside the target has a lock, `files/` while they are written, and `old/` for the moment in which an
earlier export leaves.  What a killed process left there goes with the next export to the same place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlft.catalog.files import hold_lock
from sqlft.errors import AlreadyExists, CatalogError, OptionError

PROVENANCE_FILE = "sqlft.json"


@dataclass(frozen=True)
class StagedFolder:
    """Where an export is written, and what it becomes."""

    folder: Path
    target: Path

    def publish(self) -> None:
        """Rename it to the target; an earlier export there goes."""
        if self.target.is_dir() and any(self.target.iterdir()):
            self.target.rename(self.folder.with_name("old"))
        self.folder.rename(self.target)


@contextmanager
def stage_folder(path: Path, overwrite: bool) -> Iterator[StagedFolder]:
    """An empty folder to be filled and published, gone at the end; AlreadyExists, CatalogError."""
    try:
        target = path.expanduser().resolve()
    except RuntimeError as e:
        raise OptionError(f"There is no folder {path}: {e}.", "Write the whole path.") from e
    if not target.name:
        raise AlreadyExists(f"{target} is no folder of an export.", "Choose a folder that does not exist.")
    work = target.with_name(f".{target.name}.unfinished")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with hold_lock(work) as lock:
            if lock is None:
                raise CatalogError(
                    f"Another export to {target} is under way.", "Wait for it, or choose another folder."
                )
            try:
                _restore(work, target)
                check_target(target, overwrite)
                (work / "files").mkdir()
                yield StagedFolder(work / "files", target)
            finally:
                _restore(work, target)
                shutil.rmtree(work, ignore_errors=True)
    except OSError as e:
        raise _write_error(target, e) from e


def check_target(target: Path, overwrite: bool) -> None:
    """AlreadyExists for a place that is taken, unless it is an export that may be overwritten."""
    if target.is_file():
        raise AlreadyExists(f"{target} is a file.", "Name a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / PROVENANCE_FILE).is_file():
        raise AlreadyExists(
            f"The folder {target} is not empty, and no export of a model ({PROVENANCE_FILE} is missing).",
            "Choose a folder that does not exist.",
        )
    if not overwrite:
        raise AlreadyExists(f"There is an export in {target} already.", "Add OVERWRITE true, or choose another folder.")


def _restore(work: Path, target: Path) -> None:
    """Put an earlier export back that a crash has left between the two renames; remove what was begun."""
    if (work / "old").is_dir() and not target.exists():
        (work / "old").rename(target)
    for name in ("files", "old"):
        shutil.rmtree(work / name, ignore_errors=True)


def _write_error(target: Path, error: OSError) -> CatalogError:
    reason = os.strerror(error.errno) if error.errno else f"a file could not be written whole ({error})"
    return CatalogError(
        f"The export to {target} failed, and left nothing there: {reason}.",
        "Make room, or choose a folder on another disk that may be written to.",
    )
