"""Folders of the user: caches, the catalog of a database on a server, and the secrets of every catalog."""

from __future__ import annotations

import os
from pathlib import Path

from sqlft.errors import CatalogError


def home() -> Path:
    """SQLFT_HOME, else the platform's folder for a user's data; not created here."""
    folder = os.environ.get("SQLFT_HOME")
    if folder:
        return Path(folder).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("sqlft", appauthor=False)


def secrets_folder() -> Path:
    """Where literal secrets are stored, outside of every database's folder; created, for its owner only."""
    override = os.environ.get("SQLFT_HOME")
    if override:
        folder = home() / "secrets"
    else:
        from platformdirs import user_config_path

        folder = user_config_path("sqlft", appauthor=False) / "secrets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as e:
        raise CatalogError(
            f"The folder for secrets, {folder}, cannot be made: {e.strerror}.",
            "Set SQLFT_HOME to a folder that can be written, or keep the secret in the environment: env('NAME').",
        ) from e
    return folder
