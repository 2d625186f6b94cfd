"""UNLOAD MODEL: memory that models keep between statements."""

from __future__ import annotations

import pyarrow as pa

from sqlft.errors import SqlftError
from sqlft.runtime.models import key_of, model_of, resolve
from sqlft.runtime.session import Parameters, Session
from sqlft.sql import statements as s


def run_unload(session: Session, statement: s.UnloadModel, parameters: Parameters) -> pa.Table:
    """A row a version that was in memory: it is freed at once, or when the query that asks it is done."""
    name = statement.name
    models = session.catalog.models() if name is None else [model_of(session, key_of(name))]
    wanted = name.version if name else None
    freed: list[tuple[str, int]] = []
    for model in models:
        for number in [v.key.number for v in session.catalog.versions(model.key)] if wanted is None else [wanted]:
            try:
                found = resolve(session, model.key, number)
            except SqlftError:
                if wanted is not None:
                    raise
                continue  # one that never was complete is not in memory
            if found.handler.unload(found.spec, found.artifact):
                freed.append((model.key.name, found.version.key.number))
            session.loaded.pop(found.digest, None)
    return pa.table(
        {"model": pa.array([m for m, _ in freed], pa.string()), "version": pa.array([n for _, n in freed], pa.int64())}
    )


def unload_all(session: Session) -> None:
    """Free what the session's statements have loaded."""
    for free in list(session.loaded.values()):
        try:
            free()
        except SqlftError:
            continue
    session.loaded.clear()
