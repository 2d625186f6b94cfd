"""What a session hands to its training worker, as files: the job, and a snapshot of the rows.

Secrets stay references here; the worker reads them where it runs.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlft.catalog import rows
from sqlft.catalog.workfolder import FILES, JOB
from sqlft.errors import CatalogError
from sqlft.handler import Artifact, TrainingSet

RESERVE, RESERVE_BYTES = "reserve", 1 << 20
"""A file that is deleted when the disk is full, so that the catalog can still take down that it is."""


@dataclass(frozen=True)
class Job:
    """One training: options as USING gave them, secrets as references."""

    handler: str
    base: str
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] | None = None
    """The artifact that training starts from: path, remote_id, details."""
    start_digest: str | None = None
    schema: Mapping[str, Any] | None = None
    """The JSON schema of the answers, if they are typed."""

    @property
    def artifact(self) -> Artifact | None:
        """What training starts from; None is the base."""
        if self.start is None:
            return None
        path = self.start["path"]
        return Artifact(None if path is None else Path(path), self.start["remote_id"], self.start["details"])


def start_of(artifact: Artifact | None) -> dict[str, Any] | None:
    """An artifact as a job has it."""
    if artifact is None:
        return None
    path = None if artifact.path is None else str(artifact.path.absolute())
    return {"path": path, "remote_id": artifact.remote_id, "details": dict(artifact.details)}


def write(work: Path, job: Job, data: TrainingSet) -> None:
    """Put job and snapshot into a work folder; OSError where that cannot be."""
    import pyarrow.parquet as parquet

    (work / FILES).mkdir()
    (work / JOB).write_text(rows.text(asdict(job)), encoding="utf-8")
    reserve(work)
    parquet.write_table(data.train, work / "train.parquet")
    if data.valid is not None:
        parquet.write_table(data.valid, work / "valid.parquet")


def change(work: Path, options: Mapping[str, Any]) -> None:
    """Other training options for a job that is resumed."""
    if not options:
        return
    known = json.loads((work / JOB).read_text(encoding="utf-8"))
    known["train_options"] = {**known["train_options"], **options}
    (work / JOB).write_text(rows.text(known), encoding="utf-8")


def reserve(work: Path) -> None:
    """Keep some room for the worker's last words."""
    if not (work / RESERVE).exists():
        (work / RESERVE).write_bytes(bytes(RESERVE_BYTES))


def read(work: Path) -> tuple[Job, TrainingSet]:
    """Job and snapshot of a work folder; CatalogError if they are gone or damaged."""
    import pyarrow.parquet as parquet

    try:
        job = Job(**json.loads((work / JOB).read_text(encoding="utf-8")))
        train = parquet.read_table(work / "train.parquet")
        kept = work / "valid.parquet"
        return job, TrainingSet(train, parquet.read_table(kept) if kept.exists() else None)
    except (OSError, ValueError, TypeError) as e:
        raise CatalogError(
            f"The rows this version was to be trained on cannot be read from {work}: {e}.",
            "Train a new version: FINETUNE …",
        ) from e


def can_resume(work: Path) -> bool:
    """Whether a work folder still has what its worker needs."""
    return (work / JOB).exists() and (work / "train.parquet").exists()


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
