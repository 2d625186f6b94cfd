"""Which program runs a model when it is asked, and with which numbers."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sqlft.errors import NotSupported, OptionError, did_you_mean
from sqlft.handler import ModelSpec
from sqlft_local import machine
from sqlft_local.base import weight_cache
from sqlft_local.base.adapter import find_unusual_adapter_part, read_adapter_config
from sqlft_local.base.config import read_config
from sqlft_local.options import ModelOptions, PredictOptions
from sqlft_local.predict import llama, openvino
from sqlft_local.predict.grammar import find_unbound_part

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[str, Dtype] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
BACKENDS = ("openvino", "llama.cpp", "transformers")
BACKENDS_SWITCH = "SQLFT_BACKENDS"
"""Names of backends with commas between: those that `auto` may take; where it is not set, all."""
GGUF_TYPES: dict[str, str] = {v: k for k, v in DTYPES.items()}


def choose_backend(
    model: ModelSpec, options: PredictOptions, folder: Path, device: str, adapter: Path | None = None
) -> str:
    """The backend's name: the one asked for, or the fastest for this machine and model (benchmarks/ask.py)."""
    if options.backend == "openvino":
        refusal = find_openvino_refusal(model, options, folder, adapter)
        if refusal is not None:
            raise NotSupported(
                f"OpenVINO does not answer here: {refusal}.", "Use backend = 'auto': it takes one that does."
            )
    constrained = model.schema is not None or options.grammar is not None
    if model.schema is not None and options.grammar is not None:
        raise OptionError("This model's answers obey a schema already.", "Leave out grammar.")
    if options.backend != "auto":
        if constrained and options.backend == "transformers":
            raise NotSupported(
                "The transformers backend does not bind answers to a schema or grammar.", "Use backend = 'llama.cpp'."
            )
        return options.backend
    allowed = read_allowed_backends()
    needs_torch = getattr(model.options, "quantization", "none") != "none" or runs_on_gpu(device)
    is_openvinos = "openvino" in allowed and not needs_torch and is_small(folder)
    if is_openvinos and find_openvino_refusal(model, options, folder, adapter) is None:
        return "openvino"
    if "llama.cpp" in allowed:
        why = find_llama_refusal(folder, adapter, tried=constrained)
    else:
        why = f"{BACKENDS_SWITCH} leaves it out"
    if constrained:
        if why:
            step = "Make the model without types, or train a LoRA adapter." if is_llama_installed() else llama.INSTALL
            raise NotSupported(f"A schema or grammar needs llama.cpp, and {why}.", step)
        return "llama.cpp"
    if "transformers" in allowed:
        is_faster = options.precision in ("auto", "bf16") and is_torch_faster(folder) and find_spec("transformers")
        return "transformers" if needs_torch or why or is_faster else "llama.cpp"
    if needs_torch or why:
        reason = f"llama.cpp does not, {why}" if why else "a GPU and quantization need transformers"
        raise NotSupported(
            f"None of {BACKENDS_SWITCH} = {','.join(allowed)} answers here: {reason}.", "Add transformers."
        )
    return "llama.cpp"


def read_allowed_backends() -> tuple[str, ...]:
    """The backends that `auto` may take; OptionError for a name that is none."""
    given = [name.strip() for name in os.environ.get(BACKENDS_SWITCH, "").split(",") if name.strip()]
    for name in given:
        if name not in BACKENDS:
            raise OptionError(
                f"{BACKENDS_SWITCH} names '{name}', which is no backend.{did_you_mean(name, BACKENDS)}",
                f"Set it to some of {', '.join(BACKENDS)}, with commas between.",
            )
    return tuple(given) or BACKENDS


def asks_file(options: PredictOptions) -> bool:
    """Whether llama.cpp asks a GGUF file of others as it is: no other program is wanted, and no other numbers."""
    return options.backend in ("auto", "llama.cpp") and options.precision == "auto"


def find_openvino_refusal(
    model: ModelSpec, options: PredictOptions, folder: Path, adapter: Path | None = None
) -> str | None:
    """Why OpenVINO cannot answer a statement like this, or None if it can."""
    if not openvino.is_installed():
        return "the package openvino-genai is not installed"
    if options.grammar is not None:
        return "grammars in GBNF are llama.cpp's"
    if model.schema is not None and (unbound := find_unbound_part(model.schema)):
        return f"it does not bind answers to {unbound}"
    if options.temperature > 0:
        return "it only takes the likeliest token (temperature = 0)"
    if options.precision not in ("auto", "q8_0"):
        return f"its weights are in 8 bits, not in {options.precision}"
    if options.adapter == "runtime":
        return "it adds adapters to the weights (adapter = 'merged')"
    given = model.options if isinstance(model.options, ModelOptions) else ModelOptions()
    if given.quantization != "none" or given.dtype not in ("auto", "bfloat16"):
        return "its weights are in 8 bits, not in those of the model's options"
    if falls_back_to_bytes(folder):
        return "it reads no tokenizer that falls back to bytes, as Llama 2's does"
    return find_llama_refusal(folder, adapter)


def falls_back_to_bytes(folder: Path) -> bool:
    """Whether the tokenizer is of SentencePiece's kind, whose own file is all that there is without tokenizer.json."""
    file = folder / "tokenizer.json"
    return not file.exists() or _reads_bytes(file, file.stat().st_mtime_ns)


@cache
def _reads_bytes(file: Path, mtime: int) -> bool:
    """Megabytes are read once, and not in every statement."""
    return re.search(rb'"byte_fallback"\s*:\s*true', file.read_bytes()) is not None


def is_torch_faster(folder: Path) -> bool:
    """Whether torch in bfloat16 answers before llama.cpp does here, which reads half as much memory in 8 bits.

    With matrix units it does for every base; with vector instructions alone a large base waits for its memory.
    """
    flags = machine.detect_cpu_features()
    return "amx_bf16" in flags or (machine.multiplies_bfloat16(flags) and is_small(folder))


def is_small(folder: Path) -> bool:
    """Whether the base's files are worth being written again, for a version or in other numbers."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) <= weight_cache.SMALL_BASE_BYTES


def is_llama_installed() -> bool:
    """Whether llama.cpp is here, and what its files are made with."""
    return find_spec("xllamacpp") is not None and find_spec("gguf") is not None


def find_llama_refusal(folder: Path, adapter: Path | None = None, tried: bool = False) -> str | None:
    """Why llama.cpp is not taken for the base with the adapter, or None.

    With `tried` it is also taken for bases whose files are compared with transformers first.
    """
    if not is_llama_installed():
        return "the packages xllamacpp and gguf are not installed"
    from sqlft_local.gguf.architectures import check_convertible, find_reason_for_trial

    config = read_config(folder)
    try:
        check_convertible(config)
    except NotSupported as e:
        return e.message
    if adapter is not None and (part := find_unusual_adapter_part(read_adapter_config(adapter))):
        return f"only transformers computes what the adapter has ({part})"
    reason = None if tried else find_reason_for_trial(config)
    return reason and f"files for llama.cpp are made of {reason} only where backend = 'llama.cpp' asks for them"


def choose_dtype(options: PredictOptions, model: ModelOptions, folder: Path, device: str) -> Dtype:
    """transformers' number format for asking."""
    if options.precision == "q8_0":
        raise NotSupported("transformers has no q8_0 weights.", "Use backend = 'llama.cpp', or precision = 'bf16'.")
    if options.precision != "auto":
        return DTYPES[options.precision]
    if model.dtype == "auto" and not runs_on_gpu(device) and is_torch_faster(folder):
        return "bfloat16"
    return model.dtype


def choose_gguf_type(options: PredictOptions, model: ModelOptions, folder: Path) -> str:
    """llama.cpp's number format for asking; q8_0 rounds activations to 8 bits too, and is no faster for small bases."""
    if options.precision != "auto":
        return options.precision
    return GGUF_TYPES.get(model.dtype, "bf16" if is_small(folder) else "q8_0")


def should_merge_adapter(options: PredictOptions, folder: Path) -> bool:
    """Whether a version gets a file with its adapter in it."""
    if options.adapter != "auto":
        return options.adapter == "merged"
    return is_small(folder)


def runs_on_gpu(device: str) -> bool:
    """Whether torch would run on CUDA; looks for the driver before torch is imported for it."""
    if device not in ("auto",) and not device.startswith("cuda"):
        return False
    if "torch" not in sys.modules and not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    if find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
