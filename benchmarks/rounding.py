"""What each part of 8 and 16 bits changes of the next tokens' probabilities, computed in float32 by transformers.

    python benchmarks/rounding.py --data dev.parquet --adapter DIR [--rows 16]

The right answers of the rows are read token by token.  `kl` is the mean divergence of the probabilities from float32's,
`flips` the tokens whose likeliest successor is another one.  8 bits round weights, and in llama.cpp also what they are
multiplied with (activations): in blocks of 32 numbers with a scale each.  The embeddings are the output head as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from recipe import rows
from sqlft_local import pull
from sqlft_local.base import loading, tokenization
from sqlft_local.base.tokenization import Renderer
from torch import Tensor
from transformers import AutoModelForCausalLM

from sqlft.handler import Message

BLOCK = 32
Q8 = GGMLQuantizationType.Q8_0


def eight(weight: Tensor) -> Tensor:
    """Rounded as a q8_0 file has it."""
    return torch.from_numpy(dequantize(quantize(weight.numpy(), Q8), Q8)).reshape(weight.shape)


def eight_activations(x: Tensor) -> Tensor:
    """Rounded as llama.cpp rounds what it multiplies with q8_0."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp_min(1e-30)).round() * scale.half().float()).reshape(x.shape)


def round_weights(model: Any, change: Callable[[Tensor], Tensor], embeddings: bool = True, layers: bool = True) -> Any:
    """The model with its matrices changed."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and (embeddings if "embed" in name else layers):
                weight.copy_(change(weight))
    return model


def round_activations(model: Any, head: bool = True) -> Any:
    """The model with the inputs of its linear layers rounded."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and (head or "lm_head" not in name):
            layer.register_forward_pre_hook(lambda _, given: (eight_activations(given[0]),))
    return model


def narrow(dtype: Any) -> Callable[[Tensor], Tensor]:
    """Rounding of weights to 16 bits, computed with in 32."""
    return lambda weight: weight.to(dtype).float()


WAYS: dict[str, Callable[[Any], Any]] = {
    "q8_0 weights, all": lambda m: round_weights(m, eight),
    "q8_0 weights, embeddings alone": lambda m: round_weights(m, eight, layers=False),
    "8-bit activations alone": round_activations,
    "q8_0 weights and 8-bit activations": lambda m: round_activations(round_weights(m, eight)),
    "the same but for embeddings and head": lambda m: round_activations(
        round_weights(m, eight, embeddings=False), head=False
    ),
    "bf16 weights": lambda m: round_weights(m, narrow(torch.bfloat16)),
    "f16 weights": lambda m: round_weights(m, narrow(torch.float16)),
    "everything in bfloat16": lambda m: m.to(torch.bfloat16),
}


def main() -> None:
    """A row for each way of rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions as benchmarks/recipe.py reads them")
    parser.add_argument("--adapter", type=Path, required=True, help="a folder that FINETUNE made")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    given = parser.parse_args()
    folder = pull(given.base, lambda what, share: None)
    tokenizer, stop_ids = tokenization.load_transformers_tokenizer(folder)
    renderer = Renderer(tokenizer, stop_ids)
    texts = [
        (renderer.prompt([Message("user", r.prompt)]), tokenizer.encode(r.answer, add_special_tokens=False))
        for r in rows(given.data, "true", given.rows)
    ]

    def model() -> Any:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return loading.apply_adapter(loading.LoadedModel(base, renderer, folder, 8192), given.adapter).model

    exact = shares(model(), texts)
    for name, change in WAYS.items():
        found = shares(change(model()), texts)
        kl = (exact.exp() * (exact - found)).sum(-1).mean()
        flips = int((exact.argmax(-1) != found.argmax(-1)).sum())
        said = {"way": name, "data": given.data.parent.name, "tokens": len(exact), "kl": round(float(kl), 6)}
        print(json.dumps({"benchmark": "rounding", **said, "flips": flips}), flush=True)


def shares(model: Any, texts: list[tuple[list[int], list[int]]]) -> Tensor:
    """Logarithms of the probabilities behind each token of the answers, and of the prompts' last ones."""
    found = []
    for prompt, answer in texts:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
        found.append(logits.float().log_softmax(-1))
    return torch.cat(found)


if __name__ == "__main__":
    main()
