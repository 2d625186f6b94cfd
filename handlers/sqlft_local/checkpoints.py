"""States of a training on disk, each written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlft.errors import ProviderError

FOLDER = "checkpoints"


class Checkpoint(NamedTuple):
    """What a training goes on from: its counters, and tensors by name."""

    state: dict[str, Any]
    tensors: Mapping[str, Any]


def write(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write `step-N` by rename and remove older ones; ProviderError when the disk refuses, older ones staying."""
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    unfinished = folder / ".unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(dict(checkpoint.tensors), unfinished / "tensors.safetensors")
        (unfinished / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf-8")
        _to_disk(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except Exception as e:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = _steps(folder)
        last = f"the checkpoint of {kept[-1].name} is kept" if kept else "there is none yet"
        raise ProviderError(
            f"The checkpoint of step {step} cannot be written ({e}); {last}.",
            "Make room on the disk, then RESUME MODEL name.N.",
        ) from e
    for old in _steps(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in reversed(_steps(folder)):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(state, load_file(path / "tensors.safetensors"))
        except (OSError, ValueError, SafetensorError):
            continue
    return None


def reached(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    steps = _steps(folder)
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
