"""Statements as they may be shown: what looks like a secret is starred out, each character in its place."""

from __future__ import annotations

import re

from sqlft.errors import StatementError
from sqlft.options import SECRET_WORDS

SECRET_PATTERN = re.compile(
    rf"""(?:(?:{"|".join(SECRET_WORDS)}|passphrase|passwd|authorization|credential)\w*|(?<!\w)\w*token(?!\w))["'`]?
         (?: \s*+[=:]?\s*+ (?P<quoted> [eE]'(?:[^'\\]|\\.|'')*+'? | '(?:[^']|'')*+'? | "(?:[^"]|"")*+"?
                                   | (?P<tag>\$\w*\$).*?(?:(?P=tag)|\Z) )
           | \s*+[=:]\s*+(?!env\b) (?P<bare> [^\s,;()}}\]'"$?]++ ) )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def redact_statement(text: str) -> str:
    """`text`, the same length, with the values of api_key, password and their like as stars."""
    return SECRET_PATTERN.sub(_replace_with_stars, text)


def build_statement_error(message: str, text: str, offset: int, next_step: str) -> StatementError:
    """A StatementError that shows no secret of the text it points into."""
    return StatementError(message, redact_statement(text), offset, next_step)


def _replace_with_stars(match: re.Match[str]) -> str:
    value = match["quoted"] or match["bare"]
    return match[0][: -len(value)] + re.sub(r"[^\n]", "*", value)
