"""What a model thinks before it answers, where a server leaves it in the text: never a part of the answer.

Servers with a reasoning parser keep thoughts in a field of their own, which is not read.  Others leave
``<think>…</think>``; some models' templates have the opening tag in the prompt, so that only the closing one comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

OPENINGS = ("<think>", "<seed:think>", "[THINK]")
BLOCK = re.compile(r"<(think|seed:think)>.*?</\1>\s*|\[THINK\].*?\[/THINK\]\s*", re.S)
UNOPENED = re.compile(r"\A.*?(?:</(?:seed:)?think>|\[/THINK\])(?=[\s{\[]|\Z)\s*", re.S)


def without_thoughts(text: str) -> str | None:
    """The answer alone; None where the text ended before one began.

    >>> without_thoughts("<think>2 and 2</think>\\n\\n4")
    '4'
    >>> without_thoughts("so it is 4\\n</think>\\n\\n4")
    '4'
    >>> without_thoughts("<think>2 and") is None
    True
    """
    left = _without_blocks(text)
    if left.lstrip().startswith(OPENINGS):
        return None
    unopened = UNOPENED.match(left)
    if unopened is not None:
        left = left[unopened.end() :]
    return left if left or left == text else None


def _without_blocks(text: str) -> str:
    left = BLOCK.sub("", text)
    return left if left == text else left.lstrip()


class Spoken:
    """Hands on what is new of an answer while it grows, without thoughts and without what may become one."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._text, self._shown = tell, "", ""

    def add(self, text: str) -> None:
        """The next piece came."""
        self._text += text
        self._show(_sure(self._text))

    def end(self, answer: str) -> None:
        """The whole answer is known."""
        self._show(answer)

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._tell(text[len(self._shown) :])
            self._shown = text


def _sure(text: str) -> str:
    """The part of an unfinished text that is an answer, whatever follows."""
    if "<" not in text and "[" not in text:
        return text
    left = _without_blocks(text)
    for opening in OPENINGS:
        left = left.partition(opening)[0]
        held = next((n for n in range(len(opening) - 1, 0, -1) if left.endswith(opening[:n])), 0)
        left = left[: len(left) - held]
    return left
