"""The part of the catalog that EVALUATE MODEL fills: a row a version, metric and data, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from sqlft.catalog import rows
from sqlft.catalog.records import Evaluation, EvaluationRow, VersionKey
from sqlft.catalog.shelf import Shelf

_OF_MODEL = "SELECT id FROM models WHERE folded = ? AND folded_project = ?"
_KEY = ("model_id", "number", "metric", "data_digest", "options")


class Scores(Shelf):
    """`<folder>/catalog.sqlite`; read_only refuses every write."""

    def put_evaluations(self, found: Sequence[tuple[Evaluation, Sequence[EvaluationRow]]]) -> None:
        """Keep these with their rows, in place of the same metric of the same version on the same data."""
        with self._db.write() as con:
            for evaluation, details in found:
                name, project = evaluation.version.model
                of = con.execute(_OF_MODEL, [name.lower(), project.lower()]).fetchone()
                if of is None:
                    continue
                columns = {f.name: getattr(evaluation, f.name) for f in fields(Evaluation) if f.name != "version"}
                columns |= {
                    "model_id": of[0],
                    "number": evaluation.version.number,
                    "options": rows.text(evaluation.options),
                    "created_at": rows.micros(evaluation.created_at or rows.now()),
                }
                names = ", ".join(columns)
                marks = ", ".join("?" * len(columns))
                con.execute(f"INSERT OR REPLACE INTO evaluations ({names}) VALUES ({marks})", list(columns.values()))
                key = [columns[name] for name in _KEY]
                con.executemany(
                    f"INSERT INTO evaluation_rows ({', '.join(_KEY)}, {', '.join(EvaluationRow._fields)})"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    ([*key, *row] for row in details),
                )

    def last_pace(self, version: VersionKey, data_digest: str) -> tuple[float | None, float | None] | None:
        """Seconds and USD a question of the last evaluation of this version on this data that asked any."""
        found = self._db.rows(
            "SELECT e.seconds, e.cost_usd FROM evaluations e JOIN models m ON m.id = e.model_id"
            " WHERE m.folded = ? AND m.folded_project = ? AND e.number = ? AND e.data_digest = ?"
            " AND e.seconds IS NOT NULL ORDER BY e.created_at DESC LIMIT 1",
            [version.model.name.lower(), version.model.project.lower(), version.number, data_digest],
        )
        return (found[0][0], found[0][1]) if found else None

    def accuracies(self) -> dict[VersionKey, float]:
        """Of each version the value of the first metric, of those that are shares, in its latest evaluation."""
        found = self._db.rows(
            "SELECT m.name, m.project, e.number, e.value FROM evaluations e JOIN models m ON m.id = e.model_id"
            " WHERE e.is_share AND e.value IS NOT NULL ORDER BY e.created_at, e.place DESC"
        )
        return {rows.version_key(row): row["value"] for row in found}
