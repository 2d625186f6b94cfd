"""A base's folder with an adapter added to its weights, in their own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import ReportStage
from sqlft_local.base.adapter import find_unusual_adapter_part, read_adapter, read_adapter_config, wrong_base_error
from sqlft_local.base.config import read_config
from sqlft_local.gguf.tensors import read_file_shapes, read_tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor


def check_mergeable(folder: Path) -> None:
    """NotSupported for weights that an adapter cannot be added to."""
    if read_config(folder).get("quantization_config"):
        raise NotSupported(
            f"The weights in {folder.name} are quantized already: an adapter cannot be added to them.",
            "Use FORMAT peft, which leaves the base as it is.",
        )


def write_weights(folder: Path, adapter: Path | None, target: Path, report: ReportStage) -> None:
    """The base's weights into `target`, an adapter added; at most one tensor in memory where the adapter is plain."""
    if adapter is not None and not is_plain(folder, adapter):
        report("adding the adapter to the weights", None)
        _merge_with_peft(folder, adapter, target)
        return
    scale, changes = read_adapter(adapter) if adapter is not None else (1.0, {})
    files = sorted(folder.glob("*.safetensors"))
    if (index := folder / "model.safetensors.index.json").exists():
        shutil.copyfile(index, target / index.name)
    left = {f"{layer}.weight": pair for layer, pair in changes.items()}
    for i, file in enumerate(files):
        report("copying the weights", i / len(files))
        shutil.copyfile(file, target / file.name)
        for done, name in enumerate(sorted(left.keys() & read_file_shapes(file).keys())):
            report("adding the adapter to the weights", (i + done / len(changes)) / len(files))
            a, b = left[name]
            _add(target / file.name, name, (b.float() @ a.float()) * scale)
    report("adding the adapter to the weights", 1.0)


def is_plain(folder: Path, adapter: Path) -> bool:
    """Whether the adapter is pairs of matrices for weights that are in the base's files under the layers' names."""
    if find_unusual_adapter_part(read_adapter_config(adapter)):
        return False
    try:
        _, changes = read_adapter(adapter)
    except KeyError:  # what is trained beside the matrices, or instead
        return False
    shapes = read_tensor_shapes(folder)
    return all(shapes.get(f"{layer}.weight") == (b.shape[0], a.shape[1]) for layer, (a, b) in changes.items())


def _add(file: Path, name: str, change: Tensor) -> None:
    """Write the sum over the tensor where it stands: neither its size nor its numbers' change.

    A safetensors file is the length of its header, the header, which is JSON with each tensor's place, and the tensors.
    """
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        weight = opened.get_tensor(name)
    merged = (weight.float() + change).to(weight.dtype).contiguous()
    with file.open("r+b") as f:
        length = int.from_bytes(f.read(8), "little")
        start = json.loads(f.read(length))[name]["data_offsets"][0]
        f.seek(8 + length + start)
        f.write(merged.view(torch.uint8).numpy().tobytes())


def _merge_with_peft(folder: Path, adapter: Path, target: Path) -> None:
    """By the libraries that know every adapter and architecture: the whole base is in memory."""
    from peft import PeftModel
    from transformers import AutoConfig

    from sqlft_local.base.loading import find_auto_class
    from sqlft_local.errors import explain_errors, silence_transformers

    given: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}
    with silence_transformers(), explain_errors(folder):
        config = AutoConfig.from_pretrained(folder, **given)
        model = find_auto_class(config).from_pretrained(folder, dtype="auto", use_safetensors=True, **given)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (ValueError, RuntimeError, AttributeError, KeyError) as e:
        raise wrong_base_error(adapter) from e
    with silence_transformers():
        merged.save_pretrained(target)
    if not any(target.glob("*.safetensors")):
        raise ProviderError(f"transformers wrote no weights to {target}.", "Use FORMAT peft.")
