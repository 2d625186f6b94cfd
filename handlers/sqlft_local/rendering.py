"""Messages -> token ids: the only place, for training and asking, so that both see the same tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

from sqlft.errors import NotSupported
from sqlft.handler import Message
from sqlft_local.marks import NO_MARKS, Marks

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}\n{% endfor %}"
)
"""For bases that were never taught a chat: the texts, a line each."""
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
OPEN_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?$")
THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
CLOSED = "<think>\n\n</think>\n\n"
"""Where a template only opens a thought: how it is closed again, for answers are wanted without one."""


class Rendered(NamedTuple):
    """Token ids of a conversation, and for each whether the model has to learn to say it."""

    ids: list[int]
    answer: list[bool]
    ignored: list[bool]
    """Whether a token is of an answer that is context only."""


class Renderer:
    """Renders with a base's tokenizer and chat template; knows nothing of models.

    `stop_ids` are the tokens that end an answer: those given, and the one that the template ends an answer with.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template or PLAIN_TEMPLATE
        self.marks = NO_MARKS
        self._block, self._thought = self._empty_thought()
        before, behind = self._around_an_answer()
        self._opening = before if before.strip() and self._opens_nothing() else ""
        ids = self._encode(behind.lstrip())[:1]
        self.stop_ids = frozenset((*stop_ids, *(i for i in ids if i in set(tokenizer.all_special_ids))))
        self._lead = before if before.isspace() else ""
        self.trail = behind[: len(behind) - len(behind.lstrip())]

    def marked(self, marks: Marks) -> Renderer:
        """One that puts these marks behind texts; NotSupported where the template takes them off again."""
        made = copy(self)
        made.marks = marks
        stop = marks.stop[0] if marks.stop else ""
        if stop and stop not in made._around_an_answer()[1]:
            raise NotSupported(
                f"The base's chat template takes the stop sequence {stop!r} off the answers' ends.",
                "Choose one that is more than white space, such as stop = ' END'.",
            )
        return made

    @cached_property
    def longest_token(self) -> int:
        """Letters of the longest token: a text has at least its length over this many tokens."""
        return max(map(len, self.tokenizer.get_vocab()))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the model is asked: the conversation so far and the opening of the assistant's turn."""
        return [i for ids, *_ in self._turns(messages, ask=True) for i in ids]

    def conversation(self, messages: Sequence[Message], context: Collection[int] = ()) -> Rendered:
        """What the model is trained on; its start equals `prompt` of the messages before any assistant's turn.

        `context` are the places of answers that are not to be learned.
        """
        ids: list[int] = []
        answer: list[bool] = []
        ignored: list[bool] = []
        places = iter([k for k, m in enumerate(messages) if m.role == "assistant"])
        for tokens, taught, said in self._turns(messages, ask=False):
            ignore = said and next(places) in context
            ids += tokens
            answer += [i < taught and not ignore for i in range(len(tokens))]
            ignored += [i < taught and ignore for i in range(len(tokens))]
        end = max((i + 1 for i, learned in enumerate(answer) if learned), default=0)
        return Rendered(ids[:end], answer[:end], ignored[:end])

    def text(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text, without what the template puts around an answer."""
        return self.text_until(ids, ())[0]

    def text_until(self, ids: Sequence[int], stop: Sequence[str]) -> tuple[str, bool]:
        """The same up to the first stop sequence, and whether there is one."""
        said: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        at = min((at for s in stop if (at := said.find(s)) >= 0), default=None)
        return (self.trimmed(said), False) if at is None else (self._begun(said[:at]), True)

    def trimmed(self, said: str) -> str:
        """An answer without what the template puts around it; what it puts behind comes after a stop sequence."""
        said = self._begun(said)
        return said if self.marks.stop else said.removesuffix(self.trail)

    def _begun(self, said: str) -> str:
        """Without what stands before an answer: white space, or a thought."""
        bare = self._unthought(said)
        return bare if bare != said else said.removeprefix(self._lead)

    def _unthought(self, said: str) -> str:
        """Without the thought that an answer begins with, where the base is one that thinks."""
        thought = THOUGHT.match(said) if self._thought else None
        return said[thought.end() :] if thought else said

    def _turns(self, messages: Sequence[Message], ask: bool) -> Iterator[tuple[list[int], int, bool]]:
        """Tokens of each piece, how many at its start are an answer to be learned, and whether it is an answer."""
        for text, said in self._pieces(messages, ask):
            ids = self._encode(text)
            yield (*self._ended(ids), True) if said else (ids, 0, False)

    def _pieces(self, messages: Sequence[Message], ask: bool) -> Iterator[tuple[str, bool]]:
        """The rendered text cut where an answer begins or ends; each piece is tokenized for itself.

        Tokenizing the whole at once could merge letters across such a border, differently with and without an answer.
        """
        messages = [m._replace(content=self._unthought(m.content)) if m.role == "assistant" else m for m in messages]
        messages = self.marks.on(messages, ask)
        done = ""
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            said = self._render(messages[: k + 1], False)
            asked = self._asked(messages[:k]) if k else ""  # nothing is asked before the first message
            if k:
                yield f"{_rest(asked, done)}{self._thought}", False
            yield _rest(said, asked), True
            done = said
        if ask:
            yield f"{_rest(self._asked(messages), done)}{self._thought}", False

    def _asked(self, messages: Sequence[Message]) -> str:
        """With the opening of an answer, also where the template has none for asking and puts one before answers."""
        return self._render(messages, True) + self._opening

    def _opens_nothing(self) -> bool:
        ask = [Message("user", "a")]
        return self._render(ask, True) == self._render(ask, False)

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        """The messages without thoughts of nothing, which templates put before some answers and leave out of others."""
        said = self._rendered(messages, ask)
        if not self._thought:
            return said
        return OPEN_THOUGHT.sub("", said.replace(self._block, "")) if ask else said.replace(self._block, "")

    def _empty_thought(self) -> tuple[str, str]:
        """How the template writes a thought of nothing before an answer, and what of it an answer opens with."""
        if "<think>" not in self._template:
            return CLOSED, ""
        asked, answer = Message("user", "a"), Message("assistant", "b")
        said = EMPTY_THOUGHT.search(self._rendered([asked, answer], False))
        ask = OPEN_THOUGHT.search(self._rendered([asked], True))
        block = said[0] if said else ask[0] if ask and "</think>" in ask[0] else CLOSED
        return block, block if said or ask else ""

    def _rendered(self, messages: Sequence[Message], ask: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=ask,
                chat_template=self._template,
                enable_thinking=False,
            )
        except Exception as e:
            raise NotSupported(
                f"The base's chat template refuses these messages ({', '.join(m.role for m in messages)}): {e}",
                "Leave out the system message, or give a chat_template of your own in CREATE MODEL … USING.",
            ) from e
        return rendered

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        return ids

    def _ended(self, ids: list[int]) -> tuple[list[int], int]:
        """An answer's tokens up to its end mark are learned; where the template has no end mark, one is put."""
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        if ends or self.tokenizer.eos_token_id is None:
            return ids, ends[-1] + 1 if ends else len(ids)
        return [*ids, self.tokenizer.eos_token_id], len(ids) + 1

    def _around_an_answer(self) -> tuple[str, str]:
        """What the template puts before and behind an answer; nothing if it cannot be told."""
        both = self.marks.on([Message("user", "a"), Message("assistant", "b")], ask=False)
        asked, said = self._render(both[:1], True), self._render(both, False)
        before, _, behind = said.removeprefix(asked).partition("b")
        return (before, behind) if said.startswith(asked) else ("", "")


def _rest(text: str, start: str) -> str:
    if not text.startswith(start):
        raise NotSupported(
            "The base's chat template renders a turn in another way when more turns follow it.",
            "Give a template that only appends: CREATE MODEL … USING chat_template = '…'.",
        )
    return text[len(start) :]
