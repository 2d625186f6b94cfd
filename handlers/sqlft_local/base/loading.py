"""Models in memory: bases shared by all that ask, adapters laid over them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlft.errors import HandlerNotInstalled, NotSupported, OptionError
from sqlft_local import machine
from sqlft_local.base import hub, weight_cache
from sqlft_local.base.adapter import read_adapter, wrong_base_error
from sqlft_local.base.config import read_config, read_context
from sqlft_local.base.hub import print_progress
from sqlft_local.base.tokenization import (
    NO_DELIMITERS,
    Delimiters,
    Renderer,
    find_stop_ids,
    load_transformers_tokenizer,
)
from sqlft_local.errors import INSTALL, explain_errors, silence_transformers
from sqlft_local.kernels import packing, quantised
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import ModelOptions

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Config, Device, Dtype, Layer, Model, Tokenizer

TESTED_ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}
"""Architectures whose packed rows tests compare with transformers' own attention; others are tried when loaded."""
LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and how text becomes its tokens."""

    model: Model
    renderer: Renderer
    folder: Path
    context: int

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.renderer.stop_ids

    @property
    def device(self) -> Device:
        """Where its inputs go."""
        return self.model.device


def require_libraries(what: str, training: bool = False) -> None:
    """HandlerNotInstalled unless the libraries that run models are there; those that take seconds only for training."""
    machine.configure_math_libraries()
    try:
        import torch  # noqa: F401

        if training:
            import peft  # noqa: F401
            import transformers  # noqa: F401
        hub.check_installed("transformers", "tokenizers", "safetensors", "jinja2")
    except ImportError as e:
        raise HandlerNotInstalled(f"{what} needs a package that is not installed ({e}).", INSTALL) from e


def load_base(folder: Path, options: ModelOptions, device: str, training: bool = False) -> LoadedModel:
    """The base from its folder, in memory of its own; for asking without transformers where that can be."""
    place = resolve_device(device)
    quick = None if training or options.quantization != "none" else _load_with_torch(folder, options, place)
    return quick or _load_with_transformers(folder, options, place, training)


def _load_with_torch(folder: Path, options: ModelOptions, place: str) -> LoadedModel | None:
    """None for shapes and tokenizers that only transformers knows."""
    from sqlft_local.base import torch_llama

    with explain_errors(folder):
        tokenizer = weight_cache.load_chat_tokenizer(folder)
        dtype = resolve_dtype(options.dtype, place, training=False)
        files = weight_cache.prepare_weights(folder, str(dtype).removeprefix("torch."))
        model = None if tokenizer is None else torch_llama.load(folder, files, dtype, place)
        if model is None or tokenizer is None:
            return None
        context = read_context(read_config(folder), options.context_length)
    renderer = Renderer(tokenizer, tokenizer.stop_ids, options.chat_template)
    return LoadedModel(model.eval().requires_grad_(False), renderer, folder, context)


def _load_with_transformers(folder: Path, options: ModelOptions, place: str, training: bool) -> LoadedModel:
    from transformers import AutoConfig

    packing.register_attention()
    with silence_transformers(), explain_errors(folder):
        _check_model_type(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_layers(config)
        model = _load_causal_lm(
            folder, config, resolve_dtype(options.dtype, place, training), options.quantization, place
        )
        quantised.disable_repacking(model)
        if options.quantization == "none":
            model.to(place)
        model.eval().requires_grad_(False)
        if config.model_type not in TESTED_ARCHITECTURES:
            _check_attention(model, folder)
    tokenizer = weight_cache.load_chat_tokenizer(folder) or load_transformers_tokenizer(folder)[0]
    renderer = Renderer(tokenizer, find_stop_ids(folder, tokenizer), options.chat_template)
    return LoadedModel(model, renderer, folder, read_context(config.to_dict(), options.context_length))


def load_encoder(folder: Path, options: ModelOptions, device: str) -> tuple[Model, Tokenizer]:
    """A model without an output head, and its tokenizer: for embeddings."""
    from transformers import AutoModel, AutoTokenizer

    place = resolve_device(device)
    with silence_transformers(), explain_errors(folder):
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = resolve_dtype(options.dtype, place, training=False)
        model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, **given)
        return model.to(place).eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, **given)


def _load_causal_lm(folder: Path, config: Config, dtype: Dtype, quantization: str, place: str) -> Model:
    from transformers import AutoModelForCausalLM

    wanted = quantised.quantization_config(quantization, dtype)
    how = {"quantization_config": wanted, "device_map": {"": place}} if wanted else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            **how,
            attn_implementation=packing.ATTENTION_NAME,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (KeyError, ValueError) as e:
        if packing.ATTENTION_NAME not in str(e):
            raise
        raise _unsupported_architecture_error(folder, config) from e


def get_shared_model(
    base: str, options: ModelOptions, device: str, adapter: Path | None, delimiters: Delimiters = NO_DELIMITERS
) -> LoadedModel:
    """A base, with or without an adapter, that others use too: read only."""
    loaded, release = acquire_model(hub.pull(base, print_progress), options, device, adapter, delimiters)
    release()
    return loaded


def acquire_model(
    folder: Path, options: ModelOptions, device: str, adapter: Path | None, delimiters: Delimiters = NO_DELIMITERS
) -> tuple[LoadedModel, Callable[[], None]]:
    """The same, kept in memory until it is given back by calling what comes second."""
    options = replace(options, separator=None, stop=None)  # delimiters are no reason to load a base twice
    loaded, release = _acquire_cached(folder, options, device, adapter)
    if delimiters == NO_DELIMITERS:
        return loaded, release
    try:
        return replace(loaded, renderer=loaded.renderer.with_delimiters(delimiters)), release
    except BaseException:
        release()
        raise


def _acquire_cached(
    folder: Path, options: ModelOptions, device: str, adapter: Path | None
) -> tuple[LoadedModel, Callable[[], None]]:
    name = ("transformers", str(folder))
    key = (*name, None, repr(options), device)

    def base() -> CachedModel:
        loaded = load_base(folder, options, device)
        return CachedModel(loaded, _count_bytes(loaded.model), trim_memory)

    if adapter is None:
        return MODEL_CACHE.acquire(key, base), lambda: MODEL_CACHE.release(key)
    own = (*name, str(adapter), repr(options), device, _adapter_mtime(adapter))

    def version() -> CachedModel:
        below = MODEL_CACHE.acquire(key, base)
        try:
            loaded = apply_adapter(below, adapter)
        except BaseException:
            MODEL_CACHE.release(key)
            raise
        more = _count_bytes(loaded.model) - sum(p.nbytes for p in _find_shared_weights(below.model, loaded.model))

        def free() -> None:
            MODEL_CACHE.release(key)
            trim_memory()

        return CachedModel(loaded, more, free)

    return MODEL_CACHE.acquire(own, version), lambda: MODEL_CACHE.release(own)


def _count_bytes(model: Model) -> int:
    return sum(p.nbytes for p in model.parameters())


def _find_shared_weights(one: Model, other: Model) -> list[Tensor]:
    """Weights that both models share."""
    ids = {id(p) for p in one.parameters()}
    return [p for p in other.parameters() if id(p) in ids]


def unload_idle_models() -> None:
    """Free every model that nobody uses."""
    MODEL_CACHE.unload(lambda key: True)
    trim_memory()


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it."""
    import ctypes
    import sys

    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return


def apply_adapter(loaded: LoadedModel, adapter: Path) -> LoadedModel:
    """The model with the adapter's changes added to its weights; the other weights are shared with `loaded`."""
    import copy

    import torch

    shared_parts = {id(t): t for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    shared_parts |= {id(one): one for one in quantised.list_quantisation_states(loaded.model)}
    model = copy.deepcopy(loaded.model, memo=shared_parts)
    scale, pairs = read_adapter(adapter)
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            layer = _find_layer(model, name, adapter)
            if (layer.out_features, layer.in_features) != (b.shape[0], a.shape[1]):
                raise wrong_base_error(adapter)
            if quantised.is_quantised(layer):
                matrices = (m.to(loaded.device, loaded.model.dtype) for m in (a, b * scale))
                layer.forward = partial(_forward_with_lora, layer.forward, *matrices)
                continue
            change = (b.to(loaded.device, torch.float32) @ a.to(loaded.device, torch.float32)) * scale
            merged = (layer.weight.float() + change).to(layer.weight.dtype)
            layer.weight = torch.nn.Parameter(merged, requires_grad=False)
    return LoadedModel(model, loaded.renderer, loaded.folder, loaded.context)


def _forward_with_lora(forward: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """A quantised layer and its matrices, which cannot be added to its weights."""
    from torch.nn.functional import linear

    return forward(x) + linear(linear(x.to(a.dtype), a), b).to(x.dtype)


def resolve_device(device: str) -> str:
    """`auto` resolved; OptionError for one that is not there."""
    import torch

    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "auto":
        return there
    kind = device.partition(":")[0]
    if kind not in ("cpu", there):
        raise OptionError(f"There is no device '{device}' on this machine.", f"Use device = '{there}' or leave it out.")
    return device


def resolve_dtype(dtype: str, device: str, training: bool) -> Dtype:
    """torch's dtype for an option: `machine.resolve_dtype`, by asking the hardware."""
    import torch

    card = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch, machine.resolve_dtype(dtype, device, training, machine.detect_cpu_features(), card))


def _adapter_mtime(adapter: Path) -> float:
    file = adapter / "adapter_model.safetensors"
    return file.stat().st_mtime if file.exists() else 0.0


def _find_layer(model: Model, name: str, adapter: Path) -> Layer:
    try:
        return model.get_submodule(name)
    except AttributeError as e:
        raise wrong_base_error(adapter) from e


def _check_layers(config: Config) -> None:
    text = config.get_text_config()
    unknown = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if unknown:
        raise NotSupported(
            f"The base has layers of a kind that the local engine does not run: {', '.join(sorted(unknown))}.",
            "Use a base of attention layers only, such as Llama, Mistral, Qwen2.5 or SmolLM2.",
        )


def _check_attention(model: Model, folder: Path) -> None:
    """Two packed rows must give what the second gives alone in transformers' own attention."""
    import torch

    words = model.get_input_embeddings().num_embeddings
    rows = [[i % words for i in (5, 6, 7, *range(n, 2 * n))] for n in (20, 13)]
    packed = packing.pack([packing.Example(ids, [1.0] * len(ids)) for ids in rows], model.device)
    inputs = {"input_ids": packed.ids, "position_ids": packed.positions, "use_cache": False, "layout": packed}
    start = packed.prefix + packed.lengths[0]
    try:
        with torch.no_grad():
            ours = model(**inputs).logits[0, start : start + 13].float()
            model.set_attn_implementation("eager")
            theirs = model(torch.tensor([rows[1]], device=model.device), use_cache=False).logits[0, -13:].float()
            model.set_attn_implementation(packing.ATTENTION_NAME)
        same = torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item())
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _unsupported_architecture_error(folder, model.config) from e
    if not same:
        raise _unsupported_architecture_error(folder, model.config)


def _check_model_type(folder: Path) -> None:
    """NotSupported for a model_type that the installed transformers has never heard of."""
    from types import SimpleNamespace

    from transformers import CONFIG_MAPPING

    kind = read_config(folder).get("model_type")
    if kind is None or kind not in CONFIG_MAPPING:
        raise _unsupported_architecture_error(
            folder, SimpleNamespace(model_type=kind or "its config.json names no model_type")
        )


def _unsupported_architecture_error(folder: Path, config: Any) -> NotSupported:
    return NotSupported(
        f"The local engine does not run the architecture of {folder.name} ({config.model_type}).",
        "Use a base of another architecture, such as Llama, Mistral, Qwen2.5 or SmolLM2.",
    )


@lru_cache(maxsize=4)
def load_renderer(folder: Path, chat_template: str | None) -> Renderer:
    """What renders a base's prompts, without its weights."""
    return Renderer(
        weight_cache.load_chat_tokenizer(folder) or load_transformers_tokenizer(folder)[0], (), chat_template
    )
