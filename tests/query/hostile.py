"""Valid statements with faults: `python -m tests.query.hostile --help`.

Nothing may escape but SqlftError and DuckDB's errors, nothing may be written to stderr, no message may show the inside
of sqlft or of a library, and afterwards the connection works and nothing of ours is registered on it.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import duckdb

import sqlft

from .generator import generate
from .world import MODELS, TABLES

SEEDS, WHOLE, _LINES = (
    part.strip().split("\n")[1:]
    for part in re.split(r"\n\n(?=-- )", (Path(__file__).parent / "hostile.sql").read_text(encoding="utf-8"))[1:]
)
PIECES = " ".join(_LINES).split()
TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|\w+|\s+|[^\w\s]", re.DOTALL)
BLANKS = ["\u00a0", "\ufeff", "\u200b", "\u2028", "\u3000", "\u0085", "\x0b", "\x0c", "\x1c", "\0", "\t", "\r", "\n"]
INSIDE = re.compile(r"RecursionError|Traceback \(most|<Token |sqlglot|__sqlft|json_serialize|json_deserialize|KeyError")
"""What no message may show."""
CHANGES = re.compile(r"drop|alter|rename|create|set|use|attach|detach|pragma|vacuum|call|load|install|truncate", re.I)
RENEWED = 400
"""Statements after which the world is made anew in any case."""


@dataclass(frozen=True)
class Fault:
    """A statement after which something was wrong."""

    seed: int
    number: int
    statement: str
    what: str

    def __str__(self) -> str:
        return f"{self.what}\n  seed {self.seed}, statement {self.number}: {self.statement!r}"


def mutate(seed: int, number: int) -> str:
    """The statement of that number."""
    random = Random(seed * 1_000_003 + number)
    if random.random() < 0.35:
        text = generate(seed, number).text("model").split("  -- [")[0]
    else:
        text = random.choice(SEEDS)
    for _ in range(random.choice([0, 1, 1, 1, 2, 2, 3, 5])):
        text = _fault(random, text)
    if random.random() < 0.15:
        text = random.choice(WHOLE).replace("{0}", text)
    return text


def _fault(random: Random, text: str) -> str:
    """One fault put into a text."""
    pieces: list[str] = TOKEN.findall(text) or [""]
    words = [i for i, p in enumerate(pieces) if not p.isspace()] or [0]
    at, other = random.choice(words), random.choice(words)
    kind = random.randrange(12)
    if kind == 0:
        del pieces[at]
    elif kind == 1:
        pieces.insert(at, pieces[at] + random.choice([" ", ""]))
    elif kind == 2:
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif kind <= 4:
        pieces[at] = random.choice(PIECES)
    elif kind == 5:
        pieces.insert(at, random.choice(["", " "]) + random.choice(PIECES) + random.choice(["", " "]))
    elif kind == 6:
        pieces.insert(at, random.choice(BLANKS))
    elif kind == 7:
        blanks = [i for i, p in enumerate(pieces) if p.isspace()] or [0]
        pieces[random.choice(blanks)] = random.choice([*BLANKS, "", "/**/", "-- c\n", "/* /* */", "\ufeff "])
    elif kind == 8:
        del pieces[at : at + random.randint(2, 8)]
    elif kind == 9:
        del pieces[at:]
    elif kind == 10:
        pieces[at] = random.choice(
            ["({})", "(({}))", "{0}.{0}", "{0} {0}", "'{}'", '"{}"', "`{}`", "{}::m", "m.{}"]
        ).format(pieces[at])
    else:
        place = random.randrange(len(text) + 1)
        put: str = random.choice([*BLANKS, *"'\"`()[]{};.,$?:-*/\\é"])
        return text[:place] + put + text[place + random.randint(0, 2) :]
    return "".join(pieces)


class Target:
    """A connection that is made anew when its models may be gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = self.ran = 0
        self.con = self._connect()

    def renew(self) -> None:
        """Another one, with a catalog of its own."""
        self.con.close()
        self.con = self._connect()

    def _connect(self) -> sqlft.Connection:
        self.made += 1
        self.ran = 0
        os.environ["SQLFT_HOME"] = str(self.folder / str(self.made))
        con = sqlft.connect(warn=lambda text: None)
        con.execute(TABLES + MODELS + "CREATE TABLE sink AS SELECT id, x FROM t;")
        return con

    def faults(self, statement: str) -> Iterator[str]:
        """What is wrong with running a statement."""
        self.ran += 1
        with _overheard() as heard:
            error = self._run(statement)
            if error is not None:
                yield from _error_faults(error, statement)
            yield from self._traces()
        if heard:
            yield f"written to stderr or logged: {heard[0][:200]!r}"
        if self.ran >= RENEWED or (error is None and CHANGES.search(statement)):
            self.renew()

    def _run(self, statement: str) -> BaseException | None:
        try:
            self.con.execute(statement)
            if self.con.description:
                self.con.fetchmany(50)
        except BaseException as e:
            if isinstance(e, (KeyboardInterrupt, SystemExit)):
                raise
            return e
        return None

    def _traces(self) -> Iterator[str]:
        try:
            if self.con.execute("SELECT 42").fetchone() != (42,):
                yield "SELECT 42 gives something else afterwards"
            left = self.con.execute(
                "SELECT view_name FROM duckdb_views() WHERE view_name LIKE '%sqlft%' "
                "UNION ALL SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '%sqlft%'"
            ).fetchall()
            if left:
                yield f"left behind: {left}"
                self.ran = RENEWED
        except Exception as e:
            yield f"SELECT 42 fails afterwards: {type(e).__name__}: {e}"
            self.ran = RENEWED


def _error_faults(error: BaseException, statement: str) -> Iterator[str]:
    text = str(error)
    if not isinstance(error, duckdb.Error) and not _raised_by_duckdb(error, statement):
        yield f"{type(error).__name__} escaped: {text[:200]}"
    if (shown := INSIDE.search(text)) and shown[0] not in statement:
        yield f"a message shows {shown[0]!r}: {text[:300]}"
    if isinstance(error, sqlft.SqlftError) and not error.next_step:
        yield f"a message without a next step: {text[:200]}"


def _raised_by_duckdb(error: BaseException, statement: str) -> bool:
    """Whether DuckDB's own client raises the same for this text."""
    try:
        with duckdb.connect() as con:
            con.execute(statement)
    except BaseException as e:
        return type(e) is type(error)
    return False


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What is written to stderr meanwhile, by Python or below it, logged as a warning, or warned of."""
    heard: list[str] = []
    written = io.StringIO()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    before, kept = sys.stderr, os.dup(2)
    logging.getLogger().addHandler(handler)
    with tempfile.TemporaryFile() as below, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        os.dup2(below.fileno(), 2)
        sys.stderr = written
        try:
            yield heard
        finally:
            sys.stderr = before
            os.dup2(kept, 2)
            os.close(kept)
            logging.getLogger().removeHandler(handler)
            below.seek(0)
            heard += [str(w.message) for w in warned if w.category is not ResourceWarning]
            heard += [s for s in (written.getvalue(), below.read().decode(errors="replace")) if s]


def faults(target: Target, seed: int, numbers: Sequence[int]) -> Iterator[Fault]:
    """What is wrong with running the statements of a seed."""
    for number in numbers:
        statement = mutate(seed, number)
        for what in target.faults(statement):
            yield Fault(seed, number, statement, what)


def main() -> int:
    """Run as many as wanted; 1 if any had a fault."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--statements", type=int, default=10_000, help="how many")
    reader.add_argument("--seed", type=int, default=1, help="which ones")
    reader.add_argument("--only", type=int, help="the statement of that number alone")
    args = reader.parse_args()
    numbers = range(args.statements) if args.only is None else range(args.only, args.only + 1)
    kinds: Counter[str] = Counter()
    faulthandler.enable()
    where: Any = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        target = Target(Path(folder))
        for found in faults(target, args.seed, numbers):
            kinds[found.what.split(":")[0]] += 1
            print(found, flush=True)
        target.con.close()
        os.chdir(where)
    print(f"{len(numbers)} statements", "".join(f"; {n} times {k}" for k, n in kinds.most_common()))
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
