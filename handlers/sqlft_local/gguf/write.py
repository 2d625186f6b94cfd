"""A base, with or without an adapter's changes, as a GGUF file for llama.cpp and OpenVINO; an adapter as one.

Called by `base.weight_cache` and by EXPORT.  In: folders as transformers and PEFT write them.  Out: files.  That
llama.cpp computes a file as transformers does is found elsewhere (`trial`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported
from sqlft_local.base.config import read_config
from sqlft_local.gguf.architectures import Architecture, Value, check_convertible
from sqlft_local.gguf.metadata import compute_rope_factors, describe, read_full_config
from sqlft_local.gguf.pretokenizer import find_pretokenizer
from sqlft_local.gguf.tensors import (
    UNQUANTIZED,
    WeightReader,
    change_tensor,
    create_name_map,
    find_activation_key,
    find_layer_key,
    plan_tensors,
    read_tensor_shapes,
)
from sqlft_local.gguf.vocabulary import read_special_ids, write_text_settings, write_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

    from sqlft_local._types import JsonMapping

ReportProgress = Callable[[str, float | None], None]


def export(
    folder: Path,
    target: Path,
    kind: str,
    tokenizer: JsonMapping,
    stop_ids: list[int],
    changes: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    scale: float = 1.0,
    progress: ReportProgress = lambda what, share: None,
    chat_template: str | None = None,
    config: JsonMapping | None = None,
) -> set[str]:
    """Write `target`, its matrices as `kind`; the layers of `changes` (B, A by layer) that were found.

    `tokenizer` is the content of a tokenizer.json.  With a `chat_template` llama.cpp reads text as the tokenizer does;
    without one, prompts come as ids.  `config` is the base's unless only its first layers are written.
    NotSupported for what llama.cpp has no like of.
    """
    from gguf import GGUFWriter

    architecture = check_convertible(read_config(folder))
    config = config or read_full_config(folder)
    writer = GGUFWriter(str(target), architecture.name)
    _write_metadata(writer, config, architecture, kind)
    _write_activation_numbers(writer, folder)
    _write_tokenizer(writer, folder, config, tokenizer, stop_ids, chat_template)
    merge = _Merge(changes or {}, scale)
    _write_tensors(writer, folder, config, architecture, kind, merge, progress)
    return merge.found


def _write_tokenizer(
    writer: GGUFWriter,
    folder: Path,
    config: JsonMapping,
    tokenizer: JsonMapping,
    stop_ids: list[int],
    chat_template: str | None,
) -> None:
    size = config["vocab_size"]
    if chat_template is None:
        usual = "qwen2" if config["model_type"].startswith("qwen") else "smollm"
        write_vocabulary(writer, size, tokenizer, stop_ids, usual)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        return
    special_ids = read_special_ids(folder, tokenizer)
    name = find_pretokenizer(tokenizer, special_ids, stop_ids)
    write_vocabulary(writer, size, tokenizer, stop_ids, name)
    write_text_settings(writer, tokenizer, special_ids)
    writer.add_chat_template(chat_template)


class _Merge:
    """Adds an adapter's changes to the weights that they are for."""

    def __init__(self, changes: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> None:
        self._changes = {find_layer_key(layer): (layer, *pair) for layer, pair in changes.items()}
        self._scale = scale
        self.found: set[str] = set()

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        layer = find_layer_key(name.removesuffix(".weight"))
        if not name.endswith(".weight") or layer not in self._changes:
            return weight
        key, a, b = self._changes[layer]
        self.found.add(key)
        return weight.float() + (b.float() @ a.float()) * self._scale


def write_value(writer: GGUFWriter, key: str, value: Value) -> None:
    """A key, with the type that its value has."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, list(value))


def _write_metadata(writer: GGUFWriter, config: JsonMapping, architecture: Architecture, kind: str) -> None:
    from gguf import LlamaFileType

    for key, value in describe(config, architecture).items():
        write_value(writer, f"{architecture.name}.{key}", value)
    types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "bf16": LlamaFileType.MOSTLY_BF16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(types[kind])
    writer.add_quantization_version(2)


def _write_activation_numbers(writer: GGUFWriter, folder: Path) -> None:
    """What an activation has learned, a number a layer, is metadata for llama.cpp."""
    found: dict[str, list[float]] = {}
    with WeightReader(folder) as read:
        for name in sorted(
            read_tensor_shapes(folder), key=lambda n: [int(p) if p.isdigit() else 0 for p in n.split(".")]
        ):
            if key := find_activation_key(name):
                found.setdefault(key, []).append(read(name).float().item())
    for key, values in found.items():
        writer.add_array(key, values)


def _write_tensors(
    writer: GGUFWriter,
    folder: Path,
    config: JsonMapping,
    architecture: Architecture,
    kind: str,
    merge: Callable[[str, Tensor], Tensor],
    progress: ReportProgress,
) -> None:
    """What there is, then its numbers."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import quantize

    plan, factors = plan_tensors(read_tensor_shapes(folder), config, architecture), compute_rope_factors(config)
    kinds = {t.name: GGMLQuantizationType[choose_type(t.name, t.shape, kind).upper()] for t in plan}
    kinds |= dict.fromkeys(factors, GGMLQuantizationType.F32)
    for name, shape in [*((t.name, t.shape) for t in plan), *((n, tuple(f.shape)) for n, f in factors.items())]:
        block, size = GGML_QUANT_SIZES[kinds[name]]
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), math.prod(shape) // block * size, raw_dtype=kinds[name]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with WeightReader(folder) as read:
        for i, tensor in enumerate(plan):
            made = tensor.make([merge(name, read(name)) for name in tensor.sources])
            writer.write_tensor_data(quantize(made.float().contiguous().numpy(), kinds[tensor.name]))
            progress("converting", (i + 1) / len(plan))
    for factor in factors.values():
        writer.write_tensor_data(factor.float().numpy())
    writer.close()


def choose_type(name: str, shape: Sequence[int], kind: str) -> str:
    """The type of a tensor in a file of `kind`."""
    if len(shape) < 2 or UNQUANTIZED.search(name):
        return "f32"
    return kind if kind != "q8_0" or shape[-1] % 32 == 0 else "f16"


def export_adapter(folder: Path, adapter: Path, target: Path) -> None:
    """Write `target` from the adapter in `adapter`, made for the base in `folder`."""
    from gguf import GGUFWriter

    from sqlft_local.base.adapter import read_adapter, wrong_base_error

    architecture = check_convertible(read_config(folder))
    config = read_full_config(folder)
    names = create_name_map(config, architecture)
    scale, pairs = read_adapter(adapter)
    layers = {find_layer_key(n.removesuffix(".weight")): n for n in read_tensor_shapes(folder) if n.endswith(".weight")}
    shapes = read_tensor_shapes(folder)
    writer = GGUFWriter(str(target), architecture.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rank = next(iter(pairs.values()))[0].shape[0]
    writer.add_float32("adapter.lora.alpha", scale * rank)
    for layer, (a, b) in pairs.items():
        source = layers.get(find_layer_key(layer), "")
        own = b.float() * (a.shape[0] / rank)  # llama.cpp divides by each layer's own rank
        if shapes.get(source) != (b.shape[0], a.shape[1]):
            raise wrong_base_error(adapter)
        for name, make in change_tensor(source, config, architecture):
            known = names.get_name(name, try_suffixes=(".weight",))
            if known is None:
                raise wrong_base_error(adapter)
            writer.add_tensor(f"{known}.lora_a", a.float().numpy())
            writer.add_tensor(f"{known}.lora_b", _change_rows(make, a.float(), own, layer).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _change_rows(make: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, layer: str) -> Tensor:
    """B as the change makes it; NotSupported where that is not what it does to the product."""
    import torch

    try:
        rows, product = make(b), make(b @ a)
        if torch.allclose(rows @ a, product, atol=1e-5 * float(product.abs().max())):
            return rows.contiguous()
    except RuntimeError:
        pass
    raise NotSupported(f"llama.cpp takes no adapter for {layer} of this base.", "Use adapter = 'merged'.")
