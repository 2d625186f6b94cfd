"""Which batches are under way at the provider: a file each, written before anything is sent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

KEPT_SECONDS = 30 * 86_400.0
"""How long providers keep a batch's answers."""


@dataclass
class Entry:
    """One batch: what it asks, and how far it is."""

    account: str
    """Whose batch it is: the address and the model."""
    ids: list[str]
    """custom_id of each request."""
    ours: str = field(default_factory=lambda: uuid4().hex)
    file: str | None = None
    batch: str | None = None
    phase: str = "new"
    """new, creating (a request for the batch may be under way), created."""
    settled: list[str] = field(default_factory=list)
    """Requests whose answer or failure was handed on: another statement asks them anew."""
    at: float = field(default_factory=time.time)


class Ledger:
    """The entries below a folder; without one they last as long as the statement."""

    def __init__(self, folder: Path | None, account: str) -> None:
        self._folder, self._account = folder, account

    def entries(self) -> Iterator[Entry]:
        """This account's batches that may be at the provider, oldest first."""
        found = [e for path in self._files() if (e := _read(path)) is not None]
        for entry in sorted(found, key=lambda e: e.at):
            if time.time() - entry.at > KEPT_SECONDS or entry.phase == "new":
                self.forget([entry])
            elif entry.account == self._account:
                yield entry

    def made(self, ids: Sequence[str]) -> Entry:
        """A new entry, on disk."""
        entry = Entry(self._account, list(ids))
        self.write(entry)
        return entry

    def write(self, entry: Entry) -> None:
        """Keep an entry, also through a power cut."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{entry.ours}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path(entry))

    def settle(self, entries: Iterable[Entry]) -> None:
        """Keep what was handed on, and forget the entries of which that is all."""
        for entry in entries:
            if set(entry.ids) <= set(entry.settled):
                self.forget([entry])
            else:
                self.write(entry)

    def forget(self, entries: Iterable[Entry]) -> None:
        """They answer nothing any more, or were never sent."""
        if self._folder is not None:
            for entry in entries:
                self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: Entry) -> Path:
        assert self._folder is not None
        return self._folder / f"{entry.ours}.json"

    def _files(self) -> list[Path]:
        return [] if self._folder is None else list(self._folder.glob("*.json"))


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
