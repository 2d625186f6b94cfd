"""What Tab offers: by the place of the cursor keywords, tables, models, columns, versions, options, values or files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from sqlft.errors import StatementError
from sqlft.metrics import METRICS
from sqlft.options import Option
from sqlft.shell.completion import syntax
from sqlft.shell.completion.arguments import complete_command, list_paths
from sqlft.shell.completion.vocabulary import (
    KNOWLEDGE_BASE,
    Relation,
    Vocabulary,
    find_options,
    list_bases,
    list_values,
)
from sqlft.sql.lexer import Token, split_statements, tokenize
from sqlft.sql.names import format_name
from sqlft.statements.databases import ENGINES as DATABASE_ENGINES
from sqlft.statements.describe import ATTRIBUTES

Offer = tuple[str, str]
"""What may stand there, and what it is."""
_PREFIX = re.compile(r"\w*\Z")
_BEFORE_RELATION = {"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "DESCRIBE", "DESC", "SUMMARIZE", "VIEW", "PIVOT", "COPY"}
_BEFORE_MODEL = {"MODEL", "PREDICTOR", "FINETUNE", "RETRAIN", "ACTIVE", "MODEL_ACTIVE"}
_BEFORE_FILE = {"FROM", "JOIN", "ATTACH", "LOAD", "SUMMARIZE", "DESCRIBE"}
_READS_FILES = re.compile(r"(read|parquet|sniff|scan|glob|from|st_read)(_|\Z)|.*_scan\Z", re.IGNORECASE)
"""Functions whose arguments are files: read_csv, parquet_metadata, sniff_csv, glob, sqlite_scan."""
_PATH_LIKE = re.compile(r"(\.{1,2}|~)?/|[^']*/")
MAX_SUGGESTIONS = 500
"""More are not shown: a menu of all functions helps nobody."""


class Suggestion(NamedTuple):
    """A text in place of the `length` characters before the cursor, and what it is."""

    text: str
    length: int
    about: str = ""


def suggest(before: str, vocabulary: Callable[[], Vocabulary], after: str = "") -> list[Suggestion]:
    """What may come between `before` and `after`, likeliest first."""
    if before.lstrip().startswith((".", "\\")):
        return [Suggestion(*suggestion) for suggestion in complete_command(before.lstrip(), vocabulary)]
    spans = split_statements(before)
    start = spans[-1].start if spans and not _is_ended(before, spans[-1].end) else len(before)
    tokens, quote = _tokenize_prefix(before[start:])
    if tokens is None:
        return []
    later, _ = _tokenize_prefix(after.partition(";")[0])
    if quote:
        opened = tokens.pop()
        word = before[start:][opened.text.index(quote) + opened.start + 1 :]
        closing = "" if after.startswith(quote) else quote
        offered = _CursorContext(tokens, later or [], vocabulary(), word).values(quote)
        return list(islice(_match(offered, word, closing), MAX_SUGGESTIONS))
    prefix = _PREFIX.search(before)
    word = prefix[0] if prefix else ""
    tokens, _ = _tokenize_prefix(before[start : len(before) - len(word)])
    place = _CursorContext(tokens or [], later or [], vocabulary(), word)
    return list(islice(_match(place.offers(), word), MAX_SUGGESTIONS))


class _CursorContext:
    """The tokens of a statement before the word at the cursor."""

    def __init__(self, tokens: list[Token], later: list[Token], vocabulary: Vocabulary, word: str) -> None:
        self._tokens, self._later_tokens, self._vocabulary, self._word = tokens, later, vocabulary, word
        self._words = [t.word or t.text for t in tokens]
        self._last = self._words[-1] if tokens else ""

    def offers(self) -> Iterator[Offer]:
        """Words and what they are."""
        if not self._tokens:
            yield from _offer_keywords(syntax.STARTS)
        elif self._last == ".":
            yield from self._qualified()
        elif (using := self._using()) is not None:
            yield from self._options(using)
            return
        elif self._last == "::":
            yield from ((name, "type") for name in self._vocabulary.language.types)
        else:
            names = list(self._names())
            coming = syntax.find_next_keywords(self._tokens)
            keywords = list(_offer_keywords(k for k in coming.keywords if k != "USING" or self._takes_options()))
            if self._is_behind_operand() or not coming.takes_name:
                yield from keywords
                yield from names
                yield from _offer_keywords(self._vocabulary.language.keywords if self._word else ())
            else:
                yield from names
            if self._is_expression():
                yield from self._expression(has_columns=not names)
            yield from keywords
        if self._word and self._last != ".":
            yield from _offer_keywords(self._vocabulary.language.keywords)

    def values(self, quote: str) -> Iterator[Offer]:
        """Inside an open quote: files, choices of an option, or names."""
        if quote != "'":
            yield from self._columns(quoted=False)
            yield from ((r.name, r.kind) for r in self._vocabulary.relations.values() if r.is_near)
            return
        option = self._assigned()
        if option is not None:
            for text, about in self._option_values(option, self._using() or 0):
                if text.startswith("'"):
                    yield text[1:-1], about
        if self._is_file() or (option is not None and _PATH_LIKE.match(self._word)):
            for path in list_paths(self._word.replace("''", "'")):
                yield path.replace("'", "''"), "folder" if path.endswith("/") else "file"

    # -- names ---------------------------------------------------------------------------------------------

    def _names(self) -> Iterator[Offer]:
        """What has the name that stands here, where that is clear."""
        words, last = self._words, self._last
        if words in (["USE"], ["DROP", "PROJECT"], ["SHOW", "MODELS", "FROM"], ["SHOW", "MODELS", "IN"]):
            yield from ((format_name(name), "project") for name in self._vocabulary.projects)
            if words == ["USE"]:
                yield from ((format_name(name), "schema") for name in self._vocabulary.schemas if name != "sqlft")
        elif (
            words[:1] == ["EVALUATE"] and words[1:2] != ["MODEL"] and "FROM" not in words and last in ("EVALUATE", ",")
        ):
            yield from ((name, "metric") for name in METRICS)
        elif self._is_engine_place():
            yield from ((name, "engine") for name in sorted(self._vocabulary.engines))
        elif self._is_knowledge_base_place():
            bases = (r for r in self._vocabulary.relations.values() if r.kind == KNOWLEDGE_BASE)
            yield from ((self._called(r), r.kind) for r in bases)
        elif self._is_model_place():
            yield from ((self._called(m), "model") for m in self._vocabulary.models())
        elif words in (["SET"], ["RESET"], ["PRAGMA"]):
            yield from ((name, about) for name, about in self._vocabulary.language.settings.items() if self._word)
        elif last in _BEFORE_RELATION or (last == "," and self._is_in_from()) or (words[0], last) == ("EVALUATE", "ON"):
            yield from self._relations()

    def _is_model_place(self) -> bool:
        words = self._words
        if self._last == "," and words[:2] == ["EVALUATE", "MODEL"]:
            return "ON" not in words
        if self._last == "FOR":
            return words[0] == "ANALYZE" or words[:2] == ["DROP", "CACHE"]
        behind = words[-3] if words[-2:] == ["IF", "EXISTS"] and len(words) > 2 else self._last
        is_new = words[0] == "CREATE" or (words[0] == "RENAME" and len(words) > 2)
        return behind in _BEFORE_MODEL and not is_new

    def _is_knowledge_base_place(self) -> bool:
        words = self._words
        behind = words[-3] if words[-2:] == ["IF", "EXISTS"] and len(words) > 2 else self._last
        is_another = self._last == "," and words[:2] == ["EVALUATE", "KNOWLEDGE_BASE"] and "ON" not in words
        return is_another or (behind == "KNOWLEDGE_BASE" and (words[0] != "CREATE" or "INDEX" in words))

    def _is_engine_place(self) -> bool:
        words = self._words
        created = words[:2] == ["CREATE", "ML_ENGINE"] and self._last == "FROM"
        priced = "PRICE" in words[:4] and self._last == "FOR"
        return created or priced or (self._last == "ML_ENGINE" and words[0] in ("DROP", "DESCRIBE", "DESC"))

    def _relations(self) -> Iterator[Offer]:
        is_written = self._last in ("INTO", "UPDATE", "TABLE", "VIEW")  # models are only read
        near = (r for r in self._vocabulary.relations.values() if r.is_near and (r.kind != "model" or not is_written))
        yield from ((self._called(r), r.kind) for r in near)
        yield from ((format_name(name), "schema") for name in self._vocabulary.schemas if "." not in name)
        if self._word and not is_written:
            yield from ((f"{name}(", about) for name, about in self._vocabulary.language.table_functions.items())

    def _called(self, relation: Relation) -> str:
        project = relation.project
        return f"{format_name(project)}.{format_name(relation.name)}" if project else format_name(relation.name)

    def _qualified(self) -> Iterator[Offer]:
        """Behind a point: attributes, versions, columns, or the tables of a schema."""
        before = self._tokens[-2] if len(self._tokens) > 1 else self._tokens[-1]
        name = before.value
        describes = self._words[:1] in (["DESCRIBE"], ["DESC"])
        if describes and before.kind == "number":
            yield from ((attribute, "what DESCRIBE shows") for attribute in ATTRIBUTES)
            return
        relation = self._vocabulary.relations.get(name.lower())
        is_model = relation is not None and relation.kind == "model"
        if describes and is_model:
            yield from ((attribute, "what DESCRIBE shows") for attribute in ATTRIBUTES)
        for relation_named in self._named(name):
            yield from ((str(number), f"version of {relation_named.name}") for number in relation_named.versions)
            if not describes:
                yield from ((format_name(c), kind) for c, kind in relation_named.columns.items())
        yield from ((format_name(t), kind) for t, kind in self._vocabulary.schemas.get(name.lower(), {}).items())

    def _named(self, name: str) -> Iterator[Relation]:
        """The relation of this name, or that which has it as an alias."""
        if (relation := self._relation_at(self._tokens, len(self._tokens) - 2)) is not None:
            yield relation
        for i, token in enumerate([*self._tokens, *self._later_tokens]):
            if i and token.value.lower() == name.lower() and token.kind in ("word", "quoted"):
                yield from self._relations_before(i)

    def _relations_before(self, at: int) -> Iterator[Relation]:
        """That which an alias at this token stands for: `m a`, `m.2 AS a`."""
        tokens = [*self._tokens, *self._later_tokens]
        names = [i for i in range(max(0, at - 3), at) if tokens[i].word != "AS" and not tokens[i].text.startswith(".")]
        if names and (relation := self._relation_at(tokens, names[-1])) is not None:
            yield relation

    # -- expressions ---------------------------------------------------------------------------------------

    def _is_behind_operand(self) -> bool:
        """Whether a name or a value stands before the cursor, so that a keyword is likeliest."""
        last = self._tokens[-1]
        return (last.kind != "op" and last.word not in self._vocabulary.language.keywords) or last.text in (
            ")",
            "*",
            "]",
        )

    def _takes_options(self) -> bool:
        """Whether USING may stand here: options are those of models; that of a join is another."""
        is_query = self._words[0] in ("SELECT", "FROM", "WITH", "INSERT", "COPY") or self._words[:2] == [
            "CREATE",
            "TABLE",
        ]
        reads_model = any(r.kind == "model" for r in self._mentioned())
        return not is_query or reads_model or "JOIN" in self._words

    def _is_expression(self) -> bool:
        """Whether columns and functions may stand here: in a query, behind WHERE, in a query's parentheses."""
        words = self._words
        is_ours = words[0] in ("FINETUNE", "RETRAIN", "EVALUATE", "ANALYZE", "REPORT", "SHOW", "DROP", "USE", "CREATE")
        is_inside = words.count("(") > words.count(")") or (words[0] == "CREATE" and "AS" in words)
        is_query = any(word in ("SELECT", "FROM", "WHERE", "SET", "VALUES", "CALL") for word in words)
        return is_query and self._last not in _BEFORE_RELATION and (is_inside or not is_ours)

    def _expression(self, *, has_columns: bool) -> Iterator[Offer]:
        if has_columns:
            yield from self._columns()
        if self._word:
            yield from ((f"{name}(", about) for name, about in self._vocabulary.language.functions.items())
            yield from ((self._called(r), r.kind) for r in self._vocabulary.relations.values() if r.is_near)

    def _columns(self, quoted: bool = True) -> Iterator[Offer]:
        """Of the tables and models that the statement names, also behind the cursor."""
        for relation in self._mentioned():
            for column, kind in relation.columns.items():
                yield format_name(column) if quoted else column, f"{relation.name}: {kind}"

    def _mentioned(self) -> list[Relation]:
        tokens = [*self._tokens, *self._later_tokens]
        named = [self._relation_at(tokens, i) for i, t in enumerate(tokens) if t.kind in ("word", "quoted")]
        return list({id(r): r for r in named if r is not None}.values())

    def _relation_at(self, tokens: list[Token], i: int) -> Relation | None:
        """What a token names, with the project that stands before it."""
        name = tokens[i].value.lower()
        full = f"{tokens[i - 2].value.lower()}.{name}" if i > 1 and tokens[i - 1].text == "." else ""
        return self._vocabulary.relations.get(full) or self._vocabulary.relations.get(name)

    def _is_in_from(self) -> bool:
        for word in reversed(self._words):
            if word in ("FROM", "SELECT", "WHERE", "BY", "VALUES", "(", "SET"):
                return word == "FROM"
        return False

    # -- options -------------------------------------------------------------------------------------------

    def _using(self) -> int | None:
        """Behind the USING whose options are being written; that of a join has a parenthesis."""
        for i in range(len(self._tokens) - 1, -1, -1):
            if self._words[i] == "USING":
                return i + 1 if i + 1 == len(self._tokens) or self._words[i + 1] != "(" else None
        return None

    def _options(self, using: int) -> Iterator[Offer]:
        option = self._assigned()
        if option is not None:
            yield from self._option_values(option, using)
        elif self._last in ("USING", ","):
            pairs = zip(self._tokens[using:], self._words[using + 1 :], strict=False)
            names = {key.value.lower() for key, sign in pairs if sign == "="}
            for name, option_ in self._takes(using).items():
                if name not in names:
                    yield f"{name} = ", f"{option_.doc} ({option_.type_name})"

    def _assigned(self) -> str | None:
        """The option whose value stands here, also inside its list; None where there is none."""
        at = len(self._words) - 1
        if self._last in ("[", ","):
            depth = 0
            while at >= 0 and not (self._words[at] == "[" and depth == 0):
                depth += (self._words[at] == "]") - (self._words[at] == "[")
                at -= 1
            at -= 1
        return self._tokens[at - 1].value.lower() if at > 0 and self._words[at] in ("=", ":") else None

    def _option_values(self, name: str, using: int) -> Iterator[Offer]:
        if name == "engine" and "DATABASE" in self._words[:4]:
            yield from ((f"'{engine}'", "data source") for engine in DATABASE_ENGINES)
            return
        if name in ("engine", "serve", "handler"):
            yield from ((f"'{engine}'", "engine") for engine in sorted(self._vocabulary.engines))
            return
        if name in ("metric", "metrics") and self._words[:1] == ["EVALUATE"]:
            yield from ((f"'{metric}'", "metric") for metric in METRICS)
            return
        if name in ("judge", "embedding_model", "reranking_model"):
            yield from ((f"'{self._called(m)}'", "model") for m in self._vocabulary.models())
            return
        option = next((o for o in self._takes(using).values() if name in (o.name, *o.aliases)), None)
        if option is not None and option.name == "base":
            engine = self._engine(using)
            yield from ((f"'{base}'", about) for base, about in list_bases(engine, self._vocabulary).items())
        elif option is not None:
            yield from ((value, option.doc) for value in list_values(option))

    def _takes(self, using: int) -> dict[str, Option]:
        names = [t.value for t in self._tokens[:using] if t.kind in ("word", "quoted")]
        return find_options([t.word for t in self._tokens[:using]], self._vocabulary, names, self._engine(using))

    def _engine(self, using: int) -> str:
        """The engine that the options name, or the handler of CREATE ML_ENGINE … FROM handler."""
        tokens = [*self._tokens, *self._later_tokens]
        for key, sign, value in zip(tokens, tokens[1:], tokens[2:], strict=False):
            if key.value.lower() == "engine" and sign.text == "=":
                return value.value
        return self._tokens[using - 2].value if "ML_ENGINE" in self._words[:2] and using > 2 else ""

    # -- files ---------------------------------------------------------------------------------------------

    def _is_file(self) -> bool:
        """Whether the text in quotes names a file."""
        words, last = self._words, self._last
        if last in _BEFORE_FILE or words[:2] in (["EXPORT", "DATABASE"], ["IMPORT", "DATABASE"]):
            return True
        if words[:1] in (["COPY"], ["REPORT"]):
            return last in ("TO", "FROM")
        if words[:1] == ["ATTACH"]:
            return last in ("EXISTS", "DATABASE")
        if last == "," and self._is_in_from():
            return True
        at = len(words) - 1
        while at > 0 and (words[at] in ("[", ",") or self._tokens[at].kind == "string"):
            at -= 1
        return at > 0 and words[at] == "(" and _READS_FILES.match(self._tokens[at - 1].value) is not None


def _offer_keywords(words: Iterable[str]) -> Iterator[Offer]:
    yield from ((word, "keyword") for word in words)


def _match(offered: Iterable[Offer], word: str, closing: str = "") -> Iterator[Suggestion]:
    """Each once, keywords in the case of the word; `closing` ends what is no folder."""
    seen = set()
    for text, about in offered:
        bare = text if closing else text.lstrip("\"'")
        completed = text if text.endswith("/") else text + closing
        if not bare.lower().startswith(word.lower()) or text.lower() in seen or completed == word:
            continue
        seen.add(text.lower())
        completion = text.lower() if about == "keyword" and word and not word.isupper() else completed
        yield Suggestion(completion, len(word), about)


def _tokenize_prefix(text: str) -> tuple[list[Token] | None, str]:
    """The tokens before the cursor and the quote that is open there; None inside a comment or the like."""
    for quote in ("", "'", '"', "`"):
        try:
            return tokenize(text + quote), quote
        except StatementError:
            continue
    return None, ""


def _is_ended(text: str, at: int) -> bool:
    try:
        return any(t.text == ";" for t in tokenize(text, at))
    except StatementError:
        return False
