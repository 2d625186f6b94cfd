"""The options of the local engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from sqlft.handler import Alias, EmbeddingOptions, LengthOptions, Range, SamplingOptions, TrainingOptions

RESUME_OPTIONS = (
    "max_memory",
    "max_tokens_per_pass",
    "gradient_checkpointing",
    "max_minutes",
    "num_processes",
    "checkpoint_seconds",
    "checkpoint_steps",
)
"""Options with which a training may be resumed that were others when it began."""
GGUF_KINDS = ("f16", "bf16", "f32", "q8_0")
EXPORT_FORMATS: Mapping[str, tuple[str, ...]] = {"peft": (), "merged": (), "gguf": GGUF_KINDS, "ollama": GGUF_KINDS}
"""Formats of EXPORT MODEL, and the numbers that each may have."""
Thinking = Literal["off", "on", "keep"]
DEFAULT_MAX_LENGTH = 2048
"""Tokens of a row that is trained on, where the statement names none and the base reads more."""


@dataclass
class EngineOptions:
    """CREATE ML_ENGINE … FROM local USING …"""

    device: Annotated[str, "where models run: auto, cpu, cuda, cuda:1, mps"] = "auto"
    threads: Annotated[int | None, "threads of the processor; without it all cores", Range(1, 1024)] = None


@dataclass
class ModelOptions(EmbeddingOptions):
    """CREATE MODEL … USING …"""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "numbers that are multiplied; auto is bfloat16 where the hardware is faster with it",
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "nf4"],
        "the base's linear layers in 8 or 4 bits, by bitsandbytes, in training and asking",
    ] = "none"
    context_length: Annotated[
        int | None,
        "tokens of a prompt with its answer; without it what the base was made for",
        Alias("num_ctx"),
        Range(16),
    ] = None
    chat_template: Annotated[str | None, "a Jinja chat template in place of the base's own"] = None
    thinking: Annotated[
        Thinking, "whether the base thinks before it answers, in training and asking; see SELECT … USING"
    ] = "off"
    dimensions: Annotated[
        int | None,
        "numbers of a vector: the first ones, of length 1 again, as Matryoshka models are trained; without it all",
        Range(1),
    ] = None
    separator: Annotated[str | None, "put behind every prompt, in training as in asking"] = None
    stop: Annotated[list[str] | None, "texts that end an answer; answers are taught with the first one behind them"] = (
        None
    )


@dataclass
class PredictOptions(SamplingOptions):
    """SELECT … USING …"""

    max_tokens: Annotated[int, "most tokens of an answer", Alias("max_new_tokens"), Range(1)] = 256
    temperature: Annotated[float, "0 always takes the likeliest token", Range(0, 10)] = 0.0
    top_p: Annotated[float, "sample from the likeliest tokens that make up this share", Range(0, 1)] = 1.0
    top_k: Annotated[int | None, "sample from this many likeliest tokens", Range(1)] = None
    stop: Annotated[
        list[str] | None, "texts that end an answer, beside those it was trained with; they are not part of it"
    ] = None
    seed: Annotated[int, "for sampling; the same seed and prompt give the same answer"] = 0
    batch_size: Annotated[
        int | None, "prompts answered at a time; without it 64 with openvino, else 16", Range(1, 1024)
    ] = None
    logprobs: Annotated[bool, "tell how likely each answer was, in the column <output>_logprob"] = False
    thinking: Annotated[
        Thinking,
        "off: the base answers at once; on: it thinks first, which the column <output>_reasoning shows; "
        "keep: what its chat template does by itself",
    ] = "off"
    grammar: Annotated[str | None, "a grammar in GBNF that every answer obeys; runs on llama.cpp"] = None
    backend: Annotated[
        Literal["auto", "transformers", "llama.cpp", "openvino"],
        "what runs the model; auto is the fastest here. A vLLM server is an engine: CREATE ML_ENGINE v FROM vllm "
        "USING base_url = '…', then serve = 'v' when asking",
    ] = "auto"
    precision: Annotated[
        Literal["auto", "f32", "bf16", "f16", "q8_0"], "the weights' numbers when asking; auto is the fastest good one"
    ] = "auto"
    adapter: Annotated[
        Literal["auto", "merged", "runtime"],
        "llama.cpp: a file with the adapter in it, or one base for many adapters; auto merges into small bases",
    ] = "auto"


@dataclass
class TrainOptions(LengthOptions, TrainingOptions):
    """FINETUNE … USING …"""

    n_epochs: Annotated[float, "how often training goes through the rows", Range(0.01, 1000)] = 3.0
    batch_size: Annotated[int | None, "rows a step; without it the base's own", Range(1, 4096)] = None
    learning_rate: Annotated[float | None, "step size at its highest; without it by the base's width", Range(0, 1)] = (
        None
    )
    learning_rate_multiplier: Annotated[float, "multiplies the learning rate", Range(0, 100)] = 1.0
    prompt_loss_weight: Annotated[float, "weight of the prompt's tokens in the loss, answers weigh 1", Range(0, 1)] = (
        0.0
    )
    r: Annotated[int, "rank of the LoRA matrices", Alias("lora_r"), Range(1, 1024)] = 8
    lora_alpha: Annotated[float, "LoRA scale: lora_alpha / r", Range(0)] = 16.0
    lora_dropout: Annotated[float, "dropout before the LoRA matrices", Range(0, 0.99)] = 0.05
    target_modules: Annotated[list[str] | None, "names of linear layers that are trained; without it all"] = None
    max_length: Annotated[int | None, "most tokens of a row; without it the context, at most 2048", Range(8)] = None
    separator: Annotated[
        str | None, "put behind every prompt, and remembered; without it that of the model or of the version before"
    ] = None
    stop: Annotated[
        list[str] | None, "the first is put behind every answer, all end one when asked; remembered like separator"
    ] = None
    seed: Annotated[int, "for order, dropout and the first weights"] = 0
    warmup: Annotated[float, "share of the steps in which the learning rate rises", Range(0, 1)] = 0.05
    weight_decay: Annotated[float, "of AdamW", Range(0, 1)] = 0.0
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm", Range(0)] = 1.0
    early_stopping: Annotated[bool, "with validation rows: stop when their loss rises, and keep the best state"] = True
    max_minutes: Annotated[
        float | None,
        "end training this long after its first step begins, the learning rate falling as planned",
        Range(0.01),
    ] = None
    max_memory: Annotated[
        str | None, "most memory of the training process, such as '8GB' or bytes; without it what is free, less a tenth"
    ] = None
    max_tokens_per_pass: Annotated[
        int | None,
        "tokens computed at once; without it what max_memory allows, at most 2048, 16384 on a GPU",
        Range(16),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None, "compute blocks again for the backward pass; without it where memory asks for it"
    ] = None
    num_processes: Annotated[
        int, "processes that train together, each on a GPU of its own; without a GPU they share the cores", Range(1, 64)
    ] = 1
    checkpoint_seconds: Annotated[float, "a checkpoint at least so often", Range(0)] = 30.0
    checkpoint_steps: Annotated[int | None, "a checkpoint every so many steps as well", Range(1)] = None

    @property
    def rows_per_step(self) -> int:
        """The batch size, where no preset has it that of most bases."""
        return self.batch_size or 16

    def limit_row(self, context: int) -> int:
        """Most tokens of a row, for a base that reads so many."""
        return min(self.max_length or DEFAULT_MAX_LENGTH, context)

    @property
    def layers(self) -> list[str]:
        """The target modules; where none were given, every linear layer."""
        return self.target_modules or ["all-linear"]
