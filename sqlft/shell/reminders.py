"""What a shell says when it opens and when it is left: trainings that were interrupted or go on, what to type next."""

from __future__ import annotations

from collections.abc import Iterator

from sqlft.catalog.records import RUNNING
from sqlft.catalog.store import Catalog
from sqlft.data import Prompt
from sqlft.inference.resolve import read_outputs
from sqlft.shell.shell import Location
from sqlft.sql.names import format_name
from sqlft.training.follow import format_progress


def remind_at_start(catalog: Catalog) -> Iterator[str]:
    """What was left behind, and what could be typed next."""
    versions = catalog.versions()
    for version in versions:
        if version.status == "interrupted":
            yield f"{version.key} was interrupted{format_progress(version)}. Go on with it: RESUME MODEL {version.key};"
        elif version.status in RUNNING:
            yield (
                f"{version.key} trains in the background{format_progress(version)}."
                f" Stop it: CANCEL MODEL {version.key};"
            )
    models = catalog.models()
    if not models:
        yield "There is no model yet. How one is made: .help CREATE MODEL"
    elif all(v.status == "complete" for v in versions):
        newest = max(models, key=lambda m: (m.created_at is not None, m.created_at, m.key))
        condition = " AND ".join(f"{format_name(name)} = '…'" for name in Prompt(newest.prompt_template).inputs)
        yield f"Ask a model: SELECT {format_name(read_outputs(newest).names[0])} FROM {newest.key} WHERE {condition};"


def remind_at_end(catalog: Catalog, location: Location) -> Iterator[str]:
    """What goes on without the shell; nothing of a database in memory, whose close warns."""
    for version in catalog.versions():
        if version.status in RUNNING and location.folder is not None:
            yield (
                f"{version.key} trains on in the background{format_progress(version)}:"
                f" sqlft watch {version.key}{location.flag}"
            )
