"""Asking: ours against transformers one by one and llama.cpp's own HTTP server, in one run.

    python benchmarks/ask.py [--data FILE] [--adapter DIR] [--rows 128] [--ways NAME …] [--threads 2] [--sweep]

--sweep compares what ours can be set to: backend, precision, prompts at a time and threads; it needs no reference.

Each way answers the same prompts, greedily, in a process of its own; `first` is when the first answer is there and
`alone` what one request takes with nothing beside it.  Other work on the machine shows in seconds, less so in `cpu s`,
the processor's.  Agreement is with transformers in float32: answers that are equal, and tokens up to the first that is
not.  FILE has the columns question, context and answer; without it the rows are the example's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "text_to_sql.csv"
CLIENTS = 16
PEERS = ("transformers", "server")
SLOT_TOKENS = 1024
"""Context of each slot of the server, where their number is given."""
Answers = Iterator[tuple[int, str]]
HEAD = (
    f"{'way':<32}{'numbers':>8}{'rows/s':>8}{'cpu s':>8}{'first s':>9}{'alone s':>9}{'cold s':>8}"
    f"{'MB':>7}{'exact':>7}{'equal':>7}{'tokens':>8}"
)


def main() -> None:
    """Run the ways, one after the other, and compare them."""
    given = arguments()
    if given.way:
        print(json.dumps(WAYS[given.way](given)))
        return
    from sqlft_local import machine

    found: dict[str, dict[str, Any]] = {}
    print(HEAD)
    compared = {name: WAYS_COMPARED[name] for name in given.ways}
    for name, options in (swept() if given.sweep else compared).items():
        found[name] = measured(options)
        print(line(name, found[name], found.get("reference")), flush=True)
    summary: dict[str, Any] = {"benchmark": "ask", "ways": {k: brief(v) for k, v in found.items()}}
    if not given.sweep:
        speed = {k: v["rows_per_second"] for k, v in found.items()}
        fastest = {kind: max((v for k, v in speed.items() if k.startswith(kind)), default=None) for kind in PEERS}
        best = max(v for k, v in speed.items() if k.startswith("ours"))
        ratios = {f"against_{kind}": round(best / peer, 2) for kind, peer in fastest.items() if peer}
        print(", ".join(f"{k.replace('_', ' ')} {v}" for k, v in ratios.items()))
        summary |= {"processor": machine.detect_machine().processor, **ratios}
    print(json.dumps(summary))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, help="a folder that FINETUNE made; without it the base itself")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--precision", default="bf16", choices=["auto", "f32", "bf16", "f16", "q8_0"])
    parser.add_argument("--backend", default="auto", choices=["auto", "transformers", "llama.cpp", "openvino"])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--slots", type=int, help="of llama.cpp's server; without it as it comes")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS_COMPARED), default=list(WAYS_COMPARED))
    parser.add_argument("--sweep", action="store_true", help="ours alone, in many settings")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def swept() -> dict[str, list[str]]:
    """Name -> options of each setting of ours."""
    made = {}
    backends = (("openvino", "q8_0"), ("transformers", "bf16"), ("transformers", "f32"), ("llama.cpp", "q8_0"))
    for backend, precision in backends:
        for size in (4, 8, 16, 32, 64):
            name = f"{backend} {precision} x{size}"
            made[name] = ["--backend", backend, "--precision", precision, "--batch-size", str(size)]
        made[f"{name} 1 thread"] = [*made[name], "--threads", "1"]
    return {name: ["--way", "ours", *options] for name, options in made.items()}


def measured(options: list[str]) -> dict[str, Any]:
    """What one way says of itself, in a fresh process; its options overrule those of the command line."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, m: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """A row of the table."""
    same = ""
    if reference:
        right = reference["answers"]
        equal = sum(a == b for a, b in zip(m["answers"], right, strict=True)) / len(right)
        same = f"{equal:>7.1%}{same_tokens(m['answers'], right):>8.1%}"
    return (
        f"{name:<32}{m['numbers']:>8}{m['rows_per_second']:>8.2f}{m['cpu']:>8.1f}{m['first']:>9.2f}"
        f"{m['alone']:>9.2f}{m['cold']:>8.2f}{m['mb']:>7.0f}{m['exact']:>7.1%}{same}"
    )


def same_tokens(answers: list[str], reference: list[str]) -> float:
    """Share of the reference's words and signs that come before the first difference."""
    import re

    same = total = 0
    for one, other in zip(answers, reference, strict=True):
        ours, theirs = (re.findall(r"\w+|\W", text) for text in (one, other))
        total += len(theirs) + 1
        same += next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None) or (
            len(theirs) + 1 if ours == theirs else min(len(ours), len(theirs))
        )
    return same / max(1, total)


def brief(m: dict[str, Any]) -> dict[str, Any]:
    """Without the texts."""
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in m.items() if k != "answers"}


def rows(given: argparse.Namespace) -> list[tuple[str, str]]:
    """(prompt, right answer), by chance but always the same ones."""
    import duckdb

    query = f"SELECT context, question, answer FROM '{given.data}' ORDER BY hash(question) LIMIT {given.rows}"
    return [(f"{c}\n{q}", a) for c, q, a in duckdb.execute(query).fetchall()]


def timed(
    given: argparse.Namespace, began: float, numbers: str, answer: Callable[[list[str]], Answers]
) -> dict[str, Any]:
    """The first prompt alone, then all but it at once."""
    asked = rows(given)
    prompts = [p for p, _ in asked]
    [(_, one)] = answer(prompts[:1])
    cold = time.perf_counter() - began
    alone_began = time.perf_counter()
    list(answer(prompts[1:2]))
    alone = time.perf_counter() - alone_began
    texts, first = {0: one}, 0.0
    start, cpu = time.perf_counter(), time.process_time()
    for i, text in answer(prompts[1:]):
        first = first or time.perf_counter() - start
        texts[i + 1] = text
    seconds = time.perf_counter() - start
    from sqlft.training.worker import measure_peak_memory

    return {
        "numbers": numbers,
        "rows_per_second": len(prompts[1:]) / seconds,
        "cpu": time.process_time() - cpu,
        "first": first,
        "alone": alone,
        "cold": cold,
        "mb": measure_peak_memory() / 1024 / 1024,
        "exact": sum(texts[i].strip() == right for i, (_, right) in enumerate(asked)) / len(asked),
        "answers": [texts[i] for i in range(len(asked))],
    }


def transformers(given: argparse.Namespace) -> dict[str, Any]:
    """generate, a prompt at a time, the adapter merged."""
    return one_by_one(given, {"q8_0": "f32"}.get(given.precision, given.precision))


def reference(given: argparse.Namespace) -> dict[str, Any]:
    """What is right: transformers in float32."""
    return one_by_one(given, "f32")


def one_by_one(given: argparse.Namespace, precision: str) -> dict[str, Any]:
    """transformers' own attention and generation; ours has no part in it but the rendering."""
    began = time.perf_counter()
    import torch
    from sqlft_local import pull
    from sqlft_local.base import loading, tokenization
    from sqlft_local.base.tokenization import Renderer
    from sqlft_local.predict.choose import DTYPES
    from transformers import AutoModelForCausalLM

    from sqlft.handler import Message

    torch.set_num_threads(threads(given))
    folder = pull(given.base, lambda what, share: None)
    tokenizer, stop_ids = tokenization.load_transformers_tokenizer(folder)
    renderer = Renderer(tokenizer, stop_ids)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPES[precision]))
    if given.adapter:
        loaded = loading.LoadedModel(model, renderer, folder, 8192)
        model = loading.apply_adapter(loaded, given.adapter).model
    model.eval()

    def answer(prompts: list[str]) -> Answers:
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([renderer.prompt([Message("user", prompt)])])
            ends = sorted(renderer.stop_ids)
            with torch.inference_mode():
                said = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=given.max_tokens,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                )
            yield i, renderer.text(said[0, ids.shape[1] :].tolist())

    return timed(given, began, precision, answer)


def server(given: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp's HTTP server, asked by 16 threads; as it comes, or with `--slots` and as many threads."""
    began = time.perf_counter()
    import http.client
    from urllib.parse import urlparse

    import xllamacpp
    from sqlft_local import pull
    from sqlft_local.base import tokenization, weight_cache
    from sqlft_local.base.tokenization import Renderer

    from sqlft.handler import Message

    folder = pull(given.base, lambda what, share: None)
    files = weight_cache.prepare_gguf_files(folder, given.adapter, given.precision, True, lambda what, share: None)
    tokenizer = tokenization.ChatTokenizer(files.home)
    renderer = Renderer(tokenizer, tokenizer.stop_ids)
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(files.model), -1
    if given.slots:
        params.n_parallel, params.n_ctx = given.slots, given.slots * SLOT_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads(given)
    running = xllamacpp.Server(params)
    address = urlparse(running.listening_address)

    def ask(prompt: str) -> str:
        body = {
            "prompt": renderer.prompt([Message("user", prompt)]),
            "n_predict": given.max_tokens,
            "temperature": 0,
        }
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        said: str = json.loads(connection.getresponse().read())["content"]
        return said

    def answer(prompts: list[str]) -> Answers:
        with ThreadPoolExecutor(max(CLIENTS, given.slots or 0)) as pool:
            waiting = {pool.submit(ask, prompt): i for i, prompt in enumerate(prompts)}
            for done in as_completed(waiting):
                yield waiting[done], done.result()

    return timed(given, began, given.precision, answer)


def ours(given: argparse.Namespace) -> dict[str, Any]:
    """The handler, as a query uses it."""
    began = time.perf_counter()
    from sqlft_local import Local
    from sqlft_local.options import EngineOptions, PredictOptions

    from sqlft.handler import Artifact, Completion, Message, ModelSpec, Request

    handler = Local(EngineOptions(threads=given.threads))
    given_options: dict[str, Any] = {"batch_size": given.batch_size} if given.batch_size else {}
    options = PredictOptions(
        max_tokens=given.max_tokens, precision=given.precision, backend=given.backend, **given_options
    )
    artifact = Artifact(given.adapter) if given.adapter else None

    def answer(prompts: list[str]) -> Answers:
        predictor = handler.open(ModelSpec(given.base), artifact, options)
        try:
            for c in predictor.predict(Request(i, (Message("user", p),)) for i, p in enumerate(prompts)):
                if isinstance(c, Completion):
                    yield c.id, c.text or ""
        finally:
            predictor.close()

    return timed(given, began, given.precision, answer)


def threads(given: argparse.Namespace) -> int:
    """As the local engine counts them."""
    from sqlft_local import machine

    machine.configure_math_libraries()
    return machine.resolve_threads(given.threads)


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "reference": reference,
    "transformers": transformers,
    "server": server,
    "ours": ours,
}

WAYS_COMPARED = {
    "reference": ["--way", "reference"],
    "transformers": ["--way", "transformers", "--precision", "bf16"],
    "server q8_0": ["--way", "server", "--precision", "q8_0"],
    "server q8_0 x8": ["--way", "server", "--precision", "q8_0", "--slots", "8"],
    "server q8_0 x16": ["--way", "server", "--precision", "q8_0", "--slots", "16"],
    "server q8_0 x32": ["--way", "server", "--precision", "q8_0", "--slots", "32"],
    "server bf16 x16": ["--way", "server", "--precision", "bf16", "--slots", "16"],
    "ours": ["--way", "ours", "--backend", "auto", "--precision", "auto"],
    "ours openvino": ["--way", "ours", "--backend", "openvino", "--precision", "auto"],
    "ours openvino x64": ["--way", "ours", "--backend", "openvino", "--precision", "auto", "--batch-size", "64"],
    "ours openvino x32": ["--way", "ours", "--backend", "openvino", "--precision", "auto", "--batch-size", "32"],
    "ours torch": ["--way", "ours", "--backend", "transformers", "--precision", "bf16"],
    "ours llama.cpp": ["--way", "ours", "--backend", "llama.cpp", "--precision", "q8_0"],
}
"""What is compared without --sweep: the server in its fastest formats and numbers of slots, ours on every backend."""

if __name__ == "__main__":
    main()
