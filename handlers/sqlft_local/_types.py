"""Names for what torch, transformers, PEFT and tokenizers hand out; for annotations only, so that nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Model: TypeAlias = PreTrainedModel
    """A decoder as transformers loads it, or `base.torch_llama`'s, which is called alike."""
    Config: TypeAlias = PretrainedConfig
    Tokenizer: TypeAlias = PreTrainedTokenizerBase
    """transformers', or `base.tokenization.ChatTokenizer`, which does the same without it."""
    Layer: TypeAlias = torch.nn.Module
    """A linear layer, plain or quantised, or an MLP of three."""
    TrainedLayer: TypeAlias = LoraLayer
    """A linear layer with matrices beside it."""
    AdapterConfig: TypeAlias = LoraConfig
    Dtype: TypeAlias = torch.dtype
    Device: TypeAlias = torch.device

AutogradContext: TypeAlias = Any
"""What torch hands to forward and backward of a function: saved tensors, and any attribute that is set on it."""
