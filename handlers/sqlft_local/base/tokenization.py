"""Messages to token ids and back: the only place, for training and asking, so that both see the same tokens.

The tokenizer runs without transformers, whose import takes longer than a small model's answer: what transformers
does is written down once, and a test compares the two.  Here too: thoughts, separators and stop sequences.  Not here:
the template itself (`chat_template`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlft.errors import NotSupported
from sqlft.handler import Artifact, Message
from sqlft_local.base.chat_template import (
    PLAIN_TEMPLATE,
    ChatTemplate,
    ToolUse,
    create_template_environment,
    find_appended,
)
from sqlft_local.base.config import read_stop_ids
from sqlft_local.errors import explain_errors, silence_transformers
from sqlft_local.options import ModelOptions, Thinking, TrainOptions
from sqlft_local.thinking import find_marks

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RustTokenizer

    from sqlft_local._types import JsonObject, Tokenizer

TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "asking.json"


class ChatTokenizer:
    """What a Renderer needs, as `save_tokenizer` wrote it; `settings` are those of `read_tokenizer_settings`."""

    def __init__(self, folder: Path, settings: JsonObject | None = None) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._settings: JsonObject = settings or json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.chat_template: str | None = self._settings["chat_template"]
        self.all_special_ids: list[int] = self._settings["all_special_ids"]
        self.eos_token_id: int | None = self._settings["eos_token_id"]

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer, by the base's own settings."""
        found: list[int] = self._settings["stop_ids"]
        return found

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are found in texts before anything else, special ones among them."""
        found: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return found

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of the text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The ids' text."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self,
        turns: list[JsonObject],
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str,
        tools: list[JsonObject] | None = None,
        **more: object,
    ) -> str:
        """The conversation as one text, which begins with `opening`."""
        template = self._template if chat_template == self._template_source else self._compile_template(chat_template)
        rendered: str = template.render(
            messages=turns,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **more,
            **self._settings["special_tokens"],
        )
        return rendered if rendered.startswith(self.opening) else f"{self.opening}{rendered}"

    opening = ""
    """The token that every text begins with, where no template writes it."""
    _template_source: str | None = None
    _template: Template

    def _compile_template(self, text: str) -> Template:
        self._template, self._template_source = self._environment.from_string(text), text
        return self._template

    @cached_property
    def _environment(self) -> Environment:
        return create_template_environment()


def read_tokenizer_settings(folder: Path) -> JsonObject:
    """What a base's own files say of its tokenizer: enough to count tokens, transformers may know more of some."""
    config = _read_json(folder / "tokenizer_config.json")
    added = {t["content"]: t for t in _read_json(folder / TOKENIZER_FILE).get("added_tokens", [])}
    names = {n: config.get(n) for n in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {n: v["content"] if isinstance(v, dict) else v for n, v in names.items() if v}
    template = folder / "chat_template.jinja"
    end = added.get(tokens.get("eos_token", ""), {}).get("id")
    return {
        "chat_template": template.read_text(encoding="utf-8") if template.exists() else config.get("chat_template"),
        "special_tokens": tokens,
        "all_special_ids": [t["id"] for t in added.values() if t.get("special")],
        "eos_token_id": end,
        "stop_ids": sorted({i for i in (*read_stop_ids(folder), end) if i is not None}),
    }


def _read_json(path: Path) -> JsonObject:
    found: JsonObject = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def save_tokenizer(tokenizer: Tokenizer, stop_ids: Sequence[int], folder: Path) -> JsonObject:
    """Keep what transformers' `tokenizer` does in `folder`, and return it as a tokenizer.json's content."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = tokenizer.chat_template
    if backend is None or not (template is None or isinstance(template, str)) or "{% generation" in (template or ""):
        raise NotSupported("This base's tokenizer runs in transformers only.", "Use backend = 'transformers'.")
    about = {
        "chat_template": template,
        "special_tokens": {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)},
        "all_special_ids": list(tokenizer.all_special_ids),
        "eos_token_id": tokenizer.eos_token_id,
        "stop_ids": list(stop_ids),
    }
    content: str = backend.to_str()
    (folder / TOKENIZER_FILE).write_text(content, encoding="utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(about), encoding="utf-8")
    parsed: JsonObject = json.loads(content)
    return parsed


def load_transformers_tokenizer(folder: Path) -> tuple[Tokenizer, tuple[int, ...]]:
    """The base's tokenizer, and the tokens that end an answer."""
    from transformers import AutoTokenizer

    with silence_transformers(), explain_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return tokenizer, find_stop_ids(folder, tokenizer)


def find_stop_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return tuple(sorted({i for i in (*read_stop_ids(folder), tokenizer.eos_token_id) if i is not None}))


def load_tokenizer_json(folder: Path) -> RustTokenizer:
    """The tokenizer alone, without transformers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


THINKING_SWITCH: dict[Thinking, dict[str, bool]] = {
    "off": {"enable_thinking": False},
    "on": {"enable_thinking": True},
    "keep": {},
}
"""What a template gets."""


GUARD = "\ufdd0"
"""Stands within what a user typed like a control token, from rendering to tokenizing: no character of any text."""


class ParsedAnswer(NamedTuple):
    """An answer, the thoughts before it, and whether a stop sequence ended it."""

    text: str
    reasoning: str | None = None
    stopped: bool = False


class TokenizedConversation(NamedTuple):
    """Token ids of a conversation, and for each whether the model has to learn to say it."""

    ids: list[int]
    answer: list[bool]
    ignored: list[bool]
    """Whether a token is of an answer that is context only."""


class Renderer:
    """Renders with a base's tokenizer and chat template; knows nothing of models.

    `stop_ids` are the tokens that end an answer: those given, and the one that the template ends an answer with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: Sequence[int],
        chat_template: str | None = None,
        thinking: Thinking = "off",
    ) -> None:
        self.tokenizer = tokenizer
        text = chat_template or tokenizer.chat_template or PLAIN_TEMPLATE
        self.template = ChatTemplate(tokenizer, text, THINKING_SWITCH[thinking])
        self.delimiters = NO_DELIMITERS
        self.thinking = thinking
        self._marks = find_marks(self.template.text)
        """Around thoughts in the base's answers; None where it has none."""
        self._thought_block, self._thought = self._find_empty_thought()
        self.thinks = thinking != "off" and self._marks is not None and self._marks.end not in self._thought
        """Whether answers are to begin with a thought."""
        if thinking == "on" and not self.thinks:
            raise NotSupported(
                "The base's chat template has no thinking that could be switched on.",
                "Leave thinking = 'on' out, or use a base that thinks, such as qwen3-0.6b.",
            )
        before, behind = self._find_answer_affixes()
        self._opening = before if before.strip() and self._lacks_generation_prompt() else ""
        ids = self._encode(behind.lstrip())[:1]
        self.stop_ids = frozenset((*stop_ids, *(i for i in ids if i in set(tokenizer.all_special_ids))))
        self._answer_prefix = before if before.isspace() else ""
        self.answer_suffix = behind[: len(behind) - len(behind.lstrip())]

    def with_delimiters(self, delimiters: Delimiters) -> Renderer:
        """One that puts these delimiters behind texts; NotSupported where the template takes them off again."""
        made = copy(self)
        made.delimiters = delimiters
        stop = delimiters.stop[0] if delimiters.stop else ""
        if stop and stop not in made._find_answer_affixes()[1]:
            raise NotSupported(
                f"The base's chat template takes the stop sequence {stop!r} off the answers' ends.",
                "Choose one that is more than white space, such as stop = ' END'.",
            )
        return made

    def with_tools(self, tool_use: ToolUse) -> Renderer:
        """One for a conversation with tools; NotSupported from it where the template leaves them out."""
        made = copy(self)
        fields = {k: json.loads(self._guard(json.dumps(v, ensure_ascii=False))) for k, v in tool_use.fields.items()}
        made.template = self.template.with_tools(ToolUse(tool_use.tools, fields))
        return made

    def with_thinking(self, thinking: Thinking) -> Renderer:
        """One that asks for thoughts, or for none; NotSupported where the template cannot."""
        if thinking == self.thinking:
            return self
        return Renderer(self.tokenizer, sorted(self.stop_ids), self.template.text, thinking).with_delimiters(
            self.delimiters
        )

    @cached_property
    def longest_token(self) -> int:
        """Letters of the longest token: a text has at least its length over this many tokens."""
        return max(map(len, self.tokenizer.get_vocab()))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the model is asked: the conversation so far and the opening of the assistant's turn."""
        return [i for ids, *_ in self._tokenize_pieces(messages, ask=True) for i in ids]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """`prompt` as one text."""
        return "".join(text for text, _ in self._render_pieces(messages, ask=True))

    def conversation(self, messages: Sequence[Message], context: Collection[int] = ()) -> TokenizedConversation:
        """What the model is trained on; its start equals `prompt` of the messages before any assistant's turn.

        `context` are the places of answers that are not to be learned.
        """
        ids: list[int] = []
        answer: list[bool] = []
        ignored: list[bool] = []
        places = iter([k for k, m in enumerate(messages) if m.role == "assistant"])
        for tokens, taught, is_answer in self._tokenize_pieces(messages, ask=False):
            ignore = is_answer and next(places) in context
            ids += tokens
            answer += [i < taught and not ignore for i in range(len(tokens))]
            ignored += [i < taught and ignore for i in range(len(tokens))]
        end = max((i + 1 for i, learned in enumerate(answer) if learned), default=0)
        return TokenizedConversation(ids[:end], answer[:end], ignored[:end])

    def text(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text, without what the template puts around an answer."""
        return self.parse_ids(ids).text

    def parse_ids(self, ids: Sequence[int], stop: Sequence[str] = ()) -> ParsedAnswer:
        """An answer's tokens as text."""
        marks, text, begin = self._mark_tokens, "", 0
        for i in [*(i for i, token in enumerate(ids) if token in marks), len(ids)]:
            piece = self.tokenizer.decode(ids[begin:i], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text += self._guard(piece) if marks else piece
            text += marks[ids[i]] if i < len(ids) else ""
            begin = i + 1
        return self.parse_text(text, stop)

    def parse_text(self, text: str, stop: Sequence[str] = ()) -> ParsedAnswer:
        """An answer up to the first stop sequence behind its thought, without what the template puts around it."""
        opened = self._thought if self.thinks else ""
        reasoning, answer = self._split_thought(opened + text)
        if self._marks is not None:
            reasoning = reasoning and reasoning.replace(GUARD, "")
            begun = self._stray_marks.match(answer) and any(mark.startswith(answer) for mark in self._marks.texts)
            answer = "" if begun else self._stray_marks.sub("", answer).replace(GUARD, "")
        end = min((at for s in stop if (at := answer.find(s)) >= 0), default=None)
        answer = answer[:end]
        if reasoning is None:
            answer = answer.removeprefix(self._answer_prefix)
        if end is None and not self.delimiters.stop:  # what the template puts behind comes after a stop sequence
            answer = answer.removesuffix(self.answer_suffix)
        return ParsedAnswer(answer, reasoning or None, end is not None)

    def add_reasoning(self, answer: str, reasoning: str | None) -> str:
        """An answer as it is taught: behind its thought, where the model is to think."""
        if not self.thinks or self._marks is None or not reasoning:
            return answer
        return f"{self._marks.opening}{self._guard(reasoning.strip())}{self._marks.closing}{self._guard(answer)}"

    def _split_thought(self, text: str) -> tuple[str | None, str]:
        """The thought that an answer begins with, where the base is one that thinks, and what is behind it."""
        return self._marks.split(text) if self._marks else (None, text)

    @property
    def thought_texts(self) -> tuple[str, ...]:
        """What may begin where an answer is not, in a text that is not complete yet."""
        return self._marks.texts if self._marks else ()

    @property
    def mark_tokens(self) -> list[str]:
        """Control tokens around thoughts, which a decoder must not leave out."""
        return list(self._mark_tokens.values())

    @cached_property
    def _mark_tokens(self) -> dict[int, str]:
        around = "".join((self._marks.opening, self._marks.closing)) if self._marks else ""
        added = self.tokenizer.added_tokens_decoder.items() if around else ()
        return {i: token.content for i, token in added if token.special and token.content in around}

    @cached_property
    def _stray_marks(self) -> re.Pattern[str]:
        """A decoder would leave them out, wherever a base says them."""
        return re.compile("|".join(map(re.escape, self.mark_tokens)) or r"(?!)")

    def _tokenize_pieces(self, messages: Sequence[Message], ask: bool) -> Iterator[tuple[list[int], int, bool]]:
        """Tokens of each piece, how many at its start are an answer to be learned, and whether it is an answer."""
        for text, is_answer in self._render_pieces(messages, ask):
            ids = self._encode(text)
            yield (*self._cut_behind_end(ids), True) if is_answer else (ids, 0, False)

    def _render_pieces(self, messages: Sequence[Message], ask: bool) -> Iterator[tuple[str, bool]]:
        """The rendered text cut where an answer begins or ends; each piece is tokenized for itself.

        Tokenizing the whole at once could merge letters across such a border, differently with and without an answer.
        """
        thoughts: dict[int, str] = {}
        answers = list(messages)
        for k, message in enumerate(messages):
            if message.role == "assistant":
                is_whole = self._marks is not None and self._marks.end in message.content
                reasoning, content = self._split_thought(message.content) if is_whole else (None, message.content)
                thoughts[k] = self._render_thought(reasoning)
                answers[k] = message._replace(content=content)
        messages = self.delimiters.append_to(answers, ask, self._guard)
        tool_fields = self.template.tool_use.fields
        for k in (k for k, fields in tool_fields.items() if "tool_calls" in fields and k < len(messages)):
            messages[k] = answers[k]._replace(content=self._guard(answers[k].content))
        done = ""
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            with_answer = self._render(messages[: k + 1], False)
            asked = self._render_prompt(messages[:k]) if k else ""  # nothing is asked before the first message
            self.template.check_tools(messages, k, asked, with_answer)
            if k:
                yield f"{find_appended(asked, done)}{self._thought}", False
            yield f"{thoughts[k] if k else ''}{find_appended(with_answer, asked)}", True
            done = with_answer
        if ask:
            yield f"{find_appended(self._render_prompt(messages), done)}{self._thought}", False

    def _render_thought(self, reasoning: str | None) -> str:
        """What of a thought is learned with its answer: all that the prompt does not open or close already."""
        if not self.thinks or self._marks is None:
            return ""
        if not (reasoning or self._thought):
            return self._marks.skipped
        rest = f"{self._guard(reasoning or '')}{self._marks.closing}"
        return rest if self._thought else f"{self._marks.opening}{rest}"

    def _render_prompt(self, messages: Sequence[Message]) -> str:
        """With the opening of an answer, also where the template has none for asking and puts one before answers."""
        return self._render(messages, True) + self._opening

    def _lacks_generation_prompt(self) -> bool:
        ask = [Message("user", "a")]
        return self._render(ask, True) == self._render(ask, False)

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        """The messages without thoughts of nothing, which templates put before some answers and leave out of others."""
        rendered = self.template.render(messages, ask)
        if self._marks is None:
            return rendered
        rendered = rendered.replace(self._thought_block, "")
        opened = self._marks.find_opened(rendered) if ask else None
        return rendered[: opened.start()] if opened else rendered

    def _find_empty_thought(self) -> tuple[str, str]:
        """How the template writes a thought of nothing before an answer, and what of it an answer opens with."""
        if self._marks is None:
            return "", ""
        asked, answer = Message("user", "a"), Message("assistant", "b")
        empty = self._marks.find_empty(self.template.render([asked, answer], False))
        ask = self._marks.find_opened(self.template.render([asked], True))
        block = empty[0] if empty else ask[0] if ask and self._marks.end in ask[0] else self._marks.closed
        if self.thinking != "off":
            return block, ask[0] if ask else ""
        return block, block if empty or ask else ""

    def _encode(self, text: str) -> list[int]:
        parts = (self.tokenizer.encode(part, add_special_tokens=False) for part in text.split(GUARD) if part)
        return [i for ids in parts for i in ids]

    def _guard(self, text: str) -> str:
        """What somebody typed like a control token, cut behind its first letter: it is tokenized as a text."""
        return self._control_tokens.sub(lambda found: f"{found[0][0]}{GUARD}{found[0][1:]}", text)

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted((token for token in added if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def _cut_behind_end(self, ids: list[int]) -> tuple[list[int], int]:
        """An answer's tokens up to its end mark are learned; where the template has no end mark, one is put."""
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        if ends or self.tokenizer.eos_token_id is None:
            return ids, ends[-1] + 1 if ends else len(ids)
        return [*ids, self.tokenizer.eos_token_id], len(ids) + 1

    def _find_answer_affixes(self) -> tuple[str, str]:
        """What the template puts before and behind an answer; nothing where that is unclear."""
        both = self.delimiters.append_to([Message("user", "a"), Message("assistant", "b")], ask=False)
        asked, with_answer = self._render(both[:1], True), self._render(both, False)
        before, _, behind = with_answer.removeprefix(asked).partition("b")
        return (before, behind) if with_answer.startswith(asked) else ("", "")


class Delimiters(NamedTuple):
    """The separator, and the stop sequences: answers are taught with the first, and end at any, when asked."""

    separator: str = ""
    stop: tuple[str, ...] = ()

    def append_to(self, messages: Sequence[Message], ask: bool, guard: Callable[[str], str] = str) -> list[Message]:
        """The messages, guarded, with the delimiters; a text that ends with its mark already keeps that one."""
        return [
            message._replace(content=guard(message.content.removesuffix(mark)) + mark)
            for message, mark in self._list_marks(messages, ask)
        ]

    def details(self) -> JsonObject:
        """As a version remembers them."""
        return {"separator": self.separator or None, "stop": list(self.stop) or None}

    def _list_marks(self, messages: Sequence[Message], ask: bool) -> Iterator[tuple[Message, str]]:
        """Each message, and what stands behind it."""
        followers = [*(m.role for m in messages[1:]), "assistant" if ask else ""]
        for message, follower in zip(messages, followers, strict=True):
            if message.role == "assistant":
                yield message, self.stop[0] if self.stop else ""
            else:
                yield message, self.separator if message.role == "user" and follower == "assistant" else ""


NO_DELIMITERS = Delimiters()


def resolve_inference_delimiters(model: ModelOptions, artifact: Artifact | None) -> Delimiters:
    """What a version was trained with, or the model's own where it was not trained."""
    known = {} if artifact is None else artifact.details
    return _create_delimiters(known.get("separator", model.separator), known.get("stop", model.stop))


def resolve_training_delimiters(options: TrainOptions, model: ModelOptions, start: Artifact | None) -> Delimiters:
    """What a training says; where it says nothing, those of the version it starts from, or of the model."""
    before = resolve_inference_delimiters(model, start)
    return _create_delimiters(
        before.separator if options.separator is None else options.separator,
        before.stop if options.stop is None else options.stop,
    )


def _create_delimiters(separator: str | None, stop: Sequence[str] | None) -> Delimiters:
    return Delimiters(separator or "", tuple(s for s in stop or () if s))


def load_inference_renderer(folder: Path, model: ModelOptions, artifact: Artifact | None) -> Renderer:
    """What renders a version's prompts as training did."""
    tokenizer, stop_ids = load_transformers_tokenizer(folder)
    renderer = Renderer(tokenizer, stop_ids, model.chat_template, model.thinking)
    return renderer.with_delimiters(resolve_inference_delimiters(model, artifact))
