"""Messages to token ids and back: the only place, for training and asking, so that both see the same tokens.

The tokenizer runs without transformers, whose import takes longer than a small model's answer: what transformers
does is written down once, and a test compares the two.  Here too: separators and stop sequences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlft.errors import NotSupported, OptionError
from sqlft_local.errors import explain_errors, quietly

if TYPE_CHECKING:
    pass
import re
from collections.abc import Collection, Iterator
from copy import copy
from typing import NamedTuple

from sqlft.handler import Artifact, Message
from sqlft_local.options import ModelOptions, TrainOptions

TOKENIZER, ASKING = "tokenizer.json", "asking.json"


class LightTokenizer:
    """What a Renderer needs, read from what `write` wrote; `about` in place of it, as `told` has it."""

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._about: dict[str, Any] = about or json.loads((folder / ASKING).read_text(encoding="utf-8"))
        self.chat_template: str | None = self._about["chat_template"]
        self.all_special_ids: list[int] = self._about["all_special_ids"]
        self.eos_token_id: int | None = self._about["eos_token_id"]

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer, by the base's own settings."""
        found: list[int] = self._about["stop_ids"]
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
        self, turns: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool, chat_template: str, **more: Any
    ) -> str:
        """The conversation as one text."""
        template = self._template if chat_template == self._compiled_from else self._compiled(chat_template)
        said: str = template.render(
            messages=turns,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **more,
            **self._about["special_tokens"],
        )
        return said

    _compiled_from: str | None = None
    _template: Any = None

    def _compiled(self, text: str) -> Any:
        self._template, self._compiled_from = self._environment.from_string(text), text
        return self._template

    @cached_property
    def _environment(self) -> Any:
        return environment()


def environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(x: Any, ensure_ascii: bool = False, indent: Any = None, **given: Any) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, **given)

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
        environment().parse(text)
    except TemplateSyntaxError as e:
        raise OptionError(
            f"The chat_template is no Jinja template: {e.message} (line {e.lineno}).",
            "Correct it, or leave chat_template out: then the base's own is used.",
        ) from e


def told(folder: Path) -> dict[str, Any]:
    """What a base's own files say of its tokenizer: enough to count tokens, transformers may know more of some."""
    config, generation = _json(folder / "tokenizer_config.json"), _json(folder / "generation_config.json")
    added = {t["content"]: t for t in _json(folder / TOKENIZER).get("added_tokens", [])}
    names = {n: config.get(n) for n in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {n: v["content"] if isinstance(v, dict) else v for n, v in names.items() if v}
    template = folder / "chat_template.jinja"
    end = added.get(tokens.get("eos_token", ""), {}).get("id")
    stops = generation.get("eos_token_id")
    listed = stops if isinstance(stops, list) else [stops]
    return {
        "chat_template": template.read_text(encoding="utf-8") if template.exists() else config.get("chat_template"),
        "special_tokens": tokens,
        "all_special_ids": [t["id"] for t in added.values() if t.get("special")],
        "eos_token_id": end,
        "stop_ids": sorted({i for i in (*listed, end) if i is not None}),
    }


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(tokenizer: Any, stop_ids: Sequence[int], folder: Path) -> dict[str, Any]:
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
    (folder / TOKENIZER).write_text(content, encoding="utf-8")
    (folder / ASKING).write_text(json.dumps(about), encoding="utf-8")
    said: dict[str, Any] = json.loads(content)
    return said


def opened_tokenizer(folder: Path) -> tuple[Any, tuple[int, ...]]:
    """The base's tokenizer, and the tokens that end an answer."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quietly(), explain_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **given)
        if (folder / "generation_config.json").exists():
            return tokenizer, stops(GenerationConfig.from_pretrained(folder), tokenizer)
        config = AutoConfig.from_pretrained(folder, **given)
        return tokenizer, stops(GenerationConfig.from_model_config(config), tokenizer)


def stops(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    listed = eos if isinstance(eos, list) else [eos]
    return tuple(sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None}))


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer alone, without transformers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


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


class Marks(NamedTuple):
    """The separator, and the stop sequences: answers are taught with the first, and end at any, when asked."""

    separator: str = ""
    stop: tuple[str, ...] = ()

    def on(self, messages: Sequence[Message], ask: bool) -> list[Message]:
        """The messages with the marks; a text that ends with its mark already keeps that one."""
        return list(self._marked(messages, ask))

    def details(self) -> dict[str, Any]:
        """As a version remembers them."""
        return {"separator": self.separator or None, "stop": list(self.stop) or None}

    def _marked(self, messages: Sequence[Message], ask: bool) -> Iterator[Message]:
        followers = [*(m.role for m in messages[1:]), "assistant" if ask else ""]
        for message, follower in zip(messages, followers, strict=True):
            if message.role == "assistant":
                mark = self.stop[0] if self.stop else ""
            else:
                mark = self.separator if message.role == "user" and follower == "assistant" else ""
            there = mark and message.content.endswith(mark)
            yield message if there else message._replace(content=message.content + mark)


NO_MARKS = Marks()


def asked_with(model: ModelOptions, artifact: Artifact | None) -> Marks:
    """What a version was trained with, or the model's own where it was not trained."""
    known = {} if artifact is None else artifact.details
    return _marks(known.get("separator", model.separator), known.get("stop", model.stop))


def taught_with(options: TrainOptions, model: ModelOptions, start: Artifact | None) -> Marks:
    """What a training says; where it says nothing, those of the version it starts from, or of the model."""
    before = asked_with(model, start)
    return _marks(
        before.separator if options.separator is None else options.separator,
        before.stop if options.stop is None else options.stop,
    )


def _marks(separator: str | None, stop: Sequence[str] | None) -> Marks:
    return Marks(separator or "", tuple(s for s in stop or () if s))
