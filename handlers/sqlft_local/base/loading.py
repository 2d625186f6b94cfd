"""Models in memory: bases shared by all that ask, adapters laid over them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlft.errors import HandlerNotInstalled, NotSupported, OptionError
from sqlft_local import machine
from sqlft_local.base import hub, weight_cache
from sqlft_local.base.adapter import other_base, read_adapter
from sqlft_local.base.hub import to_screen
from sqlft_local.base.tokenization import NO_MARKS, Marks, Renderer, opened_tokenizer, stops
from sqlft_local.errors import INSTALL, explain_errors, quietly
from sqlft_local.kernels import packing, quantised
from sqlft_local.model_cache import RESIDENTS, Resident
from sqlft_local.options import ModelOptions

if TYPE_CHECKING:
    from torch import Tensor

KNOWN = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}
"""Architectures whose packed rows tests compare with transformers' own attention; others are tried when loaded."""
LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and how text becomes its tokens."""

    model: Any
    renderer: Renderer
    folder: Path
    context: int

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.renderer.stop_ids

    @property
    def device(self) -> Any:
        """Where its inputs go."""
        return self.model.device


def require(what: str, training: bool = False) -> None:
    """HandlerNotInstalled unless the libraries that run models are there; those that take seconds only for training."""
    machine.share()
    try:
        import torch  # noqa: F401

        if training:
            import peft  # noqa: F401
            import transformers  # noqa: F401
        hub.find("transformers", "tokenizers", "safetensors", "jinja2")
    except ImportError as e:
        raise HandlerNotInstalled(f"{what} needs a package that is not installed ({e}).", INSTALL) from e


def fresh(folder: Path, options: ModelOptions, device: str, training: bool = False) -> Loaded:
    """The base from its folder, in memory of its own; for asking without transformers where that can be."""
    place = chosen_device(device)
    quick = None if training or options.quantization != "none" else _on_torch_alone(folder, options, place)
    return quick or _on_transformers(folder, options, place, training)


def _on_torch_alone(folder: Path, options: ModelOptions, place: str) -> Loaded | None:
    """None for shapes and tokenizers that only transformers knows."""
    from sqlft_local.base import torch_llama

    with explain_errors(folder):
        tokenizer = weight_cache.light_tokenizer(folder)
        dtype = chosen_dtype(options.dtype, place, training=False)
        files = weight_cache.weights(folder, str(dtype).removeprefix("torch."))
        model = None if tokenizer is None else torch_llama.load(folder, files, dtype, place)
        if model is None or tokenizer is None:
            return None
        made_for = weight_cache.context(folder)
    renderer = Renderer(tokenizer, tokenizer.stop_ids, options.chat_template)
    context = min(options.context_length or made_for, made_for)
    return Loaded(model.eval().requires_grad_(False), renderer, folder, context)


def _on_transformers(folder: Path, options: ModelOptions, place: str, training: bool) -> Loaded:
    from transformers import AutoConfig

    packing.register()
    with quietly(), explain_errors(folder):
        _check_kind(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_layers(config)
        model = _model(folder, config, chosen_dtype(options.dtype, place, training), options.quantization, place)
        quantised.settle(model)
        if options.quantization == "none":
            model.to(place)
        model.eval().requires_grad_(False)
        if config.model_type not in KNOWN:
            _check_attention(model, folder)
    tokenizer = weight_cache.light_tokenizer(folder) or opened_tokenizer(folder)[0]
    renderer = Renderer(tokenizer, stops(model.generation_config, tokenizer), options.chat_template)
    made_for = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 4096)
    return Loaded(model, renderer, folder, min(options.context_length or made_for, made_for))


def encoder(folder: Path, options: ModelOptions, device: str) -> tuple[Any, Any]:
    """A model without an output head, and its tokenizer: for embeddings."""
    from transformers import AutoModel, AutoTokenizer

    place = chosen_device(device)
    with quietly(), explain_errors(folder):
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = chosen_dtype(options.dtype, place, training=False)
        model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, **given)
        return model.to(place).eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, **given)


def _model(folder: Path, config: Any, dtype: Any, quantization: str, place: str) -> Any:
    from transformers import AutoModelForCausalLM

    wanted = quantised.config(quantization, dtype)
    how = {"quantization_config": wanted, "device_map": {"": place}} if wanted else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            **how,
            attn_implementation=packing.ATTENTION,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (KeyError, ValueError) as e:
        if packing.ATTENTION not in str(e):
            raise
        raise _other_architecture(folder, config) from e


def shared(base: str, options: ModelOptions, device: str, adapter: Path | None, marks: Marks = NO_MARKS) -> Loaded:
    """A base, with or without an adapter, that others use too: read only."""
    loaded, give_back = taken(hub.pull(base, to_screen), options, device, adapter, marks)
    give_back()
    return loaded


def taken(
    folder: Path, options: ModelOptions, device: str, adapter: Path | None, marks: Marks = NO_MARKS
) -> tuple[Loaded, Callable[[], None]]:
    """The same, kept in memory until it is given back by calling what comes second."""
    options = replace(options, separator=None, stop=None)  # marks are no reason to load a base twice
    loaded, give_back = _resident(folder, options, device, adapter)
    if marks == NO_MARKS:
        return loaded, give_back
    try:
        return replace(loaded, renderer=loaded.renderer.marked(marks)), give_back
    except BaseException:
        give_back()
        raise


def _resident(
    folder: Path, options: ModelOptions, device: str, adapter: Path | None
) -> tuple[Loaded, Callable[[], None]]:
    name = ("transformers", str(folder))
    key = (*name, None, repr(options), device)

    def base() -> Resident:
        loaded = fresh(folder, options, device)
        return Resident(loaded, _bytes(loaded.model), trim)

    if adapter is None:
        return RESIDENTS.take(key, base), lambda: RESIDENTS.give(key)
    own = (*name, str(adapter), repr(options), device, _stamp(adapter))

    def version() -> Resident:
        below = RESIDENTS.take(key, base)
        try:
            loaded = with_adapter(below, adapter)
        except BaseException:
            RESIDENTS.give(key)
            raise
        more = _bytes(loaded.model) - sum(p.nbytes for p in _same(below.model, loaded.model))

        def free() -> None:
            RESIDENTS.give(key)
            trim()

        return Resident(loaded, more, free)

    return RESIDENTS.take(own, version), lambda: RESIDENTS.give(own)


def _bytes(model: Any) -> int:
    return sum(p.nbytes for p in model.parameters())


def _same(one: Any, other: Any) -> list[Any]:
    """Weights that both models share."""
    ids = {id(p) for p in one.parameters()}
    return [p for p in other.parameters() if id(p) in ids]


def forget() -> None:
    """Free every model that nobody uses."""
    RESIDENTS.unload(lambda key: True)
    trim()


def trim() -> None:
    """Give freed memory back to the system, where the C library would keep it."""
    import ctypes
    import sys

    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return


def with_adapter(loaded: Loaded, adapter: Path) -> Loaded:
    """The model with the adapter's changes added to its weights; the other weights are shared with `loaded`."""
    import copy

    import torch

    shared_parts = {id(t): t for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    shared_parts |= {id(one): one for one in quantised.states(loaded.model)}
    model = copy.deepcopy(loaded.model, memo=shared_parts)
    scale, pairs = read_adapter(adapter)
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            layer = _layer(model, name, adapter)
            if (layer.out_features, layer.in_features) != (b.shape[0], a.shape[1]):
                raise other_base(adapter)
            if quantised.is_quantised(layer):
                matrices = (m.to(loaded.device, loaded.model.dtype) for m in (a, b * scale))
                layer.forward = partial(_beside, layer.forward, *matrices)
                continue
            change = (b.to(loaded.device, torch.float32) @ a.to(loaded.device, torch.float32)) * scale
            merged = (layer.weight.float() + change).to(layer.weight.dtype)
            layer.weight = torch.nn.Parameter(merged, requires_grad=False)
    return Loaded(model, loaded.renderer, loaded.folder, loaded.context)


def _beside(forward: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """A quantised layer and its matrices, which cannot be added to its weights."""
    from torch.nn.functional import linear

    return forward(x) + linear(linear(x.to(a.dtype), a), b).to(x.dtype)


def chosen_device(device: str) -> str:
    """`auto` resolved; OptionError for one that is not there."""
    import torch

    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "auto":
        return there
    kind = device.partition(":")[0]
    if kind not in ("cpu", there):
        raise OptionError(f"There is no device '{device}' on this machine.", f"Use device = '{there}' or leave it out.")
    return device


def chosen_dtype(dtype: str, device: str, training: bool) -> Any:
    """`auto` resolved by asking the hardware.

    A processor with matrix units for bfloat16 (AMX) trains in half the time with it; asking is bound by memory and no
    faster, and stays in float32, where a batch gives the same answers as one row alone.
    """
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    units = device == "cpu" and "amx_bf16" in machine.features()
    return torch.bfloat16 if units and training else torch.float32


def _stamp(adapter: Path) -> float:
    file = adapter / "adapter_model.safetensors"
    return file.stat().st_mtime if file.exists() else 0.0


def _layer(model: Any, name: str, adapter: Path) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError as e:
        raise other_base(adapter) from e


def _check_layers(config: Any) -> None:
    text = config.get_text_config()
    unknown = set(getattr(text, "layer_types", None) or ()) - LAYERS
    if unknown:
        raise NotSupported(
            f"The base has layers of a kind that the local engine does not run: {', '.join(sorted(unknown))}.",
            "Use a base of attention layers only, such as Llama, Mistral, Qwen2.5 or SmolLM2.",
        )


def _check_attention(model: Any, folder: Path) -> None:
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
            model.set_attn_implementation(packing.ATTENTION)
        same = torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item())
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _other_architecture(folder, model.config) from e
    if not same:
        raise _other_architecture(folder, model.config)


def _check_kind(folder: Path) -> None:
    """NotSupported for a model_type that the installed transformers has never heard of."""
    from types import SimpleNamespace

    from transformers import CONFIG_MAPPING

    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind is None or kind not in CONFIG_MAPPING:
        raise _other_architecture(folder, SimpleNamespace(model_type=kind or "its config.json names no model_type"))


def _other_architecture(folder: Path, config: Any) -> NotSupported:
    return NotSupported(
        f"The local engine does not run the architecture of {folder.name} ({config.model_type}).",
        "Use a base of another architecture, such as Llama, Mistral, Qwen2.5 or SmolLM2.",
    )


@lru_cache(maxsize=4)
def renderer_of(folder: Path, chat_template: str | None) -> Renderer:
    """What renders a base's prompts, without its weights."""
    return Renderer(weight_cache.light_tokenizer(folder) or opened_tokenizer(folder)[0], (), chat_template)
