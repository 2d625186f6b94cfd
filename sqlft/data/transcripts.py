"""One text that holds a whole conversation, with the marks of a chat template or headings, as messages.

Called for a column `text` and for pairs of whole conversations.  Not covered: texts without marks, which do not say
what is asked and what is answered.
"""

from __future__ import annotations

import re

from sqlft.data.findings import Turn
from sqlft.data.messages import ROLES, Unread

_ENDS = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<\|endoftext\|>|<end_of_turn>|</s>|<eos>)\s*$")
_BEGINS = re.compile(r"^\s*(?:<s>|<bos>|<\|begin_of_text\|>)\s*")
_MARKS = (
    re.compile(r"<\|im_start\|>\s*(\w+)[^\S\n]*\n"),
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),
    re.compile(r"<start_of_turn>\s*(\w+)[^\S\n]*\n"),
    re.compile(r"<\|(system|user|assistant)\|>\s*"),
    re.compile(r"(?:^|\n)\s*###\s*(System|Human|User|Assistant|Instruction|Input|Response|Output|Answer)\s*:?[^\S\n]*"),
    re.compile(r"(?:^|\n)[^\S\n]*(System|Human|User|Assistant)[^\S\n]*:[^\S\n]*"),
)
"""Each begins a message; the group is its role."""
_HEADINGS = {
    "instruction": "user", "input": "user", "response": "assistant", "output": "assistant", "answer": "assistant",
}  # fmt: skip
_LLAMA = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=<s>|\[INST\]|$)", re.DOTALL)
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def transcript(text: str) -> tuple[Turn, ...]:
    """The messages of a text; Unread where it has no marks of them.

    >>> [t.content for t in transcript("### Human: 1 + 1 =\\n### Assistant: 2")]
    ['1 + 1 =', '2']
    """
    turns = _llama(text) or next(filter(_is_talk, (_split(mark, text) for mark in _MARKS)), ())
    if not _is_talk(turns):
        raise Unread("plain_text")
    return turns


def is_transcript(text: str) -> bool:
    """Whether it has marks of messages."""
    try:
        return bool(transcript(text))
    except Unread:
        return False


def _is_talk(turns: tuple[Turn, ...]) -> bool:
    roles = [t.role for t in turns]
    return "user" in roles and "assistant" in roles


def _split(mark: re.Pattern[str], text: str) -> tuple[Turn, ...]:
    before, *pieces = mark.split(text)
    turns: list[Turn] = []
    if preamble := _bare(before):
        turns.append(Turn("system", preamble))
    for name, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = _HEADINGS.get(name.lower()) or ROLES.get(name.lower())
        if role is None:
            return ()
        if name.lower() == "input" and turns and turns[-1].role == "user":
            more = _bare(content)
            turns[-1] = Turn("user", f"{turns[-1].content}\n\n{more}" if more else turns[-1].content)
        else:
            turns.append(Turn(role, _bare(content)))
    return tuple(turns)


def _llama(text: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for asked, answer in _LLAMA.findall(text):
        if system := _SYSTEM.match(asked):
            turns.append(Turn("system", system[1].strip()))
            asked = asked[system.end() :]
        turns += [Turn("user", asked.strip()), Turn("assistant", _bare(answer))]
    return tuple(turns)


def _bare(text: str) -> str:
    """Without marks of an end, nor white space around it."""
    text = _BEGINS.sub("", text)
    while (shorter := _ENDS.sub("", text)) != text:
        text = shorter
    return text.strip()
