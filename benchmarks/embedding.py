"""Texts to vectors: ours against sentence-transformers at its defaults, and against the engine alone.

    python benchmarks/embedding.py [--data FILE --column SQL] [--texts 1000] [--base minilm] [--rounds 3]

All make the vectors of the same texts on the processor, in turns, in one process; the median of the rounds counts.  The
engine alone gets batches that are tokenized, sorted by length and padded already.  Writes a row to
benchmarks/results/embedding.jsonl and ends with it.  The peer is `pip install sentence-transformers`; it is left out
where that is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from figures import describe_machine

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "openvino", "sentence-transformers")
DATA = ROOT.parent / "shared" / "data" / "sql_create_context" / "train.parquet"


def main() -> None:
    """Measure in turns, compare, and keep the figures."""
    import duckdb
    import numpy

    given = arguments()
    query = f"SELECT {given.column} FROM '{given.data}' ORDER BY hash({given.column}) LIMIT {given.texts}"
    texts = [row[0] for row in duckdb.execute(query).fetchall()]
    ways = make_ways(given, texts)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, Any] = {}
    for run in ways.values():
        run()
    for _ in range(given.rounds):
        for name, run in ways.items():
            began, used = time.perf_counter(), time.process_time()
            vectors[name] = run()
            seconds[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - used)
    ours = numpy.array(vectors["ours"])
    found: dict[str, dict[str, float]] = {}
    print(f"{'way':<24} {'texts/s':>8} {'processor s':>12} {'farthest':>9}")
    for name in ways:
        rate, used = len(texts) / median(seconds[name]), median(processor[name])
        far = float(abs(numpy.array(vectors[name]) - ours).max()) if vectors[name] is not None else float("nan")
        found[name] = {"texts_per_second": round(rate, 1), "processor_seconds": round(used, 3)}
        print(f"{name:<24} {rate:>8.1f} {used:>12.2f} {far:>9.1e}")
    over = {name: round(median(seconds[name]) / median(seconds["ours"]), 3) for name in ways if name != "ours"}
    row = {
        "benchmark": "embedding",
        "base": given.base,
        "texts": len(texts),
        **describe_machine(*PACKAGES),
        "ways": found,
    }
    line = json.dumps({**row, "speed_over": over, "rounds": seconds})
    with (ROOT / "benchmarks" / "results" / "embedding.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--column", default="context || chr(10) || question")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def make_ways(given: argparse.Namespace, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    from sqlft_local import Local, pull
    from sqlft_local.options import EngineOptions, ModelOptions

    from sqlft.handler import ModelSpec

    folder = pull(given.base, lambda what, share: None)
    local, spec = Local(EngineOptions(device="cpu")), ModelSpec(str(folder), ModelOptions())
    ways: dict[str, Callable[[], Any]] = {"ours": lambda: list(local.embed(texts, spec, None))}
    list(local.embed(texts[:1], spec, None))
    if find_spec("sentence_transformers") is not None:
        peer = import_module("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
        ways["sentence-transformers"] = lambda: peer.encode(texts, show_progress_bar=False)
    if (engine := make_engine(folder, texts)) is not None:
        ways["engine alone"] = engine
    return ways


def make_engine(folder: Path, texts: list[str]) -> Callable[[], None] | None:
    """OpenVINO on batches that are ready, as large as ours; None where it has no file of the model."""
    import numpy
    from sqlft_local import machine
    from sqlft_local.base import config, weight_cache
    from sqlft_local.predict import embed
    from sqlft_local.predict.openvino import OpenVinoEncoder

    files = list(weight_cache.find_cache_folder(folder).glob(f"openvino-encoder-*/{weight_cache.ENCODER_FILE}"))
    if not files:
        return None
    ids = embed.load_tokenizer(folder, embed.read_pooling(folder, config.read_config(folder)))(texts)
    batches: list[list[list[int]]] = [[]]
    for row in sorted(ids, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > embed.BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    ready = []
    for rows in batches:
        longest = max(map(len, rows))
        padded = numpy.array([row + [0] * (longest - len(row)) for row in rows])
        ready.append((padded, numpy.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])))
    engine = OpenVinoEncoder(files[0], machine.resolve_threads(None), "float32")

    def run() -> None:
        for padded, mask in ready:
            engine.compute_states(padded, mask)

    return run


if __name__ == "__main__":
    main()
