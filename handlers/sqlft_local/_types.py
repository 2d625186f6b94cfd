"""Names for what torch, transformers, PEFT and other libraries hand out; for annotations, so that nothing is loaded.

`Any` stands only here: where a library has no types, and for parsed JSON, whose readers check what they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import (
        BatchEncoding,
        BitsAndBytesConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    Model: TypeAlias = PreTrainedModel
    """A decoder as transformers loads it, or `base.torch_llama`'s, which is called alike."""
    Config: TypeAlias = PretrainedConfig
    Tokenizer: TypeAlias = PreTrainedTokenizerBase
    """transformers', or `base.tokenization.ChatTokenizer`, which does the same without it."""
    Encoded: TypeAlias = BatchEncoding
    """Texts as tokens, a list for each."""
    Layer: TypeAlias = torch.nn.Module
    """A linear layer, plain or quantised, or an MLP of three."""
    TrainedLayer: TypeAlias = LoraLayer
    """A linear layer with matrices beside it."""
    AdapterConfig: TypeAlias = LoraConfig
    Dtype: TypeAlias = torch.dtype
    Device: TypeAlias = torch.device
    QuantizationConfig: TypeAlias = BitsAndBytesConfig
    Work: TypeAlias = torch.distributed.Work

AutogradContext: TypeAlias = Any
"""What torch hands to forward and backward of a function: saved tensors, and any attribute that is set on it."""
LlamaServer: TypeAlias = Any
"""xllamacpp's Server."""
GenerationHandle: TypeAlias = Any
"""openvino_genai's GenerationHandle."""
AutoClass: TypeAlias = Any
"""One of transformers' classes that find a model's own by its config, such as AutoModelForCausalLM."""
JsonObject: TypeAlias = dict[str, Any]
JsonMapping: TypeAlias = Mapping[str, Any]
"""Parsed JSON: a base's config.json, a tokenizer's files, what llama.cpp answers."""
