"""Asking vLLM, where it is installed: one base on the GPU and an adapter a request.

Written after vLLM's documentation of LLM and LoRARequest; it was not run by this project's tests, for want of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from sqlft.errors import HandlerNotInstalled, ProviderError
from sqlft.handler import Completion, Delta, Predictor, Request
from sqlft_local.base.tokenization import Delimiters, Renderer
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import ModelOptions, PredictOptions
from sqlft_local.predict.choose import DTYPES
from sqlft_local.predict.common import encode_request

WINDOW = 16
"""Batches of prompts given to vLLM at a time: it has its own continuous batching, but answers a call as a whole."""


def open_predictor(
    folder: Path,
    adapter: Path | None,
    model: ModelOptions,
    options: PredictOptions,
    schema: Mapping[str, Any] | None,
    delimiters: Delimiters,
) -> Predictor:
    """A predictor on the base's engine, which is shared by all its adapters."""
    try:
        import vllm
    except ImportError as e:
        raise HandlerNotInstalled(f"vLLM is not installed ({e}).", "Run: pip install vllm, on a GPU.") from e
    key = ("vllm", str(folder), repr(replace(model, separator=None, stop=None)), options.precision)

    def load() -> CachedModel:
        dtype = DTYPES.get(options.precision, model.dtype)
        try:
            engine = vllm.LLM(
                str(folder),
                dtype=dtype,
                max_model_len=model.context_length,
                enable_lora=True,
                max_lora_rank=64,
                enable_prefix_caching=True,
            )
        except (RuntimeError, ValueError, OSError) as e:
            raise ProviderError(f"vLLM cannot load {folder}: {e}", "Use backend = 'transformers'.") from e
        return CachedModel(engine, sum(f.stat().st_size for f in folder.glob("*.safetensors")), lambda: None)

    return VllmPredictor(MODEL_CACHE.acquire(key, load), key, folder, adapter, model, options, schema, delimiters)


class VllmPredictor(Predictor):
    """Some batches at a time."""

    def __init__(
        self,
        engine: Any,
        key: tuple[str, ...],
        folder: Path,
        adapter: Path | None,
        model: ModelOptions,
        options: PredictOptions,
        schema: Mapping[str, Any] | None,
        delimiters: Delimiters,
    ) -> None:
        from sqlft_local.base.tokenization import load_transformers_tokenizer

        self._engine, self._key, self._adapter = engine, key, adapter
        self._options, self._schema = options, schema
        self._renderer = Renderer(*load_transformers_tokenizer(folder), model.chat_template).with_delimiters(delimiters)

    def close(self) -> None:
        """The engine stays for the next statement."""
        MODEL_CACHE.release(self._key)

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions, a window at a time."""
        from vllm.lora.request import LoRARequest

        lora = None
        if self._adapter is not None:
            name = str(self._adapter)
            lora = LoRARequest(name, crc32(name.encode()) & 0x7FFFFFFF or 1, name)
        context = self._engine.llm_engine.model_config.max_model_len
        waiting = iter(requests)
        while window := list(islice(waiting, self._options.batch_size * WINDOW)):
            asked: list[tuple[Request, list[int], int]] = []
            for request in window:
                found = encode_request(request, self._renderer, context, self._options.max_tokens)
                if isinstance(found, Completion):
                    yield found
                else:
                    asked.append((request, *found))
            if asked:
                yield from self._generate(asked, lora)

    def _generate(self, asked: list[tuple[Request, list[int], int]], lora: Any) -> Iterator[Completion]:
        try:
            answers = self._engine.generate(
                [{"prompt_token_ids": prompt} for _, prompt, _ in asked],
                [self._sampling_params(prompt, room) for _, prompt, room in asked],
                lora_request=lora,
                use_tqdm=False,
            )
        except RuntimeError as e:
            raise ProviderError(f"The GPU stopped answering: {e}", "UNLOAD the model and ask again.") from e
        for (request, prompt, _), answer in zip(asked, answers, strict=True):
            said = answer.outputs[0]
            yield Completion(
                request.id,
                self._renderer.strip_affixes(said.text),
                input_tokens=len(prompt),
                output_tokens=len(said.token_ids),
                cached_tokens=answer.num_cached_tokens,
                logprob=said.cumulative_logprob if self._options.logprobs else None,
                truncated=said.finish_reason == "length",
            )

    def _sampling_params(self, prompt: list[int], room: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        o = self._options
        bound = None
        if self._schema is not None or o.grammar:
            # vLLM's grammars allow any white space, that of the training rows among them
            bound = StructuredOutputsParams(json=dict(self._schema) if self._schema else None, grammar=o.grammar)
        return SamplingParams(
            max_tokens=room,
            temperature=o.temperature,
            top_p=o.top_p,
            top_k=o.top_k or -1,
            seed=crc32(repr((o.seed, prompt)).encode()),
            stop=o.stop,
            stop_token_ids=sorted(self._renderer.stop_ids),
            logprobs=0 if o.logprobs else None,
            structured_outputs=bound,
        )
