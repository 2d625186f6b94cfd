"""An approximate index of a knowledge base's vectors, for so many chunks that comparing all of them takes too long.

Called by `sqlft.statements.knowledge` for CREATE and DROP INDEX, and by `search`.  It is usearch's (the extra `ann`): a
graph of near neighbours (HNSW, Malkov and Yashunin 2016) over numbers of 8 bits, in a file beside the catalog.

What it gives are candidates: `search` measures them by the stored vectors, so that distances are exact, and chunks that
are gone are left out.  Chunks that were written since are compared one by one, up to LAST_SHARE of all.  It is left
alone where a search has conditions, where its file is not what was written or not of these vectors, and where it finds
fewer chunks than are wanted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import Cancelled, CatalogError
from sqlft.knowledge.tables import is_in_transaction, read_state, run, table_name
from sqlft.session import Session, Tick

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

FOLDER, SUFFIX = "knowledge", ".usearch"
BLOCK_ROWS = 8192
EXPANSION = 128
"""How many neighbours are looked at, in making and searching: usearch's expansion_add and expansion_search."""
LAST_SHARE = 0.1
"""Most of the chunks that may have been written since; more, and comparing all is not much slower."""
PROBES = 8
"""Chunks whose vectors tell whether the file is of these vectors."""


_compared: set[tuple[Path, int, str]] = set()
"""Files whose probes this process has seen to fit: a chunk never gets another vector."""


class VectorIndex(NamedTuple):
    """An index that fits: usearch's, the last chunk in it, and how many came later."""

    index: Any
    last: int
    newer: int

    def find(self, questions: NDArray[float32], n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The places of questions and the chunks of their n nearest, about."""
        import numpy

        found = self.index.search(questions, min(n, len(self.index)))
        keys = numpy.atleast_2d(found.keys)
        places = numpy.repeat(numpy.arange(len(questions)), keys.shape[1])
        return places, keys.ravel().astype(numpy.int64)


def create_index(session: Session, base: KnowledgeBase) -> int:
    """Make it of the stored vectors, in place of an older one; how many it has, 0 where it was not made."""
    state = read_state(session.con, base)
    if find_spec("usearch") is None or state.dimension is None:
        why = "needs usearch: pip install 'sqlft[ann]'" if state.dimension is not None else "is made of vectors"
        session.show_notice(f"Search of '{base.key}' is exact and reads all vectors; an index of them {why}.")
        return 0
    if is_in_transaction(session.con):
        raise CatalogError("An index is made of what is committed.", "COMMIT first.")
    counts = f"SELECT count(*), count(vector), max(chunk) FROM {table_name(base, 'chunks')}"
    chunks, vectors, last = run(session.con, counts)[0]
    if chunks > vectors:
        raise CatalogError(
            f"{chunks - vectors} texts of '{base.key}' wait for their vectors.", f"REFRESH KNOWLEDGE_BASE {base.key}"
        )
    file = _file(session, base)
    with _written(file) as unfinished:
        made = _make(session, base, state.dimension, vectors)
        made.save(str(unfinished))
    about = {"model": state.model, "created_at": str(base.created_at), "last": last, "sha256": _digest(file)}
    about["probes"] = _read_probes(session, base, last)
    with _written(file.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(about), encoding="utf-8")
    return int(vectors)


def drop_index(session: Session, base: KnowledgeBase) -> None:
    """Remove it, if there is one."""
    for file in (_file(session, base), _file(session, base).with_suffix(".json")):
        file.unlink(missing_ok=True)


def find_index(session: Session, base: KnowledgeBase) -> VectorIndex | None:
    """The one that fits what this transaction sees; None without one."""
    file = _file(session, base)
    if find_spec("usearch") is None or not file.exists():
        return None
    state = read_state(session.con, base)
    try:
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        is_of_base = (about["model"], about["created_at"]) == (state.model, str(base.created_at))
        seen = (file, file.stat().st_mtime_ns, session.home_database)
        if state.dimension is None or not is_of_base:
            return None
        if seen not in _compared and not _has_probes(session, base, about["probes"]):
            return None
        _compared.add(seen)
        index = _load(*seen[:2], about["sha256"], state.dimension)
    except (OSError, ValueError, KeyError, RuntimeError):
        return None
    if index is None:
        return None
    last = int(about["last"])
    newer = run(session.con, f"SELECT count(*) FROM {table_name(base, 'chunks')} WHERE chunk > {last}")[0][0]
    return VectorIndex(index, last, newer) if newer <= LAST_SHARE * len(index) else None


def _make(session: Session, base: KnowledgeBase, dimension: int, total: int) -> Any:
    index = _make_empty(dimension)
    query = f"SELECT chunk, vector FROM {table_name(base, 'chunks')}"
    with session.con.sql(query).to_arrow_reader(BLOCK_ROWS) as batches:
        for batch in batches:
            if session.interrupted:
                raise Cancelled("Interrupted.", "Run it again; search is exact without an index.")
            vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
            index.add(batch.column("chunk").to_numpy(), vectors)
            session.show_progress(Tick(f"indexing {base.key}", len(index), total))
    return index


@lru_cache(maxsize=4)
def _load(file: Path, changed: int, digest: str, dimension: int) -> Any:
    """The index in memory; None for a file that is not what was written."""
    if _digest(file) != digest:
        return None
    index = _make_empty(dimension)
    index.load(str(file))
    return index


def _make_empty(dimension: int) -> Any:
    from usearch.index import Index

    return Index(ndim=dimension, metric="ip", dtype="i8", expansion_add=EXPANSION, expansion_search=EXPANSION)


def _file(session: Session, base: KnowledgeBase) -> Path:
    name = hashlib.sha256(f"{base.key.project}.{base.key.name}".lower().encode()).hexdigest()[:16]
    return session.catalog.folder / FOLDER / f"{name}{SUFFIX}"


@contextmanager
def _written(file: Path) -> Iterator[Path]:
    """Where to write: it becomes the file once all of it is there."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(file)
    except (OSError, RuntimeError) as e:
        raise CatalogError(f"The index could not be written to {file}: {e}.", "Make room, and run it again.") from e
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_probes(session: Session, base: KnowledgeBase, last: int) -> dict[str, str]:
    """Some chunks by number, with what tells their vectors apart."""
    step = max(1, last // PROBES)
    return _hash_vectors(session, base, ", ".join(str(chunk) for chunk in range(0, last + 1, step)))


def _has_probes(session: Session, base: KnowledgeBase, probes: dict[str, str]) -> bool:
    """Whether those chunks that are still there have the same vectors."""
    found = _hash_vectors(session, base, ", ".join(str(int(chunk)) for chunk in probes) or "-1")
    return all(probes[chunk] == digest for chunk, digest in found.items())


def _hash_vectors(session: Session, base: KnowledgeBase, chunks: str) -> dict[str, str]:
    query = f"SELECT chunk::VARCHAR, md5(vector::VARCHAR) FROM {table_name(base, 'chunks')} WHERE chunk IN ({chunks})"
    return dict(run(session.con, query))
