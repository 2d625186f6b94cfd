"""A base's chat template: conversations to text, with tools, with system messages, or why it does not take them.

Called by `tokenization`.  In: messages of one conversation, and what it has of tools.  Out: the text that the template
makes, by the tokenizer's own Jinja.  Not here: tokens, thoughts and delimiters (`tokenization`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

from sqlft.errors import NotSupported, OptionError
from sqlft.handler import Message

if TYPE_CHECKING:
    from jinja2 import Environment

    from sqlft_local._types import JsonObject, Tokenizer

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}\n{% endfor %}"
)
"""For bases that were never taught a chat: the texts, a line each."""
SYSTEM_PROBE = "Say sqlft."
"""A system message that no template has by itself."""
TOOLS_NEXT_STEP = (
    "Use a base whose template has tools, such as qwen3-0.6b; or give a chat_template of your own in CREATE MODEL … "
    "USING; or write calls and what tools say into the contents of assistant and user."
)


def create_template_environment() -> Environment:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(x: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)

    def now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = to_json
    made.globals.update(raise_exception=refuse, strftime_now=now)
    return made


def check_template(text: str) -> None:
    """OptionError for a chat template that Jinja cannot read; what only transformers reads is left to it."""
    if "{% generation" in text:
        return
    try:
        from jinja2.exceptions import TemplateSyntaxError
    except ImportError:
        return
    try:
        create_template_environment().parse(text)
    except TemplateSyntaxError as e:
        raise OptionError(
            f"The chat_template is no Jinja template: {e.message} (line {e.lineno}).",
            "Correct it, or leave chat_template out: then the base's own is used.",
        ) from e


class ToolUse(NamedTuple):
    """What a conversation has of tools: those that may be called, and by the place of a message what it has beside
    role and content: `tool_calls`, `tool_call_id`, `name`.
    """

    tools: list[JsonObject] | None = None
    fields: Mapping[int, JsonObject] = {}

    @classmethod
    def read(cls, turns: Sequence[JsonObject], tools: str | None) -> ToolUse:
        """Of a training row, whose columns have OpenAI's JSON; templates want the arguments of calls as objects."""
        fields: dict[int, JsonObject] = {}
        for k, turn in enumerate(turns):
            if turn.get("tool_calls"):
                calls = json.loads(turn["tool_calls"])
                for call in calls:
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
                fields[k] = {"tool_calls": calls}
            elif turn["role"] == "tool":
                fields[k] = {name: turn[name] for name in ("tool_call_id", "name") if turn.get(name)}
        return cls(json.loads(tools) if tools else None, fields)

    def find_missing(self, k: int, message: Message, text: str) -> str:
        """What the text of a message, or of those up to it, leaves out of it; nothing if all is there."""
        calls = [call["function"]["name"] for call in self.fields.get(k, {}).get("tool_calls", ())]
        if missing := [name for name in calls if name not in text]:
            return f"calls of tools (role assistant: {missing[0]})"
        word = re.search(r"[A-Za-z0-9]+", message.content)
        return "what tools say (role tool)" if message.role == "tool" and word and word[0] not in text else ""


NO_TOOLS = ToolUse()


class ChatTemplate:
    """Renders with `text`, a Jinja template; `switches` are variables of it, such as enable_thinking."""

    def __init__(self, tokenizer: Tokenizer, text: str, switches: Mapping[str, bool]) -> None:
        self._tokenizer = tokenizer
        self.text = text
        self._switches = switches
        self.tool_use = NO_TOOLS
        self.merges_system = False
        self.merges_system = self._lacks_system()
        """Whether the template has no place for a system message: it goes before the first words of the user."""

    def with_tools(self, tool_use: ToolUse) -> ChatTemplate:
        """One for a conversation with tools."""
        made = copy(self)
        made.tool_use = tool_use
        return made

    def render(self, messages: Sequence[Message], ask: bool) -> str:
        """The conversation as one text, with the opening of an answer where that is asked for."""
        fields = self.tool_use.fields
        turns = [{"role": m.role, "content": m.content, **fields.get(k, {})} for k, m in enumerate(messages)]
        if self.merges_system:
            turns = _merge_system_turns(turns)
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=ask,
                chat_template=self.text,
                tools=self.tool_use.tools,
                **self._switches,
            )
        except Exception as e:
            raise self._refused_error([turn["role"] for turn in turns], e) from e
        return rendered

    def check_tools(self, messages: Sequence[Message], k: int, asked: str, with_answer: str) -> None:
        """NotSupported where the template leaves out what an answer calls, or what tools said before it."""
        if self.tool_use is NO_TOOLS:
            return
        names = [tool["function"]["name"] for tool in self.tool_use.tools or ()]
        missing = next((f"tools ({name})" for name in names if name not in asked), "")
        for place in range(k + 1):
            text = find_appended(with_answer, asked) if place == k else asked
            missing = missing or self.tool_use.find_missing(place, messages[place], text)
        if missing:
            raise NotSupported(f"The base's chat template leaves out {missing}.", TOOLS_NEXT_STEP)

    def _lacks_system(self) -> bool:
        try:
            both = [Message("system", SYSTEM_PROBE), Message("user", "a")]
            return SYSTEM_PROBE not in self.render(both, False)
        except NotSupported:
            return True

    def _refused_error(self, roles: Sequence[str], error: Exception) -> NotSupported:
        next_step = "Change these messages, or give a chat_template of your own in CREATE MODEL … USING."
        spoken = [role for role in roles if role != "system"]
        if "tool" in roles or self.tool_use is not NO_TOOLS:
            next_step = TOOLS_NEXT_STEP
        elif spoken[::2] != ["user"] * len(spoken[::2]) or spoken[1::2] != ["assistant"] * len(spoken[1::2]):
            next_step = (
                "It wants user and assistant in turns, the user first: join what one of them says in a row in the "
                "query, or give a chat_template of your own in CREATE MODEL … USING."
            )
        return NotSupported(f"The base's chat template refuses these messages ({', '.join(roles)}): {error}", next_step)


def _merge_system_turns(turns: Sequence[JsonObject]) -> list[JsonObject]:
    """Without system messages: each stands before what the user says next, as in the templates of Gemma 3.

    >>> _merge_system_turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nHi'}]
    """
    merged: list[JsonObject] = []
    waiting = ""
    for turn in turns:
        if turn["role"] == "system":
            waiting += f"{turn['content']}\n\n"
        elif turn["role"] == "user":
            merged.append({**turn, "content": waiting + turn["content"]})
            waiting = ""
        else:
            merged.append(turn)
    return [*merged, {"role": "user", "content": waiting.rstrip("\n")}] if waiting else merged


def find_appended(text: str, start: str) -> str:
    """What a template put behind `start` for further messages; NotSupported where it changed what was there.

    >>> find_appended("user: a\\nassistant: b", "user: a\\n")
    'assistant: b'
    """
    if not text.startswith(start):
        raise NotSupported(
            "The base's chat template renders a turn in another way when more turns follow it.",
            "Give a template that only appends: CREATE MODEL … USING chat_template = '…'.",
        )
    return text[len(start) :]
