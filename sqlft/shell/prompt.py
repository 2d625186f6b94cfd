"""The conversation at a terminal: one prompt after the other until Ctrl-D, its colours, and what was typed before.

What was typed is kept for the arrow keys of the next session, without its secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style
from pygments.lexer import inherit, words
from pygments.lexers.sql import SqlLexer
from pygments.token import Comment, Keyword, Name, String

from sqlft import __version__
from sqlft.catalog.records import DEFAULT_PROJECT
from sqlft.errors import StatementError
from sqlft.redact import names_secret, redact_keys, redact_statement
from sqlft.secrets.home import home
from sqlft.shell.commands import expand_habit
from sqlft.shell.completion.complete import suggest
from sqlft.shell.completion.vocabulary import OWN_KEYWORDS, Language, Vocabulary, read_language, read_vocabulary
from sqlft.shell.reading import is_complete, split_script
from sqlft.shell.reminders import remind_at_end, remind_at_start
from sqlft.shell.shell import Failed, Quit, Shell, describe_location
from sqlft.sql.lexer import Token, tokenize

PROMPT, CONTINUATION = "sqlft> ", "...> "


def converse(shell: Shell) -> None:
    """Read, run, print, until Ctrl-D or .quit; errors are shown and forgotten."""
    shell.screen.note(f"sqlft {__version__} (DuckDB {duckdb.__version__}), {describe_location(shell.location)}")
    shell.screen.note("Type .help for help, Ctrl-D to leave.")
    for line in remind_at_start(shell.con.session.catalog):
        shell.screen.note(line)
    _read_and_run(shell)
    for line in remind_at_end(shell.con.session.catalog, shell.location):
        shell.screen.note(line)


def _read_and_run(shell: Shell) -> None:
    words = _DatabaseCompleter(shell)
    session = _create_session(words)
    while True:
        try:
            text = session.prompt([("class:prompt", _format_prompt(shell.con.session.project))])
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            shell.run(split_script(expand_habit(text)))
        except (Failed, KeyboardInterrupt):
            pass
        except Quit:
            return
        shell.runner.clear_interrupts()
        words.is_outdated = True


def _format_prompt(project: str) -> str:
    """The prompt, with the project that USE chose.

    >>> _format_prompt("mindsdb"), _format_prompt("shop")
    ('sqlft> ', 'sqlft:shop> ')
    """
    return PROMPT if project.lower() == DEFAULT_PROJECT else f"{PROMPT[:-2]}:{project}> "


def _create_session(words: _DatabaseCompleter) -> PromptSession[str]:
    return PromptSession(
        output=create_output(always_prefer_tty=True),  # stderr where results go to a file
        multiline=True,
        prompt_continuation=lambda width, number, wrapped: [
            ("class:continuation", f"{'' if wrapped else CONTINUATION:>{width + 1}}")
        ],
        history=open_history(),
        lexer=PygmentsLexer(ModelSql),
        style=STYLE,
        completer=words,
        complete_while_typing=False,
        key_bindings=_create_key_bindings(),
        enable_history_search=False,
        include_default_pygments_style=False,
    )


def _create_key_bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=Condition(_is_choosing))
    def choose(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        buffer.complete_state = None
        if _is_at_end() and is_complete(expand_habit(buffer.text)):
            buffer.validate_and_handle()

    @keys.add("enter", filter=Condition(_is_at_end) & ~Condition(_is_choosing))
    def run(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(expand_habit(buffer.text)):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("tab", filter=Condition(_is_indenting))
    def indent(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("    ")

    return keys


def _is_at_end() -> bool:
    """Enter in the middle of a text makes a new line; at its end it may run it."""
    from prompt_toolkit.application import get_app

    return not get_app().current_buffer.document.text_after_cursor.strip()


def _is_choosing() -> bool:
    """Enter takes the completion that Tab has chosen, and runs what is complete with it."""
    from prompt_toolkit.application import get_app

    state = get_app().current_buffer.complete_state
    return state is not None and state.current_completion is not None


def _is_indenting() -> bool:
    from prompt_toolkit.application import get_app

    document = get_app().current_buffer.document
    return bool(document.text.strip()) and not document.current_line_before_cursor.strip()


class _DatabaseCompleter(Completer):
    """Completions from the database as it is when Tab is first pressed after a statement."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._vocabulary = Vocabulary()
        self.is_outdated = True

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """For prompt_toolkit."""
        for text, length, about in suggest(document.text_before_cursor, self._read_current, document.text_after_cursor):
            yield Completion(text, -length, display_meta=about)

    def _read_current(self) -> Vocabulary:
        if self.is_outdated:
            self._vocabulary = read_vocabulary(self._shell.con, self._language)
            self.is_outdated = False
        return self._vocabulary

    @cached_property
    def _language(self) -> Language:
        return read_language(self._shell.con)


# ANSI colours only: they are the terminal's own, made for its background.
STYLE = Style.from_dict(
    {
        "prompt": "ansidefault bold",  # with a colour, the space behind it is written too
        "continuation": "ansibrightblack",
        "pygments.keyword": "ansiblue bold",
        "pygments.keyword.reserved": "ansimagenta bold",
        "pygments.literal.string": "ansigreen",
        "pygments.literal.number": "ansicyan",
        "pygments.comment": "ansibrightblack italic",
        "pygments.name.function": "ansiyellow",
        "pygments.name.variable": "ansiyellow",
        "completion-menu": "bg:default default",
        "completion-menu.completion": "bg:default default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "bg:default ansibrightblack",
        "completion-menu.meta.completion.current": "bg:default ansibrightblack",
    }
)


class ModelSql(SqlLexer):
    """SQL with CREATE MODEL, FINETUNE and the like."""

    tokens = {
        "root": [
            (r"^\.[a-z]+", Keyword.Reserved),
            (
                words([*OWN_KEYWORDS, *("PIVOT", "QUALIFY", "SUMMARIZE", "ATTACH", "MACRO", "EXCLUDE")], suffix=r"\b"),
                Keyword,
            ),
            (r"(\$\w*\$)(?s:.)*?(\1|\Z)", String),
            (r"[eE]'(\\.|''|[^'\\])*'?", String),
            (r"`[^`]*`?", Name),
            (r"\$\w+|\?", Name.Variable),
            (r"--[^\n]*", Comment.Single),
            inherit,
        ]
    }


STARS = "'********'"
_ASSIGNMENT_SIGNS = {"=", ":", ":=", "=>", "=="}
# Passwords within addresses and connection strings, which no option's name tells.
_PASSWORDS_IN_URLS = [
    re.compile(r"(\w://[^\s:/@']*:)[^\s/@']+(?=@)"),
    re.compile(r"(\b(?:passwo?r?d|pwd|passphrase)\s*=\s*)[^\s;'\"*]+", re.IGNORECASE),
    re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
]


def redact_typed_text(text: str) -> str:
    """The text with stars in place of keys, passwords and their like; of CREATE SECRET no string stays."""
    try:
        tokens = tokenize(text)
    except StatementError:
        tokens, text = [], redact_statement(text)
    for token in sorted(_find_secrets(tokens), key=lambda t: -t.start):
        text = text[: token.start] + STARS + text[token.end :]
    for pattern in _PASSWORDS_IN_URLS:
        text = pattern.sub(r"\1********", text)
    return redact_keys(text, "********")


def _find_secrets(tokens: list[Token]) -> set[Token]:
    if [t.word for t in tokens[:1]] == ["CREATE"] and "SECRET" in [t.word for t in tokens[1:5]]:
        return {t for t in tokens if t.kind == "string"}
    return {t for i in range(len(tokens)) if _names_secret(tokens[i]) for t in _find_literals(tokens, i + 1)}


def _names_secret(token: Token) -> bool:
    return token.kind in ("word", "quoted", "string") and (
        names_secret(token.value) or token.value.lower().endswith("key_id")
    )


def _find_literals(tokens: list[Token], at: int) -> Iterator[Token]:
    """The literals that a secret's name is followed by, up to the next option; nothing of env('NAME')."""
    has_sign = at < len(tokens) and tokens[at].text in _ASSIGNMENT_SIGNS
    kinds = ("string", "quoted", "word", "number") if has_sign else ("string",)
    for token in tokens[at + has_sign :]:
        if token.kind in kinds and token.word != "ENV":
            yield token
            kinds = ("string",)
        elif token.text != "||":
            return


class RedactedFileHistory(FileHistory):
    """A history file; secrets are masked in memory too."""

    def append_string(self, string: str) -> None:
        """Keep a statement."""
        super().append_string(redact_typed_text(string))

    def store_string(self, string: str) -> None:
        """Write it, if the file still can be written: a full disk is no reason to stop."""
        try:
            super().store_string(string)
        except OSError:
            return


class RedactedMemoryHistory(InMemoryHistory):
    """A history that ends with the session."""

    def append_string(self, string: str) -> None:
        """Keep a statement."""
        super().append_string(redact_typed_text(string))


def open_history() -> History:
    """The history of this user; one in memory where no file can be written."""
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return RedactedMemoryHistory()
    return RedactedFileHistory(str(path))


def history_file() -> Path:
    """`history` in the user's folder."""
    return home() / "history"
