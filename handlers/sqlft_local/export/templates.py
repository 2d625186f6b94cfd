"""How an exported version is asked: a chat template that renders what training rendered, and the same for Ollama.

A base's own template may render otherwise than training did: it leaves thinking on, knows no separator and no stop
sequence, or opens no answer.  What is added stands before and behind the base's own text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from sqlft.errors import NotSupported
from sqlft.handler import Message
from sqlft_local.base.tokenization import THINKING_SWITCH, Renderer

SYSTEM, USER = Message("system", "alpha"), Message("user", "bravo")
ANSWER, AGAIN = Message("assistant", "charlie"), Message("user", "delta")
"""What templates are tried with."""
MERGE_SYSTEM = (
    "{% set merged = namespace(all=[], system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set merged.system = merged.system + m['content'] + '\n\n' %}{% elif m['role'] == 'user' %}"
    "{% set merged.all = merged.all + [{'role': 'user', 'content': merged.system + m['content']}] %}"
    "{% set merged.system = '' %}{% else %}{% set merged.all = merged.all + [m] %}{% endif %}{% endfor %}"
    "{% set messages = merged.all %}"
)
"""Puts system messages before what the user says next, as `ChatTemplate` does for templates that take none."""


def build_chat_template(renderer: Renderer, system: bool) -> str:
    """A Jinja template by which others render the prompts that the version knows; `system`: they have such a message.

    NotSupported where no template does.
    """
    before = [f"{{% set {name} = {json.dumps(on)} %}}" for name, on in THINKING_SWITCH[renderer.thinking].items()]
    text = "".join([*(b for b in before if "enable_thinking" in renderer.template.text), _mark_texts(renderer)])
    text += MERGE_SYSTEM if renderer.template.merges_system else ""
    text += renderer.template.text.removesuffix("\n")
    asked = [SYSTEM, USER] if system else [USER]
    wanted, found = renderer.prompt_text(asked), _render(renderer, text, asked)
    if not wanted.startswith(found):
        raise NotSupported(
            "No chat template renders the prompts as this version knows them.",
            "Give a chat_template that only appends: CREATE MODEL … USING chat_template = '…', and train again.",
        )
    rest = wanted[len(found) :]
    return f"{text}{{% if add_generation_prompt %}}{{{{ {_quote(rest)} }}}}{{% endif %}}" if rest else text


def _mark_texts(renderer: Renderer) -> str:
    """Puts the separator behind questions, and the stop sequence behind answers."""
    separator, stops = renderer.delimiters
    marks = {"user": separator, "assistant": stops[0] if stops else ""}
    if not any(marks.values()):
        return ""
    marked = "".join(
        f"{{% if m['role'] == '{role}' and not m['content'].endswith({_quote(mark)}) %}}"
        f"{{% set marked.text = m['content'] + {_quote(mark)} %}}{{% endif %}}"
        for role, mark in marks.items()
        if mark
    )
    return (
        "{% set marked = namespace(all=[], text='') %}{% for m in messages %}{% set marked.text = m['content'] %}"
        f"{marked}{{% set marked.all = marked.all + [{{'role': m['role'], 'content': marked.text}}] %}}{{% endfor %}}"
        "{% set messages = marked.all %}"
    )


def _render(renderer: Renderer, template: str, messages: Sequence[Message], ask: bool = True) -> str:
    """As transformers and llama.cpp do, who know no switches."""
    turns = [m._asdict() for m in messages]
    rendered: str = renderer.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=ask, chat_template=template
    )
    return rendered


def _quote(text: str) -> str:
    """A text as a literal of Jinja, and of Go."""
    return json.dumps(text, ensure_ascii=False)


class TurnTexts(NamedTuple):
    """What a chat template puts around the texts of a conversation."""

    first: str
    """Before the first question, without a system message."""
    system: str | None
    """Before a system message; None where the template takes none."""
    behind_system: str
    """Between it and the first question."""
    opening: str
    """Behind the last question: where the answer begins."""
    before_answer: str
    """Between an earlier question and its answer."""
    between: str
    """From an answer to the next question."""

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt, as Ollama renders it."""
        text = ""
        for i, message in enumerate(messages):
            if message.role == "system":
                text += f"{self.system or ''}{message.content}{self.behind_system}"
            elif message.role == "user":
                before = "" if i == 1 and messages[0].role == "system" else self.between if i else self.first
                text += f"{before}{message.content}{self.opening if i == len(messages) - 1 else ''}"
            else:
                text += f"{self.before_answer}{message.content}"
        return text

    def to_go(self) -> str:
        """The template in Go's language; texts are literals, so that no white space of theirs is lost."""
        first, system, behind_system, opening, before_answer, between = (
            f"{{{{ {_quote(text or '')} }}}}" for text in self
        )
        content = "{{ $m.Content }}"
        later = '{{ else if not (and (eq $i 1) (eq (index $.Messages 0).Role "system")) }}'
        is_last = "{{ if eq (len (slice $.Messages $i)) 1 }}"
        return "\n".join(
            [
                "{{- range $i, $m := .Messages }}",
                '{{- if eq $m.Role "system" }}' + ("" if self.system is None else f"{system}{content}{behind_system}"),
                f'{{{{- else if eq $m.Role "user" }}}}{{{{ if eq $i 0 }}}}{first}{later}{between}{{{{ end }}}}{content}'
                f"{is_last}{opening}{{{{ end }}}}",
                f"{{{{- else }}}}{before_answer}{content}{{{{ end }}}}",
                "{{- end }}",
            ]
        )


def find_turn_texts(renderer: Renderer, template: str, system: bool, bos: str) -> TurnTexts:
    """What `template` puts around texts, without `bos` at the start; NotSupported where that depends on more.

    `system`: prompts have a system message.
    """

    def render(*messages: Message) -> str:
        return _render(renderer, template, messages).removeprefix(bos)

    try:
        first, opening = _cut(render(USER), USER)
        _, rest = _cut(render(USER, ANSWER, AGAIN), USER)
        before_answer, rest = _cut(rest, ANSWER)
        between, _ = _cut(rest, AGAIN)
    except Exception as e:
        raise _inexpressible_error(str(e)) from e
    before_system, behind_system = None, ""
    try:
        before_system, rest = _cut(render(SYSTEM, USER), SYSTEM)
        behind_system, _ = _cut(rest, USER)
    except Exception as e:  # a template may refuse such messages
        if system:
            raise _inexpressible_error(str(e)) from e
    texts = TurnTexts(first, before_system, behind_system, opening, before_answer, between)
    tried = [[USER], [USER, ANSWER, AGAIN], [USER, ANSWER, AGAIN, ANSWER, USER]]
    tried += [] if before_system is None else [[SYSTEM, *messages] for messages in tried]
    for messages in tried:
        if texts.render(messages) != render(*messages):
            raise _inexpressible_error(f"it renders {', '.join(m.role for m in messages)} in a way of its own")
    return texts


def _cut(text: str, message: Message) -> tuple[str, str]:
    before, found, behind = text.partition(message.content)
    if not found or message.content in behind:
        raise ValueError(f"the text of the {message.role} is not in it once")
    return before, behind


def _inexpressible_error(reason: str) -> NotSupported:
    return NotSupported(
        f"The base's chat template cannot be written as one of Ollama's: {reason}.",
        "Use FORMAT gguf: its file has the chat template itself, which llama.cpp renders.",
    )
