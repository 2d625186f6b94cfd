"""SHOW and DESCRIBE, and statements of MindsDB that mean something else here."""

from __future__ import annotations

from collections.abc import Callable

from sqlft.sql import statements as s
from sqlft.sql.cursor import NAME_KINDS, Cursor, NamePart
from sqlft.sql.grammar.models import parse_engine_name


def show_models(c: Cursor) -> s.Statement | None:
    """SHOW MODELS [FROM|IN project] [LIKE pattern] [WHERE condition]"""
    if not _skip_show(c):
        return None
    project = c.identifier("a project's name") if c.skip("FROM") or c.skip("IN") else None
    return s.ShowModels(parse_like(c), parse_where(c), project)


def show_list(kind: type[s.ShowList]) -> Callable[[Cursor], s.Statement | None]:
    """The method that reads SHOW … [LIKE pattern] [WHERE condition]."""

    def method(c: Cursor) -> s.Statement | None:
        return kind(parse_like(c), parse_where(c)) if _skip_show(c) else None

    return method


def describe_engine(c: Cursor) -> s.Statement | None:
    """DESCRIBE ML_ENGINE name; a table may have that name."""
    if c.peek(2).kind not in NAME_KINDS:
        return describe(c)
    c.next(2)
    name = parse_engine_name(c, "an engine's name")
    c.expect_end()
    return s.DescribeEngine(name)


def describe_model(c: Cursor) -> s.Statement | None:
    """DESCRIBE MODEL name[.N][.attribute]; a table or a model may be named so."""
    if c.peek(2).kind not in NAME_KINDS:
        return describe(c)
    c.next(2)
    statement = _parse_described(c, c.dotted_name("a model's name"), explicit=True)
    c.expect_end()
    return statement


def describe(c: Cursor) -> s.Statement | None:
    """DESCRIBE|SHOW name[.N][.attribute]; DuckDB's where it is more than a name: SHOW ALL TABLES."""
    c.next()
    if c.token.kind not in NAME_KINDS or any(
        t.kind not in (*NAME_KINDS, "number") and t.text != "." for t in c.tokens[1:]
    ):
        return None
    if any(a.kind in NAME_KINDS and b.kind in NAME_KINDS for a, b in zip(c.tokens[1:], c.tokens[2:], strict=False)):
        return None
    return _parse_described(c, c.dotted_name("a name"), explicit=False)


def _parse_described(c: Cursor, parts: list[NamePart], explicit: bool) -> s.Statement:
    places = [i for i, part in enumerate(parts) if isinstance(part.value, int)]
    if places[1:]:
        raise c.error("There are two version numbers.", token=parts[places[1]].token)
    end = places[0] if places else len(parts)
    number = parts[end].value if places else None
    before, after = ([str(part.value) for part in some] for some in (parts[:end], parts[end + 1 :]))
    return _make_describe(c, before, number if isinstance(number, int) else None, after, explicit, parts)


def _make_describe(
    c: Cursor, before: list[str], number: int | None, after: list[str], explicit: bool, parts: list[NamePart]
) -> s.Statement:
    """a.b is model a's attribute b, unless a is the default project; a.b.c a model b of project a.

    MindsDB's `project.models.name` is `project.name`.
    """
    if len(before) > 2 and before[1].lower() == "models":
        del before[1]
        if len(before) == 2 and number is None:
            return s.DescribeModel(s.ModelName(before[1], None, before[0]), None, explicit)
    if len(before) + len(after) > 3 or len(before) > (3 if number is None else 2) or len(after) > 1:
        raise c.error("A model is named [project.]name[.N][.attribute].", token=parts[-1].token)
    if number is not None:
        name = s.ModelName(before[-1], number, before[0] if before[1:] else None)
        return s.DescribeModel(name, after[0] if after else None, explicit)
    if len(before) == 3:
        return s.DescribeModel(s.ModelName(before[1], None, before[0]), before[2], explicit)
    if len(before) == 2 and before[0].lower() != s.DEFAULT_PROJECT:
        return s.DescribeModel(s.ModelName(before[0]), before[1], explicit, s.ModelName(before[1], None, before[0]))
    return s.DescribeModel(s.ModelName(before[-1], None, before[0] if before[1:] else None), None, explicit)


def _skip_show(c: Cursor) -> bool:
    """Steps over SHOW MODELS; False for SHOW models.x, a table of DuckDB's."""
    c.next()
    while c.at("FULL") or c.at("EXTENDED"):
        c.next()
    c.next()
    return c.token.text != "."


def parse_like(c: Cursor) -> str | None:
    """[LIKE pattern]"""
    if not c.skip("LIKE"):
        return None
    if c.token.kind != "string":
        raise c.unexpected("a pattern such as 'ft%'")
    return c.next().value


def parse_where(c: Cursor) -> str | None:
    """The condition as typed, to the end of the statement."""
    if not c.skip("WHERE"):
        c.expect_end()
        return None
    if c.token.kind == "end":
        raise c.unexpected("a condition")
    return c.text[c.token.start : c.tokens[-1].end]


_JOBS = (
    "sqlft has no jobs: a statement runs when it is sent.",
    "Let cron or another scheduler send it: sqlft app.duckdb -c 'SELECT …'",
)
_TRIGGERS = (
    "sqlft has no triggers that watch a table.",
    "Let cron or another scheduler send the statement: sqlft app.duckdb -c 'INSERT INTO … SELECT …'",
)
_AGENTS = (
    "sqlft has no agents and no skills: a model answers the question of a row, and calls no tools.",
    "Make a model: CREATE MODEL name PREDICT answer USING engine = …, prompt_template = '… {{question}}'",
)
_CHATBOTS = (
    "sqlft has no chatbots: it connects to no chat service.",
    "Make a model, and let your program ask it: SELECT answer FROM name WHERE question = ?",
)
_UNSUPPORTED_KINDS = {
    "JOB": _JOBS,
    "AGENT": _AGENTS,
    "SKILL": _AGENTS,
    "CHATBOT": _CHATBOTS,
}


def make_refusal(message: str, next_step: str) -> Callable[[Cursor], s.Statement | None]:
    """A method that refuses a statement at its second word."""

    def method(c: Cursor) -> s.Statement | None:
        c.next()
        while c.at("OR") or c.at("REPLACE"):
            c.next()
        raise c.error(message, next_step)

    return method


def create_trigger(c: Cursor) -> s.Statement | None:
    """CREATE TRIGGER name ON table (…) is MindsDB's; DuckDB writes BEFORE or AFTER behind the name."""
    ahead = 5 if [c.peek(i).word for i in (2, 3, 4)] == ["IF", "NOT", "EXISTS"] else 2
    while c.peek(ahead + 1).text == ".":
        ahead += 2
    return make_refusal(*_TRIGGERS)(c) if c.peek(ahead + 1).word == "ON" else None


def drop_trigger(c: Cursor) -> s.Statement | None:
    """DROP TRIGGER name; where ON follows it is DuckDB's."""
    return None if any(token.word == "ON" for token in c.tokens) else make_refusal(*_TRIGGERS)(c)


REFUSED_STATEMENTS: dict[tuple[str, str], tuple[Callable[[Cursor], s.Statement | None], type[s.Statement]]] = {
    ("CREATE", "TRIGGER"): (create_trigger, s.Plain),
    ("DROP", "TRIGGER"): (drop_trigger, s.Plain),
    **{
        (verb, kind): (make_refusal(*text), s.Plain)
        for kind, text in _UNSUPPORTED_KINDS.items()
        for verb in ("CREATE", "DROP", "ALTER")
    },
}
"""By the first two words, as in `parser.STATEMENTS`."""
