"""What makes training and asking fast beside the libraries: each with what it computes, its equations, and a switch.

Called by `train`, `predict.torch_predictor` and `predict.score`; `batching` says which layout of rows a model takes,
and does without the others.  `SQLFT_KERNELS` names those that are on, separated by commas or spaces ("none" for none);
without it all are.  What is off is computed by torch, transformers and PEFT.  `benchmarks/train.py --kernels` measures
a training without each of them.  Memory is planned for all of them.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Literal

from sqlft.errors import OptionError

Kernel = Literal["packing", "prefix", "attention", "norms", "mlp", "head", "lora"]
KERNELS: dict[Kernel, str] = {
    "packing": "many rows in one pass without padding; else a row a pass",
    "prefix": "the common start of a pass's rows, or of prompts, computed once",
    "attention": "attention of packed rows on a processor by plain products; else torch's scaled_dot_product_attention",
    "norms": "RMSNorm that keeps only its input; else transformers' own",
    "mlp": "SwiGLU that keeps only what its two products gave; else transformers' own",
    "head": "logits and their loss a chunk of tokens at a time; else all logits in float32",
    "lora": "LoRA and the base's weights in one product, one dropout for layers with one input; else PEFT's own",
}
"""What each does in a training, and what does it in its place."""
SWITCH = "SQLFT_KERNELS"


def is_on(kernel: Kernel) -> bool:
    """Whether the environment leaves the kernel on."""
    return kernel in _parse_switch(os.environ.get(SWITCH, ""))


@lru_cache(maxsize=8)
def _parse_switch(text: str) -> frozenset[str]:
    """OptionError for what is no kernel.

    >>> sorted(_parse_switch("packing, lora")), len(_parse_switch("none")), len(_parse_switch(""))
    (['lora', 'packing'], 0, 7)
    """
    named = set(text.replace(",", " ").split())
    if unknown := named - {"none", *KERNELS}:
        raise OptionError(
            f"{SWITCH} names what is no kernel: {', '.join(sorted(unknown))}.",
            f"Use names out of {', '.join(KERNELS)}, or none, or unset {SWITCH}.",
        )
    return frozenset(named - {"none"}) if named else frozenset(KERNELS)
