"""Whether llama.cpp computes a base as transformers does, tried on the base itself.

Called by `base.weight_cache` for a base whose architecture or config is not one of the few known to be right, once.
The first layers, with one of each kind, are written in float32, and both say how likely the next tokens are.  A process
of its own does it (`python -m sqlft_local.gguf.trial FOLDER`): what llama.cpp does not compute may end its process.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import ProviderError
from sqlft_local import machine

if TYPE_CHECKING:
    from sqlft_local._types import Config, JsonObject, LlamaServer, Model

PROMPT = (
    "SELECT name, age FROM singers WHERE country = 'France' -- how many are there, and who is the oldest of them?\n"
)
PROMPT_TOKENS = 32
STEPS = 8
"""Tokens that are read one by one behind a prompt: states of earlier ones are kept, as in an answer."""
LIKELIEST = 5
"""Of the tokens that may come next, so many are compared."""
MOST_DIFFERENCE = 0.01
"""Of a logarithm.  In float32, rounding leaves 0.0001; another formula leaves tenths."""
FEWEST_LAYERS = 4
SHORT_WINDOW = 8
"""A sliding window's width in a trial, so that a short prompt is longer."""
SECONDS = 600


def find_fault(folder: Path) -> str | None:
    """What is wrong with a base's file, if anything; ProviderError where the process that finds it is ended."""
    command = machine.module_command("sqlft_local.gguf.trial", str(folder))
    environment = {**machine.child_environment(), "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as e:
        raise ProviderError(
            f"The base was not compared with llama.cpp within {SECONDS} seconds.",
            "Try again when the machine is less busy, or use backend = 'transformers'.",
        ) from e
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        raise ProviderError(
            f"The comparison of the base with llama.cpp was ended by signal {-done.returncode}.",
            "Free some memory and try again, or use backend = 'transformers'.",
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        ended = [line for line in done.stderr.splitlines() if "ASSERT" in line or "Error" in line or "error" in line]
        return f"llama.cpp does not run it ({ended[-1].strip()[-200:] if ended else f'exit code {done.returncode}'})"
    return describe_difference(float(lines[-1]))


def describe_difference(difference: float) -> str | None:
    """What is wrong, if so much is."""
    if difference <= MOST_DIFFERENCE:
        return None
    return (
        f"llama.cpp computes other likelihoods than transformers (by a factor of {math.exp(min(difference, 99)):.3g})"
    )


def try_base(folder: Path) -> float:
    """The largest difference on the first layers of a base."""
    import torch
    from transformers import AutoConfig

    from sqlft_local.base.loading import find_auto_class
    from sqlft_local.base.tokenization import load_transformers_tokenizer
    from sqlft_local.gguf.metadata import complete_config
    from sqlft_local.gguf.write import export

    config = shorten(AutoConfig.from_pretrained(folder))
    tokenizer, stop_ids = load_transformers_tokenizer(folder)
    ids = (tokenizer.encode(PROMPT, add_special_tokens=False) * PROMPT_TOKENS)[:PROMPT_TOKENS]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "trial.gguf"
        export(folder, file, "f32", backend, sorted(stop_ids), config=complete_config(config))
        model = find_auto_class(config).from_pretrained(folder, config=config, dtype=torch.float32).eval()
        return find_difference(file, model, ids)


def shorten(config: Config) -> Config:
    """Of a base its first layers, with all kinds of them, and a window that a short prompt fills."""
    full = config.to_dict()
    text = full.get("text_config") or full
    layers = config.get_text_config().num_hidden_layers
    by_layer = {k: v for k, v in text.items() if isinstance(v, list) and len(v) == layers}
    kinds = [str(kind) for kind in zip(*by_layer.values(), strict=True)]
    first = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)
    kept = min(layers, max(FEWEST_LAYERS, first, (text.get("first_k_dense_replace") or 0) + 1))
    text.update({name: values[:kept] for name, values in by_layer.items()})
    text[config.get_text_config().attribute_map.get("num_hidden_layers", "num_hidden_layers")] = kept
    if (text.get("sliding_window") or math.inf) < (text.get("max_position_embeddings") or 0):
        text["sliding_window"] = SHORT_WINDOW
    return type(config).from_dict(full)


def find_difference(file: Path, model: Model, ids: Sequence[int], adapter: Path | None = None) -> float:
    """The largest difference between what llama.cpp and transformers think of the tokens that come next."""
    import torch

    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return max(
        (
            abs(likelihood - float(expected[place][token]))
            for place, likeliest in read_likelihoods(file, ids, adapter).items()
            for token, likelihood in likeliest.items()
        ),
        default=math.inf,
    )


def read_likelihoods(file: Path, ids: Sequence[int], adapter: Path | None = None) -> Mapping[int, Mapping[int, float]]:
    """What llama.cpp thinks comes behind each of the last tokens: logarithms by token, by the last one's place."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.n_parallel, p.n_ctx = str(file), 1, 256
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.n_gpu_layers, p.verbosity, p.warmup, p.fit_params, p.cache_ram_mib = 0, -1, False, False, 0
    p.ui, p.endpoint_slots, p.n_threads_http = False, False, 1
    p.cache_type_k = p.cache_type_v = int(xllamacpp.ggml_type.GGML_TYPE_F32)
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        laid_over = xllamacpp.CommonAdapterLoraInfo()
        laid_over.path, laid_over.scale = str(adapter), 1.0
        p.lora_adapters = [laid_over]
    server = xllamacpp.Server(p)
    return {place: _ask(server, ids[: place + 1]) for place in range(len(ids) - STEPS, len(ids))}


def _ask(server: LlamaServer, ids: Sequence[int]) -> Mapping[int, float]:
    """The likeliest tokens behind these; none where the likeliest ends the answer, of which llama.cpp is silent."""
    answers: list[JsonObject] = []
    body = {"prompt": list(ids), "n_predict": 1, "temperature": 0, "n_probs": LIKELIEST}
    server.handle_completions(json.dumps(body), lambda event: answers.append(json.loads(event)))
    tokens = (answers[-1]["choices"][0]["logprobs"] or {}).get("content", ())
    return {top["id"]: top["logprob"] for token in tokens for top in token["top_logprobs"]}


if __name__ == "__main__":
    print(try_base(Path(sys.argv[1])))
