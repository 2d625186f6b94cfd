"""Training speed and memory: ours against a padded transformers + peft loop, in one run.

    python benchmarks/train.py [--data FILE] [--rows 64] [--batch-size 16] [--dtype float32] [--threads 2]

Both loops train the same LoRA matrices on the same rows in the same order, each in a process of its own.  FILE has the
columns question, context and answer; without it the rows are the example's.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "text_to_sql.csv"
SYSTEM = "You translate questions to SQL. Answer with one SQL statement only, for the tables given."
LOOPS = ("padded", "ours")
RATE = 2e-3


def main() -> None:
    """Run both loops and compare them."""
    given = arguments()
    if given.loop:
        print(json.dumps(LOOP[given.loop](given)))
        return
    found = {loop: measured(loop) for loop in LOOPS}
    print(f"{'loop':<8} {'examples/s':>10} {'tokens/s':>9} {'peak MB':>8} {'MB above':>9} {'last loss':>10}")
    for loop, m in found.items():
        above = m["peak_mb"] - m["loaded_mb"]
        print(
            f"{loop:<8} {m['examples_per_second']:>10.2f} {m['tokens_per_second']:>9.0f} {m['peak_mb']:>8.0f} "
            f"{above:>9.0f} {m['loss']:>10.4f}"
        )
    ours, padded = found["ours"], found["padded"]
    ratios = {
        "speed_ratio": ours["examples_per_second"] / padded["examples_per_second"],
        "memory_ratio": ours["peak_mb"] / padded["peak_mb"],
        "loss_ratio": ours["loss"] / padded["loss"],
    }
    print(", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in ratios.items()))
    print(json.dumps({"benchmark": "train", **{k: round(v, 4) for k, v in ratios.items()}, "loops": found}))


def measured(loop: str) -> dict[str, float]:
    """What one loop says of itself, in a fresh process: peak memory is a process's."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--loop", loop], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def conversations(given: argparse.Namespace) -> list[list[dict[str, str]]]:
    """The rows, by chance but always the same ones."""
    import duckdb

    query = f"SELECT context, question, answer FROM '{given.data}' ORDER BY hash(question) LIMIT {given.rows}"
    return [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{context}\n{question}"},
            {"role": "assistant", "content": answer},
        ]
        for context, question, answer in duckdb.execute(query).fetchall()
    ]


def padded(given: argparse.Namespace) -> dict[str, float]:
    """What most scripts do: rows padded to the batch's longest, logits everywhere, peft's own layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from sqlft_local import pull
    from sqlft_local.rendering import Renderer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sqlft.handler import Message

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    folder = pull(given.base, lambda what, share: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, given.dtype))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=given.dropout, target_modules=targets))
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    rows = [renderer.conversation([Message(**m) for m in turns]) for turns in conversations(given)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    model.train()

    def step(batch: Sequence[Any]) -> float:
        longest = max(len(r.ids) for r in batch)
        ids = torch.tensor([r.ids + [0] * (longest - len(r.ids)) for r in batch])
        mask = torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in batch])
        labels = [[i if a else -100 for i, a in zip(*r, strict=True)] + [-100] * (longest - len(r.ids)) for r in batch]
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return timed(step, rows, given)


def ours(given: argparse.Namespace) -> dict[str, float]:
    """The loop of the local engine, by its parts, so that both are timed alike."""
    import torch
    from sqlft_local import lean, loading, lora, pull
    from sqlft_local import rows as reading
    from sqlft_local.options import ModelOptions, TrainOptions
    from sqlft_local.packing import Example
    from sqlft_local.training import loss_of

    from sqlft.handler import Message

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    loading.require("The benchmark")
    loaded = loading.fresh(pull(given.base, lambda what, share: None), ModelOptions(dtype=given.dtype), "cpu")
    options = TrainOptions(lora_dropout=given.dropout)
    lean.apply(loaded.model)
    attached = lora.attach(loaded.model, options, None)
    parameters = list(attached.trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    rendered = [loaded.renderer.conversation([Message(**m) for m in turns]) for turns in conversations(given)]
    rows = [Example(r.ids, [float(a) for a in r.answer]) for r in rendered]
    loaded.model.train()

    def step(batch: Sequence[Any]) -> float:
        total, weight = 0.0, reading.weight(batch)
        for part in reading.passes(batch, options.max_tokens_per_pass):
            loss = loss_of(loaded.model, part) / weight
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return timed(step, rows, given)


def timed(step: Callable[[Sequence[Any]], float], rows: Sequence[Any], given: argparse.Namespace) -> dict[str, float]:
    """All rows once; the first step, which warms up, counts for memory and not for time."""
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    batches = [rows[i : i + given.batch_size] for i in range(0, len(rows), given.batch_size)]
    step(batches[0])
    began, loss = time.perf_counter(), math.nan
    for batch in batches[1:]:
        loss = step(batch)
    seconds = time.perf_counter() - began
    counted = [row for batch in batches[1:] for row in batch]
    return {
        "examples_per_second": len(counted) / seconds,
        "tokens_per_second": sum(len(row.ids) for row in counted) / seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loaded_mb": loaded,
        "loss": loss,
    }


LOOP: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {"padded": padded, "ours": ours}

if __name__ == "__main__":
    main()
