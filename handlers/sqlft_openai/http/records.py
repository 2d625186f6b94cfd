"""What was asked of a provider, on disk before it is sent: after a crash nothing is asked twice.

Called by `batch` and `finetune.jobs`.  In and out: dataclasses, as JSON files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlft_openai.http.parsing import JsonObject, get_object, get_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def read_record(cls: type[Record], path: Path) -> Record | None:
    """What was written; None where there is nothing, or what is no such record."""
    try:
        return cls(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(record: DataclassInstance, path: Path) -> None:
    """Keep it, also through a power cut."""
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def is_ours(made: JsonObject, tag: str, file: str | None) -> bool:
    """Whether a job or a batch has our tag, or reads our file where its tag is not shown.

    >>> is_ours({"metadata": {"sqlft": "a"}}, "a", None), is_ours({"training_file": "f"}, "a", "f")
    (True, True)
    """
    found = get_text(get_object(made.get("metadata")), "sqlft")
    files = (made.get("training_file"), made.get("input_file_id"))
    return found == tag or (found is None and file is not None and file in files)
