"""How many tokens a text has: by tiktoken where it is there with its files, else by its length."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
OLD = ("gpt-3.5", "gpt-35", "gpt-4-", "text-embedding", "babbage", "davinci")
"""Models whose names begin so have the older encoding."""


class Count(NamedTuple):
    """Tokens of a text."""

    name: str
    """For people: what counted."""
    of: Callable[[str], int]
    exact: bool

    def __call__(self, text: str | None) -> int:
        return self.of(text or "")


def counting(model: str) -> Count:
    """The count that fits a model best; nothing is downloaded for it."""
    plain = model.removeprefix("ft:")
    name = "cl100k_base" if plain == "gpt-4" or plain.startswith(OLD) else "o200k_base"
    is_openai = plain.startswith(("gpt-", "o1", "o3", "o4", "chatgpt", "text-embedding", "babbage", "davinci"))
    return (_tiktoken(name) if is_openai else None) or Count(
        "their characters: an estimate of four a token", _quarter, False
    )


def _quarter(text: str) -> int:
    return (len(text) + 3) // 4


@cache
def _tiktoken(name: str) -> Count | None:
    if find_spec("tiktoken") is None or not _cached(name):
        return None
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return Count(f"tiktoken's {name}", lambda text: len(encoding.encode(text, disallowed_special=())), True)


def _cached(name: str) -> bool:
    """Whether tiktoken has the encoding on disk, where it would look."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / "data-gym-cache"
    return (folder / sha1(URL.format(name).encode()).hexdigest()).exists()
