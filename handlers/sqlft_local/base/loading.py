"""Models in memory: bases shared by all that ask, adapters laid over them."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import HandlerNotInstalled, NotSupported, OptionError
from sqlft_local import machine
from sqlft_local.base import hub, weight_cache
from sqlft_local.base.adapter import (
    check_readable,
    find_unusual_adapter_part,
    read_adapter,
    read_adapter_config,
    read_shapes,
    read_tensors,
    wrong_base_error,
)
from sqlft_local.base.config import TESTED_ARCHITECTURES, find_packing_obstacle, read_config, read_context
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
from sqlft_local.options import ModelOptions, Thinking

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import AutoClass, Config, Device, Dtype, Layer, Model, Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and how text becomes its tokens."""

    model: Model
    renderer: Renderer
    folder: Path
    context: int
    obstacle: str | None = None
    """Why it does not take packed rows; None where it does."""

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
        import torch

        if training:
            machine.disable_compiler(torch.cuda.is_available())
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
    renderer = Renderer(tokenizer, tokenizer.stop_ids, options.chat_template, options.thinking)
    return LoadedModel(model.eval().requires_grad_(False), renderer, folder, context)


def _load_with_transformers(folder: Path, options: ModelOptions, place: str, training: bool) -> LoadedModel:
    """With packed rows where the base's layers take them, else as transformers computes it."""
    from transformers import AutoConfig, GenerationConfig

    packing.register_attention()
    with silence_transformers(), explain_errors(folder):
        _check_model_type(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        dtype = resolve_dtype(options.dtype, place, training)
        model, obstacle = _load_causal_lm(folder, config, dtype, options.quantization, place)
        quantised.disable_repacking(model)
        if options.quantization == "none":
            model.to(place)
        model.eval().requires_grad_(False)
        if obstacle is None and config.model_type not in TESTED_ARCHITECTURES and not packed_rows_agree(model):
            obstacle = "its layers compute other numbers from packed rows"
            _use_own_attention(model)
        if obstacle is not None:
            model.generation_config = GenerationConfig()  # a statement's options and the renderer's stop tokens count
    context = read_context(config.to_dict(), options.context_length)
    renderer = load_renderer(folder, options.chat_template, options.thinking)
    return LoadedModel(model, renderer, folder, context, obstacle)


def load_encoder(
    folder: Path, options: ModelOptions, device: str, *, classifies: bool = False
) -> tuple[Model, Tokenizer]:
    """A model without an output head, or with that of a sequence's class, and its tokenizer."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    place = resolve_device(device)
    with silence_transformers(), explain_errors(folder):
        given: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}
        dtype = resolve_dtype(options.dtype, place, training=False)
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **given)
        return model.to(place).eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, **given)


def _load_causal_lm(
    folder: Path, config: Config, dtype: Dtype, quantization: str, place: str
) -> tuple[Model, str | None]:
    """The model, and why it does not take packed rows; None where it may."""
    wanted = quantised.quantization_config(quantization, dtype)
    how: dict[str, object] = {"quantization_config": wanted, "device_map": {"": place}} if wanted else {}
    how |= {"config": config, "dtype": dtype, "local_files_only": True, "use_safetensors": True}
    obstacle = find_packing_obstacle(config.to_dict()) or _find_attention_obstacle(config)
    if obstacle is None:
        how["attn_implementation"] = packing.ATTENTION_NAME
    return find_auto_class(config).from_pretrained(folder, trust_remote_code=False, **how), obstacle


def find_auto_class(config: Config) -> AutoClass:
    """transformers' class for a base's type; one that also sees is loaded whole where there is none for text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = type(config) not in AutoModelForCausalLM._model_mapping
    found: AutoClass = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return found


def _find_attention_obstacle(config: Config) -> str | None:
    kind = find_auto_class(config)._model_mapping.get(type(config), None)
    return None if getattr(kind, "_supports_attention_backend", False) else "its attention is its own"


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
    thinking = options.thinking
    options = replace(options, separator=None, stop=None, thinking="off")  # no reasons to load a base twice
    loaded, release = _acquire_cached(folder, options, device, adapter)
    if delimiters == NO_DELIMITERS and thinking == "off":
        return loaded, release
    try:
        renderer = loaded.renderer.with_thinking(thinking).with_delimiters(delimiters)
        return replace(loaded, renderer=renderer), release
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

    shared_parts = {id(t): t for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    shared_parts |= {id(one): one for one in quantised.list_quantisation_states(loaded.model)}
    model = copy.deepcopy(loaded.model, memo=shared_parts)
    if find_unusual_adapter_part(read_adapter_config(adapter)) or not _merge_matrices(model, adapter):
        _merge_with_peft(model, adapter)
    return replace(loaded, model=model)


def _merge_matrices(model: Model, adapter: Path) -> bool:
    """In float32, without PEFT, whose import takes longer than an answer.

    False, and nothing merged, where not all are linear layers: GPT-2's are convolutions of one place.
    """
    import torch

    scale, pairs = read_adapter(adapter)
    layers = {name: _find_layer(model, name, adapter) for name in pairs}
    if not all(hasattr(layer, "in_features") for layer in layers.values()):
        return False
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            layer = layers[name]
            if (layer.out_features, layer.in_features) != (b.shape[0], a.shape[1]):
                raise wrong_base_error(adapter)
            if quantised.is_quantised(layer):
                matrices = (m.to(model.device, model.dtype) for m in (a, b * scale))
                layer.forward = partial(_forward_with_lora, layer.forward, *matrices)
                continue
            change = (b.to(model.device, torch.float32) @ a.to(model.device, torch.float32)) * scale
            merged = (layer.weight.float() + change).to(layer.weight.dtype)
            layer.weight = torch.nn.Parameter(merged, requires_grad=False)
    return True


def _merge_with_peft(model: Model, adapter: Path) -> None:
    """Whatever PEFT knows: experts' weights, layers that are no `nn.Linear`, DoRA, ranks of each layer."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    tensors = read_tensors(adapter)
    try:
        inject_adapter_in_model(LoraConfig.from_pretrained(str(adapter)), model)
        missing = set_peft_model_state_dict(model, tensors).unexpected_keys
    except (ValueError, RuntimeError, AttributeError) as e:
        raise wrong_base_error(adapter) from e
    if missing:
        raise wrong_base_error(adapter)
    model.eval().requires_grad_(False)
    if getattr(model, "is_quantized", False):
        return
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        base, name = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
        setattr(base, name, torch.nn.Parameter(getattr(base, name).detach().clone(), requires_grad=False))
        layer.merge()


def check_adapter(folder: Path, adapter: Path) -> None:
    """NotSupported or ProviderError unless an adapter that others made is one of the base in `folder`.

    PEFT puts it into the base without numbers, and has to find the very matrices that the file has.
    """
    import torch
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from transformers import AutoConfig

    check_readable(adapter)
    found = read_shapes(adapter)
    with silence_transformers(), explain_errors(folder):
        _check_model_type(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = find_auto_class(config).from_config(config)
    try:
        inject_adapter_in_model(LoraConfig.from_pretrained(str(adapter)), model, low_cpu_mem_usage=True)
        expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    except (ValueError, RuntimeError, AttributeError, TypeError) as e:
        raise wrong_base_error(adapter, str(e).strip().splitlines()[0][:300]) from e
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            has, wants = (str(list(at[name])) if name in at else "nothing" for at in (found, expected))
            raise wrong_base_error(adapter, f"{name} is {has} in its file, and would be {wants} for {folder}")


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


def _use_own_attention(model: Model) -> None:
    """What transformers itself would have taken."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    if model.config._attn_implementation == packing.ATTENTION_NAME:
        raise RuntimeError(f"{type(model).__name__} keeps the attention that it was loaded with")


def packed_rows_agree(model: Model) -> bool:
    """Whether two packed rows give what the second gives alone in transformers' own attention.

    Layers that attend more than once in a pass are none for packing: what they have seen is kept once a layer.
    """
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    rows = [[i % vocabulary for i in (5, 6, 7, *range(n, 2 * n))] for n in (20, 13)]
    packed = packing.pack([packing.Example(ids, [1.0] * len(ids)) for ids in rows], model.device)
    start = packed.prefix + packed.lengths[0]
    layout = _CountingLayout(packed)
    try:
        with torch.no_grad():
            ours = model(**{**packed.inputs, "layout": layout}).logits[0, start : start + 13].float()
            model.set_attn_implementation("eager")
            theirs = model(torch.tensor([rows[1]], device=model.device), use_cache=False).logits[0, -13:].float()
            model.set_attn_implementation(packing.ATTENTION_NAME)
        same = torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item())
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotSupported):
        return False
    return same and max(layout.calls.values(), default=0) == 1


class _CountingLayout:
    """A layout that counts how often each layer attends."""

    def __init__(self, layout: packing.Layout) -> None:
        self._layout = layout
        self.calls: Counter[int] = Counter()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        self.calls[layer] += 1
        return self._layout.attend(layer, q, k, v, scale, window)


def _check_model_type(folder: Path) -> None:
    """NotSupported for a model_type that the installed transformers has never heard of."""
    from transformers import CONFIG_MAPPING

    kind = read_config(folder).get("model_type")
    if kind is None or kind not in CONFIG_MAPPING:
        raise _unsupported_architecture_error(folder, kind or "its config.json names no model_type")


def _unsupported_architecture_error(folder: Path, kind: str) -> NotSupported:
    return NotSupported(
        f"The installed transformers does not know the architecture of {folder.name} ({kind}).",
        "Update it (pip install -U transformers), or use a base of another architecture, such as Llama or Qwen3.",
    )


@lru_cache(maxsize=4)
def load_renderer(folder: Path, chat_template: str | None, thinking: Thinking) -> Renderer:
    """What renders a base's prompts and training rows, without its weights."""
    tokenizer = weight_cache.load_chat_tokenizer(folder) or load_transformers_tokenizer(folder)[0]
    return Renderer(tokenizer, find_stop_ids(folder, tokenizer), chat_template, thinking)
