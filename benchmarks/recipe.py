"""Which recipe learns most from the same number of examples: one training after another, judged on held-out rows.

    python benchmarks/recipe.py --data FILE [--task sql] [--rows 2000] [--passes 2000] [--judged 150] \
        [learning_rate=0.002,0.004 …]

Every `option=value,value` is a train option of the local engine; all combinations are run.  The rows that judge are
taken from FILE itself, a part whose column `group` (or whose input) no training row shares: choose on a training file,
and look at the test file once, with --test FILE, when the choice is made.  A JSON line a run, and a table at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
from sqlft_local import Local
from sqlft_local.options import ModelOptions, PredictOptions, TrainOptions

from sqlft.handler import Artifact, Completion, Message, ModelSpec, Progress, Request, TrainingSet
from sqlft.metrics import METRICS

TASKS = {
    "sql": ("context || chr(10) || question", "answer", '"group"'),
    "spider": ("create_context || chr(10) || question", "query", "db_id"),
    "viggo": ("target", "meaning_representation", "target"),
    "acts": ("target", "regexp_extract(meaning_representation, '^[a-z_]+')", "target"),
}
"""Prompt, answer, and what no training row may share with a judged one: columns of the files of these names.

`acts` is a classification: which of nine things a sentence of ViGGO does.
"""


class Row(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


def main() -> None:
    """Run all combinations and print them, best last."""
    given = arguments()
    train, judged = split(given)
    print(f"{len(train)} rows to learn from, {len(judged)} to judge by")
    found = []
    for options in combinations(given.options):
        found.append(run(given, train, judged, options))
        print(json.dumps(found[-1]), flush=True)
    print(f"{'exact':>6} {'f1':>6} {'loss':>7} {'seconds':>8}  options")
    for one in sorted(found, key=lambda r: (r["exact_match"], r["token_f1"])):
        print(
            f"{one['exact_match']:>6.1%} {one['token_f1']:>6.3f} {one['valid_loss']:>7.4f} {one['seconds']:>8.0f}  "
            f"{json.dumps(one['options'])}"
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="sql", help="which columns of it")
    parser.add_argument("--test", type=Path, help="judge on this file instead: once, when the choice is made")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--passes", type=int, help="examples trained on in all; without it n_epochs says")
    parser.add_argument("--judged", type=int, default=150)
    parser.add_argument("--system", default=None)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("options", nargs="*", help="option=value,value")
    return parser.parse_args()


def split(given: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows by chance but always the same; one group in eight judges and never teaches."""
    held = "hash({group}, 7) % 8 = 0"
    train = rows(given.data, f"NOT {held}", given.rows, given.task)
    judged = rows(given.test or given.data, "true" if given.test else held, given.judged, given.task)
    return train, judged


def rows(file: Path, where: str, count: int, task: str = "sql") -> list[Row]:
    """The rows of a file that fulfil a condition on its {group}."""
    prompt, answer, group = TASKS[task]
    chosen = f"SELECT {prompt}, {answer} FROM '{file}' WHERE {where.format(group=group)}"
    query = f"{chosen} ORDER BY hash({prompt}) LIMIT {count}"
    return [Row(*r) for r in duckdb.execute(query).fetchall()]


def combinations(options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every combination of the values given."""
    names = [o.partition("=")[0] for o in options]
    values = [[parsed(v) for v in o.partition("=")[2].split(",")] for o in options]
    for chosen in itertools.product(*values):
        yield dict(zip(names, chosen, strict=True))


def parsed(text: str) -> Any:
    """A number, a list of words between plus signs, true or false, or a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text.split("+") if "+" in text else text


def run(
    given: argparse.Namespace, train: Sequence[Row], judged: Sequence[Row], options: dict[str, Any]
) -> dict[str, Any]:
    """One training, its answers to the judged rows and what they are worth."""
    chosen = TrainOptions(**options)
    if given.passes:
        chosen = dataclasses.replace(chosen, n_epochs=given.passes / len(train))
    handler, model = Local(), ModelSpec(given.base, ModelOptions())
    losses: dict[str, float] = {}

    def report(progress: Progress) -> None:
        losses.update(progress.metrics)

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        data = TrainingSet(table(given, train), table(given, judged[:96]))
        made = handler.train(model, None, data, chosen, Path(folder), report)
        seconds = time.monotonic() - began
        answers = ask(given, handler, model, made, judged)
    actual, prediction = pa.array([r.answer for r in judged]), pa.array(answers)
    scores = {
        m: sum(METRICS[m](actual=actual, prediction=prediction).to_pylist()) / len(judged)
        for m in ("exact_match", "token_f1")
    }
    return {
        "task": given.task,
        "options": options,
        **scores,
        "valid_loss": made.details["valid_loss"],
        "loss": made.details["loss"],
        "steps": made.details["steps"],
        "training_seconds": made.details["seconds"],
        "seconds": seconds,
        "rows": len(train),
        "judged": len(judged),
    }


def ask(
    given: argparse.Namespace, handler: Local, model: ModelSpec, made: Artifact, judged: Sequence[Row]
) -> list[str | None]:
    """Greedy answers, in order."""
    predictor = handler.open(model, made, PredictOptions(max_tokens=given.max_tokens))
    requests = [Request(i, tuple(messages(given, r))) for i, r in enumerate(judged)]
    answers: list[str | None] = [None] * len(judged)
    for c in predictor.predict(iter(requests)):
        if isinstance(c, Completion):
            answers[c.id] = c.text
    predictor.close()
    return answers


def messages(given: argparse.Namespace, row: Row) -> list[Message]:
    """The prompt as a conversation."""
    system = [Message("system", given.system)] if given.system else []
    return [*system, Message("user", row.prompt)]


def table(given: argparse.Namespace, taught: Sequence[Row]) -> pa.Table:
    """Rows as handlers see them."""
    turns = [[m._asdict() for m in (*messages(given, r), Message("assistant", r.answer))] for r in taught]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.table({"messages": pa.array(turns, kind)})


if __name__ == "__main__":
    main()
