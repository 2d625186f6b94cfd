"""A tokenizer with its chat template, without transformers: importing that takes longer than a small model's answer.

What transformers' tokenizer does is written down once, where transformers is at hand; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlft.errors import NotSupported, OptionError
from sqlft_local.load_errors import _explained, _quietly

if TYPE_CHECKING:
    pass


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
    with _quietly(), _explained(folder):
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
