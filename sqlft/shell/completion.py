"""What Tab offers: by the place of the cursor keywords, tables, models, columns, versions, options or their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from glob import iglob
from os.path import isdir
from typing import Any, NamedTuple

from sqlft.errors import StatementError
from sqlft.metrics import METRICS
from sqlft.shell.commands import COMMANDS
from sqlft.shell.modes import MODES
from sqlft.shell.plots import CHARTS
from sqlft.shell.topics import main_topics
from sqlft.shell.vocabulary import Relation, Vocabulary, options_for, values_of
from sqlft.sql.lexer import Token, split, tokens
from sqlft.sql.names import written
from sqlft.sql.parser import STATEMENTS
from sqlft.statements.describe import ATTRIBUTES

_PREFIX = re.compile(r"\w*\Z")
_BEFORE_RELATION = {"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "DESCRIBE", "DESC", "SUMMARIZE", "VIEW"}
_LEADING = {"SHOW", "EVALUATE", "ANALYZE", "REPORT", "CANCEL", "RESUME", "UNLOAD"}
"""Words behind which our keywords come before all others."""
_BEFORE_MODEL = {"MODEL", "PREDICTOR", "FINETUNE", "RETRAIN", "ACTIVE", "MODEL_ACTIVE"}


class Suggestion(NamedTuple):
    """A text in place of the `length` characters before the cursor, and what it is."""

    text: str
    length: int
    about: str = ""


def suggestions(before: str, vocabulary: Callable[[], Vocabulary], after: str = "") -> list[Suggestion]:
    """What may come between `before` and `after`, likeliest first."""
    text = before.lstrip()
    if text.startswith("."):
        return list(_for_command(text, vocabulary))
    spans = split(before)
    start = spans[-1].start if spans and not _is_ended(before, spans[-1].end) else len(before)
    prefix = _PREFIX.search(before)
    word = prefix[0] if prefix else ""
    found, quote = _tokens(before[start : len(before) - len(word)])
    if found is None:
        return []
    later, _ = _tokens(after.partition(";")[0])
    place = _Place(found, later or [], vocabulary())
    offered = place.values(quote) if quote else place.offers()
    return list(_matching(offered, word))


class _Place:
    """The tokens of a statement before the word at the cursor."""

    def __init__(self, found: list[Token], later: list[Token], vocabulary: Vocabulary) -> None:
        self._found, self._later, self._known = found, later, vocabulary
        self._words = [t.word or t.text for t in found]
        self._last = self._words[-1] if found else ""

    def offers(self) -> Iterator[tuple[str, str]]:
        """Words and what they are."""
        if self._last == "." and self._words[:1] in (["DESCRIBE"], ["DESC"]) and self._is_model():
            yield from ((name, "what DESCRIBE shows") for name in ATTRIBUTES)
        elif self._last == ".":
            yield from self._qualified(self._found[-2].value if len(self._found) > 1 else "")
        elif (using := self._using()) is not None:
            yield from self._options(using)
        elif following := self._following():
            yield from ((word, "keyword") for word in following)
            yield from ((name, "metric") for name in METRICS if self._words == ["EVALUATE"])
            yield from ((word, "keyword") for word in self._known.keywords if len(self._words) == 1)
        elif self._is_engine_place():
            yield from ((name, "engine") for name in sorted(self._known.engines))
        elif self._last in _BEFORE_MODEL or (self._words[-2:] == ["IF", "EXISTS"] and self._words[-3] in _BEFORE_MODEL):
            yield from ((written(m.name), "model") for m in self._known.models())
        elif self._last in _BEFORE_RELATION or (self._last == "," and self._is_in_from()):
            yield from self._relations()
        else:
            yield from self._columns()
            yield from ((word, "keyword") for word in self._known.keywords)
            yield from self._relations()

    def values(self, quote: str) -> Iterator[tuple[str, str]]:
        """Inside an open quote: engines and choices of an option, or names."""
        if self._last == "=" and len(self._found) > 1:
            for text, about in self._option_values(self._found[-2].value.lower(), self._using() or 0):
                yield text.strip("'"), about
        elif quote != "'":
            for name, about in self._columns(quoted=False):
                yield name, about

    def _following(self) -> list[str]:
        """The keywords that a statement of ours goes on with, behind its first word and behind its model's name."""
        words = self._words
        if len(words) == 1:
            kinds = [kind for verb, kind in STATEMENTS if verb == words[0] and kind in self._known.keywords]
            return kinds if words[0] in _LEADING else []
        if (
            not words
            or self._found[-1].kind not in ("word", "quoted")
            or self._last in _BEFORE_MODEL | {"IF", "EXISTS"}
        ):
            return []
        if words[0] in ("FINETUNE", "RETRAIN") and "FROM" not in words:
            return ["FROM"]
        if words[:2] == ["EVALUATE", "MODEL"] and "ON" not in words:
            return ["ON"]
        if words[0] == "CREATE" and {"MODEL", "PREDICTOR"} & set(words[:4]) and "PREDICT" not in words:
            return [] if "FROM" in words else ["PREDICT", "FROM"]
        return []

    def _is_model(self) -> bool:
        """Whether a model's name, or a version of it, stands before the point."""
        relation = self._known.relations.get(self._found[-2].value.lower()) if len(self._found) > 1 else None
        return relation is not None and relation.kind == "model"

    def _using(self) -> int | None:
        """Behind the USING whose options are being written; that of a join has a parenthesis."""
        for i in range(len(self._found) - 1, -1, -1):
            if self._words[i] == "USING":
                return i + 1 if i + 1 == len(self._found) or self._words[i + 1] != "(" else None
        return None

    def _options(self, using: int) -> Iterator[tuple[str, str]]:
        if self._last == "=":
            yield from self._option_values(self._found[-2].value.lower(), using)
        elif self._last in ("USING", ","):
            pairs = zip(self._found[using:], self._words[using + 1 :], strict=False)
            given = {key.value.lower() for key, sign in pairs if sign == "="}
            for name, option in self._takes(using).items():
                if name not in given:
                    yield f"{name} = ", f"{option.doc} ({option.type_name})"

    def _option_values(self, name: str, using: int) -> Iterator[tuple[str, str]]:
        if name == "engine":
            yield from ((f"'{engine}'", "engine") for engine in sorted(self._known.engines))
            return
        if name in ("metric", "metrics") and self._words[:1] == ["EVALUATE"]:
            yield from ((f"'{metric}'", "metric") for metric in METRICS)
            return
        option = self._takes(using).get(name)
        if option is not None:
            yield from ((value, option.doc) for value in values_of(option))

    def _takes(self, using: int) -> dict[str, Any]:
        names = [t.value for t in self._found[:using] if t.kind in ("word", "quoted")]
        return options_for([t.word for t in self._found[:using]], self._known, names, self._engine(using))

    def _engine(self, using: int) -> str:
        """The engine that the options name, or the handler of CREATE ML_ENGINE … FROM handler."""
        for key, sign, value in zip(self._found, self._found[1:], self._found[2:], strict=False):
            if key.value.lower() == "engine" and sign.text == "=":
                return value.value
        return self._found[using - 2].value if "ML_ENGINE" in self._words[:2] and using > 2 else ""

    def _is_engine_place(self) -> bool:
        created = self._words[:2] == ["CREATE", "ML_ENGINE"] and self._last == "FROM"
        return created or (self._last == "ML_ENGINE" and self._words[0] in ("DROP", "DESCRIBE", "DESC"))

    def _is_in_from(self) -> bool:
        for word in reversed(self._words):
            if word in ("FROM", "SELECT", "WHERE", "BY", "VALUES", "(", "SET"):
                return word == "FROM"
        return False

    def _relations(self) -> Iterator[tuple[str, str]]:
        yield from ((written(r.name), r.kind) for r in self._known.relations.values() if r.is_near)
        yield from ((written(name), "schema") for name in self._known.schemas if "." not in name)

    def _qualified(self, name: str) -> Iterator[tuple[str, str]]:
        for relation in self._named(name):
            yield from ((str(number), f"version of {relation.name}") for number in relation.versions)
            yield from ((written(c), kind) for c, kind in relation.columns.items())
        yield from ((written(t), "table") for t in self._known.schemas.get(name.lower(), ()))

    def _named(self, name: str) -> Iterator[Relation]:
        """The relation of this name, or that which has it as an alias."""
        if name.lower() in self._known.relations:
            yield self._known.relations[name.lower()]
        for i, token in enumerate([*self._found, *self._later]):
            if i and token.value.lower() == name.lower() and token.kind in ("word", "quoted"):
                yield from self._relations_before(i)

    def _relations_before(self, at: int) -> Iterator[Relation]:
        """That which an alias at this token stands for: `m a`, `m.2 AS a`."""
        found = [*self._found, *self._later]
        names = [t for t in found[max(0, at - 3) : at] if t.word != "AS" and not t.text.startswith(".")]
        if names and (relation := self._known.relations.get(names[-1].value.lower())):
            yield relation

    def _columns(self, quoted: bool = True) -> Iterator[tuple[str, str]]:
        """Of the tables and models that the statement names, also behind the cursor."""
        names = (t.value.lower() for t in [*self._found, *self._later] if t.kind in ("word", "quoted"))
        for name in dict.fromkeys(names):
            relation = self._known.relations.get(name)
            if relation is not None:
                for column, kind in relation.columns.items():
                    yield written(column) if quoted else column, f"{relation.name}: {kind}"


def _matching(offered: Iterable[tuple[str, str]], word: str) -> Iterator[Suggestion]:
    """Each once, keywords in the case of the word."""
    seen = set()
    for text, about in offered:
        bare = text.lstrip("\"'")
        if not bare.lower().startswith(word.lower()) or text.lower() in seen or text == word:
            continue
        seen.add(text.lower())
        shown = text.lower() if about == "keyword" and word and not word.isupper() else text
        yield Suggestion(shown, len(word), about)


def _for_command(text: str, vocabulary: Callable[[], Vocabulary]) -> Iterator[Suggestion]:
    name, blank, argument = text[1:].partition(" ")
    if not blank:
        yield from (
            Suggestion(f".{n}", len(text), c.run.__doc__ or "")
            for n, c in COMMANDS.items()
            if n.startswith(name.lower())
        )
        return
    takes = COMMANDS[name].takes if name in COMMANDS else ""
    if "FILE" in takes:
        yield from (Suggestion(p, len(argument)) for p in _paths(argument))
        return
    fixed = {
        "mode": [(m, "mode") for m in MODES],
        "timer": [("on", ""), ("off", "")],
        "plot": [(chart, title) for chart, (_, title, _) in CHARTS.items()],
        "help": [(heading, "statement") for heading in main_topics()],
    }
    offered = fixed.get(name, [])
    if "PATTERN" in takes:
        known = vocabulary()
        of_kind = known.models() if name == "models" else known.relations.values()
        offered = [(r.name, r.kind) for r in of_kind]
    yield from _matching(offered, argument)


def _paths(start: str) -> Iterator[str]:
    escaped = re.sub(r"([*?[])", r"[\1]", start)
    yield from sorted(p + "/" * isdir(p) for p in iglob(f"{escaped}*"))


def _tokens(text: str) -> tuple[list[Token] | None, str]:
    """The tokens before the cursor and the quote that is open there; None inside a comment or the like."""
    for quote in ("", "'", '"', "`"):
        try:
            found = tokens(text + quote)
        except StatementError:
            continue
        return (found[:-1] if quote else found), quote
    return None, ""


def _is_ended(text: str, at: int) -> bool:
    try:
        return any(t.text == ";" for t in tokens(text, at))
    except StatementError:
        return False
