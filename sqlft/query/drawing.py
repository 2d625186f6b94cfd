"""A plan as a tree of boxes, the way DuckDB draws one: a node's first child below it, the others to its right."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WIDTH = 33
"""Letters of a box's lines, at most."""
ROWS = ("operator_cardinality", "intermediate_rows")
TIMES = ("operator_timing", "timing")
NAMES = ("name", "operator_name", "type", "operator_type")
ROOTS = ("RESULT_COLLECTOR", "EXPLAIN_ANALYZE", "QUERY")


@dataclass
class Node:
    """One operator: its name, lines `key: value` or `value`, and what its rows come from."""

    name: str
    lines: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    columns: frozenset[str] = frozenset()
    """What a scan reads, in lower case."""
    is_arrow: bool = False
    rows: int | None = None
    """How many it gave, where it ran."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has in place of the lines."""

    def json(self) -> dict[str, Any]:
        """As EXPLAIN (FORMAT JSON) has it."""
        return {"name": self.name, "children": [c.json() for c in self.children], "extra_info": dict(self.facts)}


def node_of(plan: Mapping[str, Any]) -> Node:
    """An operator of DuckDB's EXPLAIN (FORMAT JSON), with or without ANALYZE."""
    name = str(next((plan[n] for n in NAMES if plan.get(n)), "")).strip()
    children = [node_of(c) for c in plan.get("children", [])]
    if name in ROOTS and len(children) == 1:
        return children[0]
    extra = dict(plan.get("extra_info") or {})
    estimated = extra.pop("Estimated Cardinality", None)
    lines = [f"{key}: {_text(value)}" for key, value in extra.items() if value not in ("", [], None)]
    actual = next((plan[n] for n in ROWS if n in plan), None)
    if actual is not None:
        seconds = next((plan[n] for n in TIMES if n in plan), 0.0)
        lines.append(f"{count(actual)} row{'s'[: actual != 1]} in {seconds:.4f} s")
    elif estimated is not None:
        lines.append(f"~{estimated} rows")
    reads = extra.get("Projections", [])
    columns = frozenset(str(c).strip('"').lower() for c in ([reads] if isinstance(reads, str) else reads))
    facts = {k: v for k, v in plan.items() if k not in ("children", "extra_info", *NAMES)} | (
        extra if estimated is None else {**extra, "Estimated Cardinality": estimated}
    )
    is_arrow = "ARROW_SCAN" in str(extra.get("Function", "")) or "ARROW_SCAN" in name
    return Node(name, lines, children, columns, is_arrow, actual, facts)


def draw(root: Node) -> str:
    """The tree as text."""
    return "\n".join(line.rstrip() for line in _block(root, _widths(root, {}, 0)[0], 0)) + "\n"


def boxed(title: str, lines: list[str]) -> str:
    """One box by itself."""
    width = max(len(title) + 3, *(len(line) for line in lines), 0)
    return "\n".join(_box(title, lines, width, above=False, below=False)) + "\n"


def count(number: float) -> str:
    """1,234"""
    return f"{round(number):,}"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("\n", ", ")


def _wrapped(lines: list[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        found += textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=True) or [""]
    return found


def _title(node: Node) -> str:
    return node.name if node.name != node.name.upper() else node.name.replace("_", " ").title()


def _widths(node: Node, widths: dict[int, int], column: int) -> tuple[dict[int, int], int]:
    """The width of every column of boxes, and the first column that is free."""
    needed = max([len(_title(node)) + 4, *(len(line) for line in _wrapped(node.lines))])
    widths[column] = max(widths.get(column, 0), needed)
    free = column + 1
    for k, child in enumerate(node.children):
        _, end = _widths(child, widths, column if k == 0 else free)
        free = max(free, end)
    return widths, free


def _span(node: Node) -> int:
    """How many columns a node and what is below it take."""
    return max(1, sum(_span(c) for c in node.children))


def _block(node: Node, widths: dict[int, int], column: int, above: bool = False) -> list[str]:
    width = widths[column]
    lines = _box(_title(node), _wrapped(node.lines), width, above=above, below=bool(node.children))
    if not node.children:
        return lines
    places = [column]
    for child in node.children[:-1]:
        places.append(places[-1] + _span(child))
    starts = [sum(widths[c] + 6 for c in range(column, place)) for place in places]
    if len(places) > 1:
        lines.append(_connector([s + _middle(widths[p]) for s, p in zip(starts, places, strict=True)]))
    blocks = [_block(child, widths, place, above=True) for child, place in zip(node.children, places, strict=True)]
    for row in range(max(map(len, blocks))):
        line = ""
        for start, block in zip(starts, blocks, strict=True):
            if row < len(block):
                line = line.ljust(start) + block[row]
        lines.append(line)
    return lines


def _box(title: str, lines: list[str], width: int, *, above: bool, below: bool) -> list[str]:
    top = list(f"╭─ {title} ".ljust(width + 3, "─") + "╮")
    bottom = list("╰" + "─" * (width + 2) + "╯")
    at = _middle(width)
    if above and at > len(title) + 3:
        top[at] = "┴"
    if below:
        bottom[at] = "┬"
    return ["".join(top), *(f"│ {line.ljust(width)} │" for line in lines), "".join(bottom)]


def _middle(width: int) -> int:
    return (width + 4) // 2


def _connector(places: list[int]) -> str:
    line = list(" " * (places[-1] + 1))
    line[places[0] : places[-1]] = "─" * (places[-1] - places[0])
    line[places[0]], line[places[-1]] = "├", "╮"
    for place in places[1:-1]:
        line[place] = "┬"
    return "".join(line)
