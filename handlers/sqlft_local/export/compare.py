"""An export opened as its users do, for VERIFY: by transformers and PEFT, or by llama.cpp, with text in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported
from sqlft.handler import Completion, Predictor, Request
from sqlft_local.base.config import read_config, read_context
from sqlft_local.base.tokenization import Renderer
from sqlft_local.errors import explain_errors, silence_transformers
from sqlft_local.export.templates import TurnTexts, build_chat_template, find_turn_texts
from sqlft_local.export.write import ExportedVersion, read_added_bos
from sqlft_local.options import PredictOptions
from sqlft_local.predict import llama

if TYPE_CHECKING:
    from sqlft_local._types import JsonObject, LlamaServer, Model, Tokenizer


def open_export(
    version: ExportedVersion, target: Path, options: PredictOptions, device: str, threads: int, small: bool
) -> Predictor:
    """What answers from the files in `target`; `small` bases are computed in float32."""
    renderer = version.load_renderer()
    options = replace(options, stop=list(dict.fromkeys((*(options.stop or ()), *renderer.delimiters.stop))) or None)
    context = read_context(read_config(version.folder), version.options.context_length)
    if version.request.format in ("peft", "merged"):
        model, tokenizer = _load_with_transformers(version, target, device, small)
        return TransformersPredictor(model, tokenizer, renderer, options)
    turns = None
    if version.request.format == "ollama":
        has_system = version.request.system is not None
        template = build_chat_template(renderer, has_system)
        turns = find_turn_texts(renderer, template, has_system, read_added_bos(target / version.file))
    plan = llama.LlamaSettings(target / version.file, 1, threads, exact=True, gpu=device != "cpu")
    return LlamaTextPredictor(llama.LlamaRuntime(plan, context + 1), renderer, options, context, turns)


def _load_with_transformers(
    version: ExportedVersion, target: Path, device: str, small: bool
) -> tuple[Model, Tokenizer]:
    from transformers import AutoConfig, AutoTokenizer

    from sqlft_local.base.loading import find_auto_class, resolve_device

    weights = version.folder if version.request.format == "peft" else target
    given: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}
    with silence_transformers(), explain_errors(target):
        kind = find_auto_class(AutoConfig.from_pretrained(weights, **given))
        model = kind.from_pretrained(weights, dtype="float32" if small else "auto", use_safetensors=True, **given)
        if version.request.format == "peft":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(target))
        return model.to(resolve_device(device)).eval(), AutoTokenizer.from_pretrained(target, **given)


class TransformersPredictor(Predictor):
    """transformers' own generate on the folder's chat template."""

    def __init__(self, model: Model, tokenizer: Tokenizer, renderer: Renderer, options: PredictOptions) -> None:
        self._model, self._tokenizer, self._renderer, self._options = model, tokenizer, renderer, options

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One answer at a time."""
        import torch

        for request in requests:
            turns = [m._asdict() for m in request.messages]
            ids = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
            how: dict[str, object] = {"max_new_tokens": self._options.max_tokens, "do_sample": False}
            how |= {"eos_token_id": sorted(self._renderer.stop_ids)}
            if self._options.stop:
                how |= {"stop_strings": self._options.stop, "tokenizer": self._tokenizer}
            with torch.inference_mode(), silence_transformers():
                answer = self._model.generate(**ids, **how)[0, ids["input_ids"].shape[1] :]
            text = self._tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            yield Completion(request.id, self._renderer.parse_text(text, self._options.stop or ()).text)


class LlamaTextPredictor(Predictor):
    """llama.cpp on a file that tokenizes and renders by itself, or renders as Ollama does."""

    def __init__(
        self,
        engine: llama.LlamaRuntime,
        renderer: Renderer,
        options: PredictOptions,
        context: int,
        turns: TurnTexts | None,
    ) -> None:
        self._engine, self._renderer, self._options = engine, renderer, options
        self._context, self._turns = context, turns

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One answer at a time."""
        asked = list(requests)
        longest = max((self._count_tokens(r) for r in asked), default=0) + self._options.max_tokens + 1
        server, _ = self._engine.server(min(longest, self._context + 1), None)
        body = {**llama.build_body(self._options, None), "max_tokens": self._options.max_tokens, "stream": False}
        del body["stream_options"], body["return_progress"]
        for request in asked:
            yield self._read(request, self._ask(server, body, request))

    def _ask(self, server: LlamaServer, body: JsonObject, request: Request) -> JsonObject:
        events: list[JsonObject] = []

        def keep(event: str) -> bool:
            events.append(json.loads(event))
            return False

        if self._turns is not None:
            server.handle_completions(json.dumps({**body, "prompt": self._turns.render(request.messages)}), keep)
        else:
            turns = [m._asdict() for m in request.messages]
            server.handle_chat_completions(json.dumps({**body, "messages": turns, "reasoning_format": "none"}), keep)
        return events[-1]

    def _count_tokens(self, request: Request) -> int:
        try:
            return len(self._renderer.prompt(request.messages))
        except NotSupported:  # its row fails
            return 0

    def _read(self, request: Request, event: JsonObject) -> Completion:
        if "error" in event:
            return Completion.failed(request.id, "llama.cpp", str(event["error"].get("message")))
        [choice] = event["choices"]
        text = choice["text"] if self._turns is not None else choice["message"]["content"]
        return Completion(request.id, self._renderer.parse_text(text or "", self._options.stop or ()).text)
