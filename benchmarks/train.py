"""Training speed and memory: ours against a padded transformers + peft loop and TRL, in one run.

    python benchmarks/train.py [--data sql|viggo|chat_long|FILE] [--folder DIR] [--rows 96] [--dtype bfloat16]
        [--loops padded ours] [--rounds 1]
    python benchmarks/train.py --kernels [NAME …] [--rounds 3]

All train the same LoRA matrices (r 8, alpha 16, all linear layers) on the same rows, each in a process, and end with
the same evaluation: mean loss of the answers' tokens on other rows, computed by transformers' own attention.  `padded`
is the loop that most scripts have (rows padded to the batch's longest, logits everywhere); `trl` is SFTTrainer as it
comes, `trl_packed` with packing and gradient checkpointing.  DIR has the data sets as Parquet; FILE has the columns
question, context and answer.  The limit is what the products of ours would take alone, at the rate of such products
measured in the same run.  With `--rounds` the loops run in turns so often, and the median of each counts.

`--kernels` measures ours alone: with all kernels of `sqlft_local.kernels`, and without each of them (SQLFT_KERNELS), in
turns, `--rounds` times.  A ratio over 1 is what the kernel gives.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from figures import describe_machine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "data" / "text_to_sql.csv"
SYSTEM = "You translate questions to SQL. Answer with one SQL statement only, for the tables given."
MEANING = "Give the meaning representation of the sentence."
LOOPS = ("padded", "trl", "trl_packed", "ours")
RATE = 2e-3
Turns = list[dict[str, str]]


def main() -> None:
    """Run the loops and compare them."""
    given = arguments()
    if given.loop:
        print(json.dumps(measured_here(given)))
        return
    if given.kernels is not None:
        compare_kernels(given)
        return
    rounds = [{loop: in_a_process(loop) for loop in given.loops} for _ in range(given.rounds)]
    found = {loop: {k: median(r[loop][k] for r in rounds) for k in rounds[0][loop]} for loop in given.loops}
    columns = ("examples_per_second", "tokens_per_second", "peak_mb", "valid_loss")
    print(f"{'loop':<11} {'examples/s':>10} {'tokens/s':>9} {'peak MB':>8} {'valid loss':>10}")
    for loop, m in found.items():
        print(f"{loop:<11} {m[columns[0]]:>10.2f} {m[columns[1]]:>9.0f} {m[columns[2]]:>8.0f} {m[columns[3]]:>10.4f}")
    ours = found["ours"]
    ratios = {
        f"{name}_over_{loop}": ours[key] / found[loop][key]
        for loop in found
        if loop != "ours"
        for name, key in (("speed", columns[0]), ("memory", columns[2]), ("loss", columns[3]))
    }
    print(", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in ratios.items()))
    print(f"limit {ours['limit']:.2f} examples/s at {ours['gflops']:.0f} GFLOP/s; reached {ours['of_limit']:.0%} of it")
    rounded = {k: round(v, 4) for k, v in ratios.items()}
    setting = {"data": given.data, "dtype": given.dtype, "rows": given.rows, "targets": given.targets}
    print(
        json.dumps(
            {
                "benchmark": "train",
                **setting,
                **describe_machine("torch", "transformers", "peft", "trl"),
                **rounded,
                "rounds": rounds,
            }
        )
    )


def compare_kernels(given: argparse.Namespace) -> None:
    """Examples a second, memory and loss with all kernels, and without each."""
    from sqlft_local.kernels import KERNELS, SWITCH

    names = given.kernels or list(KERNELS)
    if unknown := set(names) - set(KERNELS):
        raise SystemExit(f"There is no kernel {', '.join(sorted(unknown))}.  There are {', '.join(KERNELS)}.")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *names)}
    for _ in range(given.rounds):
        for name, found in runs.items():
            on = [kernel for kernel in KERNELS if kernel != name]
            found.append(in_a_process("ours", {SWITCH: ",".join(on)}))
    middle = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    whole = middle.pop("")
    speed, memory, loss = "examples_per_second", "peak_mb", "valid_loss"
    print(f"all kernels: {whole[speed]:.2f} examples/s, {whole[memory]:.0f} MB, loss {whole[loss]:.4f}")
    print(f"{'without':<11} {'examples/s':>10} {'ratio':>6} {'peak MB':>8} {'ratio':>6} {'valid loss':>10}")
    for name, m in middle.items():
        print(
            f"{name:<11} {m[speed]:>10.2f} {whole[speed] / m[speed]:>6.2f} {m[memory]:>8.0f}"
            f" {m[memory] / whole[memory]:>6.2f} {m[loss]:>10.4f}"
        )
    print(json.dumps({"benchmark": "kernels", "data": given.data, "dtype": given.dtype, "all": whole, **middle}))


def in_a_process(loop: str, environment: Mapping[str, str] = MappingProxyType({})) -> dict[str, float]:
    """What one loop says of itself, in a fresh process: peak memory is a process's."""
    command = [sys.executable, __file__, *sys.argv[1:], "--loop", loop]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="example", help="sql, viggo, chat_long, or a file; the example's rows")
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--valid", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument(
        "--targets", nargs="+", default=["all-linear"], help="names of layers; without it all linear ones"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--kernels", nargs="*", metavar="NAME", help="with and without these kernels, or each")
    parser.add_argument("--rounds", type=int, default=1, help="how often each runs; the medians count")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def conversations(given: argparse.Namespace) -> tuple[list[Turns], list[Turns]]:
    """Rows to train on and others to judge by, by chance but always the same ones."""
    import duckdb

    named = {"sql": "sql_create_context", "viggo": "viggo", "chat_long": "chat_long"}
    file = given.folder / named[given.data] / "train.parquet" if given.data in named else Path(given.data)
    file = EXAMPLE if given.data == "example" else file
    if not file.exists():
        raise SystemExit(f"There is no {file}.  Say --folder, or --data FILE.")
    if given.data == "chat_long":
        rows: list[Turns] = []
        for role, content in duckdb.execute(f"SELECT role, content FROM '{file}'").fetchall():
            if role == "system":
                rows.append([])
            rows[-1].append({"role": role, "content": content})
    else:
        meaning = given.data == "viggo"
        system = MEANING if meaning else SYSTEM
        asked = "target, meaning_representation" if meaning else "context || chr(10) || question, answer"
        order = "target" if meaning else "question"
        pairs = duckdb.execute(f"SELECT {asked} FROM '{file}' ORDER BY hash({order})").fetchall()
        names = ("system", "user", "assistant")
        rows = [[{"role": r, "content": c} for r, c in zip(names, (system, *p), strict=True)] for p in pairs]
    return rows[: given.rows], rows[given.rows : given.rows + given.valid]


class Bench:
    """The same base, rows and evaluation for all."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch
        from sqlft_local import pull
        from sqlft_local.base.tokenization import Renderer
        from transformers import AutoTokenizer

        from sqlft.handler import Message

        torch.set_num_threads(given.threads)
        torch.manual_seed(0)
        self.given = given
        self.dtype = getattr(torch, given.dtype)
        self.folder = pull(given.base, lambda what, share: None)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        renderer = Renderer(self.tokenizer, [self.tokenizer.eos_token_id])
        self.turns, valid = conversations(given)
        self.rows, self.valid = (
            [renderer.conversation([Message(**m) for m in turns]) for turns in some] for some in (self.turns, valid)
        )

    def plain(self) -> Any:
        """The base as transformers loads it, with peft's matrices."""
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype)
        return get_peft_model(model, self.config(LoraConfig))

    def config(self, kind: Any) -> Any:
        """The matrices."""
        given = self.given
        targets = "all-linear" if given.targets == ["all-linear"] else given.targets
        return kind(r=8, lora_alpha=16, lora_dropout=given.dropout, target_modules=targets, task_type="CAUSAL_LM")

    def padded(self, batch: Sequence[Any]) -> dict[str, Any]:
        """Inputs padded to the longest."""
        import torch

        longest = max(len(r.ids) for r in batch)
        more = [longest - len(r.ids) for r in batch]
        labels = [[i if a else -100 for i, a in zip(r.ids, r.answer, strict=True)] for r in batch]
        return {
            "input_ids": torch.tensor([[*r.ids, *[0] * n] for r, n in zip(batch, more, strict=True)]),
            "attention_mask": torch.tensor([[1] * len(r.ids) + [0] * n for r, n in zip(batch, more, strict=True)]),
            "labels": torch.tensor([[*said, *[-100] * n] for said, n in zip(labels, more, strict=True)]),
        }

    def judged(self, adapter: Path) -> float:
        """Mean loss of the answers' tokens on the validation rows, in float32, one row at a time."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter).eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in self.valid:
                said = sum(row.answer[1:])
                total += model(**self.padded([row])).loss.item() * said
                count += said
        return float(total / count)

    def timed(self, step: Callable[[Sequence[Any]], float]) -> dict[str, float]:
        """All rows once; the first step, which warms up, counts for memory and not for time."""
        size = self.given.batch_size
        batches = [self.rows[i : i + size] for i in range(0, len(self.rows), size)]
        step(batches[0])
        began = time.perf_counter()
        for batch in batches[1:]:
            step(batch)
        return self.figures([r for b in batches[1:] for r in b], time.perf_counter() - began)

    def figures(self, rows: Sequence[Any], seconds: float) -> dict[str, float]:
        """Speed, and the most memory until now."""
        from sqlft.training.worker import measure_peak_memory

        return {
            "examples_per_second": len(rows) / seconds,
            "tokens_per_second": sum(len(r.ids) for r in rows) / seconds,
            "peak_mb": measure_peak_memory() / 1024 / 1024,
        }

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, down linearly: the same for all."""
        steps = -(-len(self.rows) // self.given.batch_size)
        return float(RATE * (1 - step / steps))


def measured_here(given: argparse.Namespace) -> dict[str, float]:
    """One loop's figures, and the loss of what it trained."""
    bench = Bench(given)
    with tempfile.TemporaryDirectory() as folder:
        figures = LOOP[given.loop](bench, Path(folder))
        return {**figures, "valid_loss": bench.judged(Path(folder))}


def padded(bench: Bench, folder: Path) -> dict[str, float]:
    """What most scripts do: rows padded to the batch's longest, logits everywhere, peft's own layers."""
    import torch

    model = bench.plain().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    done = 0

    def step(batch: Sequence[Any]) -> float:
        nonlocal done
        loss = model(**bench.padded(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = bench.rate_at(done)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        return float(loss.item())

    figures = bench.timed(step)
    model.save_pretrained(folder)
    return figures


def trl(bench: Bench, folder: Path, **more: Any) -> dict[str, float]:
    """TRL's SFTTrainer, loss on answers only as all others have it."""
    from importlib import import_module

    from peft import LoraConfig

    library, datasets = import_module("trl"), import_module("datasets")

    prompts = [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in bench.turns]
    settings = library.SFTConfig(
        output_dir=str(folder / "work"),
        per_device_train_batch_size=bench.given.batch_size,
        num_train_epochs=1,
        learning_rate=RATE,
        max_length=None if not more.get("packing") else 1024,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=bench.given.dtype == "bfloat16",
        model_init_kwargs={"dtype": bench.dtype},
        **more,
    )
    rows = datasets.Dataset.from_list(prompts)
    trainer = library.SFTTrainer(str(bench.folder), settings, train_dataset=rows, peft_config=bench.config(LoraConfig))
    began = time.perf_counter()
    trainer.train()
    figures = bench.figures(bench.rows, time.perf_counter() - began)
    trainer.save_model(str(folder))
    return figures


def trl_packed(bench: Bench, folder: Path) -> dict[str, float]:
    """With what TRL has against padding and for memory."""
    return trl(bench, folder, packing=True, gradient_checkpointing=True)


def ours(bench: Bench, folder: Path) -> dict[str, float]:
    """The loop of the local engine, by its parts, so that all are timed alike."""
    import torch
    from sqlft_local.base import loading
    from sqlft_local.kernels import fused
    from sqlft_local.kernels.batching import split_passes
    from sqlft_local.kernels.packing import Example, pack
    from sqlft_local.options import ModelOptions, TrainOptions
    from sqlft_local.train import lora, memory
    from sqlft_local.train import rows as reading

    given = bench.given
    loading.require_libraries("The benchmark")
    loaded = loading.load_base(bench.folder, ModelOptions(dtype=given.dtype), "cpu", training=True)
    options = TrainOptions(lora_dropout=given.dropout, r=8, lora_alpha=16, target_modules=given.targets)
    fused.fuse_modules(loaded.model)
    attached = lora.attach(loaded.model, options, None)
    parameters = list(attached.trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    answers = {id(r): Example(r.ids, [float(a) for a in r.answer]) for r in bench.rows}
    allowed = memory.plan_passes(loaded.model, options, attached, max(len(r.ids) for r in bench.rows))
    loaded.model.train()
    done, computed, said = 0, 0, 0

    def step(batch: Sequence[Any]) -> float:
        nonlocal done, computed, said
        examples = [answers[id(r)] for r in batch]
        total, weight = 0.0, reading.sum_weights(examples)
        for part in split_passes(examples, allowed.tokens):
            packed = pack(part)
            attached.masks.renew()
            loss = fused.compute_loss(loaded.model, packed) / weight
            loss.backward()
            total += loss.item()
            computed, said = computed + packed.ids.shape[1], said + len(packed.target)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = bench.rate_at(done)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        return total

    figures = bench.timed(step)
    lora.save_adapter(attached, folder, str(bench.folder))
    flops = work(loaded.model.config, computed, said)
    gflops = product_rate(loaded.model.config, bench.dtype)
    limit = len(bench.rows) / (flops / (gflops * 1e9))
    return {**figures, "gflops": gflops, "limit": limit, "of_limit": figures["examples_per_second"] / limit}


def work(config: Any, tokens: int, said: int) -> float:
    """Operations of the frozen layers' products, forward and for the inputs' gradients; attention is left out."""
    from sqlft_local.base.config import read_shape

    shape = read_shape(config.to_dict())
    linear = shape.layers * sum(a * b for a, b in shape.linear_layers.values())
    return 4.0 * (tokens * linear + said * shape.vocab_size * shape.hidden_size)


def product_rate(config: Any, dtype: Any, tokens: int = 1024) -> float:
    """GFLOP/s of products as large as those of a block."""
    import torch

    x, w = (
        torch.randn(tokens, config.hidden_size, dtype=dtype),
        torch.randn(config.intermediate_size, config.hidden_size, dtype=dtype),
    )
    best = math.inf
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - began)
    return float(2 * x.numel() * w.shape[0] / best / 1e9)


LOOP: dict[str, Callable[[Bench, Path], dict[str, float]]] = {
    "padded": padded,
    "trl": trl,
    "trl_packed": trl_packed,
    "ours": ours,
}

if __name__ == "__main__":
    main()
