"""How bases mark what they think: the marks by chat template, and a text as its thought and its answer.

Called by the renderer (`base.tokenization`).  The shapes are those of public templates and formats: Qwen, SmolLM,
DeepSeek (<think>), Mistral (docs.mistral.ai, native reasoning), Gemma 4 (ai.google.dev, prompt formatting), gpt-oss
(OpenAI's harmony format).  Not here: tool calls, which harmony writes into a channel of their own.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class ThoughtMarks(NamedTuple):
    """What stands around a thought; `opening` and `closing` as they are taught, white space included."""

    opening: str
    closing: str
    skipped: str = ""
    """What an answer begins with that has no thought."""
    pattern: str = ""
    """A regular expression for both, the thought its group; without it they are taken as they are."""
    ending: str = ""
    """What may stand behind an answer, and is no part of it."""

    @property
    def begin(self) -> str:
        """By what a template or an answer with thoughts is known."""
        return self.opening.strip()

    @property
    def end(self) -> str:
        """By what the end of a thought is known."""
        return self.closing.strip()

    @property
    def closed(self) -> str:
        """A thought of nothing, for bases that are asked to answer at once."""
        return self.skipped or f"{self.opening}{self.closing}"

    @property
    def texts(self) -> tuple[str, ...]:
        """All that may begin or end what is no answer."""
        return tuple(filter(None, (self.begin, self.skipped, self.ending)))

    def find_empty(self, text: str) -> re.Match[str] | None:
        """A thought of nothing in a rendered conversation."""
        if self.skipped:
            return re.search(re.escape(self.skipped), text)
        return re.search(rf"{re.escape(self.begin)}\s*{re.escape(self.end)}\s*", text)

    def find_opened(self, prompt: str) -> re.Match[str] | None:
        """A thought that the end of a prompt opens, and may close again."""
        return re.search(rf"{re.escape(self.begin)}\s*(?:{re.escape(self.end)}\s*)?$", prompt)

    def split(self, text: str) -> tuple[str | None, str]:
        """The thought that a text begins with, None without one, and what is behind it: nothing where it was cut off.

        >>> THINK.split("<think>\\n2 and 2\\n</think>\\n\\n4"), THINK.split("4"), THINK.split("<think>2 and")
        (('2 and 2', '4'), (None, '4'), ('2 and', ''))
        >>> HARMONY.split("<|channel|>analysis<|message|>2 and 2<|end|><|start|>assistant<|channel|>final<|message|>4")
        ('2 and 2', '4')
        """
        pattern = self.pattern or rf"{re.escape(self.begin)}(.*?)(?:{re.escape(self.end)}\s*|\Z)"
        found = re.match(rf"\s*{pattern}", text, re.DOTALL)
        answer = text[found.end() :] if found else text
        if self.skipped and not found:
            answer = answer.removeprefix(self.skipped)
        if self.ending:
            answer = answer.partition(self.ending)[0]
        return (HARMONY_HEADER.sub("\n\n", found[1]).strip() if found else None), answer


HARMONY_HEADER = re.compile(r"(?:<\|end\|>)?<\|start\|>assistant<\|channel\|>\w+[^<]*<\|message\|>|<\|end\|>")
"""Between two messages of one turn, and behind the last."""
THINK = ThoughtMarks("<think>\n", "\n</think>\n\n")
MISTRAL = ThoughtMarks("[THINK]", "[/THINK]")
GEMMA = ThoughtMarks("<|channel>thought\n", "<channel|>")
HARMONY = ThoughtMarks(
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    skipped="<|channel|>final<|message|>",
    pattern=r"<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>"
    r"(.*?)(?:<\|start\|>assistant<\|channel\|>final<\|message\|>|\Z)",
    ending="<|end|>",
)


def find_marks(template: str) -> ThoughtMarks | None:
    """Those that a chat template names."""
    return next((marks for marks in (HARMONY, GEMMA, MISTRAL, THINK) if marks.begin in template), None)
