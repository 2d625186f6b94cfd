"""What Tab offers for the arguments of dot-commands, by the names of them in COMMANDS; and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from glob import iglob
from os.path import expanduser, isdir

from sqlft.shell.commands import CHARTS, COMMANDS, HABITS
from sqlft.shell.completion.vocabulary import Vocabulary
from sqlft.shell.help import list_topics
from sqlft.shell.output.modes import MODES

Completion = tuple[str, int, str]
"""A text, how many characters before the cursor it replaces, and what it is."""
_WORD = re.compile(r"'[^']*'?|\"[^\"]*\"?|[^\s'\"]+")


def complete_command(text: str, vocabulary: Callable[[], Vocabulary]) -> Iterator[Completion]:
    """What may stand at the end of a dot-command that is not complete; `\\d` and the like too."""
    name, blank, argument = text.partition(" ")
    if not blank:
        habits = {habit: COMMANDS[same[1:]].run.__doc__ for habit, same in HABITS.items() if habit.startswith("\\")}
        names = habits if name.startswith("\\") else {f".{n}": c.run.__doc__ for n, c in COMMANDS.items()}
        yield from _filter_prefix(name, ((n, about or "") for n, about in names.items()))
        return
    command = HABITS.get(name.lower(), name.lower())[1:]
    if command not in COMMANDS:
        return
    takes = COMMANDS[command].takes.replace("[", "").replace("]", "").split()
    words = _WORD.findall(argument)
    if words and not argument[-1].isspace():
        words, word = words[:-1], words[-1]
    else:
        word = ""
    if command == "help":
        topics = [*((heading, "statement") for heading in list_topics()), *((f".{n}", "command") for n in COMMANDS)]
        yield from _filter_prefix(argument, topics)
    elif len(words) < len(takes) or takes == ["COMMAND"]:
        yield from _complete_argument(command, takes[min(len(words), len(takes) - 1)], word, vocabulary)


def _complete_argument(
    command: str, kind: str, word: str, vocabulary: Callable[[], Vocabulary]
) -> Iterator[Completion]:
    """The values of one argument, by what COMMANDS calls it."""
    if kind in ("FILE", "COMMAND"):
        bare = word.lstrip("'\"")
        for path in list_paths(bare):
            yield _quote_path(path), len(word), "folder" if path.endswith("/") else "file"
    elif kind == "MODE":
        yield from _filter_prefix(word, ((mode, "mode") for mode in MODES))
    elif kind == "on|off":
        yield from _filter_prefix(word, (("on", ""), ("off", "")))
    elif kind == "CHART":
        yield from _filter_prefix(word, ((chart, title) for chart, (_, title, _) in CHARTS.items()))
    elif kind in ("PATTERN", "TABLE", "MODEL"):
        relations = vocabulary().relations.values()
        is_model = kind == "MODEL" or command == "models"
        named = ((r.name, r.kind) for r in relations if r.kind == "model" or not is_model)
        yield from _filter_prefix(word, (offer for offer in named if kind != "TABLE" or offer[1] != "model"))


def _filter_prefix(word: str, offered: Iterable[tuple[str, str]]) -> Iterator[Completion]:
    for text, about in offered:
        if text.lower().startswith(word.lower()) and text != word:
            yield text, len(word), about


def _quote_path(path: str) -> str:
    """As a dot-command takes it; a folder's quote stays open."""
    if re.search(r"[\s'\"\\]", path) is None:
        return path
    mark = '"' if "'" in path else "'"
    return f"{mark}{path}" if path.endswith("/") else f"{mark}{path}{mark}"


def list_paths(start: str) -> list[str]:
    """Files and folders (ending with a slash) whose names begin with `start`; hidden ones where a dot was typed."""
    home, after = expanduser("~"), start[1:]
    pattern = home + after if start.startswith("~/") else start
    escaped = re.sub(r"([*?[])", r"[\1]", pattern)
    matches = sorted(path + "/" * isdir(path) for path in iglob(f"{escaped}*"))
    return ["~" + path.removeprefix(home) if start.startswith("~/") else path for path in matches]
