"""What fewer bits cost: one version asked by each backend in each precision, beside float32, on the same questions.

    python benchmarks/precision.py --data dev.parquet --adapter DIR [--rows 300] [--way transformers:f32] [--way …]

A way is backend:precision, as in `USING backend = …, precision = …`; the first one is what the others are compared
with, and `auto:auto` is what a query takes.  Each answers all rows greedily in a process of its own.  `lost` and `won`
are rows that only the first way, or only this one, answers exactly right; `points` is their difference in points of
exact match, with the half-width of its 95 % interval (paired).  `equal` is the share of answers that are the first
way's, letter for letter.
--answers keeps the texts in a folder; --results appends a line of JSON a way to a file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import describe_machine
from recipe import rows

WAYS = ("transformers:f32", "transformers:bf16", "llama.cpp:f32", "llama.cpp:f16", "llama.cpp:bf16", "llama.cpp:q8_0")
PACKAGES = ("torch", "transformers", "xllamacpp", "gguf")
HEAD = (
    f"{'way':<20}{'rows':>6}{'exact':>8}{'lost':>6}{'won':>5}{'points':>8}{'±':>6}{'equal':>8}{'rows/s':>8}{'cpu s':>8}"
)


def main() -> None:
    """Ask by each way and print a line of each."""
    given = arguments()
    if given.child:
        print(json.dumps(ask(given, given.way[0])))
        return
    right = [r.answer.strip() for r in rows(given.data, "true", given.rows)]
    print(HEAD)
    first: list[str] = []
    for way in given.way or WAYS:
        made = measured(way)
        texts = [text.strip() for text in made.pop("answers")]
        first = first or texts
        found = {**made, **compared(texts, first, right)}
        print(line(found), flush=True)
        keep(given, found, texts)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions as benchmarks/recipe.py reads them")
    parser.add_argument("--adapter", type=Path, help="a folder that FINETUNE made; without it the base itself")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=1 << 30, help="so many by chance, always the same; without it all")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--way", action="append", help=f"without it {', '.join(WAYS)}")
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(way: str) -> dict[str, Any]:
    """What one way says in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    while "--way" in command:
        del command[command.index("--way") : command.index("--way") + 2]
    done = subprocess.run([*command, "--way", way], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask(given: argparse.Namespace, way: str) -> dict[str, Any]:
    """Answers of all rows; the first prompt is answered once before the clock runs."""
    from sqlft_local import Local
    from sqlft_local.base import hub
    from sqlft_local.options import ModelOptions, PredictOptions
    from sqlft_local.predict import choose

    from sqlft.handler import Artifact, Completion, Message, ModelSpec, Request

    backend, _, precision = way.partition(":")
    chosen: dict[str, Any] = {"backend": backend, "precision": precision}
    options = PredictOptions(max_tokens=given.max_tokens, batch_size=given.batch_size, **chosen)
    artifact = Artifact(given.adapter) if given.adapter else None
    model = ModelSpec(given.base, ModelOptions())
    prompts = [r.prompt for r in rows(given.data, "true", given.rows)]
    predictor = Local().open(model, artifact, options)

    def answered(asked: list[str]) -> dict[int, str]:
        requests = (Request(i, (Message("user", p),)) for i, p in enumerate(asked))
        return {c.id: c.text or "" for c in predictor.predict(requests) if isinstance(c, Completion)}

    answered(prompts[:1])
    began, cpu = time.perf_counter(), time.process_time()
    texts = answered(prompts)
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    predictor.close()
    took = choose.choose_backend(model, options, hub.pull(given.base, lambda what, share: None), "auto")
    answers = [texts[i] for i in range(len(prompts))]
    return {"way": way, "backend": took, "seconds": seconds, "cpu": spent, "answers": answers}


def compared(texts: list[str], first: list[str], right: list[str]) -> dict[str, Any]:
    """Exact match, and by how much it differs from the first way's on the same rows."""
    count = len(right)
    here, there = ([a == b for a, b in zip(answers, right, strict=True)] for answers in (texts, first))
    lost = sum(b and not a for a, b in zip(here, there, strict=True))
    won = sum(a and not b for a, b in zip(here, there, strict=True))
    spread = math.sqrt(max(0.0, (lost + won) - (won - lost) ** 2 / count)) / count
    return {
        "rows": count,
        "exact": sum(here) / count,
        "lost": lost,
        "won": won,
        "points": 100 * (won - lost) / count,
        "within": 100 * 1.96 * spread,
        "equal": sum(a == b for a, b in zip(texts, first, strict=True)) / count,
    }


def line(m: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{m['way']:<20}{m['rows']:>6}{m['exact']:>8.1%}{m['lost']:>6}{m['won']:>5}{m['points']:>8.1f}{m['within']:>6.1f}"
        f"{m['equal']:>8.1%}{m['rows'] / m['seconds']:>8.2f}{m['cpu']:>8.1f}"
    )


def keep(given: argparse.Namespace, found: dict[str, Any], texts: list[str]) -> None:
    """Append the figures and write down the texts, where that was asked for."""
    about = {"data": given.data.parent.name, **describe_machine(*PACKAGES)}
    if given.results:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "precision", **about, **rounded}) + "\n")
    if given.answers:
        given.answers.mkdir(parents=True, exist_ok=True)
        name = found["way"].replace(":", "-")
        (given.answers / f"{name}.json").write_text(json.dumps(texts, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
