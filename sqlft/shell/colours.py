"""Syntax colours: pygments' SQL, with the words of models and the quotes of DuckDB."""

from __future__ import annotations

from prompt_toolkit.styles import Style
from pygments.lexer import inherit, words
from pygments.lexers.sql import SqlLexer
from pygments.token import Comment, Keyword, Name, String

from sqlft.shell.vocabulary import OURS

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
            (words([*OURS, *("PIVOT", "QUALIFY", "SUMMARIZE", "ATTACH", "MACRO", "EXCLUDE")], suffix=r"\b"), Keyword),
            (r"(\$\w*\$)(?s:.)*?(\1|\Z)", String),
            (r"[eE]'(\\.|''|[^'\\])*'?", String),
            (r"`[^`]*`?", Name),
            (r"\$\w+|\?", Name.Variable),
            (r"--[^\n]*", Comment.Single),
            inherit,
        ]
    }
