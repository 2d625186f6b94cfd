"""Types of values whose libraries leave them open: JSON, JSON schemas, and rows of tables as Python has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can hold."""
JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object of a file, whose reader looks at what it finds."""
JsonSchema: TypeAlias = Mapping[str, Any]
"""A JSON schema, as jsonschema types it."""
Row: TypeAlias = Mapping[str, Any]
"""One row of `pyarrow.Table.to_pylist`: its cells by column."""
