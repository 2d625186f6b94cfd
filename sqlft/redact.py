"""Where texts lose their secrets: statements, errors, logs, and what providers write.

A secret is known by its value, which an option of this process holds (`remember_secret`, `redact_secrets`); by its
form, as providers give keys (`redact_keys`); or by its place behind a name such as api_key (`redact_statement`, each
character in its place, so that carets stay where they are).  `redact_error` is for errors of any kind.  Every floor may
call this one; handlers find what they need in `sqlft.errors`.  Not here: what is personal (`data.privacy`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

STARS = "****"
PLACEHOLDERS = {
    *("lmstudio", "llamacpp", "localhost", "notneeded", "notrequired", "nokey", "nokeyneeded", "nokeyrequired"),
    *("sknokeyrequired", "dummykey", "fakekey", "testkey", "apikey", "yourkey", "yourapikey"),
}
"""What is given for a key where a server wants any, in letters alone; beside these any single word of ten letters."""
VARIABLE_NAME = re.compile(
    r"\$(?:[A-Z][A-Z0-9_]*|\{\w+\})|(?:env|os\.getenv)\(['\"]?\w+['\"]?\)|[A-Z][A-Z0-9]*_(?:[A-Z0-9]+_)*(?:KEY|TOKEN)"
)
"""The name of a variable, where its value belongs."""
SECRET_WORDS = ("api_key", "password", "secret", "token_secret", "access_token", "auth_token")
"""An option with one of these in its name is secret, whoever declares it."""
_STATEMENT_WORDS = "|".join((*SECRET_WORDS, "passphrase", "passwd", "authorization", "credential", "encryption_key"))
_SECRET_NAME = re.compile(rf"{_STATEMENT_WORDS}|token$", re.IGNORECASE)
SECRET_PATTERN = re.compile(
    rf"""(?:(?:{_STATEMENT_WORDS})\w*|(?<!\w)\w*token(?!\w))["'`]?
         (?: \s*+[=:]?\s*+ (?P<quoted> [eE]'(?:[^'\\]|\\.|'')*+'? | '(?:[^']|'')*+'? | "(?:[^"]|"")*+"?
                                   | (?P<tag>\$\w*\$).*?(?:(?P=tag)|\Z) )
           | \s*+[=:]\s*+(?!env\b) (?P<bare> \[(?: [^\]'"] | '(?:[^']|'')*+'? | "(?:[^"]|"")*+"? )*+\]?
                                          | [^\s,;()}}\]'"$?]++ ) )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
KEY_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:[spr]k|esecret|fw|tgp)[-_](?=[\w.-]*\d)[\w.-]*[^\W_]{16}[\w.-]*"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\b(?:hf|gsk)_[A-Za-z0-9]{16,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}"
)
"""Forms that providers give their keys, so that nearly nothing else looks so: `pk_customer_2` is none."""
KEY_SCREEN = (
    r"\b(?:[spr]k|esecret|fw|tgp)[-_]|AKIA|ASIA|gh[pousr]_|github_pat_|xox[abprs]-|AIza|hf_|gsk_|eyJ|PRIVATE KEY|glpat-"
)
"""What each of them holds, for Arrow's regexes, which are faster and know less."""
_KEY_OR_SHORTENED = re.compile(rf"\b(?:[spr]k|esecret|fw|tgp)[-_][\w.-]*\*{{3}}[\w*.-]*|{KEY_FORMS.pattern}")
_EXCERPT = re.compile(r"^LINE \d+: (.*)$", re.M)
_known_secrets: set[str] = set()
"""Secrets that options of this process hold, so that no error repeats them."""


def redact(text: str, secret: str, stars: str = STARS) -> str:
    """`text` with stars for a secret; for a word in a key's place only where a header has it.

    >>> redact("Incorrect key: sk-1234abcd", "sk-1234abcd")
    'Incorrect key: ****'
    >>> redact("no model 'ollama'; sent Authorization: Bearer ollama", "ollama")
    "no model 'ollama'; sent Authorization: Bearer ****"
    """
    if not is_placeholder(secret):
        return text.replace(secret, stars)
    return _compile_header_pattern(secret).sub(lambda m: f"{m[1]}{stars}", text)


def is_placeholder(secret: str) -> bool:
    """Whether it is too short or plain to be a secret, as 'x', 'none' or 'ollama' are, or the name of a variable."""
    secret = secret.strip("'\"")
    letters = re.sub(r"[\W_]", "", secret).lower()
    is_word = bool(re.fullmatch("[A-Za-z]{1,10}", secret))
    return len(secret) < 6 or is_word or letters in PLACEHOLDERS or names_variable(secret)


def names_variable(secret: str) -> bool:
    """Whether it is the name of an environment variable, such as OPENAI_API_KEY or ${HF_TOKEN}, and no secret."""
    return bool(VARIABLE_NAME.fullmatch(secret))


def remember_secret(value: object) -> None:
    """Let no text show a secret from now on that an option of this process holds, however it is written there."""
    if isinstance(value, str) and value.strip():
        as_code, as_json = repr(value)[1:-1], json.dumps(value)[1:-1]
        lines = (line for line in value.splitlines() if not is_placeholder(line))
        _known_secrets.update((value, as_code, as_json, *lines))


def redact_secrets(text: str) -> str:
    """`text` with stars for every secret that was remembered."""
    for value in sorted(_known_secrets, key=len, reverse=True):
        text = redact(text, value)
    return text


def redact_keys(text: str, stars: str = STARS) -> str:
    """`text` with stars for what has the form of a key, whole or shortened by a provider.

    >>> redact_keys("Incorrect key: sk-abc****wxyz, for gpt-4")
    'Incorrect key: ****, for gpt-4'
    """
    return _KEY_OR_SHORTENED.sub(stars, text)


def names_secret(name: str) -> bool:
    """Whether a statement has a secret behind such a name.

    >>> names_secret("openai_api_key"), names_secret("TOKEN"), names_secret("max_tokens")
    (True, True, False)
    """
    return _SECRET_NAME.search(name) is not None


def redact_statement(text: str) -> str:
    """`text`, the same length, with the values of api_key, password and their like as stars."""
    return SECRET_PATTERN.sub(_replace_with_stars, text)


def redact_error(error: BaseException, also: Iterable[str] = ()) -> None:
    """Take secrets out of an error, its notes and its causes: those that options hold, and `also`."""
    errors: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None and current not in errors:
            errors.append(current)
            waiting += [current.__cause__, current.__context__]
    values = sorted(also, key=len, reverse=True)
    for current in errors:
        current.args = tuple(_redact_value(a, values) for a in current.args)
        for name, value in list(vars(current).items()):
            if isinstance(value, (str, list)):
                setattr(current, name, _redact_value(value, values))


def _redact_value(value: object, also: Sequence[str]) -> object:
    if isinstance(value, list):
        return [_redact_value(v, also) for v in value]
    if not isinstance(value, str):
        return value
    for secret in also:
        value = redact(value, secret, "*" * len(secret))
    return _EXCERPT.sub(
        lambda m: _redact_cut_secrets(_redact_quoted_words(m[0], also), m[1], also), redact_secrets(value)
    )


def _redact_quoted_words(line: str, also: Sequence[str]) -> str:
    """DuckDB's excerpt of a line without the words that were given for keys, where they are quoted."""
    for word in (a for a in also if is_placeholder(a) and a[:1] not in "'\""):
        line = re.sub(rf"(?<=['\"]){re.escape(word)}(?=['\"])", "*" * len(word), line)
    return line


def _redact_cut_secrets(line: str, excerpt: str, also: Sequence[str]) -> str:
    """DuckDB's excerpt of a line, which may begin or end within a secret."""
    for secret in also:
        for size in range(len(secret) - 1, 3, -1):
            if excerpt.startswith("..." + secret[-size:]):
                return line.replace(secret[-size:], "*" * size, 1)
            if excerpt.endswith(secret[:size] + "..."):
                head, _, tail = line.rpartition(secret[:size])
                return head + "*" * size + tail
    return line


@lru_cache(maxsize=64)
def _compile_header_pattern(secret: str) -> re.Pattern[str]:
    named = r"\b(?:authorization|(?:x-)?api[-_]?key)\b[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?|\bbearer\s+"
    return re.compile(rf"({named}){re.escape(secret)}(?![\w-])", re.I)


def _replace_with_stars(match: re.Match[str]) -> str:
    value = match["quoted"] or match["bare"]
    return match[0][: -len(value)] + re.sub(r"[^\n]", "*", value)
