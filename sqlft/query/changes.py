"""UPDATE … FROM and DELETE … USING as a query over their table, whose rows are matched by rowid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlft.sql.lexer import Token

CLAUSES = ("SET", "FROM", "USING", "WHERE", "RETURNING")


def as_query(text: str, found: Sequence[Token], word: str) -> tuple[str, Callable[[str], str]] | None:
    """The query of what is to be changed, and what makes the statement of its planned text; None if it has no form.

    >>> from sqlft.sql.lexer import tokens
    >>> query, statement = as_query(t := "DELETE FROM u USING t WHERE u.id = t.id", tokens(t), "DELETE")
    >>> query
    'SELECT u.rowid AS row_ FROM u, t WHERE u.id = t.id'
    >>> statement("SELECT 1")
    'DELETE FROM u WHERE rowid IN (SELECT 1)'
    """
    if found[0].word != word:
        return None
    places = _clauses(found)
    end = places.get("RETURNING", found[-1].end)
    returning = text[end:] if "RETURNING" in places else ""

    def clause(name: str, without_word: bool = True) -> str:
        if name not in places:
            return ""
        start = places[name] + (len(name) if without_word else 0)
        later = [p for p in places.values() if p > places[name]]
        return text[start : min([*later, end])].strip()

    if word == "DELETE":
        target = text[
            places["FROM"] + len("FROM") : min(p for p in [*places.values(), end, len(text)] if p > places["FROM"])
        ]
        alias = _alias(target)
        more = clause("USING")
        sources = f"{target.strip()}{f', {more}' if more else ''}"
        where = clause("WHERE", without_word=False)
        query = f"SELECT {alias}.rowid AS row_ FROM {sources} {where}".strip()
        head = f"DELETE FROM {target.strip()}"
        return query, lambda planned: f"{head} WHERE rowid IN ({planned}) {returning}".strip()
    if "SET" not in places:
        return None
    target = text[found[0].end : places["SET"]]
    alias = _alias(target)
    sets = _assignments(clause("SET"))
    if sets is None:
        return None
    values = ", ".join(f"({value}) AS v{i}" for i, (_, value) in enumerate(sets))
    more = clause("FROM")
    sources = f"{target.strip()}{f', {more}' if more else ''}"
    query = f"SELECT {alias}.rowid AS row_, {values} FROM {sources} {clause('WHERE', without_word=False)}".strip()
    assigned = ", ".join(f"{column} = new_.v{i}" for i, (column, _) in enumerate(sets))
    head = f"UPDATE {target.strip()} SET {assigned}"
    return query, lambda planned: f"{head} FROM ({planned}) AS new_ WHERE {alias}.rowid = new_.row_ {returning}".strip()


def _clauses(found: Sequence[Token]) -> dict[str, int]:
    """Where each clause of the statement starts."""
    places: dict[str, int] = {}
    depth = 0
    for i, token in enumerate(found):
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "op" else 0
        before = found[i - 1] if i else token
        is_distinct = token.word == "FROM" and before.word == "DISTINCT"
        if depth == 0 and token.word in CLAUSES and token.word not in places and before.text != "." and not is_distinct:
            places[token.word] = token.start
    return places


def _alias(target: str) -> str:
    """The name by which a table's columns are called: its alias, or the last part of its name."""
    from sqlft.sql.lexer import tokens

    found = [t for t in tokens(target) if t.word != "AS"]
    return found[-1].text


def _assignments(text: str) -> list[tuple[str, str]] | None:
    """column = value, …; None for (a, b) = (…)."""
    from sqlft.sql.lexer import tokens

    found = tokens(text)
    depth, start, parts = 0, 0, []
    for token in found:
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "op" else 0
        if depth == 0 and token.text == ",":
            parts.append(text[start : token.start])
            start = token.end
    parts.append(text[start:])
    made = []
    for part in parts:
        inner = tokens(part)
        equal = next((t for t in inner if t.text == "="), None)
        if equal is None or (inner and inner[0].text == "("):
            return None
        made.append((part[: equal.start].strip(), part[equal.end :].strip()))
    return made
