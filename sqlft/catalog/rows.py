"""Records to SQLite's values and back: times as microseconds since 1970 UTC, everything nested as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlft.catalog.records import Engine, Metric, Model, ModelKey, OwnPrice, Usage, Version, VersionKey, View
from sqlft.errors import CatalogError, did_you_mean

if TYPE_CHECKING:
    import sqlite3

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = ("created_at", "started_at", "finished_at")
VERSION_FIELDS = tuple(f.name for f in fields(Version) if f.name != "key")


def now() -> datetime:
    """This moment, as records have it."""
    return datetime.now(UTC)


def micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970 UTC; a datetime without a zone counts as local time."""
    return None if moment is None else (moment.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)


def moment(micros: int | None) -> datetime | None:
    """The datetime, in UTC, of so many microseconds."""
    return None if micros is None else EPOCH + timedelta(microseconds=micros)


def text(value: Any) -> str:
    """A nested value as JSON; what JSON has no word for is written as text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=_plain)


def version_values(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Version as column values; an artifact's path is kept relative so that the folder can move."""
    for name in given:
        if name not in VERSION_FIELDS:
            raise CatalogError(f"A version has no field '{name}'.{did_you_mean(name, VERSION_FIELDS)}")
    values = dict(given)
    for name in values:
        if name in TIMES:
            values[name] = micros(values[name])
        elif name in ("options", "findings", "details", "progress"):
            values[name] = text(values[name])
    path = values.get("artifact_path")
    if path is not None:
        path = Path(path)
        values["artifact_path"] = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    return values


def version(row: sqlite3.Row, folder: Path) -> Version:
    """A Version from a row of versions that also has its model's name and project."""
    values: dict[str, Any] = {name: row[name] for name in VERSION_FIELDS}
    for name in TIMES:
        values[name] = moment(values[name])
    for name in ("options", "details", "progress"):
        values[name] = json.loads(values[name])
    values["findings"] = tuple(json.loads(values["findings"]))
    values["activate"] = bool(values["activate"])
    values["artifact_path"] = None if values["artifact_path"] is None else folder / values["artifact_path"]
    return Version(key=version_key(row), **values)


def version_key(row: sqlite3.Row) -> VersionKey:
    """The key of a row that has name, project and number."""
    return VersionKey(ModelKey(row["name"], row["project"]), row["number"])


def model(row: sqlite3.Row) -> Model:
    """A Model from a row of models."""
    return Model(
        ModelKey(row["name"], row["project"]),
        row["engine"],
        row["base"],
        row["predict"],
        row["prompt_template"],
        row["system"],
        json.loads(row["options"]),
        row["active"],
        moment(row["created_at"]),
    )


def engine(row: sqlite3.Row) -> Engine:
    """An Engine from a row of engines."""
    return Engine(row["name"], row["handler"], json.loads(row["options"]), moment(row["created_at"]))


def own_price(row: sqlite3.Row) -> OwnPrice:
    """An OwnPrice from a row of prices."""
    values = {f.name: row[f.name] for f in fields(OwnPrice)}
    return OwnPrice(**{**values, "created_at": moment(row["created_at"])})


def view(row: sqlite3.Row) -> View:
    """A View from a row of views."""
    return View(row["name"], row["sql"], tuple(json.loads(row["columns"])), row["schema"], row["project"])


def metric(row: sqlite3.Row) -> Metric:
    """A Metric; SQLite keeps a NaN as NULL."""
    value = math.nan if row["value"] is None else row["value"]
    created_at = moment(row["created_at"]) or EPOCH
    return Metric(version_key(row), row["step"], row["epoch"], row["split"], row["metric"], value, created_at)


def usage(row: sqlite3.Row) -> Usage:
    """A Usage from a row of usage."""
    names = [f.name for f in fields(Usage) if f.name not in ("version", "created_at")]
    return Usage(version=version_key(row), created_at=moment(row["created_at"]), **{n: row[n] for n in names})


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)
