"""A prompt_template and what it makes of a row: the only rendering there is, for training and for asking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sqlft.data.values import text_column, text_of
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
        object.__setattr__(self, "template", text_of(self.template))
        object.__setattr__(self, "system", None if self.system is None else text_of(self.system))
        inputs, parts = _parse(self.template)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "_parts", parts)

    @property
    def is_bare(self) -> bool:
        """Whether the prompt is one input's text and nothing else."""
        return self._parts == (0,)

    def messages(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The conversation that asks for one row; `values` by input name, of any type, NULL is ''."""
        try:
            texts = [text_of(values[name]) for name in self.inputs]
        except KeyError as e:
            raise self._no_value(e.args[0], values) from None
        return self.conversation("".join([p if isinstance(p, str) else texts[p] for p in self._parts]))

    def render_column(self, columns: Mapping[str, Any]) -> Any:
        """The user texts of many rows, as `messages` has them: arrays by input name -> pa.LargeStringArray."""
        try:
            texts = [text_column(columns[name]) for name in self.inputs]
        except KeyError as e:
            raise self._no_value(e.args[0], columns) from None
        if self.is_bare:
            return texts[0]
        import pyarrow.compute as pc

        pieces = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else texts[p] for p in self._parts]
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))

    def conversation(self, user: str) -> tuple[Message, ...]:
        """The system message, if there is one, and a rendered user text."""
        asked = Message("user", user)
        return (asked,) if self.system is None else (Message("system", self.system), asked)

    def _no_value(self, name: str, given: Mapping[str, Any]) -> DataError:
        return DataError(
            f"The prompt has a placeholder {{{{{name}}}}}, and there is no value for it.{did_you_mean(name, given)}",
            f"Give each of its inputs: {', '.join(self.inputs)}.",
        )


def _parse(template: str) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    inputs: dict[str, tuple[int, str]] = {}
    parts: list[str | int] = []
    for i, piece in enumerate(PLACEHOLDER.split(template)):
        if i % 2:
            parts.append(inputs.setdefault(piece.casefold(), (len(inputs), piece))[0])
        elif piece:
            _check_literal(piece)
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


def _check_literal(piece: str) -> None:
    if (at := piece.find("{{")) >= 0:
        raise DataError(
            f"The prompt_template has a '{{{{' without a name and '}}}}' behind it: {piece[at : at + 40]!r}.",
            "Write a placeholder as {{name}}; for literal braces put a space between them.",
        )
