"""A PEFT LoRA adapter as a GGUF adapter, which llama.cpp lays over a base while it runs."""

from __future__ import annotations

import json
from pathlib import Path

from sqlft.errors import NotSupported
from sqlft_local.gguf_export import ARCHITECTURES, heads_of, permuted, shapes


def export_adapter(folder: Path, adapter: Path, target: Path) -> None:
    """Write `target` from the adapter in `adapter`, made for the base in `folder`."""
    from gguf import GGUFWriter, get_tensor_name_map
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

    from sqlft_local.adapter import other_base, read_adapter

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    made_for = ARCHITECTURES.get(config.get("model_type"), "")
    arch = next((a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == made_for), None)
    if arch is None:
        raise NotSupported(f"llama.cpp has no {config.get('model_type')} here.", "Use backend = 'transformers'.")
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    scale, pairs = read_adapter(adapter)
    layers = dict(shapes(folder))
    writer = GGUFWriter(str(target), made_for)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rank = next(iter(pairs.values()))[0].shape[0]
    writer.add_float32("adapter.lora.alpha", scale * rank)
    for layer, (a, b) in pairs.items():
        known = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if known is None or layers.get(f"{layer}.weight") != (b.shape[0], a.shape[1]):
            raise other_base(adapter)
        rows = b.float().numpy()
        if heads := heads_of(layer, config):
            rows = permuted(rows, heads)
        writer.add_tensor(f"{known}.lora_a", a.float().numpy())
        writer.add_tensor(f"{known}.lora_b", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
