"""Answers kept on disk, by version digest, rendered messages and parameters; written as they arrive."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from sqlft.errors import CatalogError
from sqlft.handler import Message

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key BLOB PRIMARY KEY, text TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, model TEXT, logprob REAL,
  truncated INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""
ADDED = {"logprob": "REAL", "truncated": "INTEGER NOT NULL DEFAULT 0"}
"""Columns that a file of an earlier version may lack."""

KEEP = """
INSERT OR REPLACE INTO answers (key, text, input_tokens, output_tokens, model, logprob, truncated)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""


class Kept(NamedTuple):
    """An answer as the cache has it."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    logprob: float | None = None
    truncated: bool = False


class Lengths(NamedTuple):
    """How many answers there are, and the mean and variance of their tokens."""

    answers: int
    mean: float
    variance: float


class Cache:
    """One SQLite file; usable from several threads and processes.  A folder that cannot be written keeps nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._con: sqlite3.Connection | None = None

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Kept]:
        """What is known of these keys."""
        with self._lock, suppress(sqlite3.Error):  # one that cannot be read knows nothing; `put` says why
            con = self._open(create=False)
            if con is None:
                return {}
            found: dict[bytes, Kept] = {}
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                columns = "key, text, input_tokens, output_tokens, logprob, truncated"
                rows = con.execute(f"SELECT {columns} FROM answers WHERE key IN ({marks})", some)
                for key, text, given, made, logprob, cut in rows:
                    found[key] = Kept(text, given, made, logprob, bool(cut))
            return found
        return {}

    def lengths(self, model: str, *, versions: bool = False) -> Lengths:
        """How long a version's kept answers are in tokens; with `versions` those of all of a model's."""
        with self._lock, suppress(sqlite3.Error):
            con = self._open(create=False)
            if con is None:
                return Lengths(0, 0.0, 0.0)
            where = "substr(model, 1, length(?1) + 1) = ?1 || '.'" if versions else "model = ?1"
            squares = "avg(output_tokens * 1.0 * output_tokens)"
            n, mean, square = con.execute(
                f"SELECT count(output_tokens), avg(output_tokens), {squares} FROM answers WHERE {where}", (model,)
            ).fetchone()
            if n > 1:
                return Lengths(n, mean, max(0.0, square - mean**2) * n / (n - 1))
            return Lengths(n, mean or 0.0, 0.0)
        return Lengths(0, 0.0, 0.0)

    def put(self, rows: Iterable[tuple[bytes, str, int | None, int | None, str, float | None, bool]]) -> None:
        """Keep (key, text, input and output tokens, model, logprob, truncated); they outlive a crash from here on."""
        with self._lock:
            try:
                con = self._open(create=True)
                if con is not None:
                    con.executemany(KEEP, rows)
                    con.commit()
            except (sqlite3.Error, OSError) as e:
                raise CatalogError(
                    f"Answers cannot be kept in {self.path}: {e}.",
                    "Free some disk space, or go on without the cache: USING cache=false.",
                ) from e

    def drop(self, model: str | None = None) -> int:
        """Forget all answers, or those of one model's version; how many there were."""
        with self._lock:
            con = self._open(create=False)
            if con is None:
                return 0
            if model is None:
                count = con.execute("DELETE FROM answers").rowcount
            else:
                of_it = "lower(model) = lower(?1) OR lower(rtrim(model, '0123456789')) = lower(?1) || '.'"
                count = con.execute(f"DELETE FROM answers WHERE {of_it}", (model,)).rowcount
            con.commit()
            return count

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._con is not None:
                self._con.close()
                self._con = None

    def _open(self, *, create: bool) -> sqlite3.Connection | None:
        if self._con is not None or not (create or self.path.exists()):
            return self._con
        self.path.parent.mkdir(parents=True, exist_ok=True)
        con = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        con.execute("PRAGMA journal_mode=WAL")
        con.execute("PRAGMA synchronous=NORMAL")
        con.execute(SCHEMA)
        there = {row[1] for row in con.execute("PRAGMA table_info(answers)")}
        for name, kind in ADDED.items():
            if name not in there:
                with suppress(sqlite3.OperationalError):  # another process was first
                    con.execute(f"ALTER TABLE answers ADD COLUMN {name} {kind}")
        self._con = con
        return con


def key_of(prefix: bytes, messages: Sequence[Message]) -> bytes:
    """The key of one conversation; prefix stands for the version and its parameters."""
    text = json.dumps([tuple(m) for m in messages], ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), key=prefix, digest_size=20).digest()


def prefix_of(version_digest: str, parameters: str) -> bytes:
    """What all keys of one version asked with the same parameters share: 32 bytes."""
    return blake2b(f"{version_digest}\0{parameters}".encode(), digest_size=32).digest()
