"""The catalog's tables, as the steps that made them: step n takes a file from user_version n to n + 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlft.errors import CatalogError

if TYPE_CHECKING:
    import sqlite3

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE engines (
             folded TEXT PRIMARY KEY, name TEXT NOT NULL, handler TEXT NOT NULL, options TEXT NOT NULL,
             created_at INTEGER NOT NULL)""",
        """CREATE TABLE models (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             folded TEXT NOT NULL, folded_project TEXT NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL,
             folder TEXT NOT NULL UNIQUE,
             engine TEXT NOT NULL, base TEXT NOT NULL, predict TEXT NOT NULL,
             prompt_template TEXT NOT NULL, system TEXT, options TEXT NOT NULL,
             active INTEGER, last_number INTEGER NOT NULL, created_at INTEGER NOT NULL,
             UNIQUE (folded_project, folded))""",
        """CREATE TABLE versions (
             model_id INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE, number INTEGER NOT NULL,
             status TEXT NOT NULL, parent INTEGER, tag TEXT, error TEXT, activate INTEGER NOT NULL,
             query TEXT, "database" TEXT, row_count INTEGER, data_digest TEXT,
             options TEXT NOT NULL, findings TEXT NOT NULL, details TEXT NOT NULL, progress TEXT NOT NULL,
             artifact_path TEXT, remote_id TEXT, artifact_digest TEXT,
             created_at INTEGER NOT NULL, started_at INTEGER, finished_at INTEGER, seconds REAL,
             cancel_requested INTEGER NOT NULL DEFAULT 0,
             PRIMARY KEY (model_id, number)) WITHOUT ROWID""",
        """CREATE TABLE metrics (
             model_id INTEGER NOT NULL, number INTEGER NOT NULL,
             step INTEGER NOT NULL, split TEXT NOT NULL, name TEXT NOT NULL, epoch REAL, value REAL,
             created_at INTEGER NOT NULL,
             PRIMARY KEY (model_id, number, step, split, name),
             FOREIGN KEY (model_id, number) REFERENCES versions (model_id, number) ON DELETE CASCADE) WITHOUT ROWID""",
        """CREATE TABLE evaluations (
             model_id INTEGER NOT NULL, number INTEGER NOT NULL, metric TEXT NOT NULL, data_digest TEXT NOT NULL,
             value REAL, n INTEGER, low REAL, high REAL, seconds REAL, created_at INTEGER NOT NULL,
             PRIMARY KEY (model_id, number, metric, data_digest),
             FOREIGN KEY (model_id, number) REFERENCES versions (model_id, number) ON DELETE CASCADE) WITHOUT ROWID""",
        # What was paid for stays known after DROP MODEL, hence no foreign key; model_id lets it follow a new name.
        """CREATE TABLE usage (
             statement_id TEXT NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL, number INTEGER NOT NULL,
             model_id INTEGER, statement TEXT NOT NULL, "rows" INTEGER NOT NULL, distinct_prompts INTEGER NOT NULL,
             cached INTEGER NOT NULL, calls INTEGER NOT NULL, errors INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
             output_tokens INTEGER NOT NULL, cost_usd REAL, seconds REAL NOT NULL, created_at INTEGER NOT NULL,
             PRIMARY KEY (statement_id, project, name, number))""",
        """CREATE TABLE views (
             folded TEXT PRIMARY KEY, name TEXT NOT NULL, sql TEXT NOT NULL, columns TEXT NOT NULL, "schema" TEXT)""",
    ),
    (
        """CREATE TABLE prices (
             folded_engine TEXT NOT NULL, folded_model TEXT NOT NULL, engine TEXT NOT NULL, model TEXT,
             input REAL, output REAL, cached_input REAL, training REAL, machine_usd_per_hour REAL,
             created_at INTEGER NOT NULL, PRIMARY KEY (folded_engine, folded_model)) WITHOUT ROWID""",
        # Characters of the prompts behind input_tokens: how many tokens a character of this model's prompts is.
        "ALTER TABLE usage ADD COLUMN input_chars INTEGER NOT NULL DEFAULT 0",
    ),
    (
        # Nothing has filled the first one.
        "DROP TABLE evaluations",
        """CREATE TABLE evaluations (
             model_id INTEGER NOT NULL, number INTEGER NOT NULL, metric TEXT NOT NULL, data_digest TEXT NOT NULL,
             options TEXT NOT NULL, value REAL, n INTEGER NOT NULL, low REAL, high REAL, interval TEXT,
             failed INTEGER NOT NULL, seconds REAL, cost_usd REAL, baseline TEXT, difference REAL, difference_low REAL,
             difference_high REAL, p_value REAL, test TEXT, wins INTEGER, ties INTEGER, losses INTEGER,
             statement TEXT NOT NULL, place INTEGER NOT NULL, is_share INTEGER NOT NULL, created_at INTEGER NOT NULL,
             PRIMARY KEY (model_id, number, metric, data_digest, options),
             FOREIGN KEY (model_id, number) REFERENCES versions (model_id, number) ON DELETE CASCADE) WITHOUT ROWID""",
        """CREATE TABLE evaluation_rows (
             model_id INTEGER NOT NULL, number INTEGER NOT NULL, metric TEXT NOT NULL, data_digest TEXT NOT NULL,
             options TEXT NOT NULL, row_number INTEGER NOT NULL, input TEXT, actual TEXT, prediction TEXT, score REAL,
             error TEXT, PRIMARY KEY (model_id, number, metric, data_digest, options, row_number),
             FOREIGN KEY (model_id, number, metric, data_digest, options)
             REFERENCES evaluations (model_id, number, metric, data_digest, options) ON DELETE CASCADE)
             WITHOUT ROWID""",
    ),
    (
        # Which column of right answers was scored: a model may have several outputs.
        "ALTER TABLE evaluations ADD COLUMN answer TEXT",
    ),
    (
        # Answers that are cut off at their limit of tokens.
        "ALTER TABLE usage ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0",
    ),
    (
        # Projects that CREATE PROJECT made; others are there as long as they have models.
        "CREATE TABLE projects (folded TEXT PRIMARY KEY, name TEXT NOT NULL, created_at INTEGER NOT NULL)",
        # Where a view looks for its models first: the project that was in use when it was made.
        "ALTER TABLE views ADD COLUMN project TEXT",
    ),
    (
        """CREATE TABLE knowledge_bases (
             folded TEXT NOT NULL, folded_project TEXT NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL,
             embedding_model TEXT, reranking_model TEXT, content_columns TEXT NOT NULL, metadata_columns TEXT NOT NULL,
             id_column TEXT, storage TEXT, query TEXT, "database" TEXT, options TEXT NOT NULL, state TEXT NOT NULL,
             created_at INTEGER NOT NULL, PRIMARY KEY (folded_project, folded)) WITHOUT ROWID""",
    ),
)


def read_schema_version(con: sqlite3.Connection) -> int:
    """The file's schema number; CatalogError if a newer sqlft made it."""
    number: int = con.execute("PRAGMA user_version").fetchone()[0]
    if number > len(MIGRATIONS):
        raise CatalogError(
            f"This catalog was made by a newer sqlft (schema {number}, this one knows {len(MIGRATIONS)}).",
            "Upgrade: pip install -U sqlft",
        )
    return number


def migrate(con: sqlite3.Connection) -> None:
    """Bring the file up to date; two processes may try at once."""
    if read_schema_version(con) == len(MIGRATIONS):
        return
    con.execute("BEGIN IMMEDIATE")
    try:
        for number in range(read_schema_version(con), len(MIGRATIONS)):
            for statement in MIGRATIONS[number]:
                con.execute(statement)
            con.execute(f"PRAGMA user_version = {number + 1}")
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
