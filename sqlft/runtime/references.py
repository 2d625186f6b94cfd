"""Which models a query reads, and which of its columns are theirs: sqlglot reads, nothing is regenerated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from sqlft.errors import NotSupported, StatementError
from sqlft.runtime.anatomy import Anatomy, Block, Span
from sqlft.runtime.models import Resolved
from sqlft.sql.lexer import Token, tokens

WINDOWS_AND_AGGREGATES = (exp.AggFunc, exp.Window)


class Part(NamedTuple):
    """One identifier of a dotted name."""

    name: str
    span: Span


class Use(NamedTuple):
    """A column of a model where it is mentioned; `span` covers the whole dotted name."""

    column: str
    span: Span
    prefix: Span | None
    """A project before the alias, to be cut."""


@dataclass
class Reference:
    """A model in a FROM clause."""

    resolved: Resolved
    span: Span
    """project.name.N in the text."""
    alias: str
    aliased: bool
    node: exp.Select
    block: Block
    depth: int
    uses: list[Use] = field(default_factory=list)
    whole: bool = False
    """A star, COLUMNS(…) or the alias as a row reads everything."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs."""
        return self.resolved.prompt.inputs

    @property
    def targets(self) -> tuple[str, ...]:
        """The answer's columns."""
        return self.resolved.outputs.names

    @property
    def outputs(self) -> tuple[str, ...]:
        """The answer's columns, then those about it: its error, usage and logprob."""
        return (*self.targets, *self.resolved.outputs.derived)

    def reads(self, column: str) -> bool:
        """Whether the text mentions a column of the model."""
        return any(u.column.lower() == column.lower() for u in self.uses)


def same_length(text: str, words: list[Token], is_model: Callable[[str], bool]) -> tuple[str, dict[int, int]]:
    """`name.N` as one identifier of the same length, `x` as "x"; and the version by where its name starts."""
    out, versions = list(text), {}
    for i, token in enumerate(words):
        if token.kind == "quoted" and text[token.start] == "`":
            out[token.start] = out[token.end - 1] = '"'
        if token.kind not in ("word", "quoted") or not is_model(token.value):
            continue
        number, end = _version_after(text, words, i)
        if number is None:
            continue
        versions[token.start] = number
        plain = text[token.start : end]
        if token.kind == "word":
            out[token.start : end] = list(_padded(plain, token.end - token.start))
        else:
            inner = plain[1 : token.end - token.start - 1]
            out[token.start : end] = list('"' + inner + "_" * (len(plain) - len(inner) - 2) + '"')
    return "".join(out), versions


def _padded(plain: str, name_length: int) -> str:
    return plain[:name_length] + "_" * (len(plain) - name_length)


def _version_after(text: str, words: list[Token], i: int) -> tuple[int | None, int]:
    """The number and the end of `.N` behind token i."""
    following = words[i + 1 : i + 3]
    if following and following[0].kind == "number" and following[0].text.startswith("."):
        digits = following[0].text[1:]
        return (int(digits), following[0].end) if digits.isdigit() else (None, 0)
    if (
        len(following) == 2
        and following[0].text == "."
        and following[1].kind == "number"
        and following[1].text.isdigit()
    ):
        return int(following[1].text), following[1].end
    return None, 0


class Reading:
    """One text read once: its tree, its tokens and what it mentions."""

    def __init__(self, text: str, is_model: Callable[[str], bool]) -> None:
        self.text = text
        self.tokens = tokens(text)
        flat, self.versions = same_length(text, self.tokens, is_model)
        self.anatomy = Anatomy(text, self.tokens)
        try:
            with _quiet():
                self.tree: Any = sqlglot.parse_one(flat, read="duckdb")
        except (SqlglotError, RecursionError, ValueError, IndexError, TypeError, AttributeError) as e:
            raise _unreadable(text, e) from e
        if isinstance(self.tree, exp.Command):
            raise _unreadable(text, None)
        self._is_model = is_model

    def tables(self) -> Iterator[tuple[exp.Table, str, str, Span]]:
        """Every table name that no CTE hides: node, schema (or ''), name, span of the dotted name."""
        for table in self.tree.find_all(exp.Table):
            identifier = table.this
            if not isinstance(identifier, exp.Identifier) or "start" not in identifier.meta:
                continue
            schema = table.args.get("db")
            first = schema if schema is not None else identifier
            catalog = table.args.get("catalog")
            first = catalog if catalog is not None else first
            span = Span(first.meta["start"], identifier.meta["end"] + 1)
            name = self._token_value(identifier.meta["start"])
            if schema is None and _hidden_by_cte(table, name):
                continue
            yield table, schema.name if schema is not None else "", name, span

    def _token_value(self, position: int) -> str:
        return self.tokens[self.anatomy.index(position)].value

    def version_at(self, span: Span) -> int | None:
        """The N of name.N if the dotted name at `span` has one."""
        return next((n for start, n in self.versions.items() if span.has(start)), None)

    def reference(self, table: exp.Table, span: Span, resolved: Resolved) -> Reference:
        """The model at `table`, with all the uses of its columns."""
        select = table.find_ancestor(exp.Select)
        if select is None:
            raise NotSupported(
                f"The model '{resolved.model.key.name}' stands where only a table can.",
                "Read it in a SELECT: … FROM table JOIN model ON ….",
            )
        if _in_recursion(table):
            raise NotSupported(
                f"The model '{resolved.model.key.name}' is read inside a recursive CTE: its steps would wait.",
                "Keep the recursion in a table, and join the model to that.",
            )
        alias = table.args.get("alias")
        name = alias.this.name if alias is not None and alias.this is not None else resolved.model.key.name
        if alias is not None and alias.args.get("columns"):
            raise NotSupported(
                "A model's columns cannot be renamed in its alias.", "Rename them in the SELECT: m.answer AS a."
            )
        block = self.anatomy.block_around(span.start)
        depth = self.anatomy.depth[self.anatomy.index(span.start)]
        reference = Reference(resolved, span, name, alias is not None, select, block, depth)
        self._find_uses(reference, table)
        return reference

    def _find_uses(self, reference: Reference, table: exp.Table) -> None:
        mine = {c.lower() for c in (*reference.inputs, *reference.outputs)}
        alias, project = reference.alias.lower(), reference.resolved.model.key.project.lower()
        for column in reference.node.find_all(exp.Column, exp.Dot):
            parts = parts_of(column)
            if not parts or isinstance(column.parent, exp.Column):
                continue
            names = [p.name.lower() for p in parts]
            whole = Span(parts[0].span.start, parts[-1].span.end)
            if names[0] == alias and len(parts) > 1:
                reference.uses.append(Use(parts[1].name, whole, None))
            elif names[0] == project and len(parts) > 2 and names[1] == alias:
                prefix = Span(parts[0].span.start, parts[1].span.start)
                reference.uses.append(Use(parts[2].name, whole, prefix))
            elif names[0] in mine:
                reference.uses.append(Use(parts[0].name, whole, None))
            elif names == [alias]:
                reference.whole = True
        reference.whole = reference.whole or self._has_star(reference)

    def _has_star(self, reference: Reference) -> bool:
        for node in reference.node.find_all(exp.Star, exp.Columns):
            if isinstance(node, exp.Columns):
                return True
            if isinstance(node.parent, exp.Count):
                continue
            if isinstance(node.parent, exp.Column) and node.parent.table:
                if node.parent.table.lower() == reference.alias.lower():
                    return True
                continue
            if node.find_ancestor(exp.Select) is reference.node:
                return True
        return False


def parts_of(column: Any) -> list[Part]:
    """The identifiers of a column's dotted name, in order of the text."""
    found = []
    for node in column.find_all(exp.Identifier):
        if "start" in node.meta:
            found.append(Part(node.name, Span(node.meta["start"], node.meta["end"] + 1)))
    return sorted(found, key=lambda p: p.span.start)


def columns_of(tree: Any) -> Iterator[Any]:
    """Every column mentioned in the tree."""
    return cast("Iterator[Any]", tree.find_all(exp.Column))


def is_row_wise(select: exp.Select) -> bool:
    """Whether each row of the result comes from one row of the FROM clause alone."""
    if any(select.args.get(k) for k in ("distinct", "group", "having", "qualify", "windows", "sample", "pivots")):
        return False
    for projection in [*select.expressions, *([select.args["order"]] if select.args.get("order") else [])]:
        for node in projection.find_all(*WINDOWS_AND_AGGREGATES, exp.Anonymous):
            if isinstance(node, WINDOWS_AND_AGGREGATES) and node.find_ancestor(exp.Select) is select:
                return False
            if isinstance(node, exp.Anonymous) and node.find_ancestor(exp.Select) is select:
                return False  # could be an aggregate that sqlglot does not know
    return True


def _hidden_by_cte(table: exp.Table, name: str) -> bool:
    node: Any = table
    while node is not None:
        with_ = node.args.get("with_") or node.args.get("with")
        if with_ is not None and any(cte.alias.lower() == name.lower() for cte in with_.expressions):
            return True
        node = node.parent
    return False


def _in_recursion(table: exp.Table) -> bool:
    cte = table.find_ancestor(exp.CTE)
    if cte is None or not isinstance(cte.parent, exp.With) or not cte.parent.args.get("recursive"):
        return False
    return any(t.name.lower() == cte.alias.lower() for t in cte.find_all(exp.Table))


@contextmanager
def _quiet() -> Iterator[None]:
    """What sqlglot cannot read it says in the log, too."""
    log = logging.getLogger("sqlglot")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _unreadable(text: str, error: Exception | None) -> StatementError:
    offset = 0
    details = getattr(error, "errors", None)
    if details:
        line, col = details[0].get("line") or 1, details[0].get("col") or 1
        lines = text.split("\n")
        offset = min(len(text), sum(len(x) + 1 for x in lines[: line - 1]) + max(0, col - 1))
    known = details[0].get("description") if details else type(error).__name__
    reason = known if error is not None else f"a model cannot be read in {text.split()[0].upper()}"
    return StatementError(
        f"sqlft cannot read this query, which reads a model: {reason}.",
        text,
        offset,
        "Keep what is unusual out of the part with the model: put it into a view or a temporary table, and join that.",
    )
