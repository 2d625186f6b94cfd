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

CREATE_ANSWERS = """
CREATE TABLE IF NOT EXISTS answers (
  key BLOB PRIMARY KEY, text TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, model TEXT, logprob REAL,
  truncated INTEGER NOT NULL DEFAULT 0, reasoning TEXT
) WITHOUT ROWID
"""
ADDED_COLUMNS = {"logprob": "REAL", "truncated": "INTEGER NOT NULL DEFAULT 0", "reasoning": "TEXT"}
"""Columns that a file of an earlier version may lack."""

COLUMNS = "key, text, input_tokens, output_tokens, model, logprob, truncated, reasoning"
INSERT_ANSWER = "INSERT OR REPLACE INTO {table} (" + COLUMNS + ") VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
CREATE_RECENT = """
CREATE TABLE IF NOT EXISTS recent (
  key BLOB NOT NULL, text TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, model TEXT, logprob REAL,
  truncated INTEGER NOT NULL DEFAULT 0, reasoning TEXT
)
"""
"""Answers in the order in which they came.  A key is as good as random: a thousand of them in `answers` change a
thousand pages, so those of a long statement are moved there sorted, many at a time."""
MERGE_RECENT = f"INSERT OR REPLACE INTO answers ({COLUMNS}) SELECT {COLUMNS} FROM recent ORDER BY key"
DIRECT_ROWS, MERGE_ROWS = 2_000, 250_000
"""Answers of a statement that go where they belong at once, and how many of the others are moved together."""


CacheRow = tuple[bytes, str, int | None, int | None, str, float | None, bool, str | None]
"""Key, text, input and output tokens, model, logprob, truncated, reasoning."""


class CachedAnswer(NamedTuple):
    """An answer as the cache has it."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    logprob: float | None = None
    truncated: bool = False
    reasoning: str | None = None


class AnswerLengths(NamedTuple):
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
        self._put_count = self._recent_count = 0

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, CachedAnswer]:
        """What is known of these keys."""
        with self._lock, suppress(sqlite3.Error):  # one that cannot be read knows nothing; `put` says why
            con = self._open(create=False)
            if con is None:
                return {}
            answers: dict[bytes, CachedAnswer] = {}
            if self._is_empty(con):
                return answers
            for start in range(0, len(keys), 500):
                batch = keys[start : start + 500]
                marks = ",".join("?" * len(batch))
                columns = "key, text, input_tokens, output_tokens, logprob, truncated, reasoning"
                rows = con.execute(f"SELECT {columns} FROM answers WHERE key IN ({marks})", batch)
                for key, text, input_tokens, output_tokens, logprob, truncated, reasoning in rows:
                    tokens = (input_tokens, output_tokens)
                    answers[key] = CachedAnswer(text, *tokens, logprob, bool(truncated), reasoning)
            return answers
        return {}

    def lengths(self, model: str, *, versions: bool = False) -> AnswerLengths:
        """How long a version's kept answers are in tokens; with `versions` those of all of a model's."""
        with self._lock, suppress(sqlite3.Error):
            con = self._open(create=False)
            if con is None:
                return AnswerLengths(0, 0.0, 0.0)
            where = "substr(model, 1, length(?1) + 1) = ?1 || '.'" if versions else "model = ?1"
            self._merge_recent(con)
            squares = "avg(output_tokens * 1.0 * output_tokens)"
            n, mean, square = con.execute(
                f"SELECT count(output_tokens), avg(output_tokens), {squares} FROM answers WHERE {where}", (model,)
            ).fetchone()
            if n > 1:
                return AnswerLengths(n, mean, max(0.0, square - mean**2) * n / (n - 1))
            return AnswerLengths(n, mean or 0.0, 0.0)
        return AnswerLengths(0, 0.0, 0.0)

    def put(self, rows: Iterable[CacheRow]) -> None:
        """Keep answers; they outlive a crash from here on."""
        with self._lock:
            try:
                con = self._open(create=True)
                if con is not None:
                    is_long = self._put_count >= DIRECT_ROWS
                    count = con.executemany(
                        INSERT_ANSWER.format(table="recent" if is_long else "answers"), rows
                    ).rowcount
                    con.commit()
                    self._put_count += count
                    self._recent_count += count if is_long else 0
                    if self._recent_count >= MERGE_ROWS:
                        self._merge_recent(con)
            except (sqlite3.Error, OSError) as e:
                raise CatalogError(
                    f"Answers cannot be kept in {self.path}: {e}.",
                    "Free some disk space, or go on without the cache: USING cache=false.",
                ) from e

    def flush(self) -> None:
        """Move what a long statement kept to where it is found; at its end."""
        with self._lock, suppress(sqlite3.Error):  # it is moved when the file is opened next
            if self._con is not None and self._recent_count:
                self._merge_recent(self._con)
            self._put_count = 0

    def _merge_recent(self, con: sqlite3.Connection) -> None:
        con.execute(MERGE_RECENT)
        con.execute("DELETE FROM recent")
        con.commit()
        self._recent_count = 0

    def _is_empty(self, con: sqlite3.Connection) -> bool:
        """Whether nothing is kept: new prompts need no looking up."""
        return con.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is None

    def drop(self, model: str | None = None) -> int:
        """Forget all answers, or those of one model's version; how many there were."""
        with self._lock:
            con = self._open(create=False)
            if con is None:
                return 0
            self._merge_recent(con)
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
        con.execute(CREATE_ANSWERS)
        existing = {row[1] for row in con.execute("PRAGMA table_info(answers)")}
        for name, kind in ADDED_COLUMNS.items():
            if name not in existing:
                with suppress(sqlite3.OperationalError):  # another process was first
                    con.execute(f"ALTER TABLE answers ADD COLUMN {name} {kind}")
        con.execute(CREATE_RECENT)
        if con.execute("SELECT 1 FROM recent LIMIT 1").fetchone():  # of a statement that was killed
            with suppress(sqlite3.OperationalError):  # a file that can only be read
                self._merge_recent(con)
        self._con = con
        return con


_quote_json = json.encoder.encode_basestring_ascii


def hash_prompt(prefix: bytes, messages: Sequence[Message]) -> bytes:
    """The key of one conversation; prefix stands for the version and its parameters."""
    text = f"[{','.join([f'[{_quote_json(role)},{_quote_json(content)}]' for role, content in messages])}]"
    return blake2b(text.encode(), key=prefix, digest_size=20).digest()


def hash_version(version_digest: str, parameters: str) -> bytes:
    """What all keys of one version asked with the same parameters share: 32 bytes."""
    return blake2b(f"{version_digest}\0{parameters}".encode(), digest_size=32).digest()
