"""The conversation at a terminal: one prompt after the other until Ctrl-D."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import create_output

from sqlft import __version__
from sqlft.catalog.records import RUNNING
from sqlft.catalog.store import Catalog
from sqlft.data import Prompt
from sqlft.inference.resolve import read_outputs
from sqlft.shell.colours import STYLE, ModelSql
from sqlft.shell.commands import from_habit
from sqlft.shell.completion import suggestions
from sqlft.shell.history import open_history
from sqlft.shell.opening import Place, is_data
from sqlft.shell.reading import is_complete, pieces
from sqlft.shell.shell import Failed, Quit, Shell
from sqlft.shell.vocabulary import Language, Vocabulary, language_of, vocabulary_of
from sqlft.sql.names import format_name
from sqlft.training.follow import format_progress

PROMPT, CONTINUATION = "sqlft> ", "   ...> "


def converse(shell: Shell) -> None:
    """Read, run, print, until Ctrl-D or .quit; errors are shown and forgotten."""
    shell.screen.note(f"sqlft {__version__} (DuckDB {duckdb.__version__}), {named(shell.place)}")
    shell.screen.note("Type .help for help, Ctrl-D to leave.")
    for line in at_start(shell.con.session.catalog):
        shell.screen.note(line)
    _talk(shell)
    for line in at_end(shell.con.session.catalog, shell.place):
        shell.screen.note(line)


def named(place: Place) -> str:
    """What is open, as a person reads it."""
    where = "in memory" if place.database == ":memory:" else place.database
    where += f", models in {place.catalog}" if place.catalog else ""
    return f"{where}; its rows: FROM file;" if is_data(Path(place.database)) else where


def at_start(catalog: Catalog) -> Iterator[str]:
    """What was left behind, and what could be typed next."""
    versions = catalog.versions()
    for version in versions:
        if version.status == "interrupted":
            yield f"{version.key} was interrupted{format_progress(version)}. Go on with it: RESUME MODEL {version.key};"
        elif version.status in RUNNING:
            yield (
                f"{version.key} trains in the background{format_progress(version)}."
                f" Stop it: CANCEL MODEL {version.key};"
            )
    models = catalog.models()
    if not models:
        yield "There is no model yet. How one is made: .help CREATE MODEL"
    elif all(v.status == "complete" for v in versions):
        newest = max(models, key=lambda m: (m.created_at is not None, m.created_at, m.key))
        given = " AND ".join(f"{format_name(name)} = '…'" for name in Prompt(newest.prompt_template).inputs)
        yield f"Ask a model: SELECT {format_name(read_outputs(newest).names[0])} FROM {newest.key} WHERE {given};"


def at_end(catalog: Catalog, place: Place) -> Iterator[str]:
    """What goes on without the shell; nothing of what is in memory, whose end warns."""
    for version in catalog.versions():
        if version.status in RUNNING and place.folder is not None:
            yield (
                f"{version.key} trains on in the background{format_progress(version)}:"
                f" sqlft watch {version.key}{place.flag}"
            )


def _talk(shell: Shell) -> None:
    words = _Words(shell)
    session = _session(words)
    while True:
        try:
            text = session.prompt([("class:prompt", PROMPT)])
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            shell.run(pieces(from_habit(text)))
        except (Failed, KeyboardInterrupt):
            pass
        except Quit:
            return
        shell.runner.forgive()
        words.are_old = True


def _session(words: _Words) -> PromptSession[str]:
    return PromptSession(
        output=create_output(always_prefer_tty=True),  # stderr where results go to a file
        multiline=True,
        prompt_continuation=lambda width, number, wrapped: [
            ("class:continuation", " " * len(CONTINUATION) if wrapped else CONTINUATION)
        ],
        history=open_history(),
        lexer=PygmentsLexer(ModelSql),
        style=STYLE,
        completer=words,
        complete_while_typing=False,
        key_bindings=_keys(),
        enable_history_search=False,
        include_default_pygments_style=False,
    )


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=Condition(_is_choosing))
    def choose(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        buffer.complete_state = None
        if _is_at_end() and is_complete(from_habit(buffer.text)):
            buffer.validate_and_handle()

    @keys.add("enter", filter=Condition(_is_at_end) & ~Condition(_is_choosing))
    def run(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(from_habit(buffer.text)):
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


class _Words(Completer):
    """Completions from the database as it is when Tab is first pressed after a statement."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._vocabulary = Vocabulary()
        self.are_old = True

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """For prompt_toolkit."""
        for text, length, about in suggestions(document.text_before_cursor, self._now, document.text_after_cursor):
            yield Completion(text, -length, display_meta=about)

    def _now(self) -> Vocabulary:
        if self.are_old:
            self._vocabulary = vocabulary_of(self._shell.con, self._language)
            self.are_old = False
        return self._vocabulary

    @cached_property
    def _language(self) -> Language:
        return language_of(self._shell.con)
