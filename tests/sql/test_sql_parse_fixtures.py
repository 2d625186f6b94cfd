"""parse/*.sql: a statement or a text, a blank line after it, and in `-->` lines what it becomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sqlft.errors import StatementError
from sqlft.sql.parser import may_be_sqlft, parse
from sqlft.sql.statements import ExplainTraining, ModelName, Plain, RowSource, Statement

FIXTURES = sorted((Path(__file__).parent / "parse").glob("*.sql"))


def blocks(file: Path) -> list[tuple[str, str]]:
    """(input, expected) of each block; a block of comments alone is none."""
    found = []
    for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
        lines = block.split("\n")
        text = "\n".join(line for line in lines if not line.startswith("-->"))
        expected = "\n".join(line[4:] for line in lines if line.startswith("-->"))
        if expected or not text.startswith("--"):
            found.append((text, expected))
    return found


def outcome(text: str) -> str:
    """A line for each statement, or the error with its place and its next step."""
    try:
        return "\n".join(shown(s) for s in parse(text))
    except StatementError as e:
        return f"error {e.line}:{e.column}: {e.message.splitlines()[0]} -> {e.next_step}"


def shown(value: Any) -> str:
    if isinstance(value, Statement):
        fields = [f for f in dataclasses.fields(value) if f.name not in ("text", "offset")]
        given = [f for f in fields if getattr(value, f.name) != default(f)]
        return f"{type(value).__name__}({', '.join(f'{f.name}={shown(getattr(value, f.name))}' for f in given)})"
    if isinstance(value, RowSource):
        asked = f" ? {[p.key for p in value.parameters]}" if value.parameters else ""
        return f"<{value.database or ''}({value.query!r}){asked}>"
    if isinstance(value, ModelName):
        return ".".join(str(part) for part in (value.project, value.name, value.version) if part is not None)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if type(value) is tuple:
        return "(" + ", ".join(shown(v) for v in value) + ")"
    return repr(value)


def default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


@pytest.mark.parametrize(
    ("text", "expected"),
    [pytest.param(*block, id=f"{file.stem}:{i}") for file in FIXTURES for i, block in enumerate(blocks(file))],
)
def test_becomes(text: str, expected: str) -> None:
    assert outcome(text) == expected


@pytest.mark.parametrize("file", [f for f in FIXTURES if f.stem != "plain"], ids=lambda f: f.stem)
def test_the_quick_look_lets_none_of_ours_pass(file: Path) -> None:
    for text, expected in blocks(file):
        if not expected.startswith("Plain") and "SELECT" not in text[:6]:
            assert may_be_sqlft(text), text


@pytest.mark.parametrize("file", FIXTURES, ids=lambda f: f.stem)
def test_text_and_offset_are_the_statements_place(file: Path) -> None:
    for text, expected in blocks(file):
        if not expected.startswith("error"):
            for statement in parse(text):
                piece = text[statement.offset : statement.offset + len(statement.text)]
                assert piece == statement.text
                assert parse(statement.text)[0] == dataclasses.replace(_moved(statement), offset=0)


def _moved(statement: Statement) -> Statement:
    """The statement as it would be at the start of its own text."""
    changed = {
        f.name: value._replace(offset=value.offset - statement.offset)
        for f in dataclasses.fields(statement)
        if isinstance(value := getattr(statement, f.name), RowSource)
    }
    if isinstance(statement, ExplainTraining):
        inner = dataclasses.replace(statement.training, offset=statement.offset)
        moved = dataclasses.replace(_moved(inner), offset=0)
        return dataclasses.replace(statement, training=moved)
    if isinstance(statement, Plain) or not hasattr(statement, "options"):
        return dataclasses.replace(statement, **changed)
    options = {
        k: v._replace(offset=v.offset - statement.offset) if isinstance(v, RowSource) else v
        for k, v in statement.options.items()
    }
    return dataclasses.replace(statement, **changed, options=options)
