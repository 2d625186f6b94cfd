"""Templates and values to prompts: the one rendering, for asking and for training.

A value reads as DuckDB's cast to VARCHAR has it, nested ones as JSON, NULL as nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from sqlft.errors import DataError, did_you_mean
from sqlft.handler import Message

PLACEHOLDER = re.compile(r"\{\{\s*([^{}\r\n]*[^{}\s])\s*\}\}")


@dataclass(frozen=True)
class Prompt:
    """A template with ``{{name}}`` placeholders and a system message before it.

    DataError if the template has no placeholder, or a ``{{`` that does not close.
    """

    template: str
    system: str | None = None
    inputs: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Names of the placeholders in order of first appearance; their case does not matter, the first is kept."""
    _parts: tuple[str | int, ...] = field(init=False, repr=False, compare=False)
    """Literal texts, and positions in `inputs`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", to_text(self.template))
        object.__setattr__(self, "system", None if self.system is None else to_text(self.system))
        inputs, parts = _parse_template(self.template)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "_parts", parts)

    @property
    def is_single_input(self) -> bool:
        """Whether the prompt is one input's text and nothing else."""
        return self._parts == (0,)

    def messages(self, values: Mapping[str, object]) -> tuple[Message, ...]:
        """The conversation that asks for one row; `values` by input name, of any type, NULL is ''.

        >>> Prompt("{{a}} + {{b}} =").messages({"a": 1, "b": 2.5})[0].content
        '1 + 2.5 ='
        """
        columns = {name: pa.array([value]) for name, value in values.items()}
        return self.conversation(self.render_column(columns)[0].as_py())

    def render_column(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.LargeStringArray:
        """The user texts of many rows, as `messages` has them, from columns by input name."""
        if missing := next((name for name in self.inputs if name not in columns), None):
            raise DataError(
                f"The prompt has a placeholder {{{{{missing}}}}}, and there is no value for it."
                f"{did_you_mean(missing, columns)}",
                f"Give each of its inputs: {', '.join(self.inputs)}.",
            )
        texts = [to_text_column(columns[name]) for name in self.inputs]
        if self.is_single_input:
            return texts[0]
        import pyarrow.compute as pc

        pieces = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else texts[p] for p in self._parts]
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))

    def conversation(self, user: str) -> tuple[Message, ...]:
        """The system message, if there is one, and a rendered user text."""
        question = Message("user", user)
        return (question,) if self.system is None else (Message("system", self.system), question)


def _parse_template(template: str) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    inputs: dict[str, tuple[int, str]] = {}
    parts: list[str | int] = []
    for i, piece in enumerate(PLACEHOLDER.split(template)):
        if i % 2:
            parts.append(inputs.setdefault(piece.casefold(), (len(inputs), piece))[0])
        elif (at := piece.find("{{")) >= 0:
            raise DataError(
                f"The prompt_template has a '{{{{' without a name and '}}}}' behind it: {piece[at : at + 40]!r}.",
                "Write a placeholder as {{name}}; for literal braces put a space between them.",
            )
        elif piece:
            parts.append(piece)
    if not inputs:
        single = re.search(r"\{\s*([A-Za-z_]\w*)\s*\}", template)
        raise DataError(
            f"The prompt_template {template[:80]!r} has no placeholder, so every row would ask the same.",
            f"An input has two braces on each side: {{{{{single[1]}}}}}, not {{{single[1]}}}."
            if single
            else "Put the name of an input in double braces: prompt_template = '{{content}}'.",
        )
    return tuple(name for _, name in inputs.values()), tuple(parts)


def to_text(value: object) -> str:
    """A value of JSON as text: nested ones as JSON, NULL is ''.

    >>> to_text("a"), to_text(True), to_text(None), to_text({"a": [1, None]})
    ('a', 'true', '', '{"a":[1,null]}')
    """
    if value is None:
        return ""
    text = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    )
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def to_text_column(column: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """A column of any type as texts without NULLs: DuckDB's own, which is '' for NULL."""
    kind = column.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_decimal256(kind)):
        with duckdb.connect() as con:
            with suppress(duckdb.Error):  # an offset has no name: it is shown as UTC
                con.execute("SET TimeZone = ?", [getattr(kind, "tz", None) or "UTC"])
            relation = con.from_arrow(pa.table({"value": column}))
            text = prompt_text_sql("value", str(relation.types[0]))
            column = relation.project(f"{text} AS value").to_arrow_table().column("value")
    texts = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return _replace_invalid_utf8(texts.cast(pa.large_string())).fill_null("")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _replace_invalid_utf8(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The same texts, bytes that are no UTF-8 replaced by U+FFFD."""
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        raw = texts.cast(pa.large_binary()).to_pylist()
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in raw], pa.large_string())


def is_nested_type(kind: str) -> bool:
    """Whether a prompt has a value of this type as JSON."""
    return kind.endswith("]") or kind.startswith(("STRUCT(", "MAP(", "UNION("))


def prompt_text_sql(expression: str, kind: str) -> str:
    """SQL for the text of a value in a prompt: what DuckDB writes, nested ones as JSON.

    >>> prompt_text_sql("x", "INTEGER[]")
    'CAST(to_json(x) AS VARCHAR)'
    """
    return f"CAST(to_json({expression}) AS VARCHAR)" if is_nested_type(kind) else f"CAST({expression} AS VARCHAR)"
