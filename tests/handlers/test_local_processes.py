"""Training in several processes: what one would learn, and none that outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from sqlft_local import Local
from sqlft_local.kernels.packing import Example
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import parallel

from sqlft.errors import Cancelled, OptionError, ProviderError
from sqlft.handler import Artifact, ModelSpec, Progress, TrainingSet

KIND = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SAME = 0.01
"""Sums in another order; without one process's gradients it is far more than a tenth."""
PATIENCE = 300.0
"""Seconds, on a machine that does much else."""


def table(names: Sequence[str]) -> pa.Table:
    """Conversations of a question and an answer, of several lengths."""
    turns = [
        [
            {"role": "user", "content": f"How many in {n * (1 + i % 3)}?"},
            {"role": "assistant", "content": f"SELECT {n}"},
        ]
        for i, n in enumerate(names)
    ]
    return pa.table({"messages": pa.array(turns, KIND)})


NAMES = [f"singer{i}" for i in range(14)]
DATA = TrainingSet(table(NAMES[:10]), table(NAMES[10:]))


def train(base: Path, workdir: Path, count: int, report: Any = lambda p: None, **options: Any) -> Artifact:
    """Six steps of up to 4 rows."""
    workdir.mkdir(exist_ok=True)
    given = {"n_epochs": 2, "batch_size": 4, "learning_rate": 0.02, "lora_dropout": 0.0, "checkpoint_steps": 1}
    wanted = TrainOptions(**{**given, "num_processes": count, **options})
    return Local().train(
        ModelSpec(str(base), options=ModelOptions(dtype="float32")), None, DATA, wanted, workdir, report
    )


def relative_difference(one: Artifact, other: Artifact) -> float:
    """How far two adapters are from each other, relative to their size."""
    found = []
    for made in (one, other):
        assert made.path is not None
        tensors = load_file(made.path / "adapter_model.safetensors")
        found.append(torch.cat([tensors[name].flatten() for name in sorted(tensors)]))
    a, b = found
    return float((a - b).norm() / a.norm())


def find_followers() -> list[psutil.Process]:
    """The processes that help this one and run."""
    found = []
    for one in psutil.Process().children():
        try:
            found += [one] if "sqlft_local.train.parallel" in one.cmdline() else []
        except psutil.NoSuchProcess:  # ended, and nobody has asked how
            continue
    return found


def test_three_processes_learn_what_one_does(tiny: Path, tmp_path: Path) -> None:
    """Gradients, loss and tokens are those of all rows, also where a step has fewer rows than there are processes."""
    alone, losses = train(tiny, tmp_path / "one", 1), []

    def hear(progress: Progress) -> None:
        if "learning_rate" in progress.metrics:
            losses.append(progress.metrics["loss"])

    together = train(tiny, tmp_path / "three", 3, hear)
    assert relative_difference(alone, together) < SAME
    assert len(losses) == together.details["steps"] == 6
    assert together.details["processes"] == 3
    assert together.details["tokens"] == alone.details["tokens"]
    assert together.details["loss"] == pytest.approx(alone.details["loss"], rel=1e-4)
    assert not find_followers()


def test_one_that_dies_is_told_and_the_training_goes_on_without_it(tiny: Path, tmp_path: Path) -> None:
    """What was learned until then is kept."""

    def kill(progress: Progress) -> None:
        if progress.step == 3 and progress.metrics:
            for one in find_followers():
                one.kill()

    with pytest.raises(ProviderError, match=r"Process 2 of the training ended \(-9\)"):
        train(tiny, tmp_path / "broken", 2, kill)
    assert not find_followers()
    resumed = train(tiny, tmp_path / "broken", 1)
    assert relative_difference(train(tiny, tmp_path / "whole", 1), resumed) < SAME


def test_who_cannot_begin_says_why(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of its own error, or of its traceback."""

    def other(options: Any, **more: Any) -> dict[str, Any]:
        return {**vars(options), **(more if isinstance(options, TrainOptions) else {})}

    monkeypatch.setattr(parallel, "asdict", partial(other, target_modules=["no_such"]))
    with pytest.raises(ProviderError, match=r"Process 2 of the training: The base has no layers called no_such"):
        train(tiny, tmp_path / "bad", 2)
    monkeypatch.setattr(parallel, "asdict", partial(other, no_such=1))
    with pytest.raises(ProviderError, match=r"(?s)Process 2 of the training ended \(1\).*TypeError.*no_such"):
        train(tiny, tmp_path / "bad", 2)
    assert not find_followers()


def test_a_stop_ends_all(tiny: Path, tmp_path: Path) -> None:
    """And the next training may have several processes again."""

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise Cancelled("enough", "go on")

    with pytest.raises(Cancelled):
        train(tiny, tmp_path / "stopped", 2, stop)
    assert not find_followers()
    assert relative_difference(train(tiny, tmp_path / "stopped", 2), train(tiny, tmp_path / "whole", 1)) < SAME


LEADER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_local_processes import train
import time
def slow(progress):
    if progress.step == 1:
        print("begun", flush=True)
        time.sleep(600)
train(Path(sys.argv[2]), Path(sys.argv[3]), 2, slow)
"""


def test_none_outlives_the_leader(tiny: Path, tmp_path: Path) -> None:
    """Who is killed cannot end the others: they see it."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", LEADER, here, str(tiny), str(tmp_path / "a")]
    leader = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == b"begun\n"
    helping = psutil.Process(leader.pid).children()
    assert helping
    leader.send_signal(signal.SIGKILL)
    leader.wait()
    until = time.monotonic() + PATIENCE
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in helping):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_shares_are_even() -> None:
    """Every row is somewhere, and none of the processes has much more to do."""
    batch = [Example([1] * n, [1.0] * n) for n in (90, 40, 30, 20, 20, 10)]
    made = parallel.split_batch(batch, 3)
    assert sorted(len(e.ids) for part in made for e in part) == [10, 20, 20, 30, 40, 90]
    assert sorted(sum(len(e.ids) for e in part) for part in made) == [60, 60, 90]
    assert [len(part) for part in parallel.split_batch(batch[:1], 2)] == [1, 0]


def test_where_it_cannot_be(tmp_path: Path) -> None:
    """More processes than GPUs, and a program that works in several already."""
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="no device 'cuda'"):
            parallel.assign_devices(2, "cuda")
    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "s").as_uri(), rank=0, world_size=1)
    try:
        with pytest.raises(OptionError, match="together already"):
            parallel.assign_devices(2, "cpu")
    finally:
        torch.distributed.destroy_process_group()
